"""Study files: every problem at once, overrides, YAML's traps, and alpha by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rankwise.errors import ConfigError
from rankwise.records.config.methods import AlphaConfig, LoraConfig
from rankwise.records.config.own_rows import CheckConfig
from rankwise.records.config.study import RecommendationConfig, StudyConfig
from rankwise.records.config.training import RateRuleConfig
from rankwise.records.fields import bytes_of
from rankwise.records.study import Unit
from rankwise.records.study_file import (
    found_again,
    load_config,
    margins_text,
    preset_names,
    preset_text,
    study_file_text,
)
from tests.support.sentences import Sentences

SMALLEST = "base_model: some-model\ntrain: {task: a_task}\n"


def written(folder: Path, text: str, name: str = "study.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(folder: Path, text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(written(folder, text), overrides)
    assert caught.value.source == "study.yaml"
    return caught.value.problems


def test_every_problem_is_reported_at_once(tmp_path: Path, sentence: Sentences) -> None:
    path = written(
        tmp_path,
        """
base_model: some-model
train: {task: a_task, learning_rat: 1}
methods:
  lora: {ranks: [8, 16, 32, 0]}
""",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    sentence(
        caught.value,
        names=("study.yaml", "train.learning_rat", "learning_rate", "methods.lora.ranks[3]"),
    )


def test_problems_of_several_sections_and_of_overrides_come_together(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        """
base_model: {name: some-model, revison: main}
train: {task: a_task, data: rows.jsonl, epochs: 1}
methods:
  lora: {ranks: [2.5, true, -1], alpha: {policy: fixed}}
evaluation: {in_domain: [x, x]}
recommendation: {confidence: 95}
evaluaton: {}
zzz: 1
""",
        "not-an-override",
    )
    assert set(found) == {
        "'not-an-override' is not an override; write key=value, for example train.epochs=1",
        "base_model.revison: unknown key; did you mean 'revision'?",
        "train: both of 'task' and 'data' given; give exactly one",
        "methods.lora.ranks[0]: 2.5 given; input should be a valid integer",
        "methods.lora.ranks[1]: True given; input should be a valid integer",
        "methods.lora.ranks[2]: -1 is not a rank; use a whole number of at least 1",
        "methods.lora.alpha: policy 'fixed' needs 'alpha'",
        "evaluation.in_domain: x is given twice; give each value once",
        "recommendation.confidence: 95 given; input should be less than 1",
        "evaluaton: unknown key; did you mean 'evaluation'?",
        "zzz: unknown key; known here: name, base_model, tasks_path, allow_task_code, train, "
        "methods, mitigations, seeds, evaluation, search, analysis, recommendation, deploy, "
        "tracking",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("base_model: m\n", "train: is missing; add it"),
        (
            "base_model: m\ntrain: {}\n",
            "train: none of 'task', 'data' and 'sequence' given; give exactly one",
        ),
        (
            "base_model: m\ntrain: {task: t, judged_by: exact}\n",
            "train: judged_by is for 'data'; a task brings its own metrics",
        ),
        (
            "base_model: m\ntrain: {data: d.jsonl, split: train}\n",
            "train: split is for 'task'; your own data has no splits",
        ),
        (
            "base_model: m\ntrain: {task: t}\nmethods: {lora: null, full: null}\n",
            "methods: 'lora' and 'full' are null and nothing is imported; give one of them",
        ),
        (
            "base_model: m\ntrain: {task: t}\nmethods: {lora: {ranks: [4, 4]}}\n",
            "methods.lora.ranks: 4 is given twice; give each value once",
        ),
        (
            "base_model: m\ntrain: {task: t}\nseeds: [-1]\n",
            "seeds[0]: -1 given; input should be greater than or equal to 0",
        ),
        (
            "base_model: m\ntrain: {task: t, learning_rate: 1e-3}\n",
            "train.learning_rate: 0.001 given; a section is needed here, with keys: lora, full, "
            "tune",
        ),
        (
            "base_model: m\ntrain: {task: t, learning_rate: {lora: .inf}}\n",
            "train.learning_rate.lora: inf given; input should be a finite number",
        ),
        (
            "base_model: m\nname: a/b\ntrain: {task: t}\n",
            "name: 'a/b' cannot name a folder; use letters, digits, '.', '_' and '-' only",
        ),
        ("base_model: m\ntrain: {task: t, 3: 4}\n", "train[3]: 3 given; keys should be strings"),
    ],
)
def test_one_wrong_thing_is_named(tmp_path: Path, text: str, problem: str) -> None:
    assert problems_of(tmp_path, text) == (problem,)


@pytest.mark.parametrize(
    ("evaluation", "problem"),
    [
        (
            "{retention: [x], out_of_domain: [x]}",
            "evaluation: task 'x' is in out_of_domain and retention; name it once",
        ),
        (
            "{in_domain: x, held_out_text: x}",
            "evaluation: task 'x' is in in_domain and held_out_text; name it once",
        ),
        (
            "{retention: [a_task]}",
            "evaluation: 'a_task' is trained on, so it is in_domain; take it out of out_of_domain "
            "and retention",
        ),
    ],
)
def test_a_task_has_one_relation(tmp_path: Path, evaluation: str, problem: str) -> None:
    assert problems_of(tmp_path, f"{SMALLEST}evaluation: {evaluation}\n") == (problem,)


def test_defaults_are_the_papers_but_for_layers_and_rates_of_lora(tmp_path: Path) -> None:
    """All linear layers, and each rank at the rate of its rule: docs/hyper-parameters.md."""
    config = load_config(written(tmp_path, SMALLEST))
    train, lora = config.train, config.methods.lora
    assert lora is not None
    assert (train.epochs, train.batch_size, train.gradient_accumulation_steps) == ((3,), 2, 4)
    (rate,), full = train.learning_rate.lora, train.learning_rate.full
    assert isinstance(rate, RateRuleConfig)
    assert ([rate.rate_of(rank) for rank in (2, 8, 32)], full) == ([8e-4, 4e-4, 2e-4], (5e-5,))
    assert train.warmup_ratio == 0.1
    assert lora.target_modules == (("all-linear",),)
    (alpha,) = lora.alpha
    assert [alpha.alpha_of(rank) for rank in lora.ranks] == [2 * r for r in lora.ranks]


def test_overrides_reach_every_depth_and_are_yaml(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path, SMALLEST),
        [
            "train.epochs=1",
            "train.learning_rate.lora=1e-3",
            "methods.lora.ranks=[2, 4]",
            "methods.full=null",
            "seeds=[3]",
            "evaluation.metric.arc-easy=acc_norm",
            "evaluation.chat_template=yes",
        ],
    )
    assert config.train.epochs == (1,)
    assert config.train.learning_rate.lora == (1e-3,)
    assert config.train.learning_rate.full == (5e-5,)
    assert config.methods.lora is not None
    assert config.methods.lora.ranks == (2, 4)
    assert config.methods.full is None
    assert config.seeds == (3,)
    assert config.evaluation.metric == {"arc-easy": "acc_norm"}
    assert config.evaluation.chat_template is True


def test_the_last_override_of_a_key_wins(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SMALLEST), ["train.epochs=1", "train.epochs=7"])
    assert config.train.epochs == (7,)


def test_a_revision_can_be_set_on_a_plain_base_model_name(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SMALLEST), ["base_model.revision=v1"])
    assert (config.base_model.name, config.base_model.revision) == ("some-model", "v1")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.epochs", "'train.epochs' is not an override; write key=value"),
        ("=3", "'=3' is not an override"),
        ("train..epochs=3", "'train..epochs=3' is not an override"),
        ("train.epochs=[", "train.epochs: '[' is not a YAML value"),
        ("train.task.name=x", "train.task.name: 'task' is not a section"),
        ("train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, problem: str) -> None:
    (found,) = problems_of(tmp_path, SMALLEST, override)
    assert found.startswith(problem)


def test_a_key_given_twice_is_an_error(tmp_path: Path, sentence: Sentences) -> None:
    (problem,) = problems_of(tmp_path, f"{SMALLEST}evaluation:\n  limit: 1\n  limit: 2\n")
    sentence(problem, names=("limit",))
    assert "line 5" in problem


def test_anchors_and_merges_work_and_the_explicit_key_wins(tmp_path: Path) -> None:
    config = load_config(
        written(
            tmp_path,
            """
base_model: m
train: {task: t, learning_rate: &rates {lora: 1e-3, full: 1e-5}}
methods: {lora: {ranks: [2], alpha: {policy: proportional, ratio: 1}}}
""",
        )
    )
    merged = load_config(
        written(
            tmp_path,
            """
base_model: m
methods: {lora: {<<: {ranks: [9], alpha: {ratio: 1}}, ranks: [2]}}
train: {task: t, learning_rate: {<<: {lora: 1e-3, full: 1}, full: 1e-5}}
""",
        )
    )
    assert merged == config


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-4", 2e-4), ("2E-4", 2e-4), ("1e1", 1e1), (".5e-3", 5e-4), ("5.e-3", 5e-3)],
)
def test_exponents_without_a_dot_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    path = written(tmp_path, f"base_model: m\ntrain: {{task: t, learning_rate: {{lora: {text}}}}}")
    assert load_config(path).train.learning_rate.lora == (value,)
    override = [f"train.learning_rate.full={text}"]
    assert load_config(path, override).train.learning_rate.full == (value,)


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("-0", 0), ("08", 8), ("1_000", 1000), ("0x1f", 31), ("0b11", 3), ("+7", 7)],
)
def test_whole_numbers_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: int) -> None:
    path = written(tmp_path, f"base_model: m\ntrain: {{task: t}}\nseeds: [{text}]\n")
    assert load_config(path).seeds == (value,)


@pytest.mark.parametrize("text", ["12:30:45", "1:30.5", "0o10", "0x", "1e", "1.5.2"])
def test_what_is_no_number_in_yaml_1_2(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, f"base_model: {text}\ntrain: {{task: t}}\n")
    config = load_config(path)
    assert config.base_model.name == text
    with pytest.raises(ConfigError, match=r"train\.batch_size: "):
        load_config(path, [f"train.batch_size={text}"])


@pytest.mark.parametrize("name", ["1e5", "08", "010", "12:30:45", "0x1f", "1_000", ".inf", "yes"])
def test_names_like_numbers_are_written_in_quotes(tmp_path: Path, name: str) -> None:
    config = load_config(written(tmp_path, f"base_model: '{name}'\ntrain: {{task: t}}\n"))
    text = study_file_text(config)
    assert load_config(written(tmp_path, text)) == config
    assert yaml.safe_load(text)["base_model"]["name"] == name  # for other tools, too


@pytest.mark.parametrize(
    "override",
    [
        *("train.learning_rate.lora=1e308", "train.learning_rate.full=[1e31]", "seeds=[1e308]"),
        "train.learning_rate.lora={rule: constant, value: 1e308}",
        *("recommendation.delta_points=101", "recommendation.delta_units=1e308"),
        *("recommendation.delta_nats=1e-300", "recommendation.confidence=0.99999999999"),
        *("analysis.head_prompts=1000000000000000000000000", "analysis.null_draws=100000"),
        *(
            "train.weight_decay=1e308",
            "train.max_grad_norm=1e-300",
            "train.stop.retention_loss=101",
        ),
        "methods.lora.alpha={policy: fixed, alpha: 1e38}",
        "mitigations=[{learning_rate_factor: 1e308}]",
    ],
)
def test_numbers_beyond_all_use_are_refused(tmp_path: Path, override: str) -> None:
    path = written(tmp_path, SMALLEST)
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    (problem,) = caught.value.problems
    assert problem.startswith(override.partition("=")[0].partition(".")[0])


def test_relative_paths_are_resolved_against_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    absolute = tmp_path / "elsewhere"
    path = written(
        tmp_path / "below",
        f"base_model: ../models/tiny\ntasks_path: [tasks, {absolute}, ~/mine]\n"
        "train: {data: rows.jsonl}\n",
    )
    config = load_config(path.relative_to(tmp_path))
    assert config.base_model.name == str(tmp_path / "models" / "tiny")
    assert config.tasks_path == (
        tmp_path / "below" / "tasks",
        absolute,
        tmp_path / "home" / "mine",
    )
    assert config.train.data == tmp_path / "below" / "rows.jsonl"


def test_a_study_finds_its_rows_from_where_its_folder_is(tmp_path: Path) -> None:
    """As it was downloaded, with its rows beside it; and moved, with a study file in it."""
    folder, gone = tmp_path / "study", tmp_path / "gone" / "rows.jsonl"
    config = load_config(written(tmp_path, "base_model: m\ntrain: {data: x/../rows.jsonl}\n"))
    assert config.train.data == tmp_path / "rows.jsonl"

    def found(data: Path) -> Path | None:
        train = config.train.model_copy(update={"data": data})
        there = config.model_copy(update={"train": train})
        return found_again(there, folder, folder / "study.yaml").train.data

    assert found(Path("rows.jsonl")) == folder / "rows.jsonl"
    assert found(gone) == gone
    folder.mkdir()
    (folder / "study.yaml").write_text("base_model: m\ntrain: {data: ../rows.jsonl}\n")
    assert found(gone) == tmp_path / "rows.jsonl"
    gone.parent.mkdir()
    gone.touch()
    assert found(gone) == gone
    assert found(Path("org/name")) == Path("org/name")
    gone.unlink()
    (folder / "study.yaml").write_text("base_model: [")
    assert found(gone) == gone


def test_a_study_finds_its_sets_of_own_rows_and_their_checks(tmp_path: Path) -> None:
    text = (
        "base_model: m\ntrain: {task: t}\nevaluation: {own: {mine: {data: {place}/rows.jsonl, "
        "judged_by: [{json: {schema: s.json}}, {code: c.py:score}]}}}\n"
    )
    config = load_config(written(tmp_path, text.replace("{place}", "gone")))
    (own,) = config.evaluation.own.values()
    schema, code = own.judged_by
    assert own.data == tmp_path / "gone" / "rows.jsonl"
    assert isinstance(schema, CheckConfig)
    assert isinstance(code, CheckConfig)
    assert schema.json_fields is not None
    assert schema.json_fields.schema_file == tmp_path / "s.json"
    assert code.code == f"{tmp_path / 'c.py'}:score"
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(text.replace("{place}", "here"))
    moved = found_again(config, folder, folder / "study.yaml").evaluation.own["mine"]
    assert moved.data == folder / "here" / "rows.jsonl"


def test_a_base_below_the_current_folder_is_the_same_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "configs", "base_model: models/tiny\ntrain: {task: t}\n")
    assert load_config(path).base_model.name == str(tmp_path / "models" / "tiny")
    (tmp_path / "configs" / "models" / "tiny").mkdir(parents=True)  # beside the file comes first
    assert load_config(path).base_model.name == str(tmp_path / "configs" / "models" / "tiny")


def test_a_hub_name_stays_as_it_is(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "base_model: owner/model\ntrain: {task: t}\n"))
    assert config.base_model.name == "owner/model"


def test_the_file_s_name_is_the_study_s(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, SMALLEST, "my first study.yaml")).name == "my-first-study"
    named = written(tmp_path, f"name: other\n{SMALLEST}")
    assert load_config(named).name == "other"


def test_config_is_frozen(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SMALLEST))
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 9  # type: ignore[misc]
    assert config.train.epochs == (3,)


def test_every_preset_loads_and_is_what_no_file_means(tmp_path: Path) -> None:
    assert "quickstart" in preset_names()
    for name in preset_names():
        config = load_config(written(tmp_path, preset_text(name), f"{name}.yaml"))
        assert config.train.task or config.train.data, name
    quickstart = load_config(written(tmp_path, preset_text("quickstart"), "quickstart.yaml"))
    without_file = load_config(None)
    assert without_file.model_copy(update={"name": "quickstart"}) == quickstart


def test_unknown_preset(tmp_path: Path, sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        preset_text("quickstrat")
    sentence(caught.value, names=("quickstrat",))


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (AlphaConfig(), {8: (16, 2), 128: (256, 2)}),
        (AlphaConfig(ratio=0.5), {8: (4, 0.5), 128: (64, 0.5)}),
        (AlphaConfig(policy="fixed", alpha=16), {8: (16, 2), 128: (16, 0.125)}),
        (
            AlphaConfig(policy="rslora", alpha=16),
            {4: (16, 8), 64: (16, 2), 128: (16, 16 / math.sqrt(128))},
        ),
    ],
)
def test_alpha_and_scaling_by_hand(
    alpha: AlphaConfig, expected: dict[int, tuple[float, float]]
) -> None:
    for rank, (numerator, scaling) in expected.items():
        assert alpha.alpha_of(rank) == numerator
        assert alpha.scaling_of(rank) == pytest.approx(scaling, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"policy": "fixed", "alpha": 4, "ratio": 2}, "policy 'fixed' takes 'alpha' only"),
        ({"policy": "proportional", "alpha": 4}, "policy 'proportional' takes 'ratio' only"),
        ({"policy": "rslora"}, "policy 'rslora' needs 'alpha'"),
    ],
)
def test_alpha_settings_that_contradict_their_policy(
    settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        AlphaConfig(**settings)


def test_a_missing_file_is_named(tmp_path: Path, sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "nowhere.yaml")
    sentence(caught.value, names=("nowhere.yaml",))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"base_model: caf\xe9\n", "cannot be read: 'utf-8' codec"),
        (b"", "a study file is a mapping of sections"),
        (b"- base_model\n- train\n", "a study file is a mapping of sections"),
        (b"base_model: [\n", "not valid YAML: "),
        (b"? [a]\n: b\n", "not valid YAML: "),
    ],
    ids=["not UTF-8", "empty", "a list", "unclosed", "unhashable key"],
)
def test_a_file_that_is_no_study_file(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (found,) = caught.value.problems
    assert problem in found
    assert "\n" not in found


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert load_config(path).base_model.name == "some-model"


@pytest.mark.parametrize(
    "text",
    [
        SMALLEST,
        "name: x\nbase_model: {name: ../m, revision: '12'}\ntrain: {data: d.jsonl, "
        "judged_by: [{json: {schema: s.json, sets: [a]}}, {regex: {must: x}}, loss], "
        "learning_rate: {lora: 3e-5, full: 0.1}}\ntasks_path: t\n"
        "methods: {full: null, lora: {ranks: [1, 512], alpha: {policy: rslora, alpha: 1.5}}}\n"
        "seeds: [5, 0]\nevaluation: {metric: {a b: 'acc,none'}, num_fewshot: 0, limit: 1}\n"
        "recommendation: {delta_points: 0.5}\n",
        *[preset_text(name) for name in preset_names()],
    ],
)
def test_what_is_dumped_loads_as_the_same_config(tmp_path: Path, text: str) -> None:
    config = load_config(written(tmp_path, text))
    dumped = yaml.safe_dump(config.model_dump(mode="json"))
    (tmp_path / "elsewhere").mkdir()
    assert load_config(written(tmp_path / "elsewhere", dumped)) == config
    assert StudyConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", preset_names())
def test_a_study_file_without_defaults_gives_the_same_config(tmp_path: Path, name: str) -> None:
    config = load_config(written(tmp_path, preset_text(name)))
    assert load_config(written(tmp_path, study_file_text(config))) == config


def test_the_default_study_file_shows_every_key_of_every_section() -> None:
    parts = re.split(r"^(?:# )?(?=[a-z_]+:)", preset_text("quickstart"), flags=re.MULTILINE)[1:]
    shown = {part.partition(":")[0]: part for part in parts}
    assert [*shown] == sorted(shown, key=[*StudyConfig.model_fields].index)
    assert {*shown} == {*StudyConfig.model_fields} - {"schema_version"}
    sections = {
        name: getattr(field.annotation, "model_fields", {})
        for name, field in StudyConfig.model_fields.items()
        if name != "base_model"  # its keys are in the comment above it
    }
    sections["methods"] = {**sections["methods"], **LoraConfig.model_fields}
    del sections["methods"]["paired"]  # written as _
    for section, keys in sections.items():
        missing = [key for key in keys if not re.search(rf"\b{key}:", shown.get(section, ""))]
        assert missing == [], section


def test_a_study_file_names_no_folder(tmp_path: Path) -> None:
    (tmp_path / "my model").mkdir()
    text = "base_model: my model\ntrain: {data: rows.jsonl}\ntasks_path: tasks\n"
    config = load_config(written(tmp_path, text))
    again = study_file_text(config)
    assert str(tmp_path) not in again
    assert load_config(written(tmp_path, again)) == config


def test_memory_is_read_in_its_unit() -> None:
    sizes = ("80GB", "80 gb", "1.5GB", "24GiB", "512MiB", "2TB", "1TiB", "2000000", "0.001MB")
    assert [bytes_of(size) for size in sizes] == [
        *(80 * 10**9, 80 * 10**9, 15 * 10**8, 24 * 2**30, 512 * 2**20),
        *(2 * 10**12, 2**40, 2_000_000, 1000),
    ]
    for wrong in ("", "GB", "-1GB", "0", "1e9", "80GB free", "80G", "1,5GB"):
        with pytest.raises(ValueError, match="is not an amount of memory; write 80GB, 24GiB"):
            bytes_of(wrong)
    with pytest.raises(ValueError, match="80 is bytes; write 80GB"):
        bytes_of("80")


def test_rows_are_a_file_of_the_study_or_a_data_set_of_the_hub(tmp_path: Path) -> None:
    def data_of(data: str) -> str:
        text = f"base_model: m\ntrain: {{data: '{data}'}}\n"
        return str(load_config(written(tmp_path, text)).train.data)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rows").write_text("")
    assert data_of("mine/rows") == str(tmp_path / "mine" / "rows")
    assert data_of("rows.csv") == str(tmp_path / "rows.csv")
    assert data_of("mine/rows.csv") == str(tmp_path / "mine" / "rows.csv")
    assert data_of("org/rows:main@abc/test") == "org/rows:main@abc/test"
    hub = load_config(written(tmp_path, "base_model: m\ntrain: {data: org/rows@abc/test}\n"))
    assert hub.train.sources == ("rows",)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_its_margins(name: str) -> None:
    given = yaml.safe_load(preset_text(name))["recommendation"]
    of_p_right = (
        "quickstart",
        "mitigation",
        "retention",
        "stress",
        "data-size",
        "fine-tune-at-all",
    )
    delta = 3 if name in of_p_right else 5
    wanted = None if name.startswith("paper") else delta  # two kinds of tasks have two margins
    assert given == {"delta_points": wanted, "epsilon_points": 3, "worst_task_points": 9}
    section = preset_text(name).partition("\nrecommendation:")[2].splitlines()
    assert all("# " in line for line in section[:4])


@pytest.mark.parametrize(("unit", "metric", "delta"), [("points", "acc", 5.0), ("nats", "", 0.05)])
def test_the_margins_of_a_new_file_are_the_defaults(unit: Unit, metric: str, delta: float) -> None:
    given = yaml.safe_load(margins_text(unit, metric))["recommendation"]
    config = RecommendationConfig.model_validate(given)
    defaults = RecommendationConfig()
    assert given[f"delta_{unit}"] == delta
    assert (config.epsilon_points, config.worst_task_points) == (
        defaults.epsilon_for(["p_right"]),
        defaults.ceiling_for(["p_right"]),
    )
