"""Environment variables that can change a result or its speed, for the records of runs and
benches.
"""

import os
from collections.abc import Mapping

# Prefixes: JAX; XLA (compiler flags, memory pools, TensorFloat-32) and the TensorFlow variables it
# reads; compilers and collectives of TPUs and GPUs; allocator of the C library; thread pools.
PREFIXES = (
    "JAX_", "XLA_", "TF_XLA_", "TF_CPP_", "TF_CUDNN_", "TPU_", "LIBTPU_", "NCCL_", "CUDA_",
    "CUBLAS_", "CUDNN_", "NVIDIA_TF32_", "GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD", "OMP_", "MKL_",
    "OPENBLAS_", "PYTHONHASHSEED",
)  # fmt: skip


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables that are set, sorted by name."""
    return {name: variables[name] for name in sorted(variables) if name.startswith(PREFIXES)}
