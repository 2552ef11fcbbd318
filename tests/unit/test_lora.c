/* LoRA files: the names of tensors in every naming, where files may lie, and what is refused, with the words
 * that the client reads. */
#include <sys/stat.h>
#include <unistd.h>

#include "../../src/weights/lora.h"
#include "backend.h"
#include "log.h"
#include "networks.h"
#include "region.h"
#include "test.h"

#define LORA "tests/golden/data/lora/"

/* ---- Names ---- */

static void check_key(const char *name, enum lora_part part, enum lora_role role, const char *module)
{
    struct error err = {0};
    struct lora_key key;
    char want[LORA_NAME_SIZE];
    int rc = lora_key_parse(name, 2, &key, &err);
    lora_module_name(part, module, want);
    CHECK(rc == 0 && key.part == part && key.role == role && strcmp(key.module, want) == 0, "%s: %s, not %s",
          name, rc ? err.msg : key.module, want);
}

/* "a.b_c" -> "a_b_c". */
static void underscores(char *s)
{
    for (; *s; s++)
        *s = *s == '.' ? '_' : *s;
}

/* All spellings of one UNet layer. SGM: its name in the original code. */
static void check_spellings(const char *sgm, const char *module)
{
    static const struct {
        const char *format;
        bool sgm, flat;
        enum lora_role role;
    } spellings[] = {
        {"lora_unet_%s.lora_down.weight", false, true, LORA_DOWN},
        {"lora_unet_%s.lora_up.weight", true, true, LORA_UP},
        {"lora_unet_%s.alpha", true, true, LORA_ALPHA},
        {"unet.%s.lora.down.weight", false, false, LORA_DOWN},
        {"unet.%s.lora_B.weight", false, false, LORA_UP},
        {"base_model.model.%s.lora_A.weight", false, false, LORA_DOWN},
        {"unet.base_model.model.%s.lora_B.default.weight", false, false, LORA_UP},
        {"diffusion_model.%s.lora_A.weight", true, false, LORA_DOWN},
        {"unet.%s.dora_scale", false, false, LORA_IGNORED},
    };
    for (size_t i = 0; i < sizeof(spellings) / sizeof(*spellings); i++) {
        char name[400], middle[200];
        snprintf(middle, sizeof(middle), "%s", spellings[i].sgm ? sgm : module);
        if (spellings[i].flat)
            underscores(middle);
        _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wformat-nonliteral\"")
            snprintf(name, sizeof(name), spellings[i].format, middle);
        _Pragma("GCC diagnostic pop") check_key(name, LORA_UNET, spellings[i].role, module);
    }
}

TEST(every_layer_of_sd15_and_sdxl_in_every_spelling)
{
    char base[16], sgm[200], module[200];
    int count = 0;
    FILE *f = fopen(LORA "names.txt", "r");
    CHECK(f != NULL);
    while (f && fscanf(f, "%15s %199s %199s", base, sgm, module) == 3) {
        check_spellings(sgm, module);
        count++;
    }
    CHECK(count == 282 + 794, "%d", count);
    if (f)
        fclose(f);
}

TEST(old_and_text_names)
{
    check_key("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
              LORA_UNET, LORA_UP, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0");
    check_key("down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
              LORA_UNET, LORA_DOWN, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q");
    check_key("text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora.down.weight", LORA_TEXT,
              LORA_DOWN, "encoder.layers.3.self_attn.q_proj");
    check_key("text_encoder.text_model.encoder.layers.3.self_attn.to_out_lora.up.weight", LORA_TEXT, LORA_UP,
              "text_model.encoder.layers.3.self_attn.out_proj");
    check_key("text_encoder_2.text_model.encoder.layers.31.self_attn.v_proj.lora_linear_layer.up.weight",
              LORA_TEXT_2, LORA_UP, "encoder.layers.31.self_attn.v_proj");
    check_key("lora_te_text_model_encoder_layers_11_mlp_fc1.lora_down.weight", LORA_TEXT, LORA_DOWN,
              "text_model.encoder.layers.11.mlp.fc1");
    check_key("lora_te1_text_model_encoder_layers_0_self_attn_k_proj.alpha", LORA_TEXT, LORA_ALPHA,
              "encoder.layers.0.self_attn.k_proj");
    check_key("lora_te2_text_projection.lora_up.weight", LORA_TEXT_2, LORA_UP, "text_projection");
    check_key("base_model.model.text_model.encoder.layers.1.mlp.fc2.lora_A.weight", LORA_TEXT, LORA_DOWN,
              "encoder.layers.1.mlp.fc2");
}

TEST(other_names_are_refused)
{
    static const struct {
        const char *name;
        int code;
    } bad[] = {
        {"", ERR_FORMAT},
        {"weight", ERR_FORMAT},
        {".alpha", ERR_FORMAT},
        {"lora_unet_.lora_down.weight", ERR_FORMAT},
        {"unet.conv_in.weight", ERR_FORMAT},
        {"transformer.single_blocks.0.attn.to_q.lora_A.weight", ERR_FORMAT},
        {"lora_prior_unet_x.lora_down.weight", ERR_FORMAT},
        {"lora_unet_input_blocks_x_0_op.lora_down.weight", ERR_FORMAT},
        {"lora_unet_input_blocks_99999999999999999999_0_op.lora_down.weight", ERR_FORMAT},
        {"lora_unet_input_blocks_1_9_proj_in.lora_down.weight", ERR_FORMAT},
        {"lora_unet_middle_block_3_proj_in.lora_down.weight", ERR_FORMAT},
        {"lora_unet_mid_block_attentions_0_proj_in.lora_mid.weight", ERR_UNSUPPORTED},
        {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", ERR_UNSUPPORTED},
        {"lora_unet_mid_block_attentions_0_proj_in.lokr_w1", ERR_UNSUPPORTED},
        {"lora_unet_mid_block_attentions_0_norm.diff", ERR_UNSUPPORTED},
        {"unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", ERR_UNSUPPORTED},
        {"unet.mid_block.attentions.0.proj_in.lora_B.bias", ERR_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct error err = {0};
        struct lora_key key;
        CHECK(lora_key_parse(bad[i].name, 2, &key, &err) == bad[i].code && err.code == bad[i].code,
              "%s: %d %s", bad[i].name, err.code, err.msg);
    }
    for (size_t n = 200; n < 700; n += 7) { /* too long in one place or another */
        char name[800];
        struct error err = {0};
        struct lora_key key;
        snprintf(name, sizeof(name), "lora_unet_%0*d_to_out.lora_down.weight", (int)n, 1);
        int rc = lora_key_parse(name, 2, &key, &err);
        CHECK(rc == 0 || rc == ERR_FORMAT);
        CHECK(n < 300 || rc == ERR_FORMAT, "%zu", n);
    }
}

/* ---- Files ---- */

static char root[] = "/tmp/latentd-lora-XXXXXX";

static void run(const char *fmt, const char *a, const char *b)
{
    char command[1000];
    _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wformat-nonliteral\"")
        snprintf(command, sizeof(command), fmt, a, b);
    _Pragma("GCC diagnostic pop") CHECK(system(command) == 0, "%s", command);
}

/* A shelf with one good LoRA, and files outside of it. */
static void make_shelf(void)
{
    strcpy(root, "/tmp/latentd-lora-XXXXXX");
    CHECK(mkdtemp(root) != NULL);
    run("mkdir -p %s/models/org %s/outside/org", root, root);
    run("cp -r " LORA "shelf/test/diffusers %s/models/org/good && cp -r " LORA
        "shelf/test/kohya %s/outside/org/far",
        root, root);
}

static void remove_shelf(void)
{
    run("rm -rf %s%s", root, "");
}

static char config[4096]; /* what the last find() found beside the file */

static int find(const char *id, char path[4096])
{
    struct error err = {0};
    char models[64];
    snprintf(models, sizeof(models), "%s/models", root);
    struct lora_path at;
    int rc = lora_find(models, id, &at, &err);
    strcpy(path, at.file);
    strcpy(config, at.config);
    return rc;
}

TEST(only_files_inside_the_shelf_are_found)
{
    static const char *const hostile[] = {
        "../outside/org/far",
        "org/../../outside/org/far",
        "/etc/passwd",
        "",
        "/",
        ".",
        "..",
        "org/",
        "/org/good",
        "org//good",
        "org/good/",
        "org/./good",
        "org/good/../good",
        "org/good/../../../outside/org/far/only.safetensors",
        "org/good/..",
        "%2e%2e/outside",
        "org/good\n",
        "org\\good",
        "models--org--good",
        "../models/org/good",
        "org/good/.hidden.safetensors",
        "org/good//pytorch_lora_weights.safetensors",
        "../x.safetensors",
        "org/linked",
        "org/linked_file",
        "linked/far",
        "org/nothing",
        "org/good/nothing.safetensors",
        "org/good/pytorch_lora_weights.safetensors/",
        "~/org/good",
        "org/go\xc0\xafod",
        "file:///etc/passwd",
    };
    char path[4096];
    make_shelf();
    run("ln -s %s/outside/org/far %s/models/org/linked", root, root);
    run("ln -s %s/outside/org %s/models/linked", root, root);
    run("mkdir %s/models/org/linked_file && ln -s ../../../outside/org/far/only.safetensors "
        "%s/models/org/linked_file/",
        root, root);
    CHECK(find("org/good", path) == 0 && strstr(path, "/models/org/good/pytorch_lora_weights.safetensors"));
    CHECK(find("org/good/pytorch_lora_weights.safetensors", path) == 0);
    for (size_t i = 0; i < sizeof(hostile) / sizeof(*hostile); i++)
        CHECK(find(hostile[i], path) != 0, "%s was found at %s", hostile[i], path);
    char longest[5000];
    memset(longest, 'a', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    CHECK(find(longest, path) != 0);
    memcpy(longest + sizeof(longest) - 13, ".safetensors", 13);
    CHECK(find(longest, path) != 0);
    remove_shelf();
}

TEST(the_hub_cache_links_to_its_blobs)
{
    char path[4096];
    make_shelf();
    run("mkdir -p %s/models/models--hub--one/refs %s/models/models--hub--one/blobs", root, root);
    run("mkdir -p %s/models/models--hub--one/snapshots/abc && printf abc > "
        "%s/models/models--hub--one/refs/main",
        root, root);
    run("cp %s/outside/org/far/only.safetensors %s/models/models--hub--one/blobs/1234", root, root);
    run("ln -s ../../blobs/1234 %s/models/models--hub--one/snapshots/abc/style.safetensors%s", root, "");
    CHECK(find("hub/one", path) == 0 && strstr(path, "/blobs/1234"), "%s", path);
    CHECK(find("hub/one/style.safetensors", path) == 0 && strstr(path, "/blobs/1234"), "%s", path);
    CHECK(config[0] == '\0', "%s", config);
    run("echo {} > %s/models/models--hub--one/blobs/567 && ln -s ../../blobs/567 "
        "%s/models/models--hub--one/snapshots/abc/adapter_config.json",
        root, root);
    CHECK(find("hub/one", path) == 0 && strstr(config, "/blobs/567"),
          "beside the link, not beside the blob: %s", config);
    run("cp %s/outside/org/far/only.safetensors %s/models/models--hub--one/snapshots/abc/another.safetensors",
        root, root);
    CHECK(find("hub/one", path) == 0 && strstr(path, "another.safetensors"), "the first by name: %s", path);
    run("touch %s/models/models--hub--one/snapshots/abc/a_checkpoint.safetensors%s", root, "");
    CHECK(find("hub/one", path) == 0 && strstr(path, "another.safetensors"), "%s", path);
    run("touch %s/models/models--hub--one/snapshots/abc/pytorch_lora_weights.safetensors%s", root, "");
    CHECK(find("hub/one", path) == 0 && strstr(path, "pytorch_lora"), "the usual name: %s", path);
    run("cp %s/outside/org/far/only.safetensors %s/models/single.safetensors", root, root);
    CHECK(find("single.safetensors", path) == 0, "a file in MODEL_DIR itself");
    remove_shelf();
}

/* ---- Refusals, through the shelf ---- */

struct fixture {
    struct backend *be;
    struct unet *unet;
    struct clip_text *text;
    struct lora_shelf *shelf;
    struct error err;
    struct region *mem;
    void *memory;
};

enum { MEMORY = 4 << 20 };

static bool fixture_open(struct fixture *x)
{
    char models[64];
    struct backend_options opt = {.kind = "ref"};
    *x = (struct fixture){0};
    make_shelf();
    log_set_level(LOG_LEVEL_ERROR);
    snprintf(models, sizeof(models), "%s/models", root);
    struct lora_shelf_options o = {.root = models, .base = "org/base"};
    x->mem = calloc(1, sizeof(*x->mem));
    bool ok = x->mem && backend_open(&x->be, &opt, &x->err) == 0 &&
              unet_load(&x->unet, x->be, "tests/golden/data/unet_sd1", NULL, &x->err) == 0 &&
              clip_text_load(&x->text, x->be, "tests/golden/data/text_quick_gelu", NULL, &x->err) == 0 &&
              x->be->mem_alloc(x->be, MEMORY, &x->memory, &x->err) == 0;
    if (ok) {
        o.list[LORA_UNET] = unet_weights(x->unet);
        o.list[LORA_TEXT] = clip_text_weights(x->text);
        ok = lora_shelf_open(&x->shelf, &o, &x->err) == 0;
        region_init(x->mem, x->memory, MEMORY);
    }
    return CHECK(ok, "%s", x->err.msg);
}

static void fixture_close(struct fixture *x)
{
    lora_shelf_close(&x->shelf, x->be);
    unet_close(&x->unet);
    clip_text_close(&x->text);
    if (x->memory)
        x->be->mem_free(x->be, x->memory, MEMORY);
    CHECK(x->be->weight_bytes == 0);
    backend_close(&x->be);
    free(x->mem);
    remove_shelf();
}

static int try_lora(struct fixture *x, const char *id, float strength)
{
    struct lora_use use = {id, strength};
    struct lora_need need;
    x->err = (struct error){0};
    int rc = lora_shelf_prepare(x->shelf, DTYPE_F32, &use, 1, &need, &x->err);
    pass p = {.be = x->be, .mem = x->mem, .err = &x->err};
    return rc ? rc : lora_shelf_apply(x->shelf, &p, &x->err);
}

static void check_refused(struct fixture *x, const char *id, const char *words)
{
    int rc = try_lora(x, id, 1);
    CHECK(rc == ERR_LORA && strcmp(x->err.msg, words) == 0, "%s: %d %s", id, rc, x->err.msg);
    CHECK(try_lora(x, "org/good", 1) == 0, "%s", x->err.msg);
}

static void put_u64(FILE *f, unsigned long long v)
{
    for (int i = 0; i < 8; i++)
        fputc((int)(v >> (8 * i) & 0xff), f);
}

/* models/org/NAME with a file of HEADER and DATA zeros. */
static void write_lora(const char *name, const char *header, size_t data)
{
    char path[200];
    run("mkdir -p %s/models/org/%s", root, name);
    snprintf(path, sizeof(path), "%s/models/org/%s/lora.safetensors", root, name);
    FILE *f = fopen(path, "wb");
    if (!CHECK(f != NULL))
        return;
    put_u64(f, strlen(header));
    fputs(header, f);
    for (size_t i = 0; i < data; i++)
        fputc(0, f);
    fclose(f);
}

#define PAIR(module, down, middle, up, end)                                                                  \
    "{\"" module ".lora_down.weight\":{\"dtype\":\"F16\",\"shape\":" down ",\"data_offsets\":[0," middle     \
    "]},\"" module ".lora_up.weight\":{\"dtype\":\"F16\",\"shape\":" up ",\"data_offsets\":[" middle "," end \
    "]}}"
#define MODULE "lora_unet_mid_block_attentions_0_proj_in"

TEST(refusals_have_the_words_of_the_contract)
{
    struct fixture x;
    if (fixture_open(&x)) {
        write_lora("fits", PAIR(MODULE, "[1,20,1,1]", "40", "[20,1,1,1]", "80"), 80);
        CHECK(try_lora(&x, "org/fits", 1) == 0, "%s", x.err.msg);
        check_refused(&x, "org/none", "LoRa repository 'org/none' not found");
        check_refused(&x, "../../etc", "LoRa repository '../../etc' not found");
        write_lora("wide", PAIR(MODULE, "[1,24]", "48", "[20,1]", "88"), 88);
        check_refused(&x, "org/wide", "LoRa incompatible with base model: 'org/base'");
        write_lora("tall", PAIR(MODULE, "[1,20]", "40", "[24,1]", "88"), 88);
        check_refused(&x, "org/tall", "LoRa incompatible with base model: 'org/base'");
        write_lora("kernel", PAIR(MODULE, "[1,20,3,3]", "360", "[20,1,1,1]", "400"), 400);
        check_refused(&x, "org/kernel", "LoRa incompatible with base model: 'org/base'");
        write_lora("unknown",
                   PAIR("lora_unet_mid_block_attentions_7_proj_in", "[1,20]", "40", "[20,1]", "80"), 80);
        check_refused(&x, "org/unknown", "LoRa incompatible with base model: 'org/base'");
        write_lora("two_texts",
                   PAIR("lora_te2_text_model_encoder_layers_0_mlp_fc1", "[1,20]", "40", "[20,1]", "80"), 80);
        check_refused(&x, "org/two_texts", "LoRa incompatible with base model: 'org/base'");
        write_lora("ranks", PAIR(MODULE, "[2,20]", "80", "[20,1]", "120"), 120);
        check_refused(&x, "org/ranks", "Unable to load LoRas for adapter 'org/ranks'");
        write_lora("zero", PAIR(MODULE, "[0,20]", "0", "[20,0]", "0"), 0);
        check_refused(&x, "org/zero", "Unable to load LoRas for adapter 'org/zero'");
        write_lora("half",
                   "{\"" MODULE
                   ".lora_down.weight\":{\"dtype\":\"F16\",\"shape\":[1,20],\"data_offsets\":[0,40]}}",
                   40);
        check_refused(&x, "org/half", "Unable to load LoRas for adapter 'org/half'");
        write_lora("foreign",
                   "{\"model.weight\":{\"dtype\":\"F16\",\"shape\":[1,20],\"data_offsets\":[0,40]}}", 40);
        check_refused(&x, "org/foreign", "Unable to load LoRas for adapter 'org/foreign'");
        write_lora("empty", "{}", 0);
        check_refused(&x, "org/empty", "Unable to load LoRas for adapter 'org/empty'");
        write_lora("pickle", "", 0);
        run("mv %s/models/org/pickle/lora.safetensors %s/models/org/pickle/lora.bin", root, root);
        check_refused(&x, "org/pickle", "Unable to load LoRas for adapter 'org/pickle'");
        run("mkdir -p %s/models/org/fifo && mkfifo %s/models/org/fifo/lora.safetensors", root, root);
        check_refused(&x, "org/fifo", "Unable to load LoRas for adapter 'org/fifo'");
        CHECK(try_lora(&x, "org/good", -1) == ERR_LORA && strstr(x.err.msg, "All strengths must be numbers"),
              "%s", x.err.msg);
        CHECK(try_lora(&x, "org/good", NAN) == ERR_LORA);
    }
    fixture_close(&x);
}

TEST(a_file_cut_short_or_changed_is_refused_and_the_next_request_works)
{
    struct fixture x;
    char path[200];
    if (fixture_open(&x)) {
        run("cp -r %s/models/org/good %s/models/org/cut", root, root);
        snprintf(path, sizeof(path), "%s/models/org/cut/pytorch_lora_weights.safetensors", root);
        for (long size = 31007; size >= 0; size -= 1033) {
            CHECK(truncate(path, size) == 0);
            check_refused(&x, "org/cut", "Unable to load LoRas for adapter 'org/cut'");
        }
        /* Cut while it is in the cache: it is opened anew. */
        run("cp %s/models/org/good/*.safetensors %s/models/org/cut/", root, root);
        CHECK(try_lora(&x, "org/cut", 1) == 0, "%s", x.err.msg);
        CHECK(truncate(path, 20000) == 0);
        check_refused(&x, "org/cut", "Unable to load LoRas for adapter 'org/cut'");
        /* Cut between the check and the merge: the read fails, the weights are the originals. */
        run("cp %s/models/org/good/*.safetensors %s/models/org/cut/", root, root);
        struct lora_use use = {"org/cut", 1};
        struct lora_need need;
        x.err = (struct error){0};
        size_t before = x.be->weight_bytes;
        CHECK(try_lora(&x, "org/good", 0) == 0);
        lora_shelf_drop(x.shelf, x.be);
        before = x.be->weight_bytes;
        CHECK(lora_shelf_prepare(x.shelf, DTYPE_F32, &use, 1, &need, &x.err) == 0, "%s", x.err.msg);
        CHECK(truncate(path, 20000) == 0);
        pass p = {.be = x.be, .mem = x.mem, .err = &x.err};
        CHECK(lora_shelf_apply(x.shelf, &p, &x.err) == ERR_LORA, "%s", x.err.msg);
        CHECK(x.be->weight_bytes == before, "%zu bytes are left", x.be->weight_bytes - before);
        region_reset(x.mem);
        CHECK(try_lora(&x, "org/good", 1) == 0, "%s", x.err.msg);
    }
    fixture_close(&x);
}

/* ---- Strength ---- */

static const struct lora_file *open_file(const struct fixture *x, const char *id)
{
    for (int i = 0; i < LORA_FILES_MAX; i++)
        if (x->shelf->file[i] && strcmp(x->shelf->file[i]->id, id) == 0)
            return x->shelf->file[i];
    return NULL;
}

static void check_scale(const struct fixture *x, const struct lora_file *f, enum lora_part part,
                        const char *module, float want)
{
    char name[LORA_NAME_SIZE];
    float scale = NAN;
    lora_module_name(part, module, name);
    const struct lora_module *m = lora_module_find(x->shelf, part, name);
    for (int i = 0; i < f->layers; i++)
        if (f->layer[i].module == m)
            scale = f->layer[i].scale;
    CHECK(fabsf(scale - want) <= 1e-6f * want, "%s %s: %g, in diffusers %g", f->id, module, (double)scale,
          (double)want);
}

/* Lines of scales.txt: file, network, module, what diffusers makes of it. */
TEST(alpha_that_is_not_written_down_is_that_of_diffusers)
{
    struct fixture x;
    char line[300], name[40], part[40], module[200], id[60];
    float want;
    int seen = 0;
    FILE *list = fopen(LORA "scales/scales.txt", "r");
    if (fixture_open(&x) && CHECK(list != NULL)) {
        run("cp -r " LORA "scales/test %s/models/%s", root, "scales");
        while (fgets(line, sizeof(line), list) &&
               CHECK(sscanf(line, "%39s %39s %199s %f", name, part, module, &want) == 4)) {
            snprintf(id, sizeof(id), "scales/%s", name);
            if (!open_file(&x, id) && !CHECK(try_lora(&x, id, 1) == 0, "%s", x.err.msg))
                break;
            check_scale(&x, open_file(&x, id), *part == 'u' ? LORA_UNET : LORA_TEXT, module, want);
            seen++;
        }
        CHECK(seen == 5 * (28 + 15), "%d", seen);
    }
    if (list)
        fclose(list);
    fixture_close(&x);
}

#define METADATA(pattern)                                                                                    \
    "{\"__metadata__\":{\"lora_adapter_metadata\":\"{\\\"unet.lora_alpha\\\":3,"                             \
    "\\\"unet.alpha_pattern\\\":{\\\"" pattern "\\\":2}}\"},"

TEST(expressions_that_are_read_otherwise_here_are_refused)
{
    static const char *const bad[] = {
        METADATA("(?:a|b)"),
        METADATA("a{1,9}"),
        METADATA("a[\\\\\\\\d]"),
        METADATA("\\\\\\\\d"),
        METADATA("((a|b)\\\\\\\\1"),
        METADATA("(a"),
        METADATA("a+b+c+d+e+f+g+h+i+"),
    };
    static const char pair[] = PAIR("unet.mid_block.attentions.0.proj_in", "[1,20]", "40", "[20,1]", "80");
    struct fixture x;
    char header[1000];
    if (fixture_open(&x)) {
        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
            snprintf(header, sizeof(header), "%s%s", bad[i], pair + 1);
            write_lora("bad", header, 80);
            check_refused(&x, "org/bad", "Unable to load LoRas for adapter 'org/bad'");
        }
        snprintf(header, sizeof(header), "%s%s", METADATA("mid.*[a-z_]+(in|out)"), pair + 1);
        write_lora("bad", header, 80);
        CHECK(try_lora(&x, "org/bad", 1) == 0, "%s", x.err.msg);
        check_scale(&x, open_file(&x, "org/bad"), LORA_UNET, "mid_block.attentions.0.proj_in", 2);
    }
    fixture_close(&x);
}

TEST(twelve_files_stay_open_and_the_oldest_goes)
{
    struct fixture x;
    char id[32];
    unsigned long first = 0;
    if (fixture_open(&x)) {
        for (int i = 0; i < 2 * LORA_FILES_MAX; i++) {
            snprintf(id, sizeof(id), "n%d", i);
            run("cp -r " LORA "shelf/test/diffusers %s/models/org/%s", root, id);
            snprintf(id, sizeof(id), "org/n%d", i);
            CHECK(try_lora(&x, id, 1) == 0, "%s", x.err.msg);
            CHECK(try_lora(&x, "org/good", 0.5f) == 0, "%s", x.err.msg);
            for (int k = 0; i == 0 && k < LORA_FILES_MAX; k++)
                if (x.shelf->file[k] && strcmp(x.shelf->file[k]->id, "org/good") == 0)
                    first = x.shelf->file[k]->number;
        }
        int good = 0, open = 0;
        for (int i = 0; i < LORA_FILES_MAX; i++) {
            const struct lora_file *file = x.shelf->file[i];
            open += file != NULL;
            good += file && strcmp(file->id, "org/good") == 0 && file->number == first;
        }
        CHECK(good == 1, "the one in use all the time was evicted");
        CHECK(open == LORA_FILES_MAX, "%d are open", open);
    }
    fixture_close(&x);
}

TEST_MAIN()
