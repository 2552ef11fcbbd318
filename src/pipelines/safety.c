/* Which safety checkers there are, and running them on a finished picture. diffusers hands its checker the
 * picture after rounding to 8 bits (run_safety_checker: postprocess to "pil"), and the ai-runner checks the
 * finished picture too; so both kinds see the same bytes here. See safety.h. */
#include "safety.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "log.h"
#include "region.h"
#include "safety_processor.h"
#include "weights.h"

struct checker {
    struct safety_checker *net;
    struct safety_processor processor;
};

struct safety {
    struct checker own, asked;
    /* Where checkers run on the CPU beside a model on a GPU; NULL: on the model's own backend. */
    struct backend *host;
    struct region region;
    void *mem;
    size_t mem_size;
};

/* DIR/NAME into PATH[PATH_MAX]. */
static int join(char *path, const char *dir, const char *name, struct error *err)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", dir, name);
    return n < 0 || n >= PATH_MAX ? error_set(err, ERR_INVALID, "the path of %s is too long", name) : 0;
}

/* PROCESSOR: the preprocessor's file, relative to DIR. */
static int open_checker(struct checker *c, struct backend *be, const char *dir, const char *processor,
                        const char *variant, struct error *err)
{
    char path[PATH_MAX];
    int rc = join(path, dir, processor, err);
    if (rc || (rc = safety_processor_read(&c->processor, path, err)) ||
        (rc = safety_checker_load(&c->net, be, dir, variant, err)))
        return rc;
    if (c->processor.crop != safety_checker_side(c->net))
        return error_set(err, ERR_FORMAT,
                         "the safety checker reads %d pixels a side, its preprocessor gives %d",
                         safety_checker_side(c->net), c->processor.crop);
    return 0;
}

static int no_effect(const struct safety *s, const char *why)
{
    if (!s->own.net)
        log_warning("safety_check has no effect, nsfw is always false: %s", why);
    return 0;
}

/* The checker of MODELS, where it is; beside the model's own only when it is another network. */
static int open_asked(struct safety *s, struct backend *be, const char *models, struct error *err)
{
    char dir[PATH_MAX];
    struct error why = {0};
    int rc = model_find(models, SAFETY_MODEL, dir, sizeof dir, &why);
    if (rc)
        return no_effect(s, SAFETY_MODEL " is not in MODEL_DIR");
    rc = open_checker(&s->asked, be, dir, "preprocessor_config.json", NULL, &why);
    if (rc == ERR_NOT_FOUND || rc == ERR_UNSUPPORTED) {
        safety_checker_close(&s->asked.net);
        return no_effect(s, why.msg);
    }
    if (rc)
        return error_set(err, rc, "%s: %s", SAFETY_MODEL, why.msg);
    if (s->own.net && safety_checker_same(s->own.net, s->asked.net))
        safety_checker_close(&s->asked.net);
    return 0;
}

static int run_checker(pass *p, const struct checker *c, const struct image *im, bool *nsfw);

/* Bytes that C needs to run, once they are planned. */
static int plan_checker(const struct checker *c, size_t *bytes, struct error *err)
{
    struct backend *be = NULL;
    struct region *region = c->net ? malloc(sizeof *region) : NULL;
    bool nsfw;
    if (!c->net)
        return 0;
    int rc = region ? backend_open(&be, &(struct backend_options){.kind = "plan"}, err)
                    : error_set(err, ERR_NOMEM, "no memory to plan");
    if (!rc) {
        region_init(region, NULL, 0);
        rc = run_checker(&(pass){.be = be, .mem = region, .err = err}, c, &(struct image){0}, &nsfw);
        *bytes = region->peak > *bytes ? region->peak : *bytes;
    }
    backend_close(&be);
    free(region);
    return rc;
}

/* Memory on the host for the checkers that were loaded there; the plan's sizes are those of fp32, the widest.
 */
static int take_memory(struct safety *s, struct error *err)
{
    int rc = plan_checker(&s->own, &s->mem_size, err);
    if (rc || (rc = plan_checker(&s->asked, &s->mem_size, err)) || s->mem_size == 0 ||
        (rc = s->host->mem_alloc(s->host, s->mem_size, &s->mem, err)))
        return rc;
    region_init(&s->region, s->mem, s->mem_size);
    log_info("the safety checker runs on the CPU (%s)", s->host->tier);
    return 0;
}

int safety_open(struct safety **out, struct backend *be, bool on_cpu, const char *models, const char *own,
                const char *variant, struct error *err)
{
    struct safety *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        return error_set(err, ERR_NOMEM, "no memory for the safety checker");
    int rc = 0;
    if (on_cpu && be->upload)
        rc = backend_open(&s->host, &(struct backend_options){.kind = "cpu"}, err);
    if (s->host)
        be = s->host;
    if (!rc && own)
        rc = open_checker(&s->own, be, own, "../feature_extractor/preprocessor_config.json", variant, err);
    if (!rc)
        rc = open_asked(s, be, models, err);
    if (!rc && s->host)
        rc = take_memory(s, err);
    if (rc)
        safety_close(&s);
    *out = s;
    return rc;
}

void safety_close(struct safety **s)
{
    if (!*s)
        return;
    safety_checker_close(&(*s)->own.net);
    safety_checker_close(&(*s)->asked.net);
    if ((*s)->mem)
        (*s)->host->mem_free((*s)->host, (*s)->mem, (*s)->mem_size);
    backend_close(&(*s)->host);
    free(*s);
    *s = NULL;
}

static int run_checker(pass *p, const struct checker *c, const struct image *im, bool *nsfw)
{
    int side = c->processor.crop;
    float *pixels = calloc(3 * (size_t)side * (size_t)side, sizeof *pixels);
    if (!pixels)
        return error_set(p->err, ERR_NOMEM, "no memory for the safety checker's picture");
    int rc = im->rgb ? safety_processor_run(&c->processor, im, pixels, p->err) : 0;
    if (!rc)
        rc = safety_checker_run(p, c->net, pixels, nsfw);
    free(pixels);
    return rc;
}

int safety_apply(pass *of_model, struct safety *s, bool asked, struct image *im)
{
    pass on_host = {.be = s->host, .mem = &s->region, .err = of_model->err},
         *p = s->host ? &on_host : of_model;
    int rc = p->err->code;
    im->nsfw = false;
    if (s->host && !im->rgb)
        return rc; /* a plan of the model's device */
    if (!rc && s->own.net)
        rc = run_checker(p, &s->own, im, &im->nsfw);
    if (!rc && im->nsfw && im->rgb) {
        log_warning("the model's safety checker found its picture unsafe: a black one is given out");
        memset(im->rgb, 0, 3 * (size_t)im->width * (size_t)im->height);
    } else if (!rc && asked && s->asked.net) {
        rc = run_checker(p, &s->asked, im, &im->nsfw);
    }
    return rc;
}
