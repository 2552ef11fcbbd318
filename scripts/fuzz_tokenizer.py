#!/usr/bin/env python3
"""Random Unicode through latentd's tokenizer and through transformers' CLIPTokenizer; prints every difference.

Builds src/text as a shared library and calls it in this process.
Needs: pip install transformers numpy; gcc, libcjson-dev.
Run:   scripts/fuzz_tokenizer.py TOKENIZER_DIR [--texts 20000] [--seed 1] [--every-code-point]
"""
import argparse
import ctypes
import random
import subprocess
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parent.parent

WORDS = """a photo of the mountain lion cat's it's we've they'll I'm don't he'd you're 1234 3.14 hello!!! (red:1.2) [blue] <lora:x:1>
naïve café ÉCOLE straße ΣΊΣΥΦΟΣ İstanbul ﬁ ﬀ Ǆ ½ ² 中文 日本語 한국어 हिन्दी ไทย עברית العربية 👩‍👩‍👧 🇫🇷 ☕️ ❤️‍🔥
<|endoftext|> <|startoftext|> <|EndOfText|> ' 's 'S ’s ! !! '' " < | > <| |> Σ σ ς İ I ı ß ẞ Å Å Ω Ω""".split()
SPACES = [" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\x00", "\u200b", "\ufeff", "\ufffd"]
BLOCKS = [(0, 0x80), (0x80, 0x250), (0x250, 0x370), (0x370, 0x600), (0x600, 0x1000), (0x1000, 0x1200), (0x1E00, 0x2000),
          (0x2000, 0x2100), (0x2100, 0x2C00), (0x2C00, 0x3100), (0x3100, 0xA000), (0xA000, 0xAC00), (0xAC00, 0xD7A4),
          (0xE000, 0xFB00), (0xFB00, 0x10000), (0x10000, 0x11000), (0x11000, 0x12000), (0x16000, 0x17000),
          (0x1D000, 0x1E000), (0x1F000, 0x20000), (0x20000, 0x30000), (0xE0000, 0xE0200), (0, 0x110000)]
MARKS = [*range(0x300, 0x370), 0x5B0, 0x5BC, 0x64B, 0x93C, 0x94D, 0x9BE, 0x9D7, 0xE38, 0x1161, 0x1162, 0x11A8, 0x11C2, 0x3099,
         0x309A, 0x1DC0, 0x20D0, 0x110BA, 0x1D165, 0x1D16E]


def character(rnd, blocks=BLOCKS):
    while True:
        c = rnd.randrange(*rnd.choice(blocks))
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def random_text(rnd):
    out = []
    for _ in range(rnd.randrange(1, 14)):
        kind = rnd.random()
        if kind < 0.35:
            out.append(rnd.choice(WORDS))
        elif kind < 0.55:
            out.append(character(rnd) + "".join(chr(rnd.choice(MARKS)) for _ in range(rnd.randrange(5))))
        elif kind < 0.72:
            out.append("".join(character(rnd) for _ in range(rnd.randrange(1, 6))))
        elif kind < 0.87:
            block = [rnd.choice(BLOCKS)]
            out.append("".join(character(rnd, block) for _ in range(rnd.randrange(1, 8))))
        else:
            out.append(rnd.choice(SPACES))
        out.append(" " * (rnd.random() < 0.4))
    return "".join(out)


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("msg", ctypes.c_char * 1000)]


class Tokenizer:
    def __init__(self, folder, build):
        lib = Path(build) / "tokenizer.so"
        sources = [*ROOT.glob("src/text/*.c"), ROOT / "src/base/json.c", ROOT / "src/base/error.c"]
        subprocess.run(["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", f"-I{ROOT}/include", *map(str, sources),
                        "-o", str(lib), "-lcjson", "-lm"], check=True)
        self.lib, self.handle, self.err = ctypes.CDLL(str(lib)), ctypes.c_void_p(), Error()
        if self.lib.tokenizer_load(ctypes.byref(self.handle), str(folder).encode(), ctypes.byref(self.err)):
            raise SystemExit(self.err.msg.decode())

    def __call__(self, text, most):
        data, ids, used, cut = text.encode(), (ctypes.c_int32 * most)(), ctypes.c_int(), ctypes.c_int()
        rc = self.lib.tokenizer_encode(self.handle, data, ctypes.c_size_t(len(data)), ids, most, ctypes.byref(used),
                                       ctypes.byref(cut), ctypes.byref(self.err))
        if rc:
            raise SystemExit(self.err.msg.decode())
        return list(ids), used.value, cut.value


def main():
    from transformers import CLIPTokenizer

    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--texts", type=int, default=20000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--every-code-point", action="store_true")
    a = p.parse_args()
    rnd, theirs, most = random.Random(a.seed), CLIPTokenizer.from_pretrained(a.folder), 77
    texts = [random_text(rnd) for _ in range(a.texts)]
    if a.every_code_point:
        texts = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    wrong = 0
    with tempfile.TemporaryDirectory() as build:
        ours = Tokenizer(a.folder, build)
        for i in range(0, len(texts), 2000):
            part = texts[i : i + 2000]
            for text, want in zip(part, theirs(part).input_ids):
                ids, used, cut = ours(text, most)
                padded = want if len(want) <= most else want[: most - 1] + want[-1:]
                padded = padded + [theirs.pad_token_id] * (most - len(padded))
                if ids != padded or used + cut != len(want):
                    wrong += 1
                    print(f"{text!r}: transformers {want}, latentd {ids[:used]} and {cut} more")
    print(f"{len(texts)} texts, {wrong} differences")
    return wrong != 0


if __name__ == "__main__":
    raise SystemExit(main())
