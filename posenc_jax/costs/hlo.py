"""HLO of a compiled program: instructions, their number of executions, bytes of memory traffic.

XLA's own cost analysis counts the body of a loop once. Here the known trip count of a loop
multiplies its body. Loops of unknown trip count count once; `executed_instructions` also returns
their number.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

# Bytes that a device sends for one byte of payload, among g devices around a ring; see
# `collectives`.
SENT_PER_PAYLOAD_BYTE = {
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-gather": lambda g: (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "ragged-all-to-all": lambda g: (g - 1) / g,
    "collective-broadcast": lambda g: 1,
    "collective-permute": lambda g: 1,
}
_BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
    "token": 0,
    "opaque": 0,
}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")


class HloInstruction(NamedTuple):
    """One line of a program.

    Attributes:
      rest: the text after the opcode's "(": operands, then attributes. root: whether its value is
        that of its computation.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def literal(self) -> str:
        """The text between the parentheses of a parameter or a constant."""
        return self.rest.partition(")")[0]

    def called(self, attribute: str) -> list[str]:
        """Returns the computations that an attribute such as body= or calls= names."""
        match = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.rest)
        if match is None:
            return []
        return _NAME.findall(match[1]) if match[1] is not None else [match[2]]


@dataclasses.dataclass(frozen=True)
class HloProgram:
    """Computations by name, each a list of instructions, and the name of the entry."""

    computations: dict[str, list[HloInstruction]]
    entry: str


def parse_hlo(text: str) -> HloProgram:
    """Returns the program of `compiled.as_text()`; ValueError for a text without an entry."""
    computations: dict[str, list[HloInstruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (match := _LINE.match(line)):
            current.append(_instruction(match[2], match[3], bool(match[1])))
    if entry is None:
        raise ValueError("the text is not compiled HLO: it has no ENTRY computation")
    return HloProgram(computations, entry)


def _instruction(name: str, rest: str, root: bool) -> HloInstruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    if opcode is None:
        raise ValueError(f"this instruction of a compiled program has no opcode: {rest[:80]!r}")
    start = opcode.end()
    stop = _closing(rest, start - 1)
    operands = tuple(_NAME.findall(rest[start:stop]))
    return HloInstruction(name, rest[:end], opcode[1], operands, rest[start:], root)


def _closing(text: str, at: int) -> int:
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    raise ValueError(f"a parenthesis is never closed: {text[at : at + 60]}")


def array_bytes(shape: str, main_memory_only: bool = False) -> float:
    """Returns the bytes of an array or tuple of arrays.

    Args:
      main_memory_only: if True, leaves out arrays of another memory space, e.g. S(1), the on-chip
        memory of a TPU.
    """
    total = 0.0
    for dtype, dims, layout in _ARRAY.findall(shape):
        if main_memory_only and re.search(r"S\([1-9]\d*\)", layout):
            continue
        count = 1
        for dim in dims.replace("<=", "").split(","):
            count *= int(dim) if dim else 1
        total += count * (1 if dtype.startswith(("f8", "s8", "u8")) else _BYTES[dtype])
    return total


def trip_count(program: HloProgram, loop: HloInstruction) -> int | None:
    """Returns the trip count of a while loop, or None if it is unknown.

    Uses XLA's known_trip_count, or else the bound of `counter < bound`; start 0 and step 1 are
    assumed, not checked.
    """
    known = re.search(r'"?known_trip_count"?[:=]\{"?n"?:"?(\d+)"?\}', loop.rest)
    if known:
        return int(known[1])
    condition = program.computations[loop.called("condition")[0]]
    constants = {x.name: x.literal for x in condition if x.opcode == "constant"}
    root = next(x for x in condition if x.root)
    if root.opcode == "compare" and "direction=LT" in root.rest and root.operands[1] in constants:
        return int(constants[root.operands[1]])
    return None


class ExecutedInstruction(NamedTuple):
    """An instruction, all instructions of its computation by name, and its number of executions."""

    instruction: HloInstruction
    by_name: dict[str, HloInstruction]
    times: int


def executed_instructions(program: HloProgram) -> tuple[list[ExecutedInstruction], int]:
    """Returns the executed instructions outside fusions (of a conditional those of all branches),
    and the number of loops without a known trip count.
    """
    unknown = 0

    def walk(name: str, times: int) -> Iterator[ExecutedInstruction]:
        nonlocal unknown
        by_name = {x.name: x for x in program.computations[name]}
        for instruction in program.computations[name]:
            yield ExecutedInstruction(instruction, by_name, times)
            inner = times
            if instruction.opcode == "while":
                trips = trip_count(program, instruction)
                unknown += trips is None
                inner *= 1 if trips is None else trips
                yield from walk(instruction.called("body")[0], inner)
            elif instruction.opcode in ("call", "async-start"):
                for attribute in ("to_apply", "calls"):
                    for called in instruction.called(attribute):
                        yield from walk(called, inner)
            elif instruction.opcode == "conditional":  # counts all branches
                for attribute in ("branch_computations", "true_computation", "false_computation"):
                    for called in instruction.called(attribute):
                        yield from walk(called, inner)

    executed = list(walk(program.entry, 1))  # sets `unknown`
    return executed, unknown


# Instructions without memory traffic of their own.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "async-start", "async-update", "async-done", "partition-id",
    "replica-id", "opt-barrier", "get-dimension-size", "add-dependency", "iota",
}  # fmt: skip


def memory_traffic(program: HloProgram) -> float:
    """Returns the bytes that one device reads from and writes to its memory in one execution of the
    program.

    Every instruction reads its operands and writes its result once; values inside a fusion cost
    nothing. A slice counts as a read and a write of its result, an in-place update as a read and a
    write of the update. Collectives do not count here.
    """
    instructions, _ = executed_instructions(program)
    return sum(executed.times * _instruction_bytes(program, executed) for executed in instructions)


def _instruction_bytes(program: HloProgram, executed: ExecutedInstruction) -> float:
    """Returns the bytes that one execution of an instruction reads and writes."""
    instruction = executed.instruction
    if (
        instruction.opcode in _FREE
        or instruction.opcode.endswith("-done")
        or instruction.opcode.removesuffix("-start") in SENT_PER_PAYLOAD_BYTE
    ):
        return 0.0
    shapes = [
        executed.by_name[name].shape for name in instruction.operands if name in executed.by_name
    ]
    result = array_bytes(instruction.shape, main_memory_only=True)
    if instruction.opcode in ("slice", "dynamic-slice", "gather"):
        return 2 * result
    if instruction.opcode == "dynamic-update-slice":
        return 2 * array_bytes(shapes[1], main_memory_only=True)
    if instruction.opcode == "copy-start":  # its result also contains the operand and a context
        result = array_bytes(_members(instruction.shape)[0], main_memory_only=True)
    if instruction.opcode == "fusion":
        body = program.computations[instruction.called("calls")[0]]
        return _fusion_bytes(body, shapes, instruction.shape)
    return result + sum(array_bytes(shape, main_memory_only=True) for shape in shapes)


def _fusion_bytes(
    body: list[HloInstruction], operand_shapes: list[str], result_shape: str
) -> float:
    """Returns the bytes that a fusion reads from its operands and writes to its results.

    An operand of which only slices are used counts as these slices, and a result that is updated in
    place as the update.
    """
    by_name = {x.name: x for x in body}
    users: dict[str, list[HloInstruction]] = {}
    for instruction in body:
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
    total = 0.0
    for parameter in (x for x in body if x.opcode == "parameter"):
        given, uses = operand_shapes[int(parameter.literal)], users.get(parameter.name, [])
        uses = [
            use for use in uses if use.opcode.removesuffix("-start") not in SENT_PER_PAYLOAD_BYTE
        ]
        if not array_bytes(given, main_memory_only=True) or all(
            use.root and _only_groups(use) for use in uses
        ):
            continue
        if all(_reads_part(use, parameter.name) for use in uses):
            total += sum(
                array_bytes(use.shape) for use in uses if use.opcode != "dynamic-update-slice"
            )
        else:
            total += array_bytes(given, main_memory_only=True)
    root = next(x for x in body if x.root)
    pieces = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    members = _members(result_shape)
    if len(pieces) != len(members):  # one instruction has several results
        pieces = [root] * len(members)
    for written, member in zip(pieces, members, strict=True):
        while written.opcode in ("bitcast", "copy", "convert"):
            written = by_name[written.operands[0]]
        written_bytes = array_bytes(member, main_memory_only=True)
        if written.opcode == "dynamic-update-slice":
            update = by_name[written.operands[1]]
            written_bytes = min(written_bytes, array_bytes(update.shape))
        elif (
            written.opcode == "parameter"
            or written.opcode in SENT_PER_PAYLOAD_BYTE
            or _only_groups(written)
        ):
            written_bytes = 0.0  # passed through, or counted as a collective
        total += written_bytes
    return total


def _only_groups(instruction: HloInstruction) -> bool:
    """Whether an instruction only groups values: a tuple, or an asynchronous handle."""
    handle = instruction.opcode == "custom-call" and "S(4)" in instruction.shape
    return instruction.opcode == "tuple" or handle


def _reads_part(use: HloInstruction, name: str) -> bool:
    """Whether an instruction uses only a part of its operand `name`."""
    if use.opcode in ("dynamic-slice", "slice", "gather", "dynamic-update-slice"):
        return use.operands[0] == name and name not in use.operands[1:]
    return False


def _members(shape: str) -> list[str]:
    """Returns the arrays of a tuple shape, or the shape itself."""
    return [m[0] for m in _ARRAY.finditer(shape)] if shape.startswith("(") else [shape]
