/* The safety checker: CLIP's vision tower on one picture, its projection compared with the embeddings of
 * fixed concepts. Source: diffusers pipelines/stable_diffusion/safety_checker.py
 * (StableDiffusionSafetyChecker) over transformers models/clip/modeling_clip.py (CLIPVisionModel). The tower
 * runs on the backend; the comparison, a few thousand multiplications, in double precision on the host. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clip_vision.h"
#include "log.h"
#include "networks.h"

struct safety_checker {
    struct clip_vision tower;
    float *concept[SAFETY_CONCEPTS], *special[SAFETY_SPECIALS]; /* unit vectors [projection], in vectors */
    float *vectors;
    float concept_threshold[SAFETY_CONCEPTS], special_threshold[SAFETY_SPECIALS];
};

/* The projection's fallback is CLIPConfig's. */
static void read_config(struct safety_checker *net, const struct config *c)
{
    struct config v = *c;
    config_section(c, "vision_config_dict", &v); /* files of old versions: overrides the other one */
    if (v.root == c->root)
        config_section(c, "vision_config", &v);
    clip_vision_read_config(&net->tower, &v, json_int(&c->r, "projection_dim", 512, 1, 8192));
}

static int alloc_vectors(struct safety_checker *net, struct error *err)
{
    size_t n = (size_t)net->tower.projection;
    if (clip_vision_alloc_numbers(&net->tower, err) < 0)
        return err->code;
    net->vectors = calloc((SAFETY_CONCEPTS + SAFETY_SPECIALS) * n, sizeof(float));
    if (!net->vectors)
        return error_set(err, ERR_NOMEM, "out of memory loading the safety checker");
    for (size_t i = 0; i < SAFETY_CONCEPTS; i++)
    net->concept[i] = net->vectors + i * n;
    for (size_t i = 0; i < SAFETY_SPECIALS; i++)
        net->special[i] = net->vectors + (SAFETY_CONCEPTS + i) * n;
    return 0;
}

/* All tensors; those of the tower under PREFIX. */
static void load_all(struct loader *l, struct safety_checker *net, const char *prefix)
{
    int n = net->tower.projection;
    clip_vision_load_tower(l, &net->tower, prefix);
    load_floats(l, net->concept[0], SAFETY_CONCEPTS, n, "concept_embeds");
    load_floats(l, net->special[0], SAFETY_SPECIALS, n, "special_care_embeds");
    load_floats(l, net->concept_threshold, 0, SAFETY_CONCEPTS, "concept_embeds_weights");
    load_floats(l, net->special_threshold, 0, SAFETY_SPECIALS, "special_care_embeds_weights");
}

/* torch.nn.functional.normalize of X[n]. */
static void normalize(float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    double length = fmax(sqrt(sum), 1e-12);
    for (int i = 0; i < n; i++)
        x[i] = (float)(x[i] / length);
}

static int load_weights(struct safety_checker *net, const char *dir, const char *variant, struct error *err)
{
    struct weights *w = NULL;
    struct clip_vision *tower = &net->tower;
    if (weights_open(&w, dir, "model", variant, err) < 0)
        return err->code;
    /* transformers 5 writes the tower without the inner module's name */
    const char *prefix = weights_has(w, "vision_model.vision_model.embeddings.class_embedding")
                             ? "vision_model.vision_model."
                             : "vision_model.";
    struct loader l = {
        .weights = w, .be = tower->be, .check_only = true, .packed = &tower->packed, .err = err};
    load_all(&l, net, prefix);
    l.check_only = false;
    load_all(&l, net, prefix);
    clip_vision_finish(tower);
    for (int i = 0; i < SAFETY_CONCEPTS; i++)
        normalize(net->concept[i], tower -> projection);
    for (int i = 0; i < SAFETY_SPECIALS; i++)
        normalize(net->special[i], tower->projection);
    if (!err->code)
        log_debug("safety checker: %d layers of %d, %d tensors of the file are not used", tower->layers,
                  tower->width, weights_unused(w, NULL));
    weights_close(&w);
    return err->code;
}

int safety_checker_load(struct safety_checker **out, struct backend *be, const char *dir, const char *variant,
                        struct error *err)
{
    struct config c;
    *out = NULL;
    int rc = config_open(&c, dir, err);
    if (rc < 0)
        return rc;
    struct safety_checker *net = calloc(1, sizeof(*net));
    if (!net)
        error_set(err, ERR_NOMEM, "out of memory loading the safety checker");
    if (net) {
        net->tower.be = be;
        read_config(net, &c);
    }
    config_close(&c);
    if (!err->code && alloc_vectors(net, err) == 0)
        load_weights(net, dir, variant, err);
    if (err->code)
        safety_checker_close(&net);
    *out = net;
    return err->code;
}

void safety_checker_close(struct safety_checker **net)
{
    if (!*net)
        return;
    weight_list_free(&(*net)->tower.packed, (*net)->tower.be);
    clip_vision_free_numbers(&(*net)->tower);
    free((*net)->vectors);
    free(*net);
    *net = NULL;
}

/* Whether A[n] and B[n] differ by no more than half precision does. */
static bool near(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(a[i] - b[i]) <= 1e-3f * (1 + fabsf(a[i]))))
            return false;
    return true;
}

bool safety_checker_same(const struct safety_checker *a, const struct safety_checker *b)
{
    const struct clip_vision *x = &a->tower, *y = &b->tower;
    return x->side == y->side && x->patch == y->patch && x->width == y->width && x->layers == y->layers &&
           x->projection == y->projection &&
           near(x->start, y->start, (size_t)clip_vision_tokens(x) * (size_t)x->width) &&
           near(a->vectors, b->vectors, (SAFETY_CONCEPTS + SAFETY_SPECIALS) * (size_t)x->projection) &&
           near(a->concept_threshold, b->concept_threshold, SAFETY_CONCEPTS) &&
           near(a->special_threshold, b->special_threshold, SAFETY_SPECIALS);
}

int safety_checker_side(const struct safety_checker *net)
{
    return net->tower.side;
}

int safety_checker_projection(const struct safety_checker *net)
{
    return net->tower.projection;
}

tensor safety_checker_embed(pass *p, const struct safety_checker *net, const float *pixels)
{
    return clip_vision_embed(p, &net->tower, pixels);
}

/* Cosine of EMBED and the unit vector CONCEPT less the threshold, in thousandths as Python's round gives
 * them. */
static float score(const float *embed, const float *concept, int n, double length, float threshold,
                   double adjustment)
{
    double dot = 0;
    for (int i = 0; i < n; i++)
    dot += (double)embed[i] * concept[i];
    return (float)(rint((dot / length - (double)threshold + adjustment) * 1000) / 1000);
}

void safety_checker_score(const struct safety_checker *net, const float *embed, struct safety_scores *s)
{
    double sum = 0, adjustment = 0;
    int n = net->tower.projection;
    for (int i = 0; i < n; i++)
        sum += (double)embed[i] * embed[i];
    double length = fmax(sqrt(sum), 1e-12);
    *s = (struct safety_scores){0};
    /* a special concept that is found lowers the bar for everything after it, its own kind too */
    for (int i = 0; i < SAFETY_SPECIALS; i++) {
        s->special[i] = score(embed, net->special[i], n, length, net->special_threshold[i], adjustment);
        if (s->special[i] > 0)
            adjustment = 0.01;
    }
    for (int i = 0; i < SAFETY_CONCEPTS; i++) {
        s->concept[i] = score(embed, net->concept[i], n, length, net -> concept_threshold[i], adjustment);
        s->nsfw = s->nsfw || s->concept[i] > 0;
    }
}

int safety_checker_run(pass *p, const struct safety_checker *net, const float *pixels, bool *nsfw)
{
    struct safety_scores s = {0};
    *nsfw = false;
    float *embed = malloc((size_t)net->tower.projection * sizeof(*embed));
    if (!embed)
        return error_set(p->err, ERR_NOMEM, "out of memory running the safety checker");
    for (int i = 0; i < net->tower.projection; i++)
        embed[i] = NAN; /* the plan backend leaves it so, and no score of it is above 0 */
    tensor e = safety_checker_embed(p, net, pixels);
    tensor_to_host(p, e, embed);
    tensor_free(p, &e);
    if (!p->err->code)
        safety_checker_score(net, embed, &s);
    *nsfw = s.nsfw;
    free(embed);
    return p->err->code;
}
