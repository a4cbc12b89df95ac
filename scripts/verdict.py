"""Decides a study by both versions of the rule: python scripts/verdict.py --workdir=studies/x

Prints the verdict on each hybrid by rule 2 and rule 1, with every clause in words, and writes
verdict.json and verdict.txt into the folder of the study, where the report reads them.
`--results=results/screening` reads a published folder instead of run folders. Arms and seeds are
those of study.json unless flags are given. A verdict is exploratory unless a plan was frozen before
the runs began:

    python scripts/verdict.py --workdir=studies/x --freeze --hybrid=coupled --alibi=alibi-match --alibi=alibi --stretched="rope yarn:4" --seeds=100-111
    # train and evaluate seeds 100 to 111
    python scripts/verdict.py --workdir=studies/x --prereg=studies/x/prereg.json --pilot=studies/pilot --lookup=studies/lookup

Takes seconds, or up to a minute with arrays of instances. Exit codes: 0 for every verdict, 2 wrong
input.
"""  # noqa: E501

import json
import re
from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a study's runs")
_RESULTS = flags.DEFINE_string("results", None, "Published folder, in place of --workdir")
_OUT = flags.DEFINE_string(
    "out", None, "Folder for verdict.json and verdict.txt; default: what is read"
)
_PREREG = flags.DEFINE_string(
    "prereg", None, "File of the frozen plan; --freeze writes <workdir>/prereg.json without it"
)
_FREEZE = flags.DEFINE_bool("freeze", False, "Write the plan and stop")
_HYBRID = flags.DEFINE_multi_string("hybrid", [], "Arm to judge; up to three times")
_ROPE = flags.DEFINE_string("rope", None, "Arm of RoPE, tuned")
_ALIBI = flags.DEFINE_multi_string(
    "alibi",
    [],
    "Arm of ALiBi, published or matched slopes; the better on dev is A, rule 1 reads the first",
)
_STRETCHED = flags.DEFINE_multi_string(
    "stretched",
    [],
    "Candidate of R+: RoPE read by YaRN at 4L, or fine-tuned; the better on dev counts",
)
_ORACLE = flags.DEFINE_string("oracle", None, "Arm of RoPE that was trained at 4L")
_SEEDS = flags.DEFINE_string("seeds", None, "Planned seeds, e.g. 0-4 or 100,101,103")
_PILOT_SEEDS = flags.DEFINE_string("pilot_seeds", "", "Seeds of the assay's runs, for --freeze")
_LOOKUP_SEEDS = flags.DEFINE_string(
    "lookup_seeds", "", "Seeds of the runs of offset lookup, for --freeze"
)
_PILOT = flags.DEFINE_string(
    "pilot", None, "Folder of the assay's runs (A0); without it the study's own seeds are asked"
)
_LOOKUP = flags.DEFINE_string(
    "lookup", None, "Folder of runs that were trained on offset lookup alone (P3)"
)
_ABLATED = {
    factor: flags.DEFINE_multi_string(
        f"without_{factor}",
        [],
        f"The hybrid without its {factor}; once a --hybrid, in order, empty for none",
    )
    for factor in ("rotation", "bias")
}
_SPLIT = flags.DEFINE_enum(
    "split", None, ["test", "dev"], "Split whose rows are read; default: the study's own"
)
_DEVIATION = flags.DEFINE_multi_string(
    "deviation", [], "What was done otherwise than planned, in words"
)

_MOST_SEEDS = 1000  # of a study
_PLANNED = (
    "hybrid",
    "rope",
    "alibi",
    "stretched",
    "oracle",
    "seeds",
    "pilot_seeds",
    "lookup_seeds",
    "without_rotation",
    "without_bias",
    "split",
)


def main() -> None:
    """Judges a study, or freezes a plan."""
    from posenc_jax.results.files import replace_text
    from posenc_jax.results.load import chosen_folder, load
    from posenc_jax.study import preregistration
    from posenc_jax.study.auxiliary_runs import AuxiliaryRuns
    from posenc_jax.study.verdict import judge, verdict_text

    folder = chosen_folder(_WORKDIR.value, _RESULTS.value)
    path = Path(_PREREG.value) if _PREREG.value else folder / "prereg.json"
    if _FREEZE.value:
        plan = _plan(preregistration.AnalysisPlan, {}, "test")
        _refuse_begun(folder, plan)
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"{path} frozen, sha256 {preregistration.freeze(path, plan)}")
        return
    if _PREREG.value:
        given = [name for name in _PLANNED if flags.FLAGS[name].present]
        if given:
            raise ValueError(
                f"--{given[0]} is in the frozen plan; give --prereg or the plan's flags, not both"
            )
        frozen = preregistration.read(path)
        plan = frozen.plan
        data = load(folder, plan.split)
    else:
        data = load(folder, _SPLIT.value)
        frozen, plan = None, _plan(preregistration.AnalysisPlan, data.record, data.split)
    beside = AuxiliaryRuns(
        dev=_on_dev(load, folder) if data.split == "test" else None,
        pilot=load(Path(_PILOT.value)) if _PILOT.value else None,
        lookup=load(Path(_LOOKUP.value)) if _LOOKUP.value else None,
    )
    verdict = judge(data, plan, beside=beside, frozen=frozen, deviations=_DEVIATION.value)
    text, out = verdict_text(verdict), Path(_OUT.value or folder)
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "verdict.json", json.dumps(verdict, indent=2, allow_nan=False) + "\n")
    replace_text(out / "verdict.txt", text)
    print(text, end="")


def _on_dev(load, folder: Path):
    """Returns the same study on dev, or None if no run was evaluated on dev."""
    try:
        return load(folder, "dev")
    except ValueError as error:
        if "no evaluated run below" in str(error):
            return None
        raise


def _plan(make, record, split: str):
    """Returns the plan of the flags; the default of a flag is in study.json."""
    record = {"roles": {}, "seeds": ()} | record

    def role(flag, name: str, default):
        return flag.value or record["roles"].get(name, default)

    hybrids, ablations = role(_HYBRID, "hybrids", []), {}
    alibi = _several(role(_ALIBI, "alibi", "alibi"))
    seeds = _seeds(_SEEDS.value) if _SEEDS.value else tuple(record["seeds"])
    if not hybrids or not alibi or not seeds:
        raise ValueError(
            "name the arms and seeds: --hybrid=ARM --alibi=ARM --seeds=0-4, or --prereg=FILE"
        )
    for factor, flag in _ABLATED.items():
        if len(flag.value) > len(hybrids):
            raise ValueError(f"--without_{factor} is given more often than --hybrid")
        for hybrid, arm in zip(hybrids, flag.value, strict=False):
            if arm:
                ablations.setdefault(hybrid, {})[factor] = arm
    return make(
        hybrids=_several(hybrids),
        rope=role(_ROPE, "rope", "rope"),
        alibi=alibi,
        seeds=seeds,
        ablations=ablations,
        stretched=_several(role(_STRETCHED, "stretched", [])),
        oracle=role(_ORACLE, "oracle", ""),
        pilot=_seeds(_PILOT_SEEDS.value),
        lookup=_seeds(_LOOKUP_SEEDS.value),
        split=_SPLIT.value or split,
    )


def _several(arms) -> tuple[str, ...]:
    return (arms,) if isinstance(arms, str) else tuple(arms)


def _seeds(text: str) -> tuple[int, ...]:
    seeds = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part.strip())
        if match is None:
            raise ValueError(f"seeds {text!r} must look like 0-4 or 100,101,103")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + _MOST_SEEDS:
            raise ValueError(f"seeds {text!r} must rise, over at most {_MOST_SEEDS} of them")
        seeds += range(first, last + 1)
    return tuple(seeds)


def _refuse_begun(workdir: Path, plan) -> None:
    """Raises ValueError if a run of the plan exists: it cannot confirm a plan that is frozen
    later.
    """
    from posenc_jax.results.files import read_json
    from posenc_jax.results.stored_run import checked_record

    for path in sorted(workdir.glob("**/run.json")):
        info = checked_record(read_json(path), str(path))
        if info["arm"] in plan.arms() and info["seed"] in plan.seeds:
            raise ValueError(f"{path.parent} has begun; freeze the plan first, or plan fresh seeds")


if __name__ == "__main__":
    cli.run_main(main)
