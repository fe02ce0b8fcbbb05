"""Notes on the items of a verdict: clusters, fields that look like them, estimated answers."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rankwise.findings.options import OptionGains
from rankwise.findings.stats.items import Floats, design_effects, num_clusters
from rankwise.records import quantities
from rankwise.records.results import TaskItems

FEW_CLUSTERS = 30
"""The number of clusters below which the variance between clusters is itself uncertain, and t's
degrees of freedom cover that only where clusters are of one size and nearly normal (Cameron and
Miller 2015)."""

MOST_DESIGN_EFFECT = 1.2
"""A larger one is reported: without clusters the standard error is over 9 % too small."""


NOTICED = 0.95
"""Clusters are mentioned where their number is at most this share of the items."""


class Suspect(NamedTuple):
    """A field whose values the differences of models follow.

    ``design_effect`` is the largest over the differences: the cluster-robust variance over that of
    independent items.
    """

    field: str
    num_clusters: int
    design_effect: float


def suspect(items: TaskItems, known: int | None, differences: Floats) -> Suspect | None:
    """The field of the largest design effect, if that is above ``MOST_DESIGN_EFFECT``.

    Args:
        items: the base's on a task, with the fields that may make clusters.
        known: the clusters that are known; a field that makes more is none.
        differences: (k, n), of k pairs of models on these items in the order of ``doc_id``.
    """
    order = np.argsort(items.doc_ids)
    candidates = {
        field: np.asarray(its, dtype=np.int64)[order]
        for field, its in items.candidates.items()
        if known is None or len({*its}) < known
    }
    found = [
        Suspect(field, len(np.unique(its)), float(design_effects(differences, its).max()))
        for field, its in candidates.items()
    ]
    largest = max(found, key=lambda each: each.design_effect, default=None)
    return None if largest is None or largest.design_effect <= MOST_DESIGN_EFFECT else largest


def suspicion(found: Suspect, items: str, remedy: str) -> str:
    """The warning; ``items`` are "drop's 817 items", ``remedy`` is what to write."""
    return (
        f"{quantities.capital(items)} share {quantities.counted(found.num_clusters, 'value')} of "
        f"{found.field!r}, and differences of models may go by it: the variance of one is "
        f"{found.design_effect:.1f} times that of independent items, so the intervals here may be "
        f"too narrow. {remedy}"
    )


def too_few(what: str, number: int) -> str:
    """The warning of fewer clusters than ``FEW_CLUSTERS``; empty if there are enough."""
    if number >= FEW_CLUSTERS:
        return ""
    return (
        f"{what} has {quantities.counted(number, 'cluster')} only; with fewer than {FEW_CLUSTERS} "
        "the intervals may still be too narrow."
    )


def cluster_notes(source: OptionGains) -> Iterator[str]:
    """One trained task's reasons that are about clusters; empty where items are independent.

    They are the clusters of every task that has some, and for the others the setting that is
    missing, judged by the gains of all options and the leads of each over each.
    """
    for task in dict.fromkeys(itertools.chain(*source.results.tasks.values())):
        yield from _notes(source, task)
    for relation, names in source.results.tasks.items():  # that ask the same, or share texts
        together = num_clusters_of(source, names)
        sizes = [len(source.results.base.items[task].doc_ids) for task in names]
        alone = sum(
            num_clusters_of(source, (task,)) or size
            for task, size in zip(names, sizes, strict=True)
        )
        if together is not None and together <= NOTICED * alone:
            yield (
                f"The {relation.replace('_', '-')} tasks {quantities.listed(names)} ask the same "
                f"or share texts: their {quantities.counted(sum(sizes), 'item')} are in "
                f"{quantities.counted(together, 'cluster')}, and intervals are between those."
            )


def num_clusters_of(source: OptionGains, tasks: Sequence[str]) -> int | None:
    """The clusters of all items of these tasks; None where every item is its own."""
    values = [np.asarray(source.results.base.items[task].values) for task in tasks]
    return num_clusters(source.items(values, tasks))


def _notes(source: OptionGains, task: str) -> Iterator[str]:
    items = source.results.base.items[task]
    counted = quantities.counted(len(items.doc_ids), "item")
    number = num_clusters_of(source, (task,))
    if number is not None and number <= NOTICED * len(items.doc_ids):
        yield f"{task} has {counted}{quantities.in_clusters(number)}; intervals are between those."
        if few := too_few(task, number):
            yield few
    if not items.candidates or not source.options:
        return
    gains = [source.gains(option.runs, task).mean(axis=0) for option in source.options]
    leads = [one - other for one, other in itertools.combinations(gains, 2)]
    found = suspect(items, number, np.stack([*gains, *leads]))
    if found is not None:
        remedy = (
            f"Set evaluation.clusters.{task}: {found.field} in the study file, or of this study: "
            f"`rankwise verdict DIR --cluster {task}={found.field}`"
        )
        if source.results.study.scores is not None:
            remedy = f"Use --cluster {found.field}"
        yield suspicion(found, f"{task}'s {counted}", remedy)


def item_notes(source: OptionGains) -> Iterator[str]:
    """Tasks that the base cannot do, clusters, lengths of answers, and estimated answers."""
    yield from (f"{quantities.capital(why)}." for why in source.results.study.unable.values())
    yield from cluster_notes(source)
    yield from length_notes(source)
    yield from reference_notes(source)


def length_notes(source: OptionGains) -> Iterator[str]:
    """How much longer each option's answers are than the base's, where a set is judged by length.

    Longer is neither better nor worse, so nothing is concluded from it.
    """
    for task in source.tasks("out_of_domain", "tokens"):
        base = quantities.score(source.base_score((task,)).estimate, "tokens")
        changes = [(option.label, source.change(option.runs, (task,))) for option in source.options]
        said = [f"{label} {quantities.with_interval(mean, 'tokens')}" for label, mean in changes]
        if said:
            yield f"Length of answers to {task}, base {base} tokens: {'; '.join(said)}."


def reference_notes(source: OptionGains) -> Iterator[str]:
    """Number of answered items, the runs from which the others are estimated, and how well."""
    results, references = source.results, source.results.study.references
    names = references.runs.get(results.train_task, ())
    labels = [source.labels[name] for name in names if name in source.labels]
    for task in results.study.scored_tasks(results.train_task):
        items = [model.items[task] for model in results.models if task in model.items]
        parts = [each for each in items if each.scored is not None]
        if parts:
            counts = sorted({len(part.scored.doc_ids) for part in parts if part.scored})
            explained = statistics.median(part.r_squared or 0.0 for part in parts)
            yield (
                f"Of {task}'s {quantities.counted(len(parts[0].doc_ids), 'item')}, "
                f"{quantities.counted(len(parts), 'run')} answered "
                f"{quantities.listed([quantities.count(count) for count in counts])}; the rest is "
                f"estimated from {quantities.listed(labels) or 'the base'}, where "
                f"{quantities.share(max(explained, 0.0))} of the variance of a run's change is "
                "predicted (median)."
            )
        elif task in references.whole:
            yield (
                f"All runs answered all items of {task}: {quantities.listed(labels)} predicted too "
                "little of their changes to estimate any."
            )
