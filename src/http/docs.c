/* GET /docs and /redoc and what they load: files of src/http/pages, built into the program, so the pages work
 * without the internet and without files beside it. They read /openapi.json in the browser. */
#include "docs.h"

/* The bytes of files of src/http/pages, one behind the other, from NAME to NAME_end. */
#define FILE_BYTES(file) ".incbin \"src/http/pages/" file "\"\n"
#define EMBED(name, files)                                                                                   \
    __asm__(".pushsection .rodata\n" #name ":\n" files #name "_end:\n.popsection\n");                        \
    extern const char name[] __attribute__((visibility("hidden")));                                          \
    extern const char name##_end[] __attribute__((visibility("hidden")))

EMBED(docs_html, FILE_BYTES("docs.html"));
EMBED(redoc_html, FILE_BYTES("redoc.html"));
EMBED(page_css, FILE_BYTES("page.css"));
EMBED(docs_js, FILE_BYTES("page.js") FILE_BYTES("request.js") FILE_BYTES("reply.js") FILE_BYTES("docs.js"));
EMBED(redoc_js, FILE_BYTES("page.js") FILE_BYTES("redoc.js"));

/* Nothing from elsewhere, nothing that is written into the page itself, and no other site around it. Pictures
 * are data URLs, and blobs where they came as they are. */
#define POLICY                                                                                               \
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' data: blob:; "              \
    "img-src 'self' data: blob:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; "              \
    "frame-ancestors 'none'"

static void file(struct reply *reply, const char *type, const char *begin, const char *end)
{
    reply->status = 200;
    reply->content_type = type;
    buffer_add(&reply->body, begin, (size_t)(end - begin));
    reply_header(reply, "X-Content-Type-Options", "nosniff");
    reply_header(reply, "Cache-Control", "no-cache");
}

static void page(struct reply *reply, const char *begin, const char *end)
{
    file(reply, "text/html; charset=utf-8", begin, end);
    reply_header(reply, "Content-Security-Policy", "%s", POLICY);
    reply_header(reply, "Referrer-Policy", "no-referrer");
}

void docs_reply(struct server *srv, struct reply *reply)
{
    (void)srv;
    page(reply, docs_html, docs_html_end);
}

void redoc_reply(struct server *srv, struct reply *reply)
{
    (void)srv;
    page(reply, redoc_html, redoc_html_end);
}

void docs_style_reply(struct server *srv, struct reply *reply)
{
    (void)srv;
    file(reply, "text/css; charset=utf-8", page_css, page_css_end);
}

void docs_script_reply(struct server *srv, struct reply *reply)
{
    (void)srv;
    file(reply, "text/javascript; charset=utf-8", docs_js, docs_js_end);
}

void redoc_script_reply(struct server *srv, struct reply *reply)
{
    (void)srv;
    file(reply, "text/javascript; charset=utf-8", redoc_js, redoc_js_end);
}
