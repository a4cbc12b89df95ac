"""How often the decision engine errs: python scripts/simulate_decisions.py --out=results/decision/rows.jsonl

Draws 2,000 studies for each truth and prints the share of YES beside the theory: at most alpha where
a clause stands on its boundary, and the noncentral t's power past it. Under two minutes on one core.
Exit codes: 0 within the bounds (type-I error 5 %, plus three standard errors of its estimate; power 3 points), 1 not.
"""

import json
import platform
from pathlib import Path

import numpy as np
import scipy
from absl import flags

from posenc_jax import door

_OUT = flags.DEFINE_string("out", None, "File of rows to write", required=True)
_STUDIES = flags.DEFINE_integer("studies", 2000, "Studies a truth", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "First study's number", lower_bound=0)
STATEMENTS = ("C1", "C2", "C3", "C3far", "C4", "C4id", "G1", "G3window")


def main() -> int:
    """Truths to rows."""
    from posenc_jax.study.decision import Margins
    from posenc_jax.study.simulation import simulated, truth
    from posenc_jax.study.statistics import power

    margins, lines, wrong = Margins(), [], 0
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}  # fmt: skip
    for n in (5, 8):
        for statement in STATEMENTS:
            for effect in (0.0, 1.3):
                said = [
                    simulated(truth(statement, effect, margins), n=n, study=_SEED.value + i, margins=margins).verdict
                    for i in range(_STUDIES.value)
                ]  # fmt: skip
                yes = sum(v.startswith("YES") for v in said) / len(said)
                no = sum(v in ("NO", "TRADE-OFF") for v in said) / len(said)
                theory = power(n, effect, alpha=margins.alpha, two_sided=False)
                slack = 3 * (margins.alpha * (1 - margins.alpha) / len(said)) ** 0.5
                good = abs(yes - theory) <= 0.03 if effect else yes <= margins.alpha + slack
                wrong += not good
                lines.append({"truth": statement, "effect_sds": effect, "n": n, "yes": yes, "no_or_trade_off": no,
                              "theory": theory, "within": good, "studies": len(said), "seed": _SEED.value,
                              "versions": versions})  # fmt: skip
                print(f"{statement:9} {effect:3.1f} SD  n {n}  YES {yes:.4f}  theory {theory:.4f}  NO {no:.4f}  {'ok' if good else 'OUTSIDE'}", flush=True)  # fmt: skip
    Path(_OUT.value).parent.mkdir(parents=True, exist_ok=True)
    Path(_OUT.value).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return int(wrong > 0)


if __name__ == "__main__":
    door.enter(main)
