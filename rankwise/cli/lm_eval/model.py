"""The engine as a lm-eval model: one resident base, and the adapters that are scored with it.

lm-eval evaluates one model at a time. All models of one base are held together here: the requests
to the first one are answered for all at once, and the others' answers are kept until lm-eval
requests them.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import lm_eval.models  # noqa: F401  # pyright: ignore[reportUnusedImport] (fills the registry)
import torch
from lm_eval.api.model import LM, TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from rankwise.cli.lm_eval.arguments import ModelArguments, parse_model_arguments
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.lanes import lanes_of
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.models.placed import load_to_score
from rankwise.engine.models.start import fetch_weights
from rankwise.engine.models.structure import context_length, model_skeleton
from rankwise.records.config.study import BaseModelConfig
from rankwise.tasks.chat_templates import render_chat
from rankwise.tasks.questions import Advance, Continuation, Prompt
from rankwise.tasks.requests import Request, RequestEncoder
from rankwise.tasks.update_guard import probes, refuse_unapplied
from rankwise.weights.session import ScoringSession

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MODEL_NAME = "rankwise"

Asked = TypeVar("Asked", Continuation, Prompt)
Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class HeldModels:
    """A base model, its adapters, and answers that lm-eval has not requested yet.

    Raises:
        ModelError: the base or an adapter cannot be read or used.
    """

    def __init__(self, arguments: ModelArguments) -> None:
        config = BaseModelConfig(name=arguments.pretrained, revision=arguments.revision)
        self.folder = fetch_weights(find_base_model(config))
        self.tokenizer = load_tokenizer(self.folder)
        skeleton: Any = model_skeleton(self.folder)
        longest = context_length(skeleton.config, self.tokenizer)
        self.max_length = arguments.max_length or longest
        device = torch.device(arguments.device)
        model = load_to_score(self.folder, arguments.precision, device)
        self.scorer = ScoringSession(
            model,
            self.tokenizer,
            step_tokens=arguments.max_batch_tokens,
            max_lanes=lanes_of(model),
        ).scorer
        adapters = {name: AdapterFolder(folder) for name, folder in arguments.adapters}
        for name, adapter in adapters.items():
            self.scorer.put_on(name, adapter)
        self._names = (None, *arguments.names)
        self._unchecked = [name for name, adapter in adapters.items() if adapter.has_update]
        self._kept: dict[str | None, dict[bytes, Any]] = {name: {} for name in self._names}

    @classmethod
    def of(cls, arguments: ModelArguments) -> HeldModels:
        """The models held for equal arguments, while anyone refers to them; else new ones."""
        key = arguments.model_copy(update={"answering": None})
        held = _held.get(key)
        if held is None:
            held = _held[key] = cls(arguments)
        return held

    def require_applied(self, requests: Sequence[Request]) -> None:
        """Check, the first time, that every adapter changes the base's answers.

        Raises:
            UnchangedOutputsError: an adapter with a non-zero update does not.
        """
        if self._unchecked and requests:
            refuse_unapplied(self.scorer, self._unchecked, probes(requests))
            self._unchecked = []

    def answers(
        self,
        name: str | None,
        items: Sequence[Asked],
        ask: Callable[[Sequence[str | None], Sequence[Asked], Advance], list[list[Answer]]],
        num_tokens: Callable[[Asked], int],
    ) -> list[Answer]:
        """One model's answers, in the order of the items; new items are answered for every model.

        ``ask`` is a method of the scorer, and ``num_tokens`` counts an item for the progress bar.
        """
        # hashes, as the token ids of a whole benchmark would fill the memory
        keys = [hashlib.blake2b(repr(item).encode(), digest_size=16).digest() for item in items]
        kept = self._kept[name]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in kept}
        if new:
            total = len(self._names) * sum(map(num_tokens, new.values()))
            with tqdm(total=total, unit="token", unit_scale=True, desc="Scoring") as progress:

                def advance(num_read: int) -> None:
                    progress.update(num_read)

                by_model = ask(self._names, list(new.values()), advance)
            for model, answers in zip(self._names, by_model, strict=True):
                self._kept[model].update(zip(new, answers, strict=True))
        return [kept[key] for key in keys]


_held: WeakValueDictionary[ModelArguments, HeldModels] = WeakValueDictionary()


@register_model(MODEL_NAME)
class RankwiseLM(LM):
    """One model of a resident base, as lm-eval uses it.

    Its answers raise ``DataError`` where an option is empty text, and ``TaskError`` where
    generation settings cannot be honoured.

    Args:
        pretrained: an embedded model's name, a folder, or a hub repository.
        batch_size: lm-eval's; it has no effect, since ``max_batch_tokens`` cuts batches.
        max_batch_size: has no effect either.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; lm-eval's ``--device``.
        arguments: the others of ``ModelArguments``.

    Raises:
        ConfigError: an argument is unknown or makes no sense.
        ModelError: the base or an adapter cannot be read or used.
    """

    chat_template = TemplateLM.chat_template

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        # lm-eval's default, which its own models too take for the CPU where there is no card
        if device == "cuda:0" and not torch.cuda.is_available():
            device = None
        self._arguments = parse_model_arguments(
            {"pretrained": pretrained, "device": device, **arguments}
        )
        self._models = HeldModels.of(self._arguments)
        self.tokenizer = self._models.tokenizer
        self._encoder = RequestEncoder(self.tokenizer, self._models.max_length)
        self.num_truncated = 0

    @property
    def tokenizer_name(self) -> str:
        """The name under which lm-eval caches prompts."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return render_chat(
            self.tokenizer, chat_history, add_generation_prompt=add_generation_prompt
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation in nats, and whether it is greedy."""
        flat = [request for encoded in self._encoded(requests) for request in encoded]
        answers = self._log_likelihoods(flat)
        self._cache("loglikelihood", requests, answers)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of whole texts in nats, in windows that do not overlap."""
        windows = self._encoded(requests)
        answers = iter(self._log_likelihoods([window for text in windows for window in text]))
        totals = [sum(next(answers)[0] for _ in text) for text in windows]
        self._cache("loglikelihood_rolling", requests, totals)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The texts that continue the prompts, cut at the stop strings."""
        draws, prompts = Counter[int](), list[Prompt]()
        for request, encoded in zip(requests, self._encoded(requests), strict=True):
            # lm-eval repeats the instance itself for every text that it wants sampled
            one = encoded[draws[id(request)] % len(encoded)]
            draws[id(request)] += 1
            assert one.settings is not None
            prompts.append(Prompt(one.context, one.settings, one.draw))
        generations = self._models.answers(
            self._arguments.answering,
            prompts,
            self._models.scorer.generate,
            lambda prompt: len(prompt.tokens) + prompt.settings.max_new_tokens,
        )
        texts = [generation.text for generation in generations]
        self._cache("generate_until", requests, texts)
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results, in addition to the arguments."""
        answering = self._arguments.answering
        adapters = dict(self._arguments.adapters)
        return {
            "model_dtype": self._arguments.precision,
            "model_folder": str(self._models.folder),
            "adapter_folder": None if answering is None else str(adapters[answering]),
            "max_length": self._models.max_length,
            "num_truncated": self.num_truncated,
        }

    def _encoded(self, requests: Sequence[Instance]) -> list[list[Request]]:
        """Each instance's sequences, cut to the context, with a warning if any was cut."""
        encoded = [
            self._encoder.requests(index, instance, instance.task_name or "")
            for index, instance in enumerate(requests)
        ]
        count = sum(any(request.is_truncated for request in instance) for instance in encoded)
        self.num_truncated += count
        if count:
            _log.warning(
                "%d of %d prompts are longer than the context of %d tokens; their left end is lost",
                count,
                len(requests),
                self._models.max_length,
            )
        self._models.require_applied([request for instance in encoded for request in instance])
        return encoded

    def _log_likelihoods(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        answers = self._models.answers(
            self._arguments.answering,
            [Continuation(request.context, request.continuation) for request in requests],
            self._models.scorer.log_likelihoods,
            lambda item: len(item.tokens_read),
        )
        return [(answer.nats, answer.is_greedy) for answer in answers]

    def _cache(self, kind: str, requests: Sequence[Instance], answers: Sequence[Any]) -> None:
        """Hand answers to ``--use_cache``, which keeps them if lm-eval is stopped."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
