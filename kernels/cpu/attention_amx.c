/* Flash attention in AMX tiles, transposed: S' = K Q', P' = exp(S' - m), O' += V' P'.
 *
 * With keys down and queries across, a query's maximum is a lane of a vector: nothing runs across a vector,
 * and two rows of P' cut to bf16 and laid side by side are a row of the B tile that the second product wants.
 * K is A as it is stored, V' is transposed once a head, Q becomes B tiles once a block of queries. A row of
 * ones under V' makes the sum of the weights one more output.
 *
 * Heads of up to 80 channels go another way, see attention_narrow.h, and so do the keys of a text,
 * attention_text.h.
 *
 * Cost of a tile of scores (16 keys x 16 queries), in cycles: the products take (d / 32 + d / 32) x 16 and
 * the row of ones 8, 168 at d = 160. Weights take per 32 scores 2 fma on port 0 (while tiles multiply, port 5
 * does no arithmetic of floats), 4 shuffles on port 5 and 6 operations on either: about 50. Both run side by
 * side: while the vectors turn block u of scores into weights, the tiles add block u - 1 to the output and
 * compute the scores of block u + 1, in the places that the weights have left. What is used again (scores,
 * weights, queries, output: 58 KB at d = 128) is kept as near as it can be; K and V stream past it from the
 * second-level cache. SPEED.md has what was measured on the way.
 *
 * The sum is taken over the weights as they were rounded to bf16: what rounding adds to them it adds to their
 * sum.
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
#include "attention_narrow.h"
#include "attention_text.h"
#include "attention_tiles.h"

enum { COLS = FLASH_QUERIES / SIDE }; /* tiles of a block of queries */

/* A block of queries between two blocks of keys. */
struct state {
    char *q;                   /* B tiles [d_steps][COLS] */
    float *o;                  /* [d_tiles][COLS][16 channels][16 queries] */
    vf max[COLS], minus[COLS]; /* a lane a query; minus: see minus_for() */
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
    struct curve curve;
    vf scale; /* times log2 e, in UNITS */
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

/* Weights of tile I of the unit. */
static void weigh_tile(struct flow *f, int i)
{
    const struct unit *u = f->weights;
    const int c = i % COLS, t = i / COLS;
    const float *s = f->s + (size_t)i * 256;
    char *p = u->p + (t / 2 * COLS + c) * TILE + t % 2 * (TILE / 2);
    const vf scale = f->scale, minus = u->st->minus[c];
    vb seen = f->seen;
#pragma GCC unroll 8
    for (int r = 0; r < SIDE / 2; r++, s += 2 * SIDE, p += 64) {
        vb row = weigh_pair(&f->curve, s, scale, minus, &seen);
        _mm512_storeu_si512(p, row);
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
        vf minus = minus_for(top, f->scale), shrink = shrink_by(minus, st->minus[c]);
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
    if (!overflown(f->seen))
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
    put_rows(it, o, COLS * 256, factor, at);
}

static void run_wide(const struct flash_item *it)
{
    const unsigned csr = _mm_getcsr();
    const int states = (it->queries + FLASH_QUERIES - 1) / FLASH_QUERIES;
    struct flow f = {
        .it = it,
        .curve = make_curve(),
        .scale = v_set1(it->scale * 1.44269504f * UNITS),
        .d_tiles = flash_tiles(it->d),
        .d_steps = flash_steps(it->d),
        .key_tiles = flash_unit(it->d) / SIDE,
    };
    _mm_setcsr(csr | CAREFUL);
    configure(SIDE);
    struct memory m = lay_out(&f, states);
    BARRIER();
    run_units(&f, &m, states);
    for (int i = 0; i < states * COLS; i++)
        finish(&f, &m.state[i / COLS], i * SIDE, i % COLS);
    tile_done();
    _mm_setcsr(csr);
}

static void run(const struct flash_item *it)
{
    if (it->d <= FLASH_NARROW)
        run_narrow(it);
    else
        run_wide(it);
}

const struct flash_kernel KERNEL = {pack, run, pack_text, run_text};
