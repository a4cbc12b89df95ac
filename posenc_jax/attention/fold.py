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


def slot_limbs(keys: int) -> np.ndarray:
    """Returns limb_SL, float32 whole numbers of at most 256: slot - keys // 2 = sum of limb 256^(L-1-l).

    Slots count from the middle of the row, which halves the logits (a shift of the whole row) and lets
    two limbs reach 131,072 keys, where slots counted from the start need the third past 65,536.
    """
    rest_S = np.arange(keys) - keys // 2
    limbs = []
    while not limbs or np.abs(rest_S).max() > BASE:
        limbs.append(rest_S % BASE)
        rest_S = rest_S // BASE
    return np.stack([rest_S, *limbs[::-1]], axis=-1).astype(np.float32)


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


def fold(
    q_BTNH: jax.Array, k_BSKH: jax.Array, slope_N: jax.Array, multiple: int
) -> tuple[jax.Array, jax.Array]:
    """Returns (q_BTNX, k_BSKX): their product is q . k / sqrt(H) - m (i - j), up to a number of the row.

    To be used with a softmax scale of 1, causal, one document a row with its tokens in consecutive
    slots. Key columns know the slot alone, so heads may share keys; slopes ride with the queries.

    Where a weight is above e^-50 of the row's largest the bias is off by at most 50 * 2^-17 = 4e-4 nats,
    plus float32 rounding of a sum as large as m S / 2 (2^-24 of it per addition: 4e-3 at m = 1 and
    131,072 keys). bfloat16's own rounding of q is 2^-9 of the content logit.

    Args:
      q_BTNH: rotated queries, unscaled, times their temperature. k_BSKH: rotated keys.
      slope_N: nats per token, zero where a head is flat; learned ones get their gradient.
      multiple: X is padded with zeros to one, e.g. 8.

    Raises:
      ValueError: a dtype that does not hold whole numbers up to 256, or slopes not one per query head.
    """
    H, N = q_BTNH.shape[-1], q_BTNH.shape[2]
    dtype = q_BTNH.dtype
    if dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"the fold needs bfloat16 or float32 queries, whose range holds 256^2 slopes; not {dtype}")  # fmt: skip
    if slope_N.shape != (N,):
        raise ValueError(f"slope_N holds one slope per query head, {N}; its shape is {slope_N.shape}")  # fmt: skip
    limb_SL = slot_limbs(k_BSKH.shape[1])
    L = limb_SL.shape[1]
    # Powers of two move no bit: 256^l times a limb of the slope is still exact.
    weight_L = np.float32(BASE) ** np.arange(L - 1, -1, -1)
    slope_NM = slope_limbs(slope_N, dtype)
    column_NML = slope_NM[:, :, None] * jnp.asarray(weight_L, dtype)[None, None]
    column_NX = column_NML.reshape(N, -1)
    limb_SX = jnp.tile(jnp.asarray(limb_SL, dtype), (1, SLOPE_LIMBS))
    pad = -(H + column_NX.shape[1]) % multiple
    column_NX = jnp.pad(column_NX, ((0, 0), (0, pad)))
    limb_SX = jnp.pad(limb_SX, ((0, 0), (0, pad)))
    X = column_NX.shape[1]
    scaled_BTNH = (q_BTNH.astype(jnp.float32) / math.sqrt(H)).astype(dtype)
    q_side = jnp.broadcast_to(column_NX[None, None], (*q_BTNH.shape[:3], X))
    k_side = jnp.broadcast_to(limb_SX[None, :, None], (*k_BSKH.shape[:3], X))
    return (
        jnp.concatenate([scaled_BTNH, q_side], axis=-1),
        jnp.concatenate([k_BSKH, k_side.astype(k_BSKH.dtype)], axis=-1),
    )
