/* SpatioTemporalResBlock: a ResnetBlock2D on each frame, then the same over the frames of each position, and
 * a learned mixture of both. Source: diffusers models/resnet.py (SpatioTemporalResBlock,
 * TemporalResnetBlock, AlphaBlender). */
#include <math.h>
#include <stdio.h>

#include "video.h"

void video_resnet_load(struct loader *l, struct video_resnet *r, struct video_resnet_shape s,
                       struct once *once, const char *prefix)
{
    char name[2 * PREFIX_SIZE];
    float mix = 0;
    int c = s.out_c;
    struct resnet_shape spatial = {s.in_c, c, s.time_c, VIDEO_GROUPS, s.eps};
    r->eps = s.temporal_eps;
    r->time = -1;
    snprintf(name, sizeof(name), "%s.spatial_res_block", prefix);
    resnet_load(l, &r->spatial, spatial, once, name);
    snprintf(name, sizeof(name), "%s.temporal_res_block", prefix);
    load_norm(l, &r->norm1, c, "%s.norm1", name);
    load_conv_temporal(l, &r->conv1, c, c, 1, "%s.conv1", name);
    if (s.time_c) {
        load_linear(l, &r->time_emb_proj, c, s.time_c, true, "%s.time_emb_proj", name);
        r->time = once->times;
        once->time[once->times++] = &r->time_emb_proj;
    }
    load_norm(l, &r->norm2, c, "%s.norm2", name);
    load_floats(l, &mix, 0, 1, "%s.time_mixer.mix_factor", prefix);
    float spatial_share = 1 / (1 + expf(-mix));
    load_conv_temporal(l, &r->conv2, c, c, s.switched ? spatial_share : 1 - spatial_share, "%s.conv2", name);
}

/* GroupNorm and SiLU over all frames of a video: x [BF, H, W, C] -> the same shape. */
static tensor norm_over_video(pass *p, const weight *w, tensor x, int frames, float eps)
{
    tensor y = group_norm_silu(p, w, tensor_as_videos(x, frames), VIDEO_GROUPS, eps); /* B FH W C */
    return tensor_as_frames(y, frames);
}

tensor video_resnet_forward(pass *p, const struct video_resnet *r, tensor x, int frames, tensor spatial_time,
                            tensor temporal_time)
{
    struct conv2d_args timed = {.add_bc = temporal_time};
    tensor s = resnet_forward(p, &r->spatial, x, spatial_time);       /* BF H W C */
    tensor h = norm_over_video(p, &r->norm1, s, frames, r->eps);      /* BF H W C */
    replace(p, &h, conv_temporal(p, &r->conv1, h, frames, timed));    /* BF H W C */
    replace(p, &h, norm_over_video(p, &r->norm2, h, frames, r->eps)); /* BF H W C */
    replace(p, &h, conv_temporal(p, &r->conv2, h, frames, (struct conv2d_args){.residual = s})); /* same */
    tensor_free(p, &s);
    return h;
}
