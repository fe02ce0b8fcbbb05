"""Tables and sentences for the terminal; the same numbers and formats as the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
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
from rankwise.records.quantities import count, memory, parameters
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedPass, PlannedRun, StudyRecord
from rankwise.report.parts import Column
from rankwise.report.parts import Table as ReportTable
from rankwise.study.status import ModelStatus

Done = Set[tuple[str, str | None]]


_MOST_MODELS = 10
"""The most models in the table of a status; ``--json`` has all."""


def plan_table(study: StudyRecord, done: Done) -> Table:
    """What a study will do: one row per model.

    Args:
        study: the planned study.
        done: finished (model, task) pairs; task None is the training.
    """
    config = study.config

    def name(run: PlannedRun | None) -> str:
        if run is None:
            return "base"
        rows = f", {quantities.counted(run.num_examples, 'row')}"
        return f"{run.name}{rows if run.role == 'fewer_rows' else ''}"

    def trained(write: Callable[[PlannedRun], str]) -> Callable[[PlannedRun | None], str | None]:
        return lambda run: None if run is None or run.role == "imported" else write(run)

    def steps(run: PlannedRun | None) -> str | None:
        return run and ("imported" if run.role == "imported" else str(run.num_steps))

    def scored(run: PlannedRun | None) -> str:
        model, tasks = "base", study.scored_tasks()
        if run is not None:
            model, tasks = run.name, study.tasks_of(run)
        return f"{sum((model, task) in done for task in tasks)}/{len(tasks)}"

    of_runs = ReportTable.of(
        "",
        (None, *study.models),
        Column(name, "run"),
        Column(steps, "steps"),
        Column(trained(lambda run: count(run.num_read_tokens)), "tokens"),
        Column("num_trainable_parameters", "trainable", write=parameters),
        Column("trainable_share", "of full", write=".2%"),
        Column(trained(lambda run: f"~{memory(run.estimated_memory_bytes)}"), "memory"),
        Column(lambda run: run and (run.name, None) in done, "trained"),
        Column(scored, "scored"),
    )
    return as_shown(of_runs, f"{config.name} on {config.base_model.name}{config.start_in_words}")


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


def status_table(lines: Sequence[ModelStatus], study: StudyRecord) -> Table:
    """Progress of a study: a row for each model; of many models, those with something left."""
    names = short_names(study)
    first = sorted(lines, key=is_done)[:_MOST_MODELS]
    hidden = [line for line in lines if line not in first]

    def steps(line: ModelStatus) -> str:
        return f"{line.num_steps_done}/{line.num_steps}" if line.num_steps else ""

    def scored(line: ModelStatus) -> str:
        num_tasks = len(line.tasks_scored) + len(line.tasks_left)
        return f"{len(line.tasks_scored)} of {num_tasks} tasks"

    def texts(line: ModelStatus) -> str:
        if line.tokens_per_text is None:
            return ""
        length = f"{line.tokens_per_text:.0f} tokens"
        if line.reward is None:
            return length
        return f"reward {quantities.formatted(line.reward, '.3g')}, {length}"

    shown = ReportTable.of(
        "",
        [line for line in lines if line in first],
        Column(lambda line: names.get(line.model, line.model), "model"),
        Column("training", "training"),
        Column(steps, "steps", is_text=True),
        *([Column(texts, "newest texts", is_text=True)] if any(map(texts, lines)) else []),
        Column(scored, "scored on", is_text=True),
        Column(lambda line: ", ".join(line.left) or "nothing", "left", is_text=True),
    )
    if hidden:
        num_left = sum(not is_done(line) for line in hidden)
        shown = shown.and_more(len(hidden), f"something in {num_left}")
    return as_shown(shown, is_plain=True)


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


def as_shown(shown: ReportTable, title: str | None = None, *, is_plain: bool = False) -> Table:
    """A table of the report without groups, for the terminal; a plain one has no frame."""
    table = Table(title=title, caption=Text(shown.caption))
    if is_plain:
        table.box, table.pad_edge = None, False
    for place, (heading, detail) in enumerate(shown.headings):
        justify = "left" if place in shown.texts else "right"
        table.add_column(Text(f"{heading}\n{detail}".strip()), justify=justify, overflow="fold")
    for row in (row for group in shown.groups for row in group.rows):
        texts = [Text("\n".join(part for part in cell[:3] if part)) for cell in row]
        table.add_row(*texts, style="bold" if row[0].is_marked else None)
    return table
