"""repair without a study: adapters of a base, tasks by name, a folder with a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankwise.records.repairs import AdapterRepair
from rankwise.weights.lowrank import read_updates
from tests.support.audited_models import adapter, checkpoint, rewritten
from tests.support.command_line import rankwise, words

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def asked(base: Path, tasks: Path, output: Path, *adapters: Path) -> tuple[object, ...]:
    return (
        "repair", base, *adapters, "--tasks", "colours", "--retention", "hues",
        "--tasks-path", tasks, "--allow-task-code", "--precision", "float32", "--output", output,
    )  # fmt: skip


def gaining(base: Path, folder: Path, tasks: Path) -> Path:
    """A random adapter, its sign turned where it loses in-domain."""
    adapter(base, folder, std=0.2)
    done = rankwise(
        *asked(base, tasks, folder.parent / "probe", folder),
        "--max-retention-loss", 1000, "--by", "scale", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    record = AdapterRepair.model_validate_json(done.stdout)
    gains = [point.gain.estimate for point in record.choice.curve]
    if max(gains) <= 0:
        rewritten(folder, lambda t: [w.neg_() for n, w in t.items() if "lora_B" in n])
    return folder


def test_an_adapter_is_repaired_and_written(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    mine = gaining(tiny_model_folder, tmp_path / "mine", tasks_folder)
    output = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    arguments = asked(tiny_model_folder, tasks_folder, output, mine)
    done = rankwise(*arguments, "--max-retention-loss", 1000, "--json")
    assert done.exit_code == 0, done.output
    record = AdapterRepair.model_validate_json(done.stdout)
    choice = record.choice
    assert (choice.in_domain, choice.retention) == (("colours",), ("hues",))
    assert (choice.num_choosing_items, choice.num_judging_items) == (26, 26)
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    if choice.repair is None:  # 13 items may disagree with the 13 others
        assert record.folder is None
        assert not output.exists()
        return
    own, written = read_updates(mine), read_updates(output)
    assert own.keys() == written.keys()
    assert choice.statement in (output / "README.md").read_text()


def test_further_adapters_are_averaged(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        adapter(tiny_model_folder, tmp_path / name, std=0.2)
    rewritten(tmp_path / "two", lambda t: [w.mul_(0.5) for w in t.values()])
    arguments = asked(
        tiny_model_folder, tasks_folder, tmp_path / "out", tmp_path / "one", tmp_path / "two"
    )
    done = rankwise(*arguments, "--max-retention-loss", 1000, "--by", "average", "--json")
    assert done.exit_code == 0, done.output
    record = AdapterRepair.model_validate_json(done.stdout)
    assert record.averaged_with == (str(tmp_path / "two"),)
    assert [point.repair.combination for point in record.choice.curve][:3] == [
        None, "linear", "ties",
    ]  # fmt: skip


def test_none_does_is_an_answer(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    """A limit of 0 points needs a shown gain on retention: a random adapter has none."""
    adapter(tiny_model_folder, tmp_path / "a", std=0.2)
    arguments = asked(tiny_model_folder, tasks_folder, tmp_path / "out", tmp_path / "a")
    done = rankwise(*arguments, "--max-retention-loss", 0, "--by", "scale")
    assert done.exit_code == 0, done.output
    assert "None does: " in words(done.stdout)
    assert not (tmp_path / "out").exists()


def test_what_was_given_wrong_exits_with_2(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a", std=0.2)
    adapter(tiny_model_folder, tmp_path / "zero", std=0.0)
    adapter(tiny_model_folder, tmp_path / "other", std=0.2, target_modules=["q_proj"])
    checkpoint(tiny_model_folder, tmp_path / "whole", lambda t: t)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    base, limit = tiny_model_folder, ("--max-retention-loss", 1)

    def of(*adapters: str, output: str = "out") -> tuple[object, ...]:
        places = [tmp_path / name for name in adapters]
        return (*asked(base, tasks_folder, tmp_path / output, *places), *limit)

    cases: list[tuple[tuple[object, ...], str]] = [
        (of("zero"), "nothing to repair"),
        (of("a", "other"), "adapt different layers"),
        (of("whole"), "is a checkpoint"),
        (of("a", output="full"), "exists and is not empty"),
        ((*of("a"), "--retention", "colours"), "in --tasks and in --retention"),
        ((*of("a"), "--retention", "small_prose"), "scored by its loss"),
        (("repair", base, tmp_path / "a", *limit), "3 problems"),
        ((*of("a"), "--limit", 3), "for '--limit'"),
    ]
    for arguments, message in cases:
        done: Any = rankwise(*arguments)
        assert done.exit_code == 2, (message, done.output)
        assert message in words(done.stderr), done.stderr
    assert not (tmp_path / "out").exists()
