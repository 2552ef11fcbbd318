/* latentd pull against a hub on loopback that breaks connections, lies and refuses. */
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <pty.h>
#include <regex.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fake_hub.h"

static char root[64], log_path[96], out_path[96], said[65536];
static const char *const *more_env; /* of the next pull */
static rlim_t file_limit;
enum { ARGS = 16 };

#define CACHE    "/models--org--name"
#define SNAPSHOT CACHE "/snapshots/" HUB_COMMIT

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

static void clean(void)
{
    nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    nftw(log_path, remove_one, 1, FTW_PHYS);
    nftw(out_path, remove_one, 1, FTW_PHYS);
}

/* A new scene with an empty MODEL_DIR. */
static void begin(void)
{
    static bool registered;

    hub_reset();
    if (!registered)
        atexit(clean);
    registered = true;
    if (*root)
        clean();
    snprintf(root, sizeof root, "/tmp/latentd-pull-%d", (int)getpid());
    snprintf(log_path, sizeof log_path, "%s.log", root);
    snprintf(out_path, sizeof out_path, "%s.out", root);
    more_env = NULL;
    file_limit = 0;
}

static const char *program(const char *name, char path[512])
{
    const char *bin = getenv("LATENTD_BIN");
    bin = bin ? bin : "build/latentd";
    const char *slash = strrchr(bin, '/');
    snprintf(path, 512, "%.*s%s", slash ? (int)(slash - bin) + 1 : 0, bin, name);
    return path;
}

static bool terminal_below; /* stderr is one, and stays */

static void become(char *const *args)
{
    char path[512], text[128];

    int err = open(log_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int out = open(out_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (!terminal_below)
        dup2(err, STDERR_FILENO);
    dup2(out, STDOUT_FILENO);
    unsetenv("HF_TOKEN");
    unsetenv("HF_TOKEN_PATH");
    unsetenv("HF_HOME");
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HF_HUB_OFFLINE");
    unsetenv("TRANSFORMERS_OFFLINE");
    unsetenv("http_proxy");
    setenv("HOME", "/nonexistent", 1);
    setenv("MODEL_DIR", root, 1);
    snprintf(text, sizeof text, "http://127.0.0.1:%d%s/", hub_start(), hub.prefix ? hub.prefix : "");
    setenv("HF_ENDPOINT", text, 1);
    for (int i = 0; more_env && more_env[i]; i++)
        putenv((char *)(size_t)more_env[i]);
    if (file_limit)
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){file_limit, file_limit});
    execv(program("latentd", path), args);
    _exit(127);
}

/* "latentd pull ARGS", words split at spaces. */
static pid_t start_pull(const char *words)
{
    static char copy[512];
    char *args[ARGS] = {"latentd", "pull"}, *save = NULL;
    int n = 2;

    hub_start();
    snprintf(copy, sizeof copy, "%s", words);
    for (char *w = strtok_r(copy, " ", &save); w && n < ARGS - 1; w = strtok_r(NULL, " ", &save))
        args[n++] = w;
    pid_t pid = fork();
    if (pid == 0)
        become(args);
    return pid;
}

static void read_said(void)
{
    FILE *f = fopen(log_path, "r");
    said[f ? fread(said, 1, sizeof said - 1, f) : 0] = '\0';
    if (f)
        fclose(f);
}

static int end_pull(pid_t pid)
{
    int status = 0;
    waitpid(pid, &status, 0);
    read_said();
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int pull(const char *words)
{
    return end_pull(start_pull(words));
}

static bool there(const char *name)
{
    char path[512];
    struct stat st;
    snprintf(path, sizeof path, "%s%s", root, name);
    return lstat(path, &st) == 0;
}

/* What NAME below MODEL_DIR holds is what the hub has under that name. */
static bool same(const char *name)
{
    char path[512];
    bool ok = false;

    snprintf(path, sizeof path, "%s" SNAPSHOT "/%s", root, name);
    FILE *f = fopen(path, "rb");
    for (int i = 0; f && i < hub.count; i++)
        if (strcmp(hub.files[i].name, name) == 0) {
            unsigned char *data = malloc((size_t)hub.files[i].size + 1);
            ok = fread(data, 1, (size_t)hub.files[i].size + 1, f) == (size_t)hub.files[i].size &&
                 memcmp(data, hub.files[i].data, (size_t)hub.files[i].size) == 0;
            free(data);
        }
    if (f)
        fclose(f);
    return ok;
}

static bool says(const char *words)
{
    if (strstr(said, words))
        return true;
    fprintf(stderr, "it says: %s\n", said);
    return false;
}

/* Nothing that the daemon or huggingface_hub would take for a model. */
static bool nothing_shown(void)
{
    return !there(SNAPSHOT) && !there(CACHE "/refs/main");
}

static const char lora[] = "pytorch_lora_weights.safetensors";

static void scene_lora(size_t size)
{
    begin();
    hub_add_noise(lora, size);
}

static const char index_json[] =
    "{\"_class_name\":\"StableDiffusionPipeline\",\"_diffusers_version\":\"0.1\",\"requires_safety_checker\":"
    "true,"
    "\"feature_extractor\":[null,null],\"safety_checker\":[null,null],"
    "\"scheduler\":[\"diffusers\",\"PNDMScheduler\"],\"text_encoder\":[\"transformers\",\"CLIPTextModel\"],"
    "\"tokenizer\":[\"transformers\",\"CLIPTokenizer\"],\"unet\":[\"diffusers\",\"UNet2DConditionModel\"],"
    "\"vae\":[\"diffusers\",\"AutoencoderKL\"]}";

static void scene_pipeline(void)
{
    static const char *const small[] = {"README.md",
                                        "scheduler/scheduler_config.json",
                                        "tokenizer/vocab.json",
                                        "tokenizer/merges.txt",
                                        "unet/config.json",
                                        "vae/config.json",
                                        "text_encoder/config.json",
                                        "safety_checker/config.json",
                                        "text_encoder_2/config.json"};
    static const char *const large[] = {"model.ckpt",
                                        "v1.safetensors",
                                        "text_encoder/model.safetensors",
                                        "text_encoder/model.fp16.safetensors",
                                        "text_encoder/pytorch_model.bin",
                                        "unet/diffusion_pytorch_model.fp16.safetensors",
                                        "unet/diffusion_pytorch_model.safetensors",
                                        "unet/diffusion_pytorch_model.non_ema.safetensors",
                                        "unet/diffusion_flax_model.msgpack",
                                        "vae/diffusion_pytorch_model.safetensors",
                                        "vae_1_0/diffusion_pytorch_model.safetensors",
                                        "text_encoder/model.onnx"};
    begin();
    hub_add("model_index.json", index_json, sizeof index_json - 1, false);
    for (size_t i = 0; i < sizeof small / sizeof *small; i++)
        hub_add(small[i], small[i], strlen(small[i]), false);
    for (size_t i = 0; i < sizeof large / sizeof *large; i++)
        hub_add_noise(large[i], 3000 + i);
}

TEST(layout_of_the_hub_cache)
{
    char path[512], text[512] = "";
    scene_pipeline();
    CHECK(pull("org/name --alone") == 0, "%s", said);
    CHECK(same("model_index.json") && same("unet/config.json") && same("tokenizer/merges.txt"));
    CHECK(same("unet/diffusion_pytorch_model.fp16.safetensors") &&
          same("vae/diffusion_pytorch_model.safetensors"));
    snprintf(path, sizeof path, "%s" SNAPSHOT "/unet/config.json", root);
    ssize_t n = readlink(path, text, sizeof text - 1);
    CHECK(n > 0 && strncmp(text, "../../../blobs/", 15) == 0, "%s", text);
    snprintf(path, sizeof path, "%s" CACHE "/refs/main", root);
    FILE *f = fopen(path, "r");
    if (CHECK(f)) {
        CHECK(fgets(text, sizeof text, f) && strcmp(text, HUB_COMMIT) == 0, "%s", text);
        fclose(f);
    }
}

TEST(only_the_files_needed)
{
    static const char *const not [] = {"README.md",
                                       "model.ckpt",
                                       "v1.safetensors",
                                       "text_encoder/model.safetensors",
                                       "text_encoder/pytorch_model.bin",
                                       "text_encoder/model.onnx",
                                       "unet/diffusion_pytorch_model.safetensors",
                                       "unet/diffusion_pytorch_model.non_ema.safetensors",
                                       "unet/diffusion_flax_model.msgpack",
                                       "safety_checker/config.json",
                                       "vae_1_0/diffusion_pytorch_model.safetensors"};
    scene_pipeline();
    CHECK(pull("org/name --alone") == 0, "%s", said);
    for (size_t i = 0; i < sizeof not / sizeof *not ; i++)
        CHECK(!same(not [i]), "%s", not [i]);
    CHECK(hub.bodies == 10 + 1, "%d bodies, of which one to read the index", hub.bodies);
    CHECK(pull("org/name --alone --variant none") == 0, "%s", said);
    CHECK(same("unet/diffusion_pytorch_model.safetensors") &&
          !same("unet/diffusion_pytorch_model.non_ema.safetensors"));
}

TEST(a_second_pull_fetches_nothing)
{
    scene_lora(300000);
    CHECK(pull("org/name") == 0, "%s", said);
    CHECK(hub.bodies == 1 && hub.sent == 300000);
    CHECK(pull("org/name") == 0, "%s", said);
    CHECK(hub.bodies == 1 && says("everything is there"));
}

TEST(patterns_and_all)
{
    scene_pipeline();
    CHECK(pull("org/name --include vae*/* --include README.md") == 0, "%s", said);
    CHECK(same("vae/config.json") && same("vae_1_0/diffusion_pytorch_model.safetensors") &&
          same("README.md"));
    CHECK(!same("unet/config.json"));
    CHECK(pull("org/name --all --alone") == 0, "%s", said);
    CHECK(same("unet/diffusion_flax_model.msgpack") && same("unet/config.json"));
    CHECK(pull("org/name --include nothing.json") == 1 && says("has no file nothing.json"));
}

TEST(pickles_alone_are_refused)
{
    begin();
    hub_add("config.json", "{}", 2, false);
    hub_add_noise("pytorch_model.bin", 1000);
    CHECK(pull("org/name") == 1 && says("pickles only") && hub.bodies == 0);
}

TEST(several_files_to_choose_from)
{
    begin();
    hub_add_noise("a.safetensors", 1000);
    hub_add_noise("b.safetensors", 1000);
    CHECK(pull("org/name") == 1 && says("a.safetensors, b.safetensors"));
    CHECK(pull("org/name/b.safetensors") == 0, "%s", said);
    CHECK(same("b.safetensors") && !same("a.safetensors"));
}

TEST(lightning_by_steps)
{
    begin();
    hub_add_noise("sdxl_lightning_4step_unet.safetensors", 1000);
    hub_add_noise("sdxl_lightning_8step_unet.safetensors", 1000);
    hub_add_noise("sdxl_lightning_4step.safetensors", 1000);
    CHECK(pull("ByteDance/SDXL-Lightning-4step --alone") == 0, "%s", said);
    CHECK(hub.bodies == 1);
    CHECK(there("/models--ByteDance--SDXL-Lightning/snapshots/" HUB_COMMIT
                "/sdxl_lightning_4step_unet.safetensors"));
}

#define BASE "/models--stabilityai--stable-diffusion-xl-base-1.0/snapshots/" HUB_COMMIT

TEST(what_a_model_needs_comes_with_it)
{
    scene_pipeline();
    hub_add_noise("vae/diffusion_pytorch_model.fp16.safetensors", 1000);
    hub_add_noise("sdxl_lightning_8step_unet.safetensors", 1000);
    CHECK(pull("org/name") == 0 && there("/models--CompVis--stable-diffusion-safety-checker/refs/main"), "%s",
          said);
    CHECK(pull("ByteDance/SDXL-Lightning") == 0, "%s", said);
    CHECK(there(BASE "/unet/config.json") && there(BASE "/vae/diffusion_pytorch_model.fp16.safetensors"));
    CHECK(there(BASE "/tokenizer/merges.txt") && there(BASE "/text_encoder/model.fp16.safetensors"));
    CHECK(!there(BASE "/unet/diffusion_pytorch_model.fp16.safetensors"));
    CHECK(!there("/models--ByteDance--SDXL-Lightning/snapshots/" HUB_COMMIT "/model_index.json"));
}

TEST(broken_connections_are_resumed)
{
    scene_lora(3000000);
    hub.cut_at = 1200000; /* more than what counts as progress */
    hub.cuts = 2;
    CHECK(pull("org/name") == 0, "%s", said);
    CHECK(same(lora) && hub.bodies == 3 && hub.ranges == 2, "%d bodies, %d ranges", hub.bodies, hub.ranges);
    CHECK(hub.sent == 3000000, "%lld bytes were sent", (long long)hub.sent);
}

TEST(a_connection_that_always_breaks)
{
    scene_lora(3000000);
    hub.cut_at = 1000;
    hub.cuts = 1000;
    CHECK(pull("org/name --retries 1") == 1 && says("goes on from there") && nothing_shown());
    CHECK(hub.bodies == 2);
    hub.cuts = 0;
    CHECK(pull("org/name") == 0 && same(lora) && hub.sent == 3000000, "%lld", (long long)hub.sent);
}

TEST(a_server_without_ranges)
{
    scene_lora(3000000);
    hub.cut_at = 1200000;
    hub.cuts = 1;
    hub.no_ranges = true;
    CHECK(pull("org/name") == 0 && same(lora), "%s", said);
    CHECK(hub.ranges == 0 && hub.bodies == 2);
}

TEST(wrong_digests)
{
    scene_lora(300000);
    hub.corrupt = 1;
    CHECK(pull("org/name") == 0 && same(lora) && says("the digest is wrong"));
    scene_lora(300000);
    hub.corrupt = 100;
    CHECK(pull("org/name") == 1 && says("SHA-256") && nothing_shown() && hub.bodies == 2);
    hub.corrupt = 0;
    CHECK(pull("org/name") == 0 && same(lora));
}

TEST(a_wrong_digest_of_git)
{
    begin();
    hub_add("config.json", "{}", 2, false);
    hub.files[0].data = (const unsigned char *)"[]";
    CHECK(pull("org/name") == 1 && says("git SHA-1") && nothing_shown());
}

TEST(wrong_sizes)
{
    scene_lora(300000);
    hub.size_off = 1;
    CHECK(pull("org/name") == 1 && says("lists 300001 bytes and sends 300000") && nothing_shown());
    hub.size_off = -1;
    CHECK(pull("org/name") == 1 && says("lists 299999 bytes and sends 300000") && nothing_shown());
}

TEST(what_an_earlier_pull_left_is_checked)
{
    char path[512];
    scene_lora(300000);
    CHECK(pull("org/name --retries 0 --dry-run") == 0 && !there(CACHE));
    snprintf(path, sizeof path,
             "mkdir -p %s" CACHE "/blobs && head -c 1000 /dev/zero > %s" CACHE "/blobs/%s.incomplete", root,
             root, hub.files[0].digest);
    CHECK(system(path) == 0);
    CHECK(pull("org/name") == 0 && same(lora) && says("the digest is wrong"));
    CHECK(hub.ranges == 1 && hub.bodies == 2);
}

TEST(the_token_goes_to_the_hub_alone)
{
    static const char *const env[] = {"HF_TOKEN=secret", NULL};
    scene_lora(300000);
    hub.redirect = true;
    more_env = env;
    CHECK(pull("org/name") == 0 && same(lora), "%s", said);
    CHECK(hub.tokens_at_hub == 2 && hub.tokens_at_storage == 0, "%d at the hub, %d at its storage",
          hub.tokens_at_hub, hub.tokens_at_storage);
    CHECK(!strstr(said, "secret"));
}

/* As huggingface_hub looks for what `hf auth login` stored. */
TEST(the_stored_token_is_found)
{
    static const char *const places[][4] = {
        {".cache/huggingface/token"},
        {"xdg/huggingface/token", "XDG_CACHE_HOME=%s/xdg"},
        {"hf/token", "XDG_CACHE_HOME=%s/xdg", "HF_HOME=%s/hf"},
        {"hf/token", "HF_HOME=~/hf"},
        {"secret", "HF_HOME=", "HF_TOKEN_PATH=~/secret"},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char text[4][200], command[600];
        const char *env[5] = {text[0], NULL};
        scene_lora(1000);
        snprintf(text[0], sizeof text[0], "HOME=%s", root);
        for (int k = 1; k < 4 && places[i][k]; k++) {
            const char *at = strstr(places[i][k], "%s");
            snprintf(text[k], sizeof text[k], "%.*s%s%s", (int)strcspn(places[i][k], "%"), places[i][k],
                     at ? root : "", at ? at + 2 : "");
            env[k] = text[k];
            env[k + 1] = NULL;
        }
        snprintf(command, sizeof command, "f=%s/%s; mkdir -p ${f%%/*} && echo secret >$f", root,
                 places[i][0]);
        CHECK(system(command) == 0);
        more_env = env;
        CHECK(pull("org/name") == 0 && hub.tokens_at_hub == 2, "%s: %d", places[i][0], hub.tokens_at_hub);
    }
    more_env = NULL;
}

TEST(resumes_behind_a_redirect)
{
    scene_lora(3000000);
    hub.redirect = true;
    hub.cut_at = 1200000;
    hub.cuts = 1;
    CHECK(pull("org/name") == 0 && same(lora) && hub.ranges == 1 && hub.sent == 3000000, "%s", said);
}

TEST(gated_models)
{
    static const char *const env[] = {"HF_TOKEN=secret", NULL};
    scene_pipeline();
    hub.file_error = 401;
    hub.file_errors = 100;
    hub.error_headers = "X-Error-Code: GatedRepo\r\n";
    CHECK(pull("org/name") == 1 && says("is gated: accept its licence at http://127.0.0.1") &&
          says("HF_TOKEN"));
    hub.file_error = 403;
    more_env = env;
    CHECK(pull("org/name") == 1 && says("accept its licence") && !strstr(said, "secret") && nothing_shown());
    hub.file_error = 401;
    hub.error_headers = NULL;
    CHECK(pull("org/name") == 1 && says("does not know this token"));
}

TEST(not_found)
{
    scene_lora(1000);
    hub.list_error = 401; /* so the hub answers those without a token */
    hub.list_errors = 1;
    hub.error_headers = "X-Error-Code: RepoNotFound\r\n";
    CHECK(pull("org/name") == 1 && says("no public model org/name"));
    hub.list_error = 404;
    hub.list_errors = 1;
    CHECK(pull("org/name") == 1 && says("no public model org/name"));
    hub.list_errors = 1;
    hub.error_headers = "X-Error-Code: RevisionNotFound\r\n";
    CHECK(pull("org/name --revision nope") == 1 && says("no such revision"));
}

TEST(too_many_requests)
{
    struct timespec a, b;
    scene_lora(1000);
    hub.list_error = 429;
    hub.list_errors = 1;
    hub.error_headers = "Retry-After: 2\r\n";
    clock_gettime(CLOCK_MONOTONIC, &a);
    CHECK(pull("org/name") == 0 && same(lora), "%s", said);
    clock_gettime(CLOCK_MONOTONIC, &b);
    CHECK((double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec) > 1.9);
    hub.list_errors = 1;
    hub.error_headers = "Retry-After: 7200\r\n";
    CHECK(pull("org/name") == 1 && says("120 minutes"));
    hub.list_errors = 1;
    hub.error_headers = NULL;
    CHECK(pull("org/name --retries 0") == 1 && says("too many requests"));
}

TEST(errors_of_the_hub_pass)
{
    scene_lora(1000);
    hub.list_error = 500;
    hub.list_errors = 1;
    hub.file_error = 503;
    hub.file_errors = 1;
    CHECK(pull("org/name") == 0 && same(lora), "%s", said);
    scene_lora(1000);
    hub.file_error = 500;
    hub.file_errors = 100;
    CHECK(pull("org/name --retries 1") == 1 && says("answers 500") && nothing_shown());
}

TEST(no_hub_at_all)
{
    static const char *const env[] = {"HF_ENDPOINT=http://127.0.0.1:9", NULL};
    scene_lora(1000);
    more_env = env;
    CHECK(pull("org/name --retries 0") == 1 && says("HF_ENDPOINT"));
    static const char *const nowhere[] = {"HF_ENDPOINT=http://no-such-host.invalid", NULL};
    more_env = nowhere; /* the second try is one like the first */
    CHECK(pull("org/name --retries 1") == 1 && says("resolve host"));
}

TEST(a_file_larger_than_allowed)
{
    scene_lora(3000000);
    file_limit = 1000000;
    CHECK(pull("org/name") == 1 && says("ulimit -f") && nothing_shown());
    file_limit = 0;
    CHECK(pull("org/name") == 0 && same(lora) && hub.ranges == 1, "%s", said);
}

TEST(a_full_disk)
{
    scene_lora(3000000);
    mkdir(root, 0700);
    if (mount("none", root, "tmpfs", 0, "size=1m") != 0) {
        SKIP("no tmpfs can be mounted here, so no disk can be full");
    }
    CHECK(pull("org/name") == 1 && says("has room for") && nothing_shown() && hub.bodies == 0);
    hub.no_blobs = true; /* the sizes come too late to count them beforehand */
    CHECK(pull("org/name") == 1 && says("the disk is full") && nothing_shown());
    CHECK(mount("none", root, "tmpfs", MS_REMOUNT, "size=8m") == 0);
    CHECK(pull("org/name") == 0 && same(lora) && hub.ranges == 1, "%s", said);
    CHECK(umount2(root, MNT_DETACH) == 0);
}

/* Waits until the hub holds a body back. */
static bool held(void)
{
    for (int i = 0; i < 3000 && !hub.held; i++)
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    return hub.held;
}

/* Waits until half of what the hub has sent is on the disk: sent is not yet received. */
static bool partly_there(void)
{
    char pattern[600];
    snprintf(pattern, sizeof pattern, "%s/models--*/blobs/*.incomplete", root);
    for (int i = 0; i < 3000; i++) {
        glob_t found = {0};
        struct stat st = {0};
        bool there_now = glob(pattern, 0, NULL, &found) == 0 && stat(found.gl_pathv[0], &st) == 0;
        globfree(&found);
        if (there_now && st.st_size >= 1000000)
            return true;
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    return false;
}

TEST(killed_in_the_middle)
{
    scene_lora(3000000);
    hub_add("adapter_config.json", "{}", 2, false);
    hub.hold_at = 2000000;
    pid_t pid = start_pull("org/name");
    CHECK(held() && partly_there());
    kill(pid, SIGKILL);
    CHECK(end_pull(pid) == 128 + SIGKILL && nothing_shown());
    CHECK(hub_quiet()); /* a thread of the first transfer would count into the second */
    hub.hold_at = 0;
    int64_t before = hub.sent;
    CHECK(pull("org/name") == 0 && same(lora) && same("adapter_config.json"), "%s", said);
    CHECK(hub.ranges == 1 && hub.sent - before < 3000000, "%lld", (long long)(hub.sent - before));
}

TEST(four_files_at_the_same_time)
{
    begin();
    hub_add("config.json", "{}", 2, false);
    for (int i = 1; i <= 6; i++) {
        char name[64];
        snprintf(name, sizeof name, "model-0000%d-of-00006.safetensors", i);
        hub_add_noise(name, 100000);
    }
    hub.hold_at = 50000;
    pid_t pid = start_pull("org/name --all");
    for (int i = 0; i < 3000 && hub.holding < 4; i++)
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    CHECK(hub.holding == 4, "%d files come", hub.holding);
    hub.hold_at = 0;
    CHECK(end_pull(pid) == 0, "%s", said);
}

/* What `latentd pull org/name` draws on a terminal, into SAID; the hub holds its body back for a while. */
static int pull_on_terminal(void)
{
    static char *const args[] = {"latentd", "pull", "org/name", NULL};
    int terminal = -1, status = 0;
    size_t n = 0;
    ssize_t got;
    pid_t pid = forkpty(&terminal, NULL, NULL, NULL);
    if (pid == 0) {
        terminal_below = true;
        become(args);
    }
    CHECK(held());
    nanosleep(&(struct timespec){2, 0}, NULL);
    hub.hold_at = 0;
    while (n < sizeof said - 1 && (got = read(terminal, said + n, sizeof said - 1 - n)) > 0)
        n += (size_t)got;
    said[n] = '\0';
    close(terminal);
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

TEST(a_bar_with_rate_and_time_left)
{
    scene_lora(3000000);
    hub.hold_at = 1500000;
    CHECK(pull_on_terminal() == 0 && same(lora), "%s", said);
    regex_t bar;
    CHECK(regcomp(&bar,
                  "\r\\[#+\\.+\\] +[0-9]+ %  [0-9.]+ [kM]?B of [0-9.]+ [kM]B  [0-9.]+ [kM]?B/s  ETA "
                  "[0-9]+:[0-9]{2}",
                  REG_EXTENDED | REG_NOSUB) == 0);
    CHECK(regexec(&bar, said, 0, NULL, 0) == 0, "%s", said);
    regfree(&bar);
    const char *last = strrchr(said, '\r');
    CHECK(last && !strchr(last, '#'), "the bar is left behind: %s", said);
}

TEST(two_at_once)
{
    scene_lora(3000000);
    hub.hold_at = 2000000;
    pid_t a = start_pull("org/name");
    CHECK(held());
    pid_t b = start_pull("org/name");
    for (int i = 0; i < 3000 && hub.lists < 2; i++)
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    hub.hold_at = 0;
    CHECK(end_pull(a) == 0);
    CHECK(end_pull(b) == 0, "%s", said);
    CHECK(same(lora) && hub.sent == 3000000 && hub.bodies == 1, "%d bodies", hub.bodies);
}

TEST(hostile_names)
{
    static const char *const names[] = {"../../../evil", "/tmp/evil", "a/../../evil", "a//b", "..",
                                        "a\\\\..\\\\b",  "./x",       "a/\\u001b[2J", "",     "a/."};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        scene_lora(1000);
        hub.raw_name = names[i];
        CHECK(pull("org/name --all") == 1 && says("does not stay in its folder"), "%s", names[i]);
        CHECK(hub.bodies == 0 && nothing_shown());
    }
}

TEST(hostile_ids)
{
    scene_lora(1000);
    CHECK(pull("../name") == 1 && says("is not a model id"));
    CHECK(pull("org/..") == 1 && says("is not a model id"));
    CHECK(pull("org/name --revision ../../x") == 1 && says("is not a revision"));
    CHECK(hub.lists == 0);
}

TEST(an_endpoint_with_a_path)
{
    scene_lora(1000);
    hub.prefix = "/mirror/hf";
    CHECK(pull("org/name") == 0 && same(lora), "%s", said);
}

TEST(a_mirror_without_sizes)
{
    scene_lora(300000);
    hub_add("adapter_config.json", "{}", 2, false);
    hub.no_blobs = true;
    CHECK(pull("org/name") == 0 && same(lora) && same("adapter_config.json"), "%s", said);
    hub.redirect = true;
    CHECK(pull("org/name") == 0 && hub.bodies == 2, "%s", said);
}

TEST(revisions)
{
    scene_lora(1000);
    CHECK(pull("org/name --revision refs/pr/1") == 0 && there(CACHE "/refs/refs/pr/1") &&
          !there(CACHE "/refs/main"));
    CHECK(pull("org/name --revision " HUB_COMMIT) == 0 && !there(CACHE "/refs/" HUB_COMMIT));
}

#define MOVED "89abcdef0123456789abcdef0123456789abcdef"

/* One file is pulled again after the repository moved on. What is as it was stays in sight of the daemon;
 * what changed and was not pulled is named. */
TEST(a_part_of_a_repository_that_moved)
{
    scene_pipeline();
    CHECK(pull("org/name --alone") == 0, "%s", said);
    hub.commit = MOVED;
    hub_add("vae/config.json", "changed too", 11, false);
    for (int i = 0; i < hub.count - 1; i++)
        if (strcmp(hub.files[i].name, "vae/config.json") == 0)
            hub.files[i] = hub.files[--hub.count];
    int before = hub.bodies;
    CHECK(pull("org/name/v1.safetensors --alone") == 0, "%s", said);
    CHECK(hub.bodies == before + 1, "%d more bodies", hub.bodies - before);
    CHECK(there(CACHE "/snapshots/" MOVED "/v1.safetensors") &&
          there(CACHE "/snapshots/" MOVED "/model_index.json") &&
          there(CACHE "/snapshots/" MOVED "/unet/diffusion_pytorch_model.fp16.safetensors"));
    CHECK(!there(CACHE "/snapshots/" MOVED "/vae/config.json") &&
          !there(CACHE "/snapshots/" MOVED "/model.ckpt"));
    CHECK(says("note: vae/config.json of org/name changed upstream"));
    CHECK(pull("org/name --alone") == 0 && there(CACHE "/snapshots/" MOVED "/vae/config.json"));
    CHECK(!strstr(said, "note:"), "%s", said);
}

TEST(offline)
{
    static const char *const env[] = {"HF_HUB_OFFLINE=1", NULL};
    scene_lora(1000);
    more_env = env;
    CHECK(pull("org/name") == 1 && says("HF_HUB_OFFLINE is set") && hub.lists == 0);
    more_env = NULL;
    CHECK(pull("org/name") == 0);
    more_env = env;
    CHECK(pull("org/name") == 0 && hub.lists == 1);
}

TEST(words_of_the_command)
{
    scene_lora(1000);
    CHECK(pull("--help") == 0);
    CHECK(pull("") == 2 && pull("org/name --nonsense") == 2 && pull("org/name --variant fp8") == 2);
    CHECK(pull("org/name --quiet") == 0 && !*said, "%s", said);
}

static void add_from(const char *folder, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!CHECK(f && fstat(fileno(f), &st) == 0, "%s", path))
        return;
    char *data = malloc((size_t)st.st_size);
    CHECK(fread(data, 1, (size_t)st.st_size, f) == (size_t)st.st_size);
    fclose(f);
    hub_add(name, data, (size_t)st.st_size, st.st_size > 100000); /* kept until the end of the program */
}

/* ---- scripts/dl_checkpoints.sh ---- */

/* Runs the script with ARGUMENTS over a program that only writes down what it is called with, and fails for
 * names with FAILS in them. What the script says and what it calls are in SAID. Returns the exit status. */
static int dl_checkpoints(const char *arguments, const char *fails)
{
    char command[1200];
    mkdir(root, 0700);
    snprintf(command, sizeof command,
             "printf '#!/bin/sh\\necho \"CALL MODEL_DIR=$MODEL_DIR $*\"\\ncase $* in *%s*) exit 1;; esac\\n' "
             ">%s/stub && "
             "chmod +x %s/stub && LATENTD=%s/stub MODEL_DIR=%s/shelf scripts/dl_checkpoints.sh %s >%s 2>&1",
             fails, root, root, root, root, arguments, log_path);
    int status = system(command);
    read_said();
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool calls(const char *id)
{
    char text[200];
    snprintf(text, sizeof text, "shelf pull %s ", id);
    return strstr(said, text) != NULL;
}

/* What the ai-runner's lists have of the pipelines that latentd serves, and what they forget. */
static const char *const beta[] = {"SG161222/RealVisXL_V4.0_Lightning",
                                   "ByteDance/SDXL-Lightning",
                                   "timbrooks/instruct-pix2pix",
                                   "stabilityai/stable-diffusion-x4-upscaler",
                                   "stabilityai/stable-video-diffusion-img2vid-xt-1-1",
                                   "CompVis/stable-diffusion-safety-checker",
                                   "openai/clip-vit-base-patch32",
                                   "stabilityai/stable-diffusion-xl-base-1.0"},
                         *const others[] = {"stabilityai/sd-turbo",
                                            "stabilityai/sdxl-turbo",
                                            "stable-diffusion-v1-5/stable-diffusion-v1-5",
                                            "prompthero/openjourney-v4",
                                            "SG161222/RealVisXL_V4.0",
                                            "SG161222/Realistic_Vision_V6.0_B1_noVAE",
                                            "stabilityai/sd-vae-ft-ema",
                                            "stabilityai/stable-video-diffusion-img2vid-xt"};
enum { BETA = sizeof beta / sizeof *beta, OTHERS = sizeof others / sizeof *others };

TEST(dl_checkpoints_by_its_flags)
{
    begin();
    CHECK(dl_checkpoints("--beta", "none") == 0, "%s", said);
    for (int i = 0; i < BETA; i++)
        CHECK(calls(beta[i]), "%s: %s", beta[i], said);
    for (int i = 0; i < OTHERS; i++)
        CHECK(!calls(others[i]), "%s: %s", others[i], said);
    CHECK(strstr(said, "SDXL-Lightning --include sdxl_lightning_[248]step_unet.safetensors"), "%s", said);
    CHECK(dl_checkpoints("", "none") == 0, "%s", said);
    for (int i = 0; i < BETA; i++)
        CHECK(calls(beta[i]), "%s: %s", beta[i], said);
    for (int i = 0; i < OTHERS; i++)
        CHECK(calls(others[i]), "%s: %s", others[i], said);
    CHECK(dl_checkpoints("--restricted", "none") == 0 && !strstr(said, "CALL") && says("latentd serves"));
    CHECK(dl_checkpoints("--batch", "none") == 0 && !strstr(said, "CALL") && says("latentd serves"));
    CHECK(dl_checkpoints("--restricted --beta", "none") == 0 && calls(beta[0]), "the last one counts: %s",
          said);
    CHECK(dl_checkpoints("--beta --dry-run", "none") == 0 && strstr(said, "--dry-run"), "%s", said);
}

TEST(dl_checkpoints_goes_on_behind_a_gated_model)
{
    begin();
    CHECK(dl_checkpoints("", "img2vid-xt-1-1") == 1 && calls("stabilityai/stable-video-diffusion-img2vid-xt"),
          "%s", said);
    CHECK(says("not fetched: stabilityai/stable-video-diffusion-img2vid-xt-1-1\n"));
}

TEST(words_of_dl_checkpoints)
{
    begin();
    CHECK(dl_checkpoints("--help", "none") == 0 && says("usage: ") && says("HF_TOKEN") &&
          !strstr(said, "CALL"));
    CHECK(dl_checkpoints("--nonsense", "none") == 2 && says("--nonsense is unknown") &&
          !strstr(said, "CALL"));
    CHECK(dl_checkpoints("--live", "none") == 2 && says("no live pipelines"));
}

TEST(what_was_pulled_makes_a_picture)
{
    static const char *const names[] = {"model_index.json",
                                        "scheduler/scheduler_config.json",
                                        "text_encoder/config.json",
                                        "text_encoder/model.safetensors",
                                        "tokenizer/merges.txt",
                                        "tokenizer/special_tokens_map.json",
                                        "tokenizer/tokenizer_config.json",
                                        "tokenizer/vocab.json",
                                        "unet/config.json",
                                        "unet/diffusion_pytorch_model.safetensors",
                                        "vae/config.json",
                                        "vae/diffusion_pytorch_model.safetensors",
                                        "README.md"};
    char command[1400], bin[512], where[128];
    begin();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        add_from("models/latentd/emoji", names[i]);
    CHECK(pull("org/name --alone") == 0 && !same("README.md"), "%s", said);
    snprintf(where, sizeof where, "%s/x.png", root);
    snprintf(command, sizeof command,
             "MODEL_DIR=%s %s generate 'red heart' --model_id org/name --steps 2 --seed 1 -o %s >%s 2>&1",
             root, program("latentd", bin), where, log_path);
    CHECK(system(command) == 0);
    read_said();
    CHECK(there("/x.png"), "%s", said);
    const void *kept[HUB_FILES];
    int count = hub.count;
    for (int i = 0; i < count; i++)
        kept[i] = hub.files[i].data;
    hub_reset();
    for (int i = 0; i < count; i++)
        free((void *)(size_t)kept[i]);
}

TEST_MAIN()
