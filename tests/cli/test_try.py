"""``rankwise try``: from a file to a verdict, and a study file that says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rankwise.records.config.own_rows import ColumnsConfig
from rankwise.records.fingerprints import study_fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study import budgets
from rankwise.study import trial as trials
from rankwise.study.budgets import resolution, smaller_studies
from rankwise.study.planning.plan import plan_study
from rankwise.study.trial import SIZES, Size, recognised
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

COLOURS = ("red", "green", "blue")


def rows(number: int) -> list[dict[str, Any]]:
    """Alpaca's columns; the answer is one of three words."""
    return [
        {"instruction": f"Which colour has number {n}?", "input": "", "output": COLOURS[n % 3]}
        for n in range(number)
    ]


def written(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in content))
    return path


class Tried(NamedTuple):
    folder: StudyFolder
    output: str
    data: Path


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Tried:
    """The verb in an empty folder, with the smallest size alone."""
    root = tmp_path_factory.mktemp("tried")
    data = written(root / "my rows.jsonl", [*rows(40), rows(1)[0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(trials, "SIZES", SIZES[:2])
        result = rankwise("try", data.name, "--model", tiny_model_folder, "--budget", "10m")
    assert result.exit_code == 0, result.output
    return Tried(StudyFolder(root / "studies" / "my-rows"), result.output, data)


def test_the_mapping_the_rows_and_the_plan_are_shown_first(
    tried: Tried, sentence: Sentences
) -> None:
    said = words(tried.output)
    assert said.count("<|im_start|>user Which colour has number ") == 3
    # the end of line before an answer is learned with it
    assert "<|im_start|>assistant>> red<|im_end|><<" in said
    first, last = tried.output.partition("chat template: ")[::2]
    names = ("my rows.jsonl", "41 rows", "instruction", "output", "input")
    sentence(first, "rows", names=names)
    plan = ("rank 8 and 32", "28 rows", "12 held-out rows", "3 answers", "capitals (24)")
    shown = last.partition("trained: ")[2].partition("time: ")[0]
    sentence(words(shown), "plan", names=plan)


def test_it_ends_in_a_verdict_and_a_page(tried: Tried) -> None:
    assert tried.folder.report_file.exists()
    assert f"report: {tried.folder.report_file.relative_to(tried.data.parent)}" in tried.output
    part = json.loads(tried.folder.recommendation_file.read_text())["by_train_task"][0]
    assert part["statement"].split(" ")[0] in tried.output


def test_the_study_file_that_is_left_says_the_same(tried: Tried) -> None:
    record = tried.folder.read_study()
    config = load_config(tried.folder.settings_file)
    assert study_fingerprint(config) == record.fingerprint
    again = plan_study(config).record
    assert [run.fingerprint for run in again.runs] == [run.fingerprint for run in record.runs]
    assert again.task_fingerprints == record.task_fingerprints


def test_running_the_study_file_finds_everything_done(
    tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tried.data.parent)
    before = tried.folder.study_file.read_bytes()
    trained = {path: path.stat().st_mtime_ns for path in tried.folder.root.glob("runs/*/run.json")}
    result = rankwise("run", tried.folder.settings_file)
    assert result.exit_code == 0
    assert len(trained) == 2
    assert all(path.stat().st_mtime_ns == when for path, when in trained.items())
    assert json.loads(before)["fingerprint"] == tried.folder.read_study().fingerprint


def test_the_same_command_goes_on_and_another_is_refused(
    tried: Tried, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.chdir(tried.data.parent)
    same = ("try", tried.data.name, "--model", tiny_model_folder, "--budget", "10m")
    result = rankwise(*same)
    assert result.exit_code == 0
    sentence(words(result.output), "same", names=("studies/my-rows/study.yaml",), part=True)
    assert "measuring" not in result.output
    other = rankwise(*same[:-1], "20m")
    assert other.exit_code == 2
    sentence(words(other.output), "another", names=("studies/my-rows/study.yaml",))


@pytest.mark.parametrize("how", ["renamed", "moved", "moved with the rows"])
def test_a_study_that_was_moved_goes_on(
    tried: Tried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its rows lie where they were, or beside it as before."""
    shutil.copytree(tried.folder.root, tmp_path / "studies" / "old")
    data = shutil.copy(tried.data, tmp_path)
    study = tmp_path / "studies" / "old"
    config = load_config(study / "study.yaml", [])
    assert config.train.data == Path(data)
    record = StudyFolder(study).read_study()
    StudyFolder(study).write(study / "study.json", record.model_copy(update={"config": config}))
    new = {"renamed": "studies/new", "moved": "new", "moved with the rows": "new/studies/old"}[how]
    if how == "moved with the rows":
        (tmp_path / "new").mkdir()
        for name in ("studies", Path(data).name):
            (tmp_path / name).rename(tmp_path / "new" / name)
    else:
        study.rename(tmp_path / new)
    monkeypatch.chdir(tmp_path)
    assert rankwise("run", new).exit_code == 0
    extended = rankwise("extend", new, "--ranks", 4)
    assert extended.exit_code == 0, extended.output
    assert len(StudyFolder(Path(new)).read_study().runs) == 3


@pytest.mark.parametrize("data", ["https://user:password@host/rows.jsonl", "rows.jsonl"])
def test_no_password_is_told(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "rows.jsonl", rows(40))
    done = rankwise("try", data, "--model", "https://user:password@host/model")
    assert done.exit_code in (1, 2)
    assert "https://***@host" in words(done.stderr)
    assert "password" not in done.output
    assert not (tmp_path / "studies").exists()


def test_what_was_read_is_in_the_record(tried: Tried) -> None:
    own = tried.folder.read_study().own_data
    assert own is not None
    assert (own.source, own.format, own.revision) == ("my rows.jsonl", "JSON Lines", None)
    assert (own.num_rows, own.num_distinct, own.num_held_out) == (41, 40, 12)
    assert (own.judged_by, own.answers) == (("choice",), ("blue", "green", "red"))
    (columns,) = own.columns
    assert columns.columns == {"prompt": "instruction", "completion": "output", "input": "input"}
    assert own.sha256 is not None
    assert len(own.sha256) == 64


def test_rows_that_cannot_be_read_leave_nothing_behind(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("instruction,output\na,b\nc\n")
    result = rankwise("try", "rows.csv", "--model", tiny_model_folder)
    assert result.exit_code == 2
    sentence(words(result.output), "bad row", names=("rows.csv", "row 2"))
    written(tmp_path / "few.jsonl", rows(9))
    result = rankwise("try", "few.jsonl", "--model", tiny_model_folder)
    assert result.exit_code == 2
    sentence(words(result.output), "few", names=("few.jsonl", "9"))
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("rows.jsonl --budget soon", "'soon'"),
        ("rows.jsonl --column promt=q", "'prompt'"),
        ("rows.jsonl --column prompt=q", "'completion'"),
        ("nothing.jsonl", "nothing.jsonl"),
    ],
)
def test_a_bad_command(
    tmp_path: Path,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    named: str,
    sentence: Sentences,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = rankwise("try", *arguments.split(), "--model", tiny_model_folder)
    assert result.exit_code == 2
    sentence(words(result.output), names=(named,))
    assert list(tmp_path.iterdir()) == []


def quiet(_: str) -> None:
    """Nobody is told."""


@pytest.mark.parametrize(
    ("answers", "judged_by"),
    [
        ([COLOURS[n % 3] for n in range(60)], "choice"),
        (["yes", *["no"] * 59], "choice"),
        ([f"word {n}" for n in range(60)], "loss"),
        (["always the same"] * 60, "loss"),
        (["x" * 60, "y" * 60] * 30, "loss"),
        ([f"so it is\n#### {n}" for n in range(60)], "loss"),
        ([f"so it is\n#### {n},000" for n in range(1200)], "number"),
        ([*[f"#### {n}" for n in range(1199)], "no number"], "loss"),
    ],
)
def test_how_held_out_rows_are_scored(
    tmp_path: Path, tiny_model_folder: Path, answers: list[str], judged_by: str
) -> None:
    content = [{"question": f"q {n}", "answer": each} for n, each in enumerate(answers)]
    path = written(tmp_path / "rows.jsonl", content)
    trial = recognised(path, str(tiny_model_folder), None, quiet)
    assert trial.judged_by == judged_by


@pytest.mark.parametrize(
    ("number", "held_out"), [(10, 3), (50, 15), (200, 60), (1000, 300), (5000, 500)]
)
def test_how_many_rows_are_held_out(
    tmp_path: Path, tiny_model_folder: Path, number: int, held_out: int
) -> None:
    path = written(tmp_path / "rows.jsonl", rows(number))
    trial = recognised(path, str(tiny_model_folder), ColumnsConfig(
        prompt="instruction", completion="output"
    ), quiet)  # fmt: skip
    assert trial.num_held_out == held_out


def test_the_largest_size_that_fits_is_taken(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "rows.jsonl", rows(40))
    trial = recognised(path, str(tiny_model_folder), None, quiet)
    asked: list[tuple[int, ...]] = []

    def seconds(plan: Any, *_: Any) -> float:
        """100 for the first size, 200 for the second, and so on."""
        ranks = tuple(run.rank for run in plan.record.runs)
        asked.append(ranks)
        return 100.0 * len(ranks)

    sizes = [Size(tuple(range(1, count + 1)), 8, 1, 8, ("capitals",)) for count in range(1, 6)]
    monkeypatch.setattr(trials, "SIZES", sizes)
    monkeypatch.setattr(budgets, "planned_seconds", seconds)
    for budget, count, fits in ((100, 1, False), (134, 1, True), (410, 3, True), (9999, 5, True)):
        found = trials.fitted(trial, "x", budget, 1.0, plan_study)
        assert (len(found.choice.ranks), found.fits) == (count, fits)
        assert found.seconds == 100.0 * count
    assert (1,) in asked
    assert len(asked) <= 4 * 3  # of five sizes, and none is planned twice for a time


def test_a_budget_for_one_rank_says_which_one_compares_ranks(
    tmp_path: Path,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    sentence: Sentences,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "rows.jsonl", rows(400))
    seconds = {size.ranks: 60.0 * place for place, size in enumerate(SIZES, start=1)}

    def planned(plan: Any, *_: Any) -> float:
        return seconds[tuple(run.rank for run in plan.record.runs if run.rank)]

    for module in (budgets, trials):
        monkeypatch.setattr(module, "planned_seconds", planned)
    monkeypatch.setattr("rankwise.cli.try_verb.measured_rate", lambda _: 1.0)
    monkeypatch.setattr("rankwise.cli.try_verb.run_and_report", lambda find, **_: find(None) and 0)
    for budget, ranks in (("2m", "one"), ("1h", "")):
        place = tmp_path / budget
        options = ("--model", tiny_model_folder, "--budget", budget, "--study-dir", place)
        result = rankwise("try", "rows.jsonl", *options)
        assert result.exit_code == 0, result.output
        said = [line for line in result.stdout.splitlines() if line.startswith("This budget")]
        assert bool(said) == bool(ranks)
        if said:
            sentence(said[0], names=("--budget", "100 held-out rows"))


def test_the_study_file_says_the_margins_that_it_is_judged_by(tried: Tried) -> None:
    """Four colours are a choice, so p(right) decides, as on what the base knows."""
    text = tried.folder.settings_file.read_text()
    section = text[text.index("recommendation:") :].splitlines()
    assert [line.split("#")[0].split() for line in section] == [
        ["recommendation:"],
        ["delta_points:", "3"],
        ["epsilon_points:", "3"],
        ["worst_task_points:", "9"],
    ]
    assert all("# " in line for line in section[1:])  # what each means
    part = json.loads(tried.folder.recommendation_file.read_text())["by_train_task"][0]
    margins = part["delta"], part["epsilon_points"], part["worst_task_points"]
    assert margins == (3.0, 3.0, 9.0)
    able = resolution(plan_study(load_config(tried.folder.settings_file))).in_domain
    assert able is not None
    assert able.margin == 3.0
    said = (
        f"detectable in-domain: differences of about {able.points:.1f} points; 3 would need about "
    )
    assert said in words(tried.output)


def test_plan_says_what_fits_into_a_time(study_file: Path, sentence: Sentences) -> None:
    options = ("evaluation.limit=200", "seeds=[0,1]", "methods.lora.ranks=[1,2,3,4]")
    ample = rankwise("plan", study_file, *options, "--budget", "9h", "--tokens-per-second", 1000)
    assert ample.exit_code == 0
    sentence(ample.output, "ample", names=("in 9.0 h: ",), part=True)
    small = rankwise("plan", study_file, *options, "--budget", "1s", "--tokens-per-second", 1000)
    sentence(small.output, "small", names=("in 1.0 s: ",), part=True)
    assert "seeds=[0]" in words(small.output)
    assert "methods.lora.ranks=[1,4]" in words(small.output)
    sentence(small.output, "difference", names=("in-domain: ", "differences"), part=True)


def test_ever_smaller_studies_are_studies(study_file: Path) -> None:
    config = load_config(study_file, ("seeds=[3,4]", "methods.lora.ranks=[1,2,3,4]"))
    steps = list(smaller_studies(config, plan_study(config)))
    assert [step.overrides[-1] for step in steps] == [
        "seeds=[3]",
        "methods.lora.ranks=[1,3,4]",
        "methods.lora.ranks=[1,4]",
    ]
    for step in steps:
        assert load_config(study_file, step.overrides).seeds == (3,)
        again = load_config(
            study_file, ("seeds=[3,4]", "methods.lora.ranks=[1,2,3,4]", *step.overrides)
        )
        assert again == step.config


def test_a_search_has_a_budget_of_its_own(study_file: Path, sentence: Sentences) -> None:
    result = rankwise("plan", study_file, "search.policy=narrow", "--budget", "1h")
    assert result.exit_code == 2
    sentence(words(result.output), names=("search.budget",))
