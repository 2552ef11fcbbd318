/* The lists of blocks in the config.json of a UNet, of pictures or of videos. Private to src/networks. */
#ifndef LATENTD_UNET_BLOCKS_H
#define LATENTD_UNET_BLOCKS_H

#include "blocks.h"
#include "config.h"

/* One entry a level, that of the largest pictures first; up_cross counts from the smallest. The fields of a
 * config hold them as their own, see UNET_BLOCKS. */
#define UNET_BLOCKS_FIELDS                                                                                   \
    int levels;                                                                                              \
    int channels[LEVELS_MAX], layers[LEVELS_MAX], heads[LEVELS_MAX], depth[LEVELS_MAX];                      \
    bool down_cross[LEVELS_MAX], up_cross[LEVELS_MAX]; /* the CrossAttn… blocks */                         \
    int cross_c                                        /* cross_attention_dim */

struct unet_blocks {
    UNET_BLOCKS_FIELDS;
};

/* In a struct: cfg.blocks for the functions below, cfg.levels and so on for everybody else. */
#define UNET_BLOCKS                                                                                          \
    union {                                                                                                  \
        struct unet_blocks blocks;                                                                           \
        struct {                                                                                             \
            UNET_BLOCKS_FIELDS;                                                                              \
        };                                                                                                   \
    }

/* What differs from class to class: block types without and with attention, the key of the number of heads,
 * the default of cross_attention_dim. */
struct unet_block_names {
    const char *down[3], *up[3]; /* ended by NULL */
    const char *heads;
    int cross_c;
};

/* Reads B; errors go to C's. */
void unet_blocks_read(struct unet_blocks *b, const struct config *c, const struct unet_block_names *names);
/* Channels divide into GROUPS and, where a level attends, into heads. MIDDLE: the middle block attends. */
void unet_blocks_check(const struct unet_blocks *b, const struct config *c,
                       const struct unet_block_names *names, int groups, bool middle);

#endif
