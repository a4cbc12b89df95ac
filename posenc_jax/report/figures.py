"""The figures of a report, in the order in which the page shows them."""

from posenc_jax.report import (
    context,
    curves,
    effects,
    longtext,
    maps,
    overview,
    probes,
    retrieval,
    schemes,
    structure,
    tradeoff,
    tuning,
    verdict,
)
from posenc_jax.report.style import Picture
from posenc_jax.report.view import StudyView


def pictures(study: StudyView) -> list[Picture]:
    """Every figure of the page; one with nothing measured has draw=None and says so in words."""
    judged = verdict.read_verdict(study.data)
    return [
        *([] if judged is None else verdict.forests(study, judged)),
        retrieval.pareto(study),
        *tradeoff.pictures(study),
        *effects.pictures(study),
        curves.bpb_against_length(study),
        *context.pictures(study),
        curves.nll_by_position(study),
        overview.retrieval_overview(study),
        maps.needle_maps(study),
        retrieval.accuracy_by_distance(study),
        structure.structure(study),
        longtext.classification(study),
        schemes.bias_maps(study),
        schemes.rotation_rings(study),
        *probes.pictures(study),
        curves.training_curves(study),
        *tuning.pictures(study),
    ]
