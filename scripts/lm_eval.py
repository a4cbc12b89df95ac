"""Runs lm-evaluation-harness on a run: python scripts/lm_eval.py --workdir=runs/x --tasks=posenc_retrieval.

    --tasks=posenc_retrieval --lengths=1,2,4,8       our retrieval tasks at these multiples of L
    --tasks=posenc_passkey@1024,posenc_distance      one of them at 1024 tokens; all by needle distance
    --tasks=my_task --include_path=my_tasks          tasks of yours, as YAML files in a folder
    --tasks=my_tasks/my_task.yaml                    or one such file

Our tasks are made from the dev split; --split=test is for what is read once, by a plan that was made before.
Needs the extra: pip install -e ".[lm-eval]". Writes results.json and rows.jsonl to <workdir>/lm_eval
(docs/lm_eval.md). Exit code 2 for wrong input.
"""

import importlib.util
import sys
from pathlib import Path

from absl import flags

from posenc_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run", required=True)
_TASKS = flags.DEFINE_list("tasks", None, "Names of tasks and groups, or YAML files", required=True)
_LENGTHS = flags.DEFINE_list(
    "lengths", None, "Multiples of the training length for posenc_ groups; default: the run's own"
)
_STRETCH = flags.DEFINE_string("stretch", None, "Read the scheme further: yarn:4, pi:4, slopes:4")
_SPLIT = flags.DEFINE_string(
    "split",
    "dev",
    "Split that posenc_ tasks are made from: dev to explore, test for what is read once",
)
_INSTANCES = flags.DEFINE_integer(
    "instances", None, "Instances of a posenc_ task; default: the run's own"
)
_INCLUDE = flags.DEFINE_string("include_path", None, "Folder of further YAML tasks")
_LIMIT = flags.DEFINE_integer("limit", None, "At most so many documents a task", lower_bound=1)
_WINDOW = flags.DEFINE_integer(
    "window", None, "Tokens of a window of rolling log-likelihood; default: the training length"
)
_SAMPLES = flags.DEFINE_bool("samples", False, "Write every document and answer too")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampled generation and few-shot examples")
_OUT = flags.DEFINE_string("out", None, "Folder of the results; default: <workdir>/lm_eval")


def main() -> None:
    """Flags to one call."""
    # Python looks in a script's own folder first, and would find this file under the package's name.
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError('lm-eval is not installed; pip install -e ".[lm-eval]" brings it')
    from posenc_jax.interop.harness import run_harness

    lengths = _LENGTHS.value
    if lengths is not None:
        if not lengths or not all(n.isdigit() for n in lengths):
            raise ValueError(f"--lengths must be whole numbers, not {','.join(lengths)!r}")
        lengths = tuple(int(n) for n in lengths)
    print(
        run_harness(
            Path(_WORKDIR.value),
            tasks=tuple(_TASKS.value),
            multiples=lengths,
            stretch=_STRETCH.value,
            split=_SPLIT.value,
            instances=_INSTANCES.value,
            include_path=_INCLUDE.value,
            limit=_LIMIT.value,
            window=_WINDOW.value,
            samples=_SAMPLES.value,
            seed=_SEED.value,
            out=None if _OUT.value is None else Path(_OUT.value),
        )
    )


if __name__ == "__main__":
    cli.run_main(main)
