/* The config.json of a UNetSpatioTemporalConditionModel. Fallbacks are those of the class (diffusers
 * models/unets/unet_spatio_temporal_condition.py), but for the lists of blocks, which every file has. */
#include "config.h"
#include "unet_video.h"

static const struct config_choice choices[] = {
    {"_class_name", "\"UNetSpatioTemporalConditionModel\""},
    {NULL, NULL},
};

static void read_blocks(struct unet_video_config *u, const struct config *c)
{
    static const char *const down[] = {"DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal", NULL};
    static const char *const up[] = {"UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal", NULL};
    int down_type[LEVELS_MAX] = {0}, up_type[LEVELS_MAX] = {0}, token_c[LEVELS_MAX];
    u->levels = json_ints(&c->r, "block_out_channels", u->channels, LEVELS_MAX, 1, 8192);
    if (u->levels < 1) {
        error_set(c->r.err, ERR_FORMAT, "%s: \"block_out_channels\" should be a list of 1 to %d integers",
                  c->label, (int)LEVELS_MAX);
        return;
    }
    config_types(c, "down_block_types", down_type, u->levels, down);
    config_types(c, "up_block_types", up_type, u->levels, up);
    config_each(c, "layers_per_block", u->layers, u->levels, 2, 1, LAYERS_MAX);
    config_each(c, "num_attention_heads", u->heads, u->levels, 8, 1, 256);
    config_each(c, "transformer_layers_per_block", u->depth, u->levels, 1, 1, DEPTH_MAX);
    config_each(c, "cross_attention_dim", token_c, u->levels, 1024, 1, 16384);
    u->token_c = token_c[0];
    for (int i = 0; i < u->levels; i++) {
        u->down_cross[i] = down_type[i] == 1;
        u->up_cross[i] = up_type[i] == 1;
        if (token_c[i] != token_c[0])
            error_set(c->r.err, ERR_UNSUPPORTED,
                      "%s: \"cross_attention_dim\" differs between blocks; accepted: one value", c->label);
    }
}

static void read_numbers(struct unet_video_config *u, const struct config *c)
{
    int size[2] = {96, 96};
    json_ints(&c->r, "sample_size", size, 2, 1, 4096);
    u->sample_size = size[0];
    u->in_c = json_int(&c->r, "in_channels", 8, 1, 64);
    u->out_c = json_int(&c->r, "out_channels", 4, 1, 64);
    u->frames = json_int(&c->r, "num_frames", 25, 1, 1024);
    u->id_c = json_int(&c->r, "addition_time_embed_dim", 256, 2, 8192);
    int all = json_int(&c->r, "projection_class_embeddings_input_dim", 768, 2, 65536);
    u->ids = all / u->id_c;
    if (u->id_c % 2 != 0 || all % u->id_c != 0)
        error_set(c->r.err, ERR_FORMAT,
                  "%s: \"projection_class_embeddings_input_dim\" %d is not a multiple of "
                  "\"addition_time_embed_dim\" %d, an even number",
                  c->label, all, u->id_c);
}

/* Channels divide into groups and heads. */
static void check_divisions(const struct unet_video_config *u, const struct config *c)
{
    for (int i = 0; i < u->levels; i++) {
        bool attends = u->down_cross[i] || u->up_cross[u->levels - 1 - i] || i == u->levels - 1;
        if (u->channels[i] % VIDEO_GROUPS != 0)
            error_set(c->r.err, ERR_FORMAT, "%s: %d channels do not divide into the %d groups of the norms",
                      c->label, u->channels[i], (int)VIDEO_GROUPS);
        if (attends && u->channels[i] % u->heads[i] != 0)
            error_set(c->r.err, ERR_FORMAT,
                      "%s: %d channels do not divide into %d heads (\"num_attention_heads\")", c->label,
                      u->channels[i], u->heads[i]);
    }
}

int unet_video_config_load(struct unet_video_config *u, const char *dir, struct error *err)
{
    struct config c;
    *u = (struct unet_video_config){0};
    int rc = config_open(&c, dir, err);
    if (rc < 0)
        return rc;
    config_check(&c, choices);
    if (config_ok(&c))
        read_blocks(u, &c);
    if (config_ok(&c))
        read_numbers(u, &c);
    if (config_ok(&c))
        check_divisions(u, &c);
    config_close(&c);
    return err->code;
}
