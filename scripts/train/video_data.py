"""Clips for the video model: emoji that move over a background, each by the way its kind moves.

What a clip does follows from the picture alone: its main colour gives one of six motions (HUES), and the motion bucket
(0..255) scales it. Frame 0 is the input picture.
"""
import json
import os

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FRAMES, SIDE = 14, 128
MOTIONS = ("slide", "spin", "bounce", "pulse", "wave", "drift")

# The main colour of a picture says how it moves: hues in degrees up to which each motion reaches.
HUES = ((12, "pulse"), (36, "slide"), (66, "bounce"), (165, "wave"), (262, "drift"), (340, "spin"), (360, "pulse"))


def motion_of(rgba):
    """The motion of a sprite (uint8 [128, 128, 4]) by the hue that most of its coloured area has; grey things spin."""
    solid = rgba[..., 3] > 128
    hsv = cv2.cvtColor(np.float32(rgba[..., :3]) / 255, cv2.COLOR_RGB2HSV)
    strong = solid & (hsv[..., 1] > 0.3) & (hsv[..., 2] > 0.2)
    if strong.sum() < 0.25 * solid.sum():
        return MOTIONS.index("spin")
    bins = np.searchsorted([h for h, _ in HUES], hsv[strong, 0], side="left").clip(0, len(HUES) - 1)
    area = np.zeros(len(MOTIONS))
    np.add.at(area, [MOTIONS.index(HUES[i][1]) for i in bins], 1)
    return int(area.argmax())


def sprites(work, font="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"):
    """The pictures of prepare.py with their transparency: premultiplied float32 [N, 128, 128, 4], and each one's
    motion as a number. Kept in the work folder."""
    path = os.path.join(work, "sprites.npz")
    if not os.path.exists(path):
        with open(os.path.join(work, "meta.json")) as f:
            meta = json.load(f)
        face, pics = ImageFont.truetype(font, 109), []
        for e in meta:
            im = Image.new("RGBA", (136, 128))
            ImageDraw.Draw(im).text((0, 0), e["cp"], font=face, embedded_color=True, anchor="lt")
            pics.append(np.asarray(im)[:, 4:132])
        np.savez(path, pics=np.stack(pics), kind=np.array([motion_of(p) for p in pics]))
    z = np.load(path)
    p = z["pics"].astype(np.float32) / 255
    p[..., :3] *= p[..., 3:]
    return p, z["kind"]


def background(rng):
    """White, one colour, or a gradient from top to bottom: float32 [128, 128, 3]"""
    r = rng.random()
    if r < 0.45:
        return np.ones((SIDE, SIDE, 3), np.float32)
    a, b = (0.7 + 0.3 * rng.random((2, 3))).astype(np.float32)
    if r < 0.7:
        return np.broadcast_to(a, (SIDE, SIDE, 3)).copy()
    u = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
    if r > 0.92:  # a sky and a ground
        u = (u > 0.6 + 0.3 * rng.random()).astype(np.float32)
    return np.broadcast_to(a * (1 - u) + b * u, (SIDE, SIDE, 3)).copy()


def pose(kind, m, t):
    """How the emoji stands in frame t of 14 when the motion is m (0..1): dx, dy, angle, scale, pivot below centre.
    All kinds move by about as many pixels a frame."""
    u, name = t / (FRAMES - 1), MOTIONS[kind]
    if name == "slide":
        return -30 * m * u, 0, 0, 1, 0
    if name == "spin":
        return 0, 0, 50 * m * u, 1, 0
    if name == "bounce":
        return 0, -18 * m * np.sin(np.pi * u), 0, 1, 0
    if name == "pulse":
        return 0, 0, 0, 1 + 0.24 * m * np.sin(2 * np.pi * u), 0
    if name == "wave":
        return 0, 0, 11 * m * np.sin(2 * np.pi * u), 1, 0.5
    return 6 * m * np.sin(2 * np.pi * u), -24 * m * u, 0, 1, 0


def matrix(place, kind, m, t):
    """The 2x3 matrix from the sprite to frame t; place: scale, centre x, centre y"""
    s0, cx, cy = place
    dx, dy, angle, s, below = pose(kind, m, t)
    pivot = np.array([64.0, 64.0 + 128 * below * 0.9])
    a = np.deg2rad(angle)
    r = s0 * s * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    at = np.array([cx + dx, cy + dy + s0 * (pivot[1] - 64)])
    return np.column_stack([r, at - r @ pivot])


def frame(sprite, back, place, kind, m, t):
    """float32 [128, 128, 3] in 0..1"""
    w = cv2.warpAffine(sprite, matrix(place, kind, m, t), (SIDE, SIDE), flags=cv2.INTER_LINEAR)
    return w[..., :3] + back * (1 - w[..., 3:])


def place_of(rng):
    if rng.random() < 0.3:
        return 0.88 + 0.12 * rng.random(), 64.0, 64.0
    s = 0.5 + 0.35 * rng.random()
    room = 64 * (1 - s)
    return s, 64 + room * (2 * rng.random() - 1), 64 + room * (2 * rng.random() - 1)


def clip_of(sprite, back, place, kind, m, frames=range(FRAMES)):
    """float32 [F, 128, 128, 3] in 0..1"""
    return np.stack([frame(sprite, back, place, kind, m, t) for t in frames])
