"""Scorer: teacher-forced loss and rank of every target, in float32, over all devices."""

import contextlib
import copy
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.backend import float32_matmuls
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder, check_token_ids, readout
from posenc_jax.training.loss import token_losses

CHUNK_LOGITS = 2**25  # logits held at a time: 128 MB in float32
CPU_TOKENS = 2048  # per batch of a CPU device; larger arrays cost page faults


class ScorableModel(Protocol):
    """A model that can be scored: hashable, with pure functions of parameters and arrays."""

    def stream(self, params, tokens_BT, pos_BT, seg_BT, window: int | None) -> jax.Array:
        """Returns x_BTX, the input of `logits`; x at t may not depend on tokens after t.

        window: tokens that attention sees, the current one included; None for all.
        """

    def logits(self, params, x_BTX) -> jax.Array:
        """Returns logits_BTV, float32, of a piece of x."""


@dataclasses.dataclass(frozen=True)
class DecoderModel:
    """The decoder as a ScorableModel, with float32 activations."""

    config: ModelConfig

    def stream(self, params, tokens_BT, pos_BT, seg_BT, window):
        config = self.config.measured
        if window is not None:
            config = dataclasses.replace(config, window=min(window, config.window or window))
        decoder = Decoder(config, read_out=False)
        return decoder.apply({"params": params}, tokens_BT, pos_BT, seg_BT)[0]

    def logits(self, params, x_BTX):
        return readout(self.config.measured, params, x_BTX)


class Scores(NamedTuple):
    """nll_RT in nats; rank_RT: tokens with a higher logit than the target (0: argmax)."""

    nll_RT: np.ndarray
    rank_RT: np.ndarray


class Scorer:
    """Scores token rows of any length with few compilations.

    Rows are padded on the right with segment 0 to one of a few fixed lengths, and batches to a
    fixed number of rows, so one program per length serves every task. Results do not depend on the
    padding.

    Args:
      models: the model for each input length to compile for, in tokens: a decoder configuration or
        another `ScorableModel`. They differ if a length extension depends on the length.
      params: parameters, the same for all lengths.
      batch_tokens: most tokens per batch over all devices; each device has at least one row. A CPU
        device takes at most CPU_TOKENS, so larger budgets give the same bits on any number of
        cores.
      mesh: devices that rows are spread over, or None for one device; parameters then lie on it.
    """

    def __init__(
        self,
        models: Mapping[int, ModelConfig | ScorableModel],
        params,
        batch_tokens: int,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self._params, self._lengths, self._batch_tokens = params, sorted(models), batch_tokens
        self._models = {
            n: DecoderModel(m) if isinstance(m, ModelConfig) else m for n, m in models.items()
        }
        self._mesh = mesh
        self._traced: list = []
        traced = self._traced

        def score(model, window, *arrays):
            traced.append(model)  # runs when JAX traces, thus once for each compiled program
            return _scored(model, window, *arrays)

        self._score = jax.jit(score, static_argnums=(0, 1))

    @property
    def compilations(self) -> int:
        """Number of compiled programs."""
        return len(self._traced)

    @property
    def longest(self) -> int:
        """The largest number of inputs of a row."""
        return self._lengths[-1]

    def with_params(self, params) -> "Scorer":
        """Returns a scorer with other parameters of the same shapes; it keeps the programs."""
        other = copy.copy(self)
        other._params = params
        return other

    def score(self, rows_RT: np.ndarray, window: int | None = None) -> Scores:
        """Returns the scores of predicting rows_RT[:, 1:] from the tokens before.

        Both arrays have one column less than `rows_RT`; column t scores token t + 1. window:
        attention sees that many tokens only, the current one included.

        Raises:
          ValueError: rows longer than the longest compiled length: nothing is ever cut off; ids
            that are not of a decoder's vocabulary.
        """
        length = rows_RT.shape[1] - 1
        fitting = [n for n in self._lengths if n >= length]
        if not fitting:
            raise ValueError(
                f"rows of {length} inputs exceed the longest length {self._lengths[-1]}"
            )
        T = fitting[0]
        model = self._models[T]
        if isinstance(model, DecoderModel):
            check_token_ids(rows_RT, model.config.vocab_size)
        B = self._batch_rows(T)
        scored = []
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            for start in range(0, len(rows_RT), B):
                rows = rows_RT[start : start + B].astype(np.int32)
                padded = np.zeros((B, T + 1), np.int32)
                padded[: len(rows), : length + 1] = rows
                seg_BT = np.zeros((B, T), np.int32)
                seg_BT[: len(rows), :length] = 1
                arrays = self._on_devices(padded[:, :-1], padded[:, 1:], seg_BT)
                out = self._score(self._models[T], window, self._params, *arrays)
                # The next batch is prepared while this one runs.
                scored.append((out, len(rows)))
        return Scores(
            *(
                np.concatenate([np.asarray(out[i])[:count, :length] for out, count in scored])
                for i in range(2)
            )
        )

    def _batch_rows(self, length: int) -> int:
        devices = 1 if self._mesh is None else self._mesh.shape["data"]
        rows = self._batch_tokens // length // devices
        if jax.default_backend() == "cpu":
            rows = min(rows, CPU_TOKENS // length)
        return max(1, rows) * devices

    def _on_devices(self, *arrays: np.ndarray) -> tuple:
        pos_BT = np.broadcast_to(np.arange(arrays[0].shape[1], dtype=np.int32), arrays[0].shape)
        if self._mesh is None:
            return (*arrays, pos_BT)
        batch_sharding = jax.NamedSharding(self._mesh, jax.P("data", None))
        return tuple(jax.device_put(a, batch_sharding) for a in (*arrays, pos_BT))


def _scored(model: ScorableModel, window, params, tokens_BT, targets_BT, seg_BT, pos_BT):
    with float32_matmuls():
        return _scores(model, window, params, tokens_BT, targets_BT, seg_BT, pos_BT)


def _scores(model: ScorableModel, window, params, tokens_BT, targets_BT, seg_BT, pos_BT):
    x_BTX = model.stream(params, tokens_BT, pos_BT, seg_BT, window)
    B, T = tokens_BT.shape
    shape = jax.eval_shape(lambda x: model.logits(params, x), x_BTX)
    pieces = _pieces(T, B * T * shape.shape[-1])
    if pieces == 1:
        return _losses_and_ranks(model.logits(params, x_BTX), targets_BT)
    # Logits of a long row over a large vocabulary are computed one piece at a time.
    cut = (
        x_BTX.reshape(B, pieces, T // pieces, -1).swapaxes(0, 1),
        targets_BT.reshape(B, pieces, T // pieces).swapaxes(0, 1),
    )
    nll, rank = jax.lax.map(
        lambda part: _losses_and_ranks(model.logits(params, part[0]), part[1]), cut
    )
    return nll.swapaxes(0, 1).reshape(B, T), rank.swapaxes(0, 1).reshape(B, T)


def _pieces(length: int, logits: int) -> int:
    """Returns the fewest equal pieces of a row with at most CHUNK_LOGITS logits each."""
    least = -(-logits // CHUNK_LOGITS)
    return next((n for n in range(least, length) if length % n == 0), length) if least > 1 else 1


def _losses_and_ranks(logits_BTV: jax.Array, targets_BT: jax.Array):
    # Without a gather, as in the loss; a tie goes to the lower id, as in argmax. Counts the logits
    # below the target, so that a NaN never makes an answer right.
    ids_11V = jnp.arange(logits_BTV.shape[-1])[None, None]
    target_BT1 = targets_BT[:, :, None]
    at_BT1 = jnp.max(jnp.where(ids_11V == target_BT1, logits_BTV, -jnp.inf), -1, keepdims=True)
    behind = (logits_BTV < at_BT1) | ((logits_BTV == at_BT1) & (ids_11V >= target_BT1))
    return token_losses(logits_BTV, targets_BT), logits_BTV.shape[-1] - behind.sum(-1)
