"""PoPE: each dim has a magnitude given by the content and a phase given by the position."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import HeadContext, Params, check_positive
from posenc_jax.encodings.rope_scaling import RopeScaling
from posenc_jax.encodings.rotary import ScaledFrequencies, angles

STARTS = ("zero", "uniform")


@dataclasses.dataclass(frozen=True)
class Pope(ScaledFrequencies):
    """PoPE: logit = sum over c of softplus(q_c) softplus(k_c) cos((j - i) theta_c + delta_c) /
    sqrt(H).

    theta_c = base^(-c/H), c = 0 .. H - 1: one frequency per dim, twice as many as in RoPE. A
    rotated vector has 2H columns, H cosines and then H sines; values keep H. delta is learned per
    head and dim and clipped to [-2 pi, 0] after every update. It is applied to the queries, as
    -delta, so that heads with different shifts can share keys.
    Source: Gopalakrishnan et al. 2025 (arXiv 2509.10534), eq. 3-8.

    Attributes:
      start: initial delta, "zero" (in the paper needed beyond the training length) or "uniform" in
        [-2 pi, 0] (in the paper slightly better within it).
      phases: False keeps the magnitudes and rotates nothing, which is the model with its rotation
        switched off.
      base, stretch: as in `Rope`.
    """

    per_head: ClassVar[bool] = True
    keys_alike: ClassVar[bool] = True
    start: str = "zero"
    phases: bool = True
    base: float | str = 10_000.0
    stretch: RopeScaling | None = None

    @property
    def learns(self) -> bool:  # type: ignore[override]  # by setting
        """Whether there is a delta."""
        return self.phases

    @property
    def columns_per_dim(self) -> int:  # type: ignore[override]  # by setting
        """Columns of a rotated vector per dim."""
        return 2 if self.phases else 1

    def check(self, context: HeadContext) -> None:
        if self.start not in STARTS:
            raise ValueError(f"pope: start must be one of {STARTS}, not {self.start!r}")
        check_positive("pope", base=self.base)
        self.check_stretch(context)

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns {"delta_NH"}, radians; nothing without phases."""
        if not self.phases:
            return {}
        shape = (context.heads, context.head_dim)
        if self.start == "zero":
            return {"delta_NH": jnp.zeros(shape)}
        return {"delta_NH": jax.random.uniform(key, shape, minval=-2 * math.pi, maxval=0.0)}

    def scheduled(self, params: Params, progress: jax.Array, context: HeadContext) -> Params:
        """Returns delta clipped to [-2 pi, 0]."""
        return jax.tree.map(lambda delta_NH: jnp.clip(delta_NH, -2 * math.pi, 0.0), params)

    def switched_off(self) -> "Pope":
        """Returns the magnitudes without phases."""
        return dataclasses.replace(self, phases=False)

    def frequencies(self, context: HeadContext) -> np.ndarray:
        """Returns theta_H in radians per token, float64: those of RoPE on 2H dims."""
        return self.scaled(2 * context.head_dim, context)

    def wavelengths(self, context: HeadContext) -> tuple[float, ...]:
        """Returns 2*pi/theta_H: tokens per turn of every dim."""
        return super().wavelengths(context) if self.phases else ()

    def rotate(self, params, x_BTNH, pos_BT, context, side):
        """Returns the magnitudes of x_BTNH at their phases, in 2H columns."""
        size_BTNH = jax.nn.softplus(x_BTNH.astype(jnp.float32))
        if not self.phases:
            return size_BTNH.astype(x_BTNH.dtype)
        phase_BTNH = angles(pos_BT, self.frequencies(context))[..., None, :]
        if side == "query":
            after = x_BTNH.shape[2] - context.first - context.heads
            delta_NH = jnp.pad(params["delta_NH"], ((context.first, after), (0, 0)))
            phase_BTNH = phase_BTNH - delta_NH[None, None]
        factor = self.stretch_amplitude(context)
        columns = [size_BTNH * (f(phase_BTNH) * factor) for f in (jnp.cos, jnp.sin)]
        return jnp.concatenate(columns, axis=-1).astype(x_BTNH.dtype)
