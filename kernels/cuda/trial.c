/* See trial.h. The note is a file beside the choices, that holds their head; it is there while a trial runs,
 * and stays when the trial goes wrong. */
#include "trial.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "half.h"
#include "log.h"

/* Three pieces of an output: its beginning, middle and end. */
enum { PIECES = 3, PIECE_BYTES = 2 << 20 };

static bool noted(const struct trial *t)
{
    char line[400] = "";
    FILE *f = fopen(t->path, "r");
    bool same = f && fgets(line, sizeof line, f) && strcmp(line, t->head) == 0;
    if (f)
        fclose(f);
    return same;
}

static bool note(const struct trial *t)
{
    FILE *f = fopen(t->path, "w");
    bool good = f && fputs(t->head, f) >= 0;
    if (f && fclose(f) != 0)
        good = false;
    return good;
}

void trial_open(struct trial *t, const char *choices, const char *head)
{
    t->path[0] = '\0';
    t->head = head;
    t->wanted = false;
    if (!choices || snprintf(t->path, sizeof t->path, "%s.trial", choices) >= (int)sizeof t->path)
        return;
    t->wanted = !noted(t);
    if (!t->wanted)
        log_warning("the kernels by TMA are left out: an earlier trial on this GPU went wrong; remove %s to "
                    "try again",
                    t->path);
}

void trial_end(const struct trial *t)
{
    if (t->wanted)
        unlink(t->path);
}

int trial_clear(struct backend *be, const struct choice *c, void *out, struct error *err)
{
    return cuda_check(be, cudaMemsetAsync(out, 0xff, c->out_bytes, cuda_of(be)->stream), "clearing an output",
                      err);
}

int trial_expect(struct backend *be, const struct choice *c, const void *out, struct sample *sample,
                 struct error *err)
{
    size_t piece = c->out_bytes < PIECE_BYTES ? c->out_bytes : PIECE_BYTES;
    int pieces = c->out_bytes <= PIECE_BYTES ? 1 : PIECES;
    sample->count = piece * (size_t)pieces;
    if (!sample->bytes)
        sample->bytes = malloc(sample->count);
    if (!sample->bytes)
        return error_set(err, ERR_NOMEM, "no memory to compare outputs");
    int rc = 0;
    for (int i = 0; i < pieces && !rc; i++) {
        size_t at = (c->out_bytes - piece) / 2 * (size_t)i / 16 * 16;
        rc = cuda_download(be, sample->bytes + (size_t)i * piece, (const char *)out + at, piece, err);
    }
    return rc;
}

static float number_at(const struct sample *s, size_t i, enum dtype type)
{
    if (type == DTYPE_F32) {
        float x;
        memcpy(&x, s->bytes + 4 * i, sizeof x);
        return x;
    }
    uint16_t bits;
    memcpy(&bits, s->bytes + 2 * i, sizeof bits);
    return type == DTYPE_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

/* Sums in another order and one rounding: 2 % of the whole is far above, and far below any mistake. */
static bool agree(const struct sample *a, const struct sample *b, enum dtype type)
{
    double difference = 0, whole = 0;
    for (size_t i = 0; i < a->count / dtype_size(type); i++) {
        float x = number_at(a, i, type), y = number_at(b, i, type);
        if (isfinite(x) != isfinite(y))
            return false;
        if (!isfinite(y))
            continue;
        difference += ((double)x - (double)y) * ((double)x - (double)y);
        whole += (double)y * (double)y;
    }
    return difference <= 0.02 * 0.02 * whole;
}

int trial_run(struct backend *be, struct trial *t, const struct choice *c, int i, void *out,
              const struct sample *expected, struct error *err)
{
    struct sample found = {NULL, 0};
    if (!t->wanted || !expected->bytes)
        return error_set(err, ERR_UNSUPPORTED, "it is not to be tried");
    if (!note(t)) {
        t->wanted = false;
        log_warning("%s cannot be written: the kernels by TMA are left out", t->path);
        return error_set(err, ERR_UNSUPPORTED, "no note of the trial");
    }
    int rc = trial_clear(be, c, out, err);
    if (!rc)
        rc = c->run(be, c->ctx, i, out, err);
    if (rc == ERR_UNSUPPORTED)
        log_warning("%s: %s is out: %s", c->key, c->name[i], err->msg);
    if (!rc)
        rc = trial_expect(be, c, out, &found, err);
    if (!rc && !agree(&found, expected, c->out_type)) {
        t->wanted = false; /* and the note stays */
        log_warning("%s: %s gives other numbers than %s; the kernels by TMA are left out", c->key, c->name[i],
                    c->name[0]);
        rc = error_set(err, ERR_UNSUPPORTED, "other numbers");
    }
    free(found.bytes);
    return rc;
}
