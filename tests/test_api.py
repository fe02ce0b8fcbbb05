"""Studies from Python: the same as from the command line, and as data frames."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rankwise as rw
from rankwise.cli.application import json_text
from rankwise.engine.models.devices import Machine
from rankwise.errors import ConfigError, RecordError
from rankwise.records.folder import StudyFolder
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.support.command_line import rankwise, words
from tests.support.tiny_tasks import write_tiny_tasks

Capture = pytest.CaptureFixture[str]


def tiny(root: Path, model: Path, **settings: Any) -> rw.Study:
    """A study of ranks 2 and 4 on the tiny tasks, of keyword arguments."""
    if not (root / "tasks").exists():
        write_tiny_tasks(root / "tasks")
    return rw.new(
        base=str(model),
        task="colours",
        ranks=range(2, 5, 2),
        retention=["hues"],
        folder=root / "of colours",
        tasks_path=root / "tasks",
        allow_task_code=True,
        **{
            "train": {"epochs": 1, "precision": "float32", "learning_rate": {"lora": 1e-2}},
            "methods": {"full": None},
            "analysis": {"spectra": False, "heads": False},
            **settings,
        },
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> rw.Study:
    root = tmp_path_factory.mktemp("api")
    return tiny(root, tiny_model_folder).run(progress=False)


def planted(root: Path, trained_on: str = "kinship") -> rw.Study:
    """Rank 16 alone: 0.50 to 0.80 of 300 items in-domain, 0.90 to 0.80 of 200 of each other."""
    results = planted_study({16: 0.80}, {16: 0.80}, noise=0.0)
    config = results.study.config
    train = config.train.model_copy(update={"task": (trained_on,)})
    config = config.model_copy(update={"name": root.name, "train": train})
    study = results.study.model_copy(update={"config": config})
    write_study(StudyFolder(root), results.model_copy(update={"study": study}))
    return rw.open(root)


def test_arguments_become_the_settings_of_a_study_file(study: rw.Study) -> None:
    config = study.config
    assert config.name == "of-colours"
    assert config.train.task == ("colours",)
    assert config.methods.lora is not None
    assert config.methods.lora.ranks == (2, 4)
    assert config.methods.full is None
    assert config.evaluation.retention == ("hues",)
    assert study.folder.name == "of colours"


def test_a_study_is_exported_as_by_the_command(tmp_path: Path) -> None:
    study = planted(tmp_path / "study")
    (table,) = study.export("latex", tmp_path / "out")
    assert table == tmp_path / "out" / "results.tex"
    assert "LoRA rank 16" in table.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="no format named 'cvs'; did you mean 'csv'"):
        study.export("cvs")


def test_one_rank_needs_no_list() -> None:
    lora = rw.new(base="b", task="t", ranks=8).config.methods.lora
    assert lora is not None
    assert lora.ranks == (8,)


@pytest.mark.parametrize("ranks", [[4, 8], (4, 8), range(4, 9, 4), 2 ** np.arange(2, 4)])
def test_ranks_come_in_any_sequence(ranks: Any) -> None:
    lora = rw.new(base="b", task="t", ranks=ranks).config.methods.lora
    assert lora is not None
    assert lora.ranks == (4, 8)


def test_a_study_is_what_the_command_line_makes_of_it(study: rw.Study) -> None:
    written = json.loads((study.folder / "recommendation.json").read_text())
    assert study.recommendation.model_dump(mode="json") == {
        key: value for key, value in written.items() if key != "checksum"
    }
    done = rankwise("verdict", study.folder)
    assert f"Why: {words(study.verdict)}" in words(done.stdout)
    assert rw.open(study.folder).verdict == study.verdict


def test_the_plan_is_a_row_for_each_run(study: rw.Study) -> None:
    runs = study.plan().runs
    assert list(runs["rank"]) == [2, 4]
    # 2 layers; q and o of 48 x 48, k and v of 24 x 48: 96 + 96 + 72 + 72 for each rank;
    # gate, up and down of 96 x 48: 3 * 144
    assert list(runs["num_trainable_parameters"]) == [2 * 768 * 2, 2 * 768 * 4]


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_the_plan_has_the_numbers_of_the_command_line(
    tmp_path: Path, tiny_model_folder: Path, is_elsewhere: bool
) -> None:
    write_tiny_tasks(tmp_path / "tasks")
    new = tiny(tmp_path, tiny_model_folder, train={"epochs": 1, "precision": "float32"})
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(new.config.model_dump(mode="json", by_alias=True)))
    options = ["--tokens-per-second", "100"]
    options += ["--device", "cuda", "--memory", "80GB"] if is_elsewhere else []
    done = rankwise("plan", file, "--study-dir", new.folder, *options, "--json")
    machine = Machine(torch.device("cuda"), 80 * 10**9) if is_elsewhere else None
    runs, forecast = new.plan(machine=machine, tokens_per_second=100)

    def steady(entries: dict[str, Any]) -> dict[str, Any]:
        """What is not measured anew by every plan."""
        changing = {"free_disk_bytes", "free_cache_bytes"}
        if not is_elsewhere:
            changing |= {"estimated_memory_bytes", "memory_bytes"}
        return {key: value for key, value in entries.items() if key not in changing}

    told = json.loads(done.stdout, object_hook=steady)
    budget = told.pop("budget")  # the command's own
    assert budget is None
    assert json.loads(json_text(forecast.content()), object_hook=steady) == told
    for name in ("name", "rank", "num_steps", "num_tokens"):
        assert list(runs[name]) == [run[name] for run in told["runs"]], name
    assert forecast.seconds_left == told["seconds"] > 0
    assert forecast.disk_bytes == told["disk_bytes"] > 0
    assert [cost._asdict() for cost in forecast.margins] == told["margins"]
    assert forecast.detectable.in_domain is not None
    # the margin that the command says takes these items is the one that they can tell
    able, own = forecast.detectable.in_domain, forecast.margins[1]
    assert (able.margin, able.num_items) == (own.margin, own.num_items)


def test_a_plan_shows_its_runs_and_what_they_take(tmp_path: Path, tiny_model_folder: Path) -> None:
    plan = tiny(tmp_path, tiny_model_folder).plan(tokens_per_second=100)
    assert repr(plan).startswith(str(plan.runs))
    assert re.search(r"\nabout [\d.]+ \w+, about [\d.]+ MB of disk$", repr(plan))
    page = plan._repr_html_()
    assert page.count("<tr") == 3  # a head and two runs
    assert page.endswith(" of disk</p>")


def test_what_the_plan_warns_of_is_a_warning(tmp_path: Path, tiny_model_folder: Path) -> None:
    train = {"epochs": 1, "max_examples": 8, "warmup_ratio": 0.9}  # one step of 2 times 4 rows
    study = tiny(tmp_path, tiny_model_folder, train=train, methods={"full": None})
    with pytest.warns(UserWarning, match="train: 1 optimizer steps on colours are all warm-up"):
        study.plan()


def test_nothing_is_printed_without_progress(
    tmp_path: Path, tiny_model_folder: Path, capfd: Capture
) -> None:
    study = tiny(tmp_path, tiny_model_folder, seeds=[3])
    study.run(progress=False)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    study.run()
    assert "everything is done" in capfd.readouterr().err


def test_a_finished_study_is_read_without_torch(tmp_path: Path) -> None:
    root = planted(tmp_path / "planted").folder
    code = f"""
import sys
import rankwise as rw
study = rw.open({str(root)!r})
assert "rank 16" in study.verdict
assert len(study.runs_df()) == 2
assert len(study.scores_df()) == 10
assert len(study.items_df()) == 2 * (300 + 300 + 200 + 200)
assert study.report().exists()
assert "<iframe" in study._repr_html_()
loaded = [name for name in ("torch", "transformers", "peft", "lm_eval") if name in sys.modules]
assert loaded == [], loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_runs_have_the_planted_numbers(tmp_path: Path) -> None:
    runs = planted(tmp_path / "planted").runs_df().set_index("rank", drop=False)
    assert list(runs["status"]) == ["base", "trained"]
    assert str(runs["rank"].dtype) == "Int64"  # the base has none, and 16 is not 16.0
    row = runs.loc[16]
    assert row["train_task"] == "kinship"
    assert row["in_domain"] == pytest.approx(80.0)
    assert row["gain"] == pytest.approx(30.0)
    assert row["gain_lower"] < 30.0 < row["gain_upper"]
    assert row["retention_change"] == pytest.approx(-10.0)


def test_every_table_of_the_report_is_a_frame(tmp_path: Path) -> None:
    study = planted(tmp_path / "planted")
    tables = study.tables_df()
    files = {path.stem for path in (study.report().parent / "report").glob("*.csv")}
    assert set(tables) == files >= {"runs", "scores", "ranks", "transfer", "retention"}
    assert tables["runs"].equals(study.runs_df())
    assert set(tables["retention"].train_task) == {"kinship"}


def test_items_say_what_was_learned_and_forgotten(tmp_path: Path) -> None:
    items = planted(tmp_path / "planted").items_df()
    assert list(items.columns) == [
        *("task", "relation", "doc_id", "model", "label", "base_is_right", "is_right"),
        *("margin_nats", "answer", "right", "prompt"),
    ]
    adapted = items[items.model != "base"]
    learned = adapted[~adapted.base_is_right & adapted.is_right]
    forgotten = adapted[adapted.base_is_right & ~adapted.is_right]
    assert len(learned[learned.task == "kinship"]) == 90  # outcomes are nested: 150 to 240 of 300
    assert forgotten.groupby("task").size()["capitals"] == 20  # 180 to 160 of 200
    assert not (items[items.model == "base"].eval("base_is_right != is_right")).any()


def test_items_of_a_real_scoring_have_their_texts(study: rw.Study) -> None:
    items = study.items_df()
    colours = items[(items.task == "colours") & (items.model == "base")]
    assert len(colours) == 26
    assert colours.prompt.str.startswith("Question: which colour has the ").all()
    first = colours.iloc[0]
    assert first.is_right == (first.answer == first.right)
    assert set(items.label) == {"base", "rank 2", "rank 4"}
    assert set(items.model) == set(study.runs_df().run) == set(study.scores_df().model)


def test_scores_are_every_metric(study: rw.Study) -> None:
    scores = study.scores_df()
    colours = scores[(scores.model == "base") & (scores.task == "colours")]
    assert {"acc", "acc_norm", "p_right"} <= set(colours.metric)
    items = study.items_df()
    right = items[(items.model == "base") & (items.task == "colours")].is_right.mean()
    assert colours.set_index("metric").loc["acc", "value"] == pytest.approx(right)
    assert list(colours[colours.decides].metric) == ["p_right"]


def test_the_card_is_escaped_and_holds_itself(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    study = planted(tmp_path / "planted", hostile)
    shown = study._repr_html_()
    assert shown.count("<") == 2  # the frame alone
    page = html.unescape(shown.partition('srcdoc="')[2].removesuffix('"></iframe>'))
    assert hostile not in page
    page = re.sub(r"(?s)<script.*?</script>", "", page)  # those of Vega name addresses and tags
    assert "<img" not in page
    assert html.escape(hostile, quote=False) in page
    assert '<section class="verdict card ' in page
    # its only rank loses 10 points, so it is not exported
    assert "Next: <code>rankwise report" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_study_without_scores_says_so_where_it_is_shown(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    study = tiny(tmp_path, tiny_model_folder)
    assert "no verdict yet" in study._repr_html_()
    with pytest.raises(RecordError, match=r"study\.json"):
        study.verdict  # noqa: B018


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: rw.new(base="b", task="t", rank=[4]), "rank: unknown key"),
        (lambda: rw.new(base="b", task="t", ranks=[4, "x"]), "methods.lora.ranks[1]: "),
        (lambda: rw.new(task="t"), "base_model: "),
        (lambda: rw.new(base="b", task="t", train={"task": "u"}), "train.task: it is given twice"),
        (lambda: rw.new(base="b", task="t", train="u"), "train.task: 'train' is not a section"),
        (lambda: rw.new(base="b", task="t", base_model="c"), "base_model: it is given twice"),
    ],
)
def test_wrong_arguments_are_named_by_their_keys(make: Callable[[], Any], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make()
    assert any(said.startswith(problem) for said in raised.value.problems), raised.value.problems


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"study\.json"):
        rw.open(tmp_path)


def test_an_adapter_is_audited_as_by_the_verb(study: rw.Study, tiny_model_folder: Path) -> None:
    adapter = next(study.folder.glob("runs/*r002*/adapter"))
    output = study.folder.parent / "audit"
    record = rw.audit(str(tiny_model_folder), adapter, null_draws=0, output=output)
    assert record.ranks == (2,)
    assert (output / "audit.html").exists()
    by_verb = study.folder.parent / "by verb"
    rankwise("audit", tiny_model_folder, adapter, "--null-draws", 0, "--output", by_verb)
    assert json.loads((by_verb / "audit.json").read_text())["statements"] == list(record.statements)
