"""The figures of a report, in the order in which the page shows them."""

from posenc_jax.report import curves, effects, maps, retrieval, schemes, tradeoff, tuning
from posenc_jax.report.rows import Study
from posenc_jax.report.style import Picture


def pictures(study: Study) -> list[Picture]:
    """Every figure of the page; one with nothing measured has draw=None and says so in words."""
    return [
        retrieval.pareto(study),
        *tradeoff.pictures(study),
        *effects.pictures(study),
        curves.bpb_against_length(study),
        curves.nll_by_position(study),
        maps.needle_maps(study),
        retrieval.accuracy_by_distance(study),
        schemes.bias_maps(study),
        schemes.rotation_rings(study),
        curves.training_curves(study),
        *tuning.pictures(study),
    ]
