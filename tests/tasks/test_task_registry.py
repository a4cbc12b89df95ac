"""Every task is read by a solver that knows its wording alone: it must find the answer, and one only."""

import collections
import itertools

import numpy as np
import pytest
from test_passkey_mqar import FILLER, SENTENCES, TOKENIZER

from posenc_jax.tasks.retrieval_windows import Curriculum, RetrievalWindows
from posenc_jax.tasks.task_registry import SCORED, TASKS, find

LENGTHS = (32, 33, 47, 64, 131, 300, 1024)
BOS, SEP = TOKENIZER.bos, TOKENIZER.sep


def filler_of(task):
    return SENTENCES if task.sentences else FILLER


def made(name, length, index, split="test"):
    task = find(name)
    return task.instance(filler_of(task), split=split, seed=0, index=index, length=length)


def is_key(token):
    return 128 <= token < 192


def is_value(token):
    return 192 <= token < 256


# Solvers: from the tokens before an answer, the set of tokens that could follow. Written from the
# wording in EVALUATION, sec. 2, with loops, without the package.


def by_suffix(tokens, length, context):
    """What followed the last `length` tokens wherever they stood in the context."""
    tail = tokens[-length:]
    return {context[i + length] for i in range(len(context) - length) if context[i : i + length] == tail}  # fmt: skip


def solve_needles(tokens, context):
    return by_suffix(tokens, 2, context)


def solve_mqar(tokens, context):
    return by_suffix(tokens, 1, context)


def solve_ngram(tokens, _):
    return by_suffix(tokens, 3, tokens[:-1])


def solve_phonebook(tokens, context):
    asked = tokens[tokens.index(SEP) + 1 :]
    return by_suffix(asked, len(asked), context)


def solve_copy(tokens, context):
    text = context[1:]
    done = len(tokens) - tokens.index(SEP) - (tokens.count(SEP))
    return {text[done]}


def solve_variables(tokens, context):
    bound = {}
    for a, b in itertools.pairwise(context):
        if is_key(a) and (is_key(b) or is_value(b)) and a not in bound:
            bound[a] = b
    # `x v` right before `y ...` reads as a pair too; a value is never a name, so no chain runs wrong.
    name = tokens[-1]
    for _ in range(20):
        if is_value(name):
            return {name}
        name = bound[name]
    raise AssertionError("a chain without an end")


def solve_latest_first(tokens, context):
    asked, (k1, k2) = bytes(tokens[tokens.index(SEP) + 1 : -2]), tokens[-2:]
    found = [context[i + 2] for i in range(len(context) - 2) if context[i : i + 2] == [k1, k2]]
    assert len(found) == len(set(found)) == 4
    return {found[{b"FIRST": 0, b"LAST": -1}[asked]]}


def solve_nback(tokens, context):
    back = tokens[-1] - 128 + 1
    return {context[-back]}


def solve_flipflop(tokens, _):
    state = None
    steps = tokens[1:] if is_key(tokens[1]) else tokens[2:]
    for order, bit in zip(steps[::2], steps[1::2], strict=False):
        state = bit if order == 128 else state
    assert tokens[-1] == 130
    return {state}


def solve_synonym(tokens, context):
    concept = next(k for k in range(32) if 32 + (5 * k + 11) % 32 == tokens[-1] - 128)
    assert tokens[-1] not in context  # no literal overlap
    return by_suffix([128 + concept], 1, context)


def solve_passkey(tokens, context):
    asked = tokens[tokens.index(SEP) + 1 :]
    return by_suffix(asked, len(asked), context)


SOLVERS = {
    "passkey": solve_passkey, "passkey_sentences": solve_passkey, "ngram": solve_ngram,
    "copy": solve_copy, "phonebook": solve_phonebook, "latest_first": solve_latest_first,
    "nback": solve_nback, "flipflop": solve_flipflop, "synonym": solve_synonym,
    **{f"needles_{n}": solve_needles for n in (1, 4, 16)},
    **{f"variables_{n}": solve_variables for n in (1, 2, 4)},
    **dict.fromkeys(("mqar", "mqar_8", "mqar_16", "mqar_32"), solve_mqar),
}  # fmt: skip


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


@pytest.mark.parametrize("name", ["needles_1", "needles_4", "needles_16", "passkey", "ngram", "phonebook", "flipflop"])  # fmt: skip
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
            asked = [[s.tokens[a.start : a.stop].tolist() for a in s.answers] for s in (short, long)]  # fmt: skip
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


@pytest.mark.parametrize("name", ["passkey", "needles_4", "ngram", "phonebook", "latest_first", "synonym"])  # fmt: skip
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
        TOKENIZER, filler_of(find(name)), tasks=((name, 1.0),), length=160, seed=0, split="train",
        curriculum=Curriculum((2, 4)), answer_weight=2.0,
    )  # fmt: skip
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
