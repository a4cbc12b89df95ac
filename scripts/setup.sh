#!/usr/bin/env bash
# Sourced by quickstart.sh and test.sh: makes .venv and installs what is asked for, once.
#   setup_venv train  the package and what training needs, as in requirements.txt
#   setup_venv dev    and the tools of the tests
# PYTHON=/path/to/python3.12 chooses the interpreter.

# Containers often set this; every process would then compile all its modules again, for 6 seconds.
unset PYTHONDONTWRITEBYTECODE

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.12 python3.11 python3.13 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "no Python 3.11, 3.12 or 3.13 found; install one, or set PYTHON=/path/to/it" >&2
  return 2
}

setup_venv() {
  local extra="$1" stamp wanted python
  stamp=".venv/installed-$extra"
  wanted="$(cat requirements.txt pyproject.toml | cksum)"
  if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  if ! [ -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
    python="$(find_python)"
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  echo "installing the extra $extra (about a minute the first time)"
  # Python compiles the modules that are imported; pip would take 35 seconds to compile them all.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$extra]"
  echo "$wanted" >"$stamp"
}
