/* The config.json of a UNet2DConditionModel. Fallbacks are those of the class (diffusers
 * models/unets/unet_2d_condition.py). What it accepts is what unet.c builds; every other value is refused by
 * name. */
#include <stdio.h>

#include "config.h"
#include "unet.h"

static const struct config_choice choices[] = {
    {"_class_name", "\"UNet2DConditionModel\""},
    {"act_fn", "\"silu\"|\"swish\""},
    {"mid_block_type", "\"UNetMidBlock2DCrossAttn\""},
    {"downsample_padding", "0|1"},
    {"conv_in_kernel", "1|3"},
    {"conv_out_kernel", "1|3"},
    {"mid_block_scale_factor", "1"},
    {"resnet_out_scale_factor", "1"},
    {"resnet_time_scale_shift", "\"default\""},
    {"resnet_skip_time_act", "false"},
    {"time_embedding_type", "\"positional\""},
    {"time_embedding_act_fn", "null"},
    {"timestep_post_act", "null"},
    {"center_input_sample", "false"},
    {"dual_cross_attention", "false"},
    {"mid_block_only_cross_attention", "false"},
    {"cross_attention_norm", "null"},
    {"attention_type", "\"default\""},
    {"class_embed_type", "null"},
    {"class_embeddings_concat", "false"},
    {"addition_embed_type", "\"text_time\""},
    {"encoder_hid_dim", "null"},
    {"encoder_hid_dim_type", "null"},
    {"reverse_transformer_layers_per_block", "null"},
    /* diffusers refuses it too: what the configs call attention_head_dim is the number of heads */
    {"num_attention_heads", "null"},
    {NULL, NULL},
};

static const struct unet_block_names names = {
    .down = {"DownBlock2D", "CrossAttnDownBlock2D"},
    .up = {"UpBlock2D", "CrossAttnUpBlock2D"},
    .heads = "attention_head_dim",
    .cross_c = 1280,
};

static void read_numbers(struct unet_config *u, const struct config *c)
{
    int size[2] = {64, 64};
    json_ints(&c->r, "sample_size", size, 2, 1, 4096);
    u->sample_size = size[0];
    u->in_c = json_int(&c->r, "in_channels", 4, 1, 64);
    u->out_c = json_int(&c->r, "out_channels", 4, 1, 64);
    u->groups = json_int(&c->r, "norm_num_groups", 32, 1, 1024);
    u->eps = config_float(c, "norm_eps", 1e-5, 1e-12, 1e-2);
    u->time_c = json_int(&c->r, "time_embedding_dim", 4 * u->channels[0], 1, 65536);
    u->labels = json_int(&c->r, "num_class_embeds", 0, 1, 65536);
    u->time_cond_c = json_int(&c->r, "time_cond_proj_dim", 0, 1, 8192);
    u->flip_sin_to_cos = json_bool(&c->r, "flip_sin_to_cos", true);
    u->freq_shift = config_float(c, "freq_shift", 0, -1, 1);
    u->conv_in_k = json_int(&c->r, "conv_in_kernel", 3, 1, 3);
    u->conv_out_k = json_int(&c->r, "conv_out_kernel", 3, 1, 3);
    u->pad_end = json_int(&c->r, "downsample_padding", 1, 0, 1) == 0;
    config_flags(c, "only_cross_attention", u->only_cross, u->levels);
    /* absent means the default; null means that there is none */
    u->middle = json_string(&c->r, "mid_block_type", NULL) || !config_has(c, "mid_block_type");
    if (u->channels[0] % 2 != 0)
        error_set(c->r.err, ERR_FORMAT, "%s: the first of \"block_out_channels\" must be even", c->label);
}

/* SDXL's conditioning on sizes: six numbers (original size, crop, target size). The config gives the width of
 * the pooled text and of their sinusoids together. The refiner, which reads five numbers, is not built: it
 * looks like a model with a narrower pooled text, which no text encoder then fits. */
static void read_addition(struct unet_config *u, const struct config *c)
{
    if (!json_string(&c->r, "addition_embed_type", NULL))
        return;
    int all = json_int(&c->r, "projection_class_embeddings_input_dim", 0, 1, 65536);
    u->time_ids = 6;
    u->time_id_c = json_int(&c->r, "addition_time_embed_dim", 0, 2, 8192);
    u->pooled_c = all - u->time_ids * u->time_id_c;
    if (u->pooled_c < 1 || u->time_id_c < 2 || u->time_id_c % 2 != 0)
        error_set(c->r.err, ERR_FORMAT,
                  "%s: \"projection_class_embeddings_input_dim\" %d does not hold a pooled text and %d "
                  "times \"addition_time_embed_dim\" %d, an even number",
                  c->label, all, u->time_ids, u->time_id_c);
}

int unet_config_load(struct unet_config *u, const char *dir, struct error *err)
{
    struct config c;
    *u = (struct unet_config){0};
    int rc = config_open(&c, dir, err);
    if (rc < 0)
        return rc;
    config_check(&c, choices);
    unet_blocks_read(&u->blocks, &c, &names);
    if (config_ok(&c))
        read_numbers(u, &c);
    if (config_ok(&c))
        read_addition(u, &c);
    if (config_ok(&c))
        unet_blocks_check(&u->blocks, &c, &names, u->groups, u->middle);
    config_close(&c);
    return err->code;
}
