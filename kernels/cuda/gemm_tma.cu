/* Launches gemm_tma.cuh: which products it can serve, the boxes of x, and the tensor maps, which are made with every
 * command (a fraction of a microsecond each) and travel in it, so that a step compares and replays them like any other
 * argument. */
#include "gemm_tma.cuh"

#include "gemm.cuh"

/* Positions of y that follow each other and are a box of the picture, as many as are in a tile if possible. False: not
 * even eight, the rows of one of wgmma's atoms. */
static bool find_box(const struct gemm &a, struct gemm_tma *p)
{
    int out_h = a.positions / a.out_w, most = tma_128x256::BM;
    p->out_h = out_h;
    for (int count = most; count >= 8; count /= 2) {
        bool one_row = a.positions == a.rows && out_h == 1; /* what lies behind its end is zeros, and not stored */
        p->box_w = p->box_h = p->box_n = 1;
        if (one_row || a.out_w % count == 0) {
            p->box_w = count;
        } else if (count % a.out_w == 0 && out_h % (count / a.out_w) == 0) {
            p->box_w = a.out_w;
            p->box_h = count / a.out_w;
        } else if (count % a.positions == 0) {
            p->box_w = a.out_w;
            p->box_h = out_h;
            p->box_n = count / a.positions;
        } else {
            continue;
        }
        p->boxes = most / count;
        return true;
    }
    return false;
}

bool gemm_tma_serves(const struct backend *be, const struct gemm &a)
{
    struct gemm_tma p;
    return cuda_of(be)->encode_box && gemm_hopper_serves(be) && a.stride == 1 && !a.up && gemm_in_vectors(a) &&
           (uintptr_t)a.w % 16 == 0 && a.in_c == a.channels && find_box(a, &p);
}

/* A tensor of be->dtype and RANK dimensions, the innermost first; STRIDE in bytes, from the second dimension on. */
static int encode(struct backend *be, CUtensorMap *map, const void *data, cuuint32_t rank, const cuuint64_t *dim,
                  const cuuint64_t *stride, const cuuint32_t *box, struct error *err)
{
    const cuuint32_t step[] = {1, 1, 1, 1};
    auto encode_tiled = (decltype(&cuTensorMapEncodeTiled))(uintptr_t)cuda_of(be)->encode_box;
    if (!encode_tiled)
        return error_set(err, ERR_UNSUPPORTED, "the driver has no tensor maps");
    CUtensorMapDataType type =
        be->dtype == DTYPE_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    CUresult rc = encode_tiled(map, type, rank, (void *)(uintptr_t)data, dim, stride, box, step,
                               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return rc == CUDA_SUCCESS ? 0 : error_set(err, ERR_UNSUPPORTED, "cuTensorMapEncodeTiled: error %d", (int)rc);
}

/* x as [pictures, rows, positions, channels]. */
static int encode_x(struct backend *be, struct gemm_tma *p, int bk, struct error *err)
{
    const struct gemm &a = p->a;
    cuuint64_t pixel = (cuuint64_t)a.x_ld * 2, row = pixel * (cuuint64_t)a.width;
    const cuuint64_t dim[] = {(cuuint64_t)a.in_c, (cuuint64_t)a.width, (cuuint64_t)a.height,
                              (cuuint64_t)(a.rows / a.positions)};
    const cuuint64_t stride[] = {pixel, row, row * (cuuint64_t)a.height};
    const cuuint32_t box[] = {(cuuint32_t)bk, (cuuint32_t)p->box_w, (cuuint32_t)p->box_h, (cuuint32_t)p->box_n};
    return encode(be, &p->x, a.x, 4, dim, stride, box, err);
}

/* w as [outputs, taps, channels]. */
static int encode_w(struct backend *be, struct gemm_tma *p, int bk, int bn, struct error *err)
{
    const struct gemm &a = p->a;
    const cuuint64_t dim[] = {(cuuint64_t)a.channels, (cuuint64_t)(a.kh * a.kw), (cuuint64_t)a.cols};
    const cuuint64_t stride[] = {(cuuint64_t)a.channels * 2, (cuuint64_t)a.depth * 2};
    const cuuint32_t box[] = {(cuuint32_t)bk, 1, (cuuint32_t)bn};
    return encode(be, &p->w, a.w, 3, dim, stride, box, err);
}

/* The pool of registers must be what the kernel counts on: its threads would wait for more for ever. Also finds that this
 * build has no code for the GPU. */
static int check_kernel(const void *kernel, int registers, struct error *err)
{
    struct cudaFuncAttributes attr;
    cudaError_t rc = cudaFuncGetAttributes(&attr, kernel);
    if (rc != cudaSuccess) {
        (void)cudaGetLastError();
        return error_set(err, ERR_UNSUPPORTED, "%s", cudaGetErrorString(rc));
    }
    if (attr.numRegs < registers)
        return error_set(err, ERR_UNSUPPORTED, "the kernel has %d registers, not %d", attr.numRegs, registers);
    return 0;
}

template <class T, class S> static int launch_shape(struct backend *be, struct gemm_tma *p, struct error *err)
{
    static bool checked;
    static struct error why; /* of all launches of this kernel */
    void (*kernel)(struct gemm_tma) = gemm_tma_tile<T, S>;
    if (!checked)
        check_kernel((const void *)(uintptr_t)kernel, S::COPY_REGISTERS ? S::REGISTERS : 0, &why);
    checked = true;
    int rc = why.code ? error_set(err, why.code, "%s", why.msg) : 0;
    if (!rc)
        rc = encode_x(be, p, S::BK, err);
    if (!rc)
        rc = encode_w(be, p, S::BK, S::BN, err);
    dim3 grid((unsigned)p->a.tiles_m * (unsigned)p->a.tiles_n, (unsigned)p->a.splits);
    return rc ? rc : launch(be, kernel, grid, S::THREADS, (size_t)S::SHARED_BYTES, *p, err, p->failed != nullptr);
}

int gemm_tma_launch(struct backend *be, const struct gemm &a, int bn, bool trial, struct error *err)
{
    struct gemm_tma p;
    memset(&p, 0, sizeof p); /* commands are compared byte by byte, what lies behind the last field too */
    p.a = a;
    p.failed = trial ? cuda_trial_flag(be) : nullptr;
    if (!find_box(a, &p))
        return error_set(err, ERR_UNSUPPORTED, "a picture of %d columns is not in boxes", a.out_w);
    bool f16_here = be->dtype == DTYPE_F16;
    if (bn == tma_128x256::BN)
        return f16_here ? launch_shape<f16, tma_128x256>(be, &p, err) : launch_shape<bf16, tma_128x256>(be, &p, err);
    return f16_here ? launch_shape<f16, tma_128x128>(be, &p, err) : launch_shape<bf16, tma_128x128>(be, &p, err);
}
