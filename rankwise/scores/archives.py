"""A log of Inspect as a zip archive, unpacked by what comes out of it, not by what it claims."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwise.errors import DataError
from rankwise.records.files import in_words
from rankwise.records.json_reading import (
    MOST_BYTES,
    MOST_PART_BYTES,
    JsonError,
    parse_json,
    refuse_values,
)
from rankwise.records.yaml_reading import shown

_DAMAGES = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError),
    *(StopIteration, ValueError, TypeError, LookupError),
    RuntimeError,  # also of a member that is packed or encrypted in a way that Inspect does not use
)
"""What a damaged archive in memory, or one of something else, may raise."""

_ZSTANDARD = 93
"""The number of zstandard among a zip archive's ways of compressing, by its specification."""

_MOST_MEMBERS = 1_000_000
"""Each takes 600 bytes in memory, and 46 in the file."""

_ENTRY = b"PK\x01\x02"
"""Begins the entry of a member in an archive's directory."""

_OF_A_SAMPLE = ("id", "input", "target", "output", "scores", "metadata")
"""The rest of a sample, above all its messages and events, is not kept."""


def unpacked_log(path: Path, content: bytes) -> dict[str, Any]:
    """An ``.eval`` file in the form of the same log as JSON.

    Raises:
        DataError: it is no log of Inspect, is damaged, or is too large once it is unpacked.
    """
    if content.count(_ENTRY) > _MOST_MEMBERS:
        raise DataError(f"{path} has more than {_MOST_MEMBERS:,} files in it. Give a part of it.")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # the last member of a name is the one that counts, and it counts once
            members = {info.filename: info for info in archive.infolist()}
            # the header is written last; of an evaluation that was killed there is the journal
            header = next(n for n in ("header.json", "_journal/start.json") if n in members)
            status = {} if header == "header.json" else {"status": "started"}
            names = [n for n in members if n.startswith("samples/") and n.endswith(".json")]
            wanted = [members[name] for name in (header, *names)]
            head, *samples = _parsed(path, archive, wanted, content)
            if not isinstance(head["eval"], dict):
                raise ValueError("its header is of something else")
            return {**head, **status, "samples": samples}
    except DataError:  # too large; it is a ValueError too
        raise
    except JsonError as error:
        raise DataError(f"{path}: {error}.") from error
    except _DAMAGES as error:
        raise DataError(f"{path} is not a log of Inspect, or it is damaged: {error}.") from error


def _parsed(
    path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], content: bytes
) -> Iterator[Any]:
    """The header and each sample, of which what is not read is left out."""
    num_bytes = num_values = 0
    for place, member in enumerate(members):
        if member.file_size > MOST_PART_BYTES:
            raise DataError(
                f"{path} is damaged, or {shown(member.filename)} in it unpacks to more than "
                f"{in_words(MOST_PART_BYTES)}, which is the most that is read. Leave it out."
            )
        text = _member(archive, member, content)
        num_bytes += len(text)
        if num_bytes > MOST_BYTES:
            raise DataError(
                f"{path} unpacks to more than {in_words(MOST_BYTES)}, which is the most that is "
                "read. Give a part of it."
            )
        num_values += sum(map(text.count, (b"[", b"{", b",", b":")))
        refuse_values(num_values)
        value = parse_json(text.decode())
        yield {key: value[key] for key in _OF_A_SAMPLE if key in value} if place else value


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: bytes) -> bytes:
    """A file of an archive, of the size that it claims; what goes on beyond it is not unpacked.

    Inspect packs by deflate or Zstandard, which Python's zipfile knows from 3.14 on.

    Raises:
        ValueError: its checksum is another, or it is packed otherwise; and others of ``_DAMAGES``.
    """
    if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with archive.open(info) as file:
            return file.read(info.file_size)
    if info.compress_type != _ZSTANDARD:  # the others are unpacked as a whole
        raise ValueError(f"{shown(info.filename)} is packed as Inspect packs nothing")
    import pyarrow

    # a local header has 30 bytes, of which the last four are the sizes of the two fields behind it
    sizes = struct.unpack_from("<HH", content, info.header_offset + 26)
    start = info.header_offset + 30 + sum(sizes)
    packed = content[start : start + info.compress_size]
    text = pyarrow.Codec("zstd").decompress(packed, info.file_size, asbytes=True)
    if zlib.crc32(text) != info.CRC:
        raise ValueError(f"the checksum of {shown(info.filename)} is another")
    return text
