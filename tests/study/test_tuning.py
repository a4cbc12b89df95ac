"""Tuning: the dev loss chooses a learning rate."""

import json

import pytest
from posenc_jax.study import tuning

from support.result_rows import STORED_ROW as ROW


@pytest.mark.parametrize(
    ("curve", "rate", "edge"),
    [
        ({0.001: 3.0, 0.003: 2.0, 0.01: 2.5}, 0.003, False),
        ({0.01: 2.5, 0.001: 2.0, 0.003: 2.1}, 0.001, True),
        ({0.001: 3.0, 0.003: 2.0, 0.01: 1.9}, 0.01, True),
        ({0.001: 3.0, 0.003: 2.0, 0.01: None}, 0.003, False),
        ({0.001: 3.0, 0.003: 2.0, 0.01: float("nan")}, 0.003, False),
        ({0.001: 2.0, 0.003: 2.0, 0.01: 3.0}, 0.001, True),
        ({0.001: None, 0.003: None}, None, False),
    ],
)
def test_the_lowest_dev_loss_chooses_and_an_edge_is_flagged(curve, rate, edge):
    choice = tuning.choose("rope", curve)
    assert (choice.rate, choice.edge) == (rate, edge)


def test_the_choice_reads_dev_rows_within_the_training_length_alone(tmp_path):
    past, far = ROW | {"length": 64, "value": 1.5}, ROW | {"length": 256, "value": 1.0}

    def write(folder, *rows):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    write("evaluation", ROW | {"split": "test", "value": 0.5})
    assert tuning.dev_loss(tmp_path) is None
    write("evaluation_dev", far, past, ROW)
    assert tuning.dev_loss(tmp_path) == 2.0
    write("evaluation_dev", far, past)
    assert tuning.dev_loss(tmp_path) is None
    write("evaluation_dev", ROW | {"split": "test"})
    with pytest.raises(ValueError, match="of the dev split"):
        tuning.dev_loss(tmp_path)
    assert tuning.record([], seed=9, steps=5)["k"] == 0.5
