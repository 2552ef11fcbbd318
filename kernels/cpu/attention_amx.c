/* Flash attention in AMX tiles, transposed: S' = K Q', P' = exp(S' - m), O' += V' P'.
 *
 * With keys down and queries across, a query's maximum is a lane of a vector: nothing runs across a vector,
 * and two rows of P' cut to bf16 and laid side by side are a row of the B tile that the second product wants.
 * K is A as it is stored, V' is transposed once a head, Q becomes B tiles once a block of queries. A row of
 * ones under V' makes the sum of the weights one more output.
 *
 * Cost of a tile of scores (16 keys x 16 queries), in cycles: the products take (d / 32 + d / 32) x 16 and
 * the row of ones 8, 72 at d = 64. Weights take per 32 scores 2 fma, 2 reduce, 6 fma, 2 scalef, all on port
 * 0: while tiles multiply, port 5 does no arithmetic of floats (128 fma take 72 cycles, beside four dot
 * products 143). So 96, and what need not be float is not: a shuffle packs, an or watches for overflow. Both
 * run side by side: while the vectors turn block u of scores into weights, the tiles add block u - 1 to the
 * output and compute the scores of block u + 1, in the places that the weights have left. What is used again
 * (scores, weights, queries, output: 38 KB at d = 64) stays in the first-level cache; K and V stream past it
 * from the second. SPEED.md has what was measured on the way.
 *
 * 2^x = 2^floor(x) p(x - floor(x)), p of degree 3: error 7.5e-5, a fiftieth of what rounding to bf16 costs.
 * Half a unit of bf16 is part of p's constant term, so that cutting rounds. The sum is taken over the cut
 * numbers: what rounding adds to the weights it adds to their sum.
 *
 * The exponents are relative to the maximum of the first block of keys, which becomes 2^-BELOW. Floating
 * point does not mind if later scores are higher, until a weight reaches 2: then the block is done again with
 * a new maximum. Scores of keys that a query may not see are set to minus infinity. Blocks depend on the head
 * size and on positions alone, so results do not depend on how queries are dealt out. */
#ifdef LATENTD_EMULATE
#define KERNEL flash_amx_emulated
#else
#define KERNEL flash_amx
#endif
#include "tile_amx.h"

#include <math.h>
#include <string.h>

#include "flash.h"

enum {
    SIDE = 16,                   /* rows of a tile, columns of fp32 */
    STEP = 32,                   /* products of a dot */
    TILE = 1024,                 /* bytes */
    COLS = FLASH_QUERIES / SIDE, /* tiles of a block of queries */
    BELOW = 16,                  /* the first maximum is 2^-16: later ones may be 2^17 times larger */
    ONES = 0x3f803f80,           /* a pair of bf16 */
    CAREFUL = 0x8040             /* MXCSR: denormals are zero, in and out: they would cost an assist each */
};

/* A block of queries between two blocks of keys. */
struct state {
    char *q;                   /* B tiles [d_steps][COLS] */
    float *o;                  /* [d_tiles][COLS][16 channels][16 queries] */
    vf max[COLS], minus[COLS]; /* a lane a query; minus: -max * scale - BELOW */
    int first;                 /* query, in the picture */
};

/* A block of keys against a block of queries. */
struct unit {
    struct state *st; /* NULL: none */
    const char *k, *v;
    int first, tiles; /* key, tiles of 16 keys: an even number */
    bool add;         /* to the output; else it is the first */
    char *p;          /* B tiles [tiles / 2][COLS] */
};

struct flow {
    const struct flash_item *it;
    vf scale; /* times log2 e */
    int d_tiles, d_steps;
    int key_tiles;        /* of a whole unit */
    float *s;             /* scores [key_tiles][COLS][16 keys][16 queries] */
    struct unit *weights; /* the unit whose weights are being made */
    int total, done;      /* its tiles */
    int credit, rate;     /* tiles * 256 that are due, that a step adds */
    vb seen;              /* bits of all its weights */
    float *late; /* where the product before goes, which is still in its tiles; NULL: there is none */
    bool odd;    /* which pair of accumulators is next */
};

#define BARRIER() __asm__ volatile("" : : : "memory") /* tile loads do not say that they read memory */

/* ---- Packing ---- */

/* 16 x 16 words */
VEC void transpose(__m512i r[SIDE])
{
    __m512i t[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        for (int h = 0; h < SIDE; h += 8) {
            t[h + i] = _mm512_shuffle_i32x4(r[h + i], r[h + 4 + i], 0x88);
            t[h + 4 + i] = _mm512_shuffle_i32x4(r[h + i], r[h + 4 + i], 0xdd);
        }
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    }
}

/* COUNT numbers of bf16, the rest zeros. */
VEC __m512i load_some(const char *p, int count)
{
    return count >= STEP ? _mm512_loadu_si512(p)
           : count > 0   ? _mm512_maskz_loadu_epi16((__mmask32)((1u << count) - 1), p)
                         : _mm512_setzero_si512();
}

/* 32 keys: K as A tiles [2][d_steps], V' as A tiles [d_tiles] of 16 channels x 32 keys. */
static void pack_keys(char *dst, const char *k, size_t stride, int keys, int d)
{
    const int steps = flash_steps(d);
    for (int key = 0; key < FLASH_KEYS; key++)
        for (int i = 0; i < steps; i++)
            _mm512_storeu_si512(dst + (key / SIDE * steps + i) * TILE + key % SIDE * 64,
                                key < keys
                                    ? load_some(k + (size_t)key * stride + (size_t)i * 64, d - i * STEP)
                                    : _mm512_setzero_si512());
}

VEC __m512i load_pair(const char *v, size_t stride, int keys, int channels)
{
    if (channels <= 0)
        return _mm512_setzero_si512();
    const __mmask16 some = (__mmask16)(channels >= SIDE ? 0xffffu : (1u << channels) - 1);
    __m256i even = keys > 0 ? _mm256_maskz_loadu_epi16(some, v) : _mm256_setzero_si256();
    __m256i odd = keys > 1 ? _mm256_maskz_loadu_epi16(some, v + stride) : _mm256_setzero_si256();
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

static void pack_values(char *dst, const char *v, size_t stride, int keys, int d)
{
    for (int i = 0; i < flash_tiles(d); i++) {
        __m512i r[SIDE];
        for (int j = 0; j < SIDE; j++)
            r[j] =
                load_pair(v + (size_t)(2 * j) * stride + (size_t)i * 32, stride, keys - 2 * j, d - i * SIDE);
        transpose(r);
        if (i == d / SIDE)
            r[d % SIDE] = _mm512_set1_epi32(ONES);
        for (int j = 0; j < SIDE; j++)
            _mm512_storeu_si512(dst + i * TILE + j * 64, r[j]);
    }
}

static void pack(char *k_dst, char *v_dst, const struct flash_rows *k, const struct flash_rows *v, int keys,
                 int d)
{
    pack_keys(k_dst, k->data, k->stride, keys, d);
    pack_values(v_dst, v->data, v->stride, keys, d);
}

static void pack_queries(const struct flow *f, struct state *st, int at)
{
    const struct flash_item *it = f->it;
    for (int i = 0; i < f->d_steps; i++) {
        for (int c = 0; c < COLS; c++) {
            __m512i r[SIDE];
            for (int j = 0; j < SIDE; j++) {
                int query = at + c * SIDE + j;
                r[j] = query < it->queries
                           ? load_some(it->q.data + (size_t)query * it->q.stride + (size_t)i * 64,
                                       it->d - i * STEP)
                           : _mm512_setzero_si512();
            }
            transpose(r);
            for (int j = 0; j < SIDE; j++)
                _mm512_storeu_si512(st->q + (i * COLS + c) * TILE + j * 64, r[j]);
        }
    }
}

/* ---- Weights ---- */

/* 2^x, x <= 127, as numbers whose upper halves are the results rounded to bf16. */
VEC __m512i exp2_bf16(vf x)
{
    return _mm512_castps_si512(v_exp2_rough(x, 0x1p-8f));
}

/* 2^x to the last digits of fp32. */
VEC vf exp2_fp32(vf x)
{
    vf r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf p = v_set1(1.5403530e-4f); /* ln^k 2 / k! */
    p = v_fma(p, r, v_set1(1.3333558e-3f));
    p = v_fma(p, r, v_set1(9.6181291e-3f));
    p = v_fma(p, r, v_set1(5.5504109e-2f));
    p = v_fma(p, r, v_set1(2.4022651e-1f));
    p = v_fma(p, r, v_set1(6.9314718e-1f));
    return _mm512_scalef_ps(v_fma(p, r, v_set1(1)), v_sub(x, r));
}

/* Weights of tile I of the unit. */
static void weigh_tile(struct flow *f, int i)
{
    const struct unit *u = f->weights;
    const int c = i % COLS, t = i / COLS;
    const float *s = f->s + (size_t)i * 256;
    char *p = u->p + (t / 2 * COLS + c) * TILE + t % 2 * (TILE / 2);
    const vf scale = f->scale, minus = u->st->minus[c];
    const __m512i upper =
        _mm512_set4_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302); /* halves go to the lower ones' place */
    vb seen = f->seen;
#pragma GCC unroll 8
    for (int r = 0; r < SIDE / 2; r++, s += 2 * SIDE, p += 64) {
        __m512i even = exp2_bf16(v_fma(v_load(s), scale, minus));
        __m512i odd = exp2_bf16(v_fma(v_load(s + SIDE), scale, minus));
        seen = _mm512_ternarylogic_epi32(seen, even, odd, 0xfe); /* or */
        _mm512_storeu_si512(p, _mm512_mask_shuffle_epi8(odd, 0x3333333333333333, even, upper));
    }
    f->seen = seen;
}

static void weigh_until(struct flow *f, int tiles)
{
    while (f->done < tiles)
        weigh_tile(f, f->done++);
}

/* After each step of dot products: as many tiles of weights as are due. */
static inline void weigh(struct flow *f)
{
    f->credit += f->rate;
    weigh_until(f, f->credit >> 8);
}

/* ---- Products ---- */

/* c (+)= a b for one tile of A by two of B, over STEPS tiles: 16 rows x 32 queries. Two pairs of accumulators
 * take turns, so that one is stored while the other multiplies: four stores in a row would hold up all. */
struct product {
    const char *a, *b; /* B: [steps][COLS] */
    size_t a_line;     /* bytes from step to step */
    int steps;
    const float *from; /* NULL: zeros */
    float *to;         /* two tiles */
};

#define STORE_LATE(tile, place)                                                                              \
    do {                                                                                                     \
        if (late)                                                                                            \
            tile_store(tile, late + (place)*256, 64);                                                        \
    } while (0)

#define PRODUCT(name, C0, C1, LATE0, LATE1)                                                                  \
    static inline void name(struct flow *f, const struct product *m)                                         \
    {                                                                                                        \
        const char *a = m->a, *b = m->b;                                                                     \
        float *late = f->late;                                                                               \
        if (m->from) {                                                                                       \
            tile_load(C0, m->from, 64);                                                                      \
            tile_load(C1, m->from + 256, 64);                                                                \
        } else {                                                                                             \
            tile_zero(C0);                                                                                   \
            tile_zero(C1);                                                                                   \
        }                                                                                                    \
        for (int j = 0; j < m->steps; j++, a += m->a_line, b += COLS * TILE) {                               \
            tile_load_once(4, a, 64);                                                                        \
            tile_load(5, b, 64);                                                                             \
            tile_dot(C0, 4, 5);                                                                              \
            tile_load(6, b + TILE, 64);                                                                      \
            tile_dot(C1, 4, 6);                                                                              \
            if (j == 0)                                                                                      \
                STORE_LATE(LATE0, 0);                                                                        \
            weigh(f);                                                                                        \
            if (j == 0)                                                                                      \
                STORE_LATE(LATE1, 1);                                                                        \
        }                                                                                                    \
        f->late = m->to;                                                                                     \
    }

PRODUCT(product_even, 0, 1, 2, 3)
PRODUCT(product_odd, 2, 3, 0, 1)

static inline void multiply(struct flow *f, const struct product *m)
{
    if (f->odd)
        product_odd(f, m);
    else
        product_even(f, m);
    f->odd = !f->odd;
}

/* Stores what the last product left. */
static void settle(struct flow *f)
{
    float *late = f->late;
    if (f->odd) { /* the last was even */
        STORE_LATE(0, 0);
        STORE_LATE(1, 1);
    } else {
        STORE_LATE(2, 0);
        STORE_LATE(3, 1);
    }
    f->late = NULL;
}

/* ---- Scores ---- */

/* Keys that lie behind the end or, if causal, behind the query. */
static void hide(const struct flow *f, const struct unit *u, int tile, int c)
{
    const int first = u->first + tile * SIDE, query = u->st->first + c * SIDE;
    float *s = f->s + (size_t)(tile * COLS + c) * 256;
    for (int r = 0; r < SIDE; r++) {
        int key = first + r, lanes = key >= f->it->keys ? SIDE : f->it->causal ? key - query : 0;
        if (lanes > 0)
            _mm512_mask_storeu_ps(s + r * SIDE, v_tail(lanes < SIDE ? lanes : SIDE), v_set1(-INFINITY));
    }
}

/* Scores of the unit, each where the weight of the unit before has been made. */
static void score(struct flow *f, const struct unit *u)
{
    const int end = u->first + u->tiles * SIDE, tiles = u->tiles * COLS;
    struct product m = {.a = u->k, .b = u->st->q, .a_line = TILE, .steps = f->d_steps, .to = f->s};
    for (int i = 0; i < tiles; i += 2, m.a += (size_t)f->d_steps * TILE, m.to += 2 * 256) {
        multiply(f, &m);
        weigh_until(f, i + 2 < f->total ? i + 2 : f->total);
    }
    settle(f);
    if (end > f->it->keys || (f->it->causal && end - 1 > u->st->first))
        for (int i = 0; i < tiles; i++)
            hide(f, u, i / COLS, i % COLS);
}

static void output(struct flow *f, const struct unit *u)
{
    struct product m = {
        .a = u->v, .b = u->p, .a_line = (size_t)f->d_tiles * TILE, .steps = u->tiles / 2, .to = u->st->o};
    for (int i = 0; i < f->d_tiles; i++, m.a += TILE, m.to += 2 * 256) {
        m.from = u->add ? m.to : NULL;
        multiply(f, &m);
    }
    settle(f);
}

/* ---- The order of things ---- */

/* Takes the unit's scores into the maxima and scales the output to the new ones. */
static void move_maxima(const struct flow *f, const struct unit *u)
{
    struct state *st = u->st;
    for (int c = 0; c < COLS; c++) {
        vf top = st->max[c];
        for (int i = 0; i < u->tiles * SIDE; i++)
            top = v_max(top, v_load(f->s + (size_t)(i / SIDE * COLS + c) * 256 + i % SIDE * SIDE));
        vf minus = v_fnma(top, f->scale, v_set1(-BELOW)), shrink = exp2_fp32(v_sub(minus, st->minus[c]));
        st->max[c] = top;
        st->minus[c] = minus;
        if (!u->add)
            continue;
        for (int i = 0; i < f->d_tiles * SIDE; i++) {
            float *o = st->o + (size_t)(i / SIDE * COLS + c) * 256 + i % SIDE * SIDE;
            v_store(o, v_mul(v_load(o), shrink));
        }
    }
}

struct memory {
    struct state *state;
    char *p[2];
};

static struct memory lay_out(struct flow *f, int states)
{
    const size_t o = (size_t)f->d_tiles * COLS * TILE, q = (size_t)f->d_steps * COLS * TILE;
    const size_t s = (size_t)f->key_tiles * COLS * TILE;
    char *at = f->it->scratch;
    struct memory m = {.p = {at + s, at + s + s / 2}};
    f->s = (float *)(void *)at;
    at += 2 * s;
    m.state = (void *)at;
    at += ((size_t)states * sizeof *m.state + 63) / 64 * 64;
    for (int i = 0; i < states; i++, at += q + o) {
        struct state *st = &m.state[i];
        st->q = at;
        st->o = (float *)(void *)(at + q);
        st->first = f->it->first + i * FLASH_QUERIES;
        for (int c = 0; c < COLS; c++)
            st->max[c] = v_set1(-INFINITY), st->minus[c] = v_zero();
        pack_queries(f, st, i * FLASH_QUERIES);
    }
    return m;
}

/* The unit after PREV: keys, then blocks of queries, then stretches of keys that stay in the second-level
 * cache. False: there is none. */
static bool next_unit(const struct flow *f, const struct memory *m, int states, const struct unit *prev,
                      struct unit *u)
{
    const struct flash_item *it = f->it;
    const int step = f->key_tiles * SIDE;
    struct state *st = prev ? prev->st : m->state;
    int stretch = prev ? prev->first / it->stretch : 0, first = prev ? prev->first + step : 0;
    for (;; st++, first = stretch * it->stretch) {
        if (st == m->state + states)
            st = m->state, first = ++stretch * it->stretch;
        if (stretch * it->stretch >= it->keys)
            return false;
        int end = (stretch + 1) * it->stretch, seen = it->causal ? st->first + FLASH_QUERIES : it->keys;
        if (first < end && first < it->keys && first < seen)
            break;
    }
    int tiles = (it->keys - first + FLASH_KEYS - 1) / FLASH_KEYS * 2;
    u->st = st;
    u->first = first;
    u->tiles = tiles < f->key_tiles ? tiles : f->key_tiles;
    u->k = it->k + (size_t)(first / SIDE * f->d_steps) * TILE;
    u->v = it->v + (size_t)(first / FLASH_KEYS * f->d_tiles) * TILE;
    u->add = first > 0;
    return true;
}

static int score_steps(const struct flow *f, const struct unit *u)
{
    return u ? u->tiles * f->d_steps : 0;
}

static int output_steps(const struct flow *f, const struct unit *u)
{
    return u ? f->d_tiles * (u->tiles / 2) : 0;
}

/* Begins the weights of U, NULL: none, to be spread over some steps. */
static void begin_weights(struct flow *f, struct unit *u, int steps)
{
    f->weights = u;
    f->total = u ? u->tiles * COLS : 0;
    f->done = f->credit = 0;
    f->rate = steps ? (f->total << 8) / steps : 0;
    f->seen = _mm512_setzero_si512();
}

/* Whether a weight is 2 or more: the highest bit of its exponent. */
static bool overflown(const struct flow *f)
{
    return _mm512_test_epi32_mask(f->seen, _mm512_set1_epi32(0x40000000)) != 0;
}

/* The weights of U once more, from new maxima. */
static void do_again(struct flow *f, struct unit *u)
{
    begin_weights(f, NULL, 0);
    score(f, u);
    BARRIER();
    move_maxima(f, u);
    begin_weights(f, u, 0);
    weigh_until(f, f->total);
    begin_weights(f, NULL, 0);
    BARRIER();
}

/* Weights of CUR, while PREV is added to the output and NEXT is scored; either may be NULL. */
static void advance(struct flow *f, struct unit *prev, struct unit *cur, struct unit *next)
{
    begin_weights(f, cur, score_steps(f, next) + output_steps(f, prev));
    BARRIER();
    if (prev)
        output(f, prev);
    if (next)
        score(f, next);
    weigh_until(f, f->total);
    BARRIER();
    if (!overflown(f))
        return;
    do_again(f, cur);
    if (next)
        score(f, next);
    BARRIER();
}

static void run_units(struct flow *f, const struct memory *m, int states)
{
    struct unit ring[3], *prev = NULL, *cur = ring;
    if (!next_unit(f, m, states, NULL, cur))
        return;
    cur->p = m->p[0];
    begin_weights(f, NULL, 0);
    score(f, cur);
    BARRIER();
    for (int i = 1; cur; i++) {
        struct unit *next = &ring[i % 3];
        next->p = m->p[i % 2];
        if (!next_unit(f, m, states, cur, next))
            next = NULL;
        if (!cur->add)
            move_maxima(f, cur);
        advance(f, prev, cur, next);
        prev = cur;
        cur = next;
    }
    begin_weights(f, NULL, 0);
    output(f, prev);
}

/* Sixteen queries, from number AT of the item: output over sum of weights, turned. */
static void finish(const struct flow *f, const struct state *st, int at, int c)
{
    const struct flash_item *it = f->it;
    const float *o = st->o + (size_t)c * 256;
    const int d = it->d;
    const vf factor = v_div(v_set1(1), v_load(o + (size_t)(d / SIDE * COLS) * 256 + d % SIDE * SIDE));
    for (int i = 0; i * SIDE < d; i++, o += COLS * 256) {
        __m512i r[SIDE];
        for (int j = 0; j < SIDE; j++)
            r[j] = _mm512_castps_si512(v_mul(v_load(o + j * SIDE), factor));
        transpose(r);
        for (int j = 0; j < SIDE && at + j < it->queries; j++) {
            char *y = it->y + (size_t)(at + j) * it->y_stride + (size_t)i * 32;
            if (d - i * SIDE >= SIDE)
                v_store_bf16(y, _mm512_castsi512_ps(r[j]));
            else
                v_store_bf16_n(y, _mm512_castsi512_ps(r[j]), d - i * SIDE);
        }
    }
}

static void configure(void)
{
    struct tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = SIDE;
    }
    tile_configure(&c);
}

static void run(const struct flash_item *it)
{
    const unsigned csr = _mm_getcsr();
    const int states = (it->queries + FLASH_QUERIES - 1) / FLASH_QUERIES;
    struct flow f = {
        .it = it,
        .scale = v_set1(it->scale * 1.44269504f),
        .d_tiles = flash_tiles(it->d),
        .d_steps = flash_steps(it->d),
        .key_tiles = flash_unit(it->d) / SIDE,
    };
    _mm_setcsr(csr | CAREFUL);
    configure();
    struct memory m = lay_out(&f, states);
    BARRIER();
    run_units(&f, &m, states);
    for (int i = 0; i < states * COLS; i++)
        finish(&f, &m.state[i / COLS], i * SIDE, i % COLS);
    tile_done();
    _mm_setcsr(csr);
}

const struct flash_kernel KERNEL = {pack, run};
