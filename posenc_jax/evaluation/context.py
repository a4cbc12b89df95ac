"""What one evaluation is about: a checkpoint, how it is scored, and the rows it has so far."""

import dataclasses

import numpy as np

from posenc_jax.encodings.scheme_arrays import layer_parameters, scheme_arrays
from posenc_jax.results.files import write_json
from posenc_jax.results.schema import Row

SEED = 20_260  # of the evaluation instances: the same for every arm and every training seed


class EvaluationContext:
    """What is measured on one checkpoint.

    Args:
      folder: where arrays go. config, inputs: of the run. model_config, params: what is shown as its
        scheme. scorer: of its checkpoint. multiples: lengths that fit it, in units of L. split: of the
        text. top: the longest multiple of the study's text, `deepest`: the longest that fits the arm.
      rows: the RowFile that measures are added to. key_targets: file of E5's targets, or None.
      model_configs: the model by input length to compile for. every: all multiples of the study.
      mark: fields of `Row` that every row has beside, such as which checkpoint where it is not the last.
    """

    def __init__(
        self,
        folder,
        config,
        inputs,
        model_config,
        params,
        scorer,
        multiples,
        split,
        top,
        deepest,
        rows=None,
        key_targets=None,
        model_configs=None,
        every=(),
        mark=(),
    ):
        self.config, self.inputs, self.split = config, inputs, split
        self.params, self.model_config, self.multiples = params, model_config, multiples
        self.run, self.L = folder.parent.name, config.placed_length
        self.top, self.deepest = top, deepest
        self.scorer, self.folder = scorer, folder
        self.rows, self.key_targets = rows, key_targets
        self.model_configs, self.every = model_configs, every
        self.mark = dict(mark)

    def row(
        self,
        suite: str,
        metric: str,
        length: int,
        bucket: str,
        value: float | None,
        n: int,
        chance: float | None = None,
    ) -> Row:
        """Returns one row; a value that is not finite becomes None, with the reason."""
        finite = value is None or bool(np.isfinite(value))
        return Row(
            run=self.run,
            arm=self.config.arm,
            seed=self.config.train.seed,
            tier=self.config.train.tier,
            suite=suite,
            metric=metric,
            length=int(length),
            train_length=self.L,
            bucket=bucket,
            value=float(value) if finite and value is not None else None,
            n=int(n),
            split=self.split,
            chance=chance,
            skipped="" if finite else f"not finite ({value})",
            **self.mark,
        )

    def skipped(
        self, suite: str, metric: str, length: int, reason: str, bucket: str = "all"
    ) -> list[Row]:
        """Returns the row of what could not be measured, with the reason."""
        return [
            dataclasses.replace(self.row(suite, metric, length, bucket, None, 0), skipped=reason)
        ]

    def fits(self, inputs: int) -> bool:
        """Whether the arm reads that many tokens."""
        longest = self.model_config.placed.longest()
        return inputs > 0 and (longest is None or inputs <= longest)

    def scheme(self) -> list[Row]:
        """Writes what the arm's encoding looks like (scheme.json, scheme.npz); yields a marker row."""
        top = self.top * self.L
        distance_S = np.unique(
            np.r_[np.arange(min(top, 129)), np.geomspace(1, top, 128)].astype(int)
        )
        grid_G = np.linspace(0, 2 * self.L, 65).astype(int)
        placed = self.model_config.placed
        heads, arrays = scheme_arrays(
            placed, layer_parameters(placed, self.params), distance_S, grid_G
        )
        np.savez(self.folder / "arrays" / "scheme.npz", **arrays)
        description = {"scheme": self.config.model.scheme, "train_length": self.L, "heads": heads}
        write_json(self.folder / "arrays" / "scheme.json", description)
        return [self.row("all", "scheme", self.L, "all", None, 0)]
