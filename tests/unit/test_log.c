/* The log: a reader that stops reading stops nobody, and is told what it missed; all of it is UTF-8. */
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <unistd.h>

#include "log.h"
#include "test.h"
#include "utf8.h"

enum { LINES = 3000 };

/* Reads what there is of FD until nothing has come for a moment; the caller frees it. */
static char *read_all(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    size_t len = 0, cap = 4 << 20;
    char *text = calloc(1, cap);

    while (poll(&p, 1, 200) == 1 && len < cap - 1) {
        ssize_t n = read(fd, text + len, cap - 1 - len);
        if (n <= 0)
            break;
        len += (size_t)n;
    }
    return text;
}

/* LINES lines into WRITER, which nobody reads meanwhile, then another one when READER has read those. Returns
 * all of it. */
static char *log_into(int reader, int writer)
{
    int saved = dup(STDERR_FILENO);
    char *text, *rest;

    alarm(20); /* one that waits would wait for ever */
    dup2(writer, STDERR_FILENO);
    for (int i = 0; i < LINES; i++)
        log_info("line %d of a program that has much to say", i);
    text = read_all(reader);
    log_info("the last line");
    dup2(saved, STDERR_FILENO);
    alarm(0);
    close(saved);
    rest = read_all(reader);
    text = realloc(text, strlen(text) + strlen(rest) + 1);
    strcat(text, rest);
    free(rest);
    return text;
}

/* How many lines TEXT says are missing, -1 when it does not say so. */
static long missing(const char *text)
{
    static const char words[] = " lines of the log are missing here: stderr took no more\"";
    const char *at = strstr(text, words);

    while (at && at > text && at[-1] >= '0' && at[-1] <= '9')
        at--;
    return at ? atol(at) : -1;
}

TEST(a_pipe_that_nobody_reads_stops_nobody)
{
    int fd[2], lines = 0;

    if (!CHECK(pipe(fd) == 0))
        return;
    char *text = log_into(fd[0], fd[1]);
    for (const char *at = text; *at && strchr(at, '\n'); at = strchr(at, '\n') + 1)
        lines += CHECK(strncmp(at, "timestamp=", 10) == 0, "%.100s", at);
    CHECK(lines > 100 && lines - 2 + missing(text) == LINES, "%d lines, %ld missing", lines, missing(text));
    CHECK(strlen(text) > 15 && strcmp(text + strlen(text) - 15, "the last line\"\n") == 0, "%zu",
          strlen(text));
    free(text);
    close(fd[0]);
    close(fd[1]);
}

/* Its last line may be there by half. */
TEST(a_terminal_that_nobody_reads_stops_nobody)
{
    int reader, writer;

    if (!CHECK(openpty(&reader, &writer, NULL, NULL, NULL) == 0))
        return;
    char *text = log_into(reader, writer);
    CHECK(missing(text) > 100 && strstr(text, "the last line\""), "%ld missing", missing(text));
    CHECK(!(fcntl(writer, F_GETFL) & O_NONBLOCK), "the terminal is shared: its flags stay");
    free(text);
    close(reader);
    close(writer);
}

/* ---- What is not UTF-8 ---- */

static void repairs(const char *text, const char *want)
{
    char copy[64];

    strcpy(copy, text);
    size_t len = utf8_repair(copy);
    CHECK(strcmp(copy, want) == 0 && len == strlen(want), "%s became %s", text, copy);
}

TEST(halves_of_characters_are_taken_out)
{
    repairs("", "");
    repairs("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    repairs("a\xc3", "a");
    repairs("\xe2\x82.\xf0\x9f\x98\"", ".\"");
    repairs("\x80z\xbf", "z");
    repairs("\xed\xa0\x80-\xc0\xaf-\xf4\x90\x80\x80-\xff",
            "---"); /* a surrogate, an overlong form, too large */
}

/* Longer than a line, and cut by a precision. */
TEST(a_cut_line_is_utf8)
{
    int fd[2], saved = dup(STDERR_FILENO);
    char text[4001] = "";

    if (!CHECK(pipe(fd) == 0))
        return;
    for (int i = 0; i < 2000; i++)
        strcpy(text + 2 * i, "\xc3\xa9");
    dup2(fd[1], STDERR_FILENO);
    log_info("%s", text);
    log_info("x%s", text);
    log_info("%.3s.", text);
    dup2(saved, STDERR_FILENO);
    close(saved);
    char *line = read_all(fd[0]);
    CHECK(utf8_valid(line, strlen(line)) && strlen(line) > 3900 && strstr(line, "=\"\xc3\xa9.\"\n"), "%s",
          line);
    free(line);
    close(fd[0]);
    close(fd[1]);
}

TEST_MAIN()
