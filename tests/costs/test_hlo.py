"""Memory traffic of compiled programs, instruction by instruction."""

from posenc_jax.costs import hlo

# -------------------------------------------------------------------------------------- memory traffic


def test_traffic_is_what_instructions_read_and_write_and_slices_what_they_cut():
    text = """HloModule m

%cut (p.0: f32[10,100], p.1: s32[]) -> f32[1,100] {
  %p.0 = f32[10,100]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,100]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,100}
}

%body (c: (s32[], f32[10,100], f32[1,100])) -> (s32[], f32[10,100], f32[1,100]) {
  %c = (s32[], f32[10,100]{1,0}, f32[1,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %table = f32[10,100]{1,0} get-tuple-element(%c), index=1
  %row = f32[1,100]{1,0} fusion(%table, %i), kind=kLoop, calls=%cut
  ROOT %next = (s32[], f32[10,100]{1,0}, f32[1,100]{1,0}) tuple(%i, %table, %row)
}

%condition (c: (s32[], f32[10,100], f32[1,100])) -> pred[] {
  %c.1 = (s32[], f32[10,100]{1,0}, f32[1,100]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%c.1), index=0
  %ten = s32[] constant(10)
  ROOT %less = pred[] compare(%i.1, %ten), direction=LT
}

ENTRY %main (a: f32[10,100], b: f32[100,7]) -> f32[10,7] {
  %a = f32[10,100]{1,0} parameter(0)
  %b = f32[100,7]{1,0:T(8,128)S(1)} parameter(1)
  %zero.1 = s32[] constant(0)
  %start = f32[1,100]{1,0} broadcast(%zero.1), dimensions={}
  %init = (s32[], f32[10,100]{1,0}, f32[1,100]{1,0}) tuple(%zero.1, %a, %start)
  %loop = (s32[], f32[10,100]{1,0}, f32[1,100]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %dot = f32[10,7]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    read = hlo.parse_hlo(text)
    row, index = 400, 4
    broadcast = row + index
    product = 4000 + 280  # its other factor lies on the chip
    assert hlo.memory_traffic(read) == broadcast + 10 * (row + row + index) + product
    assert hlo.executed_instructions(read)[1] == 0
    unknown = text.replace("direction=LT", "direction=NE")
    assert hlo.executed_instructions(hlo.parse_hlo(unknown))[1] == 1
