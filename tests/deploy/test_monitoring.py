#!/usr/bin/env python3
"""Prometheus' own promtool reads the configuration and plays the stories of the alert rules, and every metric, label and value
of a label that a rule or a panel of the dashboard names is one that the daemon exports."""
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

from tests import CACHE, ROOT, Skip, check, read, run_tests

FOLDER = os.path.join(ROOT, "deploy", "prometheus")
exported = {}


def promtool():
    """Out of Debian's package, unpacked and not installed: installing it would start a server."""
    path = os.path.join(CACHE, "prometheus", "usr", "bin", "promtool")
    if not os.path.exists(path):
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o777)
            got = subprocess.run(["apt-get", "-q", "download", "prometheus"], cwd=folder, capture_output=True, text=True)
            files = [name for name in os.listdir(folder) if name.endswith(".deb")]
            if got.returncode or not files:
                raise Skip("no package prometheus: " + got.stderr.strip()[-200:])
            subprocess.run(["dpkg-deb", "-x", files[0], os.path.join(CACHE, "prometheus")], cwd=folder, check=True)
    return path


def tool(*arguments):
    ran = subprocess.run([promtool(), *arguments], cwd=FOLDER, capture_output=True, text=True)
    check(ran.returncode == 0, ran.stdout + ran.stderr)


def families():
    """What a daemon exports: name of the sample -> label -> its values."""
    if exported:
        return exported
    env = {**os.environ, "PORT": "0", "HOST": "127.0.0.1", "MODEL_DIR": os.path.join(ROOT, "tests/api/data"),
           "PIPELINE": "text-to-image", "MODEL_ID": "latentd/tiny"}
    program = os.path.join(ROOT, os.environ.get("LATENTD_BIN", "build/latentd"))
    with tempfile.TemporaryFile() as log, subprocess.Popen([program], env=env, stderr=log) as daemon:
        try:
            port, end = None, time.time() + 20
            while not port and time.time() < end:
                time.sleep(0.05)
                log.seek(0)
                port = re.search(rb"listening on http://127.0.0.1:(\d+)", log.read())
            base = f"http://127.0.0.1:{int(port[1])}"
            for path, body in (("/text-to-image", b'{"prompt":"a","num_inference_steps":1}'), ("/metrics", None)):
                for _ in range(200):
                    try:
                        request = urllib.request.Request(base + path, body, {"Content-Type": "application/json"})
                        text = urllib.request.urlopen(request, timeout=60).read().decode()
                        # a request counts when its connection is done with it, which the client does not wait for
                        if body or "latentd_http_requests_total{" in text:
                            break
                    except OSError:
                        pass
                    time.sleep(0.05)
        finally:
            daemon.terminate()
    for line in text.splitlines():
        sample = re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line)
        if sample:
            labels = exported.setdefault(sample[1], {})
            for label, value in re.findall(r'(\w+)="([^"]*)"', sample[2] or ""):
                labels.setdefault(label, set()).add(value)
    # only on a GPU, as src/http/metrics.c writes them
    exported["latentd_gpu_memory_bytes"] = {"gpu": {"0"}, "state": {"used", "free"}}
    check('latentd_gpu_memory_bytes{gpu=\\"0\\",state=\\"used\\"}' in read("src/http/metrics.c"))
    return exported


WORDS = "by without ignoring on and or unless sum max min avg rate increase changes time histogram_quantile avg_over_time label_values"


def check_query(query, where):
    """Every name in QUERY is an exported sample with such labels, or one that Prometheus adds."""
    scraped = {"instance": None, "job": None}
    known = families()
    used = 0
    for name, selector in re.findall(r"\b([a-z_]+)\b(?:\{([^}]*)\})?(?!\s*[=!]~?\")", query):
        if name in WORDS.split() or name in ("up", "le"):
            continue
        if name in known:
            used += 1
            for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', selector):
                check(label in known[name] or label in scraped, f"{where}: {name} has no label {label}")
                if label not in scraped:
                    for word in value.split("|") if "~" in operator else [value]:
                        check(word in known[name][label] or name == "latentd_http_requests_total",
                              f"{where}: {name} has no {label} \"{word}\", only {sorted(known[name][label])}")
        else:
            # a label in by (…), on (…) or ignoring (…)
            check(any(name in labels for labels in known.values()) or name in scraped, f"{where}: nothing exports {name}")
    return used


def the_configuration_is_valid():
    tool("check", "config", "prometheus.yml")


def the_alerts_fire_when_they_should():
    tool("test", "rules", "latentd.test.yml")


def every_alert_has_a_story():
    alerts = re.findall(r"alert: (\w+)", read("deploy/prometheus/latentd.rules.yml"))
    stories = read("deploy/prometheus/latentd.test.yml")
    for alert in alerts:
        check(re.search(rf"alertname: {alert}\n\s+exp_alerts", stories), alert, "never fires in the tests")
        check(re.search(rf"alertname: {alert}}}", stories), alert, "is never seen silent")


def rules_name_metrics_that_exist():
    text = read("deploy/prometheus/latentd.rules.yml")
    found = re.findall(r"expr: (?:\|\n((?: {10,}.*\n)+)|(.*)\n)", text)
    check(len(found) == text.count("alert:"))
    for block, line in found:
        check(check_query(block or line, "rules") or "up{" in line, "no metric in", block or line)


def panels_name_metrics_that_exist():
    board = json.loads(read("deploy/grafana/latentd.json"))
    panels = [p for p in board["panels"] if p["type"] != "row"]
    check(len(panels) > 15 and len({p["id"] for p in panels}) == len(panels))
    for p in panels:
        check(p["targets"], p["title"])
        for target in p["targets"]:
            query = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            check(check_query(query, p["title"]), "no metric in", target["expr"])
    for v in board["templating"]["list"]:
        if v["type"] == "query":
            check(check_query(v["query"]["query"], v["name"]))


def panels_are_prometheus_queries():
    """promtool parses them as the expressions of rules."""
    board = json.loads(read("deploy/grafana/latentd.json"))
    rules = [{"record": f"x{i}", "expr": t["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")}
             for i, t in enumerate(t for p in board["panels"] for t in p.get("targets", []))]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump({"groups": [{"name": "panels", "rules": rules}]}, file)
        file.flush()
        tool("check", "rules", file.name)


if __name__ == "__main__":
    sys.exit(run_tests([the_configuration_is_valid, the_alerts_fire_when_they_should, every_alert_has_a_story,
                        rules_name_metrics_that_exist, panels_name_metrics_that_exist, panels_are_prometheus_queries]))
