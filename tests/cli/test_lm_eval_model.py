"""The engine as a lm-eval model: lm-eval's own numbers, files and flags."""

from __future__ import annotations

import json
import logging
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import lm_eval
import peft
import pytest
import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api import registry
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rankwise.cli.lm_eval.arguments import parse_model_arguments
from rankwise.cli.lm_eval.model import RankwiseLM
from rankwise.cli.main import app
from rankwise.errors import ConfigError, ModelError, UnchangedOutputsError
from tests.support.sentences import Sentences

ROOT = Path(__file__).parents[2]
TASKS = ["colours", "small_prose", "sums"]
RANKS = {"small": 2, "large": 8}


def save_adapter(model: Path, folder: Path, rank: int, size: float = 0.3) -> Path:
    """An adapter that changes what the tiny model says."""
    base = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "o_proj", "up_proj"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = peft.get_peft_model(base, settings)
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(size * torch.randn(weight.shape, generator=generator))
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: save_adapter(tiny_model_folder, root / name, rank) for name, rank in RANKS.items()
    }


@pytest.fixture
def evaluated(tasks_folder: Path) -> Callable[..., dict[str, Any]]:
    """``simple_evaluate`` on the three tiny tasks."""

    def run(model: Any, **settings: Any) -> dict[str, Any]:
        manager = TaskManager(include_path=str(tasks_folder), include_defaults=False)
        result = lm_eval.simple_evaluate(
            model, tasks=TASKS, task_manager=manager, limit=6, bootstrap_iters=0, **settings
        )
        assert result is not None
        return result

    return run


def answers(result: dict[str, Any]) -> dict[str, list[Any]]:
    """The raw answers of every item, and which prompts they are to."""
    return {
        task: [(sample["prompt_hash"], sample["resps"]) for sample in samples]
        for task, samples in result["samples"].items()
    }


def assert_same_answers(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    mine, peer = answers(ours), answers(theirs)
    assert mine.keys() == peer.keys() == set(TASKS)
    for task, samples in peer.items():
        assert len(samples) == 6
        for (prompt, given), (wanted_prompt, wanted) in zip(mine[task], samples, strict=True):
            assert prompt == wanted_prompt
            for (answer,), (expected,) in zip(given, wanted, strict=True):
                if isinstance(expected, tuple):
                    assert answer[1] == expected[1]
                    answer, expected = answer[0], expected[0]
                if isinstance(expected, str):
                    assert answer == expected
                else:
                    assert answer == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_fewshot": 3},
        {"num_fewshot": 2, "apply_chat_template": True, "fewshot_as_multiturn": True},
    ],
)
def test_every_model_equals_lm_evals_own(
    evaluated: Callable[..., dict[str, Any]],
    tiny_model_folder: Path,
    adapters: dict[str, Path],
    settings: dict[str, Any],
) -> None:
    given = {
        "pretrained": str(tiny_model_folder),
        "adapters": {name: str(folder) for name, folder in adapters.items()},
        "dtype": "float32",
        "device": "cpu",
    }
    held = RankwiseLM(**given)  # keeps the models in memory between the runs
    results: dict[str | None, dict[str, Any]] = {}
    for name in (None, *adapters):
        ours = evaluated("rankwise", model_args=given | {"peft": name}, **settings)
        options: dict[str, Any] = {} if name is None else {"peft": str(adapters[name])}
        peer = HFLM(
            pretrained=str(tiny_model_folder),
            dtype="float32",
            device="cpu",
            batch_size=4,
            **options,
        )
        theirs = evaluated(peer, **settings)
        assert_same_answers(ours, theirs)
        for task in TASKS:
            for key, value in theirs["results"][task].items():
                if isinstance(value, float):
                    assert ours["results"][task][key] == pytest.approx(value, rel=1e-4), key
        results[name] = ours
    assert answers(results["small"]) != answers(results[None])
    assert answers(results["small"]) != answers(results["large"])
    del held


def test_whatever_the_first_model_is_asked_is_answered_for_all(
    evaluated: Callable[..., dict[str, Any]],
    tiny_model_folder: Path,
    adapters: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {
        "pretrained": str(tiny_model_folder),
        "adapters": ";".join(f"{name}={folder}" for name, folder in adapters.items()),
        "dtype": "float32",
    }
    held = RankwiseLM(**given)
    calls: list[tuple[tuple[str | None, ...], int]] = []
    scorer = held._models.scorer
    for method in ("log_likelihoods", "generate"):
        asked = getattr(scorer, method)

        def counted(models: Any, items: Any, *rest: Any, asked: Any = asked) -> Any:
            calls.append((tuple(models), len(items)))
            return asked(models, items, *rest)

        monkeypatch.setattr(scorer, method, counted)
    evaluated("rankwise", model_args=given)
    passes = [models for models, num_items in calls if num_items > 4]  # the others only check
    assert passes == [(None, "small", "large")] * 3  # choices, texts, generations
    num_calls = len(calls)
    for name in adapters:
        evaluated("rankwise", model_args=given | {"peft": name})
    assert len(calls) == num_calls
    del held  # nobody holds them: they are loaded again
    assert RankwiseLM(**given)._models.scorer is not scorer


def test_prompts_that_are_too_long_are_cut_and_counted(
    evaluated: Callable[..., dict[str, Any]],
    tiny_model_folder: Path,
    caplog: pytest.LogCaptureFixture,
    sentence: Sentences,
) -> None:
    given = {"pretrained": str(tiny_model_folder), "dtype": "float32", "max_length": 40}
    ours = evaluated("rankwise", model_args=given, num_fewshot=2)
    peer = HFLM(pretrained=str(tiny_model_folder), dtype="float32", device="cpu", max_length=40)
    assert_same_answers(ours, evaluated(peer, num_fewshot=2))
    assert ours["config"]["num_truncated"] > 6
    sentence(caplog.messages, names=("40 tokens",), part=True)


def test_an_adapter_that_is_not_applied_is_refused(
    evaluated: Callable[..., dict[str, Any]],
    tiny_model_folder: Path,
    adapters: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    sentence: Sentences,
) -> None:
    given = {
        "pretrained": str(tiny_model_folder),
        "dtype": "float32",
        "peft": str(adapters["small"]),
    }
    held = RankwiseLM(**given)
    scorer = held._models.scorer
    asked = scorer.log_likelihoods

    def of_the_base(models: Any, items: Any, *rest: Any) -> Any:
        return asked([None] * len(models), items, *rest)

    monkeypatch.setattr(scorer, "log_likelihoods", of_the_base)
    with pytest.raises(UnchangedOutputsError) as caught:
        evaluated("rankwise", model_args=given)
    sentence(caught.value, names=("small",))


def test_an_adapter_that_does_nothing_answers_as_the_base(
    evaluated: Callable[..., dict[str, Any]], tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = save_adapter(tiny_model_folder, tmp_path / "zero", rank=2, size=0.0)
    given = {"pretrained": str(tiny_model_folder), "dtype": "float32"}
    assert_same_answers(
        evaluated("rankwise", model_args=given | {"peft": str(folder)}),
        evaluated("rankwise", model_args=given),
    )


SAMPLED_YAML = """
include: sums.yaml
task: sampled_sums
repeats: 3
generation_kwargs: {until: ["\\n"], do_sample: true, temperature: 1.5, max_gen_toks: 6}
filter_list: [{name: first, filter: [{function: take_first}]}]
"""


def test_repeated_samples_are_drawn_apart_and_again_the_same(
    tasks_folder: Path, tiny_model_folder: Path, adapters: dict[str, Path]
) -> None:
    (tasks_folder / "sampled_sums.yaml").write_text(SAMPLED_YAML)
    given = {
        "pretrained": str(tiny_model_folder),
        "adapters": {name: str(folder) for name, folder in adapters.items()},
        "dtype": "float32",
    }

    def texts(**model_args: Any) -> list[list[str]]:
        result: Any = lm_eval.simple_evaluate(
            "rankwise",
            model_args=given | model_args,
            tasks=["sampled_sums"],
            task_manager=TaskManager(include_path=str(tasks_folder), include_defaults=False),
            limit=4,
            bootstrap_iters=0,
        )
        return [sample["resps"][0] for sample in result["samples"]["sampled_sums"]]

    base = texts()
    assert [len(draws) for draws in base] == [3] * 4
    assert all(len(set(draws)) > 1 for draws in base)
    assert texts() == base
    assert texts(peft="large") != base
    # whoever else is scored, an adapter writes the same
    assert texts(adapters={"large": str(adapters["large"])}, peft="large") == texts(peft="large")


# -- the command ------------------------------------------------------------------------------


def command(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["lm-eval", *map(str, arguments)])
    logging.getLogger("lm_eval").handlers.clear()  # they write to a stream that is closed by now
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lm-eval's own tasks, whose index takes long."""

    class Small(TaskManager):
        def __init__(self, include_path: Any = None, metadata: Any = None, **_: Any) -> None:
            super().__init__(include_path=include_path, metadata=metadata, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Small)


def test_every_model_gets_files_of_its_own(
    no_index: None,
    tiny_model_folder: Path,
    tasks_folder: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
) -> None:
    parts = ";".join(f"{name}={folder}" for name, folder in adapters.items())
    done = command(
        "--tasks", ",".join(TASKS), "--include_path", tasks_folder, "--limit", 4,
        "--allow-task-code",
        "--model_args", f"pretrained={tiny_model_folder},adapters={parts},dtype=float32",
        "--num_fewshot", 1, "--output_path", tmp_path / "out", "--log_samples",
        "--use_cache", tmp_path / "cache",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders == sorted([*adapters, str(tiny_model_folder).replace("/", "__")])
    texts: dict[str, str] = {}
    for folder in (tmp_path / "out").iterdir():
        (results,) = folder.glob("results_*.json")
        config = json.loads(results.read_text())["config"]
        assert config["model"] == "rankwise"
        wanted = adapters.get(folder.name)
        assert config["adapter_folder"] == (None if wanted is None else str(wanted))
        samples = sorted(folder.glob("samples_*.jsonl"))
        assert [path.name.split("_20")[0] for path in samples] == [
            f"samples_{task}" for task in sorted(TASKS)
        ]
        lines = [json.loads(line) for path in samples for line in path.read_text().splitlines()]
        assert len(lines) == 4 * len(TASKS)
        texts[folder.name] = json.dumps([line["resps"] for line in lines])
    assert len(set(texts.values())) == 3
    caches = [path.name for path in tmp_path.glob("cache*.db")]
    assert sorted(caches) == [f"cache_{name}_rank0.db" for name in ("base", "large", "small")]


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rankwise is installed and not imported, and lm-eval looks for models of others.

    Releases up to 0.4.13 do not; there a placeholder is registered as the later ones do it.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    group = "lm_eval.models"
    declared = [
        metadata.EntryPoint(*each, group) for each in project["entry-points"][group].items()
    ]
    monkeypatch.setattr(registry.md, "entry_points", lambda group: declared)
    monkeypatch.delitem(registry.model_registry._objs, "rankwise")
    monkeypatch.delitem(sys.modules, RankwiseLM.__module__)
    registry._materialise_placeholder.cache_clear()
    if hasattr(registry, "load_plugins"):
        monkeypatch.setattr(registry, "_loaded_plugin_groups", set())
        return
    get_model = registry.get_model

    def discovering(name: str) -> Any:
        for found in registry.md.entry_points(group=group):
            if found.name not in registry.model_registry:
                registry.model_registry.register(found.name, target=found.value)
        return get_model(name)

    monkeypatch.setattr(registry, "get_model", discovering)


def test_lm_evals_own_command_finds_the_model_and_answers_as_our_verb(
    no_index: None,
    entry_points: None,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model_folder: Path,
    tasks_folder: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
) -> None:
    given = f"pretrained={tiny_model_folder},adapters=small={adapters['small']},dtype=float32"
    flags = ["--tasks", ",".join(TASKS), "--include_path", str(tasks_folder), "--limit", "4"]

    def samples(folder: Path) -> dict[str, Any]:
        lines = [json.loads(text) for file in folder.glob("*/samples_*.jsonl")
                 for text in file.read_text().splitlines()]  # fmt: skip
        return {line["prompt_hash"]: line["resps"] for line in lines}

    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    monkeypatch.setattr(sys, "argv", [
        "lm-eval", "run", "--model", "rankwise", "--model_args", f"{given},peft=small", *flags,
        "--output_path", str(theirs), "--log_samples",
    ])  # fmt: skip
    cli_evaluate()
    done = command(
        *flags, "--model_args", f"{given},peft=small", "--output_path", ours, "--log_samples",
        "--allow-task-code",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert samples(theirs) == samples(ours)
    assert len(samples(ours)) == 4 * len(TASKS)


def test_a_configuration_file_is_read_as_lm_eval_reads_it(
    no_index: None,
    tiny_model_folder: Path,
    tasks_folder: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
) -> None:
    config = {
        "model_args": {
            "pretrained": str(tiny_model_folder),
            "adapters": {name: str(folder) for name, folder in adapters.items()},
            "dtype": "float32",
        },
        "tasks": ["colours"],
        "include_path": str(tasks_folder),
        "limit": 2,
        "output_path": str(tmp_path / "out"),
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    refused = command("--config", tmp_path / "config.yaml", "--num_fewshot", 1)
    assert refused.exit_code == 2
    for named in ("colours.yaml, line 3", "!function colours.load"):
        assert named in " ".join(refused.output.split())
    done = command("--config", tmp_path / "config.yaml", "--num_fewshot", 1, "--allow-task-code")
    assert done.exit_code == 0, done.output
    assert {*adapters} < {path.name for path in (tmp_path / "out").iterdir()}
    (tmp_path / "config.yaml").write_text("[1, 2]")
    done = command("--config", tmp_path / "config.yaml", "--num_fewshot", 1)
    assert done.exit_code == 2
    assert "--config" in done.output


@pytest.mark.parametrize("tasks", ["FOLDER", "FOLDER/evil.yaml", "FOLDER/ev*.yaml", "evil", "many"])
def test_task_code_is_refused_however_it_is_named(
    no_index: None, tiny_model_folder: Path, tmp_path: Path, tasks: str
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    code = f"open({str(tmp_path / 'was_here')!r}, 'w').close()\nraise SystemExit"
    (folder / "code.py").write_text(code)
    (folder / "evil.yaml").write_text("task: evil\nprocess_docs: !function code.run\n")
    (folder / "group.yaml").write_text("group: many\ntask: [{group: evil, task: []}]\n")
    arguments = ["--tasks", tasks.replace("FOLDER", str(folder)), "--limit", 1]
    arguments += ["--model_args", f"pretrained={tiny_model_folder}"]
    if "FOLDER" not in tasks:
        arguments += ["--include_path", folder]
    refused = command(*arguments)
    assert refused.exit_code == 2
    for named in ("evil.yaml, line 2", "!function code.run"):
        assert named in " ".join(refused.output.split())
    assert not (tmp_path / "was_here").exists()
    command(*arguments, "--allow-task-code")
    assert (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--model_args adapters=a=b", ("pretrained",)),
        ("--model_args pretrained=x,adpters=a=b,dtype=int3", ("'adapters'", "dtype: 'int3'")),
        ("--model_args pretrained=x,adapters=a=b;a=c", ("'a'",)),
        ("--model_args pretrained=x,adapters=a=b;base=c", ("'base'",)),
        ("--model_args pretrained=x,adapters=a=b,peft=c", ("'c'",)),
        ("--model_args pretrained=x --model hf", ("--model hf",)),
        ("--model_args pretrained=x --device warp", ("device: 'warp'",)),
        ("--model_args pretrained=x --log_samples", ("--output_path",)),
        ("--model_args pretrained=x,adapters=a --output_path o.json", ("--output_path", "o.json")),
        ("--model_args pretrained=./no/such/folder", ("./no/such/folder",)),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: str, names: tuple[str, ...], sentence: Sentences
) -> None:
    done = command("--tasks", "colours", *arguments.split())
    assert done.exit_code == 2
    sentence(" ".join(done.output.split()), names=names)


@pytest.mark.parametrize(
    "arguments", [["--model_args", '{"pretrained": x}'], ["--model_arguments", "pretrained=x"]]
)
def test_what_lm_eval_itself_refuses(arguments: list[str]) -> None:
    assert command("--tasks", "colours", *arguments).exit_code == 2


def test_an_adapter_that_is_not_there_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    done = command(
        "--tasks", "colours", "--model_args",
        f"pretrained={tiny_model_folder},adapters=r8={tmp_path / 'nothing'},device=cpu",
    )  # fmt: skip
    assert done.exit_code == 2
    assert "nothing" in done.output
    with pytest.raises(ModelError):
        RankwiseLM(pretrained=str(tiny_model_folder), peft=str(tmp_path / "nothing"))


def test_a_task_that_is_not_there_is_refused(no_index: None, tiny_model_folder: Path) -> None:
    done = command("--tasks", "colurs", "--model_args", f"pretrained={tiny_model_folder}")
    assert done.exit_code == 2
    assert "colurs" in done.output


def test_adapters_by_every_spelling(tmp_path: Path) -> None:
    def found(given: Any) -> tuple[tuple[str, Path], ...]:
        return parse_model_arguments({"pretrained": "x", "adapters": given}).adapters

    wanted = (("r8", Path("runs/r8")), ("r16", Path("runs/other")))
    assert found("r8=runs/r8;r16=runs/other") == wanted
    assert found("runs/r8; r16 = runs/other;") == wanted
    assert found({"r8": "runs/r8", "r16": "runs/other"}) == wanted
    assert found(["runs/r8", "r16=runs/other"]) == wanted
    assert found("a=x=y") == (("a", Path("x=y")),)
    alone = parse_model_arguments({"pretrained": "x", "peft": "runs/r8"})
    assert alone.adapters == wanted[:1]
    assert alone.answering == "r8"
    with pytest.raises(ConfigError, match="r8"):
        found("runs/r8;other/r8")
