/* latentd-pull: the program behind `latentd pull`. */
#include <cjson/cJSON.h>
#include <curl/curl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "pull.h"
#include "weights.h"

enum { MODELS_MAX = 64, COMPANIONS_MAX = 4 };

static const char usage[] =
    "usage: latentd pull ORG/NAME [ORG/NAME …] [options]\n"
    "       latentd pull ORG/NAME/FILE.safetensors\n"
    "Fetches models from the Hugging Face hub: the files that latentd reads, and what the model needs beside "
    "it.\n"
    "\n"
    "  --revision R       a branch, tag or commit (main)\n"
    "  --dir DIR          where models are kept (MODEL_DIR, else where the daemon looks)\n"
    "  --include PATTERN  only files that match, as in --include '*.json'; may be given again\n"
    "  --all              every file of the repository\n"
    "  --variant V        fp16: half-precision weights where there are some (default); none: the plain ones\n"
    "  --alone            leave out what belongs to the model but lives in other repositories\n"
    "  --dry-run          only list files and sizes\n"
    "  --retries N        failures in a row before giving up (5)\n"
    "  --quiet            no progress, only errors\n"
    "\n"
    "A pull that was interrupted goes on where it stopped. The folder of each model is printed at the end.\n"
    "  HF_TOKEN           token for gated and private models, else the one that `hf auth login` stored\n"
    "  HF_ENDPOINT        another hub (https://huggingface.co)\n"
    "  HF_HUB_OFFLINE     1: fetch nothing\n"
    "  HF_HUB_DOWNLOAD_TIMEOUT  seconds without a byte before a connection counts as broken (30)\n"
    "  https_proxy, CURL_CA_BUNDLE  as for curl\n";

struct options {
    const char *id[MODELS_MAX];
    int ids;
    const char *revision, *dir;
    struct selection selection;
    bool alone, dry_run, quiet;
    long retries; /* -1: the default */
};

static bool take_value(struct options *o, const char *name, const char *v)
{
    if (strcmp(name, "--revision") == 0)
        o->revision = v;
    else if (strcmp(name, "--dir") == 0)
        o->dir = v;
    else if (strcmp(name, "--include") == 0 && o->selection.includes < INCLUDES_MAX)
        o->selection.include[o->selection.includes++] = v;
    else if (strcmp(name, "--variant") == 0 && (strcmp(v, "fp16") == 0 || strcmp(v, "none") == 0))
        o->selection.plain = *v == 'n';
    else if (strcmp(name, "--retries") == 0) {
        char *end;
        o->retries = strtol(v, &end, 10);
        return end != v && !*end && o->retries >= 0 && o->retries <= 1000;
    } else {
        return false;
    }
    return true;
}

static bool take_flag(struct options *o, const char *name)
{
    if (strcmp(name, "--all") == 0)
        o->selection.all = true;
    else if (strcmp(name, "--alone") == 0)
        o->alone = true;
    else if (strcmp(name, "--dry-run") == 0)
        o->dry_run = true;
    else if (strcmp(name, "--quiet") == 0 || strcmp(name, "-q") == 0)
        o->quiet = true;
    else
        return false;
    return true;
}

/* Returns 0, or 2 after a sentence. */
static int read_options(struct options *o, int argc, char **argv)
{
    static const char *const valued[] = {"--revision", "--dir", "--include", "--variant", "--retries"};

    for (int i = 1; i < argc; i++) {
        bool has_value = false;
        for (size_t k = 0; k < sizeof valued / sizeof *valued; k++)
            has_value = has_value || strcmp(argv[i], valued[k]) == 0;
        if (*argv[i] != '-' && o->ids < MODELS_MAX) {
            o->id[o->ids++] = argv[i];
        } else if (has_value && i + 1 == argc) {
            fprintf(stderr, "latentd pull: %s needs a value\n", argv[i]);
            return 2;
        } else if (has_value && !take_value(o, argv[i], argv[i + 1])) {
            fprintf(stderr, "latentd pull: %s cannot be \"%s\"\n", argv[i], argv[i + 1]);
            return 2;
        } else if (!has_value && !take_flag(o, argv[i])) {
            fprintf(stderr, "latentd pull: %s is unknown\n%s", argv[i], usage);
            return 2;
        }
        i += has_value;
    }
    if (!o->ids)
        fputs(usage, stderr);
    return o->ids ? 0 : 2;
}

/* One model: what was asked for, and what came out. */
struct model {
    const char *asked;
    struct repository r;
    struct cache cache;
    struct selection selection;
    struct cJSON *index;
    char path[PATH_MAX];
};

static void model_free(struct model *m)
{
    repository_free(&m->r);
    cJSON_Delete(m->index);
}

/* Splits ORG/NAME/FILE, resolves pseudo names, and says whether the rest is in order. */
static int name_model(struct model *m, const char *asked, const struct options *o, struct error *err)
{
    const char *org = strchr(asked, '/'), *file = org ? strchr(org + 1, '/') : NULL;
    int n = snprintf(m->r.id, sizeof m->r.id, "%.*s", file ? (int)(file - asked) : (int)strlen(asked), asked);

    m->asked = asked;
    m->selection = o->selection;
    if (file && file[1] && !m->selection.includes)
        m->selection.include[m->selection.includes++] = file + 1;
    snprintf(m->r.revision, sizeof m->r.revision, "%s", o->revision ? o->revision : "main");
    if (n >= (int)sizeof m->r.id || strlen(o->revision ? o->revision : "") >= sizeof m->r.revision)
        return error_set(err, ERR_INVALID, "the name of the model or its revision is too long");
    const char *real = select_repository(m->r.id);
    if (real != m->r.id)
        snprintf(m->r.id, sizeof m->r.id, "%s", real);
    return hub_check_names(m->r.id, m->r.revision, err);
}

/* --dir, else MODEL_DIR, else where the daemon would find the model. */
static int find_root(struct model *m, const char *dir, struct error *err)
{
    static struct config c;
    const char *shelf = getenv("MODEL_DIR");

    if (!dir && shelf && *shelf)
        dir = shelf;
    if (!dir) {
        c.model_id = m->r.id;
        int rc = config_find_models(&c, err);
        if (rc)
            return rc;
        dir = c.model_dir;
    }
    return cache_open(&m->cache, dir, m->r.id, err);
}

static int read_index(const struct hub *h, struct model *m, struct error *err)
{
    struct buffer text = {0};

    if (!repository_find(&m->r, "model_index.json"))
        return 0;
    int rc = hub_read(h, &m->r, "model_index.json", &text, err);
    if (!rc && !(m->index = cJSON_ParseWithLength(text.data, text.len)))
        rc = error_set(err, ERR_FORMAT, "%s: model_index.json is not JSON", m->r.id);
    buffer_free(&text);
    return rc;
}

static void list_files(const struct model *m)
{
    char size[24];
    int64_t total = 0;

    for (size_t i = 0; i < m->r.count; i++) {
        const struct file *f = &m->r.files[i];
        if (!f->wanted)
            continue;
        total += f->size > 0 ? f->size : 0;
        printf("%10s  %s%s\n", f->size < 0 ? "?" : size_text((double)f->size, size), f->name,
               cache_has(&m->cache, f) ? "  (there)" : "");
    }
    printf("%10s  %s at %.8s, into %s\n", size_text((double)total, size), m->r.id, m->r.commit,
           m->cache.folder);
}

static bool in_folder(const char *folder, const char *name)
{
    char path[PATH_MAX];

    return snprintf(path, sizeof path, "%s/%s", folder, name) < (int)sizeof path && access(path, F_OK) == 0;
}

/* What the daemon found in the snapshot BEFORE, and does not find in the one that it reads now. */
static void warn_changed(const struct model *m, const char *before)
{
    for (size_t i = 0; i < m->r.count; i++) {
        const char *name = m->r.files[i].name;
        if (in_folder(before, name) && !in_folder(m->path, name))
            fprintf(stderr,
                    "latentd pull: note: %s of %s changed upstream and was not pulled again: the daemon no "
                    "longer finds it\n",
                    name, m->r.id);
    }
}

static int publish(struct model *m, struct error *err)
{
    char before[PATH_MAX], now[PATH_MAX];
    struct error none = {0};
    bool had = model_find(m->cache.root, m->r.id, before, sizeof before, &none) == 0;
    int rc = cache_publish(&m->cache, &m->r, m->path, err);

    if (!rc && had && strcmp(before, m->path) != 0 &&
        model_find(m->cache.root, m->r.id, now, sizeof now, &none) == 0 && strcmp(now, m->path) == 0)
        warn_changed(m, before);
    return rc;
}

static int fetch(const struct hub *h, struct model *m, bool quiet, struct error *err)
{
    struct progress p;
    int64_t missing = 0, total = 0;
    int files = 0;
    char size[24];
    int rc = cache_prepare(&m->cache, err);

    rc = rc ? rc : cache_check_space(&m->cache, &m->r, &missing, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < m->r.count; i++)
        if (m->r.files[i].wanted && !cache_has(&m->cache, &m->r.files[i])) {
            total += m->r.files[i].size > 0 ? m->r.files[i].size : 0;
            files++;
        }
    progress_open(&p, total, files, quiet);
    if (files)
        progress_say(&p, "%s: %d file%s to fetch, %s, into %s", m->r.id, files, files == 1 ? "" : "s",
                     size_text((double)missing, size), m->cache.folder);
    else
        progress_say(&p, "%s: everything is there", m->r.id);
    rc = transfer_files(h, &m->cache, &m->r, &p, err);
    progress_close(&p);
    return rc ? rc : publish(m, err);
}

/* The daemon reads what refs/main names. */
static void warn_other_revision(const struct model *m)
{
    char path[PATH_MAX];
    struct error ignored = {0};

    if (model_find(m->cache.root, m->r.id, path, sizeof path, &ignored) == 0 && strcmp(path, m->path) != 0)
        fprintf(
            stderr,
            "latentd pull: note: the daemon serves the revision main of %s (%s), not this one; to serve it "
            "write %s into %s/refs/main\n",
            m->r.id, path, m->r.commit, m->cache.folder);
}

static int pull_one(const struct hub *h, struct model *m, const struct options *o, struct error *err)
{
    int rc = hub_list(h, &m->r, err);

    if (!rc && !m->selection.includes && !m->selection.all)
        rc = read_index(h, m, err);
    rc = rc ? rc : select_files(&m->r, m->asked, m->index, &m->selection, err);
    if (!rc && o->dry_run)
        list_files(m);
    else if (!rc)
        rc = fetch(h, m, o->quiet, err);
    if (!rc && !o->dry_run) {
        puts(m->path);
        fflush(stdout);
        warn_other_revision(m);
    }
    return rc;
}

/* What M needs from other repositories, into the same folder. */
static int pull_companions(const struct hub *h, const struct model *m, const struct options *o,
                           struct error *err)
{
    struct companion need[COMPANIONS_MAX];
    int n = select_companions(&m->r, m->index, need, COMPANIONS_MAX), rc = 0;

    for (int i = 0; i < n && !rc; i++) {
        struct options mine = {.retries = o->retries, .dry_run = o->dry_run, .quiet = o->quiet};
        struct model other = {0};
        struct error why = {0};
        for (int k = 0; need[i].include[k]; k++)
            mine.selection.include[mine.selection.includes++] = need[i].include[k];
        if (!o->quiet)
            fprintf(stderr, "%s goes with it: %s\n", need[i].id, need[i].why);
        int failed = name_model(&other, need[i].id, &mine, &why);
        failed = failed ? failed : cache_open(&other.cache, m->cache.root, need[i].id, &why);
        failed = failed ? failed : pull_one(h, &other, &mine, &why);
        model_free(&other);
        if (failed && need[i].required)
            rc = error_set(err, why.code, "%s", why.msg);
        else if (failed)
            fprintf(stderr, "latentd pull: warning: %s; the model works without it\n", why.msg);
    }
    return rc;
}

/* HF_HUB_OFFLINE: only says what is there. */
static int pull_offline(const struct model *m, struct error *err)
{
    char path[PATH_MAX];
    struct error missing = {0};

    if (model_find(m->cache.root, m->r.id, path, sizeof path, &missing))
        return error_set(err, ERR_NOT_FOUND, "HF_HUB_OFFLINE is set, so nothing is fetched, and %s",
                         missing.msg);
    fprintf(stderr, "latentd pull: HF_HUB_OFFLINE is set: nothing is fetched, %s is there as it is\n",
            m->r.id);
    puts(path);
    return 0;
}

static int pull_model(const struct hub *h, const char *asked, const struct options *o, struct error *err)
{
    struct model m = {0};
    int rc = name_model(&m, asked, o, err);

    rc = rc ? rc : find_root(&m, o->dir, err);
    if (!rc && hub_offline()) {
        rc = pull_offline(&m, err);
    } else if (!rc) {
        rc = pull_one(h, &m, o, err);
        if (!rc && !o->alone)
            rc = pull_companions(h, &m, o, err);
    }
    model_free(&m);
    return rc;
}

static void on_interrupt(int sig)
{
    static const char text[] = "\nlatentd pull: stopped; the same command goes on from here\n";
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);

    (void)ignored;
    _exit(128 + sig);
}

int main(int argc, char **argv)
{
    static struct options o = {.retries = -1};
    static struct hub hub;
    struct error err = {0};

    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return 0;
        }
    int status = read_options(&o, argc, argv);
    if (status)
        return status;
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* then write() says EFBIG */
    int rc = curl_global_init(CURL_GLOBAL_DEFAULT) ? error_set(&err, ERR_NOMEM, "libcurl cannot start") : 0;
    rc = rc ? rc : hub_open(&hub, &err);
    if (o.retries >= 0)
        hub.retries = o.retries;
    for (int i = 0; i < o.ids && !rc; i++)
        rc = pull_model(&hub, o.id[i], &o, &err);
    curl_global_cleanup();
    if (rc)
        fprintf(stderr, "latentd pull: %s\n", err.msg);
    return rc ? 1 : 0;
}
