"""Decides a study: python scripts/verdict.py --workdir=studies/x --hybrid="rope+alibi|nope~logn" --seeds=0-4

Reads every finished run below the folder and prints the verdict on each hybrid, with every clause in
words; writes verdict.json and verdict.txt there, which the report shows. It is exploratory unless a plan
was frozen before the runs began:

    python scripts/verdict.py --workdir=studies/x --freeze --hybrid=... --without_rotation=... --seeds=100-107
    (train and evaluate seeds 100 to 107)
    python scripts/verdict.py --workdir=studies/x --prereg=studies/x/prereg.json

Seconds. Exit codes: 0 whatever the verdict, 2 wrong input.
"""

import json
import os
import re
from pathlib import Path

from absl import flags

from posenc_jax import door

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a study", required=True)
_PREREG = flags.DEFINE_string("prereg", None, "File of the frozen plan; --freeze writes <workdir>/prereg.json without it")  # fmt: skip
_FREEZE = flags.DEFINE_bool("freeze", False, "Write the plan and stop")
_HYBRID = flags.DEFINE_multi_string("hybrid", [], "Arm to judge; up to three times")
_ROPE = flags.DEFINE_string("rope", "rope", "Arm of RoPE, tuned")
_ALIBI = flags.DEFINE_string("alibi", "alibi", "Arm of ALiBi, tuned")
_SEEDS = flags.DEFINE_string("seeds", None, "Planned seeds, e.g. 0-4 or 100,101,103")
_ABLATED = {
    factor: flags.DEFINE_multi_string(
        f"without_{factor}", [], f"The hybrid without its {factor}; once a --hybrid, in order, empty for none"
    )
    for factor in ("rotation", "bias")
}  # fmt: skip
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "dev"], "Split whose rows are read")
_DEVIATION = flags.DEFINE_multi_string("deviation", [], "What was done otherwise than planned, in words")  # fmt: skip


def main() -> None:
    """Flags to one call."""
    from posenc_jax.study import prereg
    from posenc_jax.study.verdict import judge, read_runs, words

    workdir = Path(_WORKDIR.value)
    path = Path(_PREREG.value) if _PREREG.value else workdir / "prereg.json"
    if _FREEZE.value:
        plan = _plan(prereg.Plan)
        _refuse_begun(workdir, plan)
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"{path} frozen, sha256 {prereg.freeze(path, plan)}")
        return
    if _PREREG.value:
        given = [n for n in ("hybrid", "rope", "alibi", "seeds", "without_rotation", "without_bias") if flags.FLAGS[n].present]  # fmt: skip
        if given:
            raise ValueError(f"--{given[0]} is in the frozen plan; give --prereg or the plan's flags, not both")  # fmt: skip
        frozen = prereg.read(path)
        plan = frozen.plan
    else:
        frozen, plan = None, _plan(prereg.Plan)
    runs = read_runs(workdir, _SPLIT.value)
    verdict = judge(runs, plan, split=_SPLIT.value, frozen=frozen, deviations=_DEVIATION.value)
    text = words(verdict)
    _replace(workdir / "verdict.json", json.dumps(verdict, indent=2, allow_nan=False) + "\n")
    _replace(workdir / "verdict.txt", text)
    print(text, end="")


def _plan(make):
    hybrids, ablations = _HYBRID.value, {}
    if not hybrids or _SEEDS.value is None:
        raise ValueError("name the arms and seeds: --hybrid=ARM --seeds=0-4, or --prereg=FILE")
    for factor, flag in _ABLATED.items():
        if len(flag.value) > len(hybrids):
            raise ValueError(f"--without_{factor} is given more often than --hybrid")
        for hybrid, arm in zip(hybrids, flag.value, strict=False):
            if arm:
                ablations.setdefault(hybrid, {})[factor] = arm
    return make(tuple(hybrids), _ROPE.value, _ALIBI.value, _seeds(_SEEDS.value), ablations)


def _seeds(text: str) -> tuple[int, ...]:
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ValueError(f"--seeds={text!r} must look like 0-4 or 100,101,103")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(found)


def _refuse_begun(workdir: Path, plan) -> None:
    """Raises ValueError if a run of the plan exists already: it could not be confirmed later."""
    for path in sorted(workdir.glob("**/run.json")):
        info = json.loads(path.read_text())
        if info["arm"] in plan.arms() and info["seed"] in plan.seeds:
            raise ValueError(f"{path.parent} has begun; freeze the plan first, or plan fresh seeds")


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == "__main__":
    door.enter(main)
