"""Measured properties of schemes: shift errors, monotone biases, gates."""

import jax
import numpy as np
import pytest
from posenc_jax.encodings import Temperature
from posenc_jax.evaluation.properties import largest_gate_rise, largest_rise, shift_errors

from support import schemes
from support.parameterized_models import model

T, V = 24, 50


TOKENS = np.asarray(jax.random.randint(jax.random.key(5), (3, T), 0, V))


QUICK = (
    "nope",
    "rope",
    "alibi",
    "xpos",
    "sinusoidal",
    "learned",
    "forget",
    "linear",
    "rope+alibi",
    "3*(rope+alibi)|1*nope~logn",
    "prope+log(c=2.0,t=10.0)~scale_invariant",
)


EVERY = [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in schemes.ALL]


# P1: a scheme whose parts are all relative reads only distances; the others show what they have.
@pytest.mark.default_cases(4)
@pytest.mark.parametrize("line", EVERY)
def test_relative_schemes_do_not_notice_a_shift(line):
    m = model(line, num_layers=1 if "," not in line else 2)
    limit = m.config.placed.longest()
    rows_RT = TOKENS if limit is None or limit > T else TOKENS[:, : limit - 7]
    shifts = tuple(s for s in (1, 7, T, 8 * T) if limit is None or rows_RT.shape[1] + s <= limit)
    assert shifts
    errors = shift_errors(m.config, m.params, rows_RT, shifts, 1000)
    parts = schemes.parts(line)
    if all(part.relative or isinstance(part, Temperature) for part in parts):
        assert max(error_LN.max() for error_LN in errors.values()) <= 1e-4
    elif "sinusoidal" in line or "learned" in line:
        assert min(error_LN.max() for error_LN in errors.values()) > 1e-2
    # Log-n counts keys in sight; taken for a position, it is one.
    moved = shift_errors(m.config, m.params, rows_RT, shifts, 1000, counted=False)
    if any(isinstance(part, Temperature) and not part.relative for part in parts):
        assert max(error_LN.max() for error_LN in moved.values()) > 1e-2
    else:
        assert all((moved[shift] == errors[shift]).all() for shift in shifts)


def test_a_shift_past_a_learned_table_is_refused():
    with pytest.raises(ValueError, match=r"24 tokens moved by 192 exceed the \d+ positions"):
        shift_errors(model("learned").config, model("learned").params, TOKENS, (8 * T,), 1000)


def layer_of(line):
    layer = schemes.layer_of(line, head_dim=8)
    return layer, layer.init(jax.random.key(0))


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("line", ["nope", "rope+alibi", "log", "capped", "power", "kerple_log"])
def test_a_monotone_bias_never_rises_to_16_l(line):
    assert (largest_rise(*layer_of(line), (65, 257, 1025)) == 0).all()


def test_a_bias_that_rises_says_by_how_much():
    rise_N = largest_rise(*layer_of("sandwich"), (1025,))
    bias_Z = np.array(
        [
            -sum(1 - np.cos(d * 10_000 ** (-2 * i / 128)) for i in range(1, 65)) / (8 / 4)
            for d in range(1025)
        ]
    )
    assert rise_N[0] == pytest.approx(np.diff(bias_Z).max(), rel=1e-3)
    assert (rise_N > 0).all()


def test_open_gates_never_raise_a_bias_and_none_is_measured_without_gates():
    m = model("rope+forget|nope", num_layers=1)
    (rise_N,) = largest_gate_rise(m.config, m.params, TOKENS, 1000).values()
    assert (rise_N == 0).all()
    assert largest_gate_rise(model().config, model().params, TOKENS, 1000) == {}
