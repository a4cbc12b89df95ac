"""An imported GGUF file as a run: evaluated, probed and continued in its own vocabulary.

Thorough: a file is imported, evaluated and probed; test_gguf_file.py reads files by default.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf")
pytest.importorskip("tokenizers")

from posenc_jax.evaluation.evaluate import evaluate
from posenc_jax.evaluation.load_run import load_run
from posenc_jax.evaluation.perplexity import held_out_stretches
from posenc_jax.interop.imported_run import ImportSettings, import_checkpoint
from posenc_jax.interop.text_continuation import continuation
from posenc_jax.model.decoder import Decoder
from posenc_jax.model.generate import Sampling, generate

from support.gguf_files import ARRAY, I32, STRING, U32, llama, value
from support.gguf_vocabularies import vocabulary

pytestmark = pytest.mark.thorough
L = 64


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The folder of a run, from a random Llama with a small vocabulary, and text for it."""
    folder = tmp_path_factory.mktemp("imported")
    metadata, _ = vocabulary()
    kinds = {"tokens": STRING, "merges": STRING, "token_type": I32}
    bpe = []
    for key, content in metadata.items():
        kind = kinds.get(key.rpartition(".")[2])
        if kind is not None:
            bpe.append((key, value(ARRAY, (kind, list(content)))))
        else:
            bpe.append((key, value(U32 if isinstance(content, int) else STRING, content)))
    tokens = metadata["tokenizer.ggml.tokens"]
    gguf, _ = llama(V=len(tokens), bpe=bpe)
    (folder / "x.gguf").write_bytes(gguf.bytes())
    for split, count in (("train", 2), ("validation", 4)):
        (folder / "text" / split).mkdir(parents=True)
        for i in range(count):
            lines = [
                f"The {w} of {split} {i} is a café, and no. {w * n} is next.\n"
                for n, w in enumerate(("grass", "sky", "key=1", "query", "value") * 60)
            ]
            (folder / "text" / split / f"{i}.txt").write_text("".join(lines))
    import_checkpoint(
        folder / "x.gguf", folder / "run", ImportSettings(text_folder=str(folder / "text"))
    )
    stored = json.loads((folder / "run/config.json").read_text())
    stored["data"]["data_dir"] = str(folder / "data")
    stored["evaluation"] |= {"instances": 6, "stretches": 4, "multiples": [1, 2]}
    (folder / "run/config.json").write_text(json.dumps(stored))
    return folder / "run"


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bits_per_byte_of_an_imported_model_are_nats_over_the_bytes_of_the_text(imported):
    path = evaluate(imported, multiples=(1, 2), suites=("E3",), split="dev", stretch=None)
    found = {r["length"]: r["value"] for r in rows_of(path) if r["metric"] == "bpb_ctx"}
    run = load_run(imported, None)
    tokenizer, config = run.inputs.tokenizer, run.model_config(4 * L)
    assert run.config.train.length == L
    assert run.config.arm == "x"
    rows = held_out_stretches(run.inputs.stream("dev"), 2 * L + L // 2, 4)
    apply = jax.jit(lambda p, *row: Decoder(config).apply({"params": p}, *row)[0])
    for context in (L // 2, L, 2 * L):
        piece = rows[:, -(context + L // 2) - 1 :][:, -(context + L // 2) :]
        inputs, targets = piece[:, :-1], piece[:, 1:]
        pos = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
        logits = np.asarray(apply(run.params, inputs, pos, np.ones_like(inputs)), np.float64)
        nll = (
            np.log(np.exp(logits).sum(-1))
            - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        )
        last, scored = nll[:, -L // 2 :], targets[:, -L // 2 :]
        counted = tokenizer.byte_lengths_V[scored] > 0
        want = last[counted].sum() / math.log(2) / len(tokenizer.decode(scored.ravel()))
        assert found[context] == pytest.approx(want, rel=1e-4)


def test_needle_tasks_run_in_the_models_own_vocabulary(imported):
    path = evaluate(
        imported, multiples=(1, 2), suites=("passkey", "needles_1"), split="dev", stretch=None
    )
    found = {(r["metric"], r["length"], r["bucket"]): r for r in rows_of(path) if r["suite"] == "R"}
    for task in ("passkey", "needles_1"):
        for length in (L, 2 * L):
            row = found[f"{task}_accuracy", length, "all"]
            assert (row["n"], 0 <= row["value"] <= 1) == (6, True)


@pytest.mark.parametrize("stretch", ["pi:2", "ntk:2", "yarn:2", "rotation.off"])
def test_an_imported_model_is_read_under_every_stretch(imported, stretch):
    plain = evaluate(imported, multiples=(1, 2), suites=("E3",), split="dev", stretch=None)
    path = evaluate(imported, multiples=(1, 2), suites=("E3",), split="dev", stretch=stretch)
    assert path != plain
    far = [
        next(r["value"] for r in rows_of(p) if r["metric"] == "bpb_ctx" and r["length"] == 2 * L)
        for p in (plain, path)
    ]
    assert far[0] != far[1]


def test_an_imported_model_is_probed(imported):
    path = evaluate(
        imported, multiples=(1,), suites=("P1", "P4", "M1", "M9"), split="dev", stretch=None
    )
    metrics = {r["metric"] for r in rows_of(path)}
    assert {"P1_shift_error", "M1_mean_distance", "M9_mass"} <= metrics
    shift = max(r["value"] for r in rows_of(path) if r["metric"] == "P1_shift_error")
    assert shift < 1e-3  # RoPE is relative


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_k=40, top_p=0.95)])
def test_a_continuation_is_what_generation_gives_up_to_the_end_of_a_text(imported, sampling):
    run = load_run(imported, None)
    tokenizer, config = run.inputs.tokenizer, run.model_config(2 * L).measured
    prompt = np.r_[tokenizer.bos, tokenizer.encode(b"The grass is ")].astype(np.int32)
    key = jax.random.key(5)
    want = generate(
        jax.tree.map(jnp.asarray, run.params),
        config,
        [prompt],
        new_tokens=12,
        pad=0,
        sampling=sampling,
        key=key,
    )[0]
    ends = np.flatnonzero(np.isin(want, tokenizer.ends))
    want = want[: ends[0]] if len(ends) else want
    got = list(continuation(imported, b"The grass is ", 12, sampling, 5, None))
    assert b"".join(got) == tokenizer.decode(want)


def test_wrong_requests_are_refused_before_anything_is_written(imported, tmp_path):
    for args, message in (
        ((tmp_path, b"x", 3), "holds no trained run"),
        ((imported, b"\xff", 3), "not UTF-8: byte 0"),
        ((imported, b"x", 0), "--max_tokens must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            continuation(*args, Sampling(), 0, None)
    with pytest.raises(ValueError, match="unknown stretch"):
        continuation(imported, b"x", 3, Sampling(), 0, "yarm:4")
