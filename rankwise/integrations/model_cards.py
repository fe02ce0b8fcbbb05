"""The model card of a run: Markdown, with the front matter that model hubs read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwise.findings.deployment import DeployedRun
from rankwise.findings.model_card import markdown_code, markdown_table, markdown_text
from rankwise.integrations.exported import ChosenRun
from rankwise.integrations.study_text import yaml_lines
from rankwise.records import quantities
from rankwise.records.recommendation import Comparison
from rankwise.records.results import ModelResults
from rankwise.records.study import PlannedRun, StudyRecord, TaskEvaluation

FILE_NAME = "README.md"


def run_card(
    study: StudyRecord, model: ModelResults, chosen: ChosenRun, deployed: DeployedRun | None = None
) -> str:
    """What a run is, how it was trained, and what it scores beside its base.

    Args:
        study: that the run is of.
        model: the run's results.
        chosen: the run, and what the study recommends.
        deployed: what it keeps in the forms in which it was checked.
    """
    planned, part = chosen.planned, chosen.recommendation
    compared = [each for each in part.comparisons if each.run == planned.name]
    what = "A fully fine-tuned model" if planned.rank is None else f"A rank-{planned.rank} adapter"
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
        f"{version}. All changes are against the base, paired item by item, with intervals of "
        f"{quantities.percent(part.confidence)}, each for itself.",
        "",
        *markdown_table(("setting", "value"), list(_settings(study, planned))),
        "",
        *markdown_table(
            ("task", "relation", "metric", "items", "base", "this", "change"),
            [_row(each, model.evaluations[each.task]) for each in compared],
        ),
    ]
    if deployed is not None:
        said = (
            "Merged into the base and rounded, against the adapter as trained, on the same items:"
        )
        lines += ["", said, "", *(f"- {markdown_text(f.statement)}" for f in deployed.forms)]
    return "\n".join(lines) + "\n"


def _front_matter(study: StudyRecord, model: ModelResults, planned: PlannedRun) -> dict[str, Any]:
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": evaluation.task, "type": evaluation.task},
            "metrics": [
                {"name": score.metric, "type": score.metric, "value": score.value}
                for score in evaluation.metrics
            ],
        }
        for evaluation in model.evaluations.values()
    ]
    base = study.base_elsewhere
    # a folder of this machine names no model elsewhere, and the Hub refuses such a card
    matter: dict[str, Any] = {} if Path(base).is_absolute() else {"base_model": base}
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
    if planned.rank is not None and alpha is not None:
        yield "rank", str(planned.rank)
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
        quantities.with_interval(each.interval, each.unit),
    )
