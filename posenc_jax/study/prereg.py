"""What a confirmation commits to before it runs: one JSON file with its own hash."""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from posenc_jax.study.decision import MOST_HYBRIDS, RULE, Margins

METRICS = ("Y_E", "Y_R", "Y_R_far", "Y_R_id", "bpb_id", "P1", "P3", "P5", "context_gain", "repeat_gain", "window_check")  # fmt: skip


def freeze(
    path: Path, *, hybrids: Sequence[str], rope: str, alibi: str, seeds: Sequence[int]
) -> str:
    """Writes the plan under rule version 1 and returns its hash.

    Raises:
      ValueError: the file exists (a plan is frozen once), or there are more than three hybrids.
    """
    if not 1 <= len(hybrids) <= MOST_HYBRIDS:
        raise ValueError(f"at most {MOST_HYBRIDS} hybrids can be confirmed, not {len(hybrids)}")
    body = {
        "rule": RULE,
        "margins": dataclasses.asdict(Margins()),
        "hybrids": list(hybrids),
        "rope": rope,
        "alibi": alibi,
        "seeds": list(seeds),
        "metrics": list(METRICS),
        "frozen": datetime.datetime.now(datetime.UTC).isoformat(),
    }
    text = json.dumps({"plan": body, "sha256": digest(body)}, indent=2) + "\n"
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{path} is frozen already; write a new plan to a new file") from None
    return digest(body)


def digest(body: Mapping) -> str:
    """Returns the SHA-256 of the plan's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def confirmed(path: Path, begun: Mapping[str, float]) -> dict:
    """Returns the frozen plan, if the confirmation runs are all younger than it.

    Args:
      begun: by run, when its first file was written (seconds since 1970).

    Raises:
      ValueError: the hash is not that of the plan, the plan is another rule's, or a run is older.
    """
    stored = json.loads(path.read_text())
    body = stored["plan"]
    if digest(body) != stored["sha256"]:
        raise ValueError(f"{path} was changed after it was frozen: its hash no longer fits")
    if body["rule"] != RULE:
        raise ValueError(f"{path} is of rule version {body['rule']}, this is version {RULE}")
    frozen = datetime.datetime.fromisoformat(body["frozen"]).timestamp()
    older = sorted(run for run, at in begun.items() if at <= frozen)
    if older:
        raise ValueError(f"not a confirmation: {', '.join(older)} began before {path} was frozen")
    return body
