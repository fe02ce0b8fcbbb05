"""What an export of a study is made of, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Exported(NamedTuple):
    """A file of an export.

    Attributes:
        name: of the model, run or table that is in it.
        file: that was written.
        remarks: what it does not say, one sentence each.
        samples_files: that were written beside it, with a model's items.
    """

    name: str
    file: Path
    remarks: tuple[str, ...] = ()
    samples_files: tuple[Path, ...] = ()

    def moved(self, source: Path, target: Path) -> Exported:
        """The same files in another folder."""
        file, *samples = (
            target / path.relative_to(source) for path in (self.file, *self.samples_files)
        )
        return self._replace(file=file, samples_files=tuple(samples))
