"""Encodings and attention work where jax and numpy are installed alone, and the extra train holds the
rest.
"""

import os
import re
import subprocess
import sys
import tomllib

from support.entries import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIGHT = (
    "jax",
    "jaxlib",
    "numpy",
    "ml_dtypes",
    "opt_einsum",
    "scipy",
)  # jax and what it needs itself
WORKS = """
import importlib.metadata
import sys

REFUSED = set(importlib.metadata.packages_distributions()) - set({allowed})

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Refusing())
try:
    import {refused}
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("nothing is refused")

import jax
import jax.numpy as jnp
import posenc_jax.attention
import posenc_jax.encodings

names = {{}}
exec({example!r}, names)
assert names["out"].shape == names["q"].shape
assert bool(jnp.isfinite(names["out"]).all())
"""


def names(requirements):
    return {re.match(r"[\w-]+", line)[0].replace("-", "_").lower() for line in requirements}


def test_encodings_and_attention_work_with_jax_and_numpy_alone():
    page = (ROOT / "docs" / "encodings" / "README.md").read_text()
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    code = WORKS.format(allowed=(*LIGHT, "posenc_jax"), refused="flax", example=example)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def test_the_package_asks_for_jax_and_numpy_and_the_extra_train_for_the_rest():
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line]
    extras = PROJECT["optional-dependencies"]
    assert names(PROJECT["dependencies"]) == {"jax", "numpy"}
    assert sorted(PROJECT["dependencies"] + extras["train"]) == sorted(listed)
    for name, wanted in extras.items():
        assert name == "train" or "posenc_jax[train]" in wanted


def test_the_scripts_install_the_extra_train():
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    assert '--editable ".[$extra]"' in setup
    assert "setup_venv train" in (ROOT / "scripts" / "quickstart.sh").read_text()
    assert "setup_venv dev" in (ROOT / "scripts" / "test.sh").read_text()
    assert '-e ".[train]"' in (ROOT / "scripts" / "gke" / "Dockerfile").read_text()
