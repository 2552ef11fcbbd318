/* The names of LoRA tensors. Three namings are in use: diffusers' (unet.….to_q.lora.down.weight, before 0.20
 * ….processor.to_q_lora.down.weight), PEFT's (….to_q.lora_A.weight) and kohya's
 * (lora_unet_…_to_q.lora_down.weight, with ….alpha), the last also over the block names of the original
 * Stable Diffusion (input_blocks_4_1_…). Sources: diffusers utils/state_dict_utils.py,
 * loaders/lora_conversion_utils.py; kohya-ss/sd-scripts networks/lora.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lora.h"

static bool starts(const char *s, const char *head)
{
    return strncmp(s, head, strlen(head)) == 0;
}

/* Cuts TAIL off S when S ends with it. */
static bool cut(char *s, const char *tail)
{
    size_t len = strlen(s), n = strlen(tail);
    if (len <= n || strcmp(s + len - n, tail) != 0)
        return false;
    s[len - n] = '\0';
    return true;
}

/* Cuts MIDDLE and what follows it (".lora_A.default.weight": an adapter's name) off S. */
static bool cut_adapter(char *s, const char *middle)
{
    char *at = strstr(s, middle), *end = s + strlen(s);
    if (!at || at == s || end - at < 8 || strcmp(end - 7, ".weight") != 0)
        return false;
    const char *name = at + strlen(middle);
    if (strchr(name, '.') != end - 7)
        return false;
    *at = '\0';
    return true;
}

/* The end of the name: which tensor of a layer it is. Leaves the module in NAME. */
static int read_role(char *name, const char *whole, enum lora_role *role, struct error *err)
{
    static const struct {
        const char *tail;
        enum lora_role role;
    } tails[] = {
        {".lora_down.weight", LORA_DOWN},
        {".lora_up.weight", LORA_UP},
        {".lora.down.weight", LORA_DOWN},
        {".lora.up.weight", LORA_UP},
        {".lora_linear_layer.down.weight", LORA_DOWN},
        {".lora_linear_layer.up.weight", LORA_UP},
        {"_lora.down.weight", LORA_DOWN},
        {"_lora.up.weight", LORA_UP},
        {".lora_A.weight", LORA_DOWN},
        {".lora_B.weight", LORA_UP},
        {".alpha", LORA_ALPHA},
        {".dora_scale", LORA_IGNORED},
    };
    static const char *const others[] = {".lora_mid.", ".hada_",        ".lokr_",    ".lora_magnitude_vector",
                                         ".diff",      ".lora_B.bias",  ".oft_",     ".boft_",
                                         ".on_input",  ".lora_up.bias", ".a1.weight"};
    for (size_t i = 0; i < sizeof(tails) / sizeof(*tails); i++) {
        *role = tails[i].role;
        if (cut(name, tails[i].tail))
            return 0;
    }
    if (cut_adapter(name, ".lora_A.")) {
        *role = LORA_DOWN;
        return 0;
    }
    if (cut_adapter(name, ".lora_B.")) {
        *role = LORA_UP;
        return 0;
    }
    for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
        if (strstr(name, others[i]))
            return error_set(
                err, ERR_UNSUPPORTED,
                "\"%.200s\" belongs to another kind of adapter (%s); plain LoRA and LoCon are built", whole,
                others[i]);
    return error_set(err, ERR_FORMAT, "\"%.200s\" is not the name of a LoRA tensor", whole);
}

/* The beginning of the name: which network. Returns what follows, or NULL. */
static const char *read_part(const char *s, enum lora_part *part)
{
    static const struct {
        const char *head;
        enum lora_part part;
        bool stays; /* the head belongs to the module's own name */
    } heads[] = {
        {"lora_unet_", LORA_UNET, false},
        {"lora_te_", LORA_TEXT, false},
        {"lora_te1_", LORA_TEXT, false},
        {"lora_te2_", LORA_TEXT_2, false},
        {"unet.", LORA_UNET, false},
        {"text_encoder.", LORA_TEXT, false},
        {"text_encoder_2.", LORA_TEXT_2, false},
        {"model.diffusion_model.", LORA_UNET, false},
        {"diffusion_model.", LORA_UNET, false},
        {"down_blocks.", LORA_UNET, true},
        {"mid_block.", LORA_UNET, true},
        {"up_blocks.", LORA_UNET, true},
        {"conv_in", LORA_UNET, true},
        {"conv_out", LORA_UNET, true},
        {"time_embedding.", LORA_UNET, true},
        {"add_embedding.", LORA_UNET, true},
        {"text_model.", LORA_TEXT, true},
        {"encoder.layers.", LORA_TEXT, true},
        {"text_projection", LORA_TEXT, true},
    };
    static const char peft[] = "base_model.model.";
    if (starts(s, peft))
        s += strlen(peft);
    for (size_t i = 0; i < sizeof(heads) / sizeof(*heads); i++) {
        if (!starts(s, heads[i].head))
            continue;
        *part = heads[i].part;
        s += heads[i].stays ? 0 : strlen(heads[i].head);
        return starts(s, peft) ? s + strlen(peft) : s;
    }
    return NULL;
}

/* Reads a number and the '_' after it. */
static bool read_index(const char **s, int *out)
{
    char *end;
    if (**s < '0' || **s > '9')
        return false;
    long v = strtol(*s, &end, 10);
    if (v > 999 || (*end != '_' && *end != '\0'))
        return false;
    *out = (int)v;
    *s = *end ? end + 1 : end;
    return true;
}

/* The layers of a ResNet block: SGM's in_layers_2 is diffusers' conv1. */
static const char *resnet_leaf(const char *leaf)
{
    static const char *const names[][2] = {{"in_layers_2", "conv1"},
                                           {"out_layers_3", "conv2"},
                                           {"emb_layers_1", "time_emb_proj"},
                                           {"skip_connection", "conv_shortcut"}};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (strcmp(leaf, names[i][0]) == 0)
            return names[i][1];
    return leaf;
}

/* What stands outside the blocks. */
static const char *sgm_outside(const char *s)
{
    static const char *const names[][2] = {{"input_blocks_0_0", "conv_in"},
                                           {"out_2", "conv_out"},
                                           {"time_embed_0", "time_embedding_linear_1"},
                                           {"time_embed_2", "time_embedding_linear_2"},
                                           {"label_emb_0_0", "add_embedding_linear_1"},
                                           {"label_emb_0_2", "add_embedding_linear_2"}};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (strcmp(s, names[i][0]) == 0)
            return names[i][1];
    return NULL;
}

/* Position J inside SGM block I of diffusers' block B: 0 is a ResNet block, 1 a transformer. */
static bool sgm_inner(char *out, const char *blocks, int b, int layer, int j, const char *leaf)
{
    int n = strcmp(leaf, "op") == 0 ? snprintf(out, LORA_NAME_SIZE, "%s_%d_downsamplers_0_conv", blocks, b)
            : strcmp(leaf, "conv") == 0 ? snprintf(out, LORA_NAME_SIZE, "%s_%d_upsamplers_0_conv", blocks, b)
            : j == 0
                ? snprintf(out, LORA_NAME_SIZE, "%s_%d_resnets_%d_%s", blocks, b, layer, resnet_leaf(leaf))
                : snprintf(out, LORA_NAME_SIZE, "%s_%d_attentions_%d_%s", blocks, b, layer, leaf);
    return j <= 2 && n > 0 && n < LORA_NAME_SIZE;
}

/* From SGM's names of UNet blocks to diffusers'. MODULE stays as it is when it has none; false when it has
 * one that cannot be. */
static bool from_sgm(char *module, int layers)
{
    char old[LORA_NAME_SIZE];
    const char *s = strcpy(old, module), *outside = sgm_outside(old);
    int i = 0, j = 0, unit = layers + 1;
    if (outside) {
        strcpy(module, outside);
        return true;
    }
    if (starts(s, "input_blocks_")) {
        s += strlen("input_blocks_");
        return read_index(&s, &i) && read_index(&s, &j) && i > 0 &&
               sgm_inner(module, "down_blocks", (i - 1) / unit, (i - 1) % unit, j, s);
    }
    if (starts(s, "output_blocks_")) {
        s += strlen("output_blocks_");
        return read_index(&s, &i) && read_index(&s, &j) &&
               sgm_inner(module, "up_blocks", i / unit, i % unit, j, s);
    }
    if (starts(s, "middle_block_")) {
        s += strlen("middle_block_");
        if (!read_index(&s, &j) || j > 2)
            return false;
        int n = j == 1 ? snprintf(module, LORA_NAME_SIZE, "mid_block_attentions_0_%s", s)
                       : snprintf(module, LORA_NAME_SIZE, "mid_block_resnets_%d_%s", j / 2, resnet_leaf(s));
        return n > 0 && n < LORA_NAME_SIZE;
    }
    return true;
}

/* Old attention processors: to_out is a list in diffusers, and CLIP's projections are named after their kind.
 */
static bool from_processor(enum lora_part part, char *module)
{
    static const char *const text[][2] = {
        {"_to_q", "_q_proj"}, {"_to_k", "_k_proj"}, {"_to_v", "_v_proj"}, {"_to_out", "_out_proj"}};
    if (strlen(module) + 8 > LORA_NAME_SIZE)
        return false;
    for (int i = 0; part != LORA_UNET && i < 4; i++)
        if (cut(module, text[i][0])) {
            strcat(module, text[i][1]);
            return true;
        }
    if (part == LORA_UNET && cut(module, "_to_out"))
        strcat(module, "_to_out_0");
    return true;
}

bool lora_module_name(enum lora_part part, const char *name, char *module)
{
    static const char processor[] = ".processor";
    size_t n = 0;
    if (part != LORA_UNET && (starts(name, "text_model.") || starts(name, "text_model_")))
        name += strlen("text_model.");
    for (; *name; name++) {
        if (starts(name, processor) &&
            (name[sizeof(processor) - 1] == '.' || name[sizeof(processor) - 1] == '\0'))
            name += sizeof(processor) - 1;
        if (!*name)
            break;
        if (n + 1 >= LORA_NAME_SIZE)
            return false;
        module[n++] = *name == '.' ? '_' : *name;
    }
    module[n] = '\0';
    return true;
}

int lora_key_parse(const char *name, int layers, struct lora_key *key, struct error *err)
{
    char body[2 * LORA_NAME_SIZE];
    if (strlen(name) >= sizeof(body))
        return error_set(err, ERR_FORMAT, "\"%.60s…\" is too long for the name of a LoRA tensor", name);
    strcpy(body, name);
    int rc = read_role(body, name, &key->role, err);
    if (rc)
        return rc;
    const char *module = read_part(body, &key->part);
    if (!module || !*module || !lora_module_name(key->part, module, key->module) ||
        !from_processor(key->part, key->module) || (key->part == LORA_UNET && !from_sgm(key->module, layers)))
        return error_set(err, ERR_FORMAT, "\"%.200s\" names no module of a UNet or a text encoder", name);
    return 0;
}
