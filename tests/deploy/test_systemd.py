#!/usr/bin/env python3
"""deploy/systemd: systemd's own checker reads the unit, its security report stays good, and what the unit promises the daemon does.
What the daemon tells systemd is tested in tests/api/test_notify.c."""
import os
import re
import shutil
import subprocess
import sys
import tempfile

from tests import ROOT, Skip, check, read, run_tests

UNIT = read("deploy/systemd/latentd.service")
EXPOSURE_MAX = 20  # of 100


def analyze(*arguments):
    """systemd-analyze over the unit, as it would be if this build were installed."""
    if not shutil.which("systemd-analyze"):
        raise Skip("systemd-analyze is not installed")
    program = os.path.join(ROOT, os.environ.get("LATENTD_BIN", "build/latentd"))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "latentd.service")
        with open(path, "w") as file:
            file.write(UNIT.replace("ExecStart=/usr/bin/latentd", "ExecStart=" + program))
        ran = subprocess.run(["systemd-analyze", *arguments, path], capture_output=True, text=True,
                             env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"})
    return ran.returncode, ran.stdout + ran.stderr


def systemd_accepts_the_unit():
    status, said = analyze("verify", "--man=no")
    about = [line for line in said.splitlines() if "latentd" in line]
    check(status == 0 and not about, said)


def it_exposes_little():
    status, said = analyze("security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", "--no-pager")
    if "nrecognized option" in said:
        raise Skip("this systemd-analyze cannot look at a unit that is not loaded")
    level = re.search(r"Overall exposure level.*", said)
    print("  " + (level[0] if level else "no level"))
    check(status == 0 and level, said[-500:])


def it_fits_the_daemon():
    value = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.M))
    check(value["Type"] == "notify" and 'notify("READY=1' in read("src/main.c"))
    check(float(value["WatchdogSec"]) > 0 and 'notify("WATCHDOG=1' in read("src/http/watchdog.c"))
    drain = sum(float(s) for s in re.findall(r"#define (?:DRAIN|CUT|FLUSH|END)_SECONDS\s+([\d.]+)", read("src/main.c")))
    check(float(value["TimeoutStopSec"]) > drain, drain)
    documented = read("docs/settings.md")
    settings = re.findall(r"\b([A-Z][A-Z_]+)=", value["Environment"] + "\n" + read("deploy/systemd/latentd.env"))
    for name in set(settings) - {"HOME"}:
        check(f"`{name}`" in documented, name, "is no setting")


if __name__ == "__main__":
    sys.exit(run_tests([systemd_accepts_the_unit, it_exposes_little, it_fits_the_daemon]))
