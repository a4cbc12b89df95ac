"""A cache that evicts what cannot matter: as much as it should, and nothing that is missed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.encodings import REGISTRY, Rotation, parse
from posenc_jax.encodings.base import HeadContext
from posenc_jax.model.cache import empty_cache, required_slots
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.generate import Sampling, generate

BASE = ModelConfig(
    scheme="nope", vocab_size=37, train_length=64, num_layers=2, model_dim=32, num_heads=4,
    num_kv_heads=4, head_dim=8, mlp_dim=48, activation="swiglu", qk_norm=True, tied_head=True,
    embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="dense",
)  # fmt: skip
TOKENS, CALL = 224, 8
STEEP = "alibi(factor=0.01)"  # slopes 25, 6.25, 1.6 and 0.39


@functools.cache
def model(line, **changes):
    config = dataclasses.replace(BASE, scheme=line, **changes)
    ones = jnp.ones((1, 4), jnp.int32)
    params = Decoder(config).init(jax.random.key(3), ones, ones, ones)["params"]
    return config, jax.tree.map(lambda p: 2 * p, params)  # gains of 2: content logits up to 11


def tokens_of(length):
    return jnp.asarray(np.random.default_rng(0).integers(0, BASE.vocab_size, (1, length)))


def decoded(config, params, kept):
    """Logits of reading TOKENS tokens, CALL at a time, through a cache that keeps `kept`."""
    rows = tokens_of(TOKENS)

    @jax.jit
    def read(cache, place):
        part = jax.lax.dynamic_slice_in_dim(rows, place, CALL, axis=1)
        pos = place + jnp.arange(CALL)[None]
        logits, cache = Decoder(config).apply(
            {"params": params}, part, pos, jnp.ones((1, CALL), jnp.int32), cache
        )
        return cache, logits

    cache = empty_cache(config, 1, TOKENS, kept, CALL)
    out = []
    for place in range(0, TOKENS, CALL):
        cache, logits = read(cache, place)
        out.append(logits)
    return np.concatenate(out, 1)


@pytest.mark.parametrize(
    "line",
    [
        f"rope+{STEEP}|nope~logn",
        *(
            pytest.param(line, marks=pytest.mark.thorough)
            for line in (
                STEEP,
                f"nope,prope+{STEEP}~logn",
                f"rope(stretch=yarn(factor=4.0))+{STEEP}",
            )
        ),
    ],
)
def test_evicting_changes_nothing_that_float32_can_hold(line):
    config, params = model(line)
    everything = ((TOKENS,),) * 2
    kept = required_slots(config, params, TOKENS, CALL)
    assert min(s for layer in kept for s in layer) < TOKENS - CALL  # there is something to evict
    want = decoded(config, params, everything)
    error = np.abs(decoded(config, params, kept) - want).max()
    assert error <= 4e-6 * np.abs(want).max()
    # And the window is no wider than it must be by far: a tenth of it is missed.
    narrow = tuple(tuple(s if s == TOKENS else CALL + s // 10 for s in layer) for layer in kept)
    assert np.abs(decoded(config, params, narrow) - want).max() > 10 * max(error, 1e-6)


def test_key_value_heads_that_serve_two_groups_keep_what_either_needs():
    config, params = model(f"{STEEP}|nope", num_kv_heads=2)
    assert len(required_slots(config, params, TOKENS, CALL)[0]) == 2
    config, params = model(f"{STEEP}|nope", num_kv_heads=1)
    assert required_slots(config, params, TOKENS, CALL) == ((TOKENS,),) * 2


@pytest.mark.parametrize(
    "line", ["nope", "rope", "forget", f"xpos+{STEEP}", f"mixed+{STEEP}", "linear"]
)
def test_heads_without_a_proof_keep_everything(line):
    config, params = model(line)
    assert required_slots(config, params, TOKENS, CALL) == ((TOKENS,),) * 2


def test_content_that_nothing_bounds_keeps_everything_and_so_does_epsilon_zero():
    config, params = model(STEEP, qk_norm=False)
    assert required_slots(config, params, TOKENS, CALL) == ((TOKENS,),) * 2
    assert required_slots(*model(STEEP), TOKENS, CALL, epsilon=0.0) == ((TOKENS,),) * 2


@pytest.mark.parametrize(
    "line",
    [
        "rope+window(size=16)|nope~logn",
        *(
            pytest.param(f"{part}+window(size=16)", marks=pytest.mark.thorough)
            for part in ("t5", "mixed", "pope")
        ),
    ],
)
def test_heads_with_a_window_keep_it_and_no_more_without_any_bound(line):
    config, params = model(line, qk_norm=False)
    kept = required_slots(config, params, TOKENS, CALL)
    assert kept == required_slots(config, params, TOKENS, CALL, epsilon=0.0)
    assert {layer[0] for layer in kept} == {16 + CALL - 1}
    want = decoded(config, params, ((TOKENS,),) * 2)
    np.testing.assert_allclose(
        decoded(config, params, kept), want, rtol=0, atol=4e-6 * np.abs(want).max()
    )
    narrow = tuple(tuple(s if s == TOKENS else s - 1 for s in layer) for layer in kept)
    assert np.abs(decoded(config, params, narrow) - want).max() > 1e-4


def test_what_the_smaller_window_hides_is_evicted_and_a_bound_may_hide_more():
    config, params = model("window(size=16)|nope", window=20)
    assert required_slots(config, params, TOKENS, CALL) == ((16 + CALL - 1, 20 + CALL - 1),) * 2
    config, params = model("window(size=16)|nope", num_kv_heads=1)  # one key head for both groups
    assert required_slots(config, params, TOKENS, CALL) == ((TOKENS,),) * 2
    config, params = model("window(size=16)|window(size=30)", num_kv_heads=1)
    assert required_slots(config, params, TOKENS, CALL) == ((30 + CALL - 1,),) * 2
    for line in (
        "pope+window(size=16)",
        "window(size=16)~adaptive_ssmax",
    ):  # nothing bounds their logits
        assert required_slots(*model(line), TOKENS, CALL) == ((16 + CALL - 1,),) * 2
    config, params = model("rope+forget+window(size=16)")
    assert required_slots(config, params, TOKENS, CALL) == ((TOKENS,),) * 2
    steep, _ = required_slots(*model(f"{STEEP}+window(size=200)"), TOKENS, CALL)
    assert steep[0] < 200


def test_larger_content_and_hotter_temperature_keep_more():
    config, params = model(STEEP)
    least = required_slots(config, params, TOKENS, CALL)[0][0]
    grown = jax.tree.map(lambda p: 2 * p, params)
    assert required_slots(config, grown, TOKENS, CALL)[0][0] > least
    assert required_slots(*model(f"{STEEP}~logn"), TOKENS, CALL)[0][0] > least
    stretched = model(f"rope(stretch=yarn(factor=64.0))+{STEEP}")
    assert required_slots(*stretched, TOKENS, CALL)[0][0] > least


def test_a_long_cache_of_alibi_heads_is_small():
    config, params = model("alibi", num_heads=8, num_kv_heads=8)
    slots = 131_072
    kept = required_slots(config, params, slots, 256)
    full, ring = (
        jax.eval_shape(lambda k=k: empty_cache(config, 1, slots, k, 256)) for k in (None, kept)
    )

    def size(cache):
        return sum(x.size for x in jax.tree.leaves(cache.layers))

    assert size(ring) < 0.11 * size(full)


def test_a_ring_refuses_a_call_longer_than_it_was_made_for():
    config, params = model(STEEP)
    cache = empty_cache(config, 1, TOKENS, required_slots(config, params, TOKENS, CALL), CALL)
    part = tokens_of(CALL + 1)
    with pytest.raises(ValueError, match="9 tokens in one call; this cache takes at most 8"):
        Decoder(config).apply(
            {"params": params}, part, jnp.arange(CALL + 1)[None], jnp.ones_like(part), cache
        )


@pytest.mark.thorough
def test_generation_is_the_same_with_and_without_eviction():
    config, params = model(f"rope+{STEEP}|nope~logn")
    prompts = [np.asarray(tokens_of(n)[0]) for n in (150, 40)]
    ask = {"new_tokens": 40, "pad": 0, "sampling": Sampling(), "key": jax.random.key(0)}
    assert required_slots(config, params, 200, 16)[0][0] < 150
    evicted = generate(params, config, prompts, call=16, **ask)
    np.testing.assert_array_equal(evicted, generate(params, config, prompts, epsilon=0.0, **ask))


PLACE = HeadContext(2, 2, 16, 32, 64)
ROTATIONS = [
    n
    for n, part in REGISTRY.items()
    if issubclass(part, Rotation) and part().amplitude(PLACE) < np.inf
]


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "part",
    [
        *(REGISTRY[n]() for n in ROTATIONS),
        parse("rope(fraction=0.5,stretch=yarn(factor=8.0))").layers[0][0].rotation,
    ],
)
def test_a_rotation_lengthens_no_vector_by_more_than_its_amplitude(part):
    place = PLACE
    params = part.init(jax.random.key(0), place)
    x = jax.random.normal(jax.random.key(1), (1, 512, 2, 16))
    pos = jnp.asarray(np.random.default_rng(0).integers(0, 2**20, (1, 512)))
    for side in ("query", "key"):
        turned = part.rotate(params, x, pos, place, side)
        growth = jnp.linalg.norm(turned, axis=-1) / jnp.linalg.norm(x, axis=-1)
        assert growth.max() <= part.amplitude(place) * (1 + 1e-5)
    assert part.amplitude(place) < 1.3  # and says no more than it must
