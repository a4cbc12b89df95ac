"""Worked examples of the source documents, and the decay of RoPE's dot product."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings import HeadContext, Rope
from posenc_jax.encodings.analysis import SMALLEST_POSITIVE, blind_distance, decay_bound
from posenc_jax.encodings.bias import Alibi, alibi_slopes, linear_bias
from posenc_jax.encodings.rope_scaling import DynamicNtk, Llama3, PositionInterpolation, Yarn
from posenc_jax.encodings.rotary import angles, inverse_frequencies, rotate
from posenc_jax.study.ledger import WorkedExample

HEAD = HeadContext(heads=1, num_heads=1, head_dim=64, model_dim=64, train_length=1024)
LONGEST = 1024  # tokens
DRAWS = 10_000


def octave_means_of_decay() -> list[float]:
    """Returns RoFormer's bound (Su et al. 2021, eq. 37) over its value at distance 0: means over
    the octaves [1, 2), [2, 4) ... up to 1,024 tokens, for 64 dims and base 10,000.
    """
    bound_Z = decay_bound(Rope().wavelengths(HEAD), np.arange(LONGEST))
    edges = 2 ** np.arange(int(np.log2(LONGEST)) + 1)
    octaves = itertools.pairwise(edges)
    return [float(bound_Z[a:b].mean() / bound_Z[0]) for a, b in octaves]


def decay_of_random_vectors() -> tuple[float, float, float, int]:
    """Returns (rms at distance 1, rms at 1,024, largest |mean| in standard errors, pairs drawn) of
    the dot product of independent Gaussian queries and keys under RoPE.

    The distances are powers of two; each has its own draws.
    """
    random = np.random.default_rng(0)
    waves_h = np.asarray(Rope().wavelengths(HEAD))
    rms, means = [], []
    for distance in 2 ** np.arange(int(np.log2(LONGEST)) + 1):
        q_Ph, k_Ph = random.standard_normal((2, DRAWS, len(waves_h), 2)).view(np.complex128)[..., 0]
        turn_h = np.exp(2j * np.pi * distance / waves_h)
        dot_P = (q_Ph * np.conj(k_Ph) * turn_h).real.sum(-1)
        rms.append(float(np.sqrt((dot_P**2).mean())))
        means.append(float(abs(dot_P.mean()) / dot_P.std() * np.sqrt(DRAWS)))
    return rms[0], rms[-1], max(means), DRAWS


def worked_examples() -> list[WorkedExample]:
    """Returns the examples, in the order of the source documents."""
    one = [1.0, 0.0]
    score = float(_turned(one, 30) @ _turned(one, 90))
    distance_S = np.array([[[2.0, 1.0, 0.0]]])
    scores = (
        np.array([9.0, 8.0, 7.0])
        + np.asarray(linear_bias(np.array([0.25]), jnp.asarray(distance_S)))[0, 0, 0]
    )
    squeeze = 100_000 / 4096
    freq_h = inverse_frequencies(128, 10_000.0)
    long_1h = angles(
        jnp.array([[100_000]]), PositionInterpolation(squeeze).frequencies(freq_h, 1e4, 4096)
    )
    near_1h = angles(jnp.array([[4096]]), freq_h)
    error = float(jnp.abs(jnp.exp(1j * long_1h) - jnp.exp(1j * near_1h)).max())
    standard = alibi_slopes(8)
    distance_Z = np.arange(30_000)
    blind = [blind_distance(-m * distance_Z, SMALLEST_POSITIVE["float32"]) for m in standard]
    ramp = Yarn(4.0).ramp_ends(128, 1e4, 4096)
    slopes_4 = Alibi(factor=4.0).slope_N(
        HeadContext(heads=8, num_heads=8, head_dim=64, model_dim=512, train_length=1024)
    )
    return [
        WorkedExample("q = k = [1, 0] turned by 30 and 90 degrees: score", "0.5", f"{score:.3f}"),
        WorkedExample("[1, 0] turned by 45 degrees", "0.707, 0.707", _listed(_turned(one, 45), 3)),
        WorkedExample("[1, 0] turned by 90 degrees", "0, 1", _listed(_turned(one, 90), 3)),
        WorkedExample(
            "scores 9, 8, 7 at distances 2, 1, 0, slope 0.25", "8.5, 7.75, 7", _listed(scores, 2)
        ),
        WorkedExample(
            "4,096 positions squeezed to 100,000: position 100,000 turns as 4,096 did",
            "equal angles",
            f"largest difference {error:.0e}" if error else "equal",
        ),
        WorkedExample(
            "ALiBi, 12 heads: the last four slopes",
            ".70711 .35355 .17678 .08839",
            " ".join(f"{m:.5f}"[1:] for m in alibi_slopes(12)[-4:]),
        ),
        WorkedExample(
            "ALiBi, 8 heads: last distance with a weight in float32",
            "206 413 826 1652 3304 6609 13219 26439",
            " ".join(map(str, blind)),
        ),
        WorkedExample(
            "slopes of 8 heads for four times the length: m L / L'",
            "1/4 of each",
            " ".join(f"{ratio:.2f}" for ratio in sorted(set(slopes_4 / standard))),
        ),
        WorkedExample(
            "dynamic NTK, L 4,096, 128 dims, at 8,192 tokens: base for f = 1 and 2",
            "20221.3, 30527.7",
            _listed([_base(DynamicNtk(f, 8192), freq_h) for f in (1.0, 2.0)], 1),
        ),
        WorkedExample("YaRN, 128 dims, L 4,096: ends of the ramp", "20, 46", _listed(ramp, 0)),
        WorkedExample(
            "Llama 3, base 500,000, 128 dims, factor 8: pairs kept, blended, divided",
            "29, 6, 29",
            _listed(_llama_bands(), 0),
        ),
    ]


def _turned(vector: Sequence[float], degrees: float) -> np.ndarray:
    x_BTNH = jnp.asarray(vector, jnp.float32)[None, None, None]
    angle_BTh = jnp.full((1, 1, 1), np.deg2rad(degrees), jnp.float32)
    return np.asarray(rotate(x_BTNH, angle_BTh, "half", 1.0), np.float64)[0, 0, 0]


def _base(scaling: DynamicNtk, freq_h: np.ndarray) -> float:
    """Returns the base whose frequencies the scaling gives."""
    scaled_h = scaling.frequencies(freq_h, 1e4, 4096)
    return float(scaled_h[1] ** -len(freq_h))


def _llama_bands() -> tuple[int, int, int]:
    freq_h = inverse_frequencies(128, 500_000.0)
    ratio_h = Llama3(8.0).frequencies(freq_h, 5e5, 8192) / freq_h
    kept, divided = np.isclose(ratio_h, 1).sum(), np.isclose(ratio_h, 1 / 8).sum()
    return int(kept), int(len(freq_h) - kept - divided), int(divided)


def _listed(values: Sequence[float] | np.ndarray, digits: int) -> str:
    return ", ".join(f"{float(np.round(v, digits)) + 0.0:.{digits}f}".rstrip() for v in values)
