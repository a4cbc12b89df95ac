"""What a scheme can see, against brute force and closed forms."""

import functools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from posenc_jax.encodings import analysis

from support import oracles, schemes

ROOT = Path(__file__).parents[2]


placed = functools.partial(schemes.placed, num_heads=8, train_length=1024)


def heads_of(line, length, margins=(10.0,), **where):
    scheme = placed(line, **where)
    return analysis.analyze_heads(
        scheme, analysis.initial_parameters(scheme, jax.random.key(0)), length, margins
    )


def test_the_horizon_is_where_a_softmax_with_a_planted_needle_crosses_one_half():
    bias = -0.03 * np.arange(400.0) - 2 * np.log1p(np.arange(400.0))
    for margin in (3.0, 8.0, 20.0):
        best = -1
        for d in range(400):
            logits = bias.copy()
            logits[d] += margin
            weight = np.exp(logits - logits.max())
            if weight[d] / weight.sum() >= 0.5:
                best = d
        assert analysis.retrieval_horizon(bias, margin) == best


def test_a_linear_slope_reaches_the_distance_of_the_closed_form():
    """About (margin - log(1/m)) / m, DESIGN's retrieval horizon, for slopes well below one."""
    for head in heads_of("alibi", 16_384, (10.0, 20.0)):
        for margin, found in head.horizon.items():
            m = head.slope
            assert abs(found - (margin - math.log(1 / m)) / m) < 0.06 * found + 2


def test_a_flat_head_loses_a_needle_only_to_the_number_of_keys():
    assert analysis.retrieval_horizon(np.zeros(1000), math.log(999)) == 999
    assert analysis.retrieval_horizon(np.zeros(1000), math.log(998)) == -1
    (head, *_) = heads_of(
        "nope~logn", 100, (math.log(99) * math.log(50) / math.log(100) + 1e-6,), train_length=50
    )
    assert head.temperature == pytest.approx(math.log(100) / math.log(50))
    assert list(head.horizon.values()) == [99]  # the temperature lifts the margin


@pytest.mark.thorough
def test_blind_distances_are_the_published_ones():
    blind = [h.blind["float32"] for h in heads_of("alibi", 40_000)]
    assert blind == [206, 413, 826, 1652, 3304, 6609, 13219, 26439]
    assert [h.blind["float32"] for h in heads_of("alibi", 200)] == [None] * 8
    assert heads_of("alibi", 40_000)[0].blind["bfloat16"] == math.floor(133 * math.log(2) * 2)


def test_unseen_pairs_are_those_with_a_wavelength_beyond_the_training_length():
    (head, *_) = heads_of("rope", 10, train_length=64)
    waves = [2 * math.pi / oracles.rope_frequency(i, 16, 10_000.0) for i in range(8)]
    np.testing.assert_allclose(head.wavelengths, waves)
    assert head.unseen_pairs == sum(w > 64 for w in waves)


def test_the_rotary_kernel_and_the_decay_bound_equal_their_loops():
    waves = tuple(2 * math.pi / oracles.rope_frequency(i, 16, 10_000.0) for i in range(8))
    distance = np.array([0, 1, 5, 300])
    for d, kernel, bound in zip(
        distance,
        analysis.rotary_kernel(waves, distance),
        analysis.decay_bound(waves, distance),
        strict=True,
    ):
        phasors = [
            complex(math.cos(d * f), math.sin(d * f)) for f in (2 * math.pi / w for w in waves)
        ]
        assert kernel == pytest.approx(sum(z.real for z in phasors) / 8)
        assert bound == pytest.approx(sum(abs(sum(phasors[: j + 1])) for j in range(8)) / 8)


def test_our_angles_beat_the_float32_product_by_orders_of_magnitude():
    waves = tuple(2 * math.pi / oracles.rope_frequency(i, 64, 10_000.0) for i in range(32))
    errors = analysis.angle_errors(waves, 2**20)
    assert errors["ours"] < 1e-6
    assert errors["float32 product"] > 1e-2
    assert errors["bfloat16 positions"] > 1


@pytest.mark.parametrize("line", schemes.some(pytest.mark.thorough, few=schemes.FEWER))
def test_every_registered_scheme_can_be_inspected(line):
    scheme = placed(line, train_length=32, num_heads=4)
    params = analysis.initial_parameters(scheme, jax.random.key(0))
    heads = analysis.analyze_heads(scheme, params, 100, (10.0,))
    assert len(heads) == 4 * len(scheme.layers)
    assert all(isinstance(text, str) for text in analysis.scheme_warnings(heads, 100, 32))


def test_the_warning_counts_blind_heads_in_words():
    heads = heads_of("alibi", 5000)
    said = analysis.scheme_warnings(heads, 5000, 1024)
    assert said[0].startswith("5 of 8 heads cannot see past 206 to 3,304 tokens in float32")


@pytest.mark.thorough
def test_the_command_prints_a_table_and_writes_json_and_pictures(tmp_path):
    command = [
        sys.executable,
        "scripts/inspect_scheme.py",
        "--scheme=rope+alibi|nope~logn",
        "--num_heads=4",
        "--train_length=64",
        "--length=512",
        "--bound=2",
    ]
    out = subprocess.run(
        [*command, f"--out={tmp_path / 'look'}"], capture_output=True, text=True, cwd=ROOT
    )
    assert out.returncode == 0, out.stderr
    assert "! " in out.stdout
    _, names, below = out.stdout.split("\n", 2)
    for column in (
        "slope",
        "lost by L",
        "tau",
        "sight",
        "horizon",
        "blind",
        "window",
        "pairs unseen",
    ):
        assert column in names
        assert re.search(rf"\b{column}( m)?: ", below), column  # explained under the table
    record = json.loads((tmp_path / "look" / "reach.json").read_text())
    assert [h["head"] for h in record["heads"]] == [0, 1, 2, 3]
    m = 2.0**-4
    window = (
        2 * 2 + 24 * math.log(2) - math.log(1 - math.exp(-m))
    ) / m  # docs/attention/idea.md, epsilon 2^-24
    assert record["heads"][0]["window"] == pytest.approx(window, abs=1)
    assert record["heads"][3]["window"] is None  # flat: sees everything
    for name in ("bias", "rotation", "kernels", "horizon"):
        assert (tmp_path / "look" / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / "look" / f"{name}.csv").read_text().count("\n") > 3


@pytest.mark.thorough
def test_a_scheme_of_which_nothing_stands_out_has_no_warning_mark(forks):
    done = forks.run(
        "scripts/inspect_scheme.py", "--scheme=nope", "--train_length=64", "--length=128"
    )
    assert done.stdout.splitlines()[-1] == "nothing stands out"
    assert "!" not in done.stdout


@pytest.mark.thorough
def test_the_command_reads_a_scheme_under_a_stretch_as_its_definition_says(tmp_path, forks):
    """rope trained at 4,096 and read at 16,384: YaRN by 4 keeps all pairs in the arc they have seen, by 2
    not.
    """
    dim, L, length = 128, 4096, 16384

    def record(*flags):
        name = "-".join(flags).strip("-") or "plain"
        command = (
            f"--train_length={L}",
            f"--length={length}",
            "--num_heads=1",
            f"--head_dim={dim}",
        )
        done = forks.run(
            "scripts/inspect_scheme.py",
            "--scheme=rope",
            *command,
            *flags,
            f"--out={tmp_path / name}",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads((tmp_path / name / "reach.json").read_text())

    plain = oracles.yarn_frequencies(dim, 10_000.0, L, 1.0)
    for flags, factor in (((), 1.0), (("--stretch=yarn:2",), 2.0), (("--stretch=yarn:4",), 4.0)):
        said, got = record(*flags)
        frequency = oracles.yarn_frequencies(dim, 10_000.0, L, factor)
        (head,) = got["heads"]
        np.testing.assert_allclose(head["wavelengths"], 2 * np.pi / frequency, rtol=1e-6)
        partial = 2 * np.pi / plain > L
        further = length * frequency > L * plain * (1 + 1e-6)
        assert head["unseen_pairs"] == (partial & further).sum()
        assert got["stretch"] == (flags[0].removeprefix("--stretch=") if flags else None)
        assert (f"rope under yarn:{factor:g}   L = 4,096" in said) == bool(flags)
    assert (partial & further).sum() == 0  # by 4; the two others leave the arc
    wrong = forks.run("scripts/inspect_scheme.py", "--scheme=rope", "--stretch=yarnn:4")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1, wrong.stderr
    assert "yarn" in wrong.stderr


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--scheme=ropee", "did you mean 'rope'"),
        ("--num_heads=3", "3 heads do not divide"),
        ("--head_dim=7", "head dim 7 is odd"),
        ("--margins=ten", "--margins must be numbers"),
        ("--margins=-1", "--margins must lie between"),
    ],
)
def test_a_wrong_question_is_answered_in_one_line(tmp_path, flag, message):
    command = [
        sys.executable,
        "scripts/inspect_scheme.py",
        "--scheme=rope|alibi",
        flag,
        f"--out={tmp_path / 'x'}",
    ]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 2
    assert len(out.stderr.strip().splitlines()) == 1
    assert message in out.stderr
    assert not (tmp_path / "x").exists()
