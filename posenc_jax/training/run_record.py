"""Run record (run.json): settings, data, command, versions and the state of a run."""

import datetime
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import jax

from posenc_jax.checkpoints.fingerprint import sha256
from posenc_jax.checkpoints.hash_chain import HashChain
from posenc_jax.results.files import read_json, write_json
from posenc_jax.results.record_schema import RUN, check
from posenc_jax.results.schema import SPLITS
from posenc_jax.training.config import RunConfig
from posenc_jax.training.inputs import Inputs, unigram_bits_per_byte
from posenc_jax.training.workdir import provenance

STORED = ("corpus_fingerprint", "tokenizer_fingerprint")  # required fields of a record of any age


def make_record(config: RunConfig, command: str, inputs: Inputs, params, stored: dict) -> dict:
    """Returns the record of a run that starts or resumes, with the seconds of earlier legs.

    Args:
      stored: run.json of the earlier legs, as of `stored_record`.

    Raises:
      ValueError: the run started on another corpus or tokenizer of the same name.
    """
    t = config.train
    record = {
        "arm": config.arm,
        "scheme": config.model.scheme,
        "seed": t.seed,
        "tier": t.tier,
        "train_length": config.placed_length,
        "steps": t.steps,
        "tokens": t.steps * t.batch_size * t.length,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "corpus": config.data.corpus,
        "corpus_fingerprint": inputs.corpus.fingerprint,
        "tokenizer_fingerprint": inputs.tokenizer.fingerprint,
        "unigram_bpb": {
            split: unigram_bits_per_byte(
                inputs.stream("train"), inputs.stream(split), inputs.tokenizer
            )
            for split in SPLITS
        },
        "command": command,
        **provenance(),
    }
    if not stored:
        return record | {
            "wall_seconds": 0.0,
            "began": datetime.datetime.now(datetime.UTC).isoformat(),
        }
    for name in ("corpus_fingerprint", "tokenizer_fingerprint"):
        if stored[name] != record[name]:
            raise ValueError(
                f"the run was begun with {name} {stored[name][:12]}, now it is "
                f"{record[name][:12]}: the text or the Python that it comes from has changed; "
                "choose another --workdir"
            )
    # An early record has no time of its beginning, and that of a killed first leg no seconds.
    return record | {
        name: {"began": None, "wall_seconds": 0.0, **stored}[name]
        for name in ("began", "wall_seconds")
    }


def write_record(workdir: Path, record: dict, seconds: float, done: int) -> None:
    """Writes run.json of an unfinished run, at its start and after every save; in process 0 only.

    `steps` is the planned number of steps, `steps_done` the number at the last save.
    """
    if jax.process_index() == 0:
        unfinished = {"steps_done": done, "finished": False, "wall_seconds": seconds}
        write_json(workdir / "run.json", record | unfinished)


def write_finished(workdir: Path, record: dict, seconds: float, state, chain: HashChain) -> None:
    """Writes run.json of a finished run; seconds of a killed leg count up to its last save."""
    digests = sha256(state)  # a collective of all processes
    if jax.process_index() == 0:
        write_json(
            workdir / "run.json",
            record
            | {
                "steps_done": record["steps"],
                "wall_seconds": round(seconds, 1),
                "tokens_per_second": round(record["tokens"] / seconds) if seconds else None,
                "skipped_updates": int(state["skipped"]),
                "finished": True,
                **chain.through(record["steps"]),
                "state_sha256": digests,
            },
        )


def opening(record: dict) -> str:
    """Returns the first line of a run: parameters, tokens and devices."""
    return (
        f"{record['arm']}: {record['parameters']:,} parameters, {record['tokens']:,} tokens in "
        f"{record['steps']:,} steps, on {record['hardware']}"
    )


def ending(workdir: Path, row: Mapping) -> str:
    """Returns the last lines of a finished run: losses of the log's last row, next command."""
    losses = f"loss {row['loss']:.4f}" if "loss" in row else "finished"
    dev = row.get("dev_loss")
    measured = "not measured (config.train.dev_every)" if dev is None else f"{dev:.4f}"
    command = shlex.join(["python", "scripts/evaluate.py", f"--workdir={workdir}"])
    return f"{workdir}: {losses}, dev loss {measured}\nnext: {command}"


def stored_record(workdir: Path) -> dict:
    """Returns run.json; {} where there is none, or a damaged one, which is named on stderr.

    The checkpoints hold everything that a resume needs, so a trainer writes it again.
    """
    path = workdir / "run.json"
    try:
        record = read_json(path) if path.exists() else {}
        check(record, RUN, str(path), STORED if record else ())
    except ValueError as fault:
        if jax.process_index() == 0:
            print(f"{fault}; it is written again, without the time before", file=sys.stderr)
        return {}
    return record
