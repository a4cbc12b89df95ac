"""The bootstrap over seeds and the instances within them, against loops and scipy."""

import numpy as np
import pytest
from posenc_jax.study import bootstrap
from scipy import stats

from support import oracles

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

    theirs = stats.bootstrap(
        (nats_I, bytes_I), ratio, paired=True, n_resamples=80_000, method="percentile", rng=8
    )
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


@pytest.mark.thorough
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
    assert bootstrap.sample_value(paired[0]) == pytest.approx(
        bootstrap.sample_value(arms[0][0]) - bootstrap.sample_value(arms[1][0])
    )
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
