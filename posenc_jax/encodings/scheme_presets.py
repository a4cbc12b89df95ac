"""Named schemes: the arms of the studies, and rivals from the literature.

`parse` accepts a name in place of a whole line. No encoding has the name of a preset.
"""

FLAT = "nope~logn"  # a head without rotation and bias
_ROPE = "rope(base=match)"


def coupled(
    steep: float = 1.0, rotation: str = _ROPE, flat: str = FLAT, shares: tuple[int, int] = (3, 1)
) -> str:
    """Returns the coupled split: rotary heads have a bias with slopes down to 4 steep / L, the
    others have neither.

    Args:
      steep: factor on the matched slopes. rotation: rotation of the biased heads; empty for none.
      flat: the other heads. shares: shares of the biased and of the flat heads.
    """
    slopes = "alibi(slopes=match)" if steep == 1 else f"alibi(slopes=match,steep={float(steep)})"
    biased = f"({rotation}+{slopes})" if rotation else slopes
    return f"{shares[0]}*{biased}|{shares[1]}*{flat}"


def flat_in_last_layer(layers: int) -> str:
    """Returns `layers` layers: the last is the coupled split, the others rotary with bias."""
    before = f"{_ROPE}+alibi(slopes=match)"
    return f"{layers - 1}*({before}),{coupled()}" if layers > 2 else f"{before},{coupled()}"


def rnope_swa(every: int, size: str = "L/8") -> str:
    """Returns RNoPE-SWA: of `every` layers one is flat without a window; the others rotate, with a
    window of `size`.

    Source: Yang et al. 2025 (arXiv 2501.18795), with log-n in the flat layers.
    """
    local = f"{_ROPE}+window" if size == "L/8" else f"{_ROPE}+window(size={size})"
    return f"{local},{FLAT}" if every == 2 else f"{every - 1}*({local}),{FLAT}"


PRESETS: dict[str, str] = {
    "sum": f"{_ROPE}+alibi(slopes=match)",
    "coupled": coupled(),
    "coupled-rotated": coupled(flat=f"{_ROPE}~logn"),
    "coupled-unrotated": coupled(rotation=""),
    "steep": coupled(4),
    "steep-10": coupled(10),
    "steep-20": coupled(20),
    "steep-10-unrotated": coupled(10, rotation=""),
    "two-flat": coupled(shares=(2, 2)),
    "flat-last": flat_in_last_layer(2),
    "no-log-n": coupled(flat="nope"),
    "nape": "alibi(slopes=harmonic)|nope~ssmax",
    "nape-adaptive": "alibi(slopes=harmonic)|nope~adaptive_ssmax",
    "pope-match": "pope(base=match)",
    "prope-quarter": "prope(kept=0.25,base=match)",
    "fox": "forget",
    "rope-fox": f"{_ROPE}+forget",
    "coupled-fox": f"3*({_ROPE}+forget)|1*{FLAT}",
    "rnope-swa-2": rnope_swa(2),
    "rnope-swa-2-wide": rnope_swa(2, "L/4"),
    "rnope-swa-4": rnope_swa(4),
    "rnope-swa-4-wide": rnope_swa(4, "L/4"),
    "three-terms": "alibi(slopes=match)&log&power(slopes=match)",
}


def line_of(text: str) -> str:
    """Returns the line that `text` is the name of, or `text` where it is none."""
    return PRESETS.get(text.strip(), text)
