"""Suite P: shift error, relative structure, offset lookup, rotation and monotone bias of a trained
model.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from posenc_jax.attention.attention_statistics import last_logits
from posenc_jax.encodings import GatedBias, PlacedLayer, PlacedScheme
from posenc_jax.encodings.analysis import bias_of_distance
from posenc_jax.encodings.base import Params, Temperature, TokenTemperature
from posenc_jax.encodings.layer import PlacedHeadGroup, last_visible_key
from posenc_jax.evaluation import head_statistics
from posenc_jax.evaluation.capture import capture_qk, capture_rows, over_batches
from posenc_jax.evaluation.context import SEED
from posenc_jax.evaluation.interventions import rotation_off
from posenc_jax.evaluation.lengths import Multiple
from posenc_jax.evaluation.probe_context import ROWS, ProbeContext
from posenc_jax.evaluation.retrieval import answer_rows, score_instances
from posenc_jax.model.config import ModelConfig
from posenc_jax.results.schema import Row
from posenc_jax.tasks.offset_lookup import asked_offsets, offset_lookup

MONOTONE_TO = 16  # P5, in units of L
QUERIES = 64  # the last queries of a row; all their logits are compared


def property_items(probe: ProbeContext) -> dict[str, Callable]:
    """Returns the items P1, P2 per multiple, P3 per multiple, P4 and P5."""
    multiples = probe.ctx.multiples
    ends = sorted({1, probe.target_multiple(), max(multiples)} & set(multiples))
    items: dict[str, Callable] = {"P1": functools.partial(_shift_errors, probe)}
    items |= {f"P2/{k}": functools.partial(_relative_structure, probe, k) for k in ends}
    items |= {f"P3/{k}": functools.partial(_offset_lookup, probe, k) for k in multiples}
    items["P4"] = functools.partial(
        probe.change, "P", "P4", "rotation off", rotation_off, min(multiples)
    )
    return items | {"P5": functools.partial(_monotone, probe)}


def _shift_errors(probe: ProbeContext) -> list[Row]:
    L, limit = probe.L, probe.placed.longest()
    wanted = sorted({1, 7, L, 8 * L})
    length = min(L, limit) if limit is not None else L
    fitting = tuple(d for d in wanted if limit is None or length + d <= limit)
    rows, rows_RT = [], probe.text(length)[:, :-1]
    if fitting:
        errors = shift_errors(probe.config, probe.params, rows_RT, fitting, probe.budget)
        for shift, error_LN in errors.items():
            of_shift = f" shift:{shift}"
            rows += probe.of_heads("P", "P1_shift_error", length, error_LN, len(rows_RT), of_shift)
            rows.append(
                probe.row(
                    "P", "P1_shift_error", length, f"all{of_shift}", error_LN.max(), len(rows_RT)
                )
            )
    if fitting and depends_on_key_count(probe.placed):
        moved = shift_errors(
            probe.config, probe.params, rows_RT, fitting, probe.budget, counted=False
        )
        rows += [
            probe.row(
                "P", "P1_counter_error", length, f"all shift:{shift}", error_LN.max(), len(rows_RT)
            )
            for shift, error_LN in moved.items()
        ]
    for shift in set(wanted) - set(fitting):
        reason = (
            f"{length} tokens moved by {shift} exceed the {limit} positions of "
            f"{probe.config.scheme_line}"
        )
        rows += probe.ctx.skipped("P", "P1_shift_error", length, reason, f"all shift:{shift}")
    return rows


def _relative_structure(probe: ProbeContext, k: Multiple) -> list[Row]:
    layers = probe.observed(k)
    n = next((int(sums.pairs_Z.sum()) for sums in layers if sums is not None), 0)
    scores = [None if sums is None else head_statistics.relative_structure(sums) for sums in layers]
    return list(probe.of_heads("P", "P2_relative_structure", probe.ctx.tokens(k), scores, n))


def _offset_lookup(probe: ProbeContext, k: Multiple) -> list[Row]:
    length = probe.ctx.tokens(k)
    offsets = asked_offsets(probe.L)
    instances = [
        offset_lookup(
            probe.filler, split=probe.ctx.split, seed=SEED, index=i, length=length, offsets=offsets
        )
        for i in range(ROWS)
    ]
    answers = score_instances(probe.scorer(probe.config, k), instances)
    probe.save(f"P3_{k}", **dataclasses.asdict(answers))
    chosen = {"all": np.ones(len(answers.correct), bool)}
    chosen |= {f"distance:{t}": answers.distance == t for t in offsets}
    return answer_rows(probe.ctx, "P", "P3_offset", length, answers, chosen)


def _monotone(probe: ProbeContext) -> list[Row]:
    L, limit = probe.L, probe.placed.longest()
    farthest = MONOTONE_TO * L + 1 if limit is None else min(MONOTONE_TO * L + 1, limit)
    lengths = tuple(sorted({min(k * L + 1, farthest) for k in (1, 4, MONOTONE_TO)}))
    layers = list(zip(probe.placed.layers, probe.learned, strict=True))
    rises_LN = [largest_rise(layer, learned, lengths) for layer, learned in layers]
    read = probe.ctx.tokens(max(probe.ctx.multiples))
    measured = {}
    if any(layer.gated for layer, _ in layers):
        rows_RT = probe.text(read)[:, :-1]
        measured = largest_gate_rise(probe.config, probe.params, rows_RT, probe.budget)
    rows = []
    for i, (layer, _) in enumerate(layers):
        for group in layer.groups:
            gated = isinstance(group.heads.bias, GatedBias)
            for n in range(group.first, group.stop):
                rise, length = (measured[i][n], read) if gated else (rises_LN[i][n], farthest - 1)
                rows.append(
                    probe.row("P", "P5_largest_rise", length, f"head:{i}.{n}", rise, length)
                )
    share = float(np.mean([row.value == 0 for row in rows]))
    return [*rows, probe.row("P", "P5_monotone_share", farthest - 1, "all", share, len(rows))]


def depends_on_key_count(placed: PlacedScheme) -> bool:
    """Whether a temperature depends on the number of visible keys."""
    parts = [group.heads.temperature for layer in placed.layers for group in layer.groups]
    return any(part is not None and not part.relative for part in parts)


@dataclasses.dataclass(frozen=True)
class _InSight(Temperature):
    """A temperature at the positions before a shift, which has the same number of visible keys."""

    relative = True  # the window is counted here, after the shift
    of: PlacedHeadGroup
    part: Temperature
    shift: int

    def init(self, key, context):
        return self.part.init(key, context)

    def temperature(self, params, q_pos_BT, k_pos_BS, context):
        seen_BT = last_visible_key(self.of, q_pos_BT - self.shift)
        return self.part.temperature(params, seen_BT, k_pos_BS - self.shift, context)


@dataclasses.dataclass(frozen=True)
class _TokenInSight(TokenTemperature):
    """The same for a temperature that depends on tokens."""

    relative = True
    of: PlacedHeadGroup
    part: TokenTemperature
    shift: int

    def of_tokens(self, params, x_BTD, pos_BT, context):
        seen_BT = last_visible_key(self.of, pos_BT - self.shift)
        return self.part.of_tokens(params, x_BTD, seen_BT, context)


def with_original_key_counts(layer: PlacedLayer, shift: int) -> PlacedLayer:
    """Returns the layer with temperatures computed at the positions before the shift."""

    def unshifted(group):
        heads, part = group.heads, group.heads.temperature
        if part is None or part.relative:
            return group
        shifted: Temperature
        if isinstance(part, TokenTemperature):
            shifted = _TokenInSight(group, part, shift)
        else:
            shifted = _InSight(group, part, shift)
        rest = dataclasses.replace(heads, temperature=shifted)
        return dataclasses.replace(group, heads=rest)

    return dataclasses.replace(layer, groups=tuple(unshifted(group) for group in layer.groups))


def shift_errors(
    config: ModelConfig,
    params,
    rows_RT: np.ndarray,
    shifts: tuple[int, ...],
    batch_tokens: int,
    *,
    counted: bool = True,
) -> dict[int, np.ndarray]:
    """Returns by shift s error_LN (P1): max |z(p + s) - z(p)| / std(z), float32, over all rows.

    The whole model runs on the same tokens at positions p and p + s, so that the error of a layer
    includes rounding in the layers below and the effect of an absolute encoding. z are the logits
    of the last `QUERIES` queries with their visible keys; in linear attention, the products of
    features. A shift does not change the number of visible keys, but temperatures compute it from
    positions; they therefore get the positions before the shift.

    Args:
      config, params: of the model. rows_RT: tokens, a document each. shifts: tokens.
      batch_tokens: tokens per batch. counted: False gives temperatures the shifted positions, as if
        more keys came before the row.

    Raises:
      ValueError: a shift past the positions of the scheme.
    """
    R, T = rows_RT.shape
    limit = config.placed.longest()
    if limit is not None and T + max(shifts) > limit:
        raise ValueError(
            f"{T} tokens moved by {max(shifts)} exceed the {limit} positions of "
            f"{config.scheme_line!r}"
        )
    rows = min(QUERIES, T)

    @functools.partial(jax.jit, static_argnums=0)
    def program(shift, params, tokens_BT, pos_BT):
        def reduce(_, q, k, layer, learned, pos_BT, cum_log_forget_BTN, _sink_N):
            where = {"pos_BT": pos_BT, "cum_log_forget_BTN": cum_log_forget_BTN}
            cap = config.attention_softcap
            return last_logits(q, k, layer, learned, rows=rows, softcap=cap, **where)

        modify_layer = functools.partial(with_original_key_counts, shift=shift)
        return capture_qk(config, params, tokens_BT, pos_BT, reduce, modify_layer)

    unshift = counted and depends_on_key_count(config.placed)

    visible_RS = np.arange(T)[None] <= np.arange(T - rows, T)[:, None]
    worst = {shift: np.zeros((config.num_layers, config.num_heads)) for shift in shifts}
    count, total, squares = 0, np.zeros(()), np.zeros(())
    size = max(1, batch_tokens // T)
    for start in range(0, R, size):  # batch by batch: the logits of all rows would be too many
        piece = rows_RT[start : start + size].astype(np.int32)
        pos_BT = np.broadcast_to(np.arange(T, dtype=np.int32), piece.shape)
        (at_rest,) = over_batches(functools.partial(program, 0, params), piece.size, piece, pos_BT)
        base = [z_BNRS[:, :, visible_RS].astype(np.float64) for z_BNRS in at_rest]
        count += base[0][:, 0].size
        total = total + np.stack([z.sum((0, 2)) for z in base])
        squares = squares + np.stack([(z**2).sum((0, 2)) for z in base])
        for shift in shifts:
            (moved,) = over_batches(
                functools.partial(program, shift if unshift else 0, params),
                piece.size,
                piece,
                pos_BT + np.int32(shift),
            )
            apart = [
                np.abs(m[:, :, visible_RS] - z).max((0, 2))
                for m, z in zip(moved, base, strict=True)
            ]
            worst[shift] = np.maximum(worst[shift], apart)
    spread_LN = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    # The error of logits that neither vary nor move is 0, not 0/0.
    return {
        shift: np.where(w == 0, 0.0, w / np.where(spread_LN == 0, np.finfo(float).tiny, spread_LN))
        for shift, w in worst.items()
    }


def largest_rise(layer: PlacedLayer, params: Params, lengths: tuple[int, ...]) -> np.ndarray:
    """Returns rise_N (P5), nats: the largest growth of the bias from one distance to the next, at
    least 0.

    A monotone bias has 0. Computed at every distance, for a query at the end of each of `lengths`
    (some biases depend on the query). Forget gates have no tokens here: see `largest_gate_rise`.
    """
    rises = [np.diff(bias_of_distance(layer, params, n), axis=1).max(1) for n in lengths]
    return np.maximum(np.max(rises, axis=0), 0.0)


def largest_gate_rise(config: ModelConfig, params, rows_RT: np.ndarray, batch_tokens: int) -> dict:
    """Returns rise_N (P5) by gated layer: as `largest_rise`, with the gates of real text."""

    def reduce(_, q, k, layer, learned, pos_BT, cum_log_forget_BTN, _sink_N):
        if cum_log_forget_BTN is None:
            return None
        # b(i, j) = F(i) - F(j) of the cumulative log-forget F: a key further back adds one
        # log-forget.
        return (cum_log_forget_BTN[:, 1:] - cum_log_forget_BTN[:, :-1]).max(1)

    pieces = capture_rows(config, params, rows_RT, batch_tokens, lambda: reduce)
    return {
        i: np.maximum(np.concatenate([piece[i] for piece in pieces]).max(0), 0.0)
        for i in range(config.num_layers)
        if pieces[0][i] is not None
    }
