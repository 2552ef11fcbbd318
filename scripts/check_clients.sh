#!/usr/bin/env bash
# Makes something on every pipeline with the Python client that openapi-python-client generates from openapi.json. Not part of
# scripts/test.sh, because it installs packages from PyPI (into a folder that it removes).
#
#   scripts/check_clients.sh       needs build/latentd and python3 with venv; PYTHON may name another
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check openapi-python-client==0.29.1
PATH=$folder/venv/bin:$PATH
echo 'project_name_override: latentd-client
package_name_override: latentd_client' >"$folder/config.yaml"
openapi-python-client generate --path openapi.json --config "$folder/config.yaml" --output-path "$folder/client" --meta setup \
    --fail-on-warning
PYTHONPATH=$folder/client python tests/clients/generated.py
