/* See unet_blocks.h. */
#include "unet_blocks.h"

void unet_blocks_read(struct unet_blocks *b, const struct config *c, const struct unet_block_names *names)
{
    int down[LEVELS_MAX] = {0}, up[LEVELS_MAX] = {0}, cross_c[LEVELS_MAX];
    b->levels = json_ints(&c->r, "block_out_channels", b->channels, LEVELS_MAX, 1, 8192);
    if (b->levels < 1) {
        error_set(c->r.err, ERR_FORMAT, "%s: \"block_out_channels\" should be a list of 1 to %d integers",
                  c->label, (int)LEVELS_MAX);
        return;
    }
    config_types(c, "down_block_types", down, b->levels, names->down);
    config_types(c, "up_block_types", up, b->levels, names->up);
    config_each(c, "layers_per_block", b->layers, b->levels, 2, 1, LAYERS_MAX);
    config_each(c, names->heads, b->heads, b->levels, 8, 1, 256);
    config_each(c, "transformer_layers_per_block", b->depth, b->levels, 1, 1, DEPTH_MAX);
    config_each(c, "cross_attention_dim", cross_c, b->levels, names->cross_c, 1, 16384);
    b->cross_c = cross_c[0];
    for (int i = 0; i < b->levels; i++) {
        b->down_cross[i] = down[i] == 1;
        b->up_cross[i] = up[i] == 1;
        if (cross_c[i] != cross_c[0])
            error_set(c->r.err, ERR_UNSUPPORTED,
                      "%s: \"cross_attention_dim\" differs between blocks; accepted: one value", c->label);
    }
}

/* The up blocks norm what they read: their own channels and the skip's. */
void unet_blocks_check(const struct unet_blocks *b, const struct config *c,
                       const struct unet_block_names *names, int groups, bool middle)
{
    for (int i = 0; i < b->levels; i++) {
        bool attends = b->down_cross[i] || b->up_cross[b->levels - 1 - i] || (middle && i == b->levels - 1);
        if (b->channels[i] % groups != 0)
            error_set(c->r.err, ERR_FORMAT,
                      "%s: %d channels do not divide into %d groups (\"norm_num_groups\")", c->label,
                      b->channels[i], groups);
        if (attends && b->channels[i] % b->heads[i] != 0)
            error_set(c->r.err, ERR_FORMAT, "%s: %d channels do not divide into %d heads (\"%s\")", c->label,
                      b->channels[i], b->heads[i], names->heads);
    }
}
