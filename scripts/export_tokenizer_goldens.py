#!/usr/bin/env python3
"""Writes tests/golden/data/tokenizer: a small CLIP vocabulary in several wrappings, and what transformers makes of hard texts.

Needs: pip install transformers.   Run: scripts/export_tokenizer_goldens.py [OUT]

cases.bin, little endian: "LDTK", u32 version 1, u32 max, u32 count; for each case: u32 bytes, the text, u32 used, u32 cut,
i32 ids[max].
"""
import collections
import json
import random
import struct
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent))
from fuzz_tokenizer import random_text  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

MAX, MERGES, RANDOM_TEXTS = 24, 700, 120

CORPUS = """a photo of a mountain lion on the rocks at sunset. a red heart, a slice of pizza, a sailboat on the sea.
an oil painting of the old harbour in the morning light, highly detailed, sharp focus, trending on artstation.
it's the cat's whiskers; we've seen that they'll go, i'm sure he'd say you're right and don't worry.
portrait of a young woman with long hair, soft light, bokeh, 35mm film. astronaut riding a horse on mars.
naïve café école straße größe señor façade coração œuvre smørrebrød żółć příliš žluťoučký kůň σίσυφος красный слон
中文 日本語 東京 한국어 서울 हिन्दी नमस्ते ไทย สวัสดี עברית שלום العربية سلام 😀 😂 ❤️ 🔥 👩‍👩‍👧 🇫🇷 ☕️ 1girl 2024 4k 8k uhd
aaaa aaaaa aaaaaa mmmm mmmmm zzzz zzzzzz !!! !!!! .... ......"""

HARD = [
    "", " ", "\n\t ", "a", "A", "a b", "  a   b  ", "a mountain lion", "A MOUNTAIN LION", "hello!!! world", "wow!", "!", "!!!!", "a!b! c",
    "it's It'S IT’S we've they'll I'm don't he'd you're 's 't 're 've 'm 'll 'd '", "rock'n'roll 'tis ''s s' '''", "'S 'T 'RE",
    "12345 3.14 1,000 x2 2x ½ ² ③ Ⅷ ८ ௧", "(red:1.2) [blue] <lora:x:1> a|b {c} \\ / ^_^ :-) ...", "<|startoftext|>", "<|endoftext|>",
    "a<|endoftext|>b", "<|endoftext|><|endoftext|>!!", "<|ENDOFTEXT|> x", "<|StartOfText|>!a", "!<|endoftext|>", "<|endoftext|", "<|<|endoftext|>|>",
    "<|ENDOFTEXT|>!!!", "<|endoftext|>'s", " <|startoftext|> ", "\u212a<|endo\u0131ftext|>", "<cat-toy> <CAT-TOY> a<cat-toy>b <cat-t <cat> <cat \t\u3000toy> <Cat Toy>", "</w> a</w>",
    "naïve café ÉCOLE", "nai\u0308ve cafe\u0301 E\u0301COLE", "e\u0301\u0302\u0303 e\u0303\u0302\u0301 a\u0316\u0301 a\u0301\u0316",
    "straße STRASSE ẞ", "ΣΊΣΥΦΟΣ Σ ΑΣ ΑΣΑ σς", "İstanbul ISTANBUL ı I i\u0307", "Ǆ ǅ ǆ ǈ ﬁ ﬀ ﬃ ĳ", "K Å Ω \u2126 \u212b", "Ａｂｃ １２３ ！",
    "\u1e9b\u0323 \u1e69 s\u0323\u0307 s\u0307\u0323 q\u0307\u0323", "\u0958 \u0915\u093c \u0929 \u0928\u093c", "\u0344 \u0308\u0301 \u0385", "\u2adc \u2add\u0338",
    "中文", "日本語のテキスト", "か\u3099 は\u309a が ぱ ﾊﾟ", "豈 更 車 \uf900 \u2f800 \U0002f800 \U0002fa1d", "한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8 \uac00\u11a8 \uac00\u11a7 \uac01\u11a8",
    "हिन्दी नमस्ते क्षि", "ไทย สวัสดี กำ", "עברית שָׁלוֹם \ufb2a \u05e9\u05c1", "العربية سَلَام \ufef5 \u0622 \u0627\u0653", "Ελληνικά ΐ \u03b9\u0308\u0301 \u1fd3",
    "Привет ЙОГУРТ и\u0306 Ѐ", "ᏣᎳᎩ ꮳꮃꭹ", "Ꙁꙁ ᲐᲑ აბ Ა", "𐐀𐐨 𞤀𞤢 𑢠𑣀 𖹀", "\ua7cb \ua7dc \u1c89 \U00010d50", "\U0001d15e \U0001d157\U0001d165", "\U000110ab \U000110a5\U000110ba",
    "😀", "👩‍👩‍👧‍👦 family", "🇫🇷🇩🇪", "☕️ ☕ ❤️‍🔥", "👍🏽 👍🏿", "a😀b 😀!", "#️⃣ *️⃣ 1️⃣", "🏴\U000e0067\U000e0062\U000e007f",
    "\u00a0a\u3000b\u2028c\u2029d\x85e\u1680f\u205fg\u202fh", "\x1ca\x1db\x1ec\x1fd", "\u200ba\u200db\u2060c\ufeffd", "\x00", "a\x00b", "\x01\x02\x7f\x80\x9f", "\ufffd \ufffe \uffff",
    "\U0010ffff \U000f0000 \ue000", "\u0378 \u0530 \U0001fffe", "\u180e \u2800 \u3164", "\u202eabc\u202c \u2066x\u2069", "a\u0300" * 30, "x" * 100, "aa aaa aaaa aaaaa aaaaaa", "mmm mmmm mmmmm zz zzz zzzz", "!! !!! !!!! ... .... .....", "ab" * 60, "!" * 60, "a " * 60,
    "z\u0301\u0323" + "\u0316\u0301" * 40, "pneumonoultramicroscopicsilicovolcanoconiosis", "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor",
    "http://example.com/a?b=c&d=%20", "<b>bold</b> &amp; \"quoted\" “quoted” «quoted» – — …", "\r\nline\rline\n", "ᾳ ᾼ ᾈ ᾲ", "ŉ ǰ ΐ ΰ և ẖ", "ß\u0307 İ\u0307 i\u0307\u0301 J\u030c",
]


def byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(other)}}


def train(corpus, merges):
    """Plain byte-pair encoding: join the commonest pair, ties by text, MERGES times."""
    alphabet = byte_alphabet()
    words = collections.Counter(corpus.lower().split())
    split = {w: [*(alphabet[b] for b in w.encode()[:-1]), alphabet[w.encode()[-1]] + "</w>"] for w in words}
    rules = []
    while len(rules) < merges:
        pairs = collections.Counter()
        for w, n in words.items():
            for pair in zip(split[w], split[w][1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = max(pairs, key=lambda p: (pairs[p], p))
        rules.append(best)
        for w, s in split.items():
            i = 0
            while i + 1 < len(s):
                if (s[i], s[i + 1]) == best:
                    s[i : i + 2] = [s[i] + s[i + 1]]
                i += 1
    letters = [alphabet[b] for b in sorted(alphabet, key=lambda b: ord(alphabet[b]))]
    tokens = letters + [x + "</w>" for x in letters] + [a + b for a, b in rules]
    return list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"], rules


def token(content, normalized):
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}


START, END = "<|startoftext|>", "<|endoftext|>"


def wrappings(size):
    """Folder -> its files besides vocab.json and merges.txt, as published models have them."""
    start, end = token(START, True), token(END, True)
    typed = lambda t: {"__type": "AddedToken", **t}
    decoder = {"0": {**token("!", False), "special": True}, str(size - 2): {**start, "special": True}, str(size - 1): {**end, "special": True}}
    return {
        "bare": {},
        "sd1": {"special_tokens_map.json": {"bos_token": start, "eos_token": end, "pad_token": END, "unk_token": end},
                "tokenizer_config.json": {"bos_token": typed(start), "eos_token": typed(end), "pad_token": END, "unk_token": typed(end),
                                          "model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}},
        "sd2": {"special_tokens_map.json": {"bos_token": start, "eos_token": end, "pad_token": "!", "unk_token": end},
                "tokenizer_config.json": {"bos_token": typed(start), "eos_token": typed(end), "pad_token": END, "unk_token": typed(end),
                                          "model_max_length": 77}},
        "turbo": {"special_tokens_map.json": {"bos_token": token(START, False), "pad_token": END},
                  "tokenizer_config.json": {"added_tokens_decoder": decoder, "bos_token": START, "eos_token": END, "pad_token": "!",
                                            "unk_token": END, "model_max_length": 77}},
        "inversion": {"added_tokens.json": {"<cat-toy>": size, "<cat": size + 1, "<cat toy>": size + 2}, "special_tokens_map.json": {"additional_special_tokens": ["</w>"], "unk_token": token(END, False)},
                      "tokenizer_config.json": {"pad_token": typed(token("!", True)), "model_max_length": 1e30}},
    }


def write_cases(tokenizer, texts, folder):
    cases = []
    for text in texts:
        data, full = text.encode(), tokenizer(text).input_ids
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=MAX).input_ids
        used = min(len(full), MAX)
        cases.append(struct.pack("<I", len(data)) + data + struct.pack(f"<II{MAX}i", used, len(full) - used, *ids))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.bin").write_bytes(b"LDTK" + struct.pack("<III", 1, MAX, len(cases)) + b"".join(cases))
    print(f"{folder.name}: {len(tokenizer)} tokens, {len(cases)} cases, pad {tokenizer.pad_token_id}")


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/data/tokenizer")
    vocab, rules = train(CORPUS, MERGES)
    rnd = random.Random(20)
    texts = HARD + [random_text(rnd) for _ in range(RANDOM_TEXTS)]
    for name, files in wrappings(len(vocab)).items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocab)}, ensure_ascii=name != "sd1"))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in rules))
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content, indent=2) + "\n")
        write_cases(CLIPTokenizer.from_pretrained(folder), texts, folder)
    CLIPTokenizer.from_pretrained(out / "sd2").save_pretrained(out / "fast")  # tokenizer.json in place of the older files
    write_cases(CLIPTokenizer.from_pretrained(out / "fast"), texts, out / "fast")
    shipped = Path(__file__).resolve().parent.parent / "models/latentd/emoji/tokenizer"
    write_cases(CLIPTokenizer.from_pretrained(shipped), texts, out / "emoji")


main()
