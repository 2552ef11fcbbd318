/* One HTTP request to the hub, its redirects, and what its failure means. Redirects are followed here and
 * not by libcurl, so that the token goes to the hub alone and never to the storage that it points to. */
#ifndef LATENTD_PULL_REQUEST_H
#define LATENTD_PULL_REQUEST_H

#include <curl/curl.h>

#include "pull.h"

struct reply {
    long status;
    int64_t length, linked_size, range_start; /* -1: not said */
    double wait;                              /* seconds that a 429 or 503 asks for; -1: not said */
    char etag[160], linked_etag[160], commit[DIGEST_MAX];
    char code[64], message[240]; /* X-Error-Code, X-Error-Message */
};

struct request {
    CURL *easy;
    const struct hub *hub;
    const char *id, *what; /* for error texts: the model, and what is asked for */
    char *url, *first_url; /* now, and before redirects */
    struct curl_slist *headers;
    struct reply reply;
    bool head;
    int64_t from; /* first byte wanted */
    int hops, failures;
    char why[CURL_ERROR_SIZE];
    /* Takes the body of a 2xx answer. Returns false to end the transfer. NULL: it goes into OUT. */
    bool (*sink)(void *ctx, const void *data, size_t len);
    void *ctx;
    struct buffer *out; /* emptied at every start; more than OUT_MAX bytes are refused */
    size_t out_max;
};

enum verdict {
    VERDICT_DONE,
    VERDICT_REDIRECT, /* call request_start again, at once */
    VERDICT_RETRY,    /* call request_rewind and request_start after a while */
    VERDICT_FATAL     /* the error says why */
};

/* Takes over URL, a malloc'ed string (NULL: no memory). */
int request_open(struct request *q, const struct hub *h, const char *id, const char *what, char *url,
                 struct error *err);
void request_close(struct request *q);
/* Sets everything for the next perform. */
int request_start(struct request *q, struct error *err);
/* Back to the hub's own address. */
void request_rewind(struct request *q);
/* What the end of a perform means. RETRY: *WAIT seconds, and the error holds the words for the case that
 * patience is over; the caller clears it. */
enum verdict request_judge(struct request *q, CURLcode result, double *wait, struct error *err);
/* From start to end, with redirects and retries. */
int request_perform(struct request *q, struct error *err);

#endif
