"""The setting that a study recommends, or one of its runs, as the config of another trainer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import ConfigError
from rankwise.integrations.drafts import Tool, written_entries
from rankwise.integrations.llama_factory import DATASET_INFO, LLAMA_FACTORY, dataset_info
from rankwise.integrations.peft import PEFT
from rankwise.integrations.setups import Rows, TrainingSetup
from rankwise.integrations.study_text import yaml_lines
from rankwise.records import quantities
from rankwise.records.file_names import task_file_name
from rankwise.records.files import write_atomically
from rankwise.records.folder import StudyFolder
from rankwise.records.recommendation import Recommendation
from rankwise.records.run_names import find_run
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.study.conclusion import conclude


class ExportedSetup(NamedTuple):
    """The config of one trained task.

    Attributes:
        run: whose settings are in it.
        file: that the other trainer reads.
        remarks: what it does not say, one sentence each.
    """

    run: str
    file: Path
    remarks: tuple[str, ...]


def export_setup(
    folder: StudyFolder, tool: Tool, output: Path | None = None, run: str | None = None
) -> list[ExportedSetup]:
    """Write the settings of the recommended runs, one of each trained task, for another trainer.

    Args:
        folder: of a study; without ``run`` it must be finished.
        tool: whose config is written.
        output: the folder to write into; None takes ``export/<tool>`` in the study's folder. With
            several trained tasks, each has a folder in it.
        run: the name of a run, or its beginning, whose settings are written instead.

    Raises:
        ConfigError: nothing is recommended (the best bet is named), there is no such run, or the
            tool cannot say what it is.
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written.
    """
    study = folder.read_study()
    chosen = _recommended(folder, study) if run is None else [find_run(study, run, "export")]
    target = folder.root / "export" / tool.name if output is None else output
    exported: list[ExportedSetup] = []
    for planned in chosen:
        place = target / task_file_name(planned.train_task) if len(chosen) > 1 else target
        exported.append(_export(study, planned, tool, place, is_chosen=run is None))
    return exported


def _recommended(folder: StudyFolder, study: StudyRecord) -> list[PlannedRun]:
    """The recommended run of every trained task that has one."""
    parts = conclude(folder).recommendation.by_train_task
    names = [verdict.runs[0] for part in parts for verdict in _settled(part)]
    if not names:
        raise ConfigError("export", [_nothing(part) for part in parts])
    by_name = {planned.name: planned for planned in study.runs}
    return [by_name[name] for name in names]


def _settled(part: Recommendation) -> list[Any]:
    return [verdict for verdict in part.verdicts if verdict.qualifies][:1]


def _nothing(part: Recommendation) -> str:
    """That nothing is recommended, and what can be exported all the same."""
    bet = None if part.best_bet is None else part.best_bet.choice
    runs = next((verdict.runs for verdict in part.verdicts if verdict.label == bet), ())
    instead = "name a run with --run"
    if bet is None:
        instead = f"the best bet is not to fine-tune; {instead}"
    elif runs:
        instead = f"the best bet is {bet}: --run {runs[0]}"
    return f"no rank is recommended for {part.train_task} ({part.outcome}); {instead}"


def _export(
    study: StudyRecord, planned: PlannedRun, tool: Tool, folder: Path, *, is_chosen: bool
) -> ExportedSetup:
    setup = setup_of(study, planned)
    if tool is PEFT and setup.is_full:
        problem = f"--run: {planned.name} trains all weights, which {tool.title} has no config for"
        raise ConfigError("export", [problem])
    entries = written_entries(setup, tool, folder)
    file = folder / tool.file_name
    if tool is PEFT:
        write_atomically(file, json.dumps(entries, indent=2, sort_keys=True) + "\n")
    else:
        how = "recommended" if is_chosen else "chosen by hand"
        head = [f"# {planned.name} of the study {study.config.name}, {how}, by rankwise export"]
        head += [f"# {line}" for line in _usage(tool, file)]
        write_atomically(file, "\n".join([*head, *yaml_lines(entries)]) + "\n")
    if tool is LLAMA_FACTORY and (info := dataset_info(setup)):
        write_atomically(folder / DATASET_INFO, json.dumps(info, indent=2) + "\n")
    return ExportedSetup(planned.name, file, tuple(_remarks(study, planned, setup, tool)))


def _usage(tool: Tool, file: Path) -> list[str]:
    """How the file is used."""
    return {
        "trl": [f"trl sft --config {file.name} --output_dir OUT"],
        "axolotl": [f"axolotl train {file.name}"],
        "llamafactory": [f"llamafactory-cli train {file.name} output_dir=OUT"],
        "unsloth": ["Each section has the arguments of the call that it is named after."],
    }[tool.name]


def setup_of(study: StudyRecord, planned: PlannedRun) -> TrainingSetup:
    """The settings of a run of a study.

    Raises:
        ConfigError: it was trained elsewhere, and its settings are not known.
    """
    if planned.imported_as is not None:
        problem = f"--run: {planned.name} was trained elsewhere; its settings are not known"
        raise ConfigError("export", [problem])
    train, base = study.config.train, study.config.base_model
    rows = None if train.data is None else _rows_of(train.data)
    return TrainingSetup(
        base_model=base.name,
        revision=base.revision,
        data=None if train.data is None else str(train.data),
        rows=rows,
        is_full=planned.method == "full",
        rank=planned.rank,
        alpha=planned.alpha,
        use_rslora=_is_rslora(planned),
        dropout=train.dropout,
        target_modules=planned.target_modules,
        learning_rate=planned.learning_rate,
        epochs=planned.epochs,
        max_examples=train.max_examples if rows else None,
        batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        schedule=train.schedule,
        warmup_ratio=train.warmup_ratio,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        seed=planned.seed,
        precision=study.precision,
        base_precision=None if train.base_precision == "auto" else train.base_precision,
        max_length=train.max_length,
        loss_on=train.loss_on,
        chat_template=train.chat_template,
    )


def _is_rslora(planned: PlannedRun) -> bool:
    """Whether the scaling is alpha over the root of the rank."""
    if planned.rank is None or planned.alpha is None or planned.scaling is None:
        return False
    by_root = planned.alpha / math.sqrt(planned.rank)
    return planned.rank > 1 and math.isclose(planned.scaling, by_root)


def _rows_of(path: Path) -> Rows:
    """What the first row is; prompts where the file is not here."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = json.loads(next(line for line in file if line.strip()))
    except (OSError, ValueError, StopIteration):
        return "prompt"
    return "messages" if isinstance(first, dict) and "messages" in first else "prompt"


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
    elif setup.data is None:
        remarks.append(f"the rows are those of the task {planned.train_task}; add your own data")
    if "/" not in setup.base_model:
        remarks.append(f"{setup.base_model} is a name of rankwise's; write the hub's, or a folder")
    alpha = setup.alpha
    if alpha is not None and not float(alpha).is_integer() and tool is not PEFT:
        remarks.append(f"alpha is {alpha:g}, and {tool.title} takes whole numbers; round it")
    if study.config.methods.lora is not None and study.config.methods.lora.init == "B":
        remarks.append("the runs began at A = 0; PEFT begins at B = 0")
    return remarks
