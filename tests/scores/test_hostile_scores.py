"""Tables and logs that were made to take all time and memory, or to end in a traceback."""

from __future__ import annotations

import bz2
import contextlib
import json
import lzma
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import ConfigError, DataError, RankwiseError
from rankwise.records import json_reading
from rankwise.records.lm_eval_samples import is_samples_file
from rankwise.scores import archives
from rankwise.scores.asked import Asked
from rankwise.scores.logs import log_scorings, read_log
from rankwise.scores.reading import read_scores, rows_given
from rankwise.scores.study import scored_study
from rankwise.study.conclusion import concluded
from tests.planted.samples import line
from tests.planted.score_logs import helm_run, inspect_log, sample, write_eval
from tests.planted.score_tables import Row, scores, write_csv
from tests.support.command_line import rankwise, words
from tests.support.memory import memory_for

MEBIBYTE = 1 << 20

pytestmark = pytest.mark.usefixtures("ends")


def judged(rows: list[Row], **settings: Any) -> object:
    asked = Asked(**settings)
    return concluded(scored_study(rows_given(rows, asked), asked, "scores").results())


# bounds


def test_a_hundred_thousand_columns(tmp_path: Path) -> None:
    """They were counted each by going through all, 10^10 steps: that ended after hours."""
    names = [f"c{number}" for number in range(100_000)]
    path = tmp_path / "scores.csv"
    path.write_text("\n".join([",".join([*names, *more]) for more in (["c7"], ["1"])]))
    with pytest.raises(DataError, match="names column 'c7' twice"):
        read_scores([path], Asked())


def test_what_a_table_has_is_said_of_a_few_columns(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(20_000)]
    path = tmp_path / "scores.csv"
    path.write_text("\n".join([",".join(names), ",".join("1" * len(names))]))
    with pytest.raises(DataError, match="no column is recognised as the item") as refused:
        read_scores([path], Asked())
    assert len(str(refused.value)) < 2_000


def test_a_name_of_a_hundred_thousand_letters_is_not_printed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "scores.csv", scores(base=[0, 1], **{"n" * 100_000: [1, 1]}))
    done = rankwise("verdict", path)
    assert (done.exit_code, len(done.output) < 3_000) == (2, True)
    assert "has 100,000 letters" in words(done.stderr)


@pytest.mark.parametrize("name", ["scores.csv", "scores.jsonl", "scores.json", "scores.eval"])
def test_of_a_line_beyond_the_limit_a_part_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Five gigabytes of zeros that take no room on the disk."""
    path, read = tmp_path / name, list[int]()
    path.touch()
    with path.open("r+b") as file:
        file.truncate(5 << 30)
    opened = Path.open

    def counting(self: Path, *arguments: Any, **named: Any) -> Any:
        file: Any = opened(self, *arguments, **named)
        if self == path:
            tell, close = file.tell, file.close

            def closed() -> None:
                if not file.closed:
                    read.append(tell())
                close()

            return _Closing(file, closed)
        return file

    monkeypatch.setattr(Path, "open", counting)
    with memory_for(200 * MEBIBYTE), pytest.raises(DataError, match=r"has more than 1\.1 GB"):
        read_scores([path], Asked())
    with memory_for(200 * MEBIBYTE):
        assert not is_samples_file(path)
    assert sum(read) < 256 * MEBIBYTE


class _Closing:
    """A file that says how far it was read when it is closed."""

    def __init__(self, file: Any, close: Callable[[], None]) -> None:
        self._file, self.close = file, close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _raw_lzma(text: bytes) -> bytes:
    chain = [
        {"id": lzma.FILTER_LZMA1, "preset": 0, "dict_size": 1 << 16, "lc": 3, "lp": 0, "pb": 2}
    ]
    return lzma.compress(text, lzma.FORMAT_RAW, filters=chain)


PACKED: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "bz2": (12, bz2.compress),
    "lzma": (14, lambda text: b"\x09\x04\x05\x00\x5d\x00\x00\x01\x00" + _raw_lzma(text)),
    "deflate": (8, lambda text: zlib.compress(text, 9)[2:-4]),
    "stored": (0, lambda text: text[:1000]),
}


def lying(path: Path, kind: str, num_bytes: int, claimed: int) -> Path:
    """An archive whose header claims to be small, and unpacks to a list of so many bytes."""
    method, compress = PACKED[kind]
    text = b'{"eval": {}, "x": [' + b" " * num_bytes + b"]}"
    packed, name = compress(text), b"header.json"
    sizes = (zlib.crc32(text), len(packed), claimed, len(name))
    common = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 0x21, *sizes, 0)
    body = b"PK\x03\x04" + common + name + packed
    entry = struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, method, 0, 0x21, *sizes, *[0] * 6)
    index = b"PK\x01\x02" + entry + name
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(index), len(body), 0)
    path.write_bytes(body + index + end)
    return path


@pytest.mark.parametrize("kind", PACKED)
def test_an_archive_that_claims_to_be_small(tmp_path: Path, kind: str) -> None:
    """Some kilobytes that unpack to 64 MB, with 24 MB of memory."""
    path = lying(tmp_path / "a.eval", kind, 64 * MEBIBYTE, claimed=100)
    assert path.stat().st_size < MEBIBYTE
    with memory_for(24 * MEBIBYTE), pytest.raises(DataError, match=r"a\.eval is not a log"):
        read_log(path)


def test_one_member_named_three_thousand_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of a name counts, once: each was read for all."""
    path = write_eval(tmp_path / "a.eval", inspect_log("base", [sample(0, "C"), sample(1, "I")]))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the name, which is there
        for _ in range(3_000):
            archive.writestr("samples/item-0_epoch_1.json", json.dumps(sample(0, "C")))
    opened: list[str] = []
    open_member = zipfile.ZipFile.open

    def counting(self: zipfile.ZipFile, member: Any, *more: Any, **named: Any) -> Any:
        opened.append(getattr(member, "filename", member))
        return open_member(self, member, *more, **named)

    monkeypatch.setattr(zipfile.ZipFile, "open", counting)
    log = read_log(path)
    assert log is not None
    assert len(log.content["samples"]) == 2
    assert len(opened) == len(set(opened)) == 3


def test_more_values_than_are_read_are_counted_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list takes three letters in a file, and sixty bytes in memory."""
    path = write_eval(tmp_path / "a.eval", inspect_log("base", [sample(0, "C"), sample(1, "I")]))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples/x_epoch_1.json", "[" + "[]," * 100_000 + "[]]")
    parsed: list[int] = []
    monkeypatch.setattr(json_reading, "MOST_VALUES", 150_000)
    monkeypatch.setattr(archives, "parse_json", lambda text: parsed.append(len(text)) or {})
    with pytest.raises(DataError, match=r"a\.eval: .*values"):
        read_log(path)
    assert max(parsed) < 10_000


def test_a_specification_of_helm_beyond_the_limit(tmp_path: Path) -> None:
    folder = helm_run(tmp_path, "org_base", [1, 0])
    with (folder / "run_spec.json").open("r+b") as file:
        file.truncate(3 << 30)
    log = read_log(folder)
    assert log is not None
    with memory_for(200 * MEBIBYTE), pytest.raises(DataError, match=r"run_spec\.json"):
        log_scorings(log, None)


def test_more_options_than_are_compared() -> None:
    names = {f"r{rank}": [0, 1] for rank in range(1, 1001)}
    with pytest.raises(DataError, match="1,001 models are scored; 1,000 can be judged"):
        judged(scores(base=[0, 1], **names))
    names = {f"r{rank}": [0, 1] for rank in range(1, 302)}
    with pytest.raises(DataError, match="301 settings, whatever their seeds, are scored; 300"):
        judged(scores(base=[0, 1], **names))


# what ended in a traceback


@pytest.mark.parametrize(
    "name", ["r8_a0", "r8_lr0", "r8_lr1e999", "r" + "9" * 200, "baA0d", "r4_s1e308", "r0_s-1"]
)
def test_a_name_that_says_no_setting_is_a_name(name: str) -> None:
    rows = scores(base=[0, 1, 0, 1], other=[1, 1, 0, 1], **{name: [1, 1, 1, 1]})
    with contextlib.suppress(RankwiseError):
        judged(rows)


@pytest.mark.parametrize("task", ["a\nb", "a\u200bb", "a\x07b"])
def test_a_task_with_a_hidden_character_is_named(task: str) -> None:
    rows = [row | {"task": task} for row in scores(base=[0, 1], r4=[1, 1])]
    with pytest.raises(DataError, match=r"task: .*has a control character") as refused:
        judged(rows)
    assert task not in str(refused.value)


@pytest.mark.parametrize("column", ["a\nb", "\u200b", "\x07"])
def test_a_slice_with_a_hidden_character_is_named(column: str) -> None:
    rows = [row | {column: "x"} for row in scores(base=[0, 1], r4=[1, 1])]
    with pytest.raises(ConfigError, match="slice"):
        judged(rows, slice=column)


@pytest.mark.parametrize("value", [1e308, -1e308, 10**400, "1e308"])
def test_a_score_that_no_sum_holds_is_named(value: Any) -> None:
    with pytest.raises(DataError, match=r"row 3, column acc: "):
        judged(scores(base=[0, 1], r4=[value, value]), delta=1.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--delta", "1e-300"), ("--delta", "1e308"), ("--confidence", "0.9999999999999999")],
)
def test_a_margin_that_no_study_could_tell_is_named(
    tmp_path: Path, option: str, value: str
) -> None:
    path = write_csv(tmp_path / "scores.csv", scores(base=[0, 1, 0], r4=[1, 1, 0], r8=[1, 1, 1]))
    done = rankwise("verdict", path, option, value)
    assert (done.exit_code, option in done.stderr) == (2, True)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e999])
def test_a_statistic_of_helm_that_is_no_number_is_named(tmp_path: Path, value: float) -> None:
    folder = helm_run(tmp_path, "org_base", [1, value])
    log = read_log(folder)
    assert log is not None
    with pytest.raises(DataError, match=r"per_instance_stats\.json .*id1"):
        log_scorings(log, None)


def test_a_specification_of_helm_that_is_nested_deep(tmp_path: Path) -> None:
    folder = helm_run(tmp_path, "org_base", [1, 0])
    (folder / "run_spec.json").write_text("[" * 200_000)
    log = read_log(folder)
    assert log is not None
    with pytest.raises(DataError, match=r"run_spec\.json"):
        log_scorings(log, None)


def test_an_input_of_inspect_that_is_nested_deep(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(600):
        deep = [deep]
    log = inspect_log("base", [sample(0, "C"), sample(1, "I") | {"input": deep}])
    path = tmp_path / "base.json"
    path.write_text(json.dumps(log))
    with pytest.raises(DataError, match=r"base\.json"):
        read_scores([path], Asked())


@pytest.mark.parametrize("seed", [1e308, 10**400, "1e308"])
def test_a_seed_that_is_none_is_named(seed: Any) -> None:
    rows = [row | {"seed": seed} for row in scores(base=[0, 1], r4=[1, 1])]
    with pytest.raises(DataError, match="row 1: seed is"):
        judged(rows)


def test_half_a_character_in_a_samples_file(tmp_path: Path) -> None:
    """No file can hold it, and a page is made of what is read."""
    paths: list[Path] = []
    for name, values in {"base": (0.0, 1.0), "r4": (1.0, 1.0)}.items():
        lines = [line(place, acc=value) for place, value in enumerate(values)]
        lines = [each | {"doc": {"question": "half \ud800"}, "target": "\ud800"} for each in lines]
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("\n".join(map(json.dumps, lines)))
    for more in ((), ("--cluster", "question"), ("--output", tmp_path / "kept")):
        done = rankwise("verdict", *paths, *more)
        assert done.exit_code in (0, 2), done.stderr
