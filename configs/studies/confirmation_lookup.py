"""Offset lookup (P3) of the confirmation: RoPE, ALiBi and the hybrid, trained on it alone.

Command:  python scripts/study.py --study=configs/studies/confirmation_lookup.py --workdir=studies/confirmation_lookup
Reaches:  results/confirmation_lookup, 14 of its 36 runs
Takes:    60 s a run on one core

Clause G2 asks for offset lookup in as large a share of seeds as RoPE. Arms, sizes, rates and seeds
are those of configs/studies/confirmation.py, whose frozen plan names the seeds.
"""  # noqa: E501

from ml_collections import ConfigDict

from configs.studies import confirmation
from posenc_jax.study.grid import Study

STUDY = Study(
    tier="cpu",
    arms=(*confirmation.PARENTS, confirmation.HYBRID),
    seeds=confirmation.STUDY.seeds,
    split="test",
    prereg=confirmation.STUDY.prereg,
)


def get_config(run: str) -> ConfigDict:
    """Returns the configuration of one run, e.g. rope-s100."""
    config = confirmation.base()
    config.train.update(steps=1500, save_every=750)
    config.data.update(
        retrieval_share=0.0, offset_share=1.0, length_warmup=(1,), pairs_warmup=0.0, pair_askings=1
    )
    config.evaluation.update(measures=("P3",), multiples=(1,))
    return STUDY.fill(run, config)
