#!/usr/bin/env bash
# Imports scripts/modal_app.py with the real package modal (PyPI, into a virtual environment under /tmp), looks at what it declares, and
# starts what a container would start, on this machine's CPU with the tiny model of the tests. Needs no account: nothing is deployed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${LATENTD_TEST_CACHE:-/tmp/latentd-tests}/modal
[ -x "$venv/bin/modal" ] || { python3 -m venv "$venv" && "$venv/bin/pip" install -q modal==1.6.4; }
[ -x build/latentd ] || make -s -j"$(nproc)" WERROR=0 CUDA=0 all
PYTHONPATH=scripts "$venv/bin/python" - <<'PY'
import os
import pathlib
import re
import socket
import urllib.request
import warnings

import modal

warnings.simplefilter("error")  # what the package calls deprecated
import modal_app

functions = {name: it for name, it in vars(modal_app).items() if isinstance(it, modal.Function)}
print("functions:", ", ".join(sorted(functions)))
endpoints = set(functions) - {"download_model"}
assert "download_model" in functions and len(endpoints) >= 6
for name in endpoints:
    assert functions[name]._spec_.gpus, name
    assert list(functions[name]._spec_.volumes) == ["/models"], name
    assert functions[name]._spec_.secrets, name
assert functions["download_model"]._spec_.secrets

# the image copies what there is, and installs what the Dockerfile's target cuda installs
text = pathlib.Path("Dockerfile").read_text()
build = re.search(r"AS build-cuda\nRUN apt-get.*?--no-install-recommends (.*?)\nWORKDIR", text, re.S)[1]
wanted = set(build.replace("\\\n", " ").split()) - {"binutils", "ccache"}
assert wanted == set(modal_app.PACKAGES), wanted ^ set(modal_app.PACKAGES)
base = re.search(r"ARG CUDA=(\S+)\nARG UBUNTU=(\S+)", text)
assert f"nvidia/cuda:{base[1]}-cudnn-devel-{base[2]}" in pathlib.Path("scripts/modal_app.py").read_text()

with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    modal_app.PORT = s.getsockname()[1]
os.environ["MODEL_DIR"] = "tests/api/data"
daemon = modal_app.serve("text-to-image", "latentd/tiny", "build/latentd", 30)
body = b'{"prompt": "a", "num_inference_steps": 1}'
request = urllib.request.Request(f"http://127.0.0.1:{modal_app.PORT}/text-to-image", body, {"Content-Type": "application/json"})
assert urllib.request.urlopen(request).status == 200
daemon.terminate()
assert daemon.wait(10) == 0
try:
    modal_app.serve("text-to-image", "not/there", "build/latentd", 30)
    raise SystemExit("a daemon that ends was taken for ready")
except RuntimeError as why:
    print("without a model:", why)
print("1 passed, 0 failed")
PY
