"""check --merge: several adapters merged into one, against each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rankwise.records.deployment import DeploymentCheck
from tests.support.audited_models import adapter, edited
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

WEIGHTS = "adapter_model.safetensors"


def scaled(folder: Path, by: float) -> Path:
    """Multiply both factors of an adapter: its update grows by the square."""
    factors = load_file(folder / WEIGHTS)
    save_file({k: by * v for k, v in factors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture
def check(tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path) -> Any:
    """Checks a and b, which differ in size, and others by name."""
    for name, by in (("a", 1.0), ("b", 0.5)):
        adapter(tiny_model_folder, tmp_path / name, std=0.5)
        scaled(tmp_path / name, by)

    def checked(names: str, *more: object, code: int = 0) -> Any:
        done = rankwise(
            "check", tiny_model_folder, *(tmp_path / name for name in names.split()), "--tasks",
            "colours", "--tasks-path", tasks_folder, "--allow-task-code", "--max-loss", 99, *more,
        )  # fmt: skip
        assert done.exit_code == code, done.output
        return done

    return checked


@pytest.mark.parametrize(("use_rslora", "scaling"), [(False, 2.0), (True, 4.0)])
def test_a_linear_merge_by_hand(
    check: Any, tiny_model_folder: Path, tmp_path: Path, use_rslora: bool, scaling: float
) -> None:
    """Its factors are the sums of the adapters', each times the root of its scaling.

    With alpha 8 and rank 4 that is 8 / 4, and 8 / 2 under rsLoRA.
    """
    for name in ("a", "b"):
        edited(tmp_path / name, use_rslora=use_rslora)
    done = check("a b", "--merge", "linear", "--json", "--output", tmp_path / "out")
    first, second = (
        DeploymentCheck.model_validate(each) for each in json.loads(done.stdout)["checks"]
    )
    assert [first.adapter, second.adapter] == [str(tmp_path / "a"), str(tmp_path / "b")]
    adapter(tiny_model_folder, tmp_path / "both", std=0.5)
    edited(scaled(tmp_path / "both", 1.5 * scaling**0.5), lora_alpha=4)
    alone = {
        name: DeploymentCheck.model_validate_json(check(name, "--json").stdout).forms[0].scores[0]
        for name in ("a", "b", "both")
    }
    for name, record in (("a", first), ("b", second)):
        (form,) = record.forms
        (score,) = form.scores
        assert form.form == "linear merge"
        assert score.reference_score == pytest.approx(alone[name].form_score, abs=1e-3)
        assert score.form_score == pytest.approx(alone["both"].form_score, abs=1e-3)
        assert score.difference.estimate == pytest.approx(
            score.form_score - score.reference_score, abs=1e-3
        )
    assert (tmp_path / "out" / "2" / "deployment.json").is_file()


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_other_merges_are_judged_and_repeat(check: Any, method: str) -> None:
    one, other = (check("a b", "--merge", method, "--json").stdout for _ in range(2))
    scores = [
        [form["scores"][0]["form_score"] for each in json.loads(out)["checks"]
         for form in each["forms"]]
        for out in (one, other)
    ]  # fmt: skip
    assert scores[0] == scores[1]
    assert f"{method} merge keeps enough" in words(check("a b", "--merge", method).stdout)


def test_what_cannot_be_merged_is_a_sentence(
    check: Any, tiny_model_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    adapter(tiny_model_folder, tmp_path / "wider", r=8)

    def problem(names: str, *more: object) -> str:
        return words(check(names, *more, code=2).stderr)

    sentence(problem("a b"), "how", names=("--merge",))
    sentence(problem("a a", "--merge", "ties"), "one", names=("--merge",))
    sentence(problem("a b/../a/", "--merge", "ties"), "one", names=("--merge",))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    sentence(problem("a link", "--merge", "ties"), "one", names=("--merge",))
    sentence(problem("a wider", "--merge", "ties"), "ranks", names=("rank",))
    adapter(tiny_model_folder, tmp_path / "pattern", rank_pattern={"v_proj": 2})
    sentence(problem("a pattern", "--merge", "linear"), "pattern", names=("rank_pattern",))
