"""Sheets as people keep them, and lm-eval's own folders: each gives a verdict, or one sentence."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwise.errors import DataError
from rankwise.scores.asked import Asked
from rankwise.scores.reading import read_scores
from rankwise.scores.study import ScoredStudy, scored_study
from tests.planted.samples import line, write
from tests.support.command_line import rankwise
from tests.support.sentences import Sentences

NUMBER = 40
_RNG = np.random.default_rng(0)
_EASE = _RNG.normal(size=NUMBER)
RIGHT: dict[str, list[int]] = {
    model: (_EASE + _RNG.normal(0.0, 0.5, NUMBER) + more > 0).astype(int).tolist()
    for model, more in {"base": -0.5, "r4": 0.3, "r16": 0.6}.items()
}


def sheet(
    path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]], delimiter: str = ","
) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        written = csv.writer(file, delimiter=delimiter)
        written.writerow(head)
        written.writerows(rows)
    return path


def wide(path: Path, *head: str, cell: Callable[[int], Any] = int, **more: Any) -> Path:
    """An item, and a column for each of the three models."""
    rows = [(f"q{i}", *(cell(RIGHT[model][i]) for model in RIGHT)) for i in range(NUMBER)]
    return sheet(path, head, rows, **more)


def read(*paths: Path, **settings: Any) -> ScoredStudy:
    asked = Asked(**settings)
    return scored_study(read_scores(paths, asked), asked, "scores")


def values_of(scored: ScoredStudy) -> dict[str, tuple[float, ...]]:
    """By the name of a model what it scored on the only task."""
    found = scored.results()
    named = {"base": found.base} | {
        (model.run.planned.called or ""): model for model in found.models if model.run
    }
    return {name: next(iter(model.items.values())).values for name, model in named.items()}


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (("id", "base", "r4", "r16"), ("base", "r4", "r16")),
        (("question", "base", "rank_4", "rank_16"), ("base", "rank_4", "rank_16")),
        (("id", "Base Acc", "Rank 4 Acc", "Rank 16 Acc"), ("base", "Rank 4", "Rank 16")),
        (("id", "acc_base", "acc_r4", "acc_full"), ("base", "r4", "full")),
        (("id", "base.correct", "r4.correct", "r16.correct"), ("base", "r4", "r16")),
        (("Item ID", "base", "lora_r4_s0", "lora_r4_s1"), ("base", "lora_r4_s0", "lora_r4_s1")),
    ],
)  # fmt: skip
def test_a_column_for_each_model(
    tmp_path: Path, head: Sequence[str], names: Sequence[str], sentence: Sentences
) -> None:
    scored = read(wide(tmp_path / "t.csv", *head))
    found = values_of(scored)
    assert {name: list(found[name]) for name in names} == dict(
        zip(names, RIGHT.values(), strict=True)
    )
    (note,) = scored.record.warnings
    sentence(note.replace(str(tmp_path), "FOLDER"), names=(head[2],))


@pytest.mark.parametrize("cell", [float, bool, lambda right: ("no", "yes")[right]])
def test_cells_of_a_wide_sheet(tmp_path: Path, cell: Callable[[int], Any]) -> None:
    found = values_of(read(wide(tmp_path / "t.csv", "id", "base", "r4", "r16", cell=cell)))
    assert list(found["r16"]) == RIGHT["r16"]


def test_an_empty_cell_is_a_missing_score(tmp_path: Path) -> None:
    rows: list[Sequence[Any]] = [(i, *(RIGHT[model][i] for model in RIGHT)) for i in range(NUMBER)]
    rows[3] = (3, RIGHT["base"][3], "", RIGHT["r16"][3])
    scored = read(sheet(tmp_path / "t.csv", ("id", "base", "r4", "r16"), rows))
    assert len(values_of(scored)["r16"]) == NUMBER - 1
    assert any("r4 lacks 1" in note for note in scored.record.warnings)


def test_models_of_other_names_are_named(tmp_path: Path, sentence: Sentences) -> None:
    path = wide(tmp_path / "t.csv", "id", "mine", "yours", "theirs")
    with pytest.raises(DataError) as caught:
        read(path)
    sentence(caught.value, names=("--score mine,yours,theirs",))
    found = values_of(read(path, score="mine, yours,theirs", base="mine"))
    assert list(found["theirs"]) == RIGHT["r16"]
    with pytest.raises(DataError) as caught:
        read(path, score="mine,your")
    sentence(caught.value, "misspelt", names=("your", "yours"))


def test_columns_of_other_things_are_no_models(tmp_path: Path) -> None:
    rows = [(i, f"q{i}", RIGHT["base"][i], RIGHT["r4"][i]) for i in range(NUMBER)]
    found = values_of(read(sheet(tmp_path / "t.csv", ("", "id", "base", "r4"), rows)))
    assert set(found) == {"base", "r4"}  # beside the numbers of a data frame's rows
    # a long table with numbers in columns named like settings stays one
    long = [
        (i, model, RIGHT[model][i], 1) for model in RIGHT for i in range(NUMBER)
    ]  # fmt: skip
    found = values_of(read(sheet(tmp_path / "l.csv", ("id", "model", "acc", "r1"), long)))
    assert list(found["r16"]) == RIGHT["r16"]


@pytest.mark.parametrize("label", ["Total", "mean", "AVERAGE:"])
def test_last_rows_that_sum_up_are_left_out(
    tmp_path: Path, label: str, sentence: Sentences
) -> None:
    rows: list[Sequence[Any]] = [
        (f"q{i}", *(RIGHT[model][i] for model in RIGHT)) for i in range(NUMBER)
    ]
    rows.append((label, *(np.mean(RIGHT[model]) for model in RIGHT)))
    scored = read(sheet(tmp_path / "t.csv", ("id", "base", "r4", "r16"), rows))
    assert list(values_of(scored)["r4"]) == RIGHT["r4"]
    sentence(scored.record.warnings[0].replace(str(tmp_path), "FOLDER"), "t.csv")
    # an item of such a name in the middle is one
    rows[5], rows[-1] = rows[-1], rows[5]
    scored = read(sheet(tmp_path / "u.csv", ("id", "base", "r4", "r16"), rows))
    assert len(values_of(scored)["r4"]) == NUMBER + 1


def test_decimal_commas_where_nothing_else_is_meant(tmp_path: Path) -> None:
    head = ("Frage", "base", "r4", "r16")
    path = wide(
        tmp_path / "t.csv", *head, cell=lambda x: str(0.25 + x / 2).replace(".", ","), delimiter=";"
    )
    scored = read(path)
    assert list(values_of(scored)["r4"]) == [0.25 + right / 2 for right in RIGHT["r4"]]
    assert any("decimal points" in note for note in scored.record.warnings)
    rows = [(i, model, "1,234") for model in RIGHT for i in range(NUMBER)]
    with pytest.raises(DataError):  # thousands, or a decimal
        read(sheet(tmp_path / "u.csv", ("id", "model", "score"), rows, ";"))


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        (("model", "arc", "mmlu"), [("base", 0.5, 0.4), ("r4", 0.6, 0.4)]),
        (("model", "task", "acc"), [("base", "a", 0.5), ("r4", "a", 0.6), ("r4", "b", 0.6)]),
        (("rank", "seed", "acc"), [(0, 0, 0.5), (4, 0, 0.6), (4, 1, 0.6)]),
    ],
)
def test_means_are_refused_in_one_sentence(
    tmp_path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]], sentence: Sentences
) -> None:
    with pytest.raises(DataError) as caught:
        read(sheet(tmp_path / "t.csv", head, rows))
    sentence(caught.value, names=("--log_samples",))


def test_files_that_share_no_item(tmp_path: Path, sentence: Sentences) -> None:
    paths = [
        sheet(
            tmp_path / f"{model}.csv", ("id", "acc"),
            [(f"{model}-{i}", RIGHT[model][i]) for i in range(NUMBER)],
        )
        for model in ("base", "r4")
    ]  # fmt: skip
    with pytest.raises(DataError) as caught:
        read(*paths)
    sentence(caught.value, names=("base-0", "r4-0"))


# lm-eval's own folders


def output(folder: Path, model: str, *tasks: str, date: str = "2026-01-01") -> Path:
    """What ``lm_eval --log_samples --output_path FOLDER/MODEL`` writes."""
    place = folder / model / "Org__name"
    for task in tasks:
        lines = [line(i, acc=float(right)) for i, right in enumerate(RIGHT[model])]
        write(place / f"samples_{task}_{date}.jsonl", lines)
    results = {"results": {"arc": {"acc,none": 0.5}}, "higher_is_better": {"arc": {"acc": True}}}
    (place / f"results_{date}.json").write_text(json.dumps(results))
    return folder / model


def test_output_folders_of_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [output(tmp_path, model, "arc", "other") for model in ("r16", "base", "r4")]
    scored = read(*folders, retention=("other",))
    # the base is the first that is given
    assert scored.record.scores is not None
    assert scored.record.scores.base == "r16"
    scored = read(tmp_path, in_domain=("arc",), retention=("other",))
    assert scored.record.scores is not None
    assert scored.record.scores.base == "base"
    assert list(values_of(scored)["r16"]) == RIGHT["r16"]
    monkeypatch.chdir(tmp_path)
    done = rankwise("verdict", "base", "r4", "--in-domain", "arc", "--retention", "other")
    assert done.exit_code == 0, done.output
    assert "rank 4" in done.stdout


def test_the_newest_of_several_sample_files_is_read(tmp_path: Path) -> None:
    folder = output(tmp_path, "base", "arc")
    output(tmp_path, "r4", "arc")
    old = folder / "Org__name" / "samples_arc_2020-01-01.jsonl"
    write(old, [line(i, acc=0.0) for i in range(NUMBER)])
    scored = read(tmp_path)
    assert list(values_of(scored)["base"]) == RIGHT["base"]
    assert any("2 sample files of arc" in note for note in scored.record.warnings)


def test_a_results_file_has_means_only(tmp_path: Path, sentence: Sentences) -> None:
    output(tmp_path, "base", "arc")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "base" / "Org__name" / "results_2026-01-01.json")
    sentence(caught.value, names=("--log_samples",))


def test_folders_without_samples(tmp_path: Path, sentence: Sentences) -> None:
    output(tmp_path, "base", "arc")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError) as caught:
        read(tmp_path / "base", empty)
    sentence(caught.value, names=("empty",))


def test_links_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "in"
    output(outside, "r4", "arc")
    output(folder, "base", "arc")
    os.symlink(outside / "r4", folder / "r4")
    with pytest.raises(DataError, match="only model"):
        read(folder)


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (("id", "base", "r4", "dora"), "dora"),
        (("id", "base", "r4", "lora16"), "lora16"),
        (("id", "gpt4", "R1", "R2"), "gpt4"),
        (("id", "R1", "R2", "RL"), "RL"),
        (("id", "base", "base (old)", "r4"), "base (old)"),
    ],
)
def test_no_model_is_left_out_in_silence(
    tmp_path: Path, head: Sequence[str], named: str, sentence: Sentences
) -> None:
    path = wide(tmp_path / "t.csv", *head)
    with pytest.raises(DataError) as caught:
        read(path)
    sentence(caught.value, names=(named, "--score"))
    columns = ",".join(head[1:])
    assert len(read(path, score=columns, base=head[1]).runs) == 2


@pytest.mark.parametrize("empty", ["NA", "n/a", "-", "nan"])
def test_what_says_that_there_is_nothing_is_a_missing_score(tmp_path: Path, empty: str) -> None:
    rows = [[i, *(RIGHT[model][i] for model in RIGHT)] for i in range(NUMBER)]
    rows[3][3] = empty
    scored = read(sheet(tmp_path / "t.csv", ("id", "base", "r4", "r16"), rows))
    assert len(values_of(scored)["r16"]) == NUMBER - 1


def test_a_cell_that_is_no_score_is_named(tmp_path: Path, sentence: Sentences) -> None:
    rows = [[i, *(RIGHT[model][i] for model in RIGHT)] for i in range(NUMBER)]
    rows[3][3] = "right"
    with pytest.raises(DataError) as caught:
        read(sheet(tmp_path / "t.csv", ("id", "base", "r4", "r16"), rows))
    sentence(caught.value, names=("r16", "right"))


@pytest.mark.parametrize("metric", ["wer", "ppl", "perplexity", "eval_loss"])
def test_less_of_an_error_is_better_in_a_wide_sheet_too(tmp_path: Path, metric: str) -> None:
    head = ("id", f"base_{metric}", f"r4_{metric}", f"r16_{metric}")
    found = read(wide(tmp_path / "t.csv", *head)).results()
    (items,) = found.base.items.values()
    assert not items.higher_is_better


def test_rates_and_alphas_in_names_stay_whole(tmp_path: Path) -> None:
    head = ("id", "base acc", "r4 lr2e-4 acc", "r4_lr0.0001 acc")
    scored = read(wide(tmp_path / "t.csv", *head))
    assert [run.planned.learning_rate for run in scored.runs] == [1e-4, 2e-4]
    assert [run.planned.rank for run in scored.runs] == [4, 4]


def test_a_long_table_with_marks_in_other_columns_stays_one(tmp_path: Path) -> None:
    rows = [
        (i, rank, RIGHT[model][i], i % 2, 1 - i % 2)
        for rank, model in ((0, "base"), (4, "r4"), (16, "r16"))
        for i in range(NUMBER)
    ]
    path = sheet(tmp_path / "t.csv", ("id", "rank", "score", "full", "base"), rows)
    assert list(values_of(read(path))["r16"]) == RIGHT["r16"]


def test_rows_of_a_task_or_a_model_of_a_total_s_name_stay(tmp_path: Path) -> None:
    long = [
        (f"{task}{i}", task, model, RIGHT[model][i])
        for task in ("add", "sum")
        for model in ("base", "r4")
        for i in range(10)
    ]
    scored = read(sheet(tmp_path / "t.csv", ("id", "task", "model", "acc"), long))
    assert {*scored.results().base.items} == {"add", "sum"}
    models = [
        (i, name, RIGHT[model][i])
        for name, model in (("base", "base"), ("merge", "r4"), ("average", "r16"))
        for i in range(NUMBER)
    ]
    scored = read(sheet(tmp_path / "u.csv", ("id", "model", "acc"), models))
    assert {run.planned.called for run in scored.runs} == {"merge", "average"}
    marked = [(f"q{i}", "all", *(RIGHT[model][i] for model in RIGHT)) for i in range(NUMBER)]
    scored = read(sheet(tmp_path / "v.csv", ("id", "subset", "base", "r4", "r16"), marked))
    assert len(values_of(scored)["r4"]) == NUMBER
