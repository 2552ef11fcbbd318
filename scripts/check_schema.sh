#!/usr/bin/env bash
# Requests that schemathesis makes up from openapi.json, against daemons of every pipeline. Not part of scripts/test.sh, because it
# installs packages from PyPI (into a folder that it removes).
#
#   scripts/check_schema.sh [EXAMPLES [SEED]]    needs build/latentd, or what LATENTD_BIN names (build-san/latentd), and python3
#                                                with venv; PYTHON may name another. 100 examples of each route by default
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check schemathesis==4.32.5
PATH=$folder/venv/bin:$PATH python tests/clients/schema.py "$@"
