"""What is said of tasks of which most runs answered a part."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from rankwise.findings.options import OptionGains
from rankwise.records import quantities


def reference_notes(source: OptionGains) -> Iterator[str]:
    """How many items were answered, from which runs the others are estimated, and how well."""
    results, references = source.results, source.results.study.references
    names = references.runs.get(results.train_task, ())
    labels = [source.labels[name] for name in names if name in source.labels]
    for task in results.study.scored_tasks(results.train_task):
        items = [model.items[task] for model in results.models if task in model.items]
        parts = [each for each in items if each.scored is not None]
        if parts:
            counts = sorted({len(part.scored.doc_ids) for part in parts if part.scored})
            told = statistics.median(part.r_squared or 0.0 for part in parts)
            yield (
                f"Of {task}'s {quantities.counted(len(parts[0].doc_ids), 'item')}, "
                f"{quantities.counted(len(parts), 'run')} answered "
                f"{quantities.listed([quantities.count(count) for count in counts])}; the rest is "
                f"estimated from {quantities.listed(labels) or 'the base'}, where "
                f"{quantities.share(max(told, 0.0))} of the variance of a run's change is "
                "predicted (median)."
            )
        elif task in references.whole:
            yield (
                f"All runs answered all items of {task}: {quantities.listed(labels)} predicted too "
                "little of their changes to estimate any."
            )
