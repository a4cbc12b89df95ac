"""CPU devices: one JAX device per core, so that rows are scored in parallel."""

import os

import jax


def use_all_cores() -> None:
    """Makes a CPU device of every core that this process may use.

    Call it before JAX computes anything. A number set through XLA_FLAGS or JAX_NUM_CPU_DEVICES
    stays. One program over all cores would leave most of them idle between its matrix products.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and jax.config.jax_num_cpu_devices < 1:  # type: ignore[attr-defined]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores or 1)
