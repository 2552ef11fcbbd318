/* GET /health: {"status":"LOADING"|"OK"|"ERROR"}. LOADING is a 503, so that a caller that only looks at the
 * status waits; ERROR is a 200, because the contract's clients give up on "200 and ERROR" and poll on after
 * anything else. */
#include "api.h"

void health_reply(struct service *s, struct reply *reply)
{
    static const char *const names[] = {
        [WORKER_LOADING] = "LOADING", [WORKER_READY] = "OK", [WORKER_FAILED] = "ERROR"};
    enum worker_state state = worker_state(s->worker);

    reply->status = state == WORKER_LOADING ? 503 : 200;
    reply->content_type = CONTENT_JSON;
    buffer_printf(&reply->body, "{\"status\":\"%s\"}", names[state]);
}
