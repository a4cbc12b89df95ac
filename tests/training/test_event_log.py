"""TensorBoard's copy of the log: what it holds, and what a full disk does to it."""

import errno
import struct

import pytest
from posenc_jax.training.progress import EventLog
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from support import runs


def events(folder):
    """The events of a folder's files, by the format of TFRecord: length, its checksum, bytes, their
    checksum.
    """
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event()
            event.ParseFromString(data[12 : 12 + size])
            yield event
            data = data[16 + size :]


def test_every_value_is_in_the_file_at_its_step_after_the_mark_of_the_first(tmp_path):
    log = EventLog(tmp_path, 5)
    for step in (6, 7):
        log.add("train/loss", 1.0 / step, step)
    assert len(list(events(tmp_path))) == 4  # on disk before it is closed
    log.close(failed=False)
    version, start, *values = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, 1)
    found = [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in values]
    assert found == [(s, "train/loss", pytest.approx(1 / s)) for s in (6, 7)]
    assert all(e.wall_time > 1e9 for e in values)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.thorough
def test_a_run_outlives_its_tensorboard(tmp_path, data_dir, monkeypatch, capfd):
    config = runs.config(data_dir, train={"data_devices": 1, "steps": 40})
    write = EventsWriter.write_event
    monkeypatch.setattr(
        EventsWriter, "write_event", lambda s, e: full() if e.step > 2 else write(s, e)
    )
    rows = runs.finished(config, tmp_path / "x")
    assert [row["step"] for row in rows] == list(range(1, 41))
    said = [line for line in capfd.readouterr().err.splitlines() if "TensorBoard" in line]
    assert said == ["TensorBoard's log ends here (No space left on device); metrics.jsonl has all"]


def test_a_log_that_cannot_be_written_says_so_once(tmp_path, monkeypatch, capsys):
    log = EventLog(tmp_path, 0)
    monkeypatch.setattr(EventsWriter, "flush", full)
    for step in range(30):  # more than the queue of tensorboardX's own writer holds
        log.add("loss", 1.0, step)
    log.close(failed=False)
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("failed", "lines"), [(False, 1), (True, 0)])
def test_a_run_that_ends_by_the_same_error_ends_in_its_own_line(
    tmp_path, monkeypatch, capsys, failed, lines
):
    log = EventLog(tmp_path, 0)
    monkeypatch.setattr(EventsWriter, "flush", full)
    for name in ("loss", "rate"):  # of the step in which the disk failed
        log.add(name, 1.0, 3)
    assert capsys.readouterr().err == ""
    log.close(failed)
    assert len(capsys.readouterr().err.splitlines()) == lines
