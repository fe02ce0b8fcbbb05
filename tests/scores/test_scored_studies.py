"""Scores in a table are judged as the study that they are from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rankwise.findings.recommendation import recommend
from rankwise.records.base import Record
from rankwise.records.folder import StudyFolder
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import StudyResults
from rankwise.scores.asked import Asked
from rankwise.scores.reading import read_scores, rows_given
from rankwise.scores.study import scored_study
from rankwise.study.conclusion import concluded
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.planted.score_tables import long_table, scores, write_csv
from tests.support.command_line import rankwise, words
from tests.support.records import change
from tests.support.sentences import Sentences

OF_SEEDS: dict[str, Any] = {
    "in_domain_accuracy": {
        4: (0.70, 0.69, 0.72), 16: (0.80, 0.81, 0.79), 64: (0.81, 0.82, 0.79),
        "full": (0.81, 0.80, 0.83),
    },
    "retention_accuracy": {
        4: (0.90, 0.89, 0.91), 16: (0.90, 0.88, 0.89), 64: (0.88, 0.87, 0.86),
        "full": (0.80, 0.81, 0.78),
    },
}  # fmt: skip

PLANTED: Mapping[str, dict[str, Any]] = {
    "one seed": {},
    "three seeds": {"seeds": (0, 1, 2), **OF_SEEDS},
    "a rank that forgets": {"retention_accuracy": {4: 0.9, 16: 0.9, 64: 0.7, "full": 0.6}},
    "no rank keeps enough": {"retention_accuracy": {4: 0.6, 16: 0.55, 64: 0.5, "full": 0.4}},
    "nothing gained": {"in_domain_accuracy": {4: 0.5, 16: 0.5, 64: 0.5, "full": 0.5}},
    "no retention task": {"retention_tasks": ()},
    "a loss in-domain": {
        "in_domain_accuracy": {4: 2.2, 16: 2.0, 64: 1.99}, "in_domain_unit": "nats",
        "base": {"kinship": 2.5},
    },
    "two tasks in-domain": {"in_domain_tasks": ("kinship", "family"), "seeds": (3, 5), **OF_SEEDS},
}  # fmt: skip


def asked_of(results: StudyResults, **settings: Any) -> Asked:
    """The roles of the study's tasks."""
    tasks = results.study.tasks["kinship"]
    return Asked(
        retention=tasks["retention"],
        in_domain=tasks["in_domain"],
        out_of_domain=tasks["out_of_domain"],
        **settings,
    )


def of_points(results: StudyResults) -> StudyResults:
    """Without the prose: a table has one column of scores, and one kind of them."""
    tasks = results.study.tasks["kinship"]
    unit = results.base.items[tasks["in_domain"][0]].unit
    named = [t for r, names in tasks.items() if r != "held_out_text" for t in names]
    kept = [task for task in named if results.base.items[task].unit == unit]
    study = results.study.without([t for t in results.base.items if t not in kept])
    models = tuple(model.limited_to(kept) for model in results.models)
    return results.model_copy(
        update={"study": study, "base": results.base.limited_to(kept), "models": models}
    )


SAME = ("outcome", "rank", "unit", "delta", "epsilon_points", "worst_task_points", "confidence",
        "retention_tasks", "num_items_in_domain", "num_clusters_in_domain", "best_bet",
        "sufficient_epsilon_points", "sufficient_worst_task_points",
        "sufficient_rank", "better_and_kept_by_full")  # fmt: skip
OF_A_RANK = ("label", "rank", "gain", "retention_loss", "worst_retention_task",
             "worst_retention_loss", "shortfall", "better_than_base", "keeps_enough",
             "near_the_best", "qualifies", "worse_than", "ruled_out_by")  # fmt: skip
OF_A_TASK = ("task", "relation", "unit", "num_examples", "base_score", "adapted_score",
             "difference", "stderr", "num_learned", "num_forgotten", "p_value",
             "mcnemar_p_value", "num_clusters")  # fmt: skip


def agree(found: Recommendation, wanted: Recommendation) -> None:
    """Everything is the same but what only a training knows; a mean may round otherwise."""
    same(found, wanted, SAME)
    # of a table nobody knows how many items there are, so more of them are a way to grow it
    for one in (prospect for prospect in wanted.prospects if prospect.add == "seeds"):
        (other,) = (each for each in found.prospects if each == one)
        assert other.num_seeds == one.num_seeds
    if wanted.prospects:
        assert {each.add for each in found.prospects} > {"seeds"}
    for one, other in zip(found.verdicts, wanted.verdicts, strict=True):
        same(one, other, OF_A_RANK)
    for one, other in zip(found.comparisons, wanted.comparisons, strict=True):
        same(one, other, OF_A_TASK)


def same(found: Record, wanted: Record, names: Sequence[str]) -> None:
    one, other = (
        numbers(each.model_dump(mode="json", include={*names})) for each in (found, wanted)
    )
    assert [value for value in one if isinstance(value, str)] == [
        value for value in other if isinstance(value, str)
    ]
    assert [value for value in one if not isinstance(value, str)] == pytest.approx(
        [value for value in other if not isinstance(value, str)], rel=1e-9, abs=1e-9
    )


def numbers(content: Any) -> list[Any]:
    """Everything in a record, one after the other; None as a text."""
    if isinstance(content, dict):
        return [part for key in sorted(content) for part in (key, *numbers(content[key]))]
    if isinstance(content, list):
        return [part for each in content for part in numbers(each)]
    return ["None"] if content is None else [content]


@pytest.mark.parametrize("name", PLANTED)
def test_a_table_gets_the_verdict_of_its_study(tmp_path: Path, name: str) -> None:
    results = of_points(planted_study(**PLANTED[name]))
    (wanted,) = recommend(results).by_train_task
    path = write_csv(tmp_path / "scores.csv", long_table(results))
    asked = asked_of(results)
    scored = scored_study(read_scores([path], asked), asked, "scores")
    (found,) = concluded(scored.results()).recommendation.by_train_task
    agree(found, wanted)


def test_so_it_does_of_items_in_clusters(tmp_path: Path) -> None:
    # two tasks that lose the same would be worst by rounding
    base = {"kinship": 0.5, "syllogism": 0.5, "capitals": 0.9, "elements": 0.85}
    results = of_points(planted_study(seeds=(0, 1), base=base, **OF_SEEDS))
    documents = {
        task: [{"passage": f"text {place // 10}"} for place in range(len(items.doc_ids))]
        for task, items in results.base.items.items()
    }
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, results, documents)
    wanted = rankwise("verdict", folder.root, *(
        f"--cluster={task}=passage" for task in results.base.items), "--json")  # fmt: skip
    table = write_csv(tmp_path / "scores.csv", long_table(results, documents))
    roles = ("--retention", "capitals,elements", "--out-of-domain", "syllogism")
    found = rankwise("verdict", table, *roles, "--cluster", "passage", "--json")
    assert (wanted.exit_code, found.exit_code) == (0, 0), found.output
    parts = [json.loads(done.stdout)["by_train_task"][0] for done in (found, wanted)]
    one, other = map(Recommendation.model_validate, parts)
    assert one.num_clusters_in_domain == 30
    agree(one, other)


def test_a_gain_has_students_interval_widened_for_unseen_items() -> None:
    """Of many items with small differences nothing is left of the widening."""
    rng = np.random.default_rng(3)
    base = rng.uniform(0.2, 0.6, 4000)
    better = base + rng.normal(0.05, 0.1, 4000)
    asked = Asked()
    given = rows_given(scores(base=base.tolist(), r8=better.clip(0, 1).tolist()), asked)
    (found,) = concluded(scored_study(given, asked, "a").results()).recommendation.by_train_task
    gain, alpha = found.verdicts[0].gain, found.looks[-1].alpha
    difference = 100.0 * (better.clip(0, 1) - base)
    level = 1.0 - alpha / 2  # K + 1 statements, of one option
    low, _ = stats.ttest_1samp(difference, 0.0).confidence_interval(2 * level - 1)
    assert gain.estimate == pytest.approx(difference.mean())
    # a quantile of 4,096 draws is off by 0.046 standard errors (one), and is rounded to hundredths
    quantile_error = 0.046 * difference.std(ddof=1) / np.sqrt(len(difference))
    assert gain.lower == pytest.approx(low, abs=3.0 * quantile_error + 0.005)


def test_what_is_kept_is_a_study_like_any_other(tmp_path: Path, sentence: Sentences) -> None:
    results = of_points(planted_study(seeds=(0, 1)))
    table = write_csv(tmp_path / "scores.csv", long_table(results))
    roles = ("--retention", "capitals,elements", "--out-of-domain", "syllogism")
    out = tmp_path / "kept"
    first = rankwise("verdict", table, *roles, "--output", out, "--json")
    assert first.exit_code == 0, first.output
    again = rankwise("verdict", out, "--json")
    one, other = (json.loads(done.stdout)["by_train_task"] for done in (first, again))
    assert one == other
    assert (out / "report.html").stat().st_size > 100_000
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "by scores that were made elsewhere" in page
    assert "AdamW" not in page
    sentence(rankwise("verify", out).stdout.strip(), "verify")
    assert rankwise("report", out).exit_code == 0
    assert rankwise("export", out, "--format", "csv").exit_code == 0
    assert (out / "export" / "csv" / "ranks.csv").exists()
    for kind in ("peft", "trl", "model-card", "lm-eval"):
        refused = rankwise("export", out, "--format", kind)
        assert refused.exit_code == 2
        sentence(refused.stderr, str(kind))
    for verb in (("run", out), ("extend", out, "--seeds", 1)):
        refused = rankwise(*verb)
        assert refused.exit_code == 2
        sentence(" ".join(refused.stderr.split()), verb[0])
    # other scores of the same models are another look, and nothing of the old ones is left
    rows = [row | {"acc": 1 - row["acc"]} for row in long_table(results)]
    write_csv(table, rows)
    done = json.loads(rankwise("verdict", table, *roles, "--output", out, "--json").stdout)
    assert [look["number"] for look in done["by_train_task"][0]["looks"]] == [1, 2]
    assert len(list((out / "runs").iterdir())) == len(results.runs)


def test_a_call_says_once_that_it_counts_as_one_look(tmp_path: Path, sentence: Sentences) -> None:
    path = write_csv(tmp_path / "s.csv", scores(base=[0, 1] * 20, r8=[1, 1, 0, 1] * 10))
    said = words(rankwise("verdict", path).stdout)
    assert said.count(" look") == 2  # one, and that looks are counted
    sentence(said[said.index("This call") :])
    assert "look" not in words(rankwise("verdict", path, "--output", tmp_path / "kept").stdout)


def test_a_model_whose_record_is_gone_takes_no_part(tmp_path: Path) -> None:
    """Its table says no seed, so none of its seeds is missing."""
    rows = scores(base=[0, 1] * 20, r8=[1, 1, 0, 1] * 10, r16=[1, 1, 1, 0] * 10)
    out = tmp_path / "kept"
    assert rankwise("verdict", write_csv(tmp_path / "s.csv", rows), "--output", out).exit_code == 0
    (gone,) = (out / "runs").glob("r8-*")
    shutil.rmtree(gone)
    done = rankwise("verdict", out)
    assert done.exit_code == 0, done.output
    assert "Rank 8 has no run, so it is not judged." in words(done.stdout)


@pytest.mark.parametrize(
    ("row", "options", "what"),
    [
        ({"model": "r4\x1b[2J"}, (), "model"),
        ({"task": "t\u200b"}, (), "task"),
        ({"kind\u202e": 1}, ("--slice", "kind\u202e"), "--slice"),
        ({"kind\n": 1}, ("--cluster", "kind\n"), "--cluster"),
        ({"acc\x07": 1, "acc": None}, ("--score", "acc\x07"), "metric"),
    ],
)
def test_a_name_that_would_act_is_refused(
    tmp_path: Path, row: dict[str, Any], options: Sequence[str], what: str, sentence: Sentences
) -> None:
    rows = scores(base=[0, 1] * 20, r8=[1, 1, 0, 1] * 10)
    path = tmp_path / "rows.json"
    of_r8 = {key: value for key, value in row.items() if key == "model"}
    path.write_text(
        json.dumps([each | (row if each["model"] == "r8" or not of_r8 else {}) for each in rows])
    )
    done = rankwise("verdict", path, *options)
    assert done.exit_code == 2
    assert what in done.stderr
    sentence(words(done.stderr))


@pytest.mark.parametrize(
    ("file", "changed", "problem"),
    [
        ("study.json", {"trained_formats": {}}, "trained_formats lacks the trained task"),
        ("study.json",
         {"tasks": {"t": {}}, "trained_formats": {"t": {}}, "trained_items": {"t": {}}},
         "is trained on 'scores', not in tasks"),
        ("base/eval/scores.json", {"decision_metric": "f1"}, "metrics lack what decides: f1, none"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["status", "verdict", "report"])
def test_a_record_that_contradicts_itself_is_refused(
    tmp_path: Path, verb: str, file: str, changed: dict[str, Any], problem: str
) -> None:
    rows = scores(base=[0, 1] * 20, r8=[1, 1, 0, 1] * 10, r16=[1, 1, 1, 0] * 10)
    out = tmp_path / "kept"
    table = write_csv(tmp_path / "scores.csv", rows)
    assert rankwise("verdict", table, "--output", out).exit_code == 0
    change(out / file, **changed)
    done = rankwise(verb, out)
    assert problem in words(done.output) or (verb, file) == ("status", "base/eval/scores.json")


def test_a_study_that_was_trained_is_not_written_over(tmp_path: Path, sentence: Sentences) -> None:
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study())
    table = write_csv(tmp_path / "scores.csv", scores(base=[0, 1, 0], r4=[1, 1, 0]))
    done = rankwise("verdict", table, "--output", folder.root)
    assert done.exit_code == 2
    sentence(" ".join(done.stderr.split()))
