"""Trace of a few steps by JAX's profiler, in `<workdir>/profile`, for xprof and Perfetto."""

import dataclasses
import re
from pathlib import Path

import jax


@dataclasses.dataclass(frozen=True)
class Profile:
    """The `count` steps from step `first` on that are traced; steps count from 1."""

    first: int
    count: int

    def check(self, done: int, steps: int) -> None:
        """Raises ValueError if some of these steps are finished or not planned."""
        if self.count and not done < self.first <= steps - self.count + 1:
            raise ValueError(
                f"--profile={self.first}:{self.count} asks for steps {self.first} to "
                f"{self.first + self.count - 1}; to come are {done + 1} to {steps}"
            )

    def before(self, step: int, workdir: Path) -> None:
        """Starts the trace before its first step."""
        if step == self.first:
            jax.profiler.start_trace(workdir / "profile")

    def after(self, step: int, state) -> None:
        """Stops the trace after its last step."""
        if step == self.first + self.count - 1:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()


NO_PROFILE = Profile(0, 0)


def parse_profile(text: str) -> Profile:
    """Returns the steps of `first:count`; ValueError for another form."""
    first, _, count = text.partition(":")
    if not all(re.fullmatch("[1-9][0-9]{0,17}", number) for number in (first, count)):
        raise ValueError(
            f"--profile={text} must read first:count, two numbers from 1: --profile=10:5"
        )
    return Profile(int(first), int(count))
