"""The figures of docs/encodings/switches.md and docs/recipes.md: python scripts/draw_settings.py
--out=looks/settings.

Writes sink_and_shift.png and curriculum.png with the CSV files of what they show. Exit code 2 for
wrong input.
"""

from pathlib import Path

import installed  # noqa: F401
from absl import flags

from posenc_jax import cli

_OUT = flags.DEFINE_string("out", None, "Folder for the figures", required=True)
LENGTH = 16_384
WEIGHTS = (1.0, 0.75, 0.5, 0.25)  # a of a shift whose b is 1 - a
DOCUMENTS, MARKED = (5, 4), (1, 4)  # slots of two documents, and tokens whose keys are followed
L, TASKS = 128, (("passkey", 1.0), ("needles_4", 1.0), ("mqar", 3.0))


def main() -> None:
    """Draws both figures."""
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for figure in (_switches(), _curriculum()):
        (out / f"{figure.name}.csv").write_text(figure.csv())
        (out / f"{figure.name}.png").write_bytes(figure.png())
        print(out / f"{figure.name}.png")


def _switches():
    import jax.numpy as jnp
    import numpy as np

    from posenc_jax.attention import AttentionSettings, OptionalInputs, TokenSide, attend
    from posenc_jax.attention.token_shift import ShiftWeights, token_shift
    from posenc_jax.encodings import parse
    from posenc_jax.report.inspection_figures import switches_figure

    scheme = parse("nope|alibi")
    layer = scheme.place(
        num_layers=1, num_heads=2, head_dim=2, model_dim=4, train_length=LENGTH
    ).layers[0]
    keys_S = np.unique(np.geomspace(1, LENGTH, 60).astype(int))
    q_pos = jnp.asarray(keys_S - 1)[None]
    k_pos = jnp.arange(LENGTH)[None]
    q, k = (jnp.zeros((1, pos.shape[1], 2, 2)) for pos in (q_pos, k_pos))
    shares = {}
    for logit in (0.0, 4.0):
        heard = attend(
            q,
            k,
            jnp.ones_like(k),
            layer,
            {},
            TokenSide(q_pos, jnp.ones_like(q_pos)),
            TokenSide(k_pos, jnp.ones_like(k_pos)),
            AttentionSettings(implementation="dense"),
            OptionalInputs(sink_N=jnp.full(2, logit)),
        )
        for head, name in enumerate(("flat head", "slope 1/256")):
            shares[head, f"{name}, s = {logit:g}"] = 1 - np.asarray(heard[0, :, head, 0])
    sink_S = {name: shares[head, name] for head, name in sorted(shares)}

    seg_T = np.repeat([1, 2], DOCUMENTS)
    marked_T = np.isin(np.arange(len(seg_T)), MARKED).astype(np.float32)
    key_BTKH = jnp.broadcast_to(marked_T[None, :, None, None], (1, len(seg_T), len(WEIGHTS), 1))
    now_K = jnp.array(WEIGHTS)
    mixed, _ = token_shift(
        key_BTKH,
        key_BTKH,
        jnp.asarray(seg_T)[None],
        ShiftWeights(now_K, 1 - now_K, now_K, 1 - now_K),
    )
    shifted_T = {
        f"a = {a:g}, b = {1 - a:g}": np.asarray(mixed[0, :, i, 0]) for i, a in enumerate(WEIGHTS)
    }
    return switches_figure(keys_S, sink_S, seg_T, shifted_T, MARKED)


def _curriculum():
    import numpy as np

    from posenc_jax.data.tokenizers import open_tokenizer
    from posenc_jax.report.inspection_figures import curriculum_figure
    from posenc_jax.tasks.filler import Filler
    from posenc_jax.tasks.retrieval_windows import Curriculum, stages

    filler = Filler(None, open_tokenizer("bytes"), corpus=False)
    grows = Curriculum((2, 16), askings=2, windows=1, pairs_warmup=0.5, divisors=(8, 2, 1))
    found = stages(TASKS, filler, grows, L)
    progress_S = np.arange(180) / 180
    at_S = [found[grows.stage_index(x)] for x in progress_S]
    whole = found[-1]  # all pairs fit
    pairs_S = {
        "as many as fit": np.array(
            [grows.most_pairs(x, at) for x, at in zip(progress_S, at_S, strict=True)]
        ),
        "pairs_warmup alone": np.array([grows.most_pairs(x, whole) for x in progress_S]),
    }
    drawn_S = [dict(zip(dict(stage.tasks), stage.shares, strict=True)) for stage in at_S]
    shares_S = {task: np.array([drawn.get(task, 0.0) for drawn in drawn_S]) for task, _ in TASKS}
    return curriculum_figure(
        progress_S, np.array([stage.longest for stage in at_S]), pairs_S, shares_S
    )


if __name__ == "__main__":
    cli.run_main(main)
