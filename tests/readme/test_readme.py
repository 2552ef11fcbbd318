#!/usr/bin/env python3
"""Runs the commands of README.md and docs/running.md (their blocks that begin with ```sh), line by line, in a folder of their
own, and looks at the pictures that they write. A line that names port 8000 gets a daemon that serves the path it asks for."""
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from daemon import TOP, Count, Daemon  # noqa: E402

PAGES = ("README.md", "docs/running.md")
# Lines that are not run here, and why.
LEFT_OUT = [
    (r"^scripts/test\.sh", "it is what runs this test"),
    (r"stabilityai/|^make ", "needs weights from the hub, or builds what is built"),
    (r"^([A-Z_]+=\S+ )*build/latentd( &)?$", "a daemon that does not end: the lines behind it are run against one of the test's own"),
    (r"^kill ", "ends that daemon"),
]


def commands(page):
    """Lines of the page's ```sh blocks; continued lines are one, comments are cut off."""
    path = TOP / page
    if not path.exists():
        return
    for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#\s.*$|^#.*$", "", line).strip()
            if line:
                yield line


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Daemons:
    """One of each pipeline, started when a line needs it."""

    def __init__(self):
        self.running = {}

    def url(self, pipeline):
        if pipeline not in self.running:
            settings = {"image-to-video": {"MODEL_ID": "latentd/emoji-video"},
                        "upscale": {"MODEL_ID": "latentd/upscaler", "MODEL_DIR": str(TOP / "tests/golden/data/upscale")}}
            self.running[pipeline] = Daemon(PIPELINE=pipeline, **settings.get(pipeline, {"MODEL_ID": "latentd/emoji"}))
        return self.running[pipeline].url

    def close(self):
        for daemon in self.running.values():
            daemon.close()


def run(line, folder, daemons):
    """Runs LINE; what it writes with -o must be a picture, a video or JSON, and new."""
    env = {**os.environ, "MODEL_DIR": str(TOP / "models"), "LC_ALL": "C.UTF-8"}
    for name in ("PIPELINE", "MODEL_ID", "AUTH_TOKEN"):
        env.pop(name, None)
    line = line.replace("build/latentd ", str((TOP / (os.environ.get("LATENTD_BIN") or "build/latentd")).resolve()) + " ")
    where = folder
    if line.startswith("scripts/quickstart.sh"):
        where, line = TOP, line.replace("quickstart.sh", "quickstart.sh --once")
        env.update(PORT=str(free_port()), OUT=str(folder / "mountain-lion.png"))
        env.pop("MODEL_DIR")
    if "127.0.0.1:8000" in line:
        found = re.search(r":8000/(text-to-image|image-to-image|image-to-video|upscale)", line)
        line = line.replace("http://127.0.0.1:8000", daemons.url(found.group(1) if found else "text-to-image"))
        line = re.sub(r"\bcurl\b", "curl -sS --fail-with-body", line)
    names = re.findall(r"-o (\S+)", line) + (["mountain-lion.png"] if where == TOP else [])
    for name in names:
        (folder / name).unlink(missing_ok=True)
    done = subprocess.Popen(["bash", "-ec", line], cwd=where, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        said = done.communicate(timeout=120)[0]
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, signal.SIGTERM)
        raise
    assert done.returncode == 0, f"status {done.returncode}: {said[-500:]}"
    for name in names:
        head = (folder / name).read_bytes()[:12]
        kinds = {".png": head.startswith(b"\x89PNG"), ".mp4": head[4:8] == b"ftyp", ".json": head.startswith((b"{", b"["))}
        assert kinds.get(pathlib.Path(name).suffix, len(head) > 0), f"{name} begins with {head!r}"


def png(path, width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
                     chunk(b"IDAT", zlib.compress((b"\0" + b"\x30\xa0\xe0" * width) * height)) + chunk(b"IEND", b""))


def main():
    count = Count()
    with tempfile.TemporaryDirectory(prefix="latentd-readme-") as folder:
        work = pathlib.Path(folder) / "work"
        work.mkdir()
        png(work / "small.png", 24, 24)  # the reader's own
        daemons = Daemons()
        try:
            for page in PAGES:
                for line in commands(page):
                    reason = next((why for pattern, why in LEFT_OUT if re.search(pattern, line)), None)
                    if reason:
                        print(f"left out: {line}: {reason}")
                    else:
                        count.test(f"{page}: {line[:90]}", run, line, work, daemons)
        finally:
            daemons.close()
    return count.end()


if __name__ == "__main__":
    sys.exit(main())
