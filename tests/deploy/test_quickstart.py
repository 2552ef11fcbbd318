#!/usr/bin/env python3
"""scripts/quickstart.sh in a folder where make does nothing, since the programs are built. (Its plain call is run by tests/readme.)"""
import http.server
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

from tests import ROOT, check, run_tests


def quickstart(port, **settings):
    """(status, what it said, the picture or None)"""
    program = os.path.abspath(os.path.join(ROOT, os.environ.get("LATENTD_BIN") or "build/latentd"))
    env = {k: v for k, v in os.environ.items() if k not in ("PIPELINE", "MODEL_ID", "MODEL_DIR", "OUT")}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("quickstart.sh", "packages.sh"):
            os.makedirs(folder + "/scripts", exist_ok=True)
            shutil.copy(os.path.join(ROOT, "scripts", name), folder + "/scripts")
        os.mkdir(folder + "/bin")
        os.symlink(shutil.which("true"), folder + "/bin/make")
        os.symlink(os.path.dirname(program), folder + "/build")
        os.symlink(os.path.join(ROOT, "models"), folder + "/models")
        env.update(settings, PORT=str(port), PATH=f"{folder}/bin:{env['PATH']}")
        ran = subprocess.run([folder + "/scripts/quickstart.sh", "--once"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, timeout=300)
        picture = folder + "/mountain-lion.png"
        if not os.path.exists(picture):
            return ran.returncode, ran.stdout, None
        with open(picture, "rb") as file:
            return ran.returncode, ran.stdout, file.read()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def another_program_is_not_taken_for_the_daemon():
    asked = []

    class Other(http.server.BaseHTTPRequestHandler):
        def answer(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")
        do_GET = do_POST = answer

        def log_message(self, *_):
            pass
    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        status, said, picture = quickstart(other.server_port)
        other.shutdown()
        check(status == 1 and f"port {other.server_port} is in use" in said, status, said)
    check(not picture and not asked, "asked for", asked)


def the_pipeline_of_pictures_may_be_named():
    """As it is told to whoever names one that makes neither pictures nor videos."""
    status, said, _ = quickstart(free_port(), PIPELINE="upscale")
    check(status == 2 and "text-to-image or image-to-video" in said, status, said)
    status, said, picture = quickstart(free_port(), PIPELINE="text-to-image")
    check(status == 0 and picture and picture.startswith(b"\x89PNG"), status, said)


def a_daemon_that_ends_has_the_last_word():
    status, said, picture = quickstart(free_port(), MODEL_ID="not/there")
    check(status == 1 and not picture and "[4/4]" not in said, status, said)
    check("model not/there is neither in" in said and said.endswith("its last lines above say why\n"), said)


if __name__ == "__main__":
    sys.exit(run_tests([another_program_is_not_taken_for_the_daemon, the_pipeline_of_pictures_may_be_named,
                        a_daemon_that_ends_has_the_last_word]))
