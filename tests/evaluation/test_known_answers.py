"""Models whose every number is known, scored by the real scorer: what is planted must be found.

Oracles here are `Model`s: they go through the same padding, batching, programs and measures as a
checkpoint. The induction model is the real decoder with weights written by hand.
"""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.evaluation import extrapolation, key_targets, perplexity, retrieval
from posenc_jax.evaluation.context import EvaluatedModel, EvaluationContext, Multiples
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.model.config import ModelConfig
from posenc_jax.results import schema
from posenc_jax.results.row_file import RowFile
from posenc_jax.study import tuning
from posenc_jax.tasks.instances import Answer, Instance
from posenc_jax.tasks.task_registry import find
from posenc_jax.training.inputs import open_inputs

from support import runs
from support.byte_streams import BYTES, stream_of, text
from support.known_scorers import Constant, Oracle, scorer_of
from support.task_fillers import FILLER, TOKENIZER

V = TOKENIZER.vocab_size


L = 16


LENGTHS = (L + L // 2, 8 * L + L // 2)


@dataclasses.dataclass(frozen=True)
class Periodic(Oracle):
    """Gives 0.9 to the token `back` places before the target where it sees that far."""

    back: int

    def stream(self, params, tokens_BT, pos_BT, seg_BT, window):
        source = jnp.roll(tokens_BT, self.back - 1, axis=1)
        sees = (pos_BT >= self.back - 1) & (window is None or self.back - 1 < window)
        told = jnp.where(jax.nn.one_hot(source, V) > 0, 0.9, 0.1 / (V - 1))
        return jnp.log(jnp.where(sees[:, :, None], told, 1 / V))


class Successor(Oracle):
    """Gives 0.9 to the id after the last one: text that counts is easy, every jump in it is not."""

    def stream(self, params, tokens_BT, pos_BT, seg_BT, window):
        told = jnp.where(jax.nn.one_hot((tokens_BT + 1) % V, V) > 0, 0.9, 0.1 / (V - 1))
        return jnp.log(told)


@dataclasses.dataclass(frozen=True)
class Assigned(Oracle):
    """Answers with the first or the last value in the row's context, whatever is asked."""

    first: bool

    def stream(self, params, tokens_BT, pos_BT, seg_BT, window):
        is_value = (tokens_BT >= FILLER.values) & (tokens_BT < FILLER.bos) & (seg_BT > 0)
        end = jnp.argmax(tokens_BT == FILLER.sep, axis=1)[:, None]
        is_value &= pos_BT < end
        place = jnp.where(is_value, pos_BT, 10**6 if self.first else -1)
        place = place.min(1) if self.first else place.max(1)
        value = jnp.take_along_axis(
            tokens_BT, jnp.clip(place, 0, tokens_BT.shape[1] - 1)[:, None], 1
        )
        return jnp.broadcast_to(jax.nn.one_hot(value, V) * 20, (*tokens_BT.shape, V))


def stretches(document, count=5):
    return perplexity.held_out_stretches(stream_of(document), 8 * L + L // 2, count)


def every_bpb(scorer, rows):
    """Every measure of bits per byte, by name."""
    pairs = {f"E1/{k}": perplexity.disjoint_segments(scorer, rows, L, k) for k in (1, 2, 4, 8)}
    pairs |= {
        f"E2/{k}": perplexity.sliding_windows(scorer, rows, L, k, L // 4) for k in (1, 2, 4, 8)
    }
    pairs |= {f"E3/{c}": perplexity.fixed_targets(scorer, rows, L, c) for c in (2, 4, 16, 128)}
    pairs["E8"] = perplexity.fixed_targets(scorer, rows, L, 64, window=L)
    return {name: perplexity.bits_per_byte(*pair, BYTES) for name, pair in pairs.items()}


def test_a_uniform_model_costs_log2_of_the_vocabulary_in_every_measure():
    scorer = scorer_of(Constant(), jnp.zeros(V))
    rows = stretches(text(3000))
    values = every_bpb(scorer, rows)
    assert values == {name: pytest.approx(math.log2(V), abs=1e-5) for name in values}
    long = np.stack([text(400, seed) for seed in range(4)])  # 8 L + L/2 is short for E6 here
    wide = scorer_of(Constant(), jnp.zeros(V), (260,))
    fresh, repeated = perplexity.repeated_spans(wide, long, L, 32, BYTES)
    np.testing.assert_allclose([*fresh, *repeated], math.log2(V), atol=1e-5)


def test_a_unigram_model_costs_its_cross_entropy_at_every_length():
    share = np.random.default_rng(1).dirichlet(np.ones(V))
    rows = stretches(text(3000))
    values = every_bpb(scorer_of(Constant(), jnp.log(jnp.array(share))), rows)
    whole = -np.log2(share[rows[:, 9:]]).mean()
    tail = -np.log2(share[rows[:, -8:]]).mean()
    wanted = {name: whole if name[:2] in ("E1", "E2") else tail for name in values}
    assert values == {name: pytest.approx(value, abs=1e-5) for name, value in wanted.items()}


@pytest.mark.parametrize("back", [12, 40])
def test_a_dependency_is_found_at_its_distance_by_contexts_and_by_the_window(back):
    rows = stretches(np.tile(text(back), 400))
    scorer = scorer_of(Periodic(back))
    cost = {
        c: perplexity.bits_per_byte(*perplexity.fixed_targets(scorer, rows, L, c), BYTES)
        for c in (2, 8, 16, 32, 64, 128)
    }
    known, blind = -math.log2(0.9), math.log2(V)
    for context, value in cost.items():
        # Target t of L/2 has context + t tokens before it and needs `back` of them.
        seeing = np.mean([context + t >= back for t in range(L // 2)])
        assert value == pytest.approx(seeing * known + (1 - seeing) * blind, abs=1e-4)
    windowed = perplexity.bits_per_byte(
        *perplexity.fixed_targets(scorer, rows, L, 64, window=L), BYTES
    )
    assert windowed == pytest.approx(known if back <= L else blind, abs=1e-4)


@dataclasses.dataclass(frozen=True)
class RightWithin(Oracle):
    """Gives 0.9 to the last token once more at the first `length` positions; uniform after them."""

    length: int

    def stream(self, params, tokens_BT, pos_BT, seg_BT, window):
        told = jnp.where(jax.nn.one_hot(tokens_BT, V) > 0, 0.9, 0.1 / (V - 1))
        return jnp.log(jnp.where(pos_BT[:, :, None] < self.length, told, 1 / V))


def measured(folder, model, document, measures, multiples=(1, 4)):
    """The rows that suite E writes about a model that trained at L, read on a document of dev."""
    config = runs.config("none", "rope", train={"length": L}, evaluation={"stretches": 5})
    inputs = types.SimpleNamespace(
        stream=lambda split: stream_of(document),
        tokenizer=types.SimpleNamespace(byte_lengths_V=BYTES),
    )
    (folder / "x/evaluation_dev/arrays").mkdir(parents=True)
    rows = RowFile(folder / "x/evaluation_dev/rows.jsonl", {"E": "stamp"})
    evaluated = EvaluatedModel({8 * L: config.model_config(V)}, {}, scorer_of(model))
    lengths = Multiples(multiples, (*multiples, 8), max(multiples))
    work = EvaluationContext(
        folder / "x/evaluation_dev", config, inputs, "dev", evaluated, lengths, rows
    )
    for item, measure in extrapolation.extrapolation_items(work, frozenset(measures)).items():
        rows.add(item, measure())
    return rows


@pytest.mark.parametrize("multiples", [(1,), (1, 4)])
def test_a_model_right_within_l_and_uniform_after_has_its_loss_within_l_in_distribution(
    tmp_path, multiples
):
    """Read at c = L, whose targets lie at L to 1.5 L, that model looked blind at the training length."""
    known, blind = -math.log2(0.9), math.log2(V)
    rows = measured(tmp_path, RightWithin(L), np.full(3000, 65), ("E3", "E7"), multiples)
    within = rows.value(schema.BPB, int(schema.ID * L))[0]
    assert within == pytest.approx(known, abs=1e-5)
    stretch = stretches(np.full(3000, 65))
    whole = perplexity.disjoint_segments(scorer_of(RightWithin(L)), stretch, L, 1)
    assert within == pytest.approx(perplexity.bits_per_byte(*whole, BYTES), abs=1e-5)
    assert tuning.dev_loss(tmp_path / "x") == within  # what chooses learning rates
    # At c = L one of L/2 targets is still predicted from a position below L.
    past = rows.value(schema.BPB, L)[0]
    assert past == pytest.approx((known + 7 * blind) / 8, abs=1e-4)
    gain = rows.value("context_gain", 4 * L)
    if 4 not in multiples:
        assert gain is None
    else:
        assert gain[0] == pytest.approx(known - blind, abs=1e-4)


def test_the_sliding_scorer_covers_each_target_once_with_the_context_it_promises():
    rows = np.arange(3 * 137).reshape(3, 137)

    class Revealing:
        def score(self, windows):
            before = np.broadcast_to(
                np.arange(1, windows.shape[1]), (len(windows), windows.shape[1] - 1)
            )
            self.width = windows.shape[1] - 1
            return retrieval_scores(before + 1000 * windows[:, 1:])

    for k in (1, 2, 4, 8):
        for stride in (4, 5, 16):
            scorer = Revealing()
            seen, targets = perplexity.sliding_windows(scorer, rows, L, k, stride)
            assert scorer.width == k * L
            np.testing.assert_array_equal(targets, rows[:, 9:])
            np.testing.assert_array_equal(seen // 1000, targets)  # each once, in order
            before = seen % 1000
            np.testing.assert_array_equal(before[:, : k * L], before[:, :1] + np.arange(k * L))
            assert (before[:, k * L :] > k * L - stride).all()
            assert before.max() == k * L


def retrieval_scores(nll):
    from posenc_jax.evaluation.scorer import Scores

    return Scores(nll, np.zeros(nll.shape, int))


@pytest.fixture(scope="module")
def library(data_dir):
    """120 stretches of the dev split of the standard library, 31 modules."""
    stream = open_inputs(runs.config(data_dir)).stream("dev")
    return perplexity.held_out_stretches(stream, 8 * L + 256, 120)


class Reader:
    """Scores rows by a function that gives the log-probability of every token of a row but the first."""

    def __init__(self, read):
        self._read = read

    def score(self, rows_RT):
        return retrieval_scores(-np.array([self._read(row_T) for row_T in rows_RT]))


def counting(row_T, half_life=math.inf):
    """Adds one over the tokens so far, of which a token `half_life` back counts half."""
    here_TV = np.eye(V)[row_T]
    seen_TV, kept = np.zeros((len(row_T), V)), 0.5 ** (1 / half_life)
    for t in range(1, len(row_T)):
        seen_TV[t] = kept * seen_TV[t - 1] + here_TV[t - 1]
    p_TV = (1 + seen_TV) / (1 + seen_TV).sum(1, keepdims=True)
    return np.log(p_TV[np.arange(1, len(row_T)), row_T[1:]])


def topics_of(rows_RT):
    """A mixture of a unigram model per stretch; which it is, is read off all tokens so far."""
    share_KV = np.stack([np.bincount(row_T, minlength=V) + 0.1 for row_T in rows_RT])
    log_KV = np.log(share_KV / share_KV.sum(1, keepdims=True))

    def read(row_T):
        each_KT = log_KV[:, row_T].cumsum(1)
        return np.diff(np.logaddexp.reduce(each_KT, axis=0))

    return read


def error(gain_R):
    """Standard error of the mean."""
    return gain_R.std(ddof=1) / len(gain_R) ** 0.5


def test_a_copying_model_gains_on_a_repeated_span_and_one_that_knows_frequencies_does_not(library):
    gap, span = 32, 64
    share = np.random.default_rng(1).dirichlet(np.ones(V))
    flat = scorer_of(Constant(), jnp.log(jnp.array(share)), (260,))
    fresh, repeated = perplexity.repeated_spans(flat, library, L, gap, BYTES)
    np.testing.assert_array_equal(fresh, repeated)
    copier = scorer_of(Periodic(gap + span), None, (260,))
    fresh, repeated = perplexity.repeated_spans(copier, library, L, gap, BYTES)
    np.testing.assert_allclose(repeated, -math.log2(0.9), atol=1e-4)
    assert (fresh - repeated).mean() > 7  # another order of its bytes is no help to it


def test_a_model_of_places_or_of_the_last_token_gains_nothing_by_a_repeat():
    rows = (np.array([0, 180, 140])[:, None] + np.arange(400)) % 200
    for scorer in (
        scorer_of(Successor(), None, (260,)),
        Reader(lambda row_T: -np.sqrt(1.0 + np.arange(len(row_T) - 1))),
    ):
        fresh, repeated = perplexity.repeated_spans(scorer, rows, L, 32, BYTES)
        np.testing.assert_array_equal(fresh, repeated)
    with pytest.raises(ValueError, match="there is only one"):
        perplexity.repeated_spans(scorer, rows[:1], L, 32, BYTES)


@pytest.mark.parametrize("gap", [8, 128])
@pytest.mark.parametrize("model", ["counts", "topics"])
def test_a_model_of_topics_without_copying_gains_nothing_by_a_repeat(library, model, gap):
    reader = Reader(counting if model == "counts" else topics_of(library))
    fresh, repeated = perplexity.repeated_spans(reader, library, L, gap, BYTES)
    np.testing.assert_allclose(fresh, repeated, atol=1e-9)
    # It does adapt: an early span of other text in place of the shuffle would have called that a gain.
    row_RT, other_RT = library[:, -16:], np.roll(library, 1, axis=0)[:, -64:]
    scored_RT = np.roll(library, -1, axis=0)[:, -64:]
    cost = [
        reader.score(np.concatenate([row_RT, early_RT, library[:, :gap], scored_RT], 1))
        .nll_RT[:, -64:]
        .mean(1)
        for early_RT in (scored_RT, other_RT)
    ]
    gain_R = cost[1] - cost[0]
    assert gain_R.mean() > 5 * error(gain_R)


@pytest.mark.parametrize("gap", [8, 128])
def test_counts_that_fade_never_gain_by_a_repeat(library, gap):
    """In a repeat a token lies at one distance, in a shuffle at many: what fades counts the latter for
    more.
    """
    reader = Reader(lambda row_T: counting(row_T, half_life=48))
    fresh, repeated = perplexity.repeated_spans(reader, library, L, gap, BYTES)
    gain_R = fresh - repeated
    assert gain_R.std() > 0  # such a model does tell the two rows apart
    assert -0.01 < gain_R.mean() < 3 * error(gain_R)


def test_both_rows_of_a_repeat_hold_the_same_tokens_and_a_longer_gap_the_same_spans(library):
    seen = {}
    for gap in (8, 64):

        def keep(rows_RT, gap=gap):
            seen[gap] = rows_RT
            return retrieval_scores(np.zeros((len(rows_RT), rows_RT.shape[1] - 1)))

        scorer = Reader(None)
        scorer.score = keep
        perplexity.repeated_spans(scorer, library, L, gap, BYTES)
        fresh_RT, repeated_RT = seen[gap][0::2], seen[gap][1::2]
        assert repeated_RT.shape[1] == perplexity.repeat_length(L, gap)
        np.testing.assert_array_equal(np.sort(fresh_RT), np.sort(repeated_RT))
        early = slice(-128 - gap, -64 - gap)
        differs_T = (fresh_RT != repeated_RT).any(0)
        assert differs_T[early].all()
        assert differs_T.sum() == 64
        np.testing.assert_array_equal(repeated_RT[:, early], repeated_RT[:, -64:])
        text_RT = np.delete(repeated_RT, np.r_[early, -64:0], axis=1)
        np.testing.assert_array_equal(text_RT, library[:, -text_RT.shape[1] :])
        natural_RT = np.roll(library, -1, axis=0)[:, -64:]
        np.testing.assert_array_equal(np.sort(repeated_RT[:, -64:]), np.sort(natural_RT))
    np.testing.assert_array_equal(seen[8][:, -64:], seen[64][:, -64:])


def test_key_targets_are_those_that_far_context_decides(tmp_path):
    """Half of the rows repeat with period 40: L tokens of context miss it, 4 L find it."""
    rows = np.concatenate([stretches(np.tile(text(40), 100), 3), stretches(text(4000), 3)])
    chosen = key_targets.choose(scorer_of(Periodic(40)), rows, L)
    assert chosen.shape == (6, L // 2)
    assert chosen[:3].all()
    assert chosen[3:].sum() <= 1  # a random byte equals the one 40 before it once in 256
    about = {"split": "test", "stretches": 6}
    key_targets.write(tmp_path / "a" / "t.json", chosen, about, {"arm": "oracle"})
    np.testing.assert_array_equal(key_targets.read(tmp_path / "a" / "t.json", about), chosen)
    with pytest.raises(
        ValueError, match="lists targets of split=test; this evaluation has split=dev"
    ):
        key_targets.read(tmp_path / "a" / "t.json", about | {"split": "dev"})
    damaged = (
        (tmp_path / "a" / "t.json").read_text().replace("[\n", "[ \n").replace("oracle", "rope")
    )
    (tmp_path / "t.json").write_text(damaged)
    with pytest.raises(ValueError, match="is damaged"):
        key_targets.read(tmp_path / "t.json", about)


def test_copying_the_first_or_the_last_value_answers_one_cue_and_not_the_other():
    task = find("latest_first")
    instances = [
        task.instance(FILLER, split="test", seed=0, index=i, length=100) for i in range(60)
    ]
    for first, right in ((True, "FIRST"), (False, "LAST")):
        scorer = scorer_of(Assigned(first), None, (128,))
        answers = retrieval.score_instances(scorer, instances)
        assert answers.correct.tolist() == [kind == right for kind in answers.kind.tolist()]
        shares = {
            name: answers.correct[at].mean()
            for name, at in retrieval.buckets(answers, 64)
            if at.any()
        }
        assert shares[f"kind:{right}"] == 1
        assert 0.3 < shares["all"] < 0.7


# A two-layer induction model in the real decoder. The stream holds blocks of CODES dims: the token's
# code, the codes of the tokens one, two and three back, the answer, and one constant that keeps every
# norm the same. Text has no code. Layer 0's heads are rotary with content that is constant, turned so
# that the kernel peaks o tokens back. Layer 1's first head asks with (token, one back, two back) and
# finds the place whose (one, two, three back) are these; the token there is the answer.
CODES, CONSTANT, HEADS = V - FILLER.keys, 20.0, 3


D, H = 5 * CODES + 1, 3 * CODES


WEIGHTS = (1.0, 0.4, 0.3)  # of the token, and of those before it: a later one breaks ties alone


BASE = 10.0


def induction(scheme_of_second, margin, train_length=64):
    """Returns (config, params); a full match of the token beats no match by `margin` nats."""
    config = ModelConfig(
        scheme=f"rope(base={BASE}),{scheme_of_second}", vocab_size=V, train_length=train_length,
        num_layers=2, model_dim=D, num_heads=HEADS, num_kv_heads=HEADS, head_dim=H, mlp_dim=1,
        activation="gelu", qk_norm=False, tied_head=False, embedding_scale=1.0, norm_epsilon=1e-12,
        dtype="float32", attention="auto",
    )  # fmt: skip
    block = [slice(i * CODES, (i + 1) * CODES) for i in range(5)]
    eye, rms = np.eye(CODES), math.sqrt((CONSTANT**2 + 2) / D)
    embedding = np.zeros((V, D))
    embedding[FILLER.keys :, block[0]] = eye
    embedding[:, -1] = CONSTANT

    back, match = (
        {
            name: np.zeros(shape)
            for name, shape in (
                ("query_DNH", (D, HEADS, H)),
                ("key_DKH", (D, HEADS, H)),
                ("value_DKH", (D, HEADS, H)),
                ("out_NHD", (HEADS, H, D)),
            )
        }
        for _ in range(2)
    )
    freq = BASE ** (-np.arange(0, H, 2) / H)
    for head in range(HEADS):
        turn = freq * (head + 1)
        back["query_DNH"][-1, head] = (
            np.r_[np.cos(turn), -np.sin(turn)] * 300 * math.sqrt(H) / (H // 2)
        )
        back["key_DKH"][-1, head, : H // 2] = 1
        for name in ("query_DNH", "key_DKH"):
            back[name][:, head] *= rms / CONSTANT
        back["value_DKH"][block[0], head, :CODES] = eye * rms
        back["out_NHD"][head, :CODES, block[1 + head]] = eye
    for part, weight in enumerate(WEIGHTS):
        at = slice(part * CODES, (part + 1) * CODES)
        match["query_DNH"][block[part], 0, at] = eye * rms * weight * margin * math.sqrt(H)
        match["key_DKH"][block[part + 1], 0, at] = eye * rms
    match["value_DKH"][block[0], 0, :CODES] = eye * rms
    match["out_NHD"][0, :CODES, block[4]] = eye
    head_VD = np.zeros((V, D))
    head_VD[FILLER.keys :, block[4]] = eye
    layers = {
        f"layer_{i}": {
            "attention_gain_D": np.ones(D),
            "mlp_gain_D": np.ones(D),
            "attention": attention,
            "mlp": {"up_DF": np.zeros((D, 1)), "down_FD": np.zeros((1, D))},
        }
        for i, attention in enumerate((back, match))
    }
    params = {"embedding_VD": embedding, "final_gain_D": np.ones(D), "head_VD": head_VD, **layers}
    return config, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def answered(model, name, length, count=12):
    config, params = model
    task = find(name)
    instances = [
        task.instance(FILLER, split="test", seed=0, index=i, length=length) for i in range(count)
    ]
    return retrieval.score_instances(Scorer({length: config}, params, 4 * length), instances)


@pytest.mark.default_cases(1, thorough=1)
@pytest.mark.parametrize("length", [64, 512])
@pytest.mark.parametrize("name", ["mqar_8", "ngram"])
def test_an_induction_model_with_a_flat_head_retrieves_at_every_length(name, length):
    answers = answered(induction("nope", margin=60.0), name, length)
    assert answers.correct.all()
    assert (answers.rank == 0).all()
    assert answers.distance.max() > length / 2


@pytest.mark.thorough
def test_a_slope_ends_the_retrieval_where_the_margin_budget_says():
    """Weight 1/2 needs distance < (margin - log(1 / m)) / m; none is left past margin / m."""
    margin, m = 20.0, 1 / 16  # three heads: the first slope is 2^-4
    answers = answered(induction("alibi", margin), "mqar_8", 512, 24)
    near = answers.distance < (margin - math.log(1 / m)) / m
    far = answers.distance > margin / m
    assert near.sum() > 40
    assert far.sum() > 20
    assert answers.correct[near].all()
    assert not answers.correct[far].any()


@pytest.mark.thorough
@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", ["needles_4", "mqar_16"])
def test_under_a_window_the_induction_model_loses_exactly_what_lies_past_its_edge(name):
    """At 4L the flat head finds everything; attention to the last L tokens reaches L - 1 back."""
    config, params = induction("nope", margin=60.0)
    scorer, task, train_length = Scorer({256: config}, params, 1024), find(name), 64
    instances = [
        task.instance(FILLER, split="test", seed=0, index=i, length=256) for i in range(12)
    ]
    assert retrieval.score_instances(scorer, instances).correct.all()
    answers = retrieval.score_instances(scorer, instances, train_length)
    inside = answers.distance < train_length
    assert 0 < inside.sum() < len(inside)
    np.testing.assert_array_equal(answers.correct, inside)
    assert scorer.compilations == 2


def test_the_window_ends_between_needles_at_l_minus_one_and_at_l():
    config, params = induction("nope", margin=60.0)
    (plain,) = FILLER.passages(np.array([0]), np.array([1]))
    k1, k2, value, other = FILLER.keys + 3, FILLER.keys + 9, FILLER.values + 7, FILLER.values + 8
    instances = []
    for distance in (63, 64, 65):  # from the value to the last token of the question, at 254
        tokens, at = np.full(256, plain, np.int32), 254 - distance
        tokens[at - 2 : at + 1] = k1, k2, value
        tokens[100:103] = FILLER.keys + 5, FILLER.keys + 6, other
        tokens[252:] = FILLER.sep, k1, k2, value
        instances.append(Instance(tokens, (Answer(255, 256, distance, at / 252, 0.5),)))
    scorer = Scorer({256: config}, params, 1024)
    assert retrieval.score_instances(scorer, instances).correct.all()
    assert retrieval.score_instances(scorer, instances, 64).correct.tolist() == [True, False, False]
