"""Texts by vLLM where it is installed: of the base, and by a LoRA request of every adapter.

Its kernels round differently from transformers', so texts equal those of lm-eval's Hugging Face
back end only as far as two engines agree. It is not for log-likelihoods: it does not keep a prefix
of requests that ask for them (vLLM's issue 17251), so it reads a few-shot preamble again for every
option of every item. It answers a few for ``tasks.update_guard``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch

from rankwise.engine.models.adapter_config import read_adapter_config
from rankwise.engine.models.devices import ResolvedPrecision, choose_device, give_back_memory
from rankwise.errors import ModelError
from rankwise.records.config.study import StudyConfig
from rankwise.tasks.questions import Advance, Continuation, Generation, LogLikelihood, Prompt

# values that vLLM accepts for max_lora_rank
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# vLLM returns when all sequences of a call are done; progress is shown between calls.
_SEQUENCES_PER_CALL = 1024
# Adapters on the card at once. Each takes a slot of the highest rank in every linear layer, 2.7 GB
# at rank 512 and 8B; the others wait in the host's memory. Sequences come adapter by adapter.
_SLOTS = 4
# vLLM takes a share of the card's whole memory, and refuses to start if that is not free. The rest
# of what is free is for what grows meanwhile. 0.9 is its own default.
_FREE_SHARE, _MOST_MEMORY = 0.95, 0.9
# Seconds that its processes have to end by themselves.
_PATIENCE_SECONDS = 30
# transformers' default where it samples; vLLM's is no limit.
_DEFAULT_TOP_K = 50
# generation options with the same name and meaning in both
_SAME_NAME = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

Answer = TypeVar("Answer")


class _AttachedAdapter(NamedTuple):
    """An adapter; ``number`` is its id in vLLM."""

    number: int
    folder: Path
    rank: int


class _VllmInput(NamedTuple):
    """A sequence for vLLM, its part of the progress, and the most tokens read and written."""

    tokens: tuple[int, ...]
    parameters: Any
    num_tokens: int
    length: int


class VllmScorer:
    """A model and its adapters in vLLM; see ``tasks.questions.Scorer``.

    vLLM is opened at the first query, with room for the ranks of the adapters attached by then, and
    again where a query is longer than it has room for. ``close`` ends its processes.

    Args:
        folder: of the model.
        tokenizer_folder: of its tokenizer.
        precision: of its weights.
        max_rank: the largest rank of adapters that are attached later.
        max_length: tokens of the longest sequence that is expected, read and written.

    Raises:
        ModelError: vLLM is not installed.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer_folder: Path,
        precision: ResolvedPrecision,
        *,
        max_rank: int = 0,
        max_length: int = 0,
    ) -> None:
        try:
            self._vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise ModelError(
                f"engine vllm cannot be used: {error}. Run `pip install rankwise[vllm]`, or use "
                "the engine resident, which is always available."
            ) from error
        self._folder, self._tokenizer_folder = folder, tokenizer_folder
        self._precision, self._max_rank, self._max_length = precision, max_rank, max_length
        self._adapters: dict[str, _AttachedAdapter] = {}
        self._numbers = itertools.count(1)
        self._engine: Any = None
        self._processes: list[psutil.Process] = []

    def put_on(self, name: str, folder: Path) -> None:
        config = read_adapter_config(folder)  # the layers' largest rank counts
        rank = max(config["r"], *(config.get("rank_pattern") or {"": 0}).values())
        if rank > _RANKS[-1]:
            raise ModelError(f"{folder}: vLLM takes ranks to {_RANKS[-1]}, this one is {rank}.")
        if self._engine is not None and rank > self._max_rank:
            raise ModelError(
                f"{folder}: vLLM was opened for ranks to {self._max_rank}, this one is {rank}. "
                "Attach it before the first query, or set max_rank."
            )
        self._adapters[name] = _AttachedAdapter(next(self._numbers), folder, rank)

    @property
    def attached(self) -> Set[str]:
        return self._adapters.keys()

    def take_off(self, name: str) -> None:
        del self._adapters[name]

    def close(self) -> None:
        """End vLLM, and wait until its processes are gone and the card's memory is free again."""
        if self._engine is not None:
            self._engine.llm_engine.engine_core.shutdown()
            self._engine = None
            _, alive = psutil.wait_procs(self._processes, timeout=_PATIENCE_SECONDS)
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive)
            give_back_memory(choose_device())

    def log_likelihoods(
        self,
        models: Sequence[str | None],
        items: Sequence[Continuation],
        advance: Advance = lambda _: None,
    ) -> list[list[LogLikelihood]]:
        parameters = self._vllm.SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False
        )
        sequences = [
            _VllmInput(
                item.context + item.continuation,
                parameters,
                len(item.tokens_read),
                len(item.tokens_read) + 2,  # it reads the last token too, and writes another
            )
            for item in items
        ]
        return self._answers(
            models,
            sequences,
            lambda output, index: _log_likelihood(output, items[index].continuation),
            advance,
        )

    def generate(
        self,
        models: Sequence[str | None],
        prompts: Sequence[Prompt],
        advance: Advance = lambda _: None,
    ) -> list[list[Generation]]:
        sequences = [
            _VllmInput(
                prompt.tokens,
                self._parameters(prompt),
                *[len(prompt.tokens) + prompt.settings.max_new_tokens] * 2,
            )
            for prompt in prompts
        ]

        def written(output: Any, _: int) -> Generation:
            (completion,) = output.outputs
            return Generation(completion.text, completion.finish_reason == "stop")

        return self._answers(models, sequences, written, advance)

    def _answers(
        self,
        models: Sequence[str | None],
        sequences: Sequence[_VllmInput],
        answer: Callable[[Any, int], Answer],
        advance: Advance,
    ) -> list[list[Answer]]:
        """Every model's answers, in calls of a limited number of sequences."""
        engine = self._open(max((sequence.length for sequence in sequences), default=0))
        requests: dict[str | None, Any] = {None: None}
        for name, adapter in self._adapters.items():
            request: Any = importlib.import_module("vllm.lora.request").LoRARequest
            requests[name] = request(name, adapter.number, str(adapter.folder))
        answers: dict[str | None, list[Answer]] = {model: [] for model in models}
        pairs = itertools.product(models, enumerate(sequences))
        while chunk := list(itertools.islice(pairs, _SEQUENCES_PER_CALL)):
            outputs = engine.generate(
                [{"prompt_token_ids": list(sequence.tokens)} for _, (_, sequence) in chunk],
                sampling_params=[sequence.parameters for _, (_, sequence) in chunk],
                lora_request=[requests[model] for model, _ in chunk],
                use_tqdm=False,
            )
            for output, (model, (index, _)) in zip(outputs, chunk, strict=True):
                answers[model].append(answer(output, index))
            advance(sum(sequence.num_tokens for _, (_, sequence) in chunk))
        return [answers[model] for model in models]

    def _open(self, length: int) -> Any:
        """vLLM, with room for sequences of this many tokens."""
        if length > self._max_length:
            self.close()
            self._max_length = length
        if self._engine is None:
            ranks = [self._max_rank, *(adapter.rank for adapter in self._adapters.values())]
            self._max_rank = next(room for room in _RANKS if room >= max(ranks))
            number = max(len(self._adapters), 1)
            with_adapters = {
                "enable_lora": True,
                "max_lora_rank": self._max_rank,
                "max_loras": min(_SLOTS, number),
                "max_cpu_loras": number,
            }
            memory: dict[str, float] = {}
            if torch.cuda.is_available():
                free, total = torch.cuda.mem_get_info(choose_device())
                memory["gpu_memory_utilization"] = min(_MOST_MEMORY, _FREE_SHARE * free / total)
            before = set(psutil.Process().children(recursive=True))
            try:
                self._engine = self._vllm.LLM(
                    model=str(self._folder),
                    tokenizer=str(self._tokenizer_folder),
                    dtype=self._precision,
                    trust_remote_code=False,
                    max_model_len=self._max_length,
                    **memory,
                    **(with_adapters if max(ranks) else {}),
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise ModelError(f"vLLM cannot open {self._folder}: {error}") from error
            self._processes = [*set(psutil.Process().children(recursive=True)) - before]
        return self._engine

    def _parameters(self, prompt: Prompt) -> Any:
        """Generation settings as vLLM's SamplingParams; options that it lacks are refused."""
        options = dict(prompt.settings.options)
        samples = bool(options.pop("do_sample", False))
        given: dict[str, Any] = {"top_k": _DEFAULT_TOP_K} if samples else {}
        for name, value in options.items():
            if name == "min_new_tokens":
                given["min_tokens"] = value
            elif name not in _SAME_NAME:
                raise ModelError(f"engine vllm cannot honour {name}={value!r} of a generation.")
            elif samples or name == "repetition_penalty":
                given[name] = value
        if not samples:
            given["temperature"] = 0
        else:
            content = repr((prompt.draw, prompt.tokens)).encode()
            given["seed"] = int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "big")
        return self._vllm.SamplingParams(
            max_tokens=prompt.settings.max_new_tokens, stop=list(prompt.settings.stops), **given
        )


def _log_likelihood(output: Any, continuation: Sequence[int]) -> LogLikelihood:
    """From vLLM's log-probabilities of each continuation token and of the most likely one."""
    positions = output.prompt_logprobs[-len(continuation) :]
    nats, is_greedy = 0.0, True
    for token, candidates in zip(continuation, positions, strict=True):
        of_token = float(candidates[token].logprob)
        nats += of_token
        is_greedy &= of_token >= max(float(other.logprob) for other in candidates.values())
    return LogLikelihood(nats, is_greedy)


def engine_problem(config: StudyConfig) -> str | None:
    """Why the configured engine cannot score a study here, or None."""
    if config.evaluation.engine.generate_until == "resident":
        return None
    if importlib.util.find_spec("vllm") is None:
        return (
            "vllm is not installed; install rankwise[vllm] (it needs a GPU), or choose "
            "evaluation.engine.generate_until=resident"
        )
    if config.train.base_precision != "auto":
        return (
            f"vllm would score the unquantised base, and the adapters are trained on one in "
            f"{config.train.base_precision}; choose evaluation.engine.generate_until=resident, or "
            "train.base_precision=auto"
        )
    return None
