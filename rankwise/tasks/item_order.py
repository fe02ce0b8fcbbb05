"""The one random order in which a task's items are taken, and lm-eval's requests of some of them.

Files are often sorted, by subject or by length: their first documents are a biased sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

ORDER_SEED = 1234
"""The seed of every task's order. Another one would make every limited study score other items."""


def in_random_order(doc_ids: Iterable[int]) -> list[int]:
    """Numbers of documents in the fixed order: by a hash of the seed and the number.

    A document's place depends neither on the task nor on how many documents there are. So the
    first of a part come in the order of the whole, a task asked in another format is asked about
    the same documents, and a file that grows at its end keeps most of a sample.
    """

    def place(doc_id: int) -> tuple[bytes, int]:
        name = f"{ORDER_SEED} {doc_id}".encode()
        return hashlib.blake2b(name, digest_size=8).digest(), doc_id

    return sorted(doc_ids, key=place)


def build_requests(task: Any, doc_ids: Sequence[int], **options: Any) -> None:
    """Let a lm-eval task build its instances of some documents, with the documents' own numbers.

    The prompts are those of the task as a whole. lm-eval draws the few-shot examples of one
    document after another, so that without the documents in between it would show others: a prompt
    would then depend on which documents are scored besides.

    Args:
        task: a lm-eval task whose few-shot seed was just set.
        doc_ids: numbers of the documents, ascending.
        options: of ``build_all_requests``.
    """
    from lm_eval.api.samplers import FirstNSampler
    from lm_eval.api.task import ConfigurableTask

    num_fewshot = task.get_config("num_fewshot") or 0
    is_usual = getattr(type(task), "fewshot_context", None) is ConfigurableTask.fewshot_context
    if num_fewshot and not (is_usual and hasattr(task, "sampler")):
        task.build_all_requests(**options)
        chosen = set(doc_ids)
        task._instances = [each for each in task.instances if each.doc_id in chosen]
        return
    sampler = task.sampler if num_fewshot else None
    if num_fewshot and not isinstance(sampler, FirstNSampler):  # that one draws nothing
        task.sampler = _WholeTaskSampler(sampler, task.eval_docs, doc_ids)
    try:
        task.build_all_requests(samples=list(doc_ids), **options)
    finally:
        if num_fewshot:
            task.sampler = sampler
    # lm-eval counts the documents of ``samples`` from 0
    numbers = dict(zip(dict.fromkeys(i.doc_id for i in task.instances), doc_ids, strict=True))
    for instance in task.instances:
        instance.doc_id = numbers[instance.doc_id]
        instance.metadata = (instance.task_name, instance.doc_id, instance.repeats)


class _WholeTaskSampler:
    """Called once for each chosen document; draws for those before it that are not chosen."""

    def __init__(self, sampler: Any, docs: Any, doc_ids: Sequence[int]) -> None:
        self._sampler, self._docs = sampler, docs
        self._left, self._next = iter(doc_ids), 0

    def sample(self, n: int, eval_doc: Any = None, **options: Any) -> Any:
        chosen = next(self._left)
        for doc_id in range(self._next, chosen):
            other = None if eval_doc is None else self._docs[doc_id]
            self._sampler.sample(n=n, eval_doc=other, **options)
        self._next = chosen + 1
        return self._sampler.sample(n=n, eval_doc=eval_doc, **options)
