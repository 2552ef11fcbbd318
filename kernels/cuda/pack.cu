/* Weights into the layouts of weights.cuh, once at load.
 *
 * The host only copies bytes: pieces of the source, as the file has them, go through pinned memory into the
 * workspace, and a kernel there converts and reorders them into their place. So the load runs at the speed of one
 * memcpy whatever the type of the file is: converting and transposing on the host would take a second more for
 * SD-Turbo (866 M numbers) and several for an fp32 file. What already lies in the right order (a linear layer in the
 * activation type) goes to its place directly.
 *
 * pack_rows: a thread makes 16 bytes of the result: 8 numbers of one row and tap. A 3x3 kernel reads them 9 numbers
 * apart; the 9 taps of the same channels hit the same lines of the level 1 cache. 16 MB are about 20 us of an H200,
 * below the 300 us that they need over PCIe. No shared memory, few registers. */
#include <stdlib.h>

#include "device.cuh"
#include "half.h"
#include "weights.cuh"

namespace {

enum { PACK_THREADS = 256 };

struct pack_args {
    const void *src; /* [rows][in_c][taps] of TYPE */
    void *dst;       /* T, at row FIRST of the packed matrix when that is not GEGLU */
    size_t vectors;  /* of 8 numbers, in all rows */
    int type, in_c, taps, channels;
    int half, first; /* GEGLU: rows of a half, and which output the first row is; otherwise half is 0 */
};

DEVICE float source_number(const struct pack_args &a, size_t i)
{
    if (a.type == DTYPE_F32)
        return ((const float *)a.src)[i];
    return a.type == DTYPE_F16 ? to_float(((const f16 *)a.src)[i]) : to_float(((const bf16 *)a.src)[i]);
}

/* Where row ROW of the source goes. */
DEVICE size_t packed_row(const struct pack_args &a, size_t row)
{
    if (!a.half)
        return row;
    size_t o = row + (size_t)a.first, gate = o >= (size_t)a.half;
    o -= gate * (size_t)a.half;
    return o / 8 * 16 + gate * 8 + o % 8;
}

template <class T> __global__ void __launch_bounds__(PACK_THREADS) pack_rows(struct pack_args a)
{
    size_t at = (size_t)blockIdx.x * PACK_THREADS + threadIdx.x;
    if (at >= a.vectors)
        return;
    size_t per_tap = (size_t)a.channels / 8, per_row = per_tap * (size_t)a.taps;
    size_t row = at / per_row, tap = at % per_row / per_tap, c = at % per_tap * 8;
    vec16 out;
    UNROLL
    for (int i = 0; i < 4; i++) {
        float v[2];
        UNROLL
        for (int j = 0; j < 2; j++) {
            size_t channel = c + (size_t)(2 * i + j);
            size_t from = (row * (size_t)a.in_c + channel) * (size_t)a.taps + tap;
            v[j] = channel < (size_t)a.in_c ? source_number(a, from) : 0.0f;
        }
        out.v[i] = pack2<T>(v[0], v[1]);
    }
    store_16((vec16 *)a.dst + packed_row(a, row) * per_row + at % per_row, out);
}

/* ROWS rows of a part, in pieces that fill one half of the pinned memory. */
int pack_part(struct backend *be, struct pack_args a, const struct host_array *from, size_t rows, struct error *err)
{
    size_t row_bytes = (size_t)a.in_c * (size_t)a.taps * dtype_size(from->dtype);
    size_t most = CUDA_STAGING / row_bytes ? CUDA_STAGING / row_bytes : 1, row_vectors = (size_t)a.channels / 8 * (size_t)a.taps;
    if (row_bytes > CUDA_WORKSPACE)
        return error_set(err, ERR_UNSUPPORTED, "a weight with %zu bytes for one output", row_bytes);
    int rc = 0;
    for (size_t row = 0; row < rows && !rc; row += most) {
        size_t count = rows - row < most ? rows - row : most;
        struct pack_args piece = a;
        piece.src = cuda_of(be)->workspace;
        piece.vectors = count * row_vectors;
        piece.type = from->dtype;
        if (a.half)
            piece.first += (int)row;
        else
            piece.dst = (vec16 *)a.dst + row * row_vectors;
        rc = cuda_upload(be, cuda_of(be)->workspace, (const char *)from->data + row * row_bytes, count * row_bytes, err);
        if (!rc)
            rc = launch(be, be->dtype == DTYPE_F16 ? pack_rows<f16> : pack_rows<bf16>,
                        dim3(blocks_of(piece.vectors, PACK_THREADS)), PACK_THREADS, 0, piece, err);
    }
    return rc;
}

/* All parts, one below the other from W->packed on, in rows of TAPS * CHANNELS. */
int pack_parts(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    struct pack_args a = {};
    a.in_c = src->in_c;
    a.taps = src->kh * src->kw;
    a.channels = (int)round_up((size_t)src->in_c, 8);
    a.half = src->kind == WEIGHT_GEGLU ? src->out_c / 2 : 0;
    size_t rows = (size_t)(src->out_c / src->parts), part_bytes = rows * (size_t)a.taps * (size_t)a.channels * 2;
    int rc = 0;
    for (int p = 0; p < src->parts && !rc; p++) {
        const struct host_array *from = &src->w[p];
        a.dst = (char *)w->packed + (size_t)p * part_bytes;
        if (from->dtype == be->dtype && a.taps == 1 && a.channels == a.in_c && !a.half)
            rc = cuda_upload(be, a.dst, from->data, part_bytes, err);
        else
            rc = pack_part(be, a, from, rows, err);
    }
    return rc;
}

/* Takes BYTES for W, all zeros. */
int pack_begin(struct backend *be, weight *w, size_t bytes, struct error *err)
{
    if (cuda_of(be)->recording)
        return error_set(err, ERR_INTERNAL, "weights packed inside a step");
    int rc = be->mem_alloc(be, bytes, &w->packed, err);
    if (rc)
        return rc;
    w->bytes = bytes;
    return cuda_check(be, cudaMemsetAsync(w->packed, 0, bytes, cuda_of(be)->stream), "clearing weights", err);
}

/* After a failure nothing is left of W. */
int pack_end(struct backend *be, weight *w, int rc)
{
    if (rc && w->packed) {
        be->mem_free(be, w->packed, w->bytes);
        w->packed = NULL;
        w->bytes = 0;
    }
    return rc;
}

/* The row of the packed matrix that computes output O. */
size_t output_row(const weight *w, int o)
{
    size_t half = (size_t)w->out_c / 2, i = (size_t)o % (half ? half : 1);
    return w->kind == WEIGHT_GEGLU ? i / 8 * 16 + (size_t)o / half * 8 + i % 8 : (size_t)o;
}

int pack_bias(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    size_t rows = matrix_rows(w);
    int part = src->out_c / src->parts;
    if (!src->bias[0].data)
        return 0;
    float *bias = (float *)calloc(rows, sizeof(float));
    if (!bias)
        return error_set(err, ERR_NOMEM, "no memory for a bias of %d", src->out_c);
    for (int o = 0; o < src->out_c; o++) {
        const struct host_array *from = &src->bias[o / part];
        bias[output_row(w, o)] = half_load(from->data, from->dtype, (size_t)(o % part));
    }
    uint16_t *half = (uint16_t *)calloc(rows, sizeof(uint16_t));
    int rc = half ? cuda_upload(be, matrix_bias(w), bias, rows * sizeof(float), err)
                  : error_set(err, ERR_NOMEM, "no memory for a bias of %d", src->out_c);
    for (size_t i = 0; i < rows && !rc; i++)
        half_store(half, be->dtype, i, bias[i]);
    if (!rc)
        rc = cuda_upload(be, matrix_bias16(w), half, rows * sizeof(uint16_t), err);
    free(half);
    free(bias);
    return rc;
}

int pack_matrix(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    int rc = pack_begin(be, w, matrix_bytes(w), err);
    if (!rc)
        rc = pack_parts(be, w, src, err);
    if (!rc)
        rc = pack_bias(be, w, src, err);
    return pack_end(be, w, rc);
}

} // namespace

extern "C" int cuda_pack_conv2d(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    return pack_matrix(be, w, src, err);
}

extern "C" int cuda_pack_linear(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    return pack_matrix(be, w, src, err);
}

/* gamma and beta: ones and zeros where the source has none. */
extern "C" int cuda_pack_norm(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    size_t count = (size_t)src->out_c, beta = round_up(count, 4), bytes = (beta + count) * sizeof(float);
    float *host = (float *)calloc(beta + count, sizeof(float));
    if (!host)
        return error_set(err, ERR_NOMEM, "no memory for a norm of %zu channels", count);
    for (size_t i = 0; i < count; i++) {
        host[i] = src->w[0].data ? half_load(src->w[0].data, src->w[0].dtype, i) : 1.0f;
        host[beta + i] = src->bias[0].data ? half_load(src->bias[0].data, src->bias[0].dtype, i) : 0.0f;
    }
    int rc = pack_begin(be, w, bytes, err);
    if (!rc)
        rc = cuda_upload(be, w->packed, host, bytes, err);
    free(host);
    return pack_end(be, w, rc);
}

extern "C" int cuda_pack_embedding(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    int rc = pack_begin(be, w, (size_t)src->out_c * embedding_stride(w) * 2, err);
    if (!rc)
        rc = pack_parts(be, w, src, err);
    return pack_end(be, w, rc);
}

extern "C" int cuda_unpack(struct backend *be, weight *w, struct error *err)
{
    (void)err;
    if (w->packed)
        be->mem_free(be, w->packed, w->bytes);
    w->packed = NULL;
    w->bytes = 0;
    return 0;
}
