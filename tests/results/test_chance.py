"""Chance: policies that bind nothing are played on generated instances, and none scores above it."""

import random

import numpy as np
import pytest
from posenc_jax.results.chance import CHANCE, corrected, passkey_only
from posenc_jax.results.schema import SUMMARY_TASKS
from posenc_jax.tasks.offset_lookup import asked_offsets, offset_lookup
from posenc_jax.tasks.retrieval_windows import Curriculum, RetrievalWindows
from posenc_jax.tasks.task_registry import SCORED, find

from support import oracles_chance
from support.task_fillers import FILLER, TOKENIZER
from support.task_solvers import SOLVERS, filler_of, made

FEW, MANY = 300, 10_000
ERRORS = 4  # standard errors that a policy may be off by


def played(instances, **policies):
    """Plays policies, (tokens before, width) -> tokens, on the same answers.

    Returns the corrected accuracy of each, and the standard error of one that is right as often as
    chance says.
    """
    right, chances = {name: [] for name in policies}, []
    for instance in instances:
        tokens = instance.tokens.tolist()
        for answer in instance.scored:
            before, wanted = tokens[: answer.start], tokens[answer.start : answer.stop]
            for name, policy in policies.items():
                right[name].append(list(policy(before, len(wanted))) == wanted)
            chances.append(answer.chance)
    chance = np.array(chances)
    error = np.sqrt((chance * (1 - chance)).sum()) / (1 - chance).sum()
    return {name: corrected(np.mean(hits), chance.mean()) for name, hits in right.items()}, error


def instances_of(name, count, split="test", length=0):
    length = length or max(64, find(name).shortest(filler_of(find(name))))
    return (made(name, length, index, split) for index in range(count))


def others(name):
    """The other policies, but where one value alone is in sight: to see it is to find it."""
    if name in ("passkey", "passkey_sentences", "needles_1"):
        return {}
    draw = random.Random(name)

    def whole(policy):
        def said(tokens, width):
            found = policy(name, tokens, draw)
            return found if isinstance(found, tuple) else [found] * width

        return said

    return {words: whole(policy) for words, policy in oracles_chance.OTHERS.items()}


def check(name, instances):
    """Raises AssertionError unless the best policy scores 0 and no other one more, within the error."""
    above, error = played(instances, best=oracles_chance.BEST[name], **others(name))
    assert abs(above["best"]) < ERRORS * error
    assert max(above.values()) < ERRORS * error
    return error


@pytest.mark.parametrize("name", SCORED)
def test_the_best_policy_that_binds_nothing_scores_zero_and_no_other_more(name):
    check(name, instances_of(name, FEW))


@pytest.mark.slow
@pytest.mark.parametrize(("split", "more"), [("dev", 0), ("test", 101)])
@pytest.mark.parametrize("name", SCORED)
def test_on_many_instances_too(name, split, more):
    length = max(40, find(name).shortest(filler_of(find(name)))) + more
    assert check(name, instances_of(name, MANY, split, length)) < 0.02


@pytest.mark.parametrize("name", ["needles_4", "needles_16"])
def test_where_needles_lie_does_not_tell_which_one_is_asked(name):
    """With the others left and right of the asked one in equal numbers, this policy was right in 0.54."""
    above, error = played(
        instances_of(name, 2 * FEW, length=256), places=oracles_chance.least_crowded
    )
    assert abs(above["places"]) < ERRORS * error


@pytest.mark.parametrize(
    "name", ["needles_4", "mqar_16", "variables_1", "latest_first", "synonym", "nback"]
)
def test_guessing_over_the_whole_alphabet_is_below_chance(name):
    words = "any of the alphabet"
    above, error = played(instances_of(name, FEW), **{words: others(name)[words]})
    assert above[words] < -2 * error


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("length", [64, 256])
def test_offset_lookup_by_the_most_frequent_symbol_in_reach_scores_zero(count, length):
    offsets = asked_offsets(64)
    instances = (
        offset_lookup(FILLER, split="test", seed=0, index=i, length=length, offsets=offsets)
        for i in range(count)
    )
    above, error = played(
        instances,
        best=lambda tokens, _: oracles_chance.offset(tokens, offsets[0], offsets[-1]),
        open=lambda tokens, _: oracles_chance.offset_open(tokens, offsets[0], offsets[-1]),
        everywhere=lambda tokens, _: [
            oracles_chance.most_frequent(oracles_chance.context_of(tokens))
        ],
        last=lambda tokens, _: [oracles_chance.context_of(tokens)[-1]],
    )
    assert abs(above["best"]) < ERRORS * error
    assert max(above.values()) < ERRORS * error


def test_an_answer_that_elimination_gives_away_is_not_scored():
    recall = made("mqar_16", 96, 0)
    assert [a.chance for a in recall.answers] == [1 / left for left in range(16, 0, -1)]
    assert recall.scored == recall.answers[:-1]
    copied = made("copy", 64, 3)
    assert copied.answers[-1].chance == 1
    assert copied.answers[-1] not in copied.scored
    alone = find("mqar", pairs=1).instance(FILLER, split="test", seed=0, index=0, length=64)
    assert [a.chance for a in alone.scored] == [1 / 64]  # one pair has nothing to bind


def asked_twice(index, pairs=4):
    task = find("mqar", pairs, askings=2)
    return task.instance(FILLER, split="train", seed=0, index=index, length=96)


def test_a_second_round_of_questions_gives_nothing_away_to_who_binds_nothing():
    def open_in_round(tokens):
        values = [t for t in oracles_chance.context_of(tokens) if oracles_chance.is_value(t)]
        asked = oracles_chance.asked_values(tokens)
        return (
            [v for v in values if v not in asked[len(asked) // len(values) * len(values) :]],
            asked,
            len(values),
        )

    def as_last_round(tokens, _):
        """Copies what was answered at this place of the round before."""
        left, asked, pairs = open_in_round(tokens)
        return [asked[-pairs] if len(asked) >= pairs else left[-1]]

    above, error = played(
        (asked_twice(index) for index in range(FEW)),
        best=lambda tokens, _: [open_in_round(tokens)[0][-1]],
        first=lambda tokens, _: [open_in_round(tokens)[0][0]],
        as_last_round=as_last_round,
        again=lambda tokens, _: [(open_in_round(tokens)[1] or open_in_round(tokens)[0])[-1]],
    )
    assert abs(above["best"]) < ERRORS * error
    assert max(above.values()) < ERRORS * error


def test_a_pair_asked_again_is_as_far_as_where_it_was_answered_last():
    for index in range(30):
        instance = asked_twice(index)
        tokens, answers = instance.tokens.tolist(), instance.answers
        assert [a.chance for a in answers] == [1 / 4, 1 / 3, 1 / 2, 1] * 2
        assert [a.start for a in answers] == list(range(96 - 15, 96, 2))
        pairs = [(tokens[a.start - 1], tokens[a.start]) for a in answers]
        assert sorted(pairs[:4]) == sorted(pairs[4:])
        depths = [
            dict(zip(pairs[i : i + 4], (a.depth for a in answers[i : i + 4]), strict=True))
            for i in (0, 4)
        ]
        assert depths[0] == depths[1]
        for answer, (key, value) in zip(answers, pairs, strict=True):
            nearest = max(i for i in range(answer.start - 1) if tokens[i] == key)
            assert tokens[nearest + 1] == value
            assert answer.distance == answer.start - 1 - (nearest + 1)
    with pytest.raises(
        ValueError, match="8 pairs, each asked 2 times needs a length of at least 50 tokens"
    ):
        find("mqar", 8, askings=2).check(FILLER, 49)


def test_a_task_that_names_its_pairs_asks_them_as_often_as_it_is_told():
    assert find("mqar_16") is find("mqar_16", askings=1)
    assert (
        len(
            find("mqar_16", askings=2)
            .instance(FILLER, split="train", seed=0, index=0, length=128)
            .answers
        )
        == 32
    )
    assert find("passkey", askings=2) is find("passkey")


def test_training_documents_keep_the_loss_on_every_answer():
    windows = RetrievalWindows(
        TOKENIZER, FILLER, tasks=(("mqar", 1.0),), length=64, seed=0, split="train",
        curriculum=Curriculum((8, 8)), answer_weight=1.0,
    )  # fmt: skip
    assert windows[0]["weights_T"].sum() == 8
    twice = RetrievalWindows(
        TOKENIZER, FILLER, tasks=(("mqar", 1.0),), length=64, seed=0, split="train",
        curriculum=Curriculum((8, 8), askings=2), answer_weight=3.0,
    )  # fmt: skip
    assert twice[0]["weights_T"].sum() == 3 * 16


@pytest.mark.parametrize("name", sorted(CHANCE))
def test_the_table_for_words_is_the_mean_over_all_answers(name):
    chances = [a.chance for instance in instances_of(name, 20) for a in instance.answers]
    assert np.mean(chances) == pytest.approx(CHANCE[name])


def test_a_model_that_can_do_passkeys_alone_scores_a_third_of_y_r():
    def passkeys_alone(name):
        def said(tokens, width):
            if width == 1:  # a value: whatever may come next
                return oracles_chance.BEST[name](tokens, width)
            found = []
            for _ in range(width):
                (digit,) = SOLVERS[name](tokens + found, oracles_chance.context_of(tokens))
                found.append(digit)
            return found

        return said

    scores = [played(instances_of(name, FEW), it=passkeys_alone(name)) for name in SUMMARY_TASKS]
    assert scores[0][0]["it"] == 1
    error = np.sqrt(sum(e**2 for _, e in scores)) / len(scores)
    assert np.mean([above["it"] for above, _ in scores]) == pytest.approx(
        passkey_only(), abs=ERRORS * error
    )
    assert error < 0.02
