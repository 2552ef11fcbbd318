/* GET /hardware/info and /hardware/stats: the GPUs in use, keyed by index. On the CPU there are none: the
 * maps are empty. */
#include <string.h>

#include "api.h"

static void write_hardware(struct service *s, const char *map, struct reply *reply)
{
    const struct config *c = s->config;

    reply->status = 200;
    reply->content_type = CONTENT_JSON;
    buffer_puts(&reply->body, "{\"pipeline\":");
    buffer_json_string(&reply->body, c->pipeline, strlen(c->pipeline));
    buffer_puts(&reply->body, ",\"model_id\":");
    buffer_json_string(&reply->body, c->model_id, strlen(c->model_id));
    buffer_printf(&reply->body, ",\"%s\":{}}", map);
}

void hardware_info_reply(struct service *s, struct reply *reply)
{
    write_hardware(s, "gpu_info", reply);
}

void hardware_stats_reply(struct service *s, struct reply *reply)
{
    write_hardware(s, "gpu_stats", reply);
}
