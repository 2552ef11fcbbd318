/* The safetensors reader: 8 bytes of header length, a JSON header, data. Everything the header says is
 * checked before anything is handed out, in the order: sizes, UTF-8, JSON, names, types, shapes, ranges,
 * coverage of the data. It refuses what the reference implementation refuses: holes, overlaps, duplicates,
 * bytes that no tensor owns.
 *
 * The file is mapped, not read. A mapping raises SIGBUS when another process truncates the file while it is
 * being read; that can only happen while a model loads, because packing copies every weight. What is read of
 * a file later, to merge LoRAs, goes through safetensors_read(), which cannot raise it. */
#include "safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const st_type_names[ST_TYPE_COUNT] = {
    "BOOL", "U8",  "I8",  "F8_E5M2", "F8_E4M3", "I16", "U16", "F16",
    "BF16", "I32", "U32", "F32",     "F64",     "I64", "U64",
};
static const unsigned char st_type_bytes[ST_TYPE_COUNT] = {1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 8, 8, 8};

/* Well-formed UTF-8 (RFC 3629) without NUL: no overlong forms, no surrogates, nothing above U+10FFFF. */
static bool is_utf8(const unsigned char *s, size_t len)
{
    for (size_t i = 0; i < len;) {
        unsigned char c = s[i];
        size_t more = c < 0x80             ? 0
                      : (c & 0xe0) == 0xc0 ? 1
                      : (c & 0xf0) == 0xe0 ? 2
                      : (c & 0xf8) == 0xf0 ? 3
                                           : 9;
        if (c == 0 || more > 3 || more > len - i - 1)
            return false;
        uint32_t code = more ? c & (0x3fu >> more) : c;
        for (size_t k = 1; k <= more; k++) {
            if ((s[i + k] & 0xc0) != 0x80)
                return false;
            code = code << 6 | (s[i + k] & 0x3fu);
        }
        static const uint32_t least[4] = {0, 0x80, 0x800, 0x10000};
        if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
            return false;
        i += more + 1;
    }
    return true;
}

/* A JSON number that is a whole number in [0, 2^53], where doubles are exact. */
static bool whole_number(const cJSON *item, uint64_t *out)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) || item->valuedouble > 9007199254740992.0)
        return false;
    *out = (uint64_t)item->valuedouble;
    return (double)*out == item->valuedouble;
}

static int bad(const struct safetensors *st, const char *name, const char *what, struct error *err)
{
    return error_set(err, ERR_FORMAT, "%s: tensor \"%.200s\" %s", st->label, name, what);
}

static int parse_shape(const struct safetensors *st, struct st_tensor *t, const cJSON *shape,
                       struct error *err)
{
    if (!cJSON_IsArray(shape))
        return bad(st, t->name, "has no list \"shape\"", err);
    const cJSON *dim;
    cJSON_ArrayForEach(dim, shape)
    {
        if (t->dims == ST_DIMS_MAX)
            return bad(st, t->name, "has more than 8 dimensions", err);
        if (!whole_number(dim, &t->shape[t->dims++]))
            return bad(st, t->name, "has a \"shape\" that is not a list of whole numbers", err);
    }
    return 0;
}

static int parse_offsets(const struct safetensors *st, struct st_tensor *t, const cJSON *offsets,
                         uint64_t data_bytes, struct error *err)
{
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !whole_number(cJSON_GetArrayItem(offsets, 0), &t->begin) ||
        !whole_number(cJSON_GetArrayItem(offsets, 1), &t->end))
        return bad(st, t->name, "has no pair of whole numbers \"data_offsets\"", err);
    if (t->begin > t->end)
        return bad(st, t->name, "ends before it begins", err);
    if (t->end > data_bytes)
        return error_set(
            err, ERR_FORMAT,
            "%s: tensor \"%.200s\" ends at byte %llu of the data, the file has only %llu (truncated?)",
            st->label, t->name, (unsigned long long)t->end, (unsigned long long)data_bytes);
    uint64_t bytes = st_type_bytes[t->type];
    for (int i = 0; i < t->dims; i++) {
        if (__builtin_mul_overflow(bytes, t->shape[i], &bytes))
            return bad(st, t->name, "has a shape whose size overflows", err);
    }
    if (t->end - t->begin != bytes)
        return error_set(err, ERR_FORMAT,
                         "%s: tensor \"%.200s\" spans %llu bytes, its shape and type need %llu", st->label,
                         t->name, (unsigned long long)(t->end - t->begin), (unsigned long long)bytes);
    return 0;
}

static int parse_tensor(const struct safetensors *st, struct st_tensor *t, const cJSON *item,
                        uint64_t data_bytes, struct error *err)
{
    t->file = st;
    t->name = strdup(item->string);
    if (!t->name)
        return error_set(err, ERR_NOMEM, "out of memory reading %s", st->label);
    if (!cJSON_IsObject(item) || cJSON_GetArraySize(item) != 3)
        return bad(st, t->name, "is not an object of dtype, shape and data_offsets", err);
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(item, "dtype");
    if (!cJSON_IsString(dtype))
        return bad(st, t->name, "has no string \"dtype\"", err);
    while (t->type < ST_TYPE_COUNT && strcmp(st_type_names[t->type], dtype->valuestring) != 0)
        t->type++;
    if (t->type == ST_TYPE_COUNT)
        return error_set(err, ERR_FORMAT, "%s: tensor \"%.200s\" has the unknown dtype \"%.40s\"", st->label,
                         t->name, dtype->valuestring);
    int rc = parse_shape(st, t, cJSON_GetObjectItemCaseSensitive(item, "shape"), err);
    if (rc < 0)
        return rc;
    return parse_offsets(st, t, cJSON_GetObjectItemCaseSensitive(item, "data_offsets"), data_bytes, err);
}

static int by_place(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

/* Each byte of the data belongs to exactly one tensor, and each name is used once. Leaves the tensors sorted
 * by name. */
static int check_coverage(struct safetensors *st, uint64_t data_bytes, struct error *err)
{
    uint64_t at = 0;
    qsort(st->tensor, (size_t)st->count, sizeof(*st->tensor), by_place);
    for (int i = 0; i < st->count; i++) {
        if (st->tensor[i].begin < at)
            return bad(st, st->tensor[i].name, "overlaps another tensor", err);
        if (st->tensor[i].begin > at)
            return bad(st, st->tensor[i].name, "has bytes before it that belong to no tensor", err);
        at = st->tensor[i].end;
    }
    if (at != data_bytes)
        return error_set(err, ERR_FORMAT, "%s: %llu bytes at the end belong to no tensor", st->label,
                         (unsigned long long)(data_bytes - at));
    qsort(st->tensor, (size_t)st->count, sizeof(*st->tensor), by_name);
    for (int i = 1; i < st->count; i++) {
        if (by_name(&st->tensor[i - 1], &st->tensor[i]) == 0)
            return bad(st, st->tensor[i].name, "is there twice", err);
    }
    return 0;
}

static int parse_tensors(struct safetensors *st, const cJSON *header, uint64_t data_bytes, struct error *err)
{
    int entries = cJSON_GetArraySize(header), metadata = 0;
    st->tensor = calloc((size_t)entries + 1, sizeof(*st->tensor));
    if (!st->tensor)
        return error_set(err, ERR_NOMEM, "out of memory reading %s", st->label);
    const cJSON *item;
    cJSON_ArrayForEach(item, header)
    {
        if (strcmp(item->string, "__metadata__") == 0) {
            if (!cJSON_IsObject(item) || metadata++)
                return error_set(err, ERR_FORMAT, "%s: bad __metadata__ in the header", st->label);
            continue;
        }
        int rc = parse_tensor(st, &st->tensor[st->count++], item, data_bytes, err);
        if (rc < 0)
            return rc;
    }
    return check_coverage(st, data_bytes, err);
}

/* Parses the JSON header itself: an object, and after it only the spaces that align the data. */
static cJSON *parse_json(const struct safetensors *st, const unsigned char *text, size_t len,
                         struct error *err)
{
    if (len == 0 || text[0] != '{' || !is_utf8(text, len)) {
        error_set(err, ERR_FORMAT,
                  "%s: the header is not a JSON object in UTF-8; is this a safetensors file?", st->label);
        return NULL;
    }
    const char *end = NULL;
    cJSON *header = cJSON_ParseWithLengthOpts((const char *)text, len, &end, false);
    for (const char *stop = (const char *)text + len; header && end < stop; end++) {
        if (*end != ' ' && *end != '\n' && *end != '\r' && *end != '\t') {
            cJSON_Delete(header);
            header = NULL;
        }
    }
    if (!cJSON_IsObject(header)) {
        error_set(err, ERR_FORMAT, "%s: the header is not valid JSON", st->label);
        cJSON_Delete(header);
        return NULL;
    }
    return header;
}

static int parse_file(struct safetensors *st, const unsigned char *bytes, struct error *err)
{
    uint64_t len = 0;
    if (st->size < 8)
        return error_set(err, ERR_FORMAT, "%s: only %zu bytes long, not a safetensors file", st->label,
                         st->size);
    for (int i = 7; i >= 0; i--)
        len = len << 8 | bytes[i];
    if (len > ST_HEADER_MAX)
        return error_set(
            err, ERR_FORMAT,
            "%s: the header would be %llu bytes long, at most %d are accepted; is this a safetensors file?",
            st->label, (unsigned long long)len, (int)ST_HEADER_MAX);
    if (len > st->size - 8)
        return error_set(err, ERR_FORMAT,
                         "%s: the header is %llu bytes long but the file has only %zu (truncated?)",
                         st->label, (unsigned long long)len, st->size);
    cJSON *header = parse_json(st, bytes + 8, (size_t)len, err);
    if (!header)
        return ERR_FORMAT;
    st->data = bytes + 8 + len;
    int rc = parse_tensors(st, header, st->size - 8 - len, err);
    cJSON_Delete(header);
    return rc;
}

int safetensors_parse(struct safetensors *st, const void *bytes, size_t size, const char *label,
                      struct error *err)
{
    *st = (struct safetensors){.size = size, .label = strdup(label)};
    int rc =
        st->label ? parse_file(st, bytes, err) : error_set(err, ERR_NOMEM, "out of memory reading %s", label);
    if (rc < 0)
        safetensors_close(st);
    return rc;
}

int safetensors_open(struct safetensors *st, const char *path, const char *label, struct error *err)
{
    *st = (struct safetensors){0};
    /* O_NONBLOCK: opening a FIFO must not wait for a writer. It means nothing for a regular file. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return error_set(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s: %s", label, strerror(errno));
    struct stat info;
    int rc = 0;
    void *map = NULL;
    size_t size = 0;
    if (fstat(fd, &info) < 0)
        rc = error_set(err, ERR_IO, "%s: %s", label, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        rc = error_set(err, ERR_FORMAT, "%s: not a regular file", label);
    else if (info.st_size < 8)
        rc = error_set(err, ERR_FORMAT, "%s: only %lld bytes long, not a safetensors file", label,
                       (long long)info.st_size);
    if (rc == 0) {
        size = (size_t)info.st_size;
        map = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            rc = error_set(err, ERR_IO, "%s: mmap: %s", label, strerror(errno));
    }
    if (rc == 0) {
        rc = safetensors_parse(st, map, size, label, err);
        if (rc < 0)
            munmap(map, size);
    }
    if (rc < 0) {
        close(fd);
    } else {
        st->map = map;
        st->fd = fd;
    }
    return rc;
}

int safetensors_read(const struct safetensors *st, const void *at, void *out, size_t bytes, struct error *err)
{
    const char *from = at, *map = st->map;
    if (!map || from < map || from >= map + st->size) {
        memcpy(out, at, bytes);
        return 0;
    }
    size_t done = 0, offset = (size_t)(from - map);
    while (done < bytes) {
        ssize_t n = pread(st->fd, (char *)out + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set(err, ERR_IO, "%s: %s", st->label, strerror(errno));
        if (n == 0)
            return error_set(err, ERR_IO, "%s: the file became shorter while it was in use", st->label);
        done += (size_t)n;
    }
    return 0;
}

void safetensors_close(struct safetensors *st)
{
    for (int i = 0; i < st->count; i++)
        free(st->tensor[i].name);
    free(st->tensor);
    free(st->label);
    if (st->map) {
        munmap(st->map, st->size);
        close(st->fd);
    }
    *st = (struct safetensors){0};
}

struct st_tensor *safetensors_find(const struct safetensors *st, const char *name)
{
    struct st_tensor key = {.name = (char *)(uintptr_t)name};
    return bsearch(&key, st->tensor, (size_t)st->count, sizeof(*st->tensor), by_name);
}
