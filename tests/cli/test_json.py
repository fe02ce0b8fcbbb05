"""``--json`` of every verb: one strict document, or one a line, with the facts that people read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from pydantic import BaseModel

from rankwise.cli.application import json_text
from rankwise.cli.main import app
from rankwise.records.folder import StudyFolder
from rankwise.study import trial as trials
from tests.planted.folders import write_study as write_planted
from tests.planted.results import planted_study
from tests.support.command_line import rankwise
from tests.support.small_studies import write_study

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

WITHOUT = {"lm-eval": "all its options are lm-eval's, whose --output_path takes the JSON"}
EVENTS = ("run", "extend", "try")
ON = ("--tasks", "colours", "--allow-task-code", "--limit", 8)
SETTINGS = """
train: {task: colours, epochs: 1, precision: float32}
methods: {lora: {ranks: [2], target_modules: [q_proj, k_proj, v_proj, o_proj]}, full: null}
evaluation: {out_of_domain: [sums], retention: [hues], held_out_text: [], limit: 8}
analysis: {spectra: false, heads: false, gauges: false}
"""


class Place:
    """A small study that was run, its adapter, a planted study that recommends rank 16, samples."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root, self.base = root, base
        self.file = write_study(root, base, SETTINGS)
        self.small, self.planted, self.twin = root / "small", root / "planted", root / "twin"
        for folder in (self.planted, self.twin):
            write_planted(StudyFolder(folder), planted_study())
        ran = rankwise("run", self.file, "--study-dir", self.small, "--json")
        assert ran.exit_code == 0, ran.output
        self.adapter = next(self.small.glob("runs/*/adapter"))
        self.samples = [self._samples(name, right) for name, right in (("a", 2), ("b", 4))]
        self.rows = root / "rows.csv"
        lines = [f"Which colour has number {n}?,{('red', 'blue')[n % 2]}" for n in range(40)]
        self.rows.write_text("\n".join(["instruction,output", *lines]), encoding="utf-8")

    @property
    def copy(self) -> Path:
        """Of the small study, to be changed."""
        return Path(shutil.copytree(self.small, self.root / "copy"))

    @property
    def judged(self) -> Path:
        """The same study with answers that a function judges, for a person to label."""
        rows = [{"prompt": f"Say {n}:", "completion": "x"} for n in range(24)]
        (self.root / "said.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (self.root / "judge.py").write_text("def score(row, answer): return 1.0")
        own = "{said: {data: said.jsonl, judged_by: {code: judge.py:score}, max_new_tokens: 4}}"
        overrides = (f"evaluation.own={own}", "evaluation.labels={said: 20}")
        ran = rankwise("run", self.file, *overrides, "--study-dir", self.root / "judged")
        assert ran.exit_code == 0, ran.output
        return self.root / "judged"

    def _samples(self, name: str, num_right: int) -> Path:
        """Four items, of which the first are right."""
        file = self.root / f"{name}.jsonl"
        lines = [
            {"doc_id": n, "doc": {"n": n}, "target": "1", "resps": [["1"]], "metrics": ["acc"],
             "filtered_resps": ["1"], "filter": "none", "acc": float(n < num_right)}
            for n in range(4)
        ]  # fmt: skip
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return file


class Case(NamedTuple):
    """A call of a verb, and one fact of its answer that is known beforehand."""

    arguments: Callable[[Place], Sequence[object]]
    fact: Callable[[Any], Any]
    expected: Any


def last_of(event: str) -> Callable[[Any], Any]:
    return lambda events: next(each for each in reversed(events) if each["event"] == event)


def outcome(events: Any) -> tuple[Any, ...]:
    ended = last_of("ended")(events)
    said = [part["train_task"] for part in ended["recommendations"]]
    return ended["outcome"], said, len({e["run"] for e in events if e["event"] == "step"})


def recommended(answer: Any) -> tuple[Any, ...]:
    (part,) = answer["by_train_task"]
    return part["outcome"], part["rank"], answer["left_out"], answer["failures"]


RECOMMENDED = ("recommended", 16, {}, [])
CASES: dict[str, Case] = {
    "run": Case(lambda at: (at.small,), outcome, ("done", ["colours"], 0)),
    "plan": Case(
        lambda at: (at.file, "--study-dir", at.small, "--budget", "1d", "--tokens-per-second", 1e6),
        lambda a: (a["runs"][0]["num_trainable_parameters"], a["budget"]["fits"], a["machine"]),
        (2 * 2 * (2 * 96 + 2 * 72), True, None),
    ),
    "ask": Case(
        lambda at: (at.small, "Which colour?", "--max-new-tokens", 2),
        lambda a: [(each["prompt"], each["model"]) for each in a],
        [("Which colour?", "base"), ("Which colour?", "rank 2")],
    ),
    "report": Case(
        lambda at: (at.planted,), lambda a: (*recommended(a), Path(a["report"]).name),
        (*RECOMMENDED, "report.html"),
    ),
    "status": Case(
        lambda at: (at.small,),
        lambda a: ([(m["training"], m["num_steps"]) for m in a["models"]], a["running"]),
        ([("none needed", 0), ("trained", 3)], None),
    ),
    "verify": Case(
        lambda at: (at.small,), lambda a: a, {"damages": [], "left": []}
    ),
    "labels": Case(
        lambda at: (at.judged,), lambda a: [(f["task"], f["num_items"]) for f in a], [("said", 8)]
    ),
    "verdict": Case(lambda at: (at.planted,), recommended, RECOMMENDED),
    "init": Case(
        lambda at: (at.root / "new.yaml", "--from", at.adapter),
        lambda a: (Path(a["study_file"]).name, len(a["to_check"]) > 0), ("new.yaml", True),
    ),
    "extend": Case(lambda at: (at.copy, "--ranks", 4), outcome, ("done", ["colours"], 1)),
    "try": Case(
        lambda at: (at.rows, "--model", at.base, "--study-dir", at.root / "tried"),
        lambda events: (
            last_of("fitted")(events)["own_data"]["num_rows"],
            last_of("fitted")(events)["examples"][0]["prompt"].count("Which colour has number"),
            *outcome(events)[::2],
        ),
        (40, 1, "done", 1),
    ),
    "audit": Case(
        lambda at: (at.base, at.adapter, "--output", at.root / "audit", "--null-draws", 0),
        lambda a: (a["kind"], a["ranks"]), ("adapter", [2]),
    ),
    "heads": Case(
        lambda at: (at.small, "--run", "colours-lora-r002", "--tasks", "colours", "--top", 1),
        lambda a: [task["task"] for task in a["effects"]], ["colours"],
    ),
    "repair": Case(
        lambda at: (at.small, "--run", "colours-lora-r002", "--by", "scale",
                    "--max-loss", 100),
        lambda a: (a["choice"]["in_domain"], a["choice"]["retention"]), (["colours"], ["hues"]),
    ),
    "check --forms merged-fp32": Case(
        lambda at: (at.base, at.adapter, *ON, "--tasks-path", at.root / "tasks",
                    "--max-loss", 100),
        lambda a: [(f["form"], f["verdict"]) for f in a["forms"]], [("merged-fp32", "keeps")],
    ),
    "check": Case(
        lambda at: (at.base, at.adapter, *ON, "--tasks-path", at.root / "tasks",
                    "--max-loss", 1000),
        lambda a: (a["reference"], a["verdict"]), ("base", "keeps"),
    ),
    "export": Case(
        lambda at: (at.small, "--output", at.root / "exported"),
        lambda a: [(m["name"][:17], m["num_samples_files"]) for m in a],
        [("base", 3), ("colours-lora-r002", 3)],
    ),
    "export --to hub": Case(
        lambda at: (at.small, "--run", "colours-lora-r002", "--repo", "a/b", "--dry-run"),
        lambda a: (a["url"], a["is_private"], "README.md" in [f["path"] for f in a["files"]]),
        (None, True, True),
    ),
    "verdict --metric acc": Case(
        lambda at: at.samples,
        lambda a: [(v["gain"]["estimate"], v["better_than_base"])
                   for v in a["by_train_task"][0]["verdicts"]],
        [(50.0, "undecided")],
    ),
    "tasks": Case(
        lambda at: ("--tasks-path", at.root / "tasks"),
        lambda a: [t for t in a if t["name"] == "sums"],
        [{"name": "sums", "kind": "task", "source": "tasks_path", "description": ""}],
    ),
    "doctor": Case(lambda at: (), lambda a: "(tested: >=" in a["torch"], True),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("json"), tiny_model_folder)


def strict(text: str) -> Any:
    """JSON as the standard has it: NaN and Infinity are refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def answer_of(verb: str, text: str) -> Any:
    return [strict(line) for line in text.splitlines()] if verb in EVENTS else strict(text)


def options() -> dict[str, set[str]]:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {option for each in command.params for option in each.opts}
        for name, command in commands.items()
    }


def test_every_verb_can_answer_a_program() -> None:
    without = {name for name, known in options().items() if "--json" not in known}
    assert without == WITHOUT.keys()
    assert options().keys() - without == {case.split()[0] for case in CASES}  # and is asked below


@pytest.mark.parametrize("asked", CASES)
def test_the_answer_is_json_alone_and_has_the_facts(
    asked: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "SIZES", trials.SIZES[:1])
    case = CASES[asked]
    verb, *options = asked.split()
    done = rankwise(verb, *case.arguments(place), *options, "--json")
    assert done.exit_code == 0, done.output
    assert done.stdout.isascii()
    assert case.fact(answer_of(verb, done.stdout)) == case.expected


@pytest.mark.parametrize("kind", ["csv", "peft", "model-card"])
def test_every_export_names_its_files(kind: str, place: Place, tmp_path: Path) -> None:
    done = rankwise("export", place.planted, "--format", kind, "--output", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    exported = strict(done.stdout)
    assert all(Path(model["file"]).is_file() for model in exported)
    name = exported[0]["name"]
    assert name in ("base", "ranks") or "r016" in name


def test_damage_is_in_the_answer(place: Place) -> None:
    file = place.twin / "base" / "eval" / "kinship.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    done = rankwise("verify", place.twin, "--json")
    file.write_bytes(whole)
    assert done.exit_code == 1
    (damage,) = strict(done.stdout)["damages"]
    assert (damage["path"], damage["made_by"]) == (str(file), "scoring base on kinship")


# errors


@pytest.mark.parametrize("verb", sorted({case.split()[0] for case in CASES}))
def test_wrong_options_are_an_answer_too(verb: str) -> None:
    done = rankwise(verb, "--json", "--nope")
    assert done.exit_code == 2
    answer = answer_of(verb, done.stdout)
    if verb in EVENTS:
        (ended,) = answer
        assert (ended["outcome"], ended["exit_code"]) == ("error", 2)
        assert ended["message"].startswith("UsageError: ")
    else:
        assert (answer["error"], answer["exit_code"]) == ("UsageError", 2)
        assert answer["message"]
    assert "Usage: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "code", "keys"),
    [
        (("status", "nowhere"), "RecordError", 1, []),
        (("audit", "nobody/nothing", "nowhere"), "ModelError", 2, []),
        (("plan", "train.epochs=0"), "ConfigError", 2, ["train.epochs"]),
    ],
)
def test_an_error_is_one_document(
    arguments: tuple[str, ...], error: str, code: int, keys: list[str]
) -> None:
    done = rankwise(*arguments, "--json")
    answer = strict(done.stdout)
    assert done.exit_code == answer["exit_code"] == code
    assert answer["error"] == error
    assert [problem.partition(": ")[0] for problem in answer["problems"]] == keys
    assert done.stderr.endswith(f"{error}: {answer['message']}\n")  # people read the same


def test_rows_that_cannot_be_tried_are_the_end(tmp_path: Path) -> None:
    done = rankwise("try", tmp_path / "nothing.jsonl", "--json")
    (ended,) = answer_of("try", done.stdout)
    assert (done.exit_code, ended["exit_code"], ended["outcome"]) == (2, 2, "error")


def test_a_stopped_verb_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.study.status.study_status", stopped)
    done = rankwise("status", place.small, "--json")
    answer = strict(done.stdout)
    assert (answer["error"], answer["exit_code"], done.exit_code) == ("KeyboardInterrupt", 130, 130)


# the writer


class Inner(BaseModel):
    value: float


def test_what_is_not_finite_is_null_at_any_depth() -> None:
    content = {"here": float("nan"), "below": [Inner(value=float("-inf")), (1.5, float("inf"))]}
    assert strict(json_text(content)) == {"here": None, "below": [{"value": None}, [1.5, None]]}


def test_names_that_are_no_unicode_are_escaped() -> None:
    assert strict(json_text({"path": Path(os.fsdecode(b"caf\xe9"))})) == {"path": "caf\udce9"}
