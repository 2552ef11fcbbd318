"""Requests that schemathesis makes up from openapi.json, against real daemons of every pipeline: none may be answered in a way
that is not described there, and none may hurt a daemon. Called by scripts/check_schema.sh, which installs schemathesis.

Not asked: that what the schema does not allow is refused, and what it allows accepted; like FastAPI the daemon takes true for 1,
and wants a prompt that is not empty and an upload that is a picture."""
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from daemon import TOP, Count, Daemon, video_shelf  # noqa: E402

LEFT_OUT = "not_a_server_error,positive_data_acceptance,negative_data_rejection,response_schema_conformance"


def requests(daemon, pipeline, examples, seed):
    with tempfile.TemporaryDirectory(prefix="latentd-schema-") as folder:
        run = subprocess.run(
            ["schemathesis", "run", str(TOP / "openapi.json"), "--url", daemon.url, "--header", "Authorization: Bearer s",
             "--include-path-regex", pipeline + "|health|hardware|version", "--max-examples", examples, "--seed", seed,
             "--request-timeout", "60", "--exclude-checks", LEFT_OUT, "--continue-on-failure", "--no-color", "--warnings", "off"],
            cwd=folder, env={**os.environ, "SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": str(HERE)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(run.stdout if run.returncode else "\n".join(run.stdout.splitlines()[-5:]), flush=True)
    assert run.returncode == 0, f"schemathesis says {run.returncode}"
    assert daemon.get("/health")[0] == 200
    daemon.close()
    assert daemon.process.returncode == 0, f"the daemon ended with {daemon.process.returncode}:\n{daemon.log()[-5000:]}"
    errors = [line for line in daemon.log().splitlines() if "level=ERROR" in line]
    assert not errors, errors[:5]


def main():
    examples, seed = (sys.argv[1:] + ["100", "1"][len(sys.argv) - 1:])[:2]
    count = Count()
    with tempfile.TemporaryDirectory(prefix="latentd-schema-") as folder:
        video_shelf(folder)
        for pipeline, model, shelf in (("text-to-image", "latentd/emoji", TOP / "models"),
                                       ("image-to-image", "latentd/emoji", TOP / "models"),
                                       ("image-to-video", "latentd/svd", folder),
                                       ("upscale", "latentd/upscaler", TOP / "tests/golden/data/upscale")):
            with Daemon(PIPELINE=pipeline, MODEL_ID=model, MODEL_DIR=str(shelf), AUTH_TOKEN="s") as daemon:
                count.test("requests made up from openapi.json: " + pipeline, requests, daemon, pipeline, examples, seed)
    return count.end()


if __name__ == "__main__":
    sys.exit(main())
