#!/usr/bin/env python3
"""deploy/go-livepeer: the files have the fields that go-livepeer reads, and a daemon does what they promise: the URLs are answered as
its polls want them, also while a picture is made."""
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from tests import ROOT, check, read, run_tests

PIPELINES = ("text-to-image", "image-to-image", "image-to-video", "upscale")
MODEL = {"pipeline": str, "model_id": str, "url": str, "token": str, "warm": bool, "capacity": int, "price_per_unit": int,
         "optimization_flags": dict}
RUNNER = {"label": str, "routing": str, "app": str, "version": str, "mode": str, "runner_url": str, "health_url": str,
          "healthy_status_code": int, "capacity": int, "price_info": dict}


def fields(entry, known, needed):
    for name, value in entry.items():
        check(name in known and isinstance(value, known[name]), name, value)
    check(set(needed) <= set(entry), "misses", set(needed) - set(entry))


def load(name):
    return json.loads(read("deploy/go-livepeer", name))


def the_models_have_their_fields():
    for name, needed in (("aiModels.json", ("pipeline", "model_id", "price_per_unit")),
                         ("aiModels-external.json", ("pipeline", "model_id", "url", "capacity", "price_per_unit"))):
        for entry in load(name):
            fields(entry, MODEL, needed)
            check(entry["pipeline"] in PIPELINES)
    images = load("image-overrides.json")
    check(set(images) == {"default", "batch"} and set(images["batch"]) <= set(PIPELINES))
    targets = re.findall(r"AS (cuda|cpu)$", read("Dockerfile"), re.M)
    for image in (images["default"], *images["batch"].values()):
        check(image.split(":")[1] in targets, image)


def the_runners_have_their_fields():
    for entry in load("live-runners.json")["runners"]:
        fields(entry, RUNNER, ("app", "mode", "runner_url", "health_url", "capacity", "price_info"))
        check(entry["routing"] in ("label", "runner-id") and entry["mode"] in ("single-shot", "persistent"))
        check(entry["price_info"]["currency"] == "usd" and entry["price_info"]["unit"] in ("hour", "720p", "fixed"))
        check(float(entry["price_info"]["price"]) > 0)
    # one runs and LATENTD_QUEUE may wait; more would be refused
    queue = int(re.search(r"CONFIG_QUEUE_DEFAULT = (\d+)", read("include/config.h"))[1])
    for entry in load("live-runners.json")["runners"] + load("aiModels-external.json"):
        check(entry["capacity"] == queue + 1, entry["capacity"])


def polls_are_answered_while_a_picture_is_made():
    env = {**os.environ, "PORT": "0", "HOST": "127.0.0.1", "MODEL_DIR": os.path.join(ROOT, "tests/api/data"),
           "PIPELINE": "text-to-image", "MODEL_ID": "latentd/tiny", "AUTH_TOKEN": "secret"}
    program = os.path.join(ROOT, os.environ.get("LATENTD_BIN", "build/latentd"))
    with tempfile.TemporaryFile() as log, subprocess.Popen([program], env=env, stderr=log) as daemon:
        try:
            port, end = None, time.time() + 20
            while not port and time.time() < end:
                time.sleep(0.05)
                log.seek(0)
                port = re.search(rb"listening on http://127.0.0.1:(\d+)", log.read())
            base = f"http://127.0.0.1:{int(port[1])}"

            def get(path):
                try:
                    with urllib.request.urlopen(base + path, timeout=3) as reply:
                        return reply.status, reply.headers["Content-Type"], reply.read().decode()
                except urllib.error.HTTPError as reply:
                    return reply.code, reply.headers["Content-Type"], ""
            end = time.time() + 20
            while get("/health")[0] != 200 and time.time() < end:
                time.sleep(0.05)

            def generate():
                body = b'{"prompt":"a","model_id":"latentd/tiny","width":128,"height":128,"num_inference_steps":150,"seed":1}'
                headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
                urllib.request.urlopen(urllib.request.Request(base + "/text-to-image", body, headers), timeout=60).read()
            job = threading.Thread(target=generate)
            job.start()
            health = load("live-runners.json")["runners"][0]["health_url"].split(":8000")[1]
            polls, running = 0, False
            while job.is_alive():
                for path in (health, "/health", "/version", "/hardware/info"):
                    status, kind, _ = get(path)
                    check(status == 200 and "json" in kind, path, status, kind)
                polls += 1
                running = running or re.search(r"\nlatentd_requests_running 1\n", get("/metrics")[2]) is not None
            check(polls > 1 and running, "the job was over before it was polled")
        finally:
            daemon.terminate()


if __name__ == "__main__":
    sys.exit(run_tests([the_models_have_their_fields, the_runners_have_their_fields, polls_are_answered_while_a_picture_is_made]))
