#!/usr/bin/env python3
"""The container without an engine: the steps of the Dockerfile's target cpu in a debootstrap root, then the daemon in it as
its user, process 1 of its namespace, on a read-only root with an empty /models: healthy, and draws a picture.

Layers are kept in $LATENTD_TEST_CACHE (/tmp/latentd-tests), packages for a week. Needs root, overlay mounts and Debian's mirror.
"""
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib

import dockerfile
from tests import CACHE, ROOT, Skip, check, read, run_tests

MIRROR = "http://deb.debian.org/debian"
SIZE_MAX = 150e6
TEXT = read("Dockerfile")
built = {}


def check_overlay():
    """Layers need overlay mounts, which a container may not make, and which do not lie on another overlay."""
    with tempfile.TemporaryDirectory(dir=os.path.join(CACHE, "deploy")) as folder:
        for name in ("lower", "upper", "work", "at"):
            os.mkdir(os.path.join(folder, name))
        tried = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", "lowerdir=lower,upperdir=upper,workdir=work", "at"],
                               cwd=folder, capture_output=True, text=True)
        if tried.returncode:
            raise Skip("no overlay mounts below " + CACHE + ": " + tried.stderr.strip()[-200:])
        subprocess.run(["umount", "at"], cwd=folder, check=True)


def slim_root(image):
    """What debian:*-slim is: the minimal system, without documentation, manuals, translations and package lists."""
    suite = re.fullmatch(r"debian:(\w+)-slim", image)
    if not suite:
        raise ValueError(f"{image} is not a base that is made here")
    root = os.path.join(CACHE, "deploy", "base-" + suite[1])
    check_overlay()
    if os.path.exists(root + ".done"):
        return root, root
    if not shutil.which("debootstrap"):
        raise Skip("debootstrap is not installed")
    shutil.rmtree(root, ignore_errors=True)
    print(f"  debootstrap {suite[1]}", flush=True)
    made = subprocess.run(["debootstrap", "--variant=minbase", suite[1], root, MIRROR], capture_output=True, text=True)
    if made.returncode:
        raise Skip("debootstrap cannot work here: " + (made.stdout + made.stderr).strip()[-200:])
    excluded = ["doc", "groff", "info", "linda", "lintian", "locale", "man"]
    with open(root + "/etc/dpkg/dpkg.cfg.d/docker", "w") as file:
        for name in excluded:
            file.write(f"path-exclude /usr/share/{name}/*\n")
        file.write("path-include /usr/share/doc/*/copyright\n")
    for name in excluded:
        for where, folders, files in os.walk(f"{root}/usr/share/{name}"):
            for file in files:
                if name != "doc" or file != "copyright":
                    os.unlink(os.path.join(where, file))
    for path in ("var/lib/apt/lists", "var/cache/apt", "var/log"):
        shutil.rmtree(f"{root}/{path}")
    for path in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt"):
        os.makedirs(f"{root}/{path}")
    os.unlink(root + "/etc/apt/sources.list")
    with open(root + "/etc/apt/sources.list.d/debian.sources", "w") as file:
        file.write(f"Types: deb\nURIs: {MIRROR}\nSuites: {suite[1]} {suite[1]}-updates\nComponents: main\n"
                   "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
                   f"Types: deb\nURIs: {MIRROR}-security\nSuites: {suite[1]}-security\nComponents: main\n"
                   "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n")
    open(root + ".done", "w").close()
    return root, root


def image():
    if "failure" in built:
        raise built["failure"]
    if "image" not in built:
        built["builder"] = dockerfile.Builder(TEXT, ROOT, os.path.join(CACHE, "deploy"), slim_root)
        try:
            built["image"] = built["builder"].build("cpu")
        except Exception as why:
            built["failure"] = why
            raise
    return built["image"], built["builder"]


def tree_size(path):
    seen, size = set(), 0
    for where, folders, files in os.walk(path):
        for name in files:
            info = os.lstat(os.path.join(where, name))
            if info.st_ino not in seen:
                seen.add(info.st_ino)
                size += info.st_size
    return size


class Container:
    """docker run: process 1 in a namespace of its own, as the image's user, on a read-only root."""

    def __init__(self, command=(), env=None, models=None):
        made, self.builder = image()
        self.at = self.builder.mount(made.layers, self.empty())
        self.models = models or self.empty()
        for volume in made.volumes:
            dockerfile.bind(self.models, self.at + volume)
        subprocess.run(["mount", "-o", "remount,ro", self.at], check=True)
        self.env = {**made.env, **(env or {})}
        self.process = self.start(made.entrypoint + list(command))

    def empty(self):
        self.builder.count += 1
        path = f"{self.builder.scratch}/empty-{os.getpid()}-{self.builder.count}"
        os.makedirs(path)
        return path

    def inside(self, command):
        made = image()[0]
        with open(self.at + "/etc/passwd") as file:
            uid, gid = next(line.split(":")[2:4] for line in file if line.startswith(made.user + ":"))
        return ["chroot", f"--userspec={uid}:{gid}", self.at, "/usr/bin/env", "-C", made.workdir, *command]

    def start(self, command):
        self.log = f"{self.builder.scratch}/log-{os.getpid()}-{self.builder.count}"
        with open(self.log, "wb") as log:
            return subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", *self.inside(command)], env=self.env,
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def health(self):
        return subprocess.run(self.inside(image()[0].health), env=self.env, check=False).returncode

    def said(self):
        with open(self.log, encoding="utf-8") as file:
            return file.read()

    def child(self):
        """The process that is number 1 inside."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            return int(file.read().split()[0])

    def wait(self, seconds):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.close()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.at:
            self.builder.unmount(self.at)
            self.at = None


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def png_pixels(data):
    """(width, height, the filtered rows) of an RGB PNG."""
    check(data[:8] == b"\x89PNG\r\n\x1a\n", "not a PNG")
    width, height = struct.unpack(">II", data[16:24])
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        packed += data[at + 8:at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return width, height, zlib.decompress(packed)


def the_steps_work():
    made, _ = image()
    check(made.user not in ("root", "0", ""), "runs as root")
    check(made.exposed == ["8000"] and made.volumes == ["/models"], made.exposed, made.volumes)
    check(made.env["HOST"] == "0.0.0.0" and made.env["PORT"] == "8000" and made.env["MODEL_DIR"] == "/models")


def the_image_is_small():
    """As an engine counts: the base and every layer of the last stage, hidden files too."""
    sizes = [tree_size(path) for path in image()[0].layers]
    print(f"  {sum(sizes) / 1e6:.1f} MB: base {sizes[0] / 1e6:.1f}, layers " + ", ".join(f"{s / 1e6:.1f}" for s in sizes[1:]))
    check(sum(sizes) < SIZE_MAX, f"{sum(sizes) / 1e6:.1f} MB")


def the_daemon_serves_the_shipped_model():
    port = free_port()
    c = Container(env={"PORT": str(port)})
    base = f"http://127.0.0.1:{port}"
    try:
        end = time.time() + 60
        while c.health() and c.process.poll() is None and time.time() < end:
            time.sleep(0.1)
        check(c.health() == 0, "not healthy:", c.said()[-2000:])
        with open(f"/proc/{c.child()}/status") as file:
            status = file.read()
        check(re.search(r"\nNSpid:\s+\d+\s+1\n", status), "not process 1")
        check("\nUid:\t10001\t10001\t10001\t10001\n" in status, "another user")
        body = json.dumps({"prompt": "slice of pizza", "seed": 7}).encode()
        request = urllib.request.Request(base + "/text-to-image", body, {"Content-Type": "application/json", "Accept": "image/png"})
        with urllib.request.urlopen(request, timeout=120) as reply:
            width, height, rows = png_pixels(reply.read())
        check((width, height) == (128, 128) and len(set(rows)) > 100, width, height, len(set(rows)))
        os.kill(c.child(), signal.SIGTERM)
        check(c.wait(8) == 0, "did not end with status 0 after SIGTERM")
    finally:
        c.close()


def commands_work():
    for command, words in (
            (["--version"], "latentd "), (["kernels"], "conv2d"), (["openapi", "--type", "json"], '"openapi"'),
            (["pull", "--help"], "latentd pull"),
            (["bench", "--runs", "1", "--num_inference_steps", "1"], "inference"),
            (["generate", "a red heart", "-o", "/models/heart.png", "--seed", "1"], "")):
        c = Container(command)
        if command[0] == "generate":
            os.chmod(c.models, 0o777)
        status = c.wait(120)
        check(status == 0 and words in c.said(), command, status, c.said()[-1000:])
        if command[0] == "generate":
            with open(c.models + "/heart.png", "rb") as file:
                check(png_pixels(file.read())[0] == 128)


def there_is_an_encoder_of_videos():
    c = Container(env={"PIPELINE": "image-to-video", "MODEL_ID": "not/there", "PORT": "0"})
    check(c.wait(20) == 1 and "videos are encoded by libopenh264" in c.said(), c.said())


def the_targets_agree():
    """cuda is not built here: whatever cpu promises, cuda must say in the same words, and what it copies must exist."""
    found = {name: steps for _, name, steps in dockerfile.stages(dockerfile.parse(TEXT))[1]}
    for word in ("ARG", "EXPOSE", "VOLUME", "USER", "WORKDIR", "HEALTHCHECK", "ENTRYPOINT"):
        check([s for s in found["cpu"] if s[0] == word] == [s for s in found["cuda"] if s[0] == word], word)
    check(set(s for s in found["cpu"] if s[0] == "ENV") < set(s for s in found["cuda"] if s[0] == "ENV"), "ENV")
    check([s for s in found["build-cpu"] if s[0] == "COPY"] == [s for s in found["build-cuda"] if s[0] == "COPY"], "COPY")
    check(list(found)[-1] == "cpu", "the default target is another")


def the_context_holds_what_is_copied():
    allowed = [line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")]
    for word, rest in dockerfile.parse(TEXT):
        if word == "COPY" and "--from" not in rest:
            for name in dockerfile.words(rest)[:-1]:
                check(os.path.exists(os.path.join(ROOT, name)), name, "is not there")
                check(any(name == a or name.startswith(a + "/") for a in allowed), name, "is left out by .dockerignore")


def pulled_models_stay_at_home():
    """Of ./models, where `latentd pull` puts others, only what ships is sent to an engine, copied, and sent to Modal."""
    names = [line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")]
    for word, rest in dockerfile.parse(TEXT):
        if word == "COPY" and "--from" not in rest:
            names += dockerfile.words(rest)[:-1]
    names += re.findall(r'"([^"]+)"', re.search(r"for name in \((.*)\):\n +image = image.add_local_dir", read("scripts/modal_app.py"))[1])
    found = {name for name in names if name.startswith("models")}
    check(found == {"models/latentd"}, found)


def main():
    tests = [the_targets_agree, the_context_holds_what_is_copied, pulled_models_stay_at_home]
    # mounts that end with this process, whatever happens
    unshare = ["unshare", "--mount", "--propagation", "private"]
    may = os.geteuid() == 0 and subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0
    if may and "LATENTD_NAMESPACE" not in os.environ:
        os.execvpe("unshare", [*unshare, sys.executable, *sys.argv], {**os.environ, "LATENTD_NAMESPACE": "1"})
    in_root = [the_steps_work, the_image_is_small, the_daemon_serves_the_shipped_model, commands_work,
               there_is_an_encoder_of_videos]
    if not may:
        def skip():
            raise Skip("only root can make a root, and where it may mount; its tests: " + ", ".join(t.__name__ for t in in_root))
        in_root = [skip]
    try:
        return run_tests(tests + in_root)
    finally:
        if "builder" in built:
            built["builder"].clean()


if __name__ == "__main__":
    sys.exit(main())
