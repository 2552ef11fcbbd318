/* Checkpoints in one file, original naming: every tensor that diffusers' converters make of one is there
 * under diffusers' name, with its shape and its bytes; families are told apart and others refused by name;
 * where such a file, its configs and its tokenizer are looked for. Lists and files:
 * scripts/export_single_files.py. */
#include <sys/stat.h>

#include "../../src/weights/weights_private.h"
#include "hash.h"
#include "model_files.h"
#include "networks.h"
#include "plan.h"
#include "tensor_list.h"
#include "tokenizer.h"

#define TINY "tests/golden/data/single_file/latentd/"

/* ---- Names, shapes and bytes of the tiny ones ---- */

static void check_tensor(const struct weights *w, const char *name, const char *shape, const char *hash)
{
    char have[64] = "", found[32];
    const struct st_tensor *t = weights_find(w, name);
    if (!CHECK(t != NULL, "%s is missing", name))
        return;
    for (int i = 0; i < t->dims; i++)
        snprintf(have + strlen(have), sizeof have - strlen(have), "%s%llu", i ? "x" : "",
                 (unsigned long long)t->shape[i]);
    /* the VAE's attention may keep its 1x1 kernels, which the loader takes as a matrix */
    size_t len = strlen(shape);
    CHECK(strncmp(have, shape, len) == 0 && (!have[len] || strcmp(have + len, "x1x1") == 0),
          "%s is %s, expected %s", name, have, shape);
    snprintf(
        found, sizeof found, "%016llx",
        (unsigned long long)hash_bytes(HASH_BEGIN, t->file->data + t->begin, (size_t)(t->end - t->begin)));
    CHECK(strcmp(found, hash) == 0, "%s has other numbers", name);
}

static void check_tiny(const char *family)
{
    char path[4096 + 64], source[4096], id[64], line[512], part[64], open[64] = "", name[256], shape[64],
                                                                     hash[32];
    struct weights *w = NULL;
    struct error err = {0};
    int count = 0;
    snprintf(id, sizeof id, "latentd/%s", family);
    CHECK(model_source("tests/golden/data/single_file", id, source, sizeof source, &err) == 0, "%s", err.msg);
    snprintf(path, sizeof path, TINY "%s/tensors.txt", family);
    FILE *f = fopen(path, "rb");
    if (!CHECK(f != NULL, "%s", path))
        return;
    while (fgets(line, sizeof line, f) &&
           CHECK(sscanf(line, "%63s %255s %63s %31s", part, name, shape, hash) == 4, "%s", line)) {
        if (strcmp(part, open) != 0) {
            CHECK(!w || count == w->count, "%s, %s: %d tensors, expected %d", family, open, w ? w->count : 0,
                  count);
            weights_close(&w);
            strcpy(open, part);
            count = 0;
            snprintf(path, sizeof path, "%s/%s", source, part);
            if (!CHECK(weights_open(&w, path, "ignored", NULL, &err) == 0, "%s", err.msg))
                break;
        }
        check_tensor(w, name, shape, hash);
        count++;
    }
    /* SD 2.x: the last layer that no pipeline reads is there too, as in the converter's result */
    CHECK(w && count == w->count, "%s, %s: %d tensors, expected %d", family, open, w ? w->count : 0, count);
    weights_close(&w);
    fclose(f);
}

TEST(tensors_are_those_of_diffusers_converters)
{
    check_tiny("sd1");
    check_tiny("sd2");
    check_tiny("sdxl");
    check_tiny("pix2pix");
}

/* ---- Full size, through the built-in configs ---- */

static char folder[] = "/tmp/latentd-test-XXXXXX", file[64];

static void make_folder(void)
{
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    if (!mkdtemp(folder))
        abort();
    snprintf(file, sizeof file, "%s/x.safetensors", folder);
}

static void remove_folder(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0)
        abort();
}

static const char *component(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", file, name);
    return path;
}

/* Numbers of the tensors under PREFIX. */
static uint64_t numbers(const struct entries *l, const char *prefix)
{
    uint64_t sum = 0;
    for (int i = 0; i < l->count; i++)
        sum += strncmp(l->item[i].name, prefix, strlen(prefix)) == 0 ? l->item[i].numbers : 0;
    return sum;
}

static size_t packed(struct backend *be, size_t *before)
{
    size_t now = be->weight_bytes, since = (now - *before) / sizeof(float);
    *before = now;
    return since;
}

/* All numbers of the file are bound, but for what the family's pipelines do not read: LEFT_OUT. */
static void check_full(const char *family, const char *text, const char *text_2, uint64_t left_out, int side)
{
    static struct entries list;
    struct backend *be = NULL;
    struct error err = {0};
    struct unet *unet = NULL;
    struct vae *vae = NULL;
    struct clip_text *first = NULL, *second = NULL;
    size_t before = 0;
    list.count = 0;
    read_list(&list, "tests/unit/data/single_file", family);
    make_folder();
    write_list(&list, -1, file);
    if (backend_open(&be, &(struct backend_options){.kind = "plan"}, &err) < 0)
        abort();
    plan_set_dtype(be, DTYPE_F32);
    CHECK(unet_load(&unet, be, component("unet"), NULL, &err) == 0, "%s: %s", family, err.msg);
    CHECK(packed(be, &before) == numbers(&list, "model.diffusion_model."), "%s: the UNet", family);
    CHECK(vae_load(&vae, be, component("vae"), NULL, true, &err) == 0, "%s: %s", family, err.msg);
    CHECK(packed(be, &before) == numbers(&list, "first_stage_model."), "%s: the VAE", family);
    CHECK(clip_text_load(&first, be, component("text_encoder"), NULL, &err) == 0, "%s: %s", family, err.msg);
    if (text_2)
        CHECK(clip_text_load(&second, be, component("text_encoder_2"), NULL, &err) == 0, "%s: %s", family,
              err.msg);
    uint64_t want = numbers(&list, text) + (text_2 ? numbers(&list, text_2) : 0) - left_out;
    size_t got = packed(be, &before);
    CHECK(got == want, "%s: %zu numbers of the text encoders, expected %llu", family, got,
          (unsigned long long)want);
    if (unet && vae)
        CHECK(unet_sample_size(unet) * vae_scale(vae) == side, "%s", family);
    unet_close(&unet);
    vae_close(&vae);
    clip_text_close(&first);
    clip_text_close(&second);
    backend_close(&be);
    remove_folder();
}

TEST(published_files_are_bound_whole)
{
    uint64_t layer = 4 * 1024 * 1024 + 4 * 1024 + 8 * 1024 * 1024 + 5 * 1024 + 4 * 1024;
    check_full("sd1", "cond_stage_model.", NULL, 77, 512); /* position_ids */
    /* the last of 24 layers, the projection, logit_scale */
    check_full("sd2", "cond_stage_model.", NULL, layer + 1024 * 1024 + 1, 768);
    check_full("sdxl", "conditioner.embedders.0.", "conditioner.embedders.1.", 1, 1024);
}

/* ---- Families ---- */

static void check_family(const char *name, const char *shape, const char *words)
{
    static struct entries list;
    struct weights *w = NULL;
    struct error err = {0};
    list.count = 0;
    make_folder();
    add_entry(&list, name, shape, "F16", 2, false);
    write_list(&list, -1, file);
    int rc = weights_open(&w, component("unet"), "x", NULL, &err);
    if (words)
        CHECK(rc == ERR_UNSUPPORTED && strstr(err.msg, words), "%s: %d %s", name, rc, err.msg);
    else
        CHECK(rc == 0, "%s: %s", name, err.msg);
    weights_close(&w);
    remove_folder();
}

TEST(other_families_are_refused_by_name)
{
    check_family("model.diffusion_model.input_blocks.0.0.weight", "320, 4, 3, 3", NULL);
    check_family("model.diffusion_model.input_blocks.0.0.weight", "320, 8, 3, 3", NULL);
    check_family("model.diffusion_model.input_blocks.0.0.weight", "320, 9, 3, 3", "inpainting");
    check_family("model.diffusion_model.input_blocks.0.0.weight", "320, 7, 3, 3", "upscaler");
    check_family("model.diffusion_model.input_blocks.0.0.weight", "320", "not a Stable Diffusion");
    check_family("conditioner.embedders.0.model.ln_final.weight", "1280", "refiner");
    check_family("double_blocks.0.img_attn.norm.key_norm.scale", "128", "FLUX");
    check_family("model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias", "9216",
                 "Stable Diffusion 3");
    check_family("down_blocks.0.resnets.0.conv1.weight", "320, 320, 3, 3", "diffusers' naming");
    check_family("anything", "1", "not a Stable Diffusion");
}

/* A file without a text encoder, and one whose stacked projection does not divide. */
TEST(broken_files)
{
    static struct entries list;
    struct weights *w = NULL;
    struct error err = {0};
    list.count = 0;
    make_folder();
    add_entry(&list, "model.diffusion_model.input_blocks.0.0.weight", "320, 4, 3, 3", "F16", 2, false);
    write_list(&list, -1, file);
    CHECK(weights_open(&w, component("text_encoder"), "x", NULL, &err) == ERR_NOT_FOUND &&
              strstr(err.msg, "holds no text_encoder"),
          "%s", err.msg);
    err = (struct error){0};
    CHECK(weights_open(&w, component("../unet"), "x", NULL, &err) == ERR_NOT_FOUND, "%s", err.msg);
    err = (struct error){0};
    add_entry(&list, "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", "16, 16", "F16", 2,
              false);
    add_entry(&list, "cond_stage_model.model.text_projection", "16, 0", "F16", 2, false);
    write_list(&list, -1, file);
    CHECK(weights_open(&w, component("text_encoder"), "x", NULL, &err) == ERR_FORMAT &&
              strstr(err.msg, "does not divide"),
          "%s", err.msg);
    remove_folder();
}

/* ---- Where things are ---- */

TEST(sources)
{
    char path[4096];
    struct error err = {0};
    const char *root = "tests/golden/data/single_file";
    CHECK(model_source(root, "latentd/sd1", path, sizeof path, &err) == 0 &&
              strcmp(path, TINY "sd1/checkpoint.safetensors") == 0 && model_is_single_file(path),
          "%s %s", path, err.msg);
    CHECK(model_source(root, "latentd/sd1/checkpoint.safetensors", path, sizeof path, &err) == 0 &&
              strcmp(path, TINY "sd1/checkpoint.safetensors") == 0,
          "%s %s", path, err.msg);
    CHECK(model_source(root, "latentd/sd1/none.safetensors", path, sizeof path, &err) == ERR_NOT_FOUND);
    err = (struct error){0};
    CHECK(model_source(root, "latentd/../x.safetensors", path, sizeof path, &err) == ERR_INVALID);
    err = (struct error){0};
    /* a folder in diffusers layout stays one */
    CHECK(model_source("tests/api/data", "latentd/tiny", path, sizeof path, &err) == 0 &&
              strcmp(path, "tests/api/data/latentd/tiny") == 0 && !model_is_single_file(path),
          "%s", path);
}

TEST(tokenizers)
{
    char path[4096];
    const char *pad = NULL;
    struct error err = {0};
    struct tokenizer *t = NULL;
    int32_t ids[12];
    CHECK(model_tokenizer_folder("/nowhere", TINY "sdxl/checkpoint.fp16.safetensors/tokenizer", path,
                                 sizeof path, &pad, &err) == 0 &&
              strcmp(path, TINY "sdxl/tokenizer") == 0 && !pad,
          "%s", err.msg);
    /* the second encoder's: the same words, padded with token 0 */
    CHECK(model_tokenizer_folder("/nowhere", TINY "sdxl/checkpoint.fp16.safetensors/tokenizer_2", path,
                                 sizeof path, &pad, &err) == 0 &&
              strcmp(path, TINY "sdxl/tokenizer") == 0 && pad && strcmp(pad, "!") == 0,
          "%s", err.msg);
    /* as transformers' CLIPTokenizer with pad_token="!": each one in the prompt is the padding, too */
    static const int32_t want[12] = {517, 0, 0, 72, 333, 0, 513, 518, 0, 0, 0, 0};
    if (CHECK(tokenizer_load_padded(&t, path, pad, &err) == 0, "%s", err.msg) &&
        CHECK(tokenizer_encode(t, "!! in ! the", 11, ids, 12, NULL, NULL, &err) == 0, "%s", err.msg))
        CHECK(memcmp(ids, want, sizeof want) == 0, "%d %d … %d", ids[1], ids[2], ids[11]);
    tokenizer_close(&t);
    make_folder();
    FILE *f = fopen(file, "wb");
    if (!f || fclose(f) != 0)
        abort();
    CHECK(model_tokenizer_folder("/nowhere", component("tokenizer"), path, sizeof path, &pad, &err) < 0);
    remove_folder();
}

TEST_MAIN()
