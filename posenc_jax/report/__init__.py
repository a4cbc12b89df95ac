"""Figures and the one HTML page of a study, from its rows and arrays; imports no jax."""

from posenc_jax.report.page import write_report
from posenc_jax.report.study_view import StudyView

__all__ = ["StudyView", "write_report"]
