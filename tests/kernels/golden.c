/* Reads golden/OP.bin as scripts/export_op_goldens.py wrote it and gives each case to the op:
 * "LDOP", version, seed (u32), torch version [16], op [24], number of cases (u32), then for each case
 * ints [GOLDEN_INTS] i32, floats [GOLDEN_FLOATS] f32, GOLDEN_ARRAYS times n h w c (i32, n = 0: absent) and
 * their numbers. All little-endian. */
#include <stdio.h>
#include <string.h>

#include "internal.h"

struct header {
    char magic[4];
    uint32_t version, seed;
    char torch[16], op[24];
    uint32_t cases;
};

static int read_array(struct check *ck, FILE *f, struct array *a)
{
    int32_t shape[4];
    *a = (struct array){0};
    if (fread(shape, sizeof shape, 1, f) != 1)
        return -1;
    if (shape[0] == 0)
        return 0;
    for (int i = 0; i < 4; i++)
        if (shape[i] < 1 || shape[i] > 1 << 20)
            return -1;
    *a = array_new(ck, shape[0], shape[1], shape[2], shape[3]);
    return fread(a->v, sizeof(float), array_count(*a), f) == array_count(*a) ? 0 : -1;
}

static int read_case(struct check *ck, FILE *f, struct golden_case *g)
{
    if (fread(g->ints, sizeof g->ints, 1, f) != 1 || fread(g->floats, sizeof g->floats, 1, f) != 1)
        return -1;
    for (int i = 0; i < GOLDEN_ARRAYS; i++)
        if (read_array(ck, f, &g->array[i]))
            return -1;
    return 0;
}

static void golden_failure(struct check *ck, const char *path, const char *what)
{
    ck->failed++;
    ck->golden.failed++;
    fprintf(stderr, "FAIL %s: %s\n", path, what);
}

void run_goldens(struct check *ck, const struct op_check *op)
{
    char path[128];
    struct header h;
    snprintf(path, sizeof path, "tests/kernels/golden/%s.bin", op_names[op->id]);
    FILE *f = fopen(path, "rb");
    ck->type = ck->source = DTYPE_F32;
    if (!f) {
        golden_failure(ck, path, "not there; run from the root of the repository");
        return;
    }
    if (fread(&h, sizeof h, 1, f) != 1 || memcmp(h.magic, "LDOP", 4) != 0 || h.version != 1 ||
        strncmp(h.op, op_names[op->id], sizeof h.op) != 0 || h.cases == 0) {
        golden_failure(ck, path, "is not a golden file of this op and version");
        h.cases = 0;
    }
    for (uint32_t i = 0; i < h.cases; i++) {
        struct golden_case g;
        if (read_case(ck, f, &g)) {
            golden_failure(ck, path, "ends early");
            break;
        }
        op->golden(ck, &g);
        case_end(ck);
    }
    if (h.cases && fgetc(f) != EOF)
        golden_failure(ck, path, "has more in it than its header says");
    fclose(f);
    case_end(ck);
}
