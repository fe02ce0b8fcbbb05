"""Tables of scores: which column is what, what a model is, and everything that is refused."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import rankwise as rw
from rankwise.errors import ConfigError, DataError, RankwiseError
from rankwise.records.results import ModelResults, StudyResults
from rankwise.scores.asked import Asked
from rankwise.scores.models import TableModel, with_names_read
from rankwise.scores.reading import read_scores, rows_given
from rankwise.scores.study import ScoredStudy, scored_study
from rankwise.study.conclusion import concluded
from tests.planted.results import planted_study
from tests.planted.score_tables import Row, scores, write_csv
from tests.support.command_line import rankwise
from tests.support.sentences import Sentences


def made(rows: Sequence[Row], **settings: Any) -> ScoredStudy:
    asked = Asked(**settings)
    return scored_study(rows_given(rows, asked), asked, "scores")


def results(rows: Sequence[Row], **settings: Any) -> StudyResults:
    return made(rows, **settings).results()


BASE, R4, R16 = [0, 1, 0, 1, 0, 0], [1, 1, 0, 1, 0, 1], [1, 1, 1, 1, 0, 1]
THREE = scores(base=BASE, r4=R4, r16=R16)


def renamed(rows: Sequence[Row], **names: str) -> list[Row]:
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({}, {}),
        ({"id": "doc_id", "acc": "exact_match", "model": "run"}, {}),
        ({"id": "Question_ID", "acc": "Correct", "model": "Adapter"}, {}),
        ({"id": "key", "acc": "points", "model": "who"},
         {"item": "key", "score": "points", "model": "who"}),
    ],
)  # fmt: skip
def test_columns_are_recognised_or_said(names: Mapping[str, str], said: Mapping[str, str]) -> None:
    found = results(renamed(THREE, **names), **said)
    assert [run.run and run.run.planned.rank for run in found.runs] == [4, 16]
    (items,) = found.base.items.values()
    assert items.values == tuple(map(float, BASE))


def test_nested_scores_have_names_with_dots(tmp_path: Path) -> None:
    rows = [
        {"meta": {"id": row["id"]}, "model": row["model"], "score": {"all": row["acc"], "f1": 0.5}}
        for row in THREE
    ]
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = Asked(score="score.all")
    found = scored_study(read_scores([path], asked), asked, "a").results()
    (items,) = found.base.items.values()
    assert (items.metric, items.values) == ("all", tuple(map(float, BASE)))
    assert found.study.scores is not None
    assert found.study.scores.columns == {
        "item": "meta.id", "score": "score.all", "model": "model",
    }  # fmt: skip


def test_a_table_may_be_of_any_kind_and_several_files(tmp_path: Path) -> None:
    pandas.DataFrame(THREE).to_parquet(tmp_path / "scores.parquet")
    write_csv(tmp_path / "scores.csv", THREE)
    (tmp_path / "scores.json").write_text(json.dumps(THREE))
    (tmp_path / "alone").mkdir()
    parts: list[Path] = []
    alone: list[Path] = []
    for name in ("base", "r4", "r16"):
        rows = [row for row in THREE if row["model"] == name]
        parts.append(write_csv(tmp_path / f"part-{name}.csv", rows))
        rows = [{"id": row["id"], "acc": row["acc"]} for row in rows]
        alone.append(write_csv(tmp_path / "alone" / f"{name}.csv", rows))
    wanted = [tuple(map(float, values)) for values in (R4, R16)]
    for paths in (
        [tmp_path / "scores.csv"],
        [tmp_path / "scores.parquet"],
        [tmp_path / "scores.json"],
        parts,
        [tmp_path / "part-*.csv"],
        alone,
    ):
        found = results_of(paths)
        assert [next(iter(run.items.values())).values for run in found] == wanted, paths
        assert [run.run.planned.rank for run in found if run.run] == [4, 16]


def results_of(paths: Sequence[Path]) -> Sequence[ModelResults]:
    asked = Asked()
    return scored_study(read_scores(paths, asked), asked, "scores").results().runs


def test_seeds_and_settings_come_from_columns() -> None:
    rows = [
        {"id": row["id"], "acc": row["acc"], "model": "mine" if rank else "base", "rank": rank,
         "seed": seed, "lr": 2e-4, "alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"]}
        for rank, values in ((0, BASE), (4, R4), (16, R16))
        for seed in ((0, 1) if rank else (None,))
        for row in scores(x=values)
    ]  # fmt: skip
    for row in rows:
        if not row["rank"]:
            row |= {"rank": None, "alpha": None}
    found = results(rows)
    plans = [run.run.planned for run in found.runs if run.run]
    assert [(p.rank, p.seed, p.alpha, p.scaling) for p in plans] == [
        (4, 0, 8.0, 2.0), (4, 1, 8.0, 2.0), (16, 0, 32.0, 2.0), (16, 1, 32.0, 2.0),
    ]  # fmt: skip
    assert plans[0].target_modules == ("q_proj", "v_proj")
    assert {plan.alpha_labels for plan in plans} == {("2r",)}
    (part,) = concluded(found).recommendation.by_train_task
    assert [verdict.label for verdict in part.verdicts] == ["rank 4", "rank 16"]
    assert part.num_seeds == 2


@pytest.mark.parametrize(
    ("names", "pattern", "read"),
    [
        (["r8", "r16"], None, [(8, None), (16, None)]),
        (["r8_s0", "rank-16-seed1"], None, [(8, 0), (16, 1)]),
        (["kinship-lora-r004-a008-s0-7e72adbc", "kinship-lora-r016-a032-s0-1e72adbc"], None,
         [(4, 0), (16, 0)]),
        (["DeepSeek-R1", "qwen"], None, [(None, None), (None, None)]),
        (["Llama-R1-lora-r4-s0", "Llama-R1-lora-r16-s1"], None, [(4, 0), (16, 1)]),
        (["a8x0", "a16x1"], "a{rank}x{seed}", [(8, 0), (16, 1)]),
        (["out/8/0", "out/16/1"], "{rank}/{seed}", [(8, 0), (16, 1)]),
        (["r8", "full_ft"], "r{rank}", [(8, None), (None, None)]),
    ],
)  # fmt: skip
def test_a_name_says_rank_and_seed(
    names: Sequence[str], pattern: str | None, read: Sequence[tuple[int | None, int | None]]
) -> None:
    models = [TableModel(name) for name in names]
    found, notes = with_names_read(models, pattern)
    assert [(model.rank, model.seed) for model in found.values()] == read
    assert bool(notes) == (names[0] == "DeepSeek-R1")


def test_a_base_that_is_called_like_a_rank_gives_its_models_none() -> None:
    names = ["DeepSeek-R1-lora-r4", "DeepSeek-R1-lora-r16"]
    for base in ("DeepSeek-R1", "deepseek-ai/DeepSeek-R1"):
        found, _ = with_names_read([TableModel(name) for name in names], None, base)
        assert [model.rank for model in found.values()] == [4, 16]
    # one adapter: nothing is common to all names but the base's
    (only,) = with_names_read([TableModel(names[0])], None, "DeepSeek-R1")[0].values()
    assert only.rank == 4
    with pytest.raises(ConfigError, match=r"several ranks in its name.*--name"):
        with_names_read([TableModel("r4-r8"), TableModel("r4-r16-r2")], None)


def test_what_a_name_means_is_refused_where_it_does_not_fit(sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        results(scores(base=BASE, r4=R4, b=R16), name="r{rank}")
    sentence(caught.value, "b", names=("b",))
    with pytest.raises(ConfigError) as caught:
        results(THREE, name="r{rnk}")
    sentence(caught.value, "rnk", names=("{rnk}", "{rank}"))
    with pytest.raises(ConfigError) as caught:
        results(THREE, name="r")
    sentence(caught.value, "no field", names=("'r'",))


def test_full_fine_tuning_is_compared_and_not_recommended() -> None:
    rows = scores(base=[0] * 60, r4=[1, 0, 0] * 20, full=[1] * 60)
    (part,) = concluded(results(rows)).recommendation.by_train_task
    assert [verdict.label for verdict in part.verdicts] == ["rank 4"]
    assert any(
        reason.startswith("Full fine-tuning, for comparison only") for reason in part.reasons
    )


def test_models_without_ranks_are_all_options_the_best_first(sentence: Sentences) -> None:
    rows = scores(base=[0] * 200, a=[1, 0, 0, 0] * 50, b=[1, 1, 0, 0] * 50, c=[1, 1, 0, 0] * 50)
    (part,) = concluded(results(rows)).recommendation.by_train_task
    assert (part.outcome, part.rank) == ("recommended", None)
    assert [verdict.label for verdict in part.verdicts] == ["b", "c", "a"]
    sentence(part.statement, names=("50.0",))
    assert part.verdicts[2].worse_than == ("b", "c")


def test_without_a_base_models_are_compared_with_each_other(sentence: Sentences) -> None:
    values = {"a": [1, 0, 0, 0] * 50, "b": [1, 1, 0, 0] * 50, "c": [1, 1, 0, 0] * 50}
    alone = concluded(results(scores(**values)))
    (part,) = alone.recommendation.by_train_task
    assert (part.has_base, part.outcome) == (False, "recommended")
    assert part.verdicts[0].qualifies
    sentence(part.statement)
    assert {verdict.better_than_base for verdict in part.verdicts} == {None}
    sentence(part.reasons, "reasons")
    assert alone.findings.signatures == ()
    # how far one model is ahead of another does not depend on what both are compared with
    (beside,) = concluded(results(scores(base=[0] * 200, **values))).recommendation.by_train_task
    for one, other in zip(part.verdicts, beside.verdicts, strict=True):
        assert one.worse_than == other.worse_than
        assert one.shortfall.estimate == pytest.approx(other.shortfall.estimate, abs=0.2)
        assert one.shortfall.upper == pytest.approx(other.shortfall.upper, rel=0.05, abs=0.3)
    worst = [0, 0, 0, 0] * 50  # every model may be worse than the mean of the others
    (part,) = concluded(results(scores(r4=worst, r8=worst, r16=worst))).recommendation.by_train_task
    assert part.outcome in ("recommended", "cannot_tell")


def test_the_direction_and_the_unit_follow_from_the_scores() -> None:
    def of(metric: str, values: Sequence[float], **settings: Any) -> tuple[str, bool]:
        rows = renamed(scores(base=values, r4=values[::-1]), acc=metric)
        (items,) = results(rows, score=metric, **settings).base.items.values()
        return items.unit, items.higher_is_better

    assert of("acc", [0, 0.5, 1]) == ("points", True)
    assert of("loss", [0.1, 0.5, 2.0]) == ("nats", False)
    assert of("reward", [-1.5, 0.5, 7.0], delta=0.5) == ("units", True)
    assert of("value", [-1.5, 0.5, 7.0], lower_is_better=True) == ("units", False)
    assert of("value", [0.0, 0.5, 1.0], lower_is_better=True) == ("points", False)
    for loss in ("val_loss", "test_loss", "nll_per_token", "Loss"):
        assert of(loss, [0.1, 0.5, 2.0]) == ("nats", False)
    for less in ("ppl", "perplexity", "rmse", "word_error"):
        assert of(less, [1.1, 3.5, 2.0], delta=0.5) == ("units", False)
    assert of("terror", [1.1, 3.5, 2.0], delta=0.5) == ("units", True)


def test_a_score_whose_name_says_no_direction_is_told() -> None:
    rows = renamed(scores(base=[1.5, 3.0, 2.0], r4=[2.5, 3.0, 2.5]), acc="latency")
    assert made(rows, delta=0.5, score="latency").record.warnings == (
        "scores: more latency is taken for better; --lower-is-better says the reverse",
    )
    assert made(rows, delta=0.5, score="latency", lower_is_better=True).record.warnings == ()


def test_wrong_and_right_in_percent_are_shares() -> None:
    """In one task in percent, and in the other as shares: retention is judged as if both were."""
    kept, lost = [1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 1, 0]
    rows = [row | {"task": "own"} for row in THREE]
    rows += [row | {"task": "kept"} for row in scores(base=kept, r4=kept, r16=lost)]
    hundred = [
        row | {"acc": 100 * row["acc"] if row["task"] == "kept" else row["acc"]} for row in rows
    ]
    shares, percent = (concluded(results(of, retention=("kept",))) for of in (rows, hundred))
    (one,), (other,) = (of.recommendation.by_train_task for of in (shares, percent))
    assert one.verdicts == other.verdicts
    assert one.verdicts[1].retention_loss is not None
    assert one.verdicts[1].retention_loss.estimate == pytest.approx(50.0)


def test_pairs_on_which_ranks_agree_are_not_known_to_be_equal() -> None:
    """The base takes the two answers of a pair for equal, so no gain is a whole item; a lead is."""
    own = [1.0, 1.0, 0.0, 1.0, 1.0] * 6
    rows = renamed(scores(base=[0.5] * 30, r4=own, r64=own), acc="preference")
    (part,) = concluded(results(rows, score="preference")).recommendation.by_train_task
    assert part.outcome != "recommended"
    assert part.best_bet is not None
    assert part.best_bet.choice == "rank 4"
    many = renamed(scores(base=[0.5] * 900, r4=own * 30, r64=own * 30), acc="preference")
    (part,) = concluded(results(many, score="preference")).recommendation.by_train_task
    assert part.outcome == "recommended"
    assert [verdict.qualifies for verdict in part.verdicts] == [True, True]


def test_the_margin_of_rewards_is_a_tenth_of_their_deviation(
    tmp_path: Path, sentence: Sentences
) -> None:
    base = [3.0, 1.5, 2.0, 2.5]
    rows = renamed(scores(base=base, r8=[2.0, 1.0, 2.5, 2.0]), acc="reward")
    path = write_csv(tmp_path / "scores.csv", rows)
    found = rankwise("verdict", path)
    assert found.exit_code == 0, found.output
    sentence(" ".join(found.stderr.split()), names=("--delta", f"{0.1 * np.std(base):.2g}"))
    found = rankwise("verdict", path, "--delta", "0.5", "--json")
    assert json.loads(found.stdout)["by_train_task"][0]["delta"] == 0.5
    assert found.stderr == ""
    alike = renamed(scores(base=[3.0] * 4, r8=[2.0, 1.0, 2.5, 2.0]), acc="reward")
    found = rankwise("verdict", write_csv(tmp_path / "alike.csv", alike))
    assert found.exit_code == 2
    sentence(" ".join(found.stderr.split()), "alike", names=("--delta",))


@pytest.mark.filterwarnings("error")
def test_a_margin_far_below_the_gains_has_no_sliders() -> None:
    rows = renamed(scores(base=[1e9, 3e9, 2e9, 5e9], r8=[4e9, 9e9, 7e9, 6e9]), acc="reward")
    for delta, has_sliders in ((1e-3, False), (1e8, True)):
        (card,) = concluded(results(rows, delta=delta)).findings.cards
        assert (card.draws is not None) == has_sliders


def changed(place: int, **cells: Any) -> list[Row]:
    return [row | cells if at == place else row for at, row in enumerate(THREE)]


REFUSED: Mapping[str, tuple[Sequence[Row], Mapping[str, Any], str]] = {
    "no number": (changed(7, acc="n/a"), {}, "the table row 8, column acc: 'n/a' is not a number."),
    "nothing": (changed(7, acc=None), {}, "the table row 8, column acc: there is no score."),
    "nan": (changed(7, acc=float("nan")), {}, "row 8, column acc: nan is not a finite number."),
    "infinite": (changed(7, acc="inf"), {}, "row 8, column acc: 'inf' is not a finite number."),
    "no item": (changed(7, id=" "), {}, "the table row 8, column id: it is empty;"),
    "no model": (changed(7, model=None), {}, "the table row 8, column model: it is empty;"),
    "twice": (
        changed(7, id="q0"), {},
        "the table row 8: item 'q0' of model 'r4' on scores stands in the table row 7 too.",
    ),
    "no rows": ([], {}, "the table has no rows"),
    "a list": ([[1, 2]], {}, "the table row 1: [1, 2] is not a row of columns."),  # type: ignore[list-item]
    "misspelt": (
        THREE, {"score": "ac"},
        "the table has no column 'ac'; did you mean 'acc'? it has id, model and acc.",
    ),
    "no score": (
        renamed(THREE, acc="x"), {},
        "no column is recognised as the score; say which: --score COLUMN; it has id, model and x.",
    ),
    "two scores": (
        [row | {"f1": 0.5} for row in THREE], {},
        "acc and f1 may be the score; say which: --score acc.",
    ),
    "a wide table": (
        [{"id": 1, "acc": 1, "other": 0}], {},
        "no column is recognised as the model; say which: --model COLUMN. It has id, acc and",
    ),
    "no base": (THREE, {"base": "bse"}, "--base: no model 'bse'; did you mean 'base'?"),
    "no task": (THREE, {"retention": ("arc",)}, "--retention: no task 'arc' is scored; there are"),
    "no field": (THREE, {"slice": "kind"}, "--slice: no 'kind' describes an item alike in all"),
    "no cluster": (THREE, {"cluster": "text"}, "--cluster: no 'text' describes an item alike"),
    "one model": (scores(base=BASE), {}, "base is the only model; nothing is there to compare"),
    "a model without a task": (
        [row | {"task": task} for task in ("own", "kept") for row in THREE
         if (row["model"], task) != ("r16", "kept")], {"retention": ("kept",)},
        "r16 (rank 16) has no scores on kept; score it there, or leave the task out.",
    ),
    "retention on a scale": (
        [row | {"task": task, "acc": row["acc"] * (1 if task == "own" else 8)}
         for task in ("own", "kept") for row in THREE], {"retention": ("kept",)},
        "kept: its scores go beyond 1, and retention is judged in points, which are shares of 1.",
    ),
    "two scales": (
        [row | {"task": task, "acc": row["acc"] * (1 if task == "own" else 8)}
         for task in ("own", "more") for row in THREE], {},
        "more: its scores go beyond 1, and those of own do not, so no mean is taken over both.",
    ),
    "two units": (
        scores(base=BASE, r4=[v * 90 for v in R4]), {},
        "the scores of base are at most 1, and those of r4 go up to 90: two units.",
    ),
    "too few items": (
        [row for row in THREE if row["model"] == "base" or row["id"] == "q0"], {},
        "scores: 1 item of 6 is scored by every model, and differences need 2.",
    ),
    "alike": (
        scores(base=BASE, mathr4=R4, codex_r4=R16, r4=R4), {"name": "r{rank}"},
        "are all rank 4, and nothing tells them apart; say what their names mean",
    ),
    "one name": (
        [row | {"model": "mine", "lr": 1e-4 * len(row["model"])} if row["model"] != "base" else row
         for row in scores(base=BASE, aa=R4, bbb=R16)], {},
        "2 models are called 'mine' and have one seed; give them names of their own",
    ),
    "a setting": (
        [row | {"seed": "x"} for row in THREE], {}, "the table row 1: seed is 'x'; write a whole",
    ),
    "forgetting nothing": (
        [row | {"task": t} for t in "ab" for row in THREE if row["model"] != "base"],
        {"retention": ("a",)}, "--retention: what is kept or transferred is a change from a base",
    ),
    "a margin": (THREE, {"delta": -1.0}, "--delta -1 is not a margin; give a number above 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named_with_its_row_and_column(name: str) -> None:
    rows, settings, says = REFUSED[name]
    with pytest.raises(RankwiseError) as raised:
        results(rows, **settings)
    assert says in str(raised.value)


def test_a_file_names_its_rows_as_users_count_them(tmp_path: Path, sentence: Sentences) -> None:
    path = write_csv(tmp_path / "scores.csv", changed(7, acc="?"))
    done = rankwise("verdict", path)
    assert done.exit_code == 2
    sentence(" ".join(done.stderr.split()), names=(path, "?"))
    (tmp_path / "empty.csv").write_text("")
    done = rankwise("verdict", tmp_path / "empty.csv")
    assert (done.exit_code, "has no rows" in done.stderr) == (2, True)
    done = rankwise("verdict", tmp_path / "no*.csv")
    assert (done.exit_code, "no file is called" in done.stderr) == (2, True)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"id": 1, "acc": 1, "model": "base"}\n{"id": 2, "acc"\n')
    done = rankwise("verdict", lines)
    assert done.exit_code == 2
    assert "lines.jsonl line 2: " in done.stderr


def test_items_that_a_model_lacks_are_left_out_and_said() -> None:
    rows = [row for row in THREE if (row["model"], row["id"]) != ("r4", "q3")]
    scored = made(rows)
    assert scored.record.warnings == (
        "scores: 5 of 6 items are scored by every model, and these are compared; r4 lacks 1",
    )
    (items,) = scored.results().base.items.values()
    assert len(items.values) == 5


def test_changes_by_kind_are_corrected_for_all_kinds(sentence: Sentences) -> None:
    kinds = ["easy", "hard"] * 100
    values = {
        "base": [1, 0] * 100,
        "r4": [1 if kind == "easy" else int(place % 4 == 1) for place, kind in enumerate(kinds)],
        "r16": [int(kind == "hard") for kind in kinds],
    }
    rows = [row | {"kind": kinds[int(row["id"][1:])], "said": row["model"]}
            for row in scores(**values)]  # fmt: skip
    outcome = concluded(results(rows, slice="kind"))
    (found,) = outcome.findings.slices
    assert [(row.option.label, row.kind, row.verdict) for row in found.rows] == [
        ("rank 4", "easy", "cannot_tell"), ("rank 4", "hard", "better"),
        ("rank 16", "easy", "worse"), ("rank 16", "hard", "better"),
    ]  # fmt: skip
    for row in found.rows:
        assert (row.holm_p_value <= 0.05) == (row.verdict != "cannot_tell")
    assert any("rank 16 is worse on scores where kind is easy" in s for s in found.statements)
    # what differs between models describes no item
    with pytest.raises(ConfigError) as caught:
        results(rows, slice="said")
    sentence(caught.value, names=("said",))


class Frame:
    """As polars has them; it is not installed here."""

    def to_dicts(self) -> list[Row]:
        return THREE


@pytest.mark.parametrize("scores_of", [THREE, pandas.DataFrame(THREE), Frame()])
def test_from_python(scores_of: Any, tmp_path: Path) -> None:
    study = rw.verdict(scores_of, item="id")
    assert "rank 16" in study.verdict
    assert study.runs_df()["rank"].tolist()[1:] == [4, 16]
    assert len(study.items_df()) == len(THREE)
    assert study.report(tmp_path / "page").stat().st_size > 10_000
    assert study.export("csv", tmp_path / "tables")
    kept = rw.verdict(scores_of, folder=tmp_path / "kept")
    assert rw.open(tmp_path / "kept").verdict == kept.verdict
    place = study.folder
    del study
    assert not place.exists()


def test_from_python_by_path_and_with_settings(tmp_path: Path, sentence: Sentences) -> None:
    path = write_csv(tmp_path / "scores.csv", THREE)
    assert rw.verdict(path).recommendation == rw.verdict([path]).recommendation
    with pytest.raises(ConfigError) as caught:
        rw.verdict(path, detla=3)
    sentence(caught.value, "detla", names=("detla", "delta"))
    with pytest.raises(DataError) as caught:
        rw.verdict(7)
    sentence(caught.value, "no table", names=("int",))
    with pytest.warns(UserWarning, match="r4 lacks 1"):
        rw.verdict([row for row in THREE if (row["model"], row["id"]) != ("r4", "q3")])


def test_the_page_of_models_without_base_and_rank(tmp_path: Path) -> None:
    rows = scores(a=[1, 0, 0, 0] * 20, b=[1, 1, 0, 0] * 20, c=[1, 1, 1, 0] * 20)
    study = rw.verdict(rows)
    page = study.report(tmp_path).read_text(encoding="utf-8")
    assert "Which model is best on scores" in page
    assert "The mean of the models and every run." in page
    assert "gain above 0" not in page
    assert "full fine-tuning" not in page
    assert study.runs_df()["run"].tolist()[0] == "base"
    assert study.tables_df()["ranks"]["label"].tolist() == ["c", "b", "a"]


def test_a_field_that_no_task_of_a_study_has_is_said(sentence: Sentences) -> None:
    planted = planted_study()
    evaluation = planted.study.config.evaluation.model_copy(update={"slice": "kind"})
    config = planted.study.config.model_copy(update={"evaluation": evaluation})
    study = planted.study.model_copy(update={"config": config})
    outcome = concluded(planted.model_copy(update={"study": study}))
    (found,) = outcome.findings.slices
    assert (found.rows, len(found.statements)) == ((), 1)
    sentence([*outcome.findings.lines("kinship")][-1], names=("kind",), part=True)


EXCEL = "id;model;acc{more}\n" + "".join(
    f"{number};{model};{value}{{more}}\n"
    for model, values in {"base": [0, 1, 0], "r4": [1, 1, 0], "r8": [1, 1, 1]}.items()
    for number, value in enumerate(values)
)


@pytest.mark.parametrize("begin", ["", "sep=;\n", '"sep=;"\r\n', "\ufeffsep=;\r\n"])
@pytest.mark.parametrize("more", ["", ";", ";;", "; ;"])
def test_a_table_as_excel_saves_it(tmp_path: Path, begin: str, more: str) -> None:
    """With the mark by which it knows its own files, and columns that were emptied."""
    path = tmp_path / "scores.csv"
    path.write_text(begin + EXCEL.format(more=more), encoding="utf-8", newline="")
    models = {"base": [0, 1, 0], "r4": [1, 1, 0], "r8": [1, 1, 1]}
    assert {
        scoring.model.name: [item.line["acc"] for item in scoring.items.values()]
        for scoring in read_scores([path], Asked()).scorings
    } == models


def test_a_cell_beyond_the_header_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(EXCEL.format(more=";;").replace("2;r4;0;;", "2;r4;0;x;"))
    with pytest.raises(DataError, match=r"row 6: has 4 cells and the header 3"):
        read_scores([path], Asked())


@pytest.mark.parametrize("ending", ["csv", "jsonl", "csv.gz", "xlsx"])
@pytest.mark.parametrize(
    ("begin", "says"),
    [
        (gzip.compress(b"id,model", mtime=0), r"packed by gzip; unpack it \(gunzip\)"),
        (b"PK\x03\x04", "a spreadsheet or a zip archive; save it as CSV, or unpack it"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "a spreadsheet of old Excel; save it as CSV"),
        (b"\xfd7zXZ\x00\x00", "packed by xz"),
        (b"PAR1", "a Parquet file; give it the ending"),
    ],
)
def test_a_file_of_another_kind_is_called_that(
    tmp_path: Path, ending: str, begin: bytes, says: str
) -> None:
    path = tmp_path / f"scores.{ending}"
    path.write_bytes(begin)
    with pytest.raises(DataError, match=says):
        read_scores([path], Asked())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,234", "for its commas; write thousands without one, and decimals with a point"),
        ("-12,345,678.5", "for its commas; write thousands without one"),
        ("1,5e3", "'1,5e3' is not a number. Score"),
        ("1,2,3", "'1,2,3' is not a number. Score"),
    ],
)
def test_a_comma_in_a_number_is_no_riddle(text: str, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        results(changed(7, acc=text))


@pytest.mark.parametrize("name", ["filter", "doc", "target", "doc_id", "resps", "metrics"])
def test_scores_are_not_called_as_another_field_of_an_item(name: str) -> None:
    rows = [{**row, name: row["acc"]} for row in THREE]
    rows = [{key: value for key, value in row.items() if key != "acc"} for row in rows]
    with pytest.raises(DataError, match=f"metric: '{name}' is a field of every item; rename"):
        results(rows, score=name)
