"""PoPE: every dim a magnitude, which content decides, at a phase, which position decides."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import (
    MATCH,
    MAX_SIZE,
    MIN_SIZE,
    HeadContext,
    Params,
    Rotation,
    check_positive,
)
from posenc_jax.encodings.rope_scaling import RopeScaling
from posenc_jax.encodings.rotary import angles, check_frequencies, inverse_frequencies, matched_base

STARTS = ("zero", "uniform")


@dataclasses.dataclass(frozen=True)
class Pope(Rotation):
    """PoPE: logit = sum over c of softplus(q_c) softplus(k_c) cos((j - i) theta_c + delta_c) / sqrt(H).

    theta_c = base^(-c/H), c = 0 .. H - 1: a frequency for every dim, twice as many as RoPE's. A turned vector
    has 2H columns, H cosines and then H sines; values keep theirs. delta is learned per head and dim and kept
    in [-2 pi, 0] after every update. It stands in the phase of the queries, as -delta, so that heads with
    shifts of their own can share keys. Source: Gopalakrishnan et al. 2025 (arXiv 2509.10534), eq. 3-8.

    Attributes:
      start: of delta, "zero" (by the paper, what lengths beyond training need) or "uniform" in [-2 pi, 0]
        (by the paper, slightly better within it).
      phases: False leaves the magnitudes and turns nothing: what a model has when its rotation is off.
      base, stretch: as in `Rope`.
    """

    per_head: ClassVar[bool] = True
    keys_alike: ClassVar[bool] = True
    start: str = "zero"
    phases: bool = True
    base: float | str = 10_000.0
    stretch: RopeScaling | None = None

    @property
    def learns(self) -> bool:
        """Whether there are phases to shift."""
        return self.phases

    @property
    def columns_per_dim(self) -> int:
        """Columns of a turned vector for every dim."""
        return 2 if self.phases else 1

    def check(self, context: HeadContext) -> None:
        """Raises ValueError for an unknown start, a bad base or stretch."""
        if self.start not in STARTS:
            raise ValueError(f"pope: start must be one of {STARTS}, not {self.start!r}")
        check_positive("pope", base=self.base)
        if self.stretch is not None:
            self.stretch.check()
            amplitude = self.stretch.amplitude(context.train_length)
            if not MIN_SIZE <= amplitude**2 <= MAX_SIZE:
                raise ValueError(
                    f"pope: its stretch's attention factor, {amplitude:g}, is past what float32 squares"
                )
        check_frequencies("pope", self.frequencies(context))

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"delta_NH"}, radians; nothing without phases."""
        if not self.phases:
            return {}
        shape = (context.heads, context.head_dim)
        if self.start == "zero":
            return {"delta_NH": jnp.zeros(shape)}
        return {"delta_NH": jax.random.uniform(key, shape, minval=-2 * math.pi, maxval=0.0)}

    def scheduled(self, params: Params, progress: jax.Array, context: HeadContext) -> Params:
        """Returns delta put back into [-2 pi, 0]."""
        return jax.tree.map(lambda delta_NH: jnp.clip(delta_NH, -2 * math.pi, 0.0), params)

    def stretched(self, stretch: RopeScaling) -> "Pope":
        """Returns the same rotation under `stretch`; ValueError when it has one already."""
        if self.stretch is not None:
            raise ValueError("pope: a scheme trained under a stretch cannot take a second one")
        return dataclasses.replace(self, stretch=stretch)

    def switched_off(self) -> "Pope":
        """Returns the magnitudes alone."""
        return dataclasses.replace(self, phases=False)

    def frequencies(self, context: HeadContext) -> np.ndarray:
        """Returns theta_H in radians per token, float64: those of RoPE on 2H dims."""
        base = matched_base(context.train_length) if self.base == MATCH else self.base
        theta_H = inverse_frequencies(2 * context.head_dim, base)
        if self.stretch is None:
            return theta_H
        return self.stretch.frequencies(theta_H, base, context.train_length)

    def wavelengths(self, context: HeadContext) -> tuple[float, ...]:
        """Returns 2*pi/theta_H: tokens per full turn of every dim."""
        if not self.phases:
            return ()
        return tuple(float(2 * math.pi / f) for f in self.frequencies(context))

    def rotate(
        self, params: Params, x_BTNH: jax.Array, pos_BT: jax.Array, context: HeadContext, side: str
    ) -> jax.Array:
        """Returns the magnitudes of x_BTNH at their phases, in 2H columns, of x's dtype; heads of other groups have no shift."""
        size_BTNH = jax.nn.softplus(x_BTNH.astype(jnp.float32))
        if not self.phases:
            return size_BTNH.astype(x_BTNH.dtype)
        phase_BTNH = angles(pos_BT, self.frequencies(context))[..., None, :]
        if side == "query":
            after = x_BTNH.shape[2] - context.first - context.heads
            delta_NH = jnp.pad(params["delta_NH"], ((context.first, after), (0, 0)))
            phase_BTNH = phase_BTNH - delta_NH[None, None]
        factor = self.stretch.amplitude(context.train_length) if self.stretch else 1.0
        turned = (size_BTNH * (turn(phase_BTNH) * factor) for turn in (jnp.cos, jnp.sin))
        return jnp.concatenate(list(turned), axis=-1).astype(x_BTNH.dtype)
