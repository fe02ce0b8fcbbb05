"""Folders of users that rankwise writes into: it replaces and removes what it wrote there itself.

Beside its files lies a manifest of them. A file that is not in it, or that was changed since, is
the user's: it is named, and stays unless the user says otherwise. Below the folder no link is
followed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from pathlib import Path

from rankwise.errors import ConfigError, RecordError, StorageError
from rankwise.records.base import VersionedRecord
from rankwise.records.fields import PlaceBelow, path_problem, place_below
from rankwise.records.files import (
    digest_of,
    is_sealed,
    read_record,
    storage_error,
    temporary_beside,
    write_atomically,
    write_record,
    writing,
)
from rankwise.records.names import MANIFEST

OVERWRITE = "move it away, choose another place, or give --overwrite"
IN_THE_WAY = "move it away, or choose another place"
FOREIGN = "was not written by rankwise"
_MOST_NAMED = 10


class WrittenFiles(VersionedRecord, has_texts=False):
    """``.rankwise-written.json``: what rankwise has written into a folder."""

    files: dict[PlaceBelow, tuple[str, ...]]
    """Name below the folder -> sha256 of the file. A second one is of the file that it replaces:
    that is there as long as the process was killed in between."""


@contextlib.contextmanager
def output_folder(
    target: Path,
    *,
    overwrite: bool = False,
    replaces: Sequence[str] = (),
    records: Collection[str] = (),
) -> Generator[Path]:
    """Yields a temporary folder on the target's disk; the target gets the files written there.

    A target that is new is renamed into place. In one that exists, each file is, once all of them
    are written; its other files stay.

    Args:
        target: a folder, or a link to one.
        overwrite: replace files of the user's, too.
        replaces: beginnings of names. What rankwise wrote there before and does not write now is
            removed, and so are folders that are empty then.
        records: names of records that rankwise writes without this list, too: whether they are as
            it wrote them, their own checksums show.

    Raises:
        ConfigError: a file of the user's is in the way; nothing was changed.
        StorageError: disk full, no permission. Errors of the block are passed on. In every case
            the temporary folder is removed.
    """
    target = _resolved(target)
    there = next(path for path in (target, *target.parents) if path.is_dir())
    temporary = temporary_beside(there / (target.name or "output"))
    try:
        with writing(target):
            temporary.mkdir()
        yield temporary
        with writing(target):
            _Target(target, records).take(temporary, replaces, overwrite=overwrite)
    except StorageError as error:  # names the temporary folder
        cause: BaseException = error
        while isinstance(cause, StorageError) and isinstance(cause.__cause__, OSError):
            cause = cause.__cause__
        assert isinstance(cause, OSError)
        raise storage_error(target, cause) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_outputs(
    target: Path,
    contents: Mapping[str, str | bytes],
    *,
    overwrite: bool = False,
    replaces: Sequence[str] = (),
) -> None:
    """Write name -> content into a folder; see ``output_folder``."""
    with output_folder(target, overwrite=overwrite, replaces=replaces) as temporary:
        for name, content in contents.items():
            write_atomically(temporary / name, content)


def refuse_foreign(
    target: Path,
    names: Iterable[str],
    *,
    overwrite: bool = False,
    records: Collection[str] = (),
    remedy: str = OVERWRITE,
) -> None:
    """Refuse an output before the work for it, where it would meet files of the user's.

    Args:
        target: the folder that is written to.
        names: of the files.
        overwrite: whether the user's files may be replaced.
        records: see ``output_folder``.
        remedy: what to do about them.

    Raises:
        ConfigError: they are there and may not be replaced.
        StorageError: the folder may not be read.
    """
    target = _resolved(target)
    with writing(target):
        _Target(target, records).refuse(dict.fromkeys(names, ""), remedy, overwrite=overwrite)


def written_into(target: Path) -> Mapping[str, Sequence[str]]:
    """What rankwise has written into a folder: name -> sha256, see ``WrittenFiles``."""
    manifest = target / MANIFEST
    if manifest.is_file() and not manifest.is_symlink():
        with contextlib.suppress(RecordError):  # of a broken one, nothing is believed
            return read_record(manifest, WrittenFiles).files
    return {}


def _resolved(target: Path) -> Path:
    if problem := path_problem(target):
        raise ConfigError(str(target), [problem])
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_dir():
        raise ConfigError(str(target), ["it is not a folder; name another place"])
    return target


class _Target:
    """A folder with what rankwise wrote there before."""

    def __init__(self, root: Path, records: Collection[str]) -> None:
        self._root, self._known, self._records = root, written_into(root), records

    def take(self, temporary: Path, replaces: Sequence[str], *, overwrite: bool) -> None:
        """Move the files of another folder here, and remember them first."""
        files = {
            path.relative_to(temporary).as_posix(): digest_of(path).sha256
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        self.refuse(files, OVERWRITE, overwrite=overwrite)
        # as rankwise wrote them
        there = [name for name in self._known if os.path.lexists(self._root / name)]
        kept = [name for name in there if self._fault(name) is None]
        own = {name: digest_of(self._root / name).sha256 for name in kept}
        others = {name: (sha256,) for name, sha256 in own.items() if name not in files}
        new = {name: (sha256, *filter(None, [own.get(name)])) for name, sha256 in files.items()}
        is_new = not self._root.exists()
        manifest = (temporary if is_new else self._root) / MANIFEST
        write_record(manifest, WrittenFiles(files=others | new))
        if is_new:
            self._root.parent.mkdir(parents=True, exist_ok=True)
            temporary.rename(self._root)
            return
        for name in files:
            (self._root / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).replace(self._root / name)
        for name in others:
            if name.startswith(tuple(replaces)):
                (self._root / name).unlink()
                with contextlib.suppress(OSError):  # something is in it
                    for folder in Path(name).parents[:-1]:
                        (self._root / folder).rmdir()

    def refuse(self, files: Mapping[str, str], remedy: str, *, overwrite: bool) -> None:
        """Name what may not be replaced by files of these names and hashes."""
        found = [(name, self._fault(name, sha256)) for name, sha256 in files.items()]
        problems = [
            f"{name or '.'} {fault[0]}; {remedy if fault[1] else IN_THE_WAY}"
            for name, fault in found
            if fault is not None and not (fault[1] and overwrite)
        ]
        if problems:
            rest = [f"and {len(problems) - _MOST_NAMED} more"] * (len(problems) > _MOST_NAMED)
            raise ConfigError(str(self._root), [*problems[:_MOST_NAMED], *rest])

    def _fault(self, name: str, sha256: str = "") -> tuple[str, bool] | None:
        """Why a file may not be written there, and whether a yes helps; None: nothing is lost."""
        file = self._root / name
        try:
            place_below(name)
        except ValueError:
            return "cannot be the name of an output", False
        for folder in reversed(Path(name).parents[:-1]):
            on_the_way = self._root / folder
            if on_the_way.is_symlink() or (on_the_way.exists() and not on_the_way.is_dir()):
                return f"would go through {folder}, which is not a folder", False
        if not os.path.lexists(file):
            return None
        mode = file.lstat().st_mode
        if stat.S_ISDIR(mode):
            return "is a folder", False
        known = self._known.get(name, ())
        ours = {sha256, *known} - {""}
        if stat.S_ISREG(mode) and (
            (name in self._records and is_sealed(file)) or (ours and digest_of(file).sha256 in ours)
        ):
            return None
        return ("was changed since rankwise wrote it" if known else FOREIGN), True
