"""Two rows of packed documents with padding."""

import jax.numpy as jnp
import numpy as np
from posenc_jax.data.packing import Document, pack


def packed_rows(T):
    seg = np.stack([np.repeat([0, 1, 2, 5, 0], [2, 4, 1, T - 8, 1]), np.repeat([3], [T])])
    pos = np.zeros_like(seg)
    for b, t in np.ndindex(2, T - 1):
        pos[b, t + 1] = pos[b, t] + 1 if seg[b, t] == seg[b, t + 1] else 0
    return jnp.asarray(pos), jnp.asarray(seg)


L, SPAN, N, H = 16, 128, 4, 8


def packed(*lengths, size=L):
    documents = [Document(np.arange(n, dtype=np.int32), np.ones(n)) for n in lengths]
    return pack(documents, size, 99)
