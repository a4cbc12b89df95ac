"""Measures of the claims about time and memory, from plans, benches and training logs."""

from collections.abc import Callable

from posenc_jax.study.evidence import Evidence
from posenc_jax.study.ledger import BOUNDED, OPEN, REFUTED, REPRODUCED, Finding
from posenc_jax.study.seed_comparisons import Measure, decided, scale_of

SAVES = 0.11  # share of time and memory that S2 names
NOISE = 0.1  # share of a step that the benches cannot resolve
ATTENTION = (
    "bench/attention/attention.json",
    "bench/attention/h100/4k_both/attention.json",
    "bench/attention/h100/16k_both/attention.json",
)


def planned_saving(field: Callable[[dict], float]) -> Measure:
    """Returns the share that ALiBi at half the length saves, by each kernel of the plan."""

    def measure(evidence: Evidence) -> list[Finding]:
        rows, path = evidence.lines("plan/s2.jsonl"), "plan/s2.jsonl"
        findings = []
        for full in (r for r in rows if r["scheme"] == "sinusoidal"):
            tokens = full["length"] * full["batch_size"]
            half = next(
                r
                for r in rows
                if r["scheme"] == "alibi"
                and r["length"] * r["batch_size"] == tokens
                and r["attention"] == full["attention"]
            )
            saved = 1 - field(half) / field(full)
            verdict = REPRODUCED if saved >= SAVES else BOUNDED if saved >= 0.01 else REFUTED
            kernel = full["attention"][0].split(" (")[0]
            scale = (
                f"{full['parameters'] / 1e9:.2f}B parameters, {full['devices']} x {full['chip']}"
            )
            findings.append(
                Finding(
                    f"results/{path}",
                    verdict,
                    f"{100 * saved:.1f} % less, {kernel} attention, {half['length']:,} against "
                    f"{full['length']:,} tokens a row",
                    f"{scale}, planned, not run",
                )
            )
        return findings

    return measure


def time_to_loss(evidence: Evidence) -> list[Finding]:
    """Returns seconds of ALiBi at L to the last dev loss of sinusoids at 2L, over their seconds."""
    findings = []
    for name, data, arms in evidence.with_roles("alibi", "sinusoidal"):
        slow = {r.seed: r for r in data.elsewhere if r.arm == f"{arms['sinusoidal']}-2L"}
        ratios, never = [], 0
        for run in (r for r in data.runs if r.arm == arms["alibi"] and r.seed in slow):
            logged = [m for m in run.metrics if m.get("dev_loss") is not None]
            goal = [m for m in slow[run.seed].metrics if m.get("dev_loss") is not None]
            if not logged or not goal:
                continue
            there = [m for m in logged if m["dev_loss"] <= goal[-1]["dev_loss"]]
            never += not there
            if there:
                ratios.append(there[0]["productive_seconds"] / goal[-1]["productive_seconds"])
        if not ratios and not never:
            continue
        seeds = never + len(ratios)
        scale = scale_of(data, arms["alibi"], seeds=seeds)
        if never:
            verdict, words = REFUTED, f"not reached in {never} of {seeds} seeds"
        else:
            verdict, words = decided(ratios, 1 - SAVES, False, "of the time")
        findings.append(Finding(f"results/{name}", verdict, words, scale))
    return findings


def cost_of_step(scheme: str) -> Measure:
    """Returns the step of a scheme over that without positions, in each bench that timed both."""

    def measure(evidence: Evidence) -> list[Finding]:
        findings = []
        for path in (
            "bench/encodings/encodings.json",
            "bench/step/step.json",
            "bench/step/2k/step.json",
        ):
            bench = evidence.bench(path)
            if bench is None:
                continue
            for row in bench["rows"]:
                ours = row.get("implementation", "ours") == "ours"
                whole = row["direction"] in ("forward+backward", "step")
                if not (ours and whole and row["scheme"] == scheme):
                    continue
                low, high = row["ratio_q1"] - 1, row["ratio_q3"] - 1
                verdict = (
                    REPRODUCED
                    if high <= NOISE
                    else BOUNDED
                    if row["ratio"] - 1 <= NOISE
                    else REFUTED
                    if low > NOISE
                    else OPEN
                )
                words = (
                    f"{row['ratio']:.2f} [{row['ratio_q1']:.2f}, {row['ratio_q3']:.2f}] of a step "
                    f"at {row['length']:,} tokens"
                )
                findings.append(Finding(f"results/{path}", verdict, words, bench["hardware"]))
        return findings

    return measure


def attention_with_bias(evidence: Evidence) -> list[Finding]:
    """Returns attention with ALiBi over attention without a bias, in the same implementation."""
    findings = []
    for path in ATTENTION:
        bench = evidence.bench(path)
        if bench is None:
            continue
        for row in bench["rows"]:
            own, _, what = row["implementation"].rpartition(", ")
            if what != "no bias" or own != row["baseline"]:
                continue
            median, low, high = (1 / row[name] for name in ("ratio", "ratio_q3", "ratio_q1"))
            verdict = (
                REPRODUCED if high <= 1 + NOISE else BOUNDED if median <= 1 + NOISE else REFUTED
            )
            words = (
                f"{median:.2f} [{low:.2f}, {high:.2f}] of the time, {row['direction']}, "
                f"{row['length']:,} tokens"
            )
            findings.append(Finding(f"results/{path}", verdict, words, bench["hardware"]))
    return findings
