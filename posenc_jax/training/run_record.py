"""run.json: what a run is, where it came from, and whether it has ended."""

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
    """Returns the record of a run that is begun or taken up again.

    Raises:
      ValueError: the run was begun on another corpus or tokenizer of the same name.
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
    begun = _stored(workdir)
    if begun:
        _refuse_other_text(workdir, begun, record)
    # None where an earlier leg did not say.
    record["began"] = (
        {"began": None} | begun if begun else {"began": datetime.datetime.now(datetime.UTC).isoformat()}
    )["began"]  # fmt: skip
    return record


def seconds_before(workdir: Path) -> float:
    """Returns the seconds of training that earlier legs of the run have recorded."""
    return _stored(workdir).get("wall_seconds", 0.0)


def write_record(workdir: Path, record: dict, seconds: float, done: int) -> None:
    """Writes run.json of a run that has not ended, when it begins and after every save; process 0 alone.

    `steps` are those that it shall take, `steps_done` those that it had taken by its last save.
    """
    if jax.process_index() == 0:
        unfinished = {"steps_done": done, "finished": False, "wall_seconds": seconds}
        write_json(workdir / "run.json", record | unfinished)


def write_finished(workdir: Path, record: dict, seconds: float, state, chain: HashChain) -> None:
    """Writes run.json of a finished run; of a leg that was killed, seconds count up to its last save."""
    digests = sha256(state)  # of all processes together
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


def _refuse_other_text(workdir: Path, begun: dict, record: dict) -> None:
    for name in ("corpus_fingerprint", "tokenizer_fingerprint"):
        if begun[name] != record[name]:
            raise ValueError(
                f"{workdir} was begun with {name} {begun[name][:12]}, now it is {record[name][:12]}: "
                "the text or the Python that it comes from has changed; choose another --workdir"
            )
