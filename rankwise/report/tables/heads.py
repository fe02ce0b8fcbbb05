"""The heads in numbers: how much they changed, what they do, and what was repaired."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from rankwise.records.heads import HeadEstimate, HeadRepair, ShareOf, TaskHeadEffects
from rankwise.records.results import StudyResults
from rankwise.report.parts import EMPTY, Cell, Heading, RowGroup, Table
from rankwise.report.summaries import correlation_cell

_STRONGEST = 8


def change_table(found: TrainTaskHeads) -> Table:
    """One row for each run; shares of delta are of attention's, other matrices left aside."""
    headings = (
        Heading("Model"),
        Heading("Output", "% of its size"),
        Heading("Divergence", "nats"),
        Heading("Entropy", "nats"),
        Heading("First token", "% of the mass"),
        Heading("Top tenth", "% of attention's ‖delta‖²"),
        Heading("Like full", "ρ over heads"),
        Heading("Like itself", "ρ of two halves"),
    )
    rows = tuple(_change_cells(run) for run in found.runs)
    caption = (
        "Means of absolute changes over all heads. Attention's delta is that of q, k, v and output "
        "projections. The last two are Spearman's correlations of the "
        "outputs' changes over heads: with full fine-tuning's, and of two halves of the prompts, "
        "which is the control."
    )
    return Table(caption, headings, (RowGroup("", "", rows),))


def _change_cells(run: HeadsOfRun) -> tuple[Cell, ...]:
    by_measure = {measured.measure: measured for measured in run.measures}
    output = by_measure["output"]
    return (
        Cell(run.label),
        Cell(f"{100 * output.mean:.3g}"),
        Cell(f"{by_measure['divergence'].mean:.2g}"),
        Cell(f"{by_measure['entropy'].mean:.2g}"),
        Cell(f"{100 * by_measure['first_token_mass'].mean:.2g}"),
        EMPTY if run.top_share is None else Cell(f"{100 * run.top_share:.0f}"),
        correlation_cell(output.like_full),
        correlation_cell(output.agreement),
    )


def matter_table(found: Sequence[ChangeAndEffect]) -> Table:
    """Every measure of change against the size of the effect, for each run, task and mode."""
    headings = (
        Heading("Change"),
        Heading("Size of the effect"),
        Heading("Less the base's"),
        Heading("Heads"),
    )
    groups: dict[tuple[str, str, str, str], dict[str, list[ChangeAndEffect]]] = {}
    for part in found:
        done = mode_name(part.mode, keys_and_values=part.keys_and_values)
        key = part.run, part.label, part.task, done
        groups.setdefault(key, {}).setdefault(part.measure, []).append(part)
    rows = tuple(
        RowGroup(
            f"{label}, {task}",
            f"heads {mode}",
            tuple(_matter_cells(own) for own in by_measure.values()),
        )
        for (_, label, task, mode), by_measure in groups.items()
    )
    caption = (
        "Do the heads that changed most matter most? Spearman's ρ over heads of the absolute "
        "change with the absolute effect on the right answer's log-probability, and with what of "
        "the effect is beyond that of the same intervention on the base."
    )
    return Table(caption, headings, rows)


def _matter_cells(found: Sequence[ChangeAndEffect]) -> tuple[Cell, ...]:
    by_kind = {part.is_beyond_control: part for part in found}
    whole = by_kind[False]
    beyond = by_kind.get(True)
    return (
        Cell(quantities.capital(MEASURE_NAMES[whole.measure])),
        correlation_cell(whole.correlation, whole.reason),
        EMPTY if beyond is None else correlation_cell(beyond.correlation, beyond.reason),
        Cell(quantities.count(whole.num_heads)),
    )


def effect_table(effects: TaskHeadEffects) -> Table:
    """The heads of one run that do most on one task."""
    headings = (
        Heading("Head"),
        Heading("Effect", "nats"),
        Heading("p", "Holm"),
        Heading("On the base", "nats"),
        Heading("Beyond it", "nats"),
        Heading(quantities.capital(effects.metric), effects.unit),
    )
    scores = {(head.layer, head.head): head.effect for head in effects.scores}
    strongest = sorted(effects.answers, key=lambda each: -abs(each.effect.estimate))[:_STRONGEST]
    rows = tuple(
        (
            Cell(f"layer {each.layer}, head {each.head}"),
            _estimate_cell(each.effect),
            Cell(quantities.p_value(each.effect.p_value)),
            _estimate_cell(each.control),
            EMPTY if each.beyond_control is None else _estimate_cell(each.beyond_control),
            _estimate_cell(scores[each.layer, each.head], digits=1),
        )
        for each in strongest
    )
    base = (
        "the delta of this head alone"
        if effects.mode == "revert"
        else "the same intervention on the base"
    )
    sentences = (
        _scored_in_words(effects),
        intervention(effects.mode, keys_and_values=effects.keys_and_values),
        _bounds_in_words(effects),
        f"On the base: {base}.",
        *_screen_in_words(effects),
    )
    return Table(" ".join(sentences), headings, (RowGroup("", "", rows),))


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


def repair_table(repair: HeadRepair) -> Table:
    """The repaired adapter on the items that no head was chosen by."""
    headings = (
        Heading("Task"),
        Heading("Base"),
        Heading("Adapter"),
        Heading("Repaired"),
        Heading("Adapter − base", "nats"),
        Heading("Repaired − adapter"),
        Heading("Repaired − adapter", "nats"),
        Heading("Random heads", "nats"),
        Heading("Items"),
    )
    rows = tuple(
        (
            Cell(task.task, "", "in-domain" if task.task in repair.in_domain else ""),
            *(
                Cell(quantities.score(value, task.unit))
                for value in (task.base_score, task.adapted_score, task.repaired_score)
            ),
            _estimate_cell(task.lost_nats),
            _estimate_cell(task.effect, digits=1),
            _estimate_cell(task.effect_nats),
            EMPTY
            if task.random_nats is None
            else Cell(quantities.change(task.random_nats, "nats")),
            Cell(quantities.count(task.num_items)),
        )
        for task in repair.tasks
    )
    heads = ", ".join(f"{layer}.{head}" for layer, head in repair.heads)
    caption = (
        f"Reverted together, layer.head: {heads}. "
        f"{intervention('revert', keys_and_values=repair.keys_and_values)} Chosen on half of the "
        f"items, judged on the others; written to {repair.folder}. Random: the mean over "
        f"{quantities.counted(repair.num_random_sets, 'set')} of as many other heads."
    )
    return Table(caption, headings, (RowGroup("", "", rows),))


def _estimate_cell(found: HeadEstimate, digits: int = 3) -> Cell:
    estimate, lower, upper = (
        quantities.formatted(value, f"+.{digits}f")
        for value in (found.estimate, found.lower, found.upper)
    )
    return Cell(estimate, f"{lower} to {upper}")


def change_rows(results: StudyResults) -> Iterator[dict[str, Any]]:
    """One row for each run and head, for the CSV."""
    for model in results.runs:
        changes = model.head_changes
        if changes is None or not changes.changes:
            continue
        for layer, row in enumerate(changes.base_entropy):
            for head, entropy in enumerate(row):
                found: dict[str, Any] = {
                    "run": model.name,
                    "layer": layer,
                    "head": head,
                    "base_entropy_nats": entropy,
                    "base_first_token_mass": changes.base_first_token_mass[layer][head],
                }
                for change in changes.changes:
                    found[f"{change.measure}_change"] = change.values[layer][head]
                    for half, values in enumerate(change.halves, start=1):
                        found[f"{change.measure}_change_half_{half}"] = values[layer][head]
                for of in get_args(ShareOf):
                    share = changes.share(of)
                    value = None if share is None else share.values[layer][head]
                    found[f"delta_share_{of}"] = value
                yield found


def effect_rows(results: StudyResults) -> Iterator[dict[str, Any]]:
    """One row for each run, mode, task, head and measure, for the CSV."""
    for model in results.runs:
        for effects in model.head_effects:
            for unit, of in ((effects.unit, effects.scores), ("answer_nats", effects.answers)):
                for each in of:
                    row: dict[str, Any] = {
                        "run": model.name,
                        "mode": effects.mode,
                        "keys_and_values": effects.keys_and_values,
                        "task": effects.task,
                        "unit": unit,
                        "layer": each.layer,
                        "head": each.head,
                    }
                    for name in ("effect", "control", "beyond_control"):
                        own: HeadEstimate | None = getattr(each, name)
                        empty = dict.fromkeys(HeadEstimate.model_fields)
                        values = empty if own is None else own.model_dump()
                        row |= {f"{name}_{key}": value for key, value in values.items()}
                    yield row
