/* Prompts → tokens → text encoders → what the UNet reads: encode_prompt of diffusers'
 * StableDiffusionPipeline, StableDiffusionXLPipeline and StableDiffusionInstructPix2PixPipeline, and the
 * micro-conditioning of SDXL (_get_add_time_ids). See run.h. */
#include <string.h>

#include "log.h"
#include "run.h"

enum { POSITIONS_MAX = 1024 };

static const char *or_empty(const char *text)
{
    return text ? text : "";
}

/* The texts of encoder E in the order of the batch; NULL in the place of a negative prompt that is not
 * given. */
static int batch_texts(const struct run *r, int e, const char *texts[GUIDANCE_PARTS_MAX])
{
    const struct request *q = r->q;
    int n = 0;
    if (r->parts == 2)
        texts[n++] = q->negative[e];
    texts[n++] = q->prompt[e];
    while (n < r->parts) /* InstructPix2Pix has the prompt first */
        texts[n++] = q->negative[e];
    return n;
}

/* TEXTS[n] → ids[n * positions] for encoder E. */
static void tokenize(struct run *r, int e, const char *const *texts, int n, int32_t *ids)
{
    int positions = clip_text_positions(r->m->text[e]);
    for (int i = 0; i < n && !r->p.err->code; i++) {
        int cut = 0;
        const char *text = or_empty(texts[i]);
        tokenizer_encode(r->m->tokenizer[e], text, strlen(text), ids + i * positions, positions, NULL, &cut,
                         r->p.err);
        if (cut > 0 && !r->planning)
            log_warning("the %s prompt was cut: %d tokens do not fit into %d",
                        texts[i] == r->q->prompt[e] ? "positive" : "negative", cut, positions);
    }
}

/* States of the texts under encoder E, [parts, 1, T, C]; POOLED as clip_text_forward_penultimate, which SDXL
 * reads. ZERO_FIRST: the first row is all zeros instead. */
static tensor encode(struct run *r, int e, bool zero_first, tensor *pooled)
{
    pass *p = &r->p;
    const struct clip_text *net = r->m->text[e];
    const char *texts[GUIDANCE_PARTS_MAX];
    int32_t ids[GUIDANCE_PARTS_MAX * POSITIONS_MAX];
    int n = batch_texts(r, e, texts), positions = clip_text_positions(net);
    if (positions > POSITIONS_MAX)
        error_set(p->err, ERR_FORMAT, "the text encoder has %d positions, at most %d are built", positions,
                  POSITIONS_MAX);
    else
        tokenize(r, e, texts + zero_first, n - zero_first, ids);
    if (r->m->family != FAMILY_SDXL)
        return clip_text_forward(p, net, ids, n);
    tensor last = {0};
    tensor states = clip_text_forward_penultimate(p, net, ids, n - zero_first, pooled ? &last : NULL);
    if (pooled)
        *pooled = zero_first ? stack_pictures(r, 2, (tensor[]){{0}, last}) : last;
    if (!zero_first)
        return states;
    tensor both = stack_pictures(r, 2, (tensor[]){{0}, states});
    tensor_free(p, &states);
    if (pooled)
        tensor_free(p, &last);
    return both;
}

/* [original height, width, crop top, left, target height, width] for each picture of the batch; the refiner
 * has an aesthetic score, 6.0 or for the negative prompt 2.5, instead of the target. */
static void time_ids(const struct run *r, float *ids)
{
    const struct request *q = r->q;
    const float h = (float)q->height, w = (float)q->width;
    bool scored = r->m->aesthetics_score && q->image;
    int count = scored ? 5 : 6;
    for (int i = 0; i < r->parts; i++) {
        float score = i == 0 && r->parts == 2 ? 2.5f : 6.0f;
        float row[TIME_IDS_MAX] = {h, w, 0, 0, scored ? score : h, w};
        memcpy(ids + i * count, row, (size_t)count * sizeof *row);
    }
    if (unet_time_ids(r->m->unet) != count)
        error_set(
            r->p.err, ERR_FORMAT,
            "the UNet reads %d time ids, but this pipeline makes %d: check requires_aesthetics_score in "
            "model_index.json",
            unet_time_ids(r->m->unet), count);
}

struct conditioning encode_prompt(struct run *r)
{
    struct conditioning c = {0};
    if (r->m->family != FAMILY_SDXL) {
        c.text = encode(r, 0, false, NULL);
        return c;
    }
    bool zero_first = r->parts == 2 && !r->q->negative[0] && r->m->zeros_for_empty_prompt;
    tensor first = encode(r, 0, zero_first, NULL);
    tensor second = encode(r, 1, zero_first, &c.pooled);
    c.text = concat_channels(&r->p, first, second);
    tensor_free(&r->p, &first);
    tensor_free(&r->p, &second);
    time_ids(r, c.time_ids);
    return c;
}

void conditioning_free(struct run *r, struct conditioning *c)
{
    tensor_free(&r->p, &c->text);
    if (c->pooled.n)
        tensor_free(&r->p, &c->pooled);
}

int model_prompt_cut(const struct model *m, const char *prompt, const char *negative_prompt)
{
    const char *texts[] = {or_empty(prompt), or_empty(negative_prompt)};
    int32_t ids[POSITIONS_MAX];
    int positions = clip_text_positions(m->text[0]), sum = 0;
    for (int i = 0; i < 2 && positions <= POSITIONS_MAX; i++) {
        struct error ignored = {0};
        int cut = 0;
        if (tokenizer_encode(m->tokenizer[0], texts[i], strlen(texts[i]), ids, positions, NULL, &cut,
                             &ignored) == 0)
            sum += cut;
    }
    return sum;
}
