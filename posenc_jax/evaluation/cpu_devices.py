"""A device for each processor core, so that rows to score are spread over the cores like over chips."""

import os

import jax


def use_all_cores() -> None:
    """Makes a CPU device of every core that this process may use.

    To be called before JAX has computed anything. Whoever has set a number of CPU devices (XLA_FLAGS,
    JAX_NUM_CPU_DEVICES) keeps it, and what runs on other devices is not touched. One program on all cores
    leaves most of them idle between its matrix products.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and jax.config.jax_num_cpu_devices < 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores or 1)
