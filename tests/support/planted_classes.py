"""A labelled corpus whose class stands in one planted byte."""

import numpy as np
from configs import longtext as longtext_config
from posenc_jax.tasks.longtext import LabelledCorpus
from posenc_jax.training.config import from_sections

SPLITS = ("train", "dev", "test")


def planted(lengths, classes=3, seed=0):
    """Documents of x whose third byte is the class; (length, class) pairs, or lengths for every class."""
    pairs = [
        p if isinstance(p, tuple) else (p, c)
        for p in lengths
        for c in ([0] if isinstance(p, tuple) else range(classes))
    ]
    texts = [(f"d{i}", b"xx%dxxx" % c + b"x" * (n - 6)) for i, (n, c) in enumerate(pairs)]
    class_R = np.array([c for _, c in pairs], np.int32)
    names = tuple(f"class{c}" for c in range(classes))
    return LabelledCorpus(
        "planted", "planted", names, dict.fromkeys(SPLITS, texts), dict.fromkeys(SPLITS, class_R)
    )


def small(**data):
    sections = longtext_config.get_config("rope+alibi").to_dict()
    sections["model"] |= {"model_dim": 32, "num_layers": 1, "head_dim": 8, "mlp_dim": 32}
    sections["train"] |= {
        "tier": "smoke",
        "length": 32,
        "steps": 2,
        "batch_size": 16,
        "save_every": 1,
    }
    sections["evaluation"] |= {"multiples": (1, 2)}
    sections["data"] |= data
    return from_sections(sections)
