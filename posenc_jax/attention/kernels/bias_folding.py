"""The fold: a bias linear in distance as a few more columns of q and k, for kernels that know no bias.

With keys in slot order and only earlier keys in sight, -m (i - j) differs from m j by a number of the
row alone, which a softmax cancels. m j is a product, so it can ride in q . k. Columns in bfloat16 hold
eight bits, so slope and slot are written in limbs whose products a float32 sum holds exactly.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

BASE = 256  # bfloat16 holds every whole number up to here
SLOPE_LIMBS = 2  # 16 bits: the slope is off by at most 2^-17 of itself
_GONE = 104.0  # nats; exp(-104) is zero in float32


def slot_limbs(keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns limb_SL, whole numbers of at most 256, and weight_L, powers of two: limb @ weight = slot - keys // 2.

    Slots count from the middle of the row, which halves the logits (a shift of the whole row) and lets
    one limb reach 512 keys and two 131,072, where slots counted from the start need the third past 65,536.
    The largest weight is the least that will do: a kernel rounds the gradient of a column to bfloat16, and
    the weight multiplies that error.
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
    """Returns limb_NM in `dtype`, largest first, that sum to the slope up to 2^-17 of it (bfloat16).

    The whole derivative belongs to the first limb: the others are what rounding left over, and move
    only where the first jumps.
    """
    rest_N = slope_N.astype(jnp.float32)
    limbs = []
    for _ in range(SLOPE_LIMBS):
        limbs.append(rest_N.astype(dtype))
        rest_N = jax.lax.stop_gradient(rest_N - limbs[-1].astype(jnp.float32))
    return jnp.stack(limbs, axis=-1)


def document_ordinals(seg_BT: jax.Array) -> jax.Array:
    """Returns ordinal_BT: 0 for the tokens of a row's first document, 1 for those of the next, and so on.

    Padding counts as a document; those of one segment stand together.
    """
    changes_BT = jnp.pad(seg_BT[:, 1:] != seg_BT[:, :-1], ((0, 0), (1, 0)))
    return jnp.cumsum(changes_BT.astype(jnp.int32), axis=1)


def _document_columns(q_BTNH, k_BSKH, ordinal_BS, head_dim) -> tuple[jax.Array, jax.Array]:
    """Returns the query's and the key's two columns that put earlier documents out of sight.

    Every document stands C nats above the one before it, C the least power of two above the 104 at which
    float32 weights are zero plus twice what content can be: earlier documents then weigh exactly nothing.
    Later ones are hidden by causality.
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
    """Returns (q_BTNX, k_BSKX): their product is q . k / sqrt(H) - m (i - j), up to a number of the row.

    To be used with a softmax scale of 1, causal in slots, the tokens of a document in consecutive ones.
    Key columns know slot and document alone, so heads may share keys; slopes ride with the queries.

    Where a weight is above e^-50 of the row's largest the bias is off by at most 50 * 2^-17 = 4e-4 nats,
    plus float32 rounding of a sum as large as m S / 2 (2^-24 of it per addition: 4e-3 at m = 1 and
    131,072 keys). bfloat16's own rounding of q is 2^-9 of the content logit.

    Args:
      q_BTNH: rotated queries, unscaled, times their temperature. k_BSKH: rotated keys.
      slope_N: nats per token, zero where a head is flat; learned ones get their gradient.
      multiple: X is padded with zeros to one, e.g. 8.
      ordinal_BS: from `document_ordinals`, for rows that hold several and a kernel that knows no segments: two more
        columns put earlier documents out of sight, to the bit. None: the kernel sees to it.
      head_dim: H, of the values; q and k have as many columns or more.

    Raises:
      ValueError: a dtype that does not hold whole numbers up to 256, or slopes not one per query head.
    """
    N, columns = q_BTNH.shape[2:]
    dtype = q_BTNH.dtype
    if dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"the fold needs bfloat16 or float32 queries, whose range holds 256^2 slopes; not {dtype}")  # fmt: skip
    if slope_N.shape != (N,):
        raise ValueError(f"slope_N holds one slope per query head, {N}; its shape is {slope_N.shape}")  # fmt: skip
    # Powers of two move no bit: a weight times a limb of the slope is still exact.
    limb_SL, weight_L = slot_limbs(k_BSKH.shape[1])
    L = len(weight_L)
    slot_T1 = (limb_SL * weight_L).sum(1, keepdims=True)[: q_BTNH.shape[1]]
    # A row of its own for every query, in float32: what the columns' gradients add up to cancels within it.
    slope_BTN = jnp.broadcast_to(slope_N.astype(jnp.float32)[None, None], q_BTNH.shape[:3])
    limb_BTNM = slope_limbs(slope_BTN, dtype).astype(jnp.float32)
    column_BTNML = limb_BTNM[..., None] * weight_L[None, None, None, None]
    # Its value is zero. Its gradient gives the slope -(i) times the sum of what a kernel rounded, so that
    # rounding counts by the distance j - i and not by the slot j.
    shift_BTN = (jax.lax.stop_gradient(slope_BTN) - slope_BTN) * slot_T1[None]
    apart = 0 if ordinal_BS is None else 2
    pad = -(columns + SLOPE_LIMBS * L + 1 + apart) % multiple
    q_side = jnp.concatenate(
        [column_BTNML.reshape(*q_BTNH.shape[:3], -1), shift_BTN[..., None]], axis=-1
    )
    q_side = jnp.pad(q_side, ((0, 0),) * 3 + ((0, pad),)).astype(dtype)
    limb_SX = np.concatenate([np.tile(limb_SL, (1, SLOPE_LIMBS)), np.ones_like(limb_SL[:, :1])], 1)
    limb_SX = jnp.asarray(np.pad(limb_SX, ((0, 0), (0, pad))), k_BSKH.dtype)
    k_side = jnp.broadcast_to(limb_SX[None, :, None], (*k_BSKH.shape[:3], limb_SX.shape[1]))
    scaled_BTNH = (q_BTNH.astype(jnp.float32) / math.sqrt(head_dim)).astype(dtype)
    q_parts, k_parts = [scaled_BTNH, q_side], [k_BSKH, k_side]
    if ordinal_BS is not None:
        q_side, k_side = _document_columns(q_BTNH, k_BSKH, ordinal_BS, head_dim)
        q_parts, k_parts = [*q_parts, q_side], [*k_parts, k_side]
    return jnp.concatenate(q_parts, axis=-1), jnp.concatenate(k_parts, axis=-1)
