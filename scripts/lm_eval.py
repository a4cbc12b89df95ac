"""Runs lm-evaluation-harness on a run: python scripts/lm_eval.py --workdir=runs/x
--tasks=posenc_retrieval.

    --tasks=posenc_retrieval --lengths=1,2,4,8       our retrieval tasks at these multiples of L
    --tasks=posenc_passkey@1024,posenc_distance      one of them at 1024 tokens; all by needle distance
    --tasks=my_task --include_path=my_tasks          tasks of yours, as YAML files in a folder
    --tasks=my_tasks/my_task.yaml                    or one such file

Our tasks are made from the dev split; --split=test is for a confirmation under a frozen plan.
Needs the extra: pip install -e ".[lm-eval]". Writes results.json and rows.jsonl to
<workdir>/lm_eval (docs/lm_eval.md). Exit code 2 for wrong input.
"""  # noqa: E501

import importlib.util
import sys
from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run", required=True)
_TASKS = flags.DEFINE_list("tasks", None, "Names of tasks and groups, or YAML files", required=True)
_LENGTHS = flags.DEFINE_list(
    "lengths",
    None,
    "Multiples of the training length for posenc_ groups (1/4,1,4); default: the run's",
)
_STRETCH = flags.DEFINE_string(
    "stretch", None, "Length extension of the scheme: yarn:4, pi:4, slopes:4"
)
_SPLIT = flags.DEFINE_string(
    "split", "dev", "Split that posenc_ tasks are made from: dev to explore, test to confirm"
)
_INSTANCES = flags.DEFINE_integer(
    "instances", None, "Instances of a posenc_ task; default: the run's own"
)
_INCLUDE = flags.DEFINE_string("include_path", None, "Folder of further YAML tasks")
_LIMIT = flags.DEFINE_integer("limit", None, "Largest number of documents of a task", lower_bound=1)
_WINDOW = flags.DEFINE_integer(
    "window", None, "Window of the rolling log-likelihood in tokens; default: the training length"
)
_SAMPLES = flags.DEFINE_bool("samples", False, "Write every document and answer too")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampled generation and few-shot examples")
_OUT = flags.DEFINE_string("out", None, "Folder of the results; default: <workdir>/lm_eval")


def main() -> None:
    """Calls the harness with the flags."""
    # The folder of a script comes first on the path, where this file has the name of the package.
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError('lm-eval is not installed; pip install -e ".[lm-eval]" brings it')
    from posenc_jax.evaluation.lengths import parse_multiples
    from posenc_jax.interop.harness import HarnessRequest, run_harness

    lengths = _LENGTHS.value
    if lengths is not None:
        lengths = parse_multiples(lengths)
    request = HarnessRequest(
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
    print(run_harness(Path(_WORKDIR.value), request))


if __name__ == "__main__":
    cli.run_main(main)
