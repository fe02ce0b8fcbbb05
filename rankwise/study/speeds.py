"""How long work took on this machine, remembered from study to study.

A small file in the user's cache folder. Whatever is wrong with it, it is as if it were not there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rankwise.errors import RecordError, StorageError
from rankwise.records.base import VersionedRecord
from rankwise.records.files import cache_folder, read_record, write_record
from rankwise.records.fingerprints import fingerprint
from rankwise.records.study import StudyRecord
from rankwise.study.times import Spent

LEAST_SECONDS = 5.0
"""A kind that took less than this is not remembered: loading took as long."""

MOST_REMEMBERED = 32
"""Bases, precisions and devices of which speeds are kept: a file of some kilobytes."""


class RememberedSpeeds(VersionedRecord, has_texts=False):
    """``speeds.json`` in the cache folder: how long work took on this machine."""

    seconds_per_work: dict[str, dict[str, Annotated[float, Field(gt=0, lt=1e6)]]]
    """Base, precision and device, as a fingerprint -> kind of stage -> seconds per unit of work in
    the last study; what was written last comes last."""


def remembered_speeds(study: StudyRecord) -> Mapping[str, float]:
    """Kind of stage -> seconds per unit of work in the last study of this base on this device.

    Empty where there was none.
    """
    return _remembered().get(_key(study), {})


def remember_speeds(study: StudyRecord, spent: Mapping[str, Spent]) -> None:
    """Keep how long each kind of stage took; where the cache cannot be written, nothing is kept."""
    now = {kind: s / work for kind, (s, work) in spent.items() if s >= LEAST_SECONDS}
    if not now:
        return
    known, key = _remembered(), _key(study)
    known[key] = known.pop(key, {}) | now
    kept = dict([*known.items()][-MOST_REMEMBERED:])
    with contextlib.suppress(StorageError):
        write_record(_path(), RememberedSpeeds(seconds_per_work=kept))


def _remembered() -> dict[str, dict[str, float]]:
    with contextlib.suppress(RecordError, StorageError):
        return dict(read_record(_path(), RememberedSpeeds).seconds_per_work)
    return {}


def _key(study: StudyRecord) -> str:
    made_by = study.base_model_fingerprint, study.precision, study.provenance.device
    return fingerprint(made_by)[:16]


def _path() -> Path:
    return cache_folder() / "speeds.json"
