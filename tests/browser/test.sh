#!/usr/bin/env bash
# The page of `potluck ui` in a real Chromium: test.sh PROGRAMS [SCREENSHOTS]
set -euo pipefail
PYTHONDONTWRITEBYTECODE=1 exec python3 "$(dirname "$0")/page_test.py" "$@"
