/* See request.h. */
#include "request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum { HOPS_MAX = 10, CONNECT_SECONDS = 20, WAIT_MAX = 600 };

static const struct reply no_reply = {.length = -1, .linked_size = -1, .range_start = -1, .wait = -1};

/* VALUE without quotes and the W/ of weak tags, into OUT. */
static void copy_tag(char *out, size_t size, const char *value)
{
    if (strncmp(value, "W/", 2) == 0)
        value += 2;
    if (*value == '"')
        value++;
    snprintf(out, size, "%.*s", (int)strcspn(value, "\""), value);
}

static void take_header(struct reply *r, const char *name, const char *value)
{
    if (strcasecmp(name, "etag") == 0)
        copy_tag(r->etag, sizeof r->etag, value);
    else if (strcasecmp(name, "x-linked-etag") == 0)
        copy_tag(r->linked_etag, sizeof r->linked_etag, value);
    else if (strcasecmp(name, "x-repo-commit") == 0)
        copy_tag(r->commit, sizeof r->commit, value);
    else if (strcasecmp(name, "x-linked-size") == 0)
        r->linked_size = strtoll(value, NULL, 10);
    else if (strcasecmp(name, "content-length") == 0)
        r->length = strtoll(value, NULL, 10);
    else if (strcasecmp(name, "content-range") == 0 && strncasecmp(value, "bytes ", 6) == 0)
        r->range_start = strtoll(value + 6, NULL, 10);
    else if (strcasecmp(name, "x-error-code") == 0)
        snprintf(r->code, sizeof r->code, "%s", value);
    else if (strcasecmp(name, "x-error-message") == 0)
        snprintf(r->message, sizeof r->message, "%s", value);
}

/* One header line, as libcurl gives it: not terminated. */
static size_t on_header(char *data, size_t one, size_t len, void *ctx)
{
    struct request *q = ctx;
    char line[1024];
    size_t n = len * one < sizeof line ? len * one : sizeof line - 1;

    memcpy(line, data, n);
    while (n > 0 && (line[n - 1] == '\r' || line[n - 1] == '\n' || line[n - 1] == ' '))
        n--;
    line[n] = '\0';
    for (char *s = line; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 127)
            *s = ' ';
    char *colon = strchr(line, ':');
    if (strncmp(line, "HTTP/", 5) == 0) { /* another answer begins */
        q->reply = no_reply;
        const char *space = strchr(line, ' ');
        q->reply.status = space ? strtol(space, NULL, 10) : 0;
    } else if (colon) {
        *colon = '\0';
        take_header(&q->reply, line, colon + 1 + strspn(colon + 1, " \t"));
    }
    return len * one;
}

static size_t on_body(char *data, size_t one, size_t len, void *ctx)
{
    struct request *q = ctx;

    if (q->reply.status != 200 && q->reply.status != 206)
        return len * one; /* an error page */
    bool ok = q->sink  ? q->sink(q->ctx, data, len * one)
              : q->out ? len * one <= q->out_max - q->out->len && buffer_add(q->out, data, len * one) == 0
                       : true;
    return ok ? len * one : 0;
}

/* "scheme host port" of URL into OUT. */
static bool origin_of(const char *url, char out[1200])
{
    CURLU *u = curl_url();
    char *scheme = NULL, *host = NULL, *port = NULL;
    bool ok = u && curl_url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK &&
              curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
              curl_url_get(u, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
              curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK &&
              snprintf(out, 1200, "%s %s %s", scheme, host, port) < 1200;
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_url_cleanup(u);
    return ok;
}

static bool at_hub(const struct request *q, const char *url)
{
    char a[1200], b[1200];

    return origin_of(url, a) && origin_of(q->hub->endpoint, b) && strcasecmp(a, b) == 0;
}

int request_open(struct request *q, const struct hub *h, const char *id, const char *what, char *url,
                 struct error *err)
{
    *q = (struct request){.hub = h, .id = id, .what = what, .reply = no_reply, .first_url = url};
    q->easy = curl_easy_init();
    q->url = url ? strdup(url) : NULL;
    /* Once: after some failures (a name that is not resolved) libcurl refuses to change it. */
    if (q->easy && q->url && curl_easy_setopt(q->easy, CURLOPT_BUFFERSIZE, 256L << 10) == CURLE_OK)
        return 0;
    request_close(q);
    return error_set(err, ERR_NOMEM, "no memory for a request");
}

void request_close(struct request *q)
{
    curl_easy_cleanup(q->easy);
    curl_slist_free_all(q->headers);
    free(q->url);
    free(q->first_url);
    *q = (struct request){0};
}

void request_rewind(struct request *q)
{
    char *url = strdup(q->first_url);

    if (url) {
        free(q->url);
        q->url = url;
        q->hops = 0;
    }
}

/* Only http and https, which is also what keeps a redirect from naming a file of this machine. */
static CURLcode allow_http(CURL *easy)
{
#if LIBCURL_VERSION_NUM >= 0x075500
    return curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
    return curl_easy_setopt(easy, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
}

static CURLcode set_security(CURL *easy)
{
    const char *bundle = getenv("CURL_CA_BUNDLE");

    if (!bundle || !*bundle)
        bundle = getenv("REQUESTS_CA_BUNDLE");
    if (!bundle || !*bundle)
        bundle = getenv("SSL_CERT_FILE");
    CURLcode rc = allow_http(easy);
    return rc || !bundle || !*bundle ? rc : curl_easy_setopt(easy, CURLOPT_CAINFO, bundle);
}

static CURLcode set_callbacks(struct request *q)
{
    CURLcode rc = curl_easy_setopt(q->easy, CURLOPT_HEADERFUNCTION, on_header);

    rc = rc ? rc : curl_easy_setopt(q->easy, CURLOPT_HEADERDATA, q);
    rc = rc ? rc : curl_easy_setopt(q->easy, CURLOPT_WRITEFUNCTION, on_body);
    rc = rc ? rc : curl_easy_setopt(q->easy, CURLOPT_WRITEDATA, q);
    rc = rc ? rc : curl_easy_setopt(q->easy, CURLOPT_ERRORBUFFER, q->why);
    return rc ? rc : curl_easy_setopt(q->easy, CURLOPT_NOSIGNAL, 1L);
}

/* A connection each for files that come at the same time: HTTP/1.1 does not share one. */
static CURLcode set_connection(struct request *q)
{
    CURLcode rc = curl_easy_setopt(q->easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);

    rc = rc ? rc : curl_easy_setopt(q->easy, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS);
    rc = rc ? rc : curl_easy_setopt(q->easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
    rc = rc ? rc : curl_easy_setopt(q->easy, CURLOPT_LOW_SPEED_TIME, q->hub->timeout);
    return rc ? rc : curl_easy_setopt(q->easy, CURLOPT_USERAGENT, "latentd/" LATENTD_VERSION);
}

static CURLcode set_request(struct request *q)
{
    char range[40];

    snprintf(range, sizeof range, "%lld-", (long long)q->from);
    CURLcode rc = curl_easy_setopt(q->easy, CURLOPT_URL, q->url);
    rc = rc ? rc : curl_easy_setopt(q->easy, CURLOPT_NOBODY, q->head ? 1L : 0L);
    rc = rc ? rc : curl_easy_setopt(q->easy, CURLOPT_RANGE, q->from > 0 ? range : NULL);
    return rc ? rc : curl_easy_setopt(q->easy, CURLOPT_HTTPHEADER, q->headers);
}

int request_start(struct request *q, struct error *err)
{
    char line[sizeof q->hub->token + 32];

    q->reply = no_reply;
    q->why[0] = '\0';
    if (q->out)
        q->out->len = 0;
    curl_slist_free_all(q->headers);
    q->headers = NULL;
    if (*q->hub->token && at_hub(q, q->url)) {
        snprintf(line, sizeof line, "Authorization: Bearer %s", q->hub->token);
        q->headers = curl_slist_append(NULL, line);
        if (!q->headers)
            return error_set(err, ERR_NOMEM, "no memory for a request");
    }
    CURLcode rc = set_callbacks(q);
    rc = rc ? rc : set_security(q->easy);
    rc = rc ? rc : set_connection(q);
    rc = rc ? rc : set_request(q);
    return rc ? error_set(err, ERR_IO, "%s: %s", q->what, curl_easy_strerror(rc)) : 0;
}

/* ---- what went wrong ---- */

static double back_off(const struct request *q)
{
    double wait = 0.5;

    for (int i = 0; i < q->failures && wait < 16; i++)
        wait *= 2;
    return wait;
}

static enum verdict follow(struct request *q, struct error *err)
{
    char *to = NULL;

    curl_easy_getinfo(q->easy, CURLINFO_REDIRECT_URL, &to);
    if (!to || ++q->hops > HOPS_MAX) {
        error_set(err, ERR_FORMAT, "%s: the hub %s", q->what,
                  to ? "redirects in a circle" : "redirects to nowhere");
        return VERDICT_FATAL;
    }
    if (strncasecmp(q->url, "https:", 6) == 0 && strncasecmp(to, "https:", 6) != 0) {
        error_set(err, ERR_FORMAT, "%s: the hub redirects from https to %.200s, which is refused", q->what,
                  to);
        return VERDICT_FATAL;
    }
    char *copy = strdup(to);
    if (!copy) {
        error_set(err, ERR_NOMEM, "no memory for a redirect");
        return VERDICT_FATAL;
    }
    free(q->url);
    q->url = copy;
    return VERDICT_REDIRECT;
}

static enum verdict refused(struct request *q, struct error *err)
{
    const char *token = q->hub->token, *id = q->id, *at = q->hub->endpoint;
    bool gated = strcmp(q->reply.code, "GatedRepo") == 0;
    bool missing = strcmp(q->reply.code, "RepoNotFound") == 0;

    if (gated && !*token)
        error_set(
            err, ERR_UNSUPPORTED,
            "%s is gated: accept its licence at %s/%s, make a token at %s/settings/tokens, and run this "
            "again with HF_TOKEN set to it",
            id, at, id, at);
    else if (gated || (q->reply.status == 403 && !missing))
        error_set(
            err, ERR_UNSUPPORTED,
            "the hub refuses %s to this %s: accept its licence at %s/%s with the account of HF_TOKEN; "
            "some need their author's approval, and a fine-grained token needs the permission for gated "
            "repositories%s%s",
            id, *token ? "token" : "user", at, id, *q->reply.message ? ". It says: " : "", q->reply.message);
    else if (missing || !*token)
        error_set(
            err, ERR_NOT_FOUND, "the hub has no public model %s: check how it is written (case counts)%s", id,
            *token ? "; the account of HF_TOKEN cannot see it either" : "; if it is private, set HF_TOKEN");
    else
        error_set(err, ERR_UNSUPPORTED, "the hub does not know this token: check HF_TOKEN, or unset it%s%s",
                  *q->reply.message ? ". It says: " : "", q->reply.message);
    return VERDICT_FATAL;
}

static enum verdict not_found(struct request *q, struct error *err)
{
    if (strcmp(q->reply.code, "RepoNotFound") == 0)
        return refused(q, err);
    if (strcmp(q->reply.code, "RevisionNotFound") == 0)
        error_set(err, ERR_NOT_FOUND, "%s has no such revision; see %s/%s/tree/main for its branches", q->id,
                  q->hub->endpoint, q->id);
    else
        error_set(err, ERR_NOT_FOUND, "%s: the hub says not found (404)%s%s", q->what,
                  *q->reply.message ? ": " : "", q->reply.message);
    return VERDICT_FATAL;
}

static enum verdict judge_status(struct request *q, double *wait, struct error *err)
{
    long s = q->reply.status;
    curl_off_t after = 0;
    bool storage = q->hops > 0 && !at_hub(q, q->url);

    if (!storage && (s == 401 || s == 403))
        return refused(q, err);
    if (!storage && (s == 404 || s == 410))
        return not_found(q, err);
    *wait = back_off(q);
    curl_easy_getinfo(q->easy, CURLINFO_RETRY_AFTER, &after);
    if (s == 429 && after > WAIT_MAX) {
        error_set(err, ERR_IO, "the hub asks to wait %lld minutes before the next request (429)%s",
                  (long long)(after + 59) / 60, *q->hub->token ? "" : "; with HF_TOKEN set it allows more");
        return VERDICT_FATAL;
    }
    if ((s == 429 || s == 503) && after > 0)
        *wait = (double)after;
    if (s == 429)
        error_set(err, ERR_IO, "%s: too many requests, says the hub (429)%s", q->what,
                  *q->hub->token ? "" : "; with HF_TOKEN set it allows more");
    else
        error_set(err, ERR_IO, "%s: the %s answers %ld%s%s", q->what, storage ? "hub's storage" : "hub", s,
                  *q->reply.message ? ": " : "", q->reply.message);
    /* A signed address of the storage expires, and is then refused: ask the hub for another. */
    return storage || s == 408 || s == 416 || s == 429 || s >= 500 ? VERDICT_RETRY : VERDICT_FATAL;
}

static enum verdict judge_connection(struct request *q, CURLcode result, double *wait, struct error *err)
{
    const char *why = *q->why ? q->why : curl_easy_strerror(result);
    char origin[1200] = "the hub";

    origin_of(q->url, origin);
    error_set(err, ERR_IO, "%s: %.300s%s", q->what, why,
              result == CURLE_COULDNT_RESOLVE_HOST || result == CURLE_COULDNT_CONNECT
                  ? "; check the network, https_proxy and HF_ENDPOINT"
                  : "");
    *wait = back_off(q);
    switch (result) {
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
        error_prefix(err, "the certificate of %s is not trusted (CURL_CA_BUNDLE names a file of authorities)",
                     origin);
        return VERDICT_FATAL;
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
    case CURLE_OUT_OF_MEMORY:
    case CURLE_WRITE_ERROR: /* the sink ended it, and has its own words */
        return VERDICT_FATAL;
    default:
        return VERDICT_RETRY;
    }
}

enum verdict request_judge(struct request *q, CURLcode result, double *wait, struct error *err)
{
    *wait = 0;
    if (result != CURLE_OK)
        return judge_connection(q, result, wait, err);
    if (q->reply.status == 200 || q->reply.status == 206)
        return VERDICT_DONE;
    if (q->reply.status >= 300 && q->reply.status < 400 && q->reply.status != 304) {
        if (q->head && *q->reply.linked_etag)
            return VERDICT_DONE; /* all that a look at the headers is for */
        return follow(q, err);
    }
    return judge_status(q, wait, err);
}

static void sleep_for(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};

    while (nanosleep(&t, &t) != 0)
        ;
}

int request_perform(struct request *q, struct error *err)
{
    for (;;) {
        struct error now = {0};
        double wait;
        int rc = request_start(q, err);
        if (rc)
            return rc;
        switch (request_judge(q, curl_easy_perform(q->easy), &wait, &now)) {
        case VERDICT_DONE:
            return 0;
        case VERDICT_REDIRECT:
            break;
        case VERDICT_RETRY:
            if (q->failures++ < q->hub->retries) {
                sleep_for(wait);
                request_rewind(q);
                break;
            }
            /* fall through */
        case VERDICT_FATAL:
            return error_set(err, now.code, "%s", now.msg);
        }
    }
}
