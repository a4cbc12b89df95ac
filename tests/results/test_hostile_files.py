"""Hostile files, drawn at random: a reader gives the same results or refuses in one line that names the
file.
"""

import gzip
import json
import shutil

import numpy as np
import pytest
from posenc_jax.results.files import read_json, readable_lines, replace_text
from posenc_jax.results.load import load
from posenc_jax.results.locks import is_locked, lock_folder
from posenc_jax.results.manifest import Corrupted, checked, seal, verify
from posenc_jax.results.publish import publish
from posenc_jax.results.record_schema import CHECKPOINT

from support.hostile import damage, damage_value, unpacked
from support.result_folders import write_study


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A study and its published folder."""
    root = tmp_path_factory.mktemp("whole")
    write_study(root / "study")
    publish(load(root / "study"), root / "published", [])
    return root


def refusal(call):
    """Returns the message of the ValueError that a call raises; "" where it raises none."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def read(folder):
    """Everything that report and verdict read."""
    data = load(folder)
    for run in data.runs:
        for name in run.array_names:
            run.arrays(name)
    return data


@pytest.mark.parametrize("seed", range(120))
@pytest.mark.parametrize("kind", ["study", "published"])
def test_a_folder_of_results_is_read_or_refused_in_one_line_that_names_the_file(
    folders, tmp_path, kind, seed
):
    rng = np.random.default_rng(seed)
    shutil.copytree(folders / kind, tmp_path / kind)
    files = sorted(p for p in (tmp_path / kind).rglob("*") if p.is_file())
    path = files[rng.integers(len(files))]
    damage(path, rng)
    said = refusal(lambda: read(tmp_path / kind))
    assert "\n" not in said
    assert said == "" or str(tmp_path) in said or path.name in said


@pytest.mark.parametrize(
    "line", ['{"loss": 1}', '{"step": "2"}', '{"step": 2, "loss": [1]}', '{"step": 2, "chain": 3}']
)
@pytest.mark.parametrize("kind", ["study", "published"])
def test_a_line_of_a_log_that_is_none_is_refused_by_file_and_line(folders, tmp_path, kind, line):
    shutil.copytree(folders / kind, tmp_path / kind)
    path = next((tmp_path / kind).rglob("metrics.jsonl*"))
    line = line.replace("{", '{"run": "runs/rope-s0", ' if kind == "published" else "{")
    content = unpacked(path).splitlines(keepends=True)[0] + line.encode() + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    with pytest.raises(ValueError, match=r"metrics\.jsonl(\.gz)?, line 2"):
        load(tmp_path / kind)


def test_a_log_is_read_but_for_its_damaged_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n\n{"step": 2}\r\n{"st\n' + b"\0" * 4)
    rows, damaged = readable_lines(path)
    assert [(number, one["step"]) for number, one in rows] == [(1, 1), (5, 2)]
    assert damaged == [2, 3, 6, 7]


def test_a_replaced_file_and_its_name_are_on_disk_before_the_old_one_is_gone(tmp_path, monkeypatch):
    """The order that a power loss sees: content, rename, name in the folder."""
    import posenc_jax.results.files as files

    calls = []
    fsync, replace = files.os.fsync, files.os.replace
    monkeypatch.setattr(
        files.os,
        "fsync",
        lambda d: (calls.append(files.os.readlink(f"/proc/self/fd/{d}")), fsync(d)),
    )
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    replace_text(tmp_path / "run.json", "{}")
    assert calls[0].endswith(".partial")
    assert calls[1:] == ["rename", str(tmp_path)]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_two_writers_of_one_file_leave_one_of_their_contents(tmp_path, monkeypatch):
    import posenc_jax.results.files as files

    replace = files.os.replace

    def meanwhile(a, b):
        monkeypatch.setattr(files.os, "replace", replace)
        replace_text(tmp_path / "x.json", '{"second": 1}')
        replace(a, b)

    monkeypatch.setattr(files.os, "replace", meanwhile)
    replace_text(tmp_path / "x.json", '{"first": 1}')
    assert read_json(tmp_path / "x.json") == {"first": 1}


CONTENTS = {"step": 3, "leaves": {"a": "float32[2]"}, "sums": {"a": "00"}, "record": {"owner": {}}}


def test_a_manifest_of_any_shape_that_agrees_with_its_own_digest_is_still_checked(tmp_path):
    """Digests agree here, as after a fault of the writer: the shape alone is wrong."""
    (tmp_path / "state").write_bytes(b"12")
    rng, refused = np.random.default_rng(0), 0
    for _ in range(100):
        contents = damage_value(CONTENTS, rng)
        if not isinstance(contents, dict):
            continue
        seal(tmp_path, contents)
        said = refusal(lambda: checked(verify(tmp_path), CHECKPOINT, "manifest.json"))
        refused += said != ""
        assert "\n" not in said
    assert refused > 40


def test_the_list_of_files_in_a_manifest_has_one_shape(tmp_path):
    from posenc_jax.results import manifest

    (tmp_path / "a").write_bytes(b"12")
    seal(tmp_path, {})
    body = json.loads((tmp_path / "manifest.json").read_text())
    for files in (
        {"a": 5},
        {"a": {}},
        {"a": {"bytes": "2", "sha256": ""}},
        {"a": [2]},
        {"a": None},
    ):
        text = manifest._text({"contents": {}, "files": files})
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(Corrupted, match=r"manifest\.json, a"):
            verify(tmp_path)
    assert body["files"]["a"]["bytes"] == 2


def test_an_error_of_the_disk_is_damage_and_not_a_traceback(tmp_path, monkeypatch):
    import posenc_jax.results.manifest as module

    (tmp_path / "a").write_bytes(b"12")
    seal(tmp_path, {})

    def fails(*_):
        raise OSError(5, "Input/output error", "a")

    monkeypatch.setattr(module.hashlib, "file_digest", fails)
    with pytest.raises(Corrupted, match="cannot be read: Input/output error"):
        verify(tmp_path)


def test_a_lock_holds_though_its_file_is_removed(tmp_path):
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "absent")
    with lock_folder(tmp_path):
        assert is_locked(tmp_path)
        (tmp_path / ".lock").unlink()
        assert is_locked(tmp_path)
        with pytest.raises(BlockingIOError), lock_folder(tmp_path):
            pass
    assert not is_locked(tmp_path)
