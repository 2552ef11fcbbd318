/* GET /version: what runs here. */
#include <string.h>

#include "api.h"

void version_reply(struct service *s, struct reply *reply)
{
    const struct config *c = s->config;

    reply->status = 200;
    reply->content_type = CONTENT_JSON;
    buffer_puts(&reply->body, "{\"pipeline\":");
    buffer_json_string(&reply->body, c->pipeline, strlen(c->pipeline));
    buffer_puts(&reply->body, ",\"model_id\":");
    buffer_json_string(&reply->body, c->model_id, strlen(c->model_id));
    buffer_puts(&reply->body, ",\"version\":");
    buffer_json_string(&reply->body, c->version, strlen(c->version));
    buffer_puts(&reply->body, "}");
}
