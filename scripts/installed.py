"""Ends a script in one line where its packages are not installed; every script imports it first."""

import importlib.util
import sys

if missing := [
    name for name in ("absl", "jax", "posenc_jax") if not importlib.util.find_spec(name)
]:
    print(
        f"{sys.argv[0]}: {', '.join(missing)} not installed for {sys.executable}; activate the "
        "virtual environment (source .venv/bin/activate), or make it (bash scripts/quickstart.sh "
        "smoke)",
        file=sys.stderr,
    )
    sys.exit(2)
