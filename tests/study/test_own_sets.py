"""Own rows that are scored and not trained on: from the study file to the verdict, and again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwise.errors import ConfigError, PlanError
from rankwise.integrations.hub import write_shared
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.reading import read_results
from tests.support.command_line import rankwise
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.studies import run

SETTINGS = """
train: {task: colours, epochs: 1, learning_rate: {lora: 1e-2, full: 1e-3}, precision: float32}
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, v_proj]}, full: null}
analysis: {spectra: false, heads: false, gauges: false}
evaluation:
  num_train_items: 0
  own:
    labels: {data: own/labels.jsonl, judged_by: choice, role: out_of_domain}
    tools: {data: own/tools.jsonl, judged_by: [{json: {schema: own/schema.json}}, loss]}
"""


@pytest.fixture
def study_file(tmp_path: Path, tiny_model_folder: Path) -> Path:
    file = write_study(tmp_path, tiny_model_folder, SETTINGS)
    own = tmp_path / "own"
    own.mkdir()
    labels = [{"prompt": f"Is {n} even?", "completion": [" yes", " no"][n % 2]} for n in range(8)]
    tools = [
        {"prompt": f"Call {n}:", "completion": json.dumps({"n": n}), "conversation_id": n // 2}
        for n in range(6)
    ]
    for name, rows in (("labels", labels), ("tools", tools)):
        (own / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (own / "schema.json").write_text(json.dumps({"type": "object", "required": ["n"]}))
    return file


def with_own(file: Path, name: str, **settings: Any) -> Path:
    """The study file with one more set, or other settings of one."""
    content = yaml.safe_load(file.read_text())
    own = content["evaluation"]["own"]
    own[name] = own.get(name, {}) | settings
    file.write_text(yaml.safe_dump(content))
    return file


def test_own_sets_are_tasks_of_their_roles_up_to_the_verdict(
    study_file: Path, tmp_path: Path, sentence: Sentences
) -> None:
    outcome, _ = run(study_file, tmp_path / "study")
    study = outcome.results.study
    assert study.tasks["colours"] == {
        "in_domain": ("colours",),
        "out_of_domain": ("labels",),
        "retention": ("tools", "tools_loss"),
        "held_out_text": (),
    }
    assert {name: (own.source, own.num_held_out) for name, own in study.own_sets.items()} == {
        "labels": ("labels.jsonl", 8),
        "tools": ("tools.jsonl", 6),
    }
    base = outcome.results.base
    assert base.items["labels"].metric == "p_right"
    assert base.items["tools"].metric == "all_correct"
    assert base.items["tools_loss"].unit == "nats"
    assert {*base.items["tools"].fields} == {"n"}
    assert study.config.evaluation.clusters == {
        "tools": "conversation_id",
        "tools_loss": "conversation_id",
    }
    clusters = base.items["tools"].clusters
    assert clusters is not None
    assert [clusters.index(each) // 2 for each in clusters] == [0, 0, 1, 1, 2, 2]
    assert base.items["labels"].clusters is None
    # only points decide on retention
    (recommended,) = outcome.recommendation.by_train_task
    assert recommended.retention_tasks == ("tools",)

    verified = json.loads(rankwise("verify", tmp_path / "study", "--json").stdout)
    assert verified == {"damages": [], "left": []}
    shutil.move(tmp_path / "study", tmp_path / "moved")
    shutil.rmtree(tmp_path / "own")
    again = read_results(StudyFolder(tmp_path / "moved"))
    assert again.base.items == base.items

    for with_items in (False, True):
        shared = tmp_path / f"shared-{with_items}"
        name = next(planned.name for planned in study.runs if planned.method == "lora")
        _, remarks = write_shared(
            StudyFolder(tmp_path / "moved"), shared, name, with_items=with_items
        )
        about = [remark for remark in remarks if "fields" in remark]
        assert len(about) == (not with_items)
        if about:
            sentence(about[0], names=("tools", "n"))


def test_a_right_answer_that_does_not_fit_is_said_by_the_plan(
    study_file: Path, sentence: Sentences
) -> None:
    def warned(max_new_tokens: int) -> list[str]:
        file = with_own(study_file, "tools", max_new_tokens=max_new_tokens)
        return [each for each in plan_study(load_config(file)).record.warnings if "tokens" in each]

    (warning,) = warned(3)
    sentence(warning, names=("evaluation.own.tools", "6 of 6", "3 tokens", "max_new_tokens"))
    assert warned(20) == []


@pytest.mark.parametrize("judged_by", ["choice", "loss"])
def test_a_limit_of_what_is_written_is_refused_where_nothing_is(
    study_file: Path, judged_by: Any, sentence: Sentences
) -> None:
    file = with_own(study_file, "labels", judged_by=judged_by, max_new_tokens=9)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    sentence(caught.value, names=("evaluation.own.labels", "max_new_tokens"))


def test_a_field_that_only_a_late_row_has_can_decide(
    study_file: Path, tmp_path: Path, sentence: Sentences
) -> None:
    rows = [{"prompt": f"Call {n}:", "completion": json.dumps({"n": n})} for n in range(6)]
    rows[5]["completion"] = json.dumps({"n": 5, "at": {"place": "here"}})
    (tmp_path / "own" / "tools.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def plan(field: str) -> None:
        plan_study(load_config(study_file, [f"evaluation.metric={{tools: field.{field}}}"]))

    plan("at.place")
    with pytest.raises(PlanError) as caught:
        plan("elsewhere")
    sentence(caught.value, names=("evaluation.metric", "'field.elsewhere'"))


def test_where_rows_and_schema_lie_changes_nothing_and_what_they_say_does(
    study_file: Path, tmp_path: Path
) -> None:
    def fingerprints() -> dict[str, str]:
        return plan_study(load_config(study_file)).record.task_fingerprints

    before = fingerprints()
    shutil.move(tmp_path / "own", tmp_path / "other")
    text = study_file.read_text().replace("own/", "other/")
    study_file.write_text(text)
    assert fingerprints() == before
    (tmp_path / "other" / "schema.json").write_text(json.dumps({"type": "object"}))
    changed = fingerprints()
    assert {name for name in before if changed[name] != before[name]} == {"tools"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("labels", {"judged_by": "json"}),
        ("labels", {"data": "gone.jsonl"}),
        ("colours", {"data": "own/labels.jsonl", "judged_by": "exact"}),
        ("tools_loss", {"data": "own/labels.jsonl", "judged_by": "exact"}),
        ("more", {"data": "own/labels.jsonl", "judged_by": "loss"}),
        ("task", {"data": "own/gone.jsonl", "judged_by": "exact"}),
        ("empty", {"data": "own/empty.jsonl", "judged_by": "exact"}),
    ],
    ids=["no JSON", "gone", "a task's name", "a set's name", "a loss", "gone too", "empty"],
)
def test_a_set_that_cannot_be_scored_is_named(
    study_file: Path, tmp_path: Path, name: str, settings: dict[str, Any], sentence: Sentences
) -> None:
    (tmp_path / "own" / "empty.jsonl").touch()
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(with_own(study_file, name, **settings)))
    sentence(caught.value, names=(f"evaluation.own.{name}",))


def test_a_set_may_have_the_name_of_a_task_that_is_not_asked_for(study_file: Path) -> None:
    settings: dict[str, Any] = {"judged_by": "loss", "role": "in_domain"}
    plan_study(load_config(with_own(study_file, "sums", data="own/labels.jsonl", **settings)))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "judged_by"),
        ({"judged_by": "exact", "rolle": "retention"}, "rolle"),
        ({"judged_by": ["loss", "choice"]}, "judged_by"),
        ({"judged_by": {"json": {"shema": "s.json"}}}, "judged_by.json.shema"),
    ],
    ids=["no judge", "a misspelt key", "two of a kind", "a misspelt key of a judge"],
)
def test_wrong_settings_are_named(
    study_file: Path, settings: dict[str, Any], named: str, sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(with_own(study_file, "mine", data="rows.jsonl", **settings))
    sentence(caught.value, names=(f"evaluation.own.mine.{named}",))


CODE = """
def score(row, answer):
    return None if (len(answer) + row["n"]) % 5 == 0 else len(answer) % 2

def better(row, answer, base_answer):
    return None if row["n"] == 4 else float(len(answer) > len(base_answer))
"""


def test_items_without_a_number_are_left_out_for_all_models(
    study_file: Path, tmp_path: Path, sentence: Sentences
) -> None:
    (tmp_path / "own" / "check.py").write_text(CODE)
    rows = [{"prompt": f"Say {n}:", "completion": "x", "n": n} for n in range(20)]
    (tmp_path / "own" / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = {"data": "own/texts.jsonl"}
    file = with_own(study_file, "checked", **texts, judged_by={"code": "own/check.py:score"})
    file = with_own(file, "compared", **texts, judged_by={"code": "own/check.py:better"})
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(file, ["allow_task_code=false"]))
    sentence(caught.value, "code", names=("check.py:score", "allow_task_code"))
    outcome, _ = run(file, tmp_path / "study")
    folder, results = StudyFolder(tmp_path / "study"), outcome.results
    models = [results.base, *results.runs]

    def written(model: str, task: str) -> dict[int, str]:
        return {
            line["doc_id"]: line["filtered_resps"][0] for line in folder.read_samples(model, task)
        }

    missing = {
        doc_id
        for model in models
        for doc_id, answer in written(model.name, "checked").items()
        if (len(answer) + doc_id) % 5 == 0
    }
    assert 0 < len(missing) < 18
    base = written(results.base.name, "compared")
    for model in models:
        items = model.items["checked"]
        assert {*items.doc_ids} == {*range(20)} - missing
        answers = written(model.name, "checked")
        assert items.values == tuple(float(len(answers[n]) % 2) for n in items.doc_ids)
        compared, own = model.items["compared"], written(model.name, "compared")
        assert compared.values == tuple(
            0.5 if own[n] == base[n] else float(len(own[n]) > len(base[n]))
            for n in compared.doc_ids
        )
    sentence(
        results.notes,
        "left out",
        names=("checked", len(missing)),
        part=True,
        NUMBER=rf"\b{len(missing)}\b",
    )


def test_another_number_of_a_check_may_decide(study_file: Path, sentence: Sentences) -> None:
    plan_study(load_config(study_file, ["evaluation.metric.tools=fields_correct"]))
    plan_study(load_config(study_file, ["evaluation.metric.tools=field.n"]))
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, ["evaluation.metric.tools=fields"]))
    sentence(caught.value, names=("evaluation.metric", "'fields'", "all_correct, fields_correct"))
