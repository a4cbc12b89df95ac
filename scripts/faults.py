"""The fault table: python scripts/faults.py --trials=10 --only=kill,flip --out=faults.jsonl.

Injects faults into small runs and reports for each: whether the result equals that of the
undisturbed run bit for bit, whether the fault was detected, and how many steps were taken again.
Exit code 1 if any trial failed; the row of a failed trial keeps both ends of its output.
--trials: trials of each fault; --cheap: trials of faults that need no process of their own.
--table=a.jsonl,b.jsonl.gz prints the table of stored rows.
"""

import dataclasses
import json
import random
import sys
import tempfile
from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_TRIALS = flags.DEFINE_integer("trials", 10, "Trials of every fault", lower_bound=1)
_CHEAP = flags.DEFINE_integer(
    "cheap", None, "Trials of those inside one process; default: --trials"
)
_ONLY = flags.DEFINE_list("only", None, "Names of faults; default: all")
_OUT = flags.DEFINE_string("out", None, "A row for every trial, appended as JSONL")
_TABLE = flags.DEFINE_list("table", None, "Files of --out, .gz or not: only prints their table")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments, files and bits")


def main() -> int:
    """Runs the faults of the flags and prints their table."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from faults.small_run import SmallRun
    from faults.suite import CHEAP, FAULTS, chosen
    from faults.trial import failed, kept, stored, table

    trials = []
    if _TABLE.value:
        trials = [trial for path in _TABLE.value for trial in stored(Path(path))]
        print(table(trials))
        return 1 if failed(trials) else 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, SmallRun(Path(folder)) as run:
        for name in chosen(_ONLY.value):
            count = (_CHEAP.value or _TRIALS.value) if name in CHEAP else _TRIALS.value
            for trial in FAULTS[name](run, count, random.Random(f"{name}-{_SEED.value}")):
                texts = {
                    name: getattr(trial, name).replace(folder, "...") for name in ("said", "output")
                }
                trial = kept(dataclasses.replace(trial, **texts))
                trials.append(trial)
                if _OUT.value:
                    with Path(_OUT.value).open("a") as file:
                        file.write(json.dumps(dataclasses.asdict(trial)) + "\n")
            print(f"{name}: {len(trials)} trials so far", file=sys.stderr, flush=True)
    print(table(trials))
    for trial in failed(trials):
        ended = f"exit codes {trial.exit_codes}: {trial.said or trial.output}"
        print(f"{trial.fault}, {trial.detail}, {ended}", file=sys.stderr)
    return 1 if failed(trials) else 0


if __name__ == "__main__":
    cli.run_main(main)
