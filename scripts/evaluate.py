"""Evaluates a run's last checkpoint: python scripts/evaluate.py --workdir=runs/x [--lengths=1,2,4,8].

Measures E1, E3, E4 and R1, R3 and writes evaluation/rows.jsonl in the run's folder. Running it again
measures only what is missing. With --stretch the trained scheme is read further, by one rule for its
rotations and biases (see posenc_jax/encodings/reading.py), as an arm of its own under
<workdir>/stretched/. Exit code 2 for wrong input.
"""

from pathlib import Path

from absl import flags

from posenc_jax import door

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run", required=True)
_LENGTHS = flags.DEFINE_list(
    "lengths", None, "Multiples of the training length; default: the run's own"
)
_SUITE = flags.DEFINE_list(
    "suite", ["E", "R"], "E (extrapolation), R (retrieval), C (classification)"
)
_STRETCH = flags.DEFINE_string(
    "stretch",
    None,
    "Read the scheme further: yarn:4, pi:4, ntk:4, dynamic:1, slopes:4, rotation.yarn:4",
)
_SPLIT = flags.DEFINE_string("split", "test", "Held-out split: test or dev")


def main() -> None:
    """Flags to one call."""
    from posenc_jax.evaluation.runner import evaluate

    lengths = _LENGTHS.value
    if lengths is not None:
        if not lengths or not all(n.isdigit() for n in lengths):
            raise ValueError(f"--lengths must be whole numbers, not {','.join(lengths)!r}")
        lengths = tuple(int(n) for n in lengths)
    print(
        evaluate(
            Path(_WORKDIR.value),
            multiples=lengths,
            suites=tuple(_SUITE.value),
            split=_SPLIT.value,
            stretch=_STRETCH.value,
        )
    )


if __name__ == "__main__":
    door.enter(main)
