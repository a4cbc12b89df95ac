"""Validation loss on fixed windows of the dev split; it selects the best checkpoint."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.model.activation_sharding import ROWS, reshard
from posenc_jax.model.decoder import Decoder
from posenc_jax.training.config import RunConfig
from posenc_jax.training.hosts import rows_of_process
from posenc_jax.training.inputs import Inputs, dev_examples
from posenc_jax.training.loss import Loss
from posenc_jax.training.sharding import BATCH
from posenc_jax.training.step import batch_loss


class ValidationLoss:
    """The loss of parameters on the same windows each time, equal in every process.

    Args:
      config, model, inputs: of the run. mesh: of its batches.
    """

    def __init__(self, config: RunConfig, model: Decoder, mesh: jax.sharding.Mesh, inputs: Inputs):
        t = config.train
        self._every, self._steps = t.dev_every, t.steps
        self._batch = _placed(mesh, dev_examples(config, inputs), t.batch_size // t.accumulation)
        mean = functools.partial(_mean, batch_loss(t, model))
        self._mean = jax.jit(mean)
        self._means = jax.jit(jax.vmap(mean, in_axes=(0, None)))

    def due(self, step: int) -> bool:
        """Whether the loss is measured after `step` steps."""
        return step % self._every == 0 or step == self._steps

    def __call__(self, params) -> float | None:
        """Returns nats per unit of weight (a text token has weight 1); None if not finite."""
        return _finite(self._mean(params, self._batch))

    def of_each(self, params) -> list[float | None]:
        """Returns the loss of each of several parameters, stacked along a leading dim."""
        return [_finite(x) for x in np.asarray(self._means(params, self._batch))]


def _mean(loss_of: Callable[..., Loss], params, batch) -> jax.Array:
    batch = {name: reshard(x, None, ROWS, "sequence") for name, x in batch.items()}

    def add(total, one):
        return jax.tree.map(jnp.add, total, loss_of(params, one)), None

    first = loss_of(params, jax.tree.map(lambda x: x[0], batch))
    total, _ = jax.lax.scan(add, first, jax.tree.map(lambda x: x[1:], batch))
    return total.nll / total.weight


def _finite(loss) -> float | None:
    return float(loss) if math.isfinite(loss) else None


def _placed(mesh: jax.sharding.Mesh, examples: list[dict], rows: int) -> dict[str, jax.Array]:
    """Returns the examples on the devices as [pieces, rows, T]; padding rows have weight 0."""
    sharding = jax.NamedSharding(mesh, BATCH)
    index, count = rows_of_process(sharding, rows, axis=1, ndim=3)
    own_rows = slice(index * rows // count, (index + 1) * rows // count)
    padding = -len(examples) % rows
    blank = examples[-1] | {"weights_T": np.zeros_like(examples[-1]["weights_T"])}

    def put(name: str) -> jax.Array:
        whole = np.stack([example[name] for example in (*examples, *[blank] * padding)])
        pieces = whole.reshape(-1, rows, whole.shape[-1])
        return jax.make_array_from_process_local_data(sharding, pieces[:, own_rows], pieces.shape)

    return {name.removesuffix("_T") + "_BT": put(name) for name in examples[0]}
