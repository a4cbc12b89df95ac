"""The figures of a report, by section and in the order of the page."""

from posenc_jax.report import (
    classification_figures,
    pareto_figures,
    probe_figures,
    retrieval_figures,
    scheme_figures,
    structure_figures,
    text_figures,
    training_figures,
    verdict_section,
)
from posenc_jax.report.figure import Figure
from posenc_jax.report.study_view import StudyView


def sections(study: StudyView) -> dict[str, list[Figure]]:
    """Returns every figure by the title of its section; one without panels was not measured."""
    verdict = verdict_section.read_verdict(study.data)
    return {
        "Verdict": [] if verdict is None else verdict_section.forests(study, verdict),
        "Trade-off": pareto_figures.pareto_figures(study),
        "Text": text_figures.text_figures(study),
        "Retrieval": retrieval_figures.retrieval_figures(study),
        "Structure and classification": [
            structure_figures.structure(study),
            classification_figures.classification(study),
        ],
        "Encodings": [scheme_figures.bias_maps(study), scheme_figures.rotation_rings(study)],
        "Probes": probe_figures.probe_figures(study),
        "Training": training_figures.training_figures(study),
    }


def figures(study: StudyView) -> list[Figure]:
    """Returns every figure of a report in the order of the page."""
    return [figure for found in sections(study).values() for figure in found]
