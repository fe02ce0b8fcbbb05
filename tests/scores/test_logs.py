"""Logs of lm-eval, Inspect and HELM, in the layouts that these tools write."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rankwise as rw
from rankwise.errors import DataError, RankwiseError
from rankwise.records.results import StudyResults
from rankwise.scores import archives
from rankwise.scores.asked import Asked
from rankwise.scores.logs import read_log
from rankwise.scores.reading import read_scores
from rankwise.scores.study import scored_study
from tests.planted.frozen_samples import CASES
from tests.planted.samples import compare_samples, line, write
from tests.planted.score_logs import (
    helm_run,
    inspect_log,
    packed_by_zstandard,
    sample,
    write_eval,
)
from tests.support.command_line import rankwise
from tests.support.sentences import Sentences

BASE, R8, R32 = "CICICICI", "CCCICICC", "CCCCCPCC"


def read(paths: Sequence[Path], **settings: Any) -> StudyResults:
    asked = Asked(**settings)
    return scored_study(read_scores(paths, asked), asked, "logs").results()


def values_of(results: StudyResults) -> list[tuple[float, ...]]:
    return [next(iter(model.items.values())).values for model in (results.base, *results.runs)]


INSPECTED = [(1.0, 0.0) * 4, (1.0, 1, 1, 0, 1, 0, 1, 1), (1.0, 1, 1, 1, 1, 0.5, 1, 1)]


@pytest.mark.parametrize("ending", ["eval", "zstd.eval", "json"])
def test_logs_of_inspect(tmp_path: Path, ending: str) -> None:
    paths: list[Path] = []
    for name, letters in (("vllm/base", BASE), ("vllm/mine-r8", R8), ("vllm/mine-r32", R32)):
        log = inspect_log(name, [sample(place, value) for place, value in enumerate(letters)])
        path = tmp_path / f"{name.replace('/', '-')}.{ending}"
        if ending == "zstd.eval":
            packed_by_zstandard(write_eval(path, log))
        elif ending == "eval":
            write_eval(path, log)
        else:
            path.write_text(json.dumps(log, indent=2))
        paths.append(path)
    results = read(paths, base="vllm/base", slice="subject")
    assert values_of(results) == INSPECTED
    assert [run.run.planned.rank for run in results.runs if run.run] == [8, 32]
    (task,) = results.base.items
    assert task == "trivia"
    done = rankwise("verdict", *paths, "--base", "vllm/base", "--slice", "subject", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["slices"][0]["field"] == "subject"


def test_what_was_asked_is_shown_item_by_item(tmp_path: Path) -> None:
    samples = [sample(0, "C"), sample(1, "I"), sample(2, "C")]
    parts = [{"type": "text", "text": "in parts"}, {"type": "image", "image": "data:..."}]
    samples[1]["input"] = [{"role": "user", "content": parts}]
    samples[2]["input"] = "a text"
    paths = [tmp_path / f"{name}.json" for name in ("base", "r8")]
    for path in paths:
        path.write_text(json.dumps(inspect_log(path.stem, samples)))
    items = rw.verdict(paths).items_df()
    shown = items[items.model == "base"]
    assert shown.prompt.tolist() == ["question 0", "in parts", "a text"]
    assert shown.answer.tolist() == ["answer 0", "answer 1", "answer 2"]
    assert shown.right.tolist() == ["0", "1", "2"]


def test_epochs_of_inspect_are_averaged_and_scorers_are_named(
    tmp_path: Path, sentence: Sentences
) -> None:
    paths: list[Path] = []
    for name in ("base", "other"):
        samples = [sample(n, v, epoch) for n in range(3) for epoch, v in ((1, "C"), (2, "I"))]
        for each in samples:
            each["scores"]["judge"] = {"value": 0.75}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(inspect_log(name, samples)))
        paths.append(path)
    with pytest.raises(DataError) as caught:
        read(paths)
    sentence(caught.value, "--metric", names=("--metric",))
    assert values_of(read(paths, metric="match")) == [(0.5, 0.5, 0.5)] * 2
    assert values_of(read(paths, metric="judge")) == [(0.75, 0.75, 0.75)] * 2
    with pytest.raises(DataError) as caught:
        read(paths, metric="jugde")
    sentence(caught.value, "jugde", names=("jugde", "judge"))


@pytest.mark.parametrize("value", ["maybe", None, float("nan"), {"a": 1}])
def test_a_value_of_inspect_that_is_no_number(
    tmp_path: Path, value: Any, sentence: Sentences
) -> None:
    log = inspect_log("base", [sample(0, "C"), sample(1, value)])
    path = tmp_path / "base.json"
    path.write_text(json.dumps(log))
    with pytest.raises(DataError) as caught:
        read([path])
    sentence(caught.value, names=("item-1",))


def test_a_scorer_of_inspect_with_several_values(tmp_path: Path, sentence: Sentences) -> None:
    value = {"precision": 0.25, "found": "C"}
    path = tmp_path / "base.json"
    path.write_text(json.dumps(inspect_log("base", [sample(0, value), sample(1, value)])))
    other = tmp_path / "other.json"
    other.write_text(path.read_text().replace('"base"', '"other"').replace("0.25", "0.5"))
    with pytest.raises(DataError) as caught:
        read([path, other])
    sentence(caught.value, names=("match.precision", "match.found"))
    paths = [path, other]
    assert values_of(read(paths, metric="match.precision")) == [(0.25, 0.25), (0.5, 0.5)]
    assert values_of(read(paths, metric="match.found")) == [(1.0, 1.0)] * 2


def test_an_evaluation_of_inspect_that_was_not_finished(
    tmp_path: Path, sentence: Sentences
) -> None:
    log = inspect_log("base", [sample(0, "C"), sample(1, "I")]) | {"status": "error"}
    with pytest.raises(DataError) as caught:
        read([write_eval(tmp_path / "base.eval", log)])
    sentence(caught.value, names=("error",))


def test_an_evaluation_of_inspect_that_was_killed(tmp_path: Path, sentence: Sentences) -> None:
    """Its archive has what was begun with, and no header yet."""
    path = write_eval(tmp_path / "base.eval", inspect_log("base", [sample(0, "C"), sample(1, "I")]))
    with zipfile.ZipFile(path) as archive:
        texts = {name: archive.read(name) for name in archive.namelist() if name != "header.json"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    with pytest.raises(DataError) as caught:
        read([path])
    sentence(caught.value, names=("started",))


@pytest.mark.parametrize("is_packed", [True, False])
def test_any_byte_of_an_archive_that_has_changed(tmp_path: Path, is_packed: bool) -> None:
    """It is an error with words, or what is read has not changed."""
    log = inspect_log("base", [sample(0, "C"), sample(1, "I")])
    path = write_eval(tmp_path / "base.eval", log)
    content = (packed_by_zstandard(path) if is_packed else path).read_bytes()
    expected = read_log(path)
    assert expected is not None
    said: set[str] = set()
    for place, bit in itertools.product(range(0, len(content), 5), (1, 4)):  # 1: as if encrypted
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            found = read_log(path)
        except DataError as error:
            said.add(str(error))
        else:
            assert found is not None  # a file of another name is not read
            is_less = len(found.content["samples"]) < 2 or found.content["status"] == "started"
            assert is_less or found.content == expected.content
    assert all("damaged" in each for each in said)
    assert any("the checksum of" in each or "Bad CRC" in each for each in said)


def test_an_archive_that_is_none(tmp_path: Path, sentence: Sentences) -> None:
    path = tmp_path / "a.eval"
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError) as caught:
        read([path])
    sentence(caught.value, "first")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("samples/1.json", "{}")
    with pytest.raises(DataError) as caught:
        read([path])
    sentence(caught.value, "second")


@pytest.mark.parametrize("limit", ["MOST_BYTES", "MOST_PART_BYTES"])
def test_an_archive_that_unpacks_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, sentence: Sentences
) -> None:
    path = tmp_path / "a.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", " " * 100_000)
    monkeypatch.setattr(archives, limit, 50_000)
    with pytest.raises(DataError) as caught:
        read([path])
    sentence(caught.value, names=("a.eval", "0.1"))


@pytest.mark.parametrize("display", [False, True])
def test_instances_of_helm(tmp_path: Path, display: bool) -> None:
    values = {"org_base": [1, 0, 1, 0.0], "org_mine-r8": [1, 1, 1, 0.0], "org_r32": [1, 1, 1, 1.0]}
    paths = [helm_run(tmp_path, *each, display=display) for each in values.items()]
    base = "org_base" if display else "org/base"
    results = read(paths, base=base)
    assert values_of(results) == [tuple(map(float, its)) for its in values.values()]
    assert [*results.base.items] == ["mmlu,subject=anatomy"]
    assert [run.run.planned.rank for run in results.runs if run.run] == [8, 32]
    done = rankwise("verdict", *paths, "--base", base)
    assert done.exit_code == 0, done.output


def test_one_log_of_a_model_and_task_and_one_kind_of_file(
    tmp_path: Path, sentence: Sentences
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(inspect_log("base", [sample(0, "C"), sample(1, "I")])))
    other = tmp_path / "b.json"
    other.write_text(path.read_text())
    with pytest.raises(DataError) as caught:
        read([path, other])
    sentence(caught.value, "first")
    table = tmp_path / "scores.csv"
    table.write_text("id,acc,model\n1,1,base\n")
    with pytest.raises(DataError) as caught:
        read([path, table])
    sentence(caught.value, "second")


def test_samples_of_lm_eval_of_several_ranks_and_tasks(tmp_path: Path) -> None:
    models = {"base": [0, 1, 0, 1] * 30, "r4": [0, 1, 1, 1] * 30, "r16": [1, 1, 1, 1] * 30}
    paths = [
        write(
            tmp_path / name / f"samples_{task}_2026-11-01.jsonl",
            [line(place, acc=value) for place, value in enumerate(values)],
        )
        for task in ("mine", "arc")
        for name, values in models.items()
    ]
    done = rankwise("verdict", *paths, "--retention", "arc", "--json")
    assert done.exit_code == 0, done.output
    (part,) = json.loads(done.stdout)["by_train_task"]
    assert [verdict["label"] for verdict in part["verdicts"]] == ["rank 4", "rank 16"]
    assert (part["retention_tasks"], part["train_task"]) == (["arc"], "mine")
    assert part["verdicts"][1]["gain"]["estimate"] == 50.0
    alone = rankwise("verdict", *paths[:3], "--json")
    answer = json.loads(alone.stdout)
    assert [each["label"] for each in answer["by_train_task"][0]["verdicts"]] == [
        "rank 4",
        "rank 16",
    ]
    assert answer["by_train_task"][0]["outcome"] == "recommended"


@pytest.mark.parametrize(
    "content",
    [
        {"eval": {}, "samples": [3]},
        {"eval": {"model": "a"}, "samples": [{"id": 1, "scores": []}]},
        {"eval": {"model": "a"}, "samples": {"id": 1}},
        {"eval": {"task": 7}, "samples": [sample(0, "C")]},
        [{"instance_id": "a", "stats": [{"mean": 1}]}],
        [{"instance_id": "a", "stats": 7}],
        [{"instance_id": "a", "stats": {"exact_match": "x"}}],
        [{"instance_id": "a", "stats": {"exact_match": float("nan")}}, 3],
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RankwiseError):
        read([path, path])


@pytest.mark.parametrize("name", CASES)
def test_samples_files_get_the_numbers_that_they_had(tmp_path: Path, name: str) -> None:
    """Every number was written down by the code that compared files before tables were read.

    Those of values between right and wrong are newer: one item size is taken for all models.
    """
    frozen = json.loads((Path(__file__).parent / "frozen_samples.json").read_text())[name]
    make, settings = CASES[name]
    files = make(tmp_path)
    found = compare_samples(files[0], files[1:], **settings)
    candidates = frozen.pop("candidates")
    assert {key: getattr(found, key) for key in frozen} == frozen
    for row, before in zip(found.candidates, candidates, strict=True):
        now = row.of.model_dump(mode="json")
        now |= {"name": row.name, "difference": row.of.difference.estimate}
        assert_close({key: now[key] for key in before}, before)


def assert_close(now: Any, before: Any) -> None:
    """The same but for the last digits of numbers, which processors round differently."""
    if isinstance(before, dict):
        assert now.keys() == before.keys()
        for key in before:
            assert_close(now[key], before[key])
    elif isinstance(before, list):
        for one, other in zip(now, before, strict=True):
            assert_close(one, other)
    else:
        assert now == (pytest.approx(before, rel=1e-12) if isinstance(before, float) else before)
