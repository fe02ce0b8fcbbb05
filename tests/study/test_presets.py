"""Study files that ship: each loads, says what it is for, and plans."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models.structure import model_skeleton
from rankwise.records.config.training import RateRuleConfig
from rankwise.records.study_file import load_config, preset_names, preset_text
from rankwise.study.planning import fitting
from rankwise.study.planning.plan import plan_study
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences
from tests.support.tiny_tasks import tiny_tokenizer

PAPER_DATA = ("gsm8k", "mathqa", "medmcqa", "mmlu")


def written(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(preset_text(name), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_loads_and_plans(
    name: str, tmp_path: Path, tiny_model_folder: Path, tasks_folder: Path
) -> None:
    """On tasks and rows of its own kind: the preset's are on a hub, or too long."""
    config = load_config(written(tmp_path, name))
    assert config.name == name
    several = len(config.train.task) > 1
    rows = [{"prompt": f"Say {n}.", "completion": f'{{"n": {n}}}'} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overrides = [
        f"base_model={tiny_model_folder}",
        f"tasks_path={tasks_folder}",
        "allow_task_code=true",
        "train.data=rows.jsonl"
        if config.train.data
        else f"train.task={'[colours, sums]' if several else 'colours'}",
        "train.split=null",
        f"evaluation.out_of_domain={'[]' if several else '[sums]'}",
        f"evaluation.retention={'[hues]' if config.mitigations else '[]'}",
        "evaluation.held_out_text=[small_prose]",
        f"evaluation.domains={{{'' if config.train.data else 'colours: knowledge, '}sums: maths}}",
    ]
    plan = plan_study(load_config(written(tmp_path, name), overrides))
    ranks = config.methods.lora.ranks if config.methods.lora else ()
    assert {run.rank for run in plan.record.runs} - {None} == set(ranks)
    assert any(run.method == "full" for run in plan.record.runs) == (
        config.methods.full is not None
    )


def test_the_presets_are_the_paper_s_experiments_and_next_checks() -> None:
    assert set(preset_names()) == {
        "quickstart",
        "sanity",
        "retention",
        "stress",
        "alpha",
        "data-size",
        "fine-tune-at-all",
        "learning-rate",
        "mitigation",
        "variants",
        "on-policy",
        "self-distillation",
        "beyond-128",
        "paper-llama",
        "paper-qwen",
    }


@pytest.mark.parametrize("name", ["paper-llama", "paper-qwen"])
def test_the_paper_s_design_is_complete(name: str, tmp_path: Path) -> None:
    config = load_config(written(tmp_path, name))
    assert config.train.task[:4] == PAPER_DATA
    assert config.methods.lora is not None
    assert config.methods.lora.ranks == (8, 16, 32, 64, 128)
    assert [config.methods.lora.alpha[0].alpha_of(r) for r in (8, 128)] == [16, 256]
    assert config.methods.lora.target_modules == (("q_proj", "k_proj", "v_proj", "o_proj"),)
    assert config.methods.full is not None
    train = config.train
    assert (train.epochs, train.batch_size, train.gradient_accumulation_steps) == ((3,), 2, 4)
    assert (train.learning_rate.full, train.warmup_ratio) == ((5e-5,), 0.1)
    assert config.evaluation.retention == ("mmlu",)
    assert "LegalMCQ" in preset_text(name)
    assert "stand-ins" in preset_text(name)


PUBLISHED: dict[str, dict[str, Any]] = {
    "paper-llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    },
    "paper-qwen": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
    },
}
"""Of the configs of Llama-3.1-8B and Qwen2.5-7B."""


def unwritten_weights(folder: Path) -> None:
    """A file of the model's size that takes no room, as its numbers were never written."""
    header: dict[str, Any] = {}
    end = 0
    for name, weight in model_skeleton(folder).state_dict().items():
        start, end = end, end + 2 * weight.numel()
        header[name] = {"dtype": "BF16", "shape": [*weight.shape], "data_offsets": [start, end]}
    text, path = json.dumps(header).encode(), folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)


@pytest.fixture(params=PUBLISHED)
def paper(request: pytest.FixtureRequest, tmp_path: Path, tasks_folder: Path) -> tuple[str, ...]:
    """The arguments of a paper's preset: its model without weights, five tasks of long prompts."""
    folder = tmp_path / "model"
    tiny_tokenizer().save_pretrained(folder)
    config = {"tie_word_embeddings": False, "max_position_embeddings": 32768}
    (folder / "config.json").write_text(json.dumps(PUBLISHED[request.param] | config))
    unwritten_weights(folder)
    tasks = [f"long_{number}" for number in range(5)]
    for name in tasks:  # a prompt is cut to train.max_length
        prompt = f"{'x' * 2000} {name} {{{{question}}}}"
        text = f"include: colours.yaml\ntask: {name}\ndoc_to_text: '{prompt}'\n"
        (tasks_folder / f"{name}.yaml").write_text(text)
    return (
        str(written(tmp_path, request.param)),
        f"base_model={folder}",
        f"tasks_path={tasks_folder}",
        "allow_task_code=true",
        f"train.task=[{', '.join(tasks)}]",
        "train.split=null",
        "evaluation.out_of_domain=[]",
        "evaluation.retention=[hues]",
        "evaluation.held_out_text=[small_prose]",
        "evaluation.domains={}",
        "--study-dir",
        str(tmp_path / "study"),
    )


def test_a_paper_s_study_fits_a_card_of_80_gb(
    paper: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "has_8bit_adamw", lambda _: True)
    done = rankwise("plan", *paper, "--device", "cuda", "--memory", "80GB", "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert [warning for warning in plan["warnings"] if "methods." in warning] == []
    assert plan["precision"] == "bfloat16"
    full = {(run["method"], *(run["full"] or {}).values()) for run in plan["runs"]}
    assert full == {("lora",), ("full", "bfloat16", "adamw_8bit")}
    lora = [each for each in plan["passes"] if "-lora-" in each["runs"][0]]
    assert sum(len(each["runs"]) for each in lora) == 25
    assert min(each["max_tokens"] for each in lora) >= 8192
    assert max(each["estimated_memory_bytes"] for each in plan["passes"]) <= 0.85 * 80e9
    assert plan["seconds"] > 0
    assert plan["is_rate_assumed"]


def test_a_paper_s_study_needs_8_bit_moments_there(
    paper: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "has_8bit_adamw", lambda _: False)
    done = rankwise("plan", *paper, "--device", "cuda", "--memory", "80GB")
    assert done.exit_code == 2
    setting = "methods.full={weights: bfloat16, optimizer: adamw_8bit}"
    assert all(named in words(done.stderr) for named in (setting, "'.[torchao]'"))


def test_ranks_beyond_the_smaller_side_are_a_warning(
    tmp_path: Path, tiny_model_folder: Path, tasks_folder: Path, sentence: Sentences
) -> None:
    overrides = [
        f"base_model={tiny_model_folder}",
        f"tasks_path={tasks_folder}",
        "allow_task_code=true",
        "train.task=colours",
        "train.split=null",
        "evaluation.retention=[]",
        "evaluation.held_out_text=[]",
        "evaluation.domains={}",
    ]
    record = plan_study(load_config(written(tmp_path, "beyond-128"), overrides)).record
    sentence(record.warnings, names=("rank 512", "k_proj, v_proj", "24"), part=True)


def test_the_default_study_is_as_small_and_as_fair_as_the_documentation_says() -> None:
    """Sizes and rates of docs/PERFORMANCE.md, "The default study"."""
    config = load_config(None)
    train, lora = config.train, config.methods.lora
    assert (train.max_examples, train.epochs, train.batch_size) == ((160,), (2,), 8)
    assert config.evaluation.limit == 300
    assert lora is not None
    assert (lora.ranks, lora.target_modules) == ((1, 4, 16), (("all-linear",),))
    (rate,) = train.learning_rate.lora
    assert isinstance(rate, RateRuleConfig)
    assert [rate.rate_of(rank) for rank in (2, 8, 32)] == [8e-4, 4e-4, 2e-4]
    assert train.learning_rate.full == (2e-5,)
