"""The callback in real trainings: its numbers are those of a check, and it disturbs nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import peft
import pytest
import torch
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from rankwise import RetentionCallback
from rankwise.engine.models.undisturbed import undisturbed, untrained
from rankwise.errors import ConfigError, DataError, ModelError, TaskError
from rankwise.findings.deployment import LossRule
from rankwise.findings.training_looks import TrainingLook
from rankwise.records.config.own_rows import ClauseConfig
from rankwise.records.deployment import DeploymentCheck, MeanDifference
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_contract
from rankwise.study.reading import read_results
from rankwise.weights.audit import find_adapter, find_audited
from rankwise.weights.deployment import Question, check_retention
from rankwise.weights.session import CONFIDENCE, ScoreSettings, audit_scores, prepared_tasks
from tests.planted.rounded import blue_tasks
from tests.support.audited_models import adapter, load
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.small_trainings import arguments, lora, rows, small_trainer
from tests.support.studies import run

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def tasks_folder(tasks_folder: Path) -> Path:
    """With blues, whose right answer is always blue, and never green."""
    return blue_tasks(tasks_folder)


def callback(
    tasks_folder: Path, tasks: Sequence[str] = ("blues", "hues"), **options: Any
) -> RetentionCallback:
    settings = {"every": 4, "items": 20, "tasks_path": [tasks_folder], "allow_task_code": True}
    return RetentionCallback(tasks, **{**settings, **options})


def settings_of(tasks_folder: Path, *tasks: str) -> ScoreSettings:
    return ScoreSettings(tasks, (tasks_folder,), True, limit=20, precision="float32")


def checked(
    base: Path,
    saved: Path,
    tasks_folder: Path,
    *tasks: str,
    own: Mapping[str, ClauseConfig] = MappingProxyType({}),
) -> DeploymentCheck:
    """What `rankwise check` finds."""
    found = find_adapter(str(base), saved, "checked", any_base=True, report=lambda _: None)
    settings = settings_of(tasks_folder, *tasks)._replace(own=own)
    rule = LossRule(1.0, 0.02, CONFIDENCE, dict.fromkeys(own))
    return check_retention(found, Question(prepared_tasks(found, settings), settings, rule))


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-4, abs=1e-4)


JUDGES: dict[str, Any] = {
    "says_green": "contains",
    "never_green": {"regex": {"must_not": "green"}},
    "likely": "loss",
    "chooses": "choice",
    "otherwise": {"code": "judge.py:score"},
}
"""How sets of own rows are judged; the base never says green."""


def own_sets(folder: Path, *names: str, **settings: Any) -> Path:
    """A contract of some of ``JUDGES`` on 12 questions, beside their rows and a check."""
    data = [
        {"prompt": f"Question: the colour of {n}?\nAnswer:", "completion": f" {colour}"}
        for n, colour in enumerate(["green"] * 11 + ["blue"])
    ]
    (folder / "colours.jsonl").write_text("\n".join(map(json.dumps, data)))
    (folder / "judge.py").write_text(
        "def score(row, answer, base_answer):\n"
        "    if row['completion'] == ' blue':\n"
        "        return None\n"
        "    return 0.5 if answer == base_answer else float('green' in answer)\n"
    )
    sets: dict[str, Any] = {}
    for name in names:
        room = {} if JUDGES[name] in ("loss", "choice") else {"max_new_tokens": 4}
        sets[name] = {"data": "colours.jsonl", "judged_by": JUDGES[name], **room, **settings}
    (folder / "contract.yaml").write_text(yaml.safe_dump(sets, sort_keys=False))
    return folder / "contract.yaml"


def test_numbers_of_own_sets_are_those_of_a_check_and_of_a_study(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    contract = own_sets(tmp_path, *JUDGES)
    watching = callback(tasks_folder, ["blues"], own=contract, every=2)
    data, settings = rows(tasks_folder, "green"), arguments(tmp_path / "out", 6, 2e-2)
    trainer = small_trainer(tiny_model_folder, data, settings, [watching], lora())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    look = watching.looks[-1]
    sets = load_contract(contract)
    form = checked(tiny_model_folder, tmp_path / "saved", tasks_folder, "blues", own=sets).forms[0]
    assert [change.tasks for change in look.own] == [(name,) for name in JUDGES]
    scores = {score.task: score for score in form.scores}
    means: dict[tuple[str, ...], MeanDifference] = {mean.tasks: mean for mean in form.means}
    for change in (*look.retention, *look.own):
        difference = means[change.tasks].difference
        assert change.shown.estimate == close(difference.estimate)
        assert change.shown.lower == close(difference.lower)
        assert change.score == close(scores[change.tasks[0]].form_score)
    assert scores["otherwise"].num_examples == 11  # of the twelfth the check has no number
    changes = {change.tasks[0]: change.shown.estimate for change in look.own}
    assert changes["says_green"] > 50.0
    assert changes["never_green"] < -50.0

    root = tmp_path / "study"
    root.mkdir()
    own_sets(root, "says_green", "never_green", role="out_of_domain")
    own = yaml.safe_load((root / "contract.yaml").read_text())
    imported = json.dumps([{"adapter": str(tmp_path / "saved")}])
    file = write_study(
        root,
        tiny_model_folder,
        f"train: {{task: colours}}\nmethods: {{lora: null, full: null, imported: {imported}}}\n"
        "analysis: {spectra: false, heads: false, gauges: false}\n"
        f"evaluation: {{num_train_items: 0, own: {json.dumps(own)}}}\n",
    )
    folder = root / "finished"
    run(file, folder)
    (imported_run,) = read_results(StudyFolder(folder)).runs
    for name in ("says_green", "never_green"):
        values = imported_run.items[name].values
        change = next(each for each in look.own if each.tasks == (name,))
        assert change.score == close(100.0 * sum(values) / len(values))


def test_what_is_logged_of_own_sets(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    """By sets in Python, whose paths are those of the current folder."""
    own_sets(tmp_path)
    own = {
        name: {"data": tmp_path / "colours.jsonl", "judged_by": JUDGES[name], "role": "in_domain"}
        for name in ("says_green", "likely")
    }
    watching = RetentionCallback(own=own, every=4, items=10)
    data, settings = rows(tasks_folder, "green"), arguments(tmp_path / "out", 4, 2e-2)
    trainer = small_trainer(tiny_model_folder, data, settings, [watching])
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "own/likely/score_nats" in entry]
    of_likely = ("score_nats", "change_nats", "change_nats_lower", "change_nats_upper")
    of_green = ("score", "change", "change_lower", "change_upper")
    assert logged.keys() == {
        "step",
        "epoch",
        *(f"own/likely/{each}" for each in of_likely),
        *(f"own/says_green/{each}" for each in of_green),
    }
    assert logged["own/says_green/score"] == logged["own/says_green/change"] > 50.0
    assert logged["own/likely/change_nats"] > 0.0


@pytest.mark.parametrize("limit", ["max_loss", "max_retention_loss", "in_domain"])
def test_a_training_that_breaks_a_contract_is_stopped(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, limit: str, sentence: Sentences
) -> None:
    """A set that is to be learned may lose what it wants, and so may one without a limit."""
    of_set = {"max_loss": {"max_loss": 5.0}, "in_domain": {"role": "in_domain"}}.get(limit, {})
    contract = own_sets(tmp_path, "never_green", **of_set)
    most = None if limit == "max_loss" else 5.0
    watching = RetentionCallback(own=contract, every=2, items=12, max_retention_loss=most)
    data, settings = rows(tasks_folder, "green"), arguments(tmp_path / "out", 8, 2e-2)
    trainer = small_trainer(tiny_model_folder, data, settings, [watching])
    trainer.train()
    assert watching.looks[-1].own[0].shown.upper < -5.0
    if limit == "in_domain":
        assert (watching.stop_reason, trainer.state.global_step) == (None, 8)
        return
    assert watching.stop_reason is not None
    assert trainer.state.global_step < 8
    sentence(watching.stop_reason, names=("never_green", "5.0 points"), NUMBER=r"[−+][\d.]+")


def test_the_last_numbers_of_an_adapter_are_those_of_a_check(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    watching = callback(tasks_folder, gain=["sums"])
    data, settings = rows(tasks_folder, "green"), arguments(tmp_path / "out", 6, 2e-2)
    trainer = small_trainer(tiny_model_folder, data, settings, [watching], lora())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert [(look.step, look.number) for look in watching.looks] == [(4, 1), (6, 2)]
    look = watching.looks[-1]
    for tasks, (mean,) in ((("blues", "hues"), look.retention), (("sums",), look.gain)):
        own = checked(tiny_model_folder, tmp_path / "saved", tasks_folder, *tasks)
        difference = own.forms[0].means[0].difference
        assert mean.tasks == tasks
        assert mean.shown.estimate == close(difference.estimate)
        assert mean.shown.lower == close(difference.lower)
        assert mean.shown.upper == close(difference.upper)
    assert look.retention[0].shown.estimate < -2.0
    logged = [entry for entry in trainer.state.log_history if "retention_change" in entry]
    assert [entry["step"] for entry in logged] == [4, 6]
    assert look.logged.items() <= logged[-1].items()
    assert set(look.logged) == {
        f"{name}{end}" for name in ("retention_change", "gain") for end in ("", "_lower", "_upper")
    }


def test_the_last_numbers_of_full_fine_tuning_are_those_of_an_audit(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    watching = callback(tasks_folder)
    data, settings = rows(tasks_folder, "blue"), arguments(tmp_path / "out", 4, 3e-3)
    trainer = small_trainer(tiny_model_folder, data, settings, [watching])
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    found = find_audited(str(tiny_model_folder), tmp_path / "saved", report=lambda _: None)
    own = settings_of(tasks_folder, "blues", "hues")
    scores = audit_scores(found, prepared_tasks(found, own), own).scores
    (look,) = watching.looks
    mean = sum(score.difference.estimate for score in scores) / 2
    assert look.retention[0].shown.estimate == close(mean)
    assert mean > 5.0


def test_a_training_that_forgets_is_stopped_and_one_that_does_not_move_is_not(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    reasons: list[str | None] = []
    for rate in (2e-2, 0.0):
        watching = callback(tasks_folder, ["blues"], max_retention_loss=1.0)
        settings = arguments(tmp_path / "out", 24, rate)
        trainer = small_trainer(
            tiny_model_folder, rows(tasks_folder, "green"), settings, [watching]
        )
        trainer.train()
        steps = trainer.state.global_step
        reasons.append(watching.stop_reason)
        if rate:
            assert steps < 24
            assert watching.looks[-1].step == steps
            assert watching.looks[-1].retention[0].deciding.upper < -1.0
            assert all(look.retention[0].deciding.upper >= -1.0 for look in watching.looks[:-1])
        else:
            assert steps == 24
            assert [look.number for look in watching.looks] == [1, 2, 3, 4, 5, 6]
            assert {look.retention[0].shown.estimate for look in watching.looks} == {0.0}
    stopped, kept = reasons
    assert kept is None
    assert stopped is not None
    assert "above 1.0 points" in stopped
    assert "over blues" in stopped


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        (lora(), {}),
        (lora(), {"bf16": True, "gradient_checkpointing": True, "neftune_noise_alpha": 5}),
        (None, {"bf16": True}),
    ],
    ids=["adapter", "adapter-bf16-checkpointed", "full-bf16"],
)
def test_losses_are_bit_for_bit_those_without_the_callback(
    tiny_model_folder: Path,
    tasks_folder: Path,
    tmp_path: Path,
    adapter: peft.LoraConfig | None,
    options: dict[str, Any],
) -> None:
    losses: list[list[float]] = []
    for with_callback in (True, False):
        own = own_sets(tmp_path, "says_green", "never_green")
        watching = [callback(tasks_folder, every=2, gain=["sums"], own=own)]
        trainer = small_trainer(
            tiny_model_folder,
            rows(tasks_folder, "green"),
            arguments(tmp_path / "out", 6, 1e-2, **options),
            watching if with_callback else [],
            adapter,
        )
        caches = trainer.model.config.use_cache
        trainer.train()
        assert trainer.model.config.use_cache == caches
        assert all(module.training for module in trainer.model.modules())
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        losses[-1] += [float(weight.double().sum()) for weight in trainer.model.parameters()]
    assert losses[0] == losses[1]
    assert len(set(losses[0][:6])) > 1


def test_a_model_is_given_back_as_it_was(tiny_model_folder: Path) -> None:
    model = peft.get_peft_model(load(tiny_model_folder), lora())
    model.train()
    model.base_model.model.model.layers[0].eval()
    half: Any = [weight for name, weight in model.named_parameters() if "lora_A" in name]
    half[0].requires_grad_(False)
    flags = [module.training for module in model.modules()]
    trained = [weight.requires_grad for weight in model.parameters()]
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    drawn = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    with undisturbed(model), untrained(model):
        assert not any(module.training for module in model.modules())
        torch.rand(5)
        random.random()
        np.random.rand(5)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == drawn
    assert [module.training for module in model.modules()] == flags
    assert [weight.requires_grad for weight in model.parameters()] == trained


def test_an_adapter_that_is_trained_on_is_compared_with_the_model_without_it(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a", std=0.5)
    watching = callback(tasks_folder)
    settings = arguments(tmp_path / "out", 1, 0.0)
    trainer = small_trainer(tiny_model_folder, rows(tasks_folder, "green"), settings, [watching])
    trainer.model = trainer.model_wrapped = trainer.callback_handler.model = (
        peft.PeftModel.from_pretrained(load(tiny_model_folder), tmp_path / "a", is_trainable=True)
    )
    trainer.train()
    own = checked(tiny_model_folder, tmp_path / "a", tasks_folder, "blues", "hues")
    (look,) = watching.looks
    assert look.retention[0].shown.estimate == close(own.forms[0].means[0].difference.estimate)
    assert look.retention[0].shown.estimate != 0.0


class Tracker(TrainerCallback):
    """What a tracker would be told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.told.append(dict(logs))


def test_trackers_are_told_where_the_trainer_is_given(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    tracker = Tracker()
    settings = arguments(tmp_path / "out", 2, 1e-3)
    data = rows(tasks_folder, "green")
    trainer = small_trainer(tiny_model_folder, data, settings, [tracker], lora())
    trainer.add_callback(callback(tasks_folder, trainer=trainer, every=2))
    trainer.train()
    (told,) = [logs for logs in tracker.told if "retention_change" in logs]
    (kept,) = [logs for logs in trainer.state.log_history if "retention_change" in logs]
    assert kept == told | {"step": 2}
    assert [logs["step"] for logs in trainer.state.log_history if "loss" in logs] == [1, 2]


def test_the_model_that_is_left_is_scored_where_an_earlier_one_is_loaded(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    """The loss on blue grows while green is learned, so the first checkpoint is the best one."""
    watching = callback(tasks_folder, every=2)
    every: dict[str, Any] = {
        f"{what}_{key}": value
        for what in ("save", "eval")
        for key, value in (("strategy", "steps"), ("steps", 2))
    }
    settings = arguments(tmp_path / "out", 6, 1e-2, load_best_model_at_end=True, **every)
    green, blue = (rows(tasks_folder, answer) for answer in ("green", "blue"))
    trainer = small_trainer(tiny_model_folder, green, settings, [watching], evaluated=blue)
    trainer.train()
    assert trainer.state.best_global_step == 2
    changes = [look.retention[0].shown for look in watching.looks]
    assert [look.step for look in watching.looks] == [2, 4, 6, 6]
    assert changes[3].estimate == close(changes[0].estimate)
    assert changes[2].estimate != close(changes[0].estimate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items: 0 give no interval; give a whole number, at least 2"),
        ({"items": 2.5}, "items: 2.5 give no interval"),
        ({"items": None}, "items: None give no interval"),
        ({"every": 0}, "every: 0 is not a number of steps; give at least 1"),
        ({"every": "2"}, "every: '2' is not a number of steps"),
        ({"every": 2.5}, "every: 2.5 is not a number of steps"),
        ({"num_fewshot": -1}, "num_fewshot: -1 is no number of examples"),
        ({"tasks_path": "tasks"}, r"tasks_path: 'tasks' is a text; give a list of names"),
        ({"max_retention_loss": 0.0}, "max_retention_loss: 0 is not a margin"),
        ({"max_retention_loss": float("nan")}, "max_retention_loss: nan is not a margin"),
        ({"gain": "sums"}, r"gain: 'sums' is a text; give a list of names: \['sums'\]"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    tasks_folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        callback(tasks_folder, **options)


def test_no_tasks_are_refused(sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        RetentionCallback([])
    sentence(caught.value, names=("tasks",))


def refusal(base: Path, tasks_folder: Path, folder: Path, **options: Any) -> Any:
    """A trainer that is about to train with the callback."""
    settings = arguments(folder / "out", 1, 1e-3)
    watching = callback(tasks_folder, **options)
    return small_trainer(base, rows(tasks_folder, "green"), settings, [watching])


def test_a_misspelt_task_is_refused_before_the_first_step(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    trainer = refusal(tiny_model_folder, tasks_folder, tmp_path, gain=["coluors"])
    with pytest.raises(TaskError) as caught:
        trainer.train()
    sentence(caught.value, names=("coluors", "colours"))
    assert trainer.state.global_step == 0


def test_a_task_of_both_relations_is_refused(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    trainer = refusal(tiny_model_folder, tasks_folder, tmp_path, gain=["hues"])
    with pytest.raises(TaskError) as caught:
        trainer.train()
    sentence(caught.value)


def test_a_trainer_without_a_tokenizer_is_refused(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    trainer = refusal(tiny_model_folder, tasks_folder, tmp_path)
    trainer.callback_handler.processing_class = None
    with pytest.raises(ConfigError) as caught:
        trainer.train()
    sentence(caught.value)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_models_that_are_sharded_are_refused(
    tiny_model_folder: Path,
    tasks_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: DistributedType,
    sentence: Sentences,
) -> None:
    trainer = refusal(tiny_model_folder, tasks_folder, tmp_path)
    watching = callback(tasks_folder)
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", kind)
    with pytest.raises(ConfigError) as caught:
        watching.on_train_begin(
            trainer.args,
            trainer.state,
            trainer.control,
            model=trainer.model,
            processing_class=trainer.processing_class,
        )
    sentence(caught.value, names=(kind.value,))


_IN_TWO_PROCESSES = """
import json, os, sys
from pathlib import Path
import torch
from rankwise import RetentionCallback
from tests.support.small_trainings import Row, arguments, lora, small_trainer

base, folder, watches = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "watched"
data = [Row(f"Question: the colour of {n}?\\nAnswer:", " green") for n in range(32)]
own = folder / "contract.yaml"
watching = RetentionCallback(own=own, every=2, items=12, max_retention_loss=5.0)
settings = arguments(folder / "out", 4, 2e-2)
trainer = small_trainer(base, data, settings, [watching] if watches else [], lora())
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
changes = [look.own[0].shown.estimate for look in watching.looks]
rank = os.environ["RANK"]
(folder / f"{sys.argv[3]}-{rank}.json").write_text(
    json.dumps([trainer.state.global_step, losses, changes, watching.stop_reason])
)
"""


@pytest.mark.thorough
def test_of_two_processes_the_first_scores_and_both_stop(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Two processes train one adapter; their losses are those without the callback."""
    own_sets(tmp_path, "never_green")
    (tmp_path / "two.py").write_text(_IN_TWO_PROCESSES)
    found: dict[str, list[Any]] = {}
    for watched in ("watched", "alone"):
        done = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", "2", tmp_path / "two.py", tiny_model_folder, tmp_path, watched,
            ],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[watched] = [
            json.loads((tmp_path / f"{watched}-{rank}.json").read_text()) for rank in (0, 1)
        ]
    first, second = found["watched"]
    assert first == second
    steps, losses, changes, reason = first
    assert steps == 2
    assert changes[0] < -5.0
    assert "never_green" in reason
    assert losses == found["alone"][0][1][:2]


def test_a_model_with_an_attention_of_its_own_is_refused(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    """As Unsloth's models have; nothing of it is scored wrongly."""
    trainer = refusal(tiny_model_folder, tasks_folder, tmp_path)
    attention: Any = trainer.model.model.layers[0].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(ModelError) as caught:
        trainer.train()
    sentence(caught.value)


def test_a_resumed_training_of_all_weights_is_refused(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    data = rows(tasks_folder, "green")
    more = {"save_strategy": "steps", "save_steps": 2}
    small_trainer(tiny_model_folder, data, arguments(tmp_path / "out", 2, 1e-3, **more)).train()
    again = arguments(tmp_path / "out", 4, 1e-3)
    trainer = small_trainer(tiny_model_folder, data, again, [callback(tasks_folder)])
    with pytest.raises(ConfigError) as caught:
        trainer.train(resume_from_checkpoint=True)
    sentence(caught.value)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_a_resumed_adapter_that_trains_biases_is_refused(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, bias: str
) -> None:
    """PEFT would leave the trained biases in what it calls the base."""
    data = rows(tasks_folder, "green")
    more = {"save_strategy": "steps", "save_steps": 2}
    first = arguments(tmp_path / "out", 2, 1e-3, **more)
    small_trainer(tiny_model_folder, data, first, [callback(tasks_folder)], lora(bias=bias)).train()
    again = arguments(tmp_path / "out", 4, 1e-3)
    watching = callback(tasks_folder)
    trainer = small_trainer(tiny_model_folder, data, again, [watching], lora(bias=bias))
    with pytest.raises(ConfigError, match=f"bias='{bias}' is resumed at step 2"):
        trainer.train(resume_from_checkpoint=True)


def test_a_resumed_adapter_is_compared_with_its_base_and_looks_go_on_counting(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    data = rows(tasks_folder, "green")
    seen: list[tuple[TrainingLook, ...]] = []
    for steps, resumes in ((8, False), (4, False), (8, True)):
        folder = tmp_path / ("whole" if not seen else "resumed")
        settings = arguments(folder, steps, 1e-2, save_strategy="steps", save_steps=4)
        watching = callback(tasks_folder)
        trainer = small_trainer(tiny_model_folder, data, settings, [watching], lora())
        trainer.train(resume_from_checkpoint=resumes)
        seen.append(watching.looks)
    whole, _, resumed = seen
    assert [look.number for look in resumed] == [2]
    assert resumed[0].alpha == whole[1].alpha
    assert resumed[0].retention[0].shown.estimate == close(whole[1].retention[0].shown.estimate)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialisation_that_changes_the_base_is_refused(
    tiny_model_folder: Path, init: str
) -> None:
    model = peft.get_peft_model(load(tiny_model_folder), lora(init_lora_weights=init))
    with pytest.raises(ModelError, match=f"init_lora_weights '{init}' changes the weights"):
        untrained(model)


EMPTY, BARE = {"data": "empty.jsonl"}, {"data": "bare.jsonl"}


@pytest.mark.parametrize(
    ("error", "own", "options", "names"),
    [
        (ConfigError, {"says_green": {"judge_by": "exact"}}, {}, ("judge_by", "judged_by")),
        (ConfigError, {"says green": {}}, {}, ("says green",)),
        (ConfigError, {"says_green": {"judged_by": "exakt"}}, {}, ("says_green.judged_by",)),
        (ConfigError, {"says_green": {"max_loss": -1}}, {}, ("max_loss", "-1")),
        (ConfigError, ["colours.jsonl"], {}, ("own",)),
        (ConfigError, "nowhere.yaml", {}, ("nowhere.yaml",)),
        (DataError, {"says_green": {"data": "colors.jsonl"}}, {}, ("says_green", "colors.jsonl")),
        (DataError, {"says_green": EMPTY}, {}, ("says_green", "empty.jsonl")),
        (DataError, {"says_green": BARE}, {}, ("says_green", "bare.jsonl")),
        (TaskError, {"blues": {}}, {"tasks": ["blues"], "allow_task_code": True}, ("own",)),
        (DataError, {"says_green": {}}, {"max_retention_loss": 5.0}, ("says_green", "base")),
        (DataError, {"says_green": {"judged_by": {"code": "judge.py:score"}}}, {}, ("judge.py",)),
    ],
    ids=[
        "key", "name", "judge", "margin", "list", "contract", "misspelt", "empty", "no answers",
        "name of a task", "vacuous", "code",
    ],
)  # fmt: skip
def test_own_sets_that_cannot_be_scored_are_refused_before_the_first_step(
    tiny_model_folder: Path,
    tasks_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    own: Any,
    options: dict[str, Any],
    names: tuple[str, ...],
    sentence: Sentences,
) -> None:
    own_sets(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bare.jsonl").write_text('{"prompt": "Q", "completion": ""}\n' * 3)
    monkeypatch.chdir(tmp_path)
    if isinstance(own, dict):
        green = {"data": "colours.jsonl", "judged_by": "contains"}
        own = {name: green | each for name, each in own.items()}
    asked = {"tasks": [], "own": own, "allow_task_code": False, **options}
    with pytest.raises(error) as caught:
        refusal(tiny_model_folder, tasks_folder, tmp_path, **asked).train()
    sentence(caught.value, names=names)


def test_rows_without_an_answer_and_items_without_a_number_are_said(
    tiny_model_folder: Path,
    tasks_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    sentence: Sentences,
) -> None:
    contract = own_sets(tmp_path, "otherwise")
    with (tmp_path / "colours.jsonl").open("a") as file:
        file.write('\n{"prompt": "Question: none?", "completion": ""}\n')
    watching = RetentionCallback(own=contract, every=1, items=20, allow_task_code=True)
    data, settings = rows(tasks_folder, "green"), arguments(tmp_path / "out", 1, 1e-3)
    small_trainer(tiny_model_folder, data, settings, [watching]).train()
    said = [each for each in caplog.messages if each.startswith("otherwise")]
    sentence(said, names=("1 row without an answer", "1 item left out"))


def test_prompt_tuning_is_refused(tiny_model_folder: Path, sentence: Sentences) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(load(tiny_model_folder), config)
    with pytest.raises(ModelError) as caught:
        untrained(model)
    sentence(caught.value)


def test_in_trl(tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path) -> None:
    """SFTTrainer makes the adapter itself and has rows of prompt and completion."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from datasets import Dataset

    data = [row._asdict() for row in rows(tasks_folder, "green")]
    trainer = trl.SFTTrainer(
        model=str(tiny_model_folder),
        args=trl.SFTConfig(**arguments(tmp_path / "out", 16, 2e-2)),
        train_dataset=Dataset.from_list(data),
        peft_config=lora(),
    )
    tracker = Tracker()
    watching = callback(tasks_folder, ["blues"], max_retention_loss=1.0, trainer=trainer)
    trainer.add_callback(watching)
    trainer.add_callback(tracker)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    own = checked(tiny_model_folder, tmp_path / "saved", tasks_folder, "blues")
    mean = own.forms[0].means[0].difference
    assert watching.looks[-1].retention[0].shown.estimate == close(mean.estimate)
    assert mean.upper < 0.0
    assert watching.stop_reason is not None
    assert trainer.state.global_step < 16
    told = [logs for logs in tracker.told if "retention_change" in logs]
    assert len(told) == len(watching.looks)
    assert not any("entropy" in logs for logs in told)  # it belongs to the losses
    losses = [logs for logs in tracker.told if "loss" in logs]
    assert len(losses) == trainer.state.global_step
    assert all("entropy" in logs for logs in losses)
