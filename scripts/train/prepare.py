#!/usr/bin/env python3
"""Stage 1: draw the pictures and write the word lists they are trained with.

Reads the Noto Color Emoji font and the English names and keywords of Unicode
CLDR; writes pictures.npy (N x 128 x 128 x 3, uint8, white background) and
meta.json (one entry a picture: cp, name, keywords) into the work folder.
"""
import argparse
import json
import os
import re
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CACHE = os.environ.get("LATENTD_TRAIN", os.path.expanduser("~/.cache/latentd-train"))

# Pictures that are left out: many, hard to tell apart or nobody asks for them.
DROP_PREFIX = ("flag:", "family:", "kiss:", "couple with heart:", "person:", "man:",
               "woman:", "Japanese \u201c")
DROP_NAMES = {
    "asterisk", "hash sign", "dotted six-pointed star", "heavy equals sign",
    "white medium square", "black medium square", "white medium-small square",
    "black medium-small square", "white small square", "black small square",
    "small orange diamond", "small blue diamond", "red hair", "curly hair",
    "white hair", "bald", "pregnant man", "pregnant person", "mx claus",
    "men holding hands", "women holding hands", "man feeding baby",
    "woman feeding baby", "men with bunny ears", "women with bunny ears",
    "men wrestling", "women wrestling", "deaf man", "deaf woman",
    "white exclamation mark", "white question mark", "middle finger",
    "keycap: #", "keycap: *",
}
# Kept although a picture without gender stands for the same thing: they are
# asked for by themselves.
KEEP_NAMES = {
    "man", "woman", "old man", "old woman", "man dancing", "woman dancing", "merman",
    "mermaid", "pregnant woman", "woman with headscarf", "prince", "princess",
    "woman and man holding hands", "man beard",
}


def cldr(folder):
    """All annotated sequences, in file order: {cp: {"name":…, "keywords": […]}}"""
    out = {}
    for part in ("annotations", "annotationsDerived"):
        root = ET.parse(os.path.join(folder, part, "en.xml")).getroot()
        for a in root.iter("annotation"):
            e = out.setdefault(a.get("cp"), {"name": None, "keywords": []})
            if a.get("type") == "tts":
                e["name"] = a.text.strip()
            else:
                e["keywords"] = [k.strip() for k in a.text.split("|")]
    return out


def wanted(cp, e, names):
    name = e["name"]
    if not name or name in DROP_NAMES or name.startswith(DROP_PREFIX):
        return False
    if any(0x1F3FB <= ord(c) <= 0x1F3FF for c in cp):  # skin tones
        return False
    if name in KEEP_NAMES:
        return True
    # "man cook" and "woman cook" go when "cook" or "person ..." is there.
    m = re.match(r"(man|woman) (.*)", name)
    if m and (m.group(2) in names or "person " + m.group(2) in names):
        return False
    return True


def draw(font, cp):
    """The glyph on white, 128x128; None when the font has no colour glyph."""
    im = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(im).text((0, 0), cp, font=font, embedded_color=True, anchor="lt")
    a = np.asarray(im)
    if a[..., 3].max() == 0 or round(font.getlength(cp)) != 136:
        return None
    white = Image.new("RGBA", im.size, (255, 255, 255, 255))
    white.alpha_composite(im)
    # The font's cells are 136 wide; the outer 4 columns on each side are empty.
    return np.asarray(white.convert("RGB").crop((4, 0, 132, 128)))


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--font", default="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    ap.add_argument("--cldr", default="/usr/share/unicode/cldr/common")
    ap.add_argument("--work", default=CACHE)
    a = ap.parse_args()
    os.makedirs(a.work, exist_ok=True)

    font = ImageFont.truetype(a.font, 109)
    notes = cldr(a.cldr)
    names = {e["name"] for e in notes.values()}
    pics, meta, seen = [], [], {}
    for cp, e in notes.items():
        if not wanted(cp, e, names):
            continue
        p = draw(font, cp)
        if p is None:
            continue
        key = p.tobytes()
        if key in seen:  # the font draws some symbols alike: share the words
            meta[seen[key]]["also"].append(e["name"])
            continue
        seen[key] = len(meta)
        pics.append(p)
        meta.append({"cp": cp, "name": e["name"], "keywords": e["keywords"], "also": []})
    np.save(os.path.join(a.work, "pictures.npy"), np.stack(pics))
    with open(os.path.join(a.work, "meta.json"), "w") as f:
        json.dump(meta, f, ensure_ascii=False, indent=0)
    print(len(meta), "pictures")


if __name__ == "__main__":
    main()
