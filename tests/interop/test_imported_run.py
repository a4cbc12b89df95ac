"""A folder of transformers becomes the folder of a run, which is evaluated like any other."""

import dataclasses
import json
import tracemalloc

import jax
import numpy as np
import pytest
from posenc_jax.evaluation.load_run import load_run
from posenc_jax.interop import huggingface
from posenc_jax.interop.family import canonical
from posenc_jax.interop.imported_run import ImportSettings, import_checkpoint
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.presets import SYSTEMS, preset

from support.checkpoint_folders import SETTINGS, SHAPES, arrays, random_parameters, write_folder
from support.marks import thorough

NO_FAMILY = ("transformer", "alibi-247m", "alibi-1.3b")
TEXT = b"the quick brown fox jumps over the lazy dog. " * 60


PER_RUN = ("bloom", "falcon-40b", "gemma2", "gpt-neox", "llama", "mixtral", "roformer")
REST = [name for name in SYSTEMS if name not in (*NO_FAMILY, *PER_RUN)]


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", [*PER_RUN, *thorough(*REST)])
def test_every_preset_of_transformers_is_written_and_read_back_bit_for_bit(name, tmp_path):
    config = preset(name, small=True)
    params = random_parameters(config)
    if config.norm_position == "both":  # Gemma's weights are bfloat16
        params = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16).astype(np.float32), params)
    huggingface.save(config, params, tmp_path / "x")
    again, same, tokenizer = huggingface.load(tmp_path / "x")
    assert tokenizer is None
    assert canonical(again) == canonical(config)
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scheme": "rope+alibi"}, "scheme"),
        ({"scheme": "rope|nope"}, "differ in their position encoding"),
        ({"scheme": "rope~logn"}, "temperature"),
        ({"output_gate": True}, "output_gate"),
        ({"sink_logit": True}, "sink_logit"),
        ({"token_shift": True}, "token_shift"),
        ({"window": 16}, "window of a run"),
        ({"norm": "layer_no_bias"}, "norm"),
        ({"logit_softcap": 3.0}, "logit_softcap"),
        ({"embedding_scale": 8.0}, "embedding_scale"),
    ],
)
def test_what_transformers_cannot_say_is_refused_by_name_and_nothing_is_written(
    changes, words, tmp_path
):
    config = dataclasses.replace(preset("llama", small=True), **changes)
    with pytest.raises(ValueError, match=words) as raised:
        huggingface.save(config, random_parameters(config), tmp_path / "x")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", NO_FAMILY)
def test_systems_without_a_family_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="transformers has no model"):
        huggingface.export_settings(preset(name))


def test_a_scheme_that_is_equal_in_other_words_is_exported(tmp_path):
    config = dataclasses.replace(preset("llama", small=True), scheme="rope(base=match)")
    family, settings = huggingface.export_settings(config)
    assert family.model_type == "llama"
    assert settings["rope_parameters"]["rope_theta"] == 2.4 * 64


def test_heads_that_do_not_divide_the_model_dim_are_exported_where_transformers_takes_them():
    shape = {"num_heads": 6, "num_kv_heads": 2, "model_dim": 52}
    config = dataclasses.replace(preset("llama", small=True), **shape)
    assert huggingface.export_settings(config)[0].model_type == "mistral"  # without a window
    scale = float(np.float32(52**0.5))
    config = dataclasses.replace(preset("gemma2", small=True), embedding_scale=scale, **shape)
    with pytest.raises(ValueError, match="transformers has no model"):
        huggingface.export_settings(config)
    config = dataclasses.replace(config, num_heads=4)
    assert huggingface.export_settings(config)[0].model_type == "gemma2"


def test_import_needs_little_more_memory_than_its_result(tmp_path):
    config = dataclasses.replace(preset("llama", small=True), vocab_size=20_000, tied_head=False)
    huggingface.save(config, random_parameters(config), tmp_path / "x")
    huggingface.load(tmp_path / "x")
    tracemalloc.start()
    _, params, _ = huggingface.load(tmp_path / "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sizes = [x.nbytes for x in jax.tree.leaves(params)]
    assert sum(sizes) > 1.9 * max(sizes)
    assert peak - sum(sizes) < 1.5 * max(sizes)


def imported(tmp_path, **settings):
    folder, texts = tmp_path / "tiny", tmp_path / "texts"
    write_folder(folder, SETTINGS | {"vocab_size": 260, "max_position_embeddings": 64}, _tensors())
    texts.mkdir()
    for n in range(12):
        (texts / f"{n}.txt").write_bytes(TEXT + b"%d" % n)
    return folder, ImportSettings(tokenizer="bytes", text_folder=str(texts), **settings)


def _tensors():
    return arrays(SHAPES | {"model.embed_tokens.weight": (260, 8)})


def test_an_imported_run_is_loaded_with_its_parameters_and_lengths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, settings = imported(tmp_path, length=16)
    import_checkpoint(folder, tmp_path / "run", settings)
    run = load_run(tmp_path / "run", "pi:4")
    config, params, _ = huggingface.load(folder)
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    assert run.config.placed_length == 16
    model = run.config.model_config(run.inputs.tokenizer.vocab_size)
    assert isinstance(model, ModelConfig)
    assert dataclasses.replace(canonical(model), train_length=64) == canonical(config)
    assert not run.unfinished
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["tokens"], record["imported_from"]) == (0, str(folder))
    with pytest.raises(ValueError, match="not empty"):
        import_checkpoint(folder, tmp_path / "run", settings)


def test_a_checkpoint_without_tokenizer_needs_one_that_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, settings = imported(tmp_path)
    with pytest.raises(ValueError, match="--tokenizer"):
        import_checkpoint(folder, tmp_path / "run", dataclasses.replace(settings, tokenizer=""))
    write_folder(folder)  # 11 ids
    with pytest.raises(ValueError, match="vocab_size=11 is below the 260 ids"):
        import_checkpoint(folder, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


def test_too_little_text_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, settings = imported(tmp_path)
    for path in sorted((tmp_path / "texts").iterdir())[2:]:
        path.unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="put at least 3 there"):
        import_checkpoint(folder, tmp_path / "run", settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tokenizer_hook_gets_the_folder(tmp_path, monkeypatch):
    from posenc_jax.interop import tokenizer_json

    monkeypatch.setattr(tokenizer_json, "load", lambda folder: ("read", folder))
    assert huggingface.load(write_folder(tmp_path / "x")).tokenizer == ("read", tmp_path / "x")
