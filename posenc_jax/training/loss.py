"""Loss of a step: cross-entropy over the vocabulary and z-loss, with whole or chunked logits.

Whole: the logits of all tokens and ids are in memory, forward and backward. Chunked: a loop over
chunks of the vocabulary keeps a running maximum and sum per token, and the backward pass computes
the logits of each chunk again (Wijmans et al. 2024, Cut Your Losses), so that no array of all
tokens and ids exists. Each device of the axis "model" has a part of the vocabulary. Both give the
same numbers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.dense import capped
from posenc_jax.model.activation_sharding import ROWS, current_sharding, reshard, token_einsum

NEVER = -1e30  # logit of the ids that pad the vocabulary to whole chunks


class Loss(NamedTuple):
    """Sums over the tokens of a batch, float32: training minimises nll + z.

    nll: nats, weighted. z: z_loss * log(sum of exp(logits))^2, weighted alike (Chowdhery et al.
    2022, sec. 5). weight: of the tokens.
    """

    nll: jax.Array
    z: jax.Array
    weight: jax.Array


def summed_loss(
    x_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    z_loss: float,
    chunks: int,
    bias_V: jax.Array | None = None,
    softcap: float = 0.0,
) -> Loss:
    """Returns the sums that training minimises, from the normed residual stream.

    Args:
      x_BTD: in the dtype of matrix products; the head is cast to it.
      chunks: of the vocabulary on each device of the axis "model".
      bias_V, softcap: of the logits (`ModelConfig.biases`, `ModelConfig.logit_softcap`).

    Raises:
      ValueError: a bias of logits that are chunked.
    """
    if not is_chunked(chunks, _size("model")):
        sum_BT, target_BT = _whole(x_BTD, head_VD, targets_BT, bias_V, softcap)
    elif bias_V is not None:
        raise ValueError(
            "logits with a bias (model.biases head) are computed whole: set train.loss_chunks and "
            "train.model_devices to 1"
        )
    else:
        sum_BT, target_BT = _chunked(x_BTD, head_VD, targets_BT, chunks, softcap)
    nll = ((sum_BT - target_BT) * weights_BT).sum()
    z = z_loss * (sum_BT**2 * weights_BT).sum() if z_loss else jnp.zeros((), jnp.float32)
    return Loss(nll, z, weights_BT.sum())


def per_weight(total: Loss) -> jax.Array:
    """Returns the factor from sums over tokens to weighted means; 0 without weight."""
    return jnp.where(total.weight == 0, 0.0, 1 / jnp.where(total.weight == 0, 1.0, total.weight))


def is_chunked(chunks: int, model_devices: int) -> bool:
    """Whether the logits are chunked, and computed twice: for more than one chunk or model device.

    Whole logits would be the same work on each model device.
    """
    return chunks * model_devices > 1


def token_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Returns nll_BT in nats, float32; written without a gather, so that V may be sharded."""
    sum_BT, target_BT = _reduced(logits_BTV.astype(jnp.float32), targets_BT)
    return sum_BT - target_BT


def _reduced(logits_BTV, targets_BT):
    """Returns the logarithm of the sum of exp(logits), and the target's logit."""
    ids_11V = jnp.arange(logits_BTV.shape[-1])[None, None]
    target_BT = jnp.where(ids_11V == targets_BT[..., None], logits_BTV, 0.0).sum(-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1), target_BT


def _whole(x_BTD, head_VD, targets_BT, bias_V, softcap):
    logits_BTV = _logits_whole(x_BTD, head_VD.astype(x_BTD.dtype))
    if bias_V is not None:
        logits_BTV = logits_BTV + bias_V[None, None]
    return _reduced(capped(logits_BTV, softcap), targets_BT)


@jax.custom_vjp
def _logits_whole(x_BTD, head_VD):
    """Returns logits_BTV, float32; their gradient is cast to the dtype of x_BTD."""
    return token_einsum("BTD,VD->BTV", x_BTD, head_VD, preferred_element_type=jnp.float32)


def _gradients_whole(operands, d_logits_BTV):
    _, transpose = jax.vjp(functools.partial(token_einsum, "BTD,VD->BTV"), *operands)
    return transpose(d_logits_BTV.astype(operands[0].dtype))


_logits_whole.defvjp(lambda *operands: (_logits_whole(*operands), operands), _gradients_whole)


# Chunked logits. Dims: C chunks, M devices of the axis "model", P ids of a chunk on one device, X
# tokens of a device, d the dims of D that a device holds of the head.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _pieces(x_BTD, head_VD, targets_BT, chunks: int, softcap: float):
    return _forward(x_BTD, head_VD, targets_BT, chunks, softcap)[0]


def _chunked(x_BTD, head_VD, targets_BT, chunks: int, softcap: float):
    """Returns `_reduced` of the logits without an array of all logits."""
    x_BTD, targets_BT = (
        reshard(x_BTD, ROWS, "sequence", None),
        reshard(targets_BT, ROWS, "sequence"),
    )
    head_VD = reshard(head_VD.astype(x_BTD.dtype), None, ("model", "fsdp"))
    return _pieces(x_BTD, head_VD, targets_BT, chunks, softcap)


def _forward(x_BTD, head_VD, targets_BT, chunks, softcap):
    local = functools.partial(_reduce_here, vocab=head_VD.shape[0], softcap=softcap)
    reduced = _on_devices(local, (x_BTD, _cut(head_VD, chunks), targets_BT), (2, 2))
    return reduced, (x_BTD, head_VD, targets_BT, reduced[0])


def _backward(chunks, softcap, residuals, cotangents):
    x_BTD, head_VD, targets_BT, sum_BT = residuals
    local = functools.partial(_gradients_here, vocab=head_VD.shape[0], softcap=softcap)
    pieces_CMPD = _cut(head_VD, chunks)
    d_x_BTD, d_pieces_CMPD = _on_devices(
        local, (x_BTD, pieces_CMPD, targets_BT, sum_BT, *cotangents), (3, 4)
    )
    d_head_VD = d_pieces_CMPD.swapaxes(0, 1).reshape(-1, head_VD.shape[1])
    return d_x_BTD, d_head_VD[: head_VD.shape[0]], None


_pieces.defvjp(_forward, _backward)


def _cut(head_VD, chunks):
    """Returns pieces_CMPD, the padded head; the ids of a device are contiguous."""
    V, D = head_VD.shape
    M = _size("model")
    P = -(-V // (M * chunks))
    padded = jnp.pad(head_VD, ((0, M * chunks * P - V), (0, 0)))
    return padded.reshape(M, chunks, P, D).swapaxes(0, 1)


def _on_devices(local, arrays, results):
    """Returns local(*arrays) under shard_map, on each device's part of the arrays.

    Args:
      arrays: of rank 2 or 3: tokens, B and T first; of rank 4: pieces of the head.
      results: ranks of the results.
    """
    layouts = {
        2: (ROWS, "sequence"),
        3: (ROWS, "sequence", None),
        4: (None, None, None, ("model", "fsdp")),
    }
    if all(_size(axis) == 1 for axis in (*ROWS, "sequence", "model")):
        return local(*arrays)
    ranks = [x.ndim for x in arrays]
    return jax.shard_map(
        local,
        in_specs=tuple(current_sharding(*layouts[rank]) for rank in ranks),
        out_specs=tuple(current_sharding(*layouts[rank]) for rank in results),
        check_vma=False,  # the sums are equal on all devices of "model", which types cannot show
    )(*(reshard(x, *layouts[rank]) for x, rank in zip(arrays, ranks, strict=True)))


def _reduce_here(x_BTD, pieces_CMPd, targets_BT, vocab, softcap):
    x_XD, targets_X = x_BTD.reshape(-1, x_BTD.shape[-1]), targets_BT.reshape(-1)

    def step(carry, indexed):
        top_X, sum_X, target_X = carry
        piece, ids_P = indexed
        logits_XP = _logits(x_XD, _gathered(piece), ids_P, vocab, softcap)
        new_X = jnp.maximum(top_X, logits_XP.max(-1))
        sum_X = sum_X * jnp.exp(top_X - new_X) + jnp.exp(logits_XP - new_X[:, None]).sum(-1)
        hit_XP = ids_P[None] == targets_X[:, None]
        return (new_X, sum_X, target_X + jnp.where(hit_XP, logits_XP, 0.0).sum(-1)), None

    blank_X = jnp.zeros(targets_X.shape, jnp.float32)
    carry = (blank_X + NEVER, blank_X, blank_X)
    (top_X, sum_X, target_X), _ = lax.scan(step, carry, (pieces_CMPd, _ids(pieces_CMPd)))
    axes = _axes("model")
    highest_X = lax.pmax(top_X, axes) if axes else top_X
    sum_X, target_X = lax.psum((sum_X * jnp.exp(top_X - highest_X), target_X), axes)
    return tuple(x.reshape(targets_BT.shape) for x in (highest_X + jnp.log(sum_X), target_X))


def _gradients_here(x_BTD, pieces_CMPd, targets_BT, sum_BT, d_sum_BT, d_target_BT, vocab, softcap):
    x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])
    targets_X1, sum_X1, d_sum_X1, d_target_X1 = (
        x.reshape(-1, 1) for x in (targets_BT, sum_BT, d_sum_BT, d_target_BT)
    )

    def step(d_x_XD, indexed):
        piece, ids_P = indexed
        rows_PD, scatter = jax.vjp(_gathered, piece)
        logits_XP = _logits(x_XD, rows_PD, ids_P, vocab, softcap)
        weight_XP = jnp.exp(logits_XP - sum_X1)
        d_logits_XP = weight_XP * d_sum_X1 + jnp.where(ids_P[None] == targets_X1, d_target_X1, 0.0)
        if softcap:  # of c tanh(z/c) by z; ids that pad the vocabulary have weight 0
            slope_XP = 1 - (logits_XP / softcap) ** 2
            d_logits_XP = d_logits_XP * jnp.where(ids_P[None] < vocab, slope_XP, 0.0)
        d_logits_XP = d_logits_XP.astype(x_XD.dtype)
        d_rows_PD = jnp.einsum("XP,XD->PD", d_logits_XP, x_XD, preferred_element_type=jnp.float32)
        (d_piece,) = scatter(d_rows_PD.astype(rows_PD.dtype))
        d_x_XD += jnp.einsum("XP,PD->XD", d_logits_XP, rows_PD, preferred_element_type=jnp.float32)
        return d_x_XD, lax.psum(d_piece, _axes("data", "sequence"))

    blank_XD = jnp.zeros(x_XD.shape, jnp.float32)
    d_x_XD, d_pieces_CMPd = lax.scan(step, blank_XD, (pieces_CMPd, _ids(pieces_CMPd)))
    d_x_XD = lax.psum(d_x_XD, _axes("model")).astype(x_BTD.dtype)
    return d_x_XD.reshape(x_BTD.shape), d_pieces_CMPd


def _logits(x_XD, rows_PD, ids_P, vocab, softcap):
    logits_XP = jnp.einsum("XD,PD->XP", x_XD, rows_PD, preferred_element_type=jnp.float32)
    return jnp.where(ids_P[None] < vocab, capped(logits_XP, softcap), NEVER)


def _ids(pieces_CMPd):
    """Returns ids_CP, the ids of this device's pieces."""
    C, _, P, _ = pieces_CMPd.shape
    index = lax.axis_index("model") if _axes("model") else 0
    return index * C * P + jnp.arange(C * P).reshape(C, P)


def _gathered(piece_MPd):
    """Returns rows_PD of this device's ids, from devices that hold some dims of all ids."""
    if _axes("model"):
        piece_MPd = lax.all_to_all(piece_MPd, "model", 0, 0)  # now M indexes parts of D
    piece_MPFd = piece_MPd[:, :, None]
    if _axes("fsdp"):
        piece_MPFd = lax.all_gather(piece_MPd, "fsdp", axis=2)
    return piece_MPFd.swapaxes(0, 1).reshape(piece_MPd.shape[1], -1)


def _size(axis: str) -> int:
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def _axes(*names: str) -> tuple[str, ...]:
    return tuple(name for name in names if _size(name) > 1)
