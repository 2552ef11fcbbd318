/* Convolutions and linear layers in int8 (kernels/int8.h) on the CPU: what a tier brings for them. All tiers
 * that have int8 share the layout of weights and the row functions, which need AVX-512. */
#ifndef LATENTD_CPU_INT8_H
#define LATENTD_CPU_INT8_H

#include "gemm.h"

/* Outputs of a panel; channels are padded to whole cache lines. */
enum { INT8_NR = 32, INT8_UNIT = 64 };

/* A packed weight: this header, bias, scale and offset of each output, and the panels, each
 * [tap][channels / 4][INT8_NR][4]. The offset is 128 times the sum of an output's weights: what VPDPBUSD sums
 * too much, whose inputs are numbers + 128. The first member is what gemm_finish() reads. */
struct int8_weight {
    struct cpu_weight w;
    size_t scale, offset; /* byte offsets from the header: float, int32_t [panels * INT8_NR] */
};

static inline const float *int8_scales(const struct int8_weight *w)
{
    return (const float *)(const void *)((const char *)w + w->scale);
}

static inline const int32_t *int8_offsets(const struct int8_weight *w)
{
    return (const int32_t *)(const void *)((const char *)w + w->offset);
}

/* The end of a tile: c [rows][INT8_NR] -> f, whose c has room for as many floats. */
struct int8_ending {
    struct finish f;
    const int32_t *c;
    const float *scale; /* [INT8_NR], of the outputs */
    const float *row;   /* of the inputs: row[r * step], step 0 where all rows have one */
    int step;
};

/* One call of the micro-kernel: rows x INT8_NR sums over taps * channels products. */
struct int8_tile {
    const uint8_t *a, *a_half; /* the first row; the 16th behind it */
    size_t lda;                /* bytes from one row to the next */
    const size_t *tap;         /* [taps] byte offsets added to every row */
    int taps, channels;
    const int8_t *b;
    const int32_t *offset; /* [INT8_NR], subtracted where the kernel's inputs are numbers + 128 */
    int32_t *c;            /* [rows, rounded up to what the kernel computes][INT8_NR] */
    const char *prefetch;  /* memory that will be read next */
    int prefetch_lines;    /* how much of it for each INT8_UNIT products */
    const struct int8_ending
        *pending; /* NULL, or the end of an earlier call that this one does along the way */
};

struct int8_kernel {
    const char *serves; /* for `latentd kernels` */
    uint8_t zero;       /* how 0 is stored: 0, or 128 */
    int mr;             /* most rows */
    bool pairs_halves;  /* a_half may be anywhere; otherwise it follows */
    /* Rows past the last one may be read and computed: a has memory for INT8_SLACK rows more, c for mr rows.
     */
    void (*run)(int rows, const struct int8_tile *t);
    bool (*defers)(const struct finish *f); /* whether a call can take such an end along; NULL: never */
    void (*begin)(void);                    /* around the calls of one work item on a thread; may be NULL */
    void (*end)(void);
    double (*peak)(void); /* as in struct gemm_kernel, 2 a multiply-add */
};

enum { INT8_SLACK = 32 };

/* The greatest magnitude of n numbers, as the bits of a float; at least MOST. */
uint32_t int8_row_most(const void *x, enum dtype type, int n, uint32_t most);
/* n numbers as q + zero, then zeros up to PADDED. */
void int8_row(uint8_t *dst, const void *x, enum dtype type, int n, int padded, float inverse, uint8_t zero);
/* dst[r][j] = (float)c[r][j] * scale[j] * row[r * step]; dst may be c. */
void int8_scale_rows(float *dst, const struct int8_ending *e, int rows);

extern const struct int8_kernel int8_amx, int8_amx_emulated, int8_avx512vnni, int8_avx512vnni_emulated;

int int8_run(struct backend *be, const struct gemm_args *a, struct error *err);
int int8_pack(struct backend *be, weight *w, const struct weight_source *src, struct error *err);

#endif
