"""The encoder of images against a float64 one, and what a move, a shuffle and a larger grid do to it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from posenc_jax.encodings import REGISTRY, Absolute, sinusoid, unparse
from posenc_jax.encodings.planar import raster
from posenc_jax.model.config import ModelConfig
from posenc_jax.model.vision import Encoder, VisionConfig, patches, read_at
from posenc_jax.training.sharding import make_mesh, parameter_layout

from support import oracles, schemes

BASE = VisionConfig(
    ModelConfig(
        scheme="axial", vocab_size=3, train_length=36, num_layers=1, model_dim=16, num_heads=4,
        num_kv_heads=4, head_dim=8, mlp_dim=24, activation="swiglu", qk_norm=True, tied_head=False,
        embedding_scale=1.0, norm_epsilon=1e-6, dtype="float32", attention="auto",
    ),
    patch_size=2, channels=3,
)  # fmt: skip
SIDE, P = 6, 12  # patches on a side, numbers in a patch
PLANAR = ["axial", "mixed", "alibi2d", "mixed|axial+alibi2d"]
ON_A_LINE = ["sinusoidal", "learned", "rope", "alibi"]


def configured(line, **changes):
    outside = {k: changes.pop(k) for k in ("patch_size", "channels") if k in changes}
    model = dataclasses.replace(BASE.model, scheme=line, **changes)
    return dataclasses.replace(BASE, model=model, **outside)


@functools.cache
def reader(config):
    """One jitted reading per config; segments are always handed in, so that it compiles once a shape."""
    return jax.jit(lambda p, image, seg: Encoder(config).apply({"params": p}, image, seg))


def strong(config, seed=0):
    """Parameters that make attention far from uniform, drawn without compiling an initialiser."""
    image = jnp.ones((1, 2 * SIDE, 2 * SIDE, config.channels))
    shapes = jax.eval_shape(Encoder(config).init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
        if "gain" in name:
            return 1.5 + 0.3 * noise
        return noise * (0.5 if name in ("freq_2Nh", "table_LD") else 1.5 * leaf.shape[0] ** -0.5)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def image_of(grid_RCP, size=2):
    """The image whose patches stand in a grid, by loops."""
    rows, columns, _ = grid_RCP.shape
    image = np.zeros((1, rows * size, columns * size, grid_RCP.shape[2] // size**2), np.float32)
    for r, c in np.ndindex(rows, columns):
        place = slice(r * size, (r + 1) * size), slice(c * size, (c + 1) * size)
        image[0, *place] = grid_RCP[r, c].reshape(size, size, -1)
    return image


def content(rows, columns, seed=1):
    return np.random.default_rng(seed).normal(size=(rows, columns, P)).astype(np.float32)


def placed(grid_RCP, rows, columns, down, across):
    """An image of rows x columns patches and its segments: padding but for the grid set down in it."""
    canvas, seg = content(rows, columns, seed=9), np.zeros((rows, columns), np.int32)
    place = slice(down, down + len(grid_RCP)), slice(across, across + grid_RCP.shape[1])
    canvas[place], seg[place] = grid_RCP, 1
    return image_of(canvas), seg.reshape(1, -1)


def whole(grid_RCP):
    return image_of(grid_RCP), np.ones((1, grid_RCP.shape[0] * grid_RCP.shape[1]), np.int32)


@pytest.mark.parametrize(
    ("size", "shape"), [(1, (2, 2, 3, 2)), (2, (3, 6, 4, 3)), (4, (1, 4, 12, 1))]
)
def test_patches_are_cut_in_raster_order(size, shape):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    got, want = patches(jnp.asarray(image), size), []
    for r in range(0, shape[1], size):
        for c in range(0, shape[2], size):
            pixels = [image[:, r + y, c + x] for y in range(size) for x in range(size)]
            want.append(np.concatenate(pixels, axis=-1))
    np.testing.assert_array_equal(got, np.stack(want, axis=1))
    with pytest.raises(ValueError, match="does not divide into patches of 5 x 5"):
        patches(jnp.asarray(image), 5)


def test_encoder_equals_the_float64_reference_under_axial_rope_and_planar_alibi():
    """A 3 x 5 image on a grid of 6 columns, the last two patches padding, two heads to a key."""
    config = configured("axial+alibi2d", num_layers=2, num_kv_heads=2, embedding_scale=1.3)
    params, grid = strong(config), content(3, 5)
    assert {"layer_0", "layer_1"} < params.keys()
    seg = np.array([[1] * 13 + [0] * 2])
    position = [r * 6 + c for r in range(3) for c in range(5)]
    slopes = oracles.alibi_slopes(4)

    def attention(_layer, q, k, v):
        turned = [
            np.stack(
                [
                    [
                        oracles.rope_by_angles(
                            z[t, n], oracles.axial_angles(position[t], 6, 8, 100.0)
                        )
                        for n in range(4)
                    ]
                    for t in range(13)
                ]
            )
            for z in (q, k)
        ]

        def bias(n, i, j):
            (a, b), (c, d) = divmod(position[i], 6), divmod(position[j], 6)
            return -slopes[n] * ((a - c) ** 2 + (b - d) ** 2) ** 0.5

        return oracles.attention(*turned, v, bias, lambda i, j: True)

    patch_TP = grid.reshape(15, P)[:13].astype(np.float64)
    stream_TD = 1.3 * patch_TP @ np.asarray(params["patch_PD"], np.float64)
    # The mean of linear heads is the head of the mean.
    as_decoder = params | {"embedding_VD": stream_TD}
    want = oracles.decoder_logits(as_decoder, np.arange(13), 4, attention).mean(0)
    got = reader(config)(params, image_of(grid), seg)
    assert np.abs(want).max() > 0.3
    np.testing.assert_allclose(got[0], want, atol=1e-4, rtol=1e-4)


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("line", ["nope", *PLANAR, *ON_A_LINE])
def test_shuffled_patches_are_told_apart_by_every_encoding_and_not_without_one(line):
    config, grid = configured(line), content(SIDE, SIDE)
    params, read = strong(config), reader(config)
    order = np.random.default_rng(2).permutation(SIDE * SIDE)
    shuffled = grid.reshape(-1, P)[order].reshape(grid.shape)
    a, b = read(params, *whole(grid)), read(params, *whole(shuffled))
    if line == "nope":
        np.testing.assert_allclose(a, b, atol=2e-5)
    else:
        assert np.abs(a - b).max() > 1e-3


@pytest.mark.default_cases(3)
@pytest.mark.parametrize("line", [*PLANAR, *ON_A_LINE])
def test_moving_the_content_inside_the_grid_changes_nothing_for_relative_encodings(line):
    """On one grid a line is moved along too: its distances are those of the raster."""
    config, grid = configured(line), content(3, 3)
    params, read = strong(config), reader(config)
    here = read(params, *placed(grid, SIDE, SIDE, 0, 1))
    there = read(params, *placed(grid, SIDE, SIDE, 3, 2))
    if line in ("sinusoidal", "learned"):
        assert np.abs(here - there).max() > 1e-3
    else:
        np.testing.assert_allclose(here, there, atol=5e-5)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("line", [*PLANAR, "sinusoidal", "rope", "alibi"])
def test_a_larger_image_is_read_with_the_same_parameters_and_only_the_plane_stays_itself(line):
    """The same patches in the middle of 4 x 9: planar encodings see what they saw in 6 x 6."""
    config, grid = configured(line), content(3, 3)
    larger = read_at(config, (4 * 2, 9 * 2))
    assert (larger == config) == (line not in PLANAR)
    params = strong(config)
    trained = reader(config)(params, *placed(grid, SIDE, SIDE, 1, 2))
    moved = reader(larger)(params, *placed(grid, 4, 9, 1, 5))
    if line in PLANAR:
        np.testing.assert_allclose(trained, moved, atol=5e-5)
    else:  # the next row is nine positions on, and was six
        assert np.abs(trained - moved).max() > 1e-3


def test_planar_alibi_knows_distances_and_no_directions():
    """Turned, mirrored and transposed grids look alike to it, and to axial RoPE they do not."""
    grid = content(SIDE, SIDE)
    for line, alike in (("alibi2d", True), ("axial", False)):
        config = configured(line)
        params, read = strong(config), reader(config)
        first = read(params, *whole(grid))
        for turned in (grid[::-1], grid[:, ::-1], grid.swapaxes(0, 1)):
            other = read(params, *whole(turned))
            assert np.allclose(first, other, atol=5e-5) == alike, line


def test_padding_is_read_by_nobody_and_left_out_of_the_mean():
    config, grid = configured("axial"), content(4, SIDE)
    params, read = strong(config), reader(config)
    alone = read(params, *whole(grid))  # a lower image
    image, seg = placed(grid, SIDE, SIDE, 0, 0)
    np.testing.assert_allclose(read(params, image, seg), alone, atol=2e-5)
    np.testing.assert_array_equal(
        read(params, np.where(image == image_of(content(SIDE, SIDE, 9)), 7.0, image), seg),
        read(params, image, seg),
    )
    assert np.abs(read(params, *whole(content(SIDE, SIDE, 9))) - alone).max() > 1e-3
    np.testing.assert_array_equal(read(params, image, np.zeros_like(seg)), 0)  # nothing, and no NaN


@pytest.mark.thorough
def test_without_jit_and_patch_by_patch_the_logits_are_the_same():
    config, grid = configured("axial"), content(SIDE, SIDE)
    params = strong(config)
    want = reader(config)(params, *whole(grid))
    encoder = Encoder(config)
    np.testing.assert_allclose(
        encoder.apply({"params": params}, image_of(grid)), want, rtol=1e-5, atol=1e-5
    )
    # Patches in any order, as long as their positions go with them; those left out were padding.
    order = np.random.default_rng(3).permutation(36)[:20]
    seg = np.zeros((1, 36), np.int32)
    seg[:, order] = 1
    read = jax.jit(lambda p, *patches: encoder.apply({"params": p}, *patches, method="read"))
    some = read(params, grid.reshape(1, 36, P)[:, order], order[None], np.ones((1, 20), np.int32))
    np.testing.assert_allclose(some, reader(config)(params, image_of(grid), seg), atol=2e-5)


@pytest.mark.thorough
def test_blockwise_attention_reads_a_large_image_as_dense_attention_does():
    """Its cut-off must not take distances on a line for 2-D distances."""
    dense, blockwise = (
        configured("axial+alibi2d", train_length=576, attention=name)
        for name in ("dense", "blockwise")
    )
    assert dense != blockwise
    params, view = strong(BASE), placed(content(22, 21), 24, 24, 1, 2)
    want = reader(dense)(params, *view)
    np.testing.assert_allclose(reader(blockwise)(params, *view), want, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_eight_devices_give_the_logits_and_gradients_of_one():
    config = configured("learned+mixed|axial+alibi2d")
    params = strong(config)
    images = np.concatenate([image_of(content(SIDE, SIDE, seed)) for seed in range(8)])
    weight = np.random.default_rng(4).normal(size=(8, 3)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def score(p, images, weight):
        logits = Encoder(config).apply({"params": p}, images)
        return (logits * weight).sum(), logits

    (_, logits), grads = score(params, images, weight)
    assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(grads))
    mesh = make_mesh(4, 2)
    with jax.set_mesh(mesh):
        spread = jax.tree.map(
            lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)),
            (params, images, weight),
            (parameter_layout(params, mesh), jax.P("data"), jax.P("data")),
        )
        assert spread[0]["patch_PD"].addressable_shards[0].data.shape == (P, 8)
        assert patches(spread[1], 2).sharding.spec[0] == "data"
        (_, many), many_grads = score(*spread)
    assert not many.is_fully_replicated
    np.testing.assert_allclose(many, logits, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), many_grads, grads
    )


def test_bfloat16_keeps_float32_parameters_and_logits():
    low, high = configured("axial", dtype="bfloat16"), configured("axial")
    params, view = strong(high), whole(content(SIDE, SIDE))
    made = jax.eval_shape(Encoder(low).init, jax.random.key(0), view[0])["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    a, b = reader(low)(params, *view), reader(high)(params, *view)
    assert a.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(b).max()


@pytest.mark.parametrize("line", schemes.some(pytest.mark.thorough))
def test_every_scheme_reads_images_or_says_why_it_cannot(line):
    model = dataclasses.replace(BASE.model, scheme=line, num_layers=2)
    if any(layer.gated for layer in model.placed.layers):
        with pytest.raises(ValueError, match="an image encoder is not causal"):
            VisionConfig(model, 2, 3)
        return
    config = VisionConfig(model, 2, 3)
    image = jnp.ones((2, 12, 12, 3))
    out = jax.eval_shape(Encoder(config).init_with_output, jax.random.key(0), image)[0]
    assert (out.shape, out.dtype) == ((2, 3), jnp.float32)


def test_a_larger_grid_is_written_into_the_parts_that_know_one_and_nowhere_else():
    wide = read_at(
        configured("mixed|axial(base=50.0)+alibi2d,nope|fire(width=8)", num_layers=2), (12, 20)
    )
    assert unparse(wide.model.scheme) == (
        "mixed(width=10)|axial(width=10,base=50.0)+alibi2d(width=10),nope|fire(width=8)"
    )
    assert wide.width == 10
    same = dataclasses.replace(wide.model, scheme=BASE.model.scheme, num_layers=1)
    assert same == BASE.model
    for size in ((12, 12), (24, 12), (4, 6)):  # taller or smaller: the grid is wide enough
        assert read_at(BASE, size) is BASE
    assert configured("rope").width is None


def test_positions_count_along_the_rows_of_the_schemes_grid():
    np.testing.assert_array_equal(configured("axial").positions(2, 3), [0, 1, 2, 6, 7, 8])
    np.testing.assert_array_equal(configured("rope").positions(2, 3), [0, 1, 2, 3, 4, 5])


def test_a_planar_part_from_outside_is_read_at_another_size_too(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Sinusoidal2d(Absolute):
        """Half of the sinusoid for the row, half for the column."""

        width: int = 0

        def columns(self, place):
            return self.width or 6

        def embed(self, params, pos_BT, place):
            places = raster(pos_BT, self.columns(place))
            half = place.model_dim // 2
            return jnp.concatenate([sinusoid(x, half, 100.0) for x in places], axis=-1)

    monkeypatch.setitem(REGISTRY, "sinusoidal2d", Sinusoidal2d)
    config, grid = configured("sinusoidal2d"), content(3, 3)
    larger = read_at(config, (8, 18))
    assert unparse(larger.model.scheme) == "sinusoidal2d(width=9)"
    params = strong(config)
    here = reader(config)(params, *placed(grid, SIDE, SIDE, 1, 2))
    there = reader(larger)(params, *placed(grid, 4, 9, 1, 2))
    np.testing.assert_allclose(here, there, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 0}, "vision.patch_size must be positive"),
        ({"channels": -1}, "vision.channels must be positive"),
        ({"tied_head": True}, "tied_head must be False"),
        ({"line": "axial(width=6)|alibi2d(width=8)"}, "grids of 6 and 8 columns"),
        ({"line": "rope+forget"}, "an image encoder is not causal"),
        ({"line": "axial", "head_dim": 6}, "divisible by 4"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused_with_its_field(changes, message):
    with pytest.raises(ValueError, match=message):
        configured(**{"line": "axial"} | changes)


@pytest.mark.parametrize(
    ("line", "shape", "message"),
    [
        ("axial", (1, 12, 13, 3), "12 x 13 pixels does not divide into patches of 2 x 2"),
        ("axial", (1, 0, 12, 3), "does not divide"),
        ("axial", (1, 12, 12, 4), "3 channels"),
        ("axial", (12, 12, 3), r"must be \[batch, height, width, 3 channels\]"),
        ("axial", (1, 12, 14, 3), "7 columns of patches and the grid of the scheme 6"),
        ("learned", (1, 14, 12, 3), "7 x 6 patches needs 42 positions; 'learned' has 36"),
        ("learned+axial", (1, 14, 2, 3), "7 x 1 patches needs 37 positions"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_before_anything_is_computed(line, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Encoder(configured(line)).init, jax.random.key(0), jnp.zeros(shape))


def test_whole_numbers_foreign_segments_and_tables_too_short_are_refused():
    encoder, key = Encoder(BASE), jax.random.key(0)
    image = jnp.zeros((2, 12, 12, 3))
    with pytest.raises(ValueError, match="pixels must be floats of about unit size, not uint8"):
        jax.eval_shape(encoder.init, key, image.astype(jnp.uint8))
    with pytest.raises(
        ValueError, match=r"segments \(2, 35\) do not fit a batch of 2 images of 36"
    ):
        jax.eval_shape(encoder.init, key, image, jnp.ones((2, 35), jnp.int32))
    with pytest.raises(ValueError, match="9 x 9 patches needs 81 positions; 'learned' has 36"):
        read_at(configured("learned"), (18, 18))
    with pytest.raises(ValueError, match="19 x 18 pixels does not divide"):
        read_at(BASE, (19, 18))
    assert read_at(configured("learned(size=81)"), (18, 18)).model.scheme == "learned(size=81)"


# Two bright patches, one to three apart: in one row (0), in one column (1) or on a diagonal (2)?


def bright_pairs(rng, count, side, ways):
    label, gap = rng.integers(0, ways, count), rng.integers(1, 4, count)
    row, column = rng.integers(0, side - gap), rng.integers(0, side - gap)
    line, turned = rng.integers(0, side, count), rng.integers(0, 2, count)
    image, n = np.zeros((count, side, side), np.float32), np.arange(count)
    for down in (0, 1):
        across = np.where((label == 2) & (turned == 1), 1 - down, down)  # both diagonals
        r = np.where(label == 0, line, row + down * gap)
        c = np.where(label == 1, line, column + across * gap)
        image[n, r, c] = 1
    return np.kron(image, np.ones((1, 2, 2), np.float32))[..., None], label


def some_patches(rng, images, kept):
    """Segments that keep the bright patches of each image, and of the dark ones enough to make `kept`."""
    bright = images[:, ::2, ::2, 0].reshape(len(images), -1) > 0
    rank = np.argsort(np.argsort(rng.uniform(size=bright.shape) - bright, axis=1), axis=1)
    return (rank < kept).astype(np.int32)


def trained(line, ways, steps, seed=0):
    config = configured(line, model_dim=32, head_dim=16, mlp_dim=64, vocab_size=ways, channels=1)
    encoder, rng = Encoder(config), np.random.default_rng(seed)
    images, _ = bright_pairs(rng, 64, SIDE, ways)
    optimizer = optax.adam(optax.linear_schedule(1e-2, 0.0, steps))

    @jax.jit
    def begin(key):
        params = encoder.init(key, images)["params"]
        return params, optimizer.init(params)

    @jax.jit
    def step(params, state, images, labels):
        def loss(p):
            logits = encoder.apply({"params": p}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = begin(jax.random.key(seed))
    for _ in range(steps):
        params, state = step(params, state, *bright_pairs(rng, 64, SIDE, ways))
    return config, params


def accuracy(config, params, side):
    """Share of right answers on a grid of another side, of which as many patches as in training are read."""
    rng = np.random.default_rng(99)
    images, labels = bright_pairs(rng, 512, side, config.classes)
    seg = some_patches(rng, images, SIDE * SIDE)
    logits = reader(read_at(config, (2 * side, 2 * side)))(params, images, seg)
    return (np.asarray(logits).argmax(-1) == labels).mean()


@pytest.mark.thorough
def test_axial_rope_learns_which_way_a_pair_lies_and_still_sees_it_on_a_larger_grid():
    config, params = trained("axial", ways=2, steps=100)
    assert accuracy(config, params, SIDE) > 0.95
    assert accuracy(config, params, 2 * SIDE) > 0.95


@pytest.mark.parametrize("line", ["nope", "alibi2d"])
def test_nothing_could_learn_which_way_a_pair_lies_without_directions(line):
    """An image and its transpose have opposite labels and equal logits, whatever the parameters."""
    config, seg = configured(line), np.ones((1, 36), np.int32)
    params, read = strong(config), reader(config)
    images, _ = bright_pairs(np.random.default_rng(0), 4, SIDE, 2)
    for image in images.repeat(3, axis=3)[:, None]:
        a, b = read(params, image, seg), read(params, image.swapaxes(1, 2), seg)
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("line", ["axial", "mixed", "rope", "nope"])
def test_only_the_plane_carries_directions_to_a_larger_grid(line):
    """One row down is six positions on in training and twelve here: to RoPE on a line, two rows down."""
    config, params = trained(line, ways=3, steps=300)
    small, large = (accuracy(config, params, side) for side in (SIDE, 2 * SIDE))
    print(f"{line}: {small:.3f} right on {SIDE} x {SIDE}, {large:.3f} on {2 * SIDE} x {2 * SIDE}")
    if line in PLANAR:
        assert min(small, large) > 0.95
    else:
        assert large < 0.85
        assert (small > 0.9) == (line == "rope")
