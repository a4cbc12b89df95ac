#!/usr/bin/env bash
# Set-up with the dev extra, linting and types, then the tests; arguments go to pytest (bash scripts/test.sh -k rope).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup_venv dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy posenc_jax
exec .venv/bin/python -m pytest -n auto --dist loadgroup "$@"
