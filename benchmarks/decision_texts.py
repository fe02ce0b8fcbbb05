"""Are the sentences of a verdict true? Studies with a known truth, judged as score tables.

Every sentence of the headline, of the statement and of the card's remark is read by one of the
patterns here; one that none reads counts as false. What it says of the data is compared with the
record that it stands on: a sentence of fact. What it says of the truth, at the level of the
verdict, is compared with the truth of the adapters.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rankwise as rw
from benchmarks.decision_odds import Stated
from benchmarks.decision_studies import (
    CURVES,
    Family,
    Study,
    Truth,
    draw_study,
    generator,
    rank_curve,
    right_answers,
)
from rankwise.findings.decision import Margins
from rankwise.findings.stats.items import POINTS, Items
from rankwise.findings.study import StudyFindings
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.quantities import decimal
from rankwise.records.recommendation import RankVerdict, Recommendation
from rankwise.records.study import Interval
from rankwise.study.conclusion import conclude

RANKS = (2, 4, 16, 64)
FAMILY = Family("texts", agreement=0.7, run_sd=(1.5, 0.9))
TRAINED, KEPT = "trained", "kept{}"
_ROUNDED = 0.051
"""Numbers are printed in tenths."""

_OPTION, _NUMBER = r"rank \d+", r"[−\d.]+"


class TextCell(NamedTuple):
    """Score tables of one size."""

    num_items: int
    num_seeds: int

    def __str__(self) -> str:
        return f"texts, n={self.num_items:<5} seeds={self.num_seeds}"


class TextTally(NamedTuple):
    """Of some texts: sentences of fact that are false, and of each text the first of a level.

    ``stated`` are the probabilities of being right; ``another`` those of another run.
    """

    texts: int
    facts_false: tuple[str, ...]
    levels_false: tuple[str, ...]
    stated: Stated
    another: Stated

    def __str__(self) -> str:
        false = "".join(
            f"\n    {kind}: {sentence}"
            for kind, of in (("fact", self.facts_false), ("level", self.levels_false))
            for sentence in of
        )
        return (
            f"{self.texts} texts, false by fact {len(self.facts_false)}, by level "
            f"{len(self.levels_false)}; right {self.stated}; another run "
            f"{self.another}{false}"
        )


def text_cells() -> list[TextCell]:
    """Small and large tables, of one seed and of two."""
    return [TextCell(*size) for size in itertools.product((100, 300, 1000), (1, 2))]


def simulate_texts(cell: TextCell, studies: int, seed: int) -> TextTally:
    """Draw, judge and read."""
    rng = generator(cell, seed)
    facts: list[str] = []
    levels: list[str] = []
    right_said: list[tuple[float, bool]] = []
    another_said: list[tuple[float, bool]] = []
    for number in range(studies):
        truth = rank_curve(CURVES[number % len(CURVES)], len(RANKS), rng)
        study = draw_study(FAMILY, truth, cell.num_items, cell.num_seeds + 1, rng)
        next_run = study.runs[-1]
        study = study.first(cell.num_items, cell.num_seeds)
        with tempfile.TemporaryDirectory() as folder:
            reader = Reader(table(study, rng), study.adapters, Path(folder))
            wrong = [each for each in reader.read() if each.is_false]
            found = reader.numbers
        facts += [each.sentence for each in wrong if each.is_fact]
        # one event makes several sentences false
        levels += [each.sentence for each in wrong if not each.is_fact][:1]
        bet = found.best_bet
        assert bet is not None
        right = reader.right
        if bet.choice is not None:
            place = [option.label for option in bet.options].index(bet.choice)
            right_said.append((bet.probability, bool(right[place])))
            held = right_answers(next_run, reader.margins)[place]
            another_said.append((bet.of(bet.choice).right_next_run, bool(held)))
    return TextTally(
        studies, tuple(facts), tuple(levels), Stated.of(right_said), Stated.of(another_said)
    )


def table(study: Study, rng: np.random.Generator) -> list[dict[str, Any]]:
    """A row for each model, task and item: right or wrong, as the changes of a study ask for."""

    def rows(task: str, items: Items, sign: float, base: float) -> Iterator[dict[str, Any]]:
        change = sign * items.values / POINTS  # (seeds, ranks, items)
        # where no model differs, both may be right or both wrong
        was_right = np.where(
            (change < 0).any(axis=(0, 1)),
            1.0,
            np.where((change > 0).any(axis=(0, 1)), 0.0, rng.random(change.shape[-1]) < base),
        )
        scores = {"base": was_right} | {
            f"r{rank}_s{seed}": was_right + change[seed, place]
            for seed in range(len(change))
            for place, rank in enumerate(RANKS)
        }
        for model, of in scores.items():
            for item, score in enumerate(of.tolist()):
                yield {"model": model, "task": task, "item": item, "score": score}

    parts = [rows(TRAINED, items, 1.0, FAMILY.base) for items in study.gains]
    for number, items in enumerate(study.losses):
        parts.append(rows(KEPT.format(number), items, -1.0, FAMILY.retained))
    return list(itertools.chain(*parts))


class Claim(NamedTuple):
    """What a sentence says, and whether it is false."""

    sentence: str
    is_fact: bool
    is_false: bool


class Reader:
    """Reads the sentences of one verdict.

    Args:
        rows: the scores.
        truth: of the adapters.
        folder: an empty one, for the judgements.
    """

    def __init__(self, rows: list[dict[str, Any]], truth: Truth, folder: Path) -> None:
        self.rows, self.truth, self.folder = rows, truth, folder
        config = RecommendationConfig()
        metrics = ["acc"]
        self.margins = Margins(
            config.delta_for(metrics), config.epsilon_for(metrics), config.ceiling_for(metrics)
        )
        self.numbers, self.findings = self._judged("first")
        self.right = right_answers(truth, self.margins)
        self.labels = [verdict.label for verdict in self.numbers.verdicts]
        self.loss, self.worst = truth.losses.mean(axis=0), truth.losses.max(axis=0)
        self.keeps = (self.loss <= self.margins.epsilon_points) & (
            self.worst <= self.margins.ceiling
        )

    def _judged(self, name: str, **margins: Any) -> tuple[Recommendation, StudyFindings]:
        folder = self.folder / name
        kept = sorted({row["task"] for row in self.rows} - {TRAINED})
        rw.verdict(
            self.rows, base="base", retention=kept, name="r{rank}_s{seed}", folder=folder, **margins
        )
        outcome = conclude(StudyFolder(folder))
        return outcome.recommendation.by_train_task[0], outcome.findings

    def read(self) -> Iterator[Claim]:
        """Every claim of the verdict and of the card's rows."""
        (card,) = self.findings.cards
        texts = card.headline, self.numbers.statement, card.remark
        for sentence in itertools.chain(*(re.split(r"(?<=\.) (?=[A-Z\d])", t) for t in texts if t)):
            yield from self._claims(sentence)
        by_label = {row.label: row for row in card.rows}
        for verdict in self.numbers.verdicts:
            row, loss = by_label[verdict.label], verdict.retention_loss
            assert row.gain
            assert row.retention
            assert loss
            same = np.allclose(
                (*_of(row.gain), *_of(row.retention)), (*_of(verdict.gain), *_of(loss.negated()))
            )
            yield Claim(f"the card's row of {verdict.label}", True, not same)

    def _claims(self, sentence: str) -> Iterator[Claim]:
        for pattern, read in _SENTENCES:
            if (found := re.fullmatch(pattern, sentence)) is not None:
                for is_fact, is_true in read(self, found):
                    yield Claim(sentence, is_fact, not is_true)
                return
        yield Claim(f"unread: {sentence}", True, True)

    def place(self, label: str) -> int:
        """Which option a label is, however it is written."""
        return self.labels.index(label.lower())

    def verdict(self, label: str) -> RankVerdict:
        """What the record says of an option."""
        return self.numbers.verdicts[self.place(label)]

    def places(self, names: str) -> list[int]:
        """Which options a list of labels names."""
        return [self.place(label) for label in re.findall(_OPTION, names, re.IGNORECASE)]

    def judged_with(self, **margins: float) -> Recommendation:
        """The verdict with other margins."""
        name = "-".join(f"{key}{value}" for key, value in margins.items())
        return self._judged(name, **margins)[0]


Claims = Iterator[tuple[bool, bool]]
"""Whether it is a matter of fact, and whether it is true."""

FACT, LEVEL = True, False


def _of(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.lower, interval.upper


def _number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def _is(text: str, value: float) -> bool:
    return abs(_number(text) - value) <= _ROUNDED


def _recommended(of: Reader, found: re.Match[str]) -> Claims:
    place, numbers = of.place(found["label"]), of.numbers
    verdict = numbers.verdicts[place]
    loss, worst = verdict.retention_loss, verdict.worst_retention_loss
    assert loss
    assert worst
    yield FACT, numbers.chosen == verdict
    yield (
        FACT,
        _is(found["gain"], verdict.gain.estimate) and _is(found["least"], verdict.gain.lower),
    )
    yield (
        FACT,
        _is(found["most"], max(loss.upper, 0.0)) and _is(found["any"], max(worst.upper, 0.0)),
    )
    yield LEVEL, bool(of.right[place])
    yield LEVEL, of.truth.gain[place] >= verdict.gain.lower
    yield LEVEL, of.loss[place] <= max(loss.upper, 0.0) and of.worst[place] <= max(worst.upper, 0.0)
    rivals = np.where(of.keeps, of.truth.gain, -np.inf)
    rivals[place] = -np.inf
    yield LEVEL, rivals.max() - of.truth.gain[place] <= max(verdict.shortfall.upper, 0.0)
    yield FACT, found["ahead"] is None or _is(found["ahead"], verdict.shortfall.upper)
    if found["worst"] is not None:
        yield LEVEL, of.truth.losses[int(found["worst"]), place] > 0.0


def _settled(of: Reader, found: re.Match[str]) -> Claims:
    yield FACT, of.numbers.chosen is not None and of.numbers.chosen.label == found["label"]
    yield LEVEL, bool(of.right[of.place(found["label"])])


def _best_bet(of: Reader, found: re.Match[str]) -> Claims:
    bet = of.numbers.best_bet
    assert bet is not None
    if found["label"] is None:
        yield FACT, bet.choice is None and bet.none >= max(o.right for o in bet.options)
        return
    own = bet.of(found["label"])
    yield FACT, bet.choice == own.label and own.right >= max(o.right for o in bet.options)
    yield FACT, of.verdict(found["label"]).ruled_out_by is None


def _no_evidence(of: Reader, found: re.Match[str]) -> Claims:
    verdict = of.verdict(found["label"])
    yield FACT, all(each.better_than_base != "yes" for each in of.numbers.verdicts)
    yield FACT, verdict.gain.estimate == max(v.gain.estimate for v in of.numbers.verdicts)
    yield FACT, _is(found["gain"], verdict.gain.estimate)
    gain = of.truth.gain[of.place(found["label"])]
    yield LEVEL, verdict.gain.lower <= gain <= verdict.gain.upper


def _none_helps(of: Reader, found: re.Match[str]) -> Claims:
    yield FACT, of.numbers.outcome == "none_helps"
    yield LEVEL, not (of.keeps & (of.truth.gain > 0.0)).any()


def _none_keeps(of: Reader, found: re.Match[str]) -> Claims:
    yield FACT, of.numbers.outcome == "none_keeps_enough"
    yield LEVEL, not (of.keeps & (of.truth.gain > 0.0)).any()


def _least_lost(of: Reader, found: re.Match[str]) -> Claims:
    yield from _none_keeps(of, found)
    verdict = of.verdict(found["label"])
    loss = verdict.retention_loss
    assert loss is not None
    losses = [v.retention_loss.estimate for v in of.numbers.verdicts if v.retention_loss]
    yield FACT, loss.estimate == min(losses) and _is(found["least"], loss.lower)
    yield LEVEL, of.loss[of.place(found["label"])] >= loss.lower
    if found["price"] is not None:
        price = re.fullmatch(_PRICE, found["price"])
        assert price is not None
        yield from _price(of, price)


def _alike(of: Reader, found: re.Match[str]) -> Claims:
    its = [of.numbers.verdicts[place] for place in of.places(found["names"])]
    labels = {each.label for each in its}
    yield FACT, all(each.ruled_out_by is None for each in its)
    yield FACT, not any(labels & {*each.worse_than} for each in its)
    yield FACT, labels == {each.label for each in of.numbers.left}
    yield FACT, "less than" not in of.numbers.statement


def _possible(of: Reader, found: re.Match[str]) -> Claims:
    labels = {of.labels[place] for place in of.places(found["names"])}
    yield FACT, labels == {each.label for each in of.numbers.left}


def _lost_too_much(of: Reader, found: re.Match[str]) -> Claims:
    for place in of.places(found["names"]):
        yield FACT, of.numbers.verdicts[place].keeps_enough == "no"
        yield LEVEL, not of.keeps[place]


def _far_below(of: Reader, found: re.Match[str]) -> Claims:
    better = of.place(found["better"])
    for place in of.places(found["names"]):
        yield FACT, of.numbers.verdicts[place].near_the_best == "no"
        best = np.where(of.keeps, of.truth.gain, -np.inf).max()
        yield LEVEL, best - of.truth.gain[place] > of.margins.delta
        yield LEVEL, of.truth.gain[better] - of.truth.gain[place] > of.margins.delta


def _less(of: Reader, found: re.Match[str]) -> Claims:
    for place, better in itertools.product(of.places(found["names"]), of.places(found["better"])):
        yield FACT, of.labels[better] in of.numbers.verdicts[place].worse_than
        yield LEVEL, of.truth.gain[place] < of.truth.gain[better]
        if "not shown to keep" in found["but"]:
            yield FACT, of.numbers.verdicts[better].keeps_enough == "undecided"
        else:
            yield FACT, of.numbers.verdicts[place].near_the_best != "no"


def _some_less(of: Reader, found: re.Match[str]) -> Claims:
    yield FACT, any(each.worse_than for each in of.numbers.left)


def _price(of: Reader, found: re.Match[str]) -> Claims:
    label = found["label"].lower()
    margins = {"epsilon": _number(found["loss"]), "worst_task": _number(found["any"])}
    yield FACT, of.judged_with(**margins).verdicts[of.place(label)].qualifies


def _grown(of: Reader, found: re.Match[str]) -> Claims:
    said = _number(found["probability"])
    yield FACT, any(abs(p.probability - said) <= _ROUNDED for p in of.numbers.prospects)
    yield FACT, "if available" in found["how"] or "seeds" in found["how"]


def _hopeless(of: Reader, found: re.Match[str]) -> Claims:
    yield FACT, all(p.probability < 0.1 for p in of.numbers.prospects)
    if found["margins"] is not None:
        widest = of.judged_with(delta=99.0, epsilon=99.0, worst_task=100.0)
        yield FACT, widest.chosen is not None


def _enough_too(of: Reader, found: re.Match[str]) -> Claims:
    bet = of.numbers.best_bet
    assert bet is not None
    yield (
        FACT,
        decimal(100 * bet.of(found["label"].lower()).right, 0, signed=False) == found["share"],
    )


def _nothing(of: Reader, found: re.Match[str]) -> Claims:
    yield FACT, of.numbers.chosen is None


def _another(of: Reader, found: re.Match[str]) -> Claims:
    yield FACT, of.numbers.chosen is not None


_NAMES = rf"{_OPTION}(?:(?:, | and ){_OPTION})*"
_PRICE = (
    rf"(?P<label>{_OPTION}) would qualify if you accepted a loss of (?P<loss>{_NUMBER}) points on "
    rf"average and (?P<any>{_NUMBER}) on any task\.?"
)
_UNIT = r"points(?: of \w+)?"

_SENTENCES: Sequence[tuple[re.Pattern[str], Callable[[Reader, re.Match[str]], Claims]]] = [
    (re.compile(pattern, re.IGNORECASE), read)
    for pattern, read in (
        (
            rf"Use (?P<label>{_OPTION}): it gains (?P<gain>{_NUMBER}) {_UNIT} over the base \(at "
            rf"least (?P<least>{_NUMBER})\), it loses at most (?P<most>{_NUMBER}) {_UNIT} on "
            rf"average over the \d retention tasks \((?:most on {KEPT.format('(?P<worst>[0-9])')}, "
            rf"{_NUMBER} points; )?on no task more than (?P<any>{_NUMBER})\), no other rank that "
            rf"keeps enough gains (?:over (?P<ahead>{_NUMBER}) points )?more\.",
            _recommended,
        ),
        (rf"Use (?P<label>{_OPTION})\.", _settled),
        (r"Settled at 95 % for th.*\.", _another),
        (r"Another run with these settings would do with probability .*\.", _another),
        (rf"(?P<label>{_OPTION}) is probably enough too \((?P<share>\d+) %\)\.", _enough_too),
        (rf"Best bet: (?:(?P<label>{_OPTION})|keep the base model) \((?:.*) ?%\)\.", _best_bet),
        (r"Not settled at 95 %\.|Not shown at 95 % that fine-tuning helps\.", _nothing),
        (
            r"Not shown at 95 % that fine-tuning helps: no rank is shown to be better than the "
            rf"base on [\d,]+ in-domain items; the best, (?P<label>{_OPTION}), gains "
            rf"(?P<gain>{_NUMBER}) {_UNIT} \({_NUMBER} to {_NUMBER}\)\.",
            _no_evidence,
        ),
        (r"No rank helps.*\.", _none_helps),
        (r"No rank keeps enough of what the base knew\.", _none_keeps),
        (
            r"No rank keeps enough: none is likely to gain and to lose at most .*; "
            rf"(?P<label>{_OPTION}) loses least, {_NUMBER} {_UNIT} on average \(at least "
            rf"(?P<least>{_NUMBER})\)(?:; (?P<price>.*))?\.",
            _least_lost,
        ),
        (rf"(?P<names>{_NAMES}) cannot be told apart\.", _alike),
        (rf"(?P<names>{_NAMES}) are still possible\.", _possible),
        (rf"(?P<names>{_NAMES}) (?:is|are) ruled out by (?:its|their) .*\.", _lost_too_much),
        (
            rf"(?P<names>{_NAMES}) (?:is|are) ruled out by (?P<better>{_OPTION}), which gains over "
            r"δ more\.",
            _far_below,
        ),
        (rf"(?P<names>{_NAMES}) scores? less than (?P<better>{_NAMES}), (?P<but>.*)\.", _less),
        (r"Some of them score less than others\.", _some_less),
        (_PRICE, _price),
        (
            rf"(?P<how>.*) would settle it with probability (?P<probability>{_NUMBER}): .*\.",
            _grown,
        ),
        (
            r"More items or seeds would probably not settle it(?P<margins>; larger margins may "
            r"\(--delta, --epsilon\))?\.",
            _hopeless,
        ),
    )
]
