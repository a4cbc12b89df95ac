"""What the numbers say, in sentences; only from measured values."""

from collections.abc import Callable

import numpy as np

from posenc_jax.report.study_view import RunView, StudyView, task_name, times
from posenc_jax.report.tables import percent, ratio
from posenc_jax.results.schema import BPB, FAR, ID, SUMMARY_TASKS

TIER_WORDS = {
    "smoke": "Smoke tier: checks the wiring and claims nothing about learning.",
    "cpu": "CPU tier: a small model on a few cores, the qualitative picture only.",
    "gpu": "GPU tier: the decision rule's questions at small scale.",
    "cluster": "Cluster tier: paper scale.",
}
SPLIT_WORDS = {
    "dev": "Rows are of the dev split: to explore and to choose by, not to confirm.",
    "test": "Rows are of the test split.",
}
# EVALUATION, section 9: fewer cannot decide.
SEEDS_FOR_LOSS, SEEDS_FOR_RETRIEVAL = 5, 8


def banner(study: StudyView, judged: list[str] | None = None) -> list[str]:
    """Tier, seeds and what is not comparable; judged: the verdict's own lines, None without one."""
    lines = [TIER_WORDS.get(tier, f"Tier: {tier}.") for tier in study.tiers]
    lines.append(SPLIT_WORDS.get(study.data.split, f"Rows are of the split {study.data.split}."))
    if len(study.tiers) > 1:
        lines.append("Runs of several tiers stand on this page: do not compare across them.")
    low, high = study.seeds_per_arm
    if judged is not None:
        lines += judged
    elif high == 1:
        lines.append("Exploratory: one seed, no verdict. Differences may not repeat.")
    else:
        seeds = f"{low} seeds" if low == high else f"{low} to {high} seeds"
        seeds += " per arm"
        if low < SEEDS_FOR_RETRIEVAL:
            lines.append(
                f"Exploratory: {seeds}, no verdict (a decision asks for {SEEDS_FOR_LOSS} seeds for "
                f"bits per byte and {SEEDS_FOR_RETRIEVAL} for retrieval)."
            )
        else:
            lines.append(f"{seeds}. This page shows measurements; it decides nothing.")
    for field, words in (("corpus_fingerprint", "corpora"), ("tokens", "numbers of tokens")):
        infos = [run.data.info for run in study.runs]
        if len({info[field] for info in infos if field in info}) > 1:
            lines.append(
                f"The runs saw different {words}: the arms are not comparable as they are."
            )
    return lines


def headline(study: StudyView) -> list[str]:
    """The reading: how bits per byte hold beyond L, and what is retrieved from beyond L."""
    sentences = _classes(study)
    ks, k = study.multiples(BPB), study.far_multiple(BPB)
    if sentences and not ks and not study.tasks:
        return sentences
    if ID in ks and k:
        ratios = _by_arm(study, lambda run: (found := ratio(run, k)) and found[0])
        ratios.sort(key=lambda item: item[1])
        parts = [f"{name} {value:.2f}×" for name, value in ratios]
        sentences.append(
            f"After {times(k)} of context (L = {study.train_length}), bits per byte relative to the same "
            f"arm's in distribution (after L/2): {_list(parts)}."
        )
        sentences += _lacking(study, ratios, "bits per byte at that length")
    else:
        sentences.append("Bits per byte beyond L against those within L were not measured.")
    if ID in ks:
        within = _by_arm(study, lambda run: run.value(BPB, ID))
        within.sort(key=lambda item: item[1])
        words = "" if study.unigram is None else f"; a unigram model needs {study.unigram:.3f}"
        parts = [f"{name} {value:.3f}" for name, value in within]
        sentences.append(f"In distribution, bits per byte after L/2: {_list(parts)}{words}.")
    far = {
        task: [k for k in study.multiples(f"{task}_accuracy") if k > 1 and _any_far(study, task, k)]
        for task in study.main_tasks
    }
    tasks = [task for task, multiples in far.items() if multiples]
    if tasks:
        k = min(FAR if FAR in far[task] else max(far[task]) for task in tasks)
        scores = _by_arm(study, lambda run: run.far_mean(k, tasks))
        scores.sort(key=lambda item: -item[1])
        parts = [f"{name} {percent(value)}" for name, value in scores]
        sentences.append(
            f"Of needles further back than L in contexts of {times(k)} "
            f"({_list([task_name(t) for t in tasks])}, above chance without binding{_index(tasks, 'Y_R_far')}), retrieved: "
            f"{_list(parts)}."
        )
        sentences += _lacking(study, scores, "retrieval beyond L")
    else:
        sentences.append("Retrieval beyond L was not measured.")
    tasks = [task for task in study.main_tasks if 1 in study.multiples(f"{task}_corrected")]
    if tasks:
        scores = _by_arm(study, lambda run: run.retrieval(1, tasks))
        scores.sort(key=lambda item: -item[1])
        parts = [f"{name} {percent(value)}" for name, value in scores]
        index = _index(tasks, "Y_R_id").removeprefix(": ")
        index = f" ({index})" if index else ""
        sentences.append(f"Within the training length, in contexts of L{index}: {_list(parts)}.")
        sentences += _lacking(study, scores, "retrieval at L")
    return sentences


def _index(tasks: list[str], name: str) -> str:
    return f": {name}" if tuple(tasks) == SUMMARY_TASKS else ""


def _classes(study: StudyView) -> list[str]:
    ks = study.multiples("longtext_corrected")
    if not ks:
        return []
    scores = _by_arm(study, lambda run: run.value("longtext_corrected", max(ks)))
    bags = _by_arm(study, lambda run: run.value("longtext_bag_corrected", max(ks)))
    scores.sort(key=lambda item: -item[1])
    parts = [f"{name} {percent(value)}" for name, value in scores]
    sentences = _lacking(study, scores, "classification of all documents")
    if not scores:
        return sentences
    line = f"; a bag of ids has {percent(bags[0][1])}" if bags else ""
    return [f"Class of a long text, all documents, above chance: {_list(parts)}{line}.", *sentences]


def _any_far(study: StudyView, task: str, k: float) -> bool:
    return any(run.far(task, k) is not None for run in study.runs)


def _by_arm(study: StudyView, read: Callable[[RunView], float | None]) -> list[tuple[str, float]]:
    means = []
    for arm in study.arms:
        values = [value for run in study.of(arm) if (value := read(run)) is not None]
        if values:
            means.append((study.names[arm], float(np.mean(values))))
    return means


def _lacking(study: StudyView, found: list[tuple[str, float]], what: str) -> list[str]:
    have = {name for name, _ in found}
    lacking = [name for name in study.names.values() if name not in have]
    return [f"No {what}: {_list(lacking)}."] if lacking else []


def _list(parts: list[str]) -> str:
    if len(parts) > 7:
        return f"{', '.join(parts[:3])} … {parts[-1]} (all {len(parts)} in the table)"
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
