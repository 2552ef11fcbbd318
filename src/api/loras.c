/* Checks the loras parameter, in the order of the contract. See loras.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_scan.h"
#include "loras.h"

enum { SHOWN_MAX = 500 };

struct count {
    int loras;
    bool strengths_ok;
};

/* A number, or a string that float() reads, not negative. */
static bool strength_ok(struct json_span value)
{
    char text[64], *end;
    size_t len = 0;
    double v;

    if (value.type == JSON_BOOL)
        return true;
    if (value.type == JSON_INTEGER || value.type == JSON_FLOAT)
        return value.at[0] != '-' && value.at[0] != 'N';
    if (value.type != JSON_STRING || value.len > sizeof(text))
        return false;
    json_decode_string(value, text, &len);
    text[len] = '\0';
    v = strtod(text, &end);
    return end != text && *end == '\0' && !isnan(v) && v >= 0;
}

static int count_lora(void *ctx, struct json_span key, struct json_span value)
{
    struct count *c = ctx;

    (void)key;
    c->loras++;
    c->strengths_ok = c->strengths_ok && strength_ok(value);
    return 0;
}

bool loras_check(const struct param_string *loras, struct reply *reply)
{
    struct json_span doc;
    struct json_fault fault;
    struct count c = {0, true};
    int shown = loras->len < SHOWN_MAX ? (int)loras->len : SHOWN_MAX;

    if (loras->len == 0)
        return true;
    if (json_scan(loras->data, loras->len, NULL, 0, NULL, &doc, &fault)) {
        while (shown > 0 && shown < (int)loras->len && ((unsigned char)loras->data[shown] & 0xc0) == 0x80)
            shown--;
        reply_error(reply, 400, "Unable to parse '%.*s' as JSON..", shown, loras->data);
        return false;
    }
    if (doc.type != JSON_OBJECT) {
        reply_error(reply, 500, "Text-to-image pipeline error.");
        return false;
    }
    json_each_member(doc, count_lora, &c);
    if (c.loras == 0)
        return true;
    if (c.loras > LORAS_MAX)
        reply_error(reply, 400, "Too many LoRas provided. Maximum is %d..", LORAS_MAX);
    else if (!c.strengths_ok)
        reply_error(reply, 400, "All strengths must be numbers greater than or equal to 0.0..");
    else
        reply_error(reply, 400, "LoRA is not available yet: leave `loras` empty.");
    return false;
}
