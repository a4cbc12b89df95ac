"""The answer of a report in three sentences, and its status; only from rows and the verdict."""

from collections.abc import Callable, Mapping

import numpy as np

from posenc_jax.report import verdict_section
from posenc_jax.report.study_view import StudyView, short_name, task_name, times
from posenc_jax.report.tables import percent
from posenc_jax.results.schema import BPB, FAR, ID, SUMMARY_TASKS
from posenc_jax.results.study_data import RunData

TIER_WORDS = {
    "smoke": "Smoke tier: checks the wiring and claims nothing about learning.",
    "cpu": "CPU tier: a small model on a few cores, the qualitative picture only.",
    "gpu": "GPU tier: the decision rule's questions at small scale.",
    "cluster": "Cluster tier: paper scale.",
}
SPLIT_WORDS = {
    "dev": "Rows are of the dev split: they serve to explore and to choose, not to confirm.",
    "test": "Rows are of the test split.",
}
# Fewer cannot decide (docs/statistics.md).
SEEDS_FOR_LOSS, SEEDS_FOR_RETRIEVAL = 5, 8
MOST_NAMED = 6  # arms in one sentence


def answer(study: StudyView, verdict: Mapping | None) -> list[str]:
    """Returns three sentences: verdict or status with n, loss on text, retrieval."""
    first = _measured(study) if verdict is None else _judged(verdict)
    classes = _classes(study)
    if classes and not study.multiples(BPB) and not study.tasks:
        return [first, classes]
    return [first, _text(study), _retrieval(study), *([classes] if classes else [])]


def status(study: StudyView, verdict: Mapping | None) -> list[str]:
    """Returns what limits the page: tier, split, number of seeds, deviations, incomparable runs."""
    lines = [TIER_WORDS.get(tier, f"Tier: {tier}.") for tier in study.tiers]
    lines.append(SPLIT_WORDS.get(study.data.split, f"Rows are of the split {study.data.split}."))
    if len(study.tiers) > 1:
        lines.append("The page holds runs of several tiers: do not compare across them.")
    if verdict is not None:
        lines += verdict_section.status_lines(study, verdict)
    elif study.seeds_per_arm[0] < SEEDS_FOR_RETRIEVAL:
        lines.append(
            f"A decision needs {SEEDS_FOR_LOSS} seeds for bits per byte and {SEEDS_FOR_RETRIEVAL} "
            "for retrieval; with fewer, differences may not repeat."
        )
    for field, words in (("corpus_fingerprint", "corpora"), ("tokens", "numbers of tokens")):
        infos = [run.info for run in study.runs]
        if len({info[field] for info in infos if field in info}) > 1:
            lines.append(
                f"The runs saw different {words}: the arms are not comparable as they are."
            )
    return lines


def seeds_words(study: StudyView) -> str:
    """Returns the number of seeds per arm in words."""
    low, high = study.seeds_per_arm
    if high == 1:
        return "one seed"
    return f"{low} seeds per arm" if low == high else f"{low} to {high} seeds per arm"


def _measured(study: StudyView) -> str:
    decisive = study.seeds_per_arm[0] >= SEEDS_FOR_RETRIEVAL
    what = f"{len(study.arms)} arms" if len(study.arms) > 1 else study.names[study.arms[0]]
    were = "were" if len(study.arms) > 1 else "was"
    return (
        f"{'Measured' if decisive else 'Exploratory'}: {seeds_words(study)}, no verdict; {what} "
        f"{were} trained on rows of L = {study.train_length} tokens and measured on longer ones."
    )


def _judged(verdict: Mapping) -> str:
    said = []
    for rule in verdict_section.rules(verdict):
        by_verdict: dict[str, list[str]] = {}
        for v in rule["verdicts"]:
            by_verdict.setdefault(v["verdict"], []).append(short_name(v["hybrid"]))
        found = _list([f"{verdict} for {_list(names)}" for verdict, names in by_verdict.items()])
        n = len(rule["seeds"])
        seeds = f"{n} seed{'s' if n != 1 else ''}"
        said.append(f"rule {rule['rule']} ({rule['status']}, {seeds}) finds {found}")
    sentence = "; ".join(said)
    return f"Can a hybrid have both? {sentence[0].upper()}{sentence[1:]}."


def _text(study: StudyView) -> str:
    k = study.far_multiple(BPB)
    if ID not in study.multiples(BPB) or not k:
        return "Bits per byte beyond L against those within L were not measured."
    near, far = (_means(study, lambda run, at=at: run.value(BPB, at)) for at in (ID, k))
    ratios = {arm: far[arm] / near[arm] for arm in near.keys() & far.keys()}
    parts = {a: f"{near[a]:.3f} to {far[a]:.3f} ({ratio:.2f}×)" for a, ratio in ratios.items()}
    level = "" if study.unigram is None else f"; a unigram model needs {study.unigram:.3f}"
    what = (
        f"Bits per byte after L/2 of context (in distribution), after {times(k)}, and their ratio"
    )
    lacking = _lacking(study, far, "bits per byte there")
    return f"{what}: {_ranked(study, ratios, parts)}{level}.{lacking}"


def _retrieval(study: StudyView) -> str:
    beyond = {}
    for task in study.main_tasks:
        ks = [k for k in study.multiples(f"{task}_accuracy") if k > 1]
        beyond[task] = [k for k in ks if any(run.far(task, k) for run in study.runs)]
    tasks = [task for task, ks in beyond.items() if ks]
    if not tasks:
        return "Retrieval beyond L was not measured."
    k = min(FAR if FAR in beyond[task] else max(beyond[task]) for task in tasks)
    far = _means(study, lambda run: run.far_mean(k, tasks))
    near = _means(study, lambda run: run.retrieval(1, tasks))
    within = {arm: f" ({percent(value)})" for arm, value in near.items()}
    parts = {arm: f"{percent(value)}{within.get(arm, '')}" for arm, value in far.items()}
    said = ["above chance", *(["Y_R_far"] if tuple(tasks) == SUMMARY_TASKS else [])]
    said += ["in brackets within contexts of L"] if near else []
    named = f"{_list([task_name(task) for task in tasks])}; {', '.join(said)}"
    ranked = _ranked(study, {arm: -value for arm, value in far.items()}, parts)
    what = f"Retrieved of needles further back than L in contexts of {times(k)} ({named})"
    return f"{what}: {ranked}.{_lacking(study, far, 'retrieval beyond L')}"


def _classes(study: StudyView) -> str:
    ks = study.multiples("longtext_corrected")
    if not ks:
        return ""
    scores = _means(study, lambda run: run.value("longtext_corrected", max(ks)))
    bags = _means(study, lambda run: run.value("longtext_bag_corrected", max(ks)))
    parts = {arm: percent(value) for arm, value in scores.items()}
    ranked = _ranked(study, {arm: -value for arm, value in scores.items()}, parts)
    bag = f"; a bag of ids has {percent(next(iter(bags.values())))}" if bags else ""
    lacking = _lacking(study, scores, "classification of all documents")
    return f"Class of a long text, all documents, above chance: {ranked}{bag}.{lacking}"


def _means(study: StudyView, read: Callable[[RunData], float | None]) -> dict[str, float]:
    means = {}
    for arm in study.arms:
        values = [value for run in study.of(arm) if (value := read(run)) is not None]
        if values:
            means[arm] = float(np.mean(values))
    return means


def _ranked(study: StudyView, rank: Mapping[str, float], parts: Mapping[str, str]) -> str:
    """Arms with their numbers: all; of many the parents and hybrids, or first and last."""
    order = sorted(rank, key=rank.get)
    if len(order) > MOST_NAMED:
        hybrids = study.record.get("roles", {}).get("hybrids", ())
        main = {*study.parents, *([hybrids] if isinstance(hybrids, str) else hybrids)}
        order = [arm for arm in order if arm in main] or [*order[: MOST_NAMED - 1], order[-1]]
    rest = f" (all {len(rank)} arms in the table)" if len(rank) > len(order) else ""
    return _list([f"{study.names[arm]} {parts[arm]}" for arm in order]) + rest


def _lacking(study: StudyView, found: Mapping[str, float], what: str) -> str:
    lacking = [name for arm, name in study.names.items() if arm not in found]
    return f" No {what}: {_list(lacking)}." if lacking and found else ""


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
