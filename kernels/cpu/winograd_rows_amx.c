/* Winograd's F(4, 3) along rows in AMX tiles (Lavin and Gray, arXiv 1509.09308): four neighbouring outputs
 * from six products for each row of the kernel where a direct sum takes twelve. Transforms are fp32, V is
 * rounded once to bf16.
 *
 * A group is two rows of 16 quads, so that of the rows of V that three rows of the kernel meet, two are met
 * twice and stay in tiles: ten tile loads for twelve dot products, all from the second level and past the
 * first. The sums of a group (27 KB) wait in the first level while the next group's products run, and are
 * ended meanwhile, a quad for each three steps or so. */
#ifdef LATENTD_EMULATE
#define KERNEL winograd_rows_amx_emulated
#else
#define KERNEL winograd_rows_amx
#endif
#include <string.h>

#include "tile_amx.h"

#include "winograd_rows.h"

/* ---- V ---- */

VEC struct halves fma_halves(struct halves x, float times, struct halves y)
{
    vf t = v_set1(times);
    return (struct halves){v_fma(x.even, t, y.even), v_fma(x.odd, t, y.odd)};
}

VEC struct halves add_halves(struct halves x, struct halves y)
{
    return (struct halves){v_add(x.even, y.even), v_add(x.odd, y.odd)};
}

/* Scales and shifts of 32 channels. */
struct factors {
    struct halves scale, shift;
};

VEC struct factors load_factors(const struct wr_input *in, size_t channel)
{
    const float *scale = in->scale + channel, *shift = in->shift + channel;
    struct factors f = {{v_load(scale), v_load(scale + 16)}, {v_load(shift), v_load(shift + 16)}};
    return f;
}

VEC struct halves norm_silu(struct halves d, const struct factors *f)
{
    return (struct halves){v_silu_rough(v_fma(d.even, f->scale.even, f->shift.even)),
                           v_silu_rough(v_fma(d.odd, f->scale.odd, f->shift.odd))};
}

static const float A = WR_POINT, AA = WR_POINT * WR_POINT, B = 1 / WR_POINT, BB = 1 / (WR_POINT * WR_POINT),
                   S = WR_POINT * WR_POINT + 1 / (WR_POINT * WR_POINT);

/* The places of a quad: see struct wr_input. */
VEC void store_quad(char *dst, size_t place, const struct halves d[6])
{
    struct halves even = fma_halves(d[2], -BB, d[4]), odd = fma_halves(d[1], -BB, d[3]);
    halves_store(dst, fma_halves(d[2], -S, add_halves(d[0], d[4])));
    halves_store(dst + place, fma_halves(odd, A, even));
    halves_store(dst + 2 * place, fma_halves(odd, -A, even));
    even = fma_halves(d[2], -AA, d[4]);
    odd = fma_halves(d[1], -AA, d[3]);
    halves_store(dst + 3 * place, fma_halves(odd, B, even));
    halves_store(dst + 4 * place, fma_halves(odd, -B, even));
    halves_store(dst + 5 * place, fma_halves(d[3], -S, add_halves(d[1], d[5])));
}

/* Quad T of all channels. EDGE: some columns lie beyond the picture: zeros, which are not normed. The last
 * two columns of the quad before, or of this, wait in in->carry when they are normed. */
VEC void input_quad(const struct wr_input *in, int t, bool norm, bool edge)
{
    const size_t bytes = (size_t)in->channels * 2;
    const char *x[6], *next = in->next + (size_t)t * WR_OUT * in->stride;
    char *dst = in->dst + (size_t)t * WR_STEP * 2;
    float *carry = in->carry;
    bool outside[6];
    for (int i = 0; i < 6; i++) {
        const int column = WR_OUT * t + i;
        outside[i] = edge && (column < in->left || column >= in->right);
        x[i] = outside[i] ? in->zeros : in->row + (ptrdiff_t)column * (ptrdiff_t)in->stride;
    }
    for (size_t c = 0; c < bytes; c += WR_STEP * 2, dst += WR_TILE, carry += 64) {
        struct halves d[6];
        for (int i = norm ? 2 : 0; i < 6; i++)
            d[i] = halves_load(x[i] + c);
        for (int i = 2; i < 6; i++)
            __builtin_prefetch(next + (size_t)(i - 2) * in->stride + c);
        if (norm) {
            const struct factors f = load_factors(in, c / 2);
            for (int i = 2; i < 6; i++)
                if (!outside[i])
                    d[i] = norm_silu(d[i], &f);
            d[0] = (struct halves){v_load(carry), v_load(carry + 16)};
            d[1] = (struct halves){v_load(carry + 32), v_load(carry + 48)};
            v_store(carry, d[4].even);
            v_store(carry + 16, d[4].odd);
            v_store(carry + 32, d[5].even);
            v_store(carry + 48, d[5].odd);
        }
        store_quad(dst, in->place, d);
    }
}

/* The first two columns, normed, into in->carry. */
static void begin_carry(const struct wr_input *in)
{
    const size_t bytes = (size_t)in->channels * 2;
    for (int i = 0; i < 2; i++) {
        const bool outside = i < in->left || i >= in->right;
        const char *x = outside ? in->zeros : in->row + (ptrdiff_t)i * (ptrdiff_t)in->stride;
        float *carry = in->carry + 32 * i;
        for (size_t c = 0; c < bytes; c += WR_STEP * 2, carry += 64) {
            const struct factors f = load_factors(in, c / 2);
            struct halves d = outside ? halves_load(x + c) : norm_silu(halves_load(x + c), &f);
            v_store(carry, d.even);
            v_store(carry + 16, d.odd);
        }
    }
}

VEC void input_as(const struct wr_input *in, bool norm)
{
    if (norm)
        begin_carry(in);
    for (int t = 0; t < in->quads; t++)
        if (WR_OUT * t >= in->left && WR_OUT * t + 6 <= in->right)
            input_quad(in, t, norm, false);
        else
            input_quad(in, t, norm, true);
}

static void input(const struct wr_input *in)
{
    if (in->scale)
        input_as(in, true);
    else
        input_as(in, false);
}

/* ---- y ---- */

/* What becomes of the outputs of a group: there is none; they wait in its work space; or they are ended here.
 */
enum ending { NOTHING, WAITS, PLAIN, RESIDUAL, PLAIN_PAST_CACHES, RESIDUAL_PAST_CACHES };

static enum ending ending_of(const struct wr_state *s)
{
    if (!s->waits)
        return NOTHING;
    if (!s->out.direct)
        return WAITS;
    return (s->out.residual ? RESIDUAL : PLAIN) + (s->out.stream ? PLAIN_PAST_CACHES - PLAIN : 0);
}

/* What each output of a panel begins with: the bias and the row of add. */
VEC void begin_outputs(enum ending ending, const struct wr_output *o, vf base[2])
{
    base[0] = base[1] = v_zero();
    if (ending == NOTHING || ending == WAITS)
        return;
    base[0] = v_load(o->bias);
    base[1] = v_load(o->bias + 16);
    if (o->add) {
        const char *add = o->add;
        base[0] = v_add(base[0], o->add_type == DTYPE_F32 ? v_load(add) : v_load_bf16(add));
        base[1] = v_add(base[1], o->add_type == DTYPE_F32 ? v_load(add + 64) : v_load_bf16(add + 32));
    }
}

/* The outputs of a quad, from M at places PLACE floats apart: y0 = m0 + (m1 + m2) + (m3 + m4), y1 = a (m1 -
 * m2) + b (m3 - m4), y2 = a a (m1 + m2) + b b (m3 + m4), y3 = a a a (m1 - m2) + b b b (m3 - m4) + m5. Z:
 * [output][column half]. */
VEC void outputs(const float *m, size_t place, const vf base[2], vf z[2 * WR_OUT])
{
    for (int h = 0; h < 2; h++, m += 16) {
        vf m1 = v_load(m + place), m2 = v_load(m + 2 * place);
        vf m3 = v_load(m + 3 * place), m4 = v_load(m + 4 * place);
        vf sum_a = v_add(m1, m2), sum_b = v_add(m3, m4), less_a = v_sub(m1, m2), less_b = v_sub(m3, m4);
        z[h] = v_add(v_add(v_load(m), base[h]), v_add(sum_a, sum_b));
        z[2 + h] = v_fma(less_a, v_set1(A), v_fma(less_b, v_set1(B), base[h]));
        z[4 + h] = v_fma(sum_a, v_set1(AA), v_fma(sum_b, v_set1(BB), base[h]));
        z[6 + h] = v_fma(less_a, v_set1(A * AA),
                         v_fma(less_b, v_set1(B * BB), v_add(v_load(m + 5 * place), base[h])));
    }
}

/* Sums of outputs and of their squares, [sum, square][column half], of every sixth unit: so both orders of
 * units add the same numbers in the same order. */
struct moments {
    vf of[WR_PLACES][4];
};

VEC void add_moments(vf s[4], const vf z[2 * WR_OUT])
{
    for (int h = 0; h < 2; h++) {
        vf sum = v_add(v_add(z[h], z[2 + h]), v_add(z[4 + h], z[6 + h]));
        vf square = v_fma(z[h], z[h], s[2 + h]);
        square = v_fma(z[2 + h], z[2 + h], square);
        square = v_fma(z[4 + h], z[4 + h], square);
        s[h] = v_add(s[h], sum);
        s[2 + h] = v_fma(z[6 + h], z[6 + h], square);
    }
}

VEC void keep_moments(const struct wr_output *o, const struct moments *m)
{
    for (int i = 0; i < 4; i++)
        v_store(o->sums + 16 * i,
                v_add(v_add(v_add(m->of[0][i], m->of[1][i]), v_add(m->of[2][i], m->of[3][i])),
                      v_add(m->of[4][i], m->of[5][i])));
}

/* The Nth unit of a group, in the order in which they make room, see product_places(). */
VEC void combine(enum ending ending, bool odd, const struct wr_output *o, const vf base[2], const float *m,
                 int n, struct moments *moments)
{
    const int t = odd ? n : n % WR_PLACES * WR_PLACES + n / WR_PLACES;
    const int row = t / WR_QUADS, quad = t % WR_QUADS;
    const bool residual = ending == RESIDUAL || ending == RESIDUAL_PAST_CACHES;
    vf z[2 * WR_OUT];
    if (ending == NOTHING || t >= WR_UNITS || o->row + row >= o->strip->rows[quad])
        return;
    const size_t at = (size_t)o->strip->at[quad];
    float *work = o->work + t * WR_OUT * WR_COLS;
    if (odd)
        outputs(m + t * WR_PLACES * WR_COLS, WR_COLS, base, z);
    else
        outputs(m + t * WR_COLS, WR_SLOTS * WR_COLS, base, z);
    if (o->begun)
        for (int i = 0; i < 2 * WR_OUT; i++)
            z[i] = v_add(z[i], v_load(work + 16 * i));
    char *to = o->y + at * o->y_column + (row ? o->y_row : 0);
    const char *from = NULL;
    if (residual)
        from = o->residual + at * o->residual_column + (row ? o->residual_row : 0);
    for (int i = 0; i < WR_OUT; i++, to += o->y_column) {
        vf lo = z[2 * i], hi = z[2 * i + 1];
        if (residual) {
            z[2 * i] = lo = v_add(lo, v_load_bf16(from));
            z[2 * i + 1] = hi = v_add(hi, v_load_bf16(from + 32));
            from += o->residual_column;
        }
        if (ending == WAITS) {
            v_store(work + 32 * i, lo);
            v_store(work + 32 * i + 16, hi);
        } else if (ending == PLAIN_PAST_CACHES || ending == RESIDUAL_PAST_CACHES) {
            _mm512_stream_si512((__m512i *)(void *)to, vb_narrow(lo, hi));
        } else {
            _mm512_storeu_si512(to, vb_narrow(lo, hi));
        }
    }
    if (o->sums)
        add_moments(moments->of[t % WR_PLACES], z);
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

/* QUAD: floats from a quad to the next. */
static void store_sums(float *m, size_t quad)
{
    const size_t line = quad * 4;
    tile_store(0, m, line);
    tile_store(1, m + 16, line);
    tile_store(2, m + WR_QUADS * quad, line);
    tile_store(3, m + WR_QUADS * quad + 16, line);
}

/* Asks for the lines of y that unit T will be written to, for those of the residual, and for sums that have
 * begun. */
VEC void prefetch_unit(const struct wr_output *o, int t)
{
    const int row = t / WR_QUADS, quad = t % WR_QUADS;
    if (t >= WR_UNITS || o->row + row >= o->strip->rows[quad])
        return;
    const size_t at = (size_t)o->strip->at[quad];
    const float *work = o->work + t * WR_OUT * WR_COLS;
    for (int i = 0; i < 2 * WR_OUT && o->begun; i++)
        __builtin_prefetch(work + 16 * i);
    if (!o->direct)
        return;
    const char *y = o->y + at * o->y_column + (row ? o->y_row : 0);
    for (int i = 0; i < WR_OUT && !o->stream; i++, y += o->y_column)
        ask_to_write(y);
    if (!o->residual)
        return;
    const char *r = o->residual + at * o->residual_column + (row ? o->residual_row : 0);
    for (int i = 0; i < WR_OUT; i++, r += o->residual_column)
        __builtin_prefetch(r);
}

/* Products of 32 channels with three rows of the kernel; V are two rows, W the two below. */
VEC void product_step(const char *v, const char *w, size_t row, const char *u)
{
    const size_t kernel_row = WR_STEP * WR_COLS * 2;
    LOAD_PANEL(u);
    tile_load_once(4, v, 64);
    tile_load_once(5, v + row, 64);
    DOTS(4, 5);
    LOAD_PANEL(u + kernel_row);
    tile_load_once(4, w, 64);
    DOTS(5, 4);
    LOAD_PANEL(u + 2 * kernel_row);
    tile_load_once(5, w + row, 64);
    DOTS(4, 5);
}

/* All products of a group, and on the way the end of the group before. Both share s->m, 27 KB of the first
 * level: while place j is multiplied a sixth of the units is ended, and what they leave free is where its
 * sums go. For a group that is not odd M is [place][slot][column] and a sixth is every sixth unit; for an odd
 * one [slot][place][column], six units that are neighbours. ODD: the group before. */
VEC void product_places(enum ending ending, bool odd, const struct wr_state *s, const struct wr_product *p)
{
    const int steps = p->channels / WR_STEP, part = WR_SLOTS / WR_PLACES, pace = (part + steps - 1) / steps;
    const struct wr_output before = s->out, after = p->out;
    const bool asks = after.begun || (after.direct && (!after.stream || after.residual));
    float *const m = s->m;
    vf base[2];
    struct moments moments;
    if (before.sums)
        memset(&moments, 0, sizeof moments);
    begin_outputs(ending, &before, base);
    for (int j = 0; j < WR_PLACES; j++) {
        const char *v = p->v[0] + (size_t)j * p->v_place, *w = p->v[1] + (size_t)j * p->v_place;
        const char *u = p->u[j];
        int t = j * part;
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
        for (int k = 0; k < steps; k++, v += WR_TILE, w += WR_TILE, u += 3 * WR_STEP * WR_COLS * 2) {
            product_step(v, w, p->v_row, u);
            for (int q = 0; q < pace && t < (j + 1) * part; q++, t++) {
                combine(ending, odd, &before, base, m, t, &moments);
                if (asks)
                    prefetch_unit(&after, t);
            }
        }
        if (odd)
            store_sums(m + j * WR_SLOTS * WR_COLS, WR_COLS);
        else
            store_sums(m + j * WR_COLS, WR_PLACES * WR_COLS);
    }
    if (ending != NOTHING && before.sums)
        keep_moments(&before, &moments);
}

#define EACH_ENDING(X) X(NOTHING) X(WAITS) X(PLAIN) X(RESIDUAL) X(PLAIN_PAST_CACHES) X(RESIDUAL_PAST_CACHES)

static void product(struct wr_state *s, const struct wr_product *p)
{
    switch (ending_of(s)) {
#define CASE(ending)                                                                                         \
    case ending:                                                                                             \
        if (s->odd)                                                                                          \
            product_places(ending, true, s, p);                                                              \
        else                                                                                                 \
            product_places(ending, false, s, p);                                                             \
        break;
        EACH_ENDING(CASE)
#undef CASE
    }
    s->out = p->out;
    s->odd = !s->odd;
    s->waits = true;
}

VEC void flush_as(enum ending ending, const struct wr_state *s)
{
    vf base[2];
    struct moments moments;
    if (s->out.sums)
        memset(&moments, 0, sizeof moments);
    begin_outputs(ending, &s->out, base);
    for (int t = 0; t < WR_SLOTS; t++)
        if (s->odd)
            combine(ending, true, &s->out, base, s->m, t, &moments);
        else
            combine(ending, false, &s->out, base, s->m, t, &moments);
    if (ending != NOTHING && s->out.sums)
        keep_moments(&s->out, &moments);
}

static void flush(struct wr_state *s)
{
    switch (ending_of(s)) {
#define CASE(ending)                                                                                         \
    case ending:                                                                                             \
        flush_as(ending, s);                                                                                 \
        break;
        EACH_ENDING(CASE)
#undef CASE
    }
    s->waits = false;
}

const struct winograd_rows_kernel KERNEL = {input, begin, product, flush, end};
