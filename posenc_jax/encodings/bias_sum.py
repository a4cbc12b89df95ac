"""Several biases on the same heads: b = b_1 + b_2 + .., in a line ``alibi&log``."""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from posenc_jax.encodings.base import Bias, GatedBias, HeadContext, Params


@dataclasses.dataclass(frozen=True)
class BiasSum(Bias):
    """The sum of biases, in nats. Each term keeps its own settings, learned values, schedule and
    length extension.

    Attributes:
      terms: two or more biases; none of them is a sum or a forget gate.

    Raises:
      ValueError: on construction, for other terms.
    """

    factor: ClassVar[float] = 1.0  # type: ignore[misc]  # each term has its own
    terms: tuple[Bias, ...] = ()

    def __post_init__(self):
        if len(self.terms) < 2 or any(isinstance(term, BiasSum) for term in self.terms):
            raise ValueError("a sum of biases has two terms or more, and none of them is a sum")
        if any(isinstance(term, GatedBias) for term in self.terms):
            raise ValueError(
                "a forget gate does not add to another bias: put it on separate heads, with '|'"
            )

    @property
    def learns(self) -> bool:  # type: ignore[override]  # by setting
        """Whether a term learns."""
        return any(term.learns for term in self.terms)

    @property
    def relative(self) -> bool:  # type: ignore[override]  # by setting
        """Whether all terms are relative."""
        return all(term.relative for term in self.terms)

    @property
    def joint(self) -> bool:  # type: ignore[override]  # by setting
        """Whether a term is joint."""
        return any(term.joint for term in self.terms)

    def init(self, key: jax.Array, context: HeadContext) -> Params:
        """Returns the learned parameters of the terms by the index of the term."""
        learned = {
            str(i): term.init(jax.random.fold_in(key, i), context)
            for i, term in enumerate(self.terms)
        }
        return {i: values for i, values in learned.items() if values}

    def scheduled(self, params: Params, progress: jax.Array, context: HeadContext) -> Params:
        """Returns the parameters of every term after a share `progress` of training."""
        return {
            i: self.terms[int(i)].scheduled(values, progress, context)
            for i, values in params.items()
        }

    def longest(self, context: HeadContext) -> int | None:
        """Returns the smallest limit of the terms."""
        return min(
            (n for term in self.terms if (n := term.longest(context)) is not None), default=None
        )

    def bias(self, params, q_pos_BT, k_pos_BS, context):
        return sum(
            term.bias(params.get(str(i), {}), q_pos_BT, k_pos_BS, context)
            for i, term in enumerate(self.terms)
        )

    def linear_slope_N(self, params: Params, context: HeadContext) -> jax.Array | None:
        """Returns the sum of the terms' slopes, float32; None where a term is not linear."""
        slopes = [
            term.linear_slope_N(params.get(str(i), {}), context)
            for i, term in enumerate(self.terms)
        ]
        known = [slope_N for slope_N in slopes if slope_N is not None]
        return jnp.sum(jnp.stack(known), 0) if len(known) == len(slopes) else None

    def stretched(self, factor: float, ntk: bool) -> "BiasSum":
        """Returns the sum of the terms for contexts `factor` times as long."""
        return BiasSum(tuple(term.stretched(factor, ntk) for term in self.terms))

    def on_grid(self, width: int, context: HeadContext) -> Self:
        """Returns the sum whose planar terms have a grid of `width` columns."""
        return self.changed(terms=tuple(term.on_grid(width, context) for term in self.terms))
