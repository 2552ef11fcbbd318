/* See choose.h. A file is text, so that a person can read who won:
 *
 *   latentd choices 1<TAB>GPU<TAB>driver<TAB>version<TAB>kernels<TAB>cuBLASLt<TAB>cuDNN
 *   key<TAB>winner<TAB>microseconds<TAB>second<TAB>microseconds        (second "-" and 0 when there was one
 * only) */
#include "choose.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache.h"
#include "library.h"
#include "log.h"
#include "trial.h"

#ifdef LATENTD_CUDA_EMULATED
enum { ROUNDS = 1 }; /* times mean nothing there */
#else
enum { ROUNDS = 7 };
#endif
/* Of the kernels: goes up with every change to one that may make it faster, slower, right or wrong. What was
 * chosen before, and notes of trials, do not count then. */
enum { KERNELS = 1 };
enum { ENTRIES_MAX = 4096, LINE_MAX_BYTES = 400, MEMO = 4096 };

struct entry {
    char key[CHOICE_KEY_MAX], name[CANDIDATE_NAME_MAX], second[CANDIDATE_NAME_MAX];
    double time, second_time; /* microseconds */
};

struct chooser {
    struct entry *entry; /* sorted by key */
    int count, capacity;
    bool tune;
    char only[CANDIDATE_NAME_MAX]; /* tests: this candidate wherever it exists; empty: the fastest */
    char head[LINE_MAX_BYTES], path[500];
    bool write; /* PATH is good */
    struct trial trial;
    cudaEvent_t start, stop;
    struct {
        uint64_t key;
        int value; /* one more than was told; 0: free */
    } memo[MEMO];  /* open addressing */
};

/* ---- The table ---- */

/* Where KEY is, or where it belongs. */
static int find(const struct chooser *c, const char *key, bool *found)
{
    int lo = 0, hi = c->count;
    while (lo < hi) {
        int mid = (lo + hi) / 2, order = strcmp(key, c->entry[mid].key);
        if (order == 0) {
            *found = true;
            return mid;
        }
        if (order < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    *found = false;
    return lo;
}

/* False when there is no room: the shape is timed again when it comes again. */
static bool insert(struct chooser *c, const struct entry *e)
{
    bool found;
    int at = find(c, e->key, &found);
    if (found) {
        c->entry[at] = *e;
        return true;
    }
    if (c->count == ENTRIES_MAX)
        return false;
    if (c->count == c->capacity) {
        int capacity = c->capacity ? 2 * c->capacity : 64;
        struct entry *bigger = realloc(c->entry, (size_t)capacity * sizeof *bigger);
        if (!bigger)
            return false;
        c->entry = bigger;
        c->capacity = capacity;
    }
    memmove(c->entry + at + 1, c->entry + at, (size_t)(c->count - at) * sizeof *c->entry);
    c->entry[at] = *e;
    c->count++;
    return true;
}

/* ---- The file ---- */

/* The next field of *LINE up to a tab or the end; NULL when there is none. */
static char *field(char **line)
{
    char *start = *line;
    if (!start)
        return NULL;
    char *tab = strchr(start, '\t');
    if (tab)
        *tab++ = '\0';
    *line = tab;
    return start;
}

static bool copy_field(char *out, size_t size, const char *text)
{
    size_t n = text ? strlen(text) : 0;
    if (n == 0 || n >= size)
        return false;
    memcpy(out, text, n + 1);
    return true;
}

static bool number_field(double *out, const char *text)
{
    char *end = NULL;
    *out = text ? strtod(text, &end) : 0;
    return text && end != text && *end == '\0' && *out >= 0 && *out < 1e12;
}

static bool parse(char *line, struct entry *e)
{
    char *newline = strchr(line, '\n');
    if (!newline)
        return false; /* a line that was cut */
    *newline = '\0';
    return copy_field(e->key, sizeof e->key, field(&line)) &&
           copy_field(e->name, sizeof e->name, field(&line)) && number_field(&e->time, field(&line)) &&
           copy_field(e->second, sizeof e->second, field(&line)) &&
           number_field(&e->second_time, field(&line)) && line == NULL;
}

static void read_file(struct chooser *c)
{
    char line[LINE_MAX_BYTES];
    FILE *f = fopen(c->path, "r");
    if (!f) {
        if (errno != ENOENT)
            log_warning("choices of kernels: %s: %s; they are timed anew", c->path, strerror(errno));
        return;
    }
    bool good = fgets(line, sizeof line, f) && strcmp(line, c->head) == 0;
    while (good && fgets(line, sizeof line, f)) {
        struct entry e = {0};
        good = parse(line, &e) && insert(c, &e);
    }
    fclose(f);
    if (!good) {
        log_warning("choices of kernels: %s is damaged or of another GPU, driver or version; it is made anew",
                    c->path);
        c->count = 0;
    }
}

/* All of it, to a new file that takes the old one's place: a reader never sees half. */
static void write_file(struct chooser *c)
{
    char name[520];
    if (!c->write)
        return;
    snprintf(name, sizeof name, "%s.%ld", c->path, (long)getpid());
    FILE *f = fopen(name, "w");
    bool good = f && fputs(c->head, f) >= 0;
    for (int i = 0; good && i < c->count; i++) {
        const struct entry *e = &c->entry[i];
        good =
            fprintf(f, "%s\t%s\t%.3f\t%s\t%.3f\n", e->key, e->name, e->time, e->second, e->second_time) > 0;
    }
    if (f && fclose(f) != 0)
        good = false;
    if (good && rename(name, c->path) == 0)
        return;
    log_warning("choices of kernels: %s cannot be written: %s; the next start times them again", c->path,
                strerror(errno));
    unlink(name);
    c->write = false;
}

/* Sets PATH; false when no folder is to be used or can be had. */
static bool find_path(struct chooser *c, const char *gpu)
{
    char folder[400], file[64];
    if (!cache_folder(folder, sizeof folder))
        return false;
    if (!cache_make_folder(folder)) {
        log_warning("choices of kernels: no folder %s: %s; they are timed at every start", folder,
                    strerror(errno));
        return false;
    }
    size_t n = 0;
    for (; gpu[n] && n < sizeof file - 1; n++)
        file[n] =
            strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", gpu[n]) ? gpu[n] : '-';
    file[n] = '\0';
    snprintf(c->path, sizeof c->path, "%s/choices-%s.txt", folder, file);
    return true;
}

/* ---- Timing ---- */

static int time_once(struct backend *be, const struct choice *c, int i, void *out, float *ms,
                     struct error *err)
{
    struct cuda_state *st = cuda_of(be);
    struct chooser *ch = st->chooser;
    int rc = cuda_check(be, cudaEventRecord(ch->start, st->stream), "cudaEventRecord", err);
    if (!rc)
        rc = c->run(be, c->ctx, i, out, err);
    if (!rc)
        rc = cuda_check(be, cudaEventRecord(ch->stop, st->stream), "cudaEventRecord", err);
    if (!rc)
        rc = cuda_check(be, cudaEventSynchronize(ch->stop), "timing a kernel", err);
    return rc ? rc
              : cuda_check(be, cudaEventElapsedTime(ms, ch->start, ch->stop), "cudaEventElapsedTime", err);
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Median of ROUNDS after one that is thrown away, microseconds. */
static int time_candidate(struct backend *be, const struct choice *c, int i, void *out, double *us,
                          struct error *err)
{
    float ms[ROUNDS + 1];
    for (int r = 0; r <= ROUNDS; r++) {
        int rc = time_once(be, c, i, out, &ms[r], err);
        if (rc)
            return rc;
    }
    qsort(ms + 1, ROUNDS, sizeof *ms, compare_floats);
    *us = 1e3 * (double)ms[1 + ROUNDS / 2];
    return 0;
}

/* An unproven candidate is tried before it is timed, against what candidate 0 has left in OUT, and what the
 * timed runs left is compared, too. COMPARED: there is something to compare. */
static int time_one(struct backend *be, const struct choice *c, int i, bool compared, void *out,
                    struct sample *expected, double *us, struct error *err)
{
    struct trial *t = &cuda_of(be)->chooser->trial;
    bool unproven = c->unproven >> i & 1;
    int rc = 0;
    if (unproven)
        rc = trial_run(be, t, c, i, out, expected, err);
    if (!rc && compared && (unproven || i == 0))
        rc = trial_clear(be, c, out, err);
    if (!rc)
        rc = time_candidate(be, c, i, out, us, err);
    if (!rc && unproven)
        rc = trial_compare(be, t, c, i, out, expected, err);
    if (rc || !compared || i != 0)
        return rc;
    rc = trial_expect(be, c, out, expected, err);
    return rc == ERR_NOMEM ? 0 : rc; /* nothing to compare with: then unproven candidates are out */
}

/* A candidate that refuses (a library without a plan for the shape) is out; a device that failed ends it all.
 */
static int time_all(struct backend *be, const struct choice *c, bool compared, void *out, struct entry *e,
                    struct error *err)
{
    struct sample expected = {NULL, 0};
    int ended = 0;
    e->time = e->second_time = 0;
    for (int i = 0; i < c->count && !ended; i++) {
        struct error why = {0};
        double us = 0;
        int rc = time_one(be, c, i, compared, out, &expected, &us, &why);
        if (rc == ERR_DEVICE) {
            ended = error_set(err, rc, "%s", why.msg);
        } else if (rc) {
            log_debug("%s: %s is out: %s", c->key, c->name[i], why.msg);
        } else if (!*e->name || us < e->time) {
            memcpy(e->second, e->name, sizeof e->second);
            e->second_time = e->time;
            memcpy(e->name, c->name[i], sizeof e->name);
            e->time = us;
        } else if (!*e->second || us < e->second_time) {
            memcpy(e->second, c->name[i], sizeof e->second);
            e->second_time = us;
        }
    }
    free(expected.bytes);
    if (ended)
        return ended;
    if (!*e->name)
        return error_set(err, ERR_INTERNAL, "no kernel serves %s", c->key);
    if (!*e->second)
        strcpy(e->second, "-");
    return 0;
}

/* With inputs that tell kernels apart, where some are unproven. *KEEP: whether the winner goes into the
 * table; not where there was no room to keep the inputs, and the unproven ones did not compete. */
static int compete(struct backend *be, const struct choice *c, void *out, struct entry *e, bool *keep,
                   struct error *err)
{
    struct trial *t = &cuda_of(be)->chooser->trial;
    struct trial_inputs in;
    struct error why = {0};
    if (!c->unproven || !t->wanted)
        return time_all(be, c, false, out, e, err);
    int rc = trial_fill(be, c, &in, &why);
    if (rc == ERR_NOMEM) {
        log_debug("%s: no trial: %s", c->key, why.msg);
        *keep = false;
        return time_all(be, c, false, out, e, err);
    }
    if (rc)
        return error_set(err, rc, "%s", why.msg);
    rc = time_all(be, c, true, out, e, err);
    if (rc == ERR_DEVICE) {
        trial_restore(be, c, &in, NULL);
        return rc;
    }
    trial_end(t);
    int restored = trial_restore(be, c, &in, err);
    return rc ? rc : restored;
}

/* Into memory of its own: the op's output may still be read by what a step has written down before. */
static int tune(struct backend *be, const struct choice *c, struct entry *e, bool *keep, struct error *err)
{
    struct cuda_state *st = cuda_of(be);
    bool recording = st->recording;
    void *out = NULL;
    if (cudaMalloc(&out, c->out_bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        memcpy(e->name, c->name[0],
               sizeof e->name); /* no room to try: the rule of thumb, and no line in the file */
        return ERR_NOMEM;
    }
    st->recording = false;
    int rc = compete(be, c, out, e, keep, err);
    st->recording = recording;
    cudaFree(out);
    return rc;
}

static int index_of(const struct choice *c, const char *name)
{
    for (int i = 0; i < c->count; i++)
        if (strcmp(c->name[i], name) == 0)
            return i;
    return -1;
}

/* The first candidate whose name is ONLY, or ONLY and a number of splits ("128x64" for "128x64/3"); else the
 * first. */
static int index_of_kind(const struct choice *c, const char *only)
{
    size_t n = strlen(only);
    for (int i = 0; i < c->count; i++)
        if (strncmp(c->name[i], only, n) == 0 && (c->name[i][n] == '\0' || c->name[i][n] == '/'))
            return i;
    return 0;
}

/* Candidate I serves, if it may: an unproven one not without a trial, and not after one that went wrong. Else
 * -1. */
static int take(struct chooser *ch, const struct choice *c, int i)
{
    bool unproven = i >= 0 && c->unproven >> i & 1;
    if (unproven && !ch->trial.wanted)
        return -1;
    if (unproven)
        ch->trial.used = true;
    return i;
}

/* Times C's candidates. After a trial that went wrong what was chosen before is looked at anew. */
static int tune_new(struct backend *be, const struct choice *c, struct entry *e, struct error *err)
{
    struct chooser *ch = cuda_of(be)->chooser;
    bool wanted = ch->trial.wanted, keep = true;
    int rc = tune(be, c, e, &keep, err);
    if (wanted && !ch->trial.wanted)
        memset(ch->memo, 0, sizeof ch->memo);
    if (rc == ERR_NOMEM)
        return 0;
    if (rc)
        return rc;
    if (keep && insert(ch, e))
        write_file(ch);
    int i = take(ch, c, index_of(c, e->name));
    return i < 0 ? 0 : i;
}

int choose(struct backend *be, const struct choice *c, struct error *err)
{
    struct chooser *ch = cuda_of(be)->chooser;
    bool found;
    if (!ch || c->count == 1)
        return 0;
    struct entry e;
    memset(&e, 0, sizeof e);
    memcpy(e.key, c->key, sizeof e.key);
    if (*ch->only) {
        int kind = index_of_kind(c, ch->only);
        memcpy(e.name, c->name[kind], sizeof e.name);
        insert(ch, &e); /* for chooser_print() alone */
        return kind;
    }
    int at = find(ch, c->key, &found), i = take(ch, c, found ? index_of(c, ch->entry[at].name) : -1);
    if (i >= 0)
        return i;
    return ch->tune ? tune_new(be, c, &e, err) : 0;
}

int choose_known(const struct backend *be, uint64_t key)
{
    const struct chooser *c = cuda_of(be)->chooser;
    for (uint64_t i = 0; c && i < MEMO; i++) {
        uint64_t at = (key + i) % MEMO;
        if (c->memo[at].value == 0)
            return -1;
        if (c->memo[at].key == key)
            return c->memo[at].value - 1;
    }
    return -1;
}

void choose_remember(struct backend *be, uint64_t key, int value)
{
    struct chooser *c = cuda_of(be)->chooser;
    for (uint64_t i = 0; c && i < MEMO; i++) {
        uint64_t at = (key + i) % MEMO;
        if (c->memo[at].value == 0 || c->memo[at].key == key) {
            c->memo[at].key = key;
            c->memo[at].value = value + 1;
            return;
        }
    }
}

void choose_without(const char *name, const struct error *why)
{
    log_warning("%s is out, another kernel serves: %s", name, why->msg);
}

void chooser_print(const struct chooser *c, FILE *out)
{
    for (int i = 0; c && i < c->count; i++) {
        const struct entry *e = &c->entry[i];
        fprintf(out, "%-72s %-12s %9.1f us", e->key, e->name, e->time);
        if (e->second_time > 0 && e->time > 0)
            fprintf(out, "   next: %s, %+.1f %%", e->second, 100 * (e->second_time / e->time - 1));
        fputc('\n', out);
    }
}

/* ---- Open and close ---- */

struct chooser *chooser_open(struct backend *be, const char *only)
{
    struct cuda_state *st = cuda_of(be);
    const char *tune_setting = getenv("LATENTD_TUNE");
    int driver = 0;
    struct chooser *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
#ifdef LATENTD_CUDA_EMULATED
    c->tune = tune_setting && strcmp(tune_setting, "1") == 0; /* times mean nothing there */
#else
    c->tune = !(tune_setting && strcmp(tune_setting, "0") == 0);
#endif
    if (only)
        snprintf(c->only, sizeof c->only, "%s", only);
    if (cudaEventCreateWithFlags(&c->start, 0) != cudaSuccess ||
        cudaEventCreateWithFlags(&c->stop, 0) != cudaSuccess) {
        (void)cudaGetLastError();
        chooser_close(&c);
        return NULL;
    }
    if (cudaDriverGetVersion(&driver) != cudaSuccess)
        (void)cudaGetLastError();
    int lt = 0, dnn = 0; /* another library may win otherwise */
    library_versions(be, &lt, &dnn);
    snprintf(c->head, sizeof c->head, "latentd choices 1\t%s\t%d\t%s\t%d\t%d\t%d\n", st->name, driver,
             LATENTD_VERSION, KERNELS, lt, dnn);
    /* With ONLY nothing is timed, and what is printed are the shapes that it served, not those of before. */
    if (c->tune && !*c->only && find_path(c, st->name)) {
        c->write = true;
        read_file(c);
    }
    trial_open(&c->trial, c->write ? c->path : NULL, c->head);
    return c;
}

void chooser_failed(struct chooser *c)
{
    if (c)
        trial_failed(&c->trial);
}

void chooser_close(struct chooser **out)
{
    struct chooser *c = *out;
    if (!c)
        return;
    if (c->start)
        cudaEventDestroy(c->start);
    if (c->stop)
        cudaEventDestroy(c->stop);
    free(c->entry);
    free(c);
    *out = NULL;
}
