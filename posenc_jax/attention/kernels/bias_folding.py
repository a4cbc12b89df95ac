"""Bias folding: writes a linear bias into extra columns of q and k, for kernels that take no bias.

Under causal attention with keys in slot order, -m (i - j) and m j differ by a constant of the row,
which the softmax cancels. m j is a product, so extra columns of q and k can hold its factors.
bfloat16 has eight bits, so slope and slot are split into limbs whose products a float32 sum
represents exactly.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

BASE = 256  # bfloat16 holds every whole number up to here
SLOPE_LIMBS = 2  # 16 bits: relative error of the slope at most 2^-17
_GONE = 104.0  # nats; exp(-104) is zero in float32


def slot_limbs(keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns limb_SL, integers of at most 256, and weight_L, powers of two: limb @ weight = slot -
    keys // 2.

    Slots are counted from the middle of the row. This halves the logits (a shift of the whole row),
    and one limb reaches 512 keys and two reach 131,072; counted from the start, a third limb is
    needed past 65,536. The largest weight is as small as possible, because a kernel rounds the
    gradient of a column to bfloat16 and the weight multiplies that error.
    """
    slot_S = np.arange(keys) - keys // 2
    weights = [1]
    while np.abs(slot_S // weights[0]).max() > BASE:
        if len(weights) == 1 or weights[0] == weights[1] * BASE:
            weights.insert(0, weights[0])
        weights[0] *= 2
    limbs, rest_S = [], slot_S
    for weight in weights:
        limbs.append(rest_S // weight)
        rest_S = rest_S - limbs[-1] * weight
    return np.stack(limbs, -1).astype(np.float32), np.array(weights, np.float32)


def slope_limbs(slope_N: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns limb_NM in `dtype`, largest first, whose sum is the slope up to a relative error of
    2^-17 (bfloat16).

    The first limb gets the whole gradient. The others hold its rounding error and get none.
    """
    rest_N = slope_N.astype(jnp.float32)
    limbs = []
    for _ in range(SLOPE_LIMBS):
        limbs.append(rest_N.astype(dtype))
        rest_N = jax.lax.stop_gradient(rest_N - limbs[-1].astype(jnp.float32))
    return jnp.stack(limbs, axis=-1)


def document_ordinals(seg_BT: jax.Array) -> jax.Array:
    """Returns ordinal_BT: 0 for the tokens of a row's first document, 1 for those of the next, and
    so on.

    Padding counts as a document. The tokens of a segment must be in consecutive slots.
    """
    changes_BT = jnp.pad(seg_BT[:, 1:] != seg_BT[:, :-1], ((0, 0), (1, 0)))
    return jnp.cumsum(changes_BT.astype(jnp.int32), axis=1)


def _document_columns(q_BTNH, k_BSKH, ordinal_BS, head_dim) -> tuple[jax.Array, jax.Array]:
    """Returns two columns of queries and keys that give the keys of earlier documents weight zero.

    The logits of each document are C nats above those of the document before. C is the smallest
    power of two above 104 (where float32 weights are zero) plus twice the largest content logit, so
    earlier documents have weight exactly zero. Causality hides later documents.
    """
    wide = (x.astype(jnp.float32) for x in (q_BTNH, k_BSKH))
    most_q, most_k = (jnp.sqrt((x * x).sum(-1).max()) for x in wide)
    most = 2 * most_q * most_k / math.sqrt(head_dim) + _GONE
    strength = jax.lax.stop_gradient(jnp.exp2(jnp.ceil(jnp.log2(most))))
    limbs = [ordinal_BS // BASE, ordinal_BS % BASE]
    k_BS2 = jnp.stack(limbs, axis=-1).astype(k_BSKH.dtype)
    q_2 = jnp.stack([BASE * strength, strength]).astype(q_BTNH.dtype)
    return (
        jnp.broadcast_to(q_2[None, None, None], (*q_BTNH.shape[:3], 2)),
        jnp.broadcast_to(k_BS2[:, :, None], (*k_BSKH.shape[:3], 2)),
    )


def fold_bias(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    slope_N: jax.Array,
    multiple: int,
    ordinal_BS: jax.Array | None,
    head_dim: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns (q_BTNX, k_BSKX) whose product is q . k / sqrt(H) - m (i - j), up to a constant of
    the row.

    Use them with a softmax scale of 1 and a mask that is causal in slots. The tokens of a document
    must be in consecutive slots. Key columns depend on slot and document only, so heads can share
    keys; query columns hold the slopes.

    Error: for weights above e^-50 of the row's largest, at most 50 * 2^-17 = 4e-4 nats, plus
    float32 rounding of a sum as large as m S / 2 (2^-24 of it per addition: 4e-3 at m = 1 and
    131,072 keys). Rounding q to bfloat16 costs 2^-9 of the content logit.

    Args:
      q_BTNH: rotated queries, unscaled, multiplied by their temperature. k_BSKH: rotated keys.
      slope_N: nats per token, zero for heads without a bias; learned slopes get gradients.
      multiple: X is padded with zeros to a multiple of it, e.g. 8.
      ordinal_BS: from `document_ordinals`, for a kernel without segments: two more columns give
        earlier documents weight zero, exactly. None: the kernel masks documents.
      head_dim: H of the values; q and k have at least H columns.

    Raises:
      ValueError: a dtype that does not hold whole numbers up to 256, or slopes not one per query
        head.
    """
    N, columns = q_BTNH.shape[2:]
    dtype = q_BTNH.dtype
    if dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(
            "bias folding needs bfloat16 or float32 queries, whose range holds 256^2 slopes; not "
            f"{dtype}"
        )
    if slope_N.shape != (N,):
        raise ValueError(
            f"slope_N holds one slope per query head, {N}; its shape is {slope_N.shape}"
        )
    # Multiplying by a power of two is exact.
    limb_SL, weight_L = slot_limbs(k_BSKH.shape[1])
    L = len(weight_L)
    slot_T1 = (limb_SL * weight_L).sum(1, keepdims=True)[: q_BTNH.shape[1]]
    # One float32 slope per query: the gradients of its columns largely cancel, so they are summed
    # per query first.
    slope_BTN = jnp.broadcast_to(slope_N.astype(jnp.float32)[None, None], q_BTNH.shape[:3])
    limb_BTNM = slope_limbs(slope_BTN, dtype).astype(jnp.float32)
    column_BTNML = limb_BTNM[..., None] * weight_L[None, None, None, None]
    # Value zero. Its gradient adds -i times the sum of the rounded gradients to the slope, so that
    # rounding errors are weighted by the distance j - i and not by the slot j.
    shift_BTN = (jax.lax.stop_gradient(slope_BTN) - slope_BTN) * slot_T1[None]
    apart = 0 if ordinal_BS is None else 2
    pad = -(columns + SLOPE_LIMBS * L + 1 + apart) % multiple
    q_side = jnp.concatenate(
        [column_BTNML.reshape(*q_BTNH.shape[:3], -1), shift_BTN[..., None]], axis=-1
    )
    q_side = jnp.pad(q_side, ((0, 0),) * 3 + ((0, pad),)).astype(dtype)
    limb_SX = np.concatenate([np.tile(limb_SL, (1, SLOPE_LIMBS)), np.ones_like(limb_SL[:, :1])], 1)
    limb_SX = np.pad(limb_SX, ((0, 0), (0, pad)))
    k_side = jnp.broadcast_to(
        jnp.asarray(limb_SX, k_BSKH.dtype)[None, :, None], (*k_BSKH.shape[:3], limb_SX.shape[1])
    )
    scaled_BTNH = (q_BTNH.astype(jnp.float32) / math.sqrt(head_dim)).astype(dtype)
    q_parts, k_parts = [scaled_BTNH, q_side], [k_BSKH, k_side]
    if ordinal_BS is not None:
        q_side, k_side = _document_columns(q_BTNH, k_BSKH, ordinal_BS, head_dim)
        q_parts, k_parts = [*q_parts, q_side], [*k_parts, k_side]
    return jnp.concatenate(q_parts, axis=-1), jnp.concatenate(k_parts, axis=-1)
