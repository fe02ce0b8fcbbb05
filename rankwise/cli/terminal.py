"""Tables and sentences for the terminal; the same numbers and formats as the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import groupby
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rankwise.findings.costs import StudyCost
from rankwise.findings.models import seeded_labels
from rankwise.findings.statements import time_of_next, with_folder
from rankwise.findings.study import StudyFindings
from rankwise.records import quantities
from rankwise.records.deployment import DeploymentCheck
from rankwise.records.files import in_words
from rankwise.records.quantities import NOT_MEASURED, count, memory, parameters, percent
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedPass, StudyRecord
from rankwise.report.parts import Table as ReportTable
from rankwise.study.status import ModelStatus

Done = Set[tuple[str, str | None]]


_MOST_MODELS = 10
"""The most models in the table of a status; ``--json`` has all."""


def _add_columns(table: Table, names: Iterable[str], words: Set[str]) -> None:
    """Columns of numbers, which end at the right, and of ``words``."""
    for name in names:
        table.add_column(Text(name), justify="left" if name in words else "right", overflow="fold")


def plan_table(study: StudyRecord, done: Done) -> Table:
    """What a study will do: one row per model.

    Args:
        study: the planned study.
        done: finished (model, task) pairs; task None is the training.
    """
    config = study.config
    table = Table(title=f"{config.name} on {config.base_model.name}{config.start_in_words}")
    names = ("run", "steps", "tokens", "trainable", "of full", "memory", "trained", "scored")
    _add_columns(table, names, words={"run"})
    table.add_row("base", *[""] * 6, _scored("base", study.scored_tasks(), done))
    for run in study.models:
        is_here = run.role == "imported"
        rows = f", {quantities.counted(run.num_examples, 'row')}"
        table.add_row(
            f"{run.name}{rows if run.role == 'fewer_rows' else ''}",
            "imported" if is_here else str(run.num_steps),
            "" if is_here else count(run.num_tokens),
            parameters(run.num_trainable_parameters),
            f"{run.trainable_share:.2%}",
            "" if is_here else f"~{memory(run.estimated_memory_bytes)}",
            "yes" if (run.name, None) in done else "no",
            _scored(run.name, study.tasks_of(run), done),
        )
    return table


def pass_lines(study: StudyRecord) -> list[str]:
    """What is trained together, and the memory that it takes.

    Variants that PEFT trains come one by one; those that are cut in the same way share a line.
    """
    from rankwise.engine.models.variants import shares_a_pass

    variants = {run.name for run in study.of_role("variant")}
    fewer = {run.name for run in study.of_role("fewer_rows")}
    alone = {run.name for run in study.of_role("variant") if not shares_a_pass(run)}
    full = {run.name: run.full for run in study.models if run.full is not None}

    def line_of(numbered: tuple[int, PlannedPass]) -> tuple[int, int, bool]:
        number, planned = numbered
        is_alone = planned.runs[0] in alone
        return 0 if is_alone else number, planned.max_tokens, planned.gradient_checkpointing

    lines: list[str] = []
    for _, group in groupby(enumerate(study.passes, start=1), line_of):
        passes = dict(group)
        (first, planned), last = next(iter(passes.items())), max(passes)
        runs, kept = planned.runs, full.get(planned.runs[0])
        peak = max(each.estimated_memory_bytes for each in passes.values())
        num_variants = len(variants.intersection(runs))
        num_fewer = len(fewer.intersection(runs))
        among = f" (variants: {num_variants})" if num_variants else ""
        among += f" (on fewer rows: {num_fewer})" if num_fewer else ""
        what = f"{len(runs)} adapters together{among}" if len(runs) > 1 else ", ".join(runs)
        parts = [
            what if len(passes) == 1 else f"{len(passes)} variants",
            *(["each alone, through PEFT"] if planned.runs[0] in alone else []),
            *([] if kept is None else [f"{kept.weights} weights, {kept.optimizer}"]),
            f"micro-batches of up to {planned.max_tokens} tokens",
            *(["gradient checkpointing"] if planned.gradient_checkpointing else []),
            f"~{memory(peak)}",
        ]
        number = f"pass {first}" if len(passes) == 1 else f"passes {first} to {last}"
        lines.append(f"{number}: {', '.join(parts)}")
    return lines


def _scored(model: str, tasks: Sequence[str], done: Done) -> str:
    return f"{sum((model, task) in done for task in tasks)}/{len(tasks)}"


def status_table(lines: Sequence[ModelStatus], study: StudyRecord) -> Table:
    """Progress of a study: a row for each model; of many models, those with something left."""
    table = Table(box=None, pad_edge=False)
    columns = ("model", "training", "steps", "scored on", "left")
    _add_columns(table, columns, words={*columns})
    names = short_names(study)
    shown = sorted(lines, key=is_done)[:_MOST_MODELS]
    for line in (line for line in lines if line in shown):
        num_tasks = len(line.tasks_scored) + len(line.tasks_left)
        table.add_row(
            names.get(line.model, line.model),
            line.training,
            f"{line.num_steps_done}/{line.num_steps}" if line.num_steps else "",
            f"{len(line.tasks_scored)} of {num_tasks} tasks",
            ", ".join(line.left) or "nothing",
        )
    hidden = [line for line in lines if line not in shown]
    if hidden:
        num_left = sum(not is_done(line) for line in hidden)
        table.add_row(f"and {len(hidden)} more", "", "", "", f"something in {num_left}")
    return table


def is_done(line: ModelStatus) -> bool:
    """Whether nothing of a model is left."""
    return not line.left and line.training not in ("started", "not started")


def short_names(study: StudyRecord) -> dict[str, str]:
    """What tells each model from the others, or all names as they are where that is not enough."""
    labels = seeded_labels(study.models)
    if len({run.train_task for run in study.models}) > 1 or len({*labels.values()}) < len(labels):
        return {run.name: run.name for run in study.models}
    return labels


def verdict_cards(
    results: StudyResults,
    recommendation: StudyRecommendation,
    findings: StudyFindings,
    folder: str | Path | None,
) -> Iterator[RenderableType]:
    """The card of each trained task, in at most 12 lines of 80 characters.

    Args:
        results: a study.
        recommendation: made from it.
        findings: made from both.
        folder: the study's, for the next command; None: it is nowhere.
    """
    from rankwise.report.cells import measures
    from rankwise.report.sections.card import card_table

    cards = {card.train_task: card for card in findings.cards}
    cost = StudyCost.of(results)
    for part in recommendation.by_train_task:
        if len(recommendation.by_train_task) > 1:
            yield Text(f"Trained on {part.train_task}", style="bold underline")
        if part.train_task not in cards:
            yield Text(with_folder(part.statement, folder), style="bold")
            continue
        card = cards[part.train_task]
        yield Text(card.headline, style="bold")
        # with an arrow to its choice
        shown, table = card_table(card, part, results), Table(box=None, pad_edge=False)
        for heading in shown.headings:
            table.add_column(heading.title.lower().replace(" in ", " in\n"), overflow="fold")
        table.add_column("")
        for row in (row for group in shown.groups for row in group.rows):
            arrow = f"<- {row[0].note}" if row[0].note else ""
            style = "bold" if row[0].is_marked else None
            table.add_row(*(Text(cell.value) for cell in row), arrow, style=style)
        yield table
        gained_in, kept_in = measures(part)
        units = (
            "" if kept_in == gained_in or not part.retention_tasks else f"; retention in {kept_in}"
        )
        if any(row.num_learned is not None for row in card.rows) and results.study.scores:
            units += "; items learned: right, and wrong in the base; forgotten: the reverse"
        yield Text(f"Score and gain in {gained_in}{units}.")
        yield from map(Text, findings.card_lines(card))
        if folder is not None:
            takes = time_of_next(part, cost)
            about = f" ({takes})" if takes else ""
            yield Text(f"Next: {with_folder(card.command, folder)}{about}")


def as_shown(shown: ReportTable, title: str | None = None) -> Table:
    """A table of the report without groups, for the terminal."""
    table = Table(title=title, caption=Text(shown.caption))
    for heading in shown.headings:
        table.add_column(Text(f"{heading.title}\n{heading.detail}".strip()), overflow="fold")
    for row in shown.groups[0].rows:
        texts = [Text("\n".join(part for part in cell[:3] if part)) for cell in row]
        table.add_row(*texts, style="bold" if row[0].is_marked else None)
    return table


def deployment_table(record: DeploymentCheck) -> Table:
    """A row for each form and task, below the base's and the reference's."""
    confidence = percent(record.confidence)
    table = Table(
        caption=Text(
            f"against the {'adapter as trained' if record.reference == 'adapter' else 'base'}, "
            f"paired over the same items, with intervals of {confidence}; positive is better; "
            f"scored in {record.precision}"
        )
    )
    merged = record.reference == "adapter"
    weights = ("rounding\n/ delta", "entries\nunchanged", "delta\nkept") if merged else ()
    names = ("form", "on disk", "task", "score", "difference", "gained\nlost", *weights, "verdict")
    _add_columns(table, names, words={"form", "task", "verdict"})
    first = record.forms[0]
    blank = [""] * (3 + len(weights))
    for score in first.scores if merged else ():
        base = quantities.score(record.base_scores[score.task], score.unit)
        table.add_row("base", "", score.task, base, *blank)
    for place, score in enumerate(first.scores):
        size = in_words(record.reference_bytes) if place == 0 else ""
        name = ("as trained" if merged else "base") if place == 0 else ""
        own = quantities.score(score.reference_score, score.unit)
        table.add_row(name, size, score.task, own, *blank)
    for form in record.forms:
        verdicts = {mean.tasks[0]: mean.verdict for mean in form.means}
        for place, score in enumerate(form.scores):
            is_first, unit = place == 0, score.unit
            change = score.difference
            bounds = quantities.change_interval(change.lower, change.upper, unit)
            flipped = [
                NOT_MEASURED if n is None else count(len(n)) for n in (score.gained, score.lost)
            ]
            cells, delta = ["" for _ in weights], form.delta if is_first else None
            if merged and delta is not None:
                kept = quantities.share(max(delta.kept_share, 0.0))
                unchanged = quantities.share(delta.unchanged_share)
                cells = [quantities.ratio(delta.relative_error), unchanged, kept]
            table.add_row(
                form.form if is_first else "",
                in_words(form.num_bytes) if is_first else "",
                score.task,
                quantities.score(score.form_score, unit),
                f"{quantities.change(change.estimate, unit)} ({bounds})",
                "\n".join(flipped),
                *cells,
                verdicts.get(score.task, "").replace("_", " "),
            )
    return table
