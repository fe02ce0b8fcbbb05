"""The command line: exit codes, what goes where, and a study from init to report."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest
from typer.testing import CliRunner

from rankwise.cli import application, running
from rankwise.cli.main import app
from rankwise.errors import ModelError, to_install
from rankwise.findings.statements import headline, next_command, with_folder
from rankwise.records import versions
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.study_file import load_config, preset_names, preset_text
from rankwise.study.stopping import Stopped
from rankwise.tasks import resolution
from rankwise.tasks.task_files import BUNDLED_FOLDER, read_task_file
from tests.support import tiny_tasks
from tests.support.command_line import rankwise, words
from tests.support.records import content_of
from tests.support.sentences import Sentences

# In the order in which the help lists them.
VERBS = (
    "run", "plan", "try", "verdict", "ask", "report", "status", "verify", "labels", "init",
    "extend", "audit", "heads", "check", "repair", "export", "tasks", "lm-eval", "doctor",
)  # fmt: skip
HEAVY = ("torch", "transformers", "peft", "datasets", "lm_eval", "pandas", "scipy")


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt name is looked for without lm-eval's own tasks, whose index takes long."""
    monkeypatch.setattr(resolution, "lm_evals_own", dict)


class Finished:
    """A small study, run once; ``first`` is what the command answered."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.root = folder
        tasks = folder / "tasks"
        tasks.mkdir()
        (tasks / "colours.py").write_text(tiny_tasks.COLOURS_PY)
        (tasks / "colours.yaml").write_text(tiny_tasks.COLOURS_YAML)
        (tasks / "sums.yaml").write_text(tiny_tasks.SUMS_YAML)
        self.file = folder / "small.yaml"
        self.file.write_text(
            f"base_model: {model}\ntasks_path: tasks\nallow_task_code: true\n"
            "train: {task: colours, epochs: 1, precision: float32}\n"
            "methods: {lora: {ranks: [2], target_modules: attention}, full: null}\n"
            "evaluation: {out_of_domain: [sums], limit: 8}\n"
        )
        self.folder = folder / "study"
        self.first = self.run()

    def run(self) -> Any:
        return rankwise("run", self.file, "--study-dir", self.folder)

    @property
    def adapter(self) -> Path:
        return next(self.folder.glob("runs/*/adapter/adapter_model.safetensors"))


@pytest.fixture(scope="module")
def finished(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("cli"), tiny_model_folder)


# help


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("--version",)])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom rankwise.cli.main import app\n"
        "try:\n    app(sys.argv[1:], prog_name='rankwise')\nexcept SystemExit as stop:\n"
        f"    loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "    print(loaded, file=sys.stderr)\n    sys.exit(stop.code)\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "rankwise" in done.stdout.lower()


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "rankwise", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.search(r"Usage: rankwise ", done.stdout)


def test_every_verb_is_listed_and_explains_itself() -> None:
    listed = rankwise("--help").stdout
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", listed)
        shown = rankwise(verb, "--help")
        assert shown.exit_code == 0
        assert f"rankwise {verb}" in shown.stdout
    # in a process of its own, as tests before this one may have imported one verb alone
    code = """
from rankwise.cli.main import app
print(*(each.name or each.callback.__name__.replace("_", "-") for each in app.registered_commands))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == VERBS


@pytest.mark.parametrize("width", ["80", "100"])
def test_no_help_is_cut(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    for arguments in ((), *((verb,) for verb in VERBS)):
        shown = rankwise(*arguments, "--help").stdout
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= int(width)
        # --name of verdict takes a pattern: r{rank}_s{seed}
        plain = re.sub(r"\{(rank|seed|alpha|learning_rate|modules|epochs)\}", "", shown)
        assert not re.search(r"<(bool|str|int|float|Path|list)\b|[{}]", plain)


def test_without_a_verb_it_says_where_to_start() -> None:
    done = rankwise()
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    named = set(re.findall(r"^  rankwise ([a-z]+)", done.stdout, re.MULTILINE))
    assert {"run", "try", "init"} <= named <= set(VERBS)


def test_the_documentation_lists_the_verbs_in_the_same_order() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    table = page.split("**Commands**:")[1].split("## `rankwise run`")[0]
    assert tuple(re.findall(r"^\* `([a-z-]+)`: ", table, re.MULTILINE)) == VERBS
    assert "..." not in table


def test_the_shell_completes_verbs() -> None:
    done = CliRunner().invoke(
        app,
        prog_name="rankwise",
        env={
            "_RANKWISE_COMPLETE": "complete_bash",
            "COMP_WORDS": "rankwise re",
            "COMP_CWORD": "1",
        },
    )
    assert done.stdout.split() == ["report", "repair"]


def test_usage_errors_exit_with_2(tmp_path: Path) -> None:
    assert rankwise("nope").exit_code == 2
    assert rankwise("status").exit_code == 2
    assert rankwise("run", "--nope").exit_code == 2


# init


def test_init_writes_a_preset_that_loads_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.chdir(tmp_path)
    done = rankwise("init")
    assert done.exit_code == 0
    sentence(done.stdout, "study.yaml", names=("study.yaml",), part=True)
    assert (tmp_path / "study.yaml").read_text() == preset_text("quickstart")
    assert load_config(tmp_path / "study.yaml").base_model.name == "smollm2-135m-instruct"
    (tmp_path / "study.yaml").write_text("mine")
    refused = rankwise("init")
    assert (refused.exit_code, refused.stdout) == (2, "")
    sentence(refused.stderr, "changed", names=(tmp_path, "study.yaml", "--overwrite"))
    assert (tmp_path / "study.yaml").read_text() == "mine"
    assert rankwise("init", "--overwrite").exit_code == 0
    assert (tmp_path / "study.yaml").read_text() == preset_text("quickstart")
    assert rankwise("init", "new/folder/study.yaml").exit_code == 0
    assert (tmp_path / "new" / "folder" / "study.yaml").is_file()


def test_the_help_of_init_names_all_presets() -> None:
    shown = words(rankwise("init", "--help").output)
    assert [name for name in preset_names() if name not in shown] == []


def test_init_with_an_unknown_preset(tmp_path: Path, sentence: Sentences) -> None:
    done = rankwise("init", "--preset", "quikstart", tmp_path / "study.yaml")
    assert (done.exit_code, done.stdout) == (2, "")
    sentence(done.stderr, names=("quikstart", "quickstart"))
    assert not (tmp_path / "study.yaml").exists()


# errors


def test_a_wrong_study_file_is_one_readable_block(tmp_path: Path, sentence: Sentences) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("base_model: m\ntrain: {task: t, learning_rat: 1}\nseeds: [a]\n")
    command = [sys.executable, "-m", "rankwise", "run", str(path), "train.epochs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    sentence(
        done.stderr, names=("wrong.yaml", "train.epochs", "train.learning_rat", "learning_rate")
    )


def test_a_missing_study_file(tmp_path: Path, sentence: Sentences) -> None:
    done = rankwise("plan", tmp_path / "nowhere.yaml")
    assert (done.exit_code, done.stdout) == (2, "")
    sentence(done.stderr, names=("nowhere.yaml",))


def test_overrides_without_a_file_are_of_the_quickstart(sentence: Sentences) -> None:
    done = rankwise("plan", "train.epochs=0")
    assert done.exit_code == 2
    sentence(done.stderr, names=("train.epochs",))


def test_a_misspelt_task(finished: Finished, no_index: None, sentence: Sentences) -> None:
    done = rankwise("plan", finished.file, "evaluation.out_of_domain=[summs]")
    assert (done.exit_code, done.stdout) == (2, "")
    sentence(done.stderr, names=("evaluation.out_of_domain[0]", "summs", "sums"))


def test_a_base_model_that_cannot_be_had(finished: Finished, sentence: Sentences) -> None:
    done = rankwise("plan", finished.file, "base_model=nobody/nothing")
    assert (done.exit_code, done.stdout) == (2, "")
    library = r"(?<=provide it: ).*(?=\. Check the name)"
    sentence(done.stderr, names=("nobody/nothing",), LIBRARY=library)


def test_a_path_that_no_system_could_have_is_one_sentence(sentence: Sentences) -> None:
    done = rankwise("verdict", "a" * 300)
    assert done.exit_code == 2
    sentence(done.stderr, LONG="[^' ]*a{5,}")


def test_no_memory_left_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(StudyFolder, "read_study", full)
    done = rankwise("status", tmp_path)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "OutOfMemoryError" in done.stderr
    assert "ulimit -v" in done.stderr


@pytest.mark.parametrize("verb", ["status", "report", "verdict"])
def test_a_folder_that_is_no_study(tmp_path: Path, verb: str, sentence: Sentences) -> None:
    done = rankwise(verb, tmp_path)
    assert (done.exit_code, done.stdout) == (1, "")
    sentence(done.stderr, names=(tmp_path, "/study.json"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_stopping_by_a_signal_says_that_nothing_is_lost(
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
    sentence: Sentences,
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise Stopped(number)

    monkeypatch.setattr("rankwise.study.growing.lead", interrupted)
    done = rankwise("run", finished.file, "--study-dir", finished.root / "stopped")
    assert done.exit_code == code
    again = f"To go on: rankwise run {finished.root / 'stopped'}"
    sentence(words(done.stderr), names=(number.name, again))


def test_a_study_that_another_process_works_on(finished: Finished, sentence: Sentences) -> None:
    with StudyFolder(finished.folder).lock():
        done = finished.run()
    assert done.exit_code == 1
    process = rf"process {os.getpid()} on \S+"
    sentence(words(done.stderr), names=(finished.folder, os.getpid()), PROCESS=process)


def test_a_damaged_record_is_named(finished: Finished) -> None:
    path = next(finished.folder.glob("base/eval/sums.json"))
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    said = f"{path} is not a readable TaskEvaluation"
    for verb in ("verdict", "report"):
        done = rankwise(verb, finished.folder)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith(f"RecordError: {said}")
    for verb in ("status", "verify"):
        assert f"damaged: {said}" in rankwise(verb, finished.folder).stdout
    path.write_bytes(whole)
    for verb in ("status", "verify"):
        done = rankwise(verb, finished.folder)
        assert done.exit_code == 0
        assert "damaged" not in done.output


# plan


def test_plan_lists_the_runs_and_trains_nothing(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application.stdout, "width", 200)
    folder = finished.root / "planned"
    done = rankwise("plan", finished.file, "--study-dir", folder, "methods.full={}")
    assert done.exit_code == 0
    rows = [re.split(r"\s*│\s*", line.strip(" │")) for line in done.stdout.splitlines()]
    base, lora, full = (row for row in rows if len(row) == 8)
    assert base[0] == "base"
    assert lora[0].startswith("colours-lora-r002-a004-s0-")
    assert full[0].startswith("colours-full-s0-")
    assert [row[1] for row in (lora, full)] == ["3", "3"]
    assert (full[4], lora[4]) == ("100.00%", f"{1_344 / 60_912:.2%}")
    assert [row[7] for row in (base, lora, full)] == ["0/4"] * 3
    assert not folder.exists()


def test_plan_says_what_of_a_pass_is_scored_already(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application.stdout, "width", 200)
    study = (finished.file, "methods.lora.ranks=[2,4]", "--study-dir", finished.folder)
    done = rankwise("plan", *study)
    assert "pass 1: 2 " in done.stdout
    rows = [re.split(r"\s*│\s*", line.strip(" │")) for line in done.stdout.splitlines()]
    assert [row[6:] for row in rows if len(row) == 8] == [
        ["—", "4/4"],
        ["yes", "4/4"],
        ["no", "0/4"],
    ]
    done = rankwise("plan", *study[:1], *study[2:], "--tokens-per-second", "1")
    assert "time:" not in done.stdout  # nothing is left


def test_plan_as_json(finished: Finished, sentence: Sentences) -> None:
    done = rankwise("plan", finished.file, "--study-dir", finished.folder, "--json", "seeds=[0,1]")
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    (warning,) = answer["warnings"]
    sentence(warning, names=("seeds",))
    runs = {(run["method"], run["rank"], run["seed"]): run for run in answer["runs"]}
    assert runs.keys() == {("lora", 2, 0), ("lora", 2, 1)}
    assert [run["is_trained"] for run in runs.values()] == [True, False]
    run = runs["lora", 2, 0]
    assert (run["alpha"], run["scaling"], run["num_steps"], run["num_examples"]) == (4, 2, 3, 24)
    assert run["num_trainable_parameters"] == 2 * 2 * (2 * 96 + 2 * 72)
    assert run["estimated_memory_bytes"] > 0


def test_a_rank_above_the_layers_is_a_warning_and_no_error(
    finished: Finished, sentence: Sentences
) -> None:
    done = rankwise("plan", finished.file, "methods.lora.ranks=[2,30]", "--json")
    assert done.exit_code == 0
    sentence(done.stderr, names=("warning", "methods.lora.ranks[1]", "30", "k_proj"))
    (warning,) = json.loads(done.stdout)["warnings"]
    assert warning.startswith("methods.lora.ranks[1]")


# run, status, recommend, report


def test_run_ends_with_the_verdict_and_the_report(finished: Finished) -> None:
    done = finished.first
    assert done.exit_code == 0
    report = finished.folder / "report.html"
    assert done.stdout.rstrip().endswith(f"report: {report}")
    (part,) = read_record(
        StudyFolder(finished.folder).recommendation_file, StudyRecommendation
    ).by_train_task
    assert done.stdout.startswith(headline(part))
    # the terminal's command names this study's folder, whose long name may be folded
    said = f"Next: {with_folder(next_command(part), finished.folder)}"
    assert "".join(said.split()) in "".join(done.stdout.split())
    # the page shows commands as code
    page = report.read_text(encoding="utf-8").replace("<code>", "`").replace("</code>", "`")
    assert with_folder(part.statement, finished.folder) in page


def test_progress_goes_to_stderr_and_results_to_stdout(finished: Finished) -> None:
    done = finished.first
    assert re.search(r"base model: colours done in [\d.]+ s; about .* left\n", done.stderr)
    assert re.search(r"colours-lora-r002-\S+: training done in ", done.stderr)
    assert "done in" not in done.stdout
    assert "report:" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_second_run_trains_nothing(finished: Finished, sentence: Sentences) -> None:
    paths = [*finished.folder.glob("runs/*/run.json"), finished.adapter]
    paths += finished.folder.glob("*/eval/*.json*")
    before = [path.stat().st_mtime_ns for path in paths]
    done = finished.run()
    assert done.exit_code == 0
    sentence(words(done.stderr))
    assert "training done" not in done.stderr
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert len(paths) >= 2
    assert words(done.stdout) == words(finished.first.stdout)


def test_studies_go_below_the_current_folder(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def recorded(_: Any, folder: StudyFolder, *__: Any, **___: Any) -> None:
        asked.append(folder.root)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rankwise.study.growing.lead", recorded)
    rankwise("run", finished.file)
    rankwise("run", finished.file, "name=other")
    assert asked == [Path("studies/small"), Path("studies/other")]


def test_status_as_table_and_as_json(finished: Finished) -> None:
    table = rankwise("status", finished.folder)
    assert table.exit_code == 0
    assert "trained" in table.stdout
    assert "3/3" in table.stdout
    answer = json.loads(rankwise("status", finished.folder, "--json").stdout)
    assert answer["running"] is None
    base, run = answer["models"]
    assert base["model"] == "base"
    assert base["training"] == "none needed"
    assert (run["training"], run["num_steps_done"], run["num_steps"]) == ("trained", 3, 3)
    for line in (base, run):
        assert sorted(line["tasks_scored"]) == [
            "colours",
            "colours@end",
            "colours@train",
            "sums",
        ]
        assert line["tasks_left"] == []


def test_recommend_in_words_and_as_json(finished: Finished) -> None:
    record = finished.folder / "recommendation.json"
    written = content_of(record)
    record.unlink()
    done = rankwise("verdict", finished.folder, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    more = {
        key: answer[key]
        for key in (
            "signatures",
            "slices",
            "prompting",
            "sequences",
            "deployed",
            "left_out",
            "failures",
        )
    }
    assert written == content_of(record)
    (part,) = written["by_train_task"]  # whose commands name the folder, and in a record none
    assert " DIR" not in done.stdout
    part["statement"] = with_folder(part["statement"], finished.folder)
    part["reasons"] = [with_folder(reason, finished.folder) for reason in part["reasons"]]
    assert answer == written | more
    said = rankwise("verdict", finished.folder)
    statement = f"Why: {part['statement']}"
    assert "".join(statement.split()) in "".join(said.stdout.split())
    for reason in part["reasons"]:
        assert words(reason) in words(said.stdout)


def test_other_margins_are_judged_and_not_kept(finished: Finished, sentence: Sentences) -> None:
    records = [path for path in finished.folder.glob("*.json") if not path.name.startswith(".")]
    before = [path.read_bytes() for path in records]
    options = ("--delta", "40", "--epsilon", "30", "--worst-task", "50")
    done = rankwise("verdict", finished.folder, *options, "--json")
    assert done.exit_code == 0
    (part,) = json.loads(done.stdout)["by_train_task"]
    assert (part["delta"], part["epsilon_points"]) == (40.0, None)  # there is no retention task
    assert before == [path.read_bytes() for path in records]
    for option in ("--delta=0", "--epsilon=nan", "--worst-task=-1"):
        refused = rankwise("verdict", finished.folder, option)
        assert refused.exit_code == 2
        sentence(words(refused.stderr), str(option))


def test_a_study_file_with_other_margins_is_judged_at_once(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    def unwanted(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished study is planned again")

    study = finished.folder / "study.json"
    before = content_of(study)
    monkeypatch.setattr(running, "planned_study", unwanted)
    margins = "recommendation.delta_points=40"
    done = rankwise("run", finished.file, margins, "--study-dir", finished.folder)
    assert done.exit_code == 0
    sentence(done.stderr)
    (part,) = content_of(finished.folder / "recommendation.json")["by_train_task"]
    assert part["delta"] == 40.0
    assert content_of(study)["config"]["recommendation"]["delta_points"] == 40.0
    back = rankwise("run", finished.file, "--study-dir", finished.folder)
    assert back.exit_code == 0
    assert content_of(study) == before


def test_report_is_written_again(finished: Finished) -> None:
    report = finished.folder / "report.html"
    before = report.read_text(encoding="utf-8")
    report.unlink()
    done = rankwise("report", finished.folder)
    assert done.exit_code == 0
    assert f"report: {report}" in done.stdout
    assert report.read_text(encoding="utf-8") == before


def test_a_diverged_run_makes_the_exit_code_1(finished: Finished) -> None:
    done = rankwise(
        "run",
        finished.file,
        "--study-dir",
        finished.root / "diverged",
        "methods.full={}",
        "train.learning_rate.full=1e30",
        "evaluation.out_of_domain=[]",
    )
    assert done.exit_code == application.RUN_FAILED == 1
    lines = [line for line in words(done.stderr).splitlines() if "colours-full-s0" in line]
    assert lines[-1].count("diverged") >= 1
    assert (finished.root / "diverged" / "report.html").is_file()


# tasks, doctor


def test_tasks_are_listed_with_their_source(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.chdir(finished.root)
    done = rankwise("tasks", "--tasks-path", "tasks")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    for start in ("syllogism  (task, rankwise): ", "retention_short  (group, rankwise): "):
        assert [line for line in lines if line.startswith(start)], start
    assert "colours  (task, tasks_path)" in lines
    sentence(done.stderr, names=("rankwise tasks --all",), part=True)
    listing = json.loads(rankwise("tasks", "--tasks-path", "tasks", "--json").stdout)
    sums = {"name": "sums", "kind": "task", "source": "tasks_path", "description": ""}
    assert sums in listing
    assert rankwise("tasks", "--tasks-path", "nowhere").exit_code == 2


def test_tasks_are_found_by_words_of_their_names_and_descriptions(sentence: Sentences) -> None:
    done = rankwise("tasks", "rankwise-has", "no-such")
    assert (done.exit_code, done.stdout) == (1, "")
    sentence(done.stderr, "rankwise-has no-such", names=("rankwise-has no-such",))
    science = rankwise("tasks", "AI2", "reasoning", "--json")
    found = {line["name"]: line for line in json.loads(science.stdout)}
    assert {"arc_easy", "arc_challenge"} <= found.keys()
    assert found["arc_easy"]["description"].startswith("Think you have Solved")
    # a tag has no file, and neither the folder we are in nor lm-eval's list of tasks is about it
    listing = json.loads(rankwise("tasks", "ai2_arc", "--json").stdout)
    assert {"name": "ai2_arc", "kind": "tag", "source": "lm-eval", "description": ""} in listing
    described = {line.description for line in resolution.list_tasks(everything=True)}
    assert described.isdisjoint({"rankwise", "Tasks", "## Paper"})


def test_retention_sets_are_of_tasks_that_lm_eval_has() -> None:
    known = {*resolution.lm_evals_own(), *(file.stem for file in BUNDLED_FOLDER.glob("*.yaml"))}
    sets = [line.name for line in resolution.list_tasks() if line.kind == "group"]
    assert sets == ["general", "retention_knowledge", "retention_short", "retention_wide"]
    for name in sets:
        file = BUNDLED_FOLDER / f"{name}.yaml"
        assert set(read_task_file(file)["task"]) <= known


def test_doctor_names_versions_devices_and_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "not" / "there"))
    findings = json.loads(rankwise("doctor", "--json").stdout)
    assert findings["torch"].startswith(torch.__version__.partition("+")[0])
    assert findings["torch"].endswith(f"(tested: {versions.tested_range('torch')})")
    assert findings["precision auto"].split()[0] in ("bfloat16", "float32")
    assert str(tmp_path) in findings["embedded smollm2-135m-instruct"]
    assert findings["cache folder"].startswith("writable: ")
    extras = {
        "bitsandbytes": "quantization",
        "torchao": "torchao",
        "liger_kernel": "liger",
        "ray": "ray",
    }
    for name, extra in extras.items():
        finding = findings[f"optional {name}"]
        is_there = importlib.util.find_spec(name) is not None
        assert finding.startswith("found: ") == is_there
        assert is_there or to_install(extra) in finding
    assert findings["CUDA"].startswith("found" if torch.cuda.is_available() else "missing")
    shown = rankwise("doctor")
    assert shown.exit_code == 0
    for name in findings:
        assert name in shown.stdout


@pytest.mark.parametrize(
    ("has_triton", "narrowest"),
    [(True, 512), (True, 256), (True, 0), (False, 0)],
    ids=["there", "in part", "broken", "missing"],
)
def test_doctor_compiles_kernels_where_there_is_a_card(
    has_triton: bool, narrowest: int, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    """Those of heads from ``narrowest`` on fail."""
    import torch

    from rankwise.cli import doctor

    def compiled(case: Any, _: Any) -> None:
        assert case.device.type == "cuda"
        assert (case.dtype, case.is_trained) == (torch.bfloat16, True)
        if case.widths[0] >= narrowest:
            raise ModelError("no C compiler")

    card = torch.device("cuda", 0)
    monkeypatch.setattr("rankwise.engine.models.packed_kernels.check_flex", compiled)
    monkeypatch.setattr("rankwise.engine.models.devices.choose_device", lambda: card)
    monkeypatch.setattr("rankwise.engine.models.devices.device_name", lambda _: "a card")
    monkeypatch.setattr("rankwise.engine.models.devices.has_fast_bfloat16", lambda _: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1, 2))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (object() if has_triton else None) if name == "triton" else find_spec(name),
    )
    sentence(dict(doctor.examine())["flex attention"])


def test_doctor_finds_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "file" / "cache"))
    findings = json.loads(rankwise("doctor", "--json").stdout)
    assert findings["cache folder"].startswith("not writable: ")
    assert "RANKWISE_CACHE" in findings["cache folder"]


def test_errors_that_nobody_expects_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Callable[[], None]:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("rankwise.cli.doctor.examine", broken)
    result = CliRunner().invoke(app, ["doctor"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_doctor_says_what_old_cards_and_apple_s_get(
    monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    import torch

    from rankwise.cli import doctor

    monkeypatch.setattr("rankwise.engine.models.devices.has_fast_bfloat16", lambda _: False)
    assert "Apple's GPU (mps)" not in dict(doctor.examine())
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = dict(doctor.examine())
    sentence(found["Apple's GPU (mps)"], "mps")
    sentence(found["precision auto"], "precision")


def closed_stream() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [lambda: None, closed_stream, io.StringIO])
def test_a_closed_stream_is_no_terminal(make: Callable[[], TextIO | None]) -> None:
    """As ``<&-`` leaves it: Python has no stream at all, or one that is closed."""
    assert not application.is_terminal(make())
