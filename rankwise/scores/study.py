"""From scores to a study: the records that the verdict, the report and exports are made from."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.errors import ConfigError, DataError, did_you_mean
from rankwise.records import quantities
from rankwise.records.axes import run_labels
from rankwise.records.clusters import cluster_fields
from rankwise.records.config.study import StudyConfig
from rankwise.records.fields import MOST_ENTRIES, plain_text
from rankwise.records.fingerprints import fingerprint, scoring_fingerprint, study_fingerprint
from rankwise.records.folder import BASE
from rankwise.records.grouping import grouped
from rankwise.records.json_reading import whole_characters
from rankwise.records.lm_eval_samples import HIGHER_IS_BETTER, LINE_FIELDS, LOWER_IS_BETTER
from rankwise.records.p_right import Line
from rankwise.records.provenance import collect_provenance
from rankwise.records.reading import in_clusters_of, judged_lines, linked
from rankwise.records.results import MIN_ITEMS, ModelResults, StudyResults
from rankwise.records.study import (
    MetricScore,
    PlannedRun,
    Relation,
    RunRecord,
    ScoreTables,
    StudyRecord,
    TaskEvaluation,
    Unit,
)
from rankwise.records.study_file import validated
from rankwise.records.yaml_reading import shown
from rankwise.scores.asked import Asked
from rankwise.scores.models import BASE_NAMES, Given, Item, TableModel, TableScores, with_names_read

_LOSS = re.compile(r"(?:^|[^a-z])(?:loss|nll|cross_entropy)(?:[^a-z]|$)", re.I)
"""In the names of columns that are a loss in nats per token: eval_loss, nll_per_token."""

_LESS = re.compile(
    r"(?:^|[^a-z])(?:ppl|perplexity|error|errors|[wct]er|r?mse|mae)(?:[^a-z]|$)", re.I
)
"""In the names of other columns of which less is better, beside lm-eval's metrics."""

_MORE = re.compile(r"(?:^|[^a-z])(?:rewards?|scores?|ratings?|accuracy|correct)(?:[^a-z]|$)", re.I)
"""In the names of columns of which more is better, beside lm-eval's metrics."""

NOT_SAID = "not said"
"""Written for a setting that no table has; all models may share it."""

_NOTHING_LOGGED: Mapping[str, Any] = {"target": "", "arguments": {}, "filtered_resps": [""]}
"""What a line has where an answer's texts were not logged."""

MOST_MODELS, MOST_OPTIONS = 1_000, 300
"""Each option is compared with each other one: 300 take a minute and half a gigabyte."""

MOST_MISSING = 0.05
"""A larger share of items that a model has no score on is said in the headline."""

_PERCENT_FROM = 20.0
"""Where other models score at most 1, a score this large is read as percent."""


class ScoredStudy(NamedTuple):
    """A study that trained and scored nothing: its records, and the items that they stand on.

    ``evaluations`` are those of the base, under ``BASE``, and of each run, with the lines that they
    were made from.
    """

    record: StudyRecord
    runs: tuple[RunRecord, ...]
    evaluations: Mapping[str, Mapping[str, tuple[TaskEvaluation, Sequence[Line]]]]

    def results(self) -> StudyResults:
        """The results that a folder with these records would be read back as.

        Raises:
            TaskError: items have no such field to be clustered by.
        """
        base = self._model(None)
        models = in_clusters_of(base, map(self._model, self.runs))
        return StudyResults(study=self.record, base=base, models=models)

    def _model(self, run: RunRecord | None) -> ModelResults:
        name = BASE if run is None else run.planned.name
        config = self.record.config.evaluation
        fields = cluster_fields(config.clusters, self.record)
        judged = {
            task: judged_lines(
                record, lines, config.metric_of(task), fields.get(task), config.slice
            )
            for task, (record, lines) in self.evaluations[name].items()
        }
        judged = linked(judged) if run is None else judged
        return ModelResults.of(name, run, judged)


def scored_study(given: Given, asked: Asked, name: str) -> ScoredStudy:
    """The study that the scores are of.

    Models are paired on the items that all of them have. Without a base, the mean of the models
    stands in its place: leads of one model over another are the same from there.

    Args:
        given: what was read.
        asked: how it is judged.
        name: of the study.

    Raises:
        ConfigError: a base, a task or a pattern that does not fit.
        DataError: scores of two units, too few items, models that nothing tells apart, or a name
            with a control character.
    """
    asked.check()
    _check_names(given)
    _refuse_many(len({scoring.task for scoring in given.scorings}), MOST_ENTRIES, "tasks")
    _refuse_many(len({scoring.model for scoring in given.scorings}), MOST_MODELS, "models")
    relations = _relations(given, asked)
    base, models, notes = _models(given, asked)
    tasks = [task for names in relations.values() for task in names]
    by_task = {task: _on_common_items(given, asked, task, base, models) for task in tasks}
    _check_fields(asked, by_task)
    units: dict[str, Unit] = {task: _unit(task, by_task[task].scorings) for task in tasks}
    _check_units(relations, units)
    runs = _planned(models, by_task, quantities.listed(relations["in_domain"]))
    num_options = len({*run_labels([*runs.values()]).values()})
    _refuse_many(num_options, MOST_OPTIONS, "settings, whatever their seeds,")
    notes = (*given.notes, *notes, *(note for each in by_task.values() for note in each.notes))
    deciding = [task for task in relations["in_domain"] if units[task] == "units"]
    if relations["in_domain"][0] in deciding and asked.delta is None:
        delta = _default_delta([by_task[task] for task in deciding])
        asked = asked._replace(delta=delta)
        notes += (
            f"--delta is {delta:.4g}, a tenth of the standard deviation of the "
            f"{'base' if base else 'mean'}'s items: nobody said which difference matters",
        )
    notes += tuple(_assumed(asked, by_task, units))
    record = _record(given, asked, name, relations, base, units, by_task, [*runs.values()], notes)
    evaluations: dict[str, dict[str, tuple[TaskEvaluation, Sequence[Line]]]] = {}
    for task, paired in by_task.items():
        for model, scoring in paired.scorings.items():
            run = None if model is None else runs[model]
            lines = [
                {"doc_id": number, **_NOTHING_LOGGED, **scoring.items[item].line}
                for item, number in paired.numbers.items()
            ]
            made = _evaluation(record, run, scoring, lines, units[task], asked)
            evaluations.setdefault(made.model, {})[task] = made, lines
    records = tuple(
        RunRecord.of(run, record.provenance, update_is_zero=False) for run in runs.values()
    )
    return ScoredStudy(record, records, evaluations)


def _refuse_many(number: int, most: int, what: str) -> None:
    if number > most:
        raise DataError(f"{number:,} {what} are scored; {most:,} can be judged. Leave some out.")


def _check_names(given: Given) -> None:
    """Refuse names that cannot stand in a table: empty, hidden characters, thousands of letters.

    Nor can a metric be called as another field of its items.
    """
    for scoring in given.scorings:
        for kind in ("model", "task", "metric", "filter"):
            name = scoring.model.name if kind == "model" else getattr(scoring, kind)
            try:
                if len(name) > quantities.LONGEST_NAME:
                    most = quantities.LONGEST_NAME
                    raise ValueError(f"{shown(name)} has {len(name):,} letters; {most} at most")
                if kind == "metric" and name in LINE_FIELDS:
                    raise ValueError(f"{name!r} is a field of every item; rename the scores")
                plain_text(name)
            except ValueError as error:
                where = next((item.place for item in scoring.items.values()), "the scores")
                raise DataError(f"{where}: {kind}: {error}.") from error


def _check_fields(asked: Asked, by_task: Mapping[str, _Paired]) -> None:
    """Refuse a field to group items by that some model's items lack or have otherwise."""
    for option, field in (("--slice", asked.slice), ("--cluster", asked.cluster)):
        if field is None:
            continue
        bases = [paired.scorings[None].items.values() for paired in by_task.values()]
        documents = [item.line.get("doc") for its in bases for item in its]
        fields = [document for document in documents if isinstance(document, Mapping)]
        known = sorted({name for document in fields for name in document})
        if field not in known:
            hint = did_you_mean(field, known) or f"there is {quantities.listed(known) or 'none'}"
            problem = f"{option}: no {field!r} describes an item alike in all models; {hint}"
            raise ConfigError("verdict", [problem])


def _relations(given: Given, asked: Asked) -> dict[Relation, tuple[str, ...]]:
    """Every relation with its tasks; what is named in none is in-domain unless others are."""
    there = list(dict.fromkeys(scoring.task for scoring in given.scorings))
    problems: list[str] = []
    relations = dict(asked.relations)
    for relation, names in relations.items():
        for task in names:
            if task not in there:
                hint = did_you_mean(task, there) or f"there are {quantities.listed(there)}"
                option = f"--{relation.replace('_', '-')}"
                problems.append(f"{option}: no task {task!r} is scored; {hint}")
    if not relations["in_domain"]:
        named = {task for names in relations.values() for task in names}
        relations["in_domain"] = tuple(task for task in there if task not in named)
    if not relations["in_domain"] and not problems:
        problems.append("no task is left that is in-domain; name one with --in-domain")
    if problems:
        raise ConfigError("verdict", problems)
    return relations


def _models(
    given: Given, asked: Asked
) -> tuple[str | None, dict[TableModel, TableModel], tuple[str, ...]]:
    """The base's name, and each other model with what is known of it."""
    found = list(dict.fromkeys(scoring.model for scoring in given.scorings))
    names = list(dict.fromkeys(model.name for model in found))
    base = asked.base or given.base
    if asked.base is not None and asked.base not in names:
        hint = did_you_mean(asked.base, names) or f"there are {quantities.listed(names)}"
        raise ConfigError("verdict", [f"--base: no model {asked.base!r}; {hint}"])
    if base is None:
        of_rank_zero = (model.name for model in found if model.rank == 0)
        called = (name for name in names if name.lower() in BASE_NAMES)
        base = next(itertools.chain(called, of_rank_zero), None)
    others = [model for model in found if model.name != base]
    if not others:
        raise DataError(f"{base} is the only model; nothing is there to compare with it.")
    read, notes = with_names_read(others, asked.name, base)
    read = dict(sorted(read.items(), key=lambda pair: _order(pair[1])))
    _refuse_alike(list(read.values()))
    if base is None:
        if len(others) < 2:
            raise DataError(
                f"{others[0].name} is the only model; nothing is there to compare with."
            )
        needs_base = {"--retention": asked.retention, "--out-of-domain": asked.out_of_domain}
        problems = [
            f"{option}: what is kept or transferred is a change from a base; name it with --base"
            for option, tasks in needs_base.items()
            if tasks
        ]
        if problems:
            raise ConfigError("verdict", problems)
    return base, read, notes


def _order(model: TableModel) -> tuple[bool, int, float, float, int]:
    """The order by rank, and behind what has none; by alpha, rate and seed; else as they stand."""
    settings = model.rank or 0, model.alpha or 0.0, model.learning_rate or 0.0
    return (not model.rank, *settings, model.seed or 0)


def _refuse_alike(models: Sequence[TableModel]) -> None:
    """Refuse models that would have one label and one seed."""
    has_ranks = any(model.rank for model in models)

    def identity_of(model: TableModel) -> tuple[object, ...]:
        is_setting = model.rank or (has_ranks and model.is_full)
        return model._replace(name="") if is_setting else (model.name, model.seed)

    for same in grouped((identity_of(model), model) for model in models).values():
        if len(same) == 1:
            continue
        first = same[0]
        if not has_ranks:
            raise DataError(
                f"{len(same)} models are called {first.name!r} and have one seed; give them names "
                "of their own, or a column of the seed."
            )
        raise DataError(
            f"{quantities.listed([model.name for model in same])} are all "
            f"{f'rank {first.rank}' if first.rank else 'full fine-tuning'}, and nothing tells them "
            "apart; say what their names mean (--name 'r{rank}_s{seed}'), or give columns of seed, "
            "alpha, learning_rate or modules."
        )


class _Paired(NamedTuple):
    """A task's scorings on the items that all have; ``None`` stands for the base."""

    scorings: dict[TableModel | None, TableScores]
    numbers: dict[Any, int]
    notes: tuple[str, ...]
    missing: tuple[str, ...]


def _on_common_items(
    given: Given,
    asked: Asked,
    task: str,
    base: str | None,
    models: Mapping[TableModel, TableModel],
) -> _Paired:
    scorings: dict[TableModel | None, TableScores] = {}
    bases: list[TableScores] = []
    for scoring in given.scorings:
        if scoring.task == task and scoring.model.name == base:
            bases.append(scoring)
        elif scoring.task == task:
            scorings[models[scoring.model]] = scoring
    if base is not None and not bases:
        raise DataError(f"{base} has no scores on {task}; score it there, or leave the task out.")
    for model in dict.fromkeys(models.values()):
        if model not in scorings and asked.missing != "wrong":
            raise DataError(
                f"{model.label} has no scores on {task}; score it there, or leave the task out."
            )
        if model not in scorings:  # all its answers are counted as wrong
            any_model = [*bases, *scorings.values()][0]
            scorings[model] = any_model._replace(model=model, items={})
    notes: list[str] = []
    if _are_percent([*bases, *scorings.values()]):
        bases = list(map(_as_shares, bases))
        scorings = {model: _as_shares(scoring) for model, scoring in scorings.items()}
        notes.append(f"{task}: scores of 0 and 100 are read as wrong and right")
    all_of_task = [*bases, *scorings.values()]
    missing = tuple(_missing(task, all_of_task, asked))
    if asked.missing == "wrong":
        _count_as_wrong(task, all_of_task)
    common = set.intersection(*(set(each.items) for each in all_of_task))
    everything = list(dict.fromkeys(item for each in all_of_task for item in each.items))
    if len(common) < len(everything):
        worst = min(all_of_task, key=lambda each: len(each.items))
        every = quantities.counted(len(everything), "item")
        notes.append(
            f"{task}: {quantities.count(len(common))} of {every} are scored by every model, and "
            f"these are compared; {worst.model.label} lacks {len(everything) - len(worst.items)}"
        )
    if not common and (said := _strangers(all_of_task)):
        raise DataError(f"{task}: {said}. Score all models on the same items, under the same ids.")
    if len(common) < MIN_ITEMS:
        raise DataError(
            f"{task}: {quantities.counted(len(common), 'item')} of {len(everything)} "
            f"{'is' if len(common) == 1 else 'are'} scored by every model, and differences need "
            f"{MIN_ITEMS}. Score all models on the same items, under the same names."
        )
    kept = [item for item in everything if item in common]
    is_numbered = all(isinstance(item, int) for item in kept)  # by lm-eval
    numbers = {item: item if is_numbered else place for place, item in enumerate(kept)}
    stands = _mean_of(bases or list(scorings.values()), kept)
    return _Paired({None: stands, **scorings}, numbers, tuple(notes), missing)


def _are_percent(scorings: Sequence[TableScores]) -> bool:
    """Whether every score of a task is 0 or 100, as of right and wrong answers in percent."""
    values = {item.line[each.metric] for each in scorings for item in each.items.values()}
    return 100.0 in values and values <= {0.0, 100.0} and scorings[0].unit is None


def _as_shares(scoring: TableScores) -> TableScores:
    """The scores of 0 and 100 as 0 and 1."""
    name = scoring.metric
    items = {
        key: Item(place, {**line, name: line[name] / 100.0})
        for key, (place, line) in scoring.items.items()
    }
    return scoring._replace(items=items)


def _strangers(scorings: Sequence[TableScores]) -> str:
    """Two models that share no item, with the first ids of each; empty where any two share some."""
    for one, other in itertools.combinations(scorings, 2):
        if not one.items.keys() & other.items.keys():
            ids = [", ".join(map(shown, [*each.items][:2])) for each in (one, other)]
            return (
                f"{one.model.label} and {other.model.label} share no item: the ids of the first "
                f"begin with {ids[0]}, those of the second with {ids[1]}"
            )
    return ""


def _missing(task: str, scorings: Sequence[TableScores], asked: Asked) -> Iterator[str]:
    """What is missing of single models, where it is much, or where the others score otherwise."""
    every = {item for each in scorings for item in each.items}
    for own in scorings:
        lacking = every - own.items.keys()
        share = len(lacking) / len(every)
        if not lacking:
            continue
        counts = (
            "are counted as wrong" if asked.missing == "wrong" else "are left out of all models"
        )
        said = (
            f"{own.model.label} has no score on {quantities.share(share)} of {task}'s "
            f"{quantities.counted(len(every), 'item')}, which {counts}"
        )
        others = [each for each in scorings if each is not own]
        absent, present = (_means(others, items) for items in (lacking, own.items.keys()))
        is_related = _differ(absent, present)
        if is_related:
            said += (
                f"; the other models score {statistics.fmean(absent):.3g} there, and "
                f"{statistics.fmean(present):.3g} elsewhere"
            )
        if share > MOST_MISSING or is_related:
            remedy = "" if asked.missing == "wrong" else " (--missing wrong counts them as wrong)"
            yield f"{said}{remedy}"


def _means(scorings: Sequence[TableScores], items: Iterable[Any]) -> list[float]:
    """The mean score of the models that have an item, of each item that any has."""
    values = [
        [float(each.items[item].line[each.metric]) for each in scorings if item in each.items]
        for item in items
    ]
    return [statistics.fmean(of) for of in values if of]


def _differ(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two means differ by Welch's test, at 1 %."""
    if min(len(some), len(others)) < MIN_ITEMS:
        return False
    variance = sum(statistics.variance(values) / len(values) for values in (some, others))
    apart = abs(statistics.fmean(some) - statistics.fmean(others))
    return apart > statistics.NormalDist().inv_cdf(0.995) * math.sqrt(variance)


def _count_as_wrong(task: str, scorings: Sequence[TableScores]) -> None:
    """Give every model a score of 0 on the items that it lacks.

    Raises:
        ConfigError: 0 is not the worst score.
    """
    known: dict[Any, tuple[TableScores, Item]] = {}
    for each in scorings:
        values = [float(item.line[each.metric]) for item in each.items.values()]
        if not all(0.0 <= value <= 1.0 for value in values) or each.higher_is_better is False:
            problem = f"--missing wrong: {task} is not scored from 0 to 1, where 0 is wrong"
            raise ConfigError("verdict", [problem])
        known |= {item: (each, own) for item, own in each.items.items() if item not in known}
    answers = ("resps", "filtered_resps")
    for each in scorings:
        for item, (of, (place, line)) in known.items():
            if item not in each.items:
                described = {k: v for k, v in line.items() if k not in (*answers, of.metric)}
                own = {"metrics": [each.metric], each.metric: 0.0, "filtered_resps": [""]}
                each.items[item] = Item(place, described | own)


def _mean_of(scorings: Sequence[TableScores], items: Sequence[Any]) -> TableScores:
    """The base; of several seeds, or of all models in its place, the mean item by item."""
    first, *more = scorings
    if not more:
        return first
    means: dict[Any, Item] = {}
    for item in items:
        place, line = first.items[item]
        values = [float(each.items[item].line[each.metric]) for each in scorings]
        answers = ("resps", "filtered_resps")  # it is nobody's answer
        described = {name: value for name, value in line.items() if name not in answers}
        means[item] = Item(place, {**described, first.metric: math.fsum(values) / len(values)})
    return first._replace(items=means)


def _unit(task: str, scorings: Mapping[TableModel | None, TableScores]) -> Unit:
    """Points for shares; nats for losses; else the scores have a unit of their own."""
    first = next(iter(scorings.values()))
    if first.unit is not None:
        return first.unit
    if _LOSS.search(first.metric):
        return "nats"
    most: dict[str, float] = {}
    least = 0.0
    for scoring in scorings.values():
        values = [item.line[scoring.metric] for item in scoring.items.values()]
        most[scoring.model.label], least = max(values), min(least, min(values))
    if least >= 0.0 and max(most.values()) <= 1.0:
        return "points"
    small = [name for name, value in most.items() if value <= 1.0]
    large = [name for name, value in most.items() if value >= _PERCENT_FROM]
    if small and large and least >= 0.0:
        raise DataError(
            f"{task}: the scores of {small[0]} are at most 1, and those of {large[0]} go up to "
            f"{most[large[0]]:g}: two units. Write all as shares of 1, or all in percent."
        )
    return "units"


def _is_more_better(scoring: TableScores, unit: Unit) -> bool:
    """As the scores say, or else the metric's name."""
    if scoring.higher_is_better is not None:
        return scoring.higher_is_better
    if unit == "nats":
        return False
    name = scoring.metric
    return name.lower() not in LOWER_IS_BETTER and not _LOSS.search(name) and not _LESS.search(name)


def _assumed(
    asked: Asked, by_task: Mapping[str, _Paired], units: Mapping[str, Unit]
) -> Iterator[str]:
    """The names of scores on a scale of their own that do not say whether more is better."""
    if asked.lower_is_better:
        return
    for task, paired in by_task.items():
        scoring = next(iter(paired.scorings.values()))
        name = scoring.metric
        is_known = scoring.higher_is_better is not None or name in HIGHER_IS_BETTER
        is_known = is_known or _MORE.search(name) is not None
        if units[task] == "units" and not is_known and _is_more_better(scoring, "units"):
            yield f"{task}: more {name} is taken for better; --lower-is-better says the reverse"


def _check_units(relations: Mapping[Relation, Sequence[str]], units: Mapping[str, Unit]) -> None:
    """Refuse tasks that would be left out of the verdict for the scale of their scores.

    Raises:
        DataError: a retention task has a scale of its own, or one of several tasks in-domain.
    """
    remedy = "Write its scores as shares of 1 (8 of 10 points as 0.8)."
    for task in relations.get("retention", ()):
        if units[task] == "units":
            raise DataError(
                f"{task}: its scores go beyond 1, and retention is judged in points, which are "
                f"shares of 1. {remedy}"
            )
    own = relations["in_domain"]
    large = [task for task in own if units[task] == "units"]
    small = [task for task in own if units[task] != "units"]
    if large and small:
        raise DataError(
            f"{large[0]}: its scores go beyond 1, and those of {small[0]} do not, so no mean is "
            f"taken over both. {remedy}"
        )


_DELTA_SD = 0.1
"""The share of the items' standard deviation that counts as a difference, where nobody says which:
5 points of accuracy are such a share where half of the answers are right."""


def _default_delta(tasks: Sequence[_Paired]) -> float:
    """The difference that counts, of scores in a unit of their own: from how the base's items vary.

    Raises:
        DataError: they do not vary.
    """
    deviations = [
        statistics.pstdev(float(base.items[item].line[base.metric]) for item in paired.numbers)
        for paired in tasks
        for base in [paired.scorings[None]]
    ]
    delta = float(f"{_DELTA_SD * statistics.fmean(deviations):.2g}")
    if not delta > 0.0:
        raise DataError(
            "The base has the same score on every item, in a unit of its own. Say with --delta "
            "which difference matters."
        )
    return delta


def _planned(
    models: Mapping[TableModel, TableModel], by_task: Mapping[str, _Paired], train_task: str
) -> dict[TableModel, PlannedRun]:
    """Each model as a run. A model without a rank is one that is known by its name alone."""
    ranked = [model for model in models.values() if model.rank]
    ratios = {model.alpha / model.rank for model in ranked if model.alpha and model.rank}
    is_proportional = len(ratios) == 1 and all(model.alpha for model in ranked)
    planned: dict[TableModel, PlannedRun] = {}
    for model in models.values():
        rank, alpha, rate = model.rank, model.alpha, model.learning_rate
        label = NOT_SAID if alpha is None else quantities.number(alpha)
        if rank and alpha and is_proportional:
            label = f"{quantities.number(alpha / rank)}r"
        digest = fingerprint([list(model), _values_of(model, by_task)])
        is_known = bool(rank) or (bool(ranked) and model.is_full)
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model.name).strip("-._")[:60] or "model"
        planned[model] = PlannedRun(
            name=f"{slug}-{digest[:8]}",
            fingerprint=digest,
            role="trained" if is_known else "imported",
            called=model.name,
            method="lora" if rank else "full",
            train_task=train_task,
            rank=rank or None,
            alpha=alpha,
            alpha_labels=(label,) if rank else (),
            scaling=alpha / rank if alpha and rank else None,
            learning_rate=rate,
            rate_labels=(NOT_SAID if rate is None else quantities.learning_rate(rate),),
            epochs=model.epochs,
            target_modules=model.modules,
            seed=model.seed,
            num_steps=0,
            num_examples=0,
            num_tokens=0,
            num_trainable_parameters=0,
            trainable_share=0.0,
            estimated_memory_bytes=0,
        )
    return planned


def _values_of(model: TableModel | None, by_task: Mapping[str, _Paired]) -> list[Any]:
    """Task and scores of a model on the items that all have; None is the base."""
    return [
        [task, [scoring.items[item].line[scoring.metric] for item in paired.numbers]]
        for task, paired in by_task.items()
        if (scoring := paired.scorings.get(model)) is not None
    ]


def _record(
    given: Given,
    asked: Asked,
    name: str,
    relations: Mapping[Relation, tuple[str, ...]],
    base: str | None,
    units: Mapping[str, Unit],
    by_task: Mapping[str, _Paired],
    runs: Sequence[PlannedRun],
    notes: tuple[str, ...],
) -> StudyRecord:
    ranks = tuple(dict.fromkeys(run.rank for run in runs if run.rank))
    has_full = any(run.method == "full" for run in runs)
    bases = {task: paired.scorings[None] for task, paired in by_task.items()}
    margins = {
        f"delta_{units[relations['in_domain'][0]]}": asked.delta,
        "epsilon_points": asked.epsilon,
        "worst_task_points": asked.worst_task,
        "confidence": asked.confidence,
    }
    content = {
        "name": name,
        "base_model": {"name": base or "none"},
        "train": {"task": [runs[0].train_task]},
        "methods": {
            "lora": {"ranks": ranks} if ranks else None,
            "full": {} if has_full or not ranks else None,
        },
        "seeds": sorted({run.seed for run in runs if run.seed is not None}) or [0],
        "evaluation": {
            **relations,
            "metric": {task: each.decides for task, each in bases.items() if each.decides},
            "clusters": {} if asked.cluster is None else dict.fromkeys(by_task, asked.cluster),
            "slice": asked.slice,
        },
        "analysis": {"spectra": False, "heads": False, "gauges": False},
        "recommendation": {name: given for name, given in margins.items() if given is not None},
    }
    config = validated(StudyConfig, content, "verdict")
    train_task = runs[0].train_task
    return StudyRecord(
        fingerprint=study_fingerprint(config),
        config=config,
        base_model_fingerprint=fingerprint([base, [its for _, its in _values_of(None, by_task)]]),
        precision="float32",
        task_fingerprints={
            task: fingerprint([task, [str(item) for item in paired.numbers]])
            for task, paired in by_task.items()
        },
        num_parameters=0,
        models=tuple(runs),
        warnings=notes,
        scores=ScoreTables(
            files={whole_characters(name): digest for name, digest in given.files.items()},
            columns={str(k): v for k, v in given.columns.items()},
            base=base,
            missing=tuple(said for each in by_task.values() for said in each.missing),
        ),
        tasks={train_task: dict(relations)},
        trained_formats={train_task: {}},
        trained_items={train_task: {}},
        ending_items={},
        overlaps={train_task: {}},
        groups={},
        domains={},
        provenance=collect_provenance(),
    )


def _evaluation(
    study: StudyRecord,
    run: PlannedRun | None,
    scoring: TableScores,
    lines: Sequence[Line],
    unit: Unit,
    asked: Asked,
) -> TaskEvaluation:
    values = [float(line[scoring.metric]) for line in lines]
    higher = _is_more_better(scoring, unit) and not asked.lower_is_better
    score = MetricScore.of_values(scoring.metric, scoring.filter, values, higher_is_better=higher)
    return TaskEvaluation(
        fingerprint=scoring_fingerprint(study, run, scoring.task),
        model=BASE if run is None else run.name,
        task=scoring.task,
        task_version="not said",
        output_type=scoring.output_type,
        domain=None,
        metrics=(score,),
        decision_metric=scoring.metric,
        decision_filter=scoring.filter,
        unit=unit,
        num_examples=len(values),
        num_fewshot=0,
        chat_template=False,
        limit=None,
        chance=None,
        predicted_shares=None,
        num_unfinished=None,
        num_truncated=0,
        num_tokens=0,
        score_seconds=0.0,
    )
