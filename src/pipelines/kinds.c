/* The names of the pipelines that are built. See pipeline.h. */
#include <string.h>

#include "pipeline.h"

static const struct {
    const char *name;
    enum pipeline_kind kind;
} kinds[] = {{"text-to-image", PIPELINE_TEXT_TO_IMAGE},
             {"image-to-image", PIPELINE_IMAGE_TO_IMAGE},
             {"image-to-video", PIPELINE_IMAGE_TO_VIDEO},
             {"upscale", PIPELINE_UPSCALE}};
enum { KINDS = sizeof kinds / sizeof *kinds };

int pipeline_named(const char *name, enum pipeline_kind *kind, struct error *err)
{
    char known[200] = "";
    for (int i = 0; i < KINDS; i++) {
        if (strcmp(name, kinds[i].name) == 0) {
            *kind = kinds[i].kind;
            return 0;
        }
        strcat(strcat(known, i == 0 ? "" : i + 1 < KINDS ? ", " : " and "), kinds[i].name);
    }
    return error_set(err, ERR_UNSUPPORTED, "PIPELINE is \"%.100s\", but only %s are built so far", name,
                     known);
}
