"""Writes tests/unit/data/requests.txt and forms.txt: what FastAPI answers to request bodies, well and badly formed.

    scripts/export_request_goldens.py

Needs fastapi==0.115.6 starlette==0.41.3 python-multipart==0.0.9 pydantic==2.7.2 httpx<0.28, the versions that the contract
was written for. A case is
    <bytes of the body> <bytes of the answer> <content type, or ->
    <body>
    <status> <answer>
Bodies that the original answers with a plain-text 500 (NaN or half a surrogate pair in an echoed input) or with a 400 that
names no fault are left out: latentd says what was wrong there. So are doubled unknown keys, which latentd echoes as sent, and
files sent where text is wanted, which the original echoes as the insides of Python objects, and part headers without a colon,
after which it mixes bytes of the boundary into the data.
"""
import pathlib
import random
import re
import sys
import warnings
from typing import Annotated

warnings.simplefilter("ignore")
from fastapi import FastAPI, File, Form, UploadFile  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests/unit/data"
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


@app.post("/form")
async def answer_form(text: Annotated[str, Form()], file: Annotated[UploadFile, File()], word: Annotated[str, Form()] = "d",
                      whole: Annotated[int, Form()] = 1, seed: Annotated[int, Form()] = None,
                      number: Annotated[float, Form()] = 0.5, flag: Annotated[bool, Form()] = True):
    data = await file.read()
    return {"text": text, "word": word, "whole": whole, "seed": seed, "number": repr(number), "flag": flag,
            "file": [len(data), sum(data)]}


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


NO_COLON = re.compile(rb"--B\r\n(?:[^\r:]+:[^\r]*\r\n)*[A-Za-z-]+\r\n")
MULTIPART = "multipart/form-data; boundary=B"
URLENCODED = "application/x-www-form-urlencoded"
TEXTS = ["", " ", "a b", "\u00e9\u20ac\U0001f600", "a\r\nb", "\r\n--", "\r\n--C", "--B", "\n--B--\n", "x\0y", "\"\\", "\r\r\n"]
FORM_INTEGERS = ["", "0", "1", "1.0", "1.5", " 1 ", "1_0", "-1", "+1", "0x1", "1e3", "007", "nan", "abc", "9223372036854775808",
                 "\u30001", "1\0", "7.500000", "true"]
FORM_NUMBERS = ["", "7.500000", "1e5", "inf", "-inf", "nan", "1.5.5", " 2.5 ", "0x1p3", "-0.0", "1e999", ".5", "5.", "five"]
FORM_BOOLEANS = ["", "true", "false", "True", "1", "0", "2", "yes", "no", "on", "off", " yes", "maybe", "t", "n"]
DISPOSITIONS = ["form-data", "form-data;", "form-data; name", "form-data; name=", 'form-data; name=""', "form-data; name=text",
                'form-data; NAME="text"', 'form-data; name = "text"', 'form-data;name="text"', "form-data; name=<text>",
                'form-data; name="te\\"xt"', 'form-data; name="te\\\\xt"', 'attachment; name="text"', 'name="text"',
                'form-data; name="file"; name="text"', 'form-data; name="a;b"; name="text"', 'form-data; name="text',
                "form-data; name='text'", "form-data; name*=utf-8''text", "form-data; name*=utf-8''te%78t",
                "form-data; name*=text", "form-data; name*0=te; name*1=xt", 'form-data; name*1="xt"; name*0="te"',
                "form-data; name*0*=utf-8''te; name*1*=%78t", "form-data; name*=utf-8''text; name=word",
                'form-data; name=word; name*="text"', 'form-data; name="text"; x=1; y', "form-data; ; name=text;;",
                "form-data; name=text ", "form-data;\tname=text", 'x="; name=text', 'form-data; x="\\"; name=text; y="',
                'form-data; name="t\u00e9"', "form-data; names=text", "form-data; name**=text", "form-data; name*x=text"]
FILES = ['; filename="in.png"', "; filename=in.png", '; filename=""', "; filename", "; FILENAME=x", "; filename*=UTF-8''%e2%82%ac.png",
         '; filename="../../etc/passwd"', '; filename="C:\\a\\b.png"', '; filename="a\\"b;c.png"', '; filename="\u20ac.png"',
         "; filename*0=a; filename*1=b", "; file=x", "; filenames=x", "; x=filename", '; x=";filename=a"']
HEADERS = ["Content-Type: image/png", "content-type:image/png", "Content-Transfer-Encoding: base64",
           "Content-Transfer-Encoding: quoted-printable", "X-A:", "X-A: ", ": x", "X A: b", "X_A: b", " folded", "X-A", "X1: b",
           "Content-Disposition: form-data; name=word", "CONTENT-LENGTH: 0", "A: b\nC: d"]


def part(name, value, more="", headers=()):
    lines = [f'Content-Disposition: form-data; name="{name}"{more}', *headers]
    return b"--B\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"


def form(*parts):
    return b"".join(parts) + b"--B--\r\n"


def form_values():
    text, file = part("text", "a"), part("file", b"\x89PNG\r\n\x1a\n\0", '; filename="in.png"')
    for field, values in (("text", TEXTS), ("word", TEXTS), ("whole", FORM_INTEGERS), ("seed", FORM_INTEGERS),
                          ("number", FORM_NUMBERS), ("flag", FORM_BOOLEANS)):
        for value in values:
            yield form(text, part(field, value), file), MULTIPART
            yield form(file, part("x", "y"), part(field, "1"), part(field, value), text), MULTIPART
    for raw in (b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"a\x80b"):
        yield form(part("text", raw), file), MULTIPART
        yield form(part("text", raw), file), MULTIPART + "; charset=latin-1"
    yield form(part("text", "\u00e9"), file), MULTIPART + "; charset=UTF-8"
    yield form(part("text", "\u00e9"), file), MULTIPART + "; charset=nonsense"
    yield form(text, file, part("file", b"", '; filename="b"')), MULTIPART
    yield form(text, file, part("file", b"second", '; filename="b"')), MULTIPART
    yield form(text, file, part("file", b"text")), MULTIPART
    yield form(text, part("file", "")), MULTIPART
    yield form(text), MULTIPART
    yield form(file), MULTIPART
    for data in (b"", b"\r\n", b"\r\n--", b"\r\n--B", b"\r\n--Bx", b"\r\n--B-", b"\r\n--B-x", b"\r\n--B\rx", b"\r\n--B\r", b"--B--",
                 b"\r\n\r\n--B", b"\r\n--\r\n--B", b"\n--B\n", b"\r\n--B \r\n", bytes(range(256))):
        yield form(text, part("file", data, "; filename=x")), MULTIPART


def form_frames():
    text, file = part("text", "a"), part("file", b"data", '; filename="in.png"')
    whole = form(text, file)
    for disposition in DISPOSITIONS:
        yield (b"--B\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\na\r\n" + form(file)), MULTIPART
    for more in FILES:
        yield form(text, part("file", b"data", more)), MULTIPART
    for header in HEADERS:
        yield form(text, part("file", b"data", '; filename="in.png"', [header])), MULTIPART
        yield form(b"--B\r\n" + header.encode() + b"\r\n" + text[5:], file), MULTIPART
    for body in (b"", b"\r\n", b"--B", b"--B\r\n", b"--B--", b"--B--\r\n", b"--C\r\n", b"x" + whole, b"\r\n\n\r" + whole, whole[:-2],
                 whole[:-4], whole[:-6], whole + b"epilogue", whole + whole, whole.replace(b"\r\n", b"\n"), b"--B\r\n\r\nx\r\n--B--",
                 b"--B\n" + whole[5:], b"--B \r\n" + whole[5:], b"{}", b"text=a"):
        yield body, MULTIPART
    for content_type in ("multipart/form-data", "multipart/form-data;", "multipart/form-data; boundary", "multipart/form-data; boundary=",
                         'multipart/form-data; boundary="B"', "multipart/form-data; BOUNDARY=B", "multipart/form-data; boundary=B; charset=utf-8",
                         "multipart/form-data; charset=utf-8; boundary=B", "multipart/form-data;boundary = B ", "multipart/form-data; boundary=b",
                         "multipart/form-data; boundary=C; boundary=B", "multipart/form-data; boundary*=utf-8''B", "multipart/mixed; boundary=B",
                         "application/json", "text/plain", "-", "multipart", "multipart/form-data boundary=B"):
        yield whole, content_type
    for quoted, plain in ((r'B\"C', b'B"C'), (r"B\\C", b"B\\C"), (r'B\\\"C\x', b'B\\"C\\x'), (r"B\C", b"B\\C"), ("<B>", b"<B>"), ("a;B", b"a;B")):
        yield whole.replace(b"--B", b"--" + plain), f'multipart/form-data; boundary="{quoted}"'
    yield whole.replace(b"--B", b"--a'()+_,-./:=? z"), "multipart/form-data; boundary=\"a'()+_,-./:=? z\""
    for i in range(len(whole)):
        yield whole[:i], MULTIPART
        yield whole[:i] + whole[i + 1:], MULTIPART
        for c in random.sample('\r\n-:;"B= \0x\\', 1):
            yield whole[:i] + c.encode() + whole[i:], MULTIPART


def form_urlencoded():
    for body in ("", "text=a", "text=a&", "text=&word=", "text", "text&", "text;whole=x", "text=a;whole=x", "text=a;whole=x&seed=y", "&&;text=a",
                 "text=a%20b+c%2", "text=%zz%4", "file=%f0%9f%98%80", "file=%f0%9f%98", "file=%ff%fe%ed%a0%80%c3", "file=\u00e9%c3%a9",
                 "%66ile=x&te+xt=a", "file=a&file=b&whole=1.5", "=a&file==", "whole=&seed=&flag=2&number=x", "a&file=1;b", "file=%e2%82\u20ac%ac"):
        yield body.encode(), URLENCODED
    yield b"file=a", URLENCODED + "; charset=latin-1"


def export(path, target, wanted):
    client, count = TestClient(app, raise_server_exceptions=False), 0
    target.parent.mkdir(exist_ok=True)
    with open(target, "wb") as out:
        for data, content_type in wanted:
            data = data if isinstance(data, bytes) else data.encode()
            reply = client.post(path, content=data, headers={} if content_type == "-" else {"content-type": content_type})
            if reply.status_code == 500 or (reply.status_code == 400 and path == "/") or "_TemporaryFileArgs" in reply.text \
                    or NO_COLON.search(data):
                continue
            want = f"{reply.status_code} {reply.text}".encode()
            out.write(b"%d %d %s\n%s\n%s\n" % (len(data), len(want), content_type.encode(), data, want))
            count += 1
    print(f"{target.name}: {count} cases, {target.stat().st_size} bytes")


def main():
    random.seed(1)
    export("/", DATA / "requests.txt", cases())
    random.seed(1)
    export("/form", DATA / "forms.txt", [*form_values(), *form_frames(), *form_urlencoded()])


if __name__ == "__main__":
    sys.exit(main())
