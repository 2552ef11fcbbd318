/* The plain form of kernels/int8.h: packing, and the sums that conv2d.c and linear.c are made of where a
 * weight is in int8. */
#include "../int8.h"
#include "ref.h"

float ref_int8_most(tensor x, size_t row, size_t rows)
{
    uint32_t most = 0; /* as bits, where a NaN is greater than all numbers */
    for (size_t r = row; r < row + rows; r++)
        for (size_t i = 0; i < (size_t)x.c; i++) {
            uint32_t u = f32_bits(half_load(ref_row(x, r), x.dtype, i)) & 0x7fffffff;
            most = u > most ? u : most;
        }
    return f32_from_bits(most);
}

void ref_int8_accumulate(int32_t acc[REF_LANES], const void *x, enum dtype type, int c, const int8_t *w,
                         float inverse)
{
    for (int i = 0; i < c; i++, w += REF_LANES) {
        int q = int8_of(half_load(x, type, (size_t)i), inverse);
        for (int j = 0; j < REF_LANES; j++)
            acc[j] += q * w[j];
    }
}

void ref_int8_scaled(float acc[REF_LANES], const int32_t sum[REF_LANES], const weight *w, int block,
                     float scale)
{
    const float *output = ref_int8_scale(w, block);
    for (int j = 0; j < REF_LANES; j++)
        acc[j] = (float)sum[j] * output[j] * scale;
}

static void pack_lane(weight *w, const struct weight_source *src, int block, int lane)
{
    int o = ref_lane_output(w, block, lane), part_c = src->out_c / src->parts;
    if (o < 0)
        return;
    const struct host_array *a = &src->w[o / part_c], *bias = &src->bias[o / part_c];
    size_t taps = (size_t)w->kh * (size_t)w->kw, count = (size_t)w->in_c * taps;
    size_t first = (size_t)(o % part_c) * count;
    uint32_t most = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t u = f32_bits(half_load(a->data, a->dtype, first + i)) & 0x7fffffff;
        most = u > most ? u : most;
    }
    struct int8_scale s = int8_scale_of(f32_from_bits(most));
    ref_int8_scale(w, block)[lane] = s.scale;
    for (size_t i = 0; i < count; i++) {
        int8_t *to = ref_int8_block(w, block, (int)(i % taps));
        to[i / taps * REF_LANES + (size_t)lane] = int8_of(half_load(a->data, a->dtype, first + i), s.inverse);
    }
    if (bias->data)
        ref_bias(w, block)[lane] = half_load(bias->data, bias->dtype, (size_t)(o % part_c));
}

int ref_int8_pack(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    size_t lanes = (size_t)ref_blocks(w) * REF_LANES;
    size_t bytes = lanes * (2 * sizeof(float) + (size_t)w->in_c * (size_t)w->kh * (size_t)w->kw);
    int rc = be->mem_alloc(be, bytes, &w->packed, err);
    if (rc)
        return rc;
    w->bytes = bytes;
    memset(w->packed, 0, bytes);
    for (int block = 0; block < ref_blocks(w); block++)
        for (int lane = 0; lane < REF_LANES; lane++)
            pack_lane(w, src, block, lane);
    return 0;
}
