#!/usr/bin/env bash
# Makes the generated parts of docs/ again: looks at one scheme each, before any training, two pictures of settings, and the list of settings.
set -euo pipefail
cd "$(dirname "$0")/.."
looks="$(mktemp -d)"
trap 'rm -rf "$looks"' EXIT
mkdir -p docs/figures docs/encodings/figures

draw() { # page, picture, scheme, then flags of inspect_scheme.py
  local page="$1" picture="$2" scheme="$3"
  shift 3
  JAX_PLATFORMS=cpu .venv/bin/python scripts/inspect_scheme.py --scheme="$scheme" --out="$looks/$page" "$@" >"$looks/$page.txt"
  cp "$looks/$page/$picture.png" "docs/encodings/figures/$page-$picture.png"
}

draw absolute similarity 'sinusoidal' --train_length=256 --length=1024
draw rotary rotation 'rope|rope(fraction=0.25)|prope(kept=0.75)|rope(base=match)' --num_heads=4 --head_dim=32
draw rotary kernels 'rope' --num_heads=1
draw pope kernels 'rope|pope' --num_heads=2
draw stretches stretch 'rope(stretch=pi(factor=4.0))|rope(stretch=ntk(factor=4.0))|rope(stretch=yarn(factor=4.0))|rope(stretch=llama3(factor=4.0))' --num_heads=4 --train_length=4096 --head_dim=128
draw planar plane '3*mixed|1*(axial+alibi2d)' --num_heads=4 --train_length=1024 --length=1024
draw bias bias 'alibi' --train_length=1024 --length=4096
draw bias horizon 'alibi'
draw shapes kernels 'capped(slopes=match)|power(slopes=match)|log|sandwich' --num_heads=4
draw sums kernels 'alibi(slopes=match)|log|power(slopes=match)|alibi(slopes=match)&log&power(slopes=match)' --num_heads=4
draw learned kernels 'kerple_log|t5|fire|forget(start=match)' --num_heads=4
draw temperature temperature 'nope~logn|nope~logn(clip=false)|nope~ssmax|nope~adaptive_ssmax|nope~yarn_temperature|nope~scale_invariant' --num_heads=6
draw linear kernels 'rope(base=100.0)+linear' --num_heads=1 --head_dim=16 --train_length=64 --length=512
draw window bias 'window(size=L/8)|rope+alibi+window(size=L/2)' --num_heads=2 --train_length=1024 --length=4096
draw hybrids kernels '3*(rope+alibi(slopes=match))|1*nope~logn' --num_heads=4
draw hybrids horizon '3*(rope+alibi(slopes=match))|1*nope~logn' --num_heads=4

JAX_PLATFORMS=cpu .venv/bin/python scripts/draw_settings.py --out="$looks/settings" >"$looks/settings.txt"
for suffix in png csv; do
  cp "$looks/settings/sink_and_shift.$suffix" "docs/encodings/figures/switches-sink_and_shift.$suffix"
  cp "$looks/settings/curriculum.$suffix" "docs/figures/recipes-curriculum.$suffix"
done

.venv/bin/python -c 'from posenc_jax.training.setting_help import settings_page; print(settings_page(), end="")' >docs/settings.md
