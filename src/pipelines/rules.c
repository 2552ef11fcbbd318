/* What the ai-runner does for some models by their id (contract 3.3, 3.4). See model.h and pipeline.h. */
#include <math.h>
#include <string.h>

#include "model.h"

int rules_lightning_steps(const char *id)
{
    if (!strstr(id, "ByteDance/SDXL-Lightning"))
        return 0;
    return strstr(id, "2step") ? 2 : strstr(id, "4step") ? 4 : 8;
}

bool rules_turbo(const char *id)
{
    return strcmp(id, "stabilityai/sd-turbo") == 0 || strcmp(id, "stabilityai/sdxl-turbo") == 0;
}

bool rules_pix2pix(const char *id)
{
    return strstr(id, "timbrooks/instruct-pix2pix") != NULL;
}

bool rules_few_steps(const char *id)
{
    static const char *const parts[] = {"-turbo", "_turbo", "-lightning", "_lightning"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strcasestr(id, parts[i]))
            return true;
    return false;
}

bool rules_extra_vae(const char *id)
{
    return strstr(id, "SG161222/Realistic_Vision_V6.0_B1_noVAE") != NULL;
}

/* Sides of 0 are not given. */
static void own_sides(const struct model *m, int *width, int *height)
{
    bool both = m->family != FAMILY_SDXL && (!*width || !*height);
    int native = model_native_size(m);
    *width = *width && !both ? *width : native;
    *height = *height && !both ? *height : native;
}

void text_to_image_rules(const struct model *m, struct text_to_image_params *params)
{
    own_sides(m, &params->width, &params->height);
    int lightning = rules_lightning_steps(m->id);
    if (lightning || rules_turbo(m->id))
        params->guidance_scale = 0.0;
    if (lightning)
        params->steps = lightning;
}

/* The least strength that still leaves one of STEPS steps: 1 / STEPS, or the number above it where the
 * product would be rounded to below 1. */
static double one_step_of(int64_t steps)
{
    double least = 1.0 / (double)steps;
    return (double)steps * least < 1.0 ? nextafter(least, 1.0) : least;
}

void image_to_image_rules(const struct model *m, struct image_to_image_params *params)
{
    int lightning = rules_lightning_steps(m->id);
    if (lightning || rules_turbo(m->id))
        params->guidance_scale = 0.0;
    if (lightning)
        params->steps = lightning;
    if (rules_turbo(m->id) && params->steps >= 1)
        params->strength = fmax(params->strength, one_step_of(params->steps));
}
