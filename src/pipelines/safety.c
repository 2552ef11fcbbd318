/* Which safety checkers there are, and running them on a finished picture. diffusers hands its checker the
 * picture after rounding to 8 bits (run_safety_checker: postprocess to "pil"), and the ai-runner checks the
 * finished picture too; so both kinds see the same bytes here. See safety.h. */
#include "safety.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "safety_processor.h"
#include "weights.h"

struct checker {
    struct safety_checker *net;
    struct safety_processor processor;
};

struct safety {
    struct checker own, asked;
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

int safety_open(struct safety **out, struct backend *be, const char *models, const char *own,
                const char *variant, struct error *err)
{
    struct safety *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        return error_set(err, ERR_NOMEM, "no memory for the safety checker");
    int rc = 0;
    if (own)
        rc = open_checker(&s->own, be, own, "../feature_extractor/preprocessor_config.json", variant, err);
    if (!rc)
        rc = open_asked(s, be, models, err);
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

int safety_apply(pass *p, const struct safety *s, bool asked, struct image *im)
{
    int rc = p->err->code;
    im->nsfw = false;
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
