"""Pictures and the one HTML page of a study; reads run folders, imports no jax."""

from posenc_jax.report.page import write_report
from posenc_jax.report.reading import read_study
from posenc_jax.report.rows import Run, Study

__all__ = ["Run", "Study", "read_study", "write_report"]
