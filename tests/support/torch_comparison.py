"""Arrays of ours beside tensors of PyTorch."""

import numpy as np


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(ours, want, tolerance=1e-6):
    """Asserts that no value differs by more than `tolerance` of the largest one."""
    want = want.detach().numpy() if hasattr(want, "detach") else want
    assert ours.shape == want.shape
    np.testing.assert_allclose(ours, want, rtol=0, atol=tolerance * np.abs(want).max())


def differ(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() > 0.1


def heads_first(x_BTNH):
    """A tensor BNTH."""
    import torch

    return torch.tensor(np.asarray(x_BTNH).swapaxes(1, 2))
