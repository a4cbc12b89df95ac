"""The arguments of attention that travel together: a side's tokens, optional inputs, settings."""

import dataclasses
from typing import NamedTuple

import jax


class TokenSide(NamedTuple):
    """The tokens of one side of attention, the queries or the keys.

    Attributes:
      pos_BT: positions inside the document, integer.
      seg_BT: document of each token inside the row; 0 is padding.
      cum_log_forget_BTN: running sums of `PlacedLayer.log_forget` (`cumulative_log_forget`), for a
        scheme with a forget gate; otherwise None.
      order_BT: the order that causality compares, integer, for positions that repeat or restart
        inside a document; the slots, for example. None: the positions. Both sides have one or none.
    """

    pos_BT: jax.Array
    seg_BT: jax.Array
    cum_log_forget_BTN: jax.Array | None = None
    order_BT: jax.Array | None = None

    @property
    def causal_BT(self) -> jax.Array:
        """The order of the tokens: a causal query sees the keys that are not after it."""
        return self.pos_BT if self.order_BT is None else self.order_BT


class OptionalInputs(NamedTuple):
    """Arrays that only some schemes and models have.

    Attributes:
      x_BTD: the array from which the queries were projected, for a scheme whose temperature depends
        on the tokens.
      count_BT: number of visible keys of each query, where positions do not rise by one (random
        positions). A temperature that depends on this number uses it. None: the position plus one.
      sink_N: float32, a logit per head of a key that every query sees and whose value is zero, so
        that the weights of a row add up to less than one (gpt-oss; Xiao et al. 2023, StreamingLLM,
        sec. 3.3).
    """

    x_BTD: jax.Array | None = None
    count_BT: jax.Array | None = None
    sink_N: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class AttentionSettings:
    """Static settings of `attend`.

    Attributes:
      causal: a query does not see keys at later positions (or later in `TokenSide.order_BT`).
      window: a query does not see keys at this distance or beyond, in both directions, in all
        heads. Where the scheme gives a head its own window, the smaller one holds.
      aligned: queries and keys are the same tokens in the same slots, the tokens of a document are
        in consecutive slots, and positions rise, by one if `OptionalInputs.count_BT` is None.
        Linear attention then takes time linear in T, and vendor kernels can be used.
      softcap: c of c tanh(logit/c) on content logits, temperature included, before the bias
        (Gemma 2, arXiv 2408.00118, sec. 2); 0: none.
      finite_keys: keys and values are finite even where no query sees them, as those of a cache
        are. They are then not replaced by zeros, which saves a pass over them.
      implementation: "dense" (the definition), "blockwise" (memory linear in length), "flash" (our
        kernel for NVIDIA GPUs, fixed biases of distance), "cudnn" or "splash" (vendor kernels, a
        linear bias folded in, bfloat16), or "auto"; see `choose_implementation`. All give the same
        numbers up to rounding.
    """

    causal: bool = True
    window: int | None = None
    aligned: bool = False
    implementation: str = "auto"
    softcap: float = 0.0
    finite_keys: bool = False


CAUSAL = AttentionSettings()
NO_OPTIONAL_INPUTS = OptionalInputs()
