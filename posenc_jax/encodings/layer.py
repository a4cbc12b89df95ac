"""One attention layer of a scheme: rotation, bias and temperature of all its heads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.encodings.base import (
    Bias,
    Form,
    GatedBias,
    HeadContext,
    Params,
    Part,
    Rotation,
    Temperature,
    TokenTemperature,
)
from posenc_jax.encodings.bias import distances, linear_bias
from posenc_jax.encodings.bias_sum import BiasSum
from posenc_jax.encodings.window import Window

KINDS = ("rotation", "bias", "temperature", "form", "window")


@dataclasses.dataclass(frozen=True)
class HeadGroup:
    """The parts of one group of heads; `share` is its weight among the groups of the layer.

    `form` is a form of attention other than softmax; it takes neither bias nor temperature.
    """

    rotation: Rotation | None = None
    bias: Bias | None = None
    temperature: Temperature | None = None
    share: int = 1
    form: Form | None = None
    window: Window | None = None

    def parts(self) -> tuple[Part, ...]:
        """Returns the parts that are set; for a sum of biases, its terms."""
        parts = (part for kind in KINDS if (part := getattr(self, kind)) is not None)
        return tuple(
            p for part in parts for p in (part.terms if isinstance(part, BiasSum) else (part,))
        )


Layer = tuple[HeadGroup, ...]


@dataclasses.dataclass(frozen=True)
class PlacedHeadGroup:
    """A head group with its range of query heads."""

    heads: HeadGroup
    first: int
    context: HeadContext

    @property
    def stop(self) -> int:
        """One past the last query head."""
        return self.first + self.context.heads


@dataclasses.dataclass(frozen=True)
class PlacedLayer:
    """One attention layer of a scheme, as pure functions of positions."""

    groups: tuple[PlacedHeadGroup, ...]

    @property
    def num_heads(self) -> int:
        """Query heads of the layer."""
        return self.groups[-1].stop

    @property
    def window_N(self) -> tuple[int | None, ...]:
        """The window of every query head, tokens; None: no window."""
        own = ((g.heads.window, g.context) for g in self.groups)
        return tuple(w.tokens(at) if w else None for w, at in own for _ in range(at.heads))

    @property
    def gated(self) -> bool:
        """Whether a head has a forget gate, so that `bias` needs the cumulative log-forget."""
        return any(isinstance(group.heads.bias, GatedBias) for group in self.groups)

    @property
    def form(self) -> Form | None:
        """The form of attention of all heads; None: softmax."""
        return self.groups[0].heads.form

    def init(self, key: jax.Array) -> Params:
        """Returns learned parameters by "group.kind"; empty for schemes without learned parts."""
        params: dict[str, Params] = {}
        for g, group, kind, part in self._parts():
            learned = part.init(jax.random.fold_in(key, len(params)), group.context)
            if learned:
                params[f"{g}.{kind}"] = learned
        return params

    def scheduled(self, params: Params, progress: jax.Array) -> Params:
        """Returns `params` with the scheduled ones set for a share `progress` of training."""
        named = {f"{g}.{kind}": (part, group.context) for g, group, kind, part in self._parts()}
        return {
            name: named[name][0].scheduled(learned, progress, named[name][1])
            for name, learned in params.items()
        }

    def _parts(self):
        for g, group in enumerate(self.groups):
            for kind in KINDS:
                part = getattr(group.heads, kind)
                if part is not None:
                    yield g, group, kind, part

    @property
    def columns_per_dim(self) -> int:
        """Columns of a rotated query or key per dim."""
        rotations = (group.heads.rotation for group in self.groups)
        return max(1 if rotation is None else rotation.columns_per_dim for rotation in rotations)

    def shares_keys(self, num_kv_heads: int) -> bool:
        """Whether all query heads of each key/value head rotate equally."""
        rotations = []
        for g, group in enumerate(self.groups):
            rotation = group.heads.rotation
            own = rotation is not None and rotation.learns and not rotation.keys_alike
            apart = own and rotation is not None and rotation.per_head
            for n in range(group.context.heads):
                rotations.append((rotation, g if own else None, n if apart else None))
        size = self.num_heads // num_kv_heads
        return all(len(set(rotations[k : k + size])) == 1 for k in range(0, self.num_heads, size))

    def rotate(self, params: Params, x_BTNH: jax.Array, pos_BT: jax.Array, side: str) -> jax.Array:
        """Returns queries or keys rotated to their positions, with `columns_per_dim` times as many
        columns.

        `x_BTNH` has the layer's query heads, or its key/value heads if `shares_keys`; `side` is
        "query" or "key". Heads without a rotation are returned unchanged. Heads with fewer columns
        are padded with zeros.
        """
        repeats = self.num_heads // x_BTNH.shape[2]
        columns = self.columns_per_dim * x_BTNH.shape[3]
        out = _with_columns(x_BTNH, columns)
        for g, group in enumerate(self.groups):
            if group.heads.rotation is None:
                continue
            learned = params.get(f"{g}.rotation", {})
            turned = group.heads.rotation.rotate(learned, x_BTNH, pos_BT, group.context, side)
            turned = _with_columns(turned, columns)
            head_N = np.arange(0, self.num_heads, repeats)
            owned_N = (group.first <= head_N) & (head_N < group.stop)
            out = turned if owned_N.all() else jnp.where(owned_N[None, None, :, None], turned, out)
        return out

    def log_forget(self, params: Params, x_BTD: jax.Array) -> jax.Array | None:
        """Returns log_forget_BTN, float32, of all query heads; None if not `gated`."""
        if not self.gated:
            return None
        pieces = []
        for g, group in enumerate(self.groups):
            part = group.heads.bias
            if isinstance(part, GatedBias):
                pieces.append(part.log_forget(params.get(f"{g}.bias", {}), x_BTD, group.context))
            else:
                pieces.append(jnp.zeros_like(x_BTD[:, :, : group.context.heads], jnp.float32))
        return jnp.concatenate(pieces, axis=2)

    def bias(
        self,
        params: Params,
        q_pos_BT: jax.Array,
        k_pos_BS: jax.Array,
        q_cum_log_forget_BTN: jax.Array | None = None,
        k_cum_log_forget_BSN: jax.Array | None = None,
    ) -> jax.Array | None:
        """Returns bias_BNTS, float32, over all query heads, or None when no head has one.

        A forget gate needs the running sums of `log_forget` (`forget_gate.cumulative_log_forget`).
        Without them, its bias is that of tokens with x = 0, for reports and not for attention.
        """
        if all(group.heads.bias is None for group in self.groups):
            return None
        pieces = []
        for g, group in enumerate(self.groups):
            part, learned = group.heads.bias, params.get(f"{g}.bias", {})
            if part is None:
                flat_N = np.zeros(group.context.heads)
                pieces.append(linear_bias(flat_N, distances(q_pos_BT, k_pos_BS)))
            elif (
                isinstance(part, GatedBias)
                and q_cum_log_forget_BTN is not None
                and k_cum_log_forget_BSN is not None
            ):
                mine = slice(group.first, group.stop)
                q_BNT = q_cum_log_forget_BTN[:, :, mine].swapaxes(1, 2)
                k_BNS = k_cum_log_forget_BSN[:, :, mine].swapaxes(1, 2)
                pieces.append(q_BNT[:, :, :, None] - k_BNS[:, :, None, :])
            else:
                pieces.append(part.bias(learned, q_pos_BT, k_pos_BS, group.context))
        return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)

    def linear_slope_N(self, params: Params) -> jax.Array | None:
        """Returns the slopes of all query heads, float32; None if a bias is not linear."""
        pieces = []
        for g, group in enumerate(self.groups):
            part = group.heads.bias
            slope_N: jax.Array | None = jnp.zeros(group.context.heads)
            if part is not None:
                slope_N = part.linear_slope_N(params.get(f"{g}.bias", {}), group.context)
            if slope_N is None:
                return None
            pieces.append(slope_N)
        return jnp.concatenate(pieces)

    def temperature(
        self, params: Params, q_pos_BT: jax.Array, k_pos_BS: jax.Array
    ) -> jax.Array | None:
        """Returns tau_BNTS, float32, over all query heads, or None when no head has one.

        Its last dim is 1 if no temperature depends on the key; then it can be multiplied into the
        queries.
        """
        if all(group.heads.temperature is None for group in self.groups):
            return None
        pieces = []
        for g, group in enumerate(self.groups):
            part, learned = group.heads.temperature, params.get(f"{g}.temperature", {})
            tau_BNTS = (
                jnp.ones_like(q_pos_BT, jnp.float32)[:, None, :, None]
                if part is None
                else part.temperature(
                    learned, last_visible_key(group, q_pos_BT), k_pos_BS, group.context
                )
            )
            pieces.append((tau_BNTS, group.context.heads))
        S = max(tau_BNTS.shape[-1] for tau_BNTS, _ in pieces)
        wide = [
            jnp.broadcast_to(tau_BNTS, (tau_BNTS.shape[0], heads, tau_BNTS.shape[2], S))
            for tau_BNTS, heads in pieces
        ]
        return wide[0] if len(wide) == 1 else jnp.concatenate(wide, axis=1)

    @property
    def tempered_by_tokens(self) -> bool:
        """Whether a temperature depends on the tokens; see `tempered`."""
        return any(isinstance(group.heads.temperature, TokenTemperature) for group in self.groups)

    def tempered(
        self, params: Params, q_BTNH: jax.Array, x_BTD: jax.Array, pos_BT: jax.Array
    ) -> tuple[jax.Array, "PlacedLayer"]:
        """Returns the queries times the temperatures that depend on tokens, and the layer without
        these temperatures.

        x_BTD is the input of the layer's projections. Without such a temperature, both are returned
        unchanged.
        """
        if not self.tempered_by_tokens:
            return q_BTNH, self
        tau_of_group, groups = {}, []
        for g, group in enumerate(self.groups):
            part, heads = group.heads.temperature, group.heads
            if isinstance(part, TokenTemperature):
                learned = params.get(f"{g}.temperature", {})
                visible_BT = last_visible_key(group, pos_BT)
                tau_of_group[g] = part.of_tokens(learned, x_BTD, visible_BT, group.context)
                heads = dataclasses.replace(heads, temperature=None)
            groups.append(dataclasses.replace(group, heads=heads))
        one_BT1 = jnp.ones_like(next(iter(tau_of_group.values()))[:, :, :1])
        taus = [
            tau_of_group.get(g, jnp.broadcast_to(one_BT1, (*pos_BT.shape, group.context.heads)))
            for g, group in enumerate(groups)
        ]
        tau_BTN1 = jnp.concatenate(taus, axis=2)[..., None]
        q_BTNH = (q_BTNH.astype(jnp.float32) * tau_BTN1).astype(q_BTNH.dtype)
        return q_BTNH, PlacedLayer(tuple(groups))


def last_visible_key(group: PlacedHeadGroup, pos_BT: jax.Array) -> jax.Array:
    """Returns the positions that the temperature of a head group reads.

    A temperature that depends on the number n of visible keys reads n - 1: the position, or w - 1
    if that is less, for heads with a window of w. The window of `ModelConfig` is a mask of the
    evaluation and does not change n.
    """
    heads = group.heads
    if heads.window is None or heads.temperature is None or heads.temperature.relative:
        return pos_BT
    return jnp.minimum(pos_BT, heads.window.tokens(group.context) - 1)


def _with_columns(x_BTNH: jax.Array, columns: int) -> jax.Array:
    missing = columns - x_BTNH.shape[-1]
    return jnp.pad(x_BTNH, ((0, 0), (0, 0), (0, 0), (0, missing))) if missing else x_BTNH


@functools.cache
def temperature_depends_on_key(layer: PlacedLayer) -> bool:
    """Whether a temperature of the layer depends on the key."""
    probe = jnp.zeros((1, 2), jnp.int32)
    tau = jax.eval_shape(
        lambda key: layer.temperature(layer.init(key), probe, probe), jax.random.key(0)
    )
    return tau is not None and tau.shape[-1] != 1
