"""Attribution: which factor of the hybrid is needed."""

import pytest
from posenc_jax.study.attribution import attribute
from posenc_jax.study.decision import Margins

from support.rule_1_tables import outcomes

NOISE = (0.0001, -0.0001, 0.0002, -0.0002, 0.0, 0.0001, -0.0001, 0.0)


def ablated(**changes):
    """Outcomes of H, and of N without the factor: as good on both axes unless changed."""
    table = outcomes()
    for metric, value in ({"Y_E": 1.0, "Y_R": 0.9} | changes).items():
        table["N", metric] = {s: value + NOISE[s + 1] for s in range(5)}
    return table


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"Y_E": 1.01}, "needed"),
        ({"Y_R": 0.8}, "needed"),
        ({"Y_E": 1.01, "Y_R": 0.8}, "needed"),
        ({}, "dispensable"),
        ({"Y_E": 0.9}, "dispensable"),  # better without it
        ({"Y_E": 1.01, "Y_R": 0.96}, "open"),  # won on one axis, lost on the other
        ({"Y_E": 1.0051}, "open"),  # too near the margin
        ({"Y_R": None}, "open"),
    ],
)
@pytest.mark.parametrize("factor", ["rotation", "bias"])
def test_a_factor_is_needed_when_one_axis_is_lost_without_it_and_the_other_not_won(
    changes, finding, factor
):
    table = ablated(**{k: v for k, v in changes.items() if v is not None})
    if None in changes.values():
        table["N", "Y_R"][1] = None
    (found,) = attribute(table, "H", {factor: "N"}, seeds=range(5), margins=Margins())
    assert found.finding == finding
    other = {"rotation": "bias", "bias": "rotation"}[factor]
    says = {"needed": f"{factor} is needed", "dispensable": f"{other} suffices", "open": "open"}
    assert says[finding] in found.words
