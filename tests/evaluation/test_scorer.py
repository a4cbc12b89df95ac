"""Scores of tokens by a decoder: rows of any length, programs shared, memory bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.evaluation import scorer as scoring
from posenc_jax.evaluation.scorer import DecoderModel, Scorer
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.sharding import make_mesh, parameter_layout

from support import runs
from support.byte_streams import text
from support.known_scorers import Constant, scorer_of

V = 260


def test_the_scorer_pads_without_changing_a_number(tmp_path):
    config = runs.config(tmp_path).model_config(V)
    from posenc_jax.model.decoder import Decoder

    ones = np.ones((1, 4), np.int32)
    params = jax.jit(Decoder(config).init)(jax.random.key(0), ones, ones, ones)["params"]
    rows = np.stack([text(21, s) for s in range(5)])
    exact = Scorer({20: config}, params, 40)
    padded = Scorer({32: config, 64: config}, params, 96)
    for a, b in zip(exact.score(rows), padded.score(rows), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert padded.compilations == 1
    with pytest.raises(ValueError, match="rows of 70 inputs exceed the longest length 64"):
        padded.score(np.zeros((1, 71), np.int32))


L = 16


LENGTHS = (L + L // 2, 8 * L + L // 2)


def small(**changes):
    config = ModelConfig(
        scheme="rope+alibi", vocab_size=V, train_length=32, num_layers=1, model_dim=16, num_heads=2,
        num_kv_heads=2, head_dim=8, mlp_dim=16, activation="gelu", qk_norm=True, tied_head=True,
        embedding_scale=4.0, norm_epsilon=1e-6, dtype="float32", attention="auto", **changes,
    )  # fmt: skip
    ones = np.ones((1, 4), np.int32)
    return config, jax.jit(Decoder(config).init)(jax.random.key(0), ones, ones, ones)["params"]


@pytest.mark.thorough
def test_rows_over_eight_devices_score_as_on_one():
    config, params = small()
    rows = np.stack([text(33, s) for s in range(11)])
    one = Scorer({32: config}, params, 160).score(rows)
    mesh = make_mesh(8, 1)
    places = jax.tree.map(
        lambda spec: jax.NamedSharding(mesh, spec),
        parameter_layout(params, mesh),
        is_leaf=lambda x: isinstance(x, jax.P),
    )
    scorer = Scorer({32: config}, jax.device_put(params, places), 160, mesh)
    eight = scorer.score(rows)
    np.testing.assert_allclose(eight.nll_RT, one.nll_RT, atol=1e-5)
    np.testing.assert_array_equal(eight.rank_RT, one.rank_RT)
    batch = scorer._on_devices(np.zeros((8, 32), np.int32))[0]
    assert len({shard.device for shard in batch.addressable_shards}) == 8


def test_scores_are_the_same_bits_on_any_number_of_devices():
    """A budget that no device of this kind takes up leaves each device the same rows at a time."""
    config, params = small()
    rows = np.stack([text(33, s) for s in range(150)])
    assert len(rows) > 2 * scoring.CPU_TOKENS // 32
    budget = 8 * scoring.CPU_TOKENS
    one = Scorer({32: config}, params, budget).score(rows)
    for count in (2, 8):
        mesh = make_mesh(count, 1)
        places = jax.tree.map(
            lambda spec, mesh=mesh: jax.NamedSharding(mesh, spec),
            parameter_layout(params, mesh),
            is_leaf=lambda x: isinstance(x, jax.P),
        )
        spread = Scorer({32: config}, jax.device_put(params, places), budget, mesh).score(rows)
        np.testing.assert_array_equal(spread.nll_RT, one.nll_RT)
        np.testing.assert_array_equal(spread.rank_RT, one.rank_RT)


def test_logits_in_pieces_give_the_same_scores_and_hold_fewer_at_a_time(monkeypatch):
    config, params = small()
    rows = np.stack([text(33, s) for s in range(4)])
    whole = Scorer({32: config}, params, 128).score(rows)
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", 4 * 4 * V)
    assert scoring._pieces(32, 4 * 32 * V) == 8
    assert scoring._pieces(30, 4 * 30 * V) == 10
    cut = Scorer({32: config}, params, 128)
    np.testing.assert_allclose(cut.score(rows).nll_RT, whole.nll_RT, atol=1e-5)
    np.testing.assert_array_equal(cut.score(rows).rank_RT, whole.rank_RT)
    arrays = [np.zeros((4, 32), np.int32)] * 4
    hlo = (
        jax.jit(scoring._scored, static_argnums=(0, 1))
        .lower(DecoderModel(config), None, params, *arrays)
        .as_text()
    )
    assert f"4x4x{V}xf32" in hlo
    assert f"4x32x{V}xf32" not in hlo


def test_a_logit_that_is_no_number_is_never_a_right_answer():
    scorer = scorer_of(Constant(), jnp.full(V, jnp.nan), (16,))
    assert (scorer.score(text(17)[None]).rank_RT > 0).all()


def test_ranks_count_the_tokens_put_before_the_target():
    log_share = jnp.log(jnp.arange(1.0, V + 1) / (V * (V + 1) / 2))
    scorer = scorer_of(Constant(), log_share, (16,))
    row = np.r_[0, 259, 258, 0, 10]
    assert scorer.score(row[None]).rank_RT.tolist() == [[0, 1, 259, 249]]
    flat = scorer_of(Constant(), jnp.zeros(V), (16,))
    assert flat.score(row[None]).rank_RT.tolist() == [[259, 258, 0, 10]]  # ties as in argmax
