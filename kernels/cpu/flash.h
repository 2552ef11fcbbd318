/* Flash attention of the tiers that have a kernel of their own for it (attention_amx.c): how heads are packed
 * and cut. All numbers are bf16. */
#ifndef LATENTD_CPU_FLASH_H
#define LATENTD_CPU_FLASH_H

#include <stdbool.h>
#include <stddef.h>

enum {
    FLASH_QUERIES = 32, /* of a block */
    FLASH_KEYS = 32,    /* of a packed group */
    FLASH_NARROW = 80,  /* heads of up to so many channels: attention_narrow.h, padded to 48, 64 or 80 */
};

/* Sixteen channels of output, 32 channels of the scores' sums: a packed group of keys has 2 * steps KB of K
 * and tiles KB of V. */
static inline int flash_tiles(int d)
{
    if (d <= FLASH_NARROW)
        return d < 48 ? 3 : d <= 64 ? 4 : 5;
    return d / 16 + 1; /* a row more than the head has, for the sum of weights */
}
static inline int flash_steps(int d)
{
    return d <= 64 ? 2 : (d + 31) / 32;
}
/* Keys between two visits of the output: wide heads have much of it. */
static inline int flash_unit(int d)
{
    return d <= 192 ? 128 : 256;
}

struct flash_rows {
    const char *data;
    size_t stride; /* bytes */
};

/* Some queries of one head of one picture. */
struct flash_item {
    const char *k, *v; /* packed groups */
    int keys, d;
    struct flash_rows q;
    int first, queries; /* first: in the picture */
    int stretch;        /* keys that all the queries meet before the next; a multiple of flash_unit(d) */
    char *y;
    size_t y_stride;
    float scale;
    bool causal;
    char *scratch;
};

/* ---- The keys of a text (attention_text.h) ---- */

enum {
    TEXT_LEAST = 65, /* keys */
    TEXT_MOST = 80,
    TEXT_QUERIES = 64 /* of a chunk */
};

static inline bool text_suits(int keys, int d)
{
    return keys >= TEXT_LEAST && keys <= TEXT_MOST && (d == 40 || d == 64 || d == 80 || d == 160);
}
/* Tiles of 16 channels, a column more than the head has, for the sum of weights; of 32. */
static inline int text_tiles(int d)
{
    return d / 16 + 1;
}
static inline int text_steps(int d)
{
    return (d + 31) / 32;
}
/* Bytes of a packed head: K of five tiles of keys, V of three pairs of them. */
static inline size_t text_head(int d)
{
    return 1024 * (size_t)(5 * text_steps(d) + 3 * text_tiles(d));
}

/* Some heads, neighbours, of some queries of one picture. */
struct flash_text {
    const char *packed; /* of the first head */
    int keys, d, heads, queries;
    struct flash_rows q;
    char *y;
    size_t y_stride;
    float scale;
    char *scratch;
};

struct flash_kernel {
    /* Packs a group of up to FLASH_KEYS keys; the rest become zeros. */
    void (*pack)(char *k_dst, char *v_dst, const struct flash_rows *k, const struct flash_rows *v, int keys,
                 int d);
    void (*run)(const struct flash_item *item);
    /* The same where text_suits(), a whole head at a time. */
    void (*pack_text)(char *dst, const struct flash_rows *k, const struct flash_rows *v, int keys, int d);
    void (*run_text)(const struct flash_text *item);
};

/* Scratch that an item of QUERIES queries takes. */
static inline size_t flash_scratch(int d, int queries)
{
    size_t blocks = (size_t)(queries + FLASH_QUERIES - 1) / FLASH_QUERIES;
    size_t unit = (size_t)flash_unit(d) * FLASH_QUERIES;
    return unit * 2 * (4 + 2) +
           blocks * (1024 + FLASH_QUERIES / 16 * 1024 * (size_t)(flash_tiles(d) + flash_steps(d)));
}

#endif
