"""Does the units of a study in this process, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from rankwise.engine.models.devices import is_out_of_memory
from rankwise.errors import OutOfMemoryError, RankwiseError, StorageError
from rankwise.study.agenda import Agenda, Unit
from rankwise.study.context import StudyContext


def work_here(context: StudyContext, agenda: Agenda) -> None:
    """Do all that is left; what fails is recorded, and what does not need it goes on.

    Raises:
        StorageError: the folder cannot be written.
        Stopped: a signal asked for it; what was trained is saved.
    """
    for unit in agenda.units:
        do_unit(context, agenda, unit)
    context.forget()


def do_unit(context: StudyContext, agenda: Agenda, unit: Unit) -> None:
    """Do what can be done of a unit by now; see ``work_here``."""
    for stage in unit.stages:
        if not agenda.is_due(stage):
            continue
        try:
            with _enough_memory():
                context.tell.stage_started(stage.id)
                stage.do(context, agenda.ready(stage))
                context.tell.stage_finished()
        except StorageError:
            raise  # a full disk fails every stage
        except RankwiseError as error:
            agenda.failed(stage, error)
        else:
            agenda.finished(stage.id)
            continue
        context.models.release(base=True)  # only now: the error held on to its frames


@contextlib.contextmanager
def _enough_memory() -> Generator[None]:
    """Within the block, an error that says that memory ran out says what to do about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise OutOfMemoryError(
            f"it does not fit into memory ({first}). "
            "Lower train.max_length or evaluation.max_batch_tokens, choose "
            "train.base_precision=4bit or methods.full.weights=bfloat16, or leave full fine-tuning "
            "out with methods.full=null; then run again: finished work is kept."
        ) from error
