"""Parameters of a test that are left out of the default run."""

import pytest


def slow(*cases):
    """The same test on more of the same; a case is a value or a tuple of values."""
    return _marked(cases, pytest.mark.slow)


def thorough(*cases):
    """As `slow`, for CI."""
    return _marked(cases, pytest.mark.thorough)


def _marked(cases, mark):
    values = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*value, marks=mark) for value in values]
