"""Answers of a study's models, held against what transformers and peft write."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import rankwise as rw
from rankwise.errors import ConfigError, PlanError, RecordError
from rankwise.records.folder import StudyFolder
from tests.support.command_line import rankwise
from tests.support.sentences import Sentences
from tests.support.small_studies import Study, write_study
from tests.support.studies import run

SETTINGS = """
train:
  task: colours
  epochs: 2
  learning_rate: {lora: 3e-2, full: 1e-2}
  precision: float32
methods: {lora: {ranks: [2, 4]}, full: {}}
seeds: [0, 1]
evaluation: {retention: [], held_out_text: [], num_train_items: 0, limit: 4}
analysis: {spectra: false, heads: false, gauges: false}
"""
PROMPTS = ("Question: which colour has the sky?\nAnswer:", "Question: 1 + 1?\nAnswer:")
NEW = 12


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Study:
    root = tmp_path_factory.mktemp("asked")
    file = write_study(root, tiny_model_folder, SETTINGS)
    run(file, root / "study")
    return Study(file, StudyFolder(root / "study"))


def by_transformers(model: Any, tokenizer: Any, prompt: str, *, chat: bool = False) -> str:
    """Greedy, as transformers generates."""
    if chat:
        turns = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat)
    with torch.no_grad():
        made = model.generate(**tokens, max_new_tokens=NEW, do_sample=False)
    return tokenizer.decode(made[0, tokens.input_ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("chat", [False, True])
def test_base_adapters_and_full_fine_tuning_answer_as_transformers_does(
    study: Study, tiny_model_folder: Path, chat: bool
) -> None:
    options = ("--chat-template",) if chat else ()
    done = rankwise("ask", study.folder.root, *PROMPTS, "--max-new-tokens", NEW, "--json", *options)
    assert done.exit_code == 0, done.output
    answers = json.loads(done.stdout)
    assert [each["model"] for each in answers] == 2 * [
        "base", "rank 2", "rank 4", "full fine-tuning",
    ]  # fmt: skip
    assert [each["prompt"] for each in answers[::4]] == list(PROMPTS)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    runs = {run.name: run for run in study.runs}
    for each in answers:
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        if each["run"] is not None:
            planned = runs[each["run"]]
            assert planned.seed == 0
            weights = study.folder.weights(planned)
            if planned.method == "full":
                model = AutoModelForCausalLM.from_pretrained(weights)
            else:
                model = PeftModel.from_pretrained(model, str(weights))
        expected = by_transformers(model.eval(), tokenizer, each["prompt"], chat=chat)
        assert each["text"] == expected, each["model"]
    # the models do not all say the same
    assert len({each["text"] for each in answers[:4]}) > 1


def test_answers_are_shown_and_nothing_is_written(study: Study, sentence: Sentences) -> None:
    before = contents(study.folder.root)
    done = rankwise("ask", study.folder.root, PROMPTS[0], "--run", "r2-s1", "--max-new-tokens", 3)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("base")
    assert any(line.startswith("rank 2") for line in lines)
    assert not any("rank 4" in line for line in lines)
    assert contents(study.folder.root) == before


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_sampled_answers_are_those_of_their_seed(study: Study) -> None:
    opened = rw.open(study.folder.root)

    def texts(seed: int, *prompts: str) -> list[str]:
        frame = opened.ask(*prompts, temperature=1.5, seed=seed, max_new_tokens=NEW)
        return frame[frame["prompt"] == PROMPTS[0]]["text"].tolist()

    assert texts(1, *PROMPTS) == texts(1, PROMPTS[0])  # whatever else is asked
    assert texts(1, PROMPTS[0]) != texts(2, PROMPTS[0])


def test_what_cannot_be_asked(study: Study, tmp_path: Path, sentence: Sentences) -> None:
    opened = rw.open(study.folder.root)
    for prompts, settings, names in (
        ((" ",), {}, ("prompt",)),
        ((), {}, ("prompt",)),
        (("a",), {"max_new_tokens": 0}, ("--max-new-tokens", "0")),
        (("a",), {"temperature": float("nan")}, ("--temperature", "nan")),
        (("a",), {"runs": ["r9"]}, ("--run", "r9")),
        (("a" * 256,), {}, ("256 tokens",)),
    ):
        with pytest.raises(ConfigError) as caught:
            opened.ask(*prompts, **settings)  # pyright: ignore[reportArgumentType]
        assert all(name in str(caught.value) for name in names)
    with pytest.raises(RecordError):
        rw.open(tmp_path).ask("a")
    # a damaged adapter is no answer
    copy = StudyFolder(tmp_path / "copy")
    shutil.copytree(study.folder.root, copy.root)
    adapter = copy.weights_folder(study.runs[0]) / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\x7f")
    done = rankwise("ask", copy.root, "a")
    assert done.exit_code == 1, done.output
    sentence(done.stderr, names=(adapter.name,))
    # a run without weights is left out, and refused by name
    adapter.unlink()
    copy.run_file(study.runs[0].name).unlink()
    left = json.loads(rankwise("ask", copy.root, "a", "--max-new-tokens", 1, "--json").stdout)
    assert study.runs[0].name not in {each["run"] for each in left}
    done = rankwise("ask", copy.root, "a", "--run", study.runs[0].name)
    assert done.exit_code == 2
    sentence(" ".join(done.stderr.split()), "untrained", names=(study.runs[0].name,))


def test_scores_of_other_models_cannot_be_asked(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"{i},{model},{i % 2}" for model in ("base", "r4") for i in range(9)]
    table.write_text("\n".join(["id,model,acc", *rows]))
    assert rankwise("verdict", table, "--output", tmp_path / "kept").exit_code == 0
    with pytest.raises(PlanError):
        rw.open(tmp_path / "kept").ask("a")
    assert os.path.exists(tmp_path / "kept" / "study.json")
