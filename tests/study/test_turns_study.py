"""Studies of conversations: what the plan says, what is trained, and how they are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import ConfigError
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.report.facts import training_facts
from rankwise.study.planning.plan import plan_study
from rankwise.study.reading import read_results
from tests.support.command_line import rankwise
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.studies import run

SETTINGS = """
train:
  data: chats.jsonl
  epochs: 1
  batch_size: 4
  gradient_accumulation_steps: 1
  held_out_fraction: 0.25
  learning_rate: {lora: 2e-2}
  precision: float32
methods: {lora: {ranks: [2], target_modules: [q_proj, v_proj]}, full: null}
analysis: {spectra: false, heads: false, gauges: false}
evaluation: {retention: [], held_out_text: [], num_train_items: 0, trained_format: false}
"""


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ROWS = [
    {
        "prompt": [said("user", f"Say {n}.")],
        "completion": [
            said("assistant", f"Yes, {n}."),
            said("user", "Again!"),
            said("assistant", f"{n}, {n}."),
        ],
    }
    for n in range(16)
]


@pytest.fixture
def study_file(tmp_path: Path, tiny_model_folder: Path) -> Path:
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return write_study(tmp_path, tiny_model_folder, SETTINGS)


@pytest.mark.parametrize("which", ["last", "all"])
def test_the_plan_says_which_turns_are_learned(
    study_file: Path, tmp_path: Path, which: str, sentence: Sentences
) -> None:
    arguments = ("plan", study_file, f"train.turns={which}", "--study-dir", tmp_path / "s")
    planned = rankwise(*arguments)
    assert planned.exit_code == 0, planned.output
    (line,) = [each for each in planned.stdout.splitlines() if each.startswith("conversations:")]
    sentence(line, which, names=("16 rows",))
    own = json.loads(rankwise(*arguments, "--json").stdout)["own_data"]
    assert (own["turns"], own["num_conversations"]) == (which, 16)
    assert own["num_turns"] == {"last": 12, "all": 24}[which]


def test_other_rows_are_trained_and_the_same_are_scored(study_file: Path) -> None:
    last, every = (
        plan_study(load_config(study_file, [f"train.turns={which}"])) for which in ("last", "all")
    )
    (run_of_last,), (run_of_all,) = last.record.runs, every.record.runs
    assert run_of_last.fingerprint != run_of_all.fingerprint
    assert run_of_last.num_tokens == run_of_all.num_tokens
    (name,) = last.tasks
    assert last.tasks[name].requests == every.tasks[name].requests
    plain = plan_study(load_config(study_file))  # the default is in no fingerprint
    assert plain.record.fingerprint == last.record.fingerprint != every.record.fingerprint


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["train.data=null", "train.task=colours"], "'data'"),
        (["train.objective=dpo"], "dpo"),
        (["train.loss_on=all"], "loss_on"),
        (["train.turns=first"], "first"),
    ],
    ids=["a task", "dpo", "loss on all", "first"],
)
def test_settings_that_do_not_go_together(
    study_file: Path, settings: list[str], named: str, sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(study_file, ["train.turns=all", *settings])
    sentence(caught.value, names=("turns", named))


def test_turns_in_two_columns_are_trained_and_asked_as_a_conversation(
    study_file: Path, tmp_path: Path
) -> None:
    run(study_file, tmp_path / "s", "train.turns=all")

    def answers(*options: Any) -> list[str]:
        done = rankwise("ask", tmp_path / "s", "Say 3.", "--max-new-tokens", 8, "--json", *options)
        assert done.exit_code == 0, done.output
        return [each["text"] for each in json.loads(done.stdout)]

    assert answers() == answers("--chat-template") != answers("--no-chat-template")
    facts = training_facts(read_results(StudyFolder(tmp_path / "s")))
    assert facts["Loss on"] == "every assistant turn"
