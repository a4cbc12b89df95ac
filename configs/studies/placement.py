"""Where the steep, shallow and flat heads of the hybrid stand, RoPE's base, and rates: what the
confirmation was chosen from.

Command:  python scripts/study.py --study=configs/studies/placement.py --workdir=studies/placement --run=one-shallow-first-s20
Reaches:  results/placement, 19 of its 80 runs
Takes:    about 105 seconds a run on one core

Exploration on dev; the seeds count nowhere. Recipe and size are those of configs/studies/hybrids.py,
with 2,000 steps of eight rows. configs/studies/placement_lookup.py trains the same arms on offset
lookup alone, configs/studies/placement_long.py for 3,000 steps.

The search for the hybrid (results/hybrids) had left two failures: a shallow head beside the flat one
may read the passkey within L, which is then lost beyond; and steep heads alone learn no offset
lookup. The head that reads stands in the second layer, so a shallow rotary head may stand in the
first.
"""  # noqa: E501

from ml_collections import ConfigDict

from configs.studies import hybrids
from posenc_jax.encodings.scheme_presets import FLAT, coupled
from posenc_jax.study.grid import Arm, Study

STEEP = "(rope(base=match)+alibi(slopes=match,steep=10.0))"
SHALLOW = "(rope(base=match)+alibi(slopes=match,steep=0.154))"  # a slope of 4/L
WINDOW = "(rope(base=match)+window(size=L))"
STEEP_10K = "(rope+alibi(slopes=match,steep=10.0))"
FASTER = {"optimizer.learning_rate": 0.00844, "optimizer.muon_learning_rate": 0.01688}
ONE_SHALLOW = f"3*{STEEP}|1*{SHALLOW},{coupled(10)}"
LINES = {
    "one-shallow-first": ONE_SHALLOW,
    "h10k": f"3*{STEEP_10K}|1*(rope+alibi(slopes=match,steep=0.154)),3*{STEEP_10K}|1*{FLAT}",
    "one-win-first": f"3*{STEEP}|1*{WINDOW},{coupled(10)}",
    "shallow-first": f"{coupled()},{coupled(10)}",
    "win-first": f"2*{STEEP}|1*{WINDOW}|1*{FLAT},{coupled(10)}",
    "win3-first": f"3*{WINDOW}|1*{FLAT},{coupled(10)}",
    "win-head": f"2*{STEEP}|1*{WINDOW}|1*{FLAT}",
    "flat-prope": coupled(10, flat="prope(base=match)~logn"),
    "flat-rope": coupled(10, flat="rope(base=match)~logn"),
    "steep10": coupled(10),
    "rope": "rope(base=match)",
    "rope-10k": "rope",
}
STUDY = Study(
    tier="cpu",
    arms=(
        *(Arm(name, line) for name, line in LINES.items()),
        Arm("one-fast", ONE_SHALLOW, overrides=FASTER),
        Arm("rope-10k-fast", "rope", overrides=FASTER),
        Arm("alibi-fast", "alibi(slopes=match)", overrides=FASTER),
        Arm("alibi-pub-fast", "alibi", overrides=FASTER),
    ),
    seeds=(20, 21, 22, 23, 24),
)


def base(steps: int = 2000) -> ConfigDict:
    """Returns what all runs share."""
    config = hybrids.base()
    config.train.update(batch_size=8, steps=steps, save_every=steps // 2)
    config.evaluation.update(batch_tokens=832)
    return config


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. one-shallow-first-s20."""
    return STUDY.fill(run, base())
