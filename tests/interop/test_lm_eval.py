"""lm-evaluation-harness on our runs, where it is installed: pip install -e ".[lm-eval]".

Nothing is downloaded: the tasks are ours, or YAML files over local JSON lines. The run is tiny and has
learnt one thing, that a flip-flop is answered by one of two symbols; so its accuracy there is neither 0
nor 1, and what the harness counts can differ from what we count.
"""

import dataclasses
import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from posenc_jax.data.tokenizers import open_tokenizer
from posenc_jax.evaluation import evaluate
from posenc_jax.evaluation.context import SEED
from posenc_jax.evaluation.perplexity import bits_per_byte, disjoint_segments
from posenc_jax.evaluation.retrieval import buckets, score_instances
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.model.decoder import Decoder
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.task_registry import SCORED, find

from support import oracles_harness as oracle
from support import runs
from support.sentencepiece_models import train_sentencepiece

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager
    from posenc_jax.interop import harness
    from posenc_jax.interop.lm_eval import RunModel
    from posenc_jax.interop.lm_eval_tasks import BUCKETS, RetrievalTasks
    from posenc_jax.interop.token_text import TokenText

REPOSITORY = Path(__file__).parents[2]
L = 32
INSTANCES = 12
ASK = {
    "multiples": None,
    "stretch": None,
    "split": "test",
    "instances": None,
    "include_path": None,
    "limit": None,
    "window": None,
    "samples": False,
    "seed": 0,
    "out": None,
}


def trained(workdir, data_dir, scheme, steps):
    run = runs.config(
        data_dir,
        scheme,
        data={"retrieval_share": 1.0, "retrieval_mix": "flipflop:1"},
        train={"steps": steps, "save_every": steps},
        evaluation={"instances": INSTANCES, "batch_tokens": 1024},
    )
    runs.finished(run, workdir)
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
    return trained(tmp_path_factory.mktemp("run") / "x", data_dir, "rope+alibi", 40)


@pytest.fixture(scope="module")
def model(workdir):
    return RunModel(workdir)


@pytest.fixture(scope="module")
def logits_of(model):
    """The model's logits after some tokens, by the decoder itself; padded to few shapes on the right."""
    config, params = model.run.model_config(L), jax.device_put(model.run.params)

    @jax.jit
    def logits(tokens_BT, pos_BT, seg_BT):
        return Decoder(config).apply({"params": params}, tokens_BT, pos_BT, seg_BT)[0]

    def after(tokens):
        size = -(-len(tokens) // 64) * 64
        padded_BT = np.zeros((1, size), np.int32)
        padded_BT[0, : len(tokens)] = tokens
        seg_BT = (np.arange(size) < len(tokens)).astype(np.int32)[None]
        return logits(padded_BT, np.arange(size)[None], seg_BT)[0, len(tokens) - 1]

    return after


def asks(kind, *arguments):
    return [Instance(kind, {}, args, 0, ("a", 0, 1)) for args in arguments]


def document(text):
    return [256, *text.encode()]


PAIRS = (
    ("def f(x):\n    return", " x\n"),
    ("", "import os\n"),
    ("a much longer context, " * 6, "and its end"),
    ("ends with a space ", "x"),
    ("caf\u00e9", " \u00e9t\u00e9"),
    ("k", "v" * 40),
)


def test_a_log_likelihood_is_that_of_the_models_logits(model, logits_of):
    found = model.loglikelihood(asks("loglikelihood", *PAIRS))
    for (context, continuation), (value, greedy) in zip(PAIRS, found, strict=True):
        tokens = document(context + continuation)
        want, want_greedy = oracle.log_likelihood(logits_of, tokens, len(document(context)))
        assert value == pytest.approx(want, abs=1e-3 * len(continuation.encode()) ** 0.5)
        assert greedy == want_greedy


def test_is_greedy_holds_for_the_most_likely_continuation_and_for_no_other(model, logits_of):
    """Continuations in token ids, as the likeliest bytes need not be text."""
    context = document("some context")
    best = oracle.greedy_continuation(logits_of, context, 4)
    pairs, want = [], []
    for changed in (None, 0, 3):
        tokens = [*context, *best]
        if changed is not None:
            tokens[len(context) + changed] = (tokens[len(context) + changed] + 1) % 200
        # A token after the asked ones and one before them, both unlikely, decide nothing.
        for start, stop in ((len(context), len(tokens)), (len(context), len(tokens) - 1)):
            pairs.append(harness_doc([*tokens, 7], start, stop))
            want.append(oracle.log_likelihood(logits_of, tokens[:stop], start))
    found = model.loglikelihood(pairs)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in want]
    assert [greedy for _, greedy in found] == [True, True, False, False, False, True]
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in want], atol=1e-3)


def harness_doc(tokens, start, stop):
    from posenc_jax.interop.lm_eval import AnswerDoc

    doc = AnswerDoc(tokens=tokens, start=start, stop=stop)
    return Instance("loglikelihood", doc, ("shown", "shown"), 0, ("a", 0, 1))


def test_a_request_scores_alike_alone_and_among_others_in_any_order(model):
    together = model.loglikelihood(asks("loglikelihood", *PAIRS))
    backwards = model.loglikelihood(asks("loglikelihood", *PAIRS[::-1]))[::-1]
    alone = [model.loglikelihood(asks("loglikelihood", pair))[0] for pair in PAIRS]
    for other in (backwards, alone):
        np.testing.assert_allclose([v for v, _ in together], [v for v, _ in other], atol=1e-4)
        assert [g for _, g in together] == [g for _, g in other]
    assert len({round(value, 3) for value, _ in together}) == len(PAIRS)


def test_nothing_is_cut_off_at_any_length(model, logits_of):
    """A context longer than every length that is compiled beforehand still has its first byte."""
    text = "".join(map(str, range(200)))
    assert len(text) > max(model.run.compiled_lengths(model.run.multiples(None)))
    ((value, _),) = model.loglikelihood(asks("loglikelihood", (text, "end")))
    tokens = document(text + "end")
    want, _ = oracle.log_likelihood(logits_of, tokens, len(tokens) - 3)
    assert value == pytest.approx(want, abs=1e-3)
    cut, _ = oracle.log_likelihood(logits_of, [256, *tokens[-273:]], 271)
    assert abs(want - cut) > 5e-3, "this model does not tell a cut context from a whole one"


def test_few_programs_serve_all_lengths(workdir):
    model = RunModel(workdir)
    model.loglikelihood(asks("loglikelihood", *[("x" * n, "y") for n in range(1, 60)]))
    assert model.compilations == 2  # 32 and 64 inputs


def test_rolling_is_the_bits_per_byte_of_disjoint_segments(model, monkeypatch):
    run = model.run
    bytes_V = run.inputs.tokenizer.byte_lengths_V
    text = bytes(run.inputs.stream("test").document(0)[1 : 1 + 4 * L])
    row = np.array([[0] * (L // 2) + [256, *text]])  # E1 leaves the first half length out
    for k in (1, 4):
        scorer = Scorer({k * L: run.model_config(k * L)}, run.params, 1024)
        nll, targets = disjoint_segments(scorer, row, L, k)
        assert targets.size == len(text)
        monkeypatch.setattr(model, "_window", k * L)
        (found,) = model.loglikelihood_rolling(asks("loglikelihood_rolling", (text.decode(),)))
        want = bits_per_byte(nll, targets, bytes_V)
        assert -found / np.log(2) / len(text) == pytest.approx(want, rel=1e-5)


def test_rolling_scores_the_rest_of_a_text_that_fills_no_window(model, logits_of):
    text = "x = 1\n" * 7
    assert len(text) % L
    tokens = document(text)
    whole = oracle.log_likelihood(logits_of, tokens[: L + 1], 1)[0]
    rest = oracle.log_likelihood(logits_of, tokens[L:], 1)[0]
    texts = asks("loglikelihood_rolling", (text,), ("",))
    np.testing.assert_allclose(model.loglikelihood_rolling(texts), [whole + rest, 0], atol=2e-3)


def test_generation_is_greedy_decoding_up_to_the_stop(model, logits_of):
    contexts = ("def f(x):", "a", "x" * 70)
    settings = {"max_gen_toks": 6, "until": [], "do_sample": False}
    found = model.generate_until(asks("generate_until", *[(c, settings) for c in contexts]))
    for context, text in zip(contexts, found, strict=True):
        ids = oracle.greedy_continuation(logits_of, document(context), 6)
        ids = ids[: ids.index(256)] if 256 in ids else ids
        assert text == bytes(i for i in ids if i < 256).decode(errors="replace")


def test_a_run_trained_through_a_kernel_that_knows_no_cache_generates_alike(workdir, model):
    asked = asks("generate_until", ("def f(x):", {"max_gen_toks": 3, "until": []}))
    other = RunModel(workdir)
    config = other.run.config
    section = dataclasses.replace(config.model, attention="flash")
    other.run = dataclasses.replace(other.run, config=dataclasses.replace(config, model=section))
    assert other.run.model_config(L).attention == "flash"
    assert other.generate_until(asked) == model.generate_until(asked)


def test_generation_stops_before_the_first_stop_string_or_document():
    stub = types.SimpleNamespace(_tokenizer=open_tokenizer("bytes"))
    ids = np.array([*b"one\ntwo. three", 256, *b"next"])
    for until, want in (
        ((), "one\ntwo. three"),
        (("two", "\n"), "one"),
        (("absent", "three", "."), "one\ntwo"),
    ):
        assert RunModel._until(stub, ids, until) == want


def test_generation_ends_at_the_end_token_of_an_imported_vocabulary():
    """EOS (2) is not BOS (1) there, and a text ends at either."""
    tokenizer = types.SimpleNamespace(bos=1, ends=(1, 2), decode=lambda ids: bytes(map(int, ids)))
    for end in tokenizer.ends:
        ids = np.array([*b"yes", end, *b"no"])
        assert RunModel._until(types.SimpleNamespace(_tokenizer=tokenizer), ids, ()) == "yes"


def test_samples_follow_the_seed(workdir, model):
    settings = {"max_gen_toks": 12, "do_sample": True, "temperature": 2.0, "top_k": 50}
    asked = asks("generate_until", *[("def", settings)] * 3)
    first = model.generate_until(asked)
    assert len(set(first)) > 1
    assert model.generate_until(asked) == first
    assert RunModel(workdir, seed=1).generate_until(asked) != first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 2.0}, "repetition_penalty is not supported; there are until"),
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1"),
        ({"do_sample": True, "top_p": 0.0, "temperature": 1.0}, "0 < top_p <= 1"),
    ],
)
def test_generation_settings_that_there_are_not_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate_until(asks("generate_until", ("a", settings)))


@pytest.fixture(scope="module")
def short(tmp_path_factory, data_dir):
    """A run whose learned table has L positions."""
    return trained(tmp_path_factory.mktemp("run") / "short", data_dir, "learned", 5)


def test_what_the_scheme_cannot_read_is_refused_by_name(short):
    model = RunModel(short)
    assert len(model.loglikelihood(asks("loglikelihood", ("x" * 30, "yz")))) == 1
    with pytest.raises(ValueError, match=r"33 tokens exceeds the 32 positions of 'learned'"):
        model.loglikelihood(asks("loglikelihood", ("x" * 30, "yzz")))
    settings = {"max_gen_toks": 20}
    with pytest.raises(ValueError, match=r"prompt of 13 tokens and 20 new ones exceed the 32"):
        model.generate_until(asks("generate_until", ("x" * 12, settings)))
    assert len(model.generate_until(asks("generate_until", ("x" * 11, settings)))) == 1
    with pytest.raises(ValueError, match="window=33 must be at least 1 and at most the 32"):
        RunModel(short, window=33)
    with pytest.raises(ValueError, match=r"--lengths=2 asks for 80 positions"):
        harness.run_harness(
            short, harness.HarnessRequest(tasks=("posenc_copy",), **ASK | {"multiples": (1, 2)})
        )


def test_a_continuation_begins_with_the_token_that_holds_its_first_byte(tmp_path):
    """Whatever SentencePiece merges over the border, no byte of the context alone is scored."""
    tokenizer = open_tokenizer(train_sentencepiece(tmp_path))
    stub = types.SimpleNamespace(_tokenizer=tokenizer)
    stub._document = lambda text: RunModel._document(stub, text)
    text = "the quick brown fox key value pairs"
    straddled = 0
    for cut in range(len(text)):
        (request,) = asks("loglikelihood", (text[:cut], text[cut:]))
        span = RunModel._span(stub, request)
        assert tokenizer.decode(span.tokens) == text.encode()
        before = len(tokenizer.decode(span.tokens[: span.start]))
        after = len(tokenizer.decode(span.tokens[: span.start + 1]))
        assert before <= cut < after
        straddled += before < cut
    assert 0 < straddled < len(text)


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_ids_shown_as_text_come_back(tmp_path, name):
    tokenizer = open_tokenizer("bytes" if name == "bytes" else train_sentencepiece(tmp_path))
    text = TokenText(tokenizer)
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 5000).tolist()
    assert text.read(text.write(ids)) == ids
    assert text.write(tokenizer.encode(b"key=1.")[-1:]) == "."
    special = [*tokenizer.encode(b"<256:x>"), tokenizer.bos]
    assert text.read(text.write(special)) == special


@pytest.fixture(scope="module")
def measured(workdir):
    """The harness on some of our tasks, by the one call that the script makes."""
    tasks = ("posenc_flipflop", "posenc_mqar", "posenc_passkey@64", "posenc_mqar@64@L-2L")
    folder = harness.run_harness(
        workdir,
        harness.HarnessRequest(tasks=tasks, **ASK | {"multiples": (1, 2, 4), "samples": True}),
    )
    return folder, {
        (row["metric"], row["length"], row["bucket"]): row
        for row in runs.rows(folder / "rows.jsonl")
    }


def ours(model, task, length):
    """Our own evaluation of the same instances, at the lengths that it compiles."""
    run = model.run
    filler = Filler(run.inputs.stream("test"), run.inputs.tokenizer)
    made = [
        find(task, run.config.evaluation.pairs).instance(
            filler, split="test", seed=SEED, index=i, length=length
        )
        for i in range(INSTANCES)
    ]
    lengths = run.compiled_lengths(run.multiples(None))
    scorer = Scorer({n: run.model_config(n) for n in lengths}, run.params, 1024)
    return score_instances(scorer, made)


@pytest.mark.parametrize(
    ("task", "length"),
    [("flipflop", 32), ("flipflop", 64), ("flipflop", 128), ("mqar", 64), ("passkey", 64)],
)
def test_the_harness_counts_what_our_evaluation_counts(model, measured, task, length):
    answers = ours(model, task, length)
    rows = {m: measured[1][f"{task}_{m}", length, "all"] for m in ("accuracy", "corrected", "nll")}
    assert rows["accuracy"]["value"] == answers.correct.mean()
    assert rows["accuracy"]["n"] == len(answers.correct)
    assert rows["nll"]["value"] == pytest.approx(answers.nll.mean(), rel=1e-6)
    chance = answers.chance.mean()
    assert rows["corrected"]["value"] == pytest.approx(
        (answers.correct.mean() - chance) / (1 - chance)
    )
    assert rows["accuracy"]["chance"] == rows["corrected"]["chance"] == pytest.approx(chance)
    assert rows["accuracy"]["k"] == length / L
    if task == "flipflop":
        assert 0.2 < answers.correct.mean() < 0.9, "the run should have learnt to answer by a bit"


def test_the_runs_own_rows_say_the_same(workdir, measured):
    path = evaluate.evaluate(workdir, multiples=(2,), suites=("R",), split="test", stretch=None)
    found = {(row["metric"], row["bucket"]): row for row in runs.rows(path) if row["length"] == 64}
    for metric in ("mqar_accuracy", "mqar_nll", "passkey_nll"):
        assert measured[1][metric, 64, "all"]["value"] == pytest.approx(
            found[metric, "all"]["value"], rel=1e-6
        )
    near = "distance:L-2L"
    assert measured[1]["mqar_nll", 64, near]["value"] == pytest.approx(
        found["mqar_nll", near]["value"], rel=1e-6
    )
    assert measured[1]["mqar_nll", 64, near]["n"] == found["mqar_nll", near]["n"]


def test_groups_weigh_every_task_alike_and_the_harness_keeps_its_own_file(measured):
    folder, rows = measured
    results = json.loads((folder / "results.json").read_text())
    group = results["results"]["posenc_flipflop"]["accuracy,none"]
    parts = [rows["flipflop_accuracy", k * L, "all"]["value"] for k in (1, 2, 4)]
    assert group == pytest.approx(np.mean(parts))
    assert rows["posenc_flipflop/accuracy", None, "all"]["value"] == group
    assert results["config"]["scheme"] == "rope+alibi"
    assert results["config"]["step"] == 40


def test_samples_carry_ids_that_their_text_gives_back(model, measured):
    lines = (measured[0] / "samples" / "posenc_mqar@64.jsonl").read_text().splitlines()
    assert len(lines) == INSTANCES * (model.run.config.evaluation.pairs - 1)  # one is given away
    text = TokenText(model.run.inputs.tokenizer)
    for line in map(json.loads, lines[:20]):
        doc = line["doc"]
        context, answer = line["arguments"][0]
        assert text.read(context) == doc["tokens"][: doc["start"]]
        assert text.read(answer) == doc["tokens"][doc["start"] : doc["stop"]]
        assert len(doc["tokens"]) == 64


def test_every_answer_lies_in_the_distance_bin_that_our_evaluation_puts_it_in(model):
    tasks = RetrievalTasks(model.run, multiples=(1, 2, 8), split="test", instances=40)
    for length in (32, 64, 256):
        answers = tasks.named(f"posenc_mqar@{length}").test_docs()
        shape = types.SimpleNamespace(
            correct=np.ones(len(answers)),
            distance=np.array([doc["distance"] for doc in answers]),
            depth=np.array([doc["depth"] for doc in answers]),
            kind=np.array([doc["kind"] for doc in answers]),
        )
        want = {
            name: int(chosen.sum())
            for name, chosen in buckets(shape, L)
            if name.startswith("distance:") and chosen.any()
        }
        found = {
            full: len(tasks.named(f"posenc_mqar@{length}@{short}").test_docs())
            for short, full in BUCKETS.items()
            if full in want
        }
        assert found == want
        assert sum(want.values()) == len(answers)
    with pytest.raises(ValueError, match="no answer of mqar at 32 tokens is beyond8L back"):
        tasks.named("posenc_mqar@32@beyond8L")


def test_the_group_lists_every_scored_task_and_says_what_is_too_short(model):
    tasks = RetrievalTasks(model.run, multiples=(1, 8), split="dev", instances=2)
    leaves = {task.task_name for task in tasks.named("posenc_retrieval").get_all_tasks()}
    skipped = {f"posenc_{task}@{length}" for task, length, _ in tasks.skipped}
    assert leaves | skipped == {f"posenc_{t}@{n}" for t in SCORED for n in (32, 256)}
    assert not leaves & skipped
    assert {f"posenc_{t}@256" for t in SCORED} - skipped <= leaves
    assert any(task == "mqar_32" and "too short" in reason for task, _, reason in tasks.skipped)
    by_distance = tasks.named("posenc_distance").get_all_tasks()
    assert len({task.task_name for task in by_distance}) == len(by_distance) > len(leaves)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("posenc_pasky", "did you mean 'posenc_passkey'"),
        ("posenc_passkey@8", "passkey needs 22 tokens; 8 is too short"),
        ("posenc_passkey@64@3L", "A length in tokens may follow"),
        # Reads all the harness's own files, which takes most of a minute.
        pytest.param("hellaswagg", "did you mean 'hellaswag'", marks=pytest.mark.slow),
    ],
)
def test_a_task_that_there_is_not_is_named_with_its_neighbour(workdir, name, message):
    with pytest.raises(ValueError, match=message):
        harness.run_harness(workdir, harness.HarnessRequest(tasks=(name,), **ASK))


def test_shots_and_chats_around_ids_are_refused(model):
    tasks = RetrievalTasks(model.run, multiples=(1,), split="test", instances=2)
    with pytest.raises(ValueError, match="asked in token ids"):
        simple_evaluate(
            model,
            tasks=[tasks.named("posenc_copy")],
            system_instruction="Be brief.",
            task_manager=TaskManager(include_defaults=False),
        )


YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
{more}
metric_list:
  - metric: {metric}
"""


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory, workdir):
    """A choice, a perplexity and a generation over local JSON lines, in one call."""
    folder = tmp_path_factory.mktemp("tasks")
    docs = [
        {
            "question": f"{i} + 1 =",
            "choices": [f" {i + 1}", " x"],
            "answer": 0,
            "text": f"{i}\n" * 20,
        }
        for i in range(4)
    ]
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, kind, text, target, metric, more in (
        (
            "sums",
            "multiple_choice",
            "{{question}}",
            "{{answer}}",
            "acc",
            'doc_to_choice: "{{choices}}"\ntarget_delimiter: ""',
        ),
        ("lines", "loglikelihood_rolling", "", "{{text}}", "bits_per_byte", ""),
        (
            "said",
            "generate_until",
            "{{question}}",
            "{{text}}",
            "exact_match",
            "generation_kwargs:\n  until: ['\\n']\n  max_gen_toks: 4",
        ),
    ):
        (folder / f"{name}.yaml").write_text(
            YAML.format(
                name=name, data=data, kind=kind, text=text, target=target, metric=metric, more=more
            )
        )
    out = folder / "out"
    asked = ASK | {"include_path": str(folder), "out": out}
    harness.run_harness(
        workdir, harness.HarnessRequest(tasks=("sums", "said", str(folder / "lines.yaml")), **asked)
    )
    return docs, {row["metric"]: row for row in runs.rows(out / "rows.jsonl")}


def test_a_task_of_ones_own_in_yaml_runs_offline(own_tasks, model):
    docs, rows = own_tasks
    right = []
    for doc in docs:
        pairs = [(doc["question"], choice) for choice in doc["choices"]]
        values = [v for v, _ in model.loglikelihood(asks("loglikelihood", *pairs))]
        right.append(values[0] > values[1])
    assert rows["sums/acc"]["value"] == np.mean(right)
    total = sum(
        model.loglikelihood_rolling(asks("loglikelihood_rolling", *[(d["text"],) for d in docs]))
    )
    bytes_read = sum(len(d["text"]) for d in docs)
    assert rows["lines/bits_per_byte"]["value"] == pytest.approx(-total / bytes_read / np.log(2))
    assert rows["said/exact_match"]["n"] == len(docs)


def test_a_stretched_reading_is_an_arm_of_its_own(workdir):
    ask = ASK | {"multiples": (4,), "stretch": "yarn:4"}
    folder = harness.run_harness(workdir, harness.HarnessRequest(tasks=("posenc_flipflop",), **ask))
    assert folder == workdir / "stretched" / "yarn_4" / "lm_eval"
    rows = runs.rows(folder / "rows.jsonl")
    assert {row["arm"] for row in rows} == {"rope+alibi yarn:4"}
    plain = harness.run_harness(
        workdir,
        harness.HarnessRequest(
            tasks=("posenc_flipflop",), **ASK | {"multiples": (4,), "out": folder / "plain"}
        ),
    )
    nll = [
        next(r["value"] for r in runs.rows(f / "rows.jsonl") if r["metric"] == "flipflop_nll")
        for f in (folder, plain)
    ]
    assert nll[0] != nll[1]


def test_the_script_says_what_is_wrong_in_one_line(workdir):
    """It lies in a folder under the package's own name, and must still find the package."""
    done = subprocess.run(
        [sys.executable, "scripts/lm_eval.py", f"--workdir={workdir}", "--tasks=posenc_copi"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 2, done.stderr
    assert "did you mean 'posenc_copy'" in done.stderr.splitlines()[-1]
