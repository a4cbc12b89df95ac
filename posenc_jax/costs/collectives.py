"""Collectives of a compiled program: kind, number of executions, bytes, group size, and
whether a group spans hosts.
"""

import itertools
import math
import re
from typing import NamedTuple

import numpy as np

from posenc_jax.costs.hlo import (
    SENT_PER_PAYLOAD_BYTE,
    HloInstruction,
    HloProgram,
    array_bytes,
    executed_instructions,
)


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: a key of `hlo.SENT_PER_PAYLOAD_BYTE`. times: executions per execution of the
        program.
      payload: bytes per device of the result (all-gather) or of the operands (all others).
      group: devices in a group. spans_hosts: whether a group spans several hosts.
    """

    kind: str
    times: int
    payload: float
    group: int
    spans_hosts: bool

    @property
    def sent(self) -> float:
        """Bytes that each device sends, in all executions, around a ring."""
        return (
            self.times * self.payload * SENT_PER_PAYLOAD_BYTE[self.kind](self.group)
            if self.group > 1
            else 0.0
        )


def collectives(program: HloProgram, devices: int, host_devices: int) -> list[Collective]:
    """Returns the collectives of a program in order; a host has `host_devices` of the `devices`."""
    result, channels = [], set()
    for executed in executed_instructions(program)[0]:
        fused = executed.instruction.opcode == "fusion"
        if fused:  # TPUs fuse collectives with their neighbours
            members = program.computations[executed.instruction.called("calls")[0]]
            by_name = {x.name: x for x in members}
        else:
            members, by_name = [executed.instruction], executed.by_name
        for instruction in members:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in SENT_PER_PAYLOAD_BYTE:
                continue
            if fused:
                channel = re.search(r"channel_id=\d+", instruction.rest)
                # The same collective may stand in several fusions, with one channel.
                if channel and channel[0] in channels:
                    continue
                channels.add(channel and channel[0])
                if kind == "all-reduce" and _scattered(instruction, by_name):
                    kind = "reduce-scatter"
            result.append(
                _collective(kind, instruction, by_name, executed.times, devices, host_devices)
            )
    return result


def _scattered(instruction: HloInstruction, by_name: dict[str, HloInstruction]) -> bool:
    """Whether each use of a fused all-reduce keeps only this device's piece (a reduce-scatter)."""
    uses = [use for use in by_name.values() if instruction.name in use.operands]
    return bool(uses) and all(use.opcode == "dynamic-slice" for use in uses)


def _collective(kind, instruction, by_name, times, devices, host_devices) -> Collective:
    groups = (
        _pairs(instruction.rest)
        if kind == "collective-permute"
        else replica_groups(instruction.rest, devices)
    )
    group = groups.shape[1]
    payload = sum(
        array_bytes(by_name[name].shape) for name in instruction.operands if name in by_name
    )
    if kind == "all-gather":
        payload *= group
    hosts = groups // host_devices
    return Collective(kind, times, payload, group, bool((hosts != hosts[:, :1]).any()))


def replica_groups(text: str, devices: int) -> np.ndarray:
    """Returns the device groups of a collective, one per row, from its line of a program.

    Args:
      text: has "replica_groups=" followed by one of {{0,1},{2,3}}, [2,4]<=[4,2]T(1,0), or
        mesh['a'=2,'b'=4] {'b'}.

    Raises:
      ValueError: another form.
    """
    at = text.partition("replica_groups=")[2]
    if named := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", at):
        order = np.arange(devices) if named[2] is None else _order(named[2])
        return _of_mesh(named[1], named[3], order)
    if listed := re.match(r"\{((?:\{[\d,]*\},?)*)\}", at):
        rows = [list(map(int, row.split(","))) for row in re.findall(r"\{([\d,]+)\}", listed[1])]
        return np.array(rows) if rows else np.arange(devices)[None]
    if counted := re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", at):
        return _order(counted[2]).reshape(_ints(counted[1]))
    raise ValueError(f"cannot parse replica_groups: {at[:80]!r}")


def _ints(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _order(text: str) -> np.ndarray:
    """Returns device ids from "0,2,1,3", or from "[2,2]T(1,0)": an index array, transposed."""
    if not text.startswith("["):
        return np.array(_ints(text))
    dims, _, axes = text.removeprefix("[").removesuffix(")").rstrip("]").partition("]T(")
    ids = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return (ids.transpose(_ints(axes)) if axes else ids).reshape(-1)


def _of_mesh(axes: str, named: str, order: np.ndarray) -> np.ndarray:
    """Returns groups along the named axes.

    'b' is a whole axis. 'b':(2)4 means: split axis b into 2 x 4 x rest and group along the 4.
    """
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes)}
    asked = [
        (name, int(before or 1), int(n or sizes[name]))
        for name, before, n in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named)
    ]
    dims, inside = [], []
    for axis, n in sizes.items():
        asked_cuts = {
            cut for name, before, m in asked if name == axis for cut in (before, before * m)
        }
        cuts = sorted({1, n} | asked_cuts) if n > 1 else [1, 1]
        for low, high in itertools.pairwise(cuts):
            inside.append(
                any(
                    name == axis and before <= low and high <= before * m
                    for name, before, m in asked
                )
            )
            dims.append(high // low)
    ids = order.reshape(dims)
    where = [*(i for i, x in enumerate(inside) if not x), *(i for i, x in enumerate(inside) if x)]
    members = math.prod(n for n, x in zip(dims, inside, strict=True) if x)
    return ids.transpose(where).reshape(-1, members)


def _pairs(text: str) -> np.ndarray:
    listed = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text)
    text = listed[1] if listed else ""
    pairs = [list(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)\}", text)]
    return np.array(pairs or [[0, 0]])
