/* embed_tokens: rows of a table plus rows of positions; first and last id, one token, a whole prompt. */
#include "check.h"

static void run_tokens(struct check *ck, int n, int tokens, int vocab, int positions, int c)
{
    case_label(ck, "%d x %d tokens, vocabulary %d, %d positions, width %d", n, tokens, vocab, positions, c);
    weights_begin(ck);
    struct array table = weight_random(ck, vocab, c, 1, 1, 1);
    struct array place_of = weight_random(ck, positions, c, 1, 1, 1);
    struct array want = array_new(ck, n, 1, tokens, c), none = {0};
    int32_t *ids = case_alloc(ck, (size_t)n * (size_t)tokens * sizeof *ids);
    for (int i = 0; i < n * tokens; i++)
        ids[i] = rng_range(ck, 0, vocab - 1);
    ids[0] = vocab - 1;
    ids[n * tokens - 1] = 0;
    for (size_t i = 0; i < array_count(want); i++) {
        size_t row = i / (size_t)c, j = i % (size_t)c;
        want.v[i] =
            table.v[(size_t)ids[row] * (size_t)c + j] + place_of.v[row % (size_t)tokens * (size_t)c + j];
    }
    struct array bound = bound_units(ck, want, 0);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        weight w = pack_weight(ck, t->be, WEIGHT_EMBEDDING, table, none, 1);
        weight p = pack_weight(ck, t->be, WEIGHT_EMBEDDING, place_of, none, 1);
        tensor y = place_output(ck, t, n, 1, tokens, c, ck->type);
        verify(ck, t, t->be->ops.embed_tokens(t->be, y, &w, &p, ids, &ck->err), y, want.v, bound.v);
        weight_free(t->be, &w);
        weight_free(t->be, &p);
    }
    case_end(ck);
}

static void cases(struct check *ck)
{
    run_tokens(ck, 1, 1, 1, 1, 1);
    run_tokens(ck, 1, 77, 1000, 77, 64);
    run_tokens(ck, 2, 77, 300, 77, 768);
    run_tokens(ck, 3, 5, 40, 9, 17);
    run_tokens(ck, 3, 77, 50, 77, 24); /* more ids than one launch of a GPU takes */
}

static void round_case(struct check *ck)
{
    int tokens = rng_range(ck, 1, 80);
    run_tokens(ck, rng_range(ck, 1, 3), tokens, rng_range(ck, 1, 500), tokens + rng_range(ck, 0, 5),
               rng_range(ck, 1, 200));
}

/* arrays: tokens, positions, ids [N, 1, T, 1] as numbers, y. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array ids = g->array[2], none = {0}, y = array_new(ck, ids.n, 1, ids.w, g->array[0].h);
    int32_t *id = case_alloc(ck, array_count(ids) * sizeof *id);
    for (size_t i = 0; i < array_count(ids); i++)
        id[i] = (int32_t)ids.v[i];
    weight w = pack_weight(ck, ck->ref, WEIGHT_EMBEDDING, g->array[0], none, 1);
    weight p = pack_weight(ck, ck->ref, WEIGHT_EMBEDDING, g->array[1], none, 1);
    int rc = ck->ref->ops.embed_tokens(ck->ref, array_tensor(y), &w, &p, id, &ck->err);
    verify_golden(ck, rc, array_tensor(y), g->array[3], 0, 0);
    weight_free(ck->ref, &w);
    weight_free(ck->ref, &p);
}

const struct op_check check_embed_tokens = {OP_embed_tokens, cases, round_case, golden, NULL, NULL};
