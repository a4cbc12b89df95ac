"""The ledger of claims as values and as Markdown: claim, rule, what was measured, verdict."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Sequence

from posenc_jax.study.evidence import NOWHERE, Evidence

REPRODUCED, BOUNDED, REFUTED = "reproduced", "bounded", "refuted"
UNTESTABLE, OPEN, PARTLY = "not testable here", "open", "open in part"
WORDS = {
    REPRODUCED: "the rule beside the part holds, at the scale named",
    BOUNDED: "it holds under some conditions only; the parts say which",
    REFUTED: "the opposite side of the rule holds",
    UNTESTABLE: "this project has no means to measure it; the part says why",
    OPEN: "no run is published yet, or the seeds do not decide",
    PARTLY: "some parts are decided, others are open",
}
WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of the runs behind a finding; `parameters` of the smallest and the largest run."""

    parameters: tuple[int, int]
    length: int
    seeds: int
    corpus: str
    split: str

    def words(self) -> str:
        low, high = (f"{n / 1e6:.2f}M" for n in self.parameters)
        size = low if low == high else f"{low} to {high}"
        return (
            f"{size} parameters, L {self.length}, {self.seeds} seeds, {self.corpus} ({self.split})"
        )


@dataclasses.dataclass(frozen=True)
class Finding:
    """One measured answer to a part of a claim.

    source: folder or file of the rows. verdict: by the part's rule. measured: at most 20 words.
    """

    source: str
    verdict: str
    measured: str
    scale: Scale | str


@dataclasses.dataclass(frozen=True)
class ClaimPart:
    """A sentence that can be measured.

    Attributes:
      words: the sentence. rule: when it is reproduced, bounded or refuted. measure: returns the
        findings; none while no run is published. awaits: study file of the runs that it needs, if
        none of the published ones will do.
    """

    words: str
    rule: str
    measure: Callable[[Evidence], Sequence[Finding]]
    awaits: str = ""


@dataclasses.dataclass(frozen=True)
class LiteratureClaim:
    """A claim of the literature. sentence: at most 20 words. source: paper, or other origin."""

    id: str
    sentence: str
    source: str
    parts: tuple[ClaimPart, ...]


@dataclasses.dataclass(frozen=True)
class WorkedExample:
    """An example of the source documents: what they say, and what our functions return."""

    words: str
    expected: str
    computed: str


def common_verdict(verdicts: Sequence[str], open_word: str = PARTLY) -> str:
    """Returns the verdict over parts, or over the findings of one part.

    Decided ones that differ are `bounded`. Open ones beside decided ones give `open_word`, or with
    open_word "" do not count. What is not testable counts only where nothing else is there.
    """
    testable = [v for v in verdicts if v != UNTESTABLE]
    decided = [v for v in testable if v != OPEN]
    if not decided:
        return UNTESTABLE if verdicts and not testable else OPEN
    if open_word and len(decided) < len(testable):
        return open_word
    return decided[0] if len(set(decided)) == 1 else BOUNDED


@dataclasses.dataclass(frozen=True)
class MeasuredPart:
    """A part with its findings."""

    part: ClaimPart
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        return common_verdict([f.verdict for f in self.findings], "")


@dataclasses.dataclass(frozen=True)
class MeasuredClaim:
    """A claim with the findings of its parts."""

    claim: LiteratureClaim
    parts: tuple[MeasuredPart, ...]

    @property
    def verdict(self) -> str:
        return common_verdict([part.verdict for part in self.parts])

    @property
    def findings(self) -> list[Finding]:
        """All findings, in the order of the parts."""
        return [finding for part in self.parts for finding in part.findings]


def not_here(reason: str) -> Callable[[Evidence], list[Finding]]:
    """Returns the measure of a part that cannot be tested here, with the reason."""
    return lambda _: [Finding(NOWHERE, UNTESTABLE, reason, "that of the source")]


def measure(claims: Sequence[LiteratureClaim], evidence: Evidence) -> list[MeasuredClaim]:
    """Returns every claim with what the evidence says about it."""

    def part(one: ClaimPart) -> MeasuredPart:
        return MeasuredPart(one, tuple(one.measure(evidence)))

    return [MeasuredClaim(claim, tuple(map(part, claim.parts))) for claim in claims]


INTRODUCTION = """
Claims of the literature about RoPE, ALiBi and their relatives: what was measured here, at what
scale, and the verdict by a rule that stands before its number. All numbers come from committed
rows. This command writes the page again:
"""
LIMITS = """
Every verdict holds at the scale named, which is far below that of the sources, and is exploratory:
no claim had a frozen plan. Intervals are 90 %, Student's t over training seeds. A rule holds, or is
broken, where the whole interval lies on one side of its bound: a one-sided test at 5 %. A part has
the verdict of the studies that decide it; studies whose interval holds the bound are open and do
not count. Nothing is corrected for the number of tests. The rows of cpu and screening were known
when the rules were written; those of quickstart, claims and longtext came later. Two conditions
were added after seeing rows: S7 takes only seeds that find near passkeys, and a count of seeds
replaces the t test where all seeds can be equal.
"""
EXAMPLES = "Examples of the source documents, computed by the functions of posenc_jax/encodings."


def ledger_page(
    claims: Sequence[MeasuredClaim], examples: Sequence[WorkedExample], evidence: Evidence
) -> str:
    """Returns the page as Markdown; equal evidence gives the same bytes."""
    lines = ["# The claims ledger", "", *_wrapped(INTRODUCTION), "", "    python scripts/claims.py"]
    lines += ["", *_wrapped(LIMITS), "", *_table(("verdict", "meaning"), WORDS.items())]
    columns = ("id", "claim", "verdict", "first decided finding", "scale", "rows")
    lines += ["", "## Summary", "", *_table(columns, map(_summary_cells, claims))]
    for claim in claims:
        lines += _section(claim, evidence)
    lines += ["", "## Worked examples", "", *_wrapped(EXAMPLES), ""]
    cells = ((e.words, e.expected, e.computed) for e in examples)
    lines += _table(("example", "source says", "computed"), cells)
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    head, *body = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    return [head, "|" + "---|" * len(columns), *body]


def _summary_cells(measured: MeasuredClaim) -> tuple[str, ...]:
    claim, findings = measured.claim, measured.findings
    first = next((f.measured for f in findings if f.verdict not in (OPEN, UNTESTABLE)), "")
    sources = dict.fromkeys(f.source for f in findings if f.source != NOWHERE)
    rows = ", ".join(sources) or "none yet"
    name = f"[{claim.id}](#{claim.id.lower()})"
    return name, claim.sentence, measured.verdict, first, _range_of(findings), rows


def _range_of(findings: Sequence[Finding]) -> str:
    """Returns the scales of all findings in one cell."""
    sizes = [f.scale for f in findings if isinstance(f.scale, Scale)]
    if not sizes:
        return next((str(f.scale) for f in findings if f.source != NOWHERE), "")
    parameters = sorted(n for s in sizes for n in s.parameters)
    lengths = sorted(s.length for s in sizes)
    low, high = f"{parameters[0] / 1e6:.2f}M", f"{parameters[-1] / 1e6:.2f}M"
    size = low if low == high else f"{low} to {high}"
    L = f"{lengths[0]}" if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]}"
    seeds = sorted({s.seeds for s in sizes})
    return f"{size} parameters, L {L}, {' / '.join(map(str, seeds))} seeds"


def _section(measured: MeasuredClaim, evidence: Evidence) -> list[str]:
    claim = measured.claim
    lines = ["", f"## {claim.id}", "", *_wrapped(f"**{claim.sentence}** {claim.source}")]
    lines += ["", f"Verdict: **{measured.verdict}**."]
    for number, one in enumerate(measured.parts, 1):
        part = one.part
        lines += ["", *_wrapped(f"*Part {number}.* {part.words} *Rule:* {part.rule}"), ""]
        if one.findings:
            columns = ("rows", "verdict", "measured", "scale")
            lines += _table(columns, map(_finding_cells, one.findings))
        else:
            lines += _wrapped(f"Open: awaits the runs of `{part.awaits}`.")
    awaited = [p.part.awaits for p in measured.parts if not p.findings]
    commands = evidence.commands([f.source for f in measured.findings], awaited)
    return [*lines, "", "The rows are made by", "", *(f"    {command}" for command in commands)]


def _finding_cells(finding: Finding) -> tuple[str, ...]:
    scale = finding.scale if isinstance(finding.scale, str) else finding.scale.words()
    return finding.source, finding.verdict, finding.measured, scale


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text.strip(), WIDTH, break_long_words=False, break_on_hyphens=False)
