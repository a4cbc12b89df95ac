"""The answer of a report in three sentences, and its status; only from rows and the verdict."""

from collections.abc import Callable, Mapping

import numpy as np

from posenc_jax.report import verdict_section
from posenc_jax.report.markup import TEXTS, text_of
from posenc_jax.report.study_view import StudyView, listed, short_name, task_name, times
from posenc_jax.report.tables import percent
from posenc_jax.results.schema import BPB, FAR, ID, SUMMARY_TASKS
from posenc_jax.results.study_data import RunData

# Fewer cannot decide (docs/statistics.md).
SEEDS_FOR_LOSS, SEEDS_FOR_RETRIEVAL = 5, 8
MOST_NAMED = 6  # arms in one sentence


def answer(study: StudyView, verdict: Mapping | None) -> list[str]:
    """Returns three sentences: verdict or status with n, loss on text, retrieval."""
    first = _measured(study) if verdict is None else _judged(study, verdict)
    classes = [_classes(study)] if study.multiples("longtext_corrected") else []
    if classes and not study.multiples(BPB) and not study.tasks:
        return [first, *classes]
    return [first, _text(study), _retrieval(study), *classes]


def status(study: StudyView, verdict: Mapping | None) -> list[str]:
    """Returns what limits the page: tier, split, number of seeds, deviations, incomparable runs."""
    tiers = sorted(_values(study, "tier"))
    lines = [TEXTS["tier"].get(tier, f"Tier: {tier}.") for tier in tiers]
    split = study.data.split
    lines.append(TEXTS["split"].get(split, f"Rows are of the split {split}."))
    if len(tiers) > 1:
        lines.append("The page holds runs of several tiers: do not compare across them.")
    if verdict is not None:
        lines += verdict_section.status_lines(study, verdict)
    elif study.seeds_per_arm[0] < SEEDS_FOR_RETRIEVAL:
        needed = {"loss": SEEDS_FOR_LOSS, "retrieval": SEEDS_FOR_RETRIEVAL}
        lines.append(text_of("page", "few_seeds", **needed))
    trained = [run for run in study.runs if not run.config.get("train", {}).get("init_from")]
    tokens = {run.info["tokens"] for run in trained if "tokens" in run.info}
    corpora = _values(study, "corpus_fingerprint")
    for values, words in ((corpora, "corpora"), (tokens, "numbers of tokens")):
        if len(values) > 1:
            lines.append(f"The runs saw different {words}: the arms are not comparable.")
    return lines


def scope(study: StudyView) -> str:
    """Returns tier, split, number of arms and seeds, L and corpora on one line."""
    arms = f"{len(study.arms)} arm{'s' if len(study.arms) > 1 else ''}"
    tiers, corpora = (", ".join(sorted(_values(study, f))) for f in ("tier", "corpus"))
    parts = ["posenc_jax", f"tier {tiers}", f"split {study.data.split}", arms, _seeds(study)]
    return " · ".join([*parts, f"L = {study.train_length}", *([corpora] if corpora else [])])


def _values(study: StudyView, field: str) -> set:
    return {run.info[field] for run in study.runs if field in run.info}


def _seeds(study: StudyView) -> str:
    low, high = study.seeds_per_arm
    if high == 1:
        return "one seed"
    return f"{low} seeds per arm" if low == high else f"{low} to {high} seeds per arm"


def _measured(study: StudyView) -> str:
    status = "Measured" if study.seeds_per_arm[0] >= SEEDS_FOR_RETRIEVAL else "Exploratory"
    many, seeds = len(study.arms) > 1, _seeds(study)
    arms = f"{len(study.arms)} arms were" if many else f"{study.names[study.arms[0]]} was"
    facts = {"status": status, "seeds": seeds, "arms": arms, "L": study.train_length}
    return text_of("answer", "measured", **facts)


def _judged(study: StudyView, verdict: Mapping) -> str:
    said, found_runs = [], {(run.arm, run.seed) for run in study.runs if run.rows}
    for rule in verdict_section.rules(verdict):
        by_verdict: dict[str, list[str]] = {}
        for v in rule["verdicts"]:
            by_verdict.setdefault(v["verdict"], []).append(short_name(v["hybrid"]))
        found = listed([f"{verdict} for {listed(names)}" for verdict, names in by_verdict.items()])
        planned, hybrids = rule["seeds"], [v["hybrid"] for v in rule["verdicts"]]
        done = sum(all((arm, seed) in found_runs for arm in hybrids) for seed in planned)
        seeds = f"{len(planned)} seed{'s' if len(planned) != 1 else ''}"
        if done < len(planned):
            seeds = f"{done} of {seeds}"
        said.append(f"rule {rule['rule']} ({rule['status']}, {seeds}) finds {found}")
    return f"Can a hybrid have both? {'; '.join(said).replace('rule', 'Rule', 1)}."


def _text(study: StudyView) -> str:
    k = study.far_multiple(BPB)
    if ID not in study.multiples(BPB) or not k:
        return text_of("answer", "no_text")
    near, far = (_means(study, RunData.value, BPB, at) for at in (ID, k))
    ratios = {arm: far[arm] / near[arm] for arm in near.keys() & far.keys()}
    parts = {a: f"{near[a]:.3f} to {far[a]:.3f} ({ratio:.2f}×)" for a, ratio in ratios.items()}
    level = "" if study.unigram is None else f"; a unigram model needs {study.unigram:.3f}"
    what = text_of("answer", "text", far=times(k))
    return _sentence(study, what, ratios, parts, level, "bits per byte there")


def _retrieval(study: StudyView) -> str:
    beyond = {}
    for task in study.main_tasks:
        ks = [k for k in study.multiples(f"{task}_accuracy") if k > 1]
        beyond[task] = [k for k in ks if any(run.far(task, k) for run in study.runs)]
    tasks = [task for task, ks in beyond.items() if ks]
    if not tasks:
        return text_of("answer", "no_retrieval")
    k = min(FAR if FAR in beyond[task] else max(beyond[task]) for task in tasks)
    far = _means(study, RunData.far_mean, k, tasks)
    near = _means(study, RunData.retrieval, 1, tasks)
    within = {arm: f" ({percent(value)})" for arm, value in near.items()}
    parts = {arm: f"{percent(value)}{within.get(arm, '')}" for arm, value in far.items()}
    said = ["above chance", *(["Y_R_far"] if tuple(tasks) == SUMMARY_TASKS else [])]
    said += ["in brackets within contexts of L"] if near else []
    named = f"{listed([task_name(task) for task in tasks])}; {', '.join(said)}"
    what = text_of("answer", "retrieval", far=times(k), tasks=named)
    rank = {arm: -value for arm, value in far.items()}
    return _sentence(study, what, rank, parts, "", "retrieval beyond L")


def _classes(study: StudyView) -> str:
    k = max(study.multiples("longtext_corrected"))
    scores = _means(study, RunData.value, "longtext_corrected", k)
    bags = _means(study, RunData.value, "longtext_bag_corrected", k)
    parts = {arm: percent(value) for arm, value in scores.items()}
    rank = {arm: -value for arm, value in scores.items()}
    bag = f"; a bag of ids has {percent(next(iter(bags.values())))}" if bags else ""
    what = text_of("answer", "classes")
    return _sentence(study, what, rank, parts, bag, "classification of all documents")


def _means(study: StudyView, read: Callable, *args: object) -> dict[str, float]:
    found = {arm: study.found(arm, read, *args) for arm in study.arms}
    return {arm: float(np.mean(values)) for arm, values in found.items() if values}


def _sentence(
    study: StudyView, what: str, rank: Mapping[str, float], parts: Mapping, level: str, lack: str
) -> str:
    """Arms with their numbers: all; of many the parents and hybrids, or first and last."""
    order = sorted(rank, key=rank.__getitem__)
    if len(order) > MOST_NAMED:
        hybrids = study.data.record.get("roles", {}).get("hybrids", ())
        main = {*study.parents, *([hybrids] if isinstance(hybrids, str) else hybrids)}
        order = [arm for arm in order if arm in main] or [*order[: MOST_NAMED - 1], order[-1]]
    rest = f" (all {len(rank)} arms in the table)" if len(rank) > len(order) else ""
    ranked = listed([f"{study.names[arm]} {parts[arm]}" for arm in order])
    lacking = [name for arm, name in study.names.items() if arm not in rank]
    none = f" No {lack}: {listed(lacking)}." if lacking and rank else ""
    return f"{what}: {ranked}{rest}{level}.{none}"
