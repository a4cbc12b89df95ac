#!/usr/bin/env bash
# Set-up with the dev extra, then the tests; arguments go to pytest (bash scripts/test.sh -k rope).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup_venv dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n auto --dist loadgroup "$@"
