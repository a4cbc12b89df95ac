"""A scheme: the absolute part, rotation, bias, temperature and window of every head and layer."""

import dataclasses
import itertools

import jax

from posenc_jax.encodings.base import Absolute, HeadContext, Params, Part, check_numbers
from posenc_jax.encodings.layer import HeadGroup, Layer, PlacedHeadGroup, PlacedLayer
from posenc_jax.encodings.registry import display_name

MOST_LAYERS = 9_999


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A positional encoding as one frozen, hashable value.

    Attributes:
      layers: the head groups of each layer, cycled over the layers of the model.
      absolute: the absolute position embedding, or None.
    """

    layers: tuple[Layer, ...] = ((HeadGroup(),),)
    absolute: Absolute | None = None

    def __post_init__(self):
        if not self.layers or not all(self.layers):
            raise ValueError("a scheme needs at least one layer with at least one group of heads")

    def place(
        self, *, num_layers: int, num_heads: int, head_dim: int, model_dim: int, train_length: int
    ) -> "PlacedScheme":
        """Returns the scheme for a model of this shape; ValueError names what does not fit."""
        if num_layers > MOST_LAYERS:
            raise ValueError(f"{num_layers:,} layers: a model may have {MOST_LAYERS:,}")
        if num_layers < len(self.layers):
            raise ValueError(
                f"the scheme has {len(self.layers)} layers and the model {num_layers}: give the "
                f"model at least {len(self.layers)} (num_layers), or the scheme fewer"
            )
        whole = HeadContext(num_heads, num_heads, head_dim, model_dim, train_length)
        period = [_place_layer(layer, whole) for layer in self.layers]
        layers = tuple(itertools.islice(itertools.cycle(period), num_layers))
        placed = PlacedScheme(layers, self.absolute, whole)
        placed.check()
        return placed


@dataclasses.dataclass(frozen=True)
class PlacedScheme:
    """A scheme for a model of known shape."""

    layers: tuple[PlacedLayer, ...]
    absolute: Absolute | None
    whole: HeadContext

    def check(self) -> None:
        """Raises ValueError if the settings of a part are invalid or do not fit."""
        if self.absolute is not None:
            _check_part(self.absolute, self.whole)
        for layer in dict.fromkeys(self.layers):
            _check_form(layer)
            for group in layer.groups:
                for part in group.heads.parts():
                    _check_part(part, group.context)

    def longest(self) -> int | None:
        """Number of positions for which every part is defined; None: no limit."""
        limits = [self.absolute.longest(self.whole) if self.absolute else None]
        for layer in dict.fromkeys(self.layers):
            limits += [p.longest(g.context) for g in layer.groups for p in g.heads.parts()]
        return min((n for n in limits if n is not None), default=None)

    def init_absolute(self, key: jax.Array) -> Params:
        """Returns the learned parameters of the absolute part."""
        return self.absolute.init(key, self.whole) if self.absolute else {}

    def embed(self, params: Params, pos_BT: jax.Array) -> jax.Array | None:
        """Returns a_BTD, float32; None for schemes without an absolute part."""
        return self.absolute.embed(params, pos_BT, self.whole) if self.absolute else None


def _place_layer(layer: Layer, whole: HeadContext) -> PlacedLayer:
    shares = [heads.share for heads in layer]
    if min(shares) < 1:
        raise ValueError(f"head shares must be positive whole numbers, not {tuple(shares)}")
    if whole.num_heads % sum(shares):
        raise ValueError(
            f"{whole.num_heads} heads do not divide into shares {':'.join(map(str, shares)):.60}; "
            f"use a multiple of {sum(shares)} heads"
        )
    unit, first, groups = whole.num_heads // sum(shares), 0, []
    for heads in layer:
        context = dataclasses.replace(whole, heads=unit * heads.share, first=first)
        groups.append(PlacedHeadGroup(heads, first, context))
        first += context.heads
    return PlacedLayer(tuple(groups))


def _check_part(part: Part, context: HeadContext) -> None:
    check_numbers(display_name(part), part)
    stretch = getattr(part, "stretch", None)
    if stretch is not None:
        check_numbers(display_name(stretch), stretch)
    part.check(context)


def _check_form(layer: PlacedLayer) -> None:
    groups = [group.heads for group in layer.groups]
    if len({heads.form for heads in groups}) > 1:
        raise ValueError(
            "all heads of a layer share one form of attention: put linear attention on layers of "
            "its own, with ','"
        )
    if layer.form is not None and any(h.bias or h.temperature or h.window for h in groups):
        raise ValueError(
            "linear attention takes neither a bias nor a temperature nor a window: put them on "
            "softmax layers, with ','"
        )
    if layer.form is not None and layer.columns_per_dim > 1:
        raise ValueError(
            "linear attention turns features in place: take rope, and pope on layers of its own, "
            "with ','"
        )
