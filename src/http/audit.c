/* Refuses requests that two servers in a row could understand differently (request smuggling). libmicrohttpd
 * 0.9.75 accepts most of these and keeps the connection open, so the check is made here, on the first call
 * for a request, before its body is read. A bare LF at the end of a line is taken, as RFC 9112 section 2.2
 * allows. */
#include <string.h>
#include <strings.h>

#include "internal.h"

struct audit {
    const char *fault;
    int hosts, lengths, encodings;
    const char *encoding;
};

/* RFC 9110 token characters. */
static bool token(const char *s, size_t len)
{
    static const char extra[] = "!#$%&'*+-.^_`|~";

    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        bool letter = (c | 32) >= 'a' && (c | 32) <= 'z';
        if (!letter && !(c >= '0' && c <= '9') && !(c && strchr(extra, c)))
            return false;
    }
    return len > 0;
}

static bool field_value(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s[i] < 0x20 ? s[i] != '\t' : s[i] == 0x7f)
            return false;
    return true;
}

static bool digits(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (s[i] < '0' || s[i] > '9')
            return false;
    return len > 0 && len < 19;
}

static bool is(const char *name, size_t len, const char *what)
{
    return len == strlen(what) && strncasecmp(name, what, len) == 0;
}

static enum MHD_Result check_header(void *ctx, enum MHD_ValueKind kind, const char *name, size_t name_len,
                                    const char *value, size_t value_len)
{
    struct audit *a = ctx;

    (void)kind;
    if (!token(name, name_len))
        a->fault = "a header name has a character that is not allowed";
    else if (!field_value(value ? value : "", value_len))
        a->fault = "a header value has a control character";
    if (is(name, name_len, "host"))
        a->hosts++;
    if (is(name, name_len, "content-length")) {
        a->lengths++;
        if (!digits(value ? value : "", value_len))
            a->fault = "Content-Length is not a number";
    }
    if (is(name, name_len, "transfer-encoding")) {
        a->encodings++;
        a->encoding = value;
    }
    return a->fault ? MHD_NO : MHD_YES;
}

const char *audit_headers(struct MHD_Connection *mhd, const char *method, const char *url,
                          const char *version)
{
    struct audit a = {0};

    MHD_get_connection_values_n(mhd, MHD_HEADER_KIND, check_header, &a);
    if (a.fault)
        return a.fault;
    if (!token(method, strlen(method)))
        return "the method has a character that is not allowed";
    if (!field_value(url, strlen(url)))
        return "the path has a control character";
    if (strcmp(version, "HTTP/1.1") != 0 && strcmp(version, "HTTP/1.0") != 0)
        return "the version is not HTTP/1.1 or HTTP/1.0";
    if (a.hosts > 1)
        return "there is more than one Host";
    if (a.hosts == 0 && strcmp(version, "HTTP/1.1") == 0)
        return "there is no Host";
    if (a.lengths > 1)
        return "there is more than one Content-Length";
    if (a.encodings && a.lengths)
        return "there are both Transfer-Encoding and Content-Length";
    /* With a blank behind it, too, which RFC 9110 allows: libmicrohttpd has not seen a chunked body then, and
     * would read on until the connection closes. */
    if (a.encodings > 1 || (a.encodings && (!a.encoding || strcasecmp(a.encoding, "chunked") != 0)))
        return "Transfer-Encoding is not \"chunked\"";
    if (a.encodings && strcmp(version, "HTTP/1.1") != 0)
        return "HTTP/1.0 has no Transfer-Encoding";
    return NULL;
}
