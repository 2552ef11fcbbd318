/* Ops that only move numbers: concat_channels, upsample_nearest, repeat_batch, from_host, to_host, to_rgb8.
 *
 * A thread takes one piece of 16 bytes wherever addresses and widths allow it and the types are the same;
 * otherwise one number, converted on the way. upsample_nearest and repeat_batch read each piece once and
 * write it several times. Blocks of 256 threads, no shared memory, about 30 registers: eight blocks a
 * multiprocessor keep 32 KB under way.
 *
 * Bytes: 1 read and 1 write of the output; the largest in SD-Turbo 512 is the concatenation to 64 x 64 x
 * 960, 7.9 MB each way. Between host and device numbers go as fp32: through the workspace, a chunk at a time,
 * where the tensor is not contiguous fp32 itself. A picture of 512 x 512 is one chunk. */
#include "rows.cuh"

namespace {

enum {
    THREADS = 256,
    CHUNK = 1 << 20, /* bytes between host and device at a time: small enough that a test gets beyond it */
    WORD = 4         /* bytes of a picture that a thread makes */
};
static_assert((size_t)CHUNK + WORD <= CUDA_WORKSPACE, "a chunk lies in the workspace");

/* ---- concat_channels ---- */

struct concat_args {
    void *y;
    const void *a, *b;
    size_t y_ld, a_ld, b_ld; /* numbers, of 16 bits where they are pieces */
    size_t items, columns;   /* pieces or numbers: in all, in a row of y */
    size_t from_b;           /* the first one in a row that comes from b */
    int y_type, a_type, b_type;
};

template <bool PIECES> __global__ void __launch_bounds__(THREADS) concat_rows(concat_args a)
{
    size_t item = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (item >= a.items)
        return;
    size_t row, column;
    find_item(item, a.columns, &row, &column);
    bool second = column >= a.from_b;
    const void *x = second ? a.b : a.a;
    size_t from = second ? column - a.from_b : column, ld = second ? a.b_ld : a.a_ld;
    if (PIECES)
        store_16((uint16_t *)a.y + row * a.y_ld + column * 8,
                 load_16((const uint16_t *)x + row * ld + from * 8));
    else
        store_any(a.y, a.y_type, row * a.y_ld + column,
                  load_any(x, second ? a.b_type : a.a_type, row * ld + from));
}

} // namespace

int cuda_concat_channels(struct backend *be, tensor y, tensor a, tensor b, struct error *err)
{
    concat_args c;
    memset(&c, 0, sizeof c);
    c.y = y.data;
    c.a = a.data;
    c.b = b.data;
    c.y_ld = (size_t)y.ld;
    c.a_ld = (size_t)a.ld;
    c.b_ld = (size_t)b.ld;
    c.y_type = y.dtype;
    c.a_type = a.dtype;
    c.b_type = b.dtype;
    bool pieces = y.dtype != DTYPE_F32 && y.dtype == a.dtype && y.dtype == b.dtype && a.c % 8 == 0 &&
                  b.c % 8 == 0 && rows_aligned(y) && rows_aligned(a) && rows_aligned(b);
    size_t width = pieces ? 8 : 1;
    c.columns = (size_t)y.c / width;
    c.from_b = (size_t)a.c / width;
    c.items = tensor_rows(y) * c.columns;
    return launch(be, pieces ? concat_rows<true> : concat_rows<false>, blocks_of(c.items, THREADS), THREADS,
                  0, c, err);
}

namespace {

/* ---- repeat_batch and plain copies, upsample_nearest ---- */

struct copy_args {
    void *y;
    const void *x;
    size_t y_ld, x_ld;     /* bytes where they are pieces, numbers otherwise */
    size_t items, columns; /* pieces or numbers of x: in all, in a row */
    size_t rows;           /* of x */
    int times;             /* repeat_batch: copies */
    int h, w, y_h, y_w;    /* upsample_nearest: of x and of y */
    int y_type, x_type;
};

/* A piece or a number of x, on its way. */
template <bool PIECES> struct cargo {
    vec16 bytes;
    DEVICE cargo(const copy_args &a, size_t row, size_t column)
        : bytes(load_16((const char *)a.x + row * a.x_ld + column * 16))
    {
    }
    DEVICE void put(const copy_args &a, size_t row, size_t column) const
    {
        store_16((char *)a.y + row * a.y_ld + column * 16, bytes);
    }
};

template <> struct cargo<false> {
    float number;
    DEVICE cargo(const copy_args &a, size_t row, size_t column)
        : number(load_any(a.x, a.x_type, row * a.x_ld + column))
    {
    }
    DEVICE void put(const copy_args &a, size_t row, size_t column) const
    {
        store_any(a.y, a.y_type, row * a.y_ld + column, number);
    }
};

template <bool PIECES> __global__ void __launch_bounds__(THREADS) repeat_rows(copy_args a)
{
    size_t item = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (item >= a.items)
        return;
    size_t row, column;
    find_item(item, a.columns, &row, &column);
    cargo<PIECES> x(a, row, column);
    for (int i = 0; i < a.times; i++)
        x.put(a, row + (size_t)i * a.rows, column);
}

/* The first of Y rows that is read from row H of X; with H = X their end. */
DEVICE int first_copy(int h, int x, int y)
{
    return (h * y + x - 1) / x;
}

template <bool PIECES> __global__ void __launch_bounds__(THREADS) upsample_rows(copy_args a)
{
    size_t item = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (item >= a.items)
        return;
    size_t row, column;
    find_item(item, a.columns, &row, &column);
    int w = (int)(row % (size_t)a.w), h = (int)(row / (size_t)a.w % (size_t)a.h);
    size_t n = row / (size_t)a.w / (size_t)a.h;
    cargo<PIECES> x(a, row, column);
    const int i_end = first_copy(h + 1, a.h, a.y_h), j_end = first_copy(w + 1, a.w, a.y_w);
    for (int i = first_copy(h, a.h, a.y_h); i < i_end; i++)
        for (int j = first_copy(w, a.w, a.y_w); j < j_end; j++)
            x.put(a, (n * (size_t)a.y_h + (size_t)i) * (size_t)a.y_w + (size_t)j, column);
}

/* Fills A; whether pieces will do. ONE_ROW: rows without gaps may be seen as one. */
static bool copy_setup(copy_args *a, tensor y, tensor x, bool one_row)
{
    size_t size = dtype_size(x.dtype);
    memset(a, 0, sizeof *a);
    a->y = y.data;
    a->x = x.data;
    a->y_type = y.dtype;
    a->x_type = x.dtype;
    a->h = x.h;
    a->w = x.w;
    a->y_h = y.h;
    a->y_w = y.w;
    a->rows = tensor_rows(x);
    a->columns = (size_t)x.c;
    a->x_ld = (size_t)x.ld;
    a->y_ld = (size_t)y.ld;
    if (one_row && rows_touch(x) && rows_touch(y)) {
        a->columns *= a->rows;
        a->x_ld = a->y_ld = a->columns;
        a->rows = 1;
    }
    bool pieces = x.dtype == y.dtype && (uintptr_t)x.data % 16 == 0 && (uintptr_t)y.data % 16 == 0 &&
                  a->columns * size % 16 == 0 && a->x_ld * size % 16 == 0 && a->y_ld * size % 16 == 0;
    if (pieces) {
        a->columns = a->columns * size / 16;
        a->x_ld *= size;
        a->y_ld *= size;
    }
    a->items = a->rows * a->columns;
    return pieces;
}

} // namespace

int cuda_repeat_batch(struct backend *be, tensor y, tensor x, struct error *err)
{
    copy_args a;
    bool pieces = copy_setup(&a, y, x, true);
    a.times = y.n / x.n;
    return launch(be, pieces ? repeat_rows<true> : repeat_rows<false>, blocks_of(a.items, THREADS), THREADS,
                  0, a, err);
}

int cuda_upsample_nearest(struct backend *be, tensor y, tensor x, struct error *err)
{
    copy_args a;
    bool pieces = copy_setup(&a, y, x, false);
    return launch(be, pieces ? upsample_rows<true> : upsample_rows<false>, blocks_of(a.items, THREADS),
                  THREADS, 0, a, err);
}

namespace {

/* ---- Between host and device ---- */

/* A stretch of a tensor: some rows, or a part of one. */
struct stretch {
    size_t first; /* of the tensor's numbers, counted without gaps */
    size_t count;
    size_t at; /* where it starts in memory, in numbers */
    size_t rows, width;
};

/* The stretch of X that starts at number FIRST and has at most MOST numbers: whole rows where one fits. */
static struct stretch next_stretch(tensor x, size_t first, size_t most)
{
    size_t c = rows_touch(x) ? tensor_count(x) : (size_t)x.c, rows = tensor_count(x) / c;
    size_t row = first / c, column = first % c;
    struct stretch s = {first, 0, row * (size_t)x.ld + column, 1, c - column};
    if (column > 0 || c > most)
        s.width = least(s.width, most);
    else
        s.rows = least(rows - row, most / c);
    s.count = s.rows * s.width;
    return s;
}

struct host_args {
    void *y; /* contiguous when X is the tensor, and the other way round */
    const void *x;
    size_t y_ld, x_ld, width, count;
    int y_type, x_type;
};

__global__ void __launch_bounds__(THREADS) host_rows(host_args a)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.count)
        return;
    size_t row, at;
    find_item(i, a.width, &row, &at);
    store_any(a.y, a.y_type, row * a.y_ld + at, load_any(a.x, a.x_type, row * a.x_ld + at));
}

/* diffusers: (x / 2 + 0.5).clamp(0, 1), then (x * 255).round(), half to even. The first step is exact in fp32
 * up to its one rounding, so a fused product changes nothing. A NaN becomes 0. */
DEVICE uint32_t rgb_byte(float x)
{
    float v = fminf(fmaxf(x * 0.5f + 0.5f, 0.0f), 1.0f);
    return (uint32_t)rintf(v * 255.0f);
}

/* y: bytes, contiguous, with room for the last whole word. */
__global__ void __launch_bounds__(THREADS) rgb_words(host_args a)
{
    size_t first = ((size_t)blockIdx.x * THREADS + threadIdx.x) * WORD;
    if (first >= a.count)
        return;
    uint32_t word = 0;
    UNROLL
    for (int k = 0; k < WORD; k++) {
        size_t i = first + (size_t)k, row, at;
        if (i >= a.count)
            break;
        find_item(i, a.width, &row, &at);
        word |= rgb_byte(load_any(a.x, a.x_type, row * a.x_ld + at)) << (8 * k);
    }
    ((uint32_t *)a.y)[first / WORD] = word;
}

static int no_step(struct backend *be, const char *op, struct error *err)
{
    if (!cuda_of(be)->recording)
        return 0;
    return error_set(err, ERR_INTERNAL, "%s inside a step", op);
}

static char *number_address(tensor x, size_t at)
{
    return (char *)x.data + at * dtype_size(x.dtype);
}

static host_args stretch_args(const struct stretch *s)
{
    host_args a;
    memset(&a, 0, sizeof a);
    a.width = a.x_ld = a.y_ld = s->width;
    a.count = s->count;
    return a;
}

} // namespace

int cuda_from_host(struct backend *be, tensor y, const float *host, struct error *err)
{
    int rc = no_step(be, "from_host", err);
    if (!rc && y.dtype == DTYPE_F32 && rows_touch(y))
        return cuda_upload(be, y.data, host, tensor_count(y) * sizeof(float), err);
    void *room = cuda_of(be)->workspace;
    for (size_t first = 0; !rc && first < tensor_count(y);) {
        struct stretch s = next_stretch(y, first, CHUNK / sizeof(float));
        host_args a = stretch_args(&s);
        a.y = number_address(y, s.at);
        a.y_type = y.dtype;
        a.y_ld = (size_t)y.ld;
        a.x = room;
        a.x_type = DTYPE_F32;
        rc = cuda_upload(be, room, host + first, s.count * sizeof(float), err);
        if (!rc)
            rc = launch(be, host_rows, blocks_of(s.count, THREADS), THREADS, 0, a, err);
        first += s.count;
    }
    return rc;
}

int cuda_to_host(struct backend *be, tensor x, float *host, struct error *err)
{
    int rc = no_step(be, "to_host", err);
    if (!rc && x.dtype == DTYPE_F32 && rows_touch(x))
        return cuda_download(be, host, x.data, tensor_count(x) * sizeof(float), err);
    void *room = cuda_of(be)->workspace;
    for (size_t first = 0; !rc && first < tensor_count(x);) {
        struct stretch s = next_stretch(x, first, CHUNK / sizeof(float));
        host_args a = stretch_args(&s);
        a.x = number_address(x, s.at);
        a.x_type = x.dtype;
        a.x_ld = (size_t)x.ld;
        a.y = room;
        a.y_type = DTYPE_F32;
        rc = launch(be, host_rows, blocks_of(s.count, THREADS), THREADS, 0, a, err);
        if (!rc)
            rc = cuda_download(be, host + first, room, s.count * sizeof(float), err);
        first += s.count;
    }
    return rc;
}

int cuda_to_rgb8(struct backend *be, tensor x, uint8_t *host, struct error *err)
{
    int rc = no_step(be, "to_rgb8", err);
    void *room = cuda_of(be)->workspace;
    for (size_t first = 0; !rc && first < tensor_count(x);) {
        struct stretch s = next_stretch(x, first, CHUNK);
        host_args a = stretch_args(&s);
        a.x = number_address(x, s.at);
        a.x_type = x.dtype;
        a.x_ld = (size_t)x.ld;
        a.y = room;
        rc = launch(be, rgb_words, blocks_of(s.count, THREADS * WORD), THREADS, 0, a, err);
        if (!rc)
            rc = cuda_download(be, host + first, room, s.count, err);
        first += s.count;
    }
    return rc;
}
