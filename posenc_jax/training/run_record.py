"""Run record (run.json): settings, data, command, versions and the state of a run."""

import datetime
import json
from pathlib import Path

import jax

from posenc_jax.checkpoints.fingerprint import sha256
from posenc_jax.checkpoints.hash_chain import HashChain
from posenc_jax.results.files import write_json
from posenc_jax.results.schema import SPLITS
from posenc_jax.training.config import RunConfig
from posenc_jax.training.inputs import Inputs, unigram_bits_per_byte
from posenc_jax.training.workdir import provenance


def make_record(config: RunConfig, command: str, inputs: Inputs, params, workdir: Path) -> dict:
    """Returns the record of a run that starts or resumes.

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
    stored = _stored(workdir)
    if not stored:
        return record | {"began": datetime.datetime.now(datetime.UTC).isoformat()}
    for name in ("corpus_fingerprint", "tokenizer_fingerprint"):
        if stored[name] != record[name]:
            raise ValueError(
                f"{workdir} was begun with {name} {stored[name][:12]}, now it is {record[name][:12]}: "
                "the text or the Python that it comes from has changed; choose another --workdir"
            )
    return record | {"began": stored.get("began")}  # None: an early record has no time


def seconds_before(workdir: Path) -> float:
    """Returns the recorded training time of earlier legs of the run, in seconds."""
    return _stored(workdir).get("wall_seconds", 0.0)


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


def _stored(workdir: Path) -> dict:
    path = workdir / "run.json"
    return json.loads(path.read_text()) if path.exists() else {}
