#!/usr/bin/env python3
"""/docs and /redoc in a real browser: pictures and a video made through the forms, uploads chosen and dropped, errors,
tokens, the keyboard, names and contrast of everything that is shown, light and dark, narrow and wide.

    tests/page/test_page.py [FOLDER]      FOLDER gets screenshots, to look at
"""
import json
import pathlib
import shlex
import struct
import subprocess
import sys
import tempfile
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from browser import Browser, find  # noqa: E402
from daemon import Count, Daemon, video_shelf  # noqa: E402

SHOTS = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
SIZES = {"wide": (1400, 1000), "narrow": (390, 844)}

# Text that is harder to read than WCAG's AA allows, as "element: ratio".
CONTRAST = """(() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (css) => { context.clearRect(0, 0, 1, 1); context.fillStyle = css; context.fillRect(0, 0, 1, 1); return context.getImageData(0, 0, 1, 1).data; };
  const over = (top, under) => [0, 1, 2].map((i) => (top[i] * top[3] + under[i] * (255 - top[3])) / 255);
  const back = (node) => !node ? [255, 255, 255] : over(rgba(getComputedStyle(node).backgroundColor), rgba(getComputedStyle(node).backgroundColor)[3] === 255 ? [0, 0, 0] : back(node.parentElement));
  const light = (c) => { const [r, g, b] = Array.from(c, (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const bad = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = Array.from(node.childNodes).some((n) => n.nodeType === 3 && n.data.trim()) || (node.value && node.matches('input, select, textarea'));
    if (!own || !node.getClientRects().length || node.closest('option, noscript, svg')) continue;
    const a = light(rgba(getComputedStyle(node).color)), b = light(back(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(node.tagName + '.' + node.className + ' "' + node.textContent.slice(0, 20) + '": ' + ratio.toFixed(2));
  }
  return bad;
})()"""


def shot(b, name, whole=True):
    if SHOTS:
        b.screenshot(SHOTS / (name + ".png"), whole)


def fill(b, form, **fields):
    for name, value in fields.items():
        b.js(f"(() => {{ const n = document.querySelector('#{form}-{name}'); n.value = {json.dumps(str(value))}; "
             "n.dispatchEvent(new Event('input', {bubbles: true})); })()")


def send(b, form, until):
    b.js(f"document.querySelector('#{form} .send').click()")
    return b.wait(f"(() => {{ const out = document.querySelector('#{form} .reply'); return out.getAttribute('aria-busy') ? null : ({until}); }})()", 30)


def picture(b, form):
    """Width of the picture that the form's reply shows, once it is loaded."""
    return send(b, form, "((i) => i && i.complete && i.naturalWidth)(out.querySelector('.gallery img'))")


def sound(b, url):
    """Nothing was loaded from elsewhere, nothing threw, nothing was refused by the policy."""
    loaded = [p["request"]["url"] for p in b.seen("Network.requestWillBeSent")]
    assert loaded, "nothing was loaded"
    for address in loaded:
        assert address.startswith((url, "data:", "blob:", "about:")), address
    assert not b.seen("Runtime.exceptionThrown"), b.seen("Runtime.exceptionThrown")
    logged = [p["entry"]["text"] for p in b.seen("Log.entryAdded") if p["entry"]["level"] == "error"]
    assert all("status of 4" in text or "status of 5" in text for text in logged), logged


def named(b):
    """Everything that takes the keyboard has a name."""
    nodes = b.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "combobox", "link", "slider", "progressbar", "image", "checkbox", "navigation", "region"}
    count = 0
    for node in nodes:
        role = node.get("role", {}).get("value")
        if node.get("ignored") or role not in roles:
            continue
        count += 1
        assert node.get("name", {}).get("value"), f"a {role} without a name: {node}"
    assert count > 20, count


def looks(b, daemon, path, name):
    for size, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            b.view(width, height, scheme)
            b.open(daemon.url + path)
            b.wait("document.querySelector('#health').textContent === 'ready'")
            shot(b, f"{name}-{size}-{scheme}")
            across = b.js("document.documentElement.scrollWidth")
            assert across <= width, f"{size}: {across} pixels across"
            assert b.js(CONTRAST) == [], (scheme, b.js(CONTRAST))
            dark = b.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 60")
            assert dark == (scheme == "dark"), scheme
    b.view(*SIZES["wide"], "light")


def docs_looks(b, daemon):
    looks(b, daemon, "/docs", "docs")
    named(b)


def redoc_looks(b, daemon):
    looks(b, daemon, "/redoc", "redoc")
    named(b)
    text = b.js("document.body.innerText")
    spec = json.loads(daemon.get("/openapi.json")[2])
    for schema in spec["components"]["schemas"]:
        assert b.js(f"!!document.getElementById('schema-{schema}')"), schema
    for field in spec["components"]["schemas"]["TextToImageParams"]["properties"].values():
        assert field["description"].split(".")[0] in text, field
    assert b.js("document.querySelectorAll('form').length") == 0


def theme_button(b, daemon):
    b.open(daemon.url + "/docs")
    for want in ("light", "dark", "auto"):
        b.js("document.querySelector('#theme').click()")
        assert b.js("document.documentElement.dataset.theme || 'auto'") == want
        assert b.js("document.querySelector('#theme').textContent") == "Theme: " + want
        dark = b.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 60")
        assert dark == (want == "dark"), want


def every_field(b, daemon):
    b.open(daemon.url + "/docs")
    spec = json.loads(daemon.get("/openapi.json")[2])
    for name, node in spec["components"]["schemas"]["TextToImageParams"]["properties"].items():
        help_text = b.js(f"document.querySelector('#genTextToImage-{name}-help').textContent")
        assert node["description"] in help_text, name
        assert b.js(f"document.querySelector('label[for=genTextToImage-{name}]').textContent") == name
        if node.get("default") not in (None, "", True):
            assert f"default {node['default']}." in help_text, (name, help_text)


def text_to_image(b, daemon):
    b.open(daemon.url + "/docs")
    b.js("document.querySelector('#genTextToImage-prompt').focus()")
    b.type("a mountain lion")
    fill(b, "genTextToImage", seed="18446744073709551615", num_inference_steps=20)
    b.js("document.querySelector('#genTextToImage-prompt').focus()")
    b.key("Enter", 13, modifiers=2)
    width = b.wait("((i) => i && i.complete && i.naturalWidth)(document.querySelector('#genTextToImage .gallery img'))", 30)
    assert width == 128, width
    assert "seed 18446744073709551615" in b.js("document.querySelector('#genTextToImage figcaption').textContent")
    assert b.js("document.querySelector('#genTextToImage .line .status').textContent") == "200"
    assert "x-request-id" in b.js("document.querySelector('#genTextToImage .reply details pre').textContent")
    assert b.js(CONTRAST) == [], b.js(CONTRAST)
    named(b)
    shot(b, "made-wide-light", False)


def the_curl_command_does_the_same(b, daemon):
    command = b.js("document.querySelector('#genTextToImage .code pre').textContent")
    reply = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=True).stdout
    shown = b.js("document.querySelector('#genTextToImage .gallery img').src")
    assert json.loads(reply)["images"][0]["url"] == shown, command


def the_picture_itself(b, daemon):
    b.js("(() => { const s = document.querySelector('#genTextToImage-accept'); s.value = 'image/png'; s.dispatchEvent(new Event('change')); })()")
    fill(b, "genTextToImage", seed=5)
    assert picture(b, "genTextToImage") == 128
    assert b.js("document.querySelector('#genTextToImage .gallery img').src").startswith("blob:")
    assert "seed 5" in b.js("document.querySelector('#genTextToImage figcaption').textContent")
    assert "Accept: image/png" in b.js("document.querySelector('#genTextToImage .code pre').textContent")


def odd_characters(b, daemon):
    """What a shell, JSON and a form would trip over arrives as it was typed, from the page and from its command."""
    b.open(daemon.url + "/docs")
    prompt = "it's \"100%\" $HOME `x` \\n <é>; a=b,\n@file"
    fill(b, "genTextToImage", prompt=prompt, seed=3, num_inference_steps=2)
    assert picture(b, "genTextToImage") == 128
    want = urllib.request.urlopen(urllib.request.Request(
        daemon.url + "/text-to-image", json.dumps({"prompt": prompt, "seed": 3, "num_inference_steps": 2}).encode(),
        {"Content-Type": "application/json"})).read()
    assert json.loads(want)["images"][0]["url"] == b.js("document.querySelector('#genTextToImage .gallery img').src")
    command = b.js("document.querySelector('#genTextToImage .code pre').textContent")
    assert json.loads(shlex.split(command)[shlex.split(command).index("-d") + 1])["prompt"] == prompt
    the_curl_command_does_the_same(b, daemon)


def errors_in_words(b, daemon):
    b.open(daemon.url + "/docs")
    fill(b, "genTextToImage", prompt="x", width="wide", num_inference_steps="2.5")
    words = send(b, "genTextToImage", "out.querySelector('ul.alert') && out.querySelector('ul.alert').innerText")
    assert "width: Input should be a valid integer" in words and "num_inference_steps" in words, words
    fill(b, "genTextToImage", width="100", num_inference_steps="")
    words = send(b, "genTextToImage", "out.querySelector('ul.alert') && out.querySelector('ul.alert').innerText")
    assert "divisible by 8" in words, words
    shot(b, "error-wide-light", False)
    b.js("document.querySelector('#genTextToImage button[type=reset]').click()")
    b.wait("document.querySelector('#genTextToImage .code pre').textContent.includes(\"-d '{}'\")")
    b.js("document.querySelector('#genTextToImage .send').click()")  # the browser itself says that the prompt is missing
    assert b.js("document.querySelector('#genTextToImage-prompt').matches(':invalid')")


def cancel(b, daemon):
    fill(b, "genTextToImage", prompt="x", width=1024, height=1024, num_inference_steps=500)
    b.js("document.querySelector('#genTextToImage .send').click()")
    b.wait("/step \\d+ of 500/.test(document.querySelector('#genTextToImage .reply').textContent)", 30)
    shot(b, "progress-wide-light", False)
    words = send(b, "genTextToImage", "out.querySelector('.alert') && out.querySelector('.alert').innerText")
    assert "Cancelled" in words, words
    b.wait("fetch('metrics').then((r) => r.text()).then((t) => /cancelled_total\\{reason=\"disconnect\"\\} 1/.test(t))")


def asking(b, daemon):
    b.open(daemon.url + "/docs")
    for form, text in (("health", '"OK"'), ("version", "latentd/emoji"), ("hardware_info", "gpu_info"), ("hardware_stats", "gpu_stats"),
                       ("live", ""), ("ready", "ready"), ("ping", ""), ("metrics", "latentd_model_ready 1")):
        assert text in send(b, form, "out.querySelector('.status.s2') && out.innerText + ' '"), form


def image_to_image(b, daemon, pictures):
    b.open(daemon.url + "/docs")
    fill(b, "genImageToImage", prompt="slice of pizza", strength=0.6, seed=7)
    b.choose_file("#genImageToImage-image", str(pictures / "in;put.png"))
    b.wait("document.querySelector('.preview img') && document.querySelector('.preview img').naturalWidth === 64")
    assert picture(b, "genImageToImage") == 64
    first = b.js("document.querySelector('#genImageToImage .gallery img').src")
    command = b.js("document.querySelector('#genImageToImage .code pre').textContent")
    reply = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=True, cwd=pictures).stdout
    assert json.loads(reply)["images"][0]["url"] == first, command
    b.drop_file(".drop", str(pictures / "two.png"))
    b.wait("document.querySelector('.preview figcaption').textContent.startsWith('two.png')")
    assert picture(b, "genImageToImage") == 96
    named(b)
    for size in SIZES:
        for scheme in ("light", "dark"):
            b.view(*SIZES[size], scheme)
            shot(b, f"image-to-image-{size}-{scheme}")
            assert b.js("document.documentElement.scrollWidth") <= SIZES[size][0]
    b.view(*SIZES["wide"], "light")
    b.js("Array.from(document.querySelectorAll('#genImageToImage .gallery button')).find((n) => n.textContent === 'Use as input').click()")
    b.wait("document.querySelector('.preview figcaption').textContent.startsWith('image-to-image-7.png')")


def image_to_video(b, daemon, pictures):
    b.open(daemon.url + "/docs")
    fill(b, "genImageToVideo", width=64, height=64, seed=7, num_inference_steps=2)
    b.choose_file("#genImageToVideo-image", str(pictures / "in;put.png"))
    seen = send(b, "genImageToVideo", "out.querySelector('.line .status') && out.querySelectorAll('.frames img').length")
    assert seen == 6, seen
    player = b.js("document.querySelector('#genImageToVideo video') ? 'video' : document.querySelector('input[type=range]') ? 'frames' : 'none'")
    if player == "video":
        b.wait("document.querySelector('#genImageToVideo video').readyState >= 2")
        b.js("document.querySelector('#genImageToVideo video').play()")
        b.wait("document.querySelector('#genImageToVideo video').currentTime > 0.1")
    else:
        before = b.js("document.querySelector('#genImageToVideo .gallery img').src")
        b.js("Array.from(document.querySelectorAll('#genImageToVideo .gallery button')).find((n) => n.textContent === 'Play').click()")
        b.wait(f"document.querySelector('#genImageToVideo .gallery img').src !== {json.dumps(before)}")
    named(b)
    shot(b, "image-to-video-wide-light", False)
    return player


def token(b, daemon):
    b.open(daemon.url + "/docs")
    fill(b, "genTextToImage", prompt="x", num_inference_steps=2)
    words = send(b, "genTextToImage", "out.querySelector('ul.alert') && out.querySelector('ul.alert').innerText")
    assert "Invalid bearer token." in words, words
    b.js("(() => { const n = document.querySelector('#token'); n.value = 'se cret'; n.dispatchEvent(new Event('input')); })()")
    assert picture(b, "genTextToImage") == 128
    command = b.js("document.querySelector('#genTextToImage .code pre').textContent")
    assert "Bearer $AUTH_TOKEN" in command and "se cret" not in command, command


def png(path, width, height, color):
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(color) * width) * height
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
                     chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def main():
    if not find():
        print("skip: no Chromium is installed here, so the pages were not looked at")
        print("0 passed, 0 failed")
        return 0
    count, b = Count(), Browser()
    with tempfile.TemporaryDirectory(prefix="latentd-page-") as folder:
        pictures = pathlib.Path(folder) / "pictures"
        pictures.mkdir()
        png(pictures / "in;put.png", 64, 64, (250, 180, 40))
        png(pictures / "two.png", 96, 96, (40, 90, 220))
        try:
            with Daemon() as daemon:
                for test in (docs_looks, redoc_looks, theme_button, every_field, text_to_image, the_curl_command_does_the_same, the_picture_itself,
                             odd_characters, errors_in_words, cancel, asking):
                    count.test(test.__name__, test, b, daemon)
                count.test("nothing from elsewhere: text-to-image", sound, b, daemon.url)
            b.leave()
            with Daemon(PIPELINE="image-to-image", MODEL_ID="latentd/emoji") as daemon:
                count.test("image_to_image", image_to_image, b, daemon, pictures)
                count.test("nothing from elsewhere: image-to-image", sound, b, daemon.url)
            b.leave()
            video_shelf(folder)
            with Daemon(PIPELINE="image-to-video", MODEL_ID="latentd/svd", MODEL_DIR=folder) as daemon:
                count.test("image_to_video", image_to_video, b, daemon, pictures)
                count.test("nothing from elsewhere: image-to-video", sound, b, daemon.url)
            b.leave()
            with Daemon(AUTH_TOKEN="se cret") as daemon:
                count.test("token", token, b, daemon)
        finally:
            b.close()
    return count.end()


if __name__ == "__main__":
    sys.exit(main())
