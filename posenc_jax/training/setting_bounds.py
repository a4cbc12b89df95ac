"""The range of every numeric setting: what float32 holds with room for squares, and sizes that are no slip of the hand."""

import dataclasses
from collections.abc import Mapping

COUNT = (1, 2**20)  # things of which a run has some
STEPS = (1, 10**9)
SHARE = (0, 1)
RATE = (1e-12, 100)
WEIGHT = (
    1e-6,
    1e6,
)  # of a token's loss; what trains on nothing, or on one token alone, is another task
BETA = (0, 0.999999)  # one minus it must not round to 0 in float32: Adam divides by it

# (least, most) by section and setting, both included. 0 takes the usual value where `sections` says so.
BOUNDS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "model": {
        "num_layers": (1, 4096),
        "model_dim": COUNT,
        "num_heads": (1, 2**16),
        "num_kv_heads": (0, 2**16),
        "head_dim": (0, 2**16),
        "mlp_dim": (0, 2**22),
        "embedding_scale": (1e-6, 1e6),
        "norm_epsilon": (1e-12, 1),
    },
    "data": {
        "retrieval_share": SHARE,
        "passkey_share": SHARE,
        "offset_share": SHARE,
        "answer_weight": WEIGHT,
        "text_weight": (0, WEIGHT[1]),
        "min_pairs": COUNT,
        "max_pairs": COUNT,
        "pairs_warmup": SHARE,
        "pair_askings": (1, 64),
        "length_warmup": (1, 2**20),
        "random_positions": (0, 2**20),
        "threads": (1, 1024),
    },
    "train": {
        "seed": (0, 2**32 - 1),  # a key holds 32 bits of it: 2**32 would begin as seed 0 does
        "steps": STEPS,
        "length": (8, 2**30),
        "batch_size": COUNT,
        "accumulation": COUNT,
        "data_devices": (0, 2**20),
        "fsdp_devices": COUNT,
        "sequence_devices": COUNT,
        "model_devices": COUNT,
        "save_every": STEPS,
        "log_every": STEPS,
        "keep": COUNT,
        "original_length": (0, 2**30),
        "dev_every": (0, STEPS[1]),
        "dev_windows": COUNT,
        "bad_steps": STEPS,
        "stall_seconds": (0.1, 1e9),
        "loss_chunks": (1, 4096),  # pieces of 64 ids in the largest vocabularies
        "z_loss": (0, 1e3),
    },
    "optimizer": {
        "learning_rate": RATE,
        "muon_learning_rate": RATE,
        "warmup_steps": (0, STEPS[1]),
        "final_fraction": SHARE,
        "beta1": BETA,
        "beta2": BETA,
        "epsilon": (1e-30, 1),
        "weight_decay": (0, 1e3),
        "clip_norm": (1e-6, 1e12),
    },
    "evaluation": {
        "multiples": (1, 2**20),
        "stretches": COUNT,
        "instances": COUNT,
        "pairs": COUNT,
        "sliding_stretches": COUNT,
        "batch_tokens": (1, 2**31),
    },
}


def check_bounds(sections: object) -> None:
    """Raises ValueError, naming the setting and its range, for a number outside of `BOUNDS`.

    Args:
      sections: a dataclass with a field by each name of `BOUNDS`.
    """
    for section, bounds in BOUNDS.items():
        values = dataclasses.asdict(getattr(sections, section))
        for name, (least, most) in bounds.items():
            numbers = values[name] if isinstance(values[name], tuple) else (values[name],)
            for number in numbers:
                if not least <= number <= most:
                    raise ValueError(
                        f"config.{section}.{name} must lie in [{least}, {most}], not {number}"
                    )
