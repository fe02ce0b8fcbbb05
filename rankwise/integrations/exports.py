"""What of a study is exported: the runs that are given away, their settings and their cards.

A run's setting is written as the config of another trainer, its card as Markdown with the front
matter that model hubs read.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rankwise.errors import ConfigError
from rankwise.findings.model_card import markdown_code, markdown_table, markdown_text
from rankwise.integrations.drafts import Rows, TrainingSetup
from rankwise.integrations.llama_factory import DATASET_INFO, LLAMA_FACTORY, dataset_info
from rankwise.integrations.own_texts import remarks_on_own_texts
from rankwise.integrations.peft import PEFT
from rankwise.integrations.sources import TOOLS
from rankwise.integrations.study_text import yaml_lines
from rankwise.integrations.tools import Tool, written_entries
from rankwise.records import quantities
from rankwise.records.config.training import TrainConfig
from rankwise.records.files import require_regular, write_atomically
from rankwise.records.folder import StudyFolder
from rankwise.records.names import find_run, task_file_name
from rankwise.records.recommendation import Comparison, Recommendation
from rankwise.records.results import ModelResults
from rankwise.records.study import PlannedRun, StudyRecord, TaskEvaluation, is_rslora
from rankwise.study.conclusion import StudyOutcome, conclude

CARD_FILE = "README.md"
# What a setup takes from a run and from a study file, under the same names.
_OF_RUN = ("rank", "alpha", "learning_rate", "epochs", "seed")
_OF_TRAINING = (
    *("dropout", "batch_size", "gradient_accumulation_steps", "schedule", "warmup_ratio"),
    *("weight_decay", "max_grad_norm", "max_length", "loss_on", "chat_template"),
)


_ROWS = {
    "sft": "prompt and completion, or messages",
    "dpo": "prompt, chosen and rejected",
    "grpo": "prompt, and what the rewards read",
    "sdft": "prompt and privileged_context, which is the answer",
}
_NEEDED = {True: {"prompt", "privileged_context"}, False: {"prompt"}}
_SDFT_USAGE = (
    "TRL has no command for it: the keys are fields of trl.experimental.sdft.SDFTConfig and "
    "trl.ModelConfig, for SDFTTrainer"
)


class Exported(NamedTuple):
    """A file of an export.

    Attributes:
        name: of the model, run or table that is in it.
        file: that was written.
        remarks: what it does not say, one sentence each.
        samples_files: that were written beside it, with a model's items.
    """

    name: str
    file: Path
    remarks: tuple[str, ...] = ()
    samples_files: tuple[Path, ...] = ()

    def moved(self, source: Path, target: Path) -> Exported:
        """The same files in another folder."""
        file, *samples = (
            target / path.relative_to(source) for path in (self.file, *self.samples_files)
        )
        return self._replace(file=file, samples_files=tuple(samples))


class ChosenRun(NamedTuple):
    """A run, and the recommendation of the task that it was trained on."""

    planned: PlannedRun
    recommendation: Recommendation
    how: Literal["recommended", "the best bet", "chosen by hand"]


def chosen_runs(outcome: StudyOutcome, run: str | None) -> tuple[list[ChosenRun], list[str]]:
    """The recommended run of every trained task, else its best bet, and what to know of it.

    Args:
        outcome: of the study.
        run: a run, as ``find_run`` takes it, to take instead.

    Raises:
        ConfigError: there is no such run, or for every task it is best not to fine-tune.
    """
    study, parts = outcome.results.study, outcome.recommendation.by_train_task
    if run is not None:
        planned = find_run(study, run, "export")
        part = next(each for each in parts if each.train_task == planned.train_task)
        return [ChosenRun(planned, part, "chosen by hand")], []
    by_name = {planned.name: planned for planned in study.runs}
    chosen: list[ChosenRun] = []
    remarks: list[str] = []
    for part in parts:
        settled, bet = part.recommended_run, part.best_bet_run
        name = settled or bet
        if name is None:
            remarks.append(
                f"nothing is recommended for {part.train_task}, and there is no best bet; "
                "name a run with --run"
            )
            continue
        chosen.append(ChosenRun(by_name[name], part, "recommended" if settled else "the best bet"))
        if settled is None and part.best_bet is not None:
            odds = quantities.odds(part.best_bet.of(part.best_bet.choice or "").right)
            remarks.append(f"{part.train_task} is not settled: {name} is the best bet ({odds})")
    if not chosen:
        raise ConfigError("export", remarks)
    return chosen, remarks


Writer = Callable[[StudyOutcome, ChosenRun, Path, Path], tuple[Path, Sequence[str]]]
"""Writes a run into the first folder, for use from the second; gives the file and remarks on it."""


def export_runs(
    folder: StudyFolder,
    place: Path,
    run: str | None,
    output: Path,
    *,
    write: Writer,
    read: Callable[[StudyFolder], StudyOutcome] = conclude,
) -> list[Exported]:
    """Write the chosen runs, one of each trained task.

    Args:
        folder: of a finished study.
        place: the folder to write into. With several trained tasks, each has a folder in it.
        run: a run, as ``find_run`` takes it, that is written instead.
        output: where that folder will be.
        write: writes one.
        read: what the study says.

    Raises:
        ConfigError: no option is a bet worth taking, there is no such run, or the
            format cannot say what it is.
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written.
    """
    outcome = read(folder)
    chosen, without = chosen_runs(outcome, run)
    exported: list[Exported] = []
    for each in chosen:
        part = "" if len(chosen) == 1 else task_file_name(each.planned.train_task)
        file, remarks = write(outcome, each, place / part, output / part)
        exported.append(Exported(each.planned.name, file, (*remarks, *without)))
    return exported


def write_card(
    outcome: StudyOutcome, chosen: ChosenRun, folder: Path, _final: Path
) -> tuple[Path, Sequence[str]]:
    """Write the model card of a run."""
    refuse_imported(chosen.planned)
    write_atomically(folder / CARD_FILE, run_card(outcome, chosen))
    return folder / CARD_FILE, ()


def write_setup(
    outcome: StudyOutcome, chosen: ChosenRun, folder: Path, final: Path, *, tool: Tool
) -> tuple[Path, Sequence[str]]:
    """Write the settings of a run as the config of another trainer, as it will be in ``final``."""
    study, planned = outcome.results.study, chosen.planned
    setup = setup_of(study, planned)
    if tool is PEFT and setup.is_full:
        problem = f"--run: {planned.name} trains all weights, which {tool.title} has no config for"
        raise ConfigError("export", [problem])
    if setup.objective and setup.stage not in tool.objectives and tool is not PEFT:
        others = " or ".join(each.name for each in TOOLS if setup.stage in each.objectives)
        what = f"no config of {tool.title} is written for {setup.stage.upper()}"
        raise ConfigError("export", [f"--format: {what}; take {others}"])
    if planned.layer_ranks and tool is not PEFT:
        what = f"{planned.name} has a rank for each layer, and {tool.title}'s config has one rank"
        raise ConfigError("export", [f"--format: {what}; take peft"])
    entries = written_entries(setup, tool, final)
    file = folder / tool.file_name
    if tool is PEFT:
        write_atomically(file, json.dumps(entries, indent=2, sort_keys=True) + "\n")
    else:
        name = f"# {planned.name} of the study {study.config.name}"
        lines = [
            f"{name}, {chosen.how}, by rankwise export",
            *(f"# {remark}" for remark in _remarks_on_start(study, planned)),
            f"# {_SDFT_USAGE if setup.stage == 'sdft' else tool.usage.format(stage=setup.stage)}",
            *yaml_lines(entries),
        ]
        write_atomically(file, "\n".join(lines) + "\n")
    if tool is LLAMA_FACTORY and (info := dataset_info(setup)):
        write_atomically(folder / DATASET_INFO, json.dumps(info, indent=2) + "\n")
    return file, _remarks(study, planned, setup, tool)


def refuse_imported(planned: PlannedRun) -> None:
    """Refuse a model whose settings are not known.

    Raises:
        ConfigError: it was trained elsewhere.
    """
    if planned.role == "imported" or planned.called is not None:
        problem = f"{planned.name} was trained elsewhere; name a run whose settings are known"
        raise ConfigError("export", [problem])


def setup_of(study: StudyRecord, planned: PlannedRun) -> TrainingSetup:
    """The settings of a run of a study.

    Raises:
        ConfigError: it was trained elsewhere, and its settings are not known.
    """
    refuse_imported(planned)
    train = study.config.train
    rows = _rows_of(train)
    num_rows = planned.num_examples if planned.role == "fewer_rows" else train.most_examples
    return TrainingSetup(
        base_model=study.base_elsewhere,
        revision=None if study.config.start_in_words else study.config.base_model.revision,
        data=None if rows is None else str(train.data),
        rows=rows,
        turns=train.turns if rows == "messages" else None,
        is_full=planned.method == "full",
        target_modules=planned.saved_targets,
        layer_ranks=planned.layer_ranks,
        use_rslora=is_rslora(planned),
        objective=None
        if train.objective is None
        else train.objective.model_dump(exclude_none=True),
        max_examples=num_rows if rows else None,
        precision=study.precision,
        base_precision=None if train.base_precision == "auto" else train.base_precision,
        **{name: getattr(planned, name) for name in _OF_RUN},
        **{name: getattr(train, name) for name in _OF_TRAINING},
    )


def _rows_of(train: TrainConfig) -> Rows | None:
    """What the rows are; None where other trainers would not read the file as rankwise does."""
    path = train.data
    if path is None or train.columns is not None or path.suffix not in (".json", ".jsonl"):
        return None
    try:
        require_regular(path)
        with path.open(encoding="utf-8-sig") as file:
            lines = (line for line in file if line.strip())
            rows = json.load(file) if path.suffix == ".json" else [json.loads(next(lines))]
    except OSError:
        return "prompt" if train.dpo is None else "pairs"  # the file is not here
    except (ValueError, StopIteration):
        return None
    first = rows[0] if isinstance(rows, list) and rows else None
    if not isinstance(first, dict):
        return None
    if train.dpo is not None:  # a prompt that stands in the answers alone is read by TRL, not all
        return "pairs" if {"prompt", "chosen", "rejected"} <= first.keys() else None
    if train.written is not None:
        return "prompt" if _NEEDED[train.written.is_distilled] <= first.keys() else None
    if "messages" in first:
        return "messages"
    return "prompt" if {"prompt", "completion"} <= first.keys() else None


def _remarks(
    study: StudyRecord, planned: PlannedRun, setup: TrainingSetup, tool: Tool
) -> list[str]:
    """What the file does not say."""
    remarks: list[str] = []
    if tool is PEFT:
        rate = quantities.learning_rate(planned.learning_rate or 0.0)
        remarks.append(
            f"{tool.file_name} has no place for the training: learning rate {rate}, "
            f"{planned.epochs} epochs, {setup.batch_size} x {setup.gradient_accumulation_steps} "
            f"rows a step, {setup.schedule} after a warm-up of {setup.warmup_ratio:g} of the steps"
        )
    elif setup.data is None and study.config.train.data is not None:
        remarks.append(
            f"the rows are not in it, since {tool.title} would not read them as they are: write "
            f"{study.config.train.data} as JSON Lines with " + _ROWS[setup.stage]
        )
    elif setup.data is None:
        task = {part.name: part.task for part in study.config.train.parts}[planned.train_task]
        remarks.append(f"the rows are those of the task {task}; add your own data")
    else:
        taken = "all rows"
        if setup.max_examples is not None:
            taken = f"the first {quantities.counted(setup.max_examples, 'row')}"
        remarks.append(
            f"the study held rows of {Path(setup.data).name} out at random and trained on "
            f"{quantities.count(planned.num_examples)} of the others, and this file takes {taken}: "
            "what it trains has seen held-out rows, so judge it on other ones"
        )
        remarks += _remarks_on_rows(setup, tool)
    if tool is not PEFT:
        remarks += dict.fromkeys(remarks_on_own_texts(setup, tool.title))
    if planned.is_part:
        remarks.append(
            f"the run stopped at step {quantities.steps(planned)}: train by the schedule of the "
            "whole, and stop there"
        )
    if setup.is_full and setup.weight_decay:
        remarks.append(
            "weight decay here is of all weights; transformers' Trainer leaves out biases and norms"
        )
    remarks += _remarks_on_start(study, planned)
    if study.config.base_model.is_embedded and not study.config.start_in_words:
        remarks.append(
            f"the study's base was rounded to 4 bits; {setup.base_model} is as it was before"
        )
    alpha = setup.alpha
    if alpha is not None and not float(alpha).is_integer() and tool is not PEFT:
        remarks.append(f"alpha is {alpha:g}, and {tool.title} takes whole numbers; round it")
    return remarks


def _remarks_on_start(study: StudyRecord, planned: PlannedRun) -> Iterator[str]:
    """What has to be there before the file is used."""
    config, after = study.config, planned.after
    if after is not None:
        how = "merge it into the base first" if after.is_beside else "train on from its weights"
        yield f"the run goes on from {after.name}: {how}"
    if config.start_in_words:
        yield (
            f"the base is {config.base_model.name_elsewhere}{config.start_in_words}: here "
            f"{study.base_elsewhere}, elsewhere a folder to make first, by PEFT's merge_and_unload "
            "and save_pretrained"
        )


def _remarks_on_rows(setup: TrainingSetup, tool: Tool) -> Iterator[str]:
    """Where the other trainer learns something else from the same rows."""
    dpo = setup.dpo or {}
    if tool.name == "trl" and dpo.get("label_smoothing"):
        yield "TRL's sigmoid loss has no label smoothing, so it is not in the file"
    if tool is LLAMA_FACTORY and dpo.get("sft_weight"):
        yield "pref_ftx is of each answer's mean loss, rankwise's of the mean over all tokens"
    if setup.rows == "messages":
        if setup.turns == "last" and tool is not LLAMA_FACTORY:
            yield (
                "of a conversation rankwise learned the last turn of the assistant; "
                f"{tool.title} learns every one"
            )
    elif tool is LLAMA_FACTORY and not setup.chat_template:
        yield (
            "rankwise learned where an answer ends; with the template empty LLaMA-Factory does "
            "not: put the tokenizer's end-of-sequence token at the end of each completion"
        )
    elif tool is not LLAMA_FACTORY and setup.chat_template:
        yield (
            f"rankwise wrapped the rows in the chat template, and {tool.title} takes them as they "
            "are: write them as messages"
        )


def run_card(outcome: StudyOutcome, chosen: ChosenRun) -> str:
    """What a run is, how it was trained, what it scores beside its base, and what forms keep.

    Args:
        outcome: of the study that the run is of.
        chosen: the run, and what the study recommends.
    """
    results, planned, part = outcome.results, chosen.planned, chosen.recommendation
    study = results.study
    forms = (each for each in outcome.findings.deployed if each.run == planned.name)
    deployed = next(forms, None)
    model = next(each for each in results.runs if each.name == planned.name)
    compared = [each for each in part.comparisons if each.run == planned.name]
    what = "A fully fine-tuned model" if planned.rank is None else f"A rank-{planned.rank} adapter"
    if planned.mean_rank is not None:
        what = f"An adapter of mean rank {planned.mean_rank:.1f}"
    version = study.provenance.rankwise_version
    lines = [
        "---",
        *yaml_lines(_front_matter(study, model, planned)),
        "---",
        "",
        f"# {what}, trained on {markdown_text(planned.train_task)}",
        "",
        ("" if chosen.how == "recommended" else f"{quantities.capital(chosen.how)}. ")
        + markdown_text(part.statement),
        "",
        f"The run {markdown_code(planned.name)} of the study {study.config.name}, by rankwise "
        f"{version}. All changes are against the base, paired item by item. Those that the verdict "
        f"rests on have its bounds; other intervals are of {quantities.percent(part.confidence)}, "
        "each for itself.",
        "",
        *markdown_table(("setting", "value"), list(_settings(study, planned))),
        "",
        *markdown_table(
            ("task", "relation", "metric", "items", "base", "this", "change"),
            [_row(each, model.evaluations[each.task]) for each in compared],
        ),
    ]
    lines += [
        f"\nScores of {markdown_code(task)} are a judge's, corrected by a person's labels of "
        f"{quantities.counted(number, 'item')}."
        for task, number in model.labelled_tasks.items()
    ]
    # a server is of one machine, and says nothing of these files
    if deployed is not None and (own := [each for each in deployed.forms if not each.served]):
        said = (
            "Merged into the base and rounded, against the adapter as trained, on the same items:"
        )
        lines += ["", said, "", *(f"- {markdown_text(each.statement)}" for each in own)]
    return "\n".join(lines) + "\n"


def _front_matter(study: StudyRecord, model: ModelResults, planned: PlannedRun) -> dict[str, Any]:
    labelled = model.labelled_tasks
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": evaluation.task, "type": evaluation.task},
            "metrics": [
                {
                    "name": score.metric,
                    "type": score.metric,
                    "value": statistics.fmean(model.items[evaluation.task].values)
                    if score == evaluation.decision and evaluation.task in labelled
                    else score.value,
                }
                for score in evaluation.metrics
            ],
        }
        for evaluation in model.evaluations.values()
    ]
    base = study.base_elsewhere
    # a folder of this machine names no model elsewhere, and the Hub refuses such a card
    matter: dict[str, Any] = {} if base.startswith(("/", "./")) else {"base_model": base}
    if planned.method == "lora":
        matter["library_name"] = "peft"
    return matter | {
        "pipeline_tag": "text-generation",
        "tags": [*(["lora"] if planned.method == "lora" else []), "rankwise"],
        "model-index": [{"name": planned.name, "results": results}],
    }


def _settings(study: StudyRecord, planned: PlannedRun) -> Iterator[tuple[str, str]]:
    train = study.config.train
    alpha, config = quantities.alpha(planned), study.config
    if config.start_in_words:
        base = f"{config.base_model.name_elsewhere}{config.start_in_words}"
        with_it = "" if planned.rank is None else "; this adapter is put on both"
        yield "base", f"{base} (PEFT's merge_and_unload){with_it}"
    if planned.after is not None:
        rank = planned.after.rank + planned.highest_rank
        both = f"; this adapter has both, at rank {rank}" if planned.after.is_beside else ""
        yield "goes on from", f"{planned.after.name}{both}"
    if planned.rank is not None and alpha is not None:
        yield "rank", quantities.rank_value(planned)
        yield "alpha", alpha
        yield "target modules", ", ".join(planned.target_modules)
    yield "learning rate", quantities.learning_rate(planned.learning_rate or 0.0)
    yield "schedule", f"{train.schedule}, warm-up {train.warmup_ratio:g} of the steps"
    yield "epochs", str(planned.epochs)
    yield "rows a step", str(train.batch_size * train.gradient_accumulation_steps)
    stopped = ", where it stopped" if planned.is_part else ""
    yield "steps", quantities.steps(planned) + stopped
    yield "trained weights", quantities.count(planned.num_trainable_parameters)
    yield "seed", str(planned.seed)


def _row(each: Comparison, scored: TaskEvaluation) -> tuple[str, ...]:
    is_part = scored.num_examples < each.num_examples
    answered = f"{quantities.count(scored.num_examples)} of " if is_part else ""
    return (
        each.task,
        each.relation.replace("_", "-"),
        f"{scored.decision_metric}, {each.unit}",
        answered + quantities.count(each.num_examples),
        quantities.score(each.base_score, each.unit),
        quantities.score(each.adapted_score, each.unit),
        quantities.with_interval(each.difference, each.unit),
    )
