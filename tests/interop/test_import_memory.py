"""Memory of reading a folder of a billion parameters, in a process of its own.

Slow: the folder is written and read.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from posenc_jax.interop.checkpoint_folder import CONFIG, WEIGHTS
from posenc_jax.interop.tensor_files import write_file
from posenc_jax.results.files import write_json

from support.machine import ONE_DEVICE

D, F, V, KEYS, LAYERS = 2048, 8192, 32_000, 512, 16
SETTINGS = {
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": F,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
LAYER = {
    "input_layernorm": (D,),
    "post_attention_layernorm": (D,),
    "self_attn.q_proj": (D, D),
    "self_attn.k_proj": (KEYS, D),
    "self_attn.v_proj": (KEYS, D),
    "self_attn.o_proj": (D, D),
    "mlp.gate_proj": (F, D),
    "mlp.up_proj": (F, D),
    "mlp.down_proj": (D, F),
}
DISK = 3 * 2**30  # bytes
CHILD = """
import json, sys
import jax
from posenc_jax.interop import huggingface

def resident(field):
    lines = (line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return 1024 * int(dict(lines)[field].split()[0])

jax.devices()
before = resident("VmRSS")
params = huggingface.load(sys.argv[1]).params
result = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({"before": before, "peak": resident("VmHWM"), "result": result}))
"""


def write_random(folder):
    """Writes a Llama in bfloat16, one tensor in memory at a time; returns its parameters."""
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in LAYER.items()}
    rng = np.random.default_rng(0)
    arrays = [
        (name, lambda shape=shape: 0.04 * rng.random(shape, np.float32) - 0.02)
        for name, shape in shapes.items()
    ]
    folder.mkdir()
    write_json(folder / CONFIG, SETTINGS)
    write_file(folder / WEIGHTS, shapes, "BF16", arrays)
    return sum(int(np.prod(shape)) for shape in shapes.values())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_billion_parameters_take_less_than_a_third_of_their_file_beside_the_result(tmp_path):
    if shutil.disk_usage(tmp_path).free < DISK:
        pytest.skip(f"needs {DISK / 2**30:.0f} GiB of disk")
    folder = tmp_path / "x"
    count = write_random(folder)
    assert count > 1e9
    size = (folder / WEIGHTS).stat().st_size
    command = [sys.executable, "-c", CHILD, str(folder)]
    environment = os.environ | ONE_DEVICE
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    shutil.rmtree(folder)  # 2 GB, which pytest would keep
    row = json.loads(out.stdout.splitlines()[-1])
    assert row["result"] == 4 * count
    above = row["peak"] - row["before"] - row["result"]
    print(f"{count:,} parameters, a file of {size:,} bytes, {above:,} bytes beside the result")
    assert 0 < above < size / 3
