/* Winograd's F(2, 3) along rows in AMX tiles (Lavin and Gray, arXiv 1509.09308): two neighbouring outputs
 * from four products for each row of the kernel where a direct sum takes six. Transforms are fp32, V is
 * rounded once to bf16.
 *
 * A group is two rows of 16 pairs, so that of the rows of V that three rows of the kernel meet, two are met
 * twice and stay in tiles: ten tile loads for twelve dot products, all from the second level and past the
 * first. The sums of a group (16 KB) wait in the first level while the next group's products run, and are
 * ended meanwhile, a pair for each three steps or so. */
#ifdef LATENTD_EMULATE
#define KERNEL winograd2_amx_emulated
#else
#define KERNEL winograd2_amx
#endif
#include "tile_amx.h"

#include "winograd2.h"

/* ---- V ---- */

/* 32 channels: the even ones, the odd ones. */
struct halves {
    vf even, odd;
};

VEC struct halves widen(const char *p)
{
    vb x = vb_load(p);
    struct halves r = {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
                       _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000)))};
    return r;
}

VEC void store_sum(char *p, struct halves a, struct halves b)
{
    _mm512_store_si512(p, vb_narrow(v_add(a.even, b.even), v_add(a.odd, b.odd)));
}

VEC void store_difference(char *p, struct halves a, struct halves b)
{
    _mm512_store_si512(p, vb_narrow(v_sub(a.even, b.even), v_sub(a.odd, b.odd)));
}

/* x / (1 + exp(-x)) to 1e-4 of it, for what bf16 then rounds to 2e-3. */
VEC vf quick_silu(vf x)
{
    vf e = v_exp2_rough(v_mul(x, v_set1(-1.44269504f)), 0);
    return v_mul(x, _mm512_rcp14_ps(v_add(v_set1(1.0f), e)));
}

/* Scales and shifts of 32 channels. */
struct factors {
    struct halves scale, shift;
};

VEC struct factors load_factors(const struct w2_input *in, size_t channel)
{
    const float *scale = in->scale + channel, *shift = in->shift + channel;
    struct factors f = {{v_load(scale), v_load(scale + 16)}, {v_load(shift), v_load(shift + 16)}};
    return f;
}

/* F: NULL, or the norm's; zeros beyond the picture are not normed. */
VEC struct halves load_column(const struct w2_input *in, int column, size_t c, const struct factors *f)
{
    const bool outside = column < in->left || column >= in->right;
    const char *p = outside ? in->zeros : in->row + (ptrdiff_t)column * (ptrdiff_t)in->stride;
    struct halves d = widen(p + c);
    if (!f || outside)
        return d;
    struct halves y = {quick_silu(v_fma(d.even, f->scale.even, f->shift.even)),
                       quick_silu(v_fma(d.odd, f->scale.odd, f->shift.odd))};
    return y;
}

VEC void input_as(const struct w2_input *in, bool norm)
{
    char *line = in->dst;
    for (size_t c = 0; c < (size_t)in->channels * 2; c += W2_STEP * 2, line += W2_TILE) {
        struct factors factors = {{v_zero(), v_zero()}, {v_zero(), v_zero()}}, *f = norm ? &factors : NULL;
        if (norm)
            factors = load_factors(in, c / 2);
        struct halves d0 = load_column(in, 0, c, f), d1 = load_column(in, 1, c, f);
        const char *next = in->next + c;
        char *dst = line;
        for (int t = 0; t < in->pairs; t++, dst += W2_STEP * 2, next += 2 * in->stride) {
            struct halves d2 = load_column(in, 2 * t + 2, c, f), d3 = load_column(in, 2 * t + 3, c, f);
            __builtin_prefetch(next);
            __builtin_prefetch(next + in->stride);
            store_difference(dst, d0, d2);
            store_sum(dst + in->place, d1, d2);
            store_difference(dst + 2 * in->place, d2, d1);
            store_difference(dst + 3 * in->place, d1, d3);
            d0 = d2;
            d1 = d3;
        }
    }
}

static void input(const struct w2_input *in)
{
    if (in->scale)
        input_as(in, true);
    else
        input_as(in, false);
}

/* ---- y ---- */

/* Bias, the row of add, the residual, in the order of row_ops.finish; then bf16. */
VEC void end_position(const struct w2_output *o, const vf z[2], size_t y, size_t residual)
{
    vf lo = v_add(z[0], v_load(o->bias)), hi = v_add(z[1], v_load(o->bias + 16));
    if (o->add) {
        const char *add = o->add;
        lo = v_add(lo, o->add_type == DTYPE_F32 ? v_load(add) : v_load_bf16(add));
        hi = v_add(hi, o->add_type == DTYPE_F32 ? v_load(add + 64) : v_load_bf16(add + 32));
    }
    if (o->residual) {
        lo = v_add(lo, v_load_bf16(o->residual + residual));
        hi = v_add(hi, v_load_bf16(o->residual + residual + 32));
    }
    if (o->stream)
        _mm512_stream_si512((__m512i *)(void *)(o->y + y), vb_narrow(lo, hi));
    else
        _mm512_storeu_si512(o->y + y, vb_narrow(lo, hi));
}

/* The Nth pair of a group, in the order in which they make room, see product_places(): y0 = m0 + m1 + m2, y1
 * = m1 - m2 - m3. */
VEC void combine(bool odd, const struct w2_output *o, const float *m, float *y, int n)
{
    const int t = odd ? n : n % 8 * 4 + n / 8, row = t / W2_PAIRS, pair = t % W2_PAIRS;
    const size_t place = odd ? W2_COLS : W2_SUM;
    const float *at = m + t * (odd ? 4 * W2_COLS : W2_COLS);
    vf z[4];
    if (row >= o->rows || pair >= o->pairs)
        return;
    for (int h = 0; h < 2; h++, at += 16) {
        vf m1 = v_load(at + place), m2 = v_load(at + 2 * place);
        z[h] = v_add(v_add(v_load(at), m1), m2);
        z[2 + h] = v_sub(v_sub(m1, m2), v_load(at + 3 * place));
    }
    if (o->direct) {
        size_t to = (size_t)(2 * pair) * o->y_column + (row ? o->y_row : 0);
        size_t from = (size_t)(2 * pair) * o->residual_column + (row ? o->residual_row : 0);
        end_position(o, z, to, from);
        end_position(o, z + 2, to + o->y_column, from + o->residual_column);
    } else {
        for (int i = 0; i < 4; i++)
            v_store(y + t * 2 * W2_COLS + 16 * i, z[i]);
    }
}

/* ---- M = sum of U * V ---- */

/* Tiles 0 to 3: sums [row][column half]; 4, 5: V; 6, 7: U. */
static void begin(void)
{
    struct tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = 16;
    }
    tile_configure(&c);
}

static void end(void)
{
    tile_done();
}

/* PAIR: floats from a pair to the next. */
static void store_sums(float *m, size_t pair)
{
    const size_t line = pair * 4;
    tile_store(0, m, line);
    tile_store(1, m + 16, line);
    tile_store(2, m + W2_PAIRS * pair, line);
    tile_store(3, m + W2_PAIRS * pair + 16, line);
}

/* Asks for the lines of y that pair T will be written to, and for those of the residual. */
VEC void prefetch_pair(const struct w2_output *o, int t)
{
    const int row = t / W2_PAIRS, pair = t % W2_PAIRS;
    if (!o->direct || row >= o->rows || pair >= o->pairs)
        return;
    if (!o->stream) {
        const char *y = o->y + (size_t)(2 * pair) * o->y_column + (row ? o->y_row : 0);
        __asm__ volatile("prefetchw %0" : : "m"(*y)); /* no operation where the CPU lacks it */
        __asm__ volatile("prefetchw %0" : : "m"(y[o->y_column]));
    }
    if (o->residual) {
        const char *r = o->residual + (size_t)(2 * pair) * o->residual_column + (row ? o->residual_row : 0);
        __builtin_prefetch(r);
        __builtin_prefetch(r + o->residual_column);
    }
}

#define LOAD_U(u)                                                                                            \
    do {                                                                                                     \
        tile_load_once(6, (u), 128);                                                                         \
        tile_load_once(7, (u) + 64, 128);                                                                    \
    } while (0)
#define DOTS(upper, lower)                                                                                   \
    do {                                                                                                     \
        tile_dot(0, upper, 6);                                                                               \
        tile_dot(1, upper, 7);                                                                               \
        tile_dot(2, lower, 6);                                                                               \
        tile_dot(3, lower, 7);                                                                               \
    } while (0)

/* Products of 32 channels with three rows of the kernel; V are four rows. */
VEC void product_step(const char *v, size_t row, const char *u)
{
    const size_t kernel_row = W2_STEP * W2_COLS * 2;
    LOAD_U(u);
    tile_load_once(4, v, 64);
    tile_load_once(5, v + row, 64);
    DOTS(4, 5);
    LOAD_U(u + kernel_row);
    tile_load_once(4, v + 2 * row, 64);
    DOTS(5, 4);
    LOAD_U(u + 2 * kernel_row);
    tile_load_once(5, v + 3 * row, 64);
    DOTS(4, 5);
}

/* All products of a group, and on the way the end of the group before, O. Both share M, 16 KB of the first
 * level: while place j is multiplied the jth quarter of the pairs is ended, and what they leave free is where
 * its sums go. For a group that is not odd M is [place][pair][column] and a quarter is every fourth pair; for
 * an odd one [pair][place][column], eight pairs that are neighbours. ODD: the group before. */
VEC void product_places(bool odd, const struct w2_product *p, const struct w2_output *o, float *m, float *y)
{
    const int steps = p->channels / W2_STEP, quarter = W2_UNITS / 4, pace = (quarter + steps - 1) / steps;
    for (int j = 0; j < W2_PLACES; j++) {
        const char *v = p->v + (size_t)j * p->v_place, *u = p->u[j], *next = u + p->next;
        int t = j * quarter;
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
        for (int k = 0; k < steps; k++, v += W2_TILE, u += 3 * W2_STEP * W2_COLS * 2) {
            product_step(v, p->v_row, u);
            for (int l = 0; l < p->lines; l++, next += 64)
                __builtin_prefetch(next, 0, 2);
            for (int q = 0; q < pace && t < (j + 1) * quarter; q++, t++) {
                if (o)
                    combine(odd, o, m, y, t);
                prefetch_pair(&p->out, t);
            }
        }
        if (odd)
            store_sums(m + j * W2_SUM, W2_COLS);
        else
            store_sums(m + j * W2_COLS, 4 * W2_COLS);
    }
}

static void product(struct w2_state *s, const struct w2_product *p)
{
    const struct w2_output before = s->out, *o = s->waits ? &before : NULL;
    s->out = p->out;
    if (s->odd)
        product_places(true, p, o, s->m, s->y);
    else
        product_places(false, p, o, s->m, s->y);
    s->odd = !s->odd;
    s->waits = true;
}

static void flush(struct w2_state *s)
{
    for (int t = 0; s->waits && t < W2_UNITS; t++)
        if (s->odd)
            combine(true, &s->out, s->m, s->y, t);
        else
            combine(false, &s->out, s->m, s->y, t);
    s->waits = false;
}

const struct winograd2_kernel KERNEL = {input, begin, product, flush, end};
