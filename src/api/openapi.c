/* The OpenAPI 3.1 document of what this process serves: the contract's paths and schemas, made from the
 * parameter tables and from the tables of replies below. Serves /openapi.json, `latentd openapi` and the
 * checked-in openapi.json. */
#include <string.h>

#include "doc_writer.h"
#include "image_to_image.h"
#include "text_to_image.h"

enum field_kind { STRING, INTEGER, BOOLEAN, REF, LIST_OF, MAP_OF, STATUS_ENUM, LOCATION };

struct field {
    const char *name, *title;
    enum field_kind kind;
    const char *ref; /* schema of REF, LIST_OF and MAP_OF */
    const char *description;
    bool optional;
};

enum { FIELDS_MAX = 6 };

/* A schema of a reply, or (PARAMS) of a request. */
struct schema {
    const char *name, *description;
    struct field field[FIELDS_MAX];
    const struct param_table *params;
};

#define GPU_FIELDS                                                                                           \
    {"id", "Id", STRING, NULL, NULL, false}, {"name", "Name", STRING, NULL, NULL, false},                    \
        {"memory_total", "Memory Total", INTEGER, NULL, NULL, false},                                        \
    {                                                                                                        \
        "memory_free", "Memory Free", INTEGER, NULL, NULL, false                                             \
    }
#define IDENTITY_FIELDS                                                                                      \
    {"pipeline", "Pipeline", STRING, NULL, NULL, false},                                                     \
    {                                                                                                        \
        "model_id", "Model Id", STRING, NULL, NULL, false                                                    \
    }

static const struct schema schemas[] = {
    {"APIError",
     "API error response model.",
     {{"msg", "Msg", STRING, NULL, "The error message.", false}},
     NULL},
    {"Body_genImageToImage", NULL, {{0}}, &image_to_image_table},
    {"GPUComputeInfo",
     "Model for detailed GPU compute information.",
     {GPU_FIELDS,
      {"major", "Major", INTEGER, NULL, NULL, false},
      {"minor", "Minor", INTEGER, NULL, NULL, false}},
     NULL},
    {"GPUUtilizationInfo",
     "Model for GPU utilization statistics.",
     {GPU_FIELDS,
      {"utilization_compute", "Utilization Compute", INTEGER, NULL, NULL, false},
      {"utilization_memory", "Utilization Memory", INTEGER, NULL, NULL, false}},
     NULL},
    {"HTTPError",
     "HTTP error response model.",
     {{"detail", NULL, REF, "APIError", "Detailed error information.", false}},
     NULL},
    {"HTTPValidationError", NULL, {{"detail", "Detail", LIST_OF, "ValidationError", NULL, true}}, NULL},
    {"HardwareInformation",
     "Response model for GPU information.",
     {IDENTITY_FIELDS, {"gpu_info", "Gpu Info", MAP_OF, "GPUComputeInfo", NULL, false}},
     NULL},
    {"HardwareStats",
     "Response model for real-time GPU statistics.",
     {IDENTITY_FIELDS, {"gpu_stats", "Gpu Stats", MAP_OF, "GPUUtilizationInfo", NULL, false}},
     NULL},
    {"HealthCheck",
     NULL,
     {{"status", "Status", STATUS_ENUM, NULL, "The health status of the pipeline", false}},
     NULL},
    {"ImageResponse",
     "Response model for image generation.",
     {{"images", "Images", LIST_OF, "Media", "The generated images.", false}},
     NULL},
    {"Media",
     "A media object containing information about the generated media.",
     {{"url", "Url", STRING, NULL, "The URL where the media can be accessed.", false},
      {"seed", "Seed", INTEGER, NULL, "The seed used to generate the media.", false},
      {"nsfw", "Nsfw", BOOLEAN, NULL, "Whether the media was flagged as NSFW.", false}},
     NULL},
    {"TextToImageParams", NULL, {{0}}, &text_to_image_table},
    {"ValidationError",
     NULL,
     {{"loc", "Location", LOCATION, NULL, NULL, false},
      {"msg", "Message", STRING, NULL, NULL, false},
      {"type", "Error Type", STRING, NULL, NULL, false}},
     NULL},
    {"Version",
     NULL,
     {IDENTITY_FIELDS, {"version", "Version", STRING, NULL, "The version of the Runner", false}},
     NULL},
};

struct operation {
    const char *path, *summary, *id, *schema;
};

/* The generation routes; a process serves the one that PIPELINE names. */
struct generation {
    struct operation op; /* schema: of the request */
    const char *description, *override;
    const struct param_table *table;
};

static const struct generation generations[] = {
    {{"/text-to-image", "Text To Image", "genTextToImage", "TextToImageParams"},
     "Generate images from text prompts.",
     "textToImage",
     &text_to_image_table},
    {{"/image-to-image", "Image To Image", "genImageToImage", "Body_genImageToImage"},
     "Apply image transformations to a provided image.",
     "imageToImage",
     &image_to_image_table},
};
enum { GENERATIONS = sizeof(generations) / sizeof(*generations) };

/* PIPELINE NULL: all are served. */
static bool is_served(const struct generation *g, const char *pipeline)
{
    return !pipeline || strcmp(g->op.path + 1, pipeline) == 0;
}

static const struct operation gets[] = {
    {"/health", "Health", "health", "HealthCheck"},
    {"/hardware/info", "Hardware Info", "hardware_info", "HardwareInformation"},
    {"/hardware/stats", "Hardware Stats", "hardware_stats", "HardwareStats"},
    {"/version", "Version", "version", "Version"},
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

static void put_params(struct doc *d, const struct param_table *table)
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
    static const char *const names[] = {"LOADING", "OK", "ERROR", "IDLE"};

    doc_member(d, "type", "string");
    doc_key(d, "enum");
    doc_array(d);
    for (int i = 0; i < 4; i++)
        doc_string(d, names[i]);
    doc_end(d);
}

static void put_field(struct doc *d, const struct field *f)
{
    doc_key(d, f->name);
    doc_object(d);
    switch (f->kind) {
    case STRING:
    case INTEGER:
    case BOOLEAN:
        doc_member(d, "type", f->kind == STRING ? "string" : f->kind == INTEGER ? "integer" : "boolean");
        break;
    case REF:
        put_ref(d, f->ref);
        break;
    case LIST_OF:
        put_ref_member(d, "items", f->ref);
        doc_member(d, "type", "array");
        break;
    case MAP_OF:
        put_ref_member(d, "additionalProperties", f->ref);
        doc_member(d, "type", "object");
        break;
    case STATUS_ENUM:
        put_status_enum(d);
        break;
    case LOCATION:
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
    for (int i = 0; i < FIELDS_MAX && s->field[i].name; i++) {
        put_field(d, &s->field[i]);
        required += !s->field[i].optional;
    }
    doc_end(d);
    doc_member(d, "type", "object");
    if (!required)
        return;
    doc_key(d, "required");
    doc_array(d);
    for (int i = 0; i < FIELDS_MAX && s->field[i].name; i++)
        if (!s->field[i].optional)
            doc_string(d, s->field[i].name);
    doc_end(d);
}

/* False for the parameters of a route that is not served. */
static bool is_used(const struct schema *s, const char *pipeline)
{
    for (int i = 0; i < GENERATIONS; i++)
        if (s->params == generations[i].table)
            return is_served(&generations[i], pipeline);
    return true;
}

static void put_components(struct doc *d, const char *pipeline)
{
    doc_key(d, "components");
    doc_object(d);
    doc_key(d, "schemas");
    doc_object(d);
    for (size_t i = 0; i < sizeof(schemas) / sizeof(*schemas); i++) {
        const struct schema *s = &schemas[i];
        if (!is_used(s, pipeline))
            continue;
        doc_key(d, s->name);
        doc_object(d);
        if (s->params)
            put_params(d, s->params);
        else
            put_fields(d, s);
        doc_member(d, "title", s->name);
        if (s->description)
            doc_member(d, "description", s->description);
        doc_end(d);
    }
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

static void put_generation(struct doc *d, const struct generation *g)
{
    doc_key(d, "post");
    doc_object(d);
    doc_key(d, "tags");
    doc_array(d);
    doc_string(d, "generate");
    doc_end(d);
    doc_member(d, "summary", g->op.summary);
    doc_member(d, "description", g->description);
    doc_member(d, "operationId", g->op.id);
    doc_key(d, "requestBody");
    doc_object(d);
    put_content(d, g->table->form ? "multipart/form-data" : CONTENT_JSON, g->op.schema, false);
    doc_key(d, "required");
    doc_raw(d, "true");
    doc_end(d);
    doc_key(d, "responses");
    doc_object(d);
    put_response(d, "200", "Successful Response", "ImageResponse", true);
    put_response(d, "400", "Bad Request", "HTTPError", false);
    put_response(d, "401", "Unauthorized", "HTTPError", false);
    put_response(d, "500", "Internal Server Error", "HTTPError", false);
    put_response(d, "422", "Validation Error", "HTTPValidationError", false);
    doc_end(d);
    doc_key(d, "security");
    doc_array(d);
    doc_object(d);
    doc_key(d, "HTTPBearer");
    doc_raw(d, "[]");
    doc_end(d);
    doc_end(d);
    doc_member(d, "x-speakeasy-name-override", g->override);
    doc_end(d);
}

static void put_get(struct doc *d, const struct operation *op)
{
    doc_key(d, "get");
    doc_object(d);
    doc_member(d, "summary", op->summary);
    doc_member(d, "operationId", op->id);
    doc_key(d, "responses");
    doc_object(d);
    put_response(d, "200", "Successful Response", op->schema, false);
    doc_end(d);
    doc_end(d);
}

static void put_paths(struct doc *d, const char *pipeline)
{
    doc_key(d, "paths");
    doc_object(d);
    for (int i = 0; i < GENERATIONS; i++) {
        if (!is_served(&generations[i], pipeline))
            continue;
        doc_key(d, generations[i].op.path);
        doc_object(d);
        put_generation(d, &generations[i]);
        doc_end(d);
    }
    for (size_t i = 0; i < sizeof(gets) / sizeof(*gets); i++) {
        doc_key(d, gets[i].path);
        doc_object(d);
        put_get(d, &gets[i]);
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

int openapi_write(enum openapi_form form, const char *pipeline, const char *version, struct buffer *out,
                  struct error *err)
{
    struct doc d = {.out = out, .form = form};

    if (form == OPENAPI_YAML)
        buffer_puts(out, "# Generated by `latentd openapi --type yaml`. Do not edit.\n");
    doc_object(&d);
    put_head(&d, version);
    put_paths(&d, pipeline);
    put_components(&d, pipeline);
    doc_end(&d);
    return out->failed ? error_set(err, ERR_NOMEM, "no memory for the document") : 0;
}
