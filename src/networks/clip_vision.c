/* CLIPVisionModelWithProjection: a picture cut in squares, a transformer over them and a class token, whose
 * last state is projected. Source: transformers models/clip/modeling_clip.py (CLIPVisionTransformer). The
 * safety checker is the same tower with a head of its own. */
#include "clip_vision.h"

#include <math.h>
#include <stdlib.h>

#include "log.h"
#include "networks.h"

enum { PIXEL_CHANNELS = 3 };

static const struct config_choice vision_choices[] = {
    {"hidden_act", "\"quick_gelu\"|\"gelu\""},
    {"num_channels", "3"},
    {NULL, NULL},
};

int clip_vision_tokens(const struct clip_vision *net)
{
    int across = net->side / net->patch;
    return across * across + 1;
}

/* Fallbacks are CLIPVisionConfig's. */
void clip_vision_read_config(struct clip_vision *net, const struct config *v, int projection)
{
    config_check(v, vision_choices);
    net->projection = projection;
    net->side = json_int(&v->r, "image_size", 224, 1, 1024);
    net->patch = json_int(&v->r, "patch_size", 32, 1, 64);
    net->width = json_int(&v->r, "hidden_size", 768, 1, 8192);
    net->hidden = json_int(&v->r, "intermediate_size", 3072, 1, 32768);
    net->layers = json_int(&v->r, "num_hidden_layers", 12, 1, VISION_LAYERS_MAX);
    net->heads = json_int(&v->r, "num_attention_heads", 12, 1, 256);
    net->eps = config_float(v, "layer_norm_eps", 1e-5, 1e-12, 1e-2);
    net->act = json_string(&v->r, "hidden_act", "quick_gelu")[0] == 'q' ? ACT_QUICK_GELU : ACT_GELU;
    if (!config_ok(v))
        return;
    if (net->width % net->heads != 0)
        error_set(v->r.err, ERR_FORMAT,
                  "%s: \"hidden_size\" %d is not a multiple of \"num_attention_heads\" %d", v->label,
                  net->width, net->heads);
    if (net->side < net->patch)
        error_set(v->r.err, ERR_FORMAT, "%s: \"image_size\" %d is less than \"patch_size\" %d", v->label,
                  net->side, net->patch);
}

int clip_vision_alloc_numbers(struct clip_vision *net, struct error *err)
{
    size_t tokens = (size_t)clip_vision_tokens(net), width = (size_t)net->width;
    net->start = calloc((tokens + 1) * width, sizeof(float));
    if (!net->start)
        return error_set(err, ERR_NOMEM, "out of memory loading the vision encoder");
    net->class_token = net->start + tokens * width;
    return 0;
}

void clip_vision_free_numbers(struct clip_vision *net)
{
    free(net->start);
    net->start = net->class_token = NULL;
}

static void load_layer(struct loader *l, const struct clip_vision *net, struct vision_layer *y,
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

void clip_vision_load_tower(struct loader *l, struct clip_vision *net, const char *prefix)
{
    int c = net->width, tokens = clip_vision_tokens(net);
    load_floats(l, net->class_token, 0, c, "%sembeddings.class_embedding", prefix);
    load_floats(l, net->start, tokens, c, "%sembeddings.position_embedding.weight", prefix);
    load_patches(l, &net->patches, c, PIXEL_CHANNELS, net->patch, "%sembeddings.patch_embedding", prefix);
    load_norm(l, &net->pre_norm, c, "%spre_layrnorm", prefix); /* transformers' spelling */
    for (int i = 0; i < net->layers; i++)
        load_layer(l, net, &net->layer[i], prefix, i);
    load_norm(l, &net->post_norm, c, "%spost_layernorm", prefix);
    load_linear(l, &net->projected, net->projection, c, false, "visual_projection");
}

void clip_vision_finish(struct clip_vision *net)
{
    for (int i = 0; i < net->width; i++)
        net->start[i] += net->class_token[i];
}

/* ---- CLIPVisionModelWithProjection ---- */

static int load_weights(struct clip_vision *net, const char *dir, const char *variant, struct error *err)
{
    struct weights *w = NULL;
    if (weights_open(&w, dir, "model", variant, err) < 0)
        return err->code;
    struct loader l = {.weights = w, .be = net->be, .check_only = true, .packed = &net->packed, .err = err};
    clip_vision_load_tower(&l, net, "vision_model.");
    l.check_only = false;
    clip_vision_load_tower(&l, net, "vision_model.");
    clip_vision_finish(net);
    if (!err->code)
        log_debug("vision encoder: %d layers of %d, %d tensors of the file are not used", net->layers,
                  net->width, weights_unused(w, NULL));
    weights_close(&w);
    return err->code;
}

int clip_vision_load(struct clip_vision **out, struct backend *be, const char *dir, const char *variant,
                     struct error *err)
{
    struct config c;
    *out = NULL;
    int rc = config_open(&c, dir, err);
    if (rc < 0)
        return rc;
    struct clip_vision *net = calloc(1, sizeof(*net));
    if (!net)
        error_set(err, ERR_NOMEM, "out of memory loading the vision encoder");
    if (net) {
        net->be = be;
        clip_vision_read_config(net, &c, json_int(&c.r, "projection_dim", 512, 1, 8192));
    }
    config_close(&c);
    if (!err->code && clip_vision_alloc_numbers(net, err) == 0)
        load_weights(net, dir, variant, err);
    if (err->code)
        clip_vision_close(&net);
    *out = net;
    return err->code;
}

void clip_vision_close(struct clip_vision **net)
{
    if (!*net)
        return;
    weight_list_free(&(*net)->packed, (*net)->be);
    clip_vision_free_numbers(*net);
    free(*net);
    *net = NULL;
}

int clip_vision_side(const struct clip_vision *net)
{
    return net->side;
}

int clip_vision_projection(const struct clip_vision *net)
{
    return net->projection;
}

/* ---- One picture ---- */

/* x [1, 1, T, C] -> [1, 1, T, C]. */
static tensor layer_forward(pass *p, const struct clip_vision *net, const struct vision_layer *y, tensor x)
{
    int c = net->width;
    struct attention_args args = {.heads = net->heads, .scale = 1 / sqrtf((float)(c / net->heads))};
    tensor qkv =
        layer_norm_linear(p, &y->norm1, net->eps, &y->qkv, x, (struct linear_args){0}); /* 1 1 T 3C */
    tensor n = attention(p, tensor_channels(qkv, 0, c), tensor_channels(qkv, c, c),
                         tensor_channels(qkv, 2 * c, c), args); /* 1 1 T C */
    tensor_free(p, &qkv);
    tensor h = linear(p, &y->out, n, (struct linear_args){.residual = x}); /* 1 1 T C */
    tensor_free(p, &n);
    n = layer_norm_linear(p, &y->norm2, net->eps, &y->fc1, h,
                          (struct linear_args){.act = net->act});               /* 1 1 T hidden */
    replace(p, &h, linear(p, &y->fc2, n, (struct linear_args){.residual = h})); /* 1 1 T C */
    tensor_free(p, &n);
    return h;
}

/* Squares of the picture, row by row, each as the convolution's kernel lies: channel, row, column. Row 0 of
 * OUT stays zero: it is the class token's. */
static void cut_patches(const struct clip_vision *net, const float *pixels, float *out)
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
static tensor embed(pass *p, const struct clip_vision *net, const float *pixels)
{
    int tokens = clip_vision_tokens(net), length = PIXEL_CHANNELS * net->patch * net->patch;
    float *cut = calloc((size_t)tokens * (size_t)length, sizeof(*cut));
    if (!cut) {
        error_set(p->err, ERR_NOMEM, "out of memory running the vision encoder");
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

tensor clip_vision_embed(pass *p, const struct clip_vision *net, const float *pixels)
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
