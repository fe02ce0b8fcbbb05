"""The fields that cluster items: settings, errors, finished studies, and sample files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rankwise.cli.main import app
from rankwise.errors import ConfigError, PlanError, StudyLockedError, TaskError
from rankwise.findings.stats.estimates import mean_over_tasks, zero_p_value
from rankwise.findings.stats.items import Items
from rankwise.records.clusters import (
    candidate_fields,
    cluster_fields,
    cluster_numbers,
    linked_clusters,
    normalised,
    ties_of,
)
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.results import StudyResults
from rankwise.records.study_file import load_config
from rankwise.study.conclusion import conclude, keep
from rankwise.study.planning.plan import plan_study
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.planted.samples import Row, compare_samples
from tests.support.records import items_as_they_are
from tests.support.sentences import Sentences

TEXT = "A long passage that tells of many things, so that several questions can be asked about it"
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def documents(numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"id": f"q{place}", "passage": f"{TEXT}: {number}.", "source": "one and the same " * 9}
        for place, number in enumerate(numbers)
    ]


# --- fields of documents


def test_equal_values_of_a_field_have_equal_numbers() -> None:
    docs = dict(enumerate(documents([3, 3, 5, 3])))
    numbers = cluster_numbers(docs, "passage", "--cluster", "a")
    assert numbers[0] == numbers[1] == numbers[3] != numbers[2]
    again = cluster_numbers({0: docs[2], 1: docs[0]}, "passage", "--cluster", "b")
    assert again == (numbers[2], numbers[0])
    other = {doc_id: {"context": doc["passage"]} for doc_id, doc in docs.items()}
    assert not {*cluster_numbers(other, "context", "--cluster", "c")} & {*numbers}
    lists = {0: {"at": [1, {"a": 2}]}, 1: {"at": [1, {"a": 2}]}, 2: {"at": [2]}}
    assert len(set(cluster_numbers(lists, "at", "--cluster", "d"))) == 2
    assert len(set(cluster_numbers(docs, "doc_id", "--cluster", "e"))) == 4


@pytest.mark.parametrize(
    ("docs", "field", "said"),
    [
        ({0: {"passage": "x"}, 1: {"passage": "y"}}, "pasage", "did you mean 'passage'?"),
        ({0: {"passage": "x"}, 1: {"passage": "y"}}, "zzz", "they have passage"),
        ({0: "prose", 1: "prose"}, "passage", "they have no fields"),
        (
            {4: {"passage": "x"}, 7: {"b": 1}},
            "passage",
            "1 of 2 documents of drop have no",
        ),
        ({4: {"passage": "x"}, 7: {"passage": " "}}, "passage", "for example doc_id 7"),
        ({0: {"passage": "x"}, 1: {"passage": "x"}}, "passage", "is the same in all 2 documents"),
    ],
)
def test_a_field_that_cannot_be_used(docs: dict[int, Any], field: str, said: str) -> None:
    with pytest.raises(TaskError) as error:
        cluster_numbers(docs, field, "evaluation.clusters.drop", "drop")
    assert str(error.value).startswith("evaluation.clusters.drop: ")
    assert said in str(error.value)


def test_candidates_are_long_texts_and_ids_that_items_share() -> None:
    docs = {
        place: {
            "doc_id": place,
            "id": f"{place:08d}",  # of each item its own
            "passage": f"{TEXT}: {place // 4}.",
            "pairID": place // 2,
            "source_id": f"video {place // 3}",
            "answer_id": place % 5,  # five letters
            "dataset": "all of one source " * 9,
            "subject": f"subject {place // 4}",  # short, and no id
            "valid": place // 4,  # ends as ids do
            "support": TEXT * (place % 3) + str(place // 4) * (place % 3),  # empty in places
        }
        for place in range(40)
    }
    found = candidate_fields(docs)
    assert {name: len(set(its)) for name, its in found.items()} == {
        "passage": 10,
        "pairID": 20,
        "source_id": 14,
    }
    assert found["passage"] == cluster_numbers(docs, "passage", "--cluster", "a")
    assert candidate_fields({}) == candidate_fields({0: "prose", 1: "prose"}) == {}


def test_tasks_groups_and_other_formats_have_their_fields(sentence: Sentences) -> None:
    study = planted_study().study.model_copy(
        update={
            "groups": {"facts": ("capitals", "elements")},
            "trained_formats": {"kinship": {"kinship": "kinship@letters"}},
            "trained_items": {"kinship": {"kinship": "kinship@train"}},
            "ending_items": {"kinship": "kinship@end"},
        }
    )
    settings = {"elements": "table", "facts": "passage", "kinship": "story"}
    assert cluster_fields(settings, study) == {
        "kinship": "story",
        "kinship@letters": "story",
        "kinship@train": "story",
        "capitals": "passage",
        "elements": "table",
    }
    with pytest.raises(TaskError) as caught:
        cluster_fields({"fact": "passage"}, study)
    sentence(caught.value, names=("fact", "facts"))


def test_real_texts_that_are_partly_empty_are_no_passages() -> None:
    file = DATA / "medmcqa" / "test.jsonl"
    if not file.exists():
        pytest.skip("the real items are not here")
    rows = lines_of(file)
    assert sum(not row.get("rationale") for row in rows) > 100
    assert candidate_fields(dict(enumerate(rows))) == {}


# --- what items ask, and texts that tasks share


def asked(prompt: str, options: Sequence[str] = ("yes", "no"), **doc: Any) -> dict[str, Any]:
    return {"arguments": [[prompt, f" {option}"] for option in options], "doc": doc}


def groups(lines: dict[str, list[dict[str, Any]]], **named: Sequence[int]) -> dict[str, Any]:
    """Task -> the first item of each item's cluster, over all tasks in order."""
    found = linked_clusters({task: ties_of(its) for task, its in lines.items()}, named)
    first: dict[int, str] = {}
    return {
        task: clusters and [first.setdefault(c, f"{task}{i}") for i, c in enumerate(clusters)]
        for task, clusters in found.items()
    }


def test_what_near_duplicates_differ_in_is_folded_and_signs_are_not() -> None:
    text = "Is  “Paris”\nin FRANCE, really?"
    assert (
        normalised(text) == normalised("is 'paris' in france really") == "is paris in france really"
    )
    asked = ("3 + 4", "3 - 4", "3.5", "35", "-3", "(3 + 4) * 2", "3 + 4 * 2")
    assert len({*map(normalised, asked)}) == len(asked)


def test_items_that_ask_the_same_are_one_cluster() -> None:
    lines = [
        asked("Is Paris in France?"),
        asked("Is Rome in France?"),
        asked("is  paris in france", ("no", "yes")),  # options in any order
        asked("Is Paris in France?", ("yes", "no", "perhaps")),  # another question
    ]
    assert groups({"a": lines}) == {"a": ["a0", "a1", "a0", "a3"]}
    assert groups({"a": lines[1:]}) == {"a": None}
    assert groups({"a": lines[:2], "b": lines[2:]}) == {"a": ["a0", "a1"], "b": ["a0", "b1"]}
    alike = [asked("", (option, "")) for option in ("cats purr", "dogs bark")]  # nothing before it
    assert groups({"a": alike}) == {"a": None}
    generation = {"arguments": {"gen_args_0": {"arg_0": "Say it.", "arg_1": {"until": ["."]}}}}
    assert groups({"a": [asked("x"), generation, generation]}) == {"a": ["a0", "a1", "a1"]}
    assert groups({"a": [generation, generation]}) == {"a": None}  # one prompt is no question
    assert groups({"a": [{"doc": {"x": 1}}, {"doc": {"x": 1}}]}) == {"a": None}


def test_a_text_that_several_tasks_share_is_one_cluster() -> None:
    first = [asked(f"What {i}?", passage=f"{TEXT}: {i // 2}.", rule=TEXT) for i in range(12)]
    second = [asked(f"Who {i}?", context=f"{TEXT.upper()} : {i + 5}", rule=TEXT) for i in range(6)]
    assert groups({"a": first}) == {"a": None}  # within a task a field is named, or suspected
    assert groups({"a": first, "b": second}) == {
        "a": [*(f"a{i}" for i in range(10)), "a10", "a10"],
        "b": ["a10", *(f"b{i}" for i in range(1, 6))],
    }
    # the same items in another format are no other task, and what nearly all share is none
    assert groups({"a": first, "a@letters": first})["a"] is None


def test_named_fields_and_equal_questions_are_joined() -> None:
    lines = [asked(f"What {i}?") for i in (0, 1, 2, 0)]
    assert groups({"a": lines}, a=[7, 7, 8, 8]) == {"a": ["a0", "a0", "a0", "a0"]}
    assert groups({"a": lines[:3]}, a=[7, 8, 9]) == {"a": ["a0", "a1", "a2"]}


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_near_duplicates_are_covered(share: float) -> None:
    """Of 100 questions this share is asked three more times; differences of a question agree."""
    rng, covered, without = np.random.default_rng(3), 0, 0
    repeats = np.where(np.arange(100) < 100 * share, 4, 1)
    question = np.repeat(np.arange(100), repeats)
    lines = [asked(f"{'What' if i % 2 else 'what'}  {q}?") for i, q in enumerate(question)]
    clusters = linked_clusters({"a": ties_of(lines)}, {})["a"]
    assert (clusters is None) == (share == 0.0)
    numbers = None if clusters is None else np.array(clusters)
    for _ in range(600):
        values = rng.normal(0.0, 1.0, 100)[question] + rng.normal(0.0, 0.3, len(question))
        for its, place in ((numbers, 0), (None, 1)):
            lower, upper = mean_over_tasks([Items(values, 0.0, clusters=its)]).interval(0.95)
            covered += place == 0 and lower <= 0.0 <= upper
            without += place == 1 and lower <= 0.0 <= upper
    assert covered >= 0.93 * 600
    assert share == 0.0 or without < 0.85 * 600


def test_a_study_that_is_read_back_has_the_clusters_of_its_prompts(
    tmp_path: Path, sentence: Sentences
) -> None:
    """Kinship asks each question twice; capitals and elements are about the same 100 texts."""
    results = planted_study({4: 0.70, 16: 0.80, "full": 0.81})
    folder = StudyFolder(tmp_path / "study")
    texts = [{"passage": f"{TEXT}: {place // 2}."} for place in range(200)]
    write_study(folder, results, {"capitals": texts, "elements": texts})
    for model in (results.base, *results.runs):
        path = folder.samples_file(model.name, "kinship")
        lines = [line | asked(f"Who is {i // 2}?") for i, line in enumerate(lines_of(path))]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        items_as_they_are(folder, model.name, "kinship")
    outcome = conclude(folder)
    (answer,) = outcome.recommendation.by_train_task
    assert (answer.num_items_in_domain, answer.num_clusters_in_domain) == (300, 150)
    sentence(answer.reasons, "kinship", names=("kinship", "300", "150"), part=True)
    said = " ".join(answer.reasons)
    sentence(said, "retention", names=("capitals and elements", "400", "100"), part=True)
    one = outcome.results.base.items["kinship"].clusters
    assert one is not None
    assert all(run.items["kinship"].clusters == one for run in outcome.results.runs)


# --- plans


def test_a_plan_checks_the_fields_and_keeps_all_fingerprints(study_file: Path) -> None:
    asked = ["analysis.divergence=true"]
    plain = plan_study(load_config(study_file, asked)).record
    asked.append("evaluation.clusters={colours: choices}")
    record = plan_study(load_config(study_file, asked)).record
    assert record.config.evaluation.clusters == {"colours": "choices"}
    assert record.fingerprint == plain.fingerprint
    assert record.task_fingerprints == plain.task_fingerprints
    assert record.inputs == plain.inputs
    assert [run.fingerprint for run in record.runs] == [run.fingerprint for run in plain.runs]
    for setting, said in (
        ("{colour: choices}", "no task or group 'colour' is scored; did you mean 'colours'?"),
        ("{colours: choice}", "evaluation.clusters.colours: the documents of colours have no"),
    ):
        with pytest.raises(PlanError) as error:
            plan_study(load_config(study_file, [f"evaluation.clusters={setting}"]))
        assert any(said in problem for problem in error.value.problems)


# --- a finished study


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """Ranks 4 and 16 differ by passage: 300 items in 30."""
    results = planted_study({4: 0.70, 16: 0.80, "full": 0.81})
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, results, {"kinship": documents(by_difference(results, "kinship", 10))})
    return folder


def by_difference(results: StudyResults, task: str, size: int) -> list[int]:
    first, last = (np.array(results.runs[i].items[task].values) for i in (0, 1))
    numbers = np.empty(len(first), dtype=int)
    numbers[np.argsort(last - first, kind="stable")] = np.arange(len(first)) // size
    return numbers.tolist()


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_finished_study_names_the_setting_and_takes_it(
    study: StudyFolder, sentence: Sentences
) -> None:
    before = study.read_study()
    warned = run("verdict", study.root)
    said = " ".join(warned.stdout.split())
    assert warned.exit_code == 0
    assert "evaluation.clusters.kinship: passage" in said
    assert f"rankwise verdict {study.root} --cluster kinship=passage" in said
    assert study.read_study() == before
    without = read_record(study.recommendation_file, StudyRecommendation).by_train_task[0]

    taken = run("verdict", study.root, "--cluster", "kinship=passage")
    said = " ".join(taken.stdout.split())
    assert taken.exit_code == 0, taken.output
    sentence(said, names=("300 items", "30 clusters"), part=True)
    assert "evaluation.clusters" not in said
    after = study.read_study()
    assert after.config.evaluation.clusters == {"kinship": "passage"}
    assert after.model_copy(update={"config": before.config}) == before
    clustered = read_record(study.recommendation_file, StudyRecommendation).by_train_task[0]
    assert clustered.num_clusters_in_domain == 30
    for narrow, wide in zip(without.verdicts, clustered.verdicts, strict=True):
        assert wide.gain.upper - wide.gain.lower > narrow.gain.upper - narrow.gain.lower

    assert run("report", study.root).exit_code == 0
    page = study.report_file.read_text(encoding="utf-8")
    assert "n\u00a0=\u00a0300 in 30 clusters" in page
    assert "300 items in 30 clusters" in page
    # the report and a second call use what the study says now
    again = run("verdict", study.root)
    assert "kinship has 300 items" in " ".join(again.stdout.split())
    removed = run("verdict", study.root, "--cluster", "kinship=")
    assert removed.exit_code == 0
    assert study.read_study() == before
    assert read_record(study.recommendation_file, StudyRecommendation).by_train_task[0] == without


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("kinshp=passage", "no task or group 'kinshp' is scored; did you mean 'kinship'?"),
        ("kinship=pasage", "no field 'pasage'; did you mean 'passage'?"),
        ("kinship=source", "'source' is the same in all 300 documents"),
        ("capitals=passage", "they have no fields"),
        ("kinship", "write TASK=FIELD"),
    ],
)
def test_a_setting_that_cannot_be_used_changes_nothing(
    study: StudyFolder, setting: str, said: str
) -> None:
    before = study.study_file.read_bytes()
    result = run("verdict", study.root, "--cluster", setting)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert study.study_file.read_bytes() == before
    assert not study.recommendation_file.exists()


def test_a_document_without_the_field_is_named(study: StudyFolder, sentence: Sentences) -> None:
    path = study.samples_file("base", "kinship")
    lines = lines_of(path)
    del lines[17]["doc"]["passage"]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    items_as_they_are(study, "base", "kinship")
    with pytest.raises(TaskError) as caught:
        conclude(study, {"kinship": "passage"})
    sentence(caught.value, names=("kinship", "300", "doc_id", "17"))


def test_a_study_that_is_being_worked_on_keeps_its_settings(study: StudyFolder) -> None:
    outcome = conclude(study, {"kinship": "passage"})
    with study.lock(), pytest.raises(StudyLockedError):
        keep(StudyFolder(study.root), outcome, settings=True)
    assert study.read_study().config.evaluation.clusters == {}


# --- sample files


def write_samples(
    path: Path, values: Sequence[float], docs: Sequence[Any], metric: str = "acc"
) -> Path:
    lines = [
        {"doc_id": place, "doc": doc, "target": "a", "filter": "none", "metrics": [metric]}
        | {metric: value}
        for place, (value, doc) in enumerate(zip(values, docs, strict=True))
    ]
    order = np.random.default_rng(0).permutation(len(lines))  # of doc_ids, as lm-eval may write
    path.write_text("".join(f"{json.dumps(lines[place])}\n" for place in order))
    return path


def two_files(folder: Path, num_passages: int) -> list[Path]:
    """20 questions a passage, on whole passages of which the second is better or worse."""
    rng = np.random.default_rng(1)
    numbers = np.repeat(np.arange(num_passages), 20)
    skill = rng.normal(0.15, 1.2, num_passages)[numbers]
    base = rng.normal(size=len(numbers)) > 0
    other = np.where(rng.normal(size=len(numbers)) < np.abs(skill) - 0.5, skill > 0, base)
    docs = documents(numbers.tolist())
    return [
        write_samples(folder / f"{name}.jsonl", values.astype(float).tolist(), docs)
        for name, values in (("base", base), ("other", other))
    ]


def only(files: Sequence[Path], **settings: Any) -> tuple[Row, list[str]]:
    """The row of the only model, and what is said of clusters."""
    verdicts = compare_samples(files[0], files[1:], **settings)
    (row,) = verdicts.candidates
    return row, [said for said in verdicts.reasons if "cluster" in said.lower()]


def test_sample_files_name_the_field_and_take_it(tmp_path: Path, sentence: Sentences) -> None:
    files = two_files(tmp_path, 40)
    plain, warnings = only(files)
    assert (plain.of.mcnemar_p_value is None, plain.of.num_clusters) == (False, None)
    (warning,) = warnings
    sentence(warning, "800", names=("800", "40", "passage"))
    assert "Use --cluster passage" in warning
    row, _ = only(files, cluster="passage")
    assert (row.of.num_examples, row.of.num_clusters, row.of.mcnemar_p_value) == (800, 40, None)
    assert row.of.difference.estimate == pytest.approx(plain.of.difference.estimate)
    assert (row.of.num_learned, row.of.num_forgotten) == (
        plain.of.num_learned,
        plain.of.num_forgotten,
    )
    assert row.of.difference.upper - row.of.difference.lower > 1.5 * (
        plain.of.difference.upper - plain.of.difference.lower
    )
    assert row.verdict == "cannot_tell"
    values = [
        np.array([line["acc"] for line in sorted(lines_of(file), key=_doc_id)]) for file in files
    ]
    clusters = np.repeat(np.arange(40), 20)
    gain = 100.0 * (values[1] - values[0])
    estimate = mean_over_tasks([Items(gain, 100.0, clusters=clusters)])
    interval = estimate.interval(0.96)
    ends = (row.of.difference.lower, row.of.difference.upper)
    assert ends == pytest.approx(interval, abs=0.04 * (interval[1] - interval[0]))  # by draws
    assert row.of.p_value == pytest.approx(zero_p_value(estimate))
    assert plain.verdict == "better"  # what 800 independent items would say
    assert (row.verdict == "cannot_tell") == (
        row.of.difference.lower < 0.0 < row.of.difference.upper
    )


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _doc_id(line: dict[str, Any]) -> int:
    return line["doc_id"]


def test_single_items_are_clusters_of_their_own(tmp_path: Path) -> None:
    files = two_files(tmp_path, 40)
    plain, _ = only(files)
    row, _ = only(files, cluster="id")
    assert row == plain


def test_few_passages_are_a_warning(tmp_path: Path, sentence: Sentences) -> None:
    row, said = only(two_files(tmp_path, 12), cluster="passage")
    assert row.of.num_clusters == 12
    sentence(said[-1], names=("12", "30"))


def test_the_command_line_of_sample_files(tmp_path: Path, sentence: Sentences) -> None:
    files = two_files(tmp_path, 40)
    result = run("verdict", *files)
    assert "Use --cluster passage" in " ".join(result.stdout.split())
    result = run("verdict", *files, "--cluster", "passage", "--json")
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    assert content["by_train_task"][0]["comparisons"][0]["num_clusters"] == 40
    result = run("verdict", *files, "--cluster", "pasage")
    assert result.exit_code == 2
    sentence(" ".join(result.stderr.split()), names=("passage",))


def test_files_without_documents_have_no_clusters(tmp_path: Path, sentence: Sentences) -> None:
    files = two_files(tmp_path, 40)
    for file in files:
        lines = [json.dumps(line | {"doc": None}) for line in lines_of(file)]
        file.write_text("\n".join(lines))
    _, said = only(files)
    assert not any("--cluster" in each for each in said)
    with pytest.raises(ConfigError) as caught:
        only(files, cluster="passage")
    sentence(caught.value, names=("--cluster", "passage"))
