#!/usr/bin/env python3
"""Figures for the video model, made with build/latentd, and a contact sheet (--sheet).

51 pictures: 34 emoji of the training set drawn with a fixed seed, 17 that prepare.py left out (flags, people), each on a
background at a place drawn at random. Each becomes one video; the buckets are spread evenly over 0..255 and dealt out. Two
pictures of each motion become videos at 0, 128 and 255, too. "Real" is the clip that training would have shown.

first frame   PSNR of frame 0 against the picture
motion        mean length of the optical flow (Farneback) between neighbouring frames over the emoji's first area, in pixels, and
              that as a share of the real clip's at 255; their correlations (Pearson) with the bucket over all videos, and the
              mean of the correlations within a picture
all frames    PSNR of all frames against the real clip
flicker       mean size of the second difference in time of 8-bit values, model and real; and mean change from frame to frame
              where nothing moves in the real clip
"""
import argparse
import concurrent.futures
import os
import subprocess
import tempfile

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import train_image_encoder
from common import CACHE
from video_data import FRAMES, MOTIONS, SIDE, background, clip_of, frame, place_of, sprites

HERE = os.path.dirname(os.path.abspath(__file__))


def left_out(count, rng, font):
    """Sprites of emoji that the training never saw"""
    face = ImageFont.truetype(font, 109)
    flags = [chr(0x1F1E6 + ord(a) - 65) + chr(0x1F1E6 + ord(b) - 65) for a, b in
             ("FR", "JP", "BR", "DE", "SE", "CA", "IN", "GR", "KE", "MX", "UA", "CH")]
    people = [p + "\u200d" + s for p in "\U0001F468\U0001F469" for s in
              ("\U0001F33E", "\U0001F373", "\U0001F393", "\U0001F3A4", "\U0001F680", "\U0001F692", "\U0001F52C")]
    out = []
    for cp in rng.permutation(flags + people):
        im = Image.new("RGBA", (136, 128))
        ImageDraw.Draw(im).text((0, 0), str(cp), font=face, embedded_color=True, anchor="lt")
        if round(face.getlength(str(cp))) == 136:
            out.append(np.asarray(im)[:, 4:132].astype(np.float32) / 255)
    for p in out:
        p[..., :3] *= p[..., 3:]
    return out[:count]


def scenes_of(a):
    """name, scene, motion of each picture"""
    rng = np.random.default_rng(2026)
    pics, _ = sprites(a.work)
    chosen = [pics[i] for i in rng.choice(len(pics), a.pictures - a.pictures // 3, replace=False)]
    chosen += left_out(a.pictures // 3, rng, a.font)
    st = torch.load(os.path.join(a.work, "encoder.pt"))
    eye, head = train_image_encoder.build().eval(), torch.nn.Linear(32, len(MOTIONS))
    eye.load_state_dict(st["model"])
    head.load_state_dict(st["head"])
    out = []
    for sprite in chosen:
        scene = (sprite, background(rng), place_of(rng))
        with torch.no_grad():
            x = train_image_encoder.as_pixels([frame(*scene, 0, 0, 0)])
            out.append((scene, int(head(eye(pixel_values=x).image_embeds).argmax())))
    return out


def as_bytes(x):
    return (x.clip(0, 1) * 255).round().astype(np.uint8)


def generate(a, picture, bucket, seed):
    """uint8 [F, 128, 128, 3]"""
    with tempfile.TemporaryDirectory() as d:
        Image.fromarray(picture).save(os.path.join(d, "in.png"))
        subprocess.run([a.latentd, "generate", "--image", os.path.join(d, "in.png"), "-o", os.path.join(d, "f%02d.png"),
                        "--model_id", a.model_id, "--motion", str(bucket), "--seed", str(seed), "--steps", str(a.steps)],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, 
                       env=dict(os.environ, MODEL_DIR=a.models, LATENTD_THREADS="1"))
        names = sorted(n for n in os.listdir(d) if n.startswith("f"))
        return np.stack([np.asarray(Image.open(os.path.join(d, n)).convert("RGB")) for n in names])


def psnr(x, y):
    return -10 * np.log10(np.mean((x.astype(np.float64) - y) ** 2) / 255 ** 2 + 1e-10)


def motion(clip, area):
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in clip]
    total = 0.0
    for p, q in zip(grey, grey[1:]):
        flow = cv2.calcOpticalFlowFarneback(p, q, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        total += np.linalg.norm(flow, axis=-1)[area].mean()
    return total / (len(grey) - 1)


def second(clip):
    c = clip.astype(np.float64)
    return np.abs(c[2:] - 2 * c[1:-1] + c[:-2]).mean()


def measures(scene, kind, picture, bucket, clip):
    """PSNR of the first frame and of all, motion and real motion, second difference and real, change of what is still, real
    motion at bucket 255"""
    s, x, y = scene[2]
    area = cv2.warpAffine(scene[0][..., 3], np.float64([[s, 0, x - 64 * s], [0, s, y - 64 * s]]), (SIDE, SIDE)) > 0.5
    real = as_bytes(clip_of(*scene, kind, bucket / 255))
    still = (real == real[:1]).all((0, 3))
    change = np.abs(np.diff(clip.astype(np.float64), axis=0)).mean((0, 3))
    return (psnr(clip[0], picture), psnr(clip, real), motion(clip, area), motion(real, area), second(clip), second(real),
            change[still].mean() if still.any() else np.nan, motion(as_bytes(clip_of(*scene, kind, 1)), area))


def sheet(a, videos):
    """Two pictures of each motion at bucket 255: the input, then every second frame"""
    rows, seen = [], {}
    for picture, kind, clip in videos:
        if seen.get(kind, 0) < 2:
            seen[kind] = seen.get(kind, 0) + 1
            rows.append((kind, np.concatenate([picture] + [clip[t] for t in range(1, FRAMES, 2)], 1)))
    rows.sort(key=lambda r: r[0])
    im = Image.fromarray(np.concatenate([r for _, r in rows], 0)).resize((SIDE * 8 * 3 // 4, SIDE * len(rows) * 3 // 4), Image.LANCZOS)
    im.quantize(255).save(a.sheet, optimize=True)
    print(a.sheet, [MOTIONS[k] for k, _ in rows], os.path.getsize(a.sheet), "bytes")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--work", default=CACHE)
    ap.add_argument("--latentd", default=os.path.join(HERE, "../../build/latentd"))
    ap.add_argument("--models", default=os.path.join(HERE, "../../models"))
    ap.add_argument("--model_id", default="latentd/emoji-video")
    ap.add_argument("--font", default="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    ap.add_argument("--pictures", type=int, default=51)
    ap.add_argument("--steps", type=int, default=25)
    ap.add_argument("--jobs", type=int, default=2, help="videos at a time, each on one thread")
    ap.add_argument("--sheet")
    a = ap.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    scenes = [(i, *s) for i, s in enumerate(scenes_of(a))]
    dealt = np.random.default_rng(1).permutation(len(scenes)) * 255 // (len(scenes) - 1)
    asked = [(s, int(b)) for s, b in zip(scenes, dealt)]
    for kind in range(len(MOTIONS)):
        asked += [(s, b) for s in [s for s in scenes if s[2] == kind][:2] for b in (0, 128, 255)]
    rows, shown = [], []
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        clips = pool.map(lambda q: generate(a, as_bytes(frame(*q[0][1], 0, 0, 0)), q[1], 1), asked)
        for number, (((i, scene, kind), bucket), clip) in enumerate(zip(asked, clips)):
            picture = as_bytes(frame(*scene, 0, 0, 0))
            rows.append((i, bucket, *measures(scene, kind, picture, bucket, clip)))
            if number >= len(scenes) and bucket == 255:
                shown.append((picture, kind, clip))
    r = np.array(rows)
    one, own = r[:len(scenes)], [r[len(scenes):][r[len(scenes):, 0] == i] for i in set(r[len(scenes):, 0])]
    show = lambda name, m: print("%-22s %s" % (name, m))
    corr = lambda x, y: np.corrcoef(x, y)[0, 1]
    show("videos", "%d pictures, %d videos, %d steps" % (len(scenes), len(r), a.steps))
    unseen = one[one[:, 0] >= a.pictures - a.pictures // 3]
    show("first frame, dB", "mean %.1f, least %.1f; pictures never seen: %.1f" % (one[:, 2].mean(), one[:, 2].min(), unseen[:, 2].mean()))
    show("all frames, dB", "mean %.1f" % one[:, 3].mean())
    for name, m, real in (("pixels", r[:, 4], r[:, 5]), ("share of real", r[:, 4] / r[:, 9], r[:, 5] / r[:, 9])):
        show("motion, " + name, "r with the bucket %.2f (real clips %.2f)" % (corr(r[:, 1], m), corr(r[:, 1], real)))
    show("motion in a picture", "mean r with the bucket %.2f, least %.2f (of %d)" % (
        np.mean([corr(o[:, 1], o[:, 4]) for o in own]), np.min([corr(o[:, 1], o[:, 4]) for o in own]), len(own)))
    for b in (0, 128, 255):
        s = np.mean([o[o[:, 1] == b].mean(0) for o in own], 0)
        show("bucket %d" % b, "motion %.2f px (real %.2f), against real %.1f dB" % (s[4], s[5], s[3]))
    show("flicker", "second difference %.2f (real %.2f); where nothing moves %.2f of 255 a frame" % (
        one[:, 6].mean(), one[:, 7].mean(), np.nanmean(one[:, 8])))
    if a.sheet:
        sheet(a, shown)


if __name__ == "__main__":
    main()
