#!/usr/bin/env bash
# Set-up, then train, evaluate and compare several encodings on the embedded corpus; ends with the
# path of report.html. Running it again continues where it stopped.
#   bash scripts/quickstart.sh          the quickstart study (under ten minutes on two cores)
#   bash scripts/quickstart.sh smoke    the same path in about two minutes, no claim about learning
set -euo pipefail
cd "$(dirname "$0")/.."
study="${1:-quickstart}"
if ! [ -f "configs/studies/$study.py" ]; then
  echo "no study configs/studies/$study.py; there are: $(cd configs/studies && ls -- *.py | sed 's/\.py$//' | tr '\n' ' ')" >&2
  exit 2
fi
source scripts/setup.sh
setup_venv train
.venv/bin/python scripts/study.py --study="configs/studies/$study.py" --workdir="studies/$study"
