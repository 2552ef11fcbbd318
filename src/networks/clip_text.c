/* CLIP's text encoder: token and position embeddings, pre-norm transformer layers with a causal mask, final
 * norm. Source: transformers models/clip/modeling_clip.py (CLIPTextModel,
 * CLIPTextModelWithProjection). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "blocks.h"
#include "config.h"
#include "log.h"
#include "networks.h"

enum { CLIP_LAYERS_MAX = 64 };

struct clip_layer {
    weight norm1, qkv, out;
    weight norm2, fc1, fc2;
};

struct clip_text {
    struct backend *be;
    struct weight_list packed;
    int vocab, width, hidden, positions, layers, heads;
    float eps;
    enum act act;
    int projection; /* width of text_projection; 0: there is none */
    bool masks_padding;
    int end_of_text; /* its id; 2 stands for the highest id of a prompt, see end_of_text() */
    weight tokens, position, final_norm, text_projection;
    struct clip_layer layer[CLIP_LAYERS_MAX];
};

static const struct config_choice clip_choices[] = {
    {"hidden_act", "\"quick_gelu\"|\"gelu\""},
    {"model_type", "\"clip_text_model\"|\"clip\""},
    {NULL, NULL},
};

/* Fallbacks are CLIPTextConfig's. */
static void read_config(struct clip_text *net, const struct config *c)
{
    config_check(c, clip_choices);
    net->vocab = json_int(&c->r, "vocab_size", 49408, 1, 1 << 20);
    net->width = json_int(&c->r, "hidden_size", 512, 1, 8192);
    net->hidden = json_int(&c->r, "intermediate_size", 2048, 1, 32768);
    net->positions = json_int(&c->r, "max_position_embeddings", 77, 2, 1024);
    net->layers = json_int(&c->r, "num_hidden_layers", 12, 1, CLIP_LAYERS_MAX);
    net->heads = json_int(&c->r, "num_attention_heads", 8, 1, 256);
    net->eps = config_float(c, "layer_norm_eps", 1e-5, 1e-12, 1e-2);
    net->projection = json_int(&c->r, "projection_dim", 512, 1, 8192);
    net->end_of_text = json_int(&c->r, "eos_token_id", 49407, 0, 1 << 20);
    net->masks_padding = json_bool(&c->r, "use_attention_mask", false);
    const char *act = json_string(&c->r, "hidden_act", "quick_gelu");
    net->act = act[0] == 'q' ? ACT_QUICK_GELU : ACT_GELU;
    if (net->width % net->heads != 0)
        error_set(c->r.err, ERR_FORMAT,
                  "%s: \"hidden_size\" %d is not a multiple of \"num_attention_heads\" %d", c->label,
                  net->width, net->heads);
}

/* All tensors, under PREFIX ("text_model." or ""). */
static void load_all(struct loader *l, struct clip_text *net, const char *prefix)
{
    static const char *const qkv[] = {"q_proj", "k_proj", "v_proj"};
    int c = net->width;
    load_embedding(l, &net->tokens, net->vocab, c, "%sembeddings.token_embedding", prefix);
    load_embedding(l, &net->position, net->positions, c, "%sembeddings.position_embedding", prefix);
    for (int i = 0; i < net->layers; i++) {
        struct clip_layer *y = &net->layer[i];
        load_norm(l, &y->norm1, c, "%sencoder.layers.%d.layer_norm1", prefix, i);
        load_linear_parts(l, &y->qkv, 3, qkv, c, c, true, "%sencoder.layers.%d.self_attn", prefix, i);
        load_linear(l, &y->out, c, c, true, "%sencoder.layers.%d.self_attn.out_proj", prefix, i);
        load_norm(l, &y->norm2, c, "%sencoder.layers.%d.layer_norm2", prefix, i);
        load_linear(l, &y->fc1, net->hidden, c, true, "%sencoder.layers.%d.mlp.fc1", prefix, i);
        load_linear(l, &y->fc2, c, net->hidden, true, "%sencoder.layers.%d.mlp.fc2", prefix, i);
    }
    load_norm(l, &net->final_norm, c, "%sfinal_layer_norm", prefix);
    if (net->projection)
        load_linear(l, &net->text_projection, net->projection, c, false, "text_projection");
}

static int load_weights(struct clip_text *net, const char *dir, const char *variant, struct error *err)
{
    struct weights *w = NULL;
    if (weights_open(&w, dir, "model", variant, err) < 0)
        return err->code;
    const char *prefix = weights_has(w, "embeddings.token_embedding.weight") ? "" : "text_model.";
    if (!weights_has(w, "text_projection.weight")) /* CLIPTextModel, whatever projection_dim says */
        net->projection = 0;
    struct loader l = {
        .weights = w, .be = net->be, .check_only = true, .keep = true, .packed = &net->packed, .err = err};
    load_all(&l, net, prefix);
    l.check_only = false;
    load_all(&l, net, prefix);
    if (!err->code)
        log_debug("text encoder: %d layers of %d, %d tensors of the file are not used", net->layers,
                  net->width, weights_unused(w, NULL));
    if (!err->code)
        weight_list_keep(&net->packed, &w);
    weights_close(&w);
    return err->code;
}

int clip_text_load(struct clip_text **out, struct backend *be, const char *dir, const char *variant,
                   struct error *err)
{
    struct config c;
    *out = NULL;
    int rc = config_open(&c, dir, err);
    if (rc < 0)
        return rc;
    struct clip_text *net = calloc(1, sizeof(*net));
    if (!net)
        error_set(err, ERR_NOMEM, "out of memory loading the text encoder");
    if (net) {
        net->be = be;
        read_config(net, &c);
    }
    config_close(&c);
    if (!err->code)
        load_weights(net, dir, variant, err);
    if (err->code)
        clip_text_close(&net);
    *out = net;
    return err->code;
}

void clip_text_close(struct clip_text **net)
{
    if (!*net)
        return;
    weight_list_free(&(*net)->packed, (*net)->be);
    free(*net);
    *net = NULL;
}

struct weight_list *clip_text_weights(struct clip_text *net)
{
    return &net->packed;
}

int clip_text_positions(const struct clip_text *net)
{
    return net->positions;
}

void clip_text_limit(struct clip_text *net, int tokens)
{
    if (tokens && tokens < net->positions)
        net->positions = tokens;
}

bool clip_text_masks_padding(const struct clip_text *net)
{
    return net->masks_padding;
}

int clip_text_vocab(const struct clip_text *net)
{
    return net->vocab;
}

int clip_text_width(const struct clip_text *net)
{
    return net->width;
}

int clip_text_projection(const struct clip_text *net)
{
    return net->projection;
}

/* x [N, 1, T, C] -> [N, 1, T, C]. */
static tensor layer_forward(pass *p, const struct clip_text *net, const struct clip_layer *y, tensor x)
{
    int c = net->width;
    struct attention_args args = {
        .heads = net->heads, .scale = 1 / sqrtf((float)(c / net->heads)), .causal = true};
    tensor qkv =
        layer_norm_linear(p, &y->norm1, net->eps, &y->qkv, x, (struct linear_args){0}); /* N 1 T 3C */
    tensor n = attention(p, tensor_channels(qkv, 0, c), tensor_channels(qkv, c, c),
                         tensor_channels(qkv, 2 * c, c), args); /* N 1 T C */
    tensor_free(p, &qkv);
    tensor h = linear(p, &y->out, n, (struct linear_args){.residual = x}); /* N 1 T C */
    tensor_free(p, &n);
    n = layer_norm_linear(p, &y->norm2, net->eps, &y->fc1, h,
                          (struct linear_args){.act = net->act});               /* N 1 T hidden */
    replace(p, &h, linear(p, &y->fc2, n, (struct linear_args){.residual = h})); /* N 1 T C */
    tensor_free(p, &n);
    return h;
}

tensor clip_text_forward(pass *p, const struct clip_text *net, const int32_t *ids, int n)
{
    tensor x = embed_tokens(p, &net->tokens, &net->position, ids, n, net->positions); /* N 1 T C */
    for (int i = 0; i < net->layers; i++)
        replace(p, &x, layer_forward(p, net, &net->layer[i], x));
    replace(p, &x, layer_norm(p, &net->final_norm, x, net->eps));
    return x;
}

/* Where the pooled output is read in ids [T]: at the first end-of-text token, or at token 0 when there is
 * none. Configs written before transformers 4.31 say 2 for it, which was wrong; transformers then takes the
 * highest id, the first of several, and so does this. */
static int end_of_text(const struct clip_text *net, const int32_t *ids)
{
    int at = 0;
    for (int t = 1; t < net->positions; t++) {
        if (net->end_of_text == 2 ? ids[t] > ids[at]
                                  : ids[at] != net->end_of_text && ids[t] == net->end_of_text)
            at = t;
    }
    return at;
}

/* Last layer's output x [N, 1, T, C] -> text_embeds [N, 1, 1, projection]. */
static tensor pool(pass *p, const struct clip_text *net, tensor x, const int32_t *ids)
{
    tensor all = {0}; /* 1 1 1 N*projection, as it grows */
    for (int i = 0; i < x.n; i++) {
        int t = end_of_text(net, ids + (size_t)i * (size_t)net->positions);
        tensor y = layer_norm(p, &net->final_norm, tensor_tokens(tensor_batch(x, i, 1), t, 1), net->eps);
        replace(p, &y, linear(p, &net->text_projection, y, (struct linear_args){0})); /* 1 1 1 projection */
        if (i == 0) {
            all = y;
            continue;
        }
        replace(p, &all, concat_channels(p, all, y));
        tensor_free(p, &y);
    }
    return tensor_as_vectors(all, x.n, net->projection);
}

tensor clip_text_forward_penultimate(pass *p, const struct clip_text *net, const int32_t *ids, int n,
                                     tensor *pooled)
{
    if (pooled && !net->projection) {
        error_set(p->err, ERR_INTERNAL, "this text encoder has no text_projection, so no pooled output");
        return *pooled = (tensor){0};
    }
    tensor x = embed_tokens(p, &net->tokens, &net->position, ids, n, net->positions); /* N 1 T C */
    for (int i = 0; i + 1 < net->layers; i++)
        replace(p, &x, layer_forward(p, net, &net->layer[i], x));
    if (pooled) {
        tensor last = layer_forward(p, net, &net->layer[net->layers - 1], x); /* N 1 T C */
        *pooled = pool(p, net, last, ids);
        tensor_free(p, &last);
    }
    return x;
}
