/* Whether the process is well, in the words of those who ask.
 *
 *              loading            ready     failed            draining               hung
 * /health        503 LOADING        200 OK    200 ERROR         as before the drain    200 OK
 * /health/live   200                200       503               200                    503
 * /health/ready  503                200       503               503                    503
 * /ping          204                200       503               503                    503
 *
 * LOADING is a 503, so that a caller that only looks at the status waits; ERROR is a 200, because the
 * contract's clients give up on "200 and ERROR" and poll on after anything else. /health/live and
 * /health/ready are for the probes of Kubernetes, /ping for RunPod, which takes 204 for "still starting", and
 * SageMaker. */
#include <string.h>

#include "api.h"

static void say(struct reply *reply, int status, const char *word)
{
    reply->status = status;
    reply->content_type = CONTENT_JSON;
    buffer_printf(&reply->body, "{\"status\":\"%s\"}", word);
}

void health_reply(struct service *s, struct reply *reply)
{
    static const char *const names[] = {
        [WORKER_LOADING] = "LOADING", [WORKER_READY] = "OK", [WORKER_FAILED] = "ERROR"};
    enum worker_state state = worker_state(s->worker);

    say(reply, state == WORKER_LOADING ? 503 : 200, names[state]);
}

/* A process that has failed ends by itself, one that hangs does not; nothing but its end helps either. */
void live_reply(struct service *s, struct reply *reply)
{
    bool failed = worker_state(s->worker) == WORKER_FAILED, stuck = worker_stuck(s->worker);

    say(reply, failed || stuck ? 503 : 200, failed ? "failed" : stuck ? "stuck" : "live");
}

void ready_reply(struct service *s, bool draining, struct reply *reply)
{
    static const char *const names[] = {
        [WORKER_LOADING] = "loading", [WORKER_READY] = "ready", [WORKER_FAILED] = "failed"};
    enum worker_state state = worker_state(s->worker);
    const char *word = names[state];

    if (state == WORKER_READY && draining)
        word = "draining";
    else if (state == WORKER_READY && worker_stuck(s->worker))
        word = "stuck";
    say(reply, strcmp(word, "ready") == 0 ? 200 : 503, word);
}

void ping_reply(struct service *s, bool draining, struct reply *reply)
{
    if (worker_state(s->worker) == WORKER_LOADING && !draining)
        reply->status = 204;
    else
        ready_reply(s, draining, reply);
}
