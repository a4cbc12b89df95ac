"""A small vision transformer: the decoder's blocks without causality, over a grid of patches.

Patches are in raster order. The position of a patch is one integer, row * width + column; planar
parts (axial, mixed, alibi2d) recover row and column with their `width`. A larger image is read with
the same parameters and a scheme of another width: `read_at`. In this file H, W, C are height, width
and channels of an image, P = size * size * C the numbers of a patch, and V the classes.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.attention import TokenSide
from posenc_jax.attention.tokens import integer_side, zero_padding, zero_where_unread
from posenc_jax.encodings.absolute import Learned, Sinusoidal
from posenc_jax.encodings.layer import KINDS
from posenc_jax.model.activation_sharding import ROWS, current_sharding, reshard
from posenc_jax.model.array_module import ArrayModule
from posenc_jax.model.blocks import Block
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.norms import learned_norm


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Shape and choices of an image encoder.

    Attributes:
      model: the config of the blocks. vocab_size is the number of classes, train_length the number
        of patches of a training image, embedding_scale a factor on projected patches; tied_head
        must be False, because there is no embedding table.
      patch_size: side of a patch, in pixels. channels: of an image.
    """

    model: ModelConfig
    patch_size: int
    channels: int

    def __post_init__(self):
        for name in ("patch_size", "channels"):
            if not getattr(self, name) > 0:
                raise ValueError(f"vision.{name} must be positive, not {getattr(self, name)}")
        if self.model.tied_head:
            raise ValueError("model.tied_head must be False: patches have no embedding table")
        if any(layer.gated for layer in self.model.placed.layers):
            raise ValueError(
                f"scheme {self.model.scheme!r}: a forget gate weakens earlier tokens; an image "
                "encoder is not causal"
            )
        if self.model.token_shift:
            raise ValueError(
                "model.token_shift must be False: an image encoder is not causal, and patches have "
                "no previous token"
            )
        for name in ("embedding_norm", "head_transform", "logit_softcap"):
            if getattr(self.model, name):
                raise ValueError(f"model.{name} is of decoders; leave it off for an image encoder")
        if not self.model.final_norm or "head" in self.model.biases:
            raise ValueError("an image encoder has a final norm, and a head without a bias")
        _ = self.width

    @property
    def classes(self) -> int:
        """V, the number of classes."""
        return self.model.vocab_size

    @functools.cached_property
    def width(self) -> int | None:
        """Columns of the grid of planar parts, or None; ValueError for different widths."""
        placed = self.model.placed
        parts = [p for layer in placed.layers for g in layer.groups for p in g.heads.parts()]
        parts += [placed.absolute] if placed.absolute else []
        columns = [part.columns(placed.whole) for part in parts]
        widths = {width for width in columns if width is not None}
        if len(widths) > 1:
            raise ValueError(
                f"scheme {self.model.scheme!r} has planar parts with grids of "
                f"{' and '.join(map(str, sorted(widths)))} columns; give its parts one width"
            )
        return widths.pop() if widths else None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns (rows, columns) of patches; ValueError for an image that does not divide."""
        return _grid(height, width, self.patch_size)

    def positions(self, rows: int, columns: int) -> np.ndarray:
        """Returns pos_T, int32, of a grid of patches in raster order.

        Without planar parts, patches are counted in raster order, whatever the width of the image.

        Raises:
          ValueError: a grid wider than the scheme's, or more positions than the scheme has.
        """
        width = self.width or columns
        if columns > width:
            raise ValueError(
                f"an image has {columns} columns of patches and the grid of the scheme {width}: "
                "different patches would get the same position; read it with read_at(config, "
                "(height, width))"
            )
        pos_T = (np.arange(rows)[:, None] * width + np.arange(columns)).ravel().astype(np.int32)
        limit = self.model.placed.longest()
        if limit is not None and pos_T[-1] >= limit:
            raise ValueError(
                f"an image of {rows} x {columns} patches needs {pos_T[-1] + 1} positions; "
                f"{self.model.scheme!r} has {limit}"
            )
        return pos_T


def _grid(height: int, width: int, size: int) -> tuple[int, int]:
    if height < 1 or width < 1 or height % size or width % size:
        raise ValueError(
            f"an image of {height} x {width} pixels does not divide into patches of {size} x {size}"
        )
    return height // size, width // size


def read_at(config: VisionConfig, image_size: tuple[int, int]) -> VisionConfig:
    """Returns the config under which the same parameters read images of another size.

    If the image is wider than the grid, planar parts get a grid as wide as the image; otherwise
    nothing changes, so that the positions of a learned table keep their meaning.

    Args:
      config: as trained. image_size: (height, width), pixels.

    Raises:
      ValueError: a size that does not divide into patches, or with more positions than the scheme
        has.
    """
    rows, columns = config.grid(*image_size)
    if config.width is not None and columns > config.width:
        scheme, whole = config.model.parsed_scheme, config.model.placed.whole

        def widened(holder, kinds):
            parts = {kind: part for kind in kinds if (part := getattr(holder, kind))}
            return dataclasses.replace(
                holder, **{kind: part.on_grid(columns, whole) for kind, part in parts.items()}
            )

        layers = tuple(tuple(widened(heads, KINDS) for heads in layer) for layer in scheme.layers)
        scheme = dataclasses.replace(widened(scheme, ["absolute"]), layers=layers)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, scheme=scheme))
    config.positions(rows, columns)
    return config


def read_tables_at(
    config: VisionConfig, params: dict | None, image_size: tuple[int, int]
) -> tuple[VisionConfig, dict | None]:
    """Returns config and parameters that read images of another size, tables of positions
    interpolated.

    As `read_at`; in addition a learned or sinusoidal table is resized bilinearly from the grid of
    training to the grid of the image (Dosovitskiy et al. 2021, sec. 3.2) and becomes a learned one.

    Args:
      config: as trained on square images. params: as trained; None to check sizes only.

    Raises:
      ValueError: as `read_at`, or a table that was not trained on a square grid.
    """
    grid, model = config.grid(*image_size), config.model
    side = math.isqrt(model.train_length)
    absolute = model.placed.absolute
    if not isinstance(absolute, Learned | Sinusoidal) or grid == (side, side):
        return read_at(config, image_size), params
    if side * side != model.train_length:
        raise ValueError(
            f"a table of {model.train_length} positions is no square grid, and cannot be "
            "interpolated"
        )
    size = max(math.prod(grid), model.train_length)
    scheme = dataclasses.replace(model.parsed_scheme, absolute=Learned(size=size))
    config = dataclasses.replace(config, model=dataclasses.replace(model, scheme=scheme))
    if params is not None:
        pos_1L = jnp.arange(model.train_length)[None]
        table_1LD = absolute.embed(params.get("absolute", {}), pos_1L, model.placed.whole)
        table_RCD = table_1LD.reshape(side, side, -1)
        resized_RCD = jax.image.resize(table_RCD, (*grid, model.model_dim), "bilinear")
        table_LD = resized_RCD.reshape(-1, model.model_dim)
        unused = ((0, size - len(table_LD)), (0, 0))  # a table has at least the rows of training
        params = {**params, "absolute": {"table_LD": jnp.pad(table_LD, unused)}}
    return config, params


def patches(image_BHWC: jax.Array, size: int) -> jax.Array:
    """Returns patch_BTP, squares in raster order; ValueError for an image that does not divide."""
    B, H, W, C = image_BHWC.shape
    rows, columns = _grid(H, W, size)
    layout = jax.typeof(image_BHWC).sharding  # patches are split over devices like their images
    place = None if layout.mesh.empty else jax.P(layout.spec[0])
    cut, flat = (B, rows, size, columns, size, C), (B, rows * columns, size * size * C)
    squares = jnp.reshape(image_BHWC, cut, out_sharding=place).swapaxes(2, 3)
    return jnp.reshape(squares, flat, out_sharding=place)


class Encoder(ArrayModule):
    """The image encoder: patches, non-causal blocks, a final norm, a mean over patches, a head.

    ``apply({"params": p}, image_BHWC)`` returns logits_BV, float32. With seg_BT, patches of segment
    0 are padding: masked in attention and left out of the mean. For patches that do not fill a
    grid, pass their positions: ``apply({"params": p}, patch_BTP, pos_BT, seg_BT, method="read")``.
    """

    config: VisionConfig

    def __call__(self, image_BHWC: jax.Array, seg_BT: jax.Array | None = None) -> jax.Array:
        """Returns logits_BV; ValueError for an image or segments that do not fit the config."""
        c = self.config
        if image_BHWC.ndim != 4 or image_BHWC.shape[3] != c.channels:
            raise ValueError(
                f"images must be [batch, height, width, {c.channels} channels], not "
                f"{image_BHWC.shape}"
            )
        if not jnp.issubdtype(image_BHWC.dtype, jnp.floating):
            raise ValueError(f"pixels must be floats of about unit size, not {image_BHWC.dtype}")
        pos_T = c.positions(*c.grid(*image_BHWC.shape[1:3]))
        shape, rows = (image_BHWC.shape[0], len(pos_T)), current_sharding(ROWS, None)
        pos_BT = jnp.broadcast_to(pos_T[None], shape)
        if rows is not None:
            pos_BT = jax.sharding.reshard(pos_BT, rows)
        if seg_BT is None:
            seg_BT = jnp.ones_like(pos_BT)
        elif seg_BT.shape != shape:
            raise ValueError(
                f"segments {seg_BT.shape} do not fit a batch of {shape[0]} images of {shape[1]} "
                "patches"
            )
        return self.read(patches(image_BHWC, c.patch_size), pos_BT, seg_BT)

    @nn.compact
    def read(self, patch_BTP: jax.Array, pos_BT: jax.Array, seg_BT: jax.Array) -> jax.Array:
        """Returns logits_BV of patches at any positions; padding has segment 0."""
        c, model = self.config, self.config.model
        P, D, V = c.patch_size**2 * c.channels, model.model_dim, c.classes
        pos_BT, seg_BT = zero_padding(integer_side(TokenSide(pos_BT, seg_BT)))[:2]
        patch_BTP = zero_where_unread(patch_BTP, seg_BT != 0)
        patch_PD = self.param("patch_PD", nn.initializers.normal(P**-0.5), (P, D))
        x_BTD = jnp.einsum(
            "BTP,PD->BTD",
            patch_BTP.astype(model.dtype),
            reshard(patch_PD.astype(model.dtype), None, "model"),
            preferred_element_type=jnp.float32,
            out_sharding=current_sharding(ROWS, None, None),
        )
        x_BTD = x_BTD * model.embedding_scale
        absolute = model.placed.absolute
        if absolute is not None:
            learned = self.param("absolute", model.placed.init_absolute) if absolute.learns else {}
            x_BTD = x_BTD + absolute.embed(learned, pos_BT, model.placed.whole)
        x_BTD = x_BTD.astype(model.dtype)

        for i in range(model.num_layers):
            block = Block(model, i, causal=False, name=f"layer_{i}")
            x_BTD, _ = block(x_BTD, pos_BT, seg_BT, None)
        x_BTD = learned_norm(self, model, "final", x_BTD)

        here_BT = (seg_BT != 0).astype(jnp.float32)
        total_BD = jnp.einsum("BTD,BT->BD", x_BTD.astype(jnp.float32), here_BT)
        mean_BD = total_BD / jnp.maximum(here_BT.sum(-1, keepdims=True), 1.0)
        head_VD = self.param("head_VD", nn.initializers.normal(D**-0.5), (V, D))
        return jnp.einsum(
            "BD,VD->BV",
            mean_BD,
            reshard(head_VD, None, "model"),
            out_sharding=current_sharding(ROWS, None),
        )
