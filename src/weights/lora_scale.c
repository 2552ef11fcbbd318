/* alpha of LoRAs that carry no alpha tensors: PEFT keeps it in LoraConfig, which diffusers writes into the
 * file's metadata ("lora_adapter_metadata", keys after "unet." and so on) and PEFT beside the file
 * (adapter_config.json). Where nothing is written down, alpha is the rank, as in diffusers. Source: peft
 * tuners/lora (scaling, use_rslora), peft utils/other.py (get_pattern_key). */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "lora.h"

enum { CONFIG_MAX = 4 << 20 };

struct lora_scales {
    cJSON *tree;
    bool prefixed; /* keys begin with the network's name */
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
    **scales = (struct lora_scales){.tree = tree, .prefixed = prefixed};
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

/* Whether KEY is the end of the first LEN bytes of NAME, at the border of a module. */
static bool names_module(const char *name, size_t len, const char *key)
{
    size_t n = strlen(key);
    return n > 0 && n <= len && memcmp(name + len - n, key, n) == 0 && (n == len || name[len - n - 1] == '.');
}

float lora_scale_of(const struct lora_scales *s, enum lora_part part, const char *name, int rank)
{
    const cJSON *alpha = s ? config_item(s, part, "lora_alpha") : NULL, *item;
    const char *end = strstr(name, ".lora");
    if (!cJSON_IsNumber(alpha))
        return 1;
    size_t len = end ? (size_t)(end - name) : strlen(name);
    cJSON_ArrayForEach(item, config_item(s, part, "alpha_pattern"))
    {
        if (cJSON_IsNumber(item) && names_module(name, len, item->string)) {
            alpha = item;
            break;
        }
    }
    bool stabilised = cJSON_IsTrue(config_item(s, part, "use_rslora"));
    return (float)(alpha->valuedouble / (stabilised ? sqrt(rank) : rank));
}
