"""What ``rankwise plan`` prints of a study."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rankwise.cli.application import say, stdout
from rankwise.cli.terminal import pass_lines, plan_table
from rankwise.records import quantities
from rankwise.records.config.objectives import WrittenConfig
from rankwise.records.files import cache_folder, free_bytes, in_words
from rankwise.records.own_data import OwnData
from rankwise.records.study import StudyRecord
from rankwise.study.agenda import units
from rankwise.study.executors.desk import MOST_NODES
from rankwise.study.forecast import Forecast
from rankwise.tasks.resolution import GENERAL

_ASSUMED_RATE = (
    ": a third of an H100's peak, which is assumed and not measured, and more than small models "
    "reach; --tokens-per-second takes another"
)


def show(found: Forecast) -> None:
    """Print what is left of a study, and what it takes."""
    record, machine = found.record, found.machine
    stdout.print(plan_table(record, found.done))
    for line in pass_lines(record):
        say(line)
    own, learns_all_tokens = record.own_data, record.config.train.loss_on == "all"
    if own is not None and own.num_conversations and not learns_all_tokens:
        say(_learned_line(own))
    if (written := record.config.train.written) is not None:
        say(_written_line(record, written))
    if record.config.is_searched:
        say("search: these trainings begin it; what they show decides which go on")
    for line in (*_general_lines(found), *_reference_lines(found)):
        say(line)
    if record.forms:
        said = ", ".join(record.deployed) or "the run that the verdict names"
        tokens = quantities.count(found.form_tokens)
        say(f"deploy: {said}, as {', '.join(record.forms)}: {tokens} tokens to score")
    if machine is not None:
        available = in_words(machine.available_bytes())
        say(f"planned for {machine.name} with {available}, in {record.precision}")
    for line in _margin_lines(found):
        say(line)
    say(f"disk: about {in_words(found.disk_bytes)}, {in_words(found.free_bytes)} free here")
    if found.cache_bytes:
        cache = cache_folder()
        say(
            f"cache: about {in_words(found.cache_bytes)} of decompositions in {cache}, "
            f"{in_words(free_bytes(cache))} free there; RANKWISE_CACHE moves it"
        )
    trained = [u for u in units(found.stages) if u.kind in ("pass", "full")]
    if len(trained) > MOST_NODES:
        say(
            f"cluster: {len(trained)} units can be trained at a time; above {MOST_NODES} nodes the "
            "study's folder must be on a disk that all of them see"
        )
    if found.seconds_left is not None:
        by_what = "if stages take as long as in this study, or in the last one of this base here"
        if found.rate is not None:
            by_what = (
                f"of training and scoring{_decomposing(found)}, if LoRA training reads "
                f"{quantities.count(round(found.rate))} tokens per second"
                + (_ASSUMED_RATE if found.is_rate_assumed else "")
            )
        say(f"time: about {quantities.seconds(found.seconds_left)} {by_what}")


def _decomposing(found: Forecast) -> str:
    """What the analysis of weights takes, in words."""
    seconds = sum(found.seconds.get(stage.id, 0.0) for stage in found.analyses)
    return f" and {quantities.seconds(seconds)} of decomposing weights" if seconds >= 1.0 else ""


def _written_line(record: StudyRecord, written: WrittenConfig) -> str:
    """What a run writes itself, and what is read of it, at most."""
    train = record.config.train
    run = max(record.models, key=lambda model: model.num_written_tokens)
    rows = train.batch_size * train.gradient_accumulation_steps
    number = quantities.counted(rows * written.num_generations, "text")
    steps = quantities.counted(run.num_steps // train.num_iterations, "step")
    wrote, read, beside = map(
        quantities.count, (run.num_written_tokens, run.num_read_tokens, run.num_beside_tokens)
    )
    who = "a teacher" if written.is_distilled else "the base"
    besides = f"; {who} reads {beside}" if run.num_beside_tokens else ""
    return (
        f"own texts: a run writes up to {number} of at most {written.max_completion_length:,} "
        f"tokens for each of {steps}, {wrote} tokens in all, and reads up to {read} with their "
        f"prompts to train{besides}"
    )


def _learned_line(own: OwnData) -> str:
    """Which turns of conversations are learned."""
    which = "the last assistant turn is learned and scored"
    if own.turns == "all":
        turns = quantities.counted(own.num_turns, "turn")
        which = f"every assistant turn is learned ({turns}), the last one is scored"
    number, rows = quantities.count(own.num_conversations), own.num_distinct
    return f"conversations: {number} of {quantities.counted(rows, 'row')}; {which}"


def _general_lines(found: Forecast) -> Iterator[str]:
    """Whether the set's items are enough, and what is left out of it."""
    of_set = found.record.groups.get(GENERAL, ())
    if not of_set:
        return
    number = quantities.counted(len(of_set) - len(found.record.unable), "task")
    resolves = ""
    for cost in [each for each in found.margins if each.relation == "retention"][:1]:
        items, planned = map(quantities.count, (cost.items_for(2.0), cost.num_planned))
        resolves = f"; 2 points of retention loss take about {items} items, {planned} planned"
    yield f"{GENERAL}: {number}{resolves}"
    if found.awaits_base:
        yield f"{GENERAL}: the base is scored first, and what it cannot do is left out"
    yield from found.record.unable.values()


def _reference_lines(found: Forecast) -> Iterator[str]:
    """What most runs answer of which tasks, and what that saves; why all answer everything."""
    record = found.record
    if not found.unscored_tokens:
        settings = record.config.evaluation.reference
        if settings is not None:
            why = "no task has enough items for it, or runs are searched for"
            if record.references.parts:
                why = "each is a reference, or has answered them already"
            elif found.has_parts:
                least = quantities.share(settings.least_saving)
                why = f"a part would save less than {least} of the work"
            yield f"reference: all runs answer all items; {why}"
        return
    parts = {
        task: [model for model in record.tested if record.part_of(model, task) is not None]
        for task in record.references.parts
    }
    for task, models in parts.items():
        part = record.references.parts[task]
        yield (
            f"reference: {quantities.counted(len(models), 'run')} of {len(record.tested)} "
            f"answer {quantities.count(part.num_items)} of {quantities.count(part.num_all)} "
            f"items of {task}"
        )
    names = dict.fromkeys(name for names in record.references.runs.values() for name in names)
    saved = f"saves {quantities.count(found.unscored_tokens)} scored tokens"
    if found.unscored_seconds is not None:
        saved += f", about {quantities.seconds(found.unscored_seconds)}"
    yield f"reference: the rest is estimated from {', '.join(names)}, which {saved}"


def _margin_lines(found: Forecast) -> Iterator[str]:
    """How many items the margins take, and how long these take to score."""
    for relation, of_kind in itertools.groupby(found.margins, key=lambda cost: cost.relation):
        costs = list(of_kind)
        needs = [
            f"{cost.margin:g} points about {quantities.count(cost.num_items)} ("
            + (
                f"{quantities.count(cost.num_tokens)} tokens"
                if cost.seconds is None
                else quantities.seconds(cost.seconds)
            )
            + ")"
            for cost in costs
        ]
        planned = quantities.count(costs[0].num_planned)
        there = quantities.count(costs[0].num_available)
        yield (
            f"items to resolve, {relation.replace('_', '-')}: {', '.join(needs)}; "
            f"planned: {planned} of {there}"
        )
