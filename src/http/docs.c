/* GET /docs and /redoc. The page itself is made in api/ from the parameter table. */
#include "docs.h"

static void page(struct server *srv, bool try_it, struct reply *reply)
{
    reply->status = 200;
    reply->content_type = "text/html; charset=utf-8";
    docs_page(srv->service, try_it, &reply->body);
}

void docs_reply(struct server *srv, struct reply *reply)
{
    page(srv, true, reply);
}

void redoc_reply(struct server *srv, struct reply *reply)
{
    page(srv, false, reply);
}
