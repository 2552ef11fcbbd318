"""A real latentd for tests in Python: started on a free port, stopped at the end. Needs nothing but Python's library.

The program is $LATENTD_BIN, else build/latentd. Paths are from the top of the repository.
"""
import array
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
VIDEO = TOP / "tests/golden/data/image_to_video/latentd/svd"


def write_random_weights(recipe, path):
    """A safetensors file with the names and shapes of RECIPE, whose lines are "name AxBxC exponent offset". Values are random
    by the exponent around the offset; they make no picture, but every layer runs."""
    header, at, parts = {}, 0, []
    for line in recipe.read_text().splitlines():
        name, shape, exponent, offset = line.split()
        shape = [int(n) for n in shape.split("x")]
        count = 1
        for n in shape:
            count *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * count]}
        at += 4 * count
        table = [int(offset) + (k - 256 if k > 127 else k) * 2.0 ** int(exponent) for k in range(256)]
        parts.append(array.array("f", map(table.__getitem__, random.Random(name).randbytes(count))))
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            part.tofile(f)


def video_shelf(folder, frames=6):
    """Puts the tests' small image-to-video model into FOLDER, as latentd/svd."""
    to = pathlib.Path(folder) / "latentd/svd"
    shutil.copytree(VIDEO, to)
    config = to / "unet/config.json"
    config.write_text(re.sub(r'"num_frames": \d+', f'"num_frames": {frames}', config.read_text()))
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("image_encoder", "model")):
        write_random_weights(VIDEO / part / "tensors.txt", to / part / (stem + ".safetensors"))


class Daemon:
    """with Daemon(PIPELINE="image-to-image", MODEL_ID="latentd/emoji") as d: d.url, d.port, d.log()"""

    def __init__(self, **settings):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LATENTD_") and k not in
                 ("PIPELINE", "MODEL_ID", "MODEL_DIR", "AUTH_TOKEN", "VERSION", "HOST")}
        program = os.environ.get("LATENTD_BIN") or "build/latentd"
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen([str((TOP / program).resolve())], cwd=TOP, stderr=self.stderr, stdin=subprocess.DEVNULL,
                                        env={**clean, "PORT": "0", "MODEL_DIR": str(TOP / "models"), **settings})
        self.port = int(self._wait(lambda: re.search(r"listening on http://\S+:(\d+)", self.log())).group(1))
        self.url = f"http://127.0.0.1:{self.port}"
        self._wait(lambda: self.get("/health")[0] == 200)

    def _wait(self, ready, seconds=30):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            found = ready()
            if found:
                return found
            time.sleep(0.02)
        self.close()
        raise RuntimeError("latentd did not become ready:\n" + self.log())

    def log(self):
        self.stderr.seek(0)
        return self.stderr.read().decode()

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Count:
    """CHECK and TEST of tests/test.h, for Python: says what failed, goes on, and ends with "N passed, N failed"."""

    def __init__(self):
        self.passed = self.failed = 0

    def test(self, name, function, *given):
        try:
            function(*given)
            self.passed += 1
            print("ok   " + name, flush=True)
        except Exception as fault:  # whatever it is, the other tests still run
            self.failed += 1
            print(f"FAIL {name}: {type(fault).__name__}: {str(fault)[:1000]}", flush=True)

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed or not self.passed else 0
