"""Runs a decoder and hands the queries and keys of every layer to a reduction."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention import attend
from posenc_jax.encodings.backend import float32_matmuls
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.decoder import Decoder


def capture_qk(
    config: ModelConfig,
    params,
    tokens_BT,
    pos_BT,
    reduce: Callable,
    changed: Callable = lambda x: x,
) -> tuple:
    """Returns what `reduce` makes of each layer, in order; pure, and to be called under `jax.jit`.

    Args:
      config: of the decoder; it runs in float32, products and all, whatever `config.dtype` says. params: of the decoder.
      tokens_BT, pos_BT: one document a row, without padding; positions rise by one.
      reduce: (index, q_BTNH, k_BTKH, layer, scheme_params, pos_BT, cum_log_forget_BTN, sink_N) -> any arrays, with q and
        k as projected (and shifted and normed), before rotation and before any temperature but those that tokens
        decide; sink_N or None as for `attend`.
      changed: makes of each PlacedLayer the one that runs instead.
    """
    found = []

    def watching(q_BTNH, k_BSKH, v_BSKH, layer, learned, **where):
        x_BTD = where.pop("x_BTD")
        q_BTNH, layer = changed(layer).tempered(learned, q_BTNH, x_BTD, where["q_pos_BT"])
        seen = (where[name] for name in ("q_pos_BT", "q_cum_log_forget_BTN", "sink_N"))
        found.append(reduce(len(found), q_BTNH, k_BSKH, layer, learned, *seen))
        return attend(q_BTNH, k_BSKH, v_BSKH, layer, learned, **where)

    decoder = Decoder(config.measured, attend=watching)
    with float32_matmuls():
        decoder.apply({"params": params}, tokens_BT, pos_BT, jnp.ones_like(tokens_BT))
    return tuple(found)


def over_batches(program: Callable, batch_tokens: int, *arrays: np.ndarray) -> list:
    """Returns the results of `program(*piece)` for pieces of whole rows, as NumPy trees.

    Args:
      program: a jitted function of arrays with a leading row dim. batch_tokens: bounds rows x columns
        of the first array's pieces; one row is always taken. The last piece is filled up by repeating
        its last row, and the filling cut off again, so that one program serves all.
    """
    rows, columns = arrays[0].shape
    size = max(1, min(rows, batch_tokens // columns))
    results = []
    for start in range(0, rows, size):
        taken = np.minimum(np.arange(start, start + size), rows - 1)
        real = min(size, rows - start)
        found = program(*(x[taken] for x in arrays))
        results.append(jax.tree.map(lambda x, real=real: np.asarray(x)[:real], found))
    return results
