/* What the files of src/http share. */
#ifndef LATENTD_HTTP_INTERNAL_H
#define LATENTD_HTTP_INTERNAL_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "server.h"

enum {
    HTTP_THREADS = 4,
    BODY_MAX = 2 << 20,     /* of a JSON body; a prompt of a megabyte fits */
    UPLOAD_MAX = 32 << 20,  /* of a form with a picture */
    BODIES_MAX = 128 << 20, /* of all bodies in memory at once, also those of jobs that wait */
    CONNECTIONS_MAX = 4096,
    CONNECTION_MEMORY = 32 << 10 /* request line and headers of one request */
};

/* Seconds that a connection may spend in each station, whatever trickles in meanwhile. HEADER_SECONDS are for
 * its first request; later ones come within KEEPALIVE_SECONDS of the reply before. */
enum { HEADER_SECONDS = 10, BODY_SECONDS = 20, REPLY_SECONDS = 60, KEEPALIVE_SECONDS = 75 };
/* And in a reply that is sent while it is made, where a client that waits holds the device: for one piece,
 * and for all of them beyond what REPLY_RATE earns. */
enum { PIECE_SECONDS = 10 };
/* Bytes a second that earn more time. */
enum { BODY_RATE = 16 << 10, REPLY_RATE = 64 << 10 };

/* What log and metrics call a request whose client left before the reply; nginx's number. It is never sent.
 */
enum { CLIENT_LEFT = 499 };

/* ---- connections.c: deadlines and departures ---- */

/* One TCP connection, as long as libmicrohttpd has it open. */
struct connection {
    struct connections *all;
    struct connection *next, *before;
    int fd;
    double deadline;     /* clock_now(); 0: none */
    uint64_t serial;     /* never used twice */
    struct job *waiting; /* what the request waits for, or NULL */
    bool gone;           /* its client has left meanwhile */
    bool late;           /* it was cut off behind its deadline */
};

struct connections {
    pthread_mutex_t lock;
    struct connection *first;
    int epoll; /* the sockets of suspended requests */
    int stop;  /* eventfd that ends the thread */
    pthread_t thread;
    struct worker *worker;
    uint64_t serial;
    atomic_int count;
    atomic_uint_fast64_t reaped;
};

int connections_start(struct connections *c, struct worker *worker, struct error *err);
void connections_stop(struct connections *c);
/* MHD_NotifyConnectionCallback. */
void connection_notify(void *ctx, struct MHD_Connection *mhd, void **socket_context,
                       enum MHD_ConnectionNotificationCode code);
/* The connection is closed at WHEN (clock_now()) unless its deadline is moved before. */
void connection_deadline(struct connection *c, double when);
bool connection_late(struct connection *c);
/* From now until connection_unwatch, JOB is cancelled when the client closes or half-closes. A half-close
 * counts as leaving, as it does for nginx and Go: nothing on the wire tells it from a close. */
void connection_watch(struct connection *c, struct job *job);
void connection_unwatch(struct connection *c);

/* ---- request.c: one request, from its headers to its reply ---- */

struct route;

struct request {
    struct server *server;
    struct MHD_Connection *mhd;
    struct connection *connection;
    const struct route *route;
    char method[17], path[65], id[65]; /* cut; libmicrohttpd's own may be gone at the end */
    double begun;
    struct buffer body;
    size_t received, counted, sent; /* bytes that came; those counted in server->bodies; those of the reply */
    bool too_large, bodies_full, no_memory; /* why nothing is kept of the body */
    bool close;
    struct job *job;
    atomic_bool done;      /* the job has ended */
    atomic_bool suspended; /* …is the connection, until the job has ended or written something */
    atomic_int parties;    /* the connection and the running job: the last one to let go ends the request */
    struct reply reply;
    int status;
    bool incomplete; /* the reply was not sent in full */
    /* of a reply that is sent while it is made */
    double handed, waited; /* when the last piece went to the socket; seconds that the client took for all */
};

/* MHD_AccessHandlerCallback and MHD_RequestCompletedCallback. */
enum MHD_Result request_handle(void *ctx, struct MHD_Connection *mhd, const char *url, const char *method,
                               const char *version, const char *data, size_t *size, void **request);
void request_completed(void *ctx, struct MHD_Connection *mhd, void **request,
                       enum MHD_RequestTerminationCode how);
/* Takes the connection out of the loop until request_wake, which any thread may call and which does nothing
 * when the connection is not suspended. */
void request_suspend(struct request *r);
void request_wake(struct request *r);
/* Sends RESPONSE, which it takes over, with the headers that every reply has. */
enum MHD_Result request_respond(struct request *r, struct MHD_Response *response);

/* Sends r->reply. */
enum MHD_Result request_send(struct request *r);

/* ---- piped.c ---- */

/* Answers with what the job writes into its pipe, piece by piece. */
enum MHD_Result send_piped(struct request *r);

/* ---- stream.c ---- */

enum MHD_Result stream_serve(struct request *r);

/* ---- audit.c ---- */

/* NULL when the headers are sound, else what is wrong with them: whatever two servers in a row could read
 * differently. */
const char *audit_headers(struct MHD_Connection *mhd, const char *method, const char *url,
                          const char *version);

/* ---- routes.c ---- */

enum { ROUTE_STATIC_MAX = 24 };

struct route {
    const char *path, *method;
    bool slash; /* also served with a trailing slash, not redirected */
    void (*answer)(struct server *srv, struct reply *reply);
    struct job *(*begin)(struct service *s, const struct api_request *request, struct reply *reply);
    void (*end)(struct job *job, struct reply *reply);
    void (*describe)(const struct job *job, char *out, size_t size);
    size_t body_max;
    enum MHD_Result (*serve)(struct request *r); /* of every path below it: answers by itself, HEAD too */
};

extern const struct route routes[];
extern const int route_count;
/* True unless the route makes something else than PIPELINE. */
bool route_served(const struct route *r, const char *pipeline);
/* The route, or NULL and a reply: 404, 405 or a redirect to the path without its slash. */
const struct route *route_find(const char *pipeline, const char *method, const char *path,
                               struct reply *reply);

/* ---- auth.c ---- */

/* HEADER is the Authorization header or NULL, TOKEN the secret or NULL when none is asked for. */
bool auth_ok(const char *header, const char *token);

/* ---- metrics.c ---- */

enum { CODES_MAX = 16, METHODS_MAX = 3 };

/* Requests of generation routes that never became a job. What the queue refuses, the worker counts. */
enum rejection { REJECTED_INVALID, REJECTED_AUTH, REJECTED_TOO_LARGE, REJECTED_UPLOADS, REJECTION_COUNT };

struct http_stats {
    pthread_mutex_t lock;
    uint64_t requests[ROUTE_STATIC_MAX + 1][METHODS_MAX]
                     [CODES_MAX]; /* the last row: paths that are no route */
    struct histogram duration[ROUTE_STATIC_MAX + 1];
    uint64_t rejected[REJECTION_COUNT];
};

void http_count(struct http_stats *st, const struct route *route, const char *method, int status,
                double seconds);
void http_reject(struct http_stats *st, enum rejection why);
void metrics_reply(struct server *srv, struct reply *reply);

/* ---- listen.c ---- */

/* A listening socket, non-blocking. */
int listen_open(const char *host, int port, int *fd, int *port_out, struct error *err);

/* ---- server.c ---- */

struct server {
    struct MHD_Daemon *daemon;
    struct service *service;
    struct connections connections;
    struct http_stats stats;
    int port, limit;
    atomic_bool draining;
    atomic_int active;
    atomic_size_t bodies; /* bytes of all request bodies in memory */
    double started;
};

#endif
