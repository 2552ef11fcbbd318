"""Compares the OpenAPI document of latentd with the one of the ai-runner, for the paths that latentd serves.

    scripts/compare_openapi.py REFERENCE.yaml [LATENTD]

Runs `LATENTD openapi` as JSON and as YAML (default: build/latentd), checks that both say the same, and prints every
difference in paths and in the schemas that they use. Exit status 1 when there is one. Needs PyYAML.
"""
import json
import subprocess
import sys

import yaml


def references(node):
    """Names of the schemas that NODE refers to."""
    if isinstance(node, dict):
        found = {node["$ref"].rsplit("/", 1)[1]} if "$ref" in node else set()
        return found.union(*(references(v) for v in node.values()))
    if isinstance(node, list):
        return set().union(*(references(v) for v in node))
    return set()


def closure(document, paths):
    """All schemas that PATHS of DOCUMENT lead to."""
    schemas = document["components"]["schemas"]
    names, todo = set(), references([document["paths"][p] for p in paths])
    while todo:
        names |= todo
        todo = references([schemas[n] for n in todo]) - names
    return names


# What latentd adds on purpose (docs/http.md).
ADDITIONS = {
    "schemas/Video: not in the reference",
    "schemas/TextToImageParams/properties/response_format: not in the reference",
    "schemas/Body_genImageToImage/properties/response_format: not in the reference",
    *(f"paths/{path}/get/description: not in the reference"
      for path in ("/health", "/hardware/info", "/hardware/stats", "/version")),
    "schemas/Body_genImageToVideo/properties/response_format: not in the reference",
    "schemas/Body_genUpscale/properties/response_format: not in the reference",
    "schemas/VideoResponse/properties/video: not in the reference",
}


def differences(want, got, where):
    if type(want) is not type(got):
        yield f"{where}: {want!r} became {got!r}"
    elif isinstance(want, dict):
        for key in sorted(want.keys() | got.keys()):
            if key not in got:
                yield f"{where}/{key}: missing"
            elif key not in want:
                yield f"{where}/{key}: not in the reference"
            else:
                yield from differences(want[key], got[key], f"{where}/{key}")
    elif want != got:
        yield f"{where}: {want!r} became {got!r}"


def main():
    reference = yaml.safe_load(open(sys.argv[1]))
    program = sys.argv[2] if len(sys.argv) > 2 else "build/latentd"
    text = {t: subprocess.run([program, "openapi", "--type", t], check=True, capture_output=True, text=True).stdout
            for t in ("json", "yaml")}
    ours = json.loads(text["json"])
    found = list(differences(ours, yaml.safe_load(text["yaml"]), "yaml"))
    paths = sorted(ours["paths"])
    found += differences({p: reference["paths"].get(p) for p in paths}, ours["paths"], "paths")
    names = closure(reference, paths)
    schemas = reference["components"]["schemas"]
    found += differences({n: schemas[n] for n in names}, ours["components"]["schemas"], "schemas")
    found += differences(reference["components"]["securitySchemes"], ours["components"]["securitySchemes"], "security")
    found += differences(reference["servers"], ours["servers"], "servers")
    found += differences({**reference["info"], "version": ""}, {**ours["info"], "version": ""}, "info")
    found = [line for line in found if line not in ADDITIONS]
    for line in found:
        print(line)
    print(f"{len(paths)} paths, {len(names)} schemas, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
