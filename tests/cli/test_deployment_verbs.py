"""check, with forms and without: planted adapters that are lost or kept, exit codes, bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from rankwise.records.deployment import DeploymentCheck
from rankwise.records.files import read_record
from tests.planted.beside import BESIDE, stored_in_bfloat16
from tests.planted.rounded import KEPT, LOST, blue_tasks, deciding_adapter, undecided_base
from tests.support.audited_models import adapter, checkpoint, without_chat_template
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences
from tests.support.tiny_tasks import write_tiny_tasks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Planted(NamedTuple):
    """An adapter with its base; the tasks are shared."""

    base: Path
    adapter: Path
    tasks: Path

    def check(self, forms: str, *more: object) -> Any:
        return rankwise(
            "check", self.base, self.adapter, "--tasks", "blues", "--tasks-path", self.tasks,
            "--allow-task-code", "--forms", forms, *more,
        )  # fmt: skip


def planted(folder: Path, size: float) -> Planted:
    base = undecided_base(folder / "base", size)
    write_tiny_tasks(folder / "tasks")
    own = deciding_adapter(base, folder / "adapter", size)
    return Planted(base, own, blue_tasks(folder / "tasks"))


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted(tmp_path_factory.mktemp("weak"), LOST)


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted(tmp_path_factory.mktemp("strong"), KEPT)


def test_bfloat16_loses_a_weak_adapter_and_finer_numbers_keep_it(
    weak: Planted, tmp_path: Path
) -> None:
    forms = "merged-bf16,merged-fp16,merged-fp32"
    done = weak.check(forms, "--json", "--output", tmp_path / "out")
    assert done.exit_code == 1, done.output
    record = DeploymentCheck.model_validate_json(done.stdout)
    assert record == read_record(tmp_path / "out" / "deployment.json", DeploymentCheck)
    bf16, fp16, fp32 = record.forms
    assert [form.verdict for form in record.forms] == ["loses", "keeps", "keeps"]
    assert record.base_scores["blues"] == pytest.approx(50.0, abs=1.0)  # a tie on every item
    score = bf16.scores[0]
    assert score.reference_score > 90.0
    assert score.form_score == pytest.approx(50.0, abs=1.0)
    assert bf16.delta is not None
    assert (bf16.delta.unchanged_share, bf16.delta.kept_share) == (1.0, 0.0)
    assert bf16.delta.relative_error == pytest.approx(1.0)
    assert fp16.delta is not None
    assert fp16.delta.kept_share == pytest.approx(1.0, abs=0.05)
    assert fp32.scores[0].difference.estimate == pytest.approx(0.0, abs=0.01)
    assert fp32.scores[0].lost == ()
    assert record.precision == "float32"


def test_an_adapter_beside_a_rounded_base_keeps_what_a_merge_loses(
    weak: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = weak.check(f"merged-bf16,{stored_in_bfloat16(monkeypatch)}", "--json")
    record = DeploymentCheck.model_validate_json(done.stdout)
    merged, beside = record.forms
    assert (merged.verdict, beside.scores[0].difference.estimate) == ("loses", 0.0)
    assert (beside.form, beside.delta, beside.modules) == (BESIDE, None, ())
    assert beside.num_bytes > merged.num_bytes


def test_a_strong_adapter_is_kept(strong: Planted) -> None:
    done = strong.check("merged-bf16,merged-fp16,gguf:q8_0")
    assert done.exit_code == 0, done.output
    text = words(done.stdout)
    assert text.count("keeps enough: ") == 3
    assert "as trained" in text
    assert "100 %" in text


def test_an_answer_that_cannot_be_told_has_its_own_code(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    """With the observed loss for a limit, the limit is inside the interval."""
    adapter(tiny_model_folder, tmp_path / "a", std=0.5)

    def check(tasks: str, limit: float) -> Any:
        return rankwise(
            "check", tiny_model_folder, tmp_path / "a", "--tasks", tasks,
            "--tasks-path", tasks_folder, "--allow-task-code", "--max-loss", limit, "--json",
        )  # fmt: skip

    seen = {name: check(name, 1000) for name in ("colours", "hues")}
    assert {done.exit_code for done in seen.values()} == {0}
    records = {n: DeploymentCheck.model_validate_json(d.stdout) for n, d in seen.items()}
    losses = {n: -record.forms[0].means[0].difference.estimate for n, record in records.items()}
    name = max(losses, key=losses.__getitem__)
    assert losses[name] > 0.0, losses
    done = check(name, losses[name])
    assert done.exit_code == 3
    record = DeploymentCheck.model_validate_json(done.stdout)
    assert record.verdict == "cannot_tell"
    assert (record.reference, record.forms[0].form) == ("base", "adapter")
    assert record.forms[0].delta is None
    assert record.base == str(tiny_model_folder)


def test_an_adapter_that_forgets_exits_with_1(strong: Planted) -> None:
    """Green is right, and the adapter says blue."""
    (strong.tasks / "greens.yaml").write_text(
        "include: blues.yaml\ntask: greens\ndoc_to_choice: [green, blue]\n"
    )
    done = rankwise(
        "check", strong.base, strong.adapter, "--tasks", "greens", "--tasks-path", strong.tasks,
        "--allow-task-code",
    )  # fmt: skip
    assert done.exit_code == 1, done.output
    assert "greens" in done.stdout


def contract(folder: Path, **clauses: Any) -> Path:
    """A contract on 40 questions of colour, of which blue answers all but one."""
    rows = [
        {
            "prompt": f"Question: which colour has the old sky {number}?\nAnswer:",
            "completion": " blue" if number else " green",
        }
        for number in range(40)
    ]
    (folder / "colours.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "empty.jsonl").touch()
    file = folder / "contract.yaml"
    file.write_text(yaml.safe_dump(clauses, sort_keys=False))
    return file


def clause(judged_by: Any, **more: Any) -> dict[str, Any]:
    return {"data": "colours.jsonl", "judged_by": judged_by, **more}


def test_a_contract_fails_by_the_clause_that_is_lost_and_names_the_answers(
    strong: Planted, tmp_path: Path, sentence: Sentences
) -> None:
    """The adapter writes blue, which is right in one clause and forbidden in the other."""
    file = contract(
        tmp_path,
        says_blue=clause("contains"),
        never_blue=clause({"regex": {"must_not": "blue"}}, max_loss=2),
    )
    checked = ("check", strong.base, strong.adapter, "--contract", file)
    done = rankwise(*checked, "--max-retention-loss", 5, "--output", tmp_path / "out", "--json")
    assert done.exit_code == 1, done.output
    record = DeploymentCheck.model_validate_json(done.stdout)
    (form,) = record.forms
    assert [(mean.tasks, mean.margin, mean.verdict) for mean in form.means] == [
        (("says_blue",), 5.0, "keeps"),
        (("never_blue",), 2.0, "loses"),
    ]
    lost = [each for each in record.changed if each.task == "never_blue"]
    assert len(lost) == 40
    assert all(each.is_lost for each in lost)
    assert all("blue" in each.form_answer for each in lost)
    assert not any("blue" in each.reference_answer for each in lost)
    gained = [each.doc_id for each in record.changed if each.task == "says_blue"]
    assert gained == list(range(1, 40))
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.startswith("# Fail: ")
    assert "| adapter | says_blue | 40 | 97.5 | 0.0 | +97.5 points" in report
    assert re.search(r"\| never_blue \| 40 \| 0.0 \| 100.0 \| .* \| 2.0 points \| fail \|", report)
    sentence(report, "40", names=("40", "39"), part=True)
    sentence(report, "59", names=("59 more",), part=True)
    said = words(rankwise(*checked, "--max-loss", 5).stdout)
    sentence(said, "said", names=("never_blue", "2.0 points"), part=True)


def test_a_contract_that_is_kept_exits_with_0_beside_tasks_and_for_forms(
    strong: Planted, tmp_path: Path
) -> None:
    file = contract(tmp_path, says_blue=clause("contains"), chooses=clause("choice", max_loss=90))
    done = strong.check("merged-bf16", "--contract", file, "--max-loss", 30, "--json")
    assert done.exit_code == 0, done.output
    record = DeploymentCheck.model_validate_json(done.stdout)
    assert [mean.tasks for mean in record.forms[0].means] == [
        ("blues",), ("says_blue",), ("chooses",),
    ]  # fmt: skip
    assert record.changed == ()


def test_a_clause_limits_what_is_written(
    strong: Planted, tmp_path: Path, sentence: Sentences
) -> None:
    """Of the right answers' three tokens, two may be written; the record says it."""
    limited = {"data": "long.jsonl", "judged_by": "rouge", "max_new_tokens": 2}
    file = contract(tmp_path, long=limited)
    rows = [{"prompt": f"Sky {number}:", "completion": " blue blue blue"} for number in range(9)]
    (tmp_path / "long.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = strong.check("merged-bf16", "--contract", file, "--max-loss", 30, "--json")
    record = DeploymentCheck.model_validate_json(done.stdout)
    (warning,) = [each for each in record.warnings if each.startswith("long: ")]
    sentence(warning)
    # of a text that is cut no word is missing but the last
    limited["judged_by"] = "contains"
    file = contract(tmp_path, long=limited)
    done = strong.check("merged-bf16", "--contract", file, "--max-loss", 30)
    assert done.exit_code == 2, done.output
    sentence(words(done.stderr), "vacuous", names=("long", "9 items"))


def test_a_function_judges_a_clause_and_items_without_a_number_are_left_out(
    strong: Planted, tmp_path: Path, sentence: Sentences
) -> None:
    """Beside the base's answer, also for a form that is scored after it."""
    file = contract(tmp_path, bluer=clause({"code": "judge.py:score"}))
    (tmp_path / "judge.py").write_text(
        "def score(row, answer, base_answer):\n"
        "    if row['completion'] == ' green':\n"
        "        return None\n"
        "    return 0.5 if answer == base_answer else float('blue' in answer)\n"
    )
    done = strong.check("merged-bf16", "--contract", file, "--max-loss", 30, "--json")
    record = DeploymentCheck.model_validate_json(done.stdout)
    (score,) = [each for each in record.forms[0].scores if each.task == "bluer"]
    assert (score.num_examples, score.reference_score, score.form_score) == (39, 100.0, 100.0)
    assert record.base_scores["bluer"] == 50.0
    sentence(record.warnings, names=("bluer", "1 item"), part=True)


@pytest.mark.parametrize("are_alike", [False, True])
def test_rows_of_one_conversation_or_that_ask_the_same_are_one_cluster(
    strong: Planted, tmp_path: Path, are_alike: bool
) -> None:
    """Every row four times, which as items of their own would halve the interval's width."""
    folders = {name: tmp_path / name for name in ("once", "copied")}
    for copies, (name, folder) in zip((1, 4), folders.items(), strict=True):
        folder.mkdir()
        rows = [
            {
                "prompt": f"Question: which colour has the old sky {number} "
                f"{'?' * copy if are_alike else copy}?\nAnswer:",
                "completion": " blue" if number % 4 else " green",
                **({} if are_alike else {"conversation_id": f"{number}"}),
            }
            for number in range(40)
            for copy in range(copies)
        ]
        (folder / "colours.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (folder / "contract.yaml").write_text(yaml.safe_dump({name: clause("contains")}))
    widths: dict[str, float] = {}
    for name, folder in folders.items():
        checked = rankwise(
            "check", strong.base, strong.adapter, "--contract", folder / "contract.yaml", "--json"
        )
        record = DeploymentCheck.model_validate_json(checked.stdout)
        (score,) = record.forms[0].scores
        assert (score.num_examples, score.difference.estimate) == (
            40 * (1 + 3 * (name == "copied")),
            75.0,
        )
        widths[name] = score.difference.upper - score.difference.lower
    assert widths["copied"] == pytest.approx(widths["once"], rel=0.15)


def test_an_audit_scores_the_sets_of_a_contract(strong: Planted, tmp_path: Path) -> None:
    file = contract(tmp_path, says_blue=clause("contains"))
    done = rankwise(
        "audit", strong.base, strong.adapter, "--contract", file, "--null-draws", 0,
        "--output", tmp_path / "audit", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (score,) = json.loads(done.stdout)["scores"]
    assert (score["task"], score["num_learned"]) == ("says_blue", 39)


@pytest.mark.parametrize(
    ("clauses", "named"),
    [
        ({}, "contract"),
        ({"a": clause("jsno")}, "a.judged_by"),
        ({"a": clause("exact", max_los=1)}, "a.max_los"),
        ({"a": clause("exact", max_loss=0)}, "a.max_loss"),
        ({"data": {"judged_by": "exact"}}, "data.data"),
        ({"a": clause("exact") | {"data": "gone.jsonl"}}, "gone.jsonl"),
        ({"a": clause("exact") | {"data": "empty.jsonl"}}, "empty.jsonl"),
        ({"a": clause("json")}, "colours.jsonl"),
        ({"blues": clause("exact")}, "'blues'"),
    ],
    ids=[
        "none", "no judge", "a misspelt key", "no loss", "no data", "no file", "no rows",
        "no JSON", "a task's name",
    ],
)  # fmt: skip
def test_a_contract_that_cannot_be_checked_exits_with_2(
    strong: Planted, tmp_path: Path, clauses: dict[str, Any], named: str, sentence: Sentences
) -> None:
    done = strong.check("merged-bf16", "--contract", contract(tmp_path, **clauses))
    assert done.exit_code == 2, done.output
    sentence(words(done.stderr), names=(named,))


def test_a_problem_of_check_names_no_other_verb(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    """The question is prepared as that of an audit is, but nothing was audited."""
    base = without_chat_template(tiny_model_folder, tmp_path / "base")
    adapter(base, tmp_path / "a")
    done = rankwise(
        "check", base, tmp_path / "a", "--tasks", "colours", "--tasks-path", tasks_folder,
        "--allow-task-code", "--chat-template",
    )  # fmt: skip
    assert done.exit_code == 2, done.output
    said = words(done.stderr)
    sentence(said, names=("--chat-template", base))
    assert "audit" not in said


def test_bad_input_is_told_and_exits_with_2(
    weak: Planted, tiny_model_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    adapter(tiny_model_folder, tmp_path / "other")
    adapter(tiny_model_folder, tmp_path / "zero", std=0.0)
    checkpoint(tiny_model_folder, tmp_path / "whole", lambda _: None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    common = ("--tasks-path", weak.tasks, "--allow-task-code")

    def problem(*arguments: object) -> str:
        done = rankwise(*arguments)
        assert done.exit_code == 2, done.output
        return words(done.stderr)

    def of(base: Path, folder: Path, *more: object, tasks: str = "blues") -> str:
        forms = () if "--forms" in more else ("--forms", "merged-bf16")
        return problem("check", base, folder, "--tasks", tasks, *common, *forms, *more)

    sentence(of(weak.base, tmp_path / "none"), "no folder")
    sentence(of(weak.base, tmp_path / "other"), "another base")
    sentence(of(weak.base, tmp_path / "other", "--any-base"), "any base")
    sentence(of(tiny_model_folder, tmp_path / "whole"), "a checkpoint")
    sentence(of(tiny_model_folder, tmp_path / "zero"), "zero")
    sentence(of(weak.base, weak.adapter, tasks="bleus"), "blues", names=("blues",))
    sentence(of(weak.base, weak.adapter, tasks=","), "no task", names=("--tasks",))
    none = tmp_path / "none.yaml"
    sentence(of(weak.base, weak.adapter, "--contract", none), "no contract", names=(none,))
    sentence(of(weak.base, weak.adapter, "--forms", ","), "no form", names=("--forms",))
    misspelt = of(weak.base, weak.adapter, "--forms", "merged-bf61")
    sentence(misspelt, "a misspelt form", names=("--forms: ", "'merged-bf16'"))
    old = of(weak.base, weak.adapter, "--forms", "4bit,8bit")
    sentence(old, "not said where", names=("'merged-4bit'", "'beside-8bit'"))
    sentence(of(weak.base, weak.adapter, "--max-loss", "nan"), "no margin")
    full = tmp_path / "full"
    sentence(of(weak.base, weak.adapter, "--output", full), "not empty", names=(full,))
    rounded = of(
        weak.base, weak.adapter, "--precision", "bfloat16", "--forms", "merged-bf16,merged-fp16"
    )
    sentence(rounded, "rounded twice")
    sentence(problem("check", weak.base, tmp_path / "none", "--tasks", "blues"), "check")
    elsewhere = problem("check", weak.base, "nobody/no-adapter", "--tasks", "blues")
    library = r"(?<=provide it: ).*(?=\. Check the name)"
    sentence(elsewhere, "hub", names=("nobody/no-adapter",), LIBRARY=library)
