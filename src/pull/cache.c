/* The hub cache on disk, as huggingface_hub lays it out, so that either program reads what the other
 * fetched. Nothing gets the name under which it is looked for before it is whole: a blob is renamed once
 * checked, a snapshot once all its blobs are there, and the ref that names it is written last. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "pull.h"

const char *size_text(double bytes, char text[24])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    int i = 0;

    for (; bytes >= 1000 && i < 4; i++)
        bytes /= 1000;
    snprintf(text, 24, i && bytes < 99.95 ? "%.1f %s" : "%.0f %s", bytes, units[i]);
    return text;
}

__attribute__((format(printf, 3, 4))) static int join(char *path, struct error *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(path, PATH_MAX, fmt, ap);
    va_end(ap);
    return n < 0 || n >= PATH_MAX ? error_set(err, ERR_INVALID, "the path of the model's folder is too long")
                                  : 0;
}

/* Words for ERRNO about PATH; a full disk says what to do. */
static int io_error(struct error *err, const char *path)
{
    int why = errno;

    if (why == ENOSPC || why == EDQUOT)
        return error_set(
            err, ERR_IO,
            "%s: %s. What has come so far is kept: free some space, and the same command goes on "
            "from there",
            path, why == ENOSPC ? "the disk is full" : "the disk quota is used up");
    if (why == EFBIG)
        return error_set(err, ERR_IO,
                         "%s: the file is larger than this system or its limits (ulimit -f) allow", path);
    if (why == EACCES || why == EROFS || why == EPERM)
        return error_set(err, ERR_IO, "%s cannot be written: %s. --dir or MODEL_DIR names another folder",
                         path, strerror(why));
    return error_set(err, ERR_IO, "%s: %s", path, strerror(why));
}

/* Makes PATH and the folders above it. */
static int make_folders(const char *path, struct error *err)
{
    char part[PATH_MAX];

    int rc = join(part, err, "%s", path);
    for (char *s = part + 1; !rc && *s; s++)
        if (*s == '/') {
            *s = '\0';
            if (mkdir(part, 0777) != 0 && errno != EEXIST)
                rc = io_error(err, part);
            *s = '/';
        }
    if (!rc && mkdir(part, 0777) != 0 && errno != EEXIST)
        rc = io_error(err, part);
    return rc;
}

static int make_parents(const char *path, struct error *err)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');

    int rc = join(folder, err, "%.*s", slash ? (int)(slash - path) : 0, path);
    return rc || !*folder ? rc : make_folders(folder, err);
}

int cache_open(struct cache *c, const char *root, const char *id, struct error *err)
{
    const char *slash = strchr(id, '/');
    int org = slash ? (int)(slash - id) : 0;
    const char *dashes = slash ? "--" : "", *name = slash ? slash + 1 : id;

    int rc = join(c->root, err, "%s", root);
    rc = rc ? rc : join(c->folder, err, "%s/models--%.*s%s%s", root, org, id, dashes, name);
    return rc ? rc : join(c->locks, err, "%s/.locks/models--%.*s%s%s", root, org, id, dashes, name);
}

int cache_prepare(const struct cache *c, struct error *err)
{
    static const char *const parts[] = {"blobs", "snapshots", "refs"};
    char path[PATH_MAX];
    int rc = make_folders(c->locks, err);

    for (int i = 0; i < 3 && !rc; i++) {
        rc = join(path, err, "%s/%s", c->folder, parts[i]);
        rc = rc ? rc : make_folders(path, err);
    }
    return rc;
}

bool cache_has(const struct cache *c, const struct file *f)
{
    char path[PATH_MAX];
    struct stat st;
    int n = *f->digest ? snprintf(path, sizeof path, "%s/blobs/%s", c->folder, f->digest) : -1;

    return n > 0 && n < (int)sizeof path && stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
           st.st_size == f->size;
}

int cache_lock(const struct cache *c, const char *name, int *fd, struct error *err)
{
    char path[PATH_MAX];
    int rc = join(path, err, "%s/%s.lock", c->locks, name);

    *fd = rc ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (rc || *fd < 0)
        return rc ? rc : io_error(err, path);
    if (flock(*fd, LOCK_EX | LOCK_NB) == 0 || errno == ENOLCK || errno == ENOSYS || errno == EOPNOTSUPP)
        return 0; /* a file system without locks: one has to do without */
    if (errno != EWOULDBLOCK && errno != EINTR)
        rc = io_error(err, path);
    close(*fd);
    *fd = -1;
    return rc;
}

int cache_part_open(const struct cache *c, const struct file *f, int *fd, int64_t *have, struct error *err)
{
    char path[PATH_MAX];
    struct stat st;
    int rc = join(path, err, "%s/blobs/%s.incomplete", c->folder, f->digest);

    *fd = rc ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (rc || *fd < 0)
        return rc ? rc : io_error(err, path);
    if (fstat(*fd, &st) != 0 || (st.st_size > f->size && ftruncate(*fd, 0) != 0)) {
        rc = io_error(err, path);
        close(*fd);
        *fd = -1;
        return rc;
    }
    *have = st.st_size > f->size ? 0 : st.st_size;
    return 0;
}

int cache_part_finish(const struct cache *c, const struct file *f, int fd, struct error *err)
{
    char part[PATH_MAX], blob[PATH_MAX];
    int rc = join(part, err, "%s/blobs/%s.incomplete", c->folder, f->digest);

    rc = rc ? rc : join(blob, err, "%s/blobs/%s", c->folder, f->digest);
    if (!rc && (fsync(fd) != 0 || rename(part, blob) != 0))
        rc = io_error(err, blob);
    return rc;
}

int cache_check_space(const struct cache *c, const struct repository *r, int64_t *missing, struct error *err)
{
    char path[PATH_MAX], need[24], room[24];
    struct statvfs fs;
    struct stat st;

    *missing = 0;
    for (size_t i = 0; i < r->count; i++) {
        const struct file *f = &r->files[i];
        if (!f->wanted || f->size < 0 || cache_has(c, f))
            continue;
        *missing += f->size;
        if (snprintf(path, sizeof path, "%s/blobs/%s.incomplete", c->folder, f->digest) < (int)sizeof path &&
            stat(path, &st) == 0 && st.st_size <= f->size)
            *missing -= st.st_size;
    }
    if (statvfs(c->folder, &fs) != 0)
        return 0; /* then the disk will say so itself */
    double left = (double)fs.f_bavail * (double)fs.f_frsize;
    if ((double)*missing <= left)
        return 0;
    return error_set(err, ERR_IO, "%s needs %s more, but %s has room for %s", r->id,
                     size_text((double)*missing, need), c->root, size_text(left, room));
}

/* ---- what the daemon sees ---- */

/* "../../blobs/<digest>" as seen from snapshots/<commit>/NAME. */
static int link_text(char *text, const struct file *f, struct error *err)
{
    char up[PATH_MAX] = "../../";

    for (const char *s = f->name; *s; s++)
        if (*s == '/' && strlen(up) + 4 < sizeof up)
            strcat(up, "../");
    return join(text, err, "%sblobs/%s", up, f->digest);
}

static int add_link(const char *folder, const struct file *f, struct error *err)
{
    char path[PATH_MAX], tmp[PATH_MAX], text[PATH_MAX], old[PATH_MAX];
    int rc = join(path, err, "%s/%s", folder, f->name);

    rc = rc ? rc : link_text(text, f, err);
    rc = rc ? rc : join(tmp, err, "%s.link", path);
    rc = rc ? rc : make_parents(path, err);
    if (rc)
        return rc;
    ssize_t n = readlink(path, old, sizeof old - 1);
    if (n > 0 && (size_t)n == strlen(text) && memcmp(old, text, (size_t)n) == 0)
        return 0;
    unlink(tmp);
    if (symlink(text, tmp) != 0 || rename(tmp, path) != 0) {
        rc = io_error(err, path);
        unlink(tmp);
    }
    return rc;
}

static bool shown(const struct cache *c, const struct file *f)
{
    return f->wanted || cache_has(c, f);
}

/* Links what is wanted, and what an earlier pull brought of files that have not changed since: a pull of one
 * file of a repository that moved on would hide the rest otherwise. The index comes last. */
static int add_links(const struct cache *c, const char *folder, const struct repository *r, struct error *err)
{
    int rc = 0;

    for (size_t i = 0; i < r->count && !rc; i++)
        if (shown(c, &r->files[i]) && strcmp(r->files[i].name, "model_index.json") != 0)
            rc = add_link(folder, &r->files[i], err);
    const struct file *index = repository_find(r, "model_index.json");
    return rc || !index || !shown(c, index) ? rc : add_link(folder, index, err);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

/* A new snapshot is made beside its place and renamed, so that it appears whole; to one that is there, links
 * are added. */
static int show_snapshot(const struct cache *c, const struct repository *r, const char *path,
                         struct error *err)
{
    char made[PATH_MAX];
    struct stat st;

    if (stat(path, &st) == 0)
        return add_links(c, path, r, err);
    int rc = join(made, err, "%s/.snapshot", c->folder);
    if (rc)
        return rc;
    nftw(made, remove_one, 8, FTW_DEPTH | FTW_PHYS); /* what a killed pull left */
    rc = make_folders(made, err);
    rc = rc ? rc : add_links(c, made, r, err);
    if (!rc && rename(made, path) != 0)
        rc = io_error(err, path);
    return rc;
}

/* refs/<revision> holds the commit; a commit needs none. */
static int write_ref(const struct cache *c, const struct repository *r, struct error *err)
{
    char path[PATH_MAX], tmp[PATH_MAX];

    if (strcmp(r->revision, r->commit) == 0)
        return 0;
    int rc = join(path, err, "%s/refs/%s", c->folder, r->revision);
    rc = rc ? rc : join(tmp, err, "%s/.ref", c->folder);
    rc = rc ? rc : make_parents(path, err);
    if (rc)
        return rc;
    FILE *f = fopen(tmp, "we");
    bool ok = f && fputs(r->commit, f) >= 0 && fflush(f) == 0 && fsync(fileno(f)) == 0;
    if (f && fclose(f) != 0)
        ok = false;
    if (!ok || rename(tmp, path) != 0) {
        rc = io_error(err, path);
        unlink(tmp);
    }
    return rc;
}

int cache_publish(const struct cache *c, const struct repository *r, char *path, struct error *err)
{
    int lock = -1, rc = join(path, err, "%s/snapshots/%s", c->folder, r->commit);

    for (int tries = 0; !rc && lock < 0; tries++) {
        rc = cache_lock(c, "snapshot", &lock, err);
        if (!rc && lock < 0 && tries > 600)
            rc = error_set(err, ERR_IO, "%s/snapshot.lock is held by another process", c->locks);
        if (!rc && lock < 0)
            usleep(100000);
    }
    rc = rc ? rc : show_snapshot(c, r, path, err);
    rc = rc ? rc : write_ref(c, r, err);
    if (lock >= 0)
        close(lock);
    return rc;
}
