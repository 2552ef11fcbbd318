/* Inputs and outputs of a check: seeded random numbers, and tensors between bands of NaN. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

uint64_t rng_next(struct check *ck)
{
    uint64_t z = ck->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

int rng_range(struct check *ck, int lo, int hi)
{
    return lo + (int)(rng_next(ck) % (uint64_t)(hi - lo + 1));
}

bool rng_one_in(struct check *ck, int n)
{
    return rng_next(ck) % (uint64_t)n == 0;
}

float rng_normal(struct check *ck)
{
    uint64_t r = rng_next(ck);
    int sum = (int)(r & 0xffff) + (int)(r >> 16 & 0xffff) + (int)(r >> 32 & 0xffff) + (int)(r >> 48);
    return ((float)sum / 65536.0f - 2.0f) * 1.7320508f;
}

/* Takes a block of BAND + bytes + BAND, filled with 0xff: a NaN in every type. Out of memory ends the
 * program: a test has nothing else to do. */
static struct block *block_new(struct block **list, size_t bytes)
{
    struct block *b = calloc(1, sizeof *b);
    size_t whole = (bytes + 2 * BAND + 255) / 256 * 256;
    char *memory = b ? aligned_alloc(256, whole) : NULL;
    if (!memory) {
        fprintf(stderr, "checkkernels: out of memory for %zu bytes\n", bytes);
        exit(2);
    }
    memset(memory, 0xff, whole);
    *b = (struct block){.next = *list, .memory = memory, .bytes = bytes};
    *list = b;
    return b;
}

void block_free_all(struct block **list)
{
    while (*list) {
        struct block *b = *list;
        *list = b->next;
        if (b->device)
            b->be->mem_free(b->be, b->device, b->bytes + 2 * BAND);
        free(b->copy);
        free(b->memory);
        free(b);
    }
}

void *case_alloc(struct check *ck, size_t bytes)
{
    return block_new(&ck->arrays, bytes)->memory + BAND;
}

size_t array_count(struct array a)
{
    return (size_t)a.n * (size_t)a.h * (size_t)a.w * (size_t)a.c;
}

struct array array_new(struct check *ck, int n, int h, int w, int c)
{
    struct array a = {n, h, w, c, NULL};
    a.v = case_alloc(ck, array_count(a) * sizeof(float));
    return a;
}

struct array array_random(struct check *ck, int n, int h, int w, int c, float scale, float mean)
{
    static const float edges[] = {0.0f, -0.0f, 1.0f, -1.0f, 16.0f, -16.0f, 1e-4f, -1e-30f};
    struct array a = array_new(ck, n, h, w, c);
    for (size_t i = 0; i < array_count(a); i++) {
        float x = rng_one_in(ck, 32) ? edges[rng_range(ck, 0, 7)] : rng_normal(ck);
        a.v[i] = half_round(mean + scale * x, ck->type);
    }
    return a;
}

struct array array_abs(struct check *ck, struct array a)
{
    if (!a.v)
        return a;
    struct array b = array_new(ck, a.n, a.h, a.w, a.c);
    for (size_t i = 0; i < array_count(a); i++)
        b.v[i] = a.v[i] < 0 ? -a.v[i] : a.v[i];
    return b;
}

struct array array_square(struct check *ck, struct array a)
{
    if (!a.v)
        return a;
    struct array b = array_new(ck, a.n, a.h, a.w, a.c);
    for (size_t i = 0; i < array_count(a); i++)
        b.v[i] = a.v[i] * a.v[i];
    return b;
}

tensor array_tensor(struct array a)
{
    return (tensor){.n = a.n, .h = a.h, .w = a.w, .c = a.c, .ld = a.c, .dtype = DTYPE_F32, .data = a.v};
}

void case_end(struct check *ck)
{
    block_free_all(&ck->arrays);
    ck->label[0] = '\0';
}

void case_label(struct check *ck, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(ck->label, sizeof ck->label, fmt, ap);
    va_end(ap);
}

/* Room for a tensor of pitch LD whose data start FIRST elements into the rows. */
static tensor placed(struct check *ck, int n, int h, int w, int c, enum dtype type, int first, int ld)
{
    size_t rows = (size_t)n * (size_t)h * (size_t)w, size = dtype_size(type);
    struct block *b = block_new(&ck->placed, rows * (size_t)ld * size);
    tensor x = {.n = n,
                .h = h,
                .w = w,
                .c = c,
                .ld = ld,
                .dtype = type,
                .data = b->memory + BAND + (size_t)first * size};
    b->view = x;
    return x;
}

/* Puts what B holds on the device of the running tier, and makes X point there. */
static tensor to_device(struct check *ck, struct block *b, tensor x)
{
    struct backend *be = ck->running ? ck->running->be : NULL;
    void *device = NULL;
    if (!be || !be->upload)
        return x;
    if (be->mem_alloc(be, b->bytes + 2 * BAND, &device, &ck->err) ||
        be->upload(be, device, b->memory, b->bytes + 2 * BAND, &ck->err)) {
        fprintf(stderr, "checkkernels: %s\n", ck->err.msg);
        exit(2);
    }
    b->device = device;
    b->be = be;
    x.data = b->device + ((char *)x.data - b->memory);
    return x;
}

int fetch_placed(struct check *ck, tensor *got)
{
    for (struct block *b = ck->placed; b; b = b->next) {
        if (!b->device)
            continue;
        size_t whole = b->bytes + 2 * BAND;
        int rc = b->be->download(b->be, b->memory, b->device, whole, &ck->err);
        if (rc)
            return rc;
        if (got && (char *)got->data >= b->device && (char *)got->data < b->device + whole)
            got->data = b->memory + ((char *)got->data - b->device);
    }
    return 0;
}

static void *element_row(tensor x, size_t row)
{
    return (char *)x.data + row * (size_t)x.ld * dtype_size(x.dtype);
}

tensor place(struct check *ck, struct array a, enum dtype type, int first, int gap)
{
    if (!a.v)
        return (tensor){0};
    tensor x = placed(ck, a.n, a.h, a.w, a.c, type, first, a.c + first + gap);
    for (size_t row = 0; row < tensor_rows(x); row++)
        for (size_t i = 0; i < (size_t)x.c; i++)
            half_store(element_row(x, row), type, i, a.v[row * (size_t)x.c + i]);
    struct block *b = ck->placed;
    b->copy = malloc(b->bytes ? b->bytes : 1);
    if (!b->copy) {
        fprintf(stderr, "checkkernels: out of memory for %zu bytes\n", b->bytes);
        exit(2);
    }
    memcpy(b->copy, b->memory + BAND, b->bytes);
    return to_device(ck, b, x);
}

tensor place_output(struct check *ck, const struct tier *t, int n, int h, int w, int c, enum dtype type)
{
    int gap = t->is_ref && rng_one_in(ck, 2) ? rng_range(ck, 1, 5) : 0;
    tensor y = placed(ck, n, h, w, c, type, 0, c + gap);
    return to_device(ck, ck->placed, y);
}

void *place_host(struct check *ck, size_t bytes)
{
    return block_new(&ck->placed, bytes)->memory + BAND;
}

void weights_begin(struct check *ck)
{
    ck->source = (enum dtype)rng_range(ck, DTYPE_F32, DTYPE_BF16);
}

struct array weight_random(struct check *ck, int o, int i, int kh, int kw, float scale)
{
    struct array a = array_random(ck, o, i, kh, kw, scale, 0);
    for (size_t j = 0; j < array_count(a); j++) {
        float v = half_round(a.v[j], ck->source);
        a.v[j] = half_round(v, ck->type) == v ? v : 0; /* some subnormal halves are no bfloat16 */
    }
    return a;
}

/* A as TYPE, at an odd address. */
static struct host_array stored(struct check *ck, struct array a, enum dtype type)
{
    if (!a.v)
        return (struct host_array){0};
    char *data = (char *)case_alloc(ck, array_count(a) * dtype_size(type) + 1) + 1;
    for (size_t i = 0; i < array_count(a); i++)
        half_store(data, type, i, a.v[i]);
    return (struct host_array){data, type, array_count(a)};
}

/* Piece PART of PARTS. */
static struct host_array piece(struct host_array a, int part, int parts)
{
    size_t count = a.count / (size_t)parts;
    if (a.data)
        a.data = (const char *)a.data + (size_t)part * count * dtype_size(a.dtype);
    a.count = count;
    return a;
}

weight pack_weight(struct check *ck, struct backend *be, enum weight_kind kind, struct array w,
                   struct array bias, int parts)
{
    struct weight_source src = {
        .kind = kind, .out_c = w.n, .in_c = w.h, .kh = w.w, .kw = w.c, .parts = parts};
    src.upsample = ck->upsample;
    src.large = ck->large;
    src.int8 = true; /* which only a backend that was opened for it heeds */
    struct host_array all = stored(ck, w, ck->source), all_bias = stored(ck, bias, ck->source);
    for (int p = 0; p < parts; p++) {
        src.w[p] = piece(all, p, parts);
        src.bias[p] = piece(all_bias, p, parts);
    }
    weight packed;
    if (weight_pack(be, &packed, &src, &ck->err)) {
        ck->failed++;
        fprintf(stderr, "FAIL %s %s: weight_pack: %s\n", op_names[ck->op->id], ck->label, ck->err.msg);
        ck->err.code = 0;
    }
    return packed;
}
