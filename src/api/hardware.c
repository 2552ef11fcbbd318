/* GET /hardware/info and /hardware/stats: the GPUs in use, keyed by index. On the CPU there are none: the
 * maps are empty. */
#include <string.h>

#include "api.h"

static void write_text(struct buffer *b, const char *key, const char *text)
{
    buffer_printf(b, "\"%s\":", key);
    buffer_json_string(b, text, strlen(text));
}

static void write_head(struct service *s, const char *map, struct reply *reply)
{
    reply->status = 200;
    reply->content_type = CONTENT_JSON;
    buffer_puts(&reply->body, "{");
    write_text(&reply->body, "pipeline", s->config->pipeline);
    buffer_puts(&reply->body, ",");
    write_text(&reply->body, "model_id", s->config->model_id);
    buffer_printf(&reply->body, ",\"%s\":{", map);
}

/* What both maps say of a GPU. */
static void write_device(struct buffer *b, const struct device_info *d)
{
    buffer_puts(b, "\"0\":{");
    write_text(b, "id", d->id);
    buffer_puts(b, ",");
    write_text(b, "name", d->name);
    buffer_printf(b, ",\"memory_total\":%zu,\"memory_free\":%zu", d->memory_total, d->memory_free);
}

void hardware_info_reply(struct service *s, struct reply *reply)
{
    struct device_info d;

    write_head(s, "gpu_info", reply);
    if (worker_device(s->worker, &d)) {
        write_device(&reply->body, &d);
        buffer_printf(&reply->body, ",\"major\":%d,\"minor\":%d}", d.major, d.minor);
    }
    buffer_puts(&reply->body, "}}");
}

void hardware_stats_reply(struct service *s, struct reply *reply)
{
    struct device_info d;

    write_head(s, "gpu_stats", reply);
    if (worker_device(s->worker, &d)) {
        write_device(&reply->body, &d);
        buffer_printf(&reply->body, ",\"utilization_compute\":%d,\"utilization_memory\":%d}",
                      d.utilization_compute, d.utilization_memory);
    }
    buffer_puts(&reply->body, "}}");
}
