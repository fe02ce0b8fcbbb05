"""What fits into memory: how full fine-tuning is kept, and what planning refuses."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.engine.models.devices import Machine
from rankwise.engine.training.memory import AdapterSize
from rankwise.errors import PlanError
from rankwise.records.config.methods import FullConfig, MethodsConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.files import in_words
from rankwise.records.folder import StudyFolder
from rankwise.records.study import FullTraining, StudyRecord
from rankwise.records.study_file import load_config
from rankwise.study.planning import fitting
from rankwise.study.planning.fitting import FULL_TRAININGS, full_training
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import study_model
from rankwise.study.planning.passes import USABLE_SHARE, least_bytes
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.study.stages.graph import stages
from rankwise.study.stages.training import Train
from tests.support.observers import Silent
from tests.support.sentences import Sentences
from tests.support.small_studies import SEARCHED, write_study
from tests.support.studies import run

FLOAT32, BFLOAT16, EIGHT_BIT = FULL_TRAININGS
SIZE = r"\b\d+\.\d(?= MB)"
"""In a sentence: what code of libraries takes differs between their versions."""


def card(fits: int) -> Machine:
    """One on which passes may take exactly so many bytes."""
    memory_bytes = math.ceil(fits / USABLE_SHARE)
    assert int(USABLE_SHARE * memory_bytes) == fits
    return Machine(torch.device("cuda"), memory_bytes)


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "has_8bit_adamw", lambda _: True)


@pytest.fixture
def no_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "has_8bit_adamw", lambda _: False)


class Planted:
    """1000 weights, with their gradients and moments and nothing else."""

    longest, likely_tokens, kept_tokens = 100, 2048, 0

    def __init__(self, full: FullTraining = FLOAT32) -> None:
        self.full = full

    def changed(self, full: FullTraining) -> Planted:
        return Planted(full)

    def full_bytes(self, max_tokens: int, gradient_checkpointing: bool) -> int:
        width = {"float32": 4, "bfloat16": 2}[self.full.weights]
        of_weight = 2 * width + {"adamw": 8, "adamw_8bit": 2}[self.full.optimizer]
        return 1000 * of_weight


def taken(fits: int, earlier: FullTraining | None = None, **named: Any) -> FullTraining | None:
    methods = MethodsConfig(full=FullConfig(**named))
    config = StudyConfig.model_validate(
        {"base_model": "m", "train": {"task": "t"}, "methods": methods.model_dump(by_alias=True)}
    )
    memory: Any = Planted()
    return full_training(config, memory, card(fits), earlier)


@pytest.mark.usefixtures("torchao")
def test_full_fine_tuning_takes_the_most_exact_that_fits() -> None:
    assert taken(16_000) == FLOAT32
    assert [taken(fits) for fits in (15_999, 12_000)] == [BFLOAT16] * 2
    assert [taken(fits) for fits in (11_999, 6_000, 5_999)] == [EIGHT_BIT] * 3


@pytest.mark.usefixtures("no_torchao")
def test_without_torchao_moments_stay_float32() -> None:
    assert [taken(fits) for fits in (16_000, 12_000, 5_999)] == [FLOAT32, BFLOAT16, BFLOAT16]
    assert taken(1, optimizer="adamw_8bit") == EIGHT_BIT  # as the study file says


@pytest.mark.usefixtures("torchao")
def test_what_the_study_file_names_is_kept() -> None:
    float32_in_8_bits = FullTraining(weights="float32", optimizer="adamw_8bit")
    assert taken(16_000, weights="bfloat16") == BFLOAT16
    assert taken(11_999, weights="bfloat16") == EIGHT_BIT
    assert taken(11_999, optimizer="adamw") == BFLOAT16
    assert taken(10_000, optimizer="adamw_8bit") == float32_in_8_bits
    assert taken(9_999, optimizer="adamw_8bit") == EIGHT_BIT
    assert taken(15_999, weights="float32") == float32_in_8_bits
    assert taken(1, weights="float32", optimizer="adamw") == FLOAT32


@pytest.mark.usefixtures("torchao")
def test_what_was_taken_before_is_kept_unless_the_study_file_names_another() -> None:
    assert taken(16_000, earlier=EIGHT_BIT) == EIGHT_BIT
    assert taken(1, earlier=FLOAT32) == FLOAT32
    assert taken(16_000, earlier=BFLOAT16, weights="float32") == FLOAT32


@pytest.fixture
def deep_study(study_file: Path, tmp_path: Path, tiny_model_folder: Path) -> Path:
    """The study on a model of 24 layers, most of whose weights are in them."""
    folder = tmp_path / "deep"
    shutil.copytree(tiny_model_folder, folder)
    model = LlamaForCausalLM.from_pretrained(tiny_model_folder)
    LlamaForCausalLM(
        LlamaConfig(**model.config.to_dict() | {"num_hidden_layers": 24})
    ).save_pretrained(folder)
    text = study_file.read_text().replace(str(tiny_model_folder), str(folder))
    study_file.write_text(text)
    return study_file


def warned(study_file: Path, memory_bytes: int, *overrides: str, num_cards: int = 1) -> list[str]:
    """What is said of scoring where each card has so much memory and nothing is trained yet."""
    config, issues = load_config(study_file, overrides), Issues()
    machine = Machine(torch.device("cuda"), memory_bytes)._replace(num_cards=num_cards)
    model = study_model(config, lambda _: None, machine)
    runs = plan_study(load_config(study_file)).record.runs
    methods = {"lora": config.methods.lora, "full": config.methods.full}
    runs = tuple(run for run in runs if methods[run.method] is not None)
    no_passes: Any = None
    fitting.Room(config, model, None, no_passes, memory_bytes, machine.cards).check_scoring(
        runs, issues
    )
    assert issues.problems == []
    return issues.warnings


def test_a_scored_model_that_does_not_fit_is_said(study_file: Path, sentence: Sentences) -> None:
    no_lora, no_full = "methods.lora=null", "methods.full=null"
    config = load_config(study_file)
    whole = 4 * study_model(config, lambda _: None).num_parameters
    small = whole * 100 // 86
    assert warned(study_file, whole * 100 // 84, no_lora) == []
    (warning,) = warned(study_file, small, no_lora)
    sentence(warning, names=("scoring", in_words(whole)), SIZE=SIZE)
    # LoRA that is trained on the base in memory takes more, and is checked as such
    assert warned(study_file, small) == []
    # a quantised base is smaller; full fine-tuning is not quantised
    assert warned(study_file, small, "train.base_precision=4bit", no_full) == []
    assert warned(study_file, small, "train.base_precision=4bit") != []
    assert warned(study_file, small, no_lora, num_cards=2) == []


SETTINGS = ("methods.full=null", "analysis.gauges=true", "analysis.heads=false")


def cards(fits: int, number: int = 4) -> Machine:
    return card(fits)._replace(num_cards=number)


def rooms(deep_study: Path, *overrides: str) -> tuple[Any, int, int]:
    """Memory of passes, and what the largest adapter needs: on one card, and of each of four."""
    memory, train = memory_of(deep_study, *SETTINGS, *overrides)
    large = fitting.size_of(planned(deep_study, *SETTINGS, *overrides).runs[-1])
    of_each = least_bytes(memory.changed(num_cards=4), train, large)
    return memory, least_bytes(memory, train, large), of_each


def test_a_base_that_fits_on_no_card_is_laid_over_all(
    deep_study: Path, sentence: Sentences
) -> None:
    memory, whole, of_each = rooms(deep_study)
    assert of_each < memory.base_bytes < whole
    config = load_config(deep_study, SETTINGS)
    plan = plan_study(config, machine=cards(of_each))
    assert plan.cards == tuple(torch.device("cuda", number) for number in range(4))
    assert all(each.estimated_memory_bytes <= of_each for each in plan.record.passes)
    (warning,) = plan.record.warnings
    fullest = in_words(memory.changed(num_cards=4).base_bytes)
    sentence(warning, names=("base_model", "4 cards", fullest), SIZE=SIZE)
    # the base fits on one card, and an adapter on it does not
    assert len(plan_study(config, machine=cards(whole - 1)).cards) == 4
    assert plan_study(config, machine=cards(whole)).cards == ()
    with pytest.raises(PlanError) as caught:
        plan_study(config, machine=cards(of_each), num_workers=2)  # each has a card of its own
    assert "methods.lora: " in str(caught.value)
    (problem,) = problems(deep_study, *SETTINGS, machine=cards(of_each // 2))
    assert "takes" in problem


def test_an_adapter_that_does_not_fit_on_all_cards_either(
    deep_study: Path, sentence: Sentences
) -> None:
    _, _, of_each = rooms(deep_study)
    tight = planned(deep_study, *SETTINGS, machine=cards(of_each - 1))
    _, warning = tight.warnings  # it takes more than is planned for, and less than there is
    sentence(warning, names=(in_words(of_each), "4 cards", "train.max_length"), SIZE=SIZE)


def test_what_needs_the_whole_base_on_one_card_is_refused(
    deep_study: Path, sentence: Sentences
) -> None:
    memory, _, of_each = rooms(deep_study)
    more = ("analysis.heads=true", "deploy=[merged-bf16]")
    variant = "methods.variants={names: [dora]}"
    (problem,) = problems(deep_study, *SETTINGS, *more, machine=cards(of_each))
    quantised = in_words(memory.changed(base_precision="4bit").base_bytes)
    settings = ("analysis.heads=false", "deploy=[]", "train.base_precision=4bit", quantised)
    sentence(problem, "heads and forms", names=settings, SIZE=SIZE)
    found = problems(deep_study, *SETTINGS, variant, machine=cards(of_each))
    sentence(found, "a variant", names=("methods.variants", "dora"), part=True, SIZE=SIZE)


def test_all_weights_that_fit_on_no_card_are_left_to_another_trainer(
    deep_study: Path, sentence: Sentences
) -> None:
    _memory, _, of_each = rooms(deep_study)
    found = problems(deep_study, "analysis.heads=false", machine=cards(of_each))
    (problem,) = [each for each in found if each.startswith("methods.full: ")]
    sentence(
        problem, names=("train.max_length", "methods.full=null", "methods.imported"), SIZE=SIZE
    )


# of a whole study


def planned(study_file: Path, *overrides: str, **options: Any) -> StudyRecord:
    return plan_study(load_config(study_file, overrides), **options).record


def fulls(record: StudyRecord) -> dict[str, Any]:
    (run,) = (run for run in record.runs if run.method == "full")
    return {"full": run.full, "fingerprint": run.fingerprint}


def memory_of(study_file: Path, *overrides: str) -> Any:
    plan = plan_study(load_config(study_file, overrides), machine=card(10**9))
    assert plan.planner is not None
    return plan.planner.room.memory, plan.record.config.train


@pytest.mark.usefixtures("torchao")
def test_a_study_is_planned_for_what_each_way_needs(study_file: Path) -> None:
    memory, train = memory_of(study_file)
    peaks = [least_bytes(memory.changed(full=each), train, None) for each in FULL_TRAININGS]
    num_weights = 60_912
    # moments of 8 bytes against those of 2 and a scale of 4 bytes for each 256, twice
    assert peaks[1] - peaks[2] == 6 * num_weights - 8 * math.ceil(num_weights / 256)
    for peak, choice in ((peaks[0], FLOAT32), (peaks[0] - 1, EIGHT_BIT), (peaks[2], EIGHT_BIT)):
        record = planned(study_file, machine=card(peak))  # of so few weights BFLOAT16 saves nothing
        assert fulls(record)["full"] == choice
        assert record.config.methods.full == FullConfig(**choice.model_dump())


@pytest.mark.usefixtures("torchao")
def test_fingerprints_are_those_of_what_is_taken(study_file: Path) -> None:
    memory, train = memory_of(study_file)
    peak = least_bytes(memory.changed(full=EIGHT_BIT), train, None)
    named = "methods.full={weights: bfloat16, optimizer: adamw_8bit}"
    found, wanted = planned(study_file, machine=card(peak)), planned(study_file, named)
    assert fulls(found) == fulls(wanted)
    assert found.fingerprint == wanted.fingerprint
    most, wanted = (
        planned(study_file),
        planned(study_file, "methods.full={weights: float32, optimizer: adamw}"),
    )
    assert fulls(most) == fulls(wanted)
    assert fulls(most)["fingerprint"] != fulls(found)["fingerprint"]
    assert most.fingerprint == wanted.fingerprint != found.fingerprint


@pytest.mark.usefixtures("torchao")
def test_a_study_that_goes_on_keeps_what_it_took(study_file: Path) -> None:
    memory, train = memory_of(study_file)
    small = card(least_bytes(memory.changed(full=EIGHT_BIT), train, None))
    folder = StudyFolder(study_file.parent / "study")
    first = planned(study_file, machine=small, folder=folder)
    folder.write(folder.study_file, first)
    again = planned(study_file, "seeds=[0,1]", machine=card(10**9), folder=folder)
    assert [run.full for run in again.runs if run.method == "full"] == [EIGHT_BIT] * 2
    assert fulls(first)["fingerprint"] in {run.fingerprint for run in again.runs}
    folder.write(
        folder.study_file, first.model_copy(update={"base_model_fingerprint": "another model"})
    )
    assert fulls(planned(study_file, machine=card(10**9), folder=folder))["full"] == FLOAT32


def problems(study_file: Path, *overrides: str, **options: Any) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        planned(study_file, *overrides, **options)
    return caught.value.problems


def test_what_cannot_fit_is_a_problem_with_the_setting_that_would(
    study_file: Path, sentence: Sentences
) -> None:
    memory, train = memory_of(study_file)
    peaks = [least_bytes(memory.changed(full=each), train, None) for each in FULL_TRAININGS]
    float32 = "methods.full={weights: float32, optimizer: adamw}"
    (problem,) = problems(study_file, float32, machine=card(peaks[2]))
    there, planned_for = f"{peaks[2] / USABLE_SHARE / 1e6:.1f} MB", f"{peaks[2] / 1e6:.1f} MB"
    setting = "methods.full={weights: bfloat16, optimizer: adamw_8bit}"
    needed = f"{peaks[0] / 1e6:.1f} MB"
    sentence(problem, names=("methods.full: ", needed, there, planned_for, setting), SIZE=SIZE)
    # what takes more than is planned for and less than there is may fit
    tight = Machine(torch.device("cuda"), peaks[0])
    (warning,) = planned(study_file, float32, machine=tight).warnings
    assert warning.startswith("methods.full: ")
    problems(study_file, float32, machine=Machine(torch.device("cuda"), peaks[0] - 1))


def test_adapters_that_cannot_fit_are_told_of_a_smaller_base(
    study_file: Path, sentence: Sentences
) -> None:
    lora = ("methods.full=null", "methods.lora.ranks=[2, 4]")
    memory, train = memory_of(study_file, *lora)
    largest = fitting.size_of(planned(study_file, *lora).runs[-1])
    peak = least_bytes(memory, train, largest)
    four = least_bytes(memory.changed(base_precision="4bit"), train, largest)
    assert four < least_bytes(memory.changed(base_precision="8bit"), train, largest) < peak
    (problem,) = problems(study_file, *lora, machine=card(four))
    smaller = ("train.base_precision=4bit", f"{four / 1e6:.1f} MB")
    sentence(
        problem, "4bit", names=("methods.lora: ", "colours-lora-r004-a008-s0-", *smaller), SIZE=SIZE
    )
    (problem,) = problems(study_file, *lora, machine=card(four // 2))
    sentence(problem, "less", names=("train.max_length",), SIZE=SIZE)
    planned(study_file, *lora, machine=card(peak))
    fixed = (*lora, "train.gradient_checkpointing=false", "train.max_micro_batch_tokens=100000")
    (problem,) = problems(study_file, *fixed, machine=card(peak))
    settings = ("train.max_micro_batch_tokens", "train.gradient_checkpointing")
    sentence(problem, "fixed", names=settings, SIZE=SIZE)


def test_a_search_is_refused_before_it_comes_to_what_cannot_fit(study_file: Path) -> None:
    """The ladder begins at rank 4, and would go up."""
    search = ("methods.full=null", "search.policy=ladder", "methods.lora.ranks=[2, 4, 8]")
    memory, train = memory_of(study_file, *search)
    sizes = [AdapterSize(rank, rank * 1_344 // 2) for rank in (4, 8)]
    small, large = (least_bytes(memory, train, size) for size in sizes)
    assert small < large
    assert planned(study_file, *search, machine=card(large)).warnings == ()
    with pytest.raises(PlanError, match="colours-lora-r008"):
        planned(study_file, *search, machine=Machine(torch.device("cuda"), small))


def test_a_run_trains_and_records_what_was_taken(study_file: Path, tmp_path: Path) -> None:
    """What a card took, and the CPU that goes on keeps."""
    overrides = ("methods.lora.ranks=[2]", "train.epochs=1", "analysis.spectra=false")
    first = planned(study_file, *overrides, "methods.full={weights: bfloat16}", machine=card(10**9))
    folder = StudyFolder(tmp_path / "study")
    folder.write(folder.study_file, first)
    plan = plan_study(load_config(study_file, overrides), folder=folder)
    run_study(plan, folder, Silent())
    (run,) = (run for run in folder.read_study().runs if run.method == "full")
    finished = folder.finished_run(run)
    assert finished is not None
    assert finished.planned.full == BFLOAT16
    weights = load_file(folder.weights_folder(run) / "model.safetensors")
    assert {each.dtype for each in weights.values()} == {torch.bfloat16}
    # what is trained needs no memory any more; a new seed does
    too_small = Machine(torch.device("cuda"), 1000)
    planned(study_file, *overrides, "train.precision=float32", machine=too_small, folder=folder)
    seeds = (*overrides, "seeds=[0,1]")
    for_each = problems(study_file, *seeds, machine=too_small, folder=folder)
    assert [problem.partition("-s1-")[0] for problem in for_each] == [
        "methods.lora: training colours-lora-r002-a004",
        "methods.full: training colours-full",
    ]


def test_disk_is_planned_for_what_is_taken(study_file: Path) -> None:
    for full, num_bytes in ((FLOAT32, 4), (BFLOAT16, 2), (EIGHT_BIT, 2)):
        named = f"methods.full={{weights: {full.weights}, optimizer: {full.optimizer}}}"
        graph = stages(planned(study_file, named))
        (stage,) = (
            each
            for each in graph
            if each.model.startswith("colours-full") and isinstance(each, Train)
        )
        assert stage.disk_bytes == 60_912 * num_bytes
        assert stage.saves_states


# Machine


def test_a_card_that_is_described_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("CUDA was asked")

    for name in ("is_available", "is_bf16_supported", "mem_get_info", "get_device_name", "init"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    machine = Machine(torch.device("cuda"), 80 * 10**9)
    assert machine.available_bytes() == 80 * 10**9
    assert (machine.precision("auto"), machine.precision("float32")) == ("bfloat16", "float32")
    assert machine.name == "a CUDA card"


def test_a_processor_is_asked() -> None:
    machine = Machine(torch.device("cpu"))
    assert machine.available_bytes() > 100 << 20  # the process is in it
    assert Machine(torch.device("cpu"), 5).available_bytes() == 5
    assert machine.name == Machine(torch.device("cpu"), 5).name != ""


def test_a_finished_search_is_planned_whatever_its_dropped_settings_would_take(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    settings = "methods: {lora: {ranks: [2, 8]}, full: null}\n"
    file = write_study(tmp_path, tiny_model_folder, settings + SEARCHED)
    narrow, folder = ("search.policy=narrow", "seeds=[0, 1]"), StudyFolder(tmp_path / "study")
    run(file, folder.root, *narrow)
    small = Machine(torch.device("cuda"), 1000)
    plan_study(load_config(file, narrow), folder=folder, machine=small)
    with pytest.raises(PlanError, match=r"methods\.lora: training"):
        plan_study(load_config(file, narrow), machine=small)


def test_an_arm_that_does_not_fit_is_a_problem_too(study_file: Path, tmp_path: Path) -> None:
    over = ["methods.full=null", "methods.lora.ranks=[2]", "evaluation.retention=[sums]"]
    over += ["train.precision=float32", "evaluation.out_of_domain=[]", "analysis.spectra=false"]
    folder, small = StudyFolder(tmp_path / "study"), Machine(torch.device("cuda"), 1000)
    run(study_file, folder.root, *over)
    plan_study(load_config(study_file, over), folder=folder, machine=small)
    arm = "mitigations=[{learning_rate_factor: 0.3}]"
    with pytest.raises(PlanError, match=r"methods\.lora: training"):
        plan_study(load_config(study_file, [*over, arm]), folder=folder, machine=small)
