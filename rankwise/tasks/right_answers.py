"""Right answers and texts, the first items of tasks, on which two models are compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from rankwise.records.grouping import grouped
from rankwise.tasks.questions import RightAnswer
from rankwise.tasks.requests import PreparedTask, Request
from rankwise.tasks.training_rows import TextEncoder, option_index, target_text

MOST_ITEMS = 100
"""The most items. With a hundred, the standard error of a mean is a tenth of the items' spread."""

MOST_TOKENS = 16
"""The most tokens of an item's mean: neighbouring tokens carry much the same information."""

MOST_BYTES = 256 * 2**20
"""Memory limit of one model's log-probabilities at all these tokens, in float32."""

TEXT_TOKENS = 64
"""Tokens of a text. The last of them are compared: a model knows by then what it is about."""

_FLOAT32_BYTES = 4


def right_answers(
    tasks: Sequence[PreparedTask], tokenizer: Any, vocabulary_size: int
) -> tuple[RightAnswer, ...]:
    """The right option of a choice, the target of a generation or a likelihood, a text's start.

    The tasks' first items, in the order in which they were taken, are asked in turn,
    ``MOST_ITEMS`` in all, with their prompts as they are scored. Of each answer, the first
    ``MOST_TOKENS`` tokens are kept, or fewer (at least one) so that the log-probabilities fit into
    ``MOST_BYTES``. Items without a right answer are skipped, and a question of two tasks is taken
    once.

    Args:
        tasks: the tasks with their requests.
        tokenizer: the base model's.
        vocabulary_size: size of the model's output.
    """
    answers = _in_turn(tasks, tokenizer)
    kept = _num_tokens([len(answer.continuation) for answer in answers], vocabulary_size)
    return tuple(answer._replace(continuation=answer.continuation[:kept]) for answer in answers)


def text_ends(
    tasks: Sequence[PreparedTask], tokenizer: Any, vocabulary_size: int, most: int
) -> tuple[RightAnswer, ...]:
    """The beginning of each text, ``TEXT_TOKENS`` at most: its last tokens, after the others.

    Which texts, and how many tokens of each, is as in ``right_answers``.

    Args:
        tasks: of texts, with their requests.
        tokenizer: the base model's.
        vocabulary_size: size of the model's output.
        most: texts.
    """
    answers = _in_turn(tasks, tokenizer)[:most]
    texts = [(*text.context, *text.continuation)[:TEXT_TOKENS] for text in answers]
    kept = _num_tokens([len(tokens) - 1 for tokens in texts], vocabulary_size)
    return tuple(
        answer._replace(context=tokens[:-its_end], continuation=tokens[-its_end:])
        for answer, tokens in zip(answers, texts, strict=True)
        for its_end in (min(kept, len(tokens) - 1),)
    )


def _in_turn(tasks: Sequence[PreparedTask], tokenizer: Any) -> list[RightAnswer]:
    """Whole answers of the first items, of every task in turn; each question once."""
    answers: dict[tuple[int, ...], RightAnswer] = {}
    turns = itertools.zip_longest(*(_answers(task, tokenizer) for task in tasks))
    for answer in filter(None, itertools.chain.from_iterable(turns)):
        if len(answers) == MOST_ITEMS:
            break
        # the beginning of text alone asks nothing: the answer tells such items apart
        asks = len(answer.context) > 1
        answers.setdefault(answer.context if asks else answer.context + answer.continuation, answer)
    return list(answers.values())


def _num_tokens(lengths: Sequence[int], vocabulary_size: int) -> int:
    """The number of tokens of each answer that fit."""
    positions = MOST_BYTES // (_FLOAT32_BYTES * vocabulary_size)
    for kept in range(MOST_TOKENS, 1, -1):
        if sum(min(length, kept) for length in lengths) <= positions:
            return kept
    return 1


def _answers(prepared: PreparedTask, tokenizer: Any) -> Iterator[RightAnswer]:
    encoder = TextEncoder(tokenizer)
    first = {request.instance: request for request in reversed(prepared.requests)}
    by_doc = grouped((each.doc_id, index) for index, each in enumerate(prepared.instances))
    for doc_id in prepared.doc_ids:
        tokens = _tokens(prepared, by_doc[doc_id], first, encoder)
        if tokens is not None and all(tokens):
            yield RightAnswer(prepared.name, doc_id, *tokens)


def _tokens(
    prepared: PreparedTask, indices: Sequence[int], first: dict[int, Request], encoder: TextEncoder
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Context and continuation of one item; None if it has no right answer."""
    task = prepared.loaded.task
    request, instance = first[indices[0]], prepared.instances[indices[0]]
    doc = instance.doc
    if prepared.loaded.output_type == "multiple_choice":
        target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        gold = option_index(target, task, doc)
        request = next((first[i] for i in indices if prepared.instances[i].idx == gold), None)
        return None if request is None else (request.context, request.continuation)
    if prepared.loaded.output_type != "generate_until":
        return request.context, request.continuation
    text = target_text(task, doc, task.doc_to_target(doc), chat_template=prepared.chat_template)
    if not text.strip():
        return None
    split = encoder.as_written(instance.args[0], text)
    kept = split.context[-len(request.context) :] if request.is_truncated else split.context
    return tuple(kept), tuple(split.continuation)
