/* latentd openapi: prints the description of the HTTP interface, of all pipelines. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "commands.h"

static const char usage[] =
    "usage: latentd openapi [--type yaml|json] [--entrypoint runner|gateway]\n"
    "\n"
    "Prints the OpenAPI document of every pipeline. Its version is that of the environment variable "
    "VERSION,\n"
    "else that of latentd.\n"
    "  --type         yaml, unless it is given\n"
    "  --entrypoint   runner: as a daemon serves it (unless it is given); gateway: as a gateway offers it,\n"
    "                 without health, hardware and version, with model_id required and a video as one file\n";

/* Reads --FLAG A|B into *SECOND: which of the two. */
static bool is_second(const char *value, const char *first, const char *second, bool *out)
{
    *out = strcmp(value, second) == 0;
    return *out || strcmp(value, first) == 0;
}

/* 0, or 2 when the flags are wrong. */
static int read_flags(int argc, char **argv, bool *json, bool *gateway)
{
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        bool known = (strcmp(argv[i], "--type") == 0 && is_second(value, "yaml", "json", json)) ||
                     (strcmp(argv[i], "--entrypoint") == 0 && is_second(value, "runner", "gateway", gateway));
        if (!known) {
            fprintf(stderr, "latentd openapi: cannot use \"%s%s%s\"\n\n%s", argv[i], *value ? " " : "", value,
                    usage);
            return 2;
        }
    }
    return 0;
}

int command_openapi(int argc, char **argv)
{
    const char *version = getenv("VERSION");
    struct buffer out = {0};
    struct error err = {0};
    bool json = false, gateway = false;

    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(usage, stdout);
        return 0;
    }
    if (read_flags(argc, argv, &json, &gateway))
        return 2;
    if (openapi_write(json ? OPENAPI_JSON : OPENAPI_YAML, gateway ? OPENAPI_GATEWAY : OPENAPI_RUNNER, NULL,
                      version && *version ? version : LATENTD_VERSION, &out, &err)) {
        fprintf(stderr, "latentd: %s\n", err.msg);
        buffer_free(&out);
        return 1;
    }
    bool written = fwrite(out.data, 1, out.len, stdout) == out.len && fflush(stdout) == 0;
    if (!written)
        fprintf(stderr, "latentd: cannot write the document: %s\n", strerror(errno));
    buffer_free(&out);
    return written ? 0 : 1;
}
