/* The hub's API: where it is, who asks, and what a repository holds. */
#include <cjson/cJSON.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "pull.h"
#include "request.h"

enum { LIST_MAX = 64 << 20, FILES_MAX = 20000, RETRIES = 5, TIMEOUT = 30 };

static const char *env(const char *name)
{
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

bool hub_offline(void)
{
    static const char *const names[] = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"};
    static const char *const yes[] = {"1", "on", "yes", "true"};

    for (size_t i = 0; i < 2; i++) {
        const char *v = env(names[i]);
        for (size_t k = 0; v && k < sizeof yes / sizeof *yes; k++)
            if (strcasecmp(v, yes[k]) == 0)
                return true;
    }
    return false;
}

/* Cuts spaces and line ends; a token that could end its header line early is none. */
static int take_token(struct hub *h, const char *text, const char *from, struct error *err)
{
    text += strspn(text, " \t\r\n");
    size_t len = strlen(text);
    while (len > 0 && strchr(" \t\r\n", text[len - 1]))
        len--;
    for (size_t i = 0; i < len; i++)
        if (!isgraph((unsigned char)text[i]))
            return error_set(err, ERR_INVALID, "%s is not a token: it holds spaces or control characters",
                             from);
    if (len >= sizeof h->token)
        return error_set(err, ERR_INVALID, "%s is not a token: it is too long", from);
    memcpy(h->token, text, len);
    h->token[len] = '\0';
    return 0;
}

/* Where `hf auth login` keeps the token: HF_TOKEN_PATH, else in HF_HOME, else in the user's cache. A "~" at
 * the beginning of the first two is HOME. False: nowhere. */
static bool token_path(char path[PATH_MAX])
{
    const char *file = env("HF_TOKEN_PATH"), *hf = env("HF_HOME"), *cache = env("XDG_CACHE_HOME");
    const char *home = env("HOME"), *at = file ? file : hf ? hf : cache;
    const char *below = file ? "" : hf ? "/token" : "/huggingface/token";
    bool tilde = at && at[0] == '~' && (at[1] == '/' || !at[1]);

    if (!home && (tilde || !at))
        return false;
    int n = tilde ? snprintf(path, PATH_MAX, "%s%s%s", home, at + 1, below)
            : at  ? snprintf(path, PATH_MAX, "%s%s", at, below)
                  : snprintf(path, PATH_MAX, "%s/.cache%s", home, below);
    return n > 0 && n < PATH_MAX;
}

/* The token that `hf auth login` keeps. */
static int stored_token(struct hub *h, struct error *err)
{
    char path[PATH_MAX], text[sizeof h->token];
    FILE *f = token_path(path) ? fopen(path, "re") : NULL;
    if (!f)
        return 0;
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    return take_token(h, text, path, err);
}

static bool local_host(const char *endpoint)
{
    return strncmp(endpoint, "http://127.", 11) == 0 || strncmp(endpoint, "http://localhost", 16) == 0 ||
           strncmp(endpoint, "http://[::1]", 12) == 0;
}

int hub_open(struct hub *h, struct error *err)
{
    const char *at = env("HF_ENDPOINT"), *token = env("HF_TOKEN"), *wait = env("HF_HUB_DOWNLOAD_TIMEOUT");

    *h = (struct hub){.timeout = TIMEOUT, .retries = RETRIES};
    at = at ? at : "https://huggingface.co";
    if (strncasecmp(at, "http://", 7) != 0 && strncasecmp(at, "https://", 8) != 0)
        return error_set(err, ERR_INVALID, "HF_ENDPOINT is \"%.200s\", accepted is http://… or https://…",
                         at);
    if (snprintf(h->endpoint, sizeof h->endpoint, "%s", at) >= (int)sizeof h->endpoint)
        return error_set(err, ERR_INVALID, "HF_ENDPOINT is too long");
    for (size_t n = strlen(h->endpoint); n > 0 && h->endpoint[n - 1] == '/'; n--)
        h->endpoint[n - 1] = '\0';
    if (wait && (h->timeout = strtol(wait, NULL, 10)) < 1)
        return error_set(err, ERR_INVALID, "HF_HUB_DOWNLOAD_TIMEOUT is \"%s\", accepted are seconds", wait);
    token = token ? token : env("HUGGING_FACE_HUB_TOKEN");
    int rc = token ? take_token(h, token, "HF_TOKEN", err) : stored_token(h, err);
    if (!rc && *h->token && strncasecmp(at, "http://", 7) == 0 && !local_host(at))
        fprintf(stderr, "latentd pull: warning: the token goes to %s unencrypted\n", h->endpoint);
    return rc;
}

/* Parts of letters, digits, '.', '_' and '-' between slashes; none empty, ".", ".." or of dots at its ends.
 */
static bool plain_path(const char *text, int parts_max)
{
    int parts = 0;

    for (const char *part = text;; part++) {
        size_t n = strcspn(part, "/");
        if (n == 0 || ++parts > parts_max || part[0] == '.' || part[n - 1] == '.' || part[0] == '-')
            return false;
        for (size_t i = 0; i < n; i++)
            if (!isalnum((unsigned char)part[i]) && !strchr("._-", part[i]))
                return false;
        part += n;
        if (!*part)
            return true;
    }
}

int hub_check_names(const char *id, const char *revision, struct error *err)
{
    if (strlen(id) > 200 || !plain_path(id, 2) || strstr(id, "--"))
        return error_set(err, ERR_INVALID, "\"%.200s\" is not a model id; one looks like org/name", id);
    if (strlen(revision) > 200 || !plain_path(revision, 8))
        return error_set(err, ERR_INVALID,
                         "\"%.200s\" is not a revision; that is a branch, a tag or a commit", revision);
    return 0;
}

/* TEXT with every byte escaped that is not plain; slashes stay when SLASHES. */
static int add_escaped(struct buffer *b, const char *text, bool slashes)
{
    for (const char *s = text; *s; s++) {
        if (isalnum((unsigned char)*s) || strchr("-._~", *s) || (slashes && *s == '/'))
            buffer_add(b, s, 1);
        else
            buffer_printf(b, "%%%02X", (unsigned char)*s);
    }
    return b->failed ? ERR_NOMEM : 0;
}

char *hub_file_url(const struct hub *h, const struct repository *r, const char *name)
{
    struct buffer b = {0};

    buffer_printf(&b, "%s/%s/resolve/%s/", h->endpoint, r->id, r->commit);
    if (add_escaped(&b, name, true))
        buffer_free(&b);
    return b.data;
}

/* GET URL (taken over) into OUT. */
static int get(const struct hub *h, const char *id, const char *what, char *url, size_t max,
               struct buffer *out, struct error *err)
{
    struct request q;
    int rc = request_open(&q, h, id, what, url, err);

    if (rc)
        return rc;
    q.out = out;
    q.out_max = max;
    rc = request_perform(&q, err);
    request_close(&q);
    if (!rc && !out->len)
        rc = error_set(err, ERR_FORMAT, "%s: the hub's answer is empty", what);
    return rc;
}

/* A relative path with no part that climbs, and nothing that a terminal would act on. */
static bool safe_name(const char *name)
{
    size_t len = strlen(name);

    if (len == 0 || len > 1000 || name[0] == '/')
        return false;
    for (const char *s = name; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 127 || *s == '\\')
            return false;
    for (const char *part = name;; part++) {
        size_t n = strcspn(part, "/");
        if (n == 0 || n > NAME_MAX || (n == 1 && part[0] == '.') || (n == 2 && !strncmp(part, "..", 2)))
            return false;
        part += n;
        if (!*part)
            return true;
    }
}

static const char *text_of(const cJSON *object, const char *key)
{
    const char *v = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
    return v ? v : "";
}

static int64_t size_of(const cJSON *object, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble < 9e15 ? (int64_t)v->valuedouble : -1;
}

static int take_file(struct repository *r, const cJSON *item, struct error *err)
{
    const cJSON *lfs = cJSON_GetObjectItemCaseSensitive(item, "lfs");
    const char *name = text_of(item, "rfilename");
    const char *digest = cJSON_IsObject(lfs) ? text_of(lfs, "sha256") : text_of(item, "blobId");

    if (!safe_name(name))
        return error_set(
            err, ERR_FORMAT,
            "the hub lists a file name in %s that does not stay in its folder; nothing is fetched", r->id);
    if (repository_find(r, name))
        return 0;
    struct file *f = &r->files[r->count];
    f->size = cJSON_IsObject(lfs) ? size_of(lfs, "size") : size_of(item, "size");
    if (digest_is(digest) && f->size >= 0)
        memcpy(f->digest, digest, strlen(digest) + 1);
    else
        f->size = -1; /* an older mirror: both come with the file's own headers */
    f->name = strdup(name);
    if (!f->name)
        return error_set(err, ERR_NOMEM, "no memory for a list of files");
    r->count++;
    return 0;
}

static int read_list(struct repository *r, const cJSON *tree, struct error *err)
{
    const cJSON *siblings = cJSON_GetObjectItemCaseSensitive(tree, "siblings"), *item;
    const char *commit = text_of(tree, "sha");
    int n = cJSON_GetArraySize(siblings);

    if (strlen(commit) != 40 || !digest_is(commit) || !cJSON_IsArray(siblings) || n > FILES_MAX)
        return error_set(err, ERR_FORMAT, "%s: the hub's answer is not a list of files with a commit", r->id);
    memcpy(r->commit, commit, 41);
    r->files = calloc((size_t)n + 1, sizeof *r->files);
    if (!r->files)
        return error_set(err, ERR_NOMEM, "no memory for a list of files");
    cJSON_ArrayForEach(item, siblings)
    {
        int rc = take_file(r, item, err);
        if (rc)
            return rc;
    }
    return 0;
}

int hub_list(const struct hub *h, struct repository *r, struct error *err)
{
    struct buffer url = {0}, text = {0};

    buffer_printf(&url, "%s/api/models/%s/revision/", h->endpoint, r->id);
    add_escaped(&url, r->revision, false);
    buffer_puts(&url, "?blobs=true");
    if (url.failed)
        buffer_free(&url);
    int rc = get(h, r->id, r->id, url.data, LIST_MAX, &text, err);
    cJSON *tree = rc ? NULL : cJSON_ParseWithLength(text.data, text.len);
    if (!rc && !tree)
        rc = error_set(err, ERR_FORMAT, "%s: the hub's answer is not JSON; is HF_ENDPOINT (%s) a hub?", r->id,
                       h->endpoint);
    if (!rc)
        rc = read_list(r, tree, err);
    cJSON_Delete(tree);
    buffer_free(&text);
    return rc;
}

int hub_read(const struct hub *h, const struct repository *r, const char *name, struct buffer *out,
             struct error *err)
{
    return get(h, r->id, name, hub_file_url(h, r, name), 1 << 20, out, err);
}

void repository_free(struct repository *r)
{
    for (size_t i = 0; i < r->count; i++)
        free(r->files[i].name);
    free(r->files);
    r->files = NULL;
    r->count = 0;
}

const struct file *repository_find(const struct repository *r, const char *name)
{
    for (size_t i = 0; i < r->count; i++)
        if (strcmp(r->files[i].name, name) == 0)
            return &r->files[i];
    return NULL;
}
