/* torch.nn.Linear over the channels: x [N, H, W, I] -> y [N, H, W, O]. With WEIGHT_GEGLU, diffusers' GEGLU:
 * the rows of the weight are [value; gate] and y [N, H, W, O/2] = value * gelu(gate), exact gelu. Epilogue in
 * this order: bias, activation or gate, residual; one rounding at the store. */
#include "../int8.h"
#include "ref.h"

/* acc = x w + bias for one row and one block. */
static void linear_sum(tensor x, size_t row, const weight *w, int block, float acc[REF_LANES])
{
    const float *bias = ref_bias(w, block);
    for (int j = 0; j < REF_LANES; j++)
        acc[j] = 0;
    if (w->int8) {
        int32_t sum[REF_LANES] = {0};
        struct int8_scale s = int8_scale_of(ref_int8_most(x, row, 1));
        ref_int8_accumulate(sum, ref_row(x, row), x.dtype, x.c, ref_int8_block(w, block, 0), s.inverse);
        ref_int8_scaled(acc, sum, w, block, s.scale);
    } else {
        ref_accumulate(acc, ref_row(x, row), x.dtype, x.c, ref_block(w, block, 0));
    }
    for (int j = 0; j < REF_LANES; j++)
        acc[j] += bias[j];
}

static void linear_store(tensor y, size_t row, int block, const float v[REF_LANES], tensor residual)
{
    for (int j = 0; j < REF_LANES; j++) {
        size_t o = (size_t)(block * REF_LANES + j);
        if ((int)o >= y.c)
            break;
        float r = residual.data ? half_load(ref_row(residual, row), residual.dtype, o) : 0.0f;
        half_store(ref_row(y, row), y.dtype, o, v[j] + r);
    }
}

int ref_linear(struct backend *be, tensor y, tensor x, const weight *w, const struct linear_args *a,
               struct error *err)
{
    (void)be;
    (void)err;
    int blocks = w->kind == WEIGHT_GEGLU ? ref_blocks(w) / 2 : ref_blocks(w);
    for (int block = 0; block < blocks; block++) {
        for (size_t row = 0; row < tensor_rows(y); row++) {
            float v[REF_LANES], gate[REF_LANES];
            linear_sum(x, row, w, block, v);
            if (w->kind == WEIGHT_GEGLU)
                linear_sum(x, row, w, blocks + block, gate);
            for (int j = 0; j < REF_LANES; j++)
                v[j] = w->kind == WEIGHT_GEGLU ? v[j] * ref_activate(ACT_GELU, gate[j])
                                               : ref_activate(a->act, v[j]);
            linear_store(y, row, block, v, a->residual);
        }
    }
    return 0;
}
