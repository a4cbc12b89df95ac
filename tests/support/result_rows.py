"""Rows of results: one of a run that trained at 8 tokens, and one as it is stored."""

from posenc_jax.results.schema import Row


def row_of_8_tokens(suite="E", metric="bpb_ctx", length=8, value=None, **changes):
    """A row of a run that trained at 8 tokens."""
    fields = {
        "run": "x",
        "arm": "rope",
        "seed": 0,
        "tier": "smoke",
        "suite": suite,
        "metric": metric,
    }
    fields |= {"length": length, "train_length": 8, "bucket": "all", "value": value, "n": 1}
    return Row(**fields | {"split": "dev"} | changes)


STORED_ROW = {
    "run": "x",
    "arm": "rope",
    "seed": 0,
    "tier": "smoke",
    "suite": "E",
    "metric": "bpb_ctx",
    "length": 32,
    "train_length": 64,
    "bucket": "all",
    "value": 2.0,
    "n": 4,
    "split": "dev",
    "definitions": 2,
}
