"""Training windows of retrieval documents, taken apart again."""

import numpy as np
import pytest
from posenc_jax.tasks.retrieval_windows import Curriculum, RetrievalWindows, stages
from posenc_jax.tasks.task_registry import find
from posenc_jax.training.config_sections import DataSection
from posenc_jax.training.inputs import open_inputs, retrieval_tasks, training_batches

from support import runs
from support.task_fillers import FILLER, TOKENIZER


def windows_of(
    split="train",
    seed=0,
    length=64,
    tasks=(("passkey", 0.5), ("mqar", 0.5)),
    answer_weight=1.0,
    **grows,
):
    return RetrievalWindows(
        TOKENIZER,
        FILLER,
        tasks=tasks,
        length=length,
        seed=seed,
        split=split,
        curriculum=Curriculum((2, 8), **grows),
        answer_weight=answer_weight,
    )


def documents_of(example) -> list[dict]:
    segments = example["segments_T"]
    return [
        {key: value[segments == number] for key, value in example.items()}
        for number in range(1, segments.max() + 1)
    ]


@pytest.mark.parametrize("length", [64, 256])
def test_training_windows_weigh_the_answers_and_nothing_else(length):
    for index in range(60):
        example = windows_of(length=length)[index]
        assert example["tokens_T"].shape == (length,)
        assert not example["weights_T"][example["segments_T"] == 0].any()
        documents = documents_of(example)
        assert all(len(each["tokens_T"]) >= length // 4 for each in documents[:-1])
        for document in documents:
            tokens = document["tokens_T"].tolist()
            separator = tokens.index(TOKENIZER.sep)
            asked = tokens[separator + 1 :]
            start = separator + 1
            if asked[:4] == list(b"key="):
                answers = set(range(start + 4, start + 9))
            else:
                answers = set(range(start + 1, len(tokens), 2))
            weighed = {place + 1 for place in np.flatnonzero(document["weights_T"])}
            assert weighed == answers
            for place in answers:
                assert document["targets_T"][place - 1] == tokens[place]
            assert document["positions_T"].tolist() == list(range(len(tokens)))


def test_training_documents_have_every_length_from_a_quarter_window():
    first = [len(documents_of(windows_of(length=256)[i])[0]["tokens_T"]) for i in range(600)]
    assert min(first) >= 64
    assert max(first) == 256
    # Uniform on [64, 256]: mean 160, standard deviation of the mean 55.7 / sqrt(600) = 2.3.
    assert abs(np.mean(first) - 160) < 10


def test_training_tasks_come_in_their_shares():
    windows = windows_of(length=64, tasks=(("passkey", 1.0), ("mqar", 3.0)))
    first = [documents_of(windows[i])[0]["tokens_T"] for i in range(800)]
    recalls = np.mean([max(tokens[1:-1]) >= 128 and tokens[-1] >= 192 for tokens in first])
    assert abs(recalls - 0.75) < 0.06  # four standard deviations


def test_windows_depend_on_seed_split_and_index():
    first = windows_of()[5]["tokens_T"].tolist()
    assert first == windows_of()[5]["tokens_T"].tolist()
    assert first != windows_of()[6]["tokens_T"].tolist()
    assert first != windows_of(seed=1)[5]["tokens_T"].tolist()
    assert first != windows_of(split="dev")[5]["tokens_T"].tolist()
    assert len(windows_of()) >= 2**40


def test_tasks_that_do_not_fit_or_have_no_share_are_refused():
    with pytest.raises(ValueError, match="mqar with 8 pairs needs a length of at least 34"):
        windows_of(length=33)
    with pytest.raises(ValueError, match="shares that are at least 0 and not all 0"):
        windows_of(tasks=(("passkey", 0.0),))
    with pytest.raises(ValueError, match="no retrieval task 'mqra'; did you mean 'mqar"):
        windows_of(tasks=(("mqra", 1.0),))


def test_the_answer_weight_scales_the_answers_and_nothing_else():
    for task in ("passkey", "mqar"):
        ask = {"tasks": ((task, 1.0),)}
        plain, heavy = windows_of(**ask)[3], windows_of(**ask, answer_weight=3.0)[3]
        assert plain["weights_T"].sum() > 0
        np.testing.assert_array_equal(heavy["weights_T"], 3 * plain["weights_T"])
        np.testing.assert_array_equal(heavy["tokens_T"], plain["tokens_T"])


def test_a_mixture_names_its_tasks_and_shares_and_the_default_is_recall_and_passkey():
    assert retrieval_tasks(DataSection()) == (("passkey", 0.25), ("mqar", 0.75))
    mix = DataSection(retrieval_mix="passkey, needles_4:2,latest_first")
    assert retrieval_tasks(mix) == (("passkey", 1.0), ("needles_4", 2.0), ("latest_first", 1.0))
    for wrong, message in (
        ("mqra", "did you mean 'mqar"),
        ("mqar:x", "could not convert"),
        ("mqar:0", "the share of mqar must lie in"),
        ("passkey_sentences", "leave passkey_sentences out"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieval_tasks(DataSection(retrieval_mix=wrong))


def same(one, two) -> bool:
    return all(np.array_equal(one[key], two[key]) for key in one)


def test_documents_grow_by_thirds_of_the_training_and_end_as_they_always_were():
    plain, grown = windows_of(length=256), windows_of(length=256, windows=90, divisors=(8, 2, 1))
    longest = []
    for third, divisor in enumerate((8, 2, 1)):
        lengths = [
            len(document["tokens_T"])
            for index in range(30 * third, 30 * third + 30)
            for document in documents_of(grown[index])
        ]
        longest.append(max(lengths))
        assert max(lengths) <= 256 // divisor
    assert longest[0] < longest[1] < longest[2]
    assert all(same(grown[index], plain[index]) for index in range(60, 100))
    assert not any(same(grown[index], plain[index]) for index in range(60))


RECIPE = (
    ("passkey", 1.0),
    ("needles_4", 1.0),
    ("mqar", 3.0),
)  # 22, 17 and 14 tokens for 2 pairs asked twice


def test_an_eighth_of_128_tokens_holds_two_pairs_asked_twice_and_nothing_else():
    grows = {"askings": 2, "windows": 90, "divisors": (8, 2, 1)}
    mixed = {"length": 128, "tasks": RECIPE}
    found = stages(RECIPE, FILLER, Curriculum((2, 8), **grows), 128)
    assert [(stage.longest, stage.most_pairs) for stage in found] == [(16, 2), (64, 8), (128, 8)]
    assert [stage.tasks for stage in found] == [RECIPE[2:], RECIPE, RECIPE]
    plain, grown = windows_of(**mixed, askings=2), windows_of(**mixed, **grows)
    for index in range(30):
        for document in documents_of(grown[index]):
            assert 14 <= len(document["tokens_T"]) <= 16
            assert np.count_nonzero(document["weights_T"]) == 4
    lengths = [len(d["tokens_T"]) for i in range(30, 60) for d in documents_of(grown[i])]
    assert 16 < max(lengths) <= 64
    assert all(same(grown[index], plain[index]) for index in range(60, 100))


def test_pairs_are_capped_by_the_longest_document_and_not_by_the_warm_up_alone():
    grows = Curriculum((2, 16), askings=2, windows=90, pairs_warmup=0.5, divisors=(8, 2, 1))
    for length in (128, 200, 512):
        for stage in stages((("mqar", 1.0),), FILLER, grows, length)[:2]:
            fits = [n for n in range(2, 17) if 2 + 2 * n + 4 * n <= stage.longest]
            assert stage.most_pairs == max(fits)


def test_a_task_that_a_part_is_too_short_for_leaves_its_share_to_the_others_in_proportion():
    tasks = (("passkey", 0.5), ("needles_4", 0.1), ("mqar", 0.4), ("needles_16", 0.3))
    first, last = stages(tasks, FILLER, Curriculum((2, 8), windows=9, divisors=(8, 1)), 160)
    assert [find(name).shortest(FILLER) for name, _ in tasks] == [22, 17, 34, 53]
    assert first.tasks == tasks[1:3]
    np.testing.assert_allclose(first.shares, [0.2, 0.8])
    assert last.tasks == tasks
    drawn = windows_of(length=160, tasks=tasks, windows=2000, divisors=(8, 1))
    counts = [np.count_nonzero(documents_of(drawn[i])[0]["weights_T"]) for i in range(900)]
    assert np.mean(np.array(counts) == 1) == pytest.approx(
        0.2, abs=0.06
    )  # four standard deviations


def test_a_part_that_nothing_fits_into_is_refused_with_the_numbers():
    message = (
        r"part 1 of 3 has documents of at most 8 tokens \(64 / 8\), and its shortest task, mqar with "
        r"2 pairs, each asked 2 times, needs 14; take a smaller divisor than 8"
    )
    grows = {"askings": 2, "divisors": (8, 2, 1)}
    with pytest.raises(ValueError, match=message):
        windows_of(length=64, tasks=RECIPE, windows=90, **grows)
    unasked = (("passkey", 1.0), ("mqar", 0.0))  # a task without a share fills no part
    with pytest.raises(ValueError, match=r"at most 16 tokens .64 / 4., .* passkey, needs 22"):
        windows_of(length=64, tasks=unasked, windows=90, divisors=(4, 1))
    windows_of(length=64, tasks=RECIPE, windows=0, **grows)  # at its end there is no short part


def test_pairs_grow_from_the_fewest_to_the_most():
    recall = {"length": 64, "tasks": (("mqar", 1.0),)}
    plain, grown = windows_of(**recall), windows_of(**recall, windows=120, pairs_warmup=0.5)
    most = []
    for index in range(60):
        counts = [
            np.count_nonzero(document["weights_T"]) for document in documents_of(grown[index])
        ]
        assert min(counts) >= 2
        assert max(counts) <= 2 + index // 10
        most.append(max(counts))
    assert max(most[:10]) == 2
    assert max(most[50:]) > 5
    assert all(same(grown[index], plain[index]) for index in range(60, 130))


def test_a_run_that_goes_on_from_another_one_begins_where_the_curriculum_ends():
    ended = windows_of(windows=0, divisors=(8, 2, 1), pairs_warmup=0.5)
    assert all(same(ended[index], windows_of()[index]) for index in range(20))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"length_warmup": (8, 2)}, r"length_warmup=\(8, 2\) must fall to 1"),
        ({"length_warmup": (1, 8, 1)}, "must fall to 1"),
        ({"length_warmup": ()}, "must fall to 1"),
        ({"length_warmup": (0, 1)}, "length_warmup must lie in"),
        ({"length_warmup": (2.5, 1)}, "length_warmup must be whole numbers"),
        ({"pairs_warmup": 1.5}, r"pairs_warmup must lie in \[0, 1\]"),
        ({"pair_askings": 0}, "pair_askings must lie in"),
        (
            {"pair_askings": 2, "max_pairs": 8},
            "mqar with 8 pairs, each asked 2 times needs a length of at least 50",
        ),
        (
            {"retrieval_share": 0.0, "length_warmup": (2, 1)},
            "length_warmup=.* is of retrieval documents: set config.data.retrieval_share",
        ),
        (
            {"retrieval_mix": "passkey,mqar_8", "pairs_warmup": 0.5},
            "pairs_warmup=0.5 is of mqar documents: name mqar",
        ),
        (
            {"length_warmup": (8, 1)},
            "part 1 of 2 has documents of at most 4 tokens .32 / 8., .* mqar with 2 pairs, needs 10",
        ),
        (
            {"pairs_warmup": 0.5, "min_pairs": 3},
            "pairs_warmup=0.5 has nothing to grow: config.data.min_pairs and max_pairs are both 3",
        ),
        (
            {"retrieval_mix": "passkey", "pair_askings": 2},
            "pair_askings=2 is of recall documents: name mqar",
        ),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused_in_a_line(data_dir, data, message):
    def begin():
        config = runs.config(data_dir, "rope", data=data)
        training_batches(
            config, open_inputs(config), first_step=0, process_index=0, process_count=1
        )

    with pytest.raises(ValueError, match=message):
        begin()
