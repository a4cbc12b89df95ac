"""Collectives in compiled programs: kinds, bytes, groups and loops."""

import jax
import jax.numpy as jnp
import pytest
from posenc_jax.costs import hlo
from posenc_jax.costs.collectives import collectives, replica_groups

# ----------------------------------------------------------------------------------------- collectives


def said(function, *shapes, specs, out, devices=8):
    """The collectives of a function compiled for eight CPU devices in one line."""
    mesh = jax.make_mesh((devices,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    local = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    with jax.set_mesh(mesh):
        text = jax.jit(local).lower(*arguments).compile().as_text()
    return collectives(hlo.parse_hlo(text), devices, host_devices=4)


def test_a_sum_over_devices_is_one_all_reduce_of_its_bytes():
    (found,) = said(
        lambda x: jax.lax.psum(x, "x"), (8, 100), specs=(jax.P("x", None),), out=jax.P(None, None)
    )
    assert found == ("all-reduce", 1, 400.0, 8, True)
    assert found.sent == 2 * 7 / 8 * 400


def test_a_gather_in_a_loop_of_five_counts_five_times():
    def gathered(x_in):
        def body(total, _):
            return total + jax.lax.all_gather(total[:2], "x", tiled=True), None

        return jax.lax.scan(body, x_in, None, length=5)[0]

    (found,) = said(gathered, (16, 25), specs=(jax.P(None, None),), out=jax.P(None, None))
    assert found == ("all-gather", 5, 16 * 25 * 4.0, 8, True)
    assert found.sent == 5 * 7 / 8 * 1600


def test_scattered_sums_exchanges_and_shifts_are_told_apart():
    spec = (jax.P("x", None),)
    (scatter,) = said(
        lambda x: jax.lax.psum_scatter(x, "x", tiled=True), (64, 10), specs=spec, out=spec[0]
    )
    assert scatter == ("reduce-scatter", 1, 8 * 10 * 4.0, 8, True)
    assert scatter.sent == 7 / 8 * 320
    (exchange,) = said(
        lambda x: jax.lax.all_to_all(x, "x", 0, 0), (64, 10), specs=spec, out=spec[0]
    )
    assert (exchange.kind, exchange.payload, exchange.sent) == ("all-to-all", 320.0, 280.0)
    ring = [(i, i ^ 1) for i in range(8)]
    (shift,) = said(lambda x: jax.lax.ppermute(x, "x", ring), (64, 10), specs=spec, out=spec[0])
    assert (shift.kind, shift.sent, shift.spans_hosts) == ("collective-permute", 320.0, False)


def test_a_group_inside_a_host_uses_the_links_between_its_chips():
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    spec = jax.P("x", None)
    (near,) = said(
        lambda x: jax.lax.psum(x, "x", axis_index_groups=groups), (8, 100), specs=(spec,), out=spec
    )
    assert (near.group, near.spans_hosts) == (4, False)


def test_groups_are_read_in_every_form_that_xla_writes():
    forms = {
        "{{0,1},{2,3}}, x": [[0, 1], [2, 3]],
        "{}, x": [[0, 1, 2, 3, 4, 5, 6, 7]],
        "[4,2]<=[8], x": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "[2,4]<=[4,2]T(1,0), x": [[0, 2, 4, 6], [1, 3, 5, 7]],
        "mesh['a'=2,'b'=4] {'b'}, x": [[0, 1, 2, 3], [4, 5, 6, 7]],
        "mesh['a'=2,'b'=4] {'a'}, x": [[0, 4], [1, 5], [2, 6], [3, 7]],
        "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}, x": [[0, 1], [2, 3], [4, 5], [6, 7]],
        "mesh['a'=2], device_ids=(1,0) {'a'}, x": [[1, 0]],
        "mesh['a'=8] {'a':(2)2}, x": [[0, 2], [1, 3], [4, 6], [5, 7]],
    }
    for text, want in forms.items():
        assert replica_groups(f"channel_id=1, replica_groups={text}", 8).tolist() == want
    with pytest.raises(ValueError, match="cannot parse replica_groups"):
        replica_groups("replica_groups=all of them", 8)
