"""GGUF files by hand, from the format's description: right ones, and ones with one thing wrong."""

import dataclasses
import struct

import numpy as np

F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8
U8, I32, U32, FLOAT, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10
_PACK = {U8: "<B", I32: "<i", U32: "<I", FLOAT: "<f", BOOL: "<B", U64: "<Q"}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, content):
    """A value with its type in front."""
    if kind == STRING:
        return struct.pack("<I", STRING) + text(content)
    if kind == ARRAY:
        inner, items = content
        body = b"".join(text(x) if inner == STRING else struct.pack(_PACK[inner], x) for x in items)
        return struct.pack("<IIQ", ARRAY, inner, len(items)) + body
    return struct.pack("<I", kind) + struct.pack(_PACK[kind], content)


@dataclasses.dataclass
class Tensor:
    """shape in NumPy's order; offset None: behind the one before, aligned."""

    name: str | bytes
    shape: tuple[int, ...]
    kind: int
    raw: bytes
    offset: int | None = None


@dataclasses.dataclass
class Gguf:
    """A file; every count can be claimed to be another one."""

    metadata: list[tuple[str | bytes, bytes]]
    tensors: list[Tensor]
    magic: bytes = b"GGUF"
    version: int = 3
    claimed_tensors: int | None = None
    claimed_metadata: int | None = None
    alignment: int = 32

    def bytes(self):
        counts = (
            len(self.tensors) if self.claimed_tensors is None else self.claimed_tensors,
            len(self.metadata) if self.claimed_metadata is None else self.claimed_metadata,
        )
        head = self.magic + struct.pack("<IQQ", self.version, *counts)
        head += b"".join(text(key) + raw for key, raw in self.metadata)
        data = b""
        for t in self.tensors:
            offset = len(data) if t.offset is None else t.offset
            head += text(t.name) + struct.pack("<I", len(t.shape))
            head += struct.pack(f"<{len(t.shape)}Q", *t.shape[::-1])
            head += struct.pack("<IQ", t.kind, offset)
            data += t.raw + b"\0" * (-len(t.raw) % self.alignment)
        return head + b"\0" * (-len(head) % self.alignment) + data


def plain(name, array):
    """A float32 tensor of an array."""
    return Tensor(name, array.shape, F32, np.ascontiguousarray(array, "<f4").tobytes())


def llama(seed=0, *, layers=2, D=16, N=4, K=2, H=8, F=24, V=300, tied=True, bpe=None):
    """A small random Llama as llama.cpp writes it, and its weights in Hugging Face's layout by name."""
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return rng.normal(0, 0.4, shape).astype(np.float32)

    def permuted(w, heads):
        """llama.cpp's order of the rows of a query or key projection: pairs (i, i + H/2) lie together."""
        rows = [
            w[n * H + p + half * H // 2]
            for n in range(heads)
            for p in range(H // 2)
            for half in (0, 1)
        ]
        return np.stack(rows)

    weights = {"model.embed_tokens.weight": drawn(V, D), "model.norm.weight": 1 + drawn(D)}
    tensors = [
        plain("token_embd.weight", weights["model.embed_tokens.weight"]),
        plain("output_norm.weight", weights["model.norm.weight"]),
    ]
    if not tied:
        weights["lm_head.weight"] = drawn(V, D)
        tensors.append(plain("output.weight", weights["lm_head.weight"]))
    shapes = {
        "attn_norm": ("input_layernorm", (D,)), "ffn_norm": ("post_attention_layernorm", (D,)),
        "attn_q": ("self_attn.q_proj", (N * H, D)), "attn_k": ("self_attn.k_proj", (K * H, D)),
        "attn_v": ("self_attn.v_proj", (K * H, D)), "attn_output": ("self_attn.o_proj", (D, N * H)),
        "ffn_gate": ("mlp.gate_proj", (F, D)), "ffn_up": ("mlp.up_proj", (F, D)),
        "ffn_down": ("mlp.down_proj", (D, F)),
    }  # fmt: skip
    for i in range(layers):
        for ours, (theirs, shape) in shapes.items():
            w = drawn(*shape) + (len(shape) == 1)
            weights[f"model.layers.{i}.{theirs}.weight"] = w
            heads = {"attn_q": N, "attn_k": K}.get(ours)
            tensors.append(plain(f"blk.{i}.{ours}.weight", permuted(w, heads) if heads else w))
    metadata = [
        ("general.architecture", value(STRING, "llama")),
        ("llama.block_count", value(U32, layers)),
        ("llama.context_length", value(U32, 64)),
        ("llama.embedding_length", value(U32, D)),
        ("llama.feed_forward_length", value(U32, F)),
        ("llama.attention.head_count", value(U32, N)),
        ("llama.attention.head_count_kv", value(U32, K)),
        ("llama.attention.key_length", value(U32, H)),
        ("llama.attention.value_length", value(U32, H)),
        ("llama.attention.layer_norm_rms_epsilon", value(FLOAT, 1e-5)),
        ("llama.rope.freq_base", value(FLOAT, 500.0)),
        ("llama.rope.dimension_count", value(U32, H)),
        ("llama.vocab_size", value(U32, V)),
        *(bpe or []),
    ]
    return Gguf(metadata, tensors), weights
