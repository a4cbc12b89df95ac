"""Teacher-forced scoring: the loss and the argmax hit of every target, in float32."""

import copy
import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.step import token_losses


class Scorer:
    """Scores token rows of any length with few compilations.

    Rows are padded on the right with segment 0 to the next of a few fixed lengths, and batches to a
    fixed number of rows, so one program per length serves every task. Results do not depend on the
    padding: nothing sees segment 0.

    Args:
      configs: the model to use for each input length to compile for, in tokens. They differ where a
        scheme is read in another way at another length; scoring runs in float32 whatever they say.
      params: parameters of all of them.
      batch_tokens: tokens taken at a time.
    """

    def __init__(self, configs: Mapping[int, ModelConfig], params, batch_tokens: int):
        self._params, self._lengths, self._batch_tokens = params, sorted(configs), batch_tokens
        self._configs = {n: dataclasses.replace(c, dtype="float32") for n, c in configs.items()}
        # A function object of its own, so that the count below is this scorer's.
        self._score = jax.jit(functools.partial(_scored), static_argnums=0)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._score._cache_size()

    def reading(self, params) -> "Scorer":
        """Returns a scorer of other parameters of the same shapes that shares this one's programs."""
        other = copy.copy(self)
        other._params = params
        return other

    def score(self, rows_RT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (nll_RT, hit_RT) of predicting rows_RT[:, 1:] from what stands before.

        Both have one column less than `rows_RT`; column t scores token t + 1. nll in nats.

        Raises:
          ValueError: rows longer than the longest compiled length: nothing is ever cut off.
        """
        length = rows_RT.shape[1] - 1
        fitting = [n for n in self._lengths if n >= length]
        if not fitting:
            raise ValueError(
                f"rows of {length} inputs exceed the longest length {self._lengths[-1]}"
            )
        T = fitting[0]
        B = max(1, self._batch_tokens // T)
        nll, hit = [], []
        for start in range(0, len(rows_RT), B):
            rows = rows_RT[start : start + B].astype(np.int32)
            padded = np.zeros((B, T + 1), np.int32)
            padded[: len(rows), : length + 1] = rows
            seg_BT = np.zeros((B, T), np.int32)
            seg_BT[: len(rows), :length] = 1
            out = self._score(self._configs[T], self._params, padded[:, :-1], padded[:, 1:], seg_BT)
            nll.append(np.asarray(out[0])[: len(rows), :length])
            hit.append(np.asarray(out[1])[: len(rows), :length])
        return np.concatenate(nll), np.concatenate(hit)


def _scored(config: ModelConfig, params, tokens_BT, targets_BT, seg_BT):
    pos_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    logits_BTV, _ = Decoder(config).apply({"params": params}, tokens_BT, pos_BT, seg_BT)
    return token_losses(logits_BTV, targets_BT), logits_BTV.argmax(-1) == targets_BT
