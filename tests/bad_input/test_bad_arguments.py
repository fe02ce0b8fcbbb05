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


ASKED = "--tasks kinship --retention capitals --max-loss 1 --output {out}"
REPAIR = f"repair {{base}} {{adapter}} {ASKED}"
INTO = "repair {base} {adapter} --tasks kinship --retention capitals --max-loss 1 --output"
EMPTY = "choose another folder"

BAD = [
    Bad("share 0", f"{REPAIR} --by energy=0", "energy=0 is not a repair", "above 0"),
    Bad("share 0.0", f"{REPAIR} --by energy=0.0", "energy=0.0 is not a repair", "at most 1"),
    Bad("share negative", f"{REPAIR} --by energy=-0.5", "energy=-0.5 is not a repair"),
    Bad("share in words", f"{REPAIR} --by energy=most", "energy=most is not a repair"),
    Bad("share 1.5", f"{REPAIR} --by energy-global=1.5", "energy-global=1.5 is not a repair"),
    Bad("no share", f"{REPAIR} --by energy=", "energy= is not a repair"),
    Bad("no global share", f"{REPAIR} --by energy-global", "energy-global takes a share above 0"),
    Bad("factor NaN", f"{REPAIR} --by scale=nan", "scale=nan is not a repair", "from 0 to 1"),
    Bad("factor 2", f"{REPAIR} --by lines=2", "lines=2 is not a repair", "from 0 to 1"),
    Bad("heads 0", f"{REPAIR} --by heads=0", "heads=0 is not a repair", "at least 1"),
    Bad("heads of half", f"{REPAIR} --by heads=1.5", "heads=1.5 is not a repair"),
    Bad("no such average", f"{REPAIR} --by average=mean", "average=mean is not", "linear, ties"),
    Bad("no such kind", f"{REPAIR} --by enrgy=0.9", "no kind of repair is named 'enrgy'"),
    Bad("a kind that went", f"{REPAIR} --by truncate=8", "no kind of repair is named 'truncate'"),
    Bad("output full", f"{INTO} {{full}}", "exists and is not empty", EMPTY),
    Bad("output a file", f"{INTO} {{file}}", "exists and is not", EMPTY),
    Bad("output the adapter", f"{INTO} {{adapter}}", "exists and", EMPTY),
    Bad("output a pipe", f"{INTO} {{pipe}}", "exists and is not", EMPTY),
    Bad("no adapter there", f"repair {{base}} {{gone}} {ASKED}", "is not a", "Check the path."),
    Bad("adapter a file", f"repair {{base}} {{file}} {ASKED}", "is not a", "Check the path."),
    Bad("adapter a loop", f"repair {{base}} {{loop}} {ASKED}", "is not a", "Check the path."),
    Bad(
        "adapter a checkpoint",
        f"repair {{base}} {{base}} {ASKED}",
        "only an adapter's update can be repaired",
        "Give a PEFT LoRA folder.",
    ),
    Bad(
        "adapter with NaN", f"repair {{base}} {{nan}} {ASKED}", "NaN or infinite", "Train it again"
    ),
    Bad("adapter too large", f"repair {{base}} {{huge}} {ASKED}", "overflows float32", "Train it"),
    Bad("adapter of alpha 0", f"repair {{base}} {{zero}} {ASKED}", "lora_alpha: 0", "Save the"),
    Bad("base not there", f"repair {{gone}} {{adapter}} {ASKED}", "is not a folder", "Check the"),
    Bad(
        "base an adapter",
        f"repair {{adapter}} {{adapter}} {ASKED}",
        "holds an adapter (adapter_config.json)",
        "or name the adapter's own base",
    ),
    Bad(
        "another base recorded",
        f"repair {{base}} {{stranger}} {ASKED}",
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
        "names no file or folder",
        "write a path",
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
        "longer than the system takes",
        "use shorter names",
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
        "it is not a folder",
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
    assert bad.remedy.lower() in said.lower()
    assert list(tmp_path.iterdir()) == []
