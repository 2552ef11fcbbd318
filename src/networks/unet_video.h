/* UNetSpatioTemporalConditionModel: its config and its weights. Private to src/networks. */
#ifndef LATENTD_UNET_VIDEO_H
#define LATENTD_UNET_VIDEO_H

#include "unet_blocks.h"
#include "video.h"

struct unet_video_config {
    UNET_BLOCKS;
    int sample_size, in_c, out_c, frames;
    int ids, id_c; /* added time ids, and the width of each's sinusoids */
};

struct unet_video_down {
    int layers;
    bool cross, down;
    struct video_resnet resnet[LAYERS_MAX];
    struct video_transformer attn[LAYERS_MAX];
    weight downsample;
};

struct unet_video_up {
    int layers;
    bool cross, up;
    struct video_resnet resnet[LAYERS_MAX + 1];
    struct video_transformer attn[LAYERS_MAX + 1];
    weight upsample;
};

struct unet_video {
    struct backend *be;
    struct weight_list packed;
    struct unet_video_config cfg;
    enum dtype stored;
    struct once once;
    struct video_transformers transformers;
    weight time1, time2, added1, added2;
    weight conv_in, norm_out, conv_out;
    struct unet_video_down down[LEVELS_MAX];
    struct video_resnet mid_resnet[2];
    struct video_transformer mid_attn;
    struct unet_video_up up[LEVELS_MAX];
};

/* Reads DIR/config.json; what is not built is refused by name. */
int unet_video_config_load(struct unet_video_config *cfg, const char *dir, struct error *err);

#endif
