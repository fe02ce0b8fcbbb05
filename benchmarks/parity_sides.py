"""The two sides of ``benchmarks.parity``: our engine as a study asks it, and lm-eval's own."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import lm_eval
import peft
import torch
from lm_eval.api.samplers import FirstNSampler
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from benchmarks.parity_regimes import Regime
from benchmarks.parity_tally import Scores
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.devices import DTYPES, ResolvedPrecision
from rankwise.engine.models.loading import load_frozen, load_tokenizer
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.tasks.evaluation import ScoredModel, evaluate
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import load_tasks, quiet_lm_eval

CPU = torch.device("cpu")
MAX_BATCH_TOKENS, PEER_BATCH_SIZE = 4096, 8
ADAPTER = "adapter"
ADAPTER_RANK, ADAPTER_ALPHA, ADAPTER_SEED = 8, 16.0, 0
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


def save_random_adapter(model_folder: Path, folder: Path, size: float) -> None:
    """A LoRA adapter whose every update has ``size`` times its weight's norm."""
    settings = peft.LoraConfig(
        r=ADAPTER_RANK,
        lora_alpha=ADAPTER_ALPHA,
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(ADAPTER_SEED)
    base: Any = load_frozen(model_folder, "float32", CPU)
    adapted: Any = peft.get_peft_model(base, settings)
    generator = torch.Generator().manual_seed(ADAPTER_SEED)
    with torch.no_grad():
        for layer in adapted.modules():
            if not isinstance(layer, LoraLayer):
                continue
            lora_A, lora_B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            weight: Any = layer.base_layer.weight
            direction = torch.randn(lora_B.shape, generator=generator)
            update = ADAPTER_ALPHA / ADAPTER_RANK * direction @ lora_A
            lora_B.copy_(direction * (size * weight.norm() / update.norm()))
    adapted.save_pretrained(str(folder))


def load_ours(
    model_folder: Path, adapter: Path, precision: ResolvedPrecision = "float32"
) -> tuple[ResidentScorer, Any]:
    """The engine with base and adapter as a study holds them, and the tokenizer."""
    tokenizer = load_tokenizer(model_folder)
    model = load_frozen(model_folder, precision, CPU)
    scorer = ResidentScorer(model, tokenizer, max_batch_tokens=MAX_BATCH_TOKENS)
    scorer.put_on(ADAPTER, AdapterFolder(adapter))
    return scorer, tokenizer


def load_theirs(
    model_folder: Path, adapter: Path | None, precision: ResolvedPrecision = "float32"
) -> Any:
    """The model as a user of transformers and peft loads it."""
    model = AutoModelForCausalLM.from_pretrained(str(model_folder), dtype=DTYPES[precision])
    return model if adapter is None else peft.PeftModel.from_pretrained(model, str(adapter))


class TimedPeer(HFLM):
    """lm-eval's own back end, which also says how long its answers took."""

    seconds = 0.0

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def loglikelihood(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed():
            return super().loglikelihood(*args, **kwargs)

    def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed():
            return super().loglikelihood_rolling(*args, **kwargs)

    def generate_until(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed():
            return super().generate_until(*args, **kwargs)


def score_ours(
    scorer: ResidentScorer, tokenizer: Any, regime: Regime, folders: Sequence[Path], **changes: Any
) -> tuple[Scores, Scores]:
    """Score base and adapter together, whichever the regime names.

    Args:
        scorer: from ``load_ours``.
        tokenizer: likewise.
        regime: how the task is scored.
        folders: of task files.
        changes: to the task's preparation, for planting mistakes.

    Returns:
        The base's scores, and the adapter's; of the seconds each has half.
    """
    settings: dict[str, Any] = {
        "max_length": regime.max_length,
        "num_fewshot": regime.num_fewshot,
        "limit": regime.limit,
        "chat_template": regime.chat_template,
        "fewshot_as_multiturn": regime.fewshot_as_multiturn,
    }
    loaded = load_tasks([regime.task], folders, allow_code=True)[regime.task][0]
    prepared = prepare_task(loaded, tokenizer, **(settings | changes))
    both = [ScoredModel("base", "parity"), ScoredModel(ADAPTER, "parity", ADAPTER)]
    num_windows = len(prepared.requests) - len(prepared.instances)
    base, adapted = (
        Scores(
            samples,
            {f"{score.metric},{score.filter}": score.value for score in record.metrics},
            record.score_seconds,
            record.output_type,
            num_windows + record.num_truncated,
        )
        for record, samples in evaluate(scorer, both, prepared, metric=None)
    )
    return base, adapted


@contextlib.contextmanager
def _prompts_of_whole_tasks() -> Generator[None]:
    """Within the block, lm-eval shows with ``samples`` the examples that it shows without.

    Where it draws few-shot examples, it draws them for one scored document after another.
    """
    build_all = Task.build_all_requests

    def build(task: Any, *, samples: list[int], **options: Any) -> None:
        if not task.config.num_fewshot or isinstance(task.sampler, FirstNSampler):
            build_all(task, samples=samples, **options)
            return
        build_all(task, **options)
        places = {doc_id: place for place, doc_id in enumerate(samples)}
        task._instances = [each for each in task.instances if each.doc_id in places]
        for instance in task.instances:
            instance.doc_id = places[instance.doc_id]  # as lm-eval numbers ``samples``

    with mock.patch.object(Task, "build_all_requests", build):
        yield


def score_theirs(
    model: Any,
    tokenizer_folder: Path,
    regime: Regime,
    folders: Sequence[Path],
    doc_ids: Collection[int],
) -> Scores:
    """Score the documents of these numbers by ``lm_eval.simple_evaluate``."""
    # what it says about machine and progress is not wanted, and takes longer than a tiny model
    silence = contextlib.redirect_stderr(io.StringIO())
    quiet = mock.patch("lm_eval.evaluator.add_env_info")
    with quiet_lm_eval(), silence, quiet, _prompts_of_whole_tasks():
        peer = TimedPeer(
            pretrained=model,
            tokenizer=str(tokenizer_folder),
            batch_size=PEER_BATCH_SIZE,
            max_length=regime.max_length,
        )
        result = lm_eval.simple_evaluate(
            model=peer,
            tasks=[regime.task],
            task_manager=TaskManager(include_path=list(folders), include_defaults=False),
            num_fewshot=regime.num_fewshot,
            apply_chat_template=regime.chat_template,
            fewshot_as_multiturn=regime.fewshot_as_multiturn,
            samples={regime.task: sorted(doc_ids)},
            log_samples=True,
            bootstrap_iters=0,
        )
    aggregates = {
        name: value
        for name, value in result["results"][regime.task].items()
        if "," in name and isinstance(value, int | float)
    }
    return Scores(result["samples"][regime.task], aggregates, peer.seconds)
