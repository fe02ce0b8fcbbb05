"""``rankwise init --from``: another tool's config becomes a study file that can be planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwise.records.study_file import load_config
from tests.planted import tool_configs
from tests.support.audited_models import adapter
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

ROWS = [
    {"prompt": f"{a} plus {b} is", "completion": f" {a + b}"} for a in range(6) for b in range(6)
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path) -> Path:
    """The current folder, with rows and a config of TRL for the tiny model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    text = tool_configs.TRL.replace("org/model", str(tiny_model_folder))
    kept = [line for line in text.splitlines() if "4bit" not in line and "bf16" not in line]
    (tmp_path / "trl.yaml").write_text("\n".join([*kept, "neftune_noise_alpha: 5\n"]))
    return tmp_path


def test_a_config_becomes_a_study_that_can_be_planned(here: Path, sentence: Sentences) -> None:
    done = rankwise("init", "--from", "trl.yaml")
    assert done.exit_code == 0
    assert "rankwise plan study.yaml" in done.stdout
    sentence(done.stderr, names=("neftune_noise_alpha",))
    planned = rankwise("plan", "study.yaml", "evaluation.retention=[capitals]", "--json")
    assert planned.exit_code == 0, planned.output
    runs = json.loads(planned.stdout)["runs"]
    assert [(run["rank"], run["alpha"]) for run in runs] == [(4, 8), (8, 16), (16, 32), (32, 64)]
    # 36 rows less the 4 that are held out, 32 in a step: 1 step an epoch
    assert {(run["learning_rate"], run["epochs"], run["num_steps"]) for run in runs} == {
        (2e-4, 2, 2)
    }


def test_an_adapter_folder_is_a_run_of_its_study(
    here: Path, tiny_model_folder: Path, sentence: Sentences
) -> None:
    adapter(tiny_model_folder, here / "mine")
    done = rankwise("init", "--from", "mine", "new/study.yaml")
    assert done.exit_code == 0
    sentence(done.stderr, names=("train.data",))
    arguments = ("train.data=../rows.jsonl", "evaluation.retention=[capitals]", "--json")
    planned = rankwise("plan", "new/study.yaml", *arguments)
    assert planned.exit_code == 0, planned.output
    imported = [run["imported"] for run in json.loads(planned.stdout)["runs"] if run["imported"]]
    assert [each["label"] for each in imported] == ["yours"]


def test_what_is_refused_writes_nothing(here: Path, sentence: Sentences) -> None:
    (here / "bad.yaml").write_text("model_name_or_path: m\nuse_peft: true\nlora_r: 0\n")
    done = rankwise("init", "--from", "bad.yaml")
    assert (done.exit_code, done.stdout) == (2, "")
    sentence(done.stderr, "bad.yaml", names=("bad.yaml", "lora_r"))
    done = rankwise("init", "--from", "nowhere.yaml")
    assert done.exit_code == 2
    sentence(done.stderr, "nowhere.yaml", names=("nowhere.yaml",))
    done = rankwise("init", "--from", "trl.yaml", "--preset", "alpha")
    assert done.exit_code == 2
    sentence(words(done.stderr), "--preset", names=("--preset", "--from"))
    assert not (here / "study.yaml").exists()
    (here / "study.yaml").write_text("mine")
    assert rankwise("init", "--from", "trl.yaml").exit_code == 2
    assert (here / "study.yaml").read_text() == "mine"
    assert rankwise("init", "--from", "trl.yaml", "--overwrite").exit_code == 0
    assert load_config(here / "study.yaml").train.learning_rate.lora == (2e-4,)
