"""Pictures and the one HTML page of a study, from its rows and arrays; imports no jax."""

from posenc_jax.report.page import write_report
from posenc_jax.report.study_view import RunView, StudyView

__all__ = ["RunView", "StudyView", "write_report"]
