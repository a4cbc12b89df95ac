"""Hash chain over training steps: two runs with equal links took equal steps."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.checkpoints.fingerprint import fingerprint

START = "0" * 64


def batch_fingerprints(batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the fingerprint of every array of a batch, in the order of their names."""
    return jnp.stack([fingerprint(batch[name]) for name in sorted(batch)])


_batch_fingerprints = jax.jit(batch_fingerprints)


class HashChain:
    """Links of every step: link_t = SHA-256(link_(t-1), inputs and results of step t).

    `data_chain` covers the batches on the devices; it is equal for any number of threads, processes
    and devices. `chain` also covers the bits of loss and gradient norm, so it holds for one mesh
    (another order of sums rounds otherwise) and one version of jax.

    `add` keeps the arrays of a dispatched step; `through` reads them, so the loop never waits for
    them.

    Args:
      stored: the result of `through` at the step of a resume; None for a new run.
    """

    def __init__(self, stored: dict[str, str] | None):
        stored = stored or {"chain": START, "data_chain": START}
        self._chain, self._data_chain = stored["chain"], stored["data_chain"]
        self._waiting: list[tuple[int, tuple[jax.Array, jax.Array, jax.Array]]] = []

    def add(self, step: int, batch: dict[str, jax.Array], metrics: dict[str, jax.Array]) -> None:
        """Adds a dispatched step without waiting for it."""
        self.note(step, (_batch_fingerprints(batch), metrics["loss"], metrics["grad_norm"]))

    def note(self, step: int, arrays: tuple[jax.Array, jax.Array, jax.Array]) -> None:
        """As `add`, with the fingerprints of the batch, the loss and the gradient norm."""
        self._waiting.append((step, arrays))

    def through(self, step: int) -> dict[str, str]:
        """Returns both links after `step`, once it is finished."""
        ready = [arrays for at, arrays in self._waiting if at <= step]
        self._waiting = [(at, arrays) for at, arrays in self._waiting if at > step]
        for words, loss, norm in jax.device_get(ready):
            self._data_chain = _link(self._data_chain, words)
            self._chain = _link(self._chain, words, loss, norm)
        return {"chain": self._chain, "data_chain": self._data_chain}


def _link(before: str, *values: np.ndarray) -> str:
    return hashlib.sha256(
        b"".join([bytes.fromhex(before), *(np.asarray(v).tobytes() for v in values)])
    ).hexdigest()
