/* Flash attention in AMX tiles for heads of up to FLASH_NARROW channels, for attention_amx.c.
 *
 * The output of sixteen queries stays in three to five tiles while all keys pass by, streamed from the
 * second-level cache (or those of a stretch, where a head's keys are too many for it). The work is cut into
 * slots: a group of 32 keys against a block of 16 queries. In a step the tiles score the slot after the next
 * and add the slot before to the output, and the vectors turn the scores of the slot between into weights;
 * each product is followed by its share of the weights.
 *
 * Up to 64 channels a slot has 2 x 2 products of K Q' and three or four of V' P', 16 cycles each, at the
 * lower clock that the processor takes when tiles and vectors both run; a step takes half more than that.
 * Tiles are stored two products or more after their last one (a store that waits blocks the scheduler), and
 * weights and scores are read half a step or more after they were written.
 *
 * Where the head leaves a row of its last tile of V' free, a row of ones makes the sum of the weights one
 * more output; else vectors add them up. */
#ifndef LATENTD_CPU_ATTENTION_NARROW_H
#define LATENTD_CPU_ATTENTION_NARROW_H

#include "attention_tiles.h"

enum {
    GROUP_ROWS = FLASH_KEYS * SIDE, /* floats of a slot's scores */
    RING = 4,
    HIDE = 1,
    FIRST = 2,
    ADD = 4 /* flags of a slot: scores to hide, the block's first, an output before it */
};

/* Sixteen queries. */
struct block {
    char *q;  /* B tiles [steps] */
    float *o; /* [tiles][16 channels][16 queries], while it is not in tiles */
    vf minus, sum;
    int first; /* query, in the picture */
};

struct slot {
    struct block *block;
    const char *k, *v;
    unsigned flags;
};

struct narrow {
    const struct flash_item *it;
    struct curve curve;
    vf scale;                  /* times log2 e, in UNITS */
    float *s[RING];            /* scores */
    char *p[2];                /* weights: a B tile */
    struct block *block, *end; /* END: nowhere, where slots go that are none */
    struct block *holder;      /* whose output is in tiles */
    int tiles, steps;
    int k_group, v_group; /* bytes */
    struct slot at;       /* what next_slot() gives next */
    const char *hide;     /* K of the first group of the visit that has something to hide */
    int first, left;      /* key, groups of the visit that are left */
};

/* ---- Weights ---- */

struct weighing {
    struct curve curve;
    const float *s;
    char *p;
    vf scale, minus, sum;
    vb seen; /* bits of all weights */
};

/* Rows FROM to TO of the slot's weights: keys 2 FROM to 2 TO. */
ALWAYS void weigh_rows(struct weighing *w, const int from, const int to, const bool sums)
{
    const __m512i high = _mm512_set1_epi32((int)0xffff0000);
#pragma GCC unroll 16
    for (int j = from; j < to; j++) {
        vb p = weigh_pair(&w->curve, w->s + 2 * j * SIDE, w->scale, w->minus, &w->seen);
        if (sums)
            w->sum = v_add(w->sum, v_add(_mm512_castsi512_ps(_mm512_slli_epi32(p, 16)),
                                         _mm512_castsi512_ps(_mm512_and_si512(p, high))));
        _mm512_storeu_si512(w->p + 64 * j, p);
        __asm__("" : "+v"(w->seen), "+v"(w->sum)); /* here and now, or GCC adds up later from the stack */
    }
}

/* ---- Output in tiles ---- */

ALWAYS void put_output(const struct block *b, const int tiles)
{
    tile_store(0, b->o, 64);
    tile_store(1, b->o + 256, 64);
    tile_store(2, b->o + 512, 64);
    if (tiles > 3)
        tile_store(3, b->o + 768, 64);
    if (tiles > 4)
        tile_store(4, b->o + 1024, 64);
}

ALWAYS void get_output(const struct block *b, const int tiles)
{
    tile_load(0, b->o, 64);
    tile_load(1, b->o + 256, 64);
    tile_load(2, b->o + 512, 64);
    if (tiles > 3)
        tile_load(3, b->o + 768, 64);
    if (tiles > 4)
        tile_load(4, b->o + 1024, 64);
}

ALWAYS void zero_output(const int tiles)
{
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    if (tiles > 3)
        tile_zero(3);
    if (tiles > 4)
        tile_zero(4);
}

ALWAYS void hold(struct narrow *f, const struct slot *u, const int tiles)
{
    if (u->block == f->holder)
        return;
    put_output(f->holder, tiles);
    f->holder = u->block;
    if (u->flags & ADD)
        get_output(u->block, tiles);
    else
        zero_output(tiles);
}

/* A weight of the slot is 2 or more: raises the maxima, scales the output so far, and makes its weights once
 * more. */
static void __attribute__((noinline))
weigh_again(struct narrow *f, const struct slot *u, struct weighing w, bool sums)
{
    struct block *b = u->block;
    vf top = v_load(w.s);
    for (int i = 1; i < FLASH_KEYS; i++)
        top = v_max(top, v_load(w.s + i * SIDE));
    w.minus = _mm512_min_ps(w.minus, minus_for(top, w.scale));
    vf shrink = shrink_by(w.minus, b->minus);
    if (f->holder == b)
        put_output(b, f->tiles);
    BARRIER();
    for (int i = 0; i < f->tiles * SIDE; i++)
        v_store(b->o + i * SIDE, v_mul(v_load(b->o + i * SIDE), shrink));
    BARRIER();
    if (f->holder == b)
        get_output(b, f->tiles);
    b->minus = w.minus;
    w.sum = v_mul(b->sum, shrink);
    weigh_rows(&w, 0, FLASH_KEYS / 2, sums);
    b->sum = w.sum;
    BARRIER();
}

/* ---- A step ---- */

/* SUM += the tile at PLACE, by way of tile A, times tile 7; then the weights number N of ALL. */
#define MULTIPLY_BY(a, sum, place, n)                                                                        \
    do {                                                                                                     \
        tile_load_once(a, place, 64);                                                                        \
        tile_dot(sum, a, 7);                                                                                 \
        weigh_rows(&w, SIDE *((n)-1) / all, SIDE * (n) / all, sums);                                         \
    } while (0)
#define MULTIPLY(sum, place, n) MULTIPLY_BY(6, sum, place, n)

/* PREV, number N of all slots, is added to the output; CUR gets its weights; the scores of NEXT are stored;
 * FAR is scored. */
ALWAYS void step(struct narrow *f, int n, const struct slot *prev, const struct slot *cur,
                 const struct slot *far, const int tiles, const bool sums)
{
    const int all = tiles == 5 ? 11 : 4 + tiles;
    const char *k = far->k, *q = far->block->q, *v = prev->v, *p = f->p[n & 1];
    float *to = f->s[(n + 2) % RING];
    struct weighing w = {
        .curve = f->curve,
        .s = f->s[(n + 1) % RING],
        .p = f->p[~n & 1],
        .scale = f->scale,
        .minus = cur->block->minus,
        .sum = cur->block->sum,
        .seen = _mm512_setzero_si512(),
    };
    BARRIER();
    if (tiles == 5) { /* one tile for scores: it holds the second half of NEXT's, and is used twice */
        tile_load(7, q, 64);
        tile_store(5, to + 256, 64);
        tile_zero(5);
        MULTIPLY(5, k, 1);
        tile_load(7, q + TILE, 64);
        MULTIPLY(5, k + TILE, 2);
        hold(f, prev, tiles);
        tile_load(7, q + 2 * TILE, 64);
        MULTIPLY(5, k + 2 * TILE, 3);
        tile_load(7, p, 64);
        MULTIPLY(0, v, 4);
        MULTIPLY(1, v + TILE, 5);
        tile_load(7, q, 64);
        tile_store(5, f->s[(n + 3) % RING], 64);
        tile_zero(5);
        MULTIPLY(5, k + 3 * TILE, 6);
        tile_load(7, q + TILE, 64);
        MULTIPLY(5, k + 4 * TILE, 7);
        tile_load(7, q + 2 * TILE, 64);
        MULTIPLY(5, k + 5 * TILE, 8);
        tile_load(7, p, 64);
        MULTIPLY(2, v + 2 * TILE, 9);
        MULTIPLY(3, v + 3 * TILE, 10);
        MULTIPLY(4, v + 4 * TILE, 11);
    } else {
        tile_load(7, q, 64);
        tile_store(5, to, 64);
        tile_zero(5);
        MULTIPLY(5, k, 1);
        tile_store(4, to + 256, 64);
        tile_zero(4);
        MULTIPLY(4, k + 2 * TILE, 2);
        tile_load(7, q + TILE, 64);
        MULTIPLY(5, k + TILE, 3);
        hold(f, prev, tiles);
        MULTIPLY(4, k + 3 * TILE, 4);
        tile_load(7, p, 64);
        MULTIPLY(0, v, 5);
        MULTIPLY(1, v + TILE, 6);
        if (tiles > 3) {
            MULTIPLY(2, v + 2 * TILE, 7);
            MULTIPLY(3, v + 3 * TILE, 8);
        } else {
            MULTIPLY_BY(3, 2, v + 2 * TILE, 7); /* these two have only the rows that are in use */
        }
    }
    BARRIER();
    if (overflown(w.seen))
        weigh_again(f, cur, w, sums);
    else if (sums)
        cur->block->sum = w.sum;
}

/* Keys of the slot that lie behind the end or, if causal, behind the query. */
static void hide_keys(const struct narrow *f, const struct slot *u, float *s)
{
    const int first = (int)((u->k - f->it->k) / (2 * f->steps * TILE)) * FLASH_KEYS;
    for (int r = 0; r < FLASH_KEYS; r++) {
        int key = first + r, lanes = key >= f->it->keys ? SIDE : f->it->causal ? key - u->block->first : 0;
        if (lanes > 0)
            _mm512_mask_storeu_ps(s + r * SIDE, v_tail(lanes < SIDE ? lanes : SIDE), v_set1(-INFINITY));
    }
}

static void find_maximum(const struct narrow *f, struct block *b, const float *s)
{
    vf even = v_load(s), odd = v_load(s + SIDE);
    for (int i = 2; i < FLASH_KEYS; i += 2) {
        even = v_max(even, v_load(s + i * SIDE));
        odd = v_max(odd, v_load(s + (i + 1) * SIDE));
    }
    b->minus = minus_for(v_max(even, odd), f->scale);
}

/* What is to be done about the scores of a slot before they become weights. */
static void __attribute__((noinline)) settle_scores(const struct narrow *f, const struct slot *u, float *s)
{
    if (u->flags & HIDE)
        hide_keys(f, u, s);
    if (u->flags & FIRST)
        find_maximum(f, u->block, s);
    BARRIER();
}

/* ---- The order of slots ---- */

/* Begins the visit of the next block of queries to the keys from f->first on or, behind the last block, to
 * those of the next stretch. */
static void __attribute__((noinline)) next_visit(struct narrow *f)
{
    const struct flash_item *it = f->it;
    int seen; /* keys from f->first on */
    do {
        if (++f->at.block >= f->end)
            f->at.block = f->block, f->first += it->stretch;
        if (f->first >= it->keys) {
            f->at = (struct slot){f->end, it->k, it->v, 0};
            f->k_group = f->v_group = 0;
            f->left = INT_MAX;
            f->hide = NULL;
            return;
        }
        seen = it->keys - f->first;
        if (it->causal && seen > f->at.block->first + SIDE - f->first)
            seen = f->at.block->first + SIDE - f->first;
    } while (seen <= 0);
    f->left = ((seen < it->stretch ? seen : it->stretch) + FLASH_KEYS - 1) / FLASH_KEYS;
    f->at.k = it->k + (size_t)(f->first / FLASH_KEYS * f->k_group);
    f->at.v = it->v + (size_t)(f->first / FLASH_KEYS * f->v_group);
    f->at.flags = f->first ? ADD : FIRST;
    f->hide = it->k + (size_t)((it->causal ? f->at.block->first : it->keys) / FLASH_KEYS * f->k_group);
}

ALWAYS void next_slot(struct narrow *f, struct slot *u)
{
    if (!f->left)
        next_visit(f);
    *u = f->at;
    if (f->hide && u->k >= f->hide)
        u->flags |= HIDE;
    f->at.k += f->k_group;
    f->at.v += f->v_group;
    f->at.flags = ADD;
    f->left--;
}

ALWAYS void run_slots(struct narrow *f, const int tiles, const bool sums)
{
    const struct slot none = {f->end, f->it->k, f->it->v, 0};
    struct slot ring[RING] = {none, none, none, none};
    f->holder = f->end;
    zero_output(5);
    tile_zero(5);
    for (int n = 0, behind = 0; behind < RING - 1; n++) {
        struct slot *next = &ring[(n + 2) % RING], *far = &ring[(n + 3) % RING];
        next_slot(f, far);
        behind += far->block == f->end;
        step(f, n, &ring[n % RING], &ring[(n + 1) % RING], far, tiles, sums);
        if (next->flags & (HIDE | FIRST))
            settle_scores(f, next, f->s[(n + 2) % RING]);
    }
    put_output(f->holder, tiles);
    BARRIER();
}

/* ---- An item ---- */

/* Q as B tiles. Rows that come soon are asked for: they lie in memory, on pages of their own. */
static void pack_block(const struct narrow *f, const struct block *b, int at)
{
    const struct flash_item *it = f->it;
    enum { SOON = 2 * SIDE };
    for (int j = SOON; j < SOON + SIDE && at + j < it->queries; j++)
        for (int i = 0; i < 2 * it->d; i += 64)
            _mm_prefetch(it->q.data + (size_t)(at + j) * it->q.stride + i, _MM_HINT_T0);
    for (int i = 0; i < f->steps; i++) {
        __m512i r[SIDE];
        for (int j = 0; j < SIDE; j++) {
            const char *q = it->q.data + (size_t)(at + j) * it->q.stride + (size_t)i * 64;
            r[j] = at + j < it->queries ? load_some(q, it->d - i * STEP) : _mm512_setzero_si512();
        }
        transpose(r);
        for (int j = 0; j < SIDE; j++)
            _mm512_storeu_si512(b->q + i * TILE + j * 64, r[j]);
    }
}

static void put_block(const struct flash_item *it, const struct block *b, int at, bool sums)
{
    const int d = it->d;
    for (int j = SIDE; j < 2 * SIDE && at + j < it->queries; j++)
        for (int i = 0; i < 2 * d; i += 64)
            __builtin_prefetch(it->y + (size_t)(at + j) * it->y_stride + i, 1);
    put_rows(it, b->o, 256, v_div(v_set1(1), sums ? b->sum : v_load(b->o + d * SIDE)), at);
}

static void lay_out_narrow(struct narrow *f, int blocks)
{
    char *at = f->it->scratch;
    const size_t scores = RING * GROUP_ROWS * sizeof(float), front = scores + 2 * TILE;
    memset(at, 0, front);
    for (int i = 0; i < RING; i++)
        f->s[i] = (float *)(void *)at + i * GROUP_ROWS;
    for (int i = 0; i < 2; i++)
        f->p[i] = at + scores + (size_t)(i * TILE);
    f->block = (void *)(at + front);
    f->end = f->block + blocks;
    at += front + ((size_t)(blocks + 1) * sizeof(struct block) + 63) / 64 * 64;
    for (int i = 0; i <= blocks; i++, at += (f->steps + f->tiles) * TILE) {
        struct block *b = &f->block[i];
        *b = (struct block){.q = at, .first = f->it->first + i * SIDE};
        b->o = (float *)(void *)(at + f->steps * TILE);
        pack_block(f, b, i * SIDE); /* nowhere: zeros */
    }
}

static void run_narrow(const struct flash_item *it)
{
    const unsigned csr = _mm_getcsr();
    const bool sums = it->d >= 48;
    const int blocks = (it->queries + SIDE - 1) / SIDE;
    struct narrow f = {
        .it = it,
        .curve = make_curve(),
        .scale = v_set1(it->scale * 1.44269504f * UNITS),
        .tiles = flash_tiles(it->d),
        .steps = flash_steps(it->d),
        .k_group = 2 * flash_steps(it->d) * TILE,
        .v_group = flash_tiles(it->d) * TILE,
    };
    _mm_setcsr(csr | CAREFUL);
    configure(f.tiles > 3 ? SIDE : it->d < 2 * SIDE ? 1 : it->d + 1 - 2 * SIDE);
    lay_out_narrow(&f, blocks);
    f.at.block = f.block - 1;
    BARRIER();
    if (f.tiles == 5)
        run_slots(&f, 5, true);
    else if (f.tiles == 4)
        run_slots(&f, 4, true);
    else
        run_slots(&f, 3, false);
    for (int i = 0; i < blocks; i++)
        put_block(it, &f.block[i], i * SIDE, sums);
    tile_done();
    _mm_setcsr(csr);
}

#endif
