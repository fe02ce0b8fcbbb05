"""Reads rows as they are: files, data sets of the Hub, and the rows that come with rankwise."""

from __future__ import annotations

import codecs
import contextlib
import csv
import hashlib
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, cast

from rankwise.errors import DataError, did_you_mean
from rankwise.records.config.own_rows import HubData, hub_data
from rankwise.records.files import in_words, read_regular
from rankwise.records.json_reading import (
    MOST_BYTES,
    JsonError,
    holds_half,
    may_hold_half,
    parse_exactly,
    refuse_values,
)
from rankwise.records.yaml_reading import shown

MOST_ROWS = 1_000_000
"""A study trains and scores each row many times, and all rows are in memory."""

_BUNDLED = "bundled/"
"""Before the name of rows that come with rankwise, where data sets of the Hub have their owner."""

_DELIMITERS = (",", ";", "\t", "|")
_NETWORK = "Check the name, `hf auth login` for gated data sets, and the network (HF_HUB_OFFLINE)."

# Not splitlines(): texts may contain U+0085, U+2028 and the like.
_JSON_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_CSV_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")

_HALF = "half a surrogate pair; correct the character"  # which no file can hold
# A cell that was meant to be quoted: `a, "b"`.
_QUOTED_AFTER_SPACE = re.compile(r'\s+".*"\s*', re.DOTALL)


class RawRow(NamedTuple):
    """One row before anything is made of it.

    Attributes:
        place: as users count: line 17 of JSON Lines, row 17 of everything else, from 1.
        content: what stands there, a mapping of columns if all is well.
        problem: why it cannot be read, with a remedy; None if it can.
    """

    place: str
    content: Any
    problem: str | None = None


class RawRows(NamedTuple):
    """All rows of a file or a data set.

    Attributes:
        source: name of the file, or of the data set.
        format: JSON Lines, JSON, CSV, Parquet, Hub or bundled; behind it the encoding of a file, if
            it is not UTF-8.
        rows: in their order.
        revision: commit of the data set; None of a file.
        sha256: of the file; None of a data set.
    """

    source: str
    format: str
    rows: list[RawRow]
    revision: str | None = None
    sha256: str | None = None


def read_raw_rows(data: Path) -> RawRows:
    """Every row of a file or a data set, as it is.

    Args:
        data: a path, or ``org/name[:config][@revision][/split]``, the name of a data set of the
            Hub, or ``bundled/name``. The file's ending says what it is; without a known one it is
            JSON Lines.

    Raises:
        DataError: it is not there, or it is not of its format as a whole.
    """
    hub = hub_data(data)
    if hub is not None and hub.repository.startswith(_BUNDLED):
        from rankwise.tasks.bundled.own_sets import SETS

        if str(hub) not in {f"{_BUNDLED}{name}" for name in SETS}:
            hint = did_you_mean(hub.name, SETS) or f"there are {', '.join(SETS)}."
            raise DataError(f"no rows named {hub} come with rankwise; {hint}")
        return RawRows(str(hub), "bundled", _numbered(SETS[hub.name]()))
    if hub is not None:
        return _hub_rows(hub)
    try:
        content = read_regular(data, MOST_BYTES)
    except (OSError, ValueError) as error:  # also of a path with a NUL
        raise DataError(f"{data} cannot be read: {error}. Check the path.") from error
    ending = data.suffix.lower()
    if ending == ".parquet":
        kind, rows = "Parquet", _parquet_rows(data, content)
    else:
        _refuse_packed(data, content)
        encoding = _encoding(content)
        if ending in (".csv", ".tsv"):
            marks = (f"{delimiter}\r\n" for delimiter in _DELIMITERS)
            kind, rows = "CSV", _csv_rows(data, _text(data, content, encoding, *marks))
        else:
            kind, rows = _json_rows(data, _text(data, content, encoding, "[{,:\n"))
        kind += "" if encoding == _UTF_8 else f" in {_NAMES[encoding]}"
    _refuse_many(data.name, len(rows))
    return RawRows(data.name, kind, rows, sha256=hashlib.sha256(content).hexdigest())


_PACKED = {
    b"\x1f\x8b": "packed by gzip; unpack it (gunzip), and give that",
    b"BZh": "packed by bzip2; unpack it (bunzip2), and give that",
    b"\xfd7zXZ\x00": "packed by xz; unpack it (unxz), and give that",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it (unzstd), and give that",
    b"PK\x03\x04": "a spreadsheet or a zip archive; save it as CSV, or unpack it, and give that",
    b"\xd0\xcf\x11\xe0": "a spreadsheet of old Excel; save it as CSV, and give that",
    b"PAR1": "a Parquet file; give it the ending .parquet",
}
"""What files of other kinds begin with, and what to do with them."""


def _refuse_packed(path: Path, content: bytes) -> None:
    for begin, what in _PACKED.items():
        if content.startswith(begin):
            raise DataError(f"{path} is {what}.")


def _refuse_many(source: str, num_rows: int) -> None:
    if num_rows > MOST_ROWS:
        raise DataError(
            f"{source} has more than {MOST_ROWS:,} rows, which is the most that is read. Give a "
            "part of it."
        )


_UTF_8 = "utf-8-sig"
_NAMES = {"utf-16": "UTF-16", "cp1252": "Windows-1252"}

_LATIN_SHARE = 0.75
"""Of the letters of a text in a western language, at least this share is in ASCII."""

# No text has these; a file of another kind nearly always does.
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _encoding(content: bytes) -> str:
    """How a file is encoded: in UTF-8; as its first bytes say; or as Windows writes in the west."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        content.decode(_UTF_8)
    except UnicodeDecodeError:
        pass
    else:
        return _UTF_8
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return _UTF_8  # which says where it fails
    letters = [letter for letter in text if letter.isalpha()]
    # of a text in another alphabet nearly all letters would be accented ones
    is_western = sum(map(str.isascii, letters)) >= _LATIN_SHARE * len(letters)
    return "cp1252" if is_western and not _CONTROL.search(content) else _UTF_8


def _text(path: Path, content: bytes, encoding: str, *marks: str) -> str:
    """A file's text, in which none of these sets of marks stands for too many values."""
    try:
        text = content.decode(encoding)
        refuse_values(max(sum(map(text.count, each)) for each in marks))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} cannot be read: line {line} is not {_NAMES.get(encoding, 'UTF-8')} ({error}). "
            "Save it in UTF-8."
        ) from error
    except JsonError as error:
        raise DataError(f"{path.name}: {error}.") from error
    return text


_DELIMITER_SAID = re.compile(r'"?sep=([,;\t|])"?\r?\n', re.IGNORECASE)


def _lines(text: str, line: re.Pattern[str]) -> Iterator[str]:
    """One by one; io.StringIO would take four bytes a character."""
    return (match[0] for match in line.finditer(text))


def _json_rows(path: Path, text: str) -> tuple[str, list[RawRow]]:
    """JSON Lines, or one list of rows, whatever the file is called."""
    if text.lstrip().startswith("["):
        try:
            return "JSON", _whole(_numbered(parse_exactly(text)), text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # else lines follow on a list
                raise DataError(
                    f"{path.name} is a JSON list that breaks off at line {error.lineno}, column "
                    f"{error.colno}: {error.msg}. Correct it there, or write one object a line."
                ) from error
        except JsonError as error:
            raise DataError(f"{path.name}: {error}.") from error
    lines = enumerate(_lines(text, _JSON_LINE), 1)
    written = (_json_row(f"line {number}", line) for number, line in lines if line.strip())
    rows = list(itertools.islice(written, MOST_ROWS + 1))
    # one line of JSON Lines is a row
    whole = rows[0].content if len(rows) == 1 and path.suffix.lower() == ".json" else None
    if len(rows) > 1 and rows[0].problem is not None:
        whole = _json_row("", text).content
    if isinstance(whole, dict) and (within := _list_of_rows(path, whole)) is not None:
        return "JSON", _whole(within, text)
    if isinstance(whole, dict) and len(rows) > 1:
        raise DataError(
            f"{path.name} is one JSON object over {len(rows)} lines. Write a list of rows, [...], "
            "or one object a line."
        )
    return "JSON Lines", rows


_OF_ROWS = frozenset({"prompt", "question", "instruction", "text", "messages", "conversations"})
"""Columns that a row has, and an object with a list of rows has not."""


def _is_no_turn(value: Any) -> bool:
    """Whether an object may be a row; a turn of a conversation is a part of one."""
    names = set[str](value) if isinstance(value, dict) else {"role", "content"}
    return not (names >= {"role", "content"} or names >= {"from", "value"})


def _whole(rows: list[RawRow], text: str) -> list[RawRow]:
    """The rows, those with half a character marked."""
    if not may_hold_half(text):
        return rows
    return [row._replace(problem=_HALF if holds_half(row.content) else None) for row in rows]


def _list_of_rows(path: Path, whole: Mapping[str, Any]) -> list[RawRow] | None:
    """The rows of the only list of objects in a JSON object: ``{"data": [...]}``.

    Raises:
        DataError: there are several such lists.
    """
    if {*whole} & _OF_ROWS:
        return None
    lists = {
        name: value
        for name, value in whole.items()
        if isinstance(value, list) and value and all(map(_is_no_turn, value))
    }
    if not lists:
        return None
    if len(lists) > 1:
        raise DataError(
            f"{path.name} has {len(lists)} lists of rows: {', '.join(map(shown, lists))}. Give one "
            "as a file of its own."
        )
    return _numbered(*lists.values())


def _json_row(place: str, line: str) -> RawRow:
    try:
        content = parse_exactly(line)
        return RawRow(
            place, content, _HALF if may_hold_half(line) and holds_half(content) else None
        )
    except JsonError as error:
        return RawRow(place, None, str(error))
    except ValueError as error:
        return RawRow(place, None, f"{error}; write a JSON object there, or drop the row")


def _csv_rows(path: Path, text: str) -> list[RawRow]:
    """The cells of each row by the header's names; blank lines count for nothing."""
    # Python's csv refuses cells of more than 131,072 characters by default
    before = csv.field_size_limit(sys.maxsize)
    try:
        said = _DELIMITER_SAID.match(text)  # by Excel, for itself
        text = text if said is None else text[said.end() :]
        delimiter = max(_DELIMITERS, key=lambda mark: len(_header(text, mark)))
        delimiter = delimiter if said is None else said[1]
        header = [name.strip() for name in _header(text, delimiter)]
        while len(header) > 1 and not header[-1]:  # as Excel saves columns that were emptied
            header.pop()
        name, times = max(Counter(header).items(), key=itemgetter(1), default=("", 0))
        if times > 1:
            raise DataError(
                f"{path.name} row 0, the header, names column {shown(name)} twice. Rename one."
            )
        reader = csv.reader(_lines(text, _CSV_LINE), delimiter=delimiter, strict=True)
        return list(itertools.islice(_csv_cells(path, reader, header, delimiter), MOST_ROWS + 1))
    finally:
        csv.field_size_limit(before)


def _csv_cells(path: Path, reader: Any, header: Sequence[str], delimiter: str) -> Iterator[RawRow]:
    number = -1  # the header is row 0
    try:
        for number, cells in enumerate(filter(None, reader)):
            if number == 0:
                continue
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            problem = None
            if len(cells) != len(header):
                problem = (
                    f"has {len(cells)} cells and the header {len(header)}; put quotes around cells "
                    f"that contain {delimiter!r}, and give every cell"
                )
            elif any(_QUOTED_AFTER_SPACE.fullmatch(cell) for cell in cells):
                problem = "has a space before a quote, which then is text; take the space away"
            yield RawRow(f"row {number}", dict(zip(header, cells, strict=False)), problem)
    except csv.Error as error:
        raise DataError(
            f"{path.name} row {number + 1}, up to line {reader.line_num}: {error}. Close its "
            "quotes, and double those within a cell."
        ) from error


def _header(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(_lines(text, _CSV_LINE), delimiter=delimiter), [])
    except csv.Error:
        return []


def _parquet_rows(path: Path, content: bytes) -> list[RawRow]:
    from pyarrow import parquet

    rows: list[dict[str, Any]] = []
    num_bytes = 0
    with _table_read(str(path)):
        file = parquet.ParquetFile(io.BytesIO(content))
        _refuse_many(path.name, file.metadata.num_rows)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        refuse_values(sum(column.num_values for column in columns))
        # as many as fit into memory even if each holds the largest text that the file can have
        largest = max((column.total_uncompressed_size for column in columns), default=1)
        at_once = max(1, min(1_000, MOST_BYTES // max(largest, 1)))
        for batch in file.iter_batches(at_once):
            rows += batch.to_pylist()
            num_bytes += _size(rows[-batch.num_rows :])  # Arrow may hold equal texts once
            if num_bytes > MOST_BYTES:
                raise DataError(
                    f"{path.name} unpacks to more than {in_words(MOST_BYTES)}, which is the most "
                    "that is read. Give a part of it."
                )
    return _numbered(rows)


@contextlib.contextmanager
def _table_read(source: str) -> Generator[None]:
    """Within the block, what cannot be read is our error: texts that are none, times beyond all."""
    from pyarrow import ArrowException

    try:
        yield
    except DataError:
        raise
    except JsonError as error:
        raise DataError(f"{source}: {error}.") from error
    except (
        *(ArrowException, OSError, ValueError, ArithmeticError, LookupError),
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{source} cannot be read: {reason}. Save it again, with columns of text."
        ) from error


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, cast(dict[str, Any], value).values()))
    return sum(map(_size, cast(list[Any], value))) if isinstance(value, list) else 8


def _hub_rows(hub: HubData) -> RawRows:
    """A split of a data set, at one commit."""
    from datasets import ClassLabel, load_dataset_builder
    from datasets.exceptions import DatasetsError

    try:
        builder: Any = load_dataset_builder(hub.repository, hub.config, revision=hub.revision)
        builder.download_and_prepare()
    except (DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{hub} is neither an existing file nor a data set that can be had: {reason} {_NETWORK}"
        ) from error
    splits = list(builder.info.splits or {})
    split = hub.split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if split not in splits:
        raise DataError(
            f"{hub} has no split {split!r}; it has {', '.join(splits) or 'none'}. Name one: "
            f"{hub._replace(split='SPLIT')}."
        )
    rows = builder.as_dataset(split=split)
    labels = {name: kind for name, kind in rows.features.items() if isinstance(kind, ClassLabel)}
    named = (
        row | {name: _class_name(kind, row[name]) for name, kind in labels.items()} for row in rows
    )
    pinned = hub._replace(config=builder.config.name, revision=builder.hash, split=split)
    _refuse_many(str(pinned), rows.num_rows)
    with _table_read(str(pinned)):
        return RawRows(str(pinned), "Hub", _numbered(named), revision=builder.hash)


def _class_name(kind: Any, number: int | None) -> str | None:
    """The name of a class; None where a row has none, which data sets write as -1 too."""
    return None if number is None or number < 0 else kind.int2str(number)


def _numbered(rows: Any) -> list[RawRow]:
    return [RawRow(f"row {number}", row) for number, row in enumerate(rows, 1)]


def flat_row(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A row with its nested values under names with dots: ``score.all_correct``."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_row(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat
