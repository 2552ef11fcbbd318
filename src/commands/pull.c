/* latentd pull: runs latentd-pull, which lies beside this program. Downloads are a program of their own, so
 * that the daemon has no HTTP client in it at all. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"

int command_pull(int argc, char **argv)
{
    char path[PATH_MAX];
    static const char name[] = "latentd-pull";
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - sizeof name - 1);

    (void)argc;
    path[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(path, '/');
    memcpy(slash ? slash + 1 : path, name, sizeof name);
    execv(path, argv);
    if (errno == ENOENT)
        fprintf(stderr,
                "latentd pull: %s is not there. make builds it where it finds libcurl and OpenSSL: install "
                "libcurl4-openssl-dev and libssl-dev, and run make again\n",
                path);
    else
        fprintf(stderr, "latentd pull: %s cannot be run: %s\n", path, strerror(errno));
    return 1;
}
