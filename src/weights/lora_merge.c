/* W' = W + sum of strength * scale * up down, packed beside W. The LoRAs of a set are one product: their down
 * halves stacked, their up halves side by side, and the backend's own linear op multiplies them, a block of
 * outputs at a time. The additions are fp32. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"
#include "log.h"
#include "lora.h"
#include "thread_pool.h"

enum { BLOCK_BYTES = 32 << 20, ADD_CHUNK = 1 << 16, REGION_SLACK = 1 << 14 };

/* One LoRA's share of one matrix. */
struct share {
    const struct lora_file *file;
    const struct lora_layer *layer;
    float factor; /* strength * scale */
    int shift; /* the down half is multiplied by 2^shift: near 1, whatever 16-bit type the product runs in */
};

/* One matrix [rows, columns] of a weight: a part of a stacked one. */
struct matrix {
    int rows, columns, rank; /* rank: of all shares together */
    struct share share[LORA_USES_MAX];
    int shares;
};

/* Host memory that the weights of a set share, one after the other: fresh pages for each would cost more than
 * the arithmetic. */
struct buffer {
    void *data;
    size_t size;
};
struct workspace {
    struct buffer base[WEIGHT_PARTS_MAX], sum[WEIGHT_PARTS_MAX], delta;
};

/* At least BYTES in B; what was there is lost. NULL and an error when there is no memory. */
static void *take(struct buffer *b, size_t bytes, struct error *err)
{
    if (bytes <= b->size)
        return b->data;
    free(b->data);
    b->data = malloc(bytes);
    b->size = b->data ? bytes : 0;
    if (!b->data)
        error_set(err, ERR_NOMEM, "out of memory merging a LoRA");
    return b->data;
}

static void workspace_free(struct workspace *ws)
{
    for (int i = 0; i < WEIGHT_PARTS_MAX; i++) {
        free(ws->base[i].data);
        free(ws->sum[i].data);
    }
    free(ws->delta.data);
}

/* ---- Which weights ---- */

/* The layers of a file are sorted by (part, item, slot). */
static const struct lora_layer *find_layer(const struct lora_file *f, enum lora_part part, int item, int slot)
{
    int lo = 0, hi = f->layers;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        const struct lora_module *m = f->layer[mid].module;
        bool before = m->part != part ? m->part < part : m->item != item ? m->item < item : m->slot < slot;
        if (before)
            lo = mid + 1;
        else
            hi = mid;
    }
    const struct lora_layer *l = lo < f->layers ? &f->layer[lo] : NULL;
    return l && l->module->part == part && l->module->item == item && l->module->slot == slot ? l : NULL;
}

static struct matrix matrix_of(const struct lora_shelf *shelf, const struct lora_set *set,
                               enum lora_part part, int item, int slot)
{
    const struct weight_source *s = &shelf->list[part]->origin[item].source;
    struct matrix m = {.rows = s->out_c / s->parts, .columns = s->in_c * s->kh * s->kw};
    for (int i = 0; i < set->uses; i++) {
        const struct lora_layer *l = find_layer(set->use[i].file, part, item, slot);
        if (!l)
            continue;
        m.share[m.shares++] =
            (struct share){.file = set->use[i].file, .layer = l, .factor = set->use[i].strength * l->scale};
        m.rank += l->rank;
    }
    return m;
}

static bool is_touched(const struct lora_shelf *shelf, const struct lora_set *set, enum lora_part part,
                       int item)
{
    const struct weight_origin *o = &shelf->list[part]->origin[item];
    for (int slot = 0; o->name[0] && slot < o->source.parts; slot++)
        for (int i = 0; i < set->uses; i++)
            if (find_layer(set->use[i].file, part, item, slot))
                return true;
    return false;
}

/* ---- How much memory ---- */

/* Rows of the product that are made at once. */
static int block_rows(const struct matrix *m)
{
    size_t rows = BLOCK_BYTES / ((size_t)(m->columns + m->rank) * sizeof(float));
    return rows < 16 ? (m->rows < 16 ? m->rows : 16) : rows < (size_t)m->rows ? (int)rows : m->rows;
}

static size_t part_count(const struct weight_source *s)
{
    return (size_t)(s->out_c / s->parts) * (size_t)s->in_c * (size_t)s->kh * (size_t)s->kw;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void matrix_need(const struct matrix *m, enum dtype dtype, struct lora_need *need)
{
    size_t rows = (size_t)block_rows(m), columns = (size_t)m->columns, rank = (size_t)m->rank;
    need->region = larger(need->region, REGION_SLACK + rows * columns * 4 + rows * rank * dtype_size(dtype));
    need->host =
        larger(need->host, 4 * (rows * columns + (size_t)m->rows * rank + 3 * columns * rank + rows * rank));
}

void lora_set_need(const struct lora_shelf *shelf, const struct lora_set *set, enum dtype dtype,
                   struct lora_need *need)
{
    size_t part_bytes[WEIGHT_PARTS_MAX] = {0};
    *need = (struct lora_need){0};
    for (enum lora_part part = 0; part < LORA_PARTS; part++) {
        const struct weight_list *list = shelf->list[part];
        for (int item = 0; list && item < list->count; item++) {
            if (!is_touched(shelf, set, part, item))
                continue;
            const struct weight_source *s = &list->origin[item].source;
            size_t factor =
                dtype == DTYPE_F32 && s->w[0].dtype != DTYPE_F32 ? 2 : 1; /* merged weights are fp32 */
            need->weights += factor * list->item[item]->bytes;
            for (int slot = 0; slot < s->parts; slot++) {
                part_bytes[slot] =
                    larger(part_bytes[slot], part_count(s) * (dtype_size(s->w[slot].dtype) + 4));
                struct matrix m = matrix_of(shelf, set, part, item, slot);
                if (m.shares)
                    matrix_need(&m, dtype, need);
            }
        }
    }
    for (int slot = 0; slot < WEIGHT_PARTS_MAX; slot++)
        need->host += part_bytes[slot];
}

/* ---- The product ---- */

/* All numbers of T times FACTOR, as fp32; the largest size of them into *LARGEST. */
static float *read_half(const struct lora_file *f, const struct st_tensor *t, float *largest,
                        struct error *err)
{
    size_t bytes = (size_t)(t->end - t->begin);
    enum dtype type = t->type == ST_F32 ? DTYPE_F32 : t->type == ST_F16 ? DTYPE_F16 : DTYPE_BF16;
    size_t count = bytes / dtype_size(type);
    char *raw = malloc(bytes + 1);
    float *out = malloc(count * sizeof(float) + 1);
    if (!raw || !out)
        error_set(err, ERR_NOMEM, "out of memory merging a LoRA");
    else
        safetensors_read(&f->st, f->st.data + t->begin, raw, bytes, err);
    *largest = 0;
    for (size_t i = 0; i < count && !err->code; i++) {
        out[i] = half_load(raw, type, i);
        if (!isfinite(out[i]))
            error_set(err, ERR_FORMAT, "%s: \"%.200s\" holds a number that is not finite", f->st.label,
                      t->name);
        else if (fabsf(out[i]) > *largest)
            *largest = fabsf(out[i]);
    }
    free(raw);
    if (err->code) {
        free(out);
        return NULL;
    }
    return out;
}

/* The power of two that brings X near 1, as far as 2^100 does. */
static int shift_of(float x)
{
    int e = 0;
    if (x > 0 && isfinite(x))
        frexpf(x, &e);
    return e > 100 ? -100 : e < -100 ? 100 : -e;
}

/* The down halves, transposed and stacked: [columns, rank], each shifted to be near 1. Packed into W. */
static int pack_down(struct matrix *m, pass *p, weight *w, struct error *err)
{
    float *all = malloc((size_t)m->columns * (size_t)m->rank * sizeof(float)), largest;
    if (!all)
        return error_set(err, ERR_NOMEM, "out of memory merging a LoRA");
    int first = 0;
    for (int i = 0; i < m->shares && !err->code; i++) {
        struct share *s = &m->share[i];
        float *down = read_half(s->file, s->layer->down, &largest, err);
        s->shift = shift_of(largest);
        float near = ldexpf(1, s->shift);
        for (int r = 0; down && r < s->layer->rank; r++)
            for (int c = 0; c < m->columns; c++)
                all[(size_t)c * (size_t)m->rank + (size_t)(first + r)] =
                    near * down[(size_t)r * (size_t)m->columns + (size_t)c];
        first += s->layer->rank;
        free(down);
    }
    size_t count = (size_t)m->columns * (size_t)m->rank;
    struct weight_source src = {.kind = WEIGHT_LINEAR,
                                .out_c = m->columns,
                                .in_c = m->rank,
                                .kh = 1,
                                .kw = 1,
                                .parts = 1,
                                .w = {{.data = all, .dtype = DTYPE_F32, .count = count}}};
    if (!err->code)
        weight_pack(p->be, w, &src, err);
    free(all);
    return err->code;
}

/* The up halves side by side, times their factors: [rows, rank], the largest near 1. *SHIFT: they were
 * multiplied by 2^SHIFT. */
static float *join_up(const struct matrix *m, int *shift, struct error *err)
{
    size_t count = (size_t)m->rows * (size_t)m->rank;
    float *all = malloc(count * sizeof(float)), largest = 0, most = 0;
    if (!all)
        error_set(err, ERR_NOMEM, "out of memory merging a LoRA");
    int first = 0;
    for (int i = 0; i < m->shares && !err->code; i++) {
        const struct share *s = &m->share[i];
        int rank = s->layer->rank;
        float *up = read_half(s->file, s->layer->up, &largest, err), factor = ldexpf(s->factor, -s->shift);
        for (int o = 0; up && o < m->rows; o++)
            for (int r = 0; r < rank; r++)
                all[(size_t)o * (size_t)m->rank + (size_t)(first + r)] =
                    factor * up[(size_t)o * (size_t)rank + (size_t)r];
        most = fmaxf(most, fabsf(factor) * largest);
        first += rank;
        free(up);
    }
    *shift = shift_of(most);
    float near = ldexpf(1, *shift);
    for (size_t i = 0; i < count && !err->code; i++)
        all[i] *= near;
    if (err->code) {
        free(all);
        return NULL;
    }
    return all;
}

struct addition {
    float *out;         /* W' */
    const void *base;   /* W as the file has it */
    enum dtype dtype;   /* of W */
    const float *delta; /* times SCALE */
    float scale;
    size_t count;
};

static void add_chunk(void *ctx, int item, int worker)
{
    const struct addition *a = ctx;
    size_t first = (size_t)item * ADD_CHUNK,
           end = first + ADD_CHUNK < a->count ? first + ADD_CHUNK : a->count;
    (void)worker;
    if (a->dtype == DTYPE_F16) /* the usual type, without a question about it at each number */
        for (size_t i = first; i < end; i++)
            a->out[i] = half_load(a->base, DTYPE_F16, i) + a->scale * a->delta[i];
    else
        for (size_t i = first; i < end; i++)
            a->out[i] = half_load(a->base, a->dtype, i) + a->scale * a->delta[i];
}

/* OUT[rows * columns] = BASE + the product, a block of rows at a time. */
static int add_product(const struct lora_shelf *shelf, struct matrix *m, pass *p, struct buffer *block,
                       const void *base, enum dtype dtype, float *out, struct error *err)
{
    weight down = {0};
    int shift = 0, step = block_rows(m);
    size_t columns = (size_t)m->columns;
    float *delta = take(block, (size_t)step * columns * sizeof(float), err), *up = NULL;
    if (delta && !pack_down(m, p, &down, err))
        up = join_up(m, &shift, err);
    for (int row = 0; row < m->rows && !err->code; row += step) {
        int rows = m->rows - row < step ? m->rows - row : step;
        size_t count = (size_t)rows * columns, at = (size_t)row * columns;
        tensor x =
            tensor_from_host(p, up + (size_t)row * (size_t)m->rank, 1, 1, rows, m->rank, pass_dtype(p));
        tensor y = linear(p, &down, x, (struct linear_args){.f32_out = true});
        tensor_to_host(p, y, delta);
        tensor_free(p, &x);
        tensor_free(p, &y);
        struct addition a = {.out = out + at,
                             .base = (const char *)base + at * dtype_size(dtype),
                             .dtype = dtype,
                             .delta = delta,
                             .scale = ldexpf(1, -shift),
                             .count = count};
        if (!err->code)
            pool_run(shelf->pool, (int)((count + ADD_CHUNK - 1) / ADD_CHUNK), add_chunk, &a);
    }
    weight_free(p->be, &down);
    free(up);
    return err->code;
}

/* ---- The weights ---- */

static void *read_array(const struct weight_list *list, const struct host_array *a, struct buffer *to,
                        struct error *err)
{
    void *out = take(to, a->count * dtype_size(a->dtype) + 1, err);
    return out && weights_read(list->weights, a, out, err) == 0 ? out : NULL;
}

/* Part SLOT of weight ITEM: read, and added to where a LoRA touches it. The arrays of SRC are the
 * workspace's. */
static void make_part(const struct lora_shelf *shelf, const struct lora_set *set, enum lora_part part,
                      int item, int slot, pass *p, struct workspace *ws, struct weight_source *src,
                      struct error *err)
{
    const struct weight_list *list = shelf->list[part];
    const struct weight_source *from = &list->origin[item].source;
    struct matrix m = matrix_of(shelf, set, part, item, slot);
    src->w[slot].data = read_array(list, &from->w[slot], &ws->base[slot], err);
    float *sum = m.shares && !err->code ? take(&ws->sum[slot], part_count(from) * sizeof(float), err) : NULL;
    if (!sum)
        return;
    add_product(shelf, &m, p, &ws->delta, src->w[slot].data, from->w[slot].dtype, sum, err);
    src->w[slot].data = sum;
    src->w[slot].dtype = DTYPE_F32;
}

static int make_weight(const struct lora_shelf *shelf, const struct lora_set *set, enum lora_part part,
                       int item, pass *p, struct workspace *ws, struct lora_made *made, struct error *err)
{
    const struct weight_list *list = shelf->list[part];
    struct weight_source src = list->origin[item].source;
    struct buffer bias[WEIGHT_PARTS_MAX] = {{0}};
    made->at = list->item[item];
    made->original = *made->at;
    for (int slot = 0; slot < src.parts && !err->code; slot++) {
        if (src.bias[slot].data)
            src.bias[slot].data = read_array(list, &src.bias[slot], &bias[slot], err);
        if (!err->code)
            make_part(shelf, set, part, item, slot, p, ws, &src, err);
    }
    if (!err->code)
        weight_pack(p->be, &made->merged, &src, err);
    for (int slot = 0; slot < WEIGHT_PARTS_MAX; slot++)
        free(bias[slot].data);
    return err->code;
}

int lora_set_make(const struct lora_shelf *shelf, struct lora_set *set, pass *p, struct error *err)
{
    struct workspace ws = {0};
    int most = 0;
    for (enum lora_part part = 0; part < LORA_PARTS; part++)
        most += shelf->list[part] ? shelf->list[part]->count : 0;
    set->made = calloc((size_t)most + 1, sizeof(*set->made));
    if (!set->made)
        return error_set(err, ERR_NOMEM, "out of memory merging a LoRA");
    for (enum lora_part part = 0; part < LORA_PARTS; part++) {
        const struct weight_list *list = shelf->list[part];
        for (int item = 0; list && item < list->count && !err->code; item++)
            if (is_touched(shelf, set, part, item) &&
                !make_weight(shelf, set, part, item, p, &ws, &set->made[set->count], err))
                set->count++;
    }
    workspace_free(&ws);
    return err->code;
}

/* Shape and kind of the two are the same. Another thread may be planning and read the number of bytes, so
 * each field is written whole. */
static void put(weight *at, const weight *w)
{
    __atomic_store_n(&at->bytes, w->bytes, __ATOMIC_RELAXED);
    __atomic_store_n(&at->packed, w->packed, __ATOMIC_RELAXED);
}

void lora_set_use(struct lora_set *set, bool use)
{
    if (!set || set->in_use == use)
        return;
    for (int i = 0; i < set->count; i++)
        put(set->made[i].at, use ? &set->made[i].merged : &set->made[i].original);
    set->in_use = use;
}

void lora_set_free(struct lora_set **out, struct backend *be)
{
    struct lora_set *set = *out;
    if (!set)
        return;
    lora_set_use(set, false);
    for (int i = 0; i < set->count; i++)
        weight_free(be, &set->made[i].merged);
    free(set->made);
    free(set);
    *out = NULL;
}

bool lora_set_same(const struct lora_set *a, const struct lora_set *b)
{
    if (a->uses != b->uses)
        return false;
    for (int i = 0; i < a->uses; i++)
        if (a->use[i].number != b->use[i].number || a->use[i].strength != b->use[i].strength)
            return false;
    return true;
}
