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
from tests.support.sentences import Sentences


class Bad(NamedTuple):
    """A command and what is named of it, with {place} for the folders below."""

    name: str
    command: str
    names: tuple[str, ...]
    exit_code: int = 2


ASKED = "--tasks kinship --retention capitals --max-loss 1 --output {out}"
REPAIR = f"repair {{base}} {{adapter}} {ASKED}"
INTO = "repair {base} {adapter} --tasks kinship --retention capitals --max-loss 1 --output"

BAD = [
    Bad("share 0", f"{REPAIR} --by energy=0", ("energy=0",)),
    Bad("share 0.0", f"{REPAIR} --by energy=0.0", ("energy=0.0",)),
    Bad("share negative", f"{REPAIR} --by energy=-0.5", ("energy=-0.5",)),
    Bad("share in words", f"{REPAIR} --by energy=most", ("energy=most",)),
    Bad("share 1.5", f"{REPAIR} --by energy-global=1.5", ("energy-global=1.5",)),
    Bad("no share", f"{REPAIR} --by energy=", ()),
    Bad("no global share", f"{REPAIR} --by energy-global", ("0",)),
    Bad("factor NaN", f"{REPAIR} --by scale=nan", ("scale=nan",)),
    Bad("factor 2", f"{REPAIR} --by lines=2", ("lines=2",)),
    Bad("heads 0", f"{REPAIR} --by heads=0", ("heads=0",)),
    Bad("heads of half", f"{REPAIR} --by heads=1.5", ("heads=1.5",)),
    Bad("no such average", f"{REPAIR} --by average=mean", ("average=mean",)),
    Bad("no such kind", f"{REPAIR} --by enrgy=0.9", ("enrgy",)),
    Bad("a kind that went", f"{REPAIR} --by truncate=8", ("truncate",)),
    Bad("output full", f"{INTO} {{full}}", ("{full}",)),
    Bad("output a file", f"{INTO} {{file}}", ("{file}",)),
    Bad("output the adapter", f"{INTO} {{adapter}}", ()),
    Bad("output a pipe", f"{INTO} {{pipe}}", ("{pipe}",)),
    Bad("no adapter there", f"repair {{base}} {{gone}} {ASKED}", ()),
    Bad("adapter a file", f"repair {{base}} {{file}} {ASKED}", ()),
    Bad("adapter a loop", f"repair {{base}} {{loop}} {ASKED}", ()),
    Bad("adapter a checkpoint", f"repair {{base}} {{base}} {ASKED}", ("PEFT",)),
    Bad("adapter with NaN", f"repair {{base}} {{nan}} {ASKED}", ()),
    Bad("adapter too large", f"repair {{base}} {{huge}} {ASKED}", ()),
    Bad("adapter of alpha 0", f"repair {{base}} {{zero}} {ASKED}", ("lora_alpha",)),
    Bad("base not there", f"repair {{gone}} {{adapter}} {ASKED}", ()),
    Bad("base an adapter", f"repair {{adapter}} {{adapter}} {ASKED}", ("adapter_config.json",)),
    Bad("another base recorded", f"repair {{base}} {{stranger}} {ASKED}", ("--any-base",)),
    Bad("audit of nothing", "audit {base} {gone} --output {out}", ("{gone}",)),
    Bad("audit of a file", "audit {base} {file} --output {out}", ("{file}",)),
    Bad("audit of a loop", "audit {base} {loop} --output {out}", ("{loop}",)),
    Bad("audit of a loop, no output", "audit {base} {loop}", ("{loop}",)),
    Bad("audit of an empty folder", "audit {base} {empty} --output {out}", ("{empty}",)),
    Bad("audit on nothing", "audit {gone} {adapter} --output {out}", ("{gone}",)),
    Bad("audit on no name", "audit '' {adapter} --output {out}", ("BASE", "''")),
    Bad("audit on a bad name", "audit 'a b' {adapter} --output {out}", ("base_model 'a b'",)),
    Bad("audit on a long name", "audit {long} {adapter} --output {out}", ("xxx",)),
    Bad("audit into the target", "audit {base} {adapter} --output {adapter}", ("{adapter}",)),
    Bad("audit below the target", "audit {base} {adapter} --output {adapter}/x", ("{adapter}",)),
    Bad("audit into a file", "audit {base} {adapter} --output {file}", ("{file}",), exit_code=2),
    Bad("audit of another base", "audit {base} {stranger} --output {out}", ("--any-base",)),
    Bad("audit of NaN", "audit {base} {nan} --output {out}", ("{nan}",)),
    Bad("audit too large", "audit {base} {huge} --output {out}", ("{huge}",)),
    Bad("limit 1", "audit {base} {adapter} --output {out} --limit 1", ("--limit",)),
    Bad(
        "few-shot -1", "audit {base} {adapter} --output {out} --num-fewshot -1", ("--num-fewshot",)
    ),
    Bad("top k 0", "audit {base} {adapter} --output {out} --top-k 0", ("--top-k",)),
    Bad("draws -1", "audit {base} {adapter} --output {out} --null-draws -1", ("--null-draws",)),
    Bad(
        "precision float8", "audit {base} {adapter} --output {out} --precision float8", ("float8",)
    ),
    Bad(
        "task unknown",
        "audit {base} {adapter} --output {out} --tasks no_such_task",
        ("no_such_task",),
    ),
    Bad("heads of no study", "heads {empty} --run x --tasks y", ("{empty}",), exit_code=1),
    Bad("heads of no task", "heads {empty} --run x --tasks ,", ("--tasks",)),
    Bad("heads top 0", "heads {empty} --run x --tasks y --top 0", ("--top",)),
    Bad("status at a URL", "status s3://me:secret@b/s", ("s3://***@b/s",)),
    Bad("export of no study", "export {empty}", ("{empty}",), exit_code=1),
    Bad("export of a file", "export {file}", ("{file}",), exit_code=1),
    Bad("export of another format", "export {empty} --format xlsx", ("xlsx",)),
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, sentence: Sentences
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = rankwise(verb, tmp_path / "study.yaml")
    assert done.exit_code != 0
    sentence(words(done.output))


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_arguments_of_no_use_are_refused(
    bad: Bad,
    places: dict[str, Path | str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sentence: Sentences,
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = [
        part.strip("'").format(**places, out=tmp_path / "out")
        for part in bad.command.replace("'a b'", "'a%b'").split()
    ]
    result = rankwise(*(part.replace("a%b", "a b") for part in parts))
    said = words(result.stderr).replace("│ ", "").replace(" │", "")
    assert result.exit_code == bad.exit_code
    names = [name.format(**places) for name in bad.names]
    library = r"(?<=provide it: ).*(?=\. Check the name)"
    sentence(said, names=names, LIBRARY=library, LONG="[^' ]*x{5,}")
    assert list(tmp_path.iterdir()) == []
