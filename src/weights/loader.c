/* Loading by name: finds NAME.weight and NAME.bias, checks type and shape, and hands them to the backend. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "half.h"
#include "hash.h"
#include "packed.h"
#include "weights_private.h"

enum { NAME_SIZE = 512 };

/* Formats the name of a module; false (and an error) when it does not fit. */
static bool make_name(struct loader *l, char *name, const char *fmt, va_list ap)
{
    if (l->err->code)
        return false;
    int len = vsnprintf(name, NAME_SIZE, fmt, ap);
    if (len < 0 || len >= NAME_SIZE - 32) {
        error_set(l->err, ERR_INTERNAL, "the tensor name %.100s... is too long", name);
        return false;
    }
    return true;
}

/* Declares NAME and fills it from the format FMT and the arguments after it; leaves the function when that
 * fails. */
#define NAME_OR_RETURN(l, name, fmt)                                                                         \
    char name[NAME_SIZE];                                                                                    \
    va_list ap;                                                                                              \
    va_start(ap, fmt);                                                                                       \
    bool named = make_name(l, name, fmt, ap);                                                                \
    va_end(ap);                                                                                              \
    if (!named)                                                                                              \
    return

/* Old checkpoints call the attention layers of the VAE differently (diffusers before 0.18). */
static const char *const old_names[][2] = {
    {"to_q", "query"},
    {"to_k", "key"},
    {"to_v", "value"},
    {"to_out.0", "proj_attn"},
};

/* NAME.SUFFIX (NAME alone when SUFFIX is empty), else the same under its old name. */
static struct st_tensor *find_either(const struct weights *w, const char *name, const char *suffix)
{
    char full[NAME_SIZE + 32];
    snprintf(full, sizeof(full), "%s%s%s", name, *suffix ? "." : "", suffix);
    struct st_tensor *t = weights_find(w, full);
    for (size_t i = 0; !t && i < sizeof(old_names) / sizeof(*old_names); i++) {
        size_t len = strlen(name), tail = strlen(old_names[i][0]);
        if (len <= tail || name[len - tail - 1] != '.' || strcmp(name + len - tail, old_names[i][0]) != 0)
            continue;
        snprintf(full, sizeof(full), "%.*s%s.%s", (int)(len - tail), name, old_names[i][1], suffix);
        t = weights_find(w, full);
    }
    return t;
}

static void print_shape(char *out, size_t size, const uint64_t *shape, int dims)
{
    size_t at = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < dims && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%llu", i ? ", " : "", (unsigned long long)shape[i]);
    if (at < size)
        snprintf(out + at, size - at, "]");
}

/* The same shape, or the same followed by ones: old files store a linear layer as a 1x1 convolution. */
static bool same_shape(const struct st_tensor *t, const uint64_t *shape, int dims, bool trailing_ones)
{
    if (t->dims < dims || (t->dims > dims && !trailing_ones))
        return false;
    for (int i = 0; i < t->dims; i++) {
        if (t->shape[i] != (i < dims ? shape[i] : 1))
            return false;
    }
    return true;
}

/* NAME.SUFFIX with exactly SHAPE, as numbers in the mapped file. Records an error when it is not there or
 * different. */
static struct host_array find_array(struct loader *l, const char *name, const char *suffix,
                                    const uint64_t *shape, int dims, bool trailing_ones)
{
    struct host_array a = {0};
    if (l->err->code)
        return a;
    struct st_tensor *t = find_either(l->weights, name, suffix);
    char want[128], have[256];
    print_shape(want, sizeof(want), shape, dims);
    if (!t) {
        error_set(l->err, ERR_FORMAT, "%s: tensor \"%s%s%s\" is missing; the config expects it with shape %s",
                  l->weights->file[0].label, name, *suffix ? "." : "", suffix, want);
        return a;
    }
    if (!same_shape(t, shape, dims, trailing_ones)) {
        print_shape(have, sizeof(have), t->shape, t->dims);
        error_set(l->err, ERR_FORMAT, "%s: tensor \"%s\" has shape %s, the config expects %s", t->file->label,
                  t->name, have, want);
        return a;
    }
    if (t->type != ST_F32 && t->type != ST_F16 && t->type != ST_BF16) {
        error_set(l->err, ERR_FORMAT, "%s: tensor \"%s\" is stored as %s; F32, F16 and BF16 can be read",
                  t->file->label, t->name, st_type_names[t->type]);
        return a;
    }
    t->used = true;
    a.dtype = t->type == ST_F32 ? DTYPE_F32 : t->type == ST_F16 ? DTYPE_F16 : DTYPE_BF16;
    a.data = t->file->data + t->begin;
    a.count = (size_t)(t->end - t->begin) / dtype_size(a.dtype);
    return a;
}

static bool list_add(struct weight_list *list, weight *w)
{
    if (list->count == list->capacity) {
        int capacity = list->capacity ? 2 * list->capacity : 64;
        weight **item = realloc(list->item, (size_t)capacity * sizeof(*item));
        if (!item)
            return false;
        list->item = item;
        struct weight_origin *origin = realloc(list->origin, (size_t)capacity * sizeof(*origin));
        if (!origin)
            return false;
        list->origin = origin;
        list->capacity = capacity;
    }
    list->origin[list->count] = (struct weight_origin){0};
    list->item[list->count++] = w;
    return true;
}

/* The last weight of the list came from SRC, whose parts have these names. */
static bool list_origin(struct weight_list *list, const struct weight_source *src, const char *const *names)
{
    struct weight_origin *o = &list->origin[list->count - 1];
    o->source = *src;
    for (int i = 0; i < src->parts; i++) {
        o->name[i] = strdup(names[i]);
        if (!o->name[i])
            return false;
    }
    return true;
}

void weight_list_keep(struct weight_list *list, struct weights **w)
{
    weights_drop_pages(*w);
    list->weights = *w;
    *w = NULL;
}

void weight_list_free(struct weight_list *list, struct backend *be)
{
    for (int i = 0; i < list->count; i++) {
        weight_free(be, list->item[i]);
        for (int k = 0; k < WEIGHT_PARTS_MAX; k++)
            free(list->origin[i].name[k]);
    }
    free(list->item);
    free(list->origin);
    weights_close(&list->weights);
    packed_close(&list->store, be);
    *list = (struct weight_list){0};
}

/* All numbers of A, which may lie unaligned in a mapped file, as fp32. */
static void host_floats(struct host_array a, float *out)
{
    const unsigned char *at = a.data;
    if (a.dtype == DTYPE_F32)
        memcpy(out, at, a.count * sizeof(*out));
    for (size_t i = 0; i < a.count && a.dtype != DTYPE_F32; i++) {
        uint16_t h;
        memcpy(&h, at + 2 * i, sizeof(h));
        out[i] = a.dtype == DTYPE_F16 ? f16_to_f32(h) : bf16_to_f32(h);
    }
}

/* Where the component's packed weights are kept from start to start. What is asked for is part of what they
 * are: image-to-image takes the VAE's encoder too. */
static void open_store(const struct loader *l)
{
    struct buffer identity = {0};
    size_t bytes;
    if (weights_identity(l->weights, &identity, &bytes) == 0 &&
        buffer_printf(&identity, "asked %016llx\n", (unsigned long long)l->packed->asked) == 0)
        l->packed->store = packed_open(l->be, identity.data, bytes);
    buffer_free(&identity);
    if (!packed_found(l->packed->store))
        weights_read_ahead(l->weights);
}

/* PARTS: the names of the source's parts; NULL: NAME is the only one. */
static void pack_named(struct loader *l, weight *w, const struct weight_source *from, const char *name,
                       const char *const *parts)
{
    struct weight_source marked = *from, *src = &marked;
    marked.int8 = l->int8;
    marked.large = l->large;
    if (l->check_only)
        l->packed->asked = hash_bytes(l->packed->asked, name, strlen(name));
    if (l->err->code || l->check_only)
        return;
    bool keep = l->keep && src->kind != WEIGHT_NORM && src->kind != WEIGHT_EMBEDDING;
    if (l->packed->count == 0 && !l->packed->store)
        open_store(l);
    if (packed_weight(l->packed->store, l->be, w, src, name, l->err) < 0) {
        error_prefix(l->err, "%s", name);
    } else if (!list_add(l->packed, w)) {
        weight_free(l->be, w);
        error_set(l->err, ERR_NOMEM, "out of memory loading %s", name);
    } else if (keep && !list_origin(l->packed, src, parts ? parts : &name)) {
        error_set(l->err, ERR_NOMEM, "out of memory loading %s", name);
    }
    for (int i = 0; i < src->parts && !w->mapped; i++) /* packed: the process need not hold both */
        weights_drop_array(l->weights, &src->w[i]);
}

static void pack(struct loader *l, weight *w, const struct weight_source *src, const char *name)
{
    pack_named(l, w, src, name, NULL);
}

static void load_named_conv2d(struct loader *l, weight *w, int out_c, int in_c, int k, int stride,
                              enum upsampling upsample, const char *name)
{
    uint64_t shape[4] = {(uint64_t)out_c, (uint64_t)in_c, (uint64_t)k, (uint64_t)k};
    struct weight_source src = {.kind = WEIGHT_CONV2D,
                                .out_c = out_c,
                                .in_c = in_c,
                                .kh = k,
                                .kw = k,
                                .parts = 1,
                                .stride = stride,
                                .upsample = upsample};
    src.w[0] = find_array(l, name, "weight", shape, 4, false);
    src.bias[0] = find_array(l, name, "bias", shape, 1, false);
    pack(l, w, &src, name);
}

void load_conv2d(struct loader *l, weight *w, int out_c, int in_c, int k, const char *fmt, ...)
{
    NAME_OR_RETURN(l, name, fmt);
    load_named_conv2d(l, w, out_c, in_c, k, 1, UPSAMPLED_NEVER, name);
}

void load_conv2d_down(struct loader *l, weight *w, int out_c, int in_c, const char *fmt, ...)
{
    NAME_OR_RETURN(l, name, fmt);
    load_named_conv2d(l, w, out_c, in_c, 3, 2, UPSAMPLED_NEVER, name);
}

void load_conv2d_up(struct loader *l, weight *w, int out_c, int in_c, enum upsampling how, const char *fmt,
                    ...)
{
    NAME_OR_RETURN(l, name, fmt);
    load_named_conv2d(l, w, out_c, in_c, 3, 1, how, name);
}

/* Packs SRC with all numbers multiplied by SCALE. */
static void pack_scaled(struct loader *l, weight *w, const struct weight_source *src, float scale,
                        const char *name)
{
    if (l->err->code || l->check_only)
        return;
    size_t count = src->w[0].count, all = count + src->bias[0].count;
    float *numbers = malloc(all * sizeof(*numbers));
    if (!numbers) {
        error_set(l->err, ERR_NOMEM, "out of memory loading %s", name);
        return;
    }
    host_floats(src->w[0], numbers);
    host_floats(src->bias[0], numbers + count);
    for (size_t i = 0; i < all; i++)
        numbers[i] *= scale;
    struct weight_source scaled = *src;
    scaled.w[0] = (struct host_array){.data = numbers, .dtype = DTYPE_F32, .count = count};
    scaled.bias[0] = (struct host_array){.data = numbers + count, .dtype = DTYPE_F32, .count = all - count};
    struct loader once = *l; /* the numbers do not outlive this call: no origin */
    once.keep = false;
    pack(&once, w, &scaled, name);
    free(numbers);
}

static void load_small_kernel(struct loader *l, weight *w, struct weight_source *src, const uint64_t *shape,
                              int dims, float scale, const char *name)
{
    src->w[0] = find_array(l, name, "weight", shape, dims, true);
    src->bias[0] = find_array(l, name, "bias", shape, 1, false);
    if (scale == 1)
        pack(l, w, src, name);
    else
        pack_scaled(l, w, src, scale, name);
}

void load_conv_temporal(struct loader *l, weight *w, int out_c, int in_c, float scale, const char *fmt, ...)
{
    NAME_OR_RETURN(l, name, fmt);
    uint64_t shape[5] = {(uint64_t)out_c, (uint64_t)in_c, 3, 1, 1};
    struct weight_source src = {
        .kind = WEIGHT_CONV2D, .out_c = out_c, .in_c = in_c, .kh = 3, .kw = 1, .parts = 1};
    load_small_kernel(l, w, &src, shape, 5, scale, name);
}

void load_conv1x1(struct loader *l, weight *w, int out_c, int in_c, float scale, const char *fmt, ...)
{
    NAME_OR_RETURN(l, name, fmt);
    uint64_t shape[2] = {(uint64_t)out_c, (uint64_t)in_c};
    struct weight_source src = {
        .kind = WEIGHT_CONV2D, .out_c = out_c, .in_c = in_c, .kh = 1, .kw = 1, .parts = 1};
    load_small_kernel(l, w, &src, shape, 2, scale, name);
}

/* A matrix [out_c, in_c] of one named layer as part I of SRC. */
static void add_matrix(struct loader *l, struct weight_source *src, int i, int out_c, int in_c, bool bias,
                       const char *name)
{
    uint64_t shape[2] = {(uint64_t)out_c, (uint64_t)in_c};
    src->w[i] = find_array(l, name, "weight", shape, 2, true);
    if (bias)
        src->bias[i] = find_array(l, name, "bias", shape, 1, false);
}

static struct weight_source matrix_source(enum weight_kind kind, int out_c, int in_c, int parts)
{
    return (struct weight_source){
        .kind = kind, .out_c = out_c, .in_c = in_c, .kh = 1, .kw = 1, .parts = parts};
}

void load_linear(struct loader *l, weight *w, int out_c, int in_c, bool bias, const char *fmt, ...)
{
    NAME_OR_RETURN(l, name, fmt);
    struct weight_source src = matrix_source(WEIGHT_LINEAR, out_c, in_c, 1);
    add_matrix(l, &src, 0, out_c, in_c, bias, name);
    pack(l, w, &src, name);
}

void load_geglu(struct loader *l, weight *w, int out_c, int in_c, const char *fmt, ...)
{
    NAME_OR_RETURN(l, name, fmt);
    struct weight_source src = matrix_source(WEIGHT_GEGLU, out_c, in_c, 1);
    add_matrix(l, &src, 0, out_c, in_c, true, name);
    pack(l, w, &src, name);
}

void load_linear_parts(struct loader *l, weight *w, int parts, const char *const *names, int part_c, int in_c,
                       bool bias, const char *fmt, ...)
{
    char name[WEIGHT_PARTS_MAX][NAME_SIZE + 32];
    const char *list[WEIGHT_PARTS_MAX] = {0};
    NAME_OR_RETURN(l, prefix, fmt);
    struct weight_source src = matrix_source(WEIGHT_LINEAR, parts * part_c, in_c, parts);
    for (int i = 0; i < parts; i++) {
        snprintf(name[i], sizeof(name[i]), "%s.%s", prefix, names[i]);
        add_matrix(l, &src, i, part_c, in_c, bias, name[i]);
        list[i] = name[i];
    }
    pack_named(l, w, &src, prefix, list);
}

void load_norm(struct loader *l, weight *w, int c, const char *fmt, ...)
{
    NAME_OR_RETURN(l, name, fmt);
    uint64_t shape[1] = {(uint64_t)c};
    struct weight_source src = matrix_source(WEIGHT_NORM, c, 1, 1);
    src.w[0] = find_array(l, name, "weight", shape, 1, false);
    src.bias[0] = find_array(l, name, "bias", shape, 1, false);
    pack(l, w, &src, name);
}

void load_embedding(struct loader *l, weight *w, int rows, int c, const char *fmt, ...)
{
    NAME_OR_RETURN(l, name, fmt);
    struct weight_source src = matrix_source(WEIGHT_EMBEDDING, rows, c, 1);
    add_matrix(l, &src, 0, rows, c, false, name);
    pack(l, w, &src, name);
}

void load_patches(struct loader *l, weight *w, int out_c, int in_c, int k, const char *fmt, ...)
{
    NAME_OR_RETURN(l, name, fmt);
    uint64_t shape[4] = {(uint64_t)out_c, (uint64_t)in_c, (uint64_t)k, (uint64_t)k};
    struct weight_source src = matrix_source(WEIGHT_LINEAR, out_c, in_c * k * k, 1);
    src.w[0] = find_array(l, name, "weight", shape, 4, false);
    pack(l, w, &src, name);
}

void load_floats(struct loader *l, float *out, int rows, int c, const char *fmt, ...)
{
    NAME_OR_RETURN(l, name, fmt);
    uint64_t shape[2] = {(uint64_t)rows, (uint64_t)c};
    struct host_array a = find_array(l, name, "", rows ? shape : shape + 1, rows ? 2 : 1, false);
    if (!l->err->code && !l->check_only)
        host_floats(a, out);
}
