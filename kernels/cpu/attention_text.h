/* Flash attention in AMX tiles with the keys of a text (TEXT_LEAST to TEXT_MOST) for heads of 40, 64, 80 and
 * 160 channels, for attention_amx.c.
 *
 * All scores of a query are there at once, so its maximum is found once and nothing is corrected later, and
 * queries are down, keys across: Q and the weights P are A as they lie in memory, K' and V are packed as B
 * once a head, and the output has its rows as y wants them. A unit is a head of 16 queries. In a step the
 * tiles score the unit after the present one and make the output of the one before; the vectors turn the
 * present scores into weights, write the output of an earlier unit and copy Q of a later one: a piece of that
 * after each product. All sizes are constants, so that a step is one straight line of instructions: with
 * loops and state in memory it was these that held up the rest. An item is some heads of a stretch of
 * queries, CHUNK at a time: pieces of q and y that share lines are met while these are near; Q of the next
 * chunk is asked for, and y of the unit that is written two steps later. Up to 80 channels the first level
 * has room for scores, weights, Q and outputs; K' and V come from the second.
 *
 * V has a column of ones behind its channels, so the sum of the weights is one more output. */
#ifndef LATENTD_CPU_ATTENTION_TEXT_H
#define LATENTD_CPU_ATTENTION_TEXT_H

#include "attention_tiles.h"
#include "tier.h"

enum {
    ACROSS = TEXT_MOST / SIDE, /* tiles of keys: 5 */
    PAIRS = (ACROSS + 1) / 2,  /* of them */
    SUMS = 6,                  /* tiles that sum; tile 6 is A, 7 is B */
    CHUNK = TEXT_QUERIES,
    MAXIMA = SIDE / 4 /* pieces that find maxima, of four queries each; one for each query's row follows */
};

/* Sixteen queries of a head. */
struct text_unit {
    const char *k, *v; /* B tiles [steps][ACROSS], [PAIRS][tiles] */
    const char *a;     /* Q: rows A_LINE apart, 32 channels A_STEP apart */
    size_t a_line, a_step;
    const char *q;
    bool in_place; /* Q is read where it lies */
    char *y;
    int rows; /* 0: there is no such unit */
};

struct text {
    const struct flash_text *it;
    struct curve curve;
    vf scale;          /* times log2 e, in UNITS */
    __mmask16 last;    /* keys of the last tile that there are */
    char *q[2], *p[2]; /* A tiles [steps], [PAIRS] */
    float *s[2];       /* [ACROSS][16 queries][16 keys] */
    float *o[3];       /* [tiles][16 queries][16 channels]; up to five tiles have two */
    float *late[SUMS]; /* where the tile's content goes before it is used again; NULL: nowhere */
    int query, head;   /* of the unit that comes next */
    int first;         /* query of its chunk */
};

/* ---- What vectors do, a piece after each product ---- */

struct pieces {
    struct curve curve;
    vf scale, top[MAXIMA];
    __mmask16 last;
    const float *s, *o;
    char *p, *to;
    float *minus, *factor; /* [16]: see minus_for(), of the unit that is weighed; 1 / sums, of Y's */
    char *y;
    const char *soon; /* y of a unit that is written two steps later: asked for */
    const char *q;
    size_t y_stride, q_stride;
    int soon_rows;
    int y_rows, q_rows; /* q_rows: to be copied, or -1: none */
};

/* The greatest of neighbours, and of neighbours of them; lanes of A and B take turns. Of quarters. */
VEC vf max_turns(vf a, vf b)
{
    return v_max(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
VEC vf max_pairs(vf a, vf b)
{
    __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return v_max(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}
VEC vf max_quarters(vf a, vf b)
{
    return v_max(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

VEC vf greatest(const float *s, __mmask16 last)
{
    vf top = v_max(v_max(v_load(s), v_load(s + 256)), v_max(v_load(s + 512), v_load(s + 768)));
    return _mm512_mask_max_ps(top, last, top, v_load(s + 1024));
}

/* Maxima of four queries; the last four take them together. */
VEC void maxima_piece(struct pieces *w, const int at)
{
    const float *s = w->s + at * 4 * SIDE;
    vf a = max_turns(greatest(s, w->last), greatest(s + SIDE, w->last));
    vf b = max_turns(greatest(s + 2 * SIDE, w->last), greatest(s + 3 * SIDE, w->last));
    w->top[at] = max_pairs(a, b);
    if (at == MAXIMA - 1) {
        vf top = max_quarters(max_quarters(w->top[0], w->top[1]), max_quarters(w->top[2], w->top[3]));
        v_store(w->minus, minus_for(top, w->scale));
    }
}

VEC __m512i to_exponents(vf x)
{
    return _mm512_sub_epi32(_mm512_castps_si512(x), _mm512_castps_si512(v_set1(ZERO)));
}

/* Weights of a query. Those of two tiles take turns by fours, as packing knows. */
VEC void weigh_query(const struct pieces *w, const float *s, char *p, vf minus)
{
    for (int i = 0; i < PAIRS - 1; i++, s += 512, p += TILE) {
        __m512i even = to_exponents(v_fma(v_load(s), w->scale, minus));
        __m512i odd = to_exponents(v_fma(v_load(s + 256), w->scale, minus));
        _mm512_storeu_si512(p, mantissa_of(&w->curve, _mm512_packus_epi32(even, odd)));
    }
    __m512i even = to_exponents(_mm512_maskz_fmadd_ps(w->last, v_load(s), w->scale, minus)); /* else 0 */
    __m512i x = _mm512_packus_epi32(even, _mm512_setzero_si512());
    _mm512_storeu_si512(p, mantissa_of(&w->curve, x));
}

VEC void put_query(const float *o, char *y, vf factor, const int d)
{
    for (int i = 0; i < d; i += STEP, o += 512, y += 64) {
        vb both = vb_narrow(v_mul(v_load(o), factor), v_mul(v_load(o + 256), factor));
        if (d - i >= STEP)
            _mm512_storeu_si512(y, both);
        else
            _mm512_mask_storeu_epi16(y, (__mmask32)((1u << (d - i)) - 1), both);
    }
}

/* Row R of each of the three units. What comes a chunk later is asked for. */
VEC void row_piece(struct pieces *w, const int r, const int d)
{
    weigh_query(w, w->s + r * SIDE, w->p + r * 64, v_set1(w->minus[r]));
    if (r < w->y_rows) {
        put_query(w->o + r * SIDE, w->y, v_set1(w->factor[r]), d);
        w->y += w->y_stride;
    }
    if (r < w->soon_rows) {
        for (int i = 0; i < 2 * d; i += 64)
            ask_to_write(&w->soon[i]);
        w->soon += w->y_stride;
    }
    for (int i = 0; i < 2 * d; i += 64)
        _mm_prefetch(w->q + CHUNK * w->q_stride + i, _MM_HINT_T1);
    if (w->q_rows >= 0)
        for (int i = 0; i < d; i += STEP)
            _mm512_storeu_si512(w->to + i / STEP * TILE + r * 64,
                                r < w->q_rows ? load_some(w->q + 2 * i, d - i) : _mm512_setzero_si512());
    w->q += w->q_stride;
}

VEC void piece(struct pieces *w, const int at, const int d)
{
    if (at < MAXIMA)
        maxima_piece(w, at);
    else if (at < MAXIMA + SIDE)
        row_piece(w, at - MAXIMA, d);
}

/* ---- A step ---- */

/* Stores of tiles wait until other products have followed: one that waits for its own holds up all. */
#define SETTLE(c)                                                                                            \
    do {                                                                                                     \
        if (f->late[c])                                                                                      \
            tile_store(c, f->late[c], 64);                                                                   \
        f->late[c] = NULL;                                                                                   \
    } while (0)
/* Tile C, from zeros if it is the FIRST product, += A times tile C of B; then piece AT. */
#define DOT(c, first, b, place, at)                                                                          \
    do {                                                                                                     \
        if (first) {                                                                                         \
            SETTLE(c);                                                                                       \
            tile_zero(c);                                                                                    \
            f->late[c] = (place) + (c)*256;                                                                  \
        }                                                                                                    \
        tile_load_once(7, (b) + (c)*TILE, 64);                                                               \
        tile_dot(c, 6, 7);                                                                                   \
        piece(w, at, d);                                                                                     \
    } while (0)

ALWAYS void scores_of(struct text *f, const struct text_unit *u, float *s, struct pieces *w, const int d)
{
    const int steps = text_steps(d);
    const char *k = u->k;
    tile_load(6, u->a, u->a_line);
    DOT(3, true, k, s, 0); /* those first that outputs of 40 channels leave alone */
    DOT(4, true, k, s, 1);
    DOT(0, true, k, s, 2);
    DOT(1, true, k, s, 3);
    DOT(2, true, k, s, 4);
#pragma GCC unroll 8
    for (int i = 1; i < steps; i++) {
        k += ACROSS * TILE;
        tile_load(6, u->a + (size_t)i * u->a_step, u->a_line);
        DOT(0, false, k, s, 5 * i);
        DOT(1, false, k, s, 5 * i + 1);
        DOT(2, false, k, s, 5 * i + 2);
        DOT(3, false, k, s, 5 * i + 3);
        DOT(4, false, k, s, 5 * i + 4);
    }
}

/* Three to five tiles of outputs, N; AT: pieces so far. */
ALWAYS void outputs_of(struct text *f, const char *p, const char *v, float *o, const int n, struct pieces *w,
                       const int at, const int d)
{
#pragma GCC unroll 3
    for (int i = 0; i < PAIRS; i++, v += text_tiles(d) * TILE) {
        tile_load(6, p + i * TILE, 64);
        DOT(0, i == 0, v, o, at + n * i);
        DOT(1, i == 0, v, o, at + n * i + 1);
        DOT(2, i == 0, v, o, at + n * i + 2);
        if (n > 3)
            DOT(3, i == 0, v, o, at + n * i + 3);
        else if (i == 1)
            SETTLE(3);
        if (n > 4)
            DOT(4, i == 0, v, o, at + n * i + 4);
        else if (i == 1)
            SETTLE(4);
    }
}

/* Inverses of the sums of weights. */
static inline void find_factors(float *factor, const float *o, const int d)
{
    const __m512i rows =
        _mm512_set_epi32(240, 224, 208, 192, 176, 160, 144, 128, 112, 96, 80, 64, 48, 32, 16, 0);
    v_store(factor, v_div(v_set1(1), _mm512_i32gather_ps(rows, o + d / SIDE * 256 + d % SIDE, 4)));
}

/* The output that step N writes. One of more than a group of tiles is stored in part a step earlier. */
static inline float *outputs_at(const struct text *f, int n, const int d)
{
    return f->o[text_tiles(d) < SUMS ? n % 2 : n % 3];
}

/* Number N of all steps, NOW[0] to NOW[5] being the units N - 5 to N. */
ALWAYS void text_step(struct text *f, int n, struct text_unit *const now[6], const int d)
{
    const struct text_unit *old = now[0], *prev = now[2], *next = now[4], *far = now[5];
    const int tiles = text_tiles(d), scores = ACROSS * text_steps(d);
    float minus[SIDE], factor[SIDE];
    struct pieces all = {
        .curve = f->curve,
        .scale = f->scale,
        .last = f->last,
        .s = f->s[n & 1],
        .p = f->p[n & 1],
        .o = outputs_at(f, n, d),
        .minus = minus,
        .factor = factor,
        .y = old->y,
        .y_stride = f->it->y_stride,
        .y_rows = old->rows,
        .soon = prev->y,
        .soon_rows = prev->rows,
        .q = far->q,
        .q_stride = f->it->q.stride,
        .to = f->q[n & 1],
        .q_rows = far->in_place ? -1 : far->rows,
    };
    struct pieces *w = &all;
    float *o = outputs_at(f, tiles < SUMS ? n : n + 2, d);
    const char *p = f->p[~n & 1], *v = prev->v;
    BARRIER();
    find_factors(factor, all.o, d);
    scores_of(f, next, f->s[~n & 1], w, d);
    if (tiles <= 5) {
        outputs_of(f, p, v, o, tiles, w, scores, d);
    } else if (tiles == 6) {
        outputs_of(f, p, v, o, 3, w, scores, d);
        outputs_of(f, p, v + 3 * TILE, o + 768, 3, w, scores + 3 * PAIRS, d);
    } else {
        outputs_of(f, p, v, o, 4, w, scores, d);
        outputs_of(f, p, v + 4 * TILE, o + 1024, 4, w, scores + 4 * PAIRS, d);
        outputs_of(f, p, v + 8 * TILE, o + 2048, 3, w, scores + 8 * PAIRS, d);
    }
    if (scores + tiles * PAIRS < MAXIMA + SIDE)
        piece(w, MAXIMA + SIDE - 1, d);
    BARRIER();
}

/* ---- The order of units ---- */

/* Chunks, in them heads, in them blocks of queries. Unit N of the item; false: there is none. */
static bool next_text_unit(struct text *f, int n, struct text_unit *u)
{
    const struct flash_text *it = f->it;
    const int query = f->query, head = f->head;
    if (query >= it->queries)
        return false;
    const int end = f->first + CHUNK < it->queries ? f->first + CHUNK : it->queries;
    f->query += SIDE;
    if (f->query >= end) {
        f->query = f->first;
        if (++f->head == it->heads)
            f->query = f->first = end, f->head = 0;
    }
    const size_t at = (size_t)(head * it->d) * 2;
    *u = (struct text_unit){
        .k = it->packed + (size_t)head * text_head(it->d),
        .q = it->q.data + (size_t)query * it->q.stride + at,
        .y = it->y + (size_t)query * it->y_stride + at,
        .rows = it->queries - query < SIDE ? it->queries - query : SIDE,
        .a = f->q[n & 1],
        .a_line = 64,
        .a_step = TILE,
    };
    u->v = u->k + text_steps(it->d) * ACROSS * TILE;
    u->in_place = it->d % STEP == 0 && u->rows == SIDE && ((uintptr_t)u->q | it->q.stride) % 64 == 0;
    if (u->in_place) {
        u->a = u->q;
        u->a_line = it->q.stride;
        u->a_step = 64;
    }
    return true;
}

ALWAYS void text_units(struct text *f, const int d)
{
    const struct text_unit none = {.k = f->it->packed,
                                   .v = f->it->packed,
                                   .q = f->it->q.data,
                                   .a = f->q[0],
                                   .a_line = 64,
                                   .a_step = TILE,
                                   .in_place = true};
    struct text_unit ring[6] = {none, none, none, none, none, none};
    for (int n = 0, behind = 0; behind < 5; n++) {
        struct text_unit *now[6];
        for (int i = 0; i < 6; i++)
            now[i] = &ring[(n + 1 + i) % 6];
        if (!next_text_unit(f, n, now[5]))
            *now[5] = none, behind++;
        text_step(f, n, now, d);
    }
}

static void lay_out_text(struct text *f)
{
    const struct flash_text *it = f->it;
    char *at = it->scratch;
#define TAKE(place, tiles) place = (void *)at, at += (size_t)((tiles)*TILE)
    for (int i = 0; i < 2; i++) {
        TAKE(f->q[i], text_steps(it->d));
        TAKE(f->s[i], ACROSS);
        TAKE(f->p[i], PAIRS);
    }
    for (int i = 0; i < 3; i++)
        TAKE(f->o[i], text_tiles(it->d) + 1); /* the second half of the last pair may be missing */
#undef TAKE
    memset(it->scratch, 0, (size_t)(at - it->scratch));
}

static void run_text(const struct flash_text *it)
{
    const unsigned csr = _mm_getcsr();
    struct text f = {
        .it = it,
        .curve = make_curve(),
        .scale = v_set1(it->scale * 1.44269504f * UNITS),
        .last = v_tail(it->keys - (ACROSS - 1) * SIDE),
    };
    _mm_setcsr(csr | CAREFUL);
    configure(SIDE);
    lay_out_text(&f);
    BARRIER();
    if (it->d == 40)
        text_units(&f, 40);
    else if (it->d == 64)
        text_units(&f, 64);
    else if (it->d == 80)
        text_units(&f, 80);
    else
        text_units(&f, 160);
    tile_done();
    _mm_setcsr(csr);
}

/* ---- Packing ---- */

static void pack_text_keys(char *dst, const struct flash_rows *k, int keys, int d)
{
    for (int i = 0; i < text_steps(d); i++) {
        for (int t = 0; t < ACROSS; t++, dst += TILE) {
            __m512i r[SIDE];
            for (int j = 0; j < SIDE; j++) {
                int key = t * SIDE + j;
                r[j] = key < keys
                           ? load_some(k->data + (size_t)key * k->stride + (size_t)i * 64, d - i * STEP)
                           : _mm512_setzero_si512();
            }
            transpose(r);
            for (int j = 0; j < SIDE; j++)
                _mm512_storeu_si512(dst + j * 64, r[j]);
        }
    }
}

/* Rows of pairs of keys: two pairs of a tile, two of the next one, as weigh_query() leaves them. */
static void pack_text_values(char *dst, const struct flash_rows *v, int keys, int d)
{
    for (int i = 0; i < PAIRS; i++) {
        for (int t = 0; t < text_tiles(d); t++, dst += TILE) {
            for (int j = 0; j < SIDE; j++) {
                int key = i * STEP + j / 4 * 4 + j % 2 * 2 + (j & 2 ? SIDE : 0);
                __m512i row = load_pair(v->data + (size_t)key * v->stride + (size_t)t * 32, v->stride,
                                        keys - key, d - t * SIDE);
                if (t == d / SIDE)
                    row = _mm512_mask_mov_epi32(row, (__mmask16)(1u << d % SIDE), _mm512_set1_epi32(ONES));
                _mm512_storeu_si512(dst + j * 64, row);
            }
        }
    }
}

static void pack_text(char *dst, const struct flash_rows *k, const struct flash_rows *v, int keys, int d)
{
    pack_text_keys(dst, k, keys, d);
    pack_text_values(dst + text_steps(d) * ACROSS * TILE, v, keys, d);
}

#endif
