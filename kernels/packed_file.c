/* See packed_file.h. */
#include "packed_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"

/* Weights begin at pages, so that a mapping of large pages serves them whole; small ones at cache lines. */
enum { PAGE = 4096, LINE = 64, WRITE_BYTES = 8 << 20, RECORDS_MAX = 1 << 20, IDENTITY_MAX = 1 << 20 };

static const char ending[] = ".weights";

struct head {
    char magic[8];
    uint64_t size; /* of the whole file */
    uint32_t identity, records;
};

static const char magic[8] = "LTDPACK";

static uint64_t align_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

int packed_file_add(struct packed_file *f, const struct packed_record *r, const void *bytes)
{
    if (f->count == f->capacity) {
        uint32_t capacity = f->capacity ? 2 * f->capacity : 256;
        struct packed_record *record = realloc(f->record, capacity * sizeof(*record));
        if (!record)
            return ERR_NOMEM;
        f->record = record;
        const void **list = realloc(f->bytes, capacity * sizeof(*list));
        if (!list)
            return ERR_NOMEM;
        f->bytes = list;
        f->capacity = capacity;
    }
    f->record[f->count] = *r;
    f->bytes[f->count++] = bytes;
    return 0;
}

void packed_file_free(struct packed_file *f)
{
    free(f->record);
    free(f->bytes);
    *f = (struct packed_file){0};
}

/* Gives every record its place behind the head. Returns the size of the file. */
static uint64_t lay_out(const struct packed_file *f, size_t identity)
{
    uint64_t at = align_up(sizeof(struct head) + identity, LINE) + f->count * sizeof(struct packed_record);

    for (uint32_t i = 0; i < f->count; i++) {
        at = align_up(at, f->record[i].bytes >= PAGE ? PAGE : LINE);
        f->record[i].offset = at;
        at += f->record[i].bytes;
    }
    return at;
}

static int write_at(int fd, const void *data, size_t bytes, uint64_t offset, const atomic_bool *stop)
{
    const char *from = data;

    while (bytes && !atomic_load(stop)) {
        ssize_t n = pwrite(fd, from, bytes < WRITE_BYTES ? bytes : WRITE_BYTES, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        from += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int write_all(int fd, const struct packed_file *f, const char *identity, uint64_t size,
                     const atomic_bool *stop)
{
    struct head head = {.size = size, .identity = (uint32_t)strlen(identity), .records = f->count};
    uint64_t records = align_up(sizeof(head) + head.identity, LINE);
    int rc = posix_fallocate(fd, 0, (off_t)size); /* a full disk is told before anything is written */

    if (rc) {
        errno = rc;
        return -1;
    }
    memcpy(head.magic, magic, sizeof(magic));
    if (write_at(fd, &head, sizeof(head), 0, stop) ||
        write_at(fd, identity, head.identity, sizeof(head), stop) ||
        write_at(fd, f->record, f->count * sizeof(*f->record), records, stop))
        return -1;
    for (uint32_t i = 0; i < f->count; i++)
        if (write_at(fd, f->bytes[i], f->record[i].bytes, f->record[i].offset, stop))
            return -1;
    return atomic_load(stop) ? 0 : fdatasync(fd);
}

static bool ends_with(const char *s, const char *end)
{
    size_t len = strlen(s), tail = strlen(end);
    return len > tail && strcmp(s + len - tail, end) == 0;
}

static bool is_before(struct timespec a, struct timespec b)
{
    return a.tv_sec < b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec < b.tv_nsec);
}

struct folder {
    uint64_t all, used;                 /* bytes of all files, and of those that are in use */
    char oldest[PACKED_PATH_MAX + 256]; /* of the others the one that was longest unused, or "" */
};

/* In use: since SINCE. */
static void look_at_folder(const char *folder, struct timespec since, struct folder *f)
{
    DIR *dir = opendir(folder);
    struct dirent *e;
    struct timespec least = {0, 0};

    *f = (struct folder){0};
    while (dir && (e = readdir(dir))) {
        char path[PACKED_PATH_MAX + 256];
        struct stat st;
        snprintf(path, sizeof(path), "%s/%s", folder, e->d_name);
        if (!ends_with(e->d_name, ending) || lstat(path, &st) || !S_ISREG(st.st_mode))
            continue;
        f->all += (uint64_t)st.st_blocks * 512;
        if (!is_before(st.st_mtim, since)) {
            f->used += (uint64_t)st.st_blocks * 512;
        } else if (!*f->oldest || is_before(st.st_mtim, least)) {
            least = st.st_mtim;
            snprintf(f->oldest, sizeof(f->oldest), "%s", path);
        }
    }
    if (dir)
        closedir(dir);
}

/* Removes the longest unused until SIZE more bytes fit in MOST. False: they do not, beside those in use. */
static bool make_room(const char *folder, uint64_t size, size_t most, struct timespec since)
{
    struct folder f;

    for (look_at_folder(folder, since, &f); f.all + size > most; look_at_folder(folder, since, &f))
        if (f.used + size > most || !*f.oldest || unlink(f.oldest))
            return false;
    return true;
}

/* Writes into a file without a name, which vanishes with this process, and names it when it is whole. */
static int write_named(int fd, const struct packed_file *f, const char *path, const char *identity,
                       uint64_t size, const atomic_bool *stop)
{
    char self[64];

    if (write_all(fd, f, identity, size, stop))
        return -1;
    if (atomic_load(stop))
        return 0;
    snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) && errno != EEXIST)
        return -1; /* EEXIST: another process was faster */
    return 1;
}

int packed_file_write(const struct packed_file *f, const char *path, const char *identity, size_t most,
                      struct timespec since, const atomic_bool *stop, struct error *err)
{
    char folder[PACKED_PATH_MAX];
    uint64_t size = lay_out(f, strlen(identity));

    if (size > most)
        return 0;
    snprintf(folder, sizeof(folder), "%s", path);
    *strrchr(folder, '/') = '\0';
    if (!cache_make_folder(folder))
        return error_set(err, ERR_IO, "no folder %s: %s", folder, strerror(errno));
    if (!make_room(folder, size, most, since))
        return 0;
    int fd = open(folder, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set(err, ERR_IO, "no file in %s: %s", folder, strerror(errno));
    int rc = write_named(fd, f, path, identity, size, stop);
    if (rc < 0)
        rc = error_set(err, ERR_IO, "%s: %s", path, strerror(errno));
    close(fd); /* its data is on the disk */
    return rc;
}

/* Whether the head, the text and the records of a file of SIZE bytes lie inside it and are IDENTITY's. */
static bool well_formed(const unsigned char *map, uint64_t size, const char *identity,
                        const struct packed_record **record, uint32_t *records)
{
    struct head head;
    size_t len = strlen(identity);

    memcpy(&head, map, sizeof(head));
    uint64_t at = align_up(sizeof(head) + len, LINE);
    if (memcmp(head.magic, magic, sizeof(magic)) != 0 || head.size != size || head.identity != len ||
        head.records > RECORDS_MAX || at + head.records * sizeof(**record) > size ||
        memcmp(map + sizeof(head), identity, len) != 0)
        return false;
    *record = (const struct packed_record *)(const void *)(map + at);
    *records = head.records;
    for (uint32_t i = 0; i < head.records; i++) {
        const struct packed_record *r = &(*record)[i];
        if (r->offset % LINE || r->offset > size || r->bytes > size - r->offset)
            return false;
    }
    return true;
}

int packed_file_map(const char *path, const char *identity, const unsigned char **map, size_t *size,
                    const struct packed_record **record, uint32_t *records, struct error *err)
{
    struct stat st;
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

    *map = NULL;
    if (fd < 0)
        return errno == ENOENT ? 0 : error_set(err, ERR_FORMAT, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077) ||
        (size_t)st.st_size < sizeof(struct head)) {
        rc = error_set(err, ERR_FORMAT, "%s is not a file that only this user could have written", path);
        goto out;
    }
    *size = (size_t)st.st_size;
    void *at = mmap(NULL, *size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (at == MAP_FAILED) {
        rc = error_set(err, ERR_FORMAT, "%s: mmap: %s", path, strerror(errno));
    } else if (!well_formed(at, *size, identity, record, records)) {
        munmap(at, *size);
        unlink(path);
        rc = error_set(err, ERR_FORMAT, "%s is damaged or another version's; it is removed", path);
    } else {
        *map = at;
        futimens(fd, NULL); /* a hint for make_room; failing costs nothing */
    }
out:
    close(fd);
    return rc;
}
