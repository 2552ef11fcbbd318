/* Starts real daemons and talks to them over real loopback sockets. Shared by the API tests. */
#ifndef LATENTD_TESTS_API_CLIENT_H
#define LATENTD_TESTS_API_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define TINY_DIR "tests/api/data"
#define TINY_ID  "latentd/tiny"

struct daemon {
    pid_t pid;
    int port;     /* 0: it never listened */
    char log[64]; /* file that holds its stderr */
};

/* The daemon under test is $LATENTD_BIN, else build/latentd. ENV: "NAME=value" strings over the defaults (the
 * tiny model, any free port, verbose log), NULL-terminated; NULL: none. TEST_ADDRESS_SPACE=bytes limits its
 * memory. Waits until it listens or ends. */
void daemon_start(struct daemon *d, const char *const *env);
/* Starts it and waits for /health to say OK. False when it does not within 20 s. */
bool daemon_ready(struct daemon *d, const char *const *env);
/* For the daemon that the tests of a file share: starts it the first time. Ends the program when it could not
 * be started, or has died since. */
void daemon_shared(struct daemon *d, const char *const *env);
/* Sends SIG (0: none) and waits up to SECONDS for the end; kills it then. Returns the exit status, 128 +
 * signal, or -1 when it had to be killed. Removes the log. */
int daemon_end(struct daemon *d, int sig, double seconds);
/* The log so far; the caller frees it. */
char *daemon_log(const struct daemon *d);
/* Waits until the log has TEXT. */
bool daemon_logged(const struct daemon *d, const char *text, double seconds);
/* The value of a metric, given with its labels as it is printed; -1 when absent. */
double daemon_metric(const struct daemon *d, const char *name);
/* Waits until the metric is at least VALUE. */
bool daemon_metric_reaches(const struct daemon *d, const char *name, double value, double seconds);

struct answer {
    int status;  /* 0: no answer */
    char *head;  /* status line and header lines; NUL-terminated */
    char *body;  /* NUL-terminated */
    size_t len;  /* of body */
    bool closed; /* the server closed the connection behind it */
};

int client_open(const struct daemon *d);
bool client_write(int fd, const void *data, size_t len);
bool client_puts(int fd, const char *text);
/* Reads one reply; FD stays open. Status 0 when none came within SECONDS. */
struct answer client_read(int fd, double seconds);
/* True when the server has closed the connection within SECONDS (data before that is thrown away). */
bool client_closed(int fd, double seconds);
/* One request on a connection of its own. HEADERS: further lines, each ending in \r\n, or NULL. */
struct answer client_ask(const struct daemon *d, const char *method, const char *path, const char *headers,
                         const char *body);
/* The same with a body of any bytes, whose Content-Length is LEN whatever is sent of it: SENT bytes. Leaves
 * the reply unread. */
int client_begin_bytes(const struct daemon *d, const char *path, const char *headers, const void *body,
                       size_t len, size_t sent);
/* POST /text-to-image with a JSON body. */
struct answer client_make(const struct daemon *d, const char *body);
/* Sends such a request and leaves the reply unread. */
int client_begin(const struct daemon *d, const char *body);
void answer_free(struct answer *a);
/* The value of a header line, "" when there is none; overwritten by the next call of
 * the thread. */
const char *answer_header(const struct answer *a, const char *name);

/* True when the daemon under test is a sanitizer build (LATENTD_BIN in build-san): several times slower, and
 * its memory says nothing. */
bool sanitized(void);
double now_seconds(void);
void sleep_seconds(double seconds);

#endif
