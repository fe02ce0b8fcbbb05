"""``retention: general``: which tasks of the set the base can do.

The base is scored first. What it cannot do, or does without fault, shows no loss and is left out,
by a rule that reads the base's scores alone: no run has a say in what it is judged by.
"""

from __future__ import annotations

from rankwise.errors import PlanError
from rankwise.records import quantities
from rankwise.records.fingerprints import scoring_fingerprint
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.study import StudyRecord, TaskEvaluation
from rankwise.tasks.resolution import GENERAL

CEILING = 0.97
"""The largest share of items that a base may have right: a base that may have more of them right
knows them too well."""

_TWO_SIDED = 0.90  # each side's bound holds with 95 %


def with_able_tasks(study: StudyRecord, folder: StudyFolder) -> StudyRecord | None:
    """A planned study without the tasks of the set that its base cannot do.

    None where its base is not scored on all of them yet.

    Raises:
        PlanError: no retention task is left.
        RecordError: a score cannot be read.
    """
    of_set = study.groups.get(GENERAL, ())
    found: dict[str, TaskEvaluation] = {}
    for task in (t for its in study.tasks.values() for t in its["retention"] if t in of_set):
        path, wanted = folder.evaluation_file(BASE, task), scoring_fingerprint(study, None, task)
        scored = folder.finished(path, TaskEvaluation, wanted)
        if scored is None:
            return None
        found[task] = scored
    unable = {task: why for task, scored in found.items() if (why := why_unable(scored))}
    left = study.without(unable)
    if unable and not all(its["retention"] for its in left.tasks.values()):
        why = "; ".join(unable.values())
        problem = f"evaluation.retention: no task is left ({why}); name tasks that the base can do"
        raise PlanError(study.config.name, study.config.base_model.name, [problem])
    return left.model_copy(update={"unable": {**study.unable, **unable}})


def why_unable(scored: TaskEvaluation) -> str | None:
    """Why a task would show no loss of this base, in a sentence; None where it would."""
    from scipy.stats import binomtest  # slow to load

    number, right, chance = scored.num_examples, scored.decision.value, scored.chance or 0.0
    bounds = binomtest(round(right * number), number).proportion_ci(_TWO_SIDED)
    what = f"of {GENERAL}, {scored.task} is left out: the base has {quantities.share(right)} right"
    if bounds.low <= chance:
        return f"{what}, and guessing {quantities.share(chance)}"
    if bounds.high > CEILING:
        return f"{what}, so hardly an item is near enough to wrong to show a loss"
    return None
