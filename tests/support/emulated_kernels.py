"""Kernels of absent devices: cuDNN's arithmetic by XLA."""

import jax


def cudnn_by_xla(monkeypatch, check=lambda arguments, settings: None):
    """Answers the call of cuDNN by XLA: the same function, the same arguments, which `check` may look at."""
    real = jax.nn.dot_product_attention

    def by_xla(*arguments, implementation, **settings):
        assert implementation == "cudnn"
        check(arguments, settings)
        return real(*arguments, implementation="xla", **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
