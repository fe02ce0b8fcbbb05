"""Writes a finished study as the files of ``lm_eval --log_samples --output_path OUT``.

What lm-eval knows and the records do not (the task's YAML, the text of a chat template, the number
of documents of a limited task) is null or left out, never guessed. Three keys are ours:
``loss_nats`` and ``p_right`` among the metrics, because they decide for prose and users' rows, and
where there are options; and ``num_loss_tokens`` in a sample, because that loss cannot be averaged
without it. lm-eval's readers ignore unknown keys.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rankwise.integrations.exports import Exported
from rankwise.integrations.sharing import local_folders
from rankwise.records.files import write_atomically
from rankwise.records.folder import LOSS_METRIC, StudyFolder
from rankwise.records.p_right import P_RIGHT
from rankwise.records.results import ModelResults
from rankwise.records.study import MetricScore, Provenance, StudyRecord, TaskEvaluation
from rankwise.study.reading import read_results

SOURCE = "rankwise"
"""Replaces the name of lm-eval's model class: these scores did not come from one."""

_NO_TEMPLATE = {"chat_template": None, "chat_template_sha": None}


def export_lm_eval(folder: StudyFolder, place: Path) -> list[Exported]:
    """Write the base and every trained run of a finished study as lm-eval writes a model.

    Each gets ``<place>/<model name>/results_<date>.json`` and, for every task,
    ``samples_<task>_<date>.jsonl``. The date is when the run was trained, or, for the
    base, when the study was last planned, in UTC. So the same records give the same files, byte for
    byte. Only the tasks that decide are written; lm-eval would not have scored the others (trained
    rows, tasks in the training format).

    Args:
        folder: a finished study's.
        place: the folder to write into.

    Raises:
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written.
    """
    study = folder.read_study()
    results = local_folders(folder, study).out_of(read_results(folder, study))
    by_relation = (names.values() for names in results.study.tasks.values())
    tasks = {task for relations in by_relation for names in relations for task in names}
    trained = [model for model in results.runs if model.run and model.run.status == "trained"]
    models = [model.limited_to(tasks) for model in (results.base, *trained)]
    return [_export(folder, results.study, model, place) for model in models]


def _export(folder: StudyFolder, study: StudyRecord, model: ModelResults, output: Path) -> Exported:
    provenance = study.provenance if model.run is None else model.run.provenance
    date = datetime.fromisoformat(provenance.created_at).astimezone(UTC)
    date_id = date.replace(tzinfo=None).isoformat().replace(":", "-")
    samples = {task: folder.read_samples(model.name, task) for task in model.evaluations}
    base_name = study.config.base_model.name.removeprefix("./")  # of a folder of this machine
    model_name = base_name if model.run is None else model.name
    target = output / _sanitised(model_name)
    files: list[Path] = []
    for task, lines in samples.items():
        files.append(target / f"samples_{_sanitised(task)}_{date_id}.jsonl")
        text = [json.dumps(_sample(line), ensure_ascii=False) + "\n" for line in lines]
        write_atomically(files[-1], "".join(text))
    versions, records = provenance.package_versions, model.evaluations.values()
    # the text of a chat template is not in the records, and null would mean that there was none
    template = {} if any(each.chat_template for each in records) else _NO_TEMPLATE
    content = {
        **_scores(model.evaluations),
        "config": _model_config(folder, study, model, provenance),
        "git_hash": provenance.git_commit,
        "date": date.timestamp(),
        "pretty_env_info": (
            f"rankwise version: {provenance.rankwise_version}\n"
            f"Python version: {provenance.python_version}\n"
            f"Python platform: {provenance.platform}"
        ),
        "transformers_version": versions.get("transformers"),
        "lm_eval_version": versions.get("lm-eval"),
        "upper_git_hash": None,
        "task_hashes": {task: _task_hash(lines) for task, lines in samples.items()},
        "model_source": SOURCE,
        "model_name": model_name,
        "model_name_sanitized": _sanitised(model_name),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": study.config.evaluation.fewshot_as_multiturn,
        **template,
        "total_evaluation_time_seconds": str(sum(each.score_seconds for each in records)),
    }
    results_file = target / f"results_{date_id}.json"
    write_atomically(results_file, json.dumps(content, indent=2, ensure_ascii=False))
    return Exported(model.name, results_file, samples_files=tuple(files))


def _scores(evaluations: Mapping[str, TaskEvaluation]) -> dict[str, Any]:
    """The result of ``lm_eval.evaluate``, without the samples."""
    by_name = sorted(evaluations.items())

    def num_documents(record: TaskEvaluation) -> int | None:
        """The task's documents; None if not all were scored."""
        is_whole = record.limit is None or record.num_examples < record.limit
        is_whole = is_whole and record.num_available in (None, record.num_examples)
        return record.num_examples if is_whole else None

    return {
        "results": {task: _task_results(record) for task, record in evaluations.items()},
        "group_subtasks": {},
        "configs": {task: _task_config(record) for task, record in by_name},
        "versions": {task: _version(record.task_version) for task, record in by_name},
        "n-shot": {task: record.num_fewshot for task, record in by_name},
        "higher_is_better": {task: _directions(record.metrics) for task, record in by_name},
        "n-samples": {
            task: {"original": num_documents(record), "effective": record.num_examples}
            for task, record in evaluations.items()
        },
    }


def _task_results(record: TaskEvaluation) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": record.task,
        "alias": record.task,
        "sample_len": record.num_examples,
    }
    for score in record.metrics:
        values[f"{score.metric},{score.filter}"] = score.value
        stderr = "N/A" if score.stderr is None else score.stderr
        values[f"{score.metric}_stderr,{score.filter}"] = stderr
    return values


def _task_config(record: TaskEvaluation) -> dict[str, Any]:
    """The part of a task's YAML that is in the record."""
    own = [score for score in record.metrics if score.metric not in (LOSS_METRIC, P_RIGHT)]
    config: dict[str, Any] = {
        "task": record.task,
        "num_fewshot": record.num_fewshot,
        "metric_list": [
            {"metric": metric, "higher_is_better": higher}
            for metric, higher in _directions(own).items()
        ],
        "output_type": record.output_type,
        "metadata": {"version": _version(record.task_version)},
    }
    if record.domain is not None:
        config["metadata"]["domain"] = record.domain
    filters = list(dict.fromkeys(score.filter for score in record.metrics))
    if filters != ["none"]:
        config["filter_list"] = [{"name": name} for name in filters]
    return config


def _directions(scores: Iterable[MetricScore]) -> dict[str, bool]:
    return {score.metric: score.higher_is_better for score in scores}


def _version(text: str) -> float | str:
    """The version as in the YAML: the record keeps 1.0 as "1.0"."""
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        if str(value) == text:
            return value
    return text


def _model_config(
    folder: StudyFolder, study: StudyRecord, model: ModelResults, provenance: Provenance
) -> dict[str, Any]:
    """What was scored and how; null for settings that a study does not have."""
    arguments = {"pretrained": study.config.base_model.name + study.config.start_in_words}
    if study.config.base_model.revision is not None:
        arguments["revision"] = study.config.base_model.revision
    if model.run is not None:
        planned = model.run.planned
        weights = folder.weights_folder(planned)  # an imported checkpoint is not in the study
        is_inside = weights.is_relative_to(folder.root)
        weights = (weights.relative_to(folder.root) if is_inside else weights).as_posix()
        is_lora = planned.method == "lora"
        arguments = arguments | {"peft": weights} if is_lora else {"pretrained": weights}
    unknown = ("batch_size", "use_cache", "bootstrap_iters", "gen_kwargs")
    seeds = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
    return {
        "model": SOURCE,
        "model_args": arguments,
        "model_num_parameters": None,
        "model_dtype": f"torch.{study.precision}",
        "model_revision": study.config.base_model.revision,
        "model_sha": None,
        **dict.fromkeys(unknown),
        "batch_sizes": [],
        "device": provenance.device,
        "limit": None,  # lm-eval's limit takes the first documents
        **dict.fromkeys(seeds),
    }


def _sample(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as lm-eval's tracker writes it: arguments by name, answers and target as text."""
    return {
        **line,
        "target": str(line["target"]),
        "arguments": {
            f"gen_args_{i}": {f"arg_{j}": argument for j, argument in enumerate(request)}
            for i, request in enumerate(line["arguments"])
        },
        "resps": _as_texts(line["resps"]),
        "filtered_resps": _as_texts(line["filtered_resps"]),
    }


def _as_texts(answers: Any) -> Any:
    return list(map(_as_texts, answers)) if isinstance(answers, list) else str(answers)


def _task_hash(lines: Iterable[Mapping[str, Any]]) -> str:
    """lm-eval's hash over the hashes of document, prompt and target of every line, in order."""
    parts = (line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _sanitised(name: str) -> str:
    """A name made fit for a file, as lm-eval does it; one of dots alone would lead elsewhere."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+|^\.+$", "__", name)
