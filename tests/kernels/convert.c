/* convert: between all pairs of types, with ties, subnormals, infinities and NaN. */
#include <math.h>

#include "check.h"

/* Numbers where a conversion can go wrong; 0x1.002p0 and 0x1.01p0 lie half way between two halves and two
 * bfloat16. */
static const float hard[] = {0x1.002p0f, 0x1.006p0f,    0x1.01p0f,    0x1.03p0f,   65519.0f,
                             65520.0f,   0x1p-14f,      0x1.ffcp-15f, 0x1p-24f,    0x1p-25f,
                             0x1.8p-24f, 0x1p-126f,     -0.0f,        INFINITY,    -INFINITY,
                             NAN,        0x1.fefep127f, 0x1.ffp127f,  -0x1.002p0f, 1e30f};

static void run_pair(struct check *ck, const struct shape *s, enum dtype from, enum dtype to)
{
    struct array x = shape_array(ck, s), want = array_new(ck, s->n, s->h, s->w, s->c);
    size_t count = array_count(x);
    for (size_t i = 0; i < sizeof hard / sizeof hard[0] && i < count; i++)
        x.v[count - 1 - i] = hard[i];
    for (size_t i = 0; i < count; i++) {
        x.v[i] = half_round(x.v[i], from);
        want.v[i] = half_round(x.v[i], to);
    }
    struct array bound = bound_units(ck, want, 0);
    for (struct tier *t = next_tier(ck, NULL); t; t = next_tier(ck, t)) {
        tensor tx = place(ck, x, from, s->first, s->gap);
        tensor y = place_output(ck, t, s->n, s->h, s->w, s->c, to);
        verify(ck, t, t->be->ops.convert(t->be, y, tx, &ck->err), y, want.v, bound.v);
    }
    case_end(ck);
}

static void run(struct check *ck, const struct shape *s)
{
    for (int type = DTYPE_F32; type <= DTYPE_BF16; type++) {
        run_pair(ck, s, ck->type, (enum dtype)type);
        run_pair(ck, s, DTYPE_F32, (enum dtype)type);
    }
}

static void cases(struct check *ck)
{
    each_shape(ck, run);
}

static void round_case(struct check *ck)
{
    random_shape(ck, run);
}

/* ints: the type; arrays: x, and x as that type, widened again. */
static void golden(struct check *ck, const struct golden_case *g)
{
    struct array x = g->array[0];
    enum dtype type = (enum dtype)g->ints[0];
    tensor y = array_tensor(array_new(ck, x.n, x.h, x.w, x.c));
    y.dtype = type;
    int rc = ck->ref->ops.convert(ck->ref, y, array_tensor(x), &ck->err);
    verify_golden(ck, rc, y, g->array[1], 0, 0);
}

const struct op_check check_convert = {OP_convert, cases, round_case, golden, NULL, NULL};
