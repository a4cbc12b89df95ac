"""Configuration of a decoder: one frozen value, checked before anything compiles."""

import dataclasses
import functools

from posenc_jax.attention import IMPLEMENTATIONS, KernelConditions, choose_implementation
from posenc_jax.attention.kernels.vendor import KERNELS
from posenc_jax.encodings import PlacedScheme, Scheme, parse, unparse

DTYPES = ("float32", "bfloat16")
# Activation -> whether the MLP is gated, with a third matrix. "gelu" and "geglu" are the tanh form.
ACTIVATIONS = {
    "swiglu": True,
    "geglu": True,
    "geglu_exact": True,
    "gelu": False,
    "gelu_exact": False,
    "gelu_quick": False,
    "relu": False,
}
NORMS = ("rms", "rms_plus_one", "layer", "layer_no_bias")
NORM_POSITIONS = ("pre", "pre_normed_residual", "post", "both")
PARALLEL = ("none", "one_norm", "two_norms")
BIASES = ("qkv", "out", "mlp", "head")
LARGEST = 2**20  # upper limit of numbers of layers, heads and dims


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Shape and choices of a decoder, without its vocabulary.

    Attributes:
      scheme: positional encoding, a line of the scheme grammar or a `Scheme`.
      train_length: L, in tokens. num_layers, model_dim (D), num_heads (N),
      num_kv_heads (K; N for plain attention), head_dim (H), mlp_dim (F): shapes.
      activation: "swiglu", "geglu" or "geglu_exact" (gated, three matrices); "gelu" (by tanh),
        "gelu_exact", "gelu_quick" (x sigmoid(1.702 x)) or "relu" (two matrices).
      qk_norm: RMSNorm with a learned gain on queries and keys, before the rotation.
      tied_head: the output head is the embedding table transposed.
      embedding_scale: factor on token embeddings (the Transformer: sqrt(D)).
      norm_epsilon: added to the mean square, or to the variance.
      dtype: of activations and matrix products, "float32" or "bfloat16"; parameters, norms,
        positions, softmax and loss stay float32.
      attention: the implementation; "auto" chooses, see `posenc_jax.attention.AttentionSettings`.
      output_gate: the result of each head times sigmoid(x W), elementwise, where x is the normed
        input of the layer (Qiu et al. 2025, arXiv 2505.06708, gate G1).
      sink_logit: a learned logit per head in the softmax sum, without key and value, initially 0
        (gpt-oss).
      token_shift: keys and values become a x_t + b x_(t-1), a and b learned per key/value head,
        before qk-norm and rotation; initially a is uniform in [0, 1) and b = 1 - a (Xu et al. 2024,
        arXiv 2411.19574).
      norm: "rms"; "rms_plus_one", whose factor is 1 + gain (Gemma; for qk_norm too); "layer",
        LayerNorm with a bias; or "layer_no_bias".
      norm_position: of a sublayer f: "pre", x + f(norm(x)); "post", norm(x + f(x)) (Vaswani et al.
        2017); "both", x + norm(f(norm(x))) (Gemma 2); "pre_normed_residual", norm(x) + f(norm(x))
        (an option of BLOOM).
      parallel: attention and MLP read the same x and both are added to it: "one_norm" for both
        (GPT-J, PaLM, Falcon 7B) or "two_norms" (GPT-NeoX, Falcon 40B); "none": one after the other.
      final_norm: a norm before the head. embedding_norm: a norm after the embedding (BLOOM).
      biases: projections with a bias, some of "qkv", "out", "mlp" and "head".
      query_scale: factor on queries, on top of 1/sqrt(H).
      clip_qkv: queries, keys and values are clipped to [-c, c] after the projection (MPT); 0: not.
      attention_softcap: c of c tanh(logit/c) on content logits, before the bias (Gemma 2); 0: none.
      logit_softcap: the same for the vocabulary's logits.
      experts: MLPs of a layer, among which a softmax router chooses (Mixtral); 0: one MLP.
        experts_per_token: number of experts that a token uses.
      head_transform: a dense layer, the activation and a norm between the last layer and the head
        (RoFormer, BERT).
      window: a query does not see keys at this distance or beyond; None: no window.
      consecutive: positions of a document rise by one. False for random positions: temperatures
        then use the number of visible keys, and kernels that count distances in slots are refused.
      slot_order: a token sees the tokens in its own and in earlier slots of its document, whatever
        their positions are, so that positions may repeat, restart or fall inside a document (the
        cells of a grid, for example). Biases, windows and temperatures still use positions. A cache
        evicts nothing, and the tokens of a row cannot be split over devices. False: causality
        compares positions.
    """

    scheme: str | Scheme
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
    norm: str = "rms"
    norm_position: str = "pre"
    parallel: str = "none"
    final_norm: bool = True
    embedding_norm: bool = False
    biases: tuple[str, ...] = ()
    query_scale: float = 1.0
    clip_qkv: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    experts: int = 0
    experts_per_token: int = 0
    head_transform: bool = False
    window: int | None = None
    consecutive: bool = True
    slot_order: bool = False

    def __post_init__(self):
        for name in (
            "train_length",
            "num_layers",
            "model_dim",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "mlp_dim",
            "embedding_scale",
            "norm_epsilon",
            "query_scale",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name} must be positive, not {getattr(self, name)}")
        for name in ("clip_qkv", "attention_softcap", "logit_softcap"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"model.{name} must be 0 or positive, not {getattr(self, name)}")
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
            ("activation", tuple(ACTIVATIONS)),
            ("dtype", DTYPES),
            ("attention", IMPLEMENTATIONS),
            ("norm", NORMS),
            ("norm_position", NORM_POSITIONS),
            ("parallel", PARALLEL),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"model.{name} must be one of {known}, not {getattr(self, name)!r}"
                )
        self._check_combinations()
        if self.window is not None and self.window < 1:
            raise ValueError(f"model.window must be at least 1 token, not {self.window}")
        self.attention_paths(self.train_length)

    def _check_combinations(self) -> None:
        if not set(self.biases) <= set(BIASES) or len(set(self.biases)) < len(self.biases):
            raise ValueError(f"model.biases must be some of {BIASES}, not {self.biases}")
        if self.parallel != "none" and self.norm_position != "pre":
            raise ValueError(
                f"model.parallel={self.parallel} has its norms before the sublayers: set "
                f"model.norm_position to pre, not {self.norm_position}"
            )
        used, there = self.experts_per_token, self.experts
        if (there or used) and not 0 < used <= there:
            raise ValueError(
                f"model.experts_per_token must lie in [1, model.experts={there}], not {used}"
            )
        if there and "mlp" in self.biases:
            raise ValueError("model.biases: experts have none; leave mlp out")

    @property
    def gated(self) -> bool:
        """Whether the MLP has a third matrix, the gate."""
        return ACTIVATIONS[self.activation]

    @property
    def kernel_conditions(self) -> KernelConditions:
        """The properties of this model's attention that decide which kernels can serve it."""
        return KernelConditions(
            self.head_dim,
            self.dtype,
            sink=self.sink_logit,
            consecutive=self.consecutive and not self.slot_order,
            window=self.window,
            softcap=self.attention_softcap > 0,
        )

    def attention_paths(
        self, length: int, sequence: int = 1, device: str | None = None
    ) -> list[str]:
        """Returns the implementation for `length` tokens, with the reason, for each kind of layer.

        Args:
          sequence, device: as for `choose_implementation`.

        Raises:
          ValueError: the requested `attention`, or a sequence axis, cannot serve a layer.
        """
        if self.slot_order and sequence > 1:
            raise ValueError(
                f"model.slot_order: the tokens of a row lie on {sequence} devices, where causality "
                "compares positions; set it to False"
            )
        kinds = dict.fromkeys(
            choose_implementation(
                layer,
                length,
                length,
                self.attention,
                self.kernel_conditions,
                device=device,
                sequence=sequence,
            )
            for layer in self.placed.layers
        )
        return [f"{path.name} ({path.why})" for path in kinds]

    @functools.cached_property
    def parsed_scheme(self) -> Scheme:
        """The scheme as a value."""
        return parse(self.scheme) if isinstance(self.scheme, str) else self.scheme

    @property
    def scheme_line(self) -> str:
        """The scheme as a line of the scheme grammar."""
        return self.scheme if isinstance(self.scheme, str) else unparse(self.scheme)

    @functools.cached_property
    def placed(self) -> PlacedScheme:
        """The scheme at this model's shape; ValueError when it does not fit."""
        return self.parsed_scheme.place(
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            model_dim=self.model_dim,
            train_length=self.train_length,
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig(Architecture):
    """Configuration of a decoder: its architecture and the size V of its vocabulary."""

    vocab_size: int = dataclasses.field(kw_only=True)

    def __post_init__(self):
        if not self.vocab_size > 0:
            raise ValueError(f"model.vocab_size must be positive, not {self.vocab_size}")
        super().__post_init__()

    @functools.cached_property
    def measured(self) -> "ModelConfig":
        """The configuration for measurements: float32, plain positions, no kernel that rounds."""
        attention = "auto" if self.attention in KERNELS else self.attention
        return dataclasses.replace(self, dtype="float32", attention=attention, consecutive=True)
