"""An instance as readable text, for inspection."""

from posenc_jax.data.tokenizers import Tokenizer
from posenc_jax.tasks.filler import SYMBOLS, Filler
from posenc_jax.tasks.instances import Instance

LISTED = 8  # answers described one by one; the rest are counted


def render_instance(instance: Instance, filler: Filler, tokenizer: Tokenizer) -> str:
    """Returns tokens with sources in {{ }}, answers in [[ ]], and a line of facts per answer."""
    opened = {a.start: "[[" for a in instance.answers}
    closed = {a.stop - 1: "]]" for a in instance.answers}
    for answer in instance.answers:
        source = answer.start - 1 - answer.distance
        if source != answer.start - 1:  # an association has no source in its context
            opened[source] = "{{"
            closed[source + answer.stop - answer.start - 1] = "}}"
    text = "".join(
        f"{opened.get(i, '')}{_token(int(token), filler, tokenizer)}{closed.get(i, '')}"
        for i, token in enumerate(instance.tokens)
    )
    lines = [
        f"  answer at {a.start}..{a.stop - 1}: distance {a.distance}, depth {a.depth:.2f}, chance "
        f"{a.chance:.4g}{f', {a.kind}' if a.kind else ''}"
        for a in instance.answers[:LISTED]
    ]
    more = len(instance.answers) - LISTED
    return "\n".join([text, *lines, *([f"  and {more} more answers"] if more > 0 else [])])


def _token(token: int, filler: Filler, tokenizer: Tokenizer) -> str:
    special = {
        tokenizer.bos: "<BOS>",
        tokenizer.sep: "<SEP>",
        tokenizer.pad: "<PAD>",
        tokenizer.ans: "<ANS>",
    }
    if token in special:
        return special[token]
    if filler.values <= token < filler.values + SYMBOLS:
        return f"<V{token - filler.values}>"
    if filler.keys <= token < filler.values:
        return f"<K{token - filler.keys}>"
    return tokenizer.decode([token]).decode("utf-8", "replace")
