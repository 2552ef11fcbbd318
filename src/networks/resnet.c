/* ResnetBlock2D: two convolutions with group norm and SiLU, the time embedding between them, and a shortcut.
 * Source: diffusers models/resnet.py. */
#include <stdio.h>

#include "blocks.h"

void replace(pass *p, tensor *x, tensor y)
{
    tensor_free(p, x);
    *x = y;
}

tensor upsample_to(pass *p, const weight *w, tensor x, tensor next)
{
    if (next.h == 2 * x.h && next.w == 2 * x.w)
        return conv2d(p, w, x, (struct conv2d_args){.upsample = true});
    tensor big = upsample_nearest_to(p, x, next.h, next.w);
    tensor y = conv2d(p, w, big, (struct conv2d_args){0});
    tensor_free(p, &big);
    return y;
}

void resnet_load(struct loader *l, struct resnet *r, struct resnet_shape s, struct once *once,
                 const char *prefix)
{
    r->groups = s.groups;
    r->eps = s.eps;
    r->shortcut = s.in_c != s.out_c;
    r->time = -1;
    load_norm(l, &r->norm1, s.in_c, "%s.norm1", prefix);
    load_conv2d(l, &r->conv1, s.out_c, s.in_c, 3, "%s.conv1", prefix);
    if (s.time_c) {
        bool int8 = loader_int8(l, false);
        load_linear(l, &r->time_emb_proj, s.out_c, s.time_c, true, "%s.time_emb_proj", prefix);
        loader_int8(l, int8);
        r->time = once->times;
        once->time[once->times++] = &r->time_emb_proj;
    }
    load_norm(l, &r->norm2, s.out_c, "%s.norm2", prefix);
    load_conv2d(l, &r->conv2, s.out_c, s.out_c, 3, "%s.conv2", prefix);
    if (r->shortcut) { /* what passes it is not normed: in int8 it costs more than all other layers together
                        */
        bool int8 = loader_int8(l, false);
        load_conv2d(l, &r->conv_shortcut, s.out_c, s.in_c, 1, "%s.conv_shortcut", prefix);
        loader_int8(l, int8);
    }
}

tensor resnet_forward(pass *p, const struct resnet *r, tensor x, tensor time)
{
    struct norm_silu norm1 = {&r->norm1, r->groups, r->eps, false, false},
                     norm2 = {&r->norm2, r->groups, r->eps, true, r->shortcut};
    tensor h = norm_silu_conv2d(p, norm1, &r->conv1, x,
                                (struct conv2d_args){.add_bc = time, .normed = true});     /* N H W out_c */
    tensor s = r->shortcut ? conv2d(p, &r->conv_shortcut, x, (struct conv2d_args){0}) : x; /* N H W out_c */
    h = norm_silu_conv2d(p, norm2, &r->conv2, h,
                         (struct conv2d_args){.residual = s, .normed = true}); /* N H W out_c */
    return h;
}
