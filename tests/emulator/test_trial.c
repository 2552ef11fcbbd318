/* Kernels that no GPU has run before are tried before they are believed (kernels/cuda/trial.h): with
 * candidates of the test's own, and with the products by TMA on an emulated GPU whose boxes are refused, come
 * from the wrong place, or never come (EMULATOR_TMA). Whatever happens, the product is right. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "choose.h"
#include "log.h"
#include "ops.h"
#include "region.h"

static int passed, failed;

static void check(bool held, const char *what)
{
    passed += held;
    failed += !held;
    if (!held)
        printf("FAIL %s\n", what);
}

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
};

static int fake_run(struct backend *be, const void *ctx, int i, void *out, struct error *err)
{
    struct fake *f = (struct fake *)(uintptr_t)ctx;
    f->runs[i]++;
    int rc = i ? f->rc : f->old_rc;
    if (rc)
        return error_set(err, rc, "on purpose");
    return cuda_check(be,
                      cudaMemcpyAsync(out, f->numbers[i], COUNT * sizeof(float), cudaMemcpyDeviceToDevice,
                                      cuda_of(be)->stream),
                      "copying", err);
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
    struct fake f = {{right, rounded}, {0, 0}, 0, 0};
    check(fake_choose(be, &f, "same numbers") >= 0 && f.runs[1] > 1 && !noted(),
          "the same numbers may compete");
    f = (struct fake){{right, right}, {0, 0}, ERR_UNSUPPORTED, 0};
    check(fake_choose(be, &f, "refusal") == 0 && f.runs[1] == 1 && !noted(), "a refusal is no mistake");
    f = (struct fake){{right, rounded}, {0, 0}, 0, 0};
    f.old_rc = ERR_UNSUPPORTED;
    check(fake_choose(be, &f, "alone") < 0 && f.runs[1] == 0 && !noted(),
          "nothing is tried without a result to compare");
    f = (struct fake){{right, wrong}, {0, 0}, 0, 0};
    check(fake_choose(be, &f, "other numbers") == 0 && f.runs[1] == 1 && noted(),
          "other numbers are out, and noted");
    f = (struct fake){{right, right}, {0, 0}, 0, 0};
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
    f = (struct fake){{right, right}, {0, 0}, ERR_DEVICE, 0};
    check(fake_choose(be, &f, "the end") == ERR_DEVICE && noted(), "a note outlives the device");
    backend_close(&be);
    forget();
    free(right);
    free(rounded);
    free(wrong);
    free(empty);
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
    /* Without a trial, what is asked for by name is what runs. */
    struct backend *be = start("fp16/tma128x256", "wrong");
    check(!product_right(be), "this test would see wrong boxes");
    backend_close(&be);
    forget();
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
    products();
    rmdir(folder);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
