"""What a study recommends, as the configs of other trainers, and back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.errors import ConfigError
from rankwise.integrations.drafts import TrainingSetup
from rankwise.integrations.exports import chosen_runs, setup_of
from rankwise.integrations.formats import export_study
from rankwise.integrations.sources import TOOLS, read_source
from rankwise.records.config.training import TrainConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedRun, Training
from rankwise.study.conclusion import conclude
from tests.planted.folders import write_study
from tests.planted.results import planted_study, with_plans
from tests.support.sentences import Sentences

BY_NAME = {tool.name: tool for tool in TOOLS}
NAMES = [*BY_NAME]
OF_TRAINING = [name for name in NAMES if name != "peft"]
BEST = "kinship-lora-r016"


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A study that recommends rank 16."""
    return written(tmp_path / "study", planted_study())


def written(path: Path, results: StudyResults) -> StudyFolder:
    folder = StudyFolder(path)
    write_study(folder, results)
    return folder


def with_training(results: StudyResults, **settings: Any) -> StudyResults:
    """The same study, trained with other settings."""
    train = TrainConfig(**settings)
    config = results.study.config.model_copy(update={"train": train})
    study = results.study.model_copy(update={"config": config})
    return results.model_copy(update={"study": study})


def exported(folder: StudyFolder, name: str, run: str | None = None) -> Mapping[str, Any]:
    (done,) = export_study(folder, name, run=run)
    assert done.file == folder.root / "export" / name / BY_NAME[name].file_name
    content: Mapping[str, Any] = yaml.safe_load(done.file.read_text(encoding="utf-8"))
    return content


def run_of(folder: StudyFolder, run: str) -> PlannedRun:
    return next(each for each in folder.read_study().runs if each.name.startswith(run))


# round trips


@pytest.fixture
def with_rows(tmp_path: Path) -> StudyFolder:
    """A study of the user's own rows, whose settings are all unlike any tool's defaults."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": []}) + "\n")
    results = with_training(
        planted_study(),
        data=rows,
        epochs=2,
        batch_size=3,
        gradient_accumulation_steps=5,
        schedule="cosine",
        warmup_ratio=0.0625,
        weight_decay=0.02,
        max_grad_norm=0.5,
        dropout=0.06,
        max_length=768,
        max_examples=100,
        chat_template=True,
        turns="all",
    )
    return written(tmp_path / "study", results)


@pytest.mark.parametrize("name", OF_TRAINING)
def test_what_is_exported_is_read_back_as_it_was(with_rows: StudyFolder, name: str) -> None:
    exported(with_rows, name)
    back = read_source(with_rows.root / "export" / name / BY_NAME[name].file_name).setup
    expected = setup_of(with_rows.read_study(), run_of(with_rows, BEST))
    assert (expected.rank, expected.alpha, expected.learning_rate) == (16, 32.0, 2e-4)
    # what is not said in every tool's words: kinds of rows, and float32, which is no bf16
    unsaid: dict[str, Any] = {"rows": None, "precision": None, "chat_template": None}
    assert back._replace(**unsaid) == expected._replace(**unsaid)


def test_an_adapter_config_is_read_back_as_far_as_it_goes(folder: StudyFolder) -> None:
    exported(folder, "peft")
    back = read_source(folder.root / "export" / "peft" / "adapter_config.json").setup
    modules = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (back.rank, back.alpha, back.target_modules) == (16, 32.0, modules)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("name", OF_TRAINING)
def test_every_schedule_is_read_back(tmp_path: Path, name: str, schedule: str) -> None:
    results = with_training(planted_study(), task="kinship", schedule=schedule, warmup_ratio=0.2)
    study = written(tmp_path, results)
    exported(study, name)
    back = read_source(study.root / "export" / name / BY_NAME[name].file_name).setup
    assert (back.schedule, back.warmup_ratio) == (schedule, 0.2)


@pytest.mark.parametrize("name", NAMES)
def test_rslora_is_read_back(tmp_path: Path, name: str) -> None:
    results = planted_study()
    runs = tuple(
        run.model_copy(update={"scaling": run.alpha / math.sqrt(run.rank)}) if run.rank else run  # type: ignore[operator]
        for run in results.study.runs
    )
    study = written(
        tmp_path,
        results.model_copy(update={"study": results.study.model_copy(update={"models": runs})}),
    )
    exported(study, name)
    back = read_source(study.root / "export" / name / BY_NAME[name].file_name).setup
    assert back.use_rslora
    assert not setup_of(results.study, results.study.runs[0]).use_rslora


# what the tools read


def test_peft_reads_it(folder: StudyFolder) -> None:
    from peft import LoraConfig

    content = exported(folder, "peft")
    assert set(content) <= {field.name for field in dataclasses.fields(LoraConfig)}
    config = LoraConfig.from_pretrained(str(folder.root / "export" / "peft"))
    assert (config.r, config.lora_alpha, config.use_rslora) == (16, 32, False)
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj"}


# Of trl.ModelConfig, trl.SFTConfig and trl.DatasetMixtureConfig, as of TRL 1.16; the others are
# transformers' own.
OF_TRL = {
    *("model_name_or_path", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "use_rslora"),
    *("lora_target_modules", "load_in_4bit", "load_in_8bit", "max_length", "datasets"),
    *("completion_only_loss", "assistant_only_loss"),
}


@pytest.mark.parametrize("name", ["trl", "unsloth"])
def test_transformers_reads_what_is_its_own(with_rows: StudyFolder, name: str) -> None:
    from transformers import TrainingArguments

    content = exported(with_rows, name)
    content = content if name == "trl" else content["SFTConfig"]
    own = {key: value for key, value in content.items() if key not in OF_TRL}
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(own) <= fields
    arguments = TrainingArguments(output_dir="unused", **own)
    assert (arguments.learning_rate, arguments.num_train_epochs) == (2e-4, 2)
    assert arguments.get_warmup_steps(100) == 7


def test_trl_reads_it(with_rows: StudyFolder) -> None:
    trl = pytest.importorskip("trl")
    exported(with_rows, "trl")
    file = with_rows.root / "export" / "trl" / "trl.yaml"
    kinds = (trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig, trl.DatasetMixtureConfig)
    parsed = trl.TrlParser(kinds).parse_args_and_config(args=["--config", str(file)])
    _, training, model, rows = parsed[:4]
    assert (model.lora_r, model.lora_alpha, training.learning_rate) == (16, 32, 2e-4)
    assert (training.max_length, training.assistant_only_loss) == (768, True)
    assert rows.datasets[0].split == "train[:100]"


def test_llama_factory_finds_its_rows(with_rows: StudyFolder) -> None:
    content = exported(with_rows, "llamafactory")
    info = json.loads((Path(content["dataset_dir"]) / "dataset_info.json").read_text())
    described = info[content["dataset"]]
    assert Path(described["file_name"]).name == "rows.jsonl"
    assert described["columns"] == {"messages": "messages"}
    assert content["mask_history"] is False


def test_llama_factory_can_be_told_to_learn_the_last_turn(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": []}) + "\n")
    study = written(tmp_path / "study", with_training(planted_study(), data=rows))
    assert exported(study, "llamafactory")["mask_history"] is True
    back = read_source(study.root / "export" / "llamafactory" / "llamafactory.yaml").setup
    assert back.turns == "last"


def test_rows_of_prompts_are_described(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    study = written(tmp_path / "study", with_training(planted_study(), data=rows, loss_on="all"))
    kind = exported(study, "axolotl")["datasets"][0]["type"]
    assert (kind["field_instruction"], kind["field_output"]) == ("prompt", "completion")
    assert exported(study, "axolotl")["train_on_inputs"] is True
    assert exported(study, "llamafactory")["template"] == "empty"
    assert exported(study, "trl")["completion_only_loss"] is False


# which run


def test_of_a_study_without_a_recommendation_the_best_bet_is_written(tmp_path: Path) -> None:
    none = dict.fromkeys((4, 16, 64), 0.52)
    study = written(tmp_path, planted_study(none, num_in_domain=60))
    (part,) = conclude(study).recommendation.by_train_task
    assert (part.recommended_run, part.best_bet is None) == (None, False)
    (done,) = export_study(study, "trl")
    assert done.name == part.best_bet_run
    assert any(remark.startswith("kinship is not settled: ") for remark in done.remarks)
    assert ", the best bet, by rankwise export" in done.file.read_text().splitlines()[0]
    assert exported(study, "trl", run="kinship-lora-r004")["lora_r"] == 4


def test_a_run_is_chosen_by_hand(folder: StudyFolder, sentence: Sentences) -> None:
    assert exported(folder, "axolotl", run="kinship-lora-r064")["lora_r"] == 64
    text = (folder.root / "export" / "axolotl" / "axolotl.yaml").read_text()
    assert "chosen by hand" in text.splitlines()[0]
    for text in ("64", "r64", "lora-r64-s0", "r064"):
        assert exported(folder, "axolotl", run=text)["lora_r"] == 64
    for text in ("kinship", "lora", "s0"):
        with pytest.raises(ConfigError) as caught:
            export_study(folder, "trl", run=text)
        sentence(caught.value, str(text))
    for text in ("", "-", "6", "r6", "r640", "r64-s9"):
        with pytest.raises(ConfigError, match=f"no run named {text!r}"):
            export_study(folder, "trl", run=text)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("axolotl", "adapter", None),
        ("llamafactory", "finetuning_type", "full"),
        ("trl", "use_peft", False),
    ],
)
def test_full_fine_tuning_by_hand(folder: StudyFolder, name: str, key: str, value: Any) -> None:
    content = exported(folder, name, run="kinship-full")
    assert content.get(key) == value
    assert content["learning_rate"] == 5e-5  # a number for YAML 1.1 too, not the text 5e-05
    assert not {"lora_r", "lora_rank", "lora_alpha", "lora_target_modules"} & set(content)
    back = read_source(folder.root / "export" / name / BY_NAME[name].file_name).setup
    assert (back.is_full, back.learning_rate) == (True, 5e-5)


def test_full_fine_tuning_has_no_adapter_config(folder: StudyFolder) -> None:
    with pytest.raises(ConfigError, match="trains all weights"):
        export_study(folder, "peft", run="kinship-full")


def test_what_is_not_said_is_remarked(folder: StudyFolder, sentence: Sentences) -> None:
    (done,) = export_study(folder, "peft")
    sentence(done.remarks, "training", names=("2e-4", "2 x 4"), part=True)
    (done,) = export_study(folder, "trl")
    sentence(done.remarks, "rows", names=("kinship",), part=True)


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("rows.csv", "instruction,output\na,b\n", {}),
        ("rows.jsonl", '{"conversations": []}\n', {}),
        ("rows.jsonl", '{"question": "a", "answer": "b"}\n', {}),
        (
            "rows.jsonl",
            '{"q": "a", "completion": "b"}\n',
            {"columns": {"prompt": "q", "completion": "completion"}},
        ),
    ],
    ids=["CSV", "conversations", "question and answer", "columns"],
)
def test_rows_that_others_read_otherwise_are_not_named(
    tmp_path: Path, name: str, content: str, settings: dict[str, Any], sentence: Sentences
) -> None:
    rows = tmp_path / name
    rows.write_text(content)
    results = with_training(planted_study(), data=rows, **settings)
    study = written(tmp_path / "study", results)
    for tool in OF_TRAINING:
        (done,) = export_study(study, tool)
        assert name not in done.file.read_text()
        (remark,) = [each for each in done.remarks if each.startswith("the rows are not in it")]
        sentence(remark, str(tool))


@pytest.mark.parametrize(
    ("row", "settings", "tools", "words"),
    [
        (
            {"messages": []},
            {},
            ["axolotl", "trl", "unsloth"],
            "learned the last turn of the assistant",
        ),
        ({"messages": []}, {"turns": "all"}, [], "learned the last turn of the assistant"),
        ({"prompt": "a", "completion": "b"}, {}, ["llamafactory"], "learned where an answer ends"),
        (
            {"prompt": "a", "completion": "b"},
            {"chat_template": True},
            ["trl", "axolotl", "unsloth"],
            "wrapped the rows in the chat template",
        ),
    ],
)
def test_what_the_other_trainer_learns_otherwise_is_remarked(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], tools: list[str], words: str
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([row]))
    results = with_training(planted_study(), data=rows, **settings)
    study = written(tmp_path / "study", results)
    for tool in OF_TRAINING:
        (done,) = export_study(study, tool)
        assert (words in " ".join(done.remarks)) == (tool in tools)


def test_what_full_fine_tuning_decays_is_remarked(tmp_path: Path) -> None:
    for decay, is_said in ((0.0, False), (0.1, True)):
        results = with_training(planted_study(), task=("kinship",), weight_decay=decay)
        study = written(tmp_path / f"{decay}", results)
        for run, all_weights in (("kinship-full", True), (BEST, False)):
            (done,) = export_study(study, "trl", run=run)
            said = "weight decay here is of all weights" in " ".join(done.remarks)
            assert said == (is_said and all_weights)


def test_a_run_that_stopped_is_said_to_have(tmp_path: Path) -> None:
    study = written(tmp_path / "study", stopped(planted_study()))
    for tool in NAMES:
        (done,) = export_study(study, tool)
        said = "the run stopped at step 60 of 240: train by the schedule of the whole"
        assert said in " ".join(done.remarks)


def stopped(results: StudyResults) -> StudyResults:
    """The same, whose LoRA runs are checkpoints that a stop chose."""

    def changed(plan: PlannedRun) -> PlannedRun:
        whole = Training(name=f"{plan.name}-whole", fingerprint="e" * 64, num_steps=240)
        return plan.model_copy(update={"of": whole}) if plan.rank else plan

    return with_plans(results, changed)


def test_an_imported_model_has_no_settings(folder: StudyFolder) -> None:
    study = folder.read_study()
    imported = study.runs[0].model_copy(update={"role": "imported"})
    with pytest.raises(ConfigError, match="was trained elsewhere"):
        setup_of(study, imported)


def test_the_setup_of_a_run_is_all_that_is_known(folder: StudyFolder) -> None:
    setup = setup_of(folder.read_study(), run_of(folder, BEST))
    assert isinstance(setup, TrainingSetup)
    assert (setup.batch_size, setup.gradient_accumulation_steps, setup.seed) == (2, 4, 0)


def test_a_trained_task_without_a_recommendation_is_named_beside_the_others(
    folder: StudyFolder,
) -> None:
    outcome = conclude(folder)
    (part,) = outcome.recommendation.by_train_task
    other = part.model_copy(
        update={"train_task": "other", "verdicts": (), "outcome": "cannot_tell", "best_bet": None}
    )
    both = outcome.recommendation.model_copy(update={"by_train_task": (part, other)})
    chosen, without = chosen_runs(outcome._replace(recommendation=both), None)
    assert [each.planned.rank for each in chosen] == [16]
    assert without == [
        "nothing is recommended for other, and there is no best bet; name a run with --run"
    ]


# pairs of answers


@pytest.fixture
def with_pairs(tmp_path: Path) -> StudyFolder:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n")
    objective = {"dpo": {"beta": 0.3, "loss": "ipo", "sft_weight": 0.25}}
    results = with_training(planted_study(), data=rows, objective=objective, dropout=0.06)
    return written(tmp_path / "study", results)


@pytest.mark.parametrize("name", ["trl", "llamafactory"])
def test_dpo_is_read_back_as_it_was(with_pairs: StudyFolder, name: str) -> None:
    exported(with_pairs, name)
    back = read_source(with_pairs.root / "export" / name / BY_NAME[name].file_name).setup
    expected = setup_of(with_pairs.read_study(), run_of(with_pairs, BEST))
    assert back.dpo is not None
    assert expected.dpo is not None
    assert {"label_smoothing": 0.0, **back.dpo} == expected.dpo
    unsaid: dict[str, Any] = {
        "rows": None,
        "precision": None,
        "chat_template": None,
        "objective": None,
    }
    assert back._replace(**unsaid) == expected._replace(**unsaid)


def test_trl_reads_dpo(with_pairs: StudyFolder) -> None:
    trl = pytest.importorskip("trl")
    exported(with_pairs, "trl")
    file = with_pairs.root / "export" / "trl" / "trl.yaml"
    assert "# trl dpo --config trl.yaml" in file.read_text()
    kinds = (trl.ScriptArguments, trl.DPOConfig, trl.ModelConfig, trl.DatasetMixtureConfig)
    _, training, model, *_ = trl.TrlParser(kinds).parse_args_and_config(
        args=["--config", str(file)]
    )
    assert (training.beta, training.loss_type, training.loss_weights) == (
        0.3,
        ["ipo", "sft"],
        [1.0, 0.25],
    )
    assert (training.disable_dropout, model.lora_dropout) == (False, 0.06)


def test_llama_factory_finds_its_pairs(with_pairs: StudyFolder) -> None:
    content = exported(with_pairs, "llamafactory")
    info = json.loads((Path(content["dataset_dir"]) / "dataset_info.json").read_text())
    described = info[content["dataset"]]
    assert described["ranking"] is True
    assert described["columns"] == {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


@pytest.mark.parametrize("name", ["axolotl", "unsloth"])
def test_a_tool_whose_dpo_is_not_written_is_refused(
    with_pairs: StudyFolder, name: str, sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        exported(with_pairs, name)
    sentence(caught.value)


GRPO = {
    "num_generations": 4,
    "max_completion_length": 300,
    "temperature": 0.9,
    "beta": 0.04,
    "epsilon": 0.1,
    "epsilon_high": 0.28,
    "loss_type": "bnpo",
    "importance_sampling_level": "sequence",
    "scale_rewards": "none",
    "num_iterations": 2,
}


@pytest.fixture
def with_rewards(tmp_path: Path) -> StudyFolder:
    """A study by GRPO, with two functions and a check."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n")
    (tmp_path / "mine.py").write_text("")
    code = f"{tmp_path / 'mine.py'}:"
    rewards = [{"code": f"{code}form"}, {"code": f"{code}right", "weight": 2.0}, "exact"]
    results = with_training(
        planted_study(),
        data=rows,
        objective={"grpo": {**GRPO, "rewards": rewards}},
        judged_by="exact",
        batch_size=3,
        gradient_accumulation_steps=5,
        dropout=0.06,
    )
    return written(tmp_path / "study", results)


def read_back(study: StudyFolder, name: str) -> tuple[TrainingSetup, TrainingSetup]:
    """A setup as it is read back from a tool's config, and the one that was written."""
    exported(study, name)
    back = read_source(study.root / "export" / name / BY_NAME[name].file_name).setup
    return back, setup_of(study.read_study(), run_of(study, BEST))


OF_TEXTS: dict[str, Any] = {
    **{"rows": None, "precision": None, "chat_template": None, "max_length": None},
    **{"objective": None, "judged_by": None},
}


@pytest.mark.parametrize("name", ["trl", "axolotl"])
def test_grpo_is_read_back_as_it_was(
    with_rewards: StudyFolder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(with_rewards.root.parent)  # where the functions are
    back, expected = read_back(with_rewards, name)
    assert back.objective is not None
    assert expected.objective is not None
    *functions, check = expected.objective["grpo"]["rewards"]
    assert check == "exact"
    assert back.objective == {"grpo": {**GRPO, "rewards": functions}}
    assert back._replace(**OF_TEXTS) == expected._replace(**OF_TEXTS)


@pytest.mark.thorough
def test_trl_reads_grpo(with_rewards: StudyFolder) -> None:
    trl = pytest.importorskip("trl")
    from trl.scripts.grpo import GRPOScriptArguments

    exported(with_rewards, "trl")
    file = with_rewards.root / "export" / "trl" / "trl.yaml"
    assert "# trl grpo --config trl.yaml" in file.read_text()
    kinds = (GRPOScriptArguments, trl.GRPOConfig, trl.ModelConfig, trl.DatasetMixtureConfig)
    script, training, model, rows = trl.TrlParser(kinds).parse_args_and_config(
        args=["--config", str(file)]
    )
    assert {name: getattr(training, name) for name in GRPO} == GRPO
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (12, 5)
    assert training.generation_batch_size == 60  # 15 rows, 4 texts each
    assert training.use_bias_correction_kl is False
    assert (script.reward_funcs, training.reward_weights) == (["mine.form", "mine.right"], [1, 2])
    assert (model.lora_r, model.lora_dropout, training.learning_rate) == (16, 0.06, 2e-4)
    assert Path(rows.datasets[0].data_files).name == "rows.jsonl"


def test_what_a_config_does_not_say_of_rewards(
    with_rewards: StudyFolder, sentence: Sentences
) -> None:
    remarks = [
        remark
        for name in ("trl", "axolotl")
        for remark in export_study(with_rewards, name)[0].remarks
    ]
    sentence("\n".join(remarks), names=("mine.py", "exact"))


@pytest.fixture
def distilled(tmp_path: Path) -> StudyFolder:
    """A study by self-distillation, of rows as TRL has them."""
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "q", "completion": "a", "privileged_context": "a"}
    rows.write_text(json.dumps(row) + "\n")
    sdft = {"template": "{prompt} {x} {answer}", "direction": "reverse", "num_generations": 2}
    results = with_training(
        planted_study(), data=rows, objective={"sdft": sdft}, max_length=640, batch_size=3
    )
    return written(tmp_path / "study", results)


def test_self_distillation_is_read_back_as_it_was(distilled: StudyFolder) -> None:
    back, expected = read_back(distilled, "trl")
    assert back.objective == expected.objective
    assert back.max_length == expected.max_length == 640
    assert back._replace(**OF_TEXTS) == expected._replace(**OF_TEXTS)


@pytest.mark.thorough
def test_trl_reads_self_distillation(distilled: StudyFolder) -> None:
    trl = pytest.importorskip("trl")
    from trl.experimental.sdft import SDFTConfig

    exported(distilled, "trl")
    file = distilled.root / "export" / "trl" / "trl.yaml"
    kinds = (SDFTConfig, trl.ModelConfig, trl.DatasetMixtureConfig)
    training, *_ = trl.TrlParser(kinds).parse_args_and_config(args=["--config", str(file)])
    asked = training.teacher_prompt_template.format(prompt="q", privileged_context="a")
    assert asked == "q {x} a"
    assert (training.distillation_mode, training.distillation_alpha) == ("full_logits", 1.0)
    assert (training.num_generations, training.per_device_train_batch_size) == (2, 6)
    assert training.max_prompt_length + training.max_completion_length == 640


@pytest.mark.parametrize("name", ["llamafactory", "unsloth"])
def test_a_tool_without_grpo_is_refused(
    with_rewards: StudyFolder, name: str, sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        exported(with_rewards, name)
    sentence(caught.value, names=("GRPO",))
