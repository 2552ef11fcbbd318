/* See error.h. */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int error_set(struct error *err, int code, const char *fmt, ...)
{
    if (!err)
        return code;
    if (err->code)
        return err->code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    err->code = code;
    return code;
}

int error_prefix(struct error *err, const char *fmt, ...)
{
    if (!err || !err->code)
        return err ? err->code : ERR_INTERNAL;
    char context[300];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(context, sizeof context - 2, fmt, ap);
    va_end(ap);
    if (n < 0)
        return err->code;
    strcat(context, ": ");
    size_t len = strlen(context), keep = strlen(err->msg);
    if (keep > sizeof err->msg - 1 - len)
        keep = sizeof err->msg - 1 - len;
    memmove(err->msg + len, err->msg, keep);
    memcpy(err->msg, context, len);
    err->msg[len + keep] = '\0';
    return err->code;
}
