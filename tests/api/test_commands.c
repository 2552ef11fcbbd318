/* The commands: latentd generate gives the picture that the daemon gives, errors say what is wrong and leave
 * what was there, and the small ones answer. (bench and pull have tests of their own.) */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "buffer.h"
#include "client.h"
#include "test.h"

static char folder[] = "/tmp/latentd-test-XXXXXX";

struct outcome {
    int status;
    char text[8192]; /* stdout and stderr together */
};

/* Runs "latentd ARGS" with the tiny model; in ARGS $F is a folder of this test, $L the program. */
static struct outcome run(const char *args)
{
    static struct outcome o;
    char command[2000];
    const char *bin = getenv("LATENTD_BIN");
    snprintf(command, sizeof command,
             "F=%s L=%s MODEL_DIR=" TINY_DIR " MODEL_ID=" TINY_ID
             " PIPELINE=text-to-image; export F MODEL_DIR MODEL_ID "
             "PIPELINE; $L %s 2>&1",
             folder, bin ? bin : "build/latentd", args);
    FILE *p = popen(command, "r");
    memset(&o, 0, sizeof o);
    if (!p)
        abort();
    size_t len = fread(o.text, 1, sizeof o.text - 1, p);
    o.text[len] = '\0';
    while (fgetc(p) != EOF)
        ;
    int status = pclose(p);
    o.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return o;
}

static void says(const char *args, int status, const char *words)
{
    struct outcome o = run(args);
    CHECK(o.status == status && strstr(o.text, words), "latentd %s: status %d, \"%s\" in:\n%.600s", args,
          o.status, words, o.text);
}

static bool exists(const char *name)
{
    char path[100];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

static struct buffer read_all(const char *name)
{
    char path[100];
    static char bytes[1 << 18];
    struct buffer b = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    size_t len = f ? fread(bytes, 1, sizeof bytes, f) : 0;
    if (f)
        fclose(f);
    buffer_add(&b, bytes, len);
    return b;
}

static void write_text(const char *name, const char *text)
{
    char path[100];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f || fputs(text, f) < 0 || fclose(f) != 0)
        abort();
}

static void begin(void)
{
    strcpy(folder, "/tmp/latentd-test-XXXXXX");
    if (!mkdtemp(folder))
        abort();
}

static void end(void)
{
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    CHECK(system(command) == 0);
}

TEST(generate_makes_the_daemons_picture)
{
    struct daemon d;
    begin();
    says("generate 'a cat' -o $F/a.png --seed 5 --steps 3 --guidance 2 --negative dog", 0,
         "a.png: 32 x 32, seed 5");
    says("generate 'a cat' -o $F/b.png --seed 5 --steps 3 --guidance 2 --negative dog --width 64 --height 40",
         0, "64 x 40");
    says("generate 'a cat' --image $F/b.png --strength 0.5 --seed 5 --steps 3 -o $F/c.png", 0, "64 x 40");
    struct buffer a = read_all("a.png"), b = read_all("b.png");
    if (CHECK(daemon_ready(&d, NULL))) {
        struct answer got = client_ask(
            &d, "POST", "/text-to-image", "Content-Type: application/json\r\nAccept: image/png\r\n",
            "{\"prompt\":\"a cat\",\"negative_prompt\":\"dog\",\"seed\":5,\"num_inference_steps\":3,"
            "\"guidance_scale\":2}");
        CHECK(got.status == 200 && got.len == a.len && memcmp(got.body, a.data, a.len) == 0,
              "status %d, %zu and %zu bytes", got.status, got.len, a.len);
        answer_free(&got);
    }
    CHECK(daemon_end(&d, SIGTERM, 8) == 0);
    CHECK(b.len > 0 && !exists("a.png.part"));
    buffer_free(&a);
    buffer_free(&b);
    end();
}

/* Neither variable needs the other here, as it does where the daemon serves. */
TEST(generate_with_one_of_model_id_and_pipeline)
{
#define AGAIN "${LATENTD_BIN:-build/latentd} generate a -o $F/a.png --steps 1"
    begin();
    says("--version; unset MODEL_ID; " AGAIN " --model_id " TINY_ID, 0, "32 x 32");
    says("--version; unset PIPELINE; " AGAIN, 0, "32 x 32");
    end();
}

TEST(generate_without_room_for_its_output)
{
    char command[300];
    begin();
    says("generate a -o /dev/full --steps 1", 1, "/dev/full cannot be written: No space left on device");
    says("generate a -o $F/none/a.png --steps 1", 1,
         "none/a.png cannot be written: No such file or directory");
    says("generate a -o $F --steps 1", 1, "cannot be written: Is a directory");
    /* a disk that fills up while the file is written: what was there before stays */
    write_text("old.png", "what was there");
    snprintf(command, sizeof command, "ln -s /dev/full %s/old.png.part", folder);
    CHECK(system(command) == 0);
    says("generate a -o $F/old.png --steps 1", 1, "old.png cannot be written: No space left on device");
    struct buffer old = read_all("old.png");
    CHECK(old.len == 14 && memcmp(old.data, "what was there", 14) == 0 && !exists("old.png.part"));
    buffer_free(&old);
    end();
}

static bool same_bytes(const char *one, const char *other)
{
    struct buffer a = read_all(one), b = read_all(other);
    bool same = a.len > 0 && a.len == b.len && memcmp(a.data, b.data, a.len) == 0;
    buffer_free(&a);
    buffer_free(&b);
    return same;
}

/* The picture alone goes to stdout: to a pipe, and behind what a file holds. */
TEST(generate_writes_to_stdout)
{
    struct buffer said;
    begin();
    says("generate a -o $F/a.png --seed 5 --steps 1; (printf x; cat $F/a.png) >$F/xa.png", 0, "");
    says("generate a -o /dev/stdout --seed 5 --steps 1 2>$F/said | cat >$F/b.png", 0, "");
    CHECK(same_bytes("a.png", "b.png"));
    said = read_all("said");
    CHECK(said.len && strstr(said.data, "/dev/stdout: 32 x 32, seed 5"), "%s", said.len ? said.data : "");
    buffer_free(&said);
    write_text("xb.png", "x");
    says("generate a -o /dev/fd/1 --seed 5 --steps 1 2>$F/said >>$F/xb.png; true", 0, "");
    CHECK(same_bytes("xa.png", "xb.png"));
    end();
}

TEST(generate_reads_its_picture_from_a_pipe)
{
    begin();
    says("generate a -o $F/in.png --seed 5 --steps 1", 0, "");
    says("generate a --image $F/in.png -o $F/a.png --seed 6 --steps 2", 0, "32 x 32");
    says("--version; cat $F/in.png | $L generate a --image /dev/stdin -o $F/b.png --seed 6 --steps 2", 0,
         "32 x 32");
    CHECK(same_bytes("a.png", "b.png"));
    says("generate a --image /dev/zero -o $F/c.png", 1,
         "/dev/zero cannot be read: it is larger than 256 MiB");
    says("generate a --image $F -o $F/c.png", 1, "cannot be read: Is a directory");
    end();
}

TEST(generate_says_what_is_wrong)
{
    begin();
    says("generate", 2, "usage: latentd generate");
    says("generate a", 2, "usage: latentd generate");
    says("generate --help", 0, "(default: 50; video: 25; upscale: 75; instruct-pix2pix: 100;");
    says("generate a -o", 2, "-o");
    says("generate a -o $F/a.png --colour red", 2, "--colour is unknown");
    says("generate a -o $F/a.png --steps many", 2, "--steps");
    says("generate a -o $F/a.png --width 13", 1, "divisible by 8");
    says("generate a -o $F/a.png --model_id latentd/absent", 1, "latentd/absent");
    says("generate a -o $F/a.png --model_id ../../etc", 1, "etc");
    says("generate a -o $F/a.png --isa sse9", 1, "sse9");
    says("generate a -o $F/a.png --precision int4", 1,
         "--precision is \"int4\", accepted are int8, bf16 and fp32");
    says("kernels --precision", 2, "--precision needs a value");
    says("generate a -o $F/a.png --image $F/none.png", 1,
         "none.png cannot be read: No such file or directory");
    write_text("text.png", "not a picture");
    says("generate a -o $F/a.png --image $F/text.png", 1, "text.png: ");
    says("generate a -o $F/a.png --image $F/text.png --strength 1.5", 1, "");
    says("generate '\xff' -o $F/a.png --steps 1", 1, "UTF-8");
    CHECK(!exists("a.png") && !exists("a.png.part"));
    end();
}

/* "latentd ARGS" as process 1 of a namespace; -1 where that is not permitted. */
static pid_t start_as_first(const char *args)
{
    char command[600];
    const char *bin = getenv("LATENTD_BIN");
    snprintf(command, sizeof command,
             "F=%s; exec env MODEL_DIR=" TINY_DIR " MODEL_ID=" TINY_ID
             " PIPELINE=text-to-image %s %s >/dev/null 2>&1",
             folder, bin ? bin : "build/latentd", args);
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
    if (pid < 0)
        pid = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    return pid;
}

/* Sends SIG until the process ends, since it drops the first while it starts. Returns its exit status; -1: it
 * did not end. */
static int end_first(pid_t pid, int sig)
{
    int status = -1;
    double end = now_seconds() + 10;
    while (now_seconds() < end) {
        kill(pid, sig);
        sleep_seconds(0.05);
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return -1;
}

TEST(signals_end_a_command_that_is_process_1)
{
    static const struct {
        const char *args;
        int sig, status;
    } cases[] = {{"bench --runs 10000 --num_inference_steps 900", SIGTERM, 143},
                 {"bench --runs 10000 --num_inference_steps 900", SIGINT, 130},
                 {"generate a --image $F/pipe -o $F/a.png", SIGTERM, 143}};
    char command[100];
    begin();
    snprintf(command, sizeof command, "mkfifo %s/pipe", folder); /* from which no picture ever comes */
    CHECK(system(command) == 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pid_t pid = start_as_first(cases[i].args);
        if (pid < 0) {
            end();
            SKIP("no PID namespace may be made here");
        }
        sleep_seconds(i == 0 ? 0.5 : 0); /* in the middle of a run, and while it starts */
        int status = end_first(pid, cases[i].sig);
        CHECK(status == cases[i].status, "latentd %s: status %d", cases[i].args, status);
    }
    CHECK(!exists("a.png"));
    end();
}

TEST(small_commands)
{
    begin();
    says("--version", 0, "latentd ");
    says("--help", 0, "latentd generate");
    says("paint", 2, "unknown command \"paint\"");
    says("kernels", 0, "conv2d");
    says("openapi --type json", 0, "\"openapi\"");
    says("openapi --type yaml", 0, "openapi:");
    says("openapi --type xml", 2, "xml");
    end();
}

TEST_MAIN()
