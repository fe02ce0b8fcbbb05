"""A study exported for lm-eval's readers, beside what lm-eval itself writes of the same models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from rankwise.cli.main import app
from rankwise.errors import ConfigError, RecordError, StorageError
from rankwise.findings.differences import comparisons
from rankwise.findings.options import OptionGains
from rankwise.integrations.exports import Exported
from rankwise.integrations.formats import export_study
from rankwise.records.folder import StudyFolder
from rankwise.records.lm_eval_samples import higher_is_better
from rankwise.records.names import MANIFEST
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.reading import read_results
from rankwise.study.run import run_study
from tests.planted.samples import compare_samples
from tests.support import tiny_tasks
from tests.support.observers import Silent
from tests.support.records import change
from tests.support.sentences import Sentences

# two filters, so that a file has every document twice
DIGITS_YAML = """
task: digits
custom_dataset: !function colours.load_sums
dataset_path: ""
output_type: generate_until
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 4}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - name: first-letter
    filter: [{function: regex, regex_pattern: "(\\\\w)"}, {function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 2}
"""

LAST_WORD_YAML = """
task: last_word
custom_dataset: !function colours.load_prose
dataset_path: ""
output_type: loglikelihood
test_split: test
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
metadata: {version: 0.5}
"""

TASKS = ("colours", "sums", "digits", "last_word", "small_prose")
OURS = {"loss_nats", "p_right", "num_loss_tokens"}


class Written(NamedTuple):
    """One model's folder in lm-eval's layout."""

    folder: Path
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Written:
        (results,) = folder.glob("results_*.json")
        return cls(folder, json.loads(results.read_text(encoding="utf-8")))

    def samples_file(self, task: str) -> Path:
        (path,) = self.folder.glob(f"samples_{task}_*.jsonl")
        return path

    def samples(self, task: str) -> list[dict[str, Any]]:
        text = self.samples_file(task).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


class ExportedStudy(NamedTuple):
    """A finished study and its export: the base, a LoRA run, and full fine-tuning."""

    study: StudyFolder
    models: list[Exported]
    base: Written
    lora: Written
    full: Written


@pytest.fixture(scope="module")
def study(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    root = tmp_path_factory.mktemp("export")
    tasks = root / "tasks"
    tasks.mkdir()
    (tasks / "colours.py").write_text(tiny_tasks.COLOURS_PY)
    for name, text in {
        "colours": tiny_tasks.COLOURS_YAML,
        "small_prose": tiny_tasks.PROSE_YAML,
        "sums": tiny_tasks.SUMS_YAML,
        "digits": DIGITS_YAML,
        "last_word": LAST_WORD_YAML,
    }.items():
        (tasks / f"{name}.yaml").write_text(text)
    path = root / "tiny.yaml"
    path.write_text(
        f"base_model: {tiny_model_folder}\ntasks_path: tasks\nallow_task_code: true\n"
        "train: {task: colours, epochs: 2, learning_rate: {lora: 1e-2, full: 1e-3},"
        " precision: float32}\n"
        "methods: {lora: {ranks: [4]}}\n"
        "evaluation: {out_of_domain: [sums, digits, last_word], held_out_text: [small_prose],"
        " metric: {last_word: acc}}\n"
        "analysis: {spectra: false, heads: false}\n"  # nothing of it is exported
    )
    folder = StudyFolder(root / "study")
    run_study(plan_study(load_config(path)), folder, Silent())
    return folder


@pytest.fixture(scope="module")
def exported(study: StudyFolder) -> ExportedStudy:
    models = export_study(study, "lm-eval")
    return ExportedStudy(study, models, *(Written.read(each.file.parent) for each in models))


def lm_eval_run(study: StudyFolder, model_args: dict[str, str], output: Path) -> Written:
    """What ``lm_eval --log_samples --output_path OUTPUT`` does."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(output))
    results: Any = simple_evaluate(
        model="hf",
        model_args=model_args,
        tasks=list(TASKS),
        device="cpu",
        batch_size=3,
        bootstrap_iters=100,
        task_manager=TaskManager(
            include_path=str(study.root.parent / "tasks"), include_defaults=False
        ),
        evaluation_tracker=tracker,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    (folder,) = output.iterdir()
    return Written.read(folder)


def arguments_of(model: Written, base: Path) -> dict[str, str]:
    """What the export says of how a model is loaded, by somebody who knows where the base is."""
    said: dict[str, str] = model.results["config"]["model_args"]
    assert said["pretrained"] == f"./{base.name}"
    return said | {"pretrained": str(base)}


@pytest.fixture(scope="module")
def peer(
    exported: ExportedStudy, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    """lm-eval on the base model."""
    arguments = arguments_of(exported.base, tiny_model_folder)
    return lm_eval_run(exported.study, arguments, tmp_path_factory.mktemp("peer"))


@pytest.fixture(scope="module")
def lora_peer(
    exported: ExportedStudy, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    """lm-eval on the LoRA run, told what the export says, in the study's folder."""
    arguments = arguments_of(exported.lora, tiny_model_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(exported.study.root)
        return lm_eval_run(exported.study, arguments, tmp_path_factory.mktemp("lora_peer"))


@pytest.fixture
def copied(study: StudyFolder, tmp_path: Path) -> StudyFolder:
    """A study that a test may change."""
    ignored = shutil.ignore_patterns("export", "*.safetensors", "report*")
    shutil.copytree(study.root, tmp_path / "study", ignore=ignored)
    return StudyFolder(tmp_path / "study")


def test_every_model_has_its_folder_and_files(exported: ExportedStudy) -> None:
    base, lora, full = exported.models
    assert [base.name, lora.name[:-9], full.name[:-9]] == [
        "base", "colours-lora-r004-a008-s0", "colours-full-s0",
    ]  # fmt: skip
    output = exported.study.root / "export" / "lm-eval"
    names = [exported.base.results["model_name_sanitized"], lora.name, full.name]
    assert {path.name for path in output.iterdir()} == set(names)
    runs = [model.run for model in read_results(exported.study).runs]
    records = [exported.study.read_study(), *(run for run in runs if run is not None)]
    dates = [record.provenance.created_at for record in records]
    for model, name, created in zip(exported.models, names, dates, strict=True):
        date = created.removesuffix("+00:00").replace(":", "-")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d", date)
        assert model.file == output / name / f"results_{date}.json"
        assert {path.name for path in model.samples_files} == {
            f"samples_{task}_{date}.jsonl" for task in TASKS
        }
        assert set(model.file.parent.iterdir()) == {
            model.file, *model.samples_files,
        }  # fmt: skip


def test_only_what_decides_is_exported(exported: ExportedStudy) -> None:
    """Not the trained rows, which a study may score as well."""
    scored = read_results(exported.study).base.evaluations.keys()
    assert set(exported.base.results["results"]) == set(TASKS) <= scored


def test_exporting_twice_changes_nothing(exported: ExportedStudy) -> None:
    def content() -> dict[Path, bytes]:
        files = (exported.study.root / "export").rglob("*")
        return {path: path.read_bytes() for path in files if path.is_file()}

    before = content()
    assert export_study(exported.study, "lm-eval") == exported.models
    assert content() == before


# beside lm-eval


def test_the_base_is_named_as_lm_eval_names_it_where_its_folder_is(
    exported: ExportedStudy, peer: Written, tiny_model_folder: Path
) -> None:
    above = f"{tiny_model_folder.parent}/"
    for key in ("model_name", "model_name_sanitized"):
        begin = above if key == "model_name" else above.replace("/", "__")
        assert f"{begin}{exported.base.results[key]}" == peer.results[key]
    assert f"{above.replace('/', '__')}{exported.base.folder.name}" == peer.folder.name


def test_the_results_have_lm_evals_keys(exported: ExportedStudy, peer: Written) -> None:
    # no record knows the tokenizer
    tokenizer = {"tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token"}
    unknown = tokenizer | {"eot_token_id", "max_length"}
    ours, theirs = exported.base.results, peer.results
    assert ours.keys() == theirs.keys() - unknown
    assert ours["config"].keys() == theirs["config"].keys()
    order = [key for key in theirs if key not in unknown]
    assert list(ours) == order


def test_the_results_say_what_lm_eval_says(
    exported: ExportedStudy, peer: Written, tiny_model_folder: Path
) -> None:
    ours, theirs = exported.base.results, peer.results
    for key in (
        "group_subtasks", "versions", "n-shot", "n-samples", "task_hashes", "system_instruction",
        "system_instruction_sha", "chat_template", "chat_template_sha", "transformers_version",
        "lm_eval_version",
    ):  # fmt: skip
        assert ours[key] == theirs[key], key
    # loss_nats and p_right are ours
    directions = {
        task: {name: value for name, value in of_task.items() if name not in OURS}
        for task, of_task in ours["higher_is_better"].items()
    }
    assert directions == theirs["higher_is_better"]
    assert ours["higher_is_better"]["small_prose"]["loss_nats"] is False
    assert ours["higher_is_better"]["colours"]["p_right"] is True
    arguments = arguments_of(exported.base, tiny_model_folder)
    assert arguments == theirs["config"]["model_args"]
    for key in ("model_dtype", "limit", "use_cache", "gen_kwargs", "batch_sizes"):
        assert ours["config"][key] == theirs["config"][key], key
    assert isinstance(ours["date"], float)
    assert float(ours["total_evaluation_time_seconds"]) > 0.0


def test_nothing_unknown_is_made_up(exported: ExportedStudy) -> None:
    config = exported.base.results["config"]
    assert {key for key, value in config.items() if value is None} == {
        "model_num_parameters", "model_revision", "model_sha", "batch_size", "use_cache", "limit",
        "bootstrap_iters", "gen_kwargs", "random_seed", "numpy_seed", "torch_seed", "fewshot_seed",
    }  # fmt: skip
    assert config["model"] == exported.base.results["model_source"] == "rankwise"


def test_the_task_configs_are_parts_of_lm_evals(exported: ExportedStudy, peer: Written) -> None:
    for task in TASKS:
        ours, theirs = exported.base.results["configs"][task], peer.results["configs"][task]
        assert ours.keys() <= theirs.keys()
        for key in ("task", "num_fewshot", "output_type"):
            assert ours[key] == theirs[key]
        assert ours["metadata"].items() <= theirs["metadata"].items()
        known = {metric["metric"]: metric for metric in theirs["metric_list"]}
        assert {metric["metric"] for metric in ours["metric_list"]} == known.keys()
        for metric in ours["metric_list"]:
            assert metric.items() <= known[metric["metric"]].items()
        names = [each["name"] for each in ours.get("filter_list", [])]
        assert names == [each["name"] for each in theirs.get("filter_list", [])]
    assert names_of_filters(exported.base.results, "digits") == ["whole", "first-letter"]


def names_of_filters(results: dict[str, Any], task: str) -> list[str]:
    return [each["name"] for each in results["configs"][task]["filter_list"]]


@pytest.mark.parametrize("model", ["base", "lora"])
def test_the_scores_are_lm_evals(
    exported: ExportedStudy, peer: Written, lora_peer: Written, model: str
) -> None:
    mine, its = (exported.base, peer) if model == "base" else (exported.lora, lora_peer)
    assert list(mine.results["results"]) == list(TASKS)
    for task in TASKS:
        ours = mine.results["results"][task]
        theirs = its.results["results"][task]
        added = [key for key in ours if key.startswith(("loss_nats", "p_right"))]
        assert ours.keys() - set(added) == theirs.keys()
        assert bool(added) == (task in ("last_word", "small_prose", "colours"))
        for key, value in theirs.items():
            if key == "perplexity_stderr,none":  # bootstrapped by lm-eval, not by us
                assert (ours[key], isinstance(value, float)) == ("N/A", True)
            elif isinstance(value, float):
                assert ours[key] == pytest.approx(value, rel=1e-3), (task, key)
            else:
                assert ours[key] == value


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", ["base", "lora"])
def test_the_samples_are_lm_evals(
    exported: ExportedStudy, peer: Written, lora_peer: Written, model: str, task: str
) -> None:
    mine, its = (exported.base, peer) if model == "base" else (exported.lora, lora_peer)
    ours, theirs = mine.samples(task), its.samples(task)
    assert len(ours) == len(theirs) >= 8
    for a, b in zip(ours, theirs, strict=True):
        assert [key for key in a if key not in OURS] == list(b)
        for key, value in b.items():
            assert nearly(a[key], value), (key, a[key], value)


def nearly(ours: Any, theirs: Any) -> bool:
    """The same, but for the last digits of a number (batches differ), also as a text."""
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(nearly, ours, theirs))
    if ours == theirs and type(ours) is type(theirs):
        return True
    if isinstance(theirs, str):
        number = r"-?\d+\.\d+(e-?\d+)?"
        assert re.fullmatch(number, ours), ours
        assert re.fullmatch(number, theirs), theirs
    return float(ours) == pytest.approx(float(theirs), rel=1e-3, abs=1e-3)


# lm-eval's own readers


@pytest.fixture
def as_lm_eval_reads(exported: ExportedStudy) -> dict[str, Any]:
    from lm_eval.utils import get_latest_filename, get_results_filenames

    files = [path.as_posix() for path in exported.base.folder.iterdir()]
    latest = get_latest_filename(get_results_filenames(files))
    return json.loads(Path(latest).read_text(encoding="utf-8"))


def test_lm_eval_finds_the_files(exported: ExportedStudy) -> None:
    from lm_eval.utils import (
        get_file_datetime,
        get_file_task_name,
        get_results_filenames,
        get_sample_results_filenames,
    )

    for model in (exported.base, exported.lora, exported.full):
        files = [path.as_posix() for path in model.folder.iterdir()]
        (results,) = get_results_filenames(files)
        samples = get_sample_results_filenames(files)
        assert {get_file_task_name(Path(path).name) for path in samples} == set(TASKS)
        date = get_file_datetime(Path(results).name).removesuffix(".json")
        assert {get_file_datetime(Path(path).name) for path in samples} == {date}


def test_lm_eval_prints_its_table(as_lm_eval_reads: dict[str, Any], peer: Written) -> None:
    from lm_eval.utils import make_table

    ours = make_table(as_lm_eval_reads).splitlines()
    theirs = make_table(peer.results).splitlines()
    rows = [line for line in ours if "loss_nats" not in line and "p_right" not in line]
    assert len(rows) == len(theirs)
    assert len(ours) == len(theirs) + 3
    sure = ("acc", "exact_match")  # a perplexity differs in the last digits
    cells = [
        [line.split("|")[1:] for line in lines if any(name in line for name in sure)]
        for lines in (rows, theirs)
    ]
    assert [[c.strip() for c in row] for row in cells[0]] == [
        [c.strip() for c in row] for row in cells[1]
    ]


def test_lm_evals_logger_takes_the_results(as_lm_eval_reads: dict[str, Any]) -> None:
    from lm_eval.loggers import WandbLogger

    logger = object.__new__(WandbLogger)
    logger.post_init(as_lm_eval_reads)
    assert set(logger._get_config()["task_configs"]) == set(TASKS)
    _, flat = logger._sanitize_results_dict()
    assert flat["sums/exact_match"] == as_lm_eval_reads["results"]["sums"]["exact_match,none"]


def test_datasets_loads_the_files(exported: ExportedStudy, tmp_path: Path) -> None:
    """As lm-eval's page on the hub does."""
    from datasets import load_dataset

    def rows(path: Path) -> Any:
        return load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path))

    for model in (exported.base, exported.lora):
        (results,) = model.folder.glob("results_*.json")
        assert rows(results)["results"][0].keys() == set(TASKS)
        for task in TASKS:
            loaded = rows(model.samples_file(task))
            assert loaded["doc_hash"] == [line["doc_hash"] for line in model.samples(task)]


# what only some studies have


def test_a_limited_task_has_an_unknown_number_of_documents(copied: StudyFolder) -> None:
    for limit, original in ((26, None), (27, 26)):
        change(copied.evaluation_file("base", "colours"), limit=limit)
        results = Written.read(export_study(copied, "lm-eval")[0].file.parent).results
        assert results["n-samples"]["colours"] == {"original": original, "effective": 26}
        assert results["n-samples"]["sums"] == {"original": 8, "effective": 8}


def test_an_unknown_chat_template_is_not_said_to_be_none(copied: StudyFolder) -> None:
    change(copied.evaluation_file("base", "colours"), chat_template=True)
    results = Written.read(export_study(copied, "lm-eval")[0].file.parent).results
    assert not {"chat_template", "chat_template_sha"} & results.keys()


def test_a_version_that_is_no_number_stays_a_text(copied: StudyFolder) -> None:
    for text, version in (("Yaml", "Yaml"), ("1.10", "1.10"), ("3", 3), ("0.0", 0.0)):
        change(copied.evaluation_file("base", "colours"), task_version=text)
        results = Written.read(export_study(copied, "lm-eval")[0].file.parent).results
        assert results["versions"]["colours"] == version
        assert type(results["versions"]["colours"]) is type(version)


def test_a_diverged_run_is_left_out(copied: StudyFolder) -> None:
    run = copied.read_study().runs[0]
    change(copied.run_file(run.name), status="diverged", message="no number", final_loss_nats=None)
    names = [model.name for model in export_study(copied, "lm-eval")]
    assert names == ["base", copied.read_study().runs[1].name]


def test_a_run_says_how_to_load_it(exported: ExportedStudy) -> None:
    base = exported.base.results["config"]["model_args"]
    for model, key, name in (
        (exported.lora, "peft", "adapter"),
        (exported.full, "pretrained", "checkpoint"),
    ):
        arguments = model.results["config"]["model_args"]
        assert arguments[key] == f"runs/{model.results['model_name']}/{name}"
        assert (exported.study.root / arguments[key]).is_dir()
        assert model.results["model_name"] == model.folder.name
    assert exported.lora.results["config"]["model_args"]["pretrained"] == base["pretrained"]


def test_an_unfinished_study_is_refused(
    copied: StudyFolder, tmp_path: Path, sentence: Sentences
) -> None:
    copied.evaluation_file("base", "sums").unlink()
    with pytest.raises(RecordError) as caught:
        export_study(copied, "lm-eval", tmp_path / "out")
    sentence(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(
    copied: StudyFolder, tmp_path: Path, sentence: Sentences
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        export_study(copied, "lm-eval", tmp_path / "file")
    sentence(caught.value)


def test_imported_models_are_exported_and_say_how_to_load_them(
    study: StudyFolder, copied: StudyFolder, tmp_path: Path
) -> None:
    lora, full = study.read_study().runs
    imports = [
        {"adapter": str(study.weights_folder(lora)), "name": "theirs"},
        {"checkpoint": str(study.weights_folder(full))},
    ]
    overrides = [
        f"methods.imported={json.dumps(imports)}",
        "methods.lora=null",
        "methods.full=null",
    ]
    plan = plan_study(load_config(study.root.parent / "tiny.yaml", overrides))
    run_study(plan, StudyFolder(tmp_path / "imported"), Silent())
    base, *models = export_study(StudyFolder(tmp_path / "imported"), "lm-eval", tmp_path / "out")
    adapter, checkpoint = (
        Written.read(model.file.parent).results["config"]["model_args"] for model in models
    )
    assert (tmp_path / "imported" / adapter["peft"]).is_dir()
    assert checkpoint["pretrained"] == study.weights_folder(full).name
    files = {path for model in (base, *models) for path in (model.file, *model.samples_files)}
    written = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == files | {tmp_path / "out" / MANIFEST}


@pytest.mark.parametrize("earlier", [False, True])
def test_an_export_that_fails_leaves_what_was_there(
    copied: StudyFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    earlier: bool,
    sentence: Sentences,
) -> None:
    output = tmp_path / "a" / "out"
    if earlier:
        output.mkdir(parents=True)
        (output / "mine").write_text("here before")
    last = copied.read_study().runs[-1].name
    real = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.parent.name == last and target.name.startswith("results"):
            raise OSError(28, "No space left on device")
        return real(path, target)

    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StorageError) as caught:
            export_study(copied, "lm-eval", output)
        sentence(caught.value, names=(output,))
    assert sorted(tmp_path.rglob("*")) == before
    assert len(export_study(copied, "lm-eval", output)) == 3
    assert (output / "mine").exists() == earlier
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("-tmp")]


# the command


def test_the_command_says_what_it_wrote(exported: ExportedStudy, tmp_path: Path) -> None:
    arguments = ["export", str(exported.study.root), "--format", "lm-eval"]
    done = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [model.name for model in exported.models]
    for line, model in zip(lines, exported.models, strict=True):
        assert line.endswith(f"{model.file.name} and 5 samples files")
    for path in (tmp_path / "out").rglob("[a-z]*.json*"):
        twin = exported.study.root / "export" / "lm-eval" / path.relative_to(tmp_path / "out")
        assert path.read_bytes() == twin.read_bytes()


def test_the_command_refuses_another_format_and_no_study(
    tmp_path: Path, sentence: Sentences
) -> None:
    wrong = CliRunner().invoke(app, ["export", str(tmp_path), "--format", "xlsx"])
    assert wrong.exit_code == 2
    assert "lm-eval" in wrong.stderr
    nothing = CliRunner().invoke(app, ["export", str(tmp_path)])
    assert nothing.exit_code == 1
    sentence(nothing.stderr, names=(tmp_path, "/study.json"))


def test_exporting_and_comparing_load_nothing_heavy(
    exported: ExportedStudy, tmp_path: Path
) -> None:
    code = f"""
import sys
from rankwise.cli.main import app
for arguments in (
    ["export", {str(exported.study.root)!r}, "--output", {str(tmp_path)!r}],
    ["verdict", {str(exported.base.samples_file("colours"))!r},
     {str(exported.lora.samples_file("colours"))!r}],
):
    try:
        app(arguments, prog_name="rankwise")
    except SystemExit as stop:
        assert stop.code == 0, stop.code
heavy = ("torch", "transformers", "peft", "datasets", "lm_eval")
assert [name for name in heavy if name in sys.modules] == []
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# the verdict on all these files


@pytest.mark.parametrize("task", TASKS)
def test_exported_samples_compare_as_the_study_does(exported: ExportedStudy, task: str) -> None:
    results = read_results(exported.study)
    (row,) = (
        row
        for row in comparisons(OptionGains(results.of("colours")))
        if (row.run, row.task) == (exported.lora.folder.name, task)
    )
    decision = results.base.evaluations[task].decision
    verdicts = compare_samples(
        exported.base.samples_file(task),
        [exported.lora.samples_file(task)],
        metric=decision.metric,
        filter_name=decision.filter,
    )
    (verdict,) = verdicts.candidates
    assert (verdicts.unit, verdicts.metric) == (row.unit, decision.metric)
    file = exported.base.samples_file(task)
    assert higher_is_better(file, decision.metric) is decision.higher_is_better
    assert verdicts.higher_is_better is decision.higher_is_better
    assert (verdicts.base, verdict.name) == (exported.base.folder.name, row.run)
    same = (
        "num_examples", "base_score", "adapted_score", "stderr", "num_learned",
        "num_forgotten", "num_kept_right", "num_kept_wrong", "accuracy",
    )  # fmt: skip
    assert {name: getattr(verdict.of, name) for name in same} == {
        name: getattr(row, name) for name in same
    }
    assert verdict.of.difference.estimate == row.difference.estimate
    assert (row.accuracy is not None) == (task == "colours")
    if row.accuracy is None:
        assert row.mcnemar_p_value in (None, verdict.of.mcnemar_p_value)
    if task == "small_prose":  # the tiny model answers as many of the others right as before
        assert verdict.of.difference.estimate != 0.0


def test_the_study_folders_own_samples_will_do(exported: ExportedStudy) -> None:
    study, run = exported.study, exported.lora.folder.name
    raw = compare_samples(
        study.samples_file("base", "colours"), [study.samples_file(run, "colours")]
    )
    assert (raw.base, raw.candidates[0].name) == ("base", f"runs/{run}")
    assert raw.warnings == ()
    files = [model.samples_file("colours") for model in (exported.base, exported.lora)]
    ours = compare_samples(files[0], files[1:]).candidates[0]
    assert raw.candidates[0].of.difference.estimate == ours.of.difference.estimate
    assert raw.candidates[0].of.p_value == ours.of.p_value


@pytest.mark.parametrize("task", ["colours", "sums", "digits", "last_word"])
def test_lm_evals_samples_compare_as_ours_do(
    exported: ExportedStudy, peer: Written, lora_peer: Written, task: str
) -> None:
    ours = compare_samples(exported.base.samples_file(task), [exported.lora.samples_file(task)])
    theirs = compare_samples(peer.samples_file(task), [lora_peer.samples_file(task)])
    mixed = compare_samples(peer.samples_file(task), [exported.lora.samples_file(task)])
    assert (ours.metric, ours.filter, ours.unit) == (theirs.metric, theirs.filter, theirs.unit)
    for verdicts in (theirs, mixed):
        assert verdicts.higher_is_better is ours.higher_is_better
        (verdict,), (wanted,) = verdicts.candidates, ours.candidates
        assert verdict.verdict == wanted.verdict
        assert verdict.of.num_learned == wanted.of.num_learned
        assert verdict.of.difference.estimate == pytest.approx(
            wanted.of.difference.estimate, rel=1e-3, abs=1e-9
        )
        assert verdict.of.p_value == pytest.approx(wanted.of.p_value, rel=1e-2)


def test_a_perplexity_of_items_is_a_log_likelihood(peer: Written, lora_peer: Written) -> None:
    """lm-eval says that less of it is better, and writes for an item what more of is better."""
    files = [peer.samples_file("last_word"), lora_peer.samples_file("last_word")]
    assert peer.results["higher_is_better"]["last_word"]["perplexity"] is False
    verdicts = compare_samples(files[0], files[1:], metric="perplexity")
    (verdict,) = verdicts.candidates
    before, after = (
        written.results["results"]["last_word"]["perplexity,none"] for written in (peer, lora_peer)
    )
    assert before != after
    assert (verdict.of.difference.estimate > 0) == (after < before)
    assert (verdicts.unit, verdicts.higher_is_better) == ("units", True)
    assert any("log-likelihoods" in warning for warning in verdicts.warnings)
