"""The configuration of a run: ranges, refusals, JSON, and what makes another run."""

import dataclasses
import math

import numpy as np
import pytest
from posenc_jax.training.config import RunConfig, differences, from_sections, read

BAD = [
    ({"train": {"stpes": 3}}, "config.train.stpes is not a setting; did you mean 'steps"),
    ({"trian": {}}, "config.trian is not a setting; did you mean 'train"),
    ({"train": {"steps": "3"}}, "config.train.steps must be int, not '3'"),
    ({"train": {"steps": 2.5}}, "config.train.steps must be int"),
    ({"model": {"qk_norm": 1}}, "config.model.qk_norm must be bool"),
    (
        {"optimizer": {"learning_rate": float("nan")}},
        r"config.optimizer.learning_rate must lie in \[1e-12, 100\]",
    ),
    (
        {"optimizer": {"learning_rate": -1.0}},
        r"config.optimizer.learning_rate must lie in \[1e-12, 100\]",
    ),
    (
        {"optimizer": {"learning_rate": 0}},
        r"config.optimizer.learning_rate must lie in \[1e-12, 100\]",
    ),
    (
        {"optimizer": {"learning_rate": float("inf")}},
        r"config.optimizer.learning_rate must lie in \[1e-12, 100\]",
    ),
    ({"optimizer": {"name": "sgd"}}, "config.optimizer.name must be one of adamw, muon"),
    ({"model": {"num_heads": 3}}, "model.model_dim=64 does not divide over model.num_heads=3"),
    ({"model": {"scheme": "rope", "head_dim": 5}}, "head dim 5 is odd"),
    (
        {"model": {"model_dim": 2**40}},
        r"config.model.model_dim must lie in \[1, 1048576\], not 1099511627776",
    ),
    ({"train": {"length": 2**40}}, "config.train.length must lie in"),
    ({"train": {"batch_size": 2**40}}, "config.train.batch_size must lie in"),
    ({"data": {"threads": 2**40}}, "config.data.threads must lie in"),
    (
        {"model": {"num_layers": 10**5}},
        r"config.model.num_layers must lie in \[1, 4096\], not 100000",
    ),
    ({"train": {"loss_chunks": 10**9}}, r"config.train.loss_chunks must lie in \[1, 4096\]"),
    ({"train": {"seed": 2**32}}, "config.train.seed must lie in"),
    ({"optimizer": {"beta1": 0.9999999999}}, "config.optimizer.beta1 must lie in"),
    ({"model": {"scheme": "ropee"}}, "did you mean 'rope'"),
    ({"train": {"batch_size": 10, "accumulation": 3}}, "does not divide into"),
    ({"train": {"tier": "huge"}}, "config.train.tier must be"),
    ({"data": {"retrieval_share": 1.5}}, r"config.data.retrieval_share must lie in \[0, 1\]"),
    ({"data": {"min_pairs": 9, "max_pairs": 2}}, "exceeds config.data.max_pairs"),
    ({"optimizer": {"beta1": 1.0}}, r"config.optimizer.beta1 must lie in \[0, 0.999999\]"),
    ({"data": {"folder": "/books"}}, "is read by config.data.corpus=text_folder only"),
    ({"data": {"corpus": "text_folder"}}, "config.data.folder must name a folder"),
    ({"evaluation": {"multiples": []}}, "config.evaluation.multiples"),
    ({"evaluation": {"multiples": "1,2"}}, "config.evaluation.multiples must be whole numbers"),
]


@pytest.mark.parametrize(("sections", "message"), BAD)
def test_a_wrong_setting_is_refused_in_one_line_that_names_it(sections, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_sections(sections)
    assert "\n" not in str(caught.value)


def numbers(section):
    """Names of the numeric settings of a section, tuples of numbers among them."""
    return {f.name for f in dataclasses.fields(section) if f.type in (int, float, tuple[int, ...])}


BOUNDS = {
    section.name: {
        f.name: f.metadata["bounds"]
        for f in dataclasses.fields(section.type)
        if "bounds" in f.metadata
    }
    for section in dataclasses.fields(RunConfig)
}


def test_every_number_has_a_range_and_what_lies_outside_is_refused_in_one_line():
    sections = {f.name: f.type for f in dataclasses.fields(RunConfig)}
    assert {name: set(of) for name, of in BOUNDS.items()} == {
        name: numbers(of) for name, of in sections.items()
    }
    for section, bounds in BOUNDS.items():
        for name, (least, most) in bounds.items():
            kind = {f.name: f.type for f in dataclasses.fields(sections[section])}[name]
            wrong = [least - 1, 2 * most + 1]
            wrong += [1e39, -1e39, math.nan, math.inf] if kind is float else [-1, 10**39]
            for value in wrong:
                asked = kind(value) if kind in (int, float) else [1, value]
                with pytest.raises(ValueError, match=rf"config\.{section}\.{name} must ") as said:
                    from_sections({section: {name: asked}})
                assert "\n" not in str(said.value)


def test_bounds_leave_room_for_squares_in_float32():
    for section in BOUNDS.values():
        for least, most in section.values():
            assert np.isfinite(np.float32(most) ** 2)
            assert least == 0 or np.float32(least) > 0
    assert 1 - np.float32(BOUNDS["optimizer"]["beta1"][1]) > 0  # Adam divides by it


def test_a_config_survives_its_json(tmp_path):
    config = from_sections({"train": {"steps": 7}, "evaluation": {"multiples": [1, 3]}})
    (tmp_path / "config.json").write_text(config.to_json())
    assert read(tmp_path / "config.json") == config
    assert config != RunConfig()


def test_only_what_changes_the_numbers_makes_another_run():
    one = from_sections({})
    assert (
        differences(one, from_sections({"data": {"threads": 7}, "train": {"save_every": 9}})) == []
    )
    assert differences(one, from_sections({"evaluation": {"instances": 9}})) == []
    assert differences(one, from_sections({"train": {"seed": 1}})) == [
        "train.seed: 0 here, 1 there"
    ]
