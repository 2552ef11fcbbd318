/* The HTTP server: libmicrohttpd, with what it lacks. It accepts ambiguous requests, so headers are audited;
 * its timeout only counts silence, so connections have absolute deadlines; and it does not notice a client
 * that leaves while its connection is suspended, so those are watched. */
#ifndef LATENTD_HTTP_SERVER_H
#define LATENTD_HTTP_SERVER_H

#include "api.h"

struct server;

/* Opens HOST:PORT of the configuration and answers from then on. SERVICE is borrowed. An address in use is
 * ERR_IO. */
int server_start(struct server **srv, struct service *service, struct error *err);
/* The port that was opened, also where the configuration says 0. */
int server_port(const struct server *srv);
/* Closes the listening socket; connections live on and are told to close. */
void server_quiesce(struct server *srv);
/* Requests that have not been answered in full. */
int server_active(const struct server *srv);
/* A thread that sends WATCHDOG=1 (notify.h) three times in LIMIT seconds, as long as the server answers
 * /health/live with 200. */
struct watchdog;
int watchdog_start(struct watchdog **w, struct server *srv, double limit, struct error *err);
/* Before server_stop; *W may be NULL. */
void watchdog_stop(struct watchdog **w);

/* Closes every connection and frees everything. All jobs must have ended. */
void server_stop(struct server **srv);

#endif
