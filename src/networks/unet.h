/* UNet2DConditionModel: its config and its weights. Private to src/networks. */
#ifndef LATENTD_UNET_H
#define LATENTD_UNET_H

#include "unet_blocks.h"

struct unet_config {
    UNET_BLOCKS;
    bool only_cross[LEVELS_MAX];
    int sample_size, in_c, out_c;
    bool middle; /* mid_block_type is not null */
    int time_c, time_cond_c;
    int labels; /* num_class_embeds: rows of a learned class embedding; 0: none */
    /* addition_embed_type "text_time" (SDXL): pooled text beside the sinusoids of time_ids numbers, each
     * time_id_c wide. All 0 without it. */
    int pooled_c, time_ids, time_id_c;
    int groups, conv_in_k, conv_out_k;
    float eps, freq_shift;
    bool flip_sin_to_cos, pad_end; /* downsample_padding 0 */
};

struct unet_down {
    int layers;
    bool cross, down;
    struct resnet resnet[LAYERS_MAX];
    struct transformer attn[LAYERS_MAX];
    weight downsample;
};

struct unet_up {
    int layers;
    bool cross, up;
    struct resnet resnet[LAYERS_MAX + 1];
    struct transformer attn[LAYERS_MAX + 1];
    weight upsample;
};

struct unet {
    struct backend *be;
    struct weight_list packed;
    struct unet_config cfg;
    enum dtype stored;
    struct once once;
    weight time1, time2, time_cond, added1, added2;
    float *label; /* [labels, time_c] on the host; only one row of it is used in a request; NULL: none */
    weight conv_in, norm_out, conv_out;
    struct unet_down down[LEVELS_MAX];
    struct resnet mid_resnet[2];
    struct transformer mid_attn;
    struct unet_up up[LEVELS_MAX];
};

/* Reads DIR/config.json; what is not built is refused by name. */
int unet_config_load(struct unet_config *cfg, const char *dir, struct error *err);

#endif
