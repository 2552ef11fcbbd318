#!/usr/bin/env python3
"""Stage 3: wordings for the pictures, and the tokenizer that fits them.

As a library: Captions draws one training caption for a picture at a time.
As a program: trains the byte-level BPE tokenizer (CLIP's file format).
The prompts in heldout.json are for evaluation; they are never drawn.
"""
import argparse
import collections
import json
import os
import random
import re

import numpy as np

CACHE = os.environ.get("LATENTD_TRAIN", os.path.expanduser("~/.cache/latentd-train"))
HERE = os.path.dirname(os.path.abspath(__file__))

TEMPLATES = (
    "a picture of {}", "picture of {}", "an emoji of {}", "{} emoji", "a drawing of {}",
    "drawing of {}", "an icon of {}", "{} icon", "a photo of {}", "an image of {}",
    "a painting of {}", "an illustration of {}", "{}, emoji", "{}, drawing",
    "{} on a white background", "a cartoon of {}", "cartoon {}", "{} symbol", "show me {}",
    "draw {}", "please draw {}", "i want {}", "{} picture", "a sticker of {}", "{} clipart",
    "this is {}", "here is {}", "the emoji for {}", "a portrait of {}",
)
# Words that say nothing about which picture is meant: the model learns to skip them.
ADJECTIVES = (
    "beautiful", "nice", "pretty", "cute", "lovely", "funny", "simple", "tiny", "small",
    "big", "little", "large", "single", "colourful", "shiny", "great", "good", "cool",
    "typical", "classic", "old", "new", "fresh", "real", "perfect", "bright", "tasty",
)
PLACES = (
    "in the forest", "in the sky", "at night", "on the street", "in the sea", "on the sea",
    "in the water", "in the city", "on a farm", "on the beach", "in the garden", "for a party",
    "for you", "in winter", "in summer", "at home", "from the side", "on the wall",
    "in the snow", "on the grass", "on the table", "by the lake", "in the desert", "in space",
    "on the road", "in the mountains", "in spring", "in the rain", "in the morning",
    "on a plate", "in my hand", "at school", "at work", "in the kitchen", "in the woods",
    "with a smile", "and nothing else", "looking at you", "on the water", "up close",
)
COLOURS = {
    "red": (220, 50, 50), "orange": (245, 140, 30), "yellow": (250, 205, 50),
    "green": (90, 165, 60), "blue": (50, 120, 215), "purple": (150, 70, 190),
    "pink": (240, 120, 170), "brown": (130, 85, 60), "black": (40, 40, 40),
    "grey": (150, 150, 150),
}
SIZE_WORDS = {"small", "big", "little", "large", "old", "older", "tiny", "new", "young", "baby"}


def normal(s):
    return re.sub(r"\s+", " ", s.lower().replace("\u2019", "'")).strip()


def article(s, rng):
    r = rng.random()
    if re.match(r"(a|an|the|some|one|two|three|my|your) ", s) or r < 0.45:
        return s
    if r < 0.55:
        return "the " + s
    first = s.split(" ")[0]
    if first.endswith("s") and not first.endswith("ss") and " " not in s:
        return s if r < 0.8 else "some " + s
    return ("an " if s[0] in "aeiou" else "a ") + s


def colour_of(pic):
    """The one colour most of a picture has, or None."""
    p = pic.reshape(-1, 3).astype(np.float32)
    p = p[(p < 245).any(1)]
    if len(p) < 1000:
        return None
    ref = np.array(list(COLOURS.values()), np.float32)
    near = ((p[:, None] - ref[None]) ** 2).sum(-1).argmin(1)
    n = np.bincount(near, minlength=len(ref))
    return list(COLOURS)[n.argmax()] if n.max() > 0.55 * len(p) else None


class Captions:
    def __init__(self, work, pics=None, seed=0):
        with open(os.path.join(work, "meta.json")) as f:
            self.meta = json.load(f)
        with open(os.path.join(HERE, "heldout.json")) as f:
            self.held = {normal(e["prompt"]) for e in json.load(f)}
        self.rng = random.Random(seed)
        names = {e["name"] for e in self.meta}
        syn = {}
        with open(os.path.join(HERE, "synonyms.txt")) as f:
            for line in f:
                line = line.strip()
                if line and line[0] != "#":
                    # Names may hold colons themselves ("keycap: 1").
                    hit = [n for n in names if line.startswith(n + ": ")]
                    if not hit:
                        raise SystemExit("no such picture: " + line[:60])
                    name = max(hit, key=len)
                    syn[name] = line[len(name) + 1:].split(";")
        uses = collections.Counter(normal(k) for e in self.meta for k in set(e["keywords"]))
        taken = {normal(s) for v in syn.values() for s in v} | {normal(n) for n in names}
        self.entries = []
        for i, e in enumerate(self.meta):
            name = normal(e["name"])
            kws = [normal(k) for k in e["keywords"] if normal(k) != name]
            self.entries.append(dict(
                name=name,
                names=[name] + [normal(n) for n in e["also"]] + self.rules(name),
                syn=[normal(s) for s in syn.get(e["name"], []) if s.strip()],
                # A keyword alone must mean one picture only.
                own=[k for k in kws if uses[k] == 1 and k not in taken],
                kws=kws,
                colour=colour_of(pics[i]) if pics is not None else None,
                plain=not (set(name.split()) & (SIZE_WORDS | set(COLOURS) | {"white"})),
            ))

    @staticmethod
    def rules(name):
        """Rewordings of a CLDR name that are right whatever the name."""
        out = []
        m = re.fullmatch(r"(.*) face", name)
        if m:
            out += [m.group(1) + " smiley", "face, " + m.group(1), m.group(1) + " emoji face",
                    m.group(1) + " yellow face" if "face" not in m.group(1) else name]
        m = re.fullmatch(r"face with (.*)", name)
        if m:
            out += ["smiley with " + m.group(1), "yellow face with " + m.group(1), m.group(1) + " face"]
        m = re.fullmatch(r"smiling face with (.*)", name)
        if m:
            out += ["smile with " + m.group(1), "happy face with " + m.group(1)]
        m = re.fullmatch(r"person (\w+ing.*)", name)
        if m:
            g = m.group(1)
            out += [g, "somebody " + g, "someone " + g, "a man " + g, "a woman " + g,
                    "a person " + g, "person who is " + g]
        m = re.fullmatch(r"person (in|with|wearing) (.*)", name)
        if m:
            out += ["someone " + m.group(1) + " " + m.group(2), "a man " + m.group(1) + " " + m.group(2)]
        m = re.fullmatch(r"(.*) button", name)
        if m:
            out += [m.group(1) + " sign", m.group(1)]
        m = re.fullmatch(r"(\w+)[ \u2019']+o'clock", name)
        if m:
            h = m.group(1)
            out += ["clock at " + h, "clock showing " + h, h + " on the clock", h + " oclock"]
        m = re.fullmatch(r"(\w+)-thirty", name)
        if m:
            out += ["half past " + m.group(1), "clock at " + m.group(1) + " thirty",
                    "clock showing " + name]
        m = re.fullmatch(r"keycap: (.*)", name)
        if m:
            out += ["number " + m.group(1), "key " + m.group(1), "digit " + m.group(1)]
        m = re.fullmatch(r"([\w ]+) with ([\w ]+)", name)
        if m:
            out += [m.group(1) + " and " + m.group(2), m.group(1) + " that has " + m.group(2)]
        if "-" in name:
            out.append(name.replace("-", " "))
        return out

    def draw(self, i):
        while True:
            s = self._draw(i)
            if s not in self.held:
                return s

    def _draw(self, i):
        e, rng = self.entries[i], self.rng
        r = rng.random()
        if e["syn"] and r < 0.5:
            s = rng.choice(e["syn"])
        elif e["own"] and r < 0.56:
            s = rng.choice(e["own"])
        elif r < 0.75 or len(e["names"]) == 1:
            s = e["name"]
        else:
            s = rng.choice(e["names"])
        whole = s
        if e["plain"] and rng.random() < 0.12 and not re.match(r"(a|an|the|two|one) ", s):
            s = rng.choice(ADJECTIVES) + " " + s
        if e["colour"] and e["plain"] and rng.random() < 0.1 and e["colour"] not in s \
                and not re.match(r"(a|an|the|two|one) ", s):
            s = e["colour"] + " " + s
        r = rng.random()
        if e["kws"] and r < 0.08:
            s = s + ", " + ", ".join(rng.sample(e["kws"], min(len(e["kws"]), rng.choice((1, 2, 3)))))
        elif r < 0.2:
            s = s + " " + rng.choice(PLACES)
        words = s.split(" ")
        if len(words) > 3 and rng.random() < 0.06:  # a lost word should not matter much
            del words[rng.randrange(len(words))]
            s = " ".join(words)
        s = article(s, rng)
        if rng.random() < 0.35:
            s = rng.choice(TEMPLATES).format(s)
        if rng.random() < 0.04:
            s = s + "."
        return normal(s) or whole


class Draw:
    """Which pictures come next: all in turn, those of common.txt more often."""

    def __init__(self, meta, count, common, rng):
        with open(os.path.join(HERE, "common.txt")) as f:
            names = set(f.read().strip().split("\n"))
        self.rng = rng
        often = [i for i, e in enumerate(meta) if e["name"] in names and common]
        rest = [i for i, e in enumerate(meta) if e["name"] not in names or not common]
        n = round(common * count)
        self.pools = [(often, n, []), (rest, count - n, [])]

    def __call__(self):
        out = []
        for pool, n, order in self.pools:
            while len(order) < n:
                order.extend(self.rng.permutation(pool).tolist())
            out += order[:n]
            del order[:n]
        return out


def bytes_to_unicode():
    """The printable stand-ins for the 256 bytes that CLIP and GPT-2 use."""
    bs = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    cs, n = bs[:], 0
    for b in range(256):
        if b not in bs:
            bs.append(b)
            cs.append(256 + n)
            n += 1
    return dict(zip(bs, map(chr, cs)))


def train_bpe(counts, merges):
    """counts: {word: n}. Returns the merge list, most frequent pair first."""
    enc = bytes_to_unicode()
    words = []
    for w, n in counts.items():
        t = [enc[b] for b in w.encode("utf-8")]
        t[-1] += "</w>"
        words.append([t, n])
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for j, (t, n) in enumerate(words):
        for p in zip(t, t[1:]):
            pairs[p] += n
            where[p].add(j)
    out = []
    while len(out) < merges and pairs:
        best = max(pairs.items(), key=lambda kv: (kv[1], kv[0]))
        if best[1] < 1:
            break
        a, b = best[0]
        out.append((a, b))
        for j in list(where[(a, b)]):
            t, n = words[j]
            for p in zip(t, t[1:]):
                pairs[p] -= n
                where[p].discard(j)
            u, k = [], 0
            while k < len(t):
                if k + 1 < len(t) and t[k] == a and t[k + 1] == b:
                    u.append(a + b)
                    k += 2
                else:
                    u.append(t[k])
                    k += 1
            words[j][0] = u
            for p in zip(u, u[1:]):
                pairs[p] += n
                where[p].add(j)
        pairs.pop((a, b), None)
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--work", default=CACHE)
    ap.add_argument("--vocab", type=int, default=2560)
    a = ap.parse_args()
    pics = np.load(os.path.join(a.work, "pictures.npy"))
    cap = Captions(a.work, pics)
    counts = collections.Counter()
    for _ in range(60):
        for i in range(len(cap.meta)):
            # CLIP's split: letters, single digits, runs of other signs.
            for w in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", cap.draw(i)):
                counts[w] += 1
    enc = list(bytes_to_unicode().values())
    merges = train_bpe(counts, a.vocab - 512 - 2)
    vocab = enc + [c + "</w>" for c in enc] + ["".join(m) for m in merges]
    while len(vocab) < a.vocab - 2:  # tiny corpora run out of pairs
        vocab.append("<|unused%d|>" % len(vocab))
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    d = os.path.join(a.work, "tokenizer")
    os.makedirs(d, exist_ok=True)
    with open(os.path.join(d, "vocab.json"), "w") as f:
        json.dump({t: i for i, t in enumerate(vocab)}, f, ensure_ascii=False)
    with open(os.path.join(d, "merges.txt"), "w") as f:
        f.write("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in merges))
    token = lambda s: {"content": s, "lstrip": False, "normalized": True, "rstrip": False,
                       "single_word": False}
    special = {"bos_token": token("<|startoftext|>"), "eos_token": token("<|endoftext|>"),
               "pad_token": "<|endoftext|>", "unk_token": token("<|endoftext|>")}
    with open(os.path.join(d, "special_tokens_map.json"), "w") as f:
        json.dump(special, f, indent=2)
    with open(os.path.join(d, "tokenizer_config.json"), "w") as f:
        json.dump(dict(special, add_prefix_space=False, do_lower_case=True, errors="replace",
                       model_max_length=77, tokenizer_class="CLIPTokenizer"), f, indent=2)
    print(len(counts), "words,", len(merges), "merges,", len(vocab), "tokens")


if __name__ == "__main__":
    main()
