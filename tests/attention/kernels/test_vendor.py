"""Kernels of devices: ours and splash emulated, cuDNN's arithmetic by XLA, all compiled for absent chips."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    KernelConditions,
    TokenSide,
    attend,
    choose_implementation,
)
from posenc_jax.attention.kernels import vendor
from posenc_jax.attention.kernels.bias_folding import document_ordinals
from posenc_jax.bench.plan import DEVICES
from posenc_jax.costs.hardware import HARDWARE, topology_devices, topology_mesh, tracing_for
from posenc_jax.encodings.backend import assume_backend

from support import schemes
from support.attention_inputs import qkv
from support.emulated_kernels import cudnn_by_xla

T, N, K, H = 72, 4, 2, 16
SERVED = (
    "nope",
    "rope",
    "alibi",
    "slopes",
    "rope+alibi|nope~logn",
    "rope(stretch=yarn(factor=4.0))+alibi(slopes=match)",
)
SEG = np.concatenate([np.zeros(3), np.ones(24), np.full(20, 4), np.full(20, 2), np.zeros(5)])
SEG = np.stack([SEG, np.ones(T)]).astype(np.int32)
POS = np.zeros_like(SEG)
for b, t in np.ndindex(2, T - 1):
    POS[b, t + 1] = POS[b, t] + 1 if SEG[b, t] == SEG[b, t + 1] else 0


layer_of = functools.partial(schemes.layer_of, model_dim=N * H)


def tensors(dtype=jnp.float32):
    return qkv(2, T, N, K, H, (2, T, N, H), dtype=dtype)


def results(line, implementation, dtype, window=None, seg=SEG, pos=POS):
    """The result, and the gradients of q, k, v and what is learned."""
    layer = layer_of(line)
    q, k, v, aim = tensors(dtype)
    params = layer.init(jax.random.key(1))

    def out(q, k, v, params):
        got = attend(
            q,
            k,
            v,
            layer,
            params,
            TokenSide(pos, seg),
            settings=AttentionSettings(window=window, aligned=True, implementation=implementation),
        )
        return (got.astype(jnp.float32) * aim).sum(), got

    (_, got), grads = jax.jit(jax.value_and_grad(out, (0, 1, 2, 3), has_aux=True))(q, k, v, params)
    return [np.asarray(x, np.float32) for x in jax.tree.leaves((got, grads))]


def assert_near(got, want, share):
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=share * np.abs(theirs).max())


@pytest.fixture
def emulated(monkeypatch):
    cudnn_by_xla(monkeypatch)


@pytest.mark.thorough
def test_a_document_weighs_exactly_nothing_for_the_next_however_loud(emulated):
    layer = layer_of("nope|alibi(factor=100.0)")
    q, k, v, _ = tensors(jnp.bfloat16)
    seg = np.repeat([[1, 2]], T // 2, axis=1).astype(np.int32)
    pos = np.tile(np.arange(T // 2), 2)[None].astype(np.int32)

    def out(k, v):
        loud = jnp.where(jnp.asarray(seg)[..., None, None] == 1, 30 * q[:1, :, :K], k[:1])
        return attend(
            q[:1],
            loud,
            v[:1],
            layer,
            {},
            TokenSide(pos, seg),
            settings=AttentionSettings(aligned=True, implementation="cudnn"),
        )[:, T // 2 :]

    moved = jax.grad(lambda v: out(k, v).astype(jnp.float32).sum())(v)
    assert np.abs(np.asarray(moved[0, : T // 2], np.float32)).max() == 0
    assert np.abs(np.asarray(moved[0, T // 2 :], np.float32)).max() > 0


def test_documents_are_numbered_in_their_order():
    assert (
        document_ordinals(jnp.asarray(SEG))[0].tolist()
        == [0] * 3 + [1] * 24 + [2] * 20 + [3] * 20 + [4] * 5
    )


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("line", SERVED[2:5])
def test_on_a_mesh_every_head_has_the_slope_of_its_place(line, emulated):
    layer, dtype = layer_of(line), jnp.bfloat16
    q, k, v, _ = tensors(dtype)
    params = layer.init(jax.random.key(1))

    def out(q, k, v, implementation):
        return attend(
            q,
            k,
            v,
            layer,
            params,
            TokenSide(POS, SEG),
            settings=AttentionSettings(aligned=True, implementation=implementation),
        )

    want = np.asarray(out(q, k, v, "dense"), np.float32)
    mesh = jax.make_mesh(
        (2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2
    )
    with jax.set_mesh(mesh):
        q = jax.device_put(q, jax.P("data", None, "model", None))
        k, v = (jax.device_put(x, jax.P("data", None, None, None)) for x in (k, v))
        got = jax.jit(lambda q, k, v: out(q, k, v, "cudnn"))(q, k, v)
    assert_near([np.asarray(got, np.float32)], [want], 0.03)


WHERE = KernelConditions(head_dim=64, dtype="bfloat16")


@pytest.mark.parametrize(
    ("line", "changes", "reason"),
    [
        ("rope+linear", {}, "no softmax"),
        ("log", {}, "not linear in distance"),
        ("rope+alibi|forget", {}, "not linear in distance"),
        ("nope~scale_invariant", {}, "depends on the key"),
        ("alibi", {"aligned": False}, "aligned"),
        ("alibi", {"causal": False}, "causal"),
        ("alibi", {"dtype": "float32"}, "bfloat16, not float32"),
        ("alibi", {"head_dim": 256}, "exceed 256"),
    ],
)  # fmt: skip
def test_a_kernel_that_cannot_serve_says_why(line, changes, reason):
    layer = layer_of(line)
    with pytest.raises(ValueError, match=f"'cudnn' cannot serve this layer.*{reason}"):
        choose_implementation(layer, 1024, 1024, "cudnn", dataclasses.replace(WHERE, **changes))
    path = choose_implementation(
        layer, 1024, 1024, "auto", dataclasses.replace(WHERE, **changes), device="gpu"
    )
    served = {"log": "flash"}.get(line, "blockwise")  # by a table
    assert path.name == ("linear" if layer.form else served)
    assert layer.form or line == "log" or re.search(f"not cudnn: .*{reason}", path.why)


@pytest.mark.parametrize(
    ("line", "changes", "reason"),
    [
        ("rope+linear", {}, "no softmax"),
        ("fire", {}, "learned"),
        ("kerple_log|alibi", {}, "learned"),
        ("t5", {}, "learned"),
        ("rope+alibi|forget", {}, "needs more than a distance"),
        ("alibi2d", {}, "needs more than a distance"),
        ("nope~scale_invariant", {}, "depends on the key"),
        ("alibi", {"aligned": False}, "aligned"),
        ("alibi", {"causal": False}, "causal"),
        ("alibi", {"dtype": "float16"}, "bfloat16, not float16"),
        ("alibi", {"head_dim": 192}, "exceeds 128"),
    ],
)  # fmt: skip
def test_our_kernel_says_why_it_cannot_serve(line, changes, reason):
    with pytest.raises(ValueError, match=f"'flash' cannot serve this layer.*{reason}"):
        choose_implementation(
            layer_of(line), 1024, 1024, "flash", dataclasses.replace(WHERE, **changes)
        )


def test_few_logits_are_dense_on_a_gpu_where_no_kernel_serves():
    path = choose_implementation(layer_of("t5"), 512, 512, "auto", WHERE, device="gpu")
    assert path.name == "dense"
    assert "not flash" in path.why
    assert "not cudnn" in path.why
    assert (
        choose_implementation(layer_of("t5"), 520, 520, "auto", WHERE, device="gpu").name
        == "blockwise"
    )
    assert (
        choose_implementation(layer_of("t5"), 512, 512, "auto", WHERE, device="cpu").name
        == "blockwise"
    )


def test_the_device_decides_what_is_taken_by_itself():
    layer = layer_of("rope+alibi|nope~logn")
    taken = {
        d: choose_implementation(layer, 1024, 1024, "auto", WHERE, device=d).name
        for d in ("cpu", "gpu", "tpu")
    }
    assert taken == {"cpu": "blockwise", "gpu": "flash", "tpu": "splash"}
    assert (
        choose_implementation(
            layer,
            1024,
            1024,
            "auto",
            KernelConditions(head_dim=192, dtype="bfloat16"),
            device="gpu",
        ).name
        == "cudnn"
    )
    learned = choose_implementation(layer_of("slopes"), 1024, 1024, "auto", WHERE, device="tpu")
    assert learned.name == "blockwise"
    assert "slopes are learned" in learned.why
    assert choose_implementation(layer_of("slopes"), 1024, 1024, "splash", WHERE).name == "splash"


@pytest.mark.parametrize("line", schemes.ALL)
def test_every_scheme_is_served_or_refused_in_words(line):
    layer = layer_of(line)
    reason = vendor.unsupported_reason("splash", layer, WHERE)
    linear = all(
        g.heads.bias is None
        or g.heads.bias.linear_slope_N(
            layer.init(jax.random.key(0)).get(f"{i}.bias", {}), g.context
        )
        is not None
        for i, g in enumerate(layer.groups)
    )
    assert (reason is None) == (linear and layer.form is None and "scale_invariant" not in line)


# ------------------------------------------------------------------------------- chips that are not here


def compiled(chip, topology, axes, implementation, length):
    """The compiled text of a forward and backward pass, and its temporaries in bytes per device."""
    layer = layer_of("rope+alibi|nope~logn", num_heads=8, head_dim=64, model_dim=8 * 64)
    mesh = topology_mesh(chip, topology, **axes)

    def grads(q, k, v, pos, seg):
        def total(q, k, v):
            got = attend(
                q,
                k,
                v,
                layer,
                {},
                TokenSide(pos, seg),
                settings=AttentionSettings(aligned=True, implementation=implementation),
            )
            return got.astype(jnp.float32).sum()

        return jax.grad(total, (0, 1, 2))(q, k, v)

    rows, dtype = mesh.shape["data"], jnp.bfloat16
    split = jax.NamedSharding(mesh, jax.P("data", None, "model", None))
    placed = jax.NamedSharding(mesh, jax.P("data", None))
    arguments = [
        *(jax.ShapeDtypeStruct((rows, length, 8, 64), dtype, sharding=split) for _ in range(3)),
        *(jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=placed) for _ in range(2)),
    ]
    with jax.set_mesh(mesh), tracing_for(chip), assume_backend(DEVICES[chip.platform]):
        lowered = jax.jit(grads).trace(*arguments).lower(lowering_platforms=(chip.platform,))
        program = lowered.compile(compiler_options=chip.options)
    return program.as_text(), program.memory_analysis().temp_size_in_bytes


def square(text, length):
    """Shapes in a compiled program with two dims of `length`."""
    return {
        s for s in re.findall(r"\w+\[[\d,]+\]", text) if len(re.findall(rf"\b{length}\b", s)) > 1
    }


@pytest.mark.aot
@pytest.mark.filterwarnings("ignore")  # of the compilers, about a machine without their chips
@pytest.mark.parametrize(
    ("chip", "topology", "kernel", "call"),
    [
        ("h100", "1x4", "flash", "__gpu$xla.gpu.triton"),
        ("h100", "1x4", "cudnn", "__cudnn$fmha"),
        ("h100", "1x4", "blockwise", "while("),
        ("v5e", "2x2", "splash", "tpu_custom_call"),
    ],
)
def test_compiled_for_a_chip_no_array_is_quadratic_in_length(chip, topology, kernel, call):
    chip = HARDWARE[chip]
    if chip.install_hint:
        pytest.skip(chip.install_hint)
    length, axes = 4096, {"data": 2, "model": 2}
    text, temporaries = compiled(chip, topology, axes, kernel, length)
    assert call in text
    assert not square(text, length)
    dense_text, dense = compiled(chip, topology, axes, "dense", length)
    assert square(dense_text, length)  # the search finds what it looks for
    assert temporaries < dense / (
        5 if kernel == "blockwise" else 10
    )  # tiles side by side are a share of it


def test_chips_and_topologies_that_cannot_be_are_refused(monkeypatch):
    monkeypatch.setattr(type(HARDWARE["h100"]), "install_hint", None)
    for chip, topology in (("h100", "8"), ("h100", "1x0"), ("v5e", "four")):
        with pytest.raises(ValueError, match="reads like"):
            topology_devices(HARDWARE[chip], topology)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("line", SERVED)
def test_on_a_gpu_cudnn_is_the_definition(line):
    assert_near(results(line, "cudnn", jnp.bfloat16), results(line, "dense", jnp.bfloat16), 0.03)
