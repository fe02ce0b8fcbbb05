"""``deploy`` of a study file: the run that the verdict names, checked in its deployed forms."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
from transformers import AutoTokenizer

from rankwise.errors import PlanError
from rankwise.findings.deployment import deployed_runs
from rankwise.integrations.exports import ChosenRun, run_card
from rankwise.records.fingerprints import study_fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.forms import model_in_form
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.study_file import load_config
from rankwise.study.conclusion import StudyOutcome
from rankwise.study.planning.plan import plan_study
from rankwise.study.reading import read_results
from rankwise.study.stages.form import CheckForm
from rankwise.study.stages.graph import stages
from rankwise.weights.deployment import served_beside
from tests.planted.beside import stored_in_bfloat16
from tests.planted.rounded import KEPT, LOST, blue_tasks, deciding_adapter, undecided_base
from tests.support.audited_models import load
from tests.support.command_line import rankwise, words
from tests.support.completions_server import Served, serving
from tests.support.pages import Page
from tests.support.sentences import Sentences
from tests.support.studies import run
from tests.support.tiny_tasks import write_tiny_tasks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

LOSS = r"−[\d.]+ points \(.*?\)"


class Planted(NamedTuple):
    """A base that ties on every item, and an imported adapter that decides for the right answer.

    Its changes of the weights are below half a step of bfloat16, where it is lost.
    """

    file: Path
    folder: StudyFolder
    outcome: StudyOutcome

    @property
    def name(self) -> str:
        return self.folder.read_study().runs[0].name

    def again(self, *overrides: str) -> tuple[StudyOutcome, list[str]]:
        """What came of it, and the forms that were checked."""
        outcome, recorder = run(self.file, self.folder.root, *overrides)
        assert {model for model, _ in recorder.stages} <= {self.name}
        return outcome, [name for _, name in recorder.stages]


def study_file(root: Path, size: float) -> Path:
    """Of the base and the adapter whose changes have this size."""
    base = undecided_base(root / "base", size)
    write_tiny_tasks(root / "tasks")
    blue_tasks(root / "tasks")
    adapter = deciding_adapter(base, root / "adapter", size)
    file = root / "study.yaml"
    file.write_text(
        f"base_model: {base}\ntasks_path: {root / 'tasks'}\nallow_task_code: true\n"
        "train: {task: blues, precision: float32}\n"
        f"methods: {{lora: null, full: null, imported: [{{adapter: {adapter}}}]}}\n"
        "evaluation: {trained_format: false, num_train_items: 0}\n"
        "analysis: {spectra: false, heads: false, gauges: false}\n"
        "deploy: [merged-bf16, merged-fp32]\n"
    )
    return file


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    root = tmp_path_factory.mktemp("deployed")
    file, folder = study_file(root, LOST), StudyFolder(root / "study")
    return Planted(file, folder, run(file, folder.root)[0])


def test_a_form_that_loses_what_was_learned_is_found(planted: Planted, sentence: Sentences) -> None:
    (part,) = planted.outcome.recommendation.by_train_task
    assert (part.recommended_run or part.best_bet_run) == planted.name
    (found,) = planted.outcome.findings.deployed
    assert (found.run, found.train_task) == (planted.name, "blues")
    bf16, fp32 = found.forms
    assert [(form.form, form.verdict) for form in found.forms] == [
        ("merged-bf16", "loses"),
        ("merged-fp32", "keeps"),
    ]
    (score,) = bf16.scores
    assert score.reference_score > 90.0
    assert score.form_score == pytest.approx(50.0, abs=1.0)  # a tie on every item
    assert fp32.scores[0].difference.estimate == pytest.approx(0.0, abs=0.01)
    (mean,) = bf16.means
    assert (mean.relation, mean.margin) == ("in_domain", part.delta)
    assert bf16.delta is not None
    assert bf16.delta.kept_share == 0.0
    sentence(bf16.statement, names=("merged-bf16",), LOSS=LOSS)


def test_stages_records_status_and_report_have_it(planted: Planted) -> None:
    folder, name = planted.folder, planted.name
    study = folder.read_study()
    assert study.deployed == (name,)
    assert study.forms == ("merged-bf16", "merged-fp32")  # scored in float32 as it is
    checks = [stage for stage in stages(study) if isinstance(stage, CheckForm)]
    assert [stage.form for stage in checks] == list(study.forms)
    assert all(stage.is_finished(folder) for stage in checks)
    done = rankwise("report", folder.root)
    assert done.exit_code == 0
    statements = [words(form.statement) for form in planted.outcome.findings.deployed[0].forms]
    assert all(statement in words(done.stdout) for statement in statements)
    told = json.loads(rankwise("verdict", folder.root, "--json").stdout)["deployed"]
    assert [form["verdict"] for form in told[0]["forms"]] == ["loses", "keeps"]
    page = Page(folder.report_file.read_text(encoding="utf-8"))
    assert all(statement in words(page.text) for statement in statements)
    (_, line) = json.loads(rankwise("status", folder.root, "--json").stdout)["models"]
    assert line["others_left"] == []
    plan = json.loads(rankwise("plan", folder.root, "--json").stdout)
    assert plan["forms"] == list(study.forms)
    assert [s["is_finished"] for s in plan["stages"] if s["kind"] == "form"] == [True, True]
    assert plan["work_after_verdict"] == 0


def test_the_model_card_says_what_the_forms_keep(planted: Planted, sentence: Sentences) -> None:
    outcome = planted.outcome
    (model,), (part,) = outcome.results.runs, outcome.recommendation.by_train_task
    assert model.run is not None
    chosen = ChosenRun(model.run.planned, part, "recommended")
    sentence(run_card(outcome, chosen), names=("- merged-bf16",), part=True, LOSS=LOSS)
    findings = outcome.findings.model_copy(update={"deployed": ()})
    assert "merged-bf16" not in run_card(outcome._replace(findings=findings), chosen)


def test_a_finished_check_is_not_done_again_and_a_new_form_alone_is(planted: Planted) -> None:
    assert planted.again()[1] == []
    outcome, checked = planted.again("deploy=[merged-bf16,merged-fp32,merged-fp16]")
    assert checked == ["merged-fp16"]
    (found,) = outcome.findings.deployed
    assert [form.form for form in found.forms] == ["merged-bf16", "merged-fp32", "merged-fp16"]
    planted.again()


def test_a_check_that_was_stopped_goes_on_with_its_tasks(planted: Planted) -> None:
    """Killed after the scores and before the record: nothing is scored again."""
    path = CheckForm.path(planted.folder, planted.name, "merged-bf16")
    scores = planted.folder.evaluation_file(model_in_form(planted.name, "merged-bf16"), "blues")
    before, written = path.read_bytes(), scores.stat().st_mtime_ns
    path.unlink()
    assert planted.again()[1] == ["merged-bf16"]
    assert scores.stat().st_mtime_ns == written
    assert json.loads(path.read_bytes())["delta"] == json.loads(before)["delta"]


def test_damaged_scores_of_a_form_are_found_and_made_again(planted: Planted) -> None:
    samples = planted.folder.samples_file(model_in_form(planted.name, "merged-bf16"), "blues")
    samples.write_text(samples.read_text()[:-20])
    done = rankwise("verify", planted.folder.root, "--json")
    assert done.exit_code == 1
    (damage,) = json.loads(done.stdout)["damages"]
    assert damage["path"] == str(samples)
    outcome, checked = planted.again()
    assert checked == ["merged-bf16"]
    assert outcome.findings.deployed == planted.outcome.findings.deployed
    assert rankwise("verify", planted.folder.root).exit_code == 0


def test_another_verdict_has_another_check_and_keeps_the_old(
    planted: Planted, sentence: Sentences
) -> None:
    folder = planted.folder
    study = folder.read_study()
    changed = study.model_copy(update={"deployed": ()})
    # as if an extension had made the base the best bet: nothing is left to check
    assert not [stage for stage in stages(changed) if isinstance(stage, CheckForm)]
    results = read_results(folder, changed)
    assert [form.record.form for form in results.runs[0].forms] == list(study.forms)
    part = planted.outcome.recommendation.by_train_task[0]
    other = part.model_copy(update={"verdicts": (), "best_bet": None})
    (found,) = deployed_runs(results, StudyRecommendation(by_train_task=(other,)))
    sentence(found.named)
    assert found.forms == planted.outcome.findings.deployed[0].forms


def test_in_bfloat16_the_adapter_as_trained_is_scored_in_float32_too(tmp_path: Path) -> None:
    """A study in bfloat16 compares forms with a reference of the forms' precision."""
    file = study_file(tmp_path, KEPT)
    outcome, recorder = run(file, tmp_path / "half", "train.precision=bfloat16")
    study = outcome.results.study
    assert study.forms == ("as-trained", "merged-bf16", "merged-fp32")
    assert [name for _, name in recorder.stages][-3:] == list(study.forms)
    (found,) = outcome.findings.deployed
    assert [form.verdict for form in found.forms] == ["keeps", "keeps"]
    trained, *_ = outcome.results.runs[0].forms
    assert trained.record.delta is None
    assert found.forms[1].scores[0].reference_score == pytest.approx(
        100 * sum(trained.scores.items["blues"].values) / 26
    )


def test_an_adapter_beside_a_rounded_base_keeps_what_a_merge_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy = f"deploy=[merged-bf16,{stored_in_bfloat16(monkeypatch)}]"
    outcome, _ = run(study_file(tmp_path, LOST), tmp_path / "study", deploy)
    (found,) = outcome.findings.deployed
    merged, beside = found.forms
    assert (merged.verdict, beside.scores[0].difference.estimate) == ("loses", 0.0)
    assert beside.delta is None


def test_before_the_verdict_the_plan_has_the_work(
    planted: Planted, tmp_path: Path, sentence: Sentences
) -> None:
    done = rankwise("plan", planted.file, "--study-dir", tmp_path / "new", "--json")
    plan = json.loads(done.stdout)
    base = next(s for s in plan["stages"] if s["kind"] == "scoring" and s["model"] == "base")
    assert plan["work_after_verdict"] == 2 * base["work"]  # two forms read what the base reads
    said = rankwise("plan", planted.file, "--study-dir", tmp_path / "new").stdout
    sentence(said, names=("deploy: ", "merged-bf16, merged-fp32"), part=True)


def test_the_setting_changes_no_fingerprint_of_older_studies(planted: Planted) -> None:
    with_forms = load_config(planted.file, [])
    without = load_config(planted.file, ["deploy=[]"])
    assert study_fingerprint(with_forms) != study_fingerprint(without)
    dumped: dict[str, Any] = without.model_dump(mode="json")
    assert dumped["deploy"] == []


def test_a_server_cannot_be_asked_for_sampled_texts(tmp_path: Path, sentence: Sentences) -> None:
    file = study_file(tmp_path, KEPT)
    task = tmp_path / "tasks" / "sums.yaml"
    task.write_text(task.read_text().replace("do_sample: false", "do_sample: true, temperature: 1"))
    overrides = ["deploy=[http://localhost:1/v1]", "evaluation.retention=[sums]"]
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(file, overrides))
    (problem,) = [text for text in caught.value.problems if text.startswith("deploy: ")]
    sentence(problem, names=("sums",))


def test_a_server_cannot_be_asked_for_other_than_plain_texts(
    tmp_path: Path, sentence: Sentences
) -> None:
    file = study_file(tmp_path, KEPT)
    task = tmp_path / "tasks" / "sums.yaml"
    old, new = "do_sample: false", "do_sample: false, temperature: 0, repetition_penalty: 1.3"
    task.write_text(task.read_text().replace(old, new))
    overrides = ["deploy=[http://localhost:1/v1]", "evaluation.retention=[sums]"]
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(file, overrides))
    (problem,) = [text for text in caught.value.problems if text.startswith("deploy: ")]
    sentence(problem, names=("sums", "repetition_penalty"))


@pytest.mark.parametrize(
    ("changed", "of_base", "of_neither", "ignores"),
    [(40, 40, 0, True), (40, 20, 20, True), (40, 1, 39, False), (1, 1, 0, False), (6, 3, 3, False)],
)
def test_a_server_ignores_an_adapter_only_if_it_writes_as_the_base_does(
    changed: int, of_base: int, of_neither: int, ignores: bool
) -> None:
    items = range(50)
    base = {item: [("base",)] for item in items}
    ours = {item: [("ours" if item < changed else "base",)] for item in items}
    its = ours | {item: [("base",)] for item in range(of_base)}
    its |= {item: [("neither",)] for item in range(of_base, of_base + of_neither)}
    found = served_beside(["texts"], lambda _: [base, ours, its, ours])
    assert found.ignores_adapter == ignores
    assert found.tasks[0].differ == tuple(range(of_base + of_neither))


def test_the_scores_of_a_form_are_in_the_clusters_of_the_items(planted: Planted) -> None:
    model = next(each for each in read_results(planted.folder).models if each.forms)
    task, items = next(iter(model.forms[0].scores.items.items()))
    numbers = {doc_id: doc_id // 4 for doc_id in items.doc_ids}
    clustered = model.in_clusters({task: numbers})
    assert clustered.forms[0].scores.items[task].clusters == tuple(numbers.values())


def test_servers_have_folders_of_their_own() -> None:
    names = [model_in_form("run", url) for url in ("http://h/v1#a/b", "http://h/v1#a-b")]
    assert len({*names}) == 2
    assert model_in_form("run", "gguf:q8_0") == "run/forms/gguf-q8_0"
    assert len(model_in_form("run", f"http://h/v1#{'long' * 99}")) < 120


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("deploy=[beside-4bit]", "'.[quantization]'"),
        ("deploy=[gguf:q4_k_m]", "llama.cpp"),
        ("methods.imported=[]", "full fine-tuning"),
    ],
    ids=["beside-4bit", "gguf", "full fine-tuning"],
)
def test_what_cannot_be_checked_is_a_problem_of_planning(
    planted: Planted,
    override: str,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    sentence: Sentences,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("rankwise.weights.forms.has_llama_cpp", lambda: False)
    overrides = [override, *(["methods.full={}"] if "imported" in override else [])]
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(planted.file, overrides))
    (problem,) = [text for text in caught.value.problems if text.startswith("deploy: ")]
    sentence(problem, names=(named,))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_server_of_the_run_is_held_against_it(tmp_path: Path, precision: str) -> None:
    """No server at first: the stage fails, and says what to start; then it alone is done."""
    file = study_file(tmp_path, LOST if precision == "float32" else KEPT)
    config = load_config(file, [])
    base, adapter = config.base_model.name, str(config.methods.imported[0].adapter)
    name = plan_study(config).record.runs[0].name
    tuned = peft.PeftModel.from_pretrained(load(Path(base)), adapter).eval()
    models = {"base": load(Path(base)).eval(), name: tuned}
    with serving(Served(models, AutoTokenizer.from_pretrained(base))) as served:
        root = tmp_path / "served"
        overrides = f"deploy=[{served.url}]", f"train.precision={precision}"
        served.models = {"other": tuned}
        outcome, _ = run(file, root, *overrides)
        (failure,) = outcome.results.failures
        assert f"serves no model {name!r}; it serves other" in words(failure.message)
        command = shlex.split(failure.message.partition("By vLLM: ")[2])
        assert command[command.index("--max-lora-rank") + 1] == "8"
        assert command[command.index("--lora-target-modules") + 1].endswith("_proj")
        assert command[-1] == f"{name}={StudyFolder(root).weights(outcome.results.study.runs[0])}"
        assert outcome.findings.deployed == ()
        served.models = models
        outcome, recorder = run(file, root, *overrides)
        assert recorder.stages == [(name, served.url)]
        ((form,),) = (each.forms for each in outcome.findings.deployed)
        assert form.served is not None
        assert (form.verdict, form.served.items_that_differ) == ("keeps", 0)
        assert form.served.adapter_share == pytest.approx(1.0, abs=1e-2)
        again, served.answers_with = tmp_path / "ignored", "base"
        outcome, _ = run(file, again, *overrides)
        assert "does not apply the adapter" in outcome.results.failures[0].message
        assert outcome.findings.deployed == ()
        served.answers_with = None  # mended: nothing of its wrong answers was kept
        outcome, _ = run(file, again, *overrides)
    assert outcome.results.failures == ()
    (mended,) = outcome.findings.deployed[0].forms
    assert (mended.verdict, mended.served) == ("keeps", form.served)
