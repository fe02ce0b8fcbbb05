"""The attention heads on the page: what changed in them, what they do, and what was repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from rankwise.findings.heads import (
    MEASURE_NAMES,
    ChangeAndEffect,
    HeadsOfRun,
    TrainTaskHeads,
    intervention,
    is_selected,
    mode_name,
    screen_correlation,
)
from rankwise.records import quantities
from rankwise.records.heads import (
    ChangeMeasure,
    HeadEffect,
    HeadEstimate,
    HeadRepair,
    RepairedTask,
    ShareOf,
    TaskHeadEffects,
)
from rankwise.records.results import ModelResults, StudyResults
from rankwise.report import cells
from rankwise.report.parts import (
    Cell,
    Column,
    ReportSection,
    Table,
    TrainedTask,
    grouped_table,
    table,
)
from rankwise.report.sections.head_maps import head_maps

_STRONGEST = 8


def head_section(found: Sequence[TrainTaskHeads], results: StudyResults) -> ReportSection:
    """For each trained task what was found in words, maps and every number.

    Args:
        found: at least one.
        results: of the study, for what single heads say.
    """
    tasks = TrainedTask.each(found)
    models = {
        part.train_task: {model.name: model for model in results.of(part.train_task).runs}
        for part in found
    }
    remarks = [
        "Heads are compared with the base's on the same in-domain prompts. What a head matters is "
        "found by taking it off or its delta out, one head at a time (rankwise heads). "
        "Exploratory: the recommendation does not rest on it."
    ]
    for part, task in tasks:
        remarks += [f"{task.before}{sentence}" for sentence in part.statements]
        remarks += [f"{task.before}{run}: {reason}" for run, reason in part.left_out.items()]
    if any(model.head_effects or model.head_repair for model in results.runs):
        remarks.append(
            "What heads do and what a repair restores is of one run and conditional on its seed: "
            "with another seed other heads may do it."
        )
    if found[0].num_seeds == 1:
        remarks.append("With one seed, all of this is conditional on that seed.")
    files: dict[str, str] = {}
    if any(model.head_changes and model.head_changes.changes for model in results.runs):
        files["heads.csv"] = cells.csv_text(_change_rows(results))
    if any(model.head_effects for model in results.runs):
        files["head-effects.csv"] = cells.csv_text(_effect_rows(results))
    return ReportSection(
        name="heads",
        title="Attention heads",
        remarks=remarks,
        figures=[
            figure
            for part, task in tasks
            for figure in task.figures("heads", head_maps(part, models[task.name]))
        ],
        tables=[
            shown for part, task in tasks for shown in task.tables(_tables(part, models[task.name]))
        ],
        files=files,
    )


def _tables(
    found: TrainTaskHeads, models: Mapping[str, ModelResults]
) -> Iterator[tuple[str, Table]]:
    if found.runs:
        yield "Change of the heads", _change_table(found.runs)
    if found.matters:
        yield "Change and effect", _matter_table(found.matters)
    for model in models.values():
        for effects in model.head_effects:
            done = mode_name(effects.mode, keys_and_values=effects.keys_and_values)
            title = f"Heads {done}, {found.labels[model.name]} on {effects.task}"
            yield title, _effect_table(effects)
    for repair in found.repairs:
        if repair.tasks:
            count = quantities.counted(len(repair.heads), "head")
            yield f"Repair of {repair.model}: {count}", _repair_table(repair)


def _change_table(runs: Sequence[HeadsOfRun]) -> Table:
    """One row for each run; shares of delta are of attention's, other matrices left aside."""
    measures = {run.run: {part.measure: part for part in run.measures} for run in runs}

    def mean(measure: ChangeMeasure, spec: str, scale: float = 1.0) -> Callable[[HeadsOfRun], str]:
        return lambda run: format(scale * measures[run.run][measure].mean, spec)

    def like_full(run: HeadsOfRun) -> Cell:
        return cells.correlation(measures[run.run]["output"].like_full)

    def like_itself(run: HeadsOfRun) -> Cell:
        return cells.correlation(measures[run.run]["output"].agreement)

    def top_share(run: HeadsOfRun) -> str | None:
        return None if run.top_share is None else f"{100 * run.top_share:.0f}"

    columns: list[Column[HeadsOfRun]] = [
        Column("Model", lambda run: run.label),
        Column("Output", mean("output", ".3g", 100), "% of its size"),
        Column("Divergence", mean("divergence", ".2g"), "nats"),
        Column("Entropy", mean("entropy", ".2g"), "nats"),
        Column("First token", mean("first_token_mass", ".2g", 100), "% of the mass"),
        Column("Top tenth", top_share, "% of attention's ‖delta‖²"),
        Column("Like full", like_full, "ρ over heads"),
        Column("Like itself", like_itself, "ρ of two halves"),
    ]
    caption = (
        "Means of absolute changes over all heads. Attention's delta is that of q, k, v and output "
        "projections. The last two are Spearman's correlations of the "
        "outputs' changes over heads: with full fine-tuning's, and of two halves of the prompts, "
        "which is the control."
    )
    return table(caption, columns, runs)


def _matter_table(found: Sequence[ChangeAndEffect]) -> Table:
    """Every measure of change against the size of the effect, for each run, task and mode."""
    groups: dict[tuple[str, str, str, str], dict[str, dict[bool, ChangeAndEffect]]] = {}
    for part in found:
        done = mode_name(part.mode, keys_and_values=part.keys_and_values)
        by_measure = groups.setdefault((part.run, part.label, part.task, done), {})
        by_measure.setdefault(part.measure, {})[part.is_beyond_control] = part

    def beyond(parts: dict[bool, ChangeAndEffect]) -> Cell | None:
        part = parts.get(True)
        return None if part is None else cells.correlation(part.correlation, part.reason)

    columns: list[Column[dict[bool, ChangeAndEffect]]] = [
        Column("Change", lambda parts: quantities.capital(MEASURE_NAMES[parts[False].measure])),
        Column(
            "Size of the effect",
            lambda parts: cells.correlation(parts[False].correlation, parts[False].reason),
        ),
        Column("Less the base's", beyond),
        Column("Heads", lambda parts: cells.count(parts[False].num_heads)),
    ]
    caption = (
        "Do the heads that changed most matter most? Spearman's ρ over heads of the absolute "
        "change with the absolute effect on the right answer's log-probability, and with what of "
        "the effect is beyond that of the same intervention on the base."
    )
    return grouped_table(
        caption,
        columns,
        [
            (f"{label}, {task}", f"heads {done}", by_measure.values())
            for (_, label, task, done), by_measure in groups.items()
        ],
    )


def _effect_table(effects: TaskHeadEffects) -> Table:
    """The heads of one run that do most on one task."""
    scores = {(head.layer, head.head): head.effect for head in effects.scores}
    columns: list[Column[HeadEffect]] = [
        Column("Head", lambda head: f"layer {head.layer}, head {head.head}"),
        Column("Effect", lambda head: cells.formatted(head.effect, "+.3f"), "nats"),
        Column("p", lambda head: quantities.p_value(head.effect.p_value), "Holm"),
        Column("On the base", lambda head: cells.formatted(head.control, "+.3f"), "nats"),
        Column("Beyond it", lambda head: cells.formatted(head.beyond_control, "+.3f"), "nats"),
        Column(
            quantities.capital(effects.metric),
            lambda head: cells.formatted(scores[head.layer, head.head], "+.1f"),
            effects.unit,
        ),
    ]
    base = (
        "the delta of this head alone"
        if effects.mode == "revert"
        else "the same intervention on the base"
    )
    caption = (
        _scored_in_words(effects),
        intervention(effects.mode, keys_and_values=effects.keys_and_values),
        _bounds_in_words(effects),
        f"On the base: {base}.",
        *_screen_in_words(effects),
    )
    strongest = sorted(effects.answers, key=lambda head: -abs(head.effect.estimate))[:_STRONGEST]
    return table(" ".join(caption), columns, strongest)


def _scored_in_words(effects: TaskHeadEffects) -> str:
    shown = sum(head.effect.is_shown for head in effects.answers)
    done = mode_name(effects.mode, keys_and_values=effects.keys_and_values)
    return (
        f"{quantities.counted(len(effects.answers), 'head')} {done} one after another on "
        f"{quantities.counted(effects.num_items, 'item')}; the strongest are listed, an effect on "
        f"the right answer's log-probability is shown of {shown}."
    )


def _bounds_in_words(effects: TaskHeadEffects) -> str:
    confidence = quantities.percent(effects.confidence)
    if not is_selected(effects):
        return f"Bounds hold for all heads at once at {confidence}."
    return (
        f"Bounds hold for all {quantities.count(effects.num_candidates)} candidate heads at once, "
        f"also those that were screened out, at {confidence}."
    )


def _screen_in_words(effects: TaskHeadEffects) -> Iterator[str]:
    if effects.screen is None:
        return
    rho = screen_correlation(effects.screen)
    words = "" if rho is None else (
        f": rank correlation with the exact effects {quantities.correlation(rho)} over those scored"
    )  # fmt: skip
    yield f"Screened by gradient{words}."


def _repair_table(repair: HeadRepair) -> Table:
    """The repaired adapter on the items that no head was chosen by."""

    def name(task: RepairedTask) -> Cell:
        return Cell(task.task, "", "in-domain" if task.task in repair.in_domain else "")

    def random(task: RepairedTask) -> str | None:
        return None if task.random_nats is None else quantities.change(task.random_nats, "nats")

    columns: list[Column[RepairedTask]] = [
        Column("Task", name),
        Column("Base", lambda task: quantities.score(task.base_score, task.unit)),
        Column("Adapter", lambda task: quantities.score(task.adapted_score, task.unit)),
        Column("Repaired", lambda task: quantities.score(task.repaired_score, task.unit)),
        Column("Adapter − base", lambda task: cells.formatted(task.lost_nats, "+.3f"), "nats"),
        Column("Repaired − adapter", lambda task: cells.formatted(task.effect, "+.1f")),
        Column(
            "Repaired − adapter", lambda task: cells.formatted(task.effect_nats, "+.3f"), "nats"
        ),
        Column("Random heads", random, "nats"),
        Column("Items", lambda task: cells.count(task.num_items)),
    ]
    heads = ", ".join(f"{layer}.{head}" for layer, head in repair.heads)
    caption = (
        f"Reverted together, layer.head: {heads}. "
        f"{intervention('revert', keys_and_values=repair.keys_and_values)} Chosen on half of the "
        f"items, judged on the others; written to {repair.folder}. Random: the mean over "
        f"{quantities.counted(repair.num_random_sets, 'set')} of as many other heads."
    )
    return table(caption, columns, repair.tasks)


def _change_rows(results: StudyResults) -> Iterator[dict[str, Any]]:
    """One row for each run and head."""
    for model in results.runs:
        changes = model.head_changes
        if changes is None or not changes.changes:
            continue
        for layer, entropies in enumerate(changes.base_entropy):
            for head, entropy in enumerate(entropies):
                row: dict[str, Any] = {
                    "run": model.name,
                    "layer": layer,
                    "head": head,
                    "base_entropy_nats": entropy,
                    "base_first_token_mass": changes.base_first_token_mass[layer][head],
                }
                for change in changes.changes:
                    row[f"{change.measure}_change"] = change.values[layer][head]
                    for half, values in enumerate(change.halves, start=1):
                        row[f"{change.measure}_change_half_{half}"] = values[layer][head]
                for of in get_args(ShareOf):
                    share = changes.share(of)
                    row[f"delta_share_{of}"] = None if share is None else share.values[layer][head]
                yield row


def _effect_rows(results: StudyResults) -> Iterator[dict[str, Any]]:
    """One row for each run, mode, task, head and measure."""
    empty = dict.fromkeys(HeadEstimate.model_fields)
    for model in results.runs:
        for effects in model.head_effects:
            heads = [(effects.unit, head) for head in effects.scores]
            heads += [("answer_nats", head) for head in effects.answers]
            for unit, head in heads:
                row: dict[str, Any] = {
                    "run": model.name,
                    "mode": effects.mode,
                    "keys_and_values": effects.keys_and_values,
                    "task": effects.task,
                    "unit": unit,
                    "layer": head.layer,
                    "head": head.head,
                }
                for name in ("effect", "control", "beyond_control"):
                    estimate: HeadEstimate | None = getattr(head, name)
                    values = empty if estimate is None else estimate.model_dump()
                    row |= {f"{name}_{key}": value for key, value in values.items()}
                yield row
