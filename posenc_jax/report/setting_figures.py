"""Figures of the model switches and of a retrieval curriculum, from plain arrays."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from posenc_jax.report import style
from posenc_jax.report.style import MUTED, SURFACE, Layout, Picture


def switches_picture(
    keys_S: np.ndarray,
    sink_S: Mapping[str, np.ndarray],
    seg_T: np.ndarray,
    shifted_T: Mapping[str, np.ndarray],
    tokens: tuple[int, ...],
) -> Picture:
    """A sink's share of a row's weight by keys in sight, and where a token shift puts the keys of some tokens.

    sink_S: by the name of a head. shifted_T: by weights, what each slot holds of the keys of `tokens`. seg_T: documents.
    """

    def draw(layout: Layout) -> Figure:
        figure, (left, right) = style.panels(layout, 1, 2, 3.0)
        for index, (name, share_S) in enumerate(sink_S.items()):
            left.plot(keys_S, share_S, label=name, color=style.colour(index // 2), linestyle="-" if index % 2 else "--")  # fmt: skip
        left.set_xscale("log")
        left.set_ylim(0, 1)
        left.set_xlabel("keys in sight (tokens)")
        left.set_title("the sink's share of the weight, keys alike")
        left.legend(frameon=False, fontsize="small")
        width = 0.8 / len(shifted_T)
        for index, (name, held_T) in enumerate(shifted_T.items()):
            place = np.arange(len(held_T)) + (index - (len(shifted_T) - 1) / 2) * width
            right.bar(place, held_T, width, label=name, color=style.colour(index))
        for border in np.flatnonzero(np.diff(seg_T)) + 0.5:
            right.axvline(border, color=MUTED, linewidth=0.8, linestyle="--")
        right.set_ylim(0, 1.35)
        right.set_yticks([0, 0.25, 0.5, 0.75, 1])
        right.set_xticks(np.arange(len(seg_T)))
        right.set_xlabel("slot; dashed: a document's border")
        right.set_title(f"where the keys of tokens {' and '.join(map(str, tokens))} stand")
        right.legend(frameon=False, fontsize="small", ncols=2, loc="upper right")
        return figure

    records = [
        {"what": f"sink: {name}", "at": int(n), "share": float(x)}
        for name, share_S in sink_S.items()
        for n, x in zip(keys_S, share_S, strict=True)
    ]
    records += [
        {"what": f"token shift: {name}", "at": slot, "share": float(x)}
        for name, held_T in shifted_T.items()
        for slot, x in enumerate(held_T)
    ]
    return Picture("sink_and_shift", "Sink logit and token shift", "", ("what", "at", "share"), tuple(records), draw)  # fmt: skip


def curriculum_picture(
    progress_S: np.ndarray,
    longest_S: np.ndarray,
    pairs_S: Mapping[str, np.ndarray],
    shares_S: Mapping[str, np.ndarray],
) -> Picture:
    """The longest document, the most pairs of an mqar document and the tasks' shares, by the share of the training."""

    def draw(layout: Layout) -> Figure:
        figure, (length, pairs, mixture) = style.panels(layout, 1, 3, 2.8)
        length.plot(progress_S, longest_S, color=style.colour(0), drawstyle="steps-post")
        length.set_title("longest document (tokens)")
        for index, (name, most_S) in enumerate(pairs_S.items()):
            colour, dashes = (MUTED, "--") if index else (style.colour(1), "-")
            pairs.plot(progress_S, most_S, label=name, color=colour, linestyle=dashes, drawstyle="steps-post")  # fmt: skip
        pairs.set_title("most pairs of mqar")
        pairs.legend(frameon=False, fontsize="small", loc="lower right")
        for axes in (length, pairs):
            axes.set_ylim(bottom=0)
        colours = [style.colour(index) for index in range(len(shares_S))]
        mixture.stackplot(progress_S, *shares_S.values(), colors=colours, step="post")
        top = 0.0
        for name, share_S in shares_S.items():
            mixture.text(0.97, top + share_S[-1] / 2, name, color=SURFACE, weight="bold", ha="right", va="center")  # fmt: skip
            top += share_S[-1]
        mixture.set_ylim(0, 1)
        mixture.set_title("shares of the documents")
        for axes in (length, pairs, mixture):
            axes.set_xlim(0, 1)
            axes.set_xlabel("share of the training")
        return figure

    records = tuple(
        {"progress": round(float(at), 6), "longest": int(longest_S[i])}
        | {f"most_pairs: {name}": int(most_S[i]) for name, most_S in pairs_S.items()}
        | {name: float(share_S[i]) for name, share_S in shares_S.items()}
        for i, at in enumerate(progress_S)
    )  # fmt: skip
    columns = ("progress", "longest", *(f"most_pairs: {name}" for name in pairs_S), *shares_S)
    return Picture("curriculum", "A curriculum", "", columns, records, draw)
