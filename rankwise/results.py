"""A study as read back from its folder: what recommendations and the report are made from."""

from __future__ import annotations

from rankwise.records import (
    PlannedRun,
    Record,
    Relation,
    RunRecord,
    StudyRecord,
    TaskEvaluation,
    Unit,
)


class TaskItems(Record):
    """The deciding metric of one model on one task, item by item.

    ``values`` has one number per item in the order of ``doc_ids``. With unit ``points`` it is a
    share (0 or 1 for accuracy). With ``nats`` it is the item's mean loss per token; in prose
    longer items weigh more, so that the mean over the items is the loss per token of them all.
    """

    task: str
    metric: str
    unit: Unit
    higher_is_better: bool
    doc_ids: tuple[int, ...]
    values: tuple[float, ...]


class ModelResults(Record):
    """Everything measured on one model; ``run`` is None for the untouched base."""

    name: str
    run: RunRecord | None
    evaluations: dict[str, TaskEvaluation]
    items: dict[str, TaskItems]


class StudyResults(Record):
    """A study as read back: what recommendations and the report are made from."""

    study: StudyRecord
    base: ModelResults
    runs: tuple[ModelResults, ...]

    @property
    def by_train_task(self) -> tuple[TrainTaskResults, ...]:
        """The results of what each task was trained for, in the study's order."""
        return tuple(self.of(train_task) for train_task in self.study.tasks)

    def of(self, train_task: str) -> TrainTaskResults:
        """The runs trained on one task, and the base on the tasks that these are scored on."""
        scored = self.study.scored_tasks(train_task)
        return TrainTaskResults(
            study=self.study,
            train_task=train_task,
            base=self.base.model_copy(
                update={
                    "evaluations": {
                        task: record
                        for task, record in self.base.evaluations.items()
                        if task in scored
                    },
                    "items": {t: items for t, items in self.base.items.items() if t in scored},
                }
            ),
            runs=tuple(
                model
                for model in self.runs
                if model.run is not None and model.run.planned.train_task == train_task
            ),
        )


class TrainTaskResults(Record):
    """The part of a study's results whose runs were trained on one task."""

    study: StudyRecord
    train_task: str
    base: ModelResults
    runs: tuple[ModelResults, ...]

    @property
    def tasks(self) -> dict[Relation, tuple[str, ...]]:
        """The tasks that decide, by their relation to what was trained on."""
        return self.study.tasks[self.train_task]

    @property
    def trained_formats(self) -> dict[str, str]:
        """Under which name a task was scored as the training asked."""
        return self.study.trained_formats[self.train_task]

    @property
    def trained_items(self) -> dict[str, str]:
        """Under which name rows of a task that were trained on were scored."""
        return self.study.trained_items[self.train_task]

    @property
    def planned(self) -> tuple[PlannedRun, ...]:
        """The runs that the study plans for this task."""
        return tuple(run for run in self.study.runs if run.train_task == self.train_task)
