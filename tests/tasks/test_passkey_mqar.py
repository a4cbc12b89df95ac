"""Retrieval tasks: the answers are known, so each is checked by searching for it."""

import functools
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.passkey_mqar import mqar, passkey, shortest_length
from posenc_jax.tasks.retrieval_windows import Curriculum, RetrievalWindows
from posenc_jax.tasks.task_registry import find

from support.sentencepiece_models import train_sentencepiece
from support.task_fillers import FILLER, SENTENCES, TOKENIZER, TextStream

LENGTHS = [32, 33, 47, 64, 100, 257, 1024]


def occurrences(tokens, piece) -> list[int]:
    tokens, piece = list(tokens), list(piece)
    return [i for i in range(len(tokens)) if tokens[i : i + len(piece)] == piece]


@pytest.mark.parametrize("filler", [FILLER, SENTENCES], ids=["corpus", "sentences"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_passkey_stands_in_its_needle_and_nowhere_else(filler, length):
    for index in range(40):
        instance = passkey(TOKENIZER, filler, split="test", seed=0, index=index, length=length)
        (answer,) = instance.answers
        assert len(instance.tokens) == answer.stop == length
        digits = instance.tokens[answer.start : answer.stop]
        in_needle, in_question = occurrences(instance.tokens, digits)
        assert in_question == answer.start
        assert answer.distance == answer.start - 1 - in_needle
        cues = occurrences(instance.tokens, b"key=")
        assert cues == [in_needle - 4, answer.start - 4]
        assert instance.tokens[in_needle - 5 : in_needle + 6].tobytes() == (
            np.array([*b" key=", *digits, *b"."], np.int32).tobytes()
        )
        assert instance.tokens[answer.start - 5] == TOKENIZER.sep
        assert instance.tokens[0] == TOKENIZER.bos


@pytest.mark.parametrize("length", [257, 1024])
def test_passkey_depth_walks_through_the_deciles(length):
    for index in range(30):
        instance = passkey(TOKENIZER, FILLER, split="dev", seed=1, index=index, length=length)
        (answer,) = instance.answers
        spare = length - shortest_length("passkey", FILLER)
        before = answer.start - 1 - answer.distance - 5 - 1
        assert int(answer.depth * 10) == index % 10
        assert before / spare == pytest.approx(answer.depth, abs=1 / spare)


@pytest.mark.parametrize(
    ("length", "pairs"), [(34, 8), (35, 8), (64, 4), (130, 32), (258, 64), (1024, 16)]
)
def test_each_queried_value_stands_after_its_key_once(length, pairs):
    for index in range(20):
        instance = mqar(
            TOKENIZER, FILLER, split="test", seed=0, index=index, length=length, pairs=pairs
        )
        tokens = instance.tokens.tolist()
        (separator,) = occurrences(tokens, [TOKENIZER.sep])
        context, queries = tokens[:separator], tokens[separator + 1 :]
        assert len(tokens) == length
        assert len(queries) == 2 * pairs == 2 * len(instance.answers)
        assert len(set(queries[0::2])) == len(set(queries[1::2])) == pairs
        assert all(128 <= key < 192 for key in queries[0::2])
        assert all(192 <= value < 256 for value in queries[1::2])
        assert sum(token >= 128 for token in context) == 2 * pairs + 1  # and BOS
        for k, answer in enumerate(instance.answers):
            key, value = queries[2 * k], queries[2 * k + 1]
            assert (answer.start, answer.stop) == (separator + 2 + 2 * k, separator + 3 + 2 * k)
            (needle,) = occurrences(context, [key, value])
            assert context.count(key) == context.count(value) == 1
            assert answer.distance == answer.start - 1 - (needle + 1)
            assert answer.depth == needle / separator


def gaps_of(instance, tokenizer) -> tuple[list, list]:
    """Needles in order, and the filler before, between and after them."""
    tokens = instance.tokens.tolist()
    context = tokens[1 : tokens.index(tokenizer.sep)]
    needles, gaps, gap, place = [], [], [], 0
    sizes = {True: 2, False: 10}
    keyed = len(instance.answers) > 1
    digits = tokens[-5:]
    while place < len(context):
        here = (
            context[place] >= 128
            if keyed
            else context[place : place + 10] == [*b" key=", *digits][:10]
        )
        if here:
            needles.append(context[place : place + sizes[keyed]])
            gaps.append(gap)
            place, gap = place + sizes[keyed], []
        else:
            gap.append(context[place])
            place += 1
    return needles, [*gaps, gap]


@pytest.mark.parametrize("task", ["passkey", "mqar"])
def test_a_longer_instance_has_the_same_needles_and_more_of_the_same_filler(task):
    make = functools.partial(mqar, pairs=6) if task == "mqar" else passkey
    for index in range(6):
        needles, gaps = None, None
        for length in [*range(32, 90), 128, 129, 500, 4096]:
            instance = make(TOKENIZER, FILLER, split="test", seed=5, index=index, length=length)
            now_needles, now_gaps = gaps_of(instance, TOKENIZER)
            if needles is not None:
                assert now_needles == needles
                for short, long in zip(gaps, now_gaps, strict=True):
                    assert long[: len(short)] == short
            needles, gaps = now_needles, now_gaps


def test_mqar_needles_lie_uniformly_in_the_filler():
    depths = [
        answer.depth
        for index in range(400)
        for answer in mqar(
            TOKENIZER, FILLER, split="dev", seed=0, index=index, length=600, pairs=8
        ).answers
    ]
    # 3200 depths: each decile's count has a standard deviation of about 17.
    counts = np.histogram(depths, bins=10, range=(0, 1))[0]
    assert abs(counts - 320).max() < 90


def test_passkeys_of_different_splits_are_different_numbers():
    numbers = {
        split: {
            passkey(TOKENIZER, SENTENCES, split=split, seed=0, index=i, length=40)
            .tokens[-5:]
            .tobytes()
            for i in range(1500)
        }
        for split in ("train", "dev", "test")
    }
    assert all(len(found) > 1300 for found in numbers.values())
    assert not numbers["train"] & numbers["dev"]
    assert not numbers["train"] & numbers["test"]
    assert not numbers["dev"] & numbers["test"]


@pytest.mark.parametrize("task", [passkey, functools.partial(mqar, pairs=4)])
def test_split_seed_and_index_each_change_the_instance(task):
    arguments = {"split": "dev", "seed": 0, "index": 3, "length": 200}
    first = task(TOKENIZER, FILLER, **arguments)
    again = task(TOKENIZER, FILLER, **arguments)
    assert first.tokens.tolist() == again.tokens.tolist()
    assert first.answers == again.answers
    for change in ({"split": "test"}, {"seed": 1}, {"index": 4}):
        other = task(TOKENIZER, FILLER, **(arguments | change))
        assert first.tokens.tolist() != other.tokens.tolist()


def digest_of_first_instances() -> str:
    digest = hashlib.sha256()
    windows = RetrievalWindows(
        TOKENIZER,
        SENTENCES,
        tasks=(("passkey", 0.5), ("mqar", 0.5)),
        length=96,
        seed=7,
        split="train",
        curriculum=Curriculum((2, 8)),
        answer_weight=1.0,
    )
    for index in range(10):
        arguments = {"split": "train", "seed": 7, "index": index, "length": 96}
        digest.update(passkey(TOKENIZER, SENTENCES, **arguments).tokens.tobytes())
        digest.update(mqar(TOKENIZER, SENTENCES, pairs=5, **arguments).tokens.tobytes())
        digest.update(windows[index]["tokens_T"].tobytes())
    return digest.hexdigest()


def test_another_process_makes_the_same_instances(request):
    code = (
        "import sys, json; sys.path[:0] = sys.argv[1:]; import test_passkey_mqar as here; "
        "print(json.dumps(here.digest_of_first_instances()))"
    )
    folders = [str(request.path.parents[n]) for n in (0, 1)]
    done = subprocess.run(
        [sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == digest_of_first_instances()


def test_instances_are_those_that_published_numbers_were_measured_on():
    """results/ was scored on these; whoever changes them on purpose measures results/ again."""
    assert digest_of_first_instances() == (
        "910a9ccb607dfea3be81e20b9d912438e35b60b9e8a050eb6ee082d125e627b8"
    )


def test_too_short_a_length_names_the_minimum():
    with pytest.raises(ValueError, match="passkey needs a length of at least 22 tokens; 21"):
        passkey(TOKENIZER, FILLER, split="dev", seed=0, index=0, length=21)
    passkey(TOKENIZER, FILLER, split="dev", seed=0, index=0, length=22)
    with pytest.raises(ValueError, match="mqar with 16 pairs needs a length of at least 66"):
        mqar(TOKENIZER, FILLER, split="dev", seed=0, index=0, length=65, pairs=16)


def test_wrong_names_are_answered_with_the_right_ones():
    with pytest.raises(ValueError, match="no retrieval task 'paskey'; did you mean 'passkey"):
        find("paskey")
    with pytest.raises(ValueError, match="split 'valid' is not one of train, dev, test"):
        mqar(TOKENIZER, FILLER, split="valid", seed=0, index=0, length=64, pairs=2)
    with pytest.raises(ValueError, match="1 to 64 pairs"):
        mqar(TOKENIZER, FILLER, split="dev", seed=0, index=0, length=1000, pairs=65)


def test_tasks_work_with_a_sentencepiece_vocabulary(tmp_path):
    tokenizer = open_tokenizer(train_sentencepiece(tmp_path))
    filler = Filler(TextStream(tokenizer), tokenizer)
    with pytest.raises(ValueError, match="another tokenizer"):
        passkey(tokenizer, FILLER, split="dev", seed=0, index=0, length=99)
    keys = range(tokenizer.bos - 128, tokenizer.bos)
    for index in range(20):
        arguments = {"split": "test", "seed": 0, "index": index, "length": 80}
        recall = mqar(tokenizer, filler, pairs=8, **arguments)
        context = recall.tokens[: recall.tokens.tolist().index(tokenizer.sep)]
        assert sum(token in keys for token in context) == 16
        instance = passkey(tokenizer, filler, **arguments)
        (answer,) = instance.answers
        digits = instance.tokens[answer.start :]
        first, last = occurrences(instance.tokens, digits)
        assert (last, last - 1 - first) == (answer.start, answer.distance)
        text = tokenizer.decode(digits)
        assert tokenizer.decode(instance.tokens).count(b"key=" + text) == 2
        assert tokenizer.decode(instance.tokens).count(text) == 2


def test_filler_keeps_the_text_it_need_not_change():
    class Plain:
        bos = TOKENIZER.bos
        tokens = np.array([TOKENIZER.bos, *b"a key= 12345 6789 \xc3\xa9.", TOKENIZER.bos, *b"end"])

    filler = Filler(Plain(), TOKENIZER)
    text = filler.passages(np.array([0]), np.array([len(filler)]))
    assert bytes(text.tolist()) == b"a key? 1234? 6789 ??.end"
    wrapped = filler.passages(np.array([len(filler) - 3]), np.array([5]))
    assert bytes(wrapped.tolist()) == b"enda "
