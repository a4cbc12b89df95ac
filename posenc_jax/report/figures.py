"""The figures of a report, in the order in which the page shows them."""

from posenc_jax.report import (
    classification_figures,
    context_figures,
    factorial_figures,
    loss_curves,
    needle_maps,
    pareto_figures,
    probe_figures,
    retrieval_figures,
    retrieval_overview,
    scheme_figures,
    structure_figures,
    tuning_figures,
    verdict_section,
)
from posenc_jax.report.study_view import StudyView
from posenc_jax.report.style import Picture


def pictures(study: StudyView) -> list[Picture]:
    """Every figure of the page; one with nothing measured has draw=None and says so in words."""
    judged = verdict_section.read_verdict(study.data)
    return [
        *([] if judged is None else verdict_section.forests(study, judged)),
        retrieval_figures.pareto(study),
        *pareto_figures.pictures(study),
        *factorial_figures.pictures(study),
        loss_curves.bpb_against_length(study),
        *context_figures.pictures(study),
        loss_curves.nll_by_position(study),
        retrieval_overview.retrieval_overview(study),
        needle_maps.needle_maps(study),
        retrieval_figures.accuracy_by_distance(study),
        structure_figures.structure(study),
        classification_figures.classification(study),
        scheme_figures.bias_maps(study),
        scheme_figures.rotation_rings(study),
        *probe_figures.pictures(study),
        loss_curves.training_curves(study),
        *tuning_figures.pictures(study),
    ]
