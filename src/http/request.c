/* One request, from its headers to its reply. libmicrohttpd calls request_handle() once when the headers are
 * there, once for every piece of the body, once behind it, and once more after the connection was resumed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#include "internal.h"
#include "log.h"

static const char *header(struct MHD_Connection *mhd, const char *name)
{
    return MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, name);
}

/* The client's X-Request-Id where it is harmless, else 16 random hex digits. */
static void choose_id(struct request *r)
{
    const char *given = header(r->mhd, "X-Request-Id");
    size_t len = given ? strlen(given) : 0;
    uint64_t random = 0;

    if (len > 0 && len < sizeof(r->id) &&
        strspn(given, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.") == len) {
        memcpy(r->id, given, len + 1);
        return;
    }
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != sizeof(random))
        random = (uint64_t)(clock_now() * 1e9);
    snprintf(r->id, sizeof(r->id), "%016llx", (unsigned long long)random);
}

/* The weight that the Accept header gives to TYPE: the highest q of the entries that name it (or
 * NULL-terminated ALSO). */
static double accept_weight(const char *accept, const char *type, const char *also)
{
    double best = 0;

    while (accept && *accept) {
        accept += strspn(accept, " \t,");
        size_t len = strcspn(accept, ",;");
        const char *end = accept + strcspn(accept, ",");
        size_t name = len;
        while (name > 0 && (accept[name - 1] == ' ' || accept[name - 1] == '\t'))
            name--;
        bool ours = (name == strlen(type) && strncasecmp(accept, type, name) == 0) ||
                    (also && name == strlen(also) && strncasecmp(accept, also, name) == 0);
        const char *q = strcasestr(accept + len, "q=");
        double value = q && q < end ? strtod(q + 2, NULL) : 1;
        if (ours && value > best)
            best = value;
        accept = end;
    }
    return best;
}

/* True when Accept prefers TYPE (or the range FAMILY that holds it) to JSON. */
static bool wants(struct MHD_Connection *mhd, const char *type, const char *family)
{
    const char *accept = header(mhd, "Accept");

    return accept_weight(accept, type, family) > accept_weight(accept, CONTENT_JSON, NULL);
}

/* ---- The reply ---- */

static void release_body(struct request *r)
{
    atomic_fetch_sub(&r->server->bodies, r->counted);
    r->counted = 0;
    buffer_free(&r->body);
}

enum MHD_Result request_respond(struct request *r, struct MHD_Response *response)
{
    const struct reply *reply = &r->reply;

    r->status = reply->status;
    if (reply->content_type)
        MHD_add_response_header(response, "Content-Type", reply->content_type);
    MHD_add_response_header(response, "Server", "latentd");
    MHD_add_response_header(response, "X-Request-Id", r->id);
    for (int i = 0; i < REPLY_HEADERS_MAX && reply->header[i].name; i++)
        MHD_add_response_header(response, reply->header[i].name, reply->header[i].value);
    if (r->close || atomic_load(&r->server->draining))
        MHD_add_response_header(response, "Connection", "close");
    enum MHD_Result queued = MHD_queue_response(r->mhd, (unsigned)reply->status, response);
    MHD_destroy_response(response);
    return queued;
}

enum MHD_Result request_send(struct request *r)
{
    struct reply *reply = &r->reply;
    struct MHD_Response *response;

    reply_settle(reply);
    r->sent = reply->body.len;
    /* the response takes the body over and frees it */
    response = MHD_create_response_from_buffer(reply->body.len, reply->body.len ? reply->body.data : NULL,
                                               MHD_RESPMEM_MUST_FREE);
    if (!response)
        return MHD_NO;
    if (reply->body.len == 0)
        buffer_free(&reply->body);
    memset(&reply->body, 0, sizeof(reply->body));
    connection_deadline(r->connection, clock_now() + REPLY_SECONDS + (double)r->sent / REPLY_RATE);
    return request_respond(r, response);
}

/* ---- The body ---- */

/* Routes that read no body throw away what comes. */
static size_t body_max(const struct request *r)
{
    return r->route && r->route->begin ? r->route->body_max : BODY_MAX;
}

static enum MHD_Result take_body(struct request *r, const char *data, size_t *size)
{
    size_t n = *size;

    *size = 0; /* all of it is taken, also what is thrown away: a client that still writes would not read the
                  reply */
    r->received += n;
    if (!r->route || !r->route->begin || r->too_large || r->bodies_full || r->no_memory)
        return MHD_YES;
    r->too_large = r->received > body_max(r);
    r->bodies_full = atomic_fetch_add(&r->server->bodies, n) + n > BODIES_MAX;
    r->counted += n;
    r->no_memory = !r->too_large && !r->bodies_full && buffer_add(&r->body, data, n);
    if (r->too_large || r->bodies_full || r->no_memory)
        release_body(r);
    else
        connection_deadline(r->connection, r->begun + BODY_SECONDS + (double)r->received / BODY_RATE);
    return MHD_YES;
}

/* A body that was announced as too large is refused before it is sent, when the client asks first. */
static bool expects_refusal(struct request *r)
{
    const char *expect = header(r->mhd, "Expect"), *length = header(r->mhd, "Content-Length");

    return expect && strcasecmp(expect, "100-continue") == 0 && length &&
           strtoull(length, NULL, 10) > body_max(r);
}

static void too_large(struct request *r)
{
    reply_error(&r->reply, 400, "The body has more than %zu bytes.", body_max(r));
    http_reject(&r->server->stats, REJECTED_TOO_LARGE);
}

/* ---- Jobs ---- */

static void request_drop(struct request *r);

void request_suspend(struct request *r)
{
    MHD_suspend_connection(r->mhd);
    atomic_store(&r->suspended, true);
}

/* While it is suspended the connection cannot end, so r->mhd is sound. */
void request_wake(struct request *r)
{
    if (atomic_exchange(&r->suspended, false))
        MHD_resume_connection(r->mhd);
}

static void job_wrote(void *ctx)
{
    request_wake(ctx);
}

/* On the worker's thread, or on the one that cancelled. */
static void job_finished(struct job *job)
{
    struct request *r = job->owner;

    if (job->pipe)
        pipe_end(job->pipe, job->result.err.code == 0);
    atomic_store(&r->done, true);
    request_wake(r);
    request_drop(r);
}

static enum MHD_Result start_job(struct request *r)
{
    struct server *srv = r->server;
    enum refusal why;

    r->job->finished = job_finished;
    r->job->owner = r;
    if (r->job->pipe)
        pipe_on_change(r->job->pipe, job_wrote, r);
    request_suspend(r);
    atomic_store(&r->parties, 2);
    why = worker_submit(srv->service->worker, r->job);
    if (why == REFUSED_NOT) {
        /* Not too late: this thread alone goes on with the connection, after we return. */
        connection_watch(r->connection, r->job);
        return MHD_YES;
    }
    atomic_store(&r->parties, 1);
    refusal_reply(why, &r->reply);
    atomic_store(&r->done, true);
    request_wake(r);
    return MHD_YES;
}

static enum MHD_Result finish_job(struct request *r)
{
    if (r->reply.status == 0) {
        connection_unwatch(r->connection);
        r->route->end(r->job, &r->reply);
    }
    return request_send(r);
}

/* The job has ended, or has written the beginning of its reply. One that failed before any of it was sent is
 * answered as an error. */
static enum MHD_Result resume_job(struct request *r)
{
    bool done = atomic_load(&r->done);

    if (r->job->pipe && pipe_begun(r->job->pipe) && !(done && r->job->result.err.code))
        return send_piped(r);
    if (done)
        return finish_job(r);
    request_suspend(r);
    if (atomic_load(&r->done) || (r->job->pipe && pipe_ready(r->job->pipe)))
        request_wake(r);
    return MHD_YES;
}

/* ---- The stations ---- */

/* Of what the endpoint answered without a job, only the worker's own refusals are counted elsewhere. */
static void count_rejection(struct request *r)
{
    int status = r->reply.status;

    if (r->reply.no_room)
        http_reject(&r->server->stats, REJECTED_TOO_LARGE);
    else if (status == 400 || status == 422)
        http_reject(&r->server->stats, REJECTED_INVALID);
    else if (status == 401)
        http_reject(&r->server->stats, REJECTED_AUTH);
}

static enum MHD_Result dispatch(struct request *r)
{
    struct server *srv = r->server;
    const char *token = srv->service->config->auth_token;

    if (r->reply.status)
        return request_send(r);
    if (r->too_large) {
        too_large(r);
    } else if (r->bodies_full) {
        reply_error(&r->reply, 500,
                    "insufficient capacity: too many request bodies at once, try again later");
        http_reject(&r->server->stats, REJECTED_UPLOADS);
    } else if (r->no_memory) {
        r->reply.body.failed = true;
    } else if (r->route->serve) {
        release_body(r);
        return r->route->serve(r);
    } else if (r->route->answer) {
        r->route->answer(srv, &r->reply);
    } else {
        struct api_request request = {.content_type = header(r->mhd, "Content-Type"),
                                      .body = r->body.data,
                                      .len = r->body.len,
                                      .upload = &r->body,
                                      .authorized = auth_ok(header(r->mhd, "Authorization"), token),
                                      .wants_png = wants(r->mhd, "image/png", "image/*"),
                                      .wants_mp4 = wants(r->mhd, "video/mp4", "video/*"),
                                      .id = r->id};
        r->job = r->route->begin(srv->service, &request, &r->reply);
        if (!r->job)
            count_rejection(r);
    }
    if (!r->job || r->body.data)
        release_body(r); /* a job that took the body over keeps it counted until its reply */
    return r->job ? start_job(r) : request_send(r);
}

static struct request *receive(struct server *srv, struct MHD_Connection *mhd, const char *url,
                               const char *method)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct request *r = info && info->socket_context ? calloc(1, sizeof(*r)) : NULL;

    if (!r)
        return NULL;
    r->server = srv;
    r->mhd = mhd;
    r->connection = info->socket_context;
    snprintf(r->method, sizeof(r->method), "%s", method);
    snprintf(r->path, sizeof(r->path), "%s", url);
    atomic_init(&r->parties, 1);
    r->begun = clock_now();
    choose_id(r);
    atomic_fetch_add(&srv->active, 1);
    connection_deadline(r->connection, r->begun + BODY_SECONDS);
    return r;
}

enum MHD_Result request_handle(void *ctx, struct MHD_Connection *mhd, const char *url, const char *method,
                               const char *version, const char *data, size_t *size, void **request)
{
    struct request *r = *request;
    const char *fault;

    if (r && *size)
        return take_body(r, data, size);
    if (r)
        return r->job ? resume_job(r) : dispatch(r);
    *request = r = receive(ctx, mhd, url, method);
    if (!r)
        return MHD_NO;
    fault = audit_headers(mhd, method, url, version);
    if (fault) {
        r->close = true;
        reply_error(&r->reply, 400, "Bad request: %s.", fault);
        return request_send(r);
    }
    r->route = route_find(r->server->service->config->pipeline, method, url, &r->reply);
    if (expects_refusal(r)) {
        r->close = true;
        if (!r->reply.status)
            too_large(r);
        return request_send(r);
    }
    return MHD_YES;
}

/* ---- The end ---- */

static void log_request(const struct request *r)
{
    static const char *const cancelled[CANCEL_REASONS] = {"", " cancelled=disconnect", " cancelled=shutdown",
                                                          " cancelled=slow"};
    char job[200] = "", what[128];
    const struct job *j = r->job;
    bool quiet = r->route ? !r->route->begin : r->status < 400;

    if (j && j->state == JOB_DONE) {
        r->route->describe(j, what, sizeof(what));
        double start = j->started_at > 0 ? j->started_at : j->done_at;
        snprintf(job, sizeof(job), " queue_ms=%.1f gen_ms=%.1f %s%s", 1e3 * (start - j->queued_at),
                 1e3 * (j->done_at - start), what, cancelled[atomic_load(&j->cancelled)]);
    }
    log_write(quiet ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO,
              "request_id=%s method=%s route=%s status=%d bytes_in=%zu bytes_out=%zu ms=%.1f%s%s", r->id,
              r->method, r->path, r->status, r->received, r->sent, 1e3 * (clock_now() - r->begun), job,
              r->incomplete ? " incomplete" : "");
}

static void request_end(struct request *r)
{
    struct server *srv = r->server;

    if (r->status == 0 || (r->job && r->job->result.err.code == ERR_CANCELLED &&
                           atomic_load(&r->job->cancelled) == CANCEL_DISCONNECT))
        r->status = CLIENT_LEFT; /* nobody reads the reply; log and metrics tell it from a failure */
    http_count(&srv->stats, r->route, r->method, r->status, clock_now() - r->begun);
    log_request(r);
    if (r->job)
        job_put(r->job);
    release_body(r);
    buffer_free(&r->reply.body);
    free(r);
    atomic_fetch_sub(&srv->active, 1);
}

static void request_drop(struct request *r)
{
    if (atomic_fetch_sub(&r->parties, 1) == 1)
        request_end(r);
}

void request_completed(void *ctx, struct MHD_Connection *mhd, void **request,
                       enum MHD_RequestTerminationCode how)
{
    struct server *srv = ctx;
    struct request *r = *request;

    (void)mhd;
    if (!r)
        return;
    *request = NULL;
    r->incomplete = how != MHD_REQUEST_TERMINATED_COMPLETED_OK;
    if (r->job)
        connection_unwatch(
            r->connection); /* a client that left: libmicrohttpd may not come back to finish_job() */
    if (atomic_load(&r->parties) > 1) /* …in the middle of a reply, while the job goes on */
        worker_cancel(srv->service->worker, r->job,
                      connection_late(r->connection) ? CANCEL_SLOW : CANCEL_DISCONNECT);
    connection_deadline(r->connection, clock_now() + KEEPALIVE_SECONDS);
    request_drop(r);
}
