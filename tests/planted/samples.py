"""Sample files of lm-eval with planted outcomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rankwise.findings.recommendation import recommend
from rankwise.findings.statements import option_name
from rankwise.records.recommendation import Comparison, RankVerdict
from rankwise.records.study import Unit
from rankwise.scores.asked import Asked
from rankwise.scores.reading import samples_given
from rankwise.scores.study import scored_study

Outcome = tuple[int, int, int, int]


class Row(NamedTuple):
    """A model against the base: the comparison, the verdict on it, and the sentence of both."""

    name: str
    verdict: Literal["better", "worse", "cannot_tell"]
    of: Comparison
    judged: RankVerdict
    sentence: str


class Compared(NamedTuple):
    """What a verdict on sample files says, each model in the order of the files."""

    base: str | None
    metric: str
    filter: str
    unit: Unit
    higher_is_better: bool
    warnings: tuple[str, ...]
    reasons: tuple[str, ...]
    candidates: tuple[Row, ...]


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def line(doc_id: int, **values: Any) -> dict[str, Any]:
    """A line as lm-eval 0.4.13 writes it; a keyword of None takes a field away."""
    doc = {"question": f"question {doc_id}", "answer": str(doc_id % 3)}
    filter_name = values.pop("filter", "none")
    fields = {
        "doc_id": doc_id,
        "doc": doc,
        "target": doc["answer"],
        "arguments": {"gen_args_0": {"arg_0": doc["question"], "arg_1": {"until": ["\n"]}}},
        "resps": [["1"]],
        "filtered_resps": ["1"],
        "filter": filter_name,
        "metrics": [name for name in values if name not in ("num_loss_tokens", "loss_nats")],
        "doc_hash": hashed(json.dumps(doc, indent=2)),
        "prompt_hash": hashed(doc["question"]),
        "target_hash": hashed(doc["answer"]),
    }
    return fields | values


def write(path: Path, lines: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines), encoding="utf-8")
    return path


def scored(path: Path, values: Sequence[Any], metric: str = "acc") -> Path:
    return write(path, [line(index, **{metric: value}) for index, value in enumerate(values)])


def without(lines: Sequence[dict[str, Any]], *fields: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in each.items() if key not in fields} for each in lines]


def outcomes(learned: int, forgotten: int, right: int, wrong: int) -> tuple[list[int], list[int]]:
    """Base and candidate, item by item."""
    base = [0] * learned + [1] * forgotten + [1] * right + [0] * wrong
    return base, [1] * learned + [0] * forgotten + [1] * right + [0] * wrong


def planted(folder: Path, *each: Outcome) -> Compared:
    """One base and some candidates; all outcomes give the base the same items."""
    files: list[Path] = []
    first: list[int] = []
    for number, outcome in enumerate(each):
        base, candidate = outcomes(*outcome)
        # the base is right on the first items, whatever the candidate does
        order = sorted(range(len(base)), key=lambda i: -base[i])
        content = [base[i] for i in order]
        files.append(scored(folder / f"model{number}.jsonl", [candidate[i] for i in order]))
        if number == 0:
            scored(folder / "base.jsonl", content)
            first = content
        assert content == first
    return compare_samples(folder / "base.jsonl", files)


def compare_samples(
    base: Path,
    candidates: Sequence[Path],
    *,
    filter_name: str | None = None,
    **settings: Any,
) -> Compared:
    """What ``rankwise verdict BASE.jsonl A.jsonl`` says of each model against the base."""
    asked = Asked(filter=filter_name, **settings)
    scored = scored_study(samples_given([base, *candidates], asked), asked, "samples")
    results = scored.results()
    (found,) = recommend(results).by_train_task
    (items,) = results.base.items.values()
    assert scored.record.scores is not None
    names = {run.planned.name: run.planned.called for run in scored.runs}
    judged = {each.runs[0]: each for each in found.verdicts}
    rows = [
        Row(
            names[each.run] or "",
            verdict_of(judged[each.run]),
            each,
            judged[each.run],
            next(r for r in found.reasons if r.startswith(f"{option_name(judged[each.run])} ")),
        )
        for each in found.comparisons
    ]
    return Compared(
        scored.record.scores.base,
        items.metric,
        results.base.evaluations[items.task].decision_filter,
        items.unit,
        items.higher_is_better,
        scored.record.warnings,
        found.reasons,
        tuple(rows),
    )


def verdict_of(judged: RankVerdict) -> Literal["better", "worse", "cannot_tell"]:
    """What is shown of a model against the base."""
    assert judged.better_than_base is not None
    shown: dict[str, Literal["better", "worse", "cannot_tell"]] = {"yes": "better", "no": "worse"}
    return shown.get(judged.better_than_base, "cannot_tell")
