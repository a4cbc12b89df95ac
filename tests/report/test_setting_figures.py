"""The pictures of settings in the documents are what the code draws, and say what the settings do."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PICTURES = {
    "sink_and_shift": ROOT / "docs/encodings/figures/switches-sink_and_shift",
    "curriculum": ROOT / "docs/figures/recipes-curriculum",
}


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_tables_beside_the_pictures_are_what_is_drawn(tmp_path):
    command = [sys.executable, "scripts/draw_settings.py", f"--out={tmp_path}"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    for name, stored in PICTURES.items():
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        drawn, kept = table(tmp_path / f"{name}.csv"), table(stored.with_suffix(".csv"))
        assert [row.keys() for row in drawn] == [row.keys() for row in kept]
        for mine, theirs in zip(drawn, kept, strict=True):
            assert mine.get("what") == theirs.get("what")
            numbers = [[float(x) for k, x in row.items() if k != "what"] for row in (mine, theirs)]
            np.testing.assert_allclose(*numbers, atol=1e-5)


def test_a_sink_has_the_share_of_the_softmax_and_a_shift_leaks_over_no_border():
    rows = table(PICTURES["sink_and_shift"].with_suffix(".csv"))
    for logit in (0, 4):
        of = [row for row in rows if row["what"] == f"sink: flat head, s = {logit}"]
        n, share = (np.array([float(row[key]) for row in of]) for key in ("at", "share"))
        np.testing.assert_allclose(share, np.exp(logit) / (n + np.exp(logit)), atol=1e-5)
        kept = [row for row in rows if row["what"] == f"sink: slope 1/256, s = {logit}"]
        sums = (1 - np.exp(-n / 256)) / (1 - np.exp(-1 / 256))
        want = np.exp(logit) / (sums + np.exp(logit))
        np.testing.assert_allclose([float(row["share"]) for row in kept], want, atol=1e-5)
    for a in (1.0, 0.75, 0.5, 0.25):
        held = [
            float(row["share"])
            for row in rows
            if row["what"] == f"token shift: a = {a:g}, b = {1 - a:g}"
        ]
        np.testing.assert_allclose(held, [0, a, 1 - a, 0, a, 0, 0, 0, 0])


def test_a_curriculum_has_its_thirds_and_the_pairs_that_fit_them():
    rows = table(PICTURES["curriculum"].with_suffix(".csv"))
    for third, (longest, pairs, mqar) in enumerate(((16, 2, 1.0), (64, 10, 0.6), (128, 16, 0.6))):
        for row in rows[len(rows) * third // 3 : len(rows) * (third + 1) // 3]:
            assert int(row["longest"]) == longest
            assert int(row["most_pairs: as many as fit"]) == pairs
            assert 2 + 6 * pairs <= longest
            assert float(row["mqar"]) == pytest.approx(mqar)
            assert float(row["passkey"]) == float(row["needles_4"]) == pytest.approx((1 - mqar) / 2)
