"""Arguments of the verbs for adapters: each of no use is said before anything is computed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rankwise.engine.models.adapter_config import CONFIG_FILE
from tests.support.audited_models import adapter, rewritten
from tests.support.command_line import rankwise, words


class Bad(NamedTuple):
    """A command, with {place} for the folders below, what is said of it and what is to be done."""

    name: str
    command: str
    sentence: str
    remedy: str = ""
    exit_code: int = 2


CUT, SCALE = "truncate {adapter} --output {out}", "scale-intruders {adapter} --output {out}"
BASE = "--base {base} --factor 0.5"
EMPTY = "choose another folder"

BAD = [
    Bad("rank 0", f"{CUT} --rank 0", "Invalid value for '--rank'"),
    Bad("rank negative", f"{CUT} --rank -4", "Invalid value for '--rank'"),
    Bad("rank in words", f"{CUT} --rank eight", "Invalid value for '--rank'"),
    Bad("rank of half", f"{CUT} --rank 2.5", "Invalid value for '--rank'"),
    Bad("no rank", CUT, "Missing option '--rank'"),
    Bad("no output", "truncate {adapter} --rank 2", "Missing option '--output'"),
    Bad(
        "output full",
        "truncate {adapter} --rank 2 --output {full}",
        "exists and is not empty",
        EMPTY,
    ),
    Bad("output a file", "truncate {adapter} --rank 2 --output {file}", "exists and is not", EMPTY),
    Bad(
        "output the adapter", "truncate {adapter} --rank 2 --output {adapter}", "exists and", EMPTY
    ),
    Bad("output a pipe", "truncate {adapter} --rank 2 --output {pipe}", "exists and is not", EMPTY),
    Bad(
        "output below a file",
        "truncate {adapter} --rank 2 --output {file}/x",
        "cannot be written",
        "choose another",
        1,
    ),
    Bad(
        "no adapter there",
        "truncate {gone} --rank 2 --output {out}",
        "is not a PEFT adapter",
        "Check the path.",
    ),
    Bad(
        "adapter a file",
        "truncate {file} --rank 2 --output {out}",
        "is not a PEFT adapter",
        "Check the path.",
    ),
    Bad(
        "adapter a loop",
        "truncate {loop} --rank 2 --output {out}",
        "is not a PEFT adapter",
        "Check the path.",
    ),
    Bad(
        "adapter a checkpoint",
        "truncate {base} --rank 2 --output {out}",
        "is not a PEFT adapter",
        "Check",
    ),
    Bad(
        "adapter with NaN",
        "truncate {nan} --rank 2 --output {out}",
        "NaN or infinite",
        "Train it again.",
    ),
    Bad(
        "adapter too large",
        "truncate {huge} --rank 2 --output {out}",
        "overflows float32",
        "Train it again.",
    ),
    Bad(
        "adapter of alpha 0",
        "truncate {zero} --rank 2 --output {out}",
        "lora_alpha: 0",
        "Save the adapter",
    ),
    Bad(
        "factor NaN",
        f"{SCALE} --base {{base}} --factor nan",
        "Invalid value for '--factor'",
    ),
    Bad(
        "factor infinite",
        f"{SCALE} --base {{base}} --factor inf",
        "--factor inf is not a",
        "give one",
    ),
    Bad(
        "factor negative",
        f"{SCALE} --base {{base}} --factor -1",
        "Invalid value for '--factor'",
    ),
    Bad(
        "factor in words",
        f"{SCALE} --base {{base}} --factor half",
        "Invalid value for '--factor'",
    ),
    Bad("epsilon NaN", f"{SCALE} {BASE} --epsilon nan", "Invalid value for '--epsilon'"),
    Bad("epsilon 2", f"{SCALE} {BASE} --epsilon 2", "Invalid value for '--epsilon'"),
    Bad("k 0", f"{SCALE} {BASE} --k 0", "Invalid value for '--k'"),
    Bad("scaled rank 0", f"{SCALE} {BASE} --rank 0", "Invalid value for '--rank'"),
    Bad("no base", f"{SCALE} --factor 0.5", "Missing option '--base'"),
    Bad(
        "base not there",
        f"{SCALE} --base {{gone}} --factor 0.5",
        "is not a folder",
        "Check the path.",
    ),
    Bad(
        "base an adapter",
        f"{SCALE} --base {{adapter}} --factor 0.5",
        "holds an adapter (adapter_config.json)",
        "or name the adapter's own base",
    ),
    Bad(
        "scale a checkpoint",
        f"scale-intruders {{base}} --output {{out}} {BASE}",
        "only an adapter's update can be scaled",
        "Give a PEFT LoRA folder.",
    ),
    Bad(
        "another base recorded",
        f"scale-intruders {{stranger}} --output {{out}} {BASE}",
        "records org/other as its base",
        "add --any-base",
    ),
    Bad(
        "audit of nothing",
        "audit {base} {gone} --output {out}",
        "is not a folder",
        "Check the path.",
    ),
    Bad(
        "audit of a file",
        "audit {base} {file} --output {out}",
        "is not a folder",
        "Check the path.",
    ),
    Bad(
        "audit of a loop",
        "audit {base} {loop} --output {out}",
        "is not a folder",
        "Check the path.",
    ),
    Bad("audit of a loop, no output", "audit {base} {loop}", "is not a folder", "Check the path."),
    Bad(
        "audit of an empty folder",
        "audit {base} {empty} --output {out}",
        "holds neither",
        "Check the path.",
    ),
    Bad(
        "audit on nothing",
        "audit {gone} {adapter} --output {out}",
        "is not a folder",
        "Check the path.",
    ),
    Bad(
        "audit on no name",
        "audit '' {adapter} --output {out}",
        "BASE is empty",
        "Name an embedded model",
    ),
    Bad(
        "audit on a bad name",
        "audit 'a b' {adapter} --output {out}",
        "neither an embedded model",
        "Check the name",
    ),
    Bad(
        "audit on a long name",
        "audit {long} {adapter} --output {out}",
        "neither an embedded",
        "Check",
    ),
    Bad(
        "audit into the target",
        "audit {base} {adapter} --output {adapter}",
        "is inside what is audited",
        EMPTY,
    ),
    Bad(
        "audit below the target",
        "audit {base} {adapter} --output {adapter}/x",
        "is inside what",
        EMPTY,
    ),
    Bad(
        "audit into a file",
        "audit {base} {adapter} --output {file}",
        "it is no folder",
        "name another place",
        2,
    ),
    Bad(
        "audit of another base",
        "audit {base} {stranger} --output {out}",
        "records org/other",
        "add --any-base",
    ),
    Bad("audit of NaN", "audit {base} {nan} --output {out}", "NaN or infinite", "Train it again."),
    Bad(
        "audit too large",
        "audit {base} {huge} --output {out}",
        "overflows float32",
        "Train it again.",
    ),
    Bad(
        "limit 1",
        "audit {base} {adapter} --output {out} --limit 1",
        "Invalid value for '--limit'",
    ),
    Bad(
        "few-shot -1",
        "audit {base} {adapter} --output {out} --num-fewshot -1",
        "Invalid value for '--num-fewshot'",
    ),
    Bad(
        "top k 0",
        "audit {base} {adapter} --output {out} --top-k 0",
        "Invalid value for '--top-k'",
    ),
    Bad(
        "draws -1",
        "audit {base} {adapter} --output {out} --null-draws -1",
        "Invalid value for '--null-draws'",
    ),
    Bad(
        "precision float8",
        "audit {base} {adapter} --output {out} --precision float8",
        "'float8' is not one of",
    ),
    Bad(
        "task unknown", "audit {base} {adapter} --output {out} --tasks no_such_task", "no_such_task"
    ),
    Bad(
        "heads of no study",
        "heads {empty} --run x --tasks y",
        "is not there; run the study first",
        "",
        1,
    ),
    Bad(
        "heads of no task", "heads {empty} --run x --tasks ,", "names no task", "name at least one"
    ),
    Bad(
        "heads of keys",
        "heads {empty} --run x --tasks y --keys-and-values",
        "only with --mode revert",
        "add it",
    ),
    Bad(
        "heads top 0",
        "heads {empty} --run x --tasks y --top 0",
        "Invalid value for '--top'",
    ),
    Bad("status at a URL", "status s3://me:secret@b/s", "'s3://***@b/s' names no file", "path"),
    Bad("export of no study", "export {empty}", "is not there; run the study first", "", 1),
    Bad("export of a file", "export {file}", "is not", "", 1),
    Bad("export of another format", "export {empty} --format xlsx", "'xlsx' is not"),
]


@pytest.fixture(scope="module")
def places(
    tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path | str]:
    root = tmp_path_factory.mktemp("places")
    adapter(tiny_model_folder, root / "adapter")

    def changed(name: str, change: Callable[[Path], Any]) -> Path:
        shutil.copytree(root / "adapter", root / name)
        change(root / name)
        return root / name

    def config(**entries: Any) -> Callable[[Path], Any]:
        def change(folder: Path) -> None:
            path = folder / CONFIG_FILE
            path.write_text(json.dumps(json.loads(path.read_text()) | entries))

        return change

    def filled(value: float) -> Callable[[Path], Any]:
        return lambda folder: rewritten(folder, lambda w: [t.fill_(value) for t in w.values()])

    (root / "full").mkdir()
    (root / "full" / "mine").write_text("mine")
    (root / "empty").mkdir()
    (root / "file").write_text("a file")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return {
        "base": tiny_model_folder,
        **{
            name: root / name
            for name in ("adapter", "full", "empty", "file", "loop", "pipe", "gone")
        },
        "nan": changed("nan", filled(float("nan"))),
        "huge": changed("huge", filled(1e30)),
        "zero": changed("zero", config(lora_alpha=0)),
        "stranger": changed("stranger", config(base_model_name_or_path="org/other")),
        "long": "x" * 5000,
    }


@pytest.mark.parametrize("verb", ["plan", "run", "status"])
def test_a_current_folder_that_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = rankwise(verb, tmp_path / "study.yaml")
    assert done.exit_code != 0
    assert "the current folder was deleted. Change to another one." in words(done.output)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_arguments_of_no_use_are_refused(
    bad: Bad, places: dict[str, Path | str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = [
        part.strip("'").format(**places, out=tmp_path / "out")
        for part in bad.command.replace("'a b'", "'a%b'").split()
    ]
    result = rankwise(*(part.replace("a%b", "a b") for part in parts))
    said = words(result.stderr).replace("│ ", "").replace(" │", "")
    assert result.exit_code == bad.exit_code
    assert bad.sentence in said
    assert bad.remedy in said
    assert list(tmp_path.iterdir()) == []
