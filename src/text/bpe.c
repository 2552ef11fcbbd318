/* Byte-pair encoding of one word: the best-ranked pair of neighbours is joined until none is left. A heap
 * keeps it O(n log n), so that a word of a megabyte is no attack. Follows Word::merge_all of the Rust library
 * `tokenizers`. */
#include <stdlib.h>
#include <string.h>

#include "vocab.h"

struct bpe_symbol {
    int32_t id; /* -1: joined into the one before */
    int32_t prev, next;
};

/* A pair that may be joined: the symbol at POS with the one after it. */
struct bpe_candidate {
    uint32_t rank;
    int32_t pos;
    int32_t joined;
};

void bpe_free(struct bpe_work *w)
{
    free(w->symbols);
    free(w->heap);
    *w = (struct bpe_work){0};
}

static int reserve(struct bpe_work *w, size_t n, struct error *err)
{
    if (n <= w->cap)
        return 0;
    size_t cap = n < 64 ? 64 : n;
    bpe_free(w);
    w->symbols = malloc(cap * sizeof *w->symbols);
    /* One candidate a pair to begin with; each join takes one off and puts at most two on. */
    w->heap = malloc(2 * cap * sizeof *w->heap);
    if (!w->symbols || !w->heap)
        return error_set(err, ERR_NOMEM, "no memory for a word of %zu bytes", n);
    w->cap = cap;
    return 0;
}

/* Best rank first, then leftmost. */
static int before(struct bpe_candidate a, struct bpe_candidate b)
{
    return a.rank < b.rank || (a.rank == b.rank && a.pos < b.pos);
}

static void heap_push(struct bpe_candidate *heap, size_t *count, struct bpe_candidate x)
{
    size_t i = (*count)++;
    for (size_t up; i > 0 && before(x, heap[up = (i - 1) / 2]); i = up)
        heap[i] = heap[up];
    heap[i] = x;
}

static struct bpe_candidate heap_pop(struct bpe_candidate *heap, size_t *count)
{
    struct bpe_candidate top = heap[0], x = heap[--*count];
    size_t i = 0;
    for (;;) {
        size_t down = 2 * i + 1;
        if (down >= *count)
            break;
        if (down + 1 < *count && before(heap[down + 1], heap[down]))
            down++;
        if (!before(heap[down], x))
            break;
        heap[i] = heap[down];
        i = down;
    }
    heap[i] = x;
    return top;
}

/* Puts the pair that begins at POS on the heap when it can be joined. */
static void consider(struct bpe_work *w, const struct merges *m, size_t *count, int32_t pos)
{
    int32_t next = pos < 0 ? -1 : w->symbols[pos].next;
    if (next < 0)
        return;
    const struct merge *found = merges_find(m, w->symbols[pos].id, w->symbols[next].id);
    if (found)
        heap_push(w->heap, count, (struct bpe_candidate){found->rank, pos, found->joined});
}

static void join(struct bpe_work *w, int32_t pos, int32_t joined)
{
    struct bpe_symbol *left = &w->symbols[pos], *right = &w->symbols[left->next];
    left->id = joined;
    left->next = right->next;
    right->id = -1;
    if (left->next >= 0)
        w->symbols[left->next].prev = pos;
}

int bpe_encode(struct bpe_work *w, const struct merges *m, int32_t *ids, size_t *n, struct error *err)
{
    size_t count = 0, kept = 0;
    if (*n < 2)
        return 0;
    int rc = reserve(w, *n, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < *n; i++)
        w->symbols[i] = (struct bpe_symbol){ids[i], (int32_t)i - 1, i + 1 < *n ? (int32_t)i + 1 : -1};
    for (size_t i = 0; i + 1 < *n; i++)
        consider(w, m, &count, (int32_t)i);
    while (count > 0) {
        struct bpe_candidate best = heap_pop(w->heap, &count);
        const struct bpe_symbol *left = &w->symbols[best.pos];
        if (left->id < 0 || left->next < 0)
            continue;
        /* The pair may have changed since it was put on the heap. */
        const struct merge *found = merges_find(m, left->id, w->symbols[left->next].id);
        if (!found || found->joined != best.joined)
            continue;
        join(w, best.pos, best.joined);
        consider(w, m, &count, left->prev);
        consider(w, m, &count, best.pos);
    }
    for (size_t i = 0; i < *n; i++) {
        if (w->symbols[i].id >= 0)
            ids[kept++] = w->symbols[i].id;
    }
    *n = kept;
    return 0;
}
