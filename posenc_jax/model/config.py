"""What a decoder is made of: one frozen value, checked before anything compiles."""

import dataclasses
import functools

from posenc_jax.attention import IMPLEMENTATIONS, choose_implementation
from posenc_jax.attention.kernels.vendor import KERNELS
from posenc_jax.encodings import PlacedScheme, parse

DTYPES = ("float32", "bfloat16")
ACTIVATIONS = ("swiglu", "gelu")
LARGEST = 2**20  # of any number of layers, heads or dims: what is above it is a slip of the hand


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and choices of a decoder.

    Attributes:
      scheme: positional encoding in the scheme language.
      vocab_size: V. train_length: L, in tokens. num_layers, model_dim (D), num_heads (N),
      num_kv_heads (K; N for plain attention), head_dim (H), mlp_dim (F): shapes.
      activation: "swiglu" (three matrices) or "gelu" (two).
      qk_norm: RMSNorm with a learned gain on queries and keys, before the rotation.
      tied_head: the output head is the embedding table transposed.
      embedding_scale: factor on token embeddings (the Transformer: sqrt(D)).
      norm_epsilon: added to the mean square.
      dtype: of activations and matrix products; parameters, norms, positions, softmax and loss stay
        float32.
      attention: implementation, see `posenc_jax.attention.attend`.
      output_gate: each head's result times sigmoid(x W), x the normed input of the layer: Qiu et al. 2025
        (arXiv 2505.06708), gate G1, elementwise, a gate for every head and dim.
      sink_logit: a learned logit per head in the softmax's sum, of no key and no value, at first 0 (gpt-oss).
      token_shift: keys and values become a x_t + b x_(t-1), a and b learned for every key/value head, before
        qk-norm and rotation; at first a is uniform in [0, 1) and b = 1 - a (Xu et al. 2024, arXiv 2411.19574).
      window: keys at that distance or further are out of sight; None: all are in sight.
      consecutive: positions of a document rise by one. False where they are drawn at random: temperatures then count
        the keys in sight, and kernels that take slots for positions refuse.
    """

    scheme: str
    vocab_size: int
    train_length: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: str
    qk_norm: bool
    tied_head: bool
    embedding_scale: float
    norm_epsilon: float
    dtype: str
    attention: str
    output_gate: bool = False
    sink_logit: bool = False
    token_shift: bool = False
    window: int | None = None
    consecutive: bool = True

    def __post_init__(self):
        for name in ("vocab_size", "train_length", "num_layers", "model_dim", "num_heads",
                     "num_kv_heads", "head_dim", "mlp_dim", "embedding_scale", "norm_epsilon"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name} must be positive, not {getattr(self, name)}")
        for name in ("num_layers", "model_dim", "num_heads", "head_dim", "mlp_dim"):
            if getattr(self, name) > LARGEST:
                raise ValueError(
                    f"model.{name} must be at most {LARGEST}, not {getattr(self, name)}"
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} does not divide over "
                f"model.num_kv_heads={self.num_kv_heads}"
            )
        for name, known in (
            ("activation", ACTIVATIONS),
            ("dtype", DTYPES),
            ("attention", IMPLEMENTATIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"model.{name} must be one of {known}, not {getattr(self, name)!r}"
                )
        if self.window is not None and self.window < 1:
            raise ValueError(f"model.window must be at least 1 token, not {self.window}")
        self.attention_paths(self.train_length)

    def attention_paths(
        self, length: int, sequence: int = 1, device: str | None = None
    ) -> list[str]:
        """Returns the way that attention over `length` tokens takes, and why, for each kind of layer.

        Args:
          sequence: devices that the tokens of a row lie on. device: as for `choose_implementation`.

        Raises:
          ValueError: an `attention` asked for, or a sequence axis, that cannot serve a layer.
        """
        kinds = dict.fromkeys(
            choose_implementation(
                layer, length, length, self.attention, head_dim=self.head_dim, dtype=self.dtype,
                device=device, sequence=sequence, sink=self.sink_logit, consecutive=self.consecutive,
                window=self.window,
            )
            for layer in self.placed.layers
        )  # fmt: skip
        return [f"{path.name} ({path.why})" for path in kinds]

    @functools.cached_property
    def measured(self) -> "ModelConfig":
        """The model as it is measured: in float32, at plain positions, and not through a kernel that would round its factors."""
        attention = "auto" if self.attention in KERNELS else self.attention
        return dataclasses.replace(self, dtype="float32", attention=attention, consecutive=True)

    @functools.cached_property
    def placed(self) -> PlacedScheme:
        """The scheme at this model's shape; ValueError when it does not fit."""
        return parse(self.scheme).place(
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            model_dim=self.model_dim,
            train_length=self.train_length,
        )
