"""Evaluates a run's checkpoint: python scripts/evaluate.py --workdir=runs/x --lengths=1,2,4,8.

Measures what the run's configuration names (E1, E3, E4, R1, R3 unless changed), or with --suite=E,R
everything, or with --suite=E3,R2,copy some, on held-out text of dev, and writes
evaluation_dev/rows.jsonl in the run's folder. --split=test is for what is read once, by a plan that
was made before; its rows lie in evaluation/. Running it again measures only what is missing.
--instances and --stretches measure with fewer or more than the run says; rows of other counts stay
until their item is measured again. E5
needs the targets that a reference run chose, one trained at 4 L: --workdir=runs/rope-4L
--write_key_targets=targets.json, then --suite=E5 --key_targets=targets.json. --stretch evaluates
the trained scheme under a length extension of its rotations and biases (see
posenc_jax/encodings/length_extension.py), as another arm under <workdir>/stretched/. Results use
the last checkpoint; --checkpoint=best takes that of the lowest dev loss (config.train.dev_every),
--checkpoint=400 that of a step, each with its own folder. On CPU rows are spread over the cores
that the process may use. Exit code 2 for wrong input.
"""

import shlex
from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run", required=True)
_LENGTHS = flags.DEFINE_list(
    "lengths", None, "Multiples of the training length (1/4,1,2); default: the run's own"
)
_SUITE = flags.DEFINE_list(
    "suite", None, "Suites (E, R, P, M, C), ids (E3, R2, M1) or tasks; default: the run's own"
)
_KEY_TARGETS = flags.DEFINE_string("key_targets", None, "File of E5's targets")
_WRITE_KEY_TARGETS = flags.DEFINE_string(
    "write_key_targets", None, "Choose E5's targets with this run, trained at 4 L, and write them"
)
_STRETCH = flags.DEFINE_string(
    "stretch",
    None,
    "Length extension of the scheme: yarn:4, pi:4, ntk:4, dynamic:1, slopes:4, rotation.yarn:4, "
    "rotation.off",
)
_INSTANCES = flags.DEFINE_integer(
    "instances", None, "Instances of a task at each length; default: the run's own", lower_bound=1
)
_STRETCHES = flags.DEFINE_integer(
    "stretches", None, "Stretches of text of suite E; default: the run's own", lower_bound=1
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "last, best (by dev loss) or a step")
_SPLIT = flags.DEFINE_string(
    "split", "dev", "Held-out split: dev to explore and choose, test for what is read once"
)


def main() -> None:
    """Evaluates the run of the flags."""
    from posenc_jax.evaluation.cpu_devices import use_all_cores
    from posenc_jax.evaluation.evaluate import EvaluationCounts, evaluate, write_key_targets
    from posenc_jax.evaluation.lengths import parse_multiples
    from posenc_jax.results.run_table import run_table

    use_all_cores()
    if _WRITE_KEY_TARGETS.value:
        if _CHECKPOINT.value != "last":
            raise ValueError(
                "--write_key_targets reads the last checkpoint; leave --checkpoint out"
            )
        path = Path(_WRITE_KEY_TARGETS.value)
        print(write_key_targets(Path(_WORKDIR.value), path, split=_SPLIT.value), "targets in", path)
        return

    lengths = _LENGTHS.value
    if lengths is not None:
        lengths = parse_multiples(lengths)
    path = evaluate(
        Path(_WORKDIR.value),
        multiples=lengths,
        suites=None if _SUITE.value is None else tuple(_SUITE.value),
        split=_SPLIT.value,
        stretch=_STRETCH.value,
        key_targets=None if _KEY_TARGETS.value is None else Path(_KEY_TARGETS.value),
        checkpoint=_CHECKPOINT.value,
        counts=EvaluationCounts(_INSTANCES.value, _STRETCHES.value),
    )
    print(*run_table(path), sep="\n")
    print(path)
    print(f"next: {shlex.join(['python', 'scripts/report.py', f'--workdir={_WORKDIR.value}'])}")


if __name__ == "__main__":
    cli.run_main(main)
