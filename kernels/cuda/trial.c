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

/* On disk before the kernel runs, and the only one: another process's says that it tries now, or that it
 * ended over it. One of another GPU, driver or version makes way. The number of the process is for people. */
static bool note(struct trial *t)
{
    if (t->mine)
        return true;
    if (access(t->path, F_OK) == 0 && !noted(t))
        unlink(t->path);
    FILE *f = fopen(t->path, "wx");
    bool good = f && fputs(t->head, f) >= 0 && fprintf(f, "process %ld\n", (long)getpid()) > 0;
    if (good && (fflush(f) != 0 || fsync(fileno(f)) != 0))
        good = false;
    if (f && fclose(f) != 0)
        good = false;
    if (f && !good)
        unlink(t->path);
    t->mine = good;
    return good;
}

void trial_open(struct trial *t, const char *choices, const char *head)
{
    t->path[0] = '\0';
    t->head = head;
    t->mine = t->wanted = t->used = false;
    if (!choices || snprintf(t->path, sizeof t->path, "%s.trial", choices) >= (int)sizeof t->path)
        return;
    t->wanted = !noted(t);
    if (!t->wanted)
        log_warning(
            "Hopper's kernels are left out: a trial on this GPU went wrong or has not ended; remove %s to "
            "try again",
            t->path);
}

void trial_end(struct trial *t)
{
    if (!t->wanted || !t->mine)
        return;
    unlink(t->path);
    t->mine = false;
}

void trial_failed(struct trial *t)
{
    if (!t->used || !t->path[0])
        return;
    t->wanted = false;
    if (note(t))
        log_warning("Hopper's kernels were in use: the next start leaves them out (%s)", t->path);
}

/* ---- What candidates read ---- */

/* A prime, so that no two rows are alike: their lengths are multiples of 8. */
enum { PERIOD = 1048573 };

static int copy(struct backend *be, void *to, const void *from, size_t bytes, struct error *err)
{
    return cuda_check(be, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_of(be)->stream),
                      "copying on the GPU", err);
}

/* PATTERN over and over, doubled on the GPU. */
static int fill(struct backend *be, const struct choice_input *in, const uint16_t *pattern, struct error *err)
{
    size_t done = in->count < PERIOD ? in->count : PERIOD;
    uint16_t *to = in->data;
    int rc = cuda_upload(be, to, pattern, done * sizeof *to, err);
    while (!rc && done < in->count) {
        size_t more = in->count - done < done ? in->count - done : done;
        rc = copy(be, to + done, to, more * sizeof *to, err);
        done += more;
    }
    return rc;
}

static int fill_all(struct backend *be, const struct choice *c, struct error *err)
{
    uint16_t *pattern = malloc(PERIOD * sizeof *pattern);
    if (!pattern)
        return error_set(err, ERR_NOMEM, "no memory for a trial's numbers");
    uint32_t state = 1;
    for (size_t i = 0; i < PERIOD; i++) {
        state = state * 1664525u + 1013904223u;
        half_store(pattern, c->in_type, i, (float)(int)(state >> 24) / 128 - 1);
    }
    int rc = 0;
    for (int i = 0; i < CHOICE_INPUTS && !rc; i++)
        if (c->in[i].data)
            rc = fill(be, &c->in[i], pattern, err);
    free(pattern);
    return rc;
}

/* All are kept before the first is filled: they may overlap. */
int trial_fill(struct backend *be, const struct choice *c, struct trial_inputs *in, struct error *err)
{
    int rc = 0;
    memset(in, 0, sizeof *in);
    for (int i = 0; i < CHOICE_INPUTS && !rc; i++) {
        size_t bytes = c->in[i].count * 2;
        if (!c->in[i].data)
            continue;
        rc = cuda_check(be, cudaMalloc(&in->kept[i], bytes), "memory for a trial", err);
        if (rc)
            in->kept[i] = NULL;
        else
            rc = copy(be, in->kept[i], c->in[i].data, bytes, err);
    }
    if (!rc)
        rc = fill_all(be, c, err);
    if (rc)
        trial_restore(be, c, in, NULL);
    return rc;
}

int trial_restore(struct backend *be, const struct choice *c, struct trial_inputs *in, struct error *err)
{
    int rc = 0;
    for (int i = 0; i < CHOICE_INPUTS && !rc; i++)
        if (in->kept[i])
            rc = copy(be, c->in[i].data, in->kept[i], c->in[i].count * 2, err);
    if (!rc)
        rc = cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "waiting for the GPU", err);
    for (int i = 0; i < CHOICE_INPUTS; i++)
        cudaFree(in->kept[i]); /* says again what is known already on a dead device */
    memset(in, 0, sizeof *in);
    return rc;
}

/* ---- What they write ---- */

int trial_clear(struct backend *be, const struct choice *c, void *out, struct error *err)
{
    struct cuda_state *st = cuda_of(be);
    int rc = cuda_check(be, cudaMemsetAsync(out, 0xff, c->out_bytes, st->stream), "clearing an output", err);
    if (!rc)
        rc = cuda_check(be, cudaMemsetAsync(st->workspace, 0xff, CUDA_WORKSPACE, st->stream),
                        "clearing the workspace", err);
    return rc ? rc
              : cuda_check(be, cudaMemsetAsync(cuda_trial_flag(be), 0, sizeof(unsigned), st->stream),
                           "clearing a flag", err);
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

/* Of the finite numbers; 0: there are none, or nothing but zeros, and any kernel may give those. */
static double mean_square(const struct sample *s, enum dtype type)
{
    double sum = 0, count = 0;
    for (size_t i = 0; i < s->count / dtype_size(type); i++) {
        double x = (double)number_at(s, i, type);
        if (isfinite(x)) {
            sum += x * x;
            count++;
        }
    }
    return count > 0 ? sum / count : 0;
}

/* Run by run, or a few wrong numbers would drown in millions of right ones. Sums in another order and one
 * rounding are far below this, and one number that is off by a quarter of what is usual is above. */
static bool agree(const struct sample *a, const struct sample *b, enum dtype type, double mean)
{
    enum { RUN = 64 };
    const double limit = 0.02 * 0.02;
    size_t count = a->count / dtype_size(type);
    for (size_t first = 0; first < count; first += RUN) {
        double difference = 0, whole = 0;
        for (size_t i = first; i < first + RUN && i < count; i++) {
            double x = (double)number_at(a, i, type), y = (double)number_at(b, i, type);
            if (!isfinite(x) != !isfinite(y))
                return false;
            if (!isfinite(y))
                continue;
            difference += (x - y) * (x - y);
            whole += y * y;
        }
        if (!(difference <= limit * (whole + RUN * mean)))
            return false;
    }
    return true;
}

int trial_compare(struct backend *be, struct trial *t, const struct choice *c, int i, const void *out,
                  const struct sample *expected, struct error *err)
{
    struct sample found = {NULL, 0};
    int rc = trial_expect(be, c, out, &found, err);
    if (!rc && !agree(&found, expected, c->out_type, mean_square(expected, c->out_type))) {
        t->wanted = false; /* and the note stays */
        log_warning("%s: %s gives other numbers than %s; Hopper's kernels are left out", c->key, c->name[i],
                    c->name[0]);
        rc = error_set(err, ERR_UNSUPPORTED, "other numbers");
    }
    free(found.bytes);
    return rc;
}

int trial_run(struct backend *be, struct trial *t, const struct choice *c, int i, void *out,
              const struct sample *expected, struct error *err)
{
    if (!t->wanted || !expected->bytes)
        return error_set(err, ERR_UNSUPPORTED, "it is not to be tried");
    if (!(mean_square(expected, c->out_type) > 0))
        return error_set(err, ERR_UNSUPPORTED, "%s gives no numbers to compare with", c->name[0]);
    if (!note(t)) {
        t->wanted = false;
        log_warning("%s: %s; Hopper's kernels are left out", t->path,
                    noted(t) ? "another process tries them, or did" : "it cannot be written");
        return error_set(err, ERR_UNSUPPORTED, "no note of the trial");
    }
    int rc = trial_clear(be, c, out, err);
    if (!rc)
        rc = c->run(be, c->ctx, i, out, err);
    if (rc == ERR_UNSUPPORTED)
        log_warning("%s: %s is out: %s", c->key, c->name[i], err->msg);
    return rc ? rc : trial_compare(be, t, c, i, out, expected, err);
}
