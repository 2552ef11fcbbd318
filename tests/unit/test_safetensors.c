/* The safetensors reader and the loader: what is accepted, what is refused and with which words. The bytes
 * are parsed from blocks of exactly their size, so that the sanitizer build sees every read beyond them. */
#include <sys/stat.h>
#include <unistd.h>

#include "../../src/weights/safetensors.h"
#include "backend.h"
#include "test.h"
#include "weights.h"

/* ---- Files in memory ---- */

struct bytes {
    unsigned char *data;
    size_t size;
};

/* HEADER with its length before it and DATA_BYTES bytes 0, 1, 2 … after it. Free data. */
static struct bytes file_of(const char *header, size_t data_bytes)
{
    size_t len = strlen(header);
    struct bytes b = {.size = 8 + len + data_bytes};
    b.data = malloc(b.size);
    if (!b.data)
        abort();
    for (int i = 0; i < 8; i++)
        b.data[i] = (unsigned char)((unsigned long long)len >> (8 * i));
    memcpy(b.data + 8, header, len);
    for (size_t i = 0; i < data_bytes; i++)
        b.data[8 + len + i] = (unsigned char)i;
    return b;
}

/* Parses the first SIZE bytes from a block of just that size. */
static int parse_prefix(struct bytes b, size_t size, struct safetensors *st, struct error *err)
{
    unsigned char *exact = malloc(size ? size : 1);
    if (!exact)
        abort();
    memcpy(exact, b.data, size);
    int rc = safetensors_parse(st, exact, size, "unet/x.safetensors", err);
    if (rc == 0)
        safetensors_close(st);
    free(exact);
    return rc;
}

/* HEADER over DATA_BYTES must be refused with ERR_FORMAT and words that contain WORDS. */
static void refuse(const char *header, size_t data_bytes, const char *words)
{
    struct bytes b = file_of(header, data_bytes);
    struct safetensors st;
    struct error err = {0};
    int rc = parse_prefix(b, b.size, &st, &err);
    CHECK(rc == ERR_FORMAT, "%.80s gave %d", header, rc);
    CHECK(strstr(err.msg, words) && strstr(err.msg, "unet/x.safetensors"), "\"%s\" lacks \"%s\"", err.msg,
          words);
    free(b.data);
}

static void accept(const char *header, size_t data_bytes)
{
    struct bytes b = file_of(header, data_bytes);
    struct safetensors st;
    struct error err = {0};
    CHECK(parse_prefix(b, b.size, &st, &err) == 0, "%.80s: %s", header, err.msg);
    free(b.data);
}

static const char good[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                           "\"b.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[4,28]},"
                           "\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]},"
                           "\"s\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[28,30]},"
                           "\"none\":{\"dtype\":\"I64\",\"shape\":[0,5],\"data_offsets\":[30,30]}}      ";

TEST(good_file_is_read)
{
    struct bytes b = file_of(good, 30);
    struct safetensors st;
    struct error err = {0};
    if (CHECK(safetensors_parse(&st, b.data, b.size, "x", &err) == 0, "%s", err.msg)) {
        struct st_tensor *t = safetensors_find(&st, "b.weight");
        CHECK(st.count == 4);
        CHECK(t && t->type == ST_F32 && t->dims == 2 && t->shape[0] == 2 && t->shape[1] == 3 &&
              t->begin == 4);
        CHECK(t && st.data[t->begin] == 4);
        CHECK(safetensors_find(&st, "s") && safetensors_find(&st, "s")->dims == 0);
        CHECK(safetensors_find(&st, "__metadata__") == NULL && safetensors_find(&st, "b") == NULL);
        safetensors_close(&st);
    }
    free(b.data);
}

TEST(every_truncation_is_refused)
{
    struct bytes b = file_of(good, 30);
    for (size_t size = 0; size < b.size; size++) {
        struct safetensors st;
        struct error err = {0};
        CHECK(parse_prefix(b, size, &st, &err) == ERR_FORMAT, "%zu of %zu bytes", size, b.size);
    }
    free(b.data);
}

TEST(big_file_truncated_at_every_64th_byte)
{
    enum { TENSORS = 200, STEP = 64 };
    char *header = malloc(TENSORS * 100), *at = header;
    if (!CHECK(header != NULL))
        return;
    for (int i = 0; i < TENSORS; i++)
        at +=
            sprintf(at, "%s\"layer.%d.weight\":{\"dtype\":\"F16\",\"shape\":[8,4],\"data_offsets\":[%d,%d]}",
                    i ? "," : "{", i, i * STEP, (i + 1) * STEP);
    strcpy(at, "}");
    struct bytes b = file_of(header, (size_t)TENSORS * STEP);
    accept(header, (size_t)TENSORS * STEP);
    for (size_t size = 0; size < b.size; size += 64) {
        struct safetensors st;
        struct error err = {0};
        CHECK(parse_prefix(b, size, &st, &err) == ERR_FORMAT, "%zu of %zu bytes", size, b.size);
    }
    free(b.data);
    free(header);
}

TEST(ranges)
{
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
           "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
           6, "overlaps");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
           "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
           4, "overlaps");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}", 4, "belong to no tensor");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 4, "belong to no tensor");
    refuse("{}", 1, "belong to no tensor");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[4,2]}}", 4, "ends before it begins");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]}}", 4, "truncated");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,4]}}", 4, "spans 4 bytes");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "need 8");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0]}}", 2, "data_offsets");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2,2]}}", 2, "data_offsets");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[-0.5,2]}}", 2, "data_offsets");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[\"0\",\"2\"]}}", 2, "data_offsets");
    accept("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2);
    accept("{}", 0);
}

TEST(shapes)
{
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
           "overflows");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
           "whole numbers");
    refuse("{\"a\":{\"dtype\":\"F64\",\"shape\":[9007199254740992,9007199254740992],\"data_offsets\":[0,4]}}",
           4, "overflows");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1e300],\"data_offsets\":[0,4]}}", 4, "whole numbers");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[-4],\"data_offsets\":[0,4]}}", 4, "whole numbers");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[0.5],\"data_offsets\":[0,4]}}", 4, "whole numbers");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[null],\"data_offsets\":[0,4]}}", 4, "whole numbers");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,4],\"data_offsets\":[0,4]}}", 4,
           "8 dimensions");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":4,\"data_offsets\":[0,4]}}", 4, "shape");
    accept("{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,4],\"data_offsets\":[0,4]}}", 4);
}

TEST(types_and_fields)
{
    refuse("{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown dtype \"F31\"");
    refuse("{\"a\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown dtype");
    refuse("{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype");
    refuse("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype, shape and data_offsets");
    refuse("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[4]}}", 4, "data_offsets");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"more\":1}}", 4, "dtype, shape");
    refuse("{\"a\":[]}", 0, "dtype, shape");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
           "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
           0, "is there twice");
    refuse("{\"__metadata__\":3}", 0, "__metadata__");
    refuse("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__");
}

TEST(header_text)
{
    refuse("", 0, "not a JSON object");
    refuse("[]", 0, "not a JSON object");
    refuse(" {}", 0, "not a JSON object");
    refuse("{", 0, "not valid JSON");
    refuse("{}x", 0, "not valid JSON");
    refuse("{}{}", 0, "not valid JSON");
    refuse("{\"a\":}", 0, "not valid JSON");
    accept("{}   \n", 0);
    static const char *const not_utf8[] = {
        "\x80", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80",
        "\xff", "\xc3",     "\xe2\x82",     "\xf0\x9f\x98"};
    for (size_t i = 0; i < sizeof(not_utf8) / sizeof(*not_utf8); i++) {
        char header[100];
        snprintf(header, sizeof(header), "{\"%s\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                 not_utf8[i]);
        refuse(header, 0, "UTF-8");
        snprintf(header, sizeof(header), "{\"__metadata__\":{\"a\":\"%s", not_utf8[i]);
        refuse(header, 0, "UTF-8");
    }
    accept(
        "{\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
        0);
}

TEST(header_length)
{
    struct safetensors st;
    static const unsigned long long lengths[] = {31, 1 << 24, (1 << 24) + 1, 1ull << 40, ~0ull, ~0ull - 7};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
        struct bytes b = file_of("{}", 28);
        struct error err = {0};
        for (int k = 0; k < 8; k++)
            b.data[k] = (unsigned char)(lengths[i] >> (8 * k));
        CHECK(parse_prefix(b, b.size, &st, &err) == ERR_FORMAT, "length %llu", lengths[i]);
        free(b.data);
    }
}

TEST(deep_nesting_does_not_exhaust_the_stack)
{
    size_t depth = 1 << 20;
    char *header = malloc(depth + 2);
    if (!CHECK(header != NULL))
        return;
    memset(header, '[', depth);
    memcpy(header, "{\"a\":", 5);
    header[depth] = '\0';
    refuse(header, 0, "not valid JSON");
    free(header);
}

/* Small, seeded damage: nothing may crash, and what is accepted must keep every promise. */
TEST(random_damage_is_refused_or_harmless)
{
    struct bytes b = file_of(good, 30);
    unsigned seed = 12345;
    int accepted = 0;
    for (int round = 0; round < 30000; round++) {
        unsigned char *copy = malloc(b.size);
        if (!CHECK(copy != NULL))
            break;
        memcpy(copy, b.data, b.size);
        for (int hits = 1 + round % 4; hits > 0; hits--) {
            seed = seed * 1664525u + 1013904223u;
            size_t at = (seed >> 8) % (b.size - 30);
            seed = seed * 1664525u + 1013904223u;
            static const unsigned char letters[] = "0123456789,:[]{}\"eE-+. \\uFU\0\xff\x80";
            copy[at] = seed >> 31 ? letters[(seed >> 8) % sizeof(letters)] : (unsigned char)(seed >> 16);
        }
        struct safetensors st;
        struct error err = {0};
        int rc = safetensors_parse(&st, copy, b.size, "x", &err);
        CHECK(rc == 0 || (rc == ERR_FORMAT && err.msg[0]), "%d", rc);
        for (int i = 0; rc == 0 && i < st.count; i++)
            CHECK(st.tensor[i].begin <= st.tensor[i].end && st.data + st.tensor[i].end <= copy + b.size);
        if (rc == 0) {
            accepted++;
            safetensors_close(&st);
        }
        free(copy);
    }
    CHECK(accepted > 0 && accepted < 29000, "%d accepted: the damage is not what it should be", accepted);
    free(b.data);
}

/* ---- Folders ---- */

static char folder[64];

static void folder_new(void)
{
    strcpy(folder, "/tmp/latentd-test-XXXXXX");
    if (!mkdtemp(folder))
        abort();
}

static void folder_remove(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    if (system(command) != 0)
        abort();
}

static void write_file(const char *name, const void *data, size_t size)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0)
        abort();
}

static void write_tensors(const char *name, const char *header, size_t data_bytes)
{
    struct bytes b = file_of(header, data_bytes);
    write_file(name, b.data, b.size);
    free(b.data);
}

static void write_text(const char *name, const char *text)
{
    write_file(name, text, strlen(text));
}

#define ONE(name, type, shape, bytes)                                                                        \
    "{\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":[0," bytes "]}}"

static int open_here(struct weights **w, const char *variant, struct error *err)
{
    *err = (struct error){0};
    return weights_open(w, folder, "model", variant, err);
}

TEST(variants_and_fallback)
{
    struct weights *w = NULL;
    struct error err;
    folder_new();
    write_tensors("model.safetensors", ONE("plain", "F32", "[1]", "4"), 4);
    CHECK(open_here(&w, "fp16", &err) == 0 && weights_has(w, "plain"), "%s", err.msg);
    CHECK(weights_dtype(w) == DTYPE_F32);
    weights_close(&w);
    write_tensors("model.fp16.safetensors", ONE("half", "F16", "[1]", "2"), 2);
    CHECK(open_here(&w, "fp16", &err) == 0 && weights_has(w, "half") && weights_dtype(w) == DTYPE_F16, "%s",
          err.msg);
    weights_close(&w);
    CHECK(open_here(&w, NULL, &err) == 0 && weights_has(w, "plain"), "%s", err.msg);
    weights_close(&w);
    CHECK(open_here(&w, "int8", &err) == ERR_UNSUPPORTED && !w && strstr(err.msg, "int8"), "%s", err.msg);
    folder_remove();
}

static const char index_ab[] =
    "{\"metadata\":{},\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}";

TEST(shards)
{
    struct weights *w = NULL;
    struct error err;
    folder_new();
    write_text("model.safetensors.index.json", index_ab);
    CHECK(open_here(&w, NULL, &err) == ERR_NOT_FOUND && strstr(err.msg, "one.safetensors"), "%s", err.msg);
    write_tensors("one.safetensors", ONE("a", "F16", "[1]", "2"), 2);
    write_tensors("two.safetensors", ONE("c", "F16", "[1]", "2"), 2);
    CHECK(open_here(&w, NULL, &err) == ERR_NOT_FOUND && strstr(err.msg, "\"b\""), "%s", err.msg);
    write_tensors("two.safetensors", ONE("b", "F16", "[1]", "2"), 2);
    CHECK(open_here(&w, NULL, &err) == 0 && weights_has(w, "a") && weights_has(w, "b"), "%s", err.msg);
    weights_close(&w);
    write_tensors("two.safetensors",
                  "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
                  "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                  0);
    CHECK(open_here(&w, NULL, &err) == ERR_FORMAT && strstr(err.msg, "both hold"), "%s", err.msg);
    folder_remove();
}

TEST(bad_indexes)
{
    static const char *const bad[] = {
        "{}",
        "{\"weight_map\":[]}",
        "{\"weight_map\":{}}",
        "{\"weight_map\":{\"a\":3}}",
        "{\"weight_map\":{\"a\":\"../one.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"/etc/passwd\"}}",
        "{\"weight_map\":{\"a\":\"..\"}}",
        "{\"weight_map\":{\"a\":\"\"}}",
        "not JSON",
    };
    struct weights *w = NULL;
    struct error err;
    folder_new();
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        write_text("model.safetensors.index.fp16.json", bad[i]);
        CHECK(open_here(&w, NULL, &err) == ERR_FORMAT && !w, "%s: %d %s", bad[i], err.code, err.msg);
    }
    folder_remove();
}

TEST(pickle_is_refused_and_nothing_is_told_apart)
{
    struct weights *w = NULL;
    struct error err;
    folder_new();
    CHECK(open_here(&w, NULL, &err) == ERR_NOT_FOUND && strstr(err.msg, "model.safetensors is missing"), "%s",
          err.msg);
    write_text("pytorch_model.bin", "\x80\x02");
    CHECK(open_here(&w, NULL, &err) == ERR_UNSUPPORTED && strstr(err.msg, "convert"), "%s", err.msg);
    CHECK(strstr(err.msg, "pytorch_model.bin") && strstr(err.msg, "safe_serialization"), "%s", err.msg);
    folder_remove();
}

TEST(odd_files)
{
    struct weights *w = NULL;
    struct error err;
    char path[128];
    folder_new();
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    CHECK(mkfifo(path, 0600) == 0);
    CHECK(open_here(&w, NULL, &err) == ERR_FORMAT && strstr(err.msg, "not a regular file"), "%s", err.msg);
    unlink(path);
    CHECK(mkdir(path, 0700) == 0);
    CHECK(open_here(&w, NULL, &err) == ERR_FORMAT, "%s", err.msg);
    rmdir(path);
    write_text("model.safetensors", "");
    CHECK(open_here(&w, NULL, &err) == ERR_FORMAT && strstr(err.msg, "only 0 bytes"), "%s", err.msg);
    write_text("model.safetensors", "<!DOCTYPE html><html>not found</html>");
    CHECK(open_here(&w, NULL, &err) == ERR_FORMAT && strstr(err.msg, "is this a safetensors file"), "%s",
          err.msg);
    CHECK(!strstr(err.msg, "/tmp/"), "a full path in \"%s\"", err.msg);
    folder_remove();
}

/* ---- The loader ---- */

struct loading {
    struct loader l;
    struct weight_list packed;
    struct error err;
    weight w;
};

static void loading_open(struct loading *x, const char *header, size_t bytes)
{
    *x = (struct loading){0};
    folder_new();
    write_tensors("model.safetensors", header, bytes);
    x->l = (struct loader){.err = &x->err, .packed = &x->packed};
    if (weights_open(&x->l.weights, folder, "model", NULL, &x->err) < 0 ||
        backend_open(&x->l.be, &(struct backend_options){.kind = "ref"}, &x->err) < 0)
        CHECK(0, "%s", x->err.msg);
}

static void loading_close(struct loading *x)
{
    weight_list_free(&x->packed, x->l.be);
    CHECK(x->l.be->weight_bytes == 0);
    weights_close(&x->l.weights);
    backend_close(&x->l.be);
    folder_remove();
}

static const char layer[] = "{\"m.weight\":{\"dtype\":\"F16\",\"shape\":[3,2],\"data_offsets\":[0,12]},"
                            "\"m.bias\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[12,24]},"
                            "\"n.weight\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[24,28]},"
                            "\"n.bias\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[28,32]}}";

TEST(layer_loads_and_the_rest_is_counted)
{
    struct loading x;
    const char *first = NULL;
    loading_open(&x, layer, 32);
    x.l.check_only = true;
    load_linear(&x.l, &x.w, 3, 2, true, "%c", 'm');
    CHECK(!x.err.code && !x.w.packed && x.packed.count == 0, "%s", x.err.msg);
    x.l.check_only = false;
    load_linear(&x.l, &x.w, 3, 2, true, "%c", 'm');
    CHECK(!x.err.code && x.w.packed && x.w.has_bias && x.w.out_c == 3 && x.w.in_c == 2, "%s", x.err.msg);
    CHECK(weights_unused(x.l.weights, &first) == 2 && strcmp(first, "n.bias") == 0);
    loading_close(&x);
}

TEST(errors_name_file_tensor_expected_and_found)
{
    struct loading x;
    loading_open(&x, layer, 32);
    load_linear(&x.l, &x.w, 3, 5, true, "m");
    CHECK(x.err.code == ERR_FORMAT && strstr(x.err.msg, "model.safetensors") &&
              strstr(x.err.msg, "m.weight") && strstr(x.err.msg, "[3, 2]") && strstr(x.err.msg, "[3, 5]"),
          "%s", x.err.msg);
    load_linear(&x.l, &x.w, 3, 2, true, "m");
    CHECK(!x.w.packed, "loading went on after an error");
    x.err = (struct error){0};
    load_linear(&x.l, &x.w, 3, 2, true, "q");
    CHECK(x.err.code == ERR_FORMAT && strstr(x.err.msg, "q.weight") && strstr(x.err.msg, "missing"), "%s",
          x.err.msg);
    x.err = (struct error){0};
    load_norm(&x.l, &x.w, 1, "n");
    CHECK(x.err.code == ERR_FORMAT && strstr(x.err.msg, "I32") && strstr(x.err.msg, "n.weight"), "%s",
          x.err.msg);
    x.err = (struct error){0};
    load_conv2d(&x.l, &x.w, 3, 2, 1, "m");
    CHECK(x.err.code == ERR_FORMAT && strstr(x.err.msg, "[3, 2, 1, 1]"), "%s", x.err.msg);
    loading_close(&x);
}

TEST(old_names_of_the_vae_attention)
{
    struct loading x;
    static const char *const qkv[] = {"to_q", "to_k", "to_v"};
    loading_open(
        &x,
        "{\"d.query.weight\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
        "\"d.attention.0.query.weight\":{\"dtype\":\"F32\",\"shape\":[1,2,1,1],\"data_offsets\":[0,8]},"
        "\"d.attention.0.key.weight\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[8,16]},"
        "\"d.attention.0.value.weight\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[16,24]},"
        "\"d.attention.0.proj_attn.weight\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[24,32]}}",
        32);
    weight out = {0};
    load_linear_parts(&x.l, &x.w, 3, qkv, 1, 2, false, "d.attention.%d", 0);
    load_linear(&x.l, &out, 2, 1, false, "d.attention.0.to_out.0");
    CHECK(!x.err.code && x.w.packed && out.packed && x.w.out_c == 3, "%s", x.err.msg);
    loading_close(&x);
}

TEST_MAIN()
