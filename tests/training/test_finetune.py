"""Fine-tuning: a run begins as what a stretched reading of its source is, and needs the source only then.

Thorough: runs are trained and tuned.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs import drope, finetune, smoke
from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.encodings import extend_length, parse, unparse
from posenc_jax.encodings.length_extension import rotation_dropped
from posenc_jax.evaluation import evaluate
from posenc_jax.evaluation.load_run import extended_model, extended_scheme, load_run
from posenc_jax.model.decoder import Decoder
from posenc_jax.training import loop
from posenc_jax.training.config import read
from posenc_jax.training.inputs import dev_examples, open_inputs
from posenc_jax.training.multi_seed import train_seeds

from support import oracles, runs

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
L = 32
TUNED = {"data_devices": 1, "steps": 6, "save_every": 3, "batch_size": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory, data_dir):
    """A finished run of RoPE + ALiBi at L = 32."""
    workdir = tmp_path_factory.mktemp("source") / "source"
    runs.finished(runs.config(data_dir, train={"data_devices": 1}), workdir)
    return workdir


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, data_dir, source):
    """The same, fine-tuned at 4L under YaRN and slopes / 4."""
    workdir = tmp_path_factory.mktemp("tuned") / "tuned"
    runs.finished(tuning(data_dir, source, train={"dev_every": 3, "dev_windows": 5}), workdir)
    return workdir


def tuning(data_dir, source, rule="yarn:4", **changes):
    """The configuration of a run that fine-tunes `source` at 4L."""
    scheme = parse(read(source / "config.json").model.scheme)
    if rule:
        scheme = extend_length(scheme, rule, length=4 * L, train_length=L)
    train = TUNED | {"length": 4 * L, "original_length": L, "init_from": str(source)}
    changes["train"] = train | changes.get("train", {})
    return runs.config(data_dir, unparse(scheme), **changes)


def first_state(config, workdir):
    """The state as it meets the first step."""

    class Seen(Exception):
        pass

    def make_step(*_):
        def step(state, batch):
            raise Seen(jax.device_get(state))

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", make_step)
        with pytest.raises(Seen) as seen:
            loop.train(config, workdir, "a test")
    return seen.value.args[0]


def saved_params(workdir):
    return load_run(workdir, None).params


def logits(config, params, tokens_T):
    tokens_BT = jnp.asarray(tokens_T)[None]
    pos_BT = jnp.arange(len(tokens_T))[None]
    params = jax.tree.map(jnp.asarray, params)
    return Decoder(config).apply({"params": params}, tokens_BT, pos_BT, jnp.ones_like(tokens_BT))[
        0
    ][0]


def test_it_begins_with_the_bits_of_the_source_and_with_nothing_else_of_it(
    tmp_path, data_dir, source
):
    config = tuning(data_dir, source)
    state = first_state(config, tmp_path / "x")
    theirs = saved_params(source)
    assert jax.tree.structure(state["params"]) == jax.tree.structure(theirs)
    for ours, there in zip(*map(jax.tree.leaves, (state["params"], theirs)), strict=True):
        assert ours.tobytes() == there.tobytes()
    drawn = first_state(runs.config(data_dir, train={"data_devices": 1}), tmp_path / "y")["params"]
    assert not np.array_equal(drawn["embedding_VD"], state["params"]["embedding_VD"])
    assert state["step"] == state["skipped"] == 0
    moments = [x for x in jax.tree.leaves(state["optimizer"]) if x.ndim]
    assert len(moments) > 10
    assert not any(x.any() for x in moments)


def test_before_its_first_update_it_is_the_stretched_reading_of_the_source(
    tmp_path, data_dir, source
):
    """And both are the float64 reference: YaRN from the length the source was trained at, slopes / 4."""
    config = tuning(data_dir, source)
    state, zero_shot = first_state(config, tmp_path / "x"), load_run(source, "yarn:4")
    tokens_T = np.random.default_rng(0).integers(0, 256, 80)
    ours = logits(
        config.model_config(zero_shot.inputs.tokenizer.vocab_size), state["params"], tokens_T
    )
    theirs = logits(zero_shot.model_config(4 * L), zero_shot.params, tokens_T)
    np.testing.assert_array_equal(ours, theirs)

    params, H = zero_shot.params, 8
    freq_h = oracles.yarn_frequencies(H, 10_000.0, L, 4.0)
    assert not np.allclose(freq_h, oracles.yarn_frequencies(H, 10_000.0, 4 * L, 4.0))
    slopes = [m / 4 for m in oracles.alibi_slopes(4)]
    scaled = 0.1 * np.log(4.0) + 1

    def turned(z):
        return np.stack(
            [
                [scaled * oracles.rope_by_angles(z[t, n], t * freq_h) for n in range(4)]
                for t in range(80)
            ]
        )

    def attention(layer, q, k, v):
        return oracles.attention(
            turned(q), turned(k), v, lambda n, i, j: -slopes[n] * (i - j), lambda i, j: j <= i
        )

    table = np.asarray(params["embedding_VD"], np.float64)
    reference = {**params, "embedding_VD": 8.0 * table, "head_VD": table}
    want = oracles.decoder_logits(reference, tokens_T, 4, attention)
    np.testing.assert_allclose(ours, want, atol=3e-4, rtol=1e-4)


def test_the_dev_loss_it_began_with_is_that_of_the_stretched_reading(data_dir, source, tuned):
    zero_shot, config = load_run(source, "yarn:4"), read(tuned / "config.json")
    model, nats, weight = zero_shot.model_config(4 * L), 0.0, 0.0
    for example in dev_examples(config, open_inputs(config)):
        found = Decoder(model).apply(
            {"params": jax.tree.map(jnp.asarray, zero_shot.params)},
            *(
                jnp.asarray(example[name])[None]
                for name in ("tokens_T", "positions_T", "segments_T")
            ),
        )
        logits_TV = np.asarray(found[0][0], np.float64)
        of_target = logits_TV[np.arange(4 * L), example["targets_T"]]
        nll_T = np.log(np.exp(logits_TV).sum(-1)) - of_target
        nats, weight = (
            nats + (nll_T * example["weights_T"]).sum(),
            weight + example["weights_T"].sum(),
        )
    assert weight > 5 * 4 * L * 0.9
    begun = json.loads((tuned / "run.json").read_text())["source"]["dev_loss"]
    assert begun == pytest.approx(nats / weight, rel=1e-5)
    measured = {
        row["step"]: row["dev_loss"]
        for row in runs.rows(tuned / "metrics.jsonl")
        if "dev_loss" in row
    }
    assert sorted(measured) == [3, 6]
    assert measured[6] < begun


def test_the_record_names_the_source_its_step_and_the_hash_of_every_parameter(source, tuned):
    theirs = json.loads((source / "run.json").read_text())
    record = json.loads((tuned / "run.json").read_text())["source"]
    assert (record["workdir"], record["step"]) == (str(source), 12)
    for name in ("chain", "data_chain", "corpus_fingerprint", "tokenizer_fingerprint"):
        assert record[name] == theirs[name]
    of_params = {n: h for n, h in theirs["state_sha256"].items() if n.startswith("params/")}
    assert len(of_params) > 10
    assert record["parameters_sha256"] == of_params
    assert record["config"]["model"]["scheme"] == "rope+alibi"
    with CheckpointManager(tuned, 2, clean=False) as checkpoints:
        assert checkpoints.record(6)["source"] == record


def test_it_goes_on_bit_for_bit_after_the_source_is_gone(tmp_path, tuned):
    gone = tmp_path / "gone"
    again = tmp_path / "again"
    shutil.copytree(tuned, again)
    shutil.rmtree(again / "checkpoints" / "6")
    config = read(again / "config.json")
    moved = Path(config.train.init_from)
    moved.rename(gone)
    try:
        rows = runs.finished(config, again)
    finally:
        gone.rename(moved)
    for a, b in zip(runs.rows(tuned / "metrics.jsonl"), rows, strict=True):
        for name in ("step", "loss", "grad_norm", "chain", "data_chain"):
            assert a[name] == b[name]
        assert ("dev_loss" in a, a.get("dev_loss")) == ("dev_loss" in b, b.get("dev_loss"))
    ends = [json.loads((folder / "run.json").read_text()) for folder in (tuned, again)]
    for name in ("state_sha256", "chain", "source"):
        assert ends[0][name] == ends[1][name]
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from="runs/y"))
    with pytest.raises(ValueError, match=r"train\.init_from: 'runs/y' here"):
        loop.train(other, again, "a test")


@pytest.mark.slow
def test_a_second_tuning_records_the_first_one_and_keeps_the_first_length(
    tmp_path, data_dir, source, tuned
):
    scheme = "rope(stretch=yarn(factor=8.0))+alibi(factor=8.0)"
    train = {"length": 8 * L, "original_length": L, "init_from": str(tuned), "steps": 1}
    config = runs.config(data_dir, scheme, train=TUNED | train)
    runs.finished(config, tmp_path / "second")
    record = json.loads((tmp_path / "second" / "run.json").read_text())["source"]
    assert record["step"] == 6
    assert record["source"]["workdir"] == str(source)
    with pytest.raises(ValueError, match=r"set config.train.original_length=32"):
        loop.train(changed(config, original_length=4 * L), tmp_path / "third", "a test")


def changed(config, **train):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


@pytest.mark.slow
def test_a_schedule_stands_at_its_end_from_the_first_update_on(tmp_path, data_dir):
    line = "annealed(last=0.25,begin=0.5,end=1.0)"
    config = runs.config(data_dir, line, train={"data_devices": 1, "steps": 4, "save_every": 2})
    runs.finished(config, tmp_path / "source")
    shutil.rmtree(tmp_path / "source" / "checkpoints" / "4")  # stopped with its slopes still whole
    share = saved_params(tmp_path / "source")["layer_0"]["attention"]["scheme"]["0.bias"]["share"]
    assert share == 1.0
    tuned = tuning(
        data_dir, tmp_path / "source", "slopes:4", train={"steps": 4, "save_every": 1, "keep": 4}
    )
    runs.finished(tuned, tmp_path / "tuned")
    for step in (1, 4):
        params = open_run_at(tmp_path / "tuned", step)
        assert params["layer_0"]["attention"]["scheme"]["0.bias"]["share"] == 0.25


def open_run_at(workdir, step):
    run = load_run(workdir, None)
    with CheckpointManager(workdir, 4, clean=False) as checkpoints:
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), run.params
        )
        return jax.device_get(checkpoints.parameters(step, shapes))


def test_it_is_evaluated_in_the_encoding_it_was_tuned_in_at_multiples_of_the_length_it_began_with(
    tuned,
):
    path = evaluate.evaluate(
        tuned, multiples=(1, 8), suites=("E1", "E3"), split="test", stretch=None
    )
    rows = [row for row in runs.rows(path) if row["metric"] == "bpb_nonoverlap"]
    assert [(row["length"], row["k"], row["train_length"]) for row in rows] == [
        (L, 1, L),
        (8 * L, 8, L),
    ]
    contexts = [row["length"] for row in runs.rows(path) if row["metric"] == "bpb_ctx"]
    assert contexts == [L // 8, L // 4, L // 2, L, 8 * L]  # as for the run it began with
    assert json.loads((tuned / "run.json").read_text())["train_length"] == L
    config = read(tuned / "config.json")
    trained, read_now = config.model_config(260), load_run(tuned, None).model_config(256)
    assert read_now == trained
    assert trained.train_length == L
    with pytest.raises(ValueError, match="cannot take a second one"):
        evaluate.evaluate(tuned, multiples=(1,), suites=("E1",), split="test", stretch="yarn:2")


def test_a_stretch_of_a_tuned_run_goes_on_from_the_length_it_was_tuned_to(data_dir, source):
    def frequencies(model):
        layer = model.placed.layers[0]
        return layer.groups[0].heads.rotation.frequencies(layer.groups[0].context)

    slopes = tuning(data_dir, source, "slopes:4")
    assert slopes.model.scheme == "rope+alibi(factor=4.0)"
    assert unparse(extended_scheme(slopes, "slopes:2", 256)) == "rope+alibi(factor=8.0)"
    at_its_length = extended_model(slopes, "dynamic:1", 4 * L, 260)
    assert at_its_length.placed.layers[0].groups[0].heads.bias.factor == 4.0
    np.testing.assert_allclose(frequencies(at_its_length), frequencies(slopes.architecture))
    twice = frequencies(extended_model(slopes, "dynamic:1", 8 * L, 260))
    base = oracles.ntk_base(10_000.0, 2.0, 8)
    np.testing.assert_allclose(twice, [oracles.rope_frequency(i, 8, base) for i in range(4)])
    np.testing.assert_allclose(
        frequencies(extended_model(slopes, "yarn:2", 8 * L, 260)),
        oracles.yarn_frequencies(8, 10_000.0, 4 * L, 2.0),
    )
    np.testing.assert_allclose(
        frequencies(extended_model(slopes, "llama3:2", 8 * L, 260)),
        oracles.llama3_frequencies(8, 10_000.0, 2.0, 1.0, 4.0, 4 * L),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"init_from": "nowhere"}}, "init_from=nowhere holds no run"),
        ({"train": {"init_from": "{empty}"}}, "has no checkpoint; train it first"),
        ({"train": {"init_from": "{workdir}"}}, "is the run's own --workdir"),
        (
            {"train": {"init_from": ""}},
            "original_length=32 is that of the run that config.train.init_from names",
        ),
        (
            {"train": {"original_length": 129}},
            r"original_length=129 must lie in \[0, config.train.length=128\]",
        ),
        ({"train": {"original_length": -1}}, "original_length must lie in"),
        ({"train": {"original_length": 0}}, "placed at 32: set config.train.original_length=32"),
        ({"train": {"original_length": 64}}, "placed at 32: set config.train.original_length=32"),
        (
            {"model": {"num_layers": 3, "activation": "gelu", "mlp_dim": 96}},
            "model.num_layers: 3 here, 2 there; model.activation: 'gelu' here, 'swiglu' there[)]; take",
        ),
        ({"model": {"scheme": "learned"}}, "length=128 exceeds the 32 positions of 'learned'"),
        (
            {"model": {"scheme": "rope+t5"}},
            "params/layer_0/attention/scheme/0.bias/table_NU is absent there",
        ),
        (
            {
                "data": {
                    "corpus": "stdlib_definitions",
                    "task": "classification",
                    "retrieval_share": 0.0,
                }
            },
            "another tokenizer .*config.data.task=language",
        ),
        (
            {"train": {"dev_every": 4}},
            "dev_every=4 must be 0 or a multiple of config.train.save_every=3",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_the_door(tmp_path, data_dir, source, changes, message):
    workdir, empty = tmp_path / "workdir", tmp_path / "empty"
    empty.mkdir()
    shutil.copy(source / "config.json", empty)
    places = {"empty": empty, "workdir": workdir}
    changes = {
        s: {k: v.format(**places) if isinstance(v, str) else v for k, v in of.items()}
        for s, of in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        loop.train(tuning(data_dir, source, **changes), workdir, "a test")
    assert not workdir.exists()


@pytest.mark.slow
def test_a_learned_part_of_another_shape_or_that_one_side_lacks_is_named(tmp_path, data_dir):
    config = runs.config(data_dir, "t5(buckets=8)", train={"data_devices": 1, "steps": 1})
    runs.finished(config, tmp_path / "source")
    for scheme, message in (
        ("t5(buckets=16)", r"table_NU is float32\[4, 8\] there, float32\[4, 16\] here"),
        ("alibi", r"table_NU is float32\[4, 8\] there, absent here"),
    ):
        wrong = tuning(data_dir, tmp_path / "source", None, model={"scheme": scheme})
        with pytest.raises(ValueError, match=message):
            loop.train(wrong, tmp_path / "x", "a test")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_damaged_last_checkpoint_of_the_source_is_named_and_the_one_before_is_used(
    tmp_path, data_dir, source, capsys
):
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    config = tuning(data_dir, copy, train={"steps": 1})
    (copy / "checkpoints" / "12" / "manifest.json").unlink()
    runs.finished(config, tmp_path / "x")
    assert "checkpoints/12 is damaged: no manifest.json" in capsys.readouterr().err
    assert json.loads((tmp_path / "x" / "run.json").read_text())["source"]["step"] == 6
    assert (copy / "checkpoints" / "12").exists()  # another run's folder is left as it is
    (copy / "checkpoints" / "6" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in .*copy/checkpoints is damaged"):
        loop.train(config, tmp_path / "y", "a test")
    assert not (tmp_path / "y").exists()


def test_seeds_in_one_program_are_not_fine_tuned(tmp_path, data_dir, source):
    config = tuning(data_dir, source)
    with pytest.raises(ValueError, match="fine-tuned one by one"):
        train_seeds(config, {0: tmp_path / "a", 1: tmp_path / "b"}, "a test")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arm", "scheme"),
    [
        ("yarn", "rope(stretch=yarn)+alibi(factor=4.0)"),
        ("pi", "rope(stretch=pi)+alibi(factor=4.0)"),
        ("ntk", "rope(stretch=ntk)+alibi(ntk=4.0)"),
        ("dynamic", "rope(stretch=dynamic(length=128))+alibi(factor=4.0)"),
        ("slopes:2", "rope+alibi(factor=2.0)"),
        ("none", "rope+alibi"),
    ],
)
def test_the_recipe_stretches_as_a_reading_does(source, arm, scheme):
    config = runs.from_sections(finetune.get_config(f"{arm},{source}").to_dict())
    factor = 2 if arm == "slopes:2" else 4
    t, there = config.train, read(source / "config.json").train
    assert config.model.scheme == scheme
    assert (t.length, t.original_length, t.init_from) == (factor * L, L, str(source))
    assert t.batch_size * t.length == there.batch_size * there.length
    assert config.optimizer.learning_rate == pytest.approx(3e-4)
    assert config.evaluation.multiples == read(source / "config.json").evaluation.multiples
    for wrong in ("", "yarn", "yran,runs/x", "yarn:x,runs/x", "yarn,nowhere"):
        with pytest.raises(ValueError, match=r"finetune\.py needs|holds no run"):
            finetune.get_config(wrong)


def test_a_rotation_is_dropped_for_the_last_15_percent_at_a_rate_that_is_warmed_up_again(source):
    config, there = (
        runs.from_sections(drope.get_config(str(source)).to_dict()),
        read(source / "config.json"),
    )
    t = config.train
    assert there.model.scheme == "rope+alibi"
    assert config.model.scheme == "alibi"
    assert (t.length, t.original_length, t.init_from) == (L, L, str(source))
    assert t.steps / (t.steps + there.train.steps) == pytest.approx(drope.SHARE, abs=0.02)
    assert config.optimizer.warmup_steps < t.steps
    for name in ("learning_rate", "muon_learning_rate"):
        assert getattr(config.optimizer, name) == getattr(there.optimizer, name)
    assert (
        unparse(rotation_dropped(parse("3*(rope+alibi)|1*xpos~logn,prope")))
        == "3*alibi|1*nope~logn,nope"
    )
    with pytest.raises(ValueError, match="'nope~logn' has no rotation that could be dropped"):
        rotation_dropped(parse("nope~logn"))
    for wrong in ("", "nowhere"):
        with pytest.raises(ValueError, match=r"drope\.py needs the folder of a run|holds no run"):
            drope.get_config(wrong)


def test_a_dropped_run_begins_as_its_parent_with_the_rotation_off(tmp_path, data_dir, source):
    config = runs.from_sections(drope.get_config(str(source)).to_dict())
    state, there = first_state(config, tmp_path / "x"), load_run(source, None)
    for ours, theirs in zip(*map(jax.tree.leaves, (state["params"], there.params)), strict=True):
        assert np.array_equal(ours, theirs)
    tokens_T = np.random.default_rng(0).integers(0, 256, 40)
    model = config.model_config(there.inputs.tokenizer.vocab_size)
    without = dataclasses.replace(there.model_config(L), scheme="alibi")
    np.testing.assert_array_equal(
        logits(model, there.params, tokens_T), logits(without, there.params, tokens_T)
    )
    assert (
        np.abs(
            logits(model, there.params, tokens_T)
            - logits(there.model_config(L), there.params, tokens_T)
        ).max()
        > 1e-3
    )


@pytest.mark.slow
def test_from_training_to_the_scores_of_the_tuned_run_by_the_scripts(tmp_path, data_dir):
    def command(*arguments):
        run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run

    data = f"--config.data.data_dir={data_dir}"
    steps = [
        f"--config.train.{s}" for s in ("steps=8", "save_every=4", "dev_every=4", "data_devices=1")
    ]
    x, y = tmp_path / "x", tmp_path / "y"
    command("train.py", "--config=configs/smoke.py:rope", f"--workdir={x}", data, *steps)
    command("train.py", f"--config=configs/finetune.py:yarn,{x}", f"--workdir={y}", data, *steps)
    command("scripts/evaluate.py", f"--workdir={y}", "--suite=E1", "--lengths=1")
    command(
        "scripts/evaluate.py", f"--workdir={y}", "--suite=E1", "--lengths=1", "--checkpoint=best"
    )
    assert smoke.get_config("rope").train.length == L
    (row,) = [
        r for r in runs.rows(y / "evaluation_dev" / "rows.jsonl") if r["metric"] == "bpb_nonoverlap"
    ]
    assert (row["length"], row["arm"]) == (L, "rope yarn:4 tuned")
    assert "checkpoint" not in row
    (best,) = [
        r
        for r in runs.rows(y / "evaluation_dev_best" / "rows.jsonl")
        if r["metric"] == "bpb_nonoverlap"
    ]
    assert (best["checkpoint"], best["step"]) == ("best", 8)
