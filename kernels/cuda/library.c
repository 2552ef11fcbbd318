/* What cuBLASLt and cuDNN have in common: finding them, their plans, and the road to the stream. See
 * library.h. */
#include "library.h"

#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hash.h"
#include "log.h"

/* One for each open device, which may have more than one backend (backend_open_wide). */
struct libraries {
    const void *state;
    struct cublaslt *cublaslt;
    struct cudnn *cudnn;
    struct libraries *next;
};

static struct libraries *opened;

static struct libraries *libraries_of(const struct backend *be)
{
    struct libraries *l = opened;
    while (l && l->state != be->state)
        l = l->next;
    return l;
}

struct cublaslt *library_cublaslt(const struct backend *be)
{
    const struct libraries *l = libraries_of(be);
    return l ? l->cublaslt : NULL;
}

struct cudnn *library_cudnn(const struct backend *be)
{
    const struct libraries *l = libraries_of(be);
    return l ? l->cudnn : NULL;
}

int library_open(struct backend *be)
{
    if (libraries_of(be))
        return 0;
    struct libraries *l = calloc(1, sizeof *l);
    if (!l) {
        log_warning("no memory for cuBLASLt and cuDNN; our own kernels serve");
        return 0;
    }
    l->state = be->state;
    l->cublaslt = cublaslt_open();
    l->cudnn = cudnn_open();
    l->next = opened;
    opened = l;
    return 0;
}

void library_close(struct backend *be)
{
    struct libraries **at = &opened;
    while (*at && (*at)->state != be->state)
        at = &(*at)->next;
    struct libraries *l = *at;
    if (!l)
        return;
    *at = l->next;
    if (!cuda_of(be)->dead) /* what still runs may use a plan's memory */
        cudaStreamSynchronize(cuda_of(be)->stream);
    cublaslt_close(&l->cublaslt);
    cudnn_close(&l->cudnn);
    free(l);
}

void library_versions(const struct backend *be, int *cublaslt, int *cudnn)
{
    const struct cublaslt *lt = library_cublaslt(be);
    const struct cudnn *dnn = library_cudnn(be);
    *cublaslt = lt ? cublaslt_version(lt) : 0;
    *cudnn = dnn ? cudnn_version(dnn) : 0;
}

/* ---- Loading ---- */

#ifdef LATENTD_CUDA_EMULATED
/* The emulator's memory is the host's, and a real library would take its addresses for a GPU's: only those
 * made for it are opened, from the folders of LD_LIBRARY_PATH alone. */
static void *open_library(const char *name, struct error *err)
{
    const char *folders = getenv("LD_LIBRARY_PATH");
    while (folders && *folders) {
        char path[1024];
        size_t n = strcspn(folders, ":");
        int length = snprintf(path, sizeof path, "%.*s/%s", (int)n, folders, name);
        void *library = NULL;
        if (length < (int)sizeof path && access(path, R_OK) == 0 &&
            !(library = dlopen(path, RTLD_NOW | RTLD_LOCAL)))
            error_set(err, ERR_NOT_FOUND, "%s", dlerror());
        if (library && dlsym(library, "emulated_library"))
            return library;
        if (library)
            dlclose(library);
        folders += n + (folders[n] == ':');
    }
    error_set(err, ERR_NOT_FOUND, "no %s for the emulator", name);
    return NULL;
}
#else
static void *open_library(const char *name, struct error *err)
{
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        error_set(err, ERR_NOT_FOUND, "%s", dlerror());
    return library;
}
#endif

void *library_load(const char *const names[], const char **found, struct error *err)
{
    for (int i = 0; names[i]; i++) {
        void *library = open_library(names[i], err);
        if (library) {
            *found = names[i];
            return library;
        }
    }
    return NULL;
}

/* POSIX lets dlsym's pointer be a function's; ISO C has no words for it. */
int library_find(void *library, const char *name, void *function, struct error *err)
{
    void *p = dlsym(library, name);
    if (!p)
        return error_set(err, ERR_NOT_FOUND, "it has no %s", name);
    memcpy(function, &p, sizeof p);
    return 0;
}

/* ---- Plans ---- */

/* Where KEY's plan stands, or where it belongs (NULL there). NULL: no more room. */
static struct plan **place_of(struct plans *p, const int key[PLAN_KEY])
{
    uint64_t hash = HASH_BEGIN;
    for (int i = 0; i < PLAN_KEY; i++)
        hash = hash_number(hash, (uint32_t)key[i]);
    for (size_t i = (size_t)(hash >> 32);; i++) {
        struct plan **place = &p->slot[i % PLANS_MAX];
        if (*place && memcmp((*place)->key, key, sizeof(*place)->key) == 0)
            return place;
        if (!*place) /* a quarter stays free, so that every search ends soon */
            return p->count < PLANS_MAX / 4 * 3 ? place : NULL;
    }
}

/* Keeps a refusal, so that the shape is not tried again; other failures may pass. */
static int refuse(struct plan *p, int rc, const struct error *why, struct error *err)
{
    if (rc == ERR_UNSUPPORTED) {
        size_t n = strnlen(why->msg, REFUSAL_MAX - 1);
        memcpy(p->refused, why->msg, n);
        p->refused[n] = '\0';
    }
    return error_set(err, rc, "%s", why->msg);
}

static int build(struct backend *be, void *library, const struct plan_kind *kind, const int key[PLAN_KEY],
                 const void *call, struct plan **out, struct error *err)
{
    struct error why = {0};
    struct plan *p = calloc(1, kind->bytes);
    if (!p)
        return error_set(err, ERR_NOMEM, "no memory for a plan");
    memcpy(p->key, key, sizeof p->key);
    p->library = library;
    int rc = kind->build(be, p, call, &why);
    if (rc)
        refuse(p, rc, &why, err);
    if (rc && rc != ERR_UNSUPPORTED) {
        kind->destroy(p);
        return rc;
    }
    *out = p;
    return rc;
}

/* Once into memory of its own, so that the library has loaded its kernels before the stream is captured:
 * inside a capture that may not be allowed. */
static int warm_up(struct backend *be, const struct plan_kind *kind, const struct plan_args *args,
                   size_t bytes, size_t y_bytes, struct error *err)
{
    unsigned char copy[CUDA_ARGS_MAX] __attribute__((aligned(16)));
    struct error why = {0};
    void *y = NULL;
    if (cudaMalloc(&y, y_bytes) != cudaSuccess) {
        (void)cudaGetLastError(); /* then without */
        return 0;
    }
    memcpy(copy, args, bytes);
    memcpy(copy + offsetof(struct plan_args, y), &y, sizeof y);
    int rc = kind->run(be, copy, cuda_of(be)->stream, &why);
    cudaFree(y); /* waits */
    return rc ? refuse(args->plan, rc, &why, err) : 0;
}

int plan_issue(struct backend *be, void *library, struct plans *plans, const struct plan_kind *kind,
               const int key[PLAN_KEY], const void *call, struct plan_args *args, size_t bytes,
               size_t y_bytes, struct error *err)
{
    struct cuda_command c;
    struct plan **place = place_of(plans, key);
    int rc = 0;
    if (!place)
        return error_set(err, ERR_UNSUPPORTED, "there are plans for %d shapes already", plans->count);
    if (bytes > sizeof c.args)
        return error_set(err, ERR_INTERNAL, "a library's arguments are %zu bytes", bytes);
    bool fresh = !*place;
    if (fresh) {
        rc = build(be, library, kind, key, call, place, err);
        plans->count += *place != NULL;
    } else if (*(*place)->refused) {
        rc = error_set(err, ERR_UNSUPPORTED, "%s", (*place)->refused);
    }
    args->plan = *place;
    if (!rc && fresh && cuda_of(be)->recording)
        rc = warm_up(be, kind, args, bytes, y_bytes, err);
    if (rc)
        return rc;
    memset(&c, 0, sizeof c);
    /* Not a kernel: steps are compared by it. Another plan has other kernels, and a graph's node cannot be
     * updated to those. */
    c.kernel = *place;
    c.library = kind->run;
    c.bytes = (unsigned)bytes;
    memcpy(c.args, args, bytes);
    return cuda_issue(be, &c, err);
}

void plans_destroy(struct plans *plans, const struct plan_kind *kind)
{
    for (int i = 0; i < PLANS_MAX; i++)
        if (plans->slot[i])
            kind->destroy(plans->slot[i]);
    memset(plans, 0, sizeof *plans);
}

int library_failed(struct backend *be, const char *what, int status, const char *words, struct error *err)
{
    /* The library has a CUDA runtime of its own. What this one does not know yet, because the device failed
     * inside the library, our next call will be told. */
    cudaError_t rc = cudaGetLastError();
    if (rc != cudaSuccess)
        return cuda_check(be, rc, what, err);
    return error_set(err, ERR_UNSUPPORTED, "%s: %s (%d)", what, words ? words : "no words", status);
}
