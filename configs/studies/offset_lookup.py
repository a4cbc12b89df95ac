"""Offset lookup (P3) alone: how steep may the slopes be until a short schedule no longer learns it?

Command:  python scripts/study.py --study=configs/studies/offset_lookup.py --workdir=studies/offset_lookup
Reaches:  results/offset_lookup, 6 of its 14 runs
Takes:    about 70 seconds a run on one core

Every window asks which symbol stands a named number of places back, which position alone answers.
Arms and sizes are those of configs/studies/hybrids.py, with 800 steps of eight rows. Exploration:
the seeds count nowhere.
"""  # noqa: E501

from ml_collections import ConfigDict

from configs.studies import hybrids
from posenc_jax.study.grid import Study

NAMES = ("rope", "alibi", "coupled", "steep-2", "steep", "steep-10", "steep-10-one-shallow")
STUDY = Study(
    tier="cpu", arms=tuple(arm for arm in hybrids.STUDY.arms if arm.name in NAMES), seeds=(20, 21)
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. steep-10-s20."""
    config = hybrids.base()
    config.train.update(batch_size=8, steps=800, save_every=400)
    config.data.update(
        retrieval_share=0.0, offset_share=1.0, length_warmup=(1,), pairs_warmup=0.0, pair_askings=1
    )
    config.evaluation.update(measures=("P3",), multiples=(1,))
    return STUDY.fill(run, config)
