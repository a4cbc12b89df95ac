"""Statistics of a study against scipy.stats, loops written out, and published numbers."""

import itertools

import numpy as np
import pytest
from posenc_jax.study import hypothesis_tests, statistics
from scipy import stats

RANDOM = np.random.default_rng(7)
SAMPLES = [RANDOM.normal(0.4, 1.0, n) for n in (3, 5, 8, 12)]


@pytest.mark.parametrize("sample_P", SAMPLES, ids=len)
def test_the_t_tests_and_limits_are_those_of_scipy(sample_P):
    mine = statistics.against(sample_P, 0.2, 0.05)
    greater = stats.ttest_1samp(sample_P, 0.2, alternative="greater")
    interval = stats.ttest_1samp(sample_P, 0.0).confidence_interval(0.90)
    assert mine.p_above == pytest.approx(greater.pvalue, rel=1e-9)
    assert mine.p_below == pytest.approx(1 - greater.pvalue, rel=1e-9)
    assert (mine.low, mine.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("sample_P", SAMPLES, ids=len)
def test_sign_flip_counts_every_pattern(sample_P, two_sided):
    observed, hits = sum(sample_P), 0
    for signs in itertools.product((1, -1), repeat=len(sample_P)):
        total = sum(s * x for s, x in zip(signs, sample_P, strict=True))
        hits += (abs(total) >= abs(observed) - 1e-9) if two_sided else total >= observed - 1e-9
    expected = hits / 2 ** len(sample_P)
    assert statistics.sign_flip(sample_P, two_sided=two_sided) == expected


def test_five_seeds_cannot_reach_five_percent_by_two_sided_sign_flip_and_six_can():
    assert statistics.sign_flip([1.0] * 5, two_sided=True) == 2 / 32
    assert statistics.sign_flip([1.0] * 6, two_sided=True) == 2 / 64


@pytest.mark.parametrize(("n", "published"), [(3, 3.26), (5, 1.68), (8, 1.16), (16, 0.75)])
def test_the_detectable_effects_are_the_published_ones(n, published):
    assert statistics.detectable_effect(n) == pytest.approx(published, abs=0.005)


def test_power_is_that_of_the_noncentral_t_in_scipy():
    limit = stats.t.ppf(0.95, 4)
    expected = stats.nct.sf(limit, 4, 1.3 * 5**0.5)
    mine = statistics.power(5, 1.3, alpha=0.05, two_sided=False)
    assert mine == pytest.approx(expected, abs=1e-6)


def test_iqm_is_scipys_trimmed_mean():
    for sample_P in SAMPLES:
        assert statistics.iqm(sample_P) == pytest.approx(stats.trim_mean(sample_P, 0.25))


def test_probability_of_improvement_is_the_mann_whitney_share():
    a, b = [1.0, 2.0, 3.0, 3.0], [2.0, 0.5, 3.0]
    share = stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert statistics.probability_of_improvement(a, b) == pytest.approx(share)


def test_holm_is_the_step_down_written_out():
    # By hand: sorted .01 .02 .03 .04 times 4 3 2 1, running maximum.
    assert statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_pairing_is_by_seed_and_names_every_seed_it_leaves_out():
    a, b = {1: 5.0, 0: 1.0, 2: float("nan"), 3: 2.0}, {0: 0.5, 1: 1.0, 2: 1.0, 4: None}
    paired = statistics.pair(a, b)
    assert paired.seeds == (0, 1)
    assert paired.differences == (0.5, 4.0)
    assert [line.split(":")[0] for line in paired.excluded] == ["seed 2", "seed 3", "seed 4"]


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        statistics.against([1.0, float("nan")], 0.0, 0.05)


def test_values_that_are_all_the_same_are_refused_and_are_not_p_zero():
    with pytest.raises(ValueError, match="all 5 seeds have the same value"):
        statistics.against([0.3] * 5, 0.0, 0.05)
    with pytest.raises(ValueError, match="same value"):
        statistics.against([0.1 + 0.2, 0.3, 0.3], 0.0, 0.05)  # the same but for rounding


@pytest.mark.parametrize("number", [np.int64(2), np.int32(2), np.float32(2), np.float64(2), 2, 2.0])
def test_numpys_numbers_are_numbers_and_truth_values_are_none(number):
    assert statistics.pair({0: number}, {0: 1}).differences == (1.0,)
    assert statistics.pair({0: True}, {0: 1}).seeds == ()
    assert statistics.pair({0: np.bool_(True)}, {0: 1}).seeds == ()


SAMPLES_XP = np.stack([RANDOM.normal(0.2, 1.0, 7) for _ in range(40)])


def test_the_t_tests_of_many_studies_are_those_of_scipy():
    above_X, below_X = hypothesis_tests.student_t(SAMPLES_XP, 0.1)
    for sample_P, above, below in zip(SAMPLES_XP, above_X, below_X, strict=True):
        assert above == pytest.approx(
            stats.ttest_1samp(sample_P, 0.1, alternative="greater").pvalue
        )
        assert below == pytest.approx(stats.ttest_1samp(sample_P, 0.1, alternative="less").pvalue)
    assert hypothesis_tests.student_t(np.full((1, 5), 0.7), 0.0) == (1.0, 1.0)


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_the_sign_flips_of_many_studies_count_every_pattern(n):
    values_XP = np.r_[RANDOM.normal(0.3, 1.0, (20, n)), RANDOM.integers(-2, 3, (20, n)) + 0.1]
    signs_SP = np.array(list(itertools.product((1, -1), repeat=n)))
    found = hypothesis_tests.sign_flips(values_XP, 0.1)
    for sample_P, above, below in zip(values_XP - 0.1, *found, strict=True):
        sums_S = signs_SP @ sample_P
        assert above == np.mean(sums_S >= sample_P.sum() - 1e-7)
        assert below == np.mean(sums_S <= sample_P.sum() + 1e-7)


@pytest.mark.parametrize(
    "counts", [(12, 12, 12, 12), (8, 12, 12, 12), (3, 9, 5, 12), (0, 4, 12, 5), (5, 2, 8, 8)]
)
def test_fewer_is_fishers_exact_test_of_scipy(counts):
    first, second, n, m = counts
    table = [[first, n - first], [second, m - second]] if first <= n and second <= m else None
    if table is None:
        with pytest.raises(ValueError, match="is no count"):
            hypothesis_tests.fisher_fewer(*counts)
        return
    assert hypothesis_tests.fisher_fewer(*counts) == pytest.approx(
        stats.fisher_exact(table, alternative="less").pvalue
    )


@pytest.mark.parametrize(("k", "n"), [(0, 12), (1, 12), (9, 12), (11, 12), (12, 12), (3, 5)])
def test_the_lower_limit_is_scipys_exact_one(k, n):
    limit = stats.binomtest(k, n, alternative="greater").proportion_ci(0.95, method="exact").low
    assert hypothesis_tests.clopper_pearson_lower(k, n, 0.05) == pytest.approx(limit)


def test_twelve_of_twelve_is_at_least_three_quarters_and_eleven_is_not():
    assert (
        hypothesis_tests.clopper_pearson_lower(12, 12, 0.05)
        > 0.75
        > hypothesis_tests.clopper_pearson_lower(11, 12, 0.05)
    )


@pytest.mark.parametrize("k", [0, 1, 4])
def test_failing_seeds_are_the_exact_binomial_test_of_the_share_that_makes_the_mean_false(k):
    """Outcomes of 0 and 0.8 against another arm at 0.3: the mean is 0.05 where 0.5625 of 12 fail."""
    hybrid_P = np.r_[np.zeros(k), np.full(12 - k, 0.8)]
    share = 1 - (0.3 + 0.05) / 0.8
    expected = stats.binomtest(k, 12, share, alternative="less").pvalue
    mine = hypothesis_tests.failing_seeds((hybrid_P - 0.3)[None], hybrid_P[None], 0.05)
    assert mine[0] == pytest.approx(expected)
    # Below alpha exactly when the upper limit of the failing share is below that share.
    upper = stats.binomtest(k, 12, alternative="less").proportion_ci(0.95, method="exact").high
    assert (mine[0] < 0.05) == (upper < share)


def test_an_arm_that_recalls_nothing_has_no_failing_seed_to_lose():
    nothing_XP = np.full((1, 6), -0.01)
    assert hypothesis_tests.failing_seeds(nothing_XP + 0.5, nothing_XP, 0.05) == [0.0]
    assert hypothesis_tests.failing_seeds(nothing_XP, nothing_XP, 0.05) == [1.0]
