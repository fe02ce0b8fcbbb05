"""repair without a study: adapters of a base, tasks by name, a folder with a card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.loading import load_tokenizer
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend
from rankwise.findings.signatures.found import failure_signatures
from rankwise.heads.changes import head_activity
from rankwise.heads.layouts import head_layouts
from rankwise.records.repairs import AS_IT_IS, AdapterRepair, Repair
from rankwise.weights.lowrank import read_updates
from tests.planted.results import planted_study
from tests.support.audited_models import PREFIX, adapter, checkpoint, load, rewritten
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

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
        "--max-loss", 1000, "--by", "scale", "--json",
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
    done = rankwise(*arguments, "--max-loss", 1000, "--json")
    assert done.exit_code == 0, done.output
    record = AdapterRepair.model_validate_json(done.stdout)
    choice = record.choice
    assert (choice.in_domain, choice.retention) == (("colours",), ("hues",))
    assert choice.num_items == 52
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    if choice.repair is None:  # a random adapter may gain too little
        assert record.folder is None
        assert not output.exists()
        return
    own, written = read_updates(AdapterFolder(mine)), read_updates(AdapterFolder(output))
    assert own.keys() == written.keys()
    assert choice.statement in (output / "README.md").read_text()


def saying(base: Path, folder: Path, tasks: Path, *said: tuple[int, float, str, str]) -> Path:
    """An adapter of which heads of the last layer say words as they are asked to.

    Args:
        base: a tiny model.
        folder: of the adapter.
        tasks: there ``learned`` asks for blue or green, ``kept`` for colour or sky; the first is
            right.
        said: a head, how loudly, the word that it says, and the one in whose place.
    """
    for task, right, wrong in (("learned", "blue", "green"), ("kept", "colour", "sky")):
        (tasks / f"{task}.yaml").write_text(
            f"include: colours.yaml\ntask: {task}\ndoc_to_choice: [{right}, {wrong}]\n"
            "doc_to_target: 0\n"
        )
    model, tokenizer = load(base), load_tokenizer(base)
    prompt = tuple(tokenizer("Question: which colour has the old sky?\nAnswer:").input_ids)
    heads = head_activity(model, prompt)[1].outputs[:, -1]  # (heads, width)
    layout, first = head_layouts(model)[1], model.get_input_embeddings().weight.detach()

    def towards(right: str, wrong: str) -> Tensor:
        one, other = (tokenizer(f" {word}").input_ids[0] for word in (right, wrong))
        return first[one] - first[other]

    A = torch.zeros(len(said), heads.numel())
    for row, (head, *_) in enumerate(said):
        A[row, layout.columns(head).span] = heads[head] / heads[head].norm() ** 2
    B = torch.stack([loudly * towards(*words) for _, loudly, *words in said], dim=1)
    adapter(base, folder, std=0.0, r=len(said), lora_alpha=len(said), target_modules=["o_proj"])
    place = f"{PREFIX}{layout.output}"
    rewritten(
        folder, lambda t: t.update({f"{place}.lora_A.weight": A, f"{place}.lora_B.weight": B})
    )
    return folder


def repaired(base: Path, tasks: Path, folder: Path, output: Path, *more: object) -> AdapterRepair:
    done = rankwise(
        "repair", base, folder, "--tasks", "learned", "--retention", "kept",
        "--tasks-path", tasks, "--allow-task-code", "--precision", "float32",
        "--output", output, "--json", *more,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return AdapterRepair.model_validate_json(done.stdout)


def test_harm_in_one_head_is_found_and_the_gain_of_another_kept(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    """Head 0 of the last layer says blue as it is asked to, head 2 says sky instead of colour,
    which was to be kept. Any other change keeps some of the harm or loses some of the gain.
    """
    said = (0, 4.0, "blue", "green"), (2, 8.0, "sky", "colour")
    mine = saying(tiny_model_folder, tmp_path / "a", tasks_folder, *said)
    record = repaired(tiny_model_folder, tasks_folder, mine, tmp_path / "out", "--max-loss", 5)
    chosen, as_it_is = record.choice.chosen, record.choice.as_it_is
    assert chosen is not None
    assert record.choice.repair == Repair(family="heads", value=1.0), record.choice.statement
    assert record.reverted == ((1, 2),)
    assert as_it_is.retention.upper < -50.0
    assert abs(chosen.retention.estimate) < 5.0
    assert chosen.gain.estimate > 0.9 * as_it_is.gain.estimate > 50.0


def test_an_adapter_is_cut_to_the_ranks_that_its_layers_need(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    """Head 0 says blue loudly; what head 2 says hardly counts, and is cut off."""
    said = (0, 8.0, "blue", "green"), (2, 0.1, "sky", "colour")
    mine = saying(tiny_model_folder, tmp_path / "a", tasks_folder, *said)
    more = "--max-loss", 1000, "--by", "energy=0.6"
    record = repaired(tiny_model_folder, tasks_folder, mine, tmp_path / "out", *more)
    asked_for = Repair(family="energy", value=0.6)
    assert [point.repair for point in record.choice.curve] == [AS_IT_IS, asked_for]
    assert record.choice.repair == asked_for, record.choice.statement
    whole, cut = read_updates(AdapterFolder(mine)), read_updates(AdapterFolder(tmp_path / "out"))
    assert {name: update.rank for name, update in cut.items()} == record.ranks
    (changed,) = (name for name, update in whole.items() if update.frobenius_norm)
    assert (whole[changed].rank, record.ranks[changed]) == (2, 1)
    update = whole[changed]
    energy = torch.linalg.svdvals(update.scaling * update.lora_B @ update.lora_A).square()
    assert float(energy[0] / energy.sum()) >= 0.6
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {config["r"], *config["rank_pattern"].values()} == {*record.ranks.values()}
    loaded = peft.PeftModel.from_pretrained(load(tiny_model_folder), str(tmp_path / "out"))
    assert loaded.peft_config["default"].rank_pattern == config["rank_pattern"]


def test_further_adapters_are_averaged(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        adapter(tiny_model_folder, tmp_path / name, std=0.2)
    rewritten(tmp_path / "two", lambda t: [w.mul_(0.5) for w in t.values()])
    arguments = asked(
        tiny_model_folder, tasks_folder, tmp_path / "out", tmp_path / "one", tmp_path / "two"
    )
    done = rankwise(*arguments, "--max-loss", 1000, "--by", "average", "--json")
    assert done.exit_code == 0, done.output
    record = AdapterRepair.model_validate_json(done.stdout)
    assert record.averaged_with == (str(tmp_path / "two"),)
    assert [point.repair.how for point in record.choice.curve][:3] == [
        None, "linear", "ties",
    ]  # fmt: skip


def test_none_does_is_an_answer(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    """A limit of 0 points needs a shown gain on retention: a random adapter has none."""
    adapter(tiny_model_folder, tmp_path / "a", std=0.2)
    arguments = asked(tiny_model_folder, tasks_folder, tmp_path / "out", tmp_path / "a")
    done = rankwise(*arguments, "--max-loss", 0, "--by", "scale")
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
    base, limit = tiny_model_folder, ("--max-loss", 1)

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
        ((*of("a"), "--limit", 1), "for '--limit'"),
    ]
    for arguments, message in cases:
        done: Any = rankwise(*arguments)
        assert done.exit_code == 2, (message, done.output)
        assert message in words(done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_that_a_finding_suggests_can_be_called(sentence: Sentences) -> None:
    """Negative transfer ends with it; its options are complete, and only two names are missing."""
    lost = planted_study({4: 0.6}, {}, {4: 0.3}, {}, noise=0.0)
    (source,) = option_gains(lost)
    (part,) = recommend(lost).by_train_task
    advice = {each.name: each.advice for each in failure_signatures(source, part)}
    (command,) = re.findall(r"`rankwise (.+?)`", advice["negative_transfer"])
    assert "--tasks kinship --retention syllogism" in command
    done = rankwise(*command.split())
    assert done.exit_code == 2
    sentence(done.stderr, names=("adapter",))
