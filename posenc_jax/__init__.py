"""posenc_jax: position in decoder transformers, as pure functions and measured evidence.

One equation (head h, query at position i, key at position j, head dim H)::

    logit_h(i, j) = tau_h(i, j) * < R(i) q_i , R(j) k_j > / sqrt(H)  +  b_h(i, j)
    x_0(i)        = token embedding + a(i)      (input of the first layer)

A :class:`posenc_jax.encodings.Scheme` is a choice of ``a`` (absolute), ``R`` (rotation), ``b``
(bias) and ``tau`` (temperature), and of the heads and layers that each applies to.

Dims legend, used as suffix of array names everywhere (a scalar carries none)::

    B batch    T queries (or time)    S keys       N query heads    K key/value heads
    H head dim    h = H/2 rotary pairs    D model dim    F mlp dim    V vocabulary    Z distances

Positions and segment ids are data: they are passed, never inferred from a shape. Segment id 0 is
padding; two tokens see each other only inside one segment.

Importing this package imports nothing else; take what you need from its packages.
"""

__version__ = "0.1.0"
