/* Kernels that no GPU has run before are tried before they are believed (kernels/cuda/trial.h): with
 * candidates of the test's own, and with the products by TMA on an emulated GPU whose boxes are refused, come
 * from the wrong place, or never come (EMULATOR_TMA). Whatever happens, the product is right. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "choose.h"
#include "half.h"
#include "log.h"
#include "ops.h"
#include "region.h"

uint64_t emulator_nanoseconds(void); /* emulator.h, which is C++ */
void emulator_take(double ms);

static char folder[] = "/tmp/latentd-trial-XXXXXX";

static void path_of(char *path, size_t size, const char *suffix)
{
    snprintf(path, size, "%s/choices-emulated-GPU.txt%s", folder, suffix);
}

static bool noted(void)
{
    char path[128];
    path_of(path, sizeof path, ".trial");
    return access(path, R_OK) == 0;
}

static void forget(void)
{
    char path[128];
    path_of(path, sizeof path, ".trial");
    unlink(path);
    path_of(path, sizeof path, "");
    unlink(path);
}

static struct backend *start(const char *isa, const char *tma)
{
    struct backend *be = NULL;
    struct error err = {0};
    struct backend_options opt = {.kind = "cuda", .isa = isa, .threads = 1};
    setenv("EMULATOR_TMA", tma, 1);
    if (backend_open(&be, &opt, &err)) {
        printf("%s\n0 passed, 1 failed\n", err.msg);
        exit(1);
    }
    return be;
}

/* ---- Candidates of the test's own ---- */

enum { COUNT = 3 << 20 }; /* numbers: more than is compared in one piece */

struct fake {
    const float *numbers[2];
    int runs[2], rc, old_rc;
    const float *later;        /* the new one's numbers from its second run on */
    bool workspace, idle;      /* by way of the workspace; the new one writes nothing there */
    bool slow;                 /* the old one */
    struct choice_input in[2]; /* what both read */
    bool random;               /* and found: numbers in [-1, 1) that are not all the same */
};

static bool random_numbers(const struct choice_input *in)
{
    double sum = 0;
    for (size_t i = 0; i < in->count; i++) {
        float x = half_load(in->data, DTYPE_F16, i);
        if (!(x >= -1 && x < 1))
            return false;
        sum += (double)x * (double)x;
    }
    return sum > 0.2 * (double)in->count && sum < 0.5 * (double)in->count;
}

static int put(struct backend *be, void *to, const void *from, struct error *err)
{
    return cuda_check(
        be, cudaMemcpyAsync(to, from, COUNT * sizeof(float), cudaMemcpyDeviceToDevice, cuda_of(be)->stream),
        "copying", err);
}

static int fake_run(struct backend *be, const void *ctx, int i, void *out, struct error *err)
{
    struct fake *f = (struct fake *)(uintptr_t)ctx;
    f->runs[i]++;
    int rc = i ? f->rc : f->old_rc;
    if (rc)
        return error_set(err, rc, "on purpose");
    if (i == 0 && f->slow)
        emulator_take(1e6);
    if (f->in[0].data)
        f->random = random_numbers(&f->in[0]) && random_numbers(&f->in[1]);
    const float *from = i && f->later && f->runs[1] > 1 ? f->later : f->numbers[i];
    if (!f->workspace)
        return put(be, out, from, err);
    void *half = cuda_of(be)->workspace;
    rc = i && f->idle ? 0 : put(be, half, from, err);
    return rc ? rc : put(be, out, half, err);
}

static int fake_choose(struct backend *be, struct fake *f, const char *key)
{
    struct error err = {0};
    struct choice c;
    memset(&c, 0, sizeof c);
    snprintf(c.key, sizeof c.key, "%s", key);
    c.count = 2;
    strcpy(c.name[0], "old");
    strcpy(c.name[1], "new");
    c.unproven = 2;
    c.out_bytes = COUNT * sizeof(float);
    c.out_type = DTYPE_F32;
    memcpy(c.in, f->in, sizeof f->in);
    c.in_type = DTYPE_F16;
    c.run = fake_run;
    c.ctx = f;
    return choose(be, &c, &err);
}

/* ONE at AT, and what the old candidate gives everywhere else. */
static float *numbers(size_t at, float one)
{
    float *x = malloc(COUNT * sizeof *x);
    for (size_t i = 0; x && i < COUNT; i++)
        x[i] = i == at ? one : sinf((float)i);
    if (!x)
        exit(1);
    return x;
}

static void candidates(void)
{
    struct backend *be = start("fp16", "");
    float *right = numbers(0, 1), *rounded = numbers(0, 1.001f), *wrong = numbers(COUNT - 1, 100),
          *empty = numbers(COUNT / 2, NAN);
    struct fake f = {.numbers = {right, rounded}};
    check(fake_choose(be, &f, "same numbers") >= 0 && f.runs[1] > 1 && !noted(),
          "the same numbers may compete");
    f = (struct fake){.numbers = {right, right}, .rc = ERR_UNSUPPORTED};
    check(fake_choose(be, &f, "refusal") == 0 && f.runs[1] == 1 && !noted(), "a refusal is no mistake");
    f = (struct fake){.numbers = {right, rounded}};
    f.old_rc = ERR_UNSUPPORTED;
    check(fake_choose(be, &f, "alone") < 0 && f.runs[1] == 0 && !noted(),
          "nothing is tried without a result to compare");
    f = (struct fake){.numbers = {right, wrong}};
    check(fake_choose(be, &f, "other numbers") == 0 && f.runs[1] == 1 && noted(),
          "other numbers are out, and noted");
    f = (struct fake){.numbers = {right, right}};
    check(fake_choose(be, &f, "after it") == 0 && f.runs[1] == 0, "and nothing unproven is tried after it");
    backend_close(&be);
    be = start("fp16", "");
    check(fake_choose(be, &f, "next start") == 0 && f.runs[1] == 0 && noted(), "nor at the next start");
    backend_close(&be);
    forget();
    be = start("fp16", "");
    f.numbers[1] = empty;
    check(fake_choose(be, &f, "no numbers") == 0 && f.runs[1] == 1 && noted(), "what is not written is out");
    backend_close(&be);
    forget();
    be = start("fp16", "");
    f = (struct fake){.numbers = {right, right}, .rc = ERR_DEVICE};
    check(fake_choose(be, &f, "the end") == ERR_DEVICE && noted(), "a note outlives the device");
    backend_close(&be);
    forget();
    free(right);
    free(rounded);
    free(wrong);
    free(empty);
}

/* A choice that starts from nothing, with F's candidates, and whether it was noted. */
static int fresh_choose(struct fake *f, const char *key, bool *was_noted)
{
    struct backend *be = start("fp16", "");
    int chosen = fake_choose(be, f, key);
    *was_noted = noted();
    backend_close(&be);
    forget();
    return chosen;
}

static void comparisons(void)
{
    bool was_noted;
    float *right = numbers(0, 1), *one = numbers(COUNT / 2, sinf(COUNT / 2) + 1),
          *zeros = calloc(COUNT, sizeof *zeros);
    if (!zeros)
        exit(1);
    struct fake f = {.numbers = {right, one}};
    check(fresh_choose(&f, "one wrong number", &was_noted) == 0 && was_noted,
          "one wrong number of three million");
    f = (struct fake){.numbers = {right, right}, .later = one};
    check(fresh_choose(&f, "wrong later", &was_noted) == 0 && was_noted && f.runs[1] > 1,
          "wrong numbers in the timed runs");
    f = (struct fake){.numbers = {right, right}, .workspace = true, .slow = true};
    check(fresh_choose(&f, "by the workspace", &was_noted) == 1 && !was_noted,
          "partial sums in the workspace");
    f = (struct fake){.numbers = {right, right}, .workspace = true, .idle = true};
    check(fresh_choose(&f, "idle", &was_noted) == 0 && was_noted, "the other's partial sums do not count");
    f = (struct fake){.numbers = {zeros, zeros}};
    check(fresh_choose(&f, "zeros", &was_noted) == 0 && !was_noted && f.runs[1] == 0,
          "zeros say nothing, and are no mistake");
    free(right);
    free(one);
    free(zeros);
}

/* Two inputs that overlap and hold what a step has left: the candidates find others, and what was there comes
 * back. */
static void inputs(void)
{
    enum { NUMBERS = 1200001, AT = 500000 };
    static uint16_t memory[AT + NUMBERS], before[AT + NUMBERS];
    bool was_noted;
    float *right = numbers(0, 1);
    for (size_t i = 0; i < AT + NUMBERS; i++)
        memory[i] = before[i] = i < AT ? 0 : i < NUMBERS ? 0x7bff : 0xffff;
    struct fake f = {.numbers = {right, right}, .in = {{memory, NUMBERS}, {memory + AT, NUMBERS}}};
    check(fresh_choose(&f, "inputs", &was_noted) >= 0 && !was_noted && f.random,
          "candidates read random numbers");
    check(memcmp(memory, before, sizeof memory) == 0, "and what was there comes back");
    setenv("EMULATOR_FAIL_SIZES", "2400002-2400002", 1);
    f.runs[1] = 0;
    check(fresh_choose(&f, "no room", &was_noted) == 0 && !was_noted && f.runs[0] > 0 && f.runs[1] == 0,
          "no trial without room to keep them");
    check(memcmp(memory, before, sizeof memory) == 0, "which are as they were");
    unsetenv("EMULATOR_FAIL_SIZES");
    free(right);
}

/* The note of a process that tries at the same time. */
static void two_processes(void)
{
    char path[128], line[400] = "", found[400] = "";
    path_of(path, sizeof path, ".trial");
    float *right = numbers(0, 1);
    struct fake f = {.numbers = {right, right}, .slow = true};
    struct error err = {0};
    struct backend *other = start("fp16", ""), *be = start("fp16", "");
    check(fake_choose(other, &f, "mine") == 1, "one wins");
    cuda_check(other, cudaErrorLaunchFailure, "on purpose", &err);
    FILE *note = fopen(path, "r");
    check(note && fgets(line, sizeof line, note), "a note");
    if (note)
        fclose(note);
    f.runs[1] = 0;
    check(fake_choose(be, &f, "both") == 0 && f.runs[1] == 0, "nothing is tried over another's note");
    note = fopen(path, "r");
    check(note && fgets(found, sizeof found, note) && strcmp(line, found) == 0, "which stays");
    if (note)
        fclose(note);
    backend_close(&be);
    backend_close(&other);

    note = fopen(path, "w");
    check(note && fputs("latentd choices 1\tanother GPU\n", note) >= 0 && fclose(note) == 0,
          "a note of before");
    be = start("fp16", "");
    check(fake_choose(be, &f, "anew") == 1 && !noted(), "a note of another version makes way");
    backend_close(&be);
    forget();
    free(right);
}

/* What was chosen after a good trial is not for ever. */
static void later(void)
{
    float *right = numbers(0, 1), *wrong = numbers(COUNT - 1, 100);
    struct fake good = {.numbers = {right, right}, .slow = true}, bad = {.numbers = {right, wrong}};
    struct error err = {0};
    struct backend *be = start("fp16", "");
    check(fake_choose(be, &good, "kept") == 1, "the new one wins");
    choose_remember(be, 7, 1);
    check(fake_choose(be, &bad, "bad") == 0 && noted(), "another of its kind is wrong");
    check(choose_known(be, 7) < 0, "what was chosen is asked for again");
    check(fake_choose(be, &good, "kept") == 0, "and the old one serves");
    backend_close(&be);
    forget();

    be = start("fp16", "");
    check(fake_choose(be, &good, "kept") == 1 && !noted(), "the new one wins again");
    backend_close(&be);
    be = start("fp16", "");
    check(fake_choose(be, &good, "kept") == 1, "and serves at the next start");
    check(cuda_check(be, cudaErrorLaunchFailure, "on purpose", &err) == ERR_DEVICE && noted(),
          "a device that fails later leaves a note");
    backend_close(&be);
    good.runs[1] = 0;
    be = start("fp16", "");
    check(fake_choose(be, &good, "kept") == 0 && good.runs[1] == 0, "and the next start takes the old one");
    check(cuda_check(be, cudaErrorLaunchFailure, "on purpose", &err) == ERR_DEVICE, "which may fail, too");
    backend_close(&be);
    forget();
    be = start("fp16", "");
    cuda_check(be, cudaErrorLaunchFailure, "on purpose", NULL);
    check(!noted(), "no note where no unproven kernel was in use");
    backend_close(&be);
    forget();
    free(right);
    free(wrong);
}

static bool prints(struct backend *be, const char *word)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (out) {
        be->print_choices(be, out);
        fclose(out);
    }
    bool found = text && strstr(text, word) != NULL;
    free(text);
    return found;
}

/* What is asked for by name: only what it served then counts, whatever won before. */
static void by_name(void)
{
    float *right = numbers(0, 1);
    struct fake f = {.numbers = {right, right}, .slow = true};
    struct backend *be = start("fp16", "");
    check(fake_choose(be, &f, "before") == 1 && prints(be, "before"), "the new one wins");
    backend_close(&be);
    be = start("fp16", "");
    check(prints(be, "before"), "which the next start knows");
    backend_close(&be);
    be = start("fp16/new", "");
    check(!prints(be, " new"), "one that is asked for by name has served nothing yet");
    check(fake_choose(be, &f, "now") == 1 && prints(be, " new") && !prints(be, "before"), "now it has");
    backend_close(&be);
    be = start("fp16", "");
    check(prints(be, "before") && !prints(be, "now"), "and the file of choices is as it was");
    backend_close(&be);
    forget();
    free(right);
}

/* ---- Products by TMA ---- */

enum { ROWS = 150, IN = 72, OUT = 136 };

static bool product_right(struct backend *be)
{
    static float x[ROWS * IN], w[OUT * IN], y[ROWS * OUT];
    struct error err = {0};
    struct region mem = {0};
    weight packed = {0};
    void *memory = NULL;
    for (int i = 0; i < ROWS * IN; i++)
        x[i] = (float)(i * 37 % 17 - 8) / 8;
    for (int i = 0; i < OUT * IN; i++)
        w[i] = (float)(i * 53 % 19 - 9) / 8;
    struct weight_source src = {
        .kind = WEIGHT_LINEAR, .out_c = OUT, .in_c = IN, .kh = 1, .kw = 1, .parts = 1};
    src.w[0] = (struct host_array){w, DTYPE_F32, OUT * IN};
    if (be->mem_alloc(be, 1 << 21, &memory, &err) || weight_pack(be, &packed, &src, &err)) {
        printf("%s\n", err.msg);
        return false;
    }
    region_init(&mem, memory, 1 << 21);
    pass p = {be, &mem, &err};
    tensor in = tensor_from_host(&p, x, 1, 1, ROWS, IN, be->dtype);
    pass_step_begin(&p);
    tensor out = linear(&p, &packed, in, (struct linear_args){0});
    pass_step_end(&p);
    bool right = tensor_to_host(&p, convert(&p, out, DTYPE_F32), y) == 0;
    for (int i = 0; i < ROWS * OUT && right; i++) {
        float sum = 0;
        for (int k = 0; k < IN; k++)
            sum += x[i / OUT * IN + k] * w[i % OUT * IN + k];
        right = fabsf(y[i] - sum) <= 0.01f * (fabsf(sum) + 1);
    }
    if (err.code)
        printf("%s\n", err.msg);
    weight_free(be, &packed);
    be->mem_free(be, memory, 1 << 21);
    return right;
}

static void products(void)
{
    static const struct {
        const char *isa, *tma;
        bool noted;
        const char *what;
    } cases[] = {
        {"fp16", "", false, "a product by TMA passes its trial"},
        {"fp16", "refused", false, "a driver that encodes no tensor map"},
        {"fp16", "wrong", true, "boxes from the wrong place"},
        {"fp16", "lost", true, "boxes that never come"},
        {"fp16/tma128x128", "", false, "a product by TMA alone"},
        {"fp16/tma128x128", "refused", false, "another serves where the map is refused"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct backend *be = start(cases[i].isa, cases[i].tma);
        check(product_right(be), cases[i].what);
        check(noted() == cases[i].noted, cases[i].what);
        backend_close(&be);
        forget();
    }
    setenv("EMULATOR_WGMMA", "lost", 1);
    struct backend *be = start("fp16", "refused");
    check(product_right(be) && noted(), "products of wgmma that never come");
    backend_close(&be);
    forget();
    unsetenv("EMULATOR_WGMMA");
    setenv("EMULATOR_SHARED", "98304", 1); /* enough for all but Hopper's */
    be = start("fp16", "");
    check(product_right(be) && !noted() && !cuda_of(be)->dead, "shared memory that is refused");
    backend_close(&be);
    forget();
    unsetenv("EMULATOR_SHARED");
    /* Without a trial, what is asked for by name is what runs. */
    be = start("fp16/tma128x256", "wrong");
    check(!product_right(be), "this test would see wrong boxes");
    backend_close(&be);
    forget();
}

/* Two layers in one step: the second is tuned before the first has run, over ZEROS or NaN. */
static bool chain_right(struct backend *be, bool zeros)
{
    enum { FIRST = 4 };
    static float x[ROWS * FIRST], w1[IN * FIRST], w2[OUT * IN], y[ROWS * OUT], h[IN];
    struct error err = {0};
    struct region mem = {0};
    weight one = {0}, two = {0};
    void *memory = NULL;
    for (int i = 0; i < ROWS * FIRST; i++)
        x[i] = (float)(i * 37 % 17 - 8) / 8;
    for (int i = 0; i < IN * FIRST; i++)
        w1[i] = (float)(i * 29 % 13 - 6) / 8;
    for (int i = 0; i < OUT * IN; i++)
        w2[i] = (float)(i * 53 % 19 - 9) / 8;
    struct weight_source src = {
        .kind = WEIGHT_LINEAR, .out_c = IN, .in_c = FIRST, .kh = 1, .kw = 1, .parts = 1};
    src.w[0] = (struct host_array){w1, DTYPE_F32, IN * FIRST};
    bool good = !be->mem_alloc(be, 1 << 21, &memory, &err) && !weight_pack(be, &one, &src, &err);
    src.out_c = OUT;
    src.in_c = IN;
    src.w[0] = (struct host_array){w2, DTYPE_F32, OUT * IN};
    if (!good || weight_pack(be, &two, &src, &err)) {
        printf("%s\n", err.msg);
        return false;
    }
    memset(memory, zeros ? 0 : 0xff, 1 << 21); /* the emulated GPU's memory is the host's */
    region_init(&mem, memory, 1 << 21);
    pass p = {be, &mem, &err};
    tensor in = tensor_from_host(&p, x, 1, 1, ROWS, FIRST, be->dtype);
    pass_step_begin(&p);
    tensor out = linear(&p, &two, linear(&p, &one, in, (struct linear_args){0}), (struct linear_args){0});
    pass_step_end(&p);
    bool right = tensor_to_host(&p, convert(&p, out, DTYPE_F32), y) == 0;
    for (int i = 0; i < ROWS * OUT && right; i++) {
        float sum = 0;
        for (int k = 0; k < IN; k++) {
            h[k] = 0;
            for (int j = 0; j < FIRST; j++)
                h[k] += x[i / OUT * FIRST + j] * w1[k * FIRST + j];
            sum += h[k] * w2[i % OUT * IN + k];
        }
        right = fabsf(y[i] - sum) <= 0.02f * (fabsf(sum) + 1);
    }
    if (err.code)
        printf("%s\n", err.msg);
    weight_free(be, &one);
    weight_free(be, &two);
    be->mem_free(be, memory, 1 << 21);
    return right;
}

/* The emulated clock goes on by a millisecond a look, of any thread: one block's vain wait is the patience of
 * its 257 threads that wait (tma.cuh), and no second block waits. */
static void waits(void)
{
    struct backend *be = start("fp16", "lost");
    uint64_t before = emulator_nanoseconds();
    check(product_right(be) && noted(), "boxes that never come");
    uint64_t waited = (emulator_nanoseconds() - before) / 1000000, block = 257 * 2000;
    check(waited >= block / 2 && waited < block * 3 / 2, "one block waits in vain, not all");
    if (waited >= block * 3 / 2)
        printf("%lu looks\n", (unsigned long)waited);
    backend_close(&be);
    forget();
}

static void chains(void)
{
    static const char *const boxes[] = {"", "wrong", "lost"};
    for (int i = 0; i < 6; i++) {
        char what[80];
        struct backend *be = start("fp16", boxes[i / 2]);
        snprintf(what, sizeof what, "two layers in a step over %s, boxes '%s'", i % 2 ? "zeros" : "NaN",
                 boxes[i / 2]);
        check(chain_right(be, i % 2), what);
        check(noted() == (i >= 2), what);
        backend_close(&be);
        forget();
    }
}

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    setenv("LATENTD_CACHE", folder, 1);
    setenv("LATENTD_TUNE", "1", 1);
    candidates();
    comparisons();
    inputs();
    two_processes();
    later();
    by_name();
    products();
    waits();
    chains();
    rmdir(folder);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
