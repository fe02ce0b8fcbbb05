"""The attention heads on the page: what changed in them, and what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import get_args

from rankwise.findings.heads import (
    MEASURE_NAMES,
    MODE_NAMES,
    ChangeAndEffect,
    HeadsOfRun,
    TrainTaskHeads,
    ablation,
    is_selected,
)
from rankwise.findings.options import first_of_options
from rankwise.records import quantities
from rankwise.records.grouping import grouped
from rankwise.records.heads import (
    ChangeMeasure,
    HeadChanges,
    HeadMap,
    ShareOf,
    TaskHeadEffects,
)
from rankwise.records.results import ModelResults, StudyResults
from rankwise.report import cells
from rankwise.report.cells import Cell
from rankwise.report.charts.heatmap import (
    MOST_PANELS,
    HeatScale,
    LayerMap,
    layer_maps,
    percent,
    plain,
)
from rankwise.report.parts import (
    Column,
    Figure,
    ReportSection,
    Shown,
    Table,
    file_name,
    shows,
    thinned,
)
from rankwise.report.rows import Row

_STRONGEST = 8


@shows("heads")
def head_section(found: Sequence[TrainTaskHeads], results: StudyResults) -> ReportSection:
    """What was found of each trained task in words, maps and every number.

    Args:
        found: at least one.
        results: of the study, for what single heads say.
    """
    about = [
        "Heads are compared with the base's on the same in-domain prompts. What a head matters is "
        "found by ablating heads one at a time (rankwise heads). "
        "Exploratory: the recommendation does not rest on it."
    ]
    if any(model.head_effects for model in results.runs):
        about.append(
            "What heads do is of one run and conditional on its seed: with another seed other "
            "heads may do it."
        )
    about += cells.of_one_seed(found[0].num_seeds)

    def shown(part: TrainTaskHeads) -> Iterator[Shown]:
        yield from (f"{run}: {reason}" for run, reason in part.not_analysed.items())
        models = {model.name: model for model in results.of(part.train_task).runs}
        changed = {
            run.run: changes
            for run in first_of_options(part.runs)
            if (changes := models[run.run].head_changes) is not None and changes.changes
        }
        if changed:
            yield _by_run(part, changed)
            adapters = [run.run for run in part.runs if run.option.rank is not None]
            shown = [name for name in changed if name in adapters] or list(changed)
            yield _by_measure(part.labels[shown[-1]], changed[shown[-1]])
        for model in models.values():
            by_mode = grouped((its.mode, its) for its in model.head_effects)
            for own in by_mode.values():
                yield _with_effects(model, part.labels[model.name], own)
        yield Table.in_files("heads", _heads(models.values()))
        yield "Change of the heads", _change_table(part.runs)
        yield "Change and effect", _matter_table(part.matters)
        for model in models.values():
            for effects in model.head_effects:
                done, label = MODE_NAMES[effects.mode], part.labels[model.name]
                yield (
                    f"Heads {done}, {label} on {effects.task}",
                    (effect_table(effects).behind(run=model.name)),
                )

    return ReportSection.of("heads", "Attention heads", about, found, shown)


def _heads(models: Iterable[ModelResults]) -> Iterator[Row]:
    """Every head of some runs."""
    for model in models:
        changes = model.head_changes
        if changes is None or not changes.changes:
            continue
        maps: dict[str, HeadMap | None] = {
            "base_entropy_nats": changes.base_entropy,
            "base_first_token_mass": changes.base_first_token_mass,
        }
        for change in changes.changes:
            name = f"{change.measure}_change"
            maps[name] = change.values
            maps |= {f"{name}_half_{part}": half for part, half in enumerate(change.halves, 1)}
        for of in get_args(ShareOf):
            share = changes.share(of)
            maps[f"delta_share_{of}"] = share and share.values
        for layer, heads in enumerate(changes.base_entropy):
            for head in range(len(heads)):
                values = {name: its and its[layer][head] for name, its in maps.items()}
                yield {"run": model.name, "layer": layer, "head": head, **values}


def _change_table(runs: Sequence[HeadsOfRun]) -> Table:
    """One row for each run; shares of delta are of attention's, other matrices left aside."""
    measures = {run.run: {part.measure: part for part in run.measures} for run in runs}

    def mean(measure: ChangeMeasure, spec: str, scale: float = 1.0) -> Callable[[HeadsOfRun], str]:
        return lambda run: format(scale * measures[run.run][measure].mean, spec)

    def in_percent(share: float) -> str:
        return f"{100 * share:.0f}"

    def like(which: str) -> Callable[[HeadsOfRun], Cell]:
        return lambda run: cells.correlation(getattr(measures[run.run]["output"], which))

    return Table.of(
        "Means of absolute changes over all heads. Attention's delta is that of q, k, v and output "
        "projections. The last two are Spearman's correlations of the "
        "outputs' changes over heads: with full fine-tuning's, and of two halves of the prompts, "
        "which is the control.",
        runs,
        Column("label", "Model"),
        Column(mean("output", ".3g", 100), "Output", "% of its size"),
        Column(mean("divergence", ".2g"), "Divergence", "nats"),
        Column(mean("entropy", ".2g"), "Entropy", "nats"),
        Column(mean("first_token_mass", ".2g", 100), "First token", "% of the mass"),
        Column("top_share", "Top tenth", "% of attention's ‖delta‖²", in_percent),
        Column(like("like_full"), "Like full", "ρ over heads"),
        Column(like("agreement"), "Like itself", "ρ of two halves"),
    )


def _matter_table(found: Sequence[ChangeAndEffect]) -> Table:
    """Every measure of change against the size of the effect, for each run, task and mode."""

    def correlation(found: ChangeAndEffect) -> Cell:
        return cells.correlation(found.correlation, found.reason)

    pairs = grouped(((each.run, each.task, each.mode, each.measure), each) for each in found)
    return Table.of(
        "Do the heads that changed most matter most? Spearman's ρ over heads of the absolute "
        "change with the absolute effect on the right answer's log-probability, and with what of "
        "the effect is beyond that of the same ablation on the base.",
        pairs.values(),
        Column(lambda row: quantities.capital(MEASURE_NAMES[row[0].measure]), "Change"),
        Column("0", "Size of the effect", write=correlation),
        Column("1", "Less the base's", write=correlation),
        Column("0.num_heads", "Heads"),
        by=lambda row: (f"{row[0].label}, {row[0].task}", f"heads {MODE_NAMES[row[0].mode]}"),
    )


def effect_table(effects: TaskHeadEffects) -> Table:
    """The heads of one run that do most on one task; in the terminal too."""
    scores = {(head.layer, head.head): head.effect for head in effects.scores}
    shown, on_metric = (
        sum(head.effect.sign() != 0 for head in heads)
        for heads in (effects.answers, effects.scores)
    )
    done, confidence = MODE_NAMES[effects.mode], quantities.percent(effects.confidence)
    bounds = f"Bounds hold for all heads at once at {confidence}, for items that are independent."
    if is_selected(effects):
        bounds = (
            f"Bounds hold for all {quantities.count(effects.num_candidates)} candidate heads at "
            f"once, also those that were screened out, at {confidence}, for items that are "
            "independent."
        )
    caption = [
        f"{quantities.counted(len(effects.answers), 'head')} {done} one after another on "
        f"{quantities.counted(effects.num_items, 'item')}; the strongest are listed, an effect on "
        f"the right answer's log-probability is shown of {shown}, on {effects.metric} of "
        f"{on_metric}.",
        ablation(effects.mode),
        bounds,
        "On the base: the same ablation.",
    ]
    if effects.screen is not None:
        rho = effects.screen.rank_correlation
        words = "" if rho is None else quantities.correlation(rho)
        exact = words and f": rank correlation with the exact effects {words} over those scored"
        caption.append(f"Screened by gradient{exact}.")
    strongest = sorted(effects.answers, key=lambda head: -abs(head.effect.estimate))[:_STRONGEST]
    return Table.of(
        " ".join(caption),
        strongest,
        Column(lambda head: f"layer {head.layer}, head {head.head}", "Head"),
        Column("effect", "Effect", "nats", "+.3f"),
        Column("effect.p_value", "p", "Holm", quantities.p_value),
        Column("control", "On the base", "nats", "+.3f"),
        Column("beyond_control", "Beyond it", "nats", "+.3f"),
        Column(
            lambda head: cells.formatted(scores[head.layer, head.head], "+.1f"),
            quantities.capital(effects.metric),
            effects.unit,
        ),
        file="head-effects",
        records=[
            ({"mode": effects.mode, "task": effects.task}, head, {"unit": unit})
            for heads, unit in ((effects.scores, effects.unit), (effects.answers, "answer_nats"))
            for head in heads
        ],
    )


# The title of a measure's map, what it is in words, how its numbers are written, and whether
# they have a sign.
_MEASURES: dict[ChangeMeasure, tuple[str, str, Callable[[float], str], bool]] = {
    "entropy": ("Entropy, nats", "signed change of the entropy of the attention", plain, True),
    "divergence": (
        "Divergence, nats",
        "Jensen-Shannon divergence of the attention from the base's (at most 0.69)",
        plain,
        False,
    ),
    "first_token_mass": (
        "First token, %",
        "signed change of the mass on the first token",
        percent,
        True,
    ),
    "output": ("Output, %", "relative change of the output", percent, False),
}


def _by_run(found: TrainTaskHeads, changed: Mapping[str, HeadChanges]) -> Figure:
    """How far the heads' outputs moved, run by run."""
    maps = {
        found.labels[name]: _places(output.values)
        for name, changes in changed.items()
        if (output := changes.change("output")) is not None
    }
    kept = thinned(list(maps), MOST_PANELS)
    scale = HeatScale.of([value for label in kept for value in maps[label].values()], percent)
    caption = (
        "‖change‖ / ‖output‖ of every head before the output projection, base against adapted on "
        "the same prompts."
    )
    if len(found.runs) > len(maps):
        caption += " Of each setting it is the first seed."
    if len(kept) < len(maps):
        caption += f" {len(kept)} of {len(maps)} settings are drawn; heads.csv has them all."
    return Figure(
        "map-output",
        "Change of the heads' outputs",
        caption,
        layer_maps([LayerMap(label, maps[label], scale) for label in kept], names_largest=True),
        "% of their size; rows are layers, columns heads",
    )


def _by_measure(label: str, changes: HeadChanges) -> Figure:
    """Everything that was measured on one run's heads."""
    maps = [
        _map(title, _places(change.values), write, is_signed=is_signed)
        for change in changes.changes
        for title, _, write, is_signed in [_MEASURES[change.measure]]
    ]
    words = quantities.listed([_MEASURES[change.measure][1] for change in changes.changes])
    return Figure(
        "map-attention",
        f"Attention of the heads, {label}",
        f"{quantities.capital(words)}; means over queries behind the first.",
        layer_maps(maps, names_largest=True),
        "adapted less base; rows are layers, columns heads",
    )


def _with_effects(model: ModelResults, label: str, effects: Sequence[TaskHeadEffects]) -> Figure:
    """What changed in a run's heads, and what ablating each of them does on each task."""
    mode = effects[0].mode
    done = MODE_NAMES[mode]
    output = None if model.head_changes is None else model.head_changes.change("output")
    maps = [_map("Change of the output, %", _places(output.values), percent)] if output else []
    for each in effects:
        places = {(head.layer, str(head.head)): head.effect.estimate for head in each.answers}
        maps.append(_map(f"{each.task}, nats", places, plain, is_signed=True))
    left = "First, how far training has moved a head's output; then what" if output else "What"
    return Figure(
        file_name(f"map-effects-{model.name}-{mode}"),
        f"{'Change and effect' if output else 'Effect'} of heads {done}, {label}",
        f"{left} happens to the mean log-probability of the right answer when the head alone "
        f"is {done}: negative where the head is needed, positive where it stands in the way. "
        f"{ablation(mode)}",
        layer_maps(maps, names_largest=True),
        f"each head {done}, one at a time; rows are layers, columns heads",
    )


def _places(values: HeadMap) -> dict[tuple[int, str], float]:
    return {
        (layer, str(head)): value
        for layer, row in enumerate(values)
        for head, value in enumerate(row)
    }


def _map(
    title: str,
    values: Mapping[tuple[int, str], float],
    words: Callable[[float], str],
    *,
    is_signed: bool = False,
) -> LayerMap:
    """A map with a scale of its own."""
    return LayerMap(title, values, HeatScale.of(list(values.values()), words, is_signed=is_signed))
