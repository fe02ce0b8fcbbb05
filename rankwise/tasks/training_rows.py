"""Training rows from a task: the prompt as it is scored, followed by the right answer."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from rankwise.errors import DataError, TaskError, is_fault
from rankwise.records.config.training import TrainConfig
from rankwise.tasks.chat_templates import Span, end_of_turn, render_chat
from rankwise.tasks.resolution import LoadedTask
from rankwise.tasks.task_files import task_code

TRAINED_SUFFIX = "@train"
"""Suffix of the task that scores the rows that a task trains on."""

VALIDATION_SUFFIX = "@validation"
"""Suffix of the task of the items by which runs are chosen."""


class TrainingRow(NamedTuple):
    """One example as text.

    Attributes:
        prompt: the prompt, as it is scored.
        completion: the text to learn, including ``end``.
        end: the end of the completion, from which the model learns to stop.
        texts: the texts of the document that the row was made from.
        is_written: a model writes the completion; False: lm-eval scores it.
        rejected: the text that the completion is preferred to, with ``end``; None: there is none.
        turns: where in prompt and completion the answers stand that are learned, with their ends
            and in order; empty: the completion is learned.
        columns: of the row as it was read, where a user wrote it.
        taught: the prompt of a teacher that knows the answer; empty: there is none.
    """

    prompt: str
    completion: str
    end: str = ""
    texts: tuple[str, ...] = ()
    is_written: bool = True
    rejected: str | None = None
    turns: tuple[Span, ...] = ()
    columns: Mapping[str, Any] = MappingProxyType({})
    taught: str = ""


def task_rows(
    loaded: LoadedTask,
    tokenizer: Any,
    *,
    chat_template: bool,
    max_examples: int | None,
    split: str | None = None,
) -> list[TrainingRow]:
    """A split of a task as prompts and right completions, zero-shot.

    For a choice the completion is the right option as it is scored; for a generation it is the
    target. Every completion ends with the model's end of turn, so that it learns to stop.

    Args:
        loaded: the task.
        tokenizer: renders the chat template and knows the end of text.
        chat_template: whether prompts are rendered as a conversation.
        max_examples: take the first rows, this many at most; None takes all.
        split: a split of the task's data set; None takes its training split, never another one.

    Raises:
        TaskError: the task has no such split, or scores nothing that can be trained on.
        DataError: the split is empty, or a row has no right answer.
    """
    if loaded.output_type == "loglikelihood_rolling":
        raise TaskError(f"task {loaded.name!r} is prose without questions; it can only be scored.")
    with task_code(
        f"the training split of {loaded.where} cannot be read", "Check training_split in its YAML."
    ):
        docs = _documents(loaded, split)
    count = len(docs) if max_examples is None else min(max_examples, len(docs))
    if count == 0:
        raise DataError(f"the training split of task {loaded.name!r} is empty. Give it rows.")
    render = partial(render_chat, tokenizer) if chat_template else None
    end = end_of_turn(tokenizer, chat_template=chat_template)
    return [_row(loaded, docs[index], index, render, end) for index in range(count)]


def _documents(loaded: LoadedTask, split: str | None) -> Any:
    task = loaded.task
    available = ", ".join(task.dataset)
    if split is None:
        if task.has_training_docs():
            return task.training_docs()
        raise TaskError(
            f"task {loaded.name!r} has no training split. Name one of its data set's splits in "
            f"train.split ({available}), train on another task, or on your own rows with "
            "train.data."
        )
    if split not in task.dataset:
        raise TaskError(f"task {loaded.name!r} has no split {split!r}; it has {available}.")
    process = task.config.process_docs
    return task.dataset[split] if process is None else process(task.dataset[split])


def trained_items(loaded: LoadedTask, split: str | None) -> LoadedTask:
    """A copy of a task that scores the rows it trains on, named ``<task>@train``."""
    return loaded.changed(
        f"{loaded.name}{TRAINED_SUFFIX}", test_split=split or loaded.task.config.training_split
    )


def with_examples(
    loaded: LoadedTask, split: str | None, rows: Sequence[int], name: str
) -> LoadedTask:
    """A copy of a task whose prompts begin with some rows of a split, as lm-eval writes examples.

    Args:
        loaded: the task.
        split: of the rows; None: its training split.
        rows: their places, in the order in which they stand in the prompt.
        name: of the copy.

    Raises:
        TaskError: it has no such split, or writes its prompts itself.
    """
    from lm_eval.api.samplers import FirstNSampler
    from lm_eval.api.task import ConfigurableTask

    own = getattr(type(loaded.task), "fewshot_context", None)
    if own is not ConfigurableTask.fewshot_context:
        raise TaskError(
            f"{loaded.where} writes its prompts itself, so that no rows can be put into them. "
            "Leave methods.prompt out."
        )
    documents = _documents(loaded, split)
    changed = loaded.changed(name, num_fewshot=len(rows))
    changed.task.sampler = FirstNSampler([documents[place] for place in rows])
    return changed


def num_documents(loaded: LoadedTask, split: str | None) -> int:
    """The number of documents of a split; None takes the training split.

    Raises:
        TaskError: the task has no such split.
    """
    with task_code(
        f"a split of {loaded.where} cannot be read", "Check the names of the splits in its YAML."
    ):
        return len(_documents(loaded, split))


def validation_items(loaded: LoadedTask, split: str | None, rows: Sequence[int]) -> LoadedTask:
    """A copy of a task that scores some rows of a split, named ``<task>@validation``."""
    name = f"{loaded.name.removesuffix(TRAINED_SUFFIX)}{VALIDATION_SUFFIX}"
    scored = split or loaded.task.config.training_split
    return with_documents(loaded.changed(name, test_split=scored), rows)


def with_documents(loaded: LoadedTask, rows: Sequence[int]) -> LoadedTask:
    """A copy of a task that scores only some of its documents, given by their indices."""
    process = loaded.task.config.process_docs

    def chosen(docs: Any) -> list[Any]:
        processed = docs if process is None else process(docs)
        return [processed[index] for index in rows]

    return loaded.changed(process_docs=chosen)


def _row(
    loaded: LoadedTask, doc: Any, index: int, render: Callable[..., str] | None, end: str
) -> TrainingRow:
    task = loaded.task
    where = f"row {index} of the training split of {loaded.where}"
    options: dict[str, Any] = {"apply_chat_template": render is not None, "chat_template": render}
    with task_code(f"{where} cannot be read", "Repair or remove it."):
        context = task.fewshot_context(doc, 0, gen_prefix=task.doc_to_prefix(doc), **options)
        requests = task.construct_requests(doc=doc, ctx=context, metadata=("", 0, 1), **options)
        target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        is_choice = loaded.output_type == "multiple_choice"
        gold = option_index(target, task, doc) if is_choice else None
    if is_choice:
        if gold is None or not 0 <= gold < len(requests):
            raise DataError(
                f"{where} has no right answer: target {target!r} of {len(requests)} options. "
                "Repair or remove it."
            )
        prompt, completion = requests[gold].arguments
    elif loaded.output_type == "loglikelihood":
        asked = requests[0] if loaded.has_pairs else requests  # the chosen answer
        prompt, completion = asked.arguments
    else:
        prompt = requests.arguments[0]
        with task_code(f"{where} cannot be read", "Repair or remove it."):
            completion = target_text(task, doc, target, chat_template=render is not None)
    is_null = str(completion).strip() == "None" and None in doc.values()  # a template's None
    if is_null or not str(completion).strip():
        raise DataError(f"{where} has an empty answer. Repair or remove it.")
    is_written = loaded.output_type == "generate_until"
    return TrainingRow(prompt, f"{completion}{end}", end, _document_texts(doc), is_written)


def _document_texts(doc: Any) -> tuple[str, ...]:
    return tuple(value for value in doc.values() if isinstance(value, str))


def scored_row(loaded: LoadedTask, doc: Any) -> TrainingRow:
    """The training row of a scored document, zero-shot and without a chat template.

    The completion is empty if the document has no right answer. For prose, the prompt is the whole
    text.
    """
    task, texts = loaded.task, _document_texts(doc)
    if loaded.output_type == "loglikelihood_rolling":
        return TrainingRow(str(task.doc_to_target(doc)), "", texts=texts)
    try:
        return _row(loaded, doc, 0, None, "")
    except (DataError, TaskError):
        with task_code(f"{loaded.where} cannot write its prompts", "Correct doc_to_text."):
            return TrainingRow(str(task.doc_to_text(doc)), "", texts=texts)


def option_index(target: Any, task: Any, doc: Any) -> int | None:
    """Index of the option that a task's target names; None if it names none.

    A target is an index, an option, or a list whose first entry counts.
    """
    if isinstance(target, list):
        target = target[0] if target else None
    if isinstance(target, str):
        choices = task.doc_to_choice(doc)
        return choices.index(target) if target in choices else None
    return int(target) if isinstance(target, int) else None


def target_text(task: Any, doc: Any, target: Any, *, chat_template: bool) -> str:
    """A generation's target, as it follows the prompt; empty if there is none.

    A target is a text, the index of an option, or a list whose first entry counts.
    """
    text = target[0] if isinstance(target, list) and target else target
    if task.config.doc_to_choice is not None and isinstance(text, int):
        text = task.doc_to_choice(doc)[text]
    # as lm-eval joins prefix and answer in few-shot examples
    delimiter = "" if chat_template else task.config.target_delimiter
    prefix = task.doc_to_prefix(doc)
    if prefix:
        delimiter = "" if prefix[-1].isspace() else " "
    return f"{delimiter}{text}" if text not in (None, []) else ""


class Split(NamedTuple):
    """Prompt and answer as tokens.

    Attributes:
        context: token ids that are read.
        continuation: token ids that are scored or learned.
        is_merged: a token of the whole text covers the end of the prompt and the beginning of the
            answer. What it spells of the answer is in neither part.
        is_swallowed: no text of the answer is left, at most its end.
    """

    context: list[int]
    continuation: list[int]
    is_merged: bool = False
    is_swallowed: bool = False


def encoded(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Token ids of a text, as the tokenizer's ``encode`` gives them.

    Raises:
        DataError: it gives up, as a regular expression of its does that backtracks.
    """
    try:
        return tokenizer.encode(text, **options)
    except BaseException as error:
        if isinstance(error, MemoryError) or not is_fault(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"the tokenizer cannot read a text of {len(text):,} characters, {text[:60]!r}: "
            f"{reason}. Take the text out, or repair tokenizer.json of the base model."
        ) from error


class TextEncoder:
    """Text to tokens by the rules of lm-eval's Hugging Face back end, for training and scoring."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        bos = tokenizer.bos_token_id
        self.prefix_id: int = tokenizer.eos_token_id if bos is None else bos
        self._prefix_text: str = tokenizer.decode([self.prefix_id])

    def encode(self, text: str) -> list[int]:
        """Token ids, with the tokenizer's special tokens unless the text starts with one."""
        if text.startswith(self._prefix_text):
            return encoded(self._tokenizer, text, add_special_tokens=False)
        return encoded(self._tokenizer, text)

    def split(self, context: str, continuation: str) -> Split:
        """Split as lm-eval does: the context is read as it is encoded alone.

        Spaces at the end of the context belong to the continuation's first word. The continuation
        is the whole text's tokens without the first, of which it has as many as the context. An
        empty context becomes the beginning-of-text token, or end of text if there is none.
        """
        stripped = context.rstrip()
        moved = context[len(stripped) :] + continuation
        read = self.encode(stripped) if context else []
        if read:
            return self._behind(read, stripped + moved, continuation)
        tokens = encoded(self._tokenizer, moved, add_special_tokens=False)
        own = tokens[1:] if tokens[:1] == [self.prefix_id] else tokens
        return Split([self.prefix_id], own, is_swallowed=not own)

    def as_written(self, prompt: str, completion: str) -> Split:
        """Split what a model learns to write: as ``split``, without losing spaces of the prompt.

        Some tokenizers merge a line break at the end of a prompt with the colon before it.
        lm-eval's rule loses it; here it stays with the prompt.
        """
        split = self.split(prompt, completion)
        if not split.is_merged:
            return split
        ends = range(len(prompt.rstrip()) + 1, len(prompt) + 1)
        longer = (self.encode(prompt[:end]) for end in ends)
        splits = (self._behind(read, prompt + completion, completion) for read in longer)
        return next((other for other in splits if not other.is_merged), split)

    def located(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[list[int]]]:
        """Token ids of a text, and of each span the places of those that have a part of it.

        So transformers masks what an assistant wrote.

        Args:
            text: it is read as ``encode`` reads it.
            spans: of the text, in order.

        Raises:
            DataError: the tokenizer does not say where its tokens stand.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            raise DataError(
                "the base model's tokenizer does not say where its tokens stand in a text, so that "
                "turns cannot be found in it. Set train.turns: last."
            )
        tokens, is_bare = self.encode(text), not text.startswith(self._prefix_text)
        options = {"return_offsets_mapping": True, "add_special_tokens": is_bare}
        found, left = [list[int]() for _ in spans], deque(enumerate(spans))
        for place, (begin, stop) in enumerate(self._tokenizer(text, **options)["offset_mapping"]):
            while left and begin >= left[0][1][1]:
                left.popleft()
            if left and stop > left[0][1][0]:
                found[left[0][0]].append(place)
        return tokens, found

    def _behind(self, read: list[int], text: str, answer: str) -> Split:
        """The tokens of a text that ends in an answer, behind those that are read."""
        whole = self.encode(text)
        rest = whole[len(read) :]
        is_merged = whole[: len(read)] != read
        is_end = is_merged and self._are_special(rest)
        is_swallowed = not rest or (is_end and not self._are_special(self.encode(answer)))
        return Split(read, rest, is_merged, is_swallowed)

    def _are_special(self, tokens: list[int]) -> bool:
        decode = self._tokenizer.decode
        return all(decode([t], skip_special_tokens=True) == "" != decode([t]) for t in tokens)


def tokenise_rows(
    rows: Sequence[TrainingRow], tokenizer: Any, config: TrainConfig, max_length: int
) -> list[Example]:
    """Tokenise rows, with the boundary between prompt and completion where scoring has it.

    Spaces at the end of a prompt are learned with the completion; where a model is to write the
    completion itself, they stay in its prompt. The shorter of the config's
    ``max_length`` and the model's own, in tokens, is the limit.

    Raises:
        DataError: a completion alone does not fit, or none of its tokens is left; or a prompt does
            not fit to which a model is to write an answer.
    """
    limit = min(config.max_length, max_length)
    encoder = TextEncoder(tokenizer)

    def example(index: int, row: TrainingRow) -> Example:
        where = f"training row {index} of those that are left to train on, from 0"
        if config.written is not None:  # its prompt is read whole, as one that is scored
            prompt = encoder.encode(row.prompt) or [encoder.prefix_id]
            taught = encoder.encode(row.taught) if config.written.is_distilled else []
            return _asked(where, row, prompt, taught, config, max_length)
        turns: list[list[int]] = []
        if row.turns:
            whole, turns = encoder.located(row.prompt + row.completion, row.turns)
            begin = len(whole) - len(turns[-1])
            split = Split(whole[:begin], whole[begin:], is_swallowed=not turns[-1])
        else:
            split_of = encoder.as_written if row.is_written else encoder.split
            split = split_of(row.prompt, row.completion)
        tokens, num_completion = split.context + split.continuation, len(split.continuation)
        if split.is_swallowed:
            answer = row.completion.removesuffix(row.end)
            raise DataError(f"{where}: {swallowed(row.prompt, answer)}")
        if num_completion >= limit:
            remedy = "Raise train.max_length or shorten the row."
            if config.max_length > max_length:
                remedy = "The model reads no more: shorten the row, or leave it out."
            raise DataError(
                f"{where} ({row.prompt[:60]!r}): its completion has {num_completion} tokens and an "
                f"example may have {limit}. {remedy}"
            )
        kept = tuple(tokens[-limit:])
        num_loss = len(kept) - 1 if config.loss_on == "all" else num_completion
        cut = len(tokens) - len(kept)
        learned = tuple(place - cut for places in turns for place in places if place > cut)
        other = None
        if row.rejected is not None:
            other = example(index, row._replace(completion=row.rejected, rejected=None))
        is_truncated = len(tokens) > limit or (other is not None and other.is_truncated)
        num_loss = len(learned) or num_loss
        return Example(kept, num_loss, is_truncated, split.is_merged, other, learned=learned)

    return [example(index, row) for index, row in enumerate(rows)]


def _asked(
    where: str,
    row: TrainingRow,
    prompt: list[int],
    taught: list[int],
    config: TrainConfig,
    max_length: int,
) -> Example:
    """A row that the model answers itself; ``taught`` is what its teacher reads."""
    own, limit = config.written, min(config.max_length, max_length)
    assert own is not None
    longest, room = max(len(prompt), len(taught)), own.max_completion_length
    if longest + room > limit:
        what = "its teacher's prompt" if len(taught) == longest else "its prompt"
        remedy = "Raise train.max_length, or lower max_completion_length."
        if config.max_length > max_length:
            remedy = "The model reads no more: shorten the row, or lower max_completion_length."
        raise DataError(
            f"{where} ({row.prompt[:60]!r}): {what} has {longest} tokens, an answer may have "
            f"{room}, and both may have {limit}. {remedy}"
        )
    asks = AskedRow(
        json.dumps(row.columns, default=str, ensure_ascii=False),
        row.completion.removesuffix(row.end),
        own.num_generations,
        room,
        row.end,
        tuple(taught),
    )
    return Example(tuple(prompt), 0, is_truncated=False, asks=asks)


def swallowed(prompt: str, answer: str) -> str:
    """What is wrong with an answer of which no token is left."""
    return (
        f"the tokenizer merges the answer {answer[:60]!r} into the end of its prompt, "
        f"{prompt[-60:]!r}, and no token of it is left. Begin the answer with a space, or leave it "
        "out."
    )


class AskedRow(NamedTuple):
    """A row to which the model writes the answers itself.

    Attributes:
        row: the columns of the row as they were read, as JSON.
        completion: its right answer, without an end.
        num_texts: answers that are written to it.
        max_new_tokens: of an answer, at most.
        end: the text that ends an answer, beside the tokens that end any text; may be empty.
        teacher: the tokens of what its teacher is asked; empty: it has none.
    """

    row: str
    completion: str
    num_texts: int
    max_new_tokens: int
    end: str = ""
    teacher: tuple[int, ...] = ()


class OwnText(NamedTuple):
    """What is learned from a text that the model has written.

    Attributes:
        weight: of each token's loss in the sum that is minimised.
        advantage: by how much it is better than the other texts of its group, in GRPO.
        old_nats: the loss of each token when it was written, in GRPO after the first step with it;
            empty: the model is as it was then.
        base_nats: the loss of each token under the base, where GRPO holds on to it.
        teacher: the tokens of what the teacher was asked; empty: it has none.
    """

    weight: float
    advantage: float = 0.0
    old_nats: tuple[float, ...] = ()
    base_nats: tuple[float, ...] = ()
    teacher: tuple[int, ...] = ()


class HeldText(NamedTuple):
    """A text as another model reads it, and by how many tokens its prompt is longer."""

    tokens: tuple[int, ...]
    further: int


class Example(NamedTuple):
    """One tokenised example.

    Attributes:
        tokens: prompt and completion; at least one prompt token is kept.
        num_loss_tokens: number of tokens that are learned: the last ones, if not ``learned``.
        is_truncated: the prompt did not fit and lost tokens on its left.
        is_merged: see ``Split``.
        rejected: the same prompt with the answer that the completion is preferred to; or None.
        base_nats: of such a pair, the base's log-likelihoods of both answers, once it has read it.
        learned: the places of the learned tokens where these are not the last ones; else empty.
        asks: what is asked where the model writes the answers itself: ``tokens`` is the prompt
            alone then, and nothing is learned of it; None: it is learned as it is.
        own: of a text that the model has written, what it learns from it.
    """

    tokens: tuple[int, ...]
    num_loss_tokens: int
    is_truncated: bool
    is_merged: bool = False
    rejected: Example | None = None
    base_nats: tuple[float, float] | None = None
    learned: tuple[int, ...] = ()
    asks: AskedRow | None = None
    own: OwnText | None = None

    @property
    def places(self) -> Sequence[int]:
        """The places of the learned tokens, in order."""
        return self.learned or range(len(self.tokens) - self.num_loss_tokens, len(self.tokens))

    @property
    def unlearned(self) -> Example:
        """The same, of which nothing is learned."""
        return self._replace(num_loss_tokens=0, learned=())

    @property
    def as_held(self) -> HeldText:
        """What the base reads of it where a model is held to it, or a teacher."""
        if self.own is None or not self.own.teacher:
            return HeldText(self.tokens[:-1], 0)
        num_prompt, asked = len(self.tokens) - self.num_loss_tokens, self.own.teacher
        return HeldText((*asked, *self.tokens[num_prompt:-1]), len(asked) - num_prompt)

    @property
    def sequences(self) -> tuple[Example, ...]:
        """What is read: the example alone, or the chosen answer's and the rejected one's."""
        if self.rejected is None:
            return (self,)
        return self._replace(rejected=None, base_nats=None), self.rejected

    @property
    def num_tokens(self) -> int:
        """Tokens of all that is read; where a model writes the answers, at most."""
        if self.asks is not None:
            return self.asks.num_texts * (len(self.tokens) + self.asks.max_new_tokens)
        return sum(len(each.tokens) for each in self.sequences)

    @property
    def num_inputs(self) -> int:
        """Tokens that are read together: the last one of a sequence is only predicted.

        Where a model writes the answers, those of one text, at most.
        """
        if self.asks is not None:
            return len(self.tokens) + self.asks.max_new_tokens - 1
        return sum(len(each.tokens) - 1 for each in self.sequences)
