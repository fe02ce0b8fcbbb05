"""What both sides of ``benchmarks.study`` do: sizes, tasks, and the study files of our side."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.start import fetch_weights
from rankwise.records.config.study import BaseModelConfig

ROOT = Path(__file__).resolve().parents[1]
SHARED_TASKS = ROOT.parent / "shared" / "tasks"
FEWSHOT_TASK = "few_shot_letters"
FEWSHOT_YAML = """
include: {file}
task: {name}
num_fewshot: {num_fewshot}
"""
PARTS = (
    "score base",
    "train adapters",
    "score adapters",
    "train full",
    "score full",
    "spectra",
)
"""What both sides do, in our side's order."""
GRID, NARROW, LOOKS, FLOAT32 = "grid", "narrow", "looks", "float32"
"""The studies of our side: the measured one, the same as a search, the same until it is decided,
and its models in float32."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One study, as both sides are told of it."""

    model: str
    """A transformers folder."""
    tasks_paths: tuple[str, ...]
    """Folders of lm-eval task files."""
    train_task: str
    letters_task: str
    """The retention task that is asked with examples, by letter."""
    texts_task: str
    """The retention task that is asked without examples, by the options' own text."""
    ranks: tuple[int, ...]
    rows: int
    """To train on; a whole number of steps."""
    epochs: int
    step_size: int
    """Rows of an optimizer step."""
    items: int
    """Scored of each task."""
    float32_items: int
    """Scored again of each task in float32, if the study is not in it."""
    precision: str
    top_k: int = 500
    lora_rate: float = 5e-4
    full_rate: float = 5e-5
    seeds: int = 1
    """Of every rank and of full fine-tuning."""
    reference: float | None = None
    """Of the items, what our LoRA runs answer besides one; None: all. The peer's answer all."""
    peer_seeds: int | None = None
    """Seeds that the peer trains, scores and analyses; None: all. What it leaves out is counted
    like the mean of what it does: as many tokens, rows, items and matrices."""
    peer_ranks: tuple[int, ...] | None = None
    """Ranks that the peer scores; None: all. The others are counted likewise."""
    trials: int = 2
    """How often the peer tries each of its settings before."""
    peer_sampling: str = "sequential"
    """The Trainer's ``train_sampling_strategy``; ``sequential`` is our own order."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The scored tasks, the trained one first."""
        return self.train_task, self.letters_task, self.texts_task

    def study(self) -> dict[str, Any]:
        """The measured study as a study file.

        What a script of this kind does not do is left out: heads, random updates to compare with,
        scores of trained rows. Divergences from full fine-tuning cannot be left out.
        """
        reference = None if self.reference is None else {"share": self.reference}
        return {
            "base_model": self.model,
            "seeds": list(range(self.seeds)),
            "tasks_path": list(self.tasks_paths),
            "allow_task_code": True,
            "train": {
                "task": self.train_task,
                "max_examples": self.rows,
                "epochs": self.epochs,
                "batch_size": self.step_size,
                "gradient_accumulation_steps": 1,
                "learning_rate": {"lora": self.lora_rate, "full": self.full_rate},
                "precision": self.precision,
                "save_every": None,
            },
            "methods": {"lora": {"ranks": list(self.ranks), "target_modules": "attention"}},
            "evaluation": {
                "retention": [self.letters_task, self.texts_task],
                "limit": self.items,
                "reference": reference,
                "num_train_items": 0,
                "trained_format": False,
            },
            "analysis": {"heads": False, "null_draws": 0, "top_k": self.top_k},
        }

    def narrow(self) -> dict[str, Any]:
        """The same study as a search, which decides on as many validation items as are scored."""
        study = dataclasses.replace(self, reference=None).study()
        return study | {"search": {"policy": "narrow", "validation_items": self.items}}

    def until_decided(self) -> dict[str, Any]:
        """The same study, whose items are answered in quarters until a look settles it."""
        return self.study() | {"search": {"until": "decided"}}

    def decisions(self, weights: dict[str, tuple[str, Path]]) -> dict[str, Any]:
        """Models that are trained already, scored in float32.

        Args:
            weights: method and folder of each, by the name that it gets.
        """
        kinds = {"lora": "adapter", "full": "checkpoint"}
        imported = [
            {"name": name, kinds[method]: str(folder)} for name, (method, folder) in weights.items()
        ]
        study = dataclasses.replace(self, seeds=1, reference=None).study()
        study["train"] |= {"precision": "float32"}
        study["evaluation"] |= {"limit": self.float32_items}
        study["analysis"] = {"spectra": False, "heads": False}
        return study | {"methods": {"lora": None, "full": None, "imported": imported}}


def real_setting(work: Path, model: str, tasks_path: Path, **sizes: Any) -> Setting:
    """The study on a real model and the shared tasks.

    Args:
        work: gets the file of the few-shot task.
        model: name or folder.
        tasks_path: the shared tasks.
        sizes: the other fields of the setting.
    """
    base = find_base_model(BaseModelConfig(name=model))
    letters, num_fewshot = sizes.pop("letters_task"), sizes.pop("num_fewshot")
    own = _write_fewshot(work / "tasks", tasks_path / f"{letters}.yaml", num_fewshot)
    return Setting(
        model=str(fetch_weights(base).resolve()),
        tasks_paths=(str(tasks_path.resolve()), str(own)),
        letters_task=FEWSHOT_TASK,
        **sizes,
    )


def tiny_setting(work: Path, **sizes: Any) -> Setting:
    """The study on a random model of two layers and made-up tasks: seconds, for the tests."""
    from tests.support.tiny_tasks import LETTERS_YAML, tiny_tokenizer, write_tiny_tasks

    model, tasks = work / "tiny-llama", work / "tiny-tasks"
    if not tasks.is_dir():
        _write_tiny_model(model, tiny_tokenizer())
        write_tiny_tasks(tasks)
        (tasks / "colours_letters.yaml").write_text(LETTERS_YAML, encoding="utf-8")
    own = _write_fewshot(work / "tasks", tasks / "colours_letters.yaml", 3)
    tiny: dict[str, Any] = {
        "train_task": "colours",
        "texts_task": "hues",
        "ranks": (2, 4),
        "rows": 16,
        "epochs": 2,
        "step_size": 8,
        "items": 8,
        "float32_items": 4,
        "lora_rate": 1e-2,
        "full_rate": 1e-3,
        "trials": 1,
    }
    paths = (str(tasks), str(own))
    named: dict[str, Any] = {
        "model": str(model),
        "tasks_paths": paths,
        "letters_task": FEWSHOT_TASK,
    }
    return Setting(**{**tiny, **sizes, **named})


def _write_fewshot(folder: Path, file: Path, num_fewshot: int) -> Path:
    """A task file that asks another task with examples; the folder of it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = FEWSHOT_YAML.format(file=file.resolve(), name=FEWSHOT_TASK, num_fewshot=num_fewshot)
    (folder / f"{FEWSHOT_TASK}.yaml").write_text(text, encoding="utf-8")
    return folder


def _write_tiny_model(folder: Path, tokenizer: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer.model_max_length = 512
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Stopwatch:
    """Runs from its making."""

    def __init__(self) -> None:
        self._started, self._used = time.perf_counter(), time.process_time()

    def read(self) -> list[float]:
        """Seconds that have passed, and those that this process had a core, summed over cores."""
        return [time.perf_counter() - self._started, time.process_time() - self._used]


def write_setting(folder: Path, setting: Setting) -> None:
    """Keep the setting of an output folder.

    Raises:
        SystemExit: the folder has figures of another setting.
    """
    path = folder / "setting.json"
    wanted = json.loads(json.dumps(dataclasses.asdict(setting)))
    if path.is_file() and read_json(path) != wanted:
        raise SystemExit(f"{folder} holds another study. Give another --out, or delete it.")
    keep_json(path, wanted)


def read_setting(folder: Path) -> Setting:
    """The setting of an output folder."""
    given: dict[str, Any] = read_json(folder / "setting.json")
    for name in ("ranks", "tasks_paths", "peer_ranks"):
        given[name] = None if given[name] is None else tuple(given[name])
    return Setting(**given)


def keep_json(path: Path, content: Any) -> None:
    """Write a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path, default: Any = None) -> Any:
    """The content of a file; the default if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def repeats(folder: Path, count: int) -> Iterator[Path]:
    """The folders of the repeats."""
    for number in range(1, count + 1):
        yield folder / f"repeat-{number}"
