"""A workdir refuses the checkpoint of another configuration."""

import json

import pytest
from posenc_jax.training.config import from_sections
from posenc_jax.training.workdir import check_owner, check_same_config

OTHERS = [
    ({"optimizer": {"clip_norm": 2.0}}, {}, r"optimizer.clip_norm: 1.0 here, 2.0 there"),
    ({"train": {"seed": 1}}, {}, r"train.seed: 0 here, 1 there"),
    ({"model": {"dtype": "bfloat16"}}, {}, r"model.dtype: 'float32' here, 'bfloat16' there"),
    (
        {},
        {"corpus_fingerprint": "b" * 64},
        r"corpus_fingerprint: aaaaaaaaaaaa here, bbbbbbbbbbbb there",
    ),
    (
        {},
        {"tokenizer_fingerprint": "b" * 64},
        r"tokenizer_fingerprint: aaaaaaaaaaaa here, bbbbbbbbbbbb there",
    ),
]


@pytest.mark.parametrize(("sections", "prints", "said"), OTHERS)
def test_a_checkpoint_of_another_config_seed_dtype_text_or_tokenizer_is_refused(
    tmp_path, sections, prints, said
):
    def owner(sections, **prints):
        same = {"corpus_fingerprint": "a" * 64, "tokenizer_fingerprint": "a" * 64}
        return {"config": json.loads(from_sections(sections).to_json()), **same, **prints}

    check_owner(tmp_path, 8, owner({}), owner({}))
    with pytest.raises(ValueError, match=rf"checkpoint 8 .* another run \({said}"):
        check_owner(tmp_path, 8, owner({}), owner(sections, **prints))
    if sections:
        (tmp_path / "config.json").write_text(from_sections(sections).to_json())
        with pytest.raises(ValueError, match=said):
            check_same_config(tmp_path, from_sections({}))
