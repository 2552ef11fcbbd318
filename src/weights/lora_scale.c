/* alpha of LoRA layers that carry no alpha tensor: PEFT keeps it in LoraConfig, which diffusers writes into
 * the file's metadata ("lora_adapter_metadata", keys after "unet." and so on) and PEFT beside the file
 * (adapter_config.json). Where nothing is written down, it is what diffusers makes up. Sources: peft
 * tuners/lora (scaling, use_rslora), peft utils/other.py (get_pattern_key), diffusers utils/peft_utils.py
 * (get_peft_kwargs). */
#include <cjson/cJSON.h>
#include <ctype.h>
#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "lora.h"

enum { CONFIG_MAX = 4 << 20 };

struct lora_scales {
    cJSON *tree;
    const char *label; /* of the file, for error texts */
    bool prefixed;     /* keys begin with the network's name */
};

/* A string from the file's own metadata; NULL when it is not there. Parses the header anew: few files have
 * it. */
static cJSON *read_metadata(const struct safetensors *st, struct error *err)
{
    static const char key[] = "\"lora_adapter_metadata\"";
    const char *header = (const char *)st->map + 8;
    size_t len = (size_t)((const char *)st->data - header);
    if (!memmem(header, len, key, sizeof(key) - 1))
        return NULL;
    cJSON *tree = cJSON_ParseWithLength(header, len);
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(
        cJSON_GetObjectItemCaseSensitive(tree, "__metadata__"), "lora_adapter_metadata");
    cJSON *found = cJSON_IsString(text) ? cJSON_Parse(text->valuestring) : NULL;
    cJSON_Delete(tree);
    if (!found)
        error_set(err, ERR_FORMAT, "%s: \"lora_adapter_metadata\" cannot be read", st->label);
    return found;
}

int lora_scales_open(struct lora_scales **scales, const struct safetensors *st, const char *config,
                     struct error *err)
{
    cJSON *tree = read_metadata(st, err);
    bool prefixed = tree != NULL;
    *scales = NULL;
    if (!tree && !err->code && *config)
        tree = json_read_file(config, CONFIG_MAX, err);
    if (!tree)
        return err->code;
    *scales = calloc(1, sizeof(**scales));
    if (!*scales) {
        cJSON_Delete(tree);
        return error_set(err, ERR_NOMEM, "out of memory reading a LoRA");
    }
    **scales = (struct lora_scales){.tree = tree, .label = st->label, .prefixed = prefixed};
    return 0;
}

void lora_scales_close(struct lora_scales **scales)
{
    if (!*scales)
        return;
    cJSON_Delete((*scales)->tree);
    free(*scales);
    *scales = NULL;
}

static const cJSON *config_item(const struct lora_scales *s, enum lora_part part, const char *key)
{
    static const char *const parts[] = {"unet.", "text_encoder.", "text_encoder_2."};
    char full[64];
    snprintf(full, sizeof(full), "%s%s", s->prefixed ? parts[part] : "", key);
    return cJSON_GetObjectItemCaseSensitive(s->tree, full);
}

/* The module of the tensor NAME, as it is called inside its network. */
static void module_of(const char *name, char module[2 * LORA_NAME_SIZE])
{
    static const char *const heads[] = {"base_model.model.", "unet.", "text_encoder.", "text_encoder_2.",
                                        "base_model.model."};
    for (size_t i = 0; i < sizeof(heads) / sizeof(*heads); i++)
        if (strncmp(name, heads[i], strlen(heads[i])) == 0)
            name += strlen(heads[i]);
    const char *end = strstr(name, ".lora");
    snprintf(module, (size_t)2 * LORA_NAME_SIZE, "%.*s", end ? (int)(end - name) : (int)strlen(name), name);
}

/* Whether POSIX reads the regular expression KEY as Python does. Repeats by number, and many of '+', are left
 * out too: glibc spells them out, which takes memory without bound. */
static bool is_common(const char *key)
{
    bool in_brackets = false;
    int pluses = 0;
    for (const char *c = key; *c; c++) {
        if (*c == '{' || (*c == '+' && ++pluses > 8) || (*c == '(' && c[1] == '?'))
            return false;
        if (*c == '[' || *c == ']')
            in_brackets = *c == '[';
        if (*c == '\\' && (in_brackets || (isalnum((unsigned char)c[1]) && !strchr("wWsSbB", c[1]))))
            return false;
        if (*c == '\\' && c[1])
            c++;
    }
    return strlen(key) < LORA_NAME_SIZE;
}

/* Whether KEY of alpha_pattern, a regular expression, is MODULE's: as PEFT matches it, from the beginning or
 * after a dot, and to the end. Most keys are plain names, or such after "^", and compared as such. */
static int match_key(const struct lora_scales *s, const char *key, const char *module, bool *matches,
                     struct error *err)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    const char *name = key + (*key == '^');
    size_t n = strlen(name), len = strlen(module);
    char whole[LORA_NAME_SIZE + 16];
    regex_t expression;
    if (strspn(name, plain) == n) {
        *matches = n > 0 && n <= len && strcmp(module + len - n, name) == 0 &&
                   (n == len || (name == key && module[len - n - 1] == '.'));
        return 0;
    }
    snprintf(whole, sizeof(whole), "^(.*\\.)?(%s)$", key);
    if (!is_common(key) || regcomp(&expression, whole, REG_EXTENDED | REG_NOSUB) != 0)
        return error_set(err, ERR_UNSUPPORTED, "%s: \"%.200s\" in alpha_pattern cannot be read", s->label,
                         key);
    *matches = regexec(&expression, module, 0, NULL, 0) == 0;
    regfree(&expression);
    return 0;
}

int lora_scale_of(const struct lora_scales *s, enum lora_part part, const char *name, int rank, float *scale,
                  struct error *err)
{
    const cJSON *alpha = s ? config_item(s, part, "lora_alpha") : NULL, *item;
    char module[2 * LORA_NAME_SIZE];
    *scale = NAN;
    if (!cJSON_IsNumber(alpha))
        return 0;
    module_of(name, module);
    cJSON_ArrayForEach(item, config_item(s, part, "alpha_pattern"))
    {
        bool matches = false;
        int rc = cJSON_IsNumber(item) ? match_key(s, item->string, module, &matches, err) : 0;
        if (rc)
            return rc;
        if (matches) {
            alpha = item;
            break;
        }
    }
    bool stabilised = cJSON_IsTrue(config_item(s, part, "use_rslora"));
    *scale = (float)(alpha->valuedouble / (stabilised ? sqrt(rank) : rank));
    return 0;
}

/* ---- What diffusers makes up ---- */

/* The alpha that most layers of PART have; among those of the same count the first in the file. NAN: no layer
 * has one. */
static double common_alpha(const struct lora_layer *layer, int layers, enum lora_part part)
{
    const struct lora_layer *best = NULL;
    int most = 0;
    for (int i = 0; i < layers; i++) {
        const struct lora_layer *l = &layer[i];
        int count = 0;
        for (int k = 0; k < layers && l->module->part == part && !isnan(l->alpha); k++)
            count += layer[k].module->part == part && layer[k].alpha == l->alpha;
        if (count > most || (count && count == most && l->down->begin < best->down->begin)) {
            most = count;
            best = l;
        }
    }
    return best ? best->alpha : NAN;
}

/* Whether A comes before B where diffusers looks for the first: in the UNet's file, and among the text
 * encoder's modules, of which k and v come before q there. */
static bool comes_first(const struct lora_layer *a, const struct lora_layer *b)
{
    if (a->module->part == LORA_UNET)
        return a->down->begin < b->down->begin;
    if (a->module->item != b->module->item)
        return a->module->item < b->module->item;
    return (a->module->slot + 2) % 3 < (b->module->slot + 2) % 3;
}

static double first_rank(const struct lora_layer *layer, int layers, enum lora_part part)
{
    const struct lora_layer *first = NULL;
    for (int i = 0; i < layers; i++)
        if (layer[i].module->part == part && (!first || comes_first(&layer[i], first)))
            first = &layer[i];
    return first ? first->rank : 1;
}

/* alpha is the commonest of the part's, else the rank of its first layer, whatever the ranks of the others.
 */
void lora_scales_fill(struct lora_layer *layer, int layers)
{
    double alpha[LORA_PARTS];
    for (int part = 0; part < LORA_PARTS; part++) {
        alpha[part] = common_alpha(layer, layers, (enum lora_part)part);
        if (isnan(alpha[part]))
            alpha[part] = first_rank(layer, layers, (enum lora_part)part);
    }
    for (int i = 0; i < layers; i++)
        if (isnan(layer[i].scale))
            layer[i].scale = (float)(alpha[layer[i].module->part] / layer[i].rank);
}
