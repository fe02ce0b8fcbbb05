"""Sample files of lm-evaluation-harness, as scorings of models on tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankwise.records.files import digest_of
from rankwise.records.grouping import grouped
from rankwise.records.lm_eval_samples import file_names, read_compared, task_of
from rankwise.records.p_right import ACCURACY, P_RIGHT, option_nats
from rankwise.records.results import LOSS_METRIC
from rankwise.records.study import Unit
from rankwise.scores.asked import Asked
from rankwise.scores.models import ScoredModel
from rankwise.scores.scoring import Given, Item, Scoring

_UNITS: dict[str, Unit] = {"points": "points", "nats": "nats"}


def samples_given(paths: Sequence[Path], asked: Asked) -> Given:
    """What the files say; the first file's model is the base.

    Raises:
        DataError: a file cannot be read, or is given twice.
        TaskError: a file does not have the metric or the filter.
        RecordError: files of a task are not about the same items.
    """
    by_task = grouped((task_of(path) or "task", path) for path in paths)
    if len(by_task) == 1:
        names = dict(zip(paths, file_names(paths), strict=True))
    else:  # of several tasks, a model is the folder that has a file of each
        names = {path: path.resolve().parent.name for path in paths}
    scorings: list[Scoring] = []
    notes: list[str] = []
    for task, (base, *others) in by_task.items():
        compared = read_compared(base, others, asked.metric, asked.filter)
        notes += compared.notes
        for file in compared.files:
            lines = file.lines[compared.filter]
            has_options = all(len(option_nats(line)) > 1 for line in lines)
            is_rolling = all(item.is_rolling for item in file.filters[compared.filter])
            output_type = "multiple_choice" if has_options else "generate_until"
            if not has_options and is_rolling and compared.metric == LOSS_METRIC:
                output_type = "loglikelihood_rolling"
            scorings.append(
                Scoring(
                    ScoredModel(names[file.path]),
                    task,
                    ACCURACY if compared.metric == P_RIGHT else compared.metric,
                    {
                        line["doc_id"]: Item(
                            f"{file.path} doc_id {line['doc_id']}",
                            {**line, "filter": compared.filter},
                        )
                        for line in lines
                    },
                    unit=_UNITS.get(compared.unit, "units"),
                    higher_is_better=compared.higher_is_better,
                    filter=compared.filter,
                    output_type=output_type,
                    decides=compared.metric,
                )
            )
    files = {str(path): digest_of(path).sha256 for path in paths}
    return Given(scorings, files, base=names[paths[0]], notes=tuple(notes))
