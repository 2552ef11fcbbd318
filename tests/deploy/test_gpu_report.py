#!/usr/bin/env python3
"""scripts/gpu_prebuild.sh and scripts/gpu_report.sh without a GPU: small programs stand in for ours and for NVIDIA's, and
write down how they are called.

    tests/deploy/test_gpu_report.py [WORD ...]      only tests whose names contain a word
"""
import glob
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tests import ROOT, Skip, check, run_tests  # noqa: E402

NAMES = ["latentd", "checkkernels"] + sorted(path[len(ROOT) + 1:-len(".c")] for path in glob.glob(ROOT + "/tests/golden/test_*.c"))

# Each call is a line of CALLS: name, arguments, then what of the environment counts.
CALLED = '''#!/bin/bash
echo "$(basename "$0") $* | tune=${LATENTD_TUNE:-} libraries=${LD_LIBRARY_PATH:-} notes=$(ls "$LATENTD_CACHE" | xargs)" >>"$CALLS"
'''
LATENTD = CALLED + '''
case $1 in
kernels) echo "conv2d cuda" ;;
generate) while [ $# -gt 0 ]; do [ "$1" != -o ] || echo picture >"$2"; shift; done ;;
esac
'''
# The run over all ops is cut off in a trial.
CHECKKERNELS = CALLED + '''
case "$*" in
*--op*) echo "3 passed, 0 failed" ;;
*) echo head >"$LATENTD_CACHE/choices-GPU.txt.trial"; touch "$LATENTD_CACHE/choices-GPU.txt"; exit 1 ;;
esac
'''
SANITIZER = '''#!/bin/bash
tool=$2
while [[ $1 != */checkkernels ]]; do shift; done
"$@"
[ $tool = racecheck ] && echo "RACECHECK SUMMARY: 0 hazards displayed" || echo "ERROR SUMMARY: 0 errors"
'''


def script(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o755)


def report(folder, *parts):
    """(report.md, the calls) of PARTS, with an archive of programs and Python packages in FOLDER."""
    programs, tools, packages = (os.path.join(folder, name) for name in ("programs", "tools", "packages"))
    script(programs + "/latentd", LATENTD)
    script(programs + "/checkkernels", CHECKKERNELS)
    os.makedirs(programs + "/lib")
    script(tools + "/compute-sanitizer", SANITIZER)
    os.makedirs(packages + "/nvidia/cudnn/lib")
    archive = folder + "/programs.tar.xz"
    shutil.make_archive(folder + "/programs", "xztar", programs)
    env = {**os.environ, "PATH": tools + ":" + os.environ["PATH"], "PYTHONPATH": packages, "LATENTD_PREBUILT": archive,
           "LD_LIBRARY_PATH": "/of/the/machine", "CALLS": folder + "/calls", "LATENTD_CACHE": folder + "/mine",
           "TMPDIR": folder}
    words = [word for part in parts for word in ("--only", part)]
    subprocess.run([ROOT + "/scripts/gpu_report.sh", folder + "/out", "--quick", *words], env=env, capture_output=True,
                   text=True, check=False)
    with open(folder + "/out/report.md", encoding="utf-8") as file:
        text = file.read()
    with open(folder + "/calls", encoding="utf-8") as file:
        return text, file.read().splitlines()


def a_trial_cut_off_is_said_and_forgotten():
    with tempfile.TemporaryDirectory() as folder:
        text, calls = report(folder, "kernels", "bytes")
        pictures = [call for call in calls if call.startswith("latentd generate")]
        check(len(pictures) == 20 and all(call.endswith("notes=") for call in pictures), "the part behind it", pictures[:1])
        row = next(line for line in text.splitlines() if line.startswith("| kernels |"))
        check("trial of Hopper's kernels" in row and "choices-GPU.txt.trial" in row, row)
        check("| bytes | pass |" in text, text[:600])
        check(not os.path.exists(folder + "/mine"), "the folder of another's choices was used")


def libraries_of_the_machine_are_found():
    with tempfile.TemporaryDirectory() as folder:
        _, calls = report(folder, "bytes")
        found = calls[-1].split("libraries=")[1].split()[0].split(":")
        check(len(found) == 3 and found[0].endswith("/prebuilt/lib") and found[1] == "/of/the/machine"
              and found[2].endswith("/packages/nvidia/cudnn/lib"), found)


def sanitizers_run_every_candidate():
    with tempfile.TemporaryDirectory() as folder:
        text, calls = report(folder, "sanitizers")
        row = next(line for line in text.splitlines() if line.startswith("| sanitizers |"))
        ran = [call for call in calls if call.startswith("checkkernels")]
        for name, op in (("tma128x256/1", "linear"), ("wgmma128x128", "conv2d"), ("tma128x128", "conv_temporal")):
            count = sum(f"--op {op} --candidate {name} |" in call for call in ran)
            check(count == 4, f"{name} at {op} ran {count} times", row)
        check(sum("--op silu |" in call for call in ran) == 4, "an op without candidates", row)
        check(all("tune=0 " in call for call in ran), "a run under a tool times kernels")
        check("runs clean" in row and "| pass |" in row, row)


def programs_are_packed():
    if not shutil.which("xz"):
        raise Skip("no xz")
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            os.makedirs(os.path.dirname(f"{folder}/build/{name}"), exist_ok=True)
            shutil.copy("/bin/ls", f"{folder}/build/{name}")
        command = [ROOT + "/scripts/gpu_prebuild.sh", "--programs", folder + "/build", folder + "/set.tar.xz"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        check(done.returncode == 0, done.stdout, done.stderr)
        with tarfile.open(folder + "/set.tar.xz") as archive:
            packed = {os.path.normpath(member.name): member.mode for member in archive.getmembers()}
        check(all(packed.get(name, 0) & 0o111 for name in NAMES), sorted(packed))
        check(not any("libc.so" in name for name in packed), "the C library travels")
        os.unlink(f"{folder}/build/{NAMES[-1]}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        check(done.returncode != 0 and NAMES[-1] in done.stderr, "a program that is missing", done.stderr)


if __name__ == "__main__":
    sys.exit(run_tests([a_trial_cut_off_is_said_and_forgotten, libraries_of_the_machine_are_found, sanitizers_run_every_candidate,
                        programs_are_packed]))
