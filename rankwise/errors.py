"""The errors that rankwise raises. Each message states the fact, then the remedy."""

from __future__ import annotations

import difflib
import heapq
import itertools
import re
import signal
from collections.abc import Iterable, Sequence

# scheme:// or, as a path has it, scheme:/; then a name and a password, which may have any letter.
# Bounded, so that a long text takes no long time.
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{1,20}:"
_CREDENTIALS = re.compile(rf"({_SCHEME}/{{1,2}})(?:[^/\s:@]{{,500}}:\S{{,500}}|[^/\s]{{,500}})@")
_PARAMETERS = re.compile(rf"({_SCHEME}//[^\s?]{{,500}})\?[^\s=]{{,500}}=\S*")


def redacted(text: str) -> str:
    """A text without names and passwords in its URLs, and without their parameters: tokens."""
    return _PARAMETERS.sub(r"\1?***", _CREDENTIALS.sub(r"\1***@", text))


def to_install(extra: str) -> str:
    """The command that installs rankwise with an extra, until there is a release."""
    wheel = f"'rankwise-VERSION-py3-none-any.whl[{extra}]'"
    return f"pip install '.[{extra}]' in a clone, or pip install {wheel}"


# What is not seen, but moves, hides or garbles what stands beside it: Unicode's controls, formats,
# halves of surrogate pairs, ends of lines and paragraphs, and the other code points that are
# ignored where they are shown. Its formats that are seen (signs around numbers in Arabic) are not.
_INVISIBLE = (
    r"\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    r"\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001343f"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
# Words of Persian and of Indic languages are written with joiners, signs of Chinese and emoji with
# selectors: each belongs behind one sign beyond Latin. Elsewhere it makes two names look alike.
_JOINERS, _SELECTORS = r"\u200c\u200d", r"\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
_LATIN = r"\x00-\xa8\xaa-\xad\xaf-\u024f"  # the signs of copyright and trade mark can be emoji
_HIDDEN = re.compile(
    rf"[{_INVISIBLE}]|(?<![^{_LATIN}{_JOINERS}])[{_JOINERS}]"
    rf"|(?<![^{_LATIN}{_JOINERS}{_SELECTORS}])[{_SELECTORS}](?!\u20e3)"  # unless of a key's sign
)


def has_hidden(text: str) -> bool:
    """Whether a text has what is not seen, but moves, hides or garbles what stands beside it."""
    return _HIDDEN.search(text) is not None


def visible(text: str) -> str:
    """A text with the code of what is hidden in it; ends of lines and tabs stay."""
    return _HIDDEN.sub(_code, text)


def _said(text: str) -> str:
    """A text as an error says it: no password, and nothing hidden."""
    return visible(redacted(text))


def _code(hidden: re.Match[str]) -> str:
    letter = hidden[0]
    return letter if letter in "\n\t" else letter.encode("unicode_escape").decode()


def is_fault(error: BaseException) -> bool:
    """Whether it is an exception, or a panic of a library in Rust, whose class is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class RankwiseError(Exception):
    """Base of every error that rankwise raises on purpose.

    Attributes:
        is_usage: whether it lies in what was asked for, and was found before anything was done.
    """

    is_usage = False

    def __init__(self, *details: object) -> None:
        super().__init__(*(_said(each) if isinstance(each, str) else each for each in details))
        self._made_of: tuple[object, ...] = self.args

    def __reduce__(self) -> tuple[type[RankwiseError], tuple[object, ...], dict[str, object]]:
        """Errors that make their text of several things are made of these in another process."""
        return type(self), self._made_of, self.__dict__


class ConfigError(RankwiseError, ValueError):
    """An invalid study file; carries every problem found, not only the first.

    Args:
        source: the file (or "overrides") that was read.
        problems: one sentence each, starting with the dotted key.
    """

    is_usage = True

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = _said(source)
        self.problems = tuple(map(_said, problems))
        count = _count(len(self.problems), "problem")
        super().__init__("\n  ".join([f"{self.source} has {count}", *self.problems]))
        self._made_of = self.source, self.problems


class PlanError(RankwiseError, ValueError):
    """A valid study file that cannot be run with its tasks on its base model.

    Args:
        source: name of the study.
        base_model: name of the base model.
        problems: reasons why it cannot be planned.
        warnings: further remarks that would not have stopped it.
    """

    is_usage = True

    def __init__(
        self, source: str, base_model: str, problems: Sequence[str], warnings: Sequence[str] = ()
    ) -> None:
        self.source = _said(source)
        self.base_model = _said(base_model)
        self.problems = tuple(map(_said, problems))
        self.warnings = tuple(map(_said, warnings))
        count = _count(len(self.problems), "problem")
        head = f"{self.source} cannot be planned on {self.base_model}, {count}"
        if self.warnings:
            head += f" and {_count(len(self.warnings), 'warning')}"
        lines = [head, *self.problems, *(f"warning: {warning}" for warning in self.warnings)]
        super().__init__("\n  ".join(lines))
        self._made_of = self.source, self.base_model, self.problems, self.warnings


class RecordError(RankwiseError, ValueError):
    """A record of a study folder that cannot be read, or that belongs to something else."""


class NewerRecordError(RecordError):
    """A record that a newer version of rankwise wrote: it is never overwritten."""


class StudyChangedError(RankwiseError, ValueError):
    """A finished study that would be scored again, under other settings or on another stack."""

    is_usage = True


class StudyLockedError(RankwiseError, BlockingIOError):
    """Another process is working on the same study folder."""


class WorkerLostError(RankwiseError, ChildProcessError):
    """A process that ended before its unit was done, as often as it was started again."""


class StorageError(RankwiseError, OSError):
    """The study folder or the cache cannot be written or read (disk full, no permission)."""


class ModelError(RankwiseError, OSError):
    """A base model, an adapter or a checkpoint that cannot be fetched, read or used."""


class HubError(RankwiseError, OSError):
    """The Hugging Face Hub cannot be reached, or does not let something be written."""


class BeyondLoraError(ModelError):
    """An adapter that is not just two factors added to linear layers, such as DoRA."""


class TaskError(RankwiseError, LookupError):
    """A task that does not exist, or that cannot be used as wanted."""

    is_usage = True


class DataError(RankwiseError, ValueError):
    """Rows that cannot be trained on or scored: empty, without an answer, wrong fields."""


class DivergedError(RankwiseError, ArithmeticError):
    """Training that produced a loss which is not a finite number."""


class RewardError(RankwiseError, ValueError):
    """A reward that fails on a text, or that gives no number for it."""


class OutOfMemoryError(RankwiseError, MemoryError):
    """Training or scoring that does not fit into the device's memory."""


class StageFailedError(RankwiseError, RuntimeError):
    """Stages of a study that failed, and without which nothing can be concluded.

    Args:
        failures: one sentence each: what failed, and why.
    """

    def __init__(self, failures: Sequence[str]) -> None:
        self.failures = tuple(map(_said, failures))
        count = _count(len(self.failures), "stage")
        again = "Run the same command to try again: finished work is kept."
        super().__init__("\n  ".join([f"{count} of the study failed", *self.failures, again]))
        self._made_of = (self.failures,)


class UnchangedOutputsError(RankwiseError, AssertionError):
    """A non-zero update whose outputs equal the base model's: the update was not applied."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to stop: Ctrl-C, a scheduler's SIGTERM, a closed terminal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_LONGEST_COMPARED, _MOST_COMPARED = 100, 20_000
"""Letters of a name, and names: comparing takes the square of the letters. lm-eval has 15,000."""

_MOST_ALIKE = 200


def closest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that is most similar to a misspelt one; None if none is similar.

    In bounded time: long names are alike to none, and of very many the first are compared.

    Args:
        name: the name as written.
        known: the names that exist.
        cutoff: the least similarity, 0..1, as of :func:`difflib.get_close_matches`.
    """
    if len(name) > _LONGEST_COMPARED:
        return None
    matcher: difflib.SequenceMatcher[str] = difflib.SequenceMatcher()
    matcher.set_seq2(name)
    alike: list[tuple[float, str]] = []
    for other in itertools.islice(known, _MOST_COMPARED):
        if len(other) <= _LONGEST_COMPARED:
            matcher.set_seq1(other)
            if matcher.real_quick_ratio() >= cutoff and matcher.quick_ratio() >= cutoff:
                alike.append((matcher.quick_ratio(), other))
    likely = [other for _, other in heapq.nlargest(_MOST_ALIKE, alike)]
    close = difflib.get_close_matches(name, likely, n=1, cutoff=cutoff)
    return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Such as "did you mean 'arc_easy'?"; empty if no known name is similar, see ``closest``."""
    close = closest(name, known, cutoff=cutoff)
    return "" if close is None else f"did you mean {close!r}?"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
