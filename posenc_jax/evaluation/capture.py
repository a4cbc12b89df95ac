"""Capture of q and k: runs a decoder and reduces the queries and keys of every layer."""

import functools
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
    modify_layer: Callable = lambda layer: layer,
) -> tuple:
    """Returns the result of `reduce` for each layer, in order; pure, for use under `jax.jit`.

    Args:
      config, params: of the decoder; it runs in float32, matrix products included.
      tokens_BT, pos_BT: one document a row, without padding; positions rise by one.
      reduce: (index, q_BTNH, k_BTKH, layer, scheme_params, pos_BT, cum_log_forget_BTN, sink_N) ->
        any arrays. q and k come after projection, token shift, qk-norm and token temperatures,
        before rotation, other temperatures and softcap; sink_N as for `attend`.
      modify_layer: PlacedLayer -> the PlacedLayer that runs instead.
    """
    results = []

    def capturing_attend(q_BTNH, k_BSKH, v_BSKH, layer, learned, queries, keys, settings, optional):
        pos_BT, _, cum_log_forget_BTN, _ = queries
        q_BTNH, layer = modify_layer(layer).tempered(learned, q_BTNH, optional.x_BTD, pos_BT)
        others = (pos_BT, cum_log_forget_BTN, optional.sink_N)
        results.append(reduce(len(results), q_BTNH, k_BSKH, layer, learned, *others))
        optional = optional._replace(x_BTD=None)
        return attend(q_BTNH, k_BSKH, v_BSKH, layer, learned, queries, keys, settings, optional)

    decoder = Decoder(config.measured, attend=capturing_attend)
    with float32_matmuls():
        decoder.apply({"params": params}, tokens_BT, pos_BT, jnp.ones_like(tokens_BT))
    return tuple(results)


def capture_rows(
    config: ModelConfig,
    params,
    rows_RT: np.ndarray,
    batch_tokens: int,
    make_reduce: Callable,
    *arrays: np.ndarray,
) -> list[tuple]:
    """Returns for each batch of rows the results of `capture_qk`, at consecutive positions.

    Args:
      rows_RT: tokens, a document each. batch_tokens: tokens per batch. make_reduce: returns
        `reduce` from the rows of `arrays` that belong to the batch.
    """

    @jax.jit
    def program(params, tokens_BT, *others):
        pos_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        return capture_qk(config, params, tokens_BT, pos_BT, make_reduce(*others))

    run = functools.partial(program, params)
    return over_batches(run, batch_tokens, rows_RT.astype(np.int32), *arrays)


def over_batches(program: Callable, batch_tokens: int, *arrays: np.ndarray) -> list:
    """Returns the results of `program(*piece)` for pieces of whole rows, as NumPy trees.

    Args:
      program: a jitted function of arrays with a leading row dim. batch_tokens: most tokens (rows x
        columns of the first array) of a piece, which has at least one row. The last piece is padded
        with copies of its last row, and the padding is cut off, so that one program serves all.
    """
    rows, columns = arrays[0].shape
    size = max(1, min(rows, batch_tokens // columns))
    results = []
    for start in range(0, rows, size):
        indices = np.minimum(np.arange(start, start + size), rows - 1)
        count = min(size, rows - start)
        out = program(*(x[indices] for x in arrays))
        results.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], out))
    return results
