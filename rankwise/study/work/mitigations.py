"""What arms against forgetting need besides: rows, the base's own texts, its leading directions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from rankwise.engine.models.base import fetch_weights
from rankwise.engine.models.own_texts import NUM_TEXTS, NUM_TOKENS, write_texts
from rankwise.engine.models.trained_adapters import Directions
from rankwise.engine.models.weights import weight_matrices
from rankwise.engine.training.trainees import NOTHING_BESIDE, Beside
from rankwise.records.config.mitigations import RowsConfig
from rankwise.records.fingerprints import own_texts_fingerprint
from rankwise.records.own_texts import OwnTexts
from rankwise.records.study import PlannedRun
from rankwise.study.context import StudyContext
from rankwise.tasks.overlap import find_overlap
from rankwise.tasks.training_rows import Example, TextEncoder, TrainingRow
from rankwise.weights.svd_cache import SpectralCache

_SEED = 0  # one set of texts for all runs and seeds: what differs between arms is not the texts


def own_texts(context: StudyContext) -> tuple[tuple[int, ...], ...]:
    """The tokens of every text; texts that contain a scored item are left out.

    They are written where there are none yet, and read from the study folder after that.

    Raises:
        ModelError: the base's weights cannot be read.
        StorageError: the folder cannot be written.
    """
    folder, study = context.folder, context.study
    wanted = own_texts_fingerprint(study, [NUM_TEXTS, NUM_TOKENS, _SEED])
    record = folder.finished(folder.own_texts_file, OwnTexts, wanted)
    if record is None:
        written = write_texts(
            context.models.base().eval(),
            TextEncoder(context.plan.tokenizer).prefix_id,
            number=NUM_TEXTS,
            num_tokens=NUM_TOKENS,
            seed=_SEED,
        )
        texts = tuple(context.plan.tokenizer.batch_decode(written))
        rows = {"own texts": [TrainingRow("", text) for text in texts]}
        overlap = find_overlap(rows, [*context.plan.tasks.values()], context.plan.tokenizer)
        kept = overlap.other_rows["own texts"]
        record = OwnTexts(
            fingerprint=wanted,
            tokens=tuple(written[place] for place in kept),
            texts=tuple(texts[place] for place in kept),
            num_overlapping=len(written) - len(kept),
        )
        folder.write(folder.own_texts_file, record)
    return record.tokens


def read_beside(context: StudyContext, run: PlannedRun) -> Beside:
    """What a run reads beside the rows of its trained task.

    Raises:
        ModelError: the base's weights cannot be read.
        StorageError: the base's own texts cannot be written.
    """
    arm = run.mitigation
    if arm is None:
        return NOTHING_BESIDE
    replay, kl = arm.replay, arm.kl

    def examples(rows: RowsConfig | None) -> Sequence[Example]:
        if rows is not None:
            return context.plan.others[rows]
        return [Example(text, len(text) - 1, is_truncated=False) for text in own_texts(context)]

    return Beside(
        replayed=() if replay is None else examples(replay.rows),
        held=[each._replace(num_loss_tokens=0) for each in examples(kl.rows)]
        if kl is not None and kl.has_rows
        else (),
    )


class LeadingDirections:
    """The leading singular directions of the base's weights, read when they are first asked for."""

    def __init__(self, context: StudyContext) -> None:
        self._context = context
        self._weights: dict[str, Tensor] = {}
        self._cache = SpectralCache()

    def of(self, layers: Collection[str], number: int) -> dict[str, Directions]:
        """Of each of some layers.

        Raises:
            ModelError: the base's weights cannot be read.
        """
        missing = [name for name in layers if name not in self._weights]
        if missing:
            folder = fetch_weights(self._context.plan.base)
            self._weights |= weight_matrices(folder, missing)
        found: dict[str, Directions] = {}
        for name in layers:
            svd = self._cache.svd(self._weights[name])
            found[name] = Directions(svd.U[:, :number], svd.Vh[:number].T)
        return found
