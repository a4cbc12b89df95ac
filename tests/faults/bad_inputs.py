"""Bad inputs: settings and corpora that must be refused in one line."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from posenc_jax.results.schema import DONE, WRONG_INPUT
from posenc_jax.training.config import from_sections

from faults.kills import await_seen
from faults.small_run import SmallRun, without_progress
from faults.trial import Trial, codes

_VALUES = (
    -1,
    0,
    3,
    7,
    2**40,
    -(2**63),
    float("nan"),
    float("inf"),
    -0.5,
    1e-300,
    1e39,
    "",
    "x",
    "rope",
    None,
    True,
    [],
    [0],
    "\0",
    "../../x",
    {},
)
_SECONDS = 5
_WRITES_ELSEWHERE = (("data", "data_dir"), ("train", "wandb_project"))  # not to be typed at random
_ADDRESSES = 12 * 2**30  # bytes; the libraries map most of them and never touch them


def settings(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """One to three random settings: a valid config, or a refusal in one line that names a setting.

    Parsed in this process, as `train.py` parses a stored config; `settings_typed` starts real trainers.
    """
    base = json.loads(from_sections({}).to_json())
    for _ in range(trials):
        sections = json.loads(json.dumps(base))
        changed = {}
        for _ in range(rng.choice((1, 1, 2, 3))):
            section = rng.choice(list(sections))
            key = rng.choice([*sections[section], "nosuch"])
            changed[f"{section}.{key}"] = sections[section][key] = rng.choice(_VALUES)
        began, said, bad = time.monotonic(), "", False
        try:
            from_sections(sections)
        except ValueError as error:
            said = str(error)
            names = [key for path in changed for key in path.split(".")[1:]]
            plain = said.replace("_", " ")  # a message may say "head dim" of head_dim
            bad = "\n" in said.strip() or not any(n.replace("_", " ") in plain for n in names)
        except Exception as error:  # whatever else: it would have been a traceback
            said, bad = repr(error), True
        seconds = time.monotonic() - began
        bad = bad or seconds > _SECONDS
        yield Trial(
            "a nonsensical setting", str(changed), undetected=bad, said=said, seconds=seconds
        )


def settings_typed(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """The same as flags of a real `train.py`: exit code 2 in _SECONDS, before anything compiles.

    A trainer with valid settings is killed when it starts to compile. Seconds are CPU time without imports.
    """
    sections = json.loads(from_sections({}).to_json())
    for section, key in _WRITES_ELSEWHERE:
        del sections[section][key]
    run.fork(run.fresh("typed")).communicate()  # imports
    for index in range(trials):
        typed = {}
        for _ in range(rng.choice((1, 1, 2, 3))):
            section = rng.choice(list(sections))
            key = rng.choice([*sections[section], "nosuch"])
            typed[f"{section}.{key}"] = rng.choice([v for v in _VALUES if v != "\0"])
        workdir = run.fresh(f"typed-{index}")
        process = run.fork(workdir, *(f"--config.{name}={value}" for name, value in typed.items()))
        await_seen(process, lambda w: (w / "run.json").exists(), workdir, pause=0.005)
        sound = process.poll() in (None, 0)
        process.kill()
        out, err = process.communicate()
        output, err = f"{err}{out}", without_progress(err).strip()
        names = [part for name in typed for part in name.split(".")[1:]]
        named = any(name.replace("_", " ") in err.replace("_", " ") for name in names)
        refused = process.returncode == WRONG_INPUT and len(err.splitlines()) == 1 and named
        bad = not (sound or (refused and process.seconds < _SECONDS))
        measured = {} if sound else {"seconds": process.seconds, "peak_mb": process.peak_mb}
        yield Trial(
            "a nonsensical setting, typed",
            str(typed),
            undetected=bad,
            said="" if sound else err,
            exit_codes=codes(process),
            output=output,
            **measured,
        )


def corpora(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """Invalid corpus folders are refused by name; unusual but valid ones are read in bounded memory."""
    for index in range(trials):
        name, make = list(_CORPORA.items())[index % len(_CORPORA)]
        folder = run.fresh(f"corpus-{index}")
        folder.mkdir(parents=True)
        legal = make(folder, rng)
        code = (
            "import resource, sys\n"
            f"resource.setrlimit(resource.RLIMIT_AS, ({_ADDRESSES}, {_ADDRESSES}))\n"
            "from posenc_jax.data.corpora import open_corpus\n"
            "from posenc_jax.data.token_stream import open_stream\n"
            "from posenc_jax.data.tokenizers import open_tokenizer\n"
            "from pathlib import Path\n"
            "try:\n"
            "    c = open_corpus('text_folder', sys.argv[2], folder=sys.argv[1], download=False)\n"
            "    print(len(open_stream(c, 'train', open_tokenizer('bytes'), Path(sys.argv[2])).tokens))\n"
            "except ValueError as error:\n"
            f"    print(error, file=sys.stderr); sys.exit({WRONG_INPUT})\n"
            "finally:\n"
            "    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
        )
        began = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-c", code, str(folder), str(run.folder / f"prepared-{index}")],
            capture_output=True,
            text=True,
        )
        lines = process.stderr.strip().splitlines()
        if process.returncode == WRONG_INPUT:
            bad = legal or len(lines) != 1 or str(folder) not in process.stderr
        else:
            bad = process.returncode != DONE or not legal
        peak = process.stdout.rpartition("peak ")[2].strip()
        yield Trial(
            "a strange corpus",
            name,
            undetected=bad or not peak,
            said=process.stderr.strip()[:300],
            exit_codes=codes(process),
            output=f"{process.stderr}{process.stdout}",
            seconds=time.monotonic() - began,
            peak_mb=float(peak or "nan"),
        )


def _write(folder: Path, **texts: bytes) -> bool:
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text)
    return True


_TEXT = b"one line of text\n" * 200
_CORPORA = {
    "empty folder": lambda folder, rng: False,
    "empty files": lambda folder, rng: _write(folder, a=b"", b=b"", c=b"") and False,
    "not UTF-8": lambda folder, rng: (
        _write(folder, a=_TEXT, b=_TEXT, c=_TEXT + b"\xff\xfe") and False
    ),
    "no text at all": lambda folder, rng: (
        (folder / "image.png").write_bytes(rng.randbytes(999)) < 0
    ),
    "one line of 30 MB": lambda folder, rng: _write(
        folder, a=b"word " * 6_000_000, b=_TEXT, c=_TEXT + b"end"
    ),
    "NUL bytes": lambda folder, rng: _write(folder, a=b"a\0b " * 500, b=_TEXT, c=_TEXT + b"\0"),
    "3,000 tiny files": lambda folder, rng: _write(
        folder, **{f"t{i}": b"tiny text %d\n" % i for i in range(3000)}
    ),
}
