#!/usr/bin/env python3
"""What Pillow makes of small picture files, whole and cut, and of resizing; for tests/unit/test_image_*.c.

    scripts/export_image_goldens.py [--out tests/unit/data/images]

Needs Pillow 10.3.0 (the ai-runner's) and cjpeg of libjpeg-turbo (for arithmetic coding, which Pillow does not write).

    NAME.EXT       the files, 19 x 13 pixels unless the name says otherwise
    NAME.EXT.rgb   the pixels of a lossy file, for which another release of a decoder may round otherwise
    pictures.txt   NAME.EXT width height CRC-32 of the RGB bytes
    cuts.txt       NAME.EXT, then LENGTH:CRC for every length from which on a file cut there decodes to something else;
                   a CRC of - is a file that is refused
    resize.txt     width height new-width new-height filter pattern CRC; the patterns are made alike in the C test

Where latentd means to differ from Pillow 10.3, the expected pixels are made here by other means: 16-bit grey is cut to its
high byte (Pillow clips it to white), and run-length encoded BMP files are left out of the cuts (Pillow refuses short ones), as are JPEG files of arithmetic coding
(there Pillow shows nothing) and progressive ones (releases of libjpeg-turbo smooth what is missing in different ways).
"""
import argparse
import io
import pathlib
import struct
import subprocess
import zlib

import numpy as np
import PIL
from PIL import Image, ImageFile

W, H = 19, 13
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
rng = np.random.default_rng(4)
ImageFile.LOAD_TRUNCATED_IMAGES = True


def noise(*shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def soft(channels, w=W, h=H):
    y, x = np.mgrid[0:h, 0:w]
    a = [np.sin(x / 4 + c) * 60 + np.cos(y / 3 * (c + 1)) * 60 + 128 + rng.normal(0, 6, (h, w)) for c in range(channels)]
    return np.stack(a, -1).clip(0, 255).astype(np.uint8)


def save(im, kind, **options):
    out = io.BytesIO()
    im.save(out, kind, **options)
    return out.getvalue()


def decode(data):
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


# ---- PNG: written by hand, so that every depth, colour type, filter and pass is there

def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(depth, colour, interlaced, w=W, h=H):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    raw, high = b"", np.zeros((h, w), np.uint8)
    for x0, y0, dx, dy in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        columns, rows = (w - x0 + dx - 1) // dx, (h - y0 + dy - 1) // dy
        for r in range(rows if columns > 0 else 0):
            line = noise((columns * channels * depth + 7) // 8).tobytes()
            kind = int(rng.integers(5)) if (depth, colour) != (16, 0) else 0
            raw += bytes([kind]) + line
            if (depth, colour) == (16, 0):
                high[y0 + r * dy, x0::dx] = np.frombuffer(line, ">u2") >> 8
    extra = chunk(b"gAMA", struct.pack(">I", 30000))
    if colour == 3:
        extra += chunk(b"PLTE", noise(3 * min(1 << depth, 200)).tobytes()) + chunk(b"tRNS", b"\0\x80\xff")
    elif colour == 2:
        extra += chunk(b"tRNS", bytes(6))
    elif colour == 0:
        extra += chunk(b"tRNS", bytes(2))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, interlaced))
    data = b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return data, np.stack([high] * 3, -1) if (depth, colour) == (16, 0) else None


def png_files():
    for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))):
        for depth in depths:
            for interlaced in (0, 1):
                yield (f"colour{colour}-{depth}bit{'-interlaced' * interlaced}.png", *png(depth, colour, interlaced))
    yield ("1x1-interlaced.png", *png(8, 2, 1, 1, 1))
    yield ("3x9-interlaced.png", *png(4, 3, 1, 3, 9))


# ---- JPEG

def jpeg_files():
    rgb = Image.fromarray(soft(3))
    for quality, subsampling in ((50, 2), (90, 1), (97, 0)):
        yield f"quality{quality}-subsampling{subsampling}.jpg", save(rgb, "JPEG", quality=quality, subsampling=subsampling), None
    yield "grey.jpg", save(rgb.convert("L"), "JPEG"), None
    yield "progressive.jpg", save(rgb, "JPEG", progressive=True), None
    yield "restarts.jpg", save(rgb, "JPEG", restart_marker_blocks=1), None
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    yield "exif-turned.jpg", save(rgb, "JPEG", exif=exif), None
    cmyk = save(Image.fromarray(soft(4), "CMYK"), "JPEG", quality=85)
    yield "cmyk.jpg", cmyk, None
    at = cmyk.index(b"Adobe") + 11
    yield "ycck.jpg", cmyk[:at] + b"\2" + cmyk[at + 1 :], None
    ppm = save(rgb, "PPM")
    yield "arithmetic.jpg", subprocess.run(["cjpeg", "-arithmetic", "-quality", "80"], input=ppm, capture_output=True, check=True).stdout, None


# ---- WebP, GIF

def webp_frame(canvas, at, chunk_of_frame):
    """An animation of one frame, AT an even place of its canvas."""
    def part(name, data):
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def three(*values):
        return b"".join(struct.pack("<I", v)[:3] for v in values)

    frame = three(at[0] // 2, at[1] // 2, W - 1, H - 1, 100) + b"\0" + chunk_of_frame
    body = b"WEBP" + part(b"VP8X", struct.pack("<I", 2) + three(canvas[0] - 1, canvas[1] - 1))
    return part(b"RIFF", body + part(b"ANIM", bytes(6)) + part(b"ANMF", frame))


def webp_files():
    rgb, rgba = Image.fromarray(soft(3)), Image.fromarray(soft(4))
    yield "lossy.webp", save(rgb, "WEBP", quality=70), None
    yield "lossy-alpha.webp", save(rgba, "WEBP", quality=70), None
    yield "lossless.webp", save(rgb, "WEBP", lossless=True), None
    yield "lossless-alpha.webp", save(rgba, "WEBP", lossless=True, exact=True), None
    yield "animated.webp", save(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)], lossless=True), None
    yield "animated-offset-40x30.webp", webp_frame((40, 30), (6, 10), save(rgb, "WEBP", lossless=True)[12:]), None


def gif(canvas, at, frame, transparent=None, local=False):
    """FRAME, as Pillow encodes it, at AT on a canvas of its own size."""
    data = save(frame, "GIF")
    size = data[10] & 7
    colours = data[13 : 13 + (6 << size)]
    image = data.index(b",\0\0\0\0", 13 + len(colours))
    out = data[:6] + struct.pack("<HHBBB", *canvas, data[10], 0, 0) + colours
    if transparent is not None:
        out += b"!\xf9\4" + bytes([1, 0, 0, transparent]) + b"\0"
    out += b"!\xfe\5hello\0," + struct.pack("<HHHH", *at, *frame.size)
    return out + (bytes([0x80 | size]) + colours[::-1] if local else b"\0") + data[image + 10 :]


def gif_files():
    p = Image.fromarray(soft(3)).quantize(64)
    small = Image.fromarray(soft(3, 11, 9)).quantize(32)
    yield "plain.gif", save(p, "GIF", interlace=0), None
    large = Image.fromarray(soft(3, 18, 21)).quantize(32)  # Pillow does not interlace what is smaller than 16
    yield "interlaced-18x21.gif", save(large, "GIF", interlace=1), None
    yield "grey.gif", save(Image.fromarray(soft(3)).convert("L"), "GIF"), None
    yield "animated.gif", save(p, "GIF", save_all=True, append_images=[p.rotate(180)], transparency=5, duration=10), None
    yield "offset-20x24.gif", gif((20, 24), (5, 6), small), None
    yield "offset-transparent-local-20x24.gif", gif((20, 24), (5, 6), small, 7, True), None
    yield "beyond-its-canvas-14x15.gif", gif((5, 4), (3, 6), small), None
    stray = gif((11, 9), (0, 0), small, 7)  # bytes that begin no block, before each block and behind the last extension
    for block in (b"!\xf9", b"!\xfe", b"\0,\0\0"):
        stray = stray.replace(block, b"\0\x7fGIF" + block, 1)
    yield "stray-bytes-11x9.gif", stray, None


# ---- BMP

def bmp(bits, compression, body, colours=b"", masks=(), length=40, turned=False, used=0):
    header = struct.pack("<IiiHHIIiiII", length, W, -H if turned else H, 1, bits, compression, len(body), 0, 0, used, 0)
    header = (header + struct.pack(f"<{len(masks)}I", *masks)).ljust(length, b"\0")
    at = 14 + len(header) + len(colours)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + header + colours + body


def runs(literal, nibbles):
    out = b""
    for _ in range(H):
        x = 0
        while x < W:
            n = min(W - x, int(rng.integers(1, 9)))
            if n >= 3 and n % literal == 0 and rng.integers(2):
                body = noise(n // 2 if nibbles else n).tobytes()
                out += bytes([0, n]) + body + b"\0" * (len(body) % 2)
            else:
                out += bytes([n, int(rng.integers(256))])
            x += n
        out += b"\0\0"
    return out + b"\0\1"


def bmp_files():
    colours = noise(1024).tobytes()
    body = {bits: noise((W * bits + 31) // 32 * 4 * H).tobytes() for bits in (1, 4, 8, 16, 24, 32)}
    for bits in (1, 4, 8):
        yield f"palette-{bits}bit.bmp", bmp(bits, 0, body[bits], colours[: 4 << bits]), None
    for bits in (16, 24, 32):
        yield f"{bits}bit.bmp", bmp(bits, 0, body[bits]), None
    yield "top-down.bmp", bmp(24, 0, body[24], turned=True), None
    yield "ten-colours.bmp", bmp(8, 0, body[8], colours[:40], used=10), None
    yield "masks-565.bmp", bmp(16, 3, body[16], masks=(0xF800, 0x7E0, 0x1F), length=40), None
    yield "masks-xbgr.bmp", bmp(32, 3, body[32], masks=(0xFF000000, 0xFF0000, 0xFF00, 0), length=108), None
    yield "masks-rgba.bmp", bmp(32, 3, body[32], masks=(0xFF, 0xFF00, 0xFF0000, 0xFF000000), length=124), None
    yield "os2.bmp", b"BM" + struct.pack("<IHHIIHHHH", 0, 0, 0, 26, 12, W, H, 1, 24) + body[24], None
    yield "rle8.bmp", bmp(8, 1, runs(1, False), colours), None
    yield "rle4.bmp", bmp(4, 2, runs(4, True), colours[:64]), None


def cuts(data):
    last, out = None, []
    for n in range(len(data)):
        try:
            crc = f"{zlib.crc32(decode(data[:n]).tobytes()):08x}"
        except (OSError, SyntaxError, ValueError):
            crc = "-"
        if crc != last:
            out.append(f"{n}:{crc}")
        last = crc
    return " ".join(out)


# ---- Resizing

def pattern(w, h, kind):
    """0: noise; 1: only black and white, which drives the filters out of range; 2: a ramp."""
    n = w * h * 3
    state, out = w * 7919 + h, bytearray(n)
    for i in range(n):
        state = (state * 1664525 + 1013904223) % 2**32
        out[i] = i * 7 % 256 if kind == 2 else state >> 24 if kind == 0 else state >> 31 and 255
    return Image.frombytes("RGB", (w, h), bytes(out))


def resize_lines():
    sides = [1, 2, 3, 5, 8, 17, 33, 64, 100]
    for n in range(240):
        w, h, to_w, to_h = (int(v) for v in rng.choice(sides, 4))
        to_w, to_h = (w, to_h) if n % 10 == 0 else (to_w, h) if n % 10 == 1 else (to_w, to_h)
        kind = n % 3
        for i, f in enumerate((Image.BICUBIC, Image.LANCZOS)):
            out = pattern(w, h, kind).resize((to_w, to_h), f)
            yield f"{w} {h} {to_w} {to_h} {i} {kind} {zlib.crc32(out.tobytes()):08x}"
    for w, h, to_w, to_h in ((1, 300, 300, 1), (2000, 1, 3, 2), (1, 1, 257, 129), (513, 257, 512, 256), (130, 67, 128, 64), (31, 1500, 16, 8)):
        for i, f in enumerate((Image.BICUBIC, Image.LANCZOS)):
            yield f"{w} {h} {to_w} {to_h} {i} 0 {zlib.crc32(pattern(w, h, 0).resize((to_w, to_h), f).tobytes()):08x}"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default="tests/unit/data/images")
    out = pathlib.Path(ap.parse_args().out)
    if PIL.__version__ != "10.3.0":
        raise SystemExit(f"Pillow {PIL.__version__} is not the ai-runner's: pip install pillow==10.3.0")
    out.mkdir(parents=True, exist_ok=True)
    pictures, cut_lines = [], []
    for files in (png_files, jpeg_files, webp_files, gif_files, bmp_files):
        for name, data, pixels in files():
            (out / name).write_bytes(data)
            pixels = decode(data) if pixels is None else pixels
            if name.endswith(".jpg") or name.startswith("lossy"):
                (out / f"{name}.rgb").write_bytes(pixels.tobytes())
            pictures.append(f"{name} {pixels.shape[1]} {pixels.shape[0]} {zlib.crc32(pixels.tobytes()):08x}")
            if "colour0-16bit" not in name and not name.startswith(("rle", "progressive", "arithmetic")):
                cut_lines.append(f"{name} {cuts(data)}")
    (out / "pictures.txt").write_text("\n".join(pictures) + "\n")
    (out / "cuts.txt").write_text("\n".join(cut_lines) + "\n")
    (out / "resize.txt").write_text("\n".join(resize_lines()) + "\n")


if __name__ == "__main__":
    main()
