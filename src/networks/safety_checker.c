/* The safety checker: CLIP's vision tower on one picture, its projection compared with the embeddings of
 * fixed concepts. Source: diffusers pipelines/stable_diffusion/safety_checker.py
 * (StableDiffusionSafetyChecker) over transformers models/clip/modeling_clip.py (CLIPVisionModel). The tower
 * runs on the backend; the comparison, a few thousand multiplications, in double precision on the host. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "config.h"
#include "log.h"
#include "networks.h"

enum { CHECKER_LAYERS_MAX = 64, PIXEL_CHANNELS = 3 };

struct checker_layer {
    weight norm1, qkv, out;
    weight norm2, fc1, fc2;
};

struct safety_checker {
    struct backend *be;
    struct weight_list packed;
    int side, patch, width, hidden, layers, heads, projection;
    float eps;
    enum act act;
    weight patches, pre_norm, post_norm, projected;
    struct checker_layer layer[CHECKER_LAYERS_MAX];
    float *start; /* [1 + patches, width]: what the tokens are before the patches are added */
    float *concept[SAFETY_CONCEPTS], *special[SAFETY_SPECIALS]; /* unit vectors [projection], in vectors */
    float *vectors;
    float concept_threshold[SAFETY_CONCEPTS], special_threshold[SAFETY_SPECIALS];
};

static const struct config_choice vision_choices[] = {
    {"hidden_act", "\"quick_gelu\"|\"gelu\""},
    {"num_channels", "3"},
    {NULL, NULL},
};

/* Picture, cut in squares, and the class token. */
static int token_count(const struct safety_checker *net)
{
    int across = net->side / net->patch;
    return across * across + 1;
}

/* Fallbacks are CLIPVisionConfig's, and CLIPConfig's for the projection. */
static void read_config(struct safety_checker *net, const struct config *c)
{
    struct config v = *c;
    config_section(c, "vision_config_dict", &v); /* files of old versions: overrides the other one */
    if (v.root == c->root)
        config_section(c, "vision_config", &v);
    config_check(&v, vision_choices);
    net->projection = json_int(&c->r, "projection_dim", 512, 1, 8192);
    net->side = json_int(&v.r, "image_size", 224, 1, 1024);
    net->patch = json_int(&v.r, "patch_size", 32, 1, 64);
    net->width = json_int(&v.r, "hidden_size", 768, 1, 8192);
    net->hidden = json_int(&v.r, "intermediate_size", 3072, 1, 32768);
    net->layers = json_int(&v.r, "num_hidden_layers", 12, 1, CHECKER_LAYERS_MAX);
    net->heads = json_int(&v.r, "num_attention_heads", 12, 1, 256);
    net->eps = config_float(&v, "layer_norm_eps", 1e-5, 1e-12, 1e-2);
    net->act = json_string(&v.r, "hidden_act", "quick_gelu")[0] == 'q' ? ACT_QUICK_GELU : ACT_GELU;
    if (!config_ok(c))
        return;
    if (net->width % net->heads != 0)
        error_set(c->r.err, ERR_FORMAT,
                  "%s: \"hidden_size\" %d is not a multiple of \"num_attention_heads\" %d", v.label,
                  net->width, net->heads);
    if (net->side < net->patch)
        error_set(c->r.err, ERR_FORMAT, "%s: \"image_size\" %d is less than \"patch_size\" %d", v.label,
                  net->side, net->patch);
}

static int alloc_vectors(struct safety_checker *net, struct error *err)
{
    size_t n = (size_t)net->projection;
    net->start = calloc((size_t)token_count(net) * (size_t)net->width, sizeof(float));
    net->vectors = calloc((SAFETY_CONCEPTS + SAFETY_SPECIALS) * n, sizeof(float));
    if (!net->start || !net->vectors)
        return error_set(err, ERR_NOMEM, "out of memory loading the safety checker");
    for (size_t i = 0; i < SAFETY_CONCEPTS; i++)
    net->concept[i] = net->vectors + i * n;
    for (size_t i = 0; i < SAFETY_SPECIALS; i++)
        net->special[i] = net->vectors + (SAFETY_CONCEPTS + i) * n;
    return 0;
}

static void load_layer(struct loader *l, const struct safety_checker *net, struct checker_layer *y,
                       const char *prefix, int i)
{
    static const char *const qkv[] = {"q_proj", "k_proj", "v_proj"};
    int c = net->width;
    load_norm(l, &y->norm1, c, "%sencoder.layers.%d.layer_norm1", prefix, i);
    load_linear_parts(l, &y->qkv, 3, qkv, c, c, true, "%sencoder.layers.%d.self_attn", prefix, i);
    load_linear(l, &y->out, c, c, true, "%sencoder.layers.%d.self_attn.out_proj", prefix, i);
    load_norm(l, &y->norm2, c, "%sencoder.layers.%d.layer_norm2", prefix, i);
    load_linear(l, &y->fc1, net->hidden, c, true, "%sencoder.layers.%d.mlp.fc1", prefix, i);
    load_linear(l, &y->fc2, c, net->hidden, true, "%sencoder.layers.%d.mlp.fc2", prefix, i);
}

/* All tensors; those of the tower under PREFIX. CLASS [width] gets the class embedding. */
static void load_all(struct loader *l, struct safety_checker *net, const char *prefix, float *class)
{
    int c = net->width, n = net->projection;
    load_floats(l, class, 0, c, "%sembeddings.class_embedding", prefix);
    load_floats(l, net->start, token_count(net), c, "%sembeddings.position_embedding.weight", prefix);
    load_patches(l, &net->patches, c, PIXEL_CHANNELS, net->patch, "%sembeddings.patch_embedding", prefix);
    load_norm(l, &net->pre_norm, c, "%spre_layrnorm", prefix); /* transformers' spelling */
    for (int i = 0; i < net->layers; i++)
        load_layer(l, net, &net->layer[i], prefix, i);
    load_norm(l, &net->post_norm, c, "%spost_layernorm", prefix);
    load_linear(l, &net->projected, n, c, false, "visual_projection");
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
    float *class = calloc((size_t)net->width, sizeof(*class));
    if (!class)
        return error_set(err, ERR_NOMEM, "out of memory loading the safety checker");
    if (weights_open(&w, dir, "model", variant, err) < 0) {
        free(class);
        return err->code;
    }
    /* transformers 5 writes the tower without the inner module's name */
    const char *prefix = weights_has(w, "vision_model.vision_model.embeddings.class_embedding")
                             ? "vision_model.vision_model."
                             : "vision_model.";
    struct loader l = {.weights = w, .be = net->be, .check_only = true, .packed = &net->packed, .err = err};
    load_all(&l, net, prefix, class);
    l.check_only = false;
    load_all(&l, net, prefix, class);
    for (int i = 0; i < net->width; i++) /* token 0 is the class token, which has no patch to be added */
        net->start[i] += class[i];
    for (int i = 0; i < SAFETY_CONCEPTS; i++)
        normalize(net->concept[i], net -> projection);
    for (int i = 0; i < SAFETY_SPECIALS; i++)
        normalize(net->special[i], net->projection);
    if (!err->code)
        log_debug("safety checker: %d layers of %d, %d tensors of the file are not used", net->layers,
                  net->width, weights_unused(w, NULL));
    weights_close(&w);
    free(class);
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
        net->be = be;
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
    weight_list_free(&(*net)->packed, (*net)->be);
    free((*net)->start);
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
    return a->side == b->side && a->patch == b->patch && a->width == b->width && a->layers == b->layers &&
           a->projection == b->projection &&
           near(a->start, b->start, (size_t)token_count(a) * (size_t)a->width) &&
           near(a->vectors, b->vectors, (SAFETY_CONCEPTS + SAFETY_SPECIALS) * (size_t)a->projection) &&
           near(a->concept_threshold, b->concept_threshold, SAFETY_CONCEPTS) &&
           near(a->special_threshold, b->special_threshold, SAFETY_SPECIALS);
}

int safety_checker_side(const struct safety_checker *net)
{
    return net->side;
}

int safety_checker_projection(const struct safety_checker *net)
{
    return net->projection;
}

/* x [1, 1, T, C] -> [1, 1, T, C]. */
static tensor layer_forward(pass *p, const struct safety_checker *net, const struct checker_layer *y,
                            tensor x)
{
    int c = net->width;
    struct attention_args args = {.heads = net->heads, .scale = 1 / sqrtf((float)(c / net->heads))};
    tensor n = layer_norm(p, &y->norm1, x, net->eps);            /* 1 1 T C */
    tensor qkv = linear(p, &y->qkv, n, (struct linear_args){0}); /* 1 1 T 3C */
    replace(p, &n,
            attention(p, tensor_channels(qkv, 0, c), tensor_channels(qkv, c, c),
                      tensor_channels(qkv, 2 * c, c), args)); /* 1 1 T C */
    tensor_free(p, &qkv);
    tensor h = linear(p, &y->out, n, (struct linear_args){.residual = x});        /* 1 1 T C */
    replace(p, &n, layer_norm(p, &y->norm2, h, net->eps));                        /* 1 1 T C */
    replace(p, &n, linear(p, &y->fc1, n, (struct linear_args){.act = net->act})); /* 1 1 T hidden */
    replace(p, &h, linear(p, &y->fc2, n, (struct linear_args){.residual = h}));   /* 1 1 T C */
    tensor_free(p, &n);
    return h;
}

/* Squares of the picture, row by row, each as the convolution's kernel lies: channel, row, column. Row 0 of
 * OUT stays zero: it is the class token's. */
static void cut_patches(const struct safety_checker *net, const float *pixels, float *out)
{
    int k = net->patch, across = net->side / k, length = PIXEL_CHANNELS * k * k;
    for (int t = 0; t < across * across; t++) {
        float *to = out + (size_t)(t + 1) * (size_t)length;
        int top = t / across * k, left = t % across * k;
        for (int i = 0; i < length; i++) {
            int c = i / (k * k), y = top + i / k % k, x = left + i % k;
            to[i] = pixels[((size_t)y * (size_t)net->side + (size_t)x) * PIXEL_CHANNELS + (size_t)c];
        }
    }
}

/* The tokens before the first layer: position embeddings, plus the class embedding or a patch. */
static tensor embed(pass *p, const struct safety_checker *net, const float *pixels)
{
    int tokens = token_count(net), length = PIXEL_CHANNELS * net->patch * net->patch;
    float *cut = calloc((size_t)tokens * (size_t)length, sizeof(*cut));
    if (!cut) {
        error_set(p->err, ERR_NOMEM, "out of memory running the safety checker");
        return (tensor){0};
    }
    cut_patches(net, pixels, cut);
    tensor x = tensor_from_host(p, cut, 1, 1, tokens, length, pass_dtype(p)); /* 1 1 T 3kk */
    free(cut);
    tensor start = tensor_from_host(p, net->start, 1, 1, tokens, net->width, pass_dtype(p)); /* 1 1 T C */
    replace(p, &x, linear(p, &net->patches, x, (struct linear_args){.residual = start}));    /* 1 1 T C */
    tensor_free(p, &start);
    return x;
}

tensor safety_checker_embed(pass *p, const struct safety_checker *net, const float *pixels)
{
    tensor x = embed(p, net, pixels); /* 1 1 T C */
    replace(p, &x, layer_norm(p, &net->pre_norm, x, net->eps));
    for (int i = 0; i < net->layers; i++)
        replace(p, &x, layer_forward(p, net, &net->layer[i], x));
    tensor class = x; /* a view of token 0 */
    class.w = 1;
    tensor pooled = layer_norm(p, &net->post_norm, class, net->eps); /* 1 1 1 C */
    tensor_free(p, &x);
    tensor e = linear(p, &net->projected, pooled, (struct linear_args){.f32_out = true}); /* 1 1 1 P */
    tensor_free(p, &pooled);
    return e;
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
    int n = net->projection;
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
    float *embed = malloc((size_t)net->projection * sizeof(*embed));
    if (!embed)
        return error_set(p->err, ERR_NOMEM, "out of memory running the safety checker");
    for (int i = 0; i < net->projection; i++)
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
