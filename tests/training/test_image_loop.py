"""Image classifiers: batches, resumption, tables of positions at other resolutions, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import vision
from posenc_jax.data.images import Images, ImageSet, open_images
from posenc_jax.encodings import sinusoid
from posenc_jax.model.vision import Encoder, read_tables_at
from posenc_jax.training import image_loop
from posenc_jax.training.image_config import image_config
from posenc_jax.training.image_loop import batch_indices, train_images
from posenc_jax.training.loop import Diverged, Preempted

from support.entries import ROOT


def sections(scheme="axial", **changes):
    """The settings of a model that trains in a moment, with changes by section__name."""
    found = vision.get_config(scheme).to_dict()
    small = {"model__num_layers": 1, "model__model_dim": 16, "model__num_heads": 2, "model__mlp_dim": 16,
             "image__patch_size": 2, "image__read_sizes": (8, 16), "train__steps": 8, "train__batch_size": 16,
             "train__save_every": 4, "train__log_every": 1, "optimizer__learning_rate": 1e-2}  # fmt: skip
    for name, value in (small | changes).items():
        section, _, key = name.partition("__")
        found[section][key] = value
    return found


@pytest.fixture
def stripes(monkeypatch):
    """Images of two classes: upright stripes and level ones, in noise."""
    rng = np.random.default_rng(0)
    label_N = np.arange(60, dtype=np.int32) % 2
    line = 120 * (np.arange(8) % 2).astype(int)
    images = np.stack([np.broadcast_to(line if c else line[:, None], (8, 8)) for c in label_N])[
        ..., None
    ]
    images = (images + rng.integers(0, 40, images.shape)).astype(np.uint8)
    parts = Images(images[:40], label_N[:40]), Images(images[40:], label_N[40:])
    found = ImageSet("stripes", "f" * 64, ("level", "upright"), *parts)
    monkeypatch.setattr(image_loop, "open_images", lambda *_, **__: found)
    return found


def test_every_epoch_has_each_image_once_in_an_order_of_its_own():
    seen = np.concatenate([batch_indices(10, 4, seed=3, step=s) for s in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist() != list(range(10))
    assert seen[:4].tolist() != batch_indices(10, 4, seed=4, step=0).tolist()


@pytest.mark.thorough
def test_a_stopped_run_goes_on_to_the_bits_of_one_that_was_not_stopped(
    stripes, tmp_path, monkeypatch
):
    config = image_config(sections("learned"))
    whole = train_images(config, tmp_path / "whole", "x")
    with monkeypatch.context() as patch:
        patch.setattr(
            image_loop.PreemptionRequest, "at", lambda _, step: "SIGTERM" if step == 3 else ""
        )
        with pytest.raises(Preempted, match="after step 3 of 8"):
            train_images(config, tmp_path / "cut", "x")
    assert not (tmp_path / "cut" / image_loop.ROWS).exists()
    cut = train_images(config, tmp_path / "cut", "x")
    assert cut.read_text() == whole.read_text()
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [(row["size"], row["n"], row["arm"]) for row in rows] == [
        (8, 20, "learned"),
        (16, 20, "learned"),
    ]
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8
    assert losses[0][-1] < losses[0][0]
    for changes, message in (
        ({"train__seed": 1}, "train.seed differ"),
        ({"image__size": 16}, "image.size"),
    ):
        with pytest.raises(ValueError, match=message):
            train_images(image_config(sections("learned", **changes)), tmp_path / "cut", "x")


@pytest.mark.thorough
def test_a_loss_that_is_not_finite_ends_the_run_without_a_checkpoint_of_it(stripes, tmp_path):
    config = image_config(
        sections(
            "learned",
            optimizer__learning_rate=1e2,
            optimizer__clip_norm=1e12,
            optimizer__warmup_steps=1,
            train__steps=40,
            train__save_every=40,
        )
    )
    try:
        train_images(config, tmp_path / "x", "x")
    except Diverged as error:
        assert "lower config.optimizer.learning_rate" in str(error)  # noqa: PT017
    for step in (tmp_path / "x" / "checkpoints").glob("[0-9]*"):
        assert (step / "manifest.json").exists()


def bilinear(table_RCD, rows, columns):
    """A table at another size, by loops: pixel centres at (i + 1/2) / n, the border repeated."""
    R, C, D = table_RCD.shape
    out = np.zeros((rows, columns, D))
    for r, c in np.ndindex(rows, columns):
        y, x = (r + 0.5) * R / rows - 0.5, (c + 0.5) * C / columns - 0.5
        for i in (int(np.floor(y)), int(np.floor(y)) + 1):
            for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                weight = (1 - abs(y - i)) * (1 - abs(x - j))
                out[r, c] += weight * table_RCD[min(max(i, 0), R - 1), min(max(j, 0), C - 1)]
    return out


@pytest.mark.parametrize("scheme", ["learned", "sinusoidal"])
def test_a_table_read_at_twice_the_resolution_is_interpolated(scheme):
    config = image_config(sections(scheme)).vision(2, 1)
    table_LD = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    params = {"absolute": {"table_LD": table_LD}} if scheme == "learned" else {}
    if scheme == "sinusoidal":
        table_LD = np.asarray(sinusoid(jnp.arange(16)[None], 16, 10_000.0)[0])
    twice, wide = read_tables_at(config, params, (16, 16))
    want = bilinear(table_LD.reshape(4, 4, 16), 8, 8).reshape(64, 16)
    np.testing.assert_allclose(wide["absolute"]["table_LD"], want, atol=1e-5)
    assert twice.positions(8, 8).tolist() == list(range(64))
    same, unchanged = read_tables_at(config, params, (8, 8))
    assert (same, unchanged) == (config, params)
    small, narrow = read_tables_at(config, params, (4, 4))
    assert narrow["absolute"]["table_LD"].shape == (16, 16)  # 4 rows are used
    assert small.positions(2, 2).tolist() == [0, 1, 2, 3]


def test_planar_parts_are_read_at_twice_the_resolution_with_their_own_parameters():
    config = image_config(sections("mixed")).vision(2, 1)
    params = jax.jit(Encoder(config).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    twice, same = read_tables_at(config, params, (16, 16))
    assert same is params
    assert (config.width, twice.width) == (4, 8)


WRONG = {
    "image__patch_size": (3, "does not divide into patches"),
    "image__read_sizes": ((), "at least one size"),
    "image__size": (0, "must lie in"),
    "model__tied_head": (True, "tied_head must be False"),
    "model__scheme": ("axail", "did you mean 'axial'"),
    "train__steps": (0, "must lie in"),
    "image__colour": ("red", "config.image.colour is not a setting"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_named(name, stripes, tmp_path):
    value, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        train_images(image_config(sections(**{name: value})), tmp_path / "x", "x")
    assert not (tmp_path / "x").exists()


def test_a_reading_size_that_is_no_whole_number_of_patches_is_refused_before_training(
    stripes, tmp_path
):
    with pytest.raises(ValueError, match="does not divide into patches"):
        train_images(image_config(sections(image__read_sizes=(8, 15))), tmp_path / "x", "x")
    assert not (tmp_path / "x").exists()


def test_the_digits_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.datasets")
    found, whole = open_images("digits", "nowhere", download=False), sklearn.load_digits()
    assert (len(found.train.label_N), len(found.test.label_N), len(found.classes)) == (
        1438,
        359,
        10,
    )
    np.testing.assert_allclose(found.train.at(8)[5, ..., 0], whole.images[5] / 16, atol=1 / 500)
    assert found.test.label_N.tolist() == whole.target[-359:].tolist()
    twice = found.test.at(16)
    assert twice.shape == (359, 16, 16, 1)
    assert np.abs(twice[:, ::2, ::2].mean() - found.test.at(8).mean()) < 0.02


def test_images_of_any_size_give_their_middle_square():
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = 255
    np.testing.assert_array_equal(
        Images([wide], np.zeros(1, np.int32)).at(4), np.ones((1, 4, 4, 3))
    )


def test_an_unknown_image_set_is_named(tmp_path):
    for name, message in (("digit", "did you mean"), ("cifar10", "is not prepared below")):
        with pytest.raises(ValueError, match=message):
            open_images(name, str(tmp_path), download=False)


def test_the_config_file_says_what_the_command_runs():
    assert (
        dataclasses.asdict(image_config(vision.get_config().to_dict()))["model"]["scheme"]
        == "axial"
    )
    assert "configs/vision.py:axial" in (ROOT / "configs/vision.py").read_text()
