"""A study file made from a tool's config loads, and has its settings among the runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwise.errors import ConfigError
from rankwise.integrations.drafts import ConfigReading, TrainingSetup
from rankwise.integrations.sources import read_source
from rankwise.integrations.study_text import StudyText, ranks_around, study_text
from rankwise.records.axes import LoraSettings, lora_settings, variant_choices
from rankwise.records.config.study import StudyConfig
from rankwise.records.study_file import load_config
from tests.planted import tool_configs
from tests.planted.tool_configs import SAME


def reading_of(setup: TrainingSetup, adapter: Path | None = None) -> ConfigReading:
    return ConfigReading("Axolotl", Path("mine.yaml"), setup, (), (), adapter)


def loaded(folder: Path, made: StudyText) -> StudyConfig:
    path = folder / "study.yaml"
    path.write_text(made.text, encoding="utf-8")
    return load_config(path)


@pytest.mark.parametrize(
    ("rank", "around"),
    [
        (1, (1, 2)),
        (2, (1, 2, 4)),
        (16, (4, 8, 16, 32)),
        (128, (32, 64, 128, 256)),
        (256, (64, 128, 256)),
        (512, (128, 256, 512)),
    ],
)
def test_the_ranks_around_a_rank(rank: int, around: tuple[int, ...]) -> None:
    assert ranks_around(rank) == around


@pytest.mark.parametrize(
    "tool", ["AXOLOTL", "LLAMA_FACTORY", "TRL", "UNSLOTH", "UNSLOTH_COMMAND", "ADAPTER_CONFIG"]
)
def test_every_tools_config_makes_a_study_that_loads(tmp_path: Path, tool: str) -> None:
    source = tmp_path / "source.yaml"
    source.write_text(getattr(tool_configs, tool))
    config = loaded(tmp_path, study_text(read_source(source), tmp_path))
    found = lora_settings(config)
    assert [settings.rank for settings in found] == [4, 8, 16, 32]
    yours = found[2]
    assert (yours.alpha.alpha_of(16), yours.target_modules) == (32.0, ("q_proj", "v_proj"))
    assert config.methods.full is None
    assert config.base_model.name == "org/model"


def test_the_settings_are_those_of_the_config(tmp_path: Path) -> None:
    made = study_text(reading_of(SAME), tmp_path)
    config = loaded(tmp_path, made)
    train = config.train
    assert train.data == tmp_path / "rows.jsonl"
    assert (train.epochs, train.learning_rate.lora) == ((2,), (2e-4,))
    assert (train.batch_size, train.gradient_accumulation_steps) == (4, 8)
    assert (train.schedule, train.warmup_ratio, train.dropout) == ("cosine", 0.03, 0.05)
    assert (train.weight_decay, train.max_grad_norm, train.max_length) == (0.01, 0.3, 512)
    assert (train.precision, train.base_precision, train.loss_on) == (
        "bfloat16",
        "4bit",
        "completion",
    )
    assert config.seeds == (7,)
    assert LoraSettings(16, config.methods.lora.alpha[0], 2e-4, ("q_proj", "v_proj"), 2) in (  # type: ignore[union-attr]
        lora_settings(config)
    )
    assert "ranks: [4, 8, 16, 32]  # yours: 16" in made.text


def test_alpha_follows_the_rank_as_yours_does(tmp_path: Path) -> None:
    config = loaded(tmp_path, study_text(reading_of(SAME._replace(alpha=8.0)), tmp_path))
    assert [v.alpha.scaling_of(v.rank) for v in lora_settings(config)] == [0.5] * 4
    root = SAME._replace(alpha=8.0, use_rslora=True)
    config = loaded(tmp_path, study_text(reading_of(root), tmp_path))
    assert [v.alpha.scaling_of(v.rank) for v in lora_settings(config)] == pytest.approx(
        [8 / 2, 8 / 8**0.5, 8 / 4, 8 / 32**0.5]
    )


def test_full_fine_tuning_is_beside_ranks(tmp_path: Path) -> None:
    full = TrainingSetup("m", data="d.jsonl", is_full=True, learning_rate=1e-5)
    config = loaded(tmp_path, study_text(reading_of(full), tmp_path))
    assert config.methods.full is not None
    assert config.train.learning_rate.full == (1e-5,)
    assert config.methods.lora is not None
    assert len(config.methods.lora.ranks) > 1


def test_a_variant_is_beside_lora_at_its_rank(tmp_path: Path) -> None:
    made = study_text(reading_of(SAME._replace(variant="pissa")), tmp_path)
    (choice,) = variant_choices(loaded(tmp_path, made))
    assert (choice.name, choice.lora.rank, choice.lora.learning_rate) == ("pissa", 16, 2e-4)
    assert made.not_carried == (
        "dropout 0.05: variants are trained without it",
        "4bit: variants are trained on a base that is not quantised",
    )


def test_an_adapter_that_is_there_is_scored_too(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(tool_configs.ADAPTER_CONFIG)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    made = study_text(read_source(folder), tmp_path)
    (imported,) = loaded(tmp_path, made).methods.imported
    assert (imported.name, imported.adapter) == ("yours", folder)
    assert "./out" in made.text  # the study can be moved with it


def test_data_that_are_missing_are_asked_for(tmp_path: Path) -> None:
    made = study_text(reading_of(SAME._replace(data=None)), tmp_path)
    assert loaded(tmp_path, made).train.data == tmp_path / "my_rows.jsonl"
    assert made.to_check == (
        "train.data: no data is named; write your own in place of my_rows.jsonl",
    )


def test_what_is_said_stands_in_the_file(tmp_path: Path) -> None:
    reading = reading_of(SAME)._replace(not_carried=("a: 1\nseeds: [99]",), to_check=("b",))
    made = study_text(reading, tmp_path)
    assert made.text.startswith(
        "# From mine.yaml (Axolotl): your rank 16, and ranks around it.\n#\n# Not carried over:\n"
        "#   - a: 1 seeds: [99]\n#\n# To check:\n#   - b\n"
    )
    assert loaded(tmp_path, made).seeds == (7,)


@pytest.mark.parametrize(
    "name", ["1e5", "yes", "a: b", "# c", "null", "{x}", "é ü", "-", "it's", '"q"', ".5", "0x1"]
)
def test_names_are_read_back_as_they_were(tmp_path: Path, name: str) -> None:
    setup = SAME._replace(base_model=name, data=name, target_modules=(name,))
    config = loaded(tmp_path, study_text(reading_of(setup), tmp_path))
    assert (config.base_model.name, config.train.data) == (name, tmp_path / name)
    assert lora_settings(config)[0].target_modules == (name,)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base_model": "a\x07"}, "base_model.name: 'a\\x07' has a control character"),
        ({"rank": 2**21}, "methods.lora.ranks"),
        ({"dropout": 1.5}, "train.dropout: 1.5 given"),
        ({"weight_decay": -1.0}, "train.weight_decay: -1.0 given"),
        ({"epochs": 10**6}, "train.epochs: 1000000 given"),
    ],
)
def test_values_that_make_no_study_are_refused(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        study_text(reading_of(SAME._replace(**changes)), tmp_path)  # type: ignore[arg-type]
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("mine.yaml has ")


def test_paths_are_found_from_the_config(tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    (configs / "model").mkdir(parents=True)
    (configs / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    text = tool_configs.AXOLOTL.replace("org/model", "./model")
    (configs / "a.yaml").write_text(text)
    config = loaded(tmp_path, study_text(read_source(configs / "a.yaml"), tmp_path))
    assert config.train.data == configs / "rows.jsonl"
    assert Path(config.base_model.name) == configs / "model"
