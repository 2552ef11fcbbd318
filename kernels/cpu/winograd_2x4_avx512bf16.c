/* Winograd's F(2x4, 3x3) in vectors of pairs of bf16 (Lavin and Gray, arXiv 1509.09308): F(2, 3) down the
 * columns nested with F(4, 3) along the rows. Eight neighbouring outputs from 24 products of a channel where
 * a direct sum takes 72. Transforms are fp32, V and U are rounded once to bf16.
 *
 * Products: 8 tiles x 32 outputs stay in 16 registers over all channels; a step of two channels takes 2 loads
 * of U and 8 broadcasts of V for 16 dot products. U of a place and panel is 64 bytes a channel and stays in
 * the first level for the second 8 tiles. */
#ifdef LATENTD_EMULATE
#define KERNEL winograd_2x4_avx512bf16_emulated
#else
#define KERNEL winograd_2x4_avx512bf16
#endif
#include "vec_bf16.h"

#include "winograd_2x4.h"

static const float A = W24_POINT, AA = W24_POINT * W24_POINT, B = 1 / W24_POINT,
                   BB = 1 / (W24_POINT * W24_POINT), S = W24_POINT * W24_POINT + 1 / (W24_POINT * W24_POINT);

/* ---- V ---- */

/* The row's places of column J: d0 - d2, d1 + d2, d2 - d1, d1 - d3. */
VEC vf down(int place, const struct w24_input *in, int j, size_t c, bool odd)
{
    static const int first[] = {0, 1, 2, 1}, second[] = {2, 2, 1, 3};
    vb x = vb_load(in->src[first[place]][j] + c), y = vb_load(in->src[second[place]][j] + c);
    vf a = odd ? vb_odd(x) : vb_even(x), b = odd ? vb_odd(y) : vb_even(y);
    return place == 1 ? v_add(a, b) : v_sub(a, b);
}

/* V0 = d0 - s d2 + d4; V1, V2 = (d4 - b b d2) +- a (d3 - b b d1); V3, V4 = (d4 - a a d2) +- b (d3 - a a d1);
 * V5 = d1 - s d3 + d5, with b = 1 / a and s = a a + b b. */
VEC void along(const vf d[W24_IN_COLS], vf v[W24_IN_COLS])
{
    vf even = v_fma(d[2], v_set1(-BB), d[4]), odd = v_fma(d[1], v_set1(-BB), d[3]);
    v[0] = v_fma(d[2], v_set1(-S), v_add(d[0], d[4]));
    v[1] = v_fma(odd, v_set1(A), even);
    v[2] = v_fma(odd, v_set1(-A), even);
    even = v_fma(d[2], v_set1(-AA), d[4]);
    odd = v_fma(d[1], v_set1(-AA), d[3]);
    v[3] = v_fma(odd, v_set1(B), even);
    v[4] = v_fma(odd, v_set1(-B), even);
    v[5] = v_fma(d[3], v_set1(-S), v_add(d[1], d[5]));
}

/* Of doubled columns a, b, b, c, c, d: a - b, b, b - c, twice. */
VEC void along_doubled(const vf d[W24_IN_COLS], vf v[W24_IN_COLS])
{
    v[0] = v_sub(d[0], d[1]);
    v[1] = d[1];
    v[2] = v[3] = v_sub(d[1], d[3]);
    v[4] = d[3];
    v[5] = v_sub(d[3], d[5]);
}

VEC void input_as(const struct w24_input *in, bool doubled)
{
    char *dst = in->dst;
    for (size_t c = 0; c < (size_t)in->channels * 2; c += W24_STEP * 2, dst += W24_V) {
        char *to = dst;
        for (int j = W24_IN_COLS - W24_COLS; j < W24_IN_COLS; j++) { /* rows above were the last tiles' */
            __builtin_prefetch(in->src[2][j] + in->ahead + c);
            __builtin_prefetch(in->src[3][j] + in->ahead + c);
        }
#pragma GCC unroll 4
        for (int i = 0; i < W24_IN_ROWS; i++) {
            if (doubled && i == W24_DOUBLED_ZERO) {
                to += W24_IN_COLS * in->place;
                continue;
            }
            vf even[W24_IN_COLS], odd[W24_IN_COLS], v[W24_IN_COLS], w[W24_IN_COLS];
#pragma GCC unroll 6
            for (int j = 0; j < W24_IN_COLS; j++) {
                even[j] = down(i, in, j, c, false);
                odd[j] = down(i, in, j, c, true);
            }
            if (doubled) {
                along_doubled(even, v);
                along_doubled(odd, w);
            } else {
                along(even, v);
                along(odd, w);
            }
#pragma GCC unroll 6
            for (int j = 0; j < W24_IN_COLS; j++, to += in->place)
                _mm512_store_si512(to, vb_narrow(v[j], w[j]));
        }
    }
}

static void input(const struct w24_input *in)
{
    if (in->doubled)
        input_as(in, true);
    else
        input_as(in, false);
}

/* ---- U ---- */

/* Of the row's three weights the columns' places, as in pack.c; of doubled columns k0, k0 + k1 + k2, k2,
 * twice.
 */
VEC void weight_along(const vf k[3], vf u[W24_IN_COLS], bool doubled)
{
    if (doubled) {
        u[0] = u[3] = k[0];
        u[1] = u[4] = v_add(k[1], v_add(k[0], k[2]));
        u[2] = u[5] = k[2];
        return;
    }
    const float over_a = 1 / (2 * AA * (AA - BB)), over_b = 1 / (2 * BB * (BB - AA));
    vf even_a = v_fma(k[2], v_set1(AA * over_a), v_mul(k[0], v_set1(over_a))),
       even_b = v_fma(k[2], v_set1(BB * over_b), v_mul(k[0], v_set1(over_b)));
    u[0] = k[0];
    u[1] = v_fma(k[1], v_set1(A * over_a), even_a);
    u[2] = v_fnma(k[1], v_set1(A * over_a), even_a);
    u[3] = v_fma(k[1], v_set1(B * over_b), even_b);
    u[4] = v_fnma(k[1], v_set1(B * over_b), even_b);
    u[5] = k[2];
}

/* The rows' places: k0, (k0 + k2 +- k1) / 2, k2. */
VEC void weight_down(const vf k[3], vf u[W24_IN_ROWS])
{
    vf half = v_set1(0.5f), even = v_mul(v_add(k[0], k[2]), half);
    u[0] = k[0];
    u[1] = v_fma(k[1], half, even);
    u[2] = v_fnma(k[1], half, even);
    u[3] = k[2];
}

/* a[0], b[0], a[1], b[1] … */
VEC vb pairs(vf a, vf b)
{
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(vb_load(order), vb_narrow(a, b));
}

/* A channel of 16 outputs: [W24_IN_COLS][3]: its rows' places along; LINE: of tap 0, TAP bytes from a tap to
 * the next. */
VEC void weight_rows(vf k[W24_IN_COLS][3], const char *line, size_t tap, bool odd, bool doubled)
{
#pragma GCC unroll 3
    for (int y = 0; y < 3; y++) {
        vf row[3], u[W24_IN_COLS];
#pragma GCC unroll 3
        for (int x = 0; x < 3; x++) {
            vb both = vb_load(line + (size_t)(3 * y + x) * tap);
            row[x] = odd ? vb_odd(both) : vb_even(both);
        }
        weight_along(row, u, doubled);
#pragma GCC unroll 6
        for (int j = 0; j < W24_IN_COLS; j++)
            k[j][y] = u[j];
    }
}

/* Channels c and c + 2 (ODD: c + 1 and c + 3) of 16 outputs; A and B their lines of tap 0. */
VEC void weight_lines(char *dst, size_t place, const char *a, const char *b, size_t tap, bool odd,
                      bool doubled)
{
    vf k[2][W24_IN_COLS][3];
    weight_rows(k[0], a, tap, odd, doubled);
    weight_rows(k[1], b, tap, odd, doubled);
#pragma GCC unroll 6
    for (int j = 0; j < W24_IN_COLS; j++) {
        vf u[2][W24_IN_ROWS];
        weight_down(k[0][j], u[0]);
        weight_down(k[1][j], u[1]);
#pragma GCC unroll 4
        for (int i = 0; i < W24_IN_ROWS; i++)
            if (!doubled || i != W24_DOUBLED_ZERO)
                _mm512_store_si512(dst + (size_t)(i * W24_IN_COLS + j) * place, pairs(u[0][i], u[1][i]));
    }
}

static void weights(const struct w24_weights *w)
{
    const size_t line = W24_PANEL * 4; /* of two channels */
    for (int c = w->first; c < w->first + w->count; c += 4) {
        const int chunk = c / w->chunk * w->chunk,
                  length = w->channels - chunk < w->chunk ? w->channels - chunk : w->chunk, i = c - w->first;
        const size_t tap = (size_t)length / 2 * line;
        const char *src = w->src + (size_t)chunk * 9 * W24_PANEL * 2 + (size_t)(c - chunk) / 2 * line;
        char *dst = w->dst + (size_t)(i / W24_STEP) * W24_U + (size_t)(i % W24_STEP / 4) * line;
        /* The same lines of the next chunk: nine short streams are too many for the processor to see. */
        for (size_t k = 0; k < 9; k++)
            for (size_t at = 0; at < 2 * line; at += 64)
                __builtin_prefetch(src + (9 + k) * tap + at);
        for (int h = 0; h < 2; h++, src += 64, dst += 64) {
            weight_lines(dst, w->place, src, src + line, tap, false, w->doubled);
            weight_lines(dst + W24_STEP / 4 * line, w->place, src, src + line, tap, true, w->doubled);
        }
    }
}

/* ---- M = sum of U * V ---- */

VEC void multiply(const char *v, const char *u, int channels, float *m, const char *coming, int lines)
{
    vf acc[W24_TOGETHER][2];
#pragma GCC unroll 8
    for (int i = 0; i < W24_TOGETHER; i++)
        acc[i][0] = acc[i][1] = v_zero();
    for (int c = channels; c > 0; c -= W24_STEP, v += W24_V - W24_LINE) {
        for (int i = 0; i < lines; i++, coming += 64)
            __builtin_prefetch(coming, 0, 2);
#pragma GCC unroll 4
        for (int k = 0; k < W24_STEP / 2; k++, v += 4, u += W24_PANEL * 4) {
            vb b0 = vb_load(u), b1 = vb_load(u + 64);
#pragma GCC unroll 8
            for (int i = 0; i < W24_TOGETHER; i++) {
                vb x = vb_broadcast(v + i * W24_LINE);
                acc[i][0] = vb_dot(x, b0, acc[i][0]);
                acc[i][1] = vb_dot(x, b1, acc[i][1]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < W24_TOGETHER; i++) {
        v_store(m + i * W24_PANEL, acc[i][0]);
        v_store(m + i * W24_PANEL + 16, acc[i][1]);
    }
}

/* ---- y ---- */

/* Half a panel of a tile: [W24_ROWS][W24_COLS] from M at places PLACE floats apart. Down: m0 + m1 + m2, m1 -
 * m2 - m3. Along: y0 = m0 + (m1 + m2) + (m3 + m4), y1 = a (m1 - m2) + b (m3 - m4), y2 = a a (m1 + m2) + b b
 * (m3 + m4), y3 = a a a (m1 - m2) + b b b (m3 - m4) + m5; of doubled columns m0 + m1, m1 - m2, m3 + m4, m4 -
 * m5.
 */
VEC void outputs(const float *m, size_t place, bool doubled, vf base, vf z[W24_ROWS * W24_COLS])
{
    vf r[W24_ROWS][W24_IN_COLS];
#pragma GCC unroll 6
    for (int j = 0; j < W24_IN_COLS; j++) {
        const float *from = m + (size_t)j * place;
        vf m0 = v_load(from), m1 = v_load(from + W24_IN_COLS * place),
           m3 = v_load(from + 3 * W24_IN_COLS * place);
        if (doubled) {
            r[0][j] = v_add(m0, m1);
            r[1][j] = v_sub(m1, m3);
        } else {
            vf m2 = v_load(from + 2 * W24_IN_COLS * place);
            r[0][j] = v_add(m0, v_add(m1, m2));
            r[1][j] = v_sub(v_sub(m1, m2), m3);
        }
    }
#pragma GCC unroll 2
    for (int i = 0; i < W24_ROWS; i++, z += W24_COLS) {
        const vf *d = r[i];
        if (doubled) {
            z[0] = v_add(v_add(d[0], d[1]), base);
            z[1] = v_add(v_sub(d[1], d[2]), base);
            z[2] = v_add(v_add(d[3], d[4]), base);
            z[3] = v_add(v_sub(d[4], d[5]), base);
            continue;
        }
        vf sum_a = v_add(d[1], d[2]), sum_b = v_add(d[3], d[4]), less_a = v_sub(d[1], d[2]),
           less_b = v_sub(d[3], d[4]);
        z[0] = v_add(v_add(d[0], base), v_add(sum_a, sum_b));
        z[1] = v_fma(less_a, v_set1(A), v_fma(less_b, v_set1(B), base));
        z[2] = v_fma(sum_a, v_set1(AA), v_fma(sum_b, v_set1(BB), base));
        z[3] = v_fma(less_a, v_set1(A * AA), v_fma(less_b, v_set1(B * BB), v_add(d[5], base)));
    }
}

/* Floats from one row of a tile's outputs in WORK to the next. */
enum { WORK_ROW = W24_TILES * W24_COLS * W24_PANEL };

VEC void keep_tile(const float *m, size_t place, bool doubled, float *work, bool begun)
{
    for (int h = 0; h < W24_PANEL; h += 16) {
        vf z[W24_ROWS * W24_COLS];
        outputs(m + h, place, doubled, v_zero(), z);
#pragma GCC unroll 8
        for (int i = 0; i < W24_ROWS * W24_COLS; i++) {
            float *to = work + i / W24_COLS * WORK_ROW + i % W24_COLS * W24_PANEL + h;
            v_store(to, begun ? v_add(z[i], v_load(to)) : z[i]);
        }
    }
}

/* Tile T, which is whole. */
VEC void end_tile(const float *m, size_t place, bool doubled, const float *work, bool begun,
                  const struct w24_end *e, int t)
{
    vf lo[W24_ROWS * W24_COLS], hi[W24_ROWS * W24_COLS];
    outputs(m, place, doubled, v_load(e->base[t]), lo);
    outputs(m + 16, place, doubled, v_load(e->base[t] + 16), hi);
    char *y = e->y + e->at[t] * e->y_column;
    const char *residual = e->residual ? e->residual + e->at[t] * e->residual_column : NULL;
#pragma GCC unroll 8
    for (int i = 0; i < W24_ROWS * W24_COLS; i++) {
        const size_t row = (size_t)(i / W24_COLS), column = (size_t)(i % W24_COLS);
        if (begun) {
            const float *sums = work + row * WORK_ROW + column * W24_PANEL;
            lo[i] = v_add(lo[i], v_load(sums));
            hi[i] = v_add(hi[i], v_load(sums + 16));
        }
        if (residual) {
            const char *from = residual + row * e->residual_row + column * e->residual_column;
            lo[i] = v_add(lo[i], v_load_bf16(from));
            hi[i] = v_add(hi[i], v_load_bf16(from + 32));
        }
        char *to = y + row * e->y_row + column * e->y_column;
        if (e->stream)
            _mm512_stream_si512((__m512i *)(void *)to, vb_narrow(lo[i], hi[i]));
        else
            _mm512_storeu_si512(to, vb_narrow(lo[i], hi[i]));
    }
}

/* Asks for what the Jth of the next tiles' rows will meet in y and in the residual. */
VEC void ask(const struct w24_end *e, int t, int j)
{
    const int tile = t + j / W24_ROWS;
    if (j >= W24_TOGETHER * W24_ROWS || !(e->whole >> tile & 1))
        return;
    const char *y = e->y + e->at[tile] * e->y_column + (size_t)(j % W24_ROWS) * e->y_row;
    for (int i = 0; i < W24_COLS && !e->stream; i++, y += e->y_column)
        ask_to_write(y);
    if (!e->residual)
        return;
    const char *r = e->residual + e->at[tile] * e->residual_column + (size_t)(j % W24_ROWS) * e->residual_row;
    for (int i = 0; i < W24_COLS; i++, r += e->residual_column)
        __builtin_prefetch(r, 0, 2);
}

VEC void product_as(const struct w24_product *p, bool doubled)
{
    const size_t place = (size_t)W24_TOGETHER * W24_PANEL;
    const char *coming = p->coming;
    for (int t = 0; t < p->tiles; t += W24_TOGETHER) {
        for (int j = 0; j < W24_PLACES; j++) {
            if (p->end)
                ask(p->end, t, j);
            if (doubled && j / W24_IN_COLS == W24_DOUBLED_ZERO)
                continue;
            multiply(p->v + (size_t)j * p->v_place + t * W24_LINE, p->u + (size_t)j * p->u_place, p->channels,
                     p->m + (size_t)j * place, coming, p->coming_lines);
            coming += (size_t)(p->channels / W24_STEP * p->coming_lines) * 64;
        }
        for (int i = t; i < t + W24_TOGETHER && i < p->tiles; i++) {
            const float *m = p->m + (size_t)(i - t) * W24_PANEL;
            float *work = p->work + (size_t)i * W24_COLS * W24_PANEL;
            if (p->end && p->end->whole >> i & 1)
                end_tile(m, place, doubled, work, p->begun, p->end, i);
            else
                keep_tile(m, place, doubled, work, p->begun);
        }
    }
}

static void product(const struct w24_product *p)
{
    if (p->doubled)
        product_as(p, true);
    else
        product_as(p, false);
}

const struct winograd_2x4_kernel KERNEL = {input, weights, product};
