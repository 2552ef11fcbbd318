/* What rounding V and U to bf16 once each may cost: every product U V is off by 0.41 * 2^-8 of itself for
 * each of the two in the mean square. */
#include "winograd.h"

#include <math.h>
#include <string.h>

/* F(4, 3) by the theorem of Cook and Toom: polynomials are multiplied at five points, their heads apart. */
enum { PLACES = 6, OUT = 4 };
static const double point[PLACES - 1] = {0, 0.65, -0.65, 1 / 0.65, -1 / 0.65};

/* The coefficients of the product of (x - point) over all points but the one at PLACE, for which V is a sum
 * of inputs, lowest first; PLACE = PLACES - 1: over all points. */
static void coefficients(int place, double c[PLACES])
{
    int degree = 0;
    memset(c, 0, PLACES * sizeof *c);
    c[0] = 1;
    for (int i = 0; i < PLACES - 1; i++) {
        if (i == place)
            continue;
        degree++;
        for (int k = degree; k >= 0; k--)
            c[k] = (k ? c[k - 1] : 0) - point[i] * c[k];
    }
}

/* Squares of V of the outputs X0 to X0 + 3 of row Y: [3 rows of the kernel][c][PLACES]. */
static void squares_of_inputs(struct array x, int n, int y, int x0, float *v)
{
    double c[PLACES][PLACES];
    for (int j = 0; j < PLACES; j++)
        coefficients(j, c[j]);
    for (int i = 0; i < 3 * x.c; i++, v += PLACES) {
        int iy = y - 1 + i / x.c, ch = i % x.c;
        double d[PLACES] = {0};
        for (int j = 0; j < PLACES; j++) {
            int ix = x0 - 1 + j;
            if (iy >= 0 && iy < x.h && ix >= 0 && ix < x.w)
                d[j] = x.v[((size_t)(n * x.h + iy) * (size_t)x.w + (size_t)ix) * (size_t)x.c + (size_t)ch];
        }
        for (int j = 0; j < PLACES; j++) {
            double sum = 0;
            for (int k = 0; k < PLACES; k++)
                sum += c[j][k] * d[k];
            v[j] = (float)(sum * sum);
        }
    }
}

/* U of three weights side by side. */
static void weight_places(const float g[3], double u[PLACES])
{
    for (int j = 0; j < PLACES - 1; j++) {
        u[j] = g[0] + point[j] * (g[1] + point[j] * g[2]);
        for (int k = 0; k < PLACES - 1; k++)
            u[j] /= k == j ? 1 : point[j] - point[k];
    }
    u[PLACES - 1] = g[2];
}

/* Squares of U: [o][3 rows of the kernel][c][PLACES]. */
static float *squares_of_weights(struct check *ck, struct array w)
{
    float *u = case_alloc(ck, (size_t)w.n * (size_t)w.h * 3 * PLACES * sizeof *u);
    for (int i = 0; i < w.n * w.h * 3; i++) {
        int o = i / 3 / w.h, c = i / 3 % w.h, row = i % 3;
        float *to = u + (((size_t)o * 3 + (size_t)row) * (size_t)w.h + (size_t)c) * PLACES;
        double value[PLACES];
        weight_places(w.v + (size_t)i * 3, value);
        for (int j = 0; j < PLACES; j++)
            to[j] = (float)(value[j] * value[j]);
    }
    return u;
}

/* SUM[j] = the sum of v[i][j] * u[i][j] over COUNT i. Most of a case's time: not worth instrumenting in a
 * test. */
__attribute__((no_sanitize("address", "undefined"))) static void
sum_squares(int count, int places, const float *v, const float *u, float *sum)
{
    memset(sum, 0, (size_t)places * sizeof *sum);
    for (int i = 0; i < count; i++, v += places, u += places)
        for (int j = 0; j < places; j++)
            sum[j] += v[j] * u[j];
}

/* Squares of what the places count in output r: the rth power of the point. */
static void squares_of_powers(double power[OUT][PLACES])
{
    for (int r = 0; r < OUT; r++) {
        for (int j = 0; j < PLACES - 1; j++)
            power[r][j] = pow(point[j], 2 * r);
        power[r][PLACES - 1] = r == OUT - 1;
    }
}

/* Six deviations of an output, in roots of the sum of its products' squares: each is off by 0.41 * 2^-8 of
 * itself twice. */
static double deviations(bool activated)
{
    return 6 * 0.41 * 0x1p-8 * sqrt(2) * (activated ? 1.13 : 1);
}

/* Adds to BOUND what rounding V and U to bf16 once each may cost: every product U V is off by 0.41 * 2^-8 of
 * itself for each of the two in the mean square, and output r adds them, times the rth power of the point.
 * Six deviations of that sum. */
void add_winograd_rows_error(struct check *ck, struct array x, struct array w, bool activated,
                             struct array bound)
{
    const int c = x.c, outputs = bound.c, across = (bound.w + OUT - 1) / OUT;
    const float *u = squares_of_weights(ck, w);
    float *v = case_alloc(ck, (size_t)c * 3 * PLACES * sizeof *v);
    double power[OUT][PLACES];
    squares_of_powers(power);
    const double times = deviations(activated);
    for (int t = 0; t < bound.n * bound.h * across; t++) {
        int line = t / across, x0 = t % across * OUT;
        squares_of_inputs(x, line / bound.h, line % bound.h, x0, v);
        for (int o = 0; o < outputs; o++) {
            float sum[PLACES],
                *to = bound.v + ((size_t)line * (size_t)bound.w + (size_t)x0) * (size_t)outputs + o;
            sum_squares(c * 3, PLACES, v, u + (size_t)o * (size_t)c * 3 * PLACES, sum);
            for (int r = 0; r < OUT && x0 + r < bound.w; r++, to += outputs) {
                double all = 0;
                for (int j = 0; j < PLACES; j++)
                    all += power[r][j] * sum[j];
                *to += (float)(times * sqrt(all));
            }
        }
    }
}

/* ---- F(2x4, 3x3): F(2, 3) with the points 0, 1, -1 down the columns, nested with the above ---- */

enum { ROWS = 2, ROW_PLACES = 4, ALL_PLACES = ROW_PLACES * PLACES };

/* Row R of column X of the picture, or of it doubled; zero beyond. */
static double input_at(struct array x, bool doubled, int n, int iy, int ix, int c)
{
    const int shift = doubled ? 1 : 0;
    if (iy < 0 || iy >= x.h << shift || ix < 0 || ix >= x.w << shift)
        return 0;
    return x.v[((size_t)(n * x.h + (iy >> shift)) * (size_t)x.w + (size_t)(ix >> shift)) * (size_t)x.c +
               (size_t)c];
}

/* V along a row of doubled columns: F(2, 3) twice. */
static void doubled_inputs(struct array x, int n, int iy, int x0, int c, double v[PLACES])
{
    for (int j = 0; j < 2; j++) {
        const double a = input_at(x, true, n, iy, x0 - 1 + 2 * j, c),
                     b = input_at(x, true, n, iy, x0 + 2 * j, c),
                     d = input_at(x, true, n, iy, x0 + 2 + 2 * j, c);
        v[3 * j] = a - b;
        v[3 * j + 1] = b;
        v[3 * j + 2] = b - d;
    }
}

/* U of it. */
static void doubled_weights(const float g[3], double u[PLACES])
{
    for (int j = 0; j < 2; j++) {
        u[3 * j] = g[0];
        u[3 * j + 1] = (double)g[0] + g[1] + g[2];
        u[3 * j + 2] = g[2];
    }
}

/* Squares of V of the outputs from row Y and column X0 on: [c][ALL_PLACES]. */
static void squares_of_tile(struct array x, bool doubled, int n, int y, int x0, float *v)
{
    double c[PLACES][PLACES];
    for (int j = 0; j < PLACES; j++)
        coefficients(j, c[j]);
    for (int ch = 0; ch < x.c; ch++, v += ALL_PLACES) {
        double d[ROW_PLACES][PLACES] = {{0}};
        for (int i = 0; i < ROW_PLACES; i++)
            for (int k = 0; k < PLACES; k++) {
                const double at = input_at(x, doubled, n, y - 1 + i, x0 - 1 + k, ch);
                for (int j = 0; j < PLACES; j++)
                    d[i][j] += c[j][k] * at;
            }
        for (int i = 0; doubled && i < ROW_PLACES; i++)
            doubled_inputs(x, n, y - 1 + i, x0, ch, d[i]);
        for (int j = 0; j < PLACES; j++) {
            const double down[ROW_PLACES] = {d[0][j] - d[2][j], d[1][j] + d[2][j], d[2][j] - d[1][j],
                                             d[1][j] - d[3][j]};
            for (int i = 0; i < ROW_PLACES; i++)
                v[i * PLACES + j] = (float)(down[i] * down[i]);
        }
    }
}

/* Squares of U: [o][c][ALL_PLACES]. */
static float *squares_of_kernels(struct check *ck, struct array w, bool doubled)
{
    float *u = case_alloc(ck, (size_t)w.n * (size_t)w.h * ALL_PLACES * sizeof *u), *to = u;
    for (int i = 0; i < w.n * w.h; i++, to += ALL_PLACES) {
        double g[3][PLACES];
        for (int r = 0; r < 3; r++)
            (doubled ? doubled_weights : weight_places)(w.v + ((size_t)i * 3 + (size_t)r) * 3, g[r]);
        for (int j = 0; j < PLACES; j++) {
            const double down[ROW_PLACES] = {g[0][j], (g[0][j] + g[1][j] + g[2][j]) / 2,
                                             (g[0][j] - g[1][j] + g[2][j]) / 2, g[2][j]};
            for (int k = 0; k < ROW_PLACES; k++)
                to[k * PLACES + j] = (float)(down[k] * down[k]);
        }
    }
    return u;
}

void add_winograd_2x4_error(struct check *ck, struct array x, struct array w, bool doubled, bool activated,
                            struct array bound)
{
    static const double down[ROWS][ROW_PLACES] = {{1, 1, 1, 0}, {0, 1, 1, 1}};
    const int c = x.c, outputs = bound.c, across = (bound.w + OUT - 1) / OUT,
              rows = (bound.h + ROWS - 1) / ROWS;
    const float *u = squares_of_kernels(ck, w, doubled);
    float *v = case_alloc(ck, (size_t)c * ALL_PLACES * sizeof *v);
    double power[OUT][PLACES];
    squares_of_powers(power);
    if (doubled)
        memcpy(power, (double[OUT][PLACES]){{1, 1}, {0, 1, 1}, {0, 0, 0, 1, 1}, {0, 0, 0, 0, 1, 1}},
               sizeof power);
    const double times = deviations(activated);
    for (int t = 0; t < bound.n * rows * across; t++) {
        const int x0 = t % across * OUT, y0 = t / across % rows * ROWS, n = t / across / rows;
        squares_of_tile(x, doubled, n, y0, x0, v);
        for (int o = 0; o < outputs; o++) {
            float sum[ALL_PLACES];
            sum_squares(c, ALL_PLACES, v, u + (size_t)o * (size_t)c * ALL_PLACES, sum);
            for (int k = 0; k < ROWS * OUT; k++) {
                const int iy = y0 + k / OUT, ix = x0 + k % OUT;
                double all = 0;
                for (int j = 0; j < ALL_PLACES; j++)
                    all += down[k / OUT][j / PLACES] * power[k % OUT][j % PLACES] * sum[j];
                if (iy < bound.h && ix < bound.w)
                    bound.v[((size_t)(n * bound.h + iy) * (size_t)bound.w + (size_t)ix) * (size_t)outputs +
                            (size_t)o] += (float)(times * sqrt(all));
            }
        }
    }
}
