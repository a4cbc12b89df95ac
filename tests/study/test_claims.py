"""The ledger of claims: planted results give known verdicts, and the committed page is written again."""

import importlib
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from posenc_jax.evaluation import perplexity
from posenc_jax.evaluation.scorer import Scores
from posenc_jax.results.schema import Row
from posenc_jax.results.study_data import RunData, StudyData
from posenc_jax.study import claims, ledger, seed_comparisons, worked_examples
from posenc_jax.study.evidence import Evidence
from scipy import stats

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "results" / "claims.md"
SEEDS = (40, 41, 42)
HEADS, L = 8, 64
MULTIPLES = (0.5, 1, 2, 4, 8, 16, 32, 64, 1024)


def plant(arm, seed, values, *, length=L, metrics=(), slopes=False):
    """A run with rows {(metric, k, bucket): value}."""
    rows = tuple(
        Row(
            run=f"runs/{arm}-s{seed}",
            arm=arm,
            seed=seed,
            tier="cpu",
            suite="E",
            metric=metric,
            length=int(k * length),
            train_length=length,
            bucket=bucket,
            value=float(value),
            n=10,
            split="dev",
            chance=0.0,
        )
        for (metric, k, bucket), value in values.items()
    )
    info = {"arm": arm, "seed": seed, "parameters": 1000, "train_length": length, "corpus": "toy"}
    heads = [{"layer": 0, "head": h, "slope": 2.0**-h} for h in range(HEADS)] if slopes else []
    return RunData(
        name=f"runs/{arm}-s{seed}",
        info=info,
        config={},
        rows=rows,
        settings="",
        metrics=metrics,
        why="",
        scheme={"heads": heads},
        array_names=(),
        arrays=lambda name: {},
    )


def logged(loss, pace):
    """Rows of the log: the loss falls by 0.1 every 100 steps."""
    steps = ((100, loss + 0.2), (200, loss + 0.1), (300, loss))
    return tuple({"step": n, "dev_loss": x, "productive_seconds": n * pace} for n, x in steps)


def losses(seed, rise):
    """bpb_ctx by multiple: 2.0 within L, and `rise` per octave beyond."""
    return {
        ("bpb_ctx", k, "all"): 2.0
        + 0.001 * seed
        + (rise * (1 + 1e-4 * seed) + 1e-6 * seed) * max(0, math.log2(k))
        for k in MULTIPLES
    }


def passkeys(k, near, far):
    return {
        ("passkey_corrected", k, "distance:<=L/4"): near,
        ("passkey_corrected", k, "distance:L-2L"): far,
    }


def world(true: bool) -> StudyData:
    """The study of claims in a world where all claims hold, or where none does."""
    runs, elsewhere = [], []
    steep, flat = (0.5, 0.0) if true else (0.0, 0.5)
    for s in SEEDS:
        tiny = 1e-4 * (s - 39)

        e1 = {"bpb_sliding": 2.0 + tiny, "early_token_curse": 0.1 + tiny}
        own = {(name, 2, "all"): v + (0 if true else 0.1) for name, v in e1.items()}
        other = {(name, 1, "all"): v + 3 * tiny for name, v in e1.items()}
        alibi = losses(s, flat) | own | passkeys(4, 0.9, 0.1 + tiny if true else 0.9 - tiny)
        alibi |= {("window_check", 4, "all"): 0.1 * true + tiny}
        for h in range(HEADS):
            grown = (2.0 if (h >= 4) == true else 1.0) * (1 + tiny * h)
            before = 2.0**h if true else 2.0**-h
            alibi[("M1_mean_distance", 1, f"head:0.{h}")] = before * grown
            alibi[("M13_distance_change", 1, f"head:0.{h}")] = before * (grown - 1)
            alibi[("M10_predicted_reach", 4, f"head:0.{h} passkey")] = h
            alibi[("M10_measured_reach", 4, f"head:0.{h} passkey")] = h if true else -h
        for k in (2, 4, 8):
            alibi |= passkeys(k, 0.9, 0.1) if k != 4 else {}
        runs.append(plant("rope", s, losses(s, steep)))
        runs.append(
            plant("alibi", s, alibi, metrics=logged(1.7 if true else 2.1, 1 + tiny), slopes=True)
        )
        runs.append(plant("sinusoidal", s, losses(s, 2 * steep + (0 if true else -0.1))))
        elsewhere.append(plant("sinusoidal-2L", s, other, length=2 * L, metrics=logged(1.85, 1.0)))
        for factor in (2, 4, 8):
            better = -0.1 if true else 0.1
            read = {("bpb_ctx", factor, "all"): alibi["bpb_ctx", factor, "all"] + better + tiny}
            base = alibi["passkey_corrected", factor, "distance:L-2L"]
            read |= passkeys(factor, 0.9, base + (0.5 if true else -0.05) + tiny)
            runs.append(plant(f"alibi slopes:{factor}", s, read))
        for rule in ("pi", "ntk", "yarn", "none"):
            after = {
                ("bpb_ctx", k, "all"): 2.0 + 0.001 * s + (0 if true else 0.3) + tiny
                for k in (0.5, 4)
            }
            runs.append(plant(f"rope-{rule}", s, after))
        runs.append(plant("rope-far", s, losses(s, 0.5)))
        for rule in ("pi", "yarn"):
            for f in (2, 4, 8, 16, 32, 64):
                kept = f <= 32 if true else False
                value = 2.0 + 0.001 * s + (tiny if kept else 1.0 + tiny)
                runs.append(plant(f"rope-far {rule}:{f}", s, {("bpb_ctx", f, "all"): value}))
        far = losses(s, flat) | passkeys(1024, 1.0, 0.9 + tiny if true else tiny)
        far[("bpb_window", 1024, "all")] = far["bpb_ctx", 1024, "all"] + 0.1 * true + tiny
        runs.append(plant("alibi-far", s, far))
    return StudyData(
        name="claims",
        folder="",
        record={},
        split="dev",
        runs=tuple(runs),
        elsewhere=tuple(elsewhere),
        tuning={},
        texts=(),
        plan=None,
        notes=(),
    )


def measured(studies, tmp_path, ids=None):
    """(evidence, measured claims) of planted studies; all claims but the computed one, S10."""
    evidence = Evidence(tmp_path)
    evidence.study = studies.get
    chosen = [c for c in claims.CLAIMS if c.id != "S10" and (ids is None or c.id in ids)]
    return evidence, ledger.measure(chosen, evidence)


SETTLED = ("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S13", "S14")


@pytest.mark.parametrize("true", [True, False])
def test_the_study_of_claims_decides_every_open_part_as_it_was_planted(true, tmp_path):
    _, found = measured({"claims": world(true)}, tmp_path)
    want = ledger.REPRODUCED if true else ledger.REFUTED
    for one in found:
        verdicts = [f.verdict for f in one.findings if f.source == "results/claims"]
        assert bool(verdicts) == (one.claim.id in SETTLED), one.claim.id
        assert set(verdicts) <= {want}, (one.claim.id, [f.measured for f in one.findings])
        awaiting = [p for p in one.parts if p.part.awaits == claims.STUDY]
        assert all(p.findings for p in awaiting), one.claim.id


def test_every_arm_of_the_study_answers_a_claim_of_the_ledger():
    study = importlib.import_module("configs.studies.claims")
    named = {arm for arms in study.CLAIMS.values() for arm in arms}
    assert named == {arm.name for arm in study.STUDY.arms}
    assert set(study.CLAIMS) == set(SETTLED)


class Blank:
    """A scorer whose losses are all 0."""

    def score(self, rows_RT, window=None):
        zero_RT = np.zeros((len(rows_RT), rows_RT.shape[1] - 1))
        return Scores(zero_RT, zero_RT)


def test_both_arms_of_s1_score_the_same_tokens_of_the_same_documents():
    lengths = [472, 2403, 2746, 3934] * 8 + [900]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    stream = SimpleNamespace(tokens=np.arange(starts[-1]), starts=starts)
    short, long = (
        perplexity.held_out_stretches(stream, top * length + length // 2, 25)
        for top, length in ((8, 64), (4, 128))
    )
    ours = perplexity.disjoint_segments(Blank(), short, 64, 2)[1]
    theirs = perplexity.disjoint_segments(Blank(), long, 128, 1)[1]
    np.testing.assert_array_equal(ours, theirs)
    ours = perplexity.sliding_windows(Blank(), short, 64, 2, 16)[1]
    theirs = perplexity.sliding_windows(Blank(), long, 128, 1, 32)[1]
    np.testing.assert_array_equal(np.sort(ours, 1), np.sort(theirs, 1))
    assert ours.shape == (25, 512)


def test_without_results_every_claim_but_the_computed_one_is_open(tmp_path):
    _, found = measured({}, tmp_path)
    assert {one.verdict for one in found} == {ledger.OPEN}


def test_a_long_text_study_decides_its_claim(tmp_path):
    runs = [
        plant(arm, s, {("longtext_corrected", 8, "all"): level + 0.01 * (s - 40)})
        for s in SEEDS
        for arm, level in (("rope", 0.5 + 0.003 * s), ("alibi", 0.2))
    ]
    data = world(True)
    long = StudyData(**{**vars(data), "runs": tuple(runs), "elsewhere": ()})
    _, (found,) = measured({"longtext": long}, tmp_path, ("S9",))
    assert found.verdict == ledger.REPRODUCED


def test_a_failed_run_does_not_count(tmp_path):
    data = world(True)
    lost = [r for r in data.runs if not (r.arm == "rope" and r.seed == 42)]
    failed = next(r for r in data.runs if r.arm == "rope" and r.seed == 42)
    failed = RunData(**{**_fields(failed), "why": "training has not finished"})
    changed = StudyData(**{**vars(data), "runs": (*lost, failed)})
    _, (found,) = measured({"claims": changed}, tmp_path, ("S3",))
    (finding,) = found.parts[0].findings
    assert finding.scale.seeds == 2


def _fields(run):
    return {name: getattr(run, name) for name in RunData.__dataclass_fields__}


@pytest.mark.parametrize(
    ("shift", "above"), [(0.3, True), (-0.3, True), (0.02, True), (0.3, False)]
)
def test_a_verdict_is_a_one_sided_t_test(shift, above):
    values = np.array([0.9, 1.0, 1.15, 0.97]) * 0.1 + shift
    holds, fails = (
        stats.ttest_1samp(values, 0.1, alternative=side).pvalue
        for side in (("greater", "less") if above else ("less", "greater"))
    )
    want = ledger.REPRODUCED if holds <= 0.05 else ledger.REFUTED if fails <= 0.05 else ledger.OPEN
    verdict, words = seed_comparisons.decided(list(values), 0.1, above, "bits")
    assert verdict == want
    assert words.startswith(f"{values.mean():+.3f} [")


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ((0.9, 0.9, 0.9), ledger.REPRODUCED),
        ((0.9, 0.9, 0.1), ledger.BOUNDED),
        ((0.0, 0.0, 0.0), ledger.REFUTED),
    ],
)
def test_equal_values_are_decided_by_counting_seeds(values, want, tmp_path):
    runs = [
        plant("alibi", seed, passkeys(4, 1.0, value))
        for seed, value in zip(SEEDS, values, strict=True)
    ]
    evidence = Evidence(tmp_path)
    evidence.study = {
        "cpu": None,
        "quickstart": StudyData(**{**vars(world(True)), "runs": tuple(runs)}),
    }.get
    far = seed_comparisons.passkey_far(4)
    rule = {"above": True, "unit": "x"}
    sides = (("alibi", far), ("alibi", seed_comparisons.zero_where(far)))
    (found,) = seed_comparisons.in_every_seed(("alibi",), lambda arms: sides, 0.8, **rule)(evidence)
    assert (found.verdict, found.scale.seeds) == (want, 3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "no seed has a value"),
        ([0.5], "+0.500 bits, one seed"),
        ([-0.0001] * 3, "+0.000 bits in all 3 seeds"),
    ],
)
def test_values_without_a_spread_decide_nothing(values, words):
    assert seed_comparisons.decided(values, 0.0, True, "bits") == (ledger.OPEN, words)


@pytest.mark.parametrize(
    ("verdicts", "whole", "over_findings"),
    [
        ((), "open", "open"),
        (("open",), "open", "open"),
        (("reproduced", "reproduced"), "reproduced", "reproduced"),
        (("reproduced", "refuted"), "bounded", "bounded"),
        (("refuted", "open"), "open in part", "refuted"),
        (("not testable here",), "not testable here", "not testable here"),
        (("not testable here", "refuted"), "refuted", "refuted"),
        (("not testable here", "open"), "open", "open"),
    ],
)
def test_a_common_verdict_is_that_of_what_is_decided(verdicts, whole, over_findings):
    assert ledger.common_verdict(verdicts) == whole
    assert ledger.common_verdict(verdicts, "") == over_findings


def test_the_page_follows_its_rows(tmp_path):
    data = world(True)
    pages = []
    for value in (0.9, 0.8):
        runs = [
            plant(r.arm, r.seed, losses(r.seed, value)) if r.arm == "rope" else r for r in data.runs
        ]
        evidence, found = measured(
            {"claims": StudyData(**{**vars(data), "runs": tuple(runs)})}, tmp_path, ("S3",)
        )
        pages.append(ledger.ledger_page(found, (), evidence))
    changed = set(pages[0].splitlines()) ^ set(pages[1].splitlines())
    assert any("+1.8" in line for line in changed)
    assert any("+1.6" in line for line in changed)
    assert sum("bits per byte at 4L" in line for line in changed) == len(changed)


@pytest.mark.thorough
def test_the_decay_of_equal_and_of_random_vectors_is_that_of_loops():
    theta = [10_000 ** (-2 * i / 64) for i in range(32)]

    def bound(d):
        sums = np.cumsum([np.exp(1j * d * t) for t in theta])
        return np.abs(sums).mean()

    want = [np.mean([bound(d) for d in range(2**o, 2 ** (o + 1))]) / bound(0) for o in range(10)]
    np.testing.assert_allclose(worked_examples.octave_means_of_decay(), want, rtol=1e-9)
    near, far, bias, pairs = worked_examples.decay_of_random_vectors()
    assert near == pytest.approx(8, rel=0.03)  # sqrt of 64: a rotation keeps Gaussians Gaussian
    assert far == pytest.approx(8, rel=0.03)
    assert bias < 4
    assert pairs == 10_000


@pytest.mark.thorough
def test_the_worked_examples_agree_with_their_sources():
    for example in worked_examples.worked_examples():
        said, found = (
            [float(x) for x in text.replace(",", " ").split() if x[-1].isdigit() and "/" not in x]
            for text in (example.expected, example.computed)
        )
        if "squeezed" in example.words:
            assert example.computed == "equal" or found[0] < 1e-5
        elif "m L / L'" in example.words:
            assert found == [0.25]
        else:
            assert said
            np.testing.assert_allclose(found, said, atol=6e-4, err_msg=example.words)


def cells(page):
    for line in page.splitlines():
        if line.startswith("|"):
            yield from (cell.strip() for cell in line.split("|"))


def test_cells_of_the_page_are_short_and_its_prose_is_not_wide():
    page = PAGE.read_text()
    assert [cell for cell in cells(page) if len(cell.split()) > 20] == []
    plain = [line for line in page.splitlines() if not line.startswith(("|", "    "))]
    assert [line for line in plain if len(line) > 100] == []
    assert {f"## {claim.id}" for claim in claims.CLAIMS} <= set(page.splitlines())
    assert [claim.id for claim in claims.CLAIMS] == [f"S{n}" for n in range(1, 15)]


@pytest.mark.thorough
def test_the_committed_page_is_written_again_bit_by_bit():
    evidence = Evidence(ROOT / "results")
    page = ledger.ledger_page(
        ledger.measure(claims.CLAIMS, evidence), worked_examples.worked_examples(), evidence
    )
    assert page == PAGE.read_text()


@pytest.mark.thorough
def test_the_script_writes_the_page_of_the_results_that_it_is_given(tmp_path):
    def typed(*flags):
        command = [sys.executable, str(ROOT / "scripts" / "claims.py"), *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    done = typed(f"--results={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text()
    assert "| [S3](#s3) |" in page
    assert "results/cpu" not in page
    lost = typed(f"--results={tmp_path / 'nosuch'}")
    assert lost.returncode == 2
    assert "is no folder" in lost.stderr
