"""The bootstrap over seeds and the instances within them, and where the instances come from."""

import dataclasses
import json

import numpy as np
from support import oracles
import pytest
from support import runs
from scipy import stats
from support.synthetic_verdicts import HYBRID, YARN, add_instances, write_outcome_study

from posenc_jax.evaluation import evaluate, retrieval
from posenc_jax.results.load import load
from posenc_jax.results.study_data import RunData
from posenc_jax.study import bootstrap
from posenc_jax.study.auxiliary_runs import AuxiliaryRuns
from posenc_jax.study.outcome_instances import SAMPLED, matching_sample, read_instances
from posenc_jax.study.outcomes import read_outcomes
from posenc_jax.study.preregistration import AnalysisPlan
from posenc_jax.study.verdict import judge

LEVELS = [0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975]


def plain(values):
    """A seed whose value is the mean of its instances."""
    return (bootstrap.Stratum(np.asarray(values, float), np.ones(len(values))),)


def assert_alike(mine, theirs):
    """As many of both lie below each quantile of theirs, within four errors of so many draws."""
    assert min(mine.std(), theirs.std()) > 0
    for level in LEVELS:
        place = np.quantile(theirs, level) + 1e-9  # ties lost to the order of summation
        error = (level * (1 - level) * (1 / len(mine) + 1 / len(theirs))) ** 0.5
        assert (mine < place).mean() == pytest.approx((theirs < place).mean(), abs=4 * error)


def some_seeds(count=5):
    """Seeds of two strata of unlike sizes, one of them weighted, and far from one another."""
    random = np.random.default_rng(3)
    found = []
    for shift in random.normal(size=count):
        weight_I = random.integers(1, 9, 6).astype(float)
        weighted = bootstrap.Stratum(weight_I * (shift + random.normal(size=6)), weight_I)
        found.append((weighted, bootstrap.Stratum(shift + 2 * random.normal(size=9), np.ones(9))))
    return found


def test_the_draws_are_those_of_a_loop_over_seeds_and_strata():
    seeds = some_seeds()
    mine = bootstrap.bootstrap_means(seeds, draws=20_000, seed=1)
    pairs = [[list(zip(s.total_I, s.weight_I, strict=True)) for s in sample] for sample in seeds]
    theirs = oracles.nested_means(pairs, 4000, np.random.default_rng(5))
    assert_alike(mine, theirs)


def test_every_possible_draw_comes_as_often_as_it_should():
    """Two seeds of two instances: 2 x 2 seeds, 4 x 4 instances, all 64 draws counted by hand."""
    seeds = [plain([0.0, 1.0]), plain([10.0, 12.0])]
    within = [[0.0, 0.5, 0.5, 1.0], [10.0, 11.0, 11.0, 12.0]]
    expected = [(x + y) / 2 for a in within for b in within for x in a for y in b]
    values, counts = np.unique(expected, return_counts=True)
    mine = bootstrap.bootstrap_means(seeds, draws=64_000, seed=0)
    found = np.array([(np.isclose(mine, v)).sum() for v in values])
    assert found.sum() == 64_000
    assert stats.chisquare(found, 1000 * counts).pvalue > 1e-3


def test_with_one_instance_a_seed_it_is_scipys_bootstrap_over_seeds():
    values = np.random.default_rng(2).normal(size=7)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=40_000, method="percentile", rng=8)
    mine = bootstrap.bootstrap_means([plain([v]) for v in values], draws=40_000, seed=0)
    assert_alike(mine, theirs.bootstrap_distribution)
    assert bootstrap.percentile_interval(mine, 0.95) == pytest.approx(
        (theirs.confidence_interval.low, theirs.confidence_interval.high), abs=0.05
    )


def test_with_seeds_that_are_all_alike_it_is_scipys_bootstrap_over_instances():
    """Whichever seeds are drawn, what differs is which instances: two resamples of the same ones."""
    values = np.random.default_rng(2).normal(size=30)

    def both(a, b, axis):
        return (a.mean(axis) + b.mean(axis)) / 2

    theirs = stats.bootstrap((values, values), both, n_resamples=40_000, method="percentile", rng=8)
    mine = bootstrap.bootstrap_means([plain(values), plain(values)], draws=40_000, seed=0)
    assert_alike(mine, theirs.bootstrap_distribution)


def test_a_ratio_is_drawn_as_scipy_draws_pairs():
    random = np.random.default_rng(4)
    bytes_I, nats_I = random.integers(20, 90, 25).astype(float), random.normal(60, 20, 25)

    def ratio(nats, counts, axis):
        return nats.sum(axis) / counts.sum(axis)

    theirs = stats.bootstrap((nats_I, bytes_I), ratio, paired=True, n_resamples=80_000, method="percentile", rng=8)  # fmt: skip
    mine = bootstrap.bootstrap_means(
        [(bootstrap.Stratum(nats_I, bytes_I),)] * 2, draws=40_000, seed=0
    )
    assert_alike(mine, theirs.bootstrap_distribution.reshape(2, -1).mean(0))


@pytest.mark.parametrize(("instances", "between"), [(40, 1.0), (3, 0.0)])
def test_the_bootstrap_carries_the_spread_between_seeds_and_within(instances, between):
    """Variance of the drawn mean, by formula, for equal groups: between/P + within/(P I)."""
    random = np.random.default_rng(11)
    groups_PI = random.normal(size=(20, instances)) + between * random.normal(size=(20, 1))
    parts = groups_PI.mean(1).var() / 20, groups_PI.var(1).mean() / (20 * instances)
    means = bootstrap.bootstrap_means([plain(g) for g in groups_PI], draws=10_000, seed=3)
    low, high = bootstrap.percentile_interval(means, 0.95)
    assert high - low == pytest.approx(2 * 1.96 * sum(parts) ** 0.5, rel=0.06)
    if not between:  # resampling seeds alone would be too narrow by far
        assert high - low > 1.15 * 2 * 1.96 * parts[0] ** 0.5


def test_the_bootstrap_is_a_function_of_its_seed():
    groups = some_seeds(3)
    first, again, other = (bootstrap.bootstrap_means(groups, draws=200, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def covered(studies, draw):
    """Share of simulated studies (40 seeds of 25 instances, true mean 0) whose 95 % interval holds 0."""
    random, hits = np.random.default_rng(6), 0
    for study in range(studies):
        # Variance between seeds 1, within 9: a seed's mean has 1 + 9/25.
        groups_PI = random.normal(size=(40, 1)) + 3 * random.normal(size=(40, 25))
        low, high = bootstrap.percentile_interval(draw(groups_PI, study), 0.95)
        hits += low <= 0 <= high
    return hits / studies


def test_a_95_percent_interval_of_nested_data_holds_the_truth_in_95_percent_of_studies():
    """Within three binomial errors of what the variances say; instances alone hold it far too rarely.

    A drawn mean has the variance of seed means times 39/40, and 9/25/40 once more from the instances,
    which seed means hold already: a little too wide.
    """

    def both(groups_PI, study):
        return bootstrap.bootstrap_means([plain(g) for g in groups_PI], draws=400, seed=study)

    def pooled(groups_PI, study):
        pot = plain(groups_PI.reshape(-1))
        return bootstrap.bootstrap_means([pot, pot], draws=400, seed=study) / 2**0.5

    drawn, true = (1 + 9 / 25) * 39 / 40 + 9 / 25 * 24 / 25, 1 + 9 / 25
    expected = 1 - 2 * stats.t.sf(1.96 * (drawn / true) ** 0.5, 39)
    assert 0.95 < expected < 0.985
    error = (expected * (1 - expected) / 400) ** 0.5
    assert covered(400, both) == pytest.approx(expected, abs=3 * error)
    assert covered(50, pooled) < 0.7


def test_a_difference_draws_the_same_instances_on_both_sides():
    """Instances that are hard for both arms cancel: the interval is that of the differences."""
    random = np.random.default_rng(9)
    hard_I = 50 * random.normal(size=40)
    arms = [[plain(hard_I + random.normal(size=40)) for _ in range(6)] for _ in range(2)]
    paired = [bootstrap.paired_difference(a, b) for a, b in zip(*arms, strict=True)]
    assert bootstrap.sample_value(paired[0]) == pytest.approx(bootstrap.sample_value(arms[0][0]) - bootstrap.sample_value(arms[1][0]))  # fmt: skip
    assert bootstrap.bootstrap_means(paired, draws=1000, seed=0).std() < 0.5
    assert bootstrap.bootstrap_means(arms[0], draws=1000, seed=0).std() > 2
    other = (bootstrap.Stratum(np.ones(40), np.r_[2.0, np.ones(39)]),)
    assert bootstrap.paired_difference(arms[0][0], other) is None


@pytest.mark.parametrize(
    ("seeds", "says"),
    [
        ([plain([1.0, 2.0])], "at least 2 seeds"),
        ([plain([1.0, np.nan])] * 2, "with a finite total"),
        ([(bootstrap.Stratum(np.ones(2), np.r_[1.0, 0.0]),)] * 2, "weight above 0"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(seeds, says):
    with pytest.raises(ValueError, match=says):
        bootstrap.bootstrap_means(seeds, draws=10, seed=0)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, data_dir):
    """A run long enough for every outcome, its right answers made up, as the loader reads it."""
    workdir = tmp_path_factory.mktemp("run") / "x"
    config = runs.config(
        data_dir, "rope", train={"length": 96, "steps": 2}, evaluation={"stretches": 5, "multiples": (1, 4, 8)}
    )  # fmt: skip
    runs.finished(config, workdir)
    random = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        score = retrieval.score_instances

        def lucky(*args):
            answers = score(*args)
            return dataclasses.replace(answers, correct=random.random(answers.correct.shape) < 0.6)

        patch.setattr(retrieval, "score_instances", lucky)
        suites = ("E3", "E7", "E8", "Y_R")
        evaluate.evaluate(workdir, multiples=(1, 4, 8), suites=suites, split="test", stretch=None)
    return load(workdir, "test").runs[0]


@pytest.mark.thorough
def test_the_arrays_of_a_run_give_the_value_of_every_outcome(evaluated):
    values = read_outcomes(evaluated.rows).values
    samples = read_instances(evaluated)
    assert set(samples) == set(SAMPLED)
    for outcome, sample in samples.items():
        assert not isinstance(sample, str), (outcome, sample)
        assert values["rope", outcome][0] == pytest.approx(
            bootstrap.sample_value(sample), rel=1e-9
        ), outcome
        assert matching_sample(sample, values["rope", outcome][0]) is sample
    sizes = {o: [len(s.total_I) for s in sample] for o, sample in samples.items()}
    assert sizes["Y_R"] == sizes["Y_R_id"] == sizes["window_drop"] == [10, 10, 10]
    assert sizes["Y_E"] == sizes["Y_id"] == sizes["price"] == [5]
    assert 0 < sizes["Y_R_far"][0] < 10  # a passkey within L has no say in it
    # Of 16 pairs the last answer is given away, and is not scored.
    assert [s.weight_I.max() for s in samples["Y_R"]] == [1, 1, 15]


def of_arrays(arrays):
    """A run with these arrays alone."""

    def read(name):
        if name not in arrays:
            raise ValueError(f"no arrays/{name}.npz")
        return arrays[name]

    return RunData("x", {"train_length": 64}, {}, (), "", (), "", {}, (), read)


def test_recall_is_above_the_mean_chance_of_the_answers_that_count():
    """Two answers within L, three beyond it; by hand."""
    distance, chance = np.array([10, 64, 65, 128, 200]), np.array([0.5, 0.1, 0.2, 0.4, 0.25])
    correct = np.array([1, 0, 1, 0, 1], bool)
    arrays = {"correct": correct, "distance": distance, "chance": chance, "instance": np.array([0, 0, 1, 1, 2])}  # fmt: skip
    samples = read_instances(of_arrays({f"{task}_4": arrays for task in ("passkey", "needles_4", "mqar_16")}))  # fmt: skip
    guess = (0.2 + 0.4 + 0.25) / 3
    assert bootstrap.sample_value(samples["Y_R_far"]) == pytest.approx(
        (2 / 3 - guess) / (1 - guess)
    )
    everywhere = (0.6 - chance.mean()) / (1 - chance.mean())
    assert bootstrap.sample_value(samples["Y_R"]) == pytest.approx(everywhere)
    assert samples["Y_E"] == "no arrays/bpb_ctx_256.npz"


def test_arrays_that_are_lacking_old_or_of_other_rows_are_named():
    old = {"correct": np.ones(2, bool), "distance": np.ones(2), "instance": np.arange(2)}
    said = read_instances(of_arrays({f"{task}_4": old for task in ("passkey", "needles_4", "mqar_16")}))  # fmt: skip
    assert said["Y_R"] == "its arrays are of older definitions, without chance"
    assert said["Y_R_id"] == "no arrays/passkey_1.npz"
    bits = {"nats_R": np.ones(3), "bytes_R": np.ones(3)}
    sample = read_instances(of_arrays({"bpb_ctx_256": bits, "bpb_ctx_32": bits}))["Y_E"]
    assert matching_sample(sample, 1.0).endswith("its rows 1")


PLAN = AnalysisPlan((HYBRID,), "rope", ("alibi",), tuple(range(5)), {}, stretched=(YARN,))


def statements(folder):
    said = judge(load(folder), PLAN, beside=AuxiliaryRuns(), frozen=None, deviations=[])
    json.dumps(said, allow_nan=False)
    return {s["words"]: s for s in said["verdicts"][0]["statements"] if s["estimate"] is not None}


@pytest.fixture
def study(tmp_path):
    write_outcome_study(tmp_path, range(5), arms=("rope", YARN, "alibi", HYBRID))
    return tmp_path


def test_the_verdict_draws_seeds_and_instances_where_they_are_kept_and_says_so(study):
    before = statements(study)
    assert all(s["bootstrap_over"] == ("seeds",) for s in before.values())
    assert all("no arrays/" in s["bootstrap_why"] and "seeds alone because" in s["sentence"] for s in before.values())  # fmt: skip
    add_instances(study, 12)
    after = statements(study)
    for words, s in after.items():
        assert s["bootstrap_over"] == ("seeds", "instances"), words
        assert "bootstrap over seeds and instances" in s["sentence"]
        assert (s["estimate"], s["p"]) == pytest.approx((before[words]["estimate"], before[words]["p"]))  # fmt: skip
        widths = [np.diff(x["bootstrap"]).item() for x in (before[words], s)]
        assert widths[1] > widths[0]


def test_one_run_without_its_arrays_leaves_seeds_alone_and_is_named(study):
    add_instances(study, 12)
    (study / "runs" / "arm2-s3" / "evaluation" / "arrays" / "bpb_ctx_256.npz").unlink()
    said = statements(study)
    alibi = said["Y_E of ALiBi less Y_E of the hybrid"]
    assert alibi["bootstrap_over"] == ("seeds",)
    assert alibi["bootstrap_why"] == "of alibi, seed 3, no arrays/bpb_ctx_256.npz"
    assert said["Y_E of RoPE less Y_E of the hybrid"]["bootstrap_over"] == ("seeds", "instances")


def test_arms_scored_on_other_instances_are_not_paired(study):
    add_instances(study, 12)
    path = study / "runs" / "arm0-s1" / "evaluation" / "arrays" / "bpb_ctx_256.npz"
    with np.load(path) as stored:
        kept = dict(stored)
    np.savez(path, **{name: np.r_[x[::-1]] for name, x in kept.items()})  # the same sums
    said = statements(study)["Y_E of RoPE less Y_E of the hybrid"]
    assert said["bootstrap_why"] == f"seed 1 of rope and {HYBRID} was scored on other instances"
