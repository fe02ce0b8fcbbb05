"""Scoring by vLLM where it is installed: the base, and a LoRA request for every adapter.

Its kernels round differently from transformers', so numbers equal those of lm-eval's Hugging Face
back end only as far as two engines agree.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rankwise.engine.models.adapter_config import read_adapter_config
from rankwise.engine.models.devices import ResolvedPrecision
from rankwise.errors import ModelError
from rankwise.records.config.study import StudyConfig
from rankwise.tasks.questions import Advance, Continuation, Generation, LogLikelihood, Prompt

RESERVED_TOKENS = 2
"""Context that vLLM takes more: it also reads a continuation's last token and writes another."""

# values that vLLM accepts for max_lora_rank
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# vLLM returns when all sequences of a call are done; progress is shown between calls.
_SEQUENCES_PER_CALL = 1024
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
    """A sequence for vLLM, and its part of the progress."""

    tokens: tuple[int, ...]
    parameters: Any
    num_tokens: int


class VllmScorer:
    """A model and its adapters in vLLM; see ``tasks.questions.Scorer``.

    vLLM is opened at the first query, with room for the ranks of the adapters attached by then.

    Args:
        folder: of the model.
        tokenizer_folder: of its tokenizer.
        precision: of its weights.
        max_rank: the largest rank of adapters that are attached later.

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
    ) -> None:
        self._vllm = _import_vllm()
        self._folder, self._tokenizer_folder = folder, tokenizer_folder
        self._precision, self._max_rank = precision, max_rank
        self._adapters: dict[str, _AttachedAdapter] = {}
        self._numbers = itertools.count(1)
        self._engine: Any = None

    def put_on(self, name: str, folder: Path) -> None:
        rank = _rank(folder)
        if rank > _RANKS[-1]:
            raise ModelError(f"{folder}: vLLM takes ranks to {_RANKS[-1]}, this one is {rank}.")
        if self._engine is not None and rank > self._max_rank:
            raise ModelError(
                f"{folder}: vLLM was opened for ranks to {self._max_rank}, this one is {rank}. "
                "Attach it before the first query, or set max_rank."
            )
        self._adapters[name] = _AttachedAdapter(next(self._numbers), folder, rank)

    def take_off(self, name: str) -> None:
        del self._adapters[name]

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
            _VllmInput(item.context + item.continuation, parameters, len(item.tokens_read))
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
                len(prompt.tokens) + prompt.settings.max_new_tokens,
            )
            for prompt in prompts
        ]
        return self._answers(models, sequences, lambda output, _: _generation(output), advance)

    def _answers(
        self,
        models: Sequence[str | None],
        sequences: Sequence[_VllmInput],
        answer: Callable[[Any, int], Answer],
        advance: Advance,
    ) -> list[list[Answer]]:
        """Every model's answers, in calls of a limited number of sequences."""
        engine = self._open()
        answers: dict[str | None, list[Answer]] = {model: [] for model in models}
        pairs = itertools.product(models, enumerate(sequences))
        while chunk := list(itertools.islice(pairs, _SEQUENCES_PER_CALL)):
            outputs = engine.generate(
                [{"prompt_token_ids": list(sequence.tokens)} for _, (_, sequence) in chunk],
                sampling_params=[sequence.parameters for _, (_, sequence) in chunk],
                lora_request=[self._request(model) for model, _ in chunk],
                use_tqdm=False,
            )
            for output, (model, (index, _)) in zip(outputs, chunk, strict=True):
                answers[model].append(answer(output, index))
            advance(sum(sequence.num_tokens for _, (_, sequence) in chunk))
        return [answers[model] for model in models]

    def _request(self, model: str | None) -> Any:
        if model is None:
            return None
        adapter = self._adapters[model]
        request: Any = importlib.import_module("vllm.lora.request").LoRARequest
        return request(model, adapter.number, str(adapter.folder))

    def _open(self) -> Any:
        if self._engine is None:
            ranks = [self._max_rank, *(adapter.rank for adapter in self._adapters.values())]
            self._max_rank = next(room for room in _RANKS if room >= max(ranks))
            with_adapters = {
                "enable_lora": True,
                "max_lora_rank": self._max_rank,
                "max_loras": max(len(self._adapters), 1),
            }
            try:
                self._engine = self._vllm.LLM(
                    model=str(self._folder),
                    tokenizer=str(self._tokenizer_folder),
                    dtype=self._precision,
                    trust_remote_code=False,
                    **(with_adapters if max(ranks) else {}),
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise ModelError(f"vLLM cannot open {self._folder}: {error}") from error
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


def _import_vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise ModelError(
            f"engine vllm cannot be used: {error}. Run `pip install rankwise[vllm]`, or use the "
            "engine resident, which is always available."
        ) from error


def _rank(folder: Path) -> int:
    """The largest rank of an adapter's layers."""
    config = read_adapter_config(folder)
    return max(config["r"], *(config.get("rank_pattern") or {"": 0}).values())


def _log_likelihood(output: Any, continuation: Sequence[int]) -> LogLikelihood:
    """From vLLM's log-probabilities of each continuation token and of the most likely one."""
    positions = output.prompt_logprobs[-len(continuation) :]
    nats, is_greedy = 0.0, True
    for token, candidates in zip(continuation, positions, strict=True):
        of_token = float(candidates[token].logprob)
        nats += of_token
        is_greedy &= of_token >= max(float(other.logprob) for other in candidates.values())
    return LogLikelihood(nats, is_greedy)


def _generation(output: Any) -> Generation:
    (completion,) = output.outputs
    return Generation(completion.text, completion.finish_reason == "stop")


def engine_problem(config: StudyConfig) -> str | None:
    """Why the configured engine cannot score a study here, or None."""
    if config.evaluation.engine == "resident":
        return None
    if importlib.util.find_spec("vllm") is None:
        return (
            "vllm is not installed; install rankwise[vllm] (it needs a GPU), or choose "
            "evaluation.engine=resident"
        )
    if config.train.base_precision != "auto":
        return (
            f"vllm would score the unquantised base, and the adapters are trained on one in "
            f"{config.train.base_precision}; choose evaluation.engine=resident, or "
            "train.base_precision=auto"
        )
    return None
