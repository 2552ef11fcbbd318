/* From the names of the original code bases to those of diffusers. Source: diffusers
 * loaders/single_file_utils.py (convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint,
 * convert_open_clip_checkpoint). Where those count layers from the config, this looks at which blocks end in
 * a down- or upsampler. */
#include <stdio.h>
#include <string.h>

#include "single_file.h"

struct rename {
    const char *from, *to;
};

/* Whether there is a tensor BEFORE, I, AFTER. */
static bool has(const struct safetensors *st, const char *before, int i, const char *after)
{
    char name[LDM_NAME_MAX];
    snprintf(name, sizeof(name), "%s%d%s", before, i, after);
    return safetensors_find(st, name) != NULL;
}

#define UNET "model.diffusion_model."

void ldm_layout_read(struct ldm_layout *y, const struct safetensors *st)
{
    int block = 0, layer = 0;
    *y = (struct ldm_layout){0};
    for (int i = 1; i < LDM_BLOCKS_MAX; i++) {
        bool down = has(st, UNET "input_blocks.", i, ".0.op.weight");
        y->in[i].block = block;
        y->in[i].layer = layer;
        block += down;
        layer = down ? 0 : layer + 1;
    }
    block = layer = 0;
    for (int i = 0; i < LDM_BLOCKS_MAX; i++) {
        bool up = has(st, UNET "output_blocks.", i, ".1.conv.weight") ||
                  has(st, UNET "output_blocks.", i, ".2.conv.weight");
        y->out[i].block = block;
        y->out[i].layer = layer;
        block += up;
        layer = up ? 0 : layer + 1;
    }
    while (has(st, "first_stage_model.decoder.up.", y->ups, ".block.0.norm1.weight") ||
           has(st, "vae.decoder.up.", y->ups, ".block.0.norm1.weight"))
        y->ups++;
}

/* OUT = TEXT with the first entry of LIST (ended by NULL) that occurs in it replaced. False when it does not
 * fit. */
static bool replace_one(char *out, const char *text, const struct rename *list)
{
    const char *at = NULL;
    for (; list->from && !at; list++)
        if ((at = strstr(text, list->from)) != NULL)
            return snprintf(out, LDM_NAME_MAX, "%.*s%s%s", (int)(at - text), text, list->to,
                            at + strlen(list->from)) < LDM_NAME_MAX;
    return snprintf(out, LDM_NAME_MAX, "%s", text) < LDM_NAME_MAX;
}

/* "BEFORE%d.MIDDLE%d.REST" of the two numbers. */
static bool put(char *out, const char *before, int i, const char *middle, int k, const char *rest)
{
    return snprintf(out, LDM_NAME_MAX, "%s%d.%s%d.%s", before, i, middle, k, rest) < LDM_NAME_MAX;
}

static const struct rename unet_ends[] = {
    {"time_embed.0.", "time_embedding.linear_1."},
    {"time_embed.2.", "time_embedding.linear_2."},
    {"time_embed.cond_proj.", "time_embedding.cond_proj."},
    {"label_emb.0.0.", "add_embedding.linear_1."},
    {"label_emb.0.2.", "add_embedding.linear_2."},
    {"input_blocks.0.0.", "conv_in."},
    {"out.0.", "conv_norm_out."},
    {"out.2.", "conv_out."},
    {NULL, NULL},
};
static const struct rename unet_resnet[] = {
    {"in_layers.0", "norm1"},
    {"in_layers.2", "conv1"},
    {"out_layers.0", "norm2"},
    {"out_layers.3", "conv2"},
    {"emb_layers.1", "time_emb_proj"},
    {"skip_connection", "conv_shortcut"},
    {NULL, NULL},
};

/* Part J of an input or output block, whose place in diffusers is BLOCK and LAYER. */
static bool unet_block_name(const char *where, int block, int layer, int j, const char *rest, char *out)
{
    char renamed[LDM_NAME_MAX];
    if (strncmp(rest, "op.", 3) == 0)
        return put(out, where, block, "downsamplers.", 0, "conv.") &&
               strlen(out) + strlen(rest) < LDM_NAME_MAX && strcat(out, rest + 3);
    if (j > 0 && strncmp(rest, "conv.", 5) == 0)
        return put(out, where, block, "upsamplers.", 0, rest);
    if (j == 1)
        return put(out, where, block, "attentions.", layer, rest);
    return j == 0 && replace_one(renamed, rest, unet_resnet) &&
           put(out, where, block, "resnets.", layer, renamed);
}

bool ldm_unet_name(const struct ldm_layout *y, const char *name, char *out)
{
    int i = 0, j = 0, n = 0;
    char renamed[LDM_NAME_MAX];
    for (const struct rename *e = unet_ends; e->from; e++) {
        if (strncmp(name, e->from, strlen(e->from)) == 0)
            return snprintf(out, LDM_NAME_MAX, "%s%s", e->to, name + strlen(e->from)) < LDM_NAME_MAX;
    }
    if (sscanf(name, "input_blocks.%d.%d.%n", &i, &j, &n) == 2 && n && i > 0 && i < LDM_BLOCKS_MAX)
        return unet_block_name("down_blocks.", y->in[i].block, y->in[i].layer, j, name + n, out);
    n = 0;
    if (sscanf(name, "output_blocks.%d.%d.%n", &i, &j, &n) == 2 && n && i >= 0 && i < LDM_BLOCKS_MAX)
        return unet_block_name("up_blocks.", y->out[i].block, y->out[i].layer, j, name + n, out);
    n = 0;
    if (sscanf(name, "middle_block.%d.%n", &j, &n) != 1 || !n || j < 0 || j > 2)
        return false;
    if (j == 1)
        return snprintf(out, LDM_NAME_MAX, "mid_block.attentions.0.%s", name + n) < LDM_NAME_MAX;
    return replace_one(renamed, name + n, unet_resnet) &&
           snprintf(out, LDM_NAME_MAX, "mid_block.resnets.%d.%s", j / 2, renamed) < LDM_NAME_MAX;
}

static const struct rename vae_ends[] = {
    {".norm_out.", ".conv_norm_out."},
    {".mid.block_1.", ".mid_block.resnets.0."},
    {".mid.block_2.", ".mid_block.resnets.1."},
    {".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."},
    {".mid.attn_1.q.", ".mid_block.attentions.0.to_q."},
    {".mid.attn_1.k.", ".mid_block.attentions.0.to_k."},
    {".mid.attn_1.v.", ".mid_block.attentions.0.to_v."},
    {".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."},
    {NULL, NULL},
};
static const struct rename vae_resnet[] = {{"nin_shortcut", "conv_shortcut"}, {NULL, NULL}};

/* What follows "down.I." or "up.I." in block I of diffusers. */
static bool vae_block_name(const char *where, int block, const char *rest, char *out)
{
    int k = 0, n = 0;
    char renamed[LDM_NAME_MAX];
    if (sscanf(rest, "block.%d.%n", &k, &n) == 1 && n)
        return replace_one(renamed, rest + n, vae_resnet) && put(out, where, block, "resnets.", k, renamed);
    if (strncmp(rest, "downsample.", 11) == 0)
        return put(out, where, block, "downsamplers.", 0, rest + 11);
    return strncmp(rest, "upsample.", 9) == 0 && put(out, where, block, "upsamplers.", 0, rest + 9);
}

bool ldm_vae_name(const struct ldm_layout *y, const char *name, char *out)
{
    int i = 0, n = 0;
    char renamed[LDM_NAME_MAX];
    if (sscanf(name, "encoder.down.%d.%n", &i, &n) == 1 && n)
        return vae_block_name("encoder.down_blocks.", i, name + n, out);
    n = 0;
    if (sscanf(name, "decoder.up.%d.%n", &i, &n) == 1 && n) /* counted from the other end */
        return vae_block_name("decoder.up_blocks.", y->ups - 1 - i, name + n, out);
    if (!replace_one(renamed, name, vae_ends) || !replace_one(out, renamed, vae_resnet))
        return false;
    return strncmp(name, "encoder.", 8) == 0 || strncmp(name, "decoder.", 8) == 0 ||
           strncmp(name, "quant_conv.", 11) == 0 || strncmp(name, "post_quant_conv.", 16) == 0;
}

static const struct rename open_clip_ends[] = {
    {"positional_embedding", "text_model.embeddings.position_embedding.weight"},
    {"token_embedding.weight", "text_model.embeddings.token_embedding.weight"},
    {"ln_final.weight", "text_model.final_layer_norm.weight"},
    {"ln_final.bias", "text_model.final_layer_norm.bias"},
    {"text_projection", "text_projection.weight"},
    {NULL, NULL},
};
static const struct rename open_clip_layer[] = {
    {"ln_1.", "layer_norm1."},
    {"ln_2.", "layer_norm2."},
    {"mlp.c_fc.", "mlp.fc1."},
    {"mlp.c_proj.", "mlp.fc2."},
    {"attn.out_proj.", "self_attn.out_proj."},
    {"attn.in_proj_", "self_attn.%c_proj."},
    {NULL, NULL},
};

bool ldm_open_clip_name(const char *name, char *out, int *parts, bool *turn)
{
    int i = 0, n = 0;
    char renamed[LDM_NAME_MAX];
    *parts = strstr(name, ".attn.in_proj_") ? 3 : 1;
    *turn = strcmp(name, "text_projection") == 0;
    for (const struct rename *e = open_clip_ends; e->from; e++)
        if (strcmp(name, e->from) == 0)
            return snprintf(out, LDM_NAME_MAX, "%s", e->to) < LDM_NAME_MAX;
    return sscanf(name, "transformer.resblocks.%d.%n", &i, &n) == 1 && n &&
           replace_one(renamed, name + n, open_clip_layer) &&
           snprintf(out, LDM_NAME_MAX, "text_model.encoder.layers.%d.%s", i, renamed) < LDM_NAME_MAX;
}
