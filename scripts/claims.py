"""Writes the ledger of claims: python scripts/claims.py

Reads the committed results below --results, applies the rule of every claim of
posenc_jax/study/claims.py, and writes claims.md there; equal results give the same bytes. A claim
whose runs are published later is decided by the next call. Prints one line per claim and the path.
Takes seconds. Exit code 2 for wrong input.
"""

from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_RESULTS = flags.DEFINE_string("results", "results", "Folder of the committed results")
_OUT = flags.DEFINE_string("out", None, "File of the page; default: claims.md in --results")


def main() -> None:
    """Writes the ledger of the flags."""
    from posenc_jax.results.files import replace_text
    from posenc_jax.study.claims import CLAIMS
    from posenc_jax.study.evidence import Evidence
    from posenc_jax.study.ledger import ledger_page, measure
    from posenc_jax.study.worked_examples import worked_examples

    root = Path(_RESULTS.value)
    if not root.is_dir():
        raise ValueError(f"--results={root} is no folder; give that of the committed results")
    evidence = Evidence(root)
    path = Path(_OUT.value or root / "claims.md")
    measured = measure(CLAIMS, evidence)
    replace_text(path, ledger_page(measured, worked_examples(), evidence))
    for one in measured:
        print(f"{one.claim.id:4} {one.verdict}")
    print(path)


if __name__ == "__main__":
    cli.run_main(main)
