"""The study script beside a trainer and an evaluator that only write what real ones leave on disk.

Their numbers are made up, and functions of arm, rate and seed alone: no model is trained.
"""

import os
import pathlib
import shutil
import subprocess
import sys

from support import machine

ROOT = pathlib.Path(__file__).parents[2]

STUDY = """
from ml_collections import ConfigDict
from configs import smoke
from posenc_jax.study.grid import Arm, Study, Tuning

STUDY = Study(
    tier="smoke",
    arms=(
        Arm("rope", "rope", readings=("yarn:4",)),
        Arm("sum", "rope+alibi"),
    ),
    seeds=(0, 1, 2),
    tuning=Tuning(rates=(0.001, 0.003, 0.01), seed=9, steps=5),
    skip=lambda cell: "too slow" if cell.name == "sum-s2" else None,
)


def get_config(run: str) -> ConfigDict:
    return STUDY.fill(run, smoke.get_config())
"""

COMMON = """
import json, math, os, pathlib, re, sys, time, zlib
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.rename(path)

time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
"""

TRAIN = (
    COMMON
    + """
setting = flags["config"].split(":")[1]
arm, seed, rate = re.fullmatch("(.+)-s([0-9]+)(?:-lr(.+))?", setting).groups()
if setting.endswith(os.environ.get("TOY_DIVERGES", "never")):
    sys.exit(1)
seeds, lost = flags.get("seeds", seed), os.environ.get("TOY_LOSES", "")
for each in seeds.split(","):
    folder = workdir.with_name(workdir.name.replace("{seed}", each))
    t = {"arm": arm, "seed": int(each), "tier": "smoke", "steps": 5, "length": 32}
    config = {"model": {"scheme": arm}, "train": t, "optimizer": {"learning_rate": float(rate or 0.001)}}
    write(folder / "config.json", json.dumps(config))
    write(folder / "metrics.jsonl", json.dumps({"step": t["steps"], "loss": 2.0}) + "\\n")
    info = {name: t[name] for name in ("arm", "seed", "tier", "steps")} | {"scheme": arm, "train_length": t["length"]}
    info |= {"tokens": 160, "versions": {}, "hardware": "toy", "corpus_fingerprint": "c", "tokenizer_fingerprint": "t"}
    write(folder / "run.json", json.dumps(info | {"finished": folder.name != lost}))
with open(os.environ["TOY_JOURNAL"], "a") as journal:
    journal.write(workdir.name.replace("{seed}", "{%s}" % seeds) + "\\n")
sys.exit(lost.startswith(arm) and lost != "")
"""  # noqa: E501
)

EVALUATE = (
    COMMON
    + """
config = json.loads((workdir / "config.json").read_text())
t, split, stretch = config["train"], flags["split"], flags.get("stretch")
arm = f"{t['arm']} {stretch}" if stretch else t["arm"]
record = json.loads((workdir / "run.json").read_text()) | {"arm": arm}
if stretch:
    workdir = workdir / "stretched" / stretch.replace(":", "_")
    write(workdir / "config.json", json.dumps(config))
    write(workdir / "run.json", json.dumps(record))
luck = zlib.crc32(f"{arm} {t['seed']}".encode()) / 2**32
away = abs(math.log10(config["optimizer"]["learning_rate"] / 0.003))
rows = []
for k in (0.5, 1) if flags.get("lengths") == "1" else (0.5, 1, 2, 4):
    for suite, metric, value in (("E", "bpb_ctx", 2 + away + 0.1 * luck + 0.1 * k * ("rope" in arm)),
                                 ("R", "mqar_accuracy", luck / k), ("R", "passkey_accuracy", luck)):
        rows.append({"run": workdir.name, "arm": arm, "seed": t["seed"], "tier": t["tier"], "suite": suite,
                     "metric": metric, "length": int(k * t["length"]), "train_length": t["length"], "k": float(k), "definitions": 2,
                     "bucket": "all", "value": value, "n": 10, "split": split, "item": f"{metric}/{k}", "stamp": "x"})
folder = workdir / ("evaluation" if split == "test" else "evaluation_dev")
write(folder / "rows.jsonl", "".join(json.dumps(r) + "\\n" for r in rows))
write(folder / "evaluation.json", json.dumps({"step": t["steps"], "settings": "toy"}))
"""  # noqa: E501
)


def make(folder: pathlib.Path) -> pathlib.Path:
    """Lays out the script and its stand-ins; returns the study script."""
    (folder / "scripts").mkdir(parents=True)
    (folder / "study_file.py").write_text(STUDY)
    (folder / "train.py").write_text(TRAIN)
    (folder / "scripts" / "evaluate.py").write_text(EVALUATE)
    for name in ("study.py", "installed.py"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name)
    return folder / "scripts" / "study.py"


def start(folder: pathlib.Path, *flags: str, **environment: str) -> subprocess.Popen:
    """Starts the study script in its folder."""
    arguments = [sys.executable, "scripts/study.py", "--study=study_file.py", "--workdir=out"]
    return subprocess.Popen(
        [*arguments, *flags],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            **machine.ONE_DEVICE,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "TOY_JOURNAL": str(folder / "journal"),
            **environment,
        },
    )


def run(folder: pathlib.Path, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs the study script to its end."""
    process = start(folder, *flags, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def trained(folder: pathlib.Path) -> list[str]:
    """Returns the folders of what was trained, in order; {0,1} of seeds in one program."""
    return (folder / "journal").read_text().split()


RESULTS = ("rows.jsonl", "tuning.jsonl", "tuning.json", "study.json")


def results(folder: pathlib.Path, names=RESULTS) -> dict[str, bytes]:
    """The files that a study in `folder` has written, by name."""
    return {name: (folder / "out" / name).read_bytes() for name in names}


def stand_in(folder: pathlib.Path, name: str, body: str) -> None:
    """Writes an executable shell script that stands in for a program."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
