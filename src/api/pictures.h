/* What the endpoints share that answer with a list of pictures: the checks around a run, the job that makes
 * one picture after another, and the reply. */
#ifndef LATENTD_API_PICTURES_H
#define LATENTD_API_PICTURES_H

#include "params.h"

struct pictures;

/* What tells one endpoint from another. */
struct pictures_kind {
    const char *name;   /* for the log */
    const char *failed; /* the contract's words for any other error */
    const char *memory; /* …and where it does not fit into memory */
    /* On the worker, before the first picture. Returns 0 or an error. */
    int (*prepare)(struct pictures *p, struct model *m, struct error *err);
    /* On the worker: one picture, whose seed is SEED. */
    int (*make)(struct pictures *p, struct model *m, int64_t seed, const struct watcher *watch,
                struct image *out, struct error *err);
    void (*free)(struct pictures *p); /* what the endpoint added, and itself */
};

/* One request, from its checks to its reply. Endpoints put it first into a struct of their own. */
struct pictures {
    struct job job;
    const struct pictures_kind *kind;
    wide seed; /* of the first picture */
    int images;
    int width, height; /* of each */
    int64_t steps;
    bool png; /* the reply is the one picture itself */
    bool url; /* …or names each by its URL */
    struct service *service;
    uint64_t reply; /* see stream_url() */
    bool own_words; /* the job's error says all by itself */
    int cut;        /* tokens of the prompts that the text encoder had no room for */
    struct loras loras;
};

void pictures_init(struct pictures *p, const struct pictures_kind *kind);

/* ---- Checks, each true, or false and a filled REPLY ---- */

bool pictures_token(const struct api_request *request, struct reply *reply);
bool pictures_model_id(const struct service *s, const struct param_string *asked, struct reply *reply);
/* False for no pictures at all: the reply is an empty list. */
bool pictures_wanted(const struct param_integer *count, struct reply *reply);
/* The model, or NULL: the worker takes no job now. */
struct model *pictures_model(struct service *s, struct reply *reply);
/* So many pictures of p->width x p->height that their reply would not fit in memory are refused before the
 * first is made. Sets p->images. */
bool pictures_count(struct pictures *p, const struct param_integer *count, struct reply *reply);
/* The first seed: the given one, or a random one of 32 bits. All seeds of the request must be 64-bit numbers
 * for torch. */
bool pictures_seed(struct pictures *p, const struct param_integer *seed, struct reply *reply);
/* How the reply holds its pictures, by response_format; sets p->url and p->service. */
bool pictures_format(struct pictures *p, struct service *s, const struct param_string *given,
                     struct reply *reply);
/* What a failed run, or one that cannot begin, is called on the wire. Details that could tell about the
 * machine stay in the log. */
void pictures_failed(const struct pictures *p, const struct error *err, struct reply *reply);
/* The same for a request that is not admitted, which the log shows. False, as the checks above. */
bool pictures_refused(const struct pictures *p, const struct error *err, struct reply *reply);

/* ---- Values ---- */

/* Steps as the pipelines take them: below 1 is 0, the pipeline's default. */
int64_t pictures_steps(const struct param_integer *steps);
/* AT without NUL characters, as the tokenizer would see it; NUL-terminated, malloc. NULL: no memory. */
char *prompt_text(const char *at, size_t len);

#endif
