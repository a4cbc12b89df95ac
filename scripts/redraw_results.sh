#!/usr/bin/env bash
# Reprints every verdict, redraws every page with its figures and rewrites the claims ledger, from
# the committed rows alone. Runs the verdict and report commands of each results/*/README.md, then
# lists the files that changed: none where versions are those that drew them.
#   bash scripts/redraw_results.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup_venv train
export PATH="$PWD/.venv/bin:$PATH" JAX_PLATFORMS=cpu

grep -hE '^ +python scripts/(verdict|report)\.py --results=' results/*/README.md |
  while read -r command; do
    echo "\$ $command"
    bash -c "$command" </dev/null
  done
echo '$ python scripts/claims.py'
python scripts/claims.py
echo "changed: $(git status --short results | grep . || echo nothing)"
