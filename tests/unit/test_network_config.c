/* What config.json may say: unknown kinds are refused by name with what is accepted, numbers are bounded, and
 * numbers that do not fit the weights are told apart by file, tensor and shape. Each case changes one field
 * of a config that works. */
#include <cjson/cJSON.h>
#include <unistd.h>

#include "backend.h"
#include "json.h"
#include "networks.h"
#include "test.h"

enum kind { UNET, SDXL, VAE, ENCODER, TEXT };

static const struct {
    const char *folder, *weights;
} models[] = {
    [UNET] = {"tests/golden/data/unet_sd1", "diffusion_pytorch_model.fp16.safetensors"},
    [SDXL] = {"tests/golden/data/unet_sdxl", "diffusion_pytorch_model.safetensors"},
    [VAE] = {"tests/golden/data/vae_plain", "diffusion_pytorch_model.safetensors"},
    [ENCODER] = {"tests/golden/data/vae_encoder_plain", "diffusion_pytorch_model.safetensors"},
    [TEXT] = {"tests/golden/data/text_gelu", "model.safetensors"},
};

/* Loads the network from DIR on the ref backend and closes it again. */
static int load(enum kind kind, const char *dir, struct error *err)
{
    struct backend *be = NULL;
    struct unet *unet = NULL;
    struct vae *vae = NULL;
    struct clip_text *text = NULL;
    if (backend_open(&be, &(struct backend_options){.kind = "ref"}, err) < 0)
        return err->code;
    int rc = 0;
    if (kind == UNET || kind == SDXL)
        rc = unet_load(&unet, be, dir, NULL, err);
    else if (kind == VAE || kind == ENCODER)
        rc = vae_load(&vae, be, dir, NULL, kind == ENCODER, err);
    else
        rc = clip_text_load(&text, be, dir, NULL, err);
    CHECK(rc == err->code && (rc == 0) == (unet || vae || text));
    unet_close(&unet);
    vae_close(&vae);
    clip_text_close(&text);
    CHECK(be->weight_bytes == 0);
    backend_close(&be);
    return rc;
}

/* A copy of the model of KIND whose config has KEY set to the JSON text VALUE (NULL: removed). */
static void make_variant(enum kind kind, const char *key, const char *value, char *dir)
{
    char path[256], target[512], cwd[256];
    struct error err = {0};
    strcpy(dir, "/tmp/latentd-test-XXXXXX");
    snprintf(path, sizeof(path), "%s/config.json", models[kind].folder);
    cJSON *config = json_read_file(path, 1 << 20, &err);
    if (!config || !mkdtemp(dir) || !getcwd(cwd, sizeof(cwd)))
        abort();
    cJSON_DeleteItemFromObjectCaseSensitive(config, key);
    if (value)
        cJSON_AddItemToObject(config, key, cJSON_Parse(value));
    char *text = cJSON_Print(config);
    snprintf(path, sizeof(path), "%s/config.json", dir);
    FILE *f = fopen(path, "wb");
    if (!f || !text || fputs(text, f) < 0 || fclose(f) != 0)
        abort();
    snprintf(target, sizeof(target), "%s/%s/%s", cwd, models[kind].folder, models[kind].weights);
    snprintf(path, sizeof(path), "%s/%s", dir, models[kind].weights);
    if (symlink(target, path) != 0)
        abort();
    cJSON_free(text);
    cJSON_Delete(config);
}

static int load_with(enum kind kind, const char *key, const char *value, struct error *err)
{
    char dir[64], command[128];
    *err = (struct error){0};
    make_variant(kind, key, value, dir);
    int rc = load(kind, dir, err);
    snprintf(command, sizeof(command), "rm -rf '%s'", dir);
    if (system(command) != 0)
        abort();
    return rc;
}

struct field {
    enum kind kind;
    const char *key, *value;
    int code;
    const char *words; /* the error must contain them */
};

static void check_fields(const struct field *f, size_t count)
{
    for (size_t i = 0; i < count; i++, f++) {
        struct error err;
        int rc = load_with(f->kind, f->key, f->value, &err);
        CHECK(rc == f->code, "%s = %s: %d %s", f->key, f->value, rc, err.msg);
        CHECK(strstr(err.msg, f->words), "%s = %s: \"%s\" lacks \"%s\"", f->key, f->value, err.msg, f->words);
    }
}

#define CHECK_FIELDS(list) check_fields(list, sizeof(list) / sizeof(*list))

TEST(unchanged_configs_load)
{
    for (enum kind k = UNET; k <= TEXT; k++) {
        struct error err;
        CHECK(load_with(k, "_name_or_path", "\"here\"", &err) == 0, "%s", err.msg);
    }
}

TEST(unknown_kinds_are_refused_by_name)
{
    static const struct field list[] = {
        {UNET, "_class_name", "\"UNet2DModel\"", ERR_UNSUPPORTED, "UNet2DConditionModel"},
        {UNET, "down_block_types", "[\"AttnDownBlock2D\",\"DownBlock2D\",\"DownBlock2D\"]", ERR_UNSUPPORTED,
         "AttnDownBlock2D; accepted: DownBlock2D, CrossAttnDownBlock2D"},
        {UNET, "up_block_types", "[\"UpBlock2D\",7,\"UpBlock2D\"]", ERR_UNSUPPORTED, "up_block_types"},
        {UNET, "mid_block_type", "\"UNetMidBlock2DSimpleCrossAttn\"", ERR_UNSUPPORTED,
         "UNetMidBlock2DCrossAttn"},
        {UNET, "act_fn", "\"mish\"", ERR_UNSUPPORTED, "\"act_fn\" is \"mish\"; accepted: \"silu\""},
        {UNET, "act_fn", "\"sil\"", ERR_UNSUPPORTED, "act_fn"},
        {UNET, "resnet_time_scale_shift", "\"scale_shift\"", ERR_UNSUPPORTED, "default"},
        {UNET, "class_embed_type", "\"timestep\"", ERR_UNSUPPORTED, "class_embed_type"},
        {UNET, "addition_embed_type", "\"text_image\"", ERR_UNSUPPORTED, "accepted: \"text_time\""},
        {UNET, "encoder_hid_dim", "768", ERR_UNSUPPORTED, "encoder_hid_dim"},
        {UNET, "dual_cross_attention", "true", ERR_UNSUPPORTED, "dual_cross_attention"},
        {UNET, "num_attention_heads", "8", ERR_UNSUPPORTED, "num_attention_heads"},
        {UNET, "center_input_sample", "true", ERR_UNSUPPORTED, "center_input_sample"},
        {UNET, "mid_block_scale_factor", "2", ERR_UNSUPPORTED, "mid_block_scale_factor"},
        {UNET, "time_embedding_type", "\"fourier\"", ERR_UNSUPPORTED, "positional"},
        {UNET, "cross_attention_dim", "[24,24,32]", ERR_UNSUPPORTED, "cross_attention_dim"},
        {UNET, "conv_in_kernel", "5", ERR_UNSUPPORTED, "conv_in_kernel"},
        {VAE, "_class_name", "\"AutoencoderTiny\"", ERR_UNSUPPORTED, "AutoencoderKL"},
        {VAE, "up_block_types", "[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"AttnUpDecoderBlock2D\"]",
         ERR_UNSUPPORTED, "accepted: UpDecoderBlock2D"},
        {ENCODER, "down_block_types", "[\"DownEncoderBlock2D\",\"DownBlock2D\",\"DownEncoderBlock2D\"]",
         ERR_UNSUPPORTED, "accepted: DownEncoderBlock2D"},
        {ENCODER, "in_channels", "4", ERR_UNSUPPORTED, "in_channels"},
        {VAE, "out_channels", "6", ERR_UNSUPPORTED, "out_channels"},
        {TEXT, "hidden_act", "\"relu\"", ERR_UNSUPPORTED, "\"quick_gelu\"|\"gelu\""},
        {TEXT, "model_type", "\"t5\"", ERR_UNSUPPORTED, "model_type"},
    };
    CHECK_FIELDS(list);
}

TEST(numbers_are_bounded)
{
    static const struct field list[] = {
        {VAE, "latents_mean", "[0,0]", ERR_FORMAT, "\"latents_mean\" should be a list of"},
        {VAE, "latents_std", "[1,1,1]", ERR_FORMAT, "there is \"latents_std\" without \"latents_mean\""},
        {UNET, "block_out_channels", "[]", ERR_FORMAT, "block_out_channels"},
        {UNET, "block_out_channels", "[8,8,8,8,8,8,8]", ERR_FORMAT, "block_out_channels"},
        {UNET, "block_out_channels", "[0,16,20]", ERR_FORMAT, "block_out_channels"},
        {UNET, "block_out_channels", "[1e9,16,20]", ERR_FORMAT, "block_out_channels"},
        {UNET, "block_out_channels", "\"16\"", ERR_FORMAT, "block_out_channels"},
        {UNET, "block_out_channels", "[12,16]", ERR_FORMAT, "3 entries, expected 2"},
        {UNET, "layers_per_block", "1000000", ERR_FORMAT, "layers_per_block"},
        {UNET, "layers_per_block", "[1,1]", ERR_FORMAT, "layers_per_block"},
        {UNET, "layers_per_block", "0", ERR_FORMAT, "layers_per_block"},
        {UNET, "transformer_layers_per_block", "99", ERR_FORMAT, "transformer_layers_per_block"},
        {UNET, "transformer_layers_per_block", "[[1],[1],[1]]", ERR_FORMAT, "transformer_layers_per_block"},
        {UNET, "attention_head_dim", "0", ERR_FORMAT, "attention_head_dim"},
        {UNET, "attention_head_dim", "5", ERR_FORMAT, "do not divide into 5 heads"},
        {UNET, "norm_num_groups", "5", ERR_FORMAT, "norm_num_groups"},
        {UNET, "norm_num_groups", "-4", ERR_FORMAT, "norm_num_groups"},
        {UNET, "norm_eps", "0", ERR_FORMAT, "norm_eps"},
        {UNET, "in_channels", "4.5", ERR_FORMAT, "in_channels"},
        {UNET, "addition_embed_type", "\"text_time\"", ERR_FORMAT, "projection_class_embeddings_input_dim"},
        {SDXL, "addition_time_embed_dim", "null", ERR_FORMAT, "addition_time_embed_dim"},
        {SDXL, "addition_time_embed_dim", "7", ERR_FORMAT, "an even number"},
        {SDXL, "projection_class_embeddings_input_dim", "48", ERR_FORMAT, "does not hold a pooled text"},
        {UNET, "only_cross_attention", "[true]", ERR_FORMAT, "only_cross_attention"},
        {UNET, "only_cross_attention", "[1,0,0]", ERR_FORMAT, "only_cross_attention"},
        {UNET, "flip_sin_to_cos", "1", ERR_FORMAT, "flip_sin_to_cos"},
        {VAE, "layers_per_block", "5", ERR_FORMAT, "layers_per_block"},
        {VAE, "norm_num_groups", "3", ERR_FORMAT, "norm_num_groups"},
        {VAE, "scaling_factor", "0", ERR_FORMAT, "scaling_factor"},
        {VAE, "scaling_factor", "\"x\"", ERR_FORMAT, "scaling_factor"},
        {TEXT, "num_hidden_layers", "65", ERR_FORMAT, "num_hidden_layers"},
        {TEXT, "num_attention_heads", "7", ERR_FORMAT, "num_attention_heads"},
        {TEXT, "max_position_embeddings", "100000", ERR_FORMAT, "max_position_embeddings"},
        {TEXT, "vocab_size", "-1", ERR_FORMAT, "vocab_size"},
    };
    CHECK_FIELDS(list);
}

TEST(numbers_that_do_not_fit_the_weights)
{
    static const struct field list[] = {
        {UNET, "cross_attention_dim", "32", ERR_FORMAT,
         "\"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight\" has shape [12, 24], the "
         "config expects "
         "[12, 32]"},
        {UNET, "in_channels", "9", ERR_FORMAT,
         "\"conv_in.weight\" has shape [12, 4, 3, 3], the config expects [12, 9, 3, 3]"},
        {UNET, "block_out_channels", "[16,16,20]", ERR_FORMAT, "has shape"},
        {UNET, "layers_per_block", "2", ERR_FORMAT, "is missing"},
        {UNET, "time_cond_proj_dim", "256", ERR_FORMAT, "\"time_embedding.cond_proj.weight\" is missing"},
        {SDXL, "projection_class_embeddings_input_dim", "61", ERR_FORMAT,
         "\"add_embedding.linear_1.weight\" has shape [32, 60], the config expects [32, 61]"},
        {SDXL, "transformer_layers_per_block", "2", ERR_FORMAT, "transformer_blocks.1.norm1.weight"},
        {VAE, "latent_channels", "4", ERR_FORMAT, "\"decoder.conv_in.weight\""},
        {ENCODER, "latent_channels", "4", ERR_FORMAT, "\"encoder.conv_out.weight\""},
        {ENCODER, "use_quant_conv", "true", ERR_FORMAT, "\"quant_conv.weight\" is missing"},
        {VAE, "mid_block_add_attention", "true", ERR_FORMAT,
         "decoder.mid_block.attentions.0.group_norm.weight"},
        {TEXT, "hidden_size", "80", ERR_FORMAT, "embeddings.token_embedding.weight"},
        {TEXT, "vocab_size", "91", ERR_FORMAT, "[90, 40], the config expects [91, 40]"},
        {TEXT, "num_hidden_layers", "3", ERR_FORMAT, "encoder.layers.2.layer_norm1.weight"},
    };
    CHECK_FIELDS(list);
}

TEST(config_and_weights_from_two_folders)
{
    struct error err = {0};
    struct backend *be = NULL;
    struct unet *net = NULL;
    CHECK(backend_open(&be, &(struct backend_options){.kind = "ref"}, &err) == 0, "%s", err.msg);
    CHECK(unet_load_from(&net, be, "tests/golden/data/unet_sdxl", "tests/golden/data/unet_sd1",
                         "diffusion_pytorch_model.fp16", NULL, &err) == ERR_FORMAT &&
              strstr(err.msg, "unet_sd1/diffusion_pytorch_model.fp16.safetensors: tensor") && !net,
          "%s", err.msg);
    err = (struct error){0};
    CHECK(unet_load_from(&net, be, "tests/golden/data/unet_sd1", "tests/golden/data/unet_sd1",
                         "diffusion_pytorch_model.fp16", NULL, &err) == 0,
          "%s", err.msg);
    unet_close(&net);
    backend_close(&be);
}

TEST(missing_folder)
{
    struct error err = {0};
    CHECK(load(UNET, "/nonexistent/unet", &err) == ERR_NOT_FOUND && strstr(err.msg, "config.json"), "%s",
          err.msg);
}

TEST_MAIN()
