/* The OpenAPI 3.1 document: the contract's paths and schemas, made from the tables of spec.h. Serves
 * /openapi.json, `latentd openapi` and the checked-in openapi.json. */
#include <string.h>

#include "doc_writer.h"
#include "spec.h"

/* What of the tables goes into the document. */
struct scope {
    const char *pipeline; /* the one that is served; NULL: all */
    bool gateway;
};

static void put_ref(struct doc *d, const char *schema)
{
    char ref[80] = "#/components/schemas/";

    strncat(ref, schema, sizeof(ref) - strlen(ref) - 1);
    doc_member(d, "$ref", ref);
}

/* key: {$ref: schema} */
static void put_ref_member(struct doc *d, const char *key, const char *schema)
{
    doc_key(d, key);
    doc_object(d);
    put_ref(d, schema);
    doc_end(d);
}

/* ---- Schemas ---- */

static void put_params(struct doc *d, const struct param_table *table, bool gateway)
{
    static const char *const types[] = {[PARAM_STRING] = "string",
                                        [PARAM_INTEGER] = "integer",
                                        [PARAM_NUMBER] = "number",
                                        [PARAM_BOOLEAN] = "boolean",
                                        [PARAM_FILE] = "string"};

    doc_key(d, "properties");
    doc_object(d);
    for (int i = 0; i < table->count; i++) {
        const struct param *p = &table->param[i];
        doc_key(d, p->name);
        doc_object(d);
        doc_member(d, "type", types[p->type]);
        if (p->type == PARAM_FILE)
            doc_member(d, "format", "binary");
        doc_member(d, "title", p->title);
        doc_member(d, "description", p->description);
        if (p->fallback) {
            doc_key(d, "default");
            doc_raw(d, p->fallback);
        }
        doc_end(d);
    }
    doc_end(d);
    doc_member(d, "type", "object");
    doc_key(d, "required");
    doc_array(d);
    for (int i = 0; i < table->count; i++)
        if (table->param[i].required)
            doc_string(d, table->param[i].name);
    for (int i = 0; gateway && i < table->count; i++)
        if (strcmp(table->param[i].name, "model_id") == 0)
            doc_string(d, "model_id"); /* the gateway needs to know whom to ask */
    doc_end(d);
}

static void put_location(struct doc *d)
{
    doc_key(d, "items");
    doc_object(d);
    doc_key(d, "anyOf");
    doc_array(d);
    doc_object(d);
    doc_member(d, "type", "string");
    doc_end(d);
    doc_object(d);
    doc_member(d, "type", "integer");
    doc_end(d);
    doc_end(d);
    doc_end(d);
    doc_member(d, "type", "array");
}

static void put_status_enum(struct doc *d)
{
    doc_member(d, "type", "string");
    doc_key(d, "enum");
    doc_array(d);
    for (int i = 0; i < STATUS_NAMES; i++)
        doc_string(d, status_names[i]);
    doc_end(d);
}

static void put_field(struct doc *d, const struct field *f)
{
    doc_key(d, f->name);
    doc_object(d);
    switch (f->kind) {
    case FIELD_STRING:
    case FIELD_INTEGER:
    case FIELD_BOOLEAN:
        doc_member(d, "type",
                   f->kind == FIELD_STRING    ? "string"
                   : f->kind == FIELD_INTEGER ? "integer"
                                              : "boolean");
        break;
    case FIELD_REF:
        put_ref(d, f->ref);
        break;
    case FIELD_LIST:
        put_ref_member(d, "items", f->ref);
        doc_member(d, "type", "array");
        break;
    case FIELD_LISTS:
        doc_key(d, "items");
        doc_object(d);
        put_ref_member(d, "items", f->ref);
        doc_member(d, "type", "array");
        doc_end(d);
        doc_member(d, "type", "array");
        break;
    case FIELD_MAP:
        put_ref_member(d, "additionalProperties", f->ref);
        doc_member(d, "type", "object");
        break;
    case FIELD_STATUS:
        put_status_enum(d);
        break;
    case FIELD_LOCATION:
        put_location(d);
        break;
    }
    if (f->title)
        doc_member(d, "title", f->title);
    if (f->description)
        doc_member(d, "description", f->description);
    doc_end(d);
}

static void put_fields(struct doc *d, const struct schema *s)
{
    int required = 0;

    doc_key(d, "properties");
    doc_object(d);
    for (int i = 0; i < SCHEMA_FIELDS_MAX && s->field[i].name; i++) {
        put_field(d, &s->field[i]);
        required += !s->field[i].optional;
    }
    doc_end(d);
    doc_member(d, "type", "object");
    if (!required)
        return;
    doc_key(d, "required");
    doc_array(d);
    for (int i = 0; i < SCHEMA_FIELDS_MAX && s->field[i].name; i++)
        if (!s->field[i].optional)
            doc_string(d, s->field[i].name);
    doc_end(d);
}

/* ---- Components: the schemas that the paths of the document lead to, sorted by name ---- */

enum { COMPONENTS_MAX = 32 };
struct component {
    const char *name;
    const struct schema *schema;     /* of a reply… */
    const struct param_table *table; /* …or of a request */
};
struct components {
    struct component item[COMPONENTS_MAX];
    int count;
};

/* False when it is there already. */
static bool insert(struct components *c, const struct component *new)
{
    int at = 0;

    while (at < c->count && strcmp(c->item[at].name, new->name) < 0)
        at++;
    if (c->count == COMPONENTS_MAX || (at < c->count && strcmp(c->item[at].name, new->name) == 0))
        return false;
    memmove(&c->item[at + 1], &c->item[at], sizeof(*c->item) * (size_t)(c->count - at));
    c->item[at] = *new;
    c->count++;
    return true;
}

/* The schema of NAME and all that it refers to. */
static void add_schema(struct components *c, const struct scope *scope, const char *name)
{
    /* a gateway sends the finished video as if it were a picture */
    bool video = scope->gateway && strcmp(name, "VideoResponse") == 0;
    struct component new = {name, schema_find(video ? "ImageResponse" : name), NULL};

    if (!new.schema || !insert(c, &new))
        return;
    for (int i = 0; i < SCHEMA_FIELDS_MAX && new.schema->field[i].name; i++)
        if (new.schema->field[i].ref)
            add_schema(c, scope, new.schema->field[i].ref);
}

static void collect(struct components *c, const struct scope *scope)
{
    for (int i = 0; i < endpoint_count; i++) {
        if (!endpoint_served(&endpoints[i], scope->pipeline))
            continue;
        insert(c, &(struct component){endpoints[i].table->schema, NULL, endpoints[i].table});
        add_schema(c, scope, endpoints[i].response);
    }
    for (int i = 0; i < FAILURE_REPLIES; i++)
        add_schema(c, scope, failure_replies[i].response);
    for (int i = 0; i < lookup_count && !scope->gateway; i++)
        add_schema(c, scope, lookups[i].response);
}

static void put_component(struct doc *d, const struct component *c, bool gateway)
{
    doc_key(d, c->name);
    doc_object(d);
    if (c->table)
        put_params(d, c->table, gateway);
    else
        put_fields(d, c->schema);
    doc_member(d, "title", c->name);
    if (c->schema && c->schema->description)
        doc_member(d, "description", c->schema->description);
    doc_end(d);
}

static void put_components(struct doc *d, const struct scope *scope)
{
    struct components c = {.count = 0};

    collect(&c, scope);
    doc_key(d, "components");
    doc_object(d);
    doc_key(d, "schemas");
    doc_object(d);
    for (int i = 0; i < c.count; i++)
        put_component(d, &c.item[i], scope->gateway);
    doc_end(d);
    doc_key(d, "securitySchemes");
    doc_object(d);
    doc_key(d, "HTTPBearer");
    doc_object(d);
    doc_member(d, "type", "http");
    doc_member(d, "scheme", "bearer");
    doc_end(d);
    doc_end(d);
    doc_end(d);
}

/* ---- Paths ---- */

/* content: {TYPE: {schema: {$ref: …}}} */
static void put_content(struct doc *d, const char *type, const char *schema, bool data)
{
    doc_key(d, "content");
    doc_object(d);
    doc_key(d, type);
    doc_object(d);
    doc_key(d, "schema");
    doc_object(d);
    put_ref(d, schema);
    if (data)
        doc_member(d, "x-speakeasy-name-override", "data");
    doc_end(d);
    doc_end(d);
    doc_end(d);
}

static void put_response(struct doc *d, const char *status, const char *description, const char *schema,
                         bool data)
{
    doc_key(d, status);
    doc_object(d);
    doc_member(d, "description", description);
    put_content(d, CONTENT_JSON, schema, data);
    doc_end(d);
}

static void put_generation(struct doc *d, const struct endpoint *e)
{
    doc_key(d, "post");
    doc_object(d);
    doc_key(d, "tags");
    doc_array(d);
    doc_string(d, "generate");
    doc_end(d);
    doc_member(d, "summary", e->summary);
    doc_member(d, "description", e->description);
    doc_member(d, "operationId", e->id);
    doc_key(d, "requestBody");
    doc_object(d);
    put_content(d, e->table->form ? "multipart/form-data" : CONTENT_JSON, e->table->schema, false);
    doc_key(d, "required");
    doc_raw(d, "true");
    doc_end(d);
    doc_key(d, "responses");
    doc_object(d);
    put_response(d, "200", "Successful Response", e->response, true);
    for (int i = 0; i < FAILURE_REPLIES; i++)
        put_response(d, failure_replies[i].status, failure_replies[i].summary, failure_replies[i].response,
                     false);
    doc_end(d);
    doc_key(d, "security");
    doc_array(d);
    doc_object(d);
    doc_key(d, "HTTPBearer");
    doc_raw(d, "[]");
    doc_end(d);
    doc_end(d);
    doc_member(d, "x-speakeasy-name-override", e->override);
    doc_end(d);
}

static void put_lookup(struct doc *d, const struct lookup *l)
{
    doc_key(d, "get");
    doc_object(d);
    doc_member(d, "summary", l->summary);
    doc_member(d, "description", l->description);
    doc_member(d, "operationId", l->id);
    doc_key(d, "responses");
    doc_object(d);
    put_response(d, "200", "Successful Response", l->response, false);
    doc_end(d);
    doc_end(d);
}

static void put_paths(struct doc *d, const struct scope *scope)
{
    doc_key(d, "paths");
    doc_object(d);
    for (int i = 0; i < endpoint_count; i++) {
        if (!endpoint_served(&endpoints[i], scope->pipeline))
            continue;
        doc_key(d, endpoints[i].path);
        doc_object(d);
        put_generation(d, &endpoints[i]);
        doc_end(d);
    }
    for (int i = 0; i < lookup_count && !scope->gateway; i++) {
        doc_key(d, lookups[i].path);
        doc_object(d);
        put_lookup(d, &lookups[i]);
        doc_end(d);
    }
    doc_end(d);
}

static void put_server(struct doc *d, const char *url, const char *description)
{
    doc_object(d);
    doc_member(d, "url", url);
    doc_member(d, "description", description);
    doc_end(d);
}

static void put_head(struct doc *d, const char *version)
{
    bool live = d->form == OPENAPI_LIVE;

    doc_member(d, "openapi", "3.1.0");
    doc_key(d, "info");
    doc_object(d);
    doc_member(d, "title", live ? "FastAPI" : "Livepeer AI Runner");
    if (!live)
        doc_member(d, "description", "An application to run AI pipelines");
    doc_member(d, "version", live ? "0.1.0" : version);
    doc_end(d);
    if (live)
        return;
    doc_key(d, "servers");
    doc_array(d);
    put_server(d, "https://dream-gateway.livepeer.cloud", "Livepeer Cloud Community Gateway");
    put_server(d, "https://livepeer.studio/api/beta/generate", "Livepeer Studio Gateway");
    doc_end(d);
}

int openapi_write(enum openapi_form form, enum openapi_entrypoint entry, const char *pipeline,
                  const char *version, struct buffer *out, struct error *err)
{
    struct doc d = {.out = out, .form = form};
    struct scope scope = {pipeline, entry == OPENAPI_GATEWAY};

    if (form == OPENAPI_YAML)
        buffer_printf(out, "# Generated by `latentd openapi --type yaml%s`. Do not edit.\n",
                      scope.gateway ? " --entrypoint gateway" : "");
    doc_object(&d);
    put_head(&d, version);
    put_paths(&d, &scope);
    put_components(&d, &scope);
    doc_end(&d);
    return out->failed ? error_set(err, ERR_NOMEM, "no memory for the document") : 0;
}
