"""Held-out English prose for token loss: passages from the help topics that come with Python.

The text differs between minor versions of Python, and a little between some of their patch
releases, so losses compare only within one minor version, and best within one release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pydoc_data.topics import topics

from datasets import Dataset, DatasetDict

from rankwise.errors import DataError
from rankwise.tasks.bundled.splits import normalised

# Prose starts like this; a listing, a grammar rule, a table or a note's head does not.
_PROSE = re.compile(r"(?!Changed in|New in|Added in|Deprecated|Related)[A-Z][\w-]*[ ,]")
_UNDERLINED = re.compile(r"^[=\-*~^#]{3,}$", re.MULTILINE)
# A paragraph with more of these per word is about notation rather than prose.
_NOTATION = re.compile(r"[\"“”`(){}\[\]<>=_|*\\/]")
_MAX_NOTATION = 0.25
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}(\w|\w[^*]*\w)\*{1,2}(?![\w*])")
_QUOTED = re.compile(r"[\"“”]([^\"“”]+)[\"“”]")
_MIN_PARAGRAPH_WORDS = 12


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a help topic that read as English prose, each as one line, unmarked."""
    for block in re.split(r"\n\s*\n", text):
        if not _PROSE.match(block) or _UNDERLINED.search(block):
            continue
        block = re.sub(r"(?<=\w)-\n\s*(?=\w)", "-", block)
        paragraph = _EMPHASIS.sub(r"\1", " ".join(block.split()))
        num_words = len(paragraph.split())
        if num_words < _MIN_PARAGRAPH_WORDS or not paragraph.endswith("."):
            continue
        if len(_NOTATION.findall(paragraph)) <= _MAX_NOTATION * num_words:
            yield _QUOTED.sub(r"\1", paragraph)


def _passages(
    paragraphs: Iterator[str], min_words: int, max_words: int, seen: set[str]
) -> list[str]:
    """Successive paragraphs joined until they are long enough, cut at a sentence when too long.

    Paragraphs that are in ``seen`` (some topics repeat others' text) are passed over.
    """
    passages: list[str] = []
    text = ""
    for paragraph in paragraphs:
        key = normalised(paragraph)
        if key in seen:
            continue
        seen.add(key)
        kept: list[str] = []  # the whole sentences that fit
        for sentence in re.split(r"(?<=\.) (?=[A-Z])", f"{text} {paragraph}".strip()):
            if len(" ".join([*kept, sentence]).split()) > max_words:
                break
            kept.append(sentence)
        text = " ".join(kept)
        if len(text.split()) >= min_words:
            passages.append(text)
            text = ""
    return passages


def load(
    *, passages: int = 48, min_words: int = 90, max_words: int = 150, **_: object
) -> DatasetDict:
    """One ``test`` split of passages: topic, text.

    The passages are spread over the topics: the first of every topic in the order of their names,
    then the second of every topic, and so on. They depend on the arguments and on the release
    of Python only.

    Args:
        passages: how many.
        min_words: words in the shortest passage.
        max_words: words in the longest.

    Raises:
        DataError: the topics do not have that many passages.
    """
    seen: set[str] = set()
    by_topic = {
        topic: _passages(_paragraphs(topics[topic]), min_words, max_words, seen)
        for topic in sorted(topics)
    }
    layers = zip_longest(*by_topic.values())
    rows = [
        {"topic": topic, "text": text}
        for layer in layers
        for topic, text in zip(by_topic, layer, strict=True)
        if text is not None
    ]
    if not 0 < passages <= len(rows):
        raise DataError(f"pydoc_topics: passages is {passages}. Give 1 to {len(rows)}.")
    return DatasetDict({"test": Dataset.from_list(rows[:passages])})
