"""Every task is read by a solver that knows its wording alone: it must find the answer, and one only."""

import collections
import itertools

import numpy as np
import pytest
from posenc_jax.tasks.retrieval_windows import Curriculum, RetrievalWindows
from posenc_jax.tasks.task_registry import SCORED, TASKS, find

from support.task_fillers import FILLER, TOKENIZER
from support.task_solvers import BOS, SEP, SOLVERS, filler_of, is_value, made

LENGTHS = (32, 33, 47, 64, 131, 300, 1024)


def test_every_scored_task_has_a_solver_here():
    assert set(SOLVERS) == set(SCORED)
    assert {task.id for task in SCORED.values()} == {f"R{i}" for i in range(1, 11)}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_reader_of_the_wording_finds_the_answer_and_no_other(name):
    task = find(name)
    for length in LENGTHS:
        if length < task.shortest(filler_of(task)):
            with pytest.raises(ValueError, match="needs a length of at least"):
                made(name, length, 0)
            continue
        for index in range(12):
            instance = made(name, length, index)
            tokens = instance.tokens.tolist()
            assert len(tokens) == length
            assert instance.tokens.dtype == np.int32
            assert tokens[0] == BOS
            assert instance.answers
            for answer in instance.answers:
                assert 0 <= answer.depth < 1
                source = answer.start - 1 - answer.distance
                assert tokens[source] == tokens[answer.start]
                for place in range(answer.start, answer.stop):
                    before = tokens[:place]
                    context = before[: before.index(SEP)] if SEP in before else before
                    assert source < len(context)
                    assert SOLVERS[name](before, context) == {tokens[place]}, (length, index)


@pytest.mark.parametrize("name", ["needles_4", "variables_2", "latest_first", "synonym"])
def test_the_value_stands_in_its_needle_and_nowhere_else(name):
    for index in range(30):
        instance = made(name, 200, index)
        (answer,) = instance.answers
        context = instance.tokens[: answer.start].tolist()
        assert context.count(int(instance.tokens[answer.start])) == 1
        values = [token for token in context if is_value(token)]
        assert len(values) == len(set(values))


@pytest.mark.parametrize(
    "name", ["needles_1", "needles_4", "needles_16", "passkey", "ngram", "phonebook", "flipflop"]
)
def test_the_depth_walks_through_the_deciles(name):
    for index in range(20):
        (answer,) = made(name, 1024, index).answers
        assert int(answer.depth * 10) == index % 10
        placed = 1 - answer.distance / 1024
        assert placed == pytest.approx(answer.depth, abs=0.08)


def subsequence(short, long):
    rest = iter(long)
    return all(any(token == other for other in rest) for token in short)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_longer_instance_is_the_shorter_one_with_more_in_the_gaps(name):
    shortest = max(find(name).shortest(FILLER), 32)
    for index in range(5):
        # Steps of two and five keep the parity of copy and the entries of the phone book whole.
        lengths = [shortest, shortest + 10, shortest + 40, shortest + 500]
        instances = [made(name, length, index) for length in lengths]
        for short, long in itertools.pairwise(instances):
            if name == "copy":  # both halves grow
                half = len(short.tokens) // 2 - 1
                assert long.tokens[: half + 1].tolist() == short.tokens[: half + 1].tolist()
                continue
            assert [a.kind for a in short.answers] == [a.kind for a in long.answers]
            asked = [
                [s.tokens[a.start : a.stop].tolist() for a in s.answers] for s in (short, long)
            ]
            assert asked[0] == asked[1]
            assert subsequence(short.tokens.tolist(), long.tokens.tolist())


@pytest.mark.parametrize("name", SOLVERS)
def test_answers_are_uniform_over_what_they_can_be(name):
    task = find(name)
    symbols = {"passkey": 10, "passkey_sentences": 10, "flipflop": 2}.get(name, 64)
    length = max(64, task.shortest(filler_of(task)))
    counts, places = collections.Counter(), 0
    for index in range(500 if symbols > 2 else 1000):
        instance = made(name, length, index)
        # The questions of one recall exclude each other, so one of each instance is taken.
        answer = instance.answers[index % len(instance.answers)]
        for token in instance.tokens[answer.start : answer.stop].tolist():
            counts[token] += 1
            places += 1
    assert len(counts) <= symbols
    expected = places / symbols
    squares = sum((count - expected) ** 2 / expected for count in counts.values())
    squares += expected * (symbols - len(counts))
    freedom = symbols - 1
    assert squares < freedom + 5 * np.sqrt(2 * freedom)


def keys_of(name, split):
    found = set()
    for index in range(300):
        instance = made(name, 100, index, split)
        (answer,) = instance.answers
        tokens = instance.tokens.tolist()
        asked = tokens[tokens.index(SEP) + 1 :] if name != "ngram" else tokens[-4:]
        number = answer.stop - answer.start
        found.add(tuple(asked[:-number] if name != "passkey" else asked))
    return found


@pytest.mark.default_cases(3)
@pytest.mark.parametrize(
    "name", ["passkey", "needles_4", "ngram", "phonebook", "latest_first", "synonym"]
)
def test_splits_ask_for_keys_of_their_own(name):
    train, dev, test = (keys_of(name, split) for split in ("train", "dev", "test"))
    assert min(len(train), len(dev), len(test)) > 3
    assert not train & dev
    assert not train & test
    assert not dev & test


def test_both_cues_and_both_bits_are_asked_equally_often():
    kinds = collections.Counter(made("latest_first", 64, i).answers[0].kind for i in range(400))
    assert set(kinds) == {"FIRST", "LAST"}
    assert abs(kinds["FIRST"] - 200) < 60  # six standard deviations of ten


def test_synonyms_pair_every_concept_with_one_of_the_other_half():
    seen = {}
    for index in range(600):
        *_, concept, synonym = made("association", 40, index, "train").tokens.tolist()
        assert seen.setdefault(concept, synonym) == synonym
    assert set(seen) == set(range(128, 160))
    assert set(seen.values()) == set(range(160, 192))


def test_a_phone_book_longer_than_the_split_has_names_for_is_refused():
    with pytest.raises(ValueError, match=r"needs \d+ names; split test has"):
        made("phonebook", 2**17, 0)
    assert len(made("phonebook", 2**15, 0).tokens) == 2**15


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_trained_on(name):
    windows = RetrievalWindows(
        TOKENIZER,
        filler_of(find(name)),
        tasks=((name, 1.0),),
        length=160,
        seed=0,
        split="train",
        curriculum=Curriculum((2, 4)),
        answer_weight=2.0,
    )
    for index in range(5):
        example = windows[index]
        assert example["weights_T"].max() == 2.0
        assert (example["targets_T"][example["weights_T"] > 0] < BOS).all()


def test_a_name_that_is_not_there_names_the_nearest():
    with pytest.raises(ValueError, match="no retrieval task 'needles_5'; did you mean 'needles_"):
        find("needles_5")


def test_a_gram_that_comes_up_by_accident_is_broken():
    """In 2^19 random symbols a 3-gram of 64 symbols is expected twice besides where it is wanted."""
    for index in range(6):
        tokens = made("ngram", 2**19, index).tokens
        wanted = tokens[-4:-1]
        found = (tokens[:-2] == wanted[0]) & (tokens[1:-1] == wanted[1]) & (tokens[2:] == wanted[2])
        assert found.sum() == 2
