"""The rows that arms against forgetting read besides, and the texts that the base writes for them.

This is work of the training stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankwise.errors import DataError
from rankwise.records.config.mitigations import RowsConfig
from rankwise.records.fingerprints import fingerprint
from rankwise.records.own_texts import OwnTexts
from rankwise.records.study import PlannedRun

if TYPE_CHECKING:
    from rankwise.engine.training.trainees import Beside
    from rankwise.study.context import StudyContext
    from rankwise.tasks.training_rows import Example

OWN_TEXTS_REVISION = 1
"""A revision, as those in ``records.fingerprints``."""

_SEED = 0  # one set of texts for all runs and seeds: what differs between arms is not the texts


def rows_beside(context: StudyContext, run: PlannedRun) -> Beside:
    """What a run reads beside the rows of its trained task.

    Raises:
        DataError: a scored item is in every text of the base.
        ModelError: the base's weights cannot be read.
        StorageError: the base's own texts cannot be written.
    """
    from rankwise.engine.training.trainees import NOTHING_BESIDE, Beside

    arm = run.mitigation
    if arm is None:
        return NOTHING_BESIDE

    def examples(rows: RowsConfig | None) -> Sequence[Example]:
        return context.kept(_own_texts) if rows is None else context.plan.others[rows]

    replayed = () if arm.replay is None else examples(arm.replay.rows)
    held = examples(arm.kl.rows) if arm.kl is not None and arm.kl.has_rows else ()
    return Beside(replayed, held=[each.unlearned for each in held])


def _own_texts(context: StudyContext) -> list[Example]:
    """The base's own texts, without those that contain a scored item.

    They are written where there are none yet, and read from the study folder after that.
    """
    from rankwise.engine.models.own_texts import NUM_TEXTS, NUM_TOKENS, write_texts
    from rankwise.tasks.overlap import find_overlap
    from rankwise.tasks.training_rows import Example, TextEncoder, TrainingRow

    folder, plan = context.folder, context.plan
    base = plan.record.base_model_fingerprint
    wanted = fingerprint([OWN_TEXTS_REVISION, base, NUM_TEXTS, NUM_TOKENS, _SEED])
    record = folder.finished(folder.own_texts_file, OwnTexts, wanted)
    if record is None:
        written = write_texts(
            context.models.base().eval(),
            TextEncoder(plan.tokenizer).prefix_id,
            number=NUM_TEXTS,
            num_tokens=NUM_TOKENS,
            seed=_SEED,
        )
        texts = tuple(plan.tokenizer.batch_decode(written))
        record = OwnTexts(fingerprint=wanted, tokens=tuple(written), texts=texts)
        folder.write(folder.own_texts_file, record)
    rows = {"own texts": [TrainingRow("", text) for text in record.texts]}
    overlap = find_overlap(rows, [*plan.tasks.values()], plan.tokenizer)
    kept = [record.tokens[place] for place in overlap.other_rows["own texts"]]
    if not kept:
        raise DataError(
            f"each of the texts in {folder.own_texts_file} contains a scored item. Let the "
            "arms read rows of a task or of your own instead (kl: {at: rows}, "
            "replay: {rows: ...})."
        )
    return [Example(text, len(text) - 1, is_truncated=False) for text in kept]
