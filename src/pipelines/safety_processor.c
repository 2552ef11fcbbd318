/* transformers' CLIPImageProcessor as Pillow computes it: bicubic resize of the shorter side, middle square,
 * rescale, normalise. Source: transformers 4.43 models/clip/image_processing_clip.py,
 * image_transforms.py. */
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "safety_processor.h"

enum { PROCESSOR_MAX = 1 << 16, SIDE_MAX = 4096, ASPECT_MAX = 64, BICUBIC = 3 };

/* KEY as a number, or as an object that has the number under NAME. */
static int read_side(const struct json_reader *r, const char *key, const char *name, int fallback)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(r->object, key);
    struct json_reader inner = *r;
    inner.object = item;
    return cJSON_IsObject(item) ? json_int(&inner, name, 0, 1, SIDE_MAX)
                                : json_int(r, key, fallback, 1, SIDE_MAX);
}

static void read_three(const struct json_reader *r, const char *key, float *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(r->object, key);
    if (!item)
        return;
    for (int i = 0; i < 3; i++) {
        const cJSON *n = cJSON_GetArrayItem(item, i);
        if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 3 || !cJSON_IsNumber(n)) {
            error_set(r->err, ERR_FORMAT, "%s: \"%s\" should be three numbers", r->file, key);
            return;
        }
        out[i] = (float)n->valuedouble;
    }
}

static void read_fields(struct safety_processor *q, const struct json_reader *r)
{
    static const char *const steps[] = {"do_resize", "do_center_crop", "do_normalize", "do_rescale"};
    for (size_t i = 0; i < sizeof(steps) / sizeof(*steps); i++)
        if (!json_bool(r, steps[i], true))
            error_set(r->err, ERR_UNSUPPORTED, "%s: \"%s\" is false; accepted is true", r->file, steps[i]);
    if (json_int(r, "resample", BICUBIC, 0, 5) != BICUBIC)
        error_set(r->err, ERR_UNSUPPORTED, "%s: \"resample\" is not 3 (bicubic), the one that is built",
                  r->file);
    q->shortest = read_side(r, "size", "shortest_edge", q->shortest);
    q->crop = read_side(r, "crop_size", "height", q->crop);
    q->rescale = json_number(r, "rescale_factor", q->rescale);
    read_three(r, "image_mean", q->mean);
    read_three(r, "image_std", q->std);
    if (!r->err->code && (q->crop < 1 || q->shortest < q->crop))
        error_set(r->err, ERR_UNSUPPORTED, "%s: \"crop_size\" %d is larger than \"size\" %d", r->file,
                  q->crop, q->shortest);
    for (int i = 0; i < 3; i++)
        if (q->std[i] == 0)
            error_set(r->err, ERR_FORMAT, "%s: \"image_std\" has a zero", r->file);
}

int safety_processor_read(struct safety_processor *q, const char *path, struct error *err)
{
    *q = (struct safety_processor){.shortest = 224,
                                   .crop = 224,
                                   .rescale = 1 / 255.0,
                                   .mean = {0.48145466f, 0.4578275f, 0.40821073f},
                                   .std = {0.26862954f, 0.26130258f, 0.27577711f}};
    if (access(path, F_OK) != 0)
        return 0;
    cJSON *tree = json_read_file(path, PROCESSOR_MAX, err);
    if (!tree)
        return err->code;
    struct json_reader r = {.object = tree, .file = "preprocessor_config.json", .err = err};
    read_fields(q, &r);
    cJSON_Delete(tree);
    return err->code;
}

/* The middle of IM, WIDTH x HEIGHT, as a copy. */
static int cut_middle(const struct image *im, int width, int height, struct image *out, struct error *err)
{
    size_t row = 3 * (size_t)width, step = 3 * (size_t)im->width;
    const uint8_t *from =
        im->rgb + (size_t)((im->height - height) / 2) * step + 3 * (size_t)((im->width - width) / 2);
    *out = (struct image){.width = width, .height = height, .rgb = malloc((size_t)height * row)};
    if (!out->rgb)
        return error_set(err, ERR_NOMEM, "no memory for the safety checker's picture");
    for (int y = 0; y < height; y++)
        memcpy(out->rgb + (size_t)y * row, from + (size_t)y * step, row);
    return 0;
}

/* IM resized so that its shorter side is q->shortest. Of a strip longer than ASPECT_MAX squares only the
 * middle is: the rest would be cut off after the resize, which would take hundreds of megabytes. */
static int resize(const struct safety_processor *q, const struct image *im, struct image *out,
                  struct error *err)
{
    int narrow = im->width < im->height ? im->width : im->height, limit = ASPECT_MAX * narrow;
    int w = im->width < limit ? im->width : limit, h = im->height < limit ? im->height : limit;
    int longer = (int)((double)q->shortest * (w > h ? w : h) / narrow);
    struct image middle = {0};
    int rc = 0;
    if (w != im->width || h != im->height)
        rc = cut_middle(im, w, h, &middle, err);
    if (!rc)
        rc = image_resize(middle.rgb ? &middle : im, w > h ? longer : q->shortest,
                          w > h ? q->shortest : longer, FILTER_BICUBIC, out, err);
    image_free(&middle);
    return rc;
}

int safety_processor_run(const struct safety_processor *q, const struct image *im, float *out,
                         struct error *err)
{
    struct image small = {0};
    int rc = resize(q, im, &small, err);
    if (rc)
        return rc;
    int top = (small.height - q->crop) / 2, left = (small.width - q->crop) / 2;
    for (int y = 0; y < q->crop; y++) {
        for (int i = 0; i < 3 * q->crop; i++) {
            size_t at = 3 * ((size_t)(top + y) * (size_t)small.width + (size_t)left) + (size_t)i;
            float v = (float)(small.rgb[at] * q->rescale);
            *out++ = (v - q->mean[i % 3]) / q->std[i % 3];
        }
    }
    image_free(&small);
    return 0;
}
