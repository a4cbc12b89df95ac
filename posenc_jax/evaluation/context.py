"""Context of one evaluation: the model with its scorer, the lengths, and the rows measured so
far.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from posenc_jax.encodings.scheme_arrays import layer_parameters, scheme_arrays
from posenc_jax.evaluation.lengths import Multiple, tokens_of
from posenc_jax.evaluation.scorer import Scorer
from posenc_jax.model.config import ModelConfig
from posenc_jax.results.files import write_json
from posenc_jax.results.row_file import RowFile
from posenc_jax.results.schema import Row
from posenc_jax.training.config import RunConfig
from posenc_jax.training.inputs import Inputs

SEED = 20_260  # of the evaluation instances: the same for every arm and every training seed


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """The model that is measured.

    Attributes:
      by_length: its configuration for each input length to compile for; they differ if a length
        extension depends on the length. params: parameters, the same for all lengths. scorer: for
        the same models.
    """

    by_length: Mapping[int, ModelConfig]
    params: dict
    scorer: Scorer

    @property
    def config(self) -> ModelConfig:
        """The configuration for the longest rows."""
        return self.by_length[max(self.by_length)]


@dataclasses.dataclass(frozen=True)
class Multiples:
    """Lengths of an evaluation, in units of L.

    Attributes:
      measured: the requested lengths that fit the model. study: all lengths of the study,
        ascending.
      deepest: the longest length of the study that fits the model.
    """

    measured: tuple[Multiple, ...]
    study: tuple[Multiple, ...]
    deepest: Multiple

    @property
    def top(self) -> Multiple:
        """The longest length of the study, for which text is cut."""
        return self.study[-1]


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity
class EvaluationContext:
    """Everything that the measures of one checkpoint share.

    Attributes:
      folder: of rows and arrays. config, inputs: of the run. split: of the text. model: that is
        measured.
      lengths: at which it is measured. rows: the measured rows so far. key_targets: file of E5's
        targets, or None. extra: additional fields of every row, such as the checkpoint where it is
        not the last.
    """

    folder: Path
    config: RunConfig
    inputs: Inputs
    split: str
    model: EvaluatedModel
    lengths: Multiples
    rows: RowFile
    key_targets: Path | None = None
    extra: Mapping = dataclasses.field(default_factory=dict)

    @property
    def L(self) -> int:
        """The training length of the scheme, the unit of all lengths."""
        return self.config.placed_length

    @property
    def multiples(self) -> tuple[Multiple, ...]:
        """The lengths that are measured, in units of L."""
        return self.lengths.measured

    def tokens(self, k: Multiple) -> int:
        """Returns k L, in tokens."""
        return tokens_of(k, self.L)

    @property
    def scorer(self) -> Scorer:
        """The scorer of the model."""
        return self.model.scorer

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
            run=self.folder.parent.name,
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
            **self.extra,
        )

    def skipped(
        self, suite: str, metric: str, length: int, reason: str, bucket: str = "all"
    ) -> list[Row]:
        """Returns one row without a value, with the reason."""
        return [
            dataclasses.replace(self.row(suite, metric, length, bucket, None, 0), skipped=reason)
        ]

    def save(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes arrays/<name>.npz."""
        np.savez(self.folder / "arrays" / f"{name}.npz", **arrays)

    def fits(self, inputs: int) -> bool:
        """Whether rows of that many tokens fit the scheme."""
        longest = self.model.config.placed.longest()
        return inputs > 0 and (longest is None or inputs <= longest)

    def scheme(self) -> list[Row]:
        """Writes scheme.json and scheme.npz; returns a row that marks this item done."""
        top = self.tokens(self.lengths.top)
        distance_S = np.unique(
            np.r_[np.arange(min(top, 129)), np.geomspace(1, top, 128)].astype(int)
        )
        grid_G = np.linspace(0, 2 * self.L, 65).astype(int)
        placed = self.model.config.placed
        heads, arrays = scheme_arrays(
            placed, layer_parameters(placed, self.model.params), distance_S, grid_G
        )
        self.save("scheme", arrays)
        description = {"scheme": self.config.model.scheme, "train_length": self.L, "heads": heads}
        write_json(self.folder / "arrays" / "scheme.json", description)
        return [self.row("all", "scheme", self.L, "all", None, 0)]
