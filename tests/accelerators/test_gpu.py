"""On a GPU: angles and biases as a CPU computes them, every path against the definition, training bit for
bit.

    JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu -n 8

Comparisons of float32 with float32 ask for whole float32 products: by default JAX lets an NVIDIA GPU round
factors to TF32, of 10 bits. Angles and biases must stay whole without asking.
"""

import functools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.attention import (
    AttentionSettings,
    KernelConditions,
    OptionalInputs,
    TokenSide,
    attend,
    choose_implementation,
    dense_attention,
    visible,
)
from posenc_jax.attention.blockwise.api import blockwise_attention
from posenc_jax.attention.kernels.flash import flash_attention
from posenc_jax.encodings import cumulative_log_forget
from posenc_jax.training.loop import train

from support import runs, schemes
from support.attention_inputs import qkv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]
ROOT = Path(__file__).parents[2]
N, K, H = 4, 2, 64
FAR = np.array([[0, 1, 2, 3, 100, 1000, 4095, 4096, 65_535, 65_536, 131_000, 131_071]], np.int32)


layer_of = functools.partial(schemes.layer_of, head_dim=H, model_dim=N * H)


def tensors(rows, length, dtype):
    *arrays, gates = qkv(rows, length, N, K, H, (rows, length, N, H), (rows, length, N))
    q, k, v, aim = (x.astype(dtype) for x in arrays)
    return q, k, v, -jax.nn.softplus(gates), aim


@pytest.mark.parametrize(
    "line",
    [line for line in schemes.ALL if layer_of(line).form is None and not layer_of(line).gated],
)
def test_rotations_biases_and_temperatures_are_those_of_a_cpu(line):
    # Learned tables and grids reach as far; but learned 2-D directions turn by plain float32
    # products, which two compilers round to 2^-24 of the angle: they are for the grids of images.
    furthest = 256 if "mixed" in line else 131_072
    layer, far = layer_of(line, train_length=furthest), FAR % furthest

    def placed(params, x_BTNH, pos_BT):
        bias = layer.bias(params, pos_BT, pos_BT)
        tau = layer.temperature(params, pos_BT, pos_BT)
        turned = [layer.rotate(params, x_BTNH, pos_BT, side) for side in ("query", "key")]
        causal = jnp.tril(jnp.ones(bias.shape[-2:], bool)) if bias is not None else None
        return turned, tau, None if bias is None else jnp.where(causal, bias, 0.0)

    with jax.default_device(jax.devices("cpu")[0]):  # the same frequencies to the last bit, far out
        params = jax.device_get(layer.init(jax.random.key(1)))
    x = np.random.default_rng(0).standard_normal((1, FAR.shape[1], N, H), np.float32)
    here = jax.jit(placed)(params, x, far)
    with jax.default_device(jax.devices("cpu")[0]):
        there = jax.jit(placed)(params, x, far)
    for mine, theirs in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        theirs = np.asarray(theirs)
        finite = theirs[np.isfinite(theirs)]  # xPos grows without bound
        atol = 4e-6 * np.abs(finite).max(initial=1.0)
        np.testing.assert_allclose(np.asarray(mine), theirs, rtol=0, atol=atol)


def outcome(line, implementation, dtype, *, rows=2, length=200, precision="highest", sink=False):
    """The result and the gradients of q, k, v, the gate, what is learned and the sinks, if any; packed
    rows.
    """
    layer = layer_of(line)
    *arrays, aim = tensors(rows, length, dtype)
    seg = np.repeat([[1, 2, 0]], [length // 2 - 3, length // 2, 3], axis=1).astype(np.int32)
    pos = np.concatenate([np.arange(n) for n in (length // 2 - 3, length // 2, 3)])[None]
    seg, pos = (jnp.asarray(np.tile(x, (rows, 1)).astype(np.int32)) for x in (seg, pos))

    def total(q, k, v, ticks, params, sink_N):
        clock = cumulative_log_forget(ticks, seg) if layer.gated else None
        out = attend(
            q,
            k,
            v,
            layer,
            params,
            TokenSide(pos, seg, clock),
            settings=AttentionSettings(aligned=True, implementation=implementation),
            optional=OptionalInputs(schemes.projected_from(layer, pos.shape), sink_N=sink_N),
        )
        return (out.astype(jnp.float32) * aim).sum(), out

    step = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3, 4, 5), has_aux=True))
    sink_N = jnp.linspace(-1.0, 3.0, N) if sink else None
    with jax.default_matmul_precision(precision):
        (_, out), grads = step(*arrays, layer.init(jax.random.key(1)), sink_N)
        (_, again), grads_again = step(*arrays, layer.init(jax.random.key(1)), sink_N)
    jax.tree.map(np.testing.assert_array_equal, (out, grads), (again, grads_again))
    return [np.asarray(x, np.float32) for x in jax.tree.leaves((out, grads))]


def assert_near(got, want, share):
    """Within a share of the largest entry; a learned constant that all keys get has no gradient but
    rounding.
    """
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        least = 0.05 if index < 5 else 4.0
        atol = share * max(np.abs(theirs).max(), least)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol)


BLOCKWISE = (
    "nope",
    "rope+alibi",
    "3*(rope+alibi)|1*nope~logn",
    "kerple_log",
    "log",
    "t5",
    "fire",
    "forget",
    "nope~scale_invariant",
)


@pytest.mark.parametrize("line", BLOCKWISE)
def test_blockwise_is_the_definition_and_repeats_itself(line):
    got = outcome(line, "blockwise", jnp.float32, length=600)
    assert_near(got, outcome(line, "dense", jnp.float32, length=600), 2e-5)


@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
@pytest.mark.parametrize("line", ["nope", "slopes", "rope+alibi", "3*(rope+alibi)|1*nope~logn"])
@pytest.mark.parametrize("length", [200, 1024])
def test_kernels_are_the_definition_and_repeat_themselves(kernel, line, length):
    got = outcome(line, kernel, jnp.bfloat16, length=length)
    assert_near(got, outcome(line, "dense", jnp.bfloat16, length=length), 0.03)


WINDOWED = "rope+window(size=70)|alibi+window(size=7)|window(size=500)|nope~logn(clip=false)"
OURS = {
    "a window for each head": (WINDOWED, False),
    "a sink": ("3*(rope+alibi)|1*nope~logn", True),
    "twice the columns": ("pope", False),
    "twice the columns and any bias of distance": ("pope(start=uniform)+log|alibi", False),
    "all of them": ("pope+alibi+window(size=70)|pope+window(size=7)|rope+alibi|nope", True),
}


@pytest.mark.parametrize("length", [200, 1024])
@pytest.mark.parametrize(("line", "sink"), OURS.values(), ids=OURS)
def test_our_kernel_has_windows_of_heads_sinks_and_wider_queries_as_the_definition_has(
    line, sink, length
):
    got = outcome(line, "flash", jnp.bfloat16, length=length, sink=sink)
    assert_near(got, outcome(line, "dense", jnp.bfloat16, length=length, sink=sink), 0.03)


@pytest.mark.parametrize("width", [16, 80, 96, 112, 128])
def test_our_kernel_serves_heads_of_any_width(width):
    slopes = jnp.asarray([0.5, 0.25, 1 / 64, 0.0], jnp.float32)
    keys = jax.random.split(jax.random.key(width), 4)
    q, k, v, aim = (jax.random.normal(x, (2, 700, N, width)).astype(jnp.bfloat16) for x in keys)
    pos = jnp.broadcast_to(jnp.arange(700, dtype=jnp.int32), (2, 700))
    seg = 1 + (pos > 300).astype(jnp.int32)

    def flash(q, k, v, slopes):
        return flash_attention(q, k, v, slopes, seg)

    def definition(q, k, v, slopes):
        bias = -slopes[None, :, None, None] * (pos[:, None, :, None] - pos[:, None, None, :])
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        return dense_attention(
            q, k, v, bias, visible(TokenSide(pos, seg), TokenSide(pos, seg), causal=True)
        )

    def outcome(attention):
        def total(*args):
            out = attention(*args).astype(jnp.float32)
            return (out * aim).sum(), out

        with jax.default_matmul_precision("highest"):
            grads, out = jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))(q, k, v, slopes)
        return [np.asarray(x, np.float32) for x in (out, *grads)]

    assert_near(outcome(flash), outcome(definition), 0.03)


@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
@pytest.mark.parametrize("length", [4096, 16_384, 131_072])
def test_far_into_a_long_row_kernels_and_blocks_agree(kernel, length):
    layer = layer_of("rope+alibi")
    q, k, v, _, _ = tensors(1, length, jnp.bfloat16)
    pos = jnp.arange(length, dtype=jnp.int32)[None]
    seg = jnp.ones_like(pos)
    tokens, settings = TokenSide(pos, seg), AttentionSettings(aligned=True, implementation=kernel)

    @jax.jit
    def both(q, k, v):
        fused = attend(q, k, v, layer, {}, tokens, settings=settings)
        turned = (
            layer.rotate({}, x, pos, side).astype(jnp.float32)
            for x, side in ((q, "query"), (k, "key"))
        )
        exact = blockwise_attention(*turned, v.astype(jnp.float32), layer, {}, tokens, tokens)
        return fused.astype(jnp.float32), exact

    with jax.default_matmul_precision("highest"):
        fused, exact = map(np.asarray, both(q, k, v))
    assert np.abs(fused - exact)[:, -1024:].max() < 0.03 * np.abs(exact).max()
    assert np.abs(fused - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("kernel", "call"), [("flash", "xla.gpu.triton"), ("cudnn", "__cudnn$fmha")]
)
def test_the_program_of_a_kernel_holds_nothing_quadratic_and_calls_it(kernel, call):
    layer, length = layer_of("rope+alibi"), 4096
    q, k, v, _, _ = tensors(1, length, jnp.bfloat16)
    pos = jnp.arange(length, dtype=jnp.int32)[None]
    seg = jnp.ones_like(pos)

    def total(q, k, v):
        out = attend(
            q,
            k,
            v,
            layer,
            {},
            TokenSide(pos, seg),
            settings=AttentionSettings(aligned=True, implementation=kernel),
        )
        return out.astype(jnp.float32).sum()

    assert (
        choose_implementation(
            layer, length, length, "auto", KernelConditions(head_dim=H, dtype="bfloat16")
        ).name
        == "flash"
    )
    text = jax.jit(jax.grad(total, (0, 1, 2))).lower(q, k, v).compile().as_text()
    assert call in text
    assert not re.findall(rf"\[[\d,]*\b{length}\b[\d,]*\b{length}\b[\d,]*\]", text)


def trained(workdir, data_dir, stop_after=None):
    """Exit code of a run of 12 steps in a process of its own, told to stop once some steps are logged."""
    arguments = [
        sys.executable,
        "train.py",
        "--config=configs/smoke.py:rope+alibi",
        f"--workdir={workdir}",
        "--config.model.dtype=bfloat16",
        "--config.model.model_dim=256",
        "--config.model.num_heads=4",
        "--config.train.length=512",
        "--config.train.data_devices=1",
        "--config.train.batch_size=16",
        "--config.train.steps=12",
        "--config.train.log_every=1",
        "--config.train.save_every=100",
        f"--config.data.data_dir={data_dir}",
    ]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    run = subprocess.Popen(arguments, cwd=ROOT, env=environment)
    while stop_after is not None and run.poll() is None:
        metrics = workdir / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= stop_after:
            run.terminate()
            break
        time.sleep(0.005)
    return run.wait()


def test_runs_are_one_bit_for_bit_across_processes_and_interruptions(tmp_path):
    folders = {name: tmp_path / name for name in ("whole", "again", "stopped")}
    assert trained(folders["whole"], tmp_path / "data") == 0
    assert trained(folders["again"], tmp_path / "data") == 0
    assert trained(folders["stopped"], tmp_path / "data", stop_after=2) == 75
    assert trained(folders["stopped"], tmp_path / "data") == 0
    chains = [[row["chain"] for row in runs.rows(f / "metrics.jsonl")] for f in folders.values()]
    assert len(chains[0]) == 12
    assert chains[0] == chains[1] == chains[2]


def test_training_on_a_gpu_follows_the_losses_of_a_cpu(tmp_path):
    train_float32 = {"train": {"length": 512, "batch_size": 4, "steps": 6, "data_devices": 1}}
    config = runs.config(tmp_path / "data", "rope+alibi", **train_float32)
    with jax.default_matmul_precision("highest"):
        train(config, tmp_path / "gpu", "a test")
    gpu = [row["loss"] for row in runs.rows(tmp_path / "gpu" / "metrics.jsonl") if "loss" in row]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    program = (
        "import sys, pathlib; sys.path.insert(0, 'tests'); sys.path.insert(0, '.'); from support "
        "import runs;from posenc_jax.training.loop import train; c = "
        f"runs.config({str(tmp_path / 'data')!r}, 'rope+alibi', **{train_float32!r});train(c, "
        f"pathlib.Path({str(tmp_path / 'cpu')!r}), 'a test')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
    cpu = [row["loss"] for row in runs.rows(tmp_path / "cpu" / "metrics.jsonl") if "loss" in row]
    np.testing.assert_allclose(gpu, cpu, rtol=1e-4)
