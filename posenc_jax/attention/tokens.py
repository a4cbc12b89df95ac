"""Checked inputs of attention: int32 positions, zeros at padding and at keys that no query sees.

Padding (segment 0) and keys that no query sees must not change a result. Their arrays may hold
anything, NaN included: a weight of zero times NaN is NaN, so such values are replaced before the
product, in time linear in the number of tokens. The gradient of a replaced value is zero.
"""

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention.arguments import AttentionSettings, TokenSide


def zero_where_unread(x_BTx: jax.Array, read_BT: jax.Array) -> jax.Array:
    """Returns x_BT... with zeros where `read_BT` is False; no gradient passes there."""
    read_BTx = read_BT[(..., *(None,) * (x_BTx.ndim - 2))]
    return jnp.where(read_BTx, x_BTx, 0)


def integer_side(side: TokenSide) -> TokenSide:
    """Returns the side with positions, segments and order as int32.

    Raises:
      ValueError: arrays that are not integer, or (outside jit) numbers that int32 does not hold.
        Segments may be boolean: the attention mask of a sequence with one document.
    """
    order_BT = side.order_BT
    return side._replace(
        pos_BT=_int32("positions", side.pos_BT),
        seg_BT=_int32("segments", side.seg_BT, boolean=True),
        order_BT=None if order_BT is None else _int32("the order of tokens", order_BT),
    )


def _int32(what: str, x_BT: jax.Array, boolean: bool = False) -> jax.Array:
    dtype = np.dtype(x_BT.dtype)
    if dtype == np.int32:
        return x_BT
    if not (np.issubdtype(dtype, np.integer) or (boolean and dtype == np.bool_)):
        raise ValueError(f"{what} must be whole numbers (int32), not {dtype}")
    limits = np.iinfo(np.int32)
    if is_concrete(x_BT) and x_BT.size and not boolean:
        low, high = int(np.min(x_BT)), int(np.max(x_BT))
        if low < limits.min or high > limits.max:
            raise ValueError(f"{what} must lie within int32; they go from {low:,} to {high:,}")
    return jnp.asarray(x_BT).astype(jnp.int32)


def is_concrete(x: jax.Array | np.ndarray) -> bool:
    """Whether the values of an array can be read here: outside jit, on this process's devices."""
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


def zero_padding(side: TokenSide) -> TokenSide:
    """Returns the side with position 0 and cumulative log-forget 0 at padding."""
    real_BT = side.seg_BT != 0
    cum_log_forget_BTN, order_BT = (
        None if x is None else zero_where_unread(x, real_BT)
        for x in (side.cum_log_forget_BTN, side.order_BT)
    )
    pos_BT = zero_where_unread(side.pos_BT, real_BT)
    return TokenSide(pos_BT, side.seg_BT, cum_log_forget_BTN, order_BT)


def readable_keys(queries: TokenSide, keys: TokenSide, settings: AttentionSettings) -> jax.Array:
    """Returns read_BS: False for padding, and for keys that no query of their sequence can see.

    Keys are compared with the ranges of the queries' segments and positions, so a key between two
    documents of the queries counts as readable.
    """
    real_BT, read_BS = queries.seg_BT != 0, keys.seg_BT != 0

    def ends(x_BT):
        limits = np.iinfo(np.int32)
        least_B1 = jnp.where(real_BT, x_BT, limits.max).min(1, keepdims=True)
        return least_B1, jnp.where(real_BT, x_BT, limits.min).max(1, keepdims=True)

    first_B1, last_B1 = ends(queries.seg_BT)
    read_BS &= (first_B1 <= keys.seg_BT) & (keys.seg_BT <= last_B1)
    if settings.causal:
        read_BS &= keys.causal_BT <= ends(queries.causal_BT)[1]
    if settings.window is not None:
        first_B1, last_B1 = ends(queries.pos_BT)
        near_BS = jnp.maximum(first_B1 - keys.pos_BT, keys.pos_BT - last_B1) < settings.window
        read_BS &= near_BS
    return read_BS


def check_positions(tokens: TokenSide) -> None:
    """Raises ValueError where two tokens of one document have the same position, outside jit.

    Causality compares positions, so the two would see each other: the later slot leaks.
    """
    if tokens.order_BT is not None or not all(map(is_concrete, tokens[:2])):
        return
    pos_BT, seg_BT = np.broadcast_arrays(*map(np.asarray, tokens[:2]))
    slot_BT = np.lexsort((pos_BT, seg_BT), axis=-1)
    pos_BT, seg_BT = (np.take_along_axis(x, slot_BT, axis=-1) for x in (pos_BT, seg_BT))
    twice_BT = (np.diff(pos_BT) == 0) & (np.diff(seg_BT) == 0) & (seg_BT[:, 1:] != 0)
    if twice_BT.any():
        b, t = np.argwhere(twice_BT)[0]
        raise ValueError(
            f"row {b}: slots {slot_BT[b, t]} and {slot_BT[b, t + 1]} of document {seg_BT[b, t]} "
            f"both have position {pos_BT[b, t]}, so that the earlier one would see the later one: "
            "number the documents of a row apart in the segments, or give TokenSide an order_BT"
        )
