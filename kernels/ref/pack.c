/* Weights as ref keeps them: fp32, outputs in blocks of REF_LANES (see ref.h). The source may be unaligned
 * and of any type; it is read once. */
#include <string.h>

#include "ref.h"

/* Where output O lies: its part, and its row in that part. */
static size_t part_row(const struct weight_source *src, int o, int *part)
{
    int rows = src->out_c / src->parts;
    *part = o / rows;
    return (size_t)(o % rows);
}

int ref_lane_output(const weight *w, int block, int lane)
{
    int half = w->kind == WEIGHT_GEGLU ? w->out_c / 2 : w->out_c;
    int blocks = (half + REF_LANES - 1) / REF_LANES;
    int o = block % blocks * REF_LANES + lane;
    return o < half ? block / blocks * half + o : -1;
}

static void pack_lane(weight *w, const struct weight_source *src, int block, int lane)
{
    int o = ref_lane_output(w, block, lane), taps = w->kh * w->kw, part = 0;
    if (o < 0)
        return;
    size_t row = part_row(src, o, &part);
    for (int tap = 0; tap < taps; tap++) {
        float *dst = ref_block(w, block, tap);
        for (int i = 0; i < w->in_c; i++) {
            size_t at = (row * (size_t)w->in_c + (size_t)i) * (size_t)taps + (size_t)tap;
            dst[i * REF_LANES + lane] = half_load(src->w[part].data, src->w[part].dtype, at);
        }
    }
    if (src->bias[part].data)
        ref_bias(w, block)[lane] = half_load(src->bias[part].data, src->bias[part].dtype, row);
}

/* Takes the memory, zeroed. The shape fields of W are set already. */
static int pack_begin(struct backend *be, weight *w, size_t floats, struct error *err)
{
    size_t bytes = floats * sizeof(float);
    int rc = be->mem_alloc(be, bytes, &w->packed, err);
    if (rc)
        return rc;
    w->bytes = bytes;
    memset(w->packed, 0, bytes);
    return 0;
}

static int pack_matrix(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    if (w->int8)
        return ref_int8_pack(be, w, src, err);
    size_t blocks = (size_t)ref_blocks(w), taps = (size_t)w->kh * (size_t)w->kw;
    int rc = pack_begin(be, w, blocks * REF_LANES * (taps * (size_t)w->in_c + 1), err);
    for (size_t b = 0; b < blocks && !rc; b++)
        for (int lane = 0; lane < REF_LANES; lane++)
            pack_lane(w, src, (int)b, lane);
    return rc;
}

int ref_pack_conv2d(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    return pack_matrix(be, w, src, err);
}

int ref_pack_linear(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    return pack_matrix(be, w, src, err);
}

/* gamma [O], beta [O]: ones and zeros where the source has none. */
int ref_pack_norm(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    int rc = pack_begin(be, w, 2 * (size_t)src->out_c, err);
    if (rc)
        return rc;
    float *gamma = w->packed, *beta = gamma + src->out_c;
    for (int i = 0; i < src->out_c; i++) {
        gamma[i] = src->w[0].data ? half_load(src->w[0].data, src->w[0].dtype, (size_t)i) : 1.0f;
        beta[i] = src->bias[0].data ? half_load(src->bias[0].data, src->bias[0].dtype, (size_t)i) : 0.0f;
    }
    return 0;
}

/* table [rows = O, C = I]. */
int ref_pack_embedding(struct backend *be, weight *w, const struct weight_source *src, struct error *err)
{
    size_t count = (size_t)src->out_c * (size_t)src->in_c;
    int rc = pack_begin(be, w, count, err);
    if (rc)
        return rc;
    float *table = w->packed;
    for (size_t i = 0; i < count; i++)
        table[i] = half_load(src->w[0].data, src->w[0].dtype, i);
    return 0;
}

/* Also right for any backend whose pack functions take w->packed from be->mem_alloc. */
int ref_unpack(struct backend *be, weight *w, struct error *err)
{
    (void)err;
    if (w->packed)
        be->mem_free(be, w->packed, w->bytes);
    w->packed = NULL;
    w->bytes = 0;
    return 0;
}
