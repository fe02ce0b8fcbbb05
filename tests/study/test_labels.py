"""A person's labels beside a judge: written, read back, and what they correct."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.labels import simulated
from rankwise.errors import ConfigError, DataError, PlanError
from rankwise.findings.models import task_score
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults, TaskItems
from rankwise.records.study_file import load_config
from rankwise.study.labels import COLUMNS, corrected, write_labels
from rankwise.study.planning.plan import plan_study
from rankwise.study.reading import read_judgements, read_results
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
  own: {judged: {data: rows.jsonl, judged_by: {code: judge.py:score}, role: out_of_domain}}
  labels: {judged: 20}
"""
NUM_ITEMS = 30
JUDGE = """
def score(row, answer):
    return float(len(answer) % 2)

def better(row, answer, base_answer):
    return 1.0
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("labels")
    rows = [{"prompt": f"Say {n}:", "completion": "=1+1"} for n in range(NUM_ITEMS)]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "judge.py").write_text(JUDGE)
    return write_study(root, tiny_model_folder, SETTINGS)


@pytest.fixture(scope="module")
def study(file: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    root = tmp_path_factory.mktemp("labelled") / "study"
    run(file, root)
    return StudyFolder(root)


def truth(answer: str) -> float:
    """What a person thinks of it: another thing than the judge."""
    return hashlib.sha256(answer.encode()).digest()[0] % 3 / 2


def written(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def fill(path: Path, label: Callable[[str], str], delimiter: str = ",") -> None:
    """Write labels into a file as a spreadsheet saves it."""
    rows = written(path)
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(row | {"label": label(row["answer"].removeprefix("'"))} for row in rows)


def answers(folder: StudyFolder, model: ModelResults) -> dict[int, str]:
    samples = folder.read_samples(model.name, "judged")
    return {int(line["doc_id"]): line["filtered_resps"][0] for line in samples}


def test_a_judge_s_numbers_are_corrected_once_every_answer_has_a_label(
    study: StudyFolder, sentence: Sentences
) -> None:
    path = study.labels_file("judged")
    path.unlink(missing_ok=True)
    sentence(read_results(study).notes, "unlabelled", LABELS=str(path), FOLDER=str(study.root))
    said = rankwise("labels", study.root)
    assert said.exit_code == 0
    rows = written(path)
    assert not any(row["key"].isdigit() for row in rows)
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)  # no model's order
    assert all(row["question"] and not row["label"] for row in rows)
    assert {row["right_answer"] for row in rows} == {"'=1+1"}  # a spreadsheet computes nothing
    raw = read_judgements(study).models
    asked = {answers(study, model)[n] for model in raw for n in range(NUM_ITEMS)}
    assert {row["answer"].removeprefix("'") for row in rows} <= asked

    fill(path, lambda answer: str(truth(answer)).replace(".", ","), ";")  # Excel, in Germany
    results = read_results(study)
    sentence(results.notes, "labelled")
    for judged, model in zip(raw, [results.base, *results.runs], strict=True):
        items, its = model.items["judged"], answers(study, judged)
        numbers = dict(zip(items.doc_ids, judged.items["judged"].values, strict=True))
        changed = [
            n for n, value in zip(items.doc_ids, items.values, strict=True) if value != numbers[n]
        ]
        unlike = [n for n in items.doc_ids if truth(its[n]) != numbers[n]]
        assert {*changed} <= {*unlike}
        keys = {row["question"] for row in rows}
        drawn = [n for n in items.doc_ids if f"Say {n}:" in keys]
        assert len(drawn) == 20
        errors = [truth(its[n]) - numbers[n] for n in drawn]
        expected = np.mean([*numbers.values()]) + np.mean(errors)
        assert np.mean(items.values) == pytest.approx(expected, abs=1e-12)
        shown = task_score(model.evaluations["judged"], items, 0.95)  # what the page says
        assert shown.estimate == pytest.approx(100 * expected)

    assert "Next" in rankwise("labels", study.root).output  # what is labelled stays
    assert read_results(study).notes == results.notes
    shown = results.runs[0].items["judged"]
    assert shown.num_labelled == 20
    assert shown.plain is not None
    assert {*shown.plain} <= {0.0, 0.5, 1.0}  # what the page calls right and wrong


def test_labels_of_answers_that_no_model_gives_now_are_kept(study: StudyFolder) -> None:
    path = study.labels_file("judged")
    path.unlink(missing_ok=True)
    assert rankwise("labels", study.root).exit_code == 0
    fill(path, lambda answer: str(truth(answer)))
    with path.open("a", encoding="utf-8") as stream:
        stream.write("kother,a question,right,'=an answer,1\n")
    assert rankwise("labels", study.root).exit_code == 0
    rows = {row["key"]: row for row in written(path)}
    assert rows["kother"] == dict(
        zip(COLUMNS, ["kother", "a question", "right", "'=an answer", "1"], strict=True)
    )
    assert all(row["label"] for row in rows.values())
    path.unlink()


def test_a_label_is_of_a_question_and_its_right_answer_too(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study.labels_file("judged")
    path.unlink(missing_ok=True)
    found, read = read_judgements(study), StudyFolder.read_samples
    write_labels(study, found.study, found.models)
    fill(path, lambda answer: str(truth(answer)))
    (file,) = write_labels(study, found.study, found.models)
    assert file.num_left == 0

    def changed(self: StudyFolder, model: str, task: str, record: Any = None) -> Any:
        return [line | {"target": "another answer"} for line in read(self, model, task, record)]

    monkeypatch.setattr(StudyFolder, "read_samples", changed)
    (file,) = write_labels(study, found.study, found.models)
    assert file.num_left == 20
    path.unlink()


@pytest.mark.parametrize("text", [' "Paris"', "a\rb", "a\r\nb", '"', "=1+1", "k;l,m", "\n"])
def test_every_answer_can_be_read_back(
    study: StudyFolder, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study.labels_file("judged")
    path.unlink(missing_ok=True)
    read = StudyFolder.read_samples

    def spoilt(self: StudyFolder, model: str, task: str, record: Any = None) -> Any:
        lines = read(self, model, task, record)
        return [line | {"filtered_resps": [text], "target": text} for line in lines]

    found = read_judgements(study)
    monkeypatch.setattr(StudyFolder, "read_samples", spoilt)
    (file,) = write_labels(study, found.study, found.models)
    assert file.num_left == 20
    fill(path, lambda _: "1")
    (file,) = write_labels(study, found.study, found.models)
    assert file.num_left == 0
    path.unlink()


BAD: dict[str, Callable[[Path], Any]] = {
    "words": lambda path: fill(path, lambda _: "good"),
    "too large": lambda path: fill(path, lambda _: "2"),
    "not a number": lambda path: fill(path, lambda _: "nan"),
    "two labels": lambda path: path.write_text("key,label\na,1\na,0\n"),
    "no column": lambda path: path.write_text("key,mark\na,1\n"),
    "torn": lambda path: path.write_text('key,label\n"a,1\n'),
    "a spreadsheet": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(range(256))),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_none_of_labels_is_named(
    study: StudyFolder, name: str, sentence: Sentences
) -> None:
    path = study.labels_file("judged")
    path.unlink(missing_ok=True)
    assert rankwise("labels", study.root).exit_code == 0
    BAD[name](path)
    with pytest.raises(DataError) as caught:
        read_results(study)
    sentence(caught.value, LABELS=str(path), KEY=r"\bk[0-9a-f]{16}\b")
    path.unlink()


@pytest.mark.parametrize(
    "override",
    [
        "evaluation.labels={judge: 20}",
        "evaluation.labels={colours: 20}",
        "evaluation.labels={judged: 5}",
        "search.until=decided",
        "deploy=[merged-fp32]",
        "evaluation.own.judged.judged_by={code: judge.py:better}",
    ],
)
def test_labels_that_cannot_be_are_refused(file: Path, override: str, sentence: Sentences) -> None:
    with pytest.raises((ConfigError, PlanError)) as caught:
        plan_study(load_config(file, [override]))
    sentence(caught.value)


@pytest.mark.parametrize("flatters", [False, True])
def test_a_judge_s_bias_is_covered_by_the_bounds(*, flatters: bool) -> None:
    options = argparse.Namespace(repeats=200, items=300, labels=50)
    its = simulated(options, 0.8, flatters=flatters)
    assert its["corrected"]["coverage"] >= 0.9  # .95 less three standard errors
    assert its["judge"]["coverage"] < 0.7
    assert its["corrected"]["width"] < its["labels"]["width"]


def test_a_few_labels_that_all_agree_prove_little() -> None:
    """Of 20 labels hardly one shows a judge that is wrong once in twenty answers."""
    options = argparse.Namespace(repeats=200, items=2000, labels=20)
    assert simulated(options, 0.95, flatters=True)["corrected"]["coverage"] >= 0.93


def test_the_correction_is_the_same_mean_and_a_constant_bias_adds_no_variance() -> None:
    """The judge gives 1 to all; the person 0 to each of those that are labelled."""
    items = TaskItems.model_construct(doc_ids=tuple(range(6)), values=(1.0,) * 6)
    some = corrected(items, {0: 0.0, 3: 0.0})
    assert some.values == pytest.approx((0.0,) * 6)
    mixed = corrected(items, {0: 0.0, 3: 0.5, 5: 1.0})
    assert sum(mixed.values) / 6 == pytest.approx(0.5)  # 1 - (1 + 0.5 + 0) / 3
    assert mixed.values == pytest.approx((-0.5, 0.5, 0.5, 0.5, 0.5, 1.5))
    whole = corrected(items, dict.fromkeys(range(6), 0.3))
    assert whole.values == (0.3,) * 6
