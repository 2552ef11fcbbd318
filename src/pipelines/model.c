/* Loads a model in diffusers layout, model_index.json and one folder a component, or from one checkpoint file
 * in the original naming, which stands for such a folder. See pipeline.h. */
#include "model.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "json.h"
#include "log.h"
#include "model_files.h"
#include "safety.h"
#include "weights.h"

enum { INDEX_MAX = 1 << 20 };

/* The pipeline classes that model_index.json may name. Text-to-image and image-to-image of one family share
 * their files. */
static const struct {
    const char *class_name;
    enum family family;
} classes[] = {{"StableDiffusionPipeline", FAMILY_SD},
               {"StableDiffusionImg2ImgPipeline", FAMILY_SD},
               {"StableDiffusionXLPipeline", FAMILY_SDXL},
               {"StableDiffusionXLImg2ImgPipeline", FAMILY_SDXL},
               {"StableDiffusionInstructPix2PixPipeline", FAMILY_PIX2PIX},
               {"StableVideoDiffusionPipeline", FAMILY_VIDEO},
               {"StableDiffusionUpscalePipeline", FAMILY_UPSCALE}};
enum { CLASSES = sizeof classes / sizeof *classes };

/* What loading needs to know besides the model itself. */
struct source {
    const struct model_options *opt;
    char dir[PATH_MAX];  /* the model's folder, or its file; SDXL's for SDXL-Lightning */
    const char *variant; /* "fp16" or NULL */
    bool single_file;    /* one checkpoint in the original naming, see model_files.h */
    bool own_checker;    /* the index names a safety checker */
    char scheduler[128], low_res_scheduler[128]; /* the classes that the index names, or "" */
};

/* "DIR/NAME" into PATH[PATH_MAX]. */
static int join(char *path, const char *dir, const char *name, struct error *err)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", dir, name);
    return n < 0 || n >= PATH_MAX ? error_set(err, ERR_INVALID, "the path of %s is too long", name) : 0;
}

/* The same for a component, which must be there. Those of a single file are looked for by whoever reads
 * them. */
static int component(char *path, const struct source *s, const char *name, struct error *err)
{
    struct stat info;
    int rc = join(path, s->dir, name, err);
    if (!rc && !s->single_file && (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)))
        rc = error_set(err, ERR_NOT_FOUND, "the model's component \"%s\" is missing: there is no folder %s",
                       name, path);
    return rc;
}

/* True when any component folder holds a *.fp16.safetensors file: the ai-runner then loads the fp16 variant,
 * and so draws its noise in fp16 (contract 3.2). By the same rule, when a single file is called so. */
static bool has_fp16_files(const char *dir)
{
    static const char *const folders[] = {
        ".", "unet", "vae", "text_encoder", "text_encoder_2", "safety_checker", "image_encoder"};
    if (model_is_single_file(dir))
        return strstr(dir, ".fp16.safetensors") != NULL;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char path[PATH_MAX];
        struct error ignored = {0};
        if (join(path, dir, folders[i], &ignored))
            continue;
        DIR *d = opendir(path);
        bool found = false;
        for (struct dirent *e; d && !found && (e = readdir(d)) != NULL;)
            found = strstr(e->d_name, ".fp16.safetensors") != NULL;
        if (d)
            closedir(d);
        if (found)
            return true;
    }
    return false;
}

/* Which family the class that R's object names belongs to. */
static int read_family(const struct json_reader *r, const char *path, enum family *family)
{
    char known[400] = "";
    const char *class_name = json_string(r, "_class_name", "");
    for (int i = 0; i < CLASSES && !r->err->code; i++) {
        if (strcmp(class_name, classes[i].class_name) == 0) {
            *family = classes[i].family;
            return 0;
        }
        strcat(strcat(known, i ? ", " : ""), classes[i].class_name);
    }
    return error_set(r->err, ERR_UNSUPPORTED, "%s: pipeline class \"%.100s\" is not built; accepted are %s",
                     path, class_name, known);
}

/* Whether model_index.json gives NAME a class: ["transformers", "CLIPTextModel"], not [null, null]. */
static bool names_component(const cJSON *index, const char *name)
{
    return cJSON_IsString(cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(index, name), 1));
}

/* Its class into NAME[SIZE]; "" when there is none. */
static void read_class(const cJSON *index, const char *component, char *name, size_t size)
{
    const cJSON *pair = cJSON_GetObjectItemCaseSensitive(index, component);
    const char *value = cJSON_GetStringValue(cJSON_GetArrayItem(pair, 1));
    snprintf(name, size, "%s", value ? value : "");
}

static int check_components(const cJSON *index, const char *path, enum family family, struct error *err)
{
    static const char *const of_pictures[] = {"scheduler", "tokenizer",   "text_encoder",  "unet",
                                              "vae",       "tokenizer_2", "text_encoder_2"};
    static const char *const of_videos[] = {"scheduler", "image_encoder", "feature_extractor", "unet", "vae"};
    static const char *const of_upscaler[] = {"scheduler", "tokenizer", "text_encoder",
                                              "unet",      "vae",       "low_res_scheduler"};
    const char *const *names = family == FAMILY_VIDEO     ? of_videos
                               : family == FAMILY_UPSCALE ? of_upscaler
                                                          : of_pictures;
    size_t count = family == FAMILY_SDXL ? 7 : family == FAMILY_UPSCALE ? 6 : 5;
    for (size_t i = 0; i < count; i++)
        if (!names_component(index, names[i]))
            return error_set(err, ERR_UNSUPPORTED,
                             "%s: \"%s\" is null or missing; a model is loaded only with a %s of its own",
                             path, names[i], names[i]);
    return 0;
}

static int read_index(struct model *m, struct source *s, struct error *err)
{
    char path[PATH_MAX];
    int rc = join(path, s->dir, "model_index.json", err);
    if (rc)
        return rc;
    struct cJSON *tree = model_json(s->dir, "model_index.json", INDEX_MAX, err);
    if (!tree)
        return err->code;
    struct json_reader r = {.object = tree, .file = path, .err = err};
    rc = read_family(&r, path, &m->family);
    if (!rc && rules_pix2pix(m->id))
        m->family = FAMILY_PIX2PIX;
    if (!rc && !s->single_file)
        check_components(tree, path, m->family, err);
    m->encoders = m->family == FAMILY_SDXL ? 2 : m->family == FAMILY_VIDEO ? 0 : 1;
    m->zeros_for_empty_prompt = json_bool(&r, "force_zeros_for_empty_prompt", true);
    m->aesthetics_score = json_bool(&r, "requires_aesthetics_score", false);
    m->max_noise_level = json_int(&r, "max_noise_level", 350, 0, 1000000);
    read_class(tree, "scheduler", s->scheduler, sizeof s->scheduler);
    read_class(tree, "low_res_scheduler", s->low_res_scheduler, sizeof s->low_res_scheduler);
    s->own_checker = m->family != FAMILY_VIDEO && names_component(tree, "safety_checker");
    cJSON_Delete(tree);
    return err->code;
}

/* The scheduler of the class that the index names, whatever its config says, as in diffusers; except where
 * the ai-runner forces another (contract 3.5). A single file's index names none. */
static int load_scheduler(struct model *m, const struct source *s, struct error *err)
{
    char path[PATH_MAX];
    const char *class_name = s->scheduler, *spacing = NULL;
    if (rules_lightning_steps(m->id)) {
        class_name = "EulerDiscreteScheduler";
        spacing = "trailing";
    } else if (rules_pix2pix(m->id)) {
        class_name = "EulerAncestralDiscreteScheduler";
    }
    int rc = component(path, s, "scheduler", err);
    if (rc || (rc = scheduler_config_load_as(&m->scheduler, path, class_name, spacing, err)))
        return rc;
    if (m->family == FAMILY_SD)
        scheduler_config_stable_diffusion(m->scheduler);
    if (m->family != FAMILY_UPSCALE || (rc = component(path, s, "low_res_scheduler", err)))
        return rc;
    return scheduler_config_load_as(&m->low_res_scheduler, path, s->low_res_scheduler, NULL, err);
}

static int load_text(struct model *m, const struct source *s, struct error *err)
{
    static const char *const tokenizers[] = {"tokenizer", "tokenizer_2"};
    static const char *const encoders[] = {"text_encoder", "text_encoder_2"};
    char path[PATH_MAX], words[PATH_MAX];
    const char *pad;
    int rc = 0;
    for (int i = 0; i < m->encoders && !rc; i++)
        if (!(rc = component(path, s, tokenizers[i], err)) &&
            !(rc = model_tokenizer_folder(s->opt->dir, path, words, sizeof words, &pad, err)) &&
            !(rc = tokenizer_load_padded(&m->tokenizer[i], words, pad, err)) &&
            !(rc = component(path, s, encoders[i], err)) &&
            !(rc = clip_text_load(&m->text[i], m->be, path, s->variant, err)))
            clip_text_limit(m->text[i], tokenizer_max_length(m->tokenizer[i]));
    return rc;
}

/* Whether the VAE overflows fp16. The pipelines of SDXL, of videos and of the upscaler then run it in fp32
 * whatever the model is in, and draw the sample of the input picture so. */
static int read_force_upcast(const char *dir, bool *upcast, struct error *err)
{
    struct cJSON *tree = model_json(dir, "config.json", INDEX_MAX, err);
    if (!tree)
        return err->code;
    struct json_reader r = {.object = tree, .file = dir, .err = err};
    *upcast = json_bool(&r, "force_upcast", true);
    cJSON_Delete(tree);
    return err->code;
}

static int load_vae(struct model *m, const struct source *s, struct error *err)
{
    char path[PATH_MAX];
    bool upcast = true, extra = rules_extra_vae(m->id);
    int rc = extra ? model_find(s->opt->dir, "stabilityai/sd-vae-ft-ema", path, sizeof path, err)
                   : component(path, s, "vae", err);
    if (rc && extra)
        error_prefix(err, "%s comes without a VAE and takes that of another model", m->id);
    if (rc || (rc = read_force_upcast(path, &upcast, err)))
        return rc;
    upcast = upcast && (m->family == FAMILY_SDXL || m->family == FAMILY_VIDEO || m->family == FAMILY_UPSCALE);
    m->posterior_dtype = upcast ? DTYPE_F32 : m->noise_dtype;
    m->vae_be = m->be;
    if (upcast && (rc = backend_open_wide(&m->vae_be, m->be, err)))
        return rc;
    if (m->family == FAMILY_VIDEO)
        return vae_video_load(&m->vae_video, m->vae_be, path, s->variant, err);
    bool encoder = s->opt->pipeline == PIPELINE_IMAGE_TO_IMAGE;
    return vae_load(&m->vae, m->vae_be, path, extra ? NULL : s->variant, encoder, err);
}

/* SDXL-Lightning's UNet is one file a number of steps, over the config of SDXL's. */
static int load_unet(struct model *m, const struct source *s, struct error *err)
{
    char config[PATH_MAX], dir[PATH_MAX], stem[64];
    int steps = rules_lightning_steps(m->id), rc = component(config, s, "unet", err);
    if (!rc && m->family == FAMILY_VIDEO && m->be->int8)
        log_warning(
            "precision int8: no matrix of a video model is in int8 yet; all are computed as without it");
    if (!rc && m->family == FAMILY_VIDEO)
        return unet_video_load(&m->unet_video, m->be, config, s->variant, err);
    if (rc || !steps)
        return rc ? rc : unet_load(&m->unet, m->be, config, s->variant, err);
    snprintf(stem, sizeof stem, "sdxl_lightning_%dstep_unet", steps);
    if ((rc = model_find(s->opt->dir, "ByteDance/SDXL-Lightning", dir, sizeof dir, err)))
        return rc;
    return unet_load_from(&m->unet, m->be, config, dir, stem, NULL, err);
}

/* The image encoder of a video model, and how its pictures are normalised. */
static int load_vision(struct model *m, const struct source *s, struct error *err)
{
    char path[PATH_MAX], file[PATH_MAX];
    int rc = component(path, s, "feature_extractor", err);
    if (rc || (rc = join(file, path, "preprocessor_config.json", err)) ||
        (rc = safety_processor_read(&m->processor, file, err)) ||
        (rc = component(path, s, "image_encoder", err)))
        return rc;
    return clip_vision_load(&m->vision, m->be, path, s->variant, err);
}

static int find_source(struct source *s, const struct model_options *opt, struct error *err)
{
    bool lightning = rules_lightning_steps(opt->id) > 0;
    const char *id = lightning ? "stabilityai/stable-diffusion-xl-base-1.0" : opt->id;
    s->opt = opt;
    int rc = model_source(opt->dir, id, s->dir, sizeof s->dir, err);
    s->single_file = !rc && model_is_single_file(s->dir);
    if (rc && lightning)
        error_prefix(err, "%s is a UNet for SDXL base", opt->id);
    return rc;
}

static int load_safety(struct model *m, const struct source *s, struct error *err)
{
    char path[PATH_MAX];
    int rc = s->own_checker ? component(path, s, "safety_checker", err) : 0;
    return rc ? rc
              : safety_open(&m->safety, m->be, s->opt->safety_on_cpu, m->root, s->own_checker ? path : NULL,
                            s->variant, err);
}

/* Whether the model's kind and the pipeline that is asked for go together. */
static int check_pipeline(const struct model *m, enum pipeline_kind pipeline, struct error *err)
{
    if (m->family == FAMILY_PIX2PIX && pipeline != PIPELINE_IMAGE_TO_IMAGE)
        return error_set(err, ERR_UNSUPPORTED, "%s edits pictures; set PIPELINE=image-to-image", m->id);
    if (m->family == FAMILY_VIDEO && pipeline != PIPELINE_IMAGE_TO_VIDEO)
        return error_set(err, ERR_UNSUPPORTED, "%s makes videos; set PIPELINE=image-to-video", m->id);
    if (m->family != FAMILY_VIDEO && pipeline == PIPELINE_IMAGE_TO_VIDEO)
        return error_set(err, ERR_UNSUPPORTED,
                         "%s makes pictures; PIPELINE=image-to-video needs a StableVideoDiffusionPipeline",
                         m->id);
    if (m->family == FAMILY_UPSCALE && pipeline != PIPELINE_UPSCALE)
        return error_set(err, ERR_UNSUPPORTED, "%s enlarges pictures; set PIPELINE=upscale", m->id);
    if (m->family != FAMILY_UPSCALE && pipeline == PIPELINE_UPSCALE)
        return error_set(err, ERR_UNSUPPORTED,
                         "%s does not enlarge; PIPELINE=upscale needs a StableDiffusionUpscalePipeline",
                         m->id);
    return 0;
}

static bool deepcache_serves(const struct model *m)
{
    if (m->family == FAMILY_VIDEO || !rules_few_steps(m->id))
        return true;
    log_warning("DEEPCACHE is left off: %s has too few steps to leave something out", m->id);
    return false;
}

static int load_parts(struct model *m, const struct model_options *opt, struct error *err)
{
    struct source s = {0};
    int rc = find_source(&s, opt, err);
    if (rc || (rc = read_index(m, &s, err)))
        return rc;
    bool fp16 = has_fp16_files(s.dir);
    s.variant = fp16 ? "fp16" : NULL;
    m->noise_dtype = fp16 || rules_lightning_steps(m->id) ? DTYPE_F16 : DTYPE_F32;
    if ((rc = check_pipeline(m, opt->pipeline, err)) || (rc = load_scheduler(m, &s, err)) ||
        (rc = m->family == FAMILY_VIDEO ? load_vision(m, &s, err) : load_text(m, &s, err)) ||
        (rc = load_vae(m, &s, err)) || (rc = load_unet(m, &s, err)))
        return rc;
    m->deepcache = opt->deepcache && deepcache_serves(m);
    return load_safety(m, &s, err);
}

static int check_encoder(const struct model *m, int i, struct error *err)
{
    if (tokenizer_vocab(m->tokenizer[i]) > clip_text_vocab(m->text[i]))
        return error_set(err, ERR_FORMAT, "the tokenizer has %d tokens, but the text encoder knows %d",
                         tokenizer_vocab(m->tokenizer[i]), clip_text_vocab(m->text[i]));
    if (clip_text_positions(m->text[i]) < 2)
        return error_set(err, ERR_FORMAT,
                         "the tokenizer's model_max_length is 1, but a prompt begins and ends with a token");
    if (m->family != FAMILY_SDXL && clip_text_masks_padding(m->text[i]))
        return error_set(err, ERR_UNSUPPORTED,
                         "the text encoder's \"use_attention_mask\" is true; accepted: false or absent");
    return 0;
}

static int check_text(const struct model *m, struct error *err)
{
    int width = 0;
    for (int i = 0; i < m->encoders; i++) {
        width += clip_text_width(m->text[i]);
        if (check_encoder(m, i, err))
            return err->code;
    }
    if (width != unet_cross_attention_dim(m->unet))
        return error_set(err, ERR_FORMAT,
                         "the text encoder is %d wide, but the UNet's cross_attention_dim is %d", width,
                         unet_cross_attention_dim(m->unet));
    if (m->encoders == 2 && clip_text_positions(m->text[0]) != clip_text_positions(m->text[1]))
        return error_set(err, ERR_FORMAT, "the prompts of the text encoders have %d and %d tokens",
                         clip_text_positions(m->text[0]), clip_text_positions(m->text[1]));
    int pooled = m->family == FAMILY_SDXL ? clip_text_projection(m->text[1]) : 0;
    if (pooled != unet_pooled_dim(m->unet))
        return error_set(err, ERR_FORMAT, "the pooled text is %d wide, but the UNet reads %d", pooled,
                         unet_pooled_dim(m->unet));
    return 0;
}

static int check_video(const struct model *m, struct error *err)
{
    int latents = vae_video_latent_channels(m->vae_video), reads = unet_video_in_channels(m->unet_video);
    if (reads != 2 * latents || unet_video_out_channels(m->unet_video) != latents)
        return error_set(
            err, ERR_FORMAT,
            "the UNet reads %d channels and gives %d, but the latents have %d and the image's as "
            "many",
            reads, unet_video_out_channels(m->unet_video), latents);
    if (clip_vision_projection(m->vision) != unet_video_token_width(m->unet_video))
        return error_set(err, ERR_FORMAT,
                         "the image encoder gives %d numbers, but the UNet's cross_attention_dim is %d",
                         clip_vision_projection(m->vision), unet_video_token_width(m->unet_video));
    if (unet_video_ids(m->unet_video) != 3)
        return error_set(err, ERR_FORMAT, "the UNet reads %d added time ids, but there are 3",
                         unet_video_ids(m->unet_video));
    return 0;
}

/* The numbers of the components must fit each other; each was checked against its own weights before. */
static int check_fit(const struct model *m, struct error *err)
{
    if (m->family == FAMILY_VIDEO)
        return check_video(m, err);
    int latents = vae_latent_channels(m->vae), reads = unet_in_channels(m->unet);
    if (m->family != FAMILY_UPSCALE && unet_labels(m->unet) > 0)
        return error_set(
            err, ERR_UNSUPPORTED,
            "the UNet reads class labels (\"num_class_embeds\" is %d), but this pipeline gives none",
            unet_labels(m->unet));
    if (m->family == FAMILY_PIX2PIX && reads != 2 * latents)
        return error_set(err, ERR_FORMAT,
                         "the UNet reads %d channels, but the latents and the image's have %d", reads,
                         2 * latents);
    if (m->family == FAMILY_UPSCALE && reads != latents + 3)
        return error_set(err, ERR_FORMAT,
                         "the UNet reads %d channels, but the latents have %d and a picture 3", reads,
                         latents);
    if (m->family == FAMILY_UPSCALE && unet_labels(m->unet) == 0)
        return error_set(err, ERR_FORMAT,
                         "the UNet has no class labels (num_class_embeds), so no noise levels");
    if (m->family != FAMILY_PIX2PIX && m->family != FAMILY_UPSCALE && reads != latents)
        return error_set(err, ERR_FORMAT, "the UNet reads %d channels, but the VAE has %d latent channels",
                         reads, latents);
    return check_text(m, err);
}

int model_load(struct model **out, struct backend *be, const struct model_options *opt, struct error *err)
{
    *out = NULL;
    struct model *m = calloc(1, sizeof *m);
    if (!m)
        return error_set(err, ERR_NOMEM, "no memory for the model");
    m->be = be;
    m->id = strdup(opt->id);
    m->root = strdup(opt->shelf ? opt->shelf : opt->dir);
    int rc =
        m->id && m->root ? load_parts(m, opt, err) : error_set(err, ERR_NOMEM, "no memory for the model");
    if (!rc)
        rc = check_fit(m, err);
    if (rc) {
        model_close(&m);
        return rc;
    }
    *out = m;
    return 0;
}

void model_close(struct model **out)
{
    struct model *m = *out;
    if (!m)
        return;
    model_rest(m);
    lora_shelf_close(&m->loras, m->be); /* before the networks whose weights it replaced */
    unet_close(&m->unet);
    vae_close(&m->vae);
    unet_video_close(&m->unet_video);
    vae_video_close(&m->vae_video);
    clip_vision_close(&m->vision);
    if (m->vae_be && m->vae_be != m->be)
        backend_close(&m->vae_be);
    for (int i = 0; i < TEXT_ENCODERS_MAX; i++) {
        clip_text_close(&m->text[i]);
        tokenizer_close(&m->tokenizer[i]);
    }
    scheduler_config_close(&m->scheduler);
    scheduler_config_close(&m->low_res_scheduler);
    safety_close(&m->safety);
    free(m->id);
    free(m->root);
    free(m);
    *out = NULL;
}

const char *model_id(const struct model *m)
{
    return m->id;
}

struct backend *model_backend(const struct model *m)
{
    return m->be;
}

int model_frames(const struct model *m)
{
    return m->unet_video ? unet_video_frames(m->unet_video) : 0;
}

int model_native_size(const struct model *m)
{
    if (m->family == FAMILY_VIDEO)
        return unet_video_sample_size(m->unet_video) * vae_video_scale(m->vae_video);
    return unet_sample_size(m->unet) * vae_scale(m->vae);
}

void model_default_size(const struct model *m, int *width, int *height)
{
    int native = model_native_size(m);
    *width = native < 512 ? native : 1024;
    *height = native < 512 ? native : 576;
}

const struct phase_times *model_last_times(const struct model *m)
{
    return &m->times;
}
