/* The documentation page: made from the parameter table, and without anything from elsewhere, so it works
 * offline. */
#include <string.h>

#include "spec.h"

static const char head[] =
    "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
    "<meta name=\"viewport\" content=\"width=device-width\"><title>latentd</title><style>"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3rem .6rem;"
    "border-bottom:1px solid #ddd}code{background:#f3f3f3;padding:0 .2rem}"
    "pre{background:#f3f3f3;padding:.6rem;overflow:auto}"
    "label{display:inline-block;min-width:13rem}input{width:20rem;max-width:100%}img{max-width:100%;margin:."
    "5rem 0}"
    "</style></head><body><h1>latentd</h1>\n";

static const char routes_text[] =
    "<tr><td><code>GET /health</code></td><td><code>LOADING</code> (503), <code>OK</code> or "
    "<code>ERROR</code></td></tr>"
    "<tr><td><code>GET /version</code></td><td>pipeline, model and version</td></tr>"
    "<tr><td><code>GET /hardware/info</code>, <code>/hardware/stats</code></td><td>the GPUs in use</td></tr>"
    "<tr><td><code>GET /metrics</code></td><td>Prometheus metrics</td></tr>"
    "<tr><td><a href=\"/openapi.json\"><code>GET /openapi.json</code></a></td><td>the OpenAPI "
    "document</td></tr>"
    "</table>\n";

static const char errors_text[] = "<h2>Errors</h2><p>400, 401 and 500 carry "
                                  "<code>{\"detail\":{\"msg\":\"…\"}}</code>, 422 a list with one entry for "
                                  "every wrong parameter. A 500 that says <code>insufficient capacity</code> "
                                  "is worth another try: the queue is full, "
                                  "the model is still loading, or the server is shutting down.</p>\n";

/* A chosen picture is shown at once; a form with one is sent as a form, others as JSON. Fields that are left
 * empty are not sent. */
static const char form_end[] =
    "<p><label>bearer token (if one is set)</label><input id=\"token\" type=\"password\"></p>"
    "<p><button>Make pictures</button> <span id=\"state\"></span></p></form><div "
    "id=\"result\"></div>\n<script>\n"
    "const form=document.getElementById('try'),state=document.getElementById('state'),"
    "result=document.getElementById('result'),file=form.querySelector('input[type=file]');\n"
    "function show(url,text){const f=document.createElement('figure'),i=document.createElement('img'),"
    "c=document.createElement('figcaption');i.src=url;c.textContent=text;f.append(i,c);result.append(f)}\n"
    "if(file)file.addEventListener('change',()=>{result.textContent='';for(const f of "
    "file.files)show(URL.createObjectURL(f),f.name)});\n"
    "form.addEventListener('submit',async e=>{e.preventDefault();const fields={},parts=new FormData(),"
    "headers={},token=document.getElementById('token').value;"
    "for(const i of form.querySelectorAll('input[name]'))"
    "if(i.files)for(const f of i.files)parts.append(i.name,f);"
    "else if(i.value!==''){fields[i.name]=i.value;parts.append(i.name,i.value)}"
    "if(!file)headers['Content-Type']='application/json';"
    "if(token)headers.Authorization='Bearer '+token;result.textContent='';state.textContent='working';"
    "const start=performance.now();try{const r=await fetch(form.dataset.route,{method:'POST',headers,"
    "body:file?parts:JSON.stringify(fields)}),j=await r.json();"
    "state.textContent=r.status+' after '+((performance.now()-start)/1000).toFixed(1)+' s';"
    "if(!r.ok){const "
    "p=document.createElement('pre');p.textContent=JSON.stringify(j,null,2);result.append(p);return}"
    "if(file)for(const f of file.files)show(URL.createObjectURL(f),f.name);"
    "for(const m of j.images)show(m.url,'seed '+m.seed)"
    "}catch(x){state.textContent=x}});\n</script>\n";

static void put_html(struct buffer *out, const char *s)
{
    for (; *s; s++)
        switch (*s) {
        case '<':
            buffer_puts(out, "&lt;");
            break;
        case '>':
            buffer_puts(out, "&gt;");
            break;
        case '&':
            buffer_puts(out, "&amp;");
            break;
        case '"':
            buffer_puts(out, "&quot;");
            break;
        default:
            buffer_add(out, s, 1);
        }
}

static void put_rows(const struct param_table *table, struct buffer *out)
{
    static const char *const types[] = {[PARAM_STRING] = "string",
                                        [PARAM_INTEGER] = "integer",
                                        [PARAM_NUMBER] = "number",
                                        [PARAM_BOOLEAN] = "boolean",
                                        [PARAM_FILE] = "file"};

    buffer_puts(out, "<table><tr><th>Parameter</th><th>Type</th><th>Default</th><th>Meaning</th></tr>\n");
    for (int i = 0; i < table->count; i++) {
        const struct param *p = &table->param[i];
        buffer_printf(out, "<tr><td><code>%s</code></td><td>%s</td><td>", p->name, types[p->type]);
        if (p->required)
            buffer_puts(out, "required");
        else if (p->fallback) {
            buffer_puts(out, "<code>");
            put_html(out, p->fallback);
            buffer_puts(out, "</code>");
        }
        buffer_puts(out, "</td><td>");
        put_html(out, p->description);
        buffer_puts(out, "</td></tr>\n");
    }
    buffer_puts(out, "</table>\n");
}

static void put_form(const char *route, const struct param_table *table, struct buffer *out)
{
    buffer_printf(out, "<h2>Try it</h2><form id=\"try\" data-route=\"%s\">\n", route);
    for (int i = 0; i < table->count; i++) {
        const struct param *p = &table->param[i];
        buffer_printf(out, "<p><label for=\"%s\">%s</label><input id=\"%s\" name=\"%s\" ", p->name, p->name,
                      p->name, p->name);
        buffer_puts(out, p->type == PARAM_FILE ? "type=\"file\" accept=\"image/*\" " : "");
        buffer_puts(out, "placeholder=\"");
        put_html(out, p->fallback && p->type != PARAM_STRING ? p->fallback : "");
        buffer_puts(out, p->required ? "\" required></p>\n" : "\"></p>\n");
    }
    buffer_puts(out, form_end);
}

void docs_page(const struct service *s, bool try_it, struct buffer *out)
{
    const struct endpoint *e = endpoints;

    while (e < endpoints + endpoint_count - 1 && !endpoint_served(e, s->config->pipeline))
        e++;
    bool from_image = e->table->form;
    const char *route = e->path;
    const struct param_table *table = e->table;

    buffer_puts(out, head);
    buffer_puts(out, "<p>This server makes pictures with the model <code>");
    put_html(out, s->config->model_id);
    buffer_puts(out, from_image
                         ? "</code>, from a picture and a prompt. Their size is that of the picture sent, "
                           "cut down to multiples of 8.</p>\n"
                         : "</code>. Models with pictures smaller than 512 pixels use their own size "
                           "where a request gives none.</p>\n");
    if (try_it)
        put_form(route, table, out);
    buffer_puts(out, "<h2>Routes</h2><table><tr><th>Route</th><th>Answer</th></tr>");
    buffer_printf(
        out,
        "<tr><td><code>POST %s</code> (%s)</td><td>pictures as data URLs; with <code>Accept: "
        "image/png</code> the picture itself, its seed in <code>X-Seed</code>; tokens of prompts that "
        "were cut off are counted in <code>X-Prompt-Cut</code></td></tr>",
        route, from_image ? "multipart/form-data" : "JSON");
    buffer_puts(out, routes_text);
    buffer_printf(out, "<h2>Parameters of %s</h2>\n", route + 1);
    put_rows(table, out);
    buffer_puts(out, errors_text);
    buffer_puts(out, "</body></html>\n");
}
