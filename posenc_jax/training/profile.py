"""A trace of a few steps by JAX's profiler, under `<workdir>/profile`; xprof and Perfetto read it."""

import dataclasses
from pathlib import Path

import jax


@dataclasses.dataclass(frozen=True)
class Profile:
    """Traces `count` steps from step `first` on; steps are counted from 1."""

    first: int
    count: int

    def check(self, done: int, steps: int) -> None:
        """Raises ValueError when not all of them are still to come."""
        if self.count and not done < self.first <= steps - self.count + 1:
            raise ValueError(
                f"--profile={self.first}:{self.count} asks for steps {self.first} to "
                f"{self.first + self.count - 1}; to come are {done + 1} to {steps}"
            )

    def before(self, step: int, workdir: Path) -> None:
        """Begins the trace when this is its first step."""
        if step == self.first:
            jax.profiler.start_trace(workdir / "profile")

    def after(self, step: int, state) -> None:
        """Ends the trace when this was its last step."""
        if step == self.first + self.count - 1:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()


NO_PROFILE = Profile(0, 0)


def parse_profile(text: str) -> Profile:
    """Returns the steps that `first:count` names; ValueError when it does not read so."""
    first, _, count = text.partition(":")
    if not (first.isdigit() and count.isdigit() and int(first) and int(count)):
        raise ValueError(
            f"--profile={text} must read first:count, two numbers from 1: --profile=10:5"
        )
    return Profile(int(first), int(count))
