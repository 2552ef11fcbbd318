#!/usr/bin/env python3
"""deploy/k8s: the kustomize base and the rendered chart against Kubernetes' own schemas, in their strict form, and the chart with
its default values against the base: the same objects but for the sums in names. KEDA's ScaledObject and the Prometheus Operator's
PodMonitor are no part of Kubernetes; their fields are listed here.

kubernetes-validate (the schemas) and gotpl (Go templates with Helm's functions) come from PyPI into $LATENTD_TEST_CACHE. Helm itself
is not run: Debian has no package of it.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

from tests import CACHE, ROOT, Skip, check, read, run_tests

BASE = "deploy/k8s/base"
CHART = "deploy/k8s/chart"
VERSIONS = ("1.30", "1.37")
REQUIREMENTS = "tests/deploy/requirements.txt"


def enter_venv():
    """Runs this program again under a Python that has the two packages."""
    venv = os.path.join(CACHE, "kubernetes")
    python = os.path.join(venv, "bin", "python")
    if sys.prefix == venv:
        return None
    wanted = read(REQUIREMENTS)
    stamp = os.path.join(venv, "requirements.txt")
    if not os.path.exists(stamp) or open(stamp).read() != wanted:
        for command in ([sys.executable, "-m", "venv", "--clear", venv],
                        [python, "-m", "pip", "install", "-q", "-r", os.path.join(ROOT, REQUIREMENTS)]):
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode:
                return f"{' '.join(command)}: {ran.stderr.strip()[-300:]}"
        with open(stamp, "w") as file:
            file.write(wanted)
    os.execv(python, [python, *sys.argv])


def objects(text):
    import yaml
    return [o for o in yaml.safe_load_all(text) if o]


def base():
    import yaml
    kustomization = yaml.safe_load(read(BASE, "kustomization.yaml"))
    check(set(kustomization) == {"apiVersion", "kind", "namespace", "resources", "configMapGenerator"},
          "what this test does not carry out:", kustomization)
    there = sorted(name for name in os.listdir(os.path.join(ROOT, BASE)) if name != "kustomization.yaml")
    check(sorted(kustomization["resources"]) == there, kustomization["resources"], there)
    return [o for name in kustomization["resources"] for o in objects(read(BASE, name))] + [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": g["name"], "labels": g["options"]["labels"]},
         "data": dict(line.split("=", 1) for line in g["literals"])} for g in kustomization["configMapGenerator"]]


def render(release="latentd", namespace="latentd", **changes):
    """The chart's objects. CHANGES: values; a__b stands for a.b."""
    import gotpl
    import yaml
    from gotpl.funcs.helm import function_map
    values = yaml.safe_load(read(CHART, "values.yaml"))
    for name, value in changes.items():
        *path, last = name.split("__")
        place = values
        for word in path:
            place = place[word]
        check(last in place, "there is no value", name)
        place[last] = value
    data = {"Values": values, "Release": {"Name": release, "Namespace": namespace, "Service": "Helm"},
            "Chart": yaml.safe_load(read(CHART, "Chart.yaml"))}
    folder = os.path.join(ROOT, CHART, "templates")
    sources = {name: read(CHART, "templates", name) for name in sorted(os.listdir(folder))}
    engine = {}

    def unused(*_):
        raise NotImplementedError("the chart uses a function that is not carried out here")
    functions = function_map(include=lambda name, d: engine["all"].render_template(name, d), tpl=unused, required=unused, fail=unused)
    engine["all"] = gotpl.Template.from_sources(sources, functions=functions)
    return [o for name in sources if not name.startswith("_") for o in objects(engine["all"].render_template(name, data))]


def valid(found):
    import kubernetes_validate
    for o in found:
        if o["kind"] in ("ScaledObject", "PodMonitor"):
            (keda if o["kind"] == "ScaledObject" else operator)(o)
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(o, version, strict=True)
            except kubernetes_validate.ValidationError as why:
                check(False, f"{o['kind']} {o['metadata']['name']}, Kubernetes {version}: {str(why).splitlines()[0]}")


def has(place, required, optional=()):
    check(set(required) <= set(place) <= set(required) | set(optional), "not known, or missed:", place)


def keda(o):
    """The fields of keda.sh/v1alpha1 that are used, with their types."""
    has(o, ("apiVersion", "kind", "metadata", "spec"))
    has(o["spec"], ("scaleTargetRef", "triggers"), ("minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod"))
    check(all(isinstance(v, int) for k, v in o["spec"].items() if k not in ("scaleTargetRef", "triggers")))
    has(o["spec"]["scaleTargetRef"], ("name",), ("kind", "apiVersion"))
    for trigger in o["spec"]["triggers"]:
        has(trigger, ("type", "metadata"), ("metricType", "name", "authenticationRef"))
        check(trigger["type"] == "prometheus" and trigger["metricType"] in ("AverageValue", "Value"))
        has(trigger["metadata"], ("serverAddress", "query", "threshold"), ("activationThreshold", "namespace"))
        check(all(isinstance(v, str) for v in trigger["metadata"].values()), "values of metadata are strings")
        check("latentd_queue_depth" in trigger["metadata"]["query"])


def operator(o):
    """Those of the Prometheus Operator's monitoring.coreos.com/v1."""
    has(o, ("apiVersion", "kind", "metadata", "spec"))
    check(o["apiVersion"] == "monitoring.coreos.com/v1")
    has(o["spec"], ("selector", "podMetricsEndpoints"), ("jobLabel", "podTargetLabels", "namespaceSelector"))
    for endpoint in o["spec"]["podMetricsEndpoints"]:
        has(endpoint, ("port",), ("path", "interval", "scrapeTimeout", "scheme"))


def by_name(found):
    return {(o["kind"], o["metadata"]["name"]): o for o in found}


def without_sums(found):
    """FOUND without the sums that make the pods and the job follow the settings: in names, and as an annotation."""
    text = re.sub(r'"(latentd-pull)-[0-9a-f]{8}"|"(latentd)-[0-9a-z]{10}"', lambda m: f'"{m[1] or m[2]}"', json.dumps(found))
    found = json.loads(text)
    for o in found:
        o.get("spec", {}).get("template", {}).get("metadata", {}).get("annotations", {}).pop("checksum/config", None)
    return found


def kustomize(folder):
    try:
        made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    except FileNotFoundError:
        raise Skip("no kubectl") from None
    check(made.returncode == 0, made.stderr)
    return objects(made.stdout)


def beside_the_base(folder, text):
    """What a kustomization TEXT beside copies of deploy/k8s' folders makes."""
    shutil.copytree(os.path.join(ROOT, "deploy/k8s"), folder, dirs_exist_ok=True)
    os.mkdir(os.path.join(folder, "mine"))
    with open(os.path.join(folder, "mine", "kustomization.yaml"), "w") as file:
        file.write(text)
    return kustomize(os.path.join(folder, "mine"))


def one(found, kind):
    return next(o for o in found if o["kind"] == kind)


def server(found):
    """The Prometheus that KEDA asks."""
    return one(found, "ScaledObject")["spec"]["triggers"][0]["metadata"]["serverAddress"]


def the_base_is_valid():
    valid(base())


def the_base_is_what_kubectl_makes_of_it():
    """Where there is a kubectl: its kustomize agrees that there are these objects, in one namespace."""
    found = kustomize(os.path.join(ROOT, BASE))
    check(by_name(without_sums(found)).keys() == by_name(base()).keys())
    check({o["metadata"]["namespace"] for o in found} == {"latentd"})


def the_chart_renders_the_base():
    check(by_name(without_sums(render())) == by_name(base()), "they differ")


def a_change_reaches_the_job_and_the_pods():
    """Another model, image or secret is a job of another name, as a Job cannot be changed, and the daemon's pods are rolled out."""
    found = render()
    job, pod = one(found, "Job"), one(found, "Deployment")["spec"]["template"]
    for changes in ({"modelId": "stabilityai/sdxl-turbo"}, {"secret": "other"}, {"settings": {"HF_ENDPOINT": "https://hub"}},
                    {"image__cpu": "registry/latentd:cpu", "image__cuda": "registry/latentd:cuda"}, {"models__claim": "mine"}):
        found = render(**changes)
        check(one(found, "Job")["metadata"]["name"] != job["metadata"]["name"], "the job does not run again:", changes)
        check(one(found, "Deployment")["spec"]["template"] != pod, "the pods are not rolled out:", changes)
    for changes in ({"replicas": 3}, {"autoscaling__max": 9}, {"resources__limits": {"memory": "8Gi"}}):
        check(one(render(**changes), "Job") == job, "the job runs again:", changes)
    check(job["spec"]["ttlSecondsAfterFinished"] > 0, "finished jobs stay")
    name = one(render(release="r" * 53), "Job")["metadata"]["name"]
    check(len(name) <= 63, "too long for the label of its pods:", name)


def a_prometheus_scrapes_what_keda_asks_for():
    """The one that KEDA asks by default follows the annotations; with a PodMonitor it is the operator's, which finds the pods by it."""
    found = render()
    pod = one(found, "Deployment")["spec"]["template"]
    port = pod["spec"]["containers"][0]["ports"][0]
    check(pod["metadata"]["annotations"]["prometheus.io/scrape"] == "true")
    check(pod["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"]))
    check(server(found) == "http://prometheus-server.monitoring", server(found))
    found = render(podMonitor__enabled=True)
    valid(found)
    monitor = one(found, "PodMonitor")
    check(server(found) == "http://prometheus-operated.monitoring:9090", server(found))
    check(monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items())
    check(monitor["spec"]["podMetricsEndpoints"] == [{"port": port["name"], "path": "/metrics"}] and '"/metrics"' in read("src/http/routes.c"))
    check(pod["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "latentd", "the alerts ask for this job")
    labelled = render(podMonitor__enabled=True, podMonitor__labels={"release": "stack"}, autoscaling__prometheus="http://other")
    check(one(labelled, "PodMonitor")["metadata"]["labels"] == {**monitor["metadata"]["labels"], "release": "stack"})
    check(server(labelled) == "http://other", server(labelled))
    with tempfile.TemporaryDirectory() as folder:
        made = beside_the_base(folder, "namespace: latentd\nresources: [../base]\ncomponents: [../podmonitor]\n")
    check({o["metadata"].pop("namespace") for o in made} == {"latentd"})
    made, found = by_name(without_sums(made)), by_name(without_sums(found))
    for kind in ("PodMonitor", "ScaledObject"):
        check(made[(kind, "latentd")] == found[(kind, "latentd")], "the component is not the chart:", made[(kind, "latentd")])


def another_model_with_kustomize():
    """The kustomization that docs/deployment.md shows, beside the base: job and pods read a ConfigMap of another name."""
    shown = re.search(r"```yaml\n(.*?resources: \[\.\./base\].*?)```", read("docs/deployment.md"), re.S)[1]
    with tempfile.TemporaryDirectory() as folder:
        found = beside_the_base(folder, shown)
    settings, old = one(found, "ConfigMap"), one(kustomize(os.path.join(ROOT, BASE)), "ConfigMap")
    check(settings["data"] == {**old["data"], "MODEL_ID": "stabilityai/sdxl-turbo"}, settings)
    check(settings["metadata"]["name"] != old["metadata"]["name"], "the pods are not rolled out")
    for kind in ("Job", "Deployment"):
        read_by = one(found, kind)["spec"]["template"]["spec"]["containers"][0]["envFrom"][0]["configMapRef"]["name"]
        check(read_by == settings["metadata"]["name"], kind, read_by)


def the_chart_renders_valid_objects():
    for changes in ({}, {"gpus": 0}, {"autoscaling__enabled": False, "replicas": 3}, {"models__claim": "mine", "models__pull": False},
                    {"models__storageClass": "nfs", "settings": {"LATENTD_QUEUE": 4, "VERBOSE_LOGGING": "1"}},
                    {"modelId": "org/1e5"}, {"release": "other", "namespace": "elsewhere"}):
        found = render(**changes)
        valid(found)
        names = by_name(found)
        pod = names[("Deployment", changes.get("release", "latentd"))]["spec"]["template"]["spec"]
        limits = pod["containers"][0]["resources"]["limits"]
        check(("nvidia.com/gpu" in limits) == (changes.get("gpus") != 0), limits)
        check(pod["containers"][0]["image"] == ("latentd:cpu" if changes.get("gpus") == 0 else "latentd:cuda"))
        check((("ScaledObject", changes.get("release", "latentd")) in names) == ("autoscaling__enabled" not in changes))
        check(("replicas" in names[("Deployment", changes.get("release", "latentd"))]["spec"]) == ("replicas" in changes))
        check(pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == changes.get("models__claim", changes.get("release", "latentd") + "-models"))
        settings = names[("ConfigMap", changes.get("release", "latentd"))]["data"]
        check(all(isinstance(v, str) for v in settings.values()), settings)


def the_pod_fits_the_daemon():
    """Probes, port, user, volumes and grace are those of the program and of its image."""
    pod = by_name(base())[("Deployment", "latentd")]["spec"]["template"]["spec"]
    c = pod["containers"][0]
    routes, image = read("src/http/routes.c"), read("Dockerfile")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        check(f'"{c[probe]["httpGet"]["path"]}"' in routes, probe)
    check(c["readinessProbe"]["httpGet"]["path"] != c["livenessProbe"]["httpGet"]["path"], "readiness is not liveness")
    check(f"EXPOSE {c['ports'][0]['containerPort']}\n" in image and f"--uid {pod['securityContext']['runAsUser']} " in image)
    check(f"MODEL_DIR={c['volumeMounts'][0]['mountPath']} " in image and c["volumeMounts"][0]["readOnly"])
    drain = sum(float(s) for s in re.findall(r"#define (?:DRAIN|CUT|FLUSH|END)_SECONDS\s+([\d.]+)", read("src/main.c")))
    check(pod["terminationGracePeriodSeconds"] >= int(c["lifecycle"]["preStop"]["exec"]["command"][1]) + drain, drain)


def the_compose_file_fits():
    """docker-compose.yaml, which is YAML too: its targets, port, volume and settings are those of the Dockerfile and the daemon."""
    import yaml
    services = yaml.safe_load(read("docker-compose.yaml"))["services"]
    for name, target in (("latentd", "cuda"), ("cpu", "cpu")):
        s = services[name]
        check(s["build"]["target"] == target and f"AS {target}\n" in read("Dockerfile") and s["image"] == f"latentd:{target}")
        check(s["ports"] == ["127.0.0.1:8000:8000"] and "./models:/models" in s["volumes"])
        check(("devices" in s["deploy"].get("resources", {}).get("reservations", {})) == (target == "cuda"))
        for setting in set(s["environment"]) - {"HF_TOKEN"}:
            check(f"`{setting}`" in read("docs/settings.md"), setting)
        # the image keeps nothing that is packed, as its file system is thrown away; this volume is not
        check("LATENTD_PACKED_MIB=0" in read("Dockerfile") and "cache:/var/lib/latentd" in s["volumes"])
        check(s["environment"].get("LATENTD_PACKED_MIB", "").endswith("-16384}"), "the volume stays empty on the CPU")
    # ./models is the user's, not the image's user's, and a download needs no GPU
    for options, service in re.findall(r"^# docker compose run (.*) (\w+) pull ", read("docker-compose.yaml"), re.M) or [("", "no line")]:
        check('--user "$(id -u)"' in options and service == "cpu", "cannot pull:", options, service)
    for path in services["prometheus"]["volumes"]:
        check(os.path.isdir(os.path.join(ROOT, path.split(":")[0])), path)


if __name__ == "__main__":
    problem = enter_venv()
    if problem:
        def needs_packages():
            raise Skip(problem)
        sys.exit(run_tests([needs_packages]))
    sys.exit(run_tests([the_base_is_valid, the_base_is_what_kubectl_makes_of_it, the_chart_renders_the_base,
                        a_change_reaches_the_job_and_the_pods, another_model_with_kustomize,
                        a_prometheus_scrapes_what_keda_asks_for, the_chart_renders_valid_objects,
                        the_pod_fits_the_daemon, the_compose_file_fits]))
