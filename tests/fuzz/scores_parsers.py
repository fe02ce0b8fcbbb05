"""Scores of other people's models, and the whole way from them to what ``rankwise verdict`` prints.

Good files of every kind are made first, with hostile names, scores and settings; some are broken
then: values replaced, bytes cut, archives that lie.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from rankwise.cli.verdict_verb import verdict
from rankwise.scores.asked import Asked
from rankwise.scores.reading import rows_given
from rankwise.scores.study import scored_study
from rankwise.study.conclusion import concluded
from tests.fuzz.strategies import (
    NASTY_VALUES,
    damaged,
    dumped_json_lines,
    values,
    with_nasty_values,
)
from tests.planted.samples import line
from tests.planted.score_logs import (
    helm_run,
    inspect_log,
    packed_by_zstandard,
    sample,
    write_eval,
)
from tests.support.memory import memory_for

MOST_BYTES = 1 << 30
"""What one input may take: the largest of them has a megabyte, and a bomb takes what there is."""

Settings = Mapping[str, Any]
Row = dict[str, Any]


class Files(NamedTuple):
    """Files by their names, and the options of the command."""

    contents: Mapping[str, bytes]
    settings: Settings


def read_files(folder: Path, files: Files) -> object:
    """What ``rankwise verdict FILES`` computes and prints; nothing is written."""
    paths = [folder / name for name in files.contents]
    for path, content in zip(paths, files.contents.values(), strict=True):
        path.write_bytes(content)
    return _verdict(paths, files.settings)


def _verdict(paths: Sequence[Path], settings: Settings) -> str:
    printed = io.StringIO()
    with memory_for(MOST_BYTES), contextlib.redirect_stdout(printed), _quiet():
        verdict.__wrapped__(list(paths), **settings)
    return printed.getvalue()


def _quiet() -> contextlib.redirect_stderr[io.StringIO]:
    return contextlib.redirect_stderr(io.StringIO())


# --- what scores are named

MODELS = st.one_of(
    st.sampled_from(["base", "r4", "r8_s0", "r8_s1", "r16-alpha32-lr2e-4", "full", "a", "b"]),
    st.sampled_from(
        ["r8_a0", "r8_lr0", "r8_lr1e999", f"r{'9' * 400}", "xA0", "r0", "r4_s1e308", "rank=8 seed",
         "\x1b[2J", "a\nb", "\u200b", "\u202er4", "é🙂", "=1+1", "x" * 400, "-", "../up", "r4_s²"]
    ),
    st.text(max_size=12),
    st.integers(), st.floats(), st.booleans(), st.none(),
)  # fmt: skip
TASKS = st.one_of(
    st.sampled_from(["mine", "arc", "kinship@items"]),
    st.sampled_from(["", "a\tb", "\u200d\u200e", "x/../y", "\x00", "task,other", "t" * 301]),
    st.text(max_size=8),
)
SCORES: tuple[st.SearchStrategy[Any], ...] = (
    *(st.sampled_from([0, 1]), st.sampled_from(["true", "False", "yes"]), st.booleans()),
    *(st.floats(0, 1), st.floats(-5, 5), st.floats(0, 100), st.floats(-1e30, 1e30)),
    st.sampled_from([1e308, -1e308, 5e-324, 1e-200, 1e29, "1e999", "0,5", "1_0", "٣", 10**400, ""]),
)
NUMBERS = st.one_of(
    *(st.floats(1e-6, 1e9), st.floats(), st.sampled_from([1e-300, 1e308, 0.0, -1.0, 3, 1e-6])),
)
COLUMNS: Mapping[str, Sequence[str]] = {
    "id": ("id", "doc_id", "Item", "meta.id", "\ufeffid", ""),
    "model": ("model", "run", "model name", "a\nb", "m" * 3000),
    "acc": ("acc", "loss", "reward", "score.f1", "target", "filter", "doc", "x."),
    "task": ("task", "dataset", "task\u200b"),
}
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("item", "score", "model", "task", "by_slice"), st.sampled_from(
            ["id", "acc", "model", "task", "passage", "\n", "", "nothing"]
        )),
        "base": MODELS.filter(lambda name: isinstance(name, str)),
        "name": st.sampled_from(["r{rank}", "{name}_s{seed}", "r{rank}_a{alpha}_{modules}", "{x}"]),
        "in_domain": st.sampled_from(["mine", "arc,mine", ",", "nothing"]),
        "retention": st.sampled_from(["arc", "mine", "nothing"]),
        "out_of_domain": st.sampled_from(["arc", "nothing"]),
        "cluster": st.lists(st.sampled_from(["passage", "id", "\x00"]), max_size=2),
        **dict.fromkeys(("delta", "epsilon", "worst_task"), NUMBERS),
        "confidence": st.sampled_from([0.8, 0.9999, 0.9999999999999999, 0.5, 1.0, -1.0]),
        **dict.fromkeys(("lower_is_better", "as_json"), st.booleans()),
        "metric": st.sampled_from(["acc", "f1", "match", "exact_match", "nothing", "\n"]),
    },
)  # fmt: skip
MARGINS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("delta", "epsilon", "worst_task"), st.floats(1e-6, 1e9)),
        "confidence": st.sampled_from([0.500001, 0.8, 0.9999]),
    },
)


def seldom(often: st.SearchStrategy[Any], *others: st.SearchStrategy[Any]) -> Any:
    """The first in four of five; with one thing wrong at a time more than its reader is reached."""
    return st.integers(0, 4).flatmap(lambda draw: st.one_of(*others) if draw == 4 else often)


FEW_SETTINGS = seldom(st.just({}), MARGINS, SETTINGS)


# --- tables


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """A row an item and model, mostly with every item of every model."""
    models = draw(seldom(st.just(["base", "r4"]), st.just([]), st.just(["base"])))
    models = models + draw(st.lists(MODELS, max_size=2, unique_by=repr))
    tasks = draw(seldom(st.just(["mine"]), st.just(["mine", "arc"]), st.lists(TASKS, max_size=2)))
    score, number = draw(st.sampled_from(SCORES)), draw(st.integers(2, 6))
    table = [
        {"id": item, "model": model, "task": task, "acc": draw(score), "passage": item // 2}
        for task in tasks
        for model in models
        for item in range(number)
    ]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2])) if table else 0):
        row = draw(st.sampled_from(table))
        key = draw(st.sampled_from(["id", "model", "acc", "task", "passage", "seed", "rank", "lr"]))
        row[key] = draw(st.one_of(st.sampled_from(NASTY_VALUES), values, *SCORES))
    names = {key: draw(seldom(st.just(known[0]), *map(st.just, known[1:])))
             for key, known in COLUMNS.items()}  # fmt: skip
    return [{names.get(key, key): value for key, value in row.items()} for row in table]


def as_csv(draw: st.DrawFn, table: Sequence[Row]) -> bytes:
    """As pandas, polars, R or a spreadsheet writes it."""
    stream = io.StringIO(newline="")
    names = list(dict.fromkeys(name for row in table for name in row))
    writer = csv.writer(
        stream,
        delimiter=draw(st.sampled_from([",", ";", "\t", "|"])),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"])),
    )
    writer.writerow(names)
    writer.writerows([row.get(name) for name in names] for row in table)
    text = draw(seldom(st.sampled_from(["", "\ufeff"]), st.just("sep=;\n"))) + stream.getvalue()
    encoding = draw(seldom(st.just("utf-8"), st.sampled_from(["utf-16", "latin-1"])))
    return text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")


def as_parquet(table: Sequence[Row]) -> bytes:
    """As pandas writes it; columns of several kinds are texts."""
    import pandas

    frame = pandas.DataFrame(list(table))
    mixed = [name for name in frame if len({type(value) for value in frame[name]}) > 1]
    frame = frame.assign(**{name: frame[name].map(repr) for name in mixed})
    stream = io.BytesIO()
    try:
        frame.to_parquet(stream)
    except Exception:  # noqa: BLE001 (integers of 400 digits, half surrogate pairs)
        return b"PAR1"
    return stream.getvalue()


@st.composite
def tables(draw: st.DrawFn) -> Files:
    """A table of any kind, as it is or with some bytes replaced."""
    table = draw(rows())
    kind = draw(st.sampled_from(["csv", "csv", "tsv", "jsonl", "json", "parquet"]))
    if kind == "parquet":
        content = as_parquet(table)
    elif kind in ("csv", "tsv"):
        content = as_csv(draw, table)
    else:
        content = (json.dumps(table) if kind == "json" else dumped_json_lines(table)).encode()
    content = draw(seldom(st.just(content), broken(content)))
    return Files({f"scores.{kind}": content}, draw(FEW_SETTINGS))


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """A piece is cut out, doubled, or other bytes are in its place."""
    start = draw(st.integers(0, len(content)))
    stop = min(len(content), start + draw(st.sampled_from([0, 1, 2, 8, 10**9])))
    piece = content[start:stop]
    new = draw(st.sampled_from([b"", piece * 2, b"\x00", b'"', b"\xff", b"[" * 5000, b","]))
    return content[:start] + new + content[stop:]


def read_rows(_: Path, content: tuple[list[Row], Settings]) -> object:
    """Rows in memory, as ``rw.verdict`` takes them."""
    table, settings = content
    known = {name: value for name, value in settings.items() if name in Asked._fields}
    lists = {"in_domain", "retention", "out_of_domain"}
    asked = Asked(**{k: tuple(v.split(",")) if k in lists else v for k, v in known.items()
                     if k != "cluster"})  # fmt: skip
    with memory_for(MOST_BYTES):
        return concluded(scored_study(rows_given(table, asked), asked, "scores").results())


# --- samples files and logs


def _samples(name: str) -> list[dict[str, Any]]:
    chosen = {"base": "0101", "r4": "0111", "r16": "1111"}[name]
    scored = [line(place, acc=float(value)) for place, value in enumerate(chosen)]
    options = {"resps": [[["-0.5", "False"]], [["-1.5", "False"]]], "num_loss_tokens": 3}
    return [each | options | {"loss_nats": 0.5} for each in scored]


@st.composite
def samples_files(draw: st.DrawFn) -> Files:
    """Three samples files of lm-eval, of which one is changed or broken."""
    texts = {name: dumped_json_lines(_samples(name)) for name in ("base", "r4", "r16")}
    name = draw(st.sampled_from(sorted(texts)))
    changed = with_nasty_values(_samples(name)).map(dumped_json_lines)
    texts[name] = draw(st.one_of(changed, damaged([texts[name]])))
    contents = {f"{key}.jsonl": text.encode(errors="surrogatepass") for key, text in texts.items()}
    return Files(contents, draw(FEW_SETTINGS))


_LETTERS = {"vllm/base": "CICI", "vllm/mine-r8": "CCCI"}


def _inspected(model: str) -> dict[str, Any]:
    return inspect_log(model, [sample(n, value) for n, value in enumerate(_LETTERS[model])])


@st.composite
def inspect_logs(draw: st.DrawFn) -> Files:
    """Two logs of Inspect as JSON, of which one is changed or broken."""
    model = draw(st.sampled_from(sorted(_LETTERS)))
    text = json.dumps(_inspected(model))
    texts = {name: json.dumps(_inspected(name)) for name in _LETTERS}
    texts[model] = draw(
        st.one_of(with_nasty_values(_inspected(model)).map(json.dumps), damaged([text]))
    )
    contents = {
        f"{name.partition('/')[2]}.json": text.encode(errors="surrogatepass")
        for name, text in texts.items()
    }
    return Files(contents, {"base": "vllm/base"} | draw(FEW_SETTINGS))


Archive = tuple[Any, list[Callable[[bytes], bytes]], bool, Settings]


def _lying(content: bytes, number: int, size: int, method: int) -> bytes:
    """An archive of which a member claims another size once unpacked, or to be packed otherwise."""
    place = -1
    for _ in range(number + 1):
        place = content.find(b"PK\x01\x02", place + 1)
        if place < 0:
            return content
    there = content[: place + 24] + struct.pack("<I", size) + content[place + 28 :]
    if method >= 0:
        there = there[: place + 10] + struct.pack("<H", method) + there[place + 12 :]
    return there


def _repeated(content: bytes, times: int) -> bytes:
    """An archive whose first entry stands in its directory many times."""
    first, end = content.find(b"PK\x01\x02"), content.rfind(b"PK\x05\x06")
    second = content.find(b"PK\x01\x02", first + 1)
    if min(first, second, end) < 0:
        return content
    entry, rest = content[first:second], content[first:end]
    directory = entry * times + rest
    head = content[end : end + 8]
    number = struct.unpack("<H", content[end + 8 : end + 10])[0] + times
    counts = struct.pack("<HHII", number, number, len(directory), first)
    return content[:first] + directory + head + counts + content[end + 20 :]


@st.composite
def archives(draw: st.DrawFn) -> tuple[Any, bytes, bool, Settings]:
    """The log of an .eval file, and seeds of what is done to the archive."""
    log = draw(st.one_of(st.just(_inspected("vllm/mine-r8")), with_nasty_values(
        _inspected("vllm/mine-r8"))))  # fmt: skip
    return log, draw(st.binary(min_size=16, max_size=16)), draw(st.booleans()), draw(FEW_SETTINGS)


def read_archives(folder: Path, content: tuple[Any, bytes, bool, Settings]) -> object:
    """Two .eval files, of which one lies."""
    log, seeds, is_packed, settings = content
    good = write_eval(folder / "base.eval", _inspected("vllm/base"))
    path = folder / "mine.eval"
    try:
        write_eval(path, log)
    except Exception:  # noqa: BLE001 (what makes no archive)
        path.write_bytes(good.read_bytes())
    if is_packed:
        with contextlib.suppress(zipfile.BadZipFile, struct.error):
            packed_by_zstandard(path)
    data = path.read_bytes()
    if seeds[0] % 3 == 0:
        size = [0, 1, 100, 1 << 20, (64 << 20) + 1, 2**32 - 1][seeds[1] % 6]
        data = _lying(data, seeds[2] % 6, size, [-1, 0, 8, 12, 14, 93, 99][seeds[3] % 7])
    if seeds[4] % 4 == 0:
        data = _repeated(data, [1, 5, 3000][seeds[5] % 3])
    if seeds[6] % 4 == 0:
        place = int.from_bytes(seeds[8:11], "big") % max(len(data), 1)
        data = data[:place] + seeds[11:13] + data[place + seeds[13] % 4 :]
    path.write_bytes(data)
    return _verdict([good, path], {"base": "vllm/base"} | dict(settings))


_HELM = {"org_base": [1, 0, 1, 0.0], "org_mine-r8": [1, 1, 1, 0.0]}


@st.composite
def helm_folders(draw: st.DrawFn) -> tuple[Any, str, Settings]:
    """The instances of a run of HELM, and its ``run_spec.json``."""
    stats = [
        {"instance_id": f"id{n}", "train_trial_index": 0, "predicted_text": "A",
         "stats": [{"name": {"name": "exact_match"}, "count": 1, "mean": value}]}
        for n, value in enumerate(_HELM["org_mine-r8"])
    ]  # fmt: skip
    spec = {"name": "mmlu:subject=anatomy", "adapter_spec": {"model": "org/mine-r8"}}
    return (
        draw(with_nasty_values(stats)),
        draw(st.one_of(with_nasty_values(spec).map(json.dumps), damaged([json.dumps(spec)]))),
        draw(FEW_SETTINGS),
    )


def read_helm(folder: Path, content: tuple[Any, str, Settings]) -> object:
    """Two folders of HELM, of which one is changed."""
    instances, spec, settings = content
    base, mine = (helm_run(folder, *each) for each in _HELM.items())
    (mine / "per_instance_stats.json").write_text(json.dumps(instances))
    (mine / "run_spec.json").write_bytes(spec.encode("utf-8", "surrogatepass"))
    return _verdict([base, mine], {"base": "org/base"} | dict(settings))


PARSERS: dict[str, tuple[Callable[[Path, Any], object], st.SearchStrategy[Any], int]] = {
    "a table of scores": (read_files, tables(), 80),
    "rows of scores in memory": (read_rows, st.tuples(rows(), FEW_SETTINGS), 40),
    "samples files of several models": (read_files, samples_files(), 40),
    "logs of Inspect": (read_files, inspect_logs(), 40),
    "archives of Inspect": (read_archives, archives(), 60),
    "folders of HELM": (read_helm, helm_folders(), 40),
}
