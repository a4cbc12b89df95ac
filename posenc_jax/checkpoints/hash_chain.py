"""A hash chain over training steps: two runs with equal links took equal steps, every one of them."""

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
    """Links of every step: link_t = SHA-256(link_(t-1), what step t read and what came of it).

    `data_chain` covers the batches as they lie on the devices, and is the same for any number of reading
    threads, processes and devices. `hash_chain` covers the bits of the loss and of the gradient norm as well, so
    it is that of one mesh (sums in another order round otherwise) and one version of jax.

    Steps are noted when they are dispatched and read when a link is asked for: nothing waits in between.

    Args:
      stored: what `through` returned at the step from which a run goes on; None for a run that begins.
    """

    def __init__(self, stored: dict[str, str] | None):
        stored = stored or {"chain": START, "data_chain": START}
        self._chain, self._data_chain = stored["chain"], stored["data_chain"]
        self._waiting = []

    def add(self, step: int, batch: dict[str, jax.Array], metrics: dict[str, jax.Array]) -> None:
        """Notes a step that was dispatched; reads nothing yet."""
        self.note(step, (_batch_fingerprints(batch), metrics["loss"], metrics["grad_norm"]))

    def note(self, step: int, seen: tuple[jax.Array, jax.Array, jax.Array]) -> None:
        """As `add`, of the words of the batch, the loss and the gradient norm."""
        self._waiting.append((step, seen))

    def through(self, step: int) -> dict[str, str]:
        """Returns both links after `step`, once it is finished."""
        ready = [seen for at, seen in self._waiting if at <= step]
        self._waiting = [(at, seen) for at, seen in self._waiting if at > step]
        for words, loss, norm in jax.device_get(ready):
            self._data_chain = _link(self._data_chain, words)
            self._chain = _link(self._chain, words, loss, norm)
        return {"chain": self._chain, "data_chain": self._data_chain}


def _link(before: str, *values: np.ndarray) -> str:
    return hashlib.sha256(b"".join([bytes.fromhex(before), *(np.asarray(v).tobytes() for v in values)])).hexdigest()  # fmt: skip
