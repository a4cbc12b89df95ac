"""Lines with a name: each is what its name says, stands in the documentation, and trains."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import smoke
from configs.studies import cpu
from posenc_jax.encodings import REGISTRY, Alibi, HeadContext, parse, register, unparse
from posenc_jax.encodings.scheme_presets import PRESETS, coupled, flat_in_last_layer
from posenc_jax.model.decoder import Decoder
from posenc_jax.study.grid import Arm, Study
from posenc_jax.training.config import from_sections
from posenc_jax.training.sharding import make_mesh
from posenc_jax.training.step import make_step, state_builder

from support import oracles, runs

L = 128


def layers_of(name, layers=2):
    place = {"num_heads": 4, "head_dim": 16, "model_dim": 64, "train_length": L}
    return parse(PRESETS.get(name, name)).place(num_layers=layers, **place).layers


def test_the_documentation_has_every_line_as_it_is():
    page = (Path(__file__).parents[2] / "docs/encodings/hybrids.md").read_text()
    shown = dict(re.findall(r"^\| `([a-z0-9-]+)` \| `([^`]+)` \|", page, flags=re.MULTILINE))
    assert {name: line.replace("\\|", "|") for name, line in shown.items()} == PRESETS
    assert all(unparse(parse(line)) == line for line in PRESETS.values())
    arms = {arm.name: arm.scheme for arm in cpu.STUDY.arms}
    both = sorted(arms.keys() & PRESETS.keys())
    assert len(both) > 3
    assert [parse(arms[name]) for name in both] == [parse(PRESETS[name]) for name in both]


@pytest.mark.parametrize("name", PRESETS)
def test_a_name_is_understood_wherever_a_line_is(name):
    assert unparse(parse(name)) == unparse(parse(f" {name} ")) == PRESETS[name]
    assert name not in {*REGISTRY, "nope"}
    layers = {"num_layers": max(2, len(parse(name).layers))}
    config = runs.config("unused", name, model=layers)
    assert (config.model.scheme, config.arm) == (PRESETS[name], name)
    assert config == from_sections(json.loads(config.to_json()))
    assert runs.config("unused", name, model=layers, train={"arm": "mine"}).arm == "mine"
    study = Study(tier="smoke", arms=(Arm("own", name), Arm("rope", "rope")), seeds=(0,))
    base = smoke.get_config()
    base.model.num_layers = 4
    filled = from_sections(study.fill("own-s0", base).to_dict())
    assert (filled.model.scheme, filled.arm) == (PRESETS[name], "own")


def test_a_name_that_is_nearly_one_gets_a_hint_and_none_stands_inside_a_line():
    for text, words in (
        ("stepe", "unknown encoding 'stepe'; did you mean 'steep'"),
        ("rnope-swa", "did you mean 'rnope-swa-"),
        ("xyzzyq", r"known: adaptive_ssmax, alibi, .*coupled-rotated, .*steep, "),
        (
            "rope+steep",
            r"character 6: 'steep' is the name of a whole line and no part of one: 3\*\(rope",
        ),
        ("steep,nope", "'steep' is the name of a whole line"),
    ):
        with pytest.raises(ValueError, match=words):
            parse(text)
    with pytest.raises(ValueError, match=r"unknown encoding 'stepe'(?!.*'steep')"):
        parse("rope+stepe")
    with pytest.raises(
        ValueError, match=r"'steep' is the name of a preset: .*; choose another name"
    ):
        register("steep", Alibi)


@pytest.mark.parametrize(
    ("name", "nats"),
    [("coupled", 4), ("steep", 16), ("steep-10", 40), ("steep-20", 80), ("steep-10-unrotated", 40)],
)
def test_steep_heads_lose_so_many_nats_over_a_training_length(name, nats):
    layer = layers_of(name)[0]
    slope_N = np.asarray(layer.linear_slope_N({}))
    assert slope_N[2] * L == pytest.approx(nats)
    assert slope_N[3] == 0
    assert [g.heads.rotation is None for g in layer.groups] == ["unrotated" in name, True]


def test_flat_heads_stand_where_the_names_say():
    def flat(name, layers=2):
        return [int((np.asarray(x.linear_slope_N({})) == 0).sum()) for x in layers_of(name, layers)]

    assert flat("coupled") == [1, 1]
    assert flat("two-flat") == [2, 2]
    assert flat("flat-last") == [0, 1]
    assert flat(flat_in_last_layer(4), 4) == [0, 0, 0, 1]
    assert layers_of("no-log-n")[0].groups[1].heads.parts() == ()
    assert coupled(20) == PRESETS["steep-20"]


def test_a_quarter_of_the_spectrum_is_its_fastest_quarter():
    """Barbero et al. 2024, sec. 6, and Gemma's "proportional" rotation: exponents over the whole head dim."""
    ((heads,),) = parse("prope(kept=0.25)").layers
    place = HeadContext(heads=1, num_heads=1, head_dim=32, model_dim=32, train_length=L)
    got = heads.rotation.frequencies(place)
    np.testing.assert_allclose(got[:4], [oracles.rope_frequency(i, 32, 10_000.0) for i in range(4)])
    np.testing.assert_array_equal(got[4:], 0)
    x = jnp.arange(1.0, 33.0).reshape(1, 1, 1, 32)
    turned = heads.rotation.rotate({}, x, jnp.array([[77]]), place, "query").ravel()
    still = [d for d in range(32) if d % 16 >= 4]
    np.testing.assert_array_equal(turned[np.array(still)], x.ravel()[np.array(still)])
    assert np.abs(turned[:4] - x.ravel()[:4]).min() > 1e-3


def stepped(name):
    """Parameters before and after three steps of training under a preset."""
    layers = {"num_layers": max(2, len(parse(PRESETS[name]).layers))}
    config = runs.config("unused", scheme=PRESETS[name], model=layers, train={"steps": 4})
    tokens = np.random.default_rng(0).integers(0, 256, (1, 4, 17), dtype=np.int32)
    ones = np.ones((1, 4, 16), np.int32)
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh):
        model = Decoder(config.model_config(260))
        state = state_builder(config, model, mesh)[0](jax.random.key(0))
        before = jax.device_get(state["params"])
        batch = {
            "tokens_BT": tokens[..., :-1],
            "targets_BT": tokens[..., 1:],
            "weights_BT": ones.astype(np.float32),
            "positions_BT": ones * np.arange(16, dtype=np.int32),
            "segments_BT": ones,
        }
        step = make_step(config, model)
        for _ in range(3):  # the first one is at a rate of zero
            state, _ = step(state, batch)
        return before, jax.device_get(state["params"])


THOROUGH = ("fox", "rope-fox", "coupled-fox", "nape-adaptive", "pope-match", "three-terms")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.thorough if n in THOROUGH else pytest.mark.slow)
        for n in PRESETS
    ],
)
def test_training_moves_whatever_is_learned(name):
    before, after = stepped(name)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    assert all(jax.tree.leaves(moved))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
