"""Settings of a config.json, read one by one, so that an error can name the settings not read."""

import math
from collections.abc import Mapping

_MISSING = object()
MAX_LAYERS = 4096  # as in a run's configuration

# Settings without influence on the logits of a trained model.
_HARMLESS_NAMES = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path
    add_cross_attention architectures attention_dropout attention_probs_dropout_prob
    attention_softmax_in_fp32 attn_pdrop auto_map bad_words_ids begin_suppress_tokens
    bias_dropout_fusion bos_token_id cache_implementation chunk_size_feed_forward
    classifier_dropout cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dropout dtype early_stopping emb_pdrop embd_pdrop encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing hidden_dropout hidden_dropout_prob id2label
    init_device initializer_range is_decoder is_encoder_decoder label2id length_penalty
    masked_softmax_fusion max_length min_length model_max_length model_type n_ctx n_special
    no_bos no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    offset_alibi output_attentions output_hidden_states output_router_logits output_scores
    pad_token_id prefix predict_special_tokens pretraining_tp problem_type pruned_heads
    reorder_and_upcast_attn remove_invalid_values repetition_penalty resid_pdrop return_dict
    return_dict_in_generate router_aux_loss_coef router_jitter_noise sep_token_id skip_bias_add
    skip_bias_add_qkv slow_but_exact summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class tokenizer_name top_k top_p
    torch_dtype torchscript transformers.js_config transformers_version typical_p unk_token_id
    use_bfloat16 use_cache use_return_dict verbose
"""
HARMLESS = frozenset(_HARMLESS_NAMES.split())


class JsonSettings:
    """The settings of a JSON object.

    Args:
      values: the object; null counts as absent. where: its name in error messages.
    """

    def __init__(self, values: Mapping, where: str):
        self.values, self.where = values, where
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether a setting is there."""
        return self.values.get(name) is not None

    def _value(self, name: str, default):
        self._read.add(name)
        value = self.values.get(name)
        if value is None and default is _MISSING:
            raise ValueError(f"{self.where} has no {name}")
        return default if value is None else value

    def whole(self, name: str, default=_MISSING) -> int:
        """Returns a whole number from 0 to 2^31; ValueError for anything else."""
        value = self._value(name, default)
        if value is default:
            return value
        if type(value) is not int or not 0 <= value < 2**31:
            raise ValueError(f"{self.where}: {name} must be a whole number, not {value!r:.60}")
        return value

    def layers(self, name: str, default=_MISSING) -> int:
        """Returns a number of layers, at most `MAX_LAYERS`; ValueError for anything else."""
        count = self.whole(name, default)
        if count > MAX_LAYERS:
            raise ValueError(f"{self.where}: {name}={count} is more than {MAX_LAYERS}")
        return count

    def number(self, name: str, default=_MISSING) -> float:
        """Returns a finite number; ValueError for anything else."""
        value = self._value(name, default)
        if value is default:
            return value
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{self.where}: {name} must be a number, not {value!r:.60}")
        return float(value)

    def flag(self, name: str, default=_MISSING) -> bool:
        """Returns true or false; ValueError for anything else."""
        value = self._value(name, default)
        if value is not default and type(value) is not bool:
            raise ValueError(f"{self.where}: {name} must be true or false, not {value!r:.60}")
        return value

    def word(self, name: str, known: Mapping, default=_MISSING):
        """Returns `known[word]`; ValueError names the setting and the known words."""
        value = self._value(name, default)
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{self.where}: {name} is {value!r:.60}; known: {', '.join(known)}")
        return known[value]

    def items(self, name: str, kind: type | tuple[type, ...], default=_MISSING) -> list:
        """Returns a list of items of one kind; ValueError for anything else."""
        value = self._value(name, default)
        if value is default:
            return value
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise ValueError(f"{self.where}: {name} must be a list, not {value!r:.60}")
        return value

    def section(self, name: str) -> "JsonSettings | None":
        """Returns the settings of an object inside; None where it is absent."""
        value = self._value(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ValueError(f"{self.where}: {name} must be an object, not {value!r:.60}")
        return JsonSettings(value, f"{self.where}, {name}")

    def only(self, **allowed) -> None:
        """Raises ValueError for a setting that is there with another than its allowed value."""
        for name, value in allowed.items():
            found = self._value(name, value)
            if found != value or isinstance(found, bool) != isinstance(value, bool):
                raise ValueError(
                    f"{self.where}: {name}={found!r:.60} is not supported, only {value!r}"
                )

    def forget(self, *names: str) -> None:
        """Marks settings as read that change nothing for this kind of model."""
        self._read.update(names)

    def finish(self) -> None:
        """Raises ValueError with the names of settings that were not read and may matter."""
        unread = sorted(
            name
            for name, value in self.values.items()
            if name not in self._read and name not in HARMLESS and value is not None
        )
        if unread:
            named = ", ".join(f"{name[:60]}={self.values[name]!r:.40}" for name in unread[:4])
            more = f" and {len(unread) - 4} more" if len(unread) > 4 else ""
            raise ValueError(f"{self.where} has settings that are not known here: {named}{more}")
