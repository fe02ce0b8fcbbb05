"""The requests of a task, tokenised as lm-evaluation-harness tokenises them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import itertools
import json
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import DataError, TaskError
from rankwise.records.config.study import EvaluationConfig
from rankwise.tasks.chat_templates import render_chat
from rankwise.tasks.item_order import build_requests, in_random_order
from rankwise.tasks.questions import GenerationSettings, shared_length
from rankwise.tasks.resolution import LoadedTask, TaskNotFound, load_tasks, quiet_lm_eval
from rankwise.tasks.task_files import task_code
from rankwise.tasks.training_rows import TextEncoder, swallowed

FEWSHOT_SEED = 1234  # lm-eval's default

SAMPLING_SEED = 1234
"""Seed of sampled answers, which also depend on the task, the item and the draw's number."""

# The keys of a task's config that turn answers into scores.
_JUDGING = (
    "output_type",
    "metric_list",
    "filter_list",
    "process_results",
    "doc_to_choice",
    "repeats",
)


class Request(NamedTuple):
    """One sequence to score, or one prompt to continue.

    Attributes:
        instance: index of its lm-eval instance (a long text has several requests).
        context: token ids that are read and not scored.
        continuation: token ids whose log-likelihood is wanted; empty for a generation.
        is_truncated: the context did not fit and lost tokens on its left.
        settings: how the prompt is continued; None for a log-likelihood.
        draw: seed of a sampled text, see ``questions.Prompt``; an instance has a request per draw.
    """

    instance: int
    context: tuple[int, ...]
    continuation: tuple[int, ...]
    is_truncated: bool
    settings: GenerationSettings | None = None
    draw: int = 0

    @property
    def tokens_read(self) -> tuple[int, ...]:
        """What the model reads: the last token is only predicted, unless it is a prompt's."""
        tokens = self.context + self.continuation
        return tokens[:-1] if self.continuation else tokens

    @property
    def num_tokens(self) -> int:
        """Tokens that are read, and the most that are generated."""
        return len(self.tokens_read) + (self.settings.max_new_tokens if self.settings else 0)


class PreparedTask(NamedTuple):
    """A task with all its requests, tokenised once and scored on many models.

    Attributes:
        loaded: the task.
        instances: lm-eval's instances, in the order of the documents.
        requests: in the order of the instances, those of one instance together.
        doc_ids: numbers of the documents that are scored, in the order in which they were taken:
            the random one where a limit leaves documents out, else that of the documents.
        limit: the configured limit of that number, if any.
        num_available: documents that the task has in all.
        num_fewshot: number of examples before each question.
        chat_template: whether prompts are rendered as conversations.
        digest: sha256 over every prompt, continuation and right answer, metrics and filters.
        chance: mean over items of 1/options; 0 for a generation; None where it has no meaning.
        num_options: doc_id -> number of options, for multiple choice.
        num_draws: number of texts sampled for each item; 0 where nothing is sampled.
    """

    loaded: LoadedTask
    instances: list[Any]
    requests: list[Request]
    doc_ids: tuple[int, ...]
    limit: int | None
    num_available: int
    num_fewshot: int
    chat_template: bool
    digest: str
    chance: float | None
    num_options: dict[int, int]
    num_draws: int

    @property
    def name(self) -> str:
        return self.loaded.name

    @property
    def num_items(self) -> int:
        """Number of documents that are scored."""
        return len(self.doc_ids)

    def digest_of(self, doc_ids: Collection[int]) -> str:
        """The digest that the task would have if it scored these of its documents alone."""
        chosen = set(doc_ids)
        return _digest(self.loaded, [i for i in self.instances if i.doc_id in chosen])

    def first(self, number: int) -> PreparedTask:
        """The same task with the first of its items, in the random order, alone."""
        doc_ids = tuple(in_random_order(self.doc_ids)[:number])
        chosen = {*doc_ids}
        kept = [index for index, each in enumerate(self.instances) if each.doc_id in chosen]
        places = {index: place for place, index in enumerate(kept)}
        instances = [self.instances[index] for index in kept]
        return self._replace(
            instances=instances,
            requests=[
                each._replace(instance=places[each.instance])
                for each in self.requests
                if each.instance in places
            ],
            doc_ids=doc_ids,
            digest=_digest(self.loaded, instances),
            **_options(self.loaded, instances),
        )

    @property
    def requests_in_turn(self) -> list[Request]:
        """The requests, document after document as these were taken."""
        place = {doc_id: number for number, doc_id in enumerate(self.doc_ids)}
        return sorted(self.requests, key=lambda r: place[self.instances[r.instance].doc_id])

    @property
    def num_tokens(self) -> int:
        """Tokens of all requests: read, and generated at most."""
        return sum(request.num_tokens for request in self.requests)

    @property
    def num_distinct_tokens(self) -> int:
        """The same where a prefix that several requests share is read once."""
        in_order = sorted(request.tokens_read for request in self.requests)
        return self.num_tokens - sum(itertools.starmap(shared_length, itertools.pairwise(in_order)))

    @property
    def num_truncated(self) -> int:
        """Number of items with a context that lost tokens on its left."""
        cut = [request.instance for request in self.requests if request.is_truncated]
        return len({self.instances[index].doc_id for index in cut})


def prepare_task(
    loaded: LoadedTask,
    tokenizer: Any,
    *,
    max_length: int,
    num_fewshot: int | None,
    limit: int | None,
    chat_template: bool,
    fewshot_as_multiturn: bool = False,
    doc_ids: Collection[int] | None = None,
) -> PreparedTask:
    """Build a task's requests with lm-eval's own prompts, and tokenise them.

    A document's prompt does not depend on which others are scored.

    Args:
        loaded: the task.
        tokenizer: of the base model.
        max_length: context limit in tokens; longer contexts lose their left end, as in lm-eval.
        num_fewshot: None takes the task's own number. As in lm-eval, a task that fixes 0 keeps it.
        limit: score this many documents at most, the first of the random order; None scores all.
        chat_template: render prompts as conversations.
        fewshot_as_multiturn: render few-shot examples as separate turns.
        doc_ids: score these documents, whatever ``limit`` is; the task keeps their order.

    Raises:
        TaskError: the task has no documents to score, no examples for few-shot, or generation
            settings that cannot be honoured.
        DataError: a prompt or an answer is empty, an answer has no token of its own, or an item's
            options are the same.
    """
    task = loaded.task
    if not (task.has_test_docs() or task.has_validation_docs()):
        raise TaskError(f"task {loaded.name!r} has neither a test nor a validation split to score.")
    chat_template = chat_template and not loaded.is_rendered
    shots: int | None = task.get_config("num_fewshot")
    if shots is None or (shots != 0 and num_fewshot is not None):
        shots = num_fewshot or 0
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    building = task_code(
        f"{loaded.where} cannot build its prompts (num_fewshot={shots})",
        "Check that its test split is not empty and that it has enough examples for few-shot.",
    )
    with building, quiet_lm_eval():
        # lm-eval shows its own progress bar on stderr; ours shows the whole study
        with contextlib.redirect_stderr(io.StringIO()):
            chosen = None if doc_ids is None else tuple(doc_ids)
            if chosen is None and limit is not None and limit < (count := len(task.eval_docs)):
                chosen = tuple(in_random_order(range(count))[:limit])
            build = task.build_all_requests
            if chosen is not None:
                build = partial(build_requests, task, sorted(chosen))
            build(
                apply_chat_template=chat_template,
                fewshot_as_multiturn=fewshot_as_multiturn,
                chat_template=partial(render_chat, tokenizer) if chat_template else None,
            )
        instances = list(task.instances)
        options = _options(loaded, instances)
        digest = _digest(loaded, instances)
        encoder = RequestEncoder(tokenizer, max_length, are_written=loaded.is_rendered)
        requests = [
            request
            for index, instance in enumerate(instances)
            for request in encoder.requests(index, instance, loaded.name)
        ]
        num_draws = max(_num_draws(instance) for instance in instances)
    return PreparedTask(
        loaded=loaded,
        instances=instances,
        requests=requests,
        doc_ids=chosen or tuple(dict.fromkeys(instance.doc_id for instance in instances)),
        limit=limit,
        num_available=len(task.eval_docs),
        num_fewshot=shots,
        chat_template=chat_template,
        digest=digest,
        num_draws=num_draws,
        **options,
    )


def prepared_tasks(
    names: Sequence[str],
    tasks_path: Sequence[Path],
    tokenizer: Any,
    max_length: int,
    evaluation: EvaluationConfig,
    *,
    allow_code: bool = False,
) -> list[PreparedTask]:
    """Every named task once, groups and tags as their leaves; see ``prepare_task``.

    ``allow_code``: whether task files of ``tasks_path`` may run Python code.

    Raises:
        TaskError: also for unknown names, all at once.
    """
    leaves: dict[str, LoadedTask] = {}
    unknown: list[str] = []
    for found in load_tasks(names, tasks_path, allow_code=allow_code).values():
        if isinstance(found, TaskError):
            raise found
        if isinstance(found, TaskNotFound):
            unknown.append(str(found))
        else:
            leaves |= {task.name: task for task in found}
    if unknown:
        raise TaskError(f"{'; '.join(unknown)}. `rankwise tasks` lists the known ones.")
    return [prepared_task(task, tokenizer, max_length, evaluation) for task in leaves.values()]


def prepared_task(
    task: LoadedTask,
    tokenizer: Any,
    max_length: int,
    evaluation: EvaluationConfig,
    *,
    limit: int | None = None,
    doc_ids: Collection[int] | None = None,
) -> PreparedTask:
    """One task with the settings of a study's ``evaluation`` section; see ``prepare_task``.

    A ``limit`` takes the place of the section's. No chat template is used where there is none.
    """
    return prepare_task(
        task,
        tokenizer,
        max_length=max_length,
        num_fewshot=evaluation.num_fewshot,
        limit=limit or evaluation.limit,
        chat_template=evaluation.chat_template and bool(tokenizer.chat_template),
        fewshot_as_multiturn=evaluation.fewshot_as_multiturn,
        doc_ids=doc_ids,
    )


def _num_draws(instance: Any) -> int:
    """Number of texts sampled for an instance; 0 if its answer is deterministic."""
    if instance.request_type != "generate_until":
        return 0
    from lm_eval.models.utils import normalize_gen_kwargs

    with quiet_lm_eval():
        samples = normalize_gen_kwargs(instance.args[1]).get("do_sample", False)
    return (instance.repeats or 1) if samples else 0


def _digest(loaded: LoadedTask, instances: Sequence[Any]) -> str:
    """Hash of all that decides a score except the model: texts, right answers, metrics, filters."""
    config = loaded.task.dump_config()
    judged = {name: config.get(name) for name in _JUDGING}
    digest = hashlib.sha256(json.dumps(judged, sort_keys=True, default=_in_text).encode())
    for instance in instances:
        digest.update(json.dumps(instance.args, default=str).encode())
        if instance.idx == 0:
            target = loaded.task.doc_to_target(instance.doc)
            digest.update(json.dumps([instance.doc, target], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _in_text(value: Any) -> str:
    """What JSON has no form for; a function by its source, since its name has an address in it."""
    if isinstance(value, functools.partial):
        parts = (value.func, *value.args, *sorted(value.keywords.items()))
        return " ".join(map(_in_text, parts))
    if not inspect.isroutine(value):
        return str(value)
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # built in, or without a file
        return f"{value.__module__}.{value.__qualname__}"


def _options(loaded: LoadedTask, instances: Sequence[Any]) -> dict[str, Any]:
    """The fields of a task that follow from its items' options.

    The further requests of ``acc_mutual_info`` are not options.
    """
    chance = 0.0 if loaded.output_type == "generate_until" else None
    if loaded.output_type != "multiple_choice":
        return {"num_options": {}, "chance": chance}
    options = {i.doc_id: loaded.task.doc_to_choice(i.doc) for i in instances if i.idx == 0}
    for doc_id, texts in options.items():
        where = f"{loaded.where}, doc_to_choice: item {doc_id} has"
        if len(texts) < 2:
            raise DataError(
                f"{where} {len(texts)} option; a choice needs two. Give it another one, or leave "
                "the item out."
            )
        if len(set(texts)) == 1:
            raise DataError(
                f"{where} {len(texts)} options that are all {texts[0]!r}. Correct them, or leave "
                "the item out."
            )
    num_options = {doc_id: len(texts) for doc_id, texts in options.items()}
    if num_options:
        chance = sum(1 / number for number in num_options.values()) / len(num_options)
    return {"num_options": num_options, "chance": chance}


class RequestEncoder:
    """Makes the requests of an instance, cut to the context limit.

    Prompts and answers are split as lm-eval does, or, where they ``are_written`` by users, as the
    rows are that are trained on.
    """

    def __init__(self, tokenizer: Any, max_length: int, *, are_written: bool = False) -> None:
        self._text = TextEncoder(tokenizer)
        self._split = self._text.as_written if are_written else self._text.split
        self._end_of_text: str = tokenizer.decode(
            [tokenizer.eos_token_id], skip_special_tokens=False
        )
        self._max_length = max_length

    def requests(self, index: int, instance: Any, task: str) -> list[Request]:
        """The requests of the instance number ``index`` of a task.

        Raises:
            DataError: an option or the whole text is empty, merges into the prompt, or is longer
                than the model reads.
            TaskError: as ``generation_settings``.
        """
        kind = instance.request_type
        if kind == "generate_until":
            return self._generations(index, instance, task)
        if kind == "loglikelihood_rolling":
            from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

            windows = get_rolling_token_windows(
                token_list=self._text.encode(instance.args[0]),
                prefix_token=self._text.prefix_id,
                max_seq_len=self._max_length,
                context_len=1,
            )
            requests = [
                Request(index, tuple(context), tuple(scored), is_truncated=False)
                for context, scored in map(make_disjoint_window, windows)
            ]
            if not requests:
                raise DataError(f"task {task!r}, item {instance.doc_id}: its text is empty.")
            return requests
        before, option = instance.args
        where = f"task {task!r}, item {instance.doc_id}"
        if not option:
            raise DataError(f"{where}: an option is empty text.")
        context, continuation, _, is_swallowed = self._split(before, option)
        if is_swallowed:  # lm-eval stops at an answer without tokens
            raise DataError(f"{where}: {swallowed(before, option)}")
        if len(continuation) > self._max_length:  # lm-eval refuses it too
            raise DataError(
                f"{where}: an answer has {len(continuation)} tokens and the model reads "
                f"{self._max_length}. Shorten it, or leave the item out."
            )
        kept = self._max_length + 1 - len(continuation)
        is_truncated = len(context) > kept
        return [Request(index, tuple(context[-kept:]), tuple(continuation), is_truncated)]

    def _generations(self, index: int, instance: Any, task: str) -> list[Request]:
        """One request, or one for each text that is sampled."""
        context, options = instance.args
        settings = generation_settings(options, self._end_of_text, task)
        tokens = self._text.encode(context)
        kept = tokens[-max(self._max_length - settings.max_new_tokens, 1) :]
        is_truncated = len(kept) < len(tokens)
        draws: list[int] = []
        for number in range(_num_draws(instance)):  # the same in every process, for every model
            content = json.dumps([SAMPLING_SEED, task, instance.doc_id, number]).encode()
            digest = hashlib.blake2b(content, digest_size=8).digest()
            draws.append(int.from_bytes(digest, "big") >> 1)
        return [
            Request(index, tuple(kept), (), is_truncated, settings, draw) for draw in draws or [0]
        ]


def generation_settings(options: dict[str, Any], end_of_text: str, task: str) -> GenerationSettings:
    """A task's ``generation_kwargs`` as settings, read as lm-eval's Hugging Face back end does.

    The text of the end token is always among the stops.

    Raises:
        TaskError: no text to stop at, no token to write, sampling without a temperature, or an
            option that is not a number or a switch.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    with quiet_lm_eval():
        normal: dict[str, Any] = dict(normalize_gen_kwargs(options))
        stops: list[Any] = handle_stop_sequences(list(normal.pop("until")), eos=end_of_text)
    max_new_tokens: int = normal.pop("max_gen_toks")
    if max_new_tokens < 1 or not all(isinstance(stop, str) for stop in stops):
        raise TaskError(
            f"task {task!r} sets generation_kwargs to {options!r:.100}; give until as a text or a "
            "list of texts, and max_gen_toks of at least 1."
        )
    if not normal["do_sample"]:
        normal.pop("temperature", None)
    elif not normal.get("temperature"):
        raise TaskError(
            f"task {task!r} asks for sampling but sets no temperature, which lm-eval's Hugging "
            "Face back end refuses; set generation_kwargs.temperature above 0, or do_sample "
            "to false."
        )
    for name, value in normal.items():
        if name == "max_length" or not (value is None or isinstance(value, int | float)):
            raise TaskError(
                f"task {task!r} sets generation_kwargs.{name} to {value!r}; rankwise takes numbers "
                "and switches of transformers' GenerationConfig, and max_gen_toks for the length."
            )
    given = {name: value for name, value in normal.items() if value is not None}
    return GenerationSettings(max_new_tokens, tuple(stops), tuple(sorted(given.items())))
