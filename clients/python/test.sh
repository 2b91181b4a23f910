#!/usr/bin/env bash
# Checks the Python client, with a real index and real peers on loopback.
#
#   clients/python/test.sh [BIN]      the folder of the programs [default: target/debug]
set -euo pipefail
cd "$(dirname "$0")"
POTLUCK_BIN_DIR=$(realpath "${1:-../../target/debug}")
export POTLUCK_BIN_DIR
venv=${PYTHON_CLIENT_VENV:-${CARGO_TARGET_DIR:-$PWD/../../target}/python-client-venv}

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --editable '.[test]'
"$venv/bin/ruff" check
"$venv/bin/ruff" format --check
"$venv/bin/mypy"
"$venv/bin/pytest" -q
