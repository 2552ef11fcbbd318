"""Writes tests/unit/data/requests.txt: what FastAPI answers to request bodies, well and badly formed.

    scripts/export_request_goldens.py

Needs fastapi==0.115.6 starlette==0.41.3 pydantic==2.7.2 httpx, the versions that the contract was written for. A case is
    <bytes of the body> <bytes of the answer> <content type, or ->
    <body>
    <status> <answer>
Bodies that the original answers with a plain-text 500 (NaN or half a surrogate pair in an echoed input) or with a 400 that
names no fault are left out: latentd says what was wrong there. So are doubled unknown keys, which latentd echoes as sent.
"""
import pathlib
import random
import sys
import warnings

warnings.simplefilter("ignore")
from fastapi import FastAPI  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

TARGET = pathlib.Path(__file__).resolve().parent.parent / "tests/unit/data/requests.txt"
MISC = ['"\\ud83d\\ude00"', '"\\u0000"', '"a\\n\\t\\b\\f\\r\\/\\\\\\""', '"\u00e9\u20ac\U0001f600"', '""', "null", "[]", "{}",
        '[1, 2.50, "x", {"a" : null}]', "true", "false", "1e22", "-0.0"]
INTEGERS = """1 "1" 1.0 1.5 "1.0" "1.5" " 1 " "1_0" "1__0" "_1" "1_" "+1" "-1" "--1" "0x1" "1e3" 1e3 1e17 1e18 "1_0.0"
9223372036854775807 9223372036854775808 9.223372036854775e18 9223372036854775807.0 -9223372036854775808.0 -9.3e18 1e300 -0
"-0" 0 "abc" "12abc" "1.00" "1." ".0" "." "00" "007" "+_1" "-1_000" "1_.0" "1._0" "\\u00a01" "1\\u2003" "\\u30001"
"1\\u001f" "\\u001c1" "1\\n" "\uff11" "1\\u0000" "nan" 123456789012345678901234567890 "123456789012345678901234567890"
1E2 1e-1 0.1e1 "+1.0" "0_0" "+" "-" "1,0" "true" """.split(" ")
NUMBERS = """1 "1e5" "1.5e-3" "inf" "-inf" "infinity" "-Infinity" "NaN" "+nan" "nan(1)" "1e999" ".5" "5." "1e" "e5" "1.5.5"
" 2.5 " "2_5.5" "2.5_5" "0x1p3" "1d" "1e+5" "++1" "1e5e5" "." "-.5" "in" "+_1" "_1" 1e5 1.7976931348623157e308 5e-324 1e-400
0.1 123456789.123456789 1e16 1e15 1e-4 1e-5 123456789012345680.0 123456789012345678901234567890 -0 "" """.split(" ")
BOOLEANS = """0 1 2 -1 0.0 1.0 0.5 -0 "" "0" "1" "t" "T" "true" "TRUE" "f" "n" "no" "off" "Off" "on" "y" "yes" "YES" " yes"
"yes " "2" "maybe" "\uff59" "\\u0074rue" 10 100000000000000000000 1e0 "1.0" "true\\u0000" """.split(" ")
DOCUMENTS = ['', ' ', 'null', 'true', '1', '"x"', '[]', '[1,2]', '{}', '{} x', '{}{}', '[1,]', '{"a":1,}', '{,}', '[,]', '{"a"}',
             '{"a":}', '{"a" 1}', '{a:1}', "{'a':1}", '-', '-x', '01', '1.', '.5', '+1', '1e', '1e+', 'nul', 'nulll', '[', '{', '"',
             '"abc', '"\\', '"\\u', '"\\u12', '"\\u1234', '"\\u123g"', '"\\x"', '"\t"', '"a\nb"', '{"a":1 "b":2}',
             '{"text":"a","text":"b","whole":"x","whole":3}', '\ufeff{"text":"a"}', '\ufeff', '//c', '[1 2]', '{"a":[1}',
             '{"a":{]}', '[{]', '{"\\u0074ext":"esc"}', '{"text":"\\ud83d\\ude0"}', '{"text":"\\ud83d\\u12"}',
             '{"text":"\U0001f600","whole":\x01}', '{"\u00e9":1', '{"text":"a"}\n\n', '\t{"text":"a"}\r\n ', '{"text":"a"}\x00',
             '{"text":"a"}\x0b', '{"text" : "a" , "whole" : 1.0 }', '[' * 200 + ']' * 200, '[' * 200,
             '{"text":"a","x":' + "9" * 4301 + ".0}"]
TYPES = ["application/json; charset=utf-8", "APPLICATION/JSON", "application/ld+json", "application/+json", "application/jsonx",
         "text/plain", "text/json", "application/x-www-form-urlencoded", "-", "application", "application/json/x",
         "application/json ;x", "application/problem+JSON", "application/vnd.x+json;a=b"]


class Params(BaseModel):
    text: str
    word: str = "d"
    whole: int = 1
    seed: int = None
    number: float = 0.5
    flag: bool = True


app = FastAPI()


@app.post("/")
def answer(params: Params):
    return {k: repr(v) if isinstance(v, float) else v for k, v in params.model_dump().items()}


def cases():
    for field, values in (("text", MISC + ["1"]), ("word", MISC), ("whole", MISC + INTEGERS), ("seed", INTEGERS),
                          ("number", MISC + INTEGERS + NUMBERS), ("flag", MISC + BOOLEANS)):
        for value in values:
            yield '{"text":"a","%s":%s}' % (field, value), "application/json"
    base = '{"text": "a", "whole": 512, "x": [1, {"y": "z\\n\\u00e9"}, true, null, -1.5e3]}'
    for i in range(len(base)):
        yield base[:i], "application/json"
        yield base[:i] + base[i + 1:], "application/json"
        for c in random.sample('"\\{}[],:x1 \n\x01.-eN', 4):
            yield base[:i] + c + base[i:], "application/json"
    for document in DOCUMENTS:
        yield document, "application/json"
    for content_type in TYPES:
        yield '{"text":"a"}', content_type
        yield 'text=a&x="q\\', content_type
    for _ in range(150):
        fields = [("text", MISC), ("word", MISC), ("whole", INTEGERS), ("seed", INTEGERS), ("number", NUMBERS), ("flag", BOOLEANS)]
        chosen = ['"%s":%s' % (f, random.choice(v).strip() or "1") for f, v in fields if random.random() < 0.6]
        random.shuffle(chosen)
        yield "{" + random.choice([",", ", ", " ,\n"]).join(chosen) + "}", "application/json"


def main():
    random.seed(1)
    client, count = TestClient(app, raise_server_exceptions=False), 0
    TARGET.parent.mkdir(exist_ok=True)
    with open(TARGET, "wb") as out:
        for body, content_type in cases():
            data = body.encode()
            reply = client.post("/", content=data, headers={} if content_type == "-" else {"content-type": content_type})
            if reply.status_code in (400, 500):
                continue
            want = f"{reply.status_code} {reply.text}".encode()
            out.write(b"%d %d %s\n%s\n%s\n" % (len(data), len(want), content_type.encode(), data, want))
            count += 1
    print(f"{count} cases, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
