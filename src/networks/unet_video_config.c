/* The config.json of a UNetSpatioTemporalConditionModel. Fallbacks are those of the class (diffusers
 * models/unets/unet_spatio_temporal_condition.py), but for the lists of blocks, which every file has. */
#include "config.h"
#include "unet_video.h"

static const struct config_choice choices[] = {
    {"_class_name", "\"UNetSpatioTemporalConditionModel\""},
    {NULL, NULL},
};

static const struct unet_block_names names = {
    .down = {"DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"},
    .up = {"UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"},
    .heads = "num_attention_heads",
    .cross_c = 1024,
};

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

int unet_video_config_load(struct unet_video_config *u, const char *dir, struct error *err)
{
    struct config c;
    *u = (struct unet_video_config){0};
    int rc = config_open(&c, dir, err);
    if (rc < 0)
        return rc;
    config_check(&c, choices);
    if (config_ok(&c))
        unet_blocks_read(&u->blocks, &c, &names);
    if (config_ok(&c))
        read_numbers(u, &c);
    if (config_ok(&c))
        unet_blocks_check(&u->blocks, &c, &names, VIDEO_GROUPS, true);
    config_close(&c);
    return err->code;
}
