"""Figures of the model switches and of a retrieval curriculum, from plain arrays."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from posenc_jax.report import style
from posenc_jax.report.figure import Figure, Subplot
from posenc_jax.report.style import MUTED, SURFACE


def switches_figure(
    keys_S: np.ndarray,
    sink_S: Mapping[str, np.ndarray],
    seg_T: np.ndarray,
    shifted_T: Mapping[str, np.ndarray],
    tokens: tuple[int, ...],
) -> Figure:
    """A sink's share of a row's weight by keys in sight, and where a token shift puts some keys.

    sink_S: by the name of a head. seg_T: documents. shifted_T: by weights, what each slot holds of
    the keys of `tokens`.
    """

    def shares(axes: Axes) -> None:
        for index, (name, share_S) in enumerate(sink_S.items()):
            look = {"color": style.colour(index // 2), "linestyle": "-" if index % 2 else "--"}
            axes.plot(keys_S, share_S, label=name, **look)
        axes.set(xscale="log", ylim=(0, 1), xlabel="keys in sight (tokens)")
        axes.set_title("the sink's share of the weight, keys alike")
        axes.legend(fontsize="small")

    def shifts(axes: Axes) -> None:
        width = 0.8 / len(shifted_T)
        for index, (name, held_T) in enumerate(shifted_T.items()):
            x = np.arange(len(held_T)) + (index - (len(shifted_T) - 1) / 2) * width
            axes.bar(x, held_T, width, label=name, color=style.colour(index))
        for border in np.flatnonzero(np.diff(seg_T)) + 0.5:
            axes.axvline(border, color=MUTED, linewidth=0.8, linestyle="--")
        axes.set(ylim=(0, 1.35), yticks=[0, 0.25, 0.5, 0.75, 1], xticks=np.arange(len(seg_T)))
        axes.set_xlabel("slot; dashed: a document's border")
        axes.set_title(f"where the keys of tokens {' and '.join(map(str, tokens))} stand")
        axes.legend(fontsize="small", ncols=2, loc="upper right")

    curves = [(f"sink: {name}", keys_S, share_S) for name, share_S in sink_S.items()]
    curves += [
        (f"token shift: {name}", range(len(held_T)), held_T) for name, held_T in shifted_T.items()
    ]
    rows = [
        {"what": what, "at": int(x), "share": float(share)}
        for what, at, values in curves
        for x, share in zip(at, values, strict=True)
    ]
    panels, title = [Subplot(shares, 3.0), Subplot(shifts, 3.0)], "Sink logit and token shift"
    return Figure("sink_and_shift", title, "", rows, panels, 2)


def curriculum_figure(
    progress_S: np.ndarray,
    longest_S: np.ndarray,
    pairs_S: Mapping[str, np.ndarray],
    shares_S: Mapping[str, np.ndarray],
) -> Figure:
    """The longest document, the most pairs of MQAR and the tasks' shares, by share of training."""

    def length(axes: Axes) -> None:
        axes.plot(progress_S, longest_S, color=style.colour(0), drawstyle="steps-post")
        axes.set(title="longest document (tokens)", xlim=(0, 1))
        axes.set_ylim(bottom=0)

    def pairs(axes: Axes) -> None:
        for index, (name, most_S) in enumerate(pairs_S.items()):
            colour, dashes = (MUTED, "--") if index else (style.colour(1), "-")
            look = {"color": colour, "linestyle": dashes, "drawstyle": "steps-post"}
            axes.plot(progress_S, most_S, label=name, **look)
        axes.set(title="most pairs of mqar", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small", loc="lower right")

    def mixture(axes: Axes) -> None:
        colours = [style.colour(index) for index in range(len(shares_S))]
        axes.stackplot(progress_S, *shares_S.values(), colors=colours, step="post")
        top, look = 0.0, {"color": SURFACE, "weight": "bold", "ha": "right", "va": "center"}
        for name, share_S in shares_S.items():
            axes.text(0.97, top + share_S[-1] / 2, name, **look)
            top += share_S[-1]
        axes.set(title="shares of the documents", xlim=(0, 1), ylim=(0, 1))

    rows = [
        {"progress": round(float(at), 6), "longest": int(longest_S[i])}
        | {f"most_pairs: {name}": int(most_S[i]) for name, most_S in pairs_S.items()}
        | {name: float(share_S[i]) for name, share_S in shares_S.items()}
        for i, at in enumerate(progress_S)
    ]
    panels = [Subplot(draw, 2.8) for draw in (length, pairs, mixture)]
    labels = ("share of the training", "")
    return Figure("curriculum", "A curriculum", "", rows, panels, 3, labels=labels)
