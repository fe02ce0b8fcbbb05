"""The sentences of a recommendation: what a practitioner reads first, and the reasons."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rankwise.findings.costs import StudyCost
from rankwise.findings.stats.detectable import Detectable
from rankwise.records import quantities
from rankwise.records.grouping import grouped
from rankwise.records.judgement import Prospect
from rankwise.records.places import each_text
from rankwise.records.quantities import amount, score
from rankwise.records.recommendation import RankVerdict, Recommendation
from rankwise.records.study import Interval, Unit

T = TypeVar("T")

_MLP = re.compile(r"mlp|gate|up_|down_|fc|ffn|_4h|4h_|^w\d|experts")
"""Parts of the names of adapted layers: LoRA was not left to attention alone."""

_FOLDER = re.compile(r"(rankwise [a-z-]+ (?:[^\s`]+ )?)DIR\b")
"""The study's folder in a command, whose first or second argument it is."""

TRANSFER_ALARM_SHARE = 0.10
"""A drop of more than this share of the base's score on another domain is reported."""

WORTH_A_TRY = 0.5
"""A growth that decides with at least this probability is named first."""

HARDLY = 0.1
"""Below this probability no growth is named."""

OTHER_RATES = "0.5,2"
"""Factors of the learning rate that are tried next where full fine-tuning is better."""

PROBABLY_ENOUGH = 0.8
"""A smaller option that is right with at least this probability is named beside the choice."""

MOST_NAMED = 6
"""More options than this that are still possible are counted, and not named."""

MOST_GROUPS = 2
"""More comparisons than this are summed up in one sentence."""


def headline(numbers: Recommendation) -> str:
    """The verdict, or the best bet, in one line."""
    at, bet, chosen = _percent(numbers.confidence), numbers.best_bet, numbers.chosen
    diverged = _diverged(numbers)
    if chosen is not None:
        first = f"Use {chosen.label}. Settled at {at}{_of_adapters(chosen)}."
        if len(numbers.verdicts) == 1:
            keeps = "helps" if numbers.has_base else "was judged"
            first = f"{option_name(chosen)} {keeps}; {_alone(numbers)}."
        parts = first, _another_run(numbers), diverged, _assumed(numbers)
        return " ".join(filter(None, parts))
    first = {
        "no_evidence": f"Not shown at {at} that fine-tuning helps.",
        "none_helps": f"No {_noun(numbers)} helps: shown at {at}.",
        "none_keeps_enough": f"No {_noun(numbers)} keeps enough of what the base knew.",
    }.get(numbers.outcome, f"Not settled at {at}.")
    best = "" if bet is None or numbers.outcome == "none_helps" else _best_bet(numbers)
    return " ".join(filter(None, (first, best, diverged, _assumed(numbers))))


def statement(numbers: Recommendation) -> str:
    """The answer in a few sentences: the verdict, another run, and what to do next."""
    if not numbers.verdicts:
        return "The data cannot tell which rank to use: no LoRA rank has a run that was finished."
    if numbers.outcome == "recommended":
        first = _recommended(numbers)
    elif numbers.outcome in ("no_evidence", "none_helps"):
        first = _no_gain(numbers)
    elif numbers.outcome == "none_keeps_enough":
        first = _none_keeps_enough(numbers)
    else:
        first = f"Not settled at {_percent(numbers.confidence)}"
    if numbers.epsilon_points is None:
        first += "; forgetting was not measured"
    is_open = numbers.chosen is None and numbers.outcome != "none_helps"
    parts = [f"{first}.", _another_run(numbers), _smaller(numbers)]
    parts += [_best_bet(numbers) if is_open else "", _diverged(numbers), _ruled_out(numbers)]
    parts += [_left_out(numbers), _assumed(numbers)]
    if (full := numbers.better_and_kept_by_full) is not None:
        has_mlp = any(_MLP.search(name) for v in numbers.verdicts for name in v.target_modules)
        layers = "all linear layers first (methods.lora.target_modules: all-linear), then "
        command = f" (`rankwise extend DIR --rate-factors {OTHER_RATES}`)"
        command = "" if numbers.is_of_scores else command
        parts.append(
            f"{quantities.capital(full)} gains more and forgets less than every rank, both shown: "
            f"try {'' if has_mlp else layers}other learning rates of LoRA{command}."
        )
    if (rate := numbers.best_rate_at_edge) is not None:
        parts.append(
            f"The best learning rate, {quantities.learning_rate(rate)}, is at the edge of the "
            "range tried: try rates beyond it (train.learning_rate.lora)."
        )
    parts.append(_what_decides(numbers))
    return " ".join(filter(None, parts))


def reasons(
    numbers: Recommendation, full: Iterable[str], parameters: Sequence[int]
) -> tuple[str, ...]:
    """Short sentences with the numbers: the margins, each verdict, and what it is compared with.

    ``full`` says what full fine-tuning gains and loses; ``parameters`` are the trainable ones of
    each verdict's option.
    """
    return (
        *_margins_used(numbers),
        *(f"{missing}." for missing in numbers.missing[1:]),
        *(_verdict(verdict, numbers) for verdict in numbers.verdicts),
        *_alternatives(numbers, parameters),
        *full,
        *_by_format(numbers),
    )


def reasons_beside_verdicts(numbers: Recommendation) -> list[str]:
    """The reasons but for those of single ranks, which a table has too."""
    of_ranks = {_verdict(verdict, numbers) for verdict in numbers.verdicts}
    return [reason for reason in numbers.reasons if reason not in of_ranks]


def detected(able: Detectable) -> str:
    """Differences of about 5.5 points; 3 would need about 1,100 items."""
    text = f"differences of about {amount(able.points, 'points')}"
    if able.points > able.margin:
        items = quantities.count(able.num_items)
        text += f"; {able.margin:g} would need about {items} items"
    return text


def still_possible(numbers: Recommendation) -> str:
    """Which options are still possible; empty where the verdict is settled, or where one is left.

    They are not called alike: one may be shown to score less than another, by less than δ.
    """
    left = numbers.left
    if numbers.outcome not in ("cannot_tell", "no_evidence") or len(left) < 2:
        return ""
    which = _named([verdict.label for verdict in left])
    if len(left) > MOST_NAMED:
        which = f"{len(left)} options"
    if not any(v.label in other.worse_than for v in left for other in left):
        return f"{_begun(left, which)} cannot be told apart"
    return f"{_begun(left, which)} are still possible"


def option_name(verdict: RankVerdict) -> str:
    """An option at the beginning of a sentence; a model's name is written as it is."""
    return verdict.label if verdict.rank is None else quantities.capital(verdict.label)


def _begun(verdicts: Sequence[RankVerdict], text: str) -> str:
    return text if verdicts[0].rank is None else quantities.capital(text)


def _of_adapters(chosen: RankVerdict) -> str:
    """Whose verdict it is: of the weights that are there."""
    if chosen.rank is None:
        return ""
    if len(chosen.runs) == 1:
        return " for this adapter"
    return f" for these adapters, the mean of {len(chosen.runs)} seeds"


def _another_run(numbers: Recommendation) -> str:
    """How probably a run of what is recommended with another seed is right too, and in what."""
    chosen, bet = numbers.chosen, numbers.best_bet
    if chosen is None or bet is None or chosen.rank is None or chosen.imported_as is not None:
        return ""
    probability = quantities.odds(bet.of(chosen.label).right_next_run)
    conditions = {
        "gain": numbers.has_base,
        "keep enough": numbers.epsilon_points is not None,
        "be near the best": len(numbers.verdicts) > 1,
    }
    asked = [condition for condition, is_asked in conditions.items() if is_asked]
    if not asked:
        return ""
    return f"Another seed would also {quantities.listed(asked)} with probability {probability}."


def _smaller(numbers: Recommendation) -> str:
    """Smaller options than the recommended one that are probably enough."""
    chosen, bet = numbers.chosen, numbers.best_bet
    if chosen is None or bet is None or chosen.rank is None:
        return ""
    before = numbers.verdicts[: numbers.verdicts.index(chosen)]
    likely = [
        f"{option_name(each)} is probably enough too ({quantities.odds(bet.of(each.label).right)})."
        for each in before
        if bet.of(each.label).right >= PROBABLY_ENOUGH and not each.diverged_seeds
    ]
    return likely[0] if likely else ""


def _diverged(numbers: Recommendation) -> str:
    """The options of which a run diverged, or its reward failed, each with its seeds."""
    said = [
        f"{option_name(each)} {quantities.ended(each.diverged_seeds, each.reward_failed_seeds)}."
        for each in numbers.verdicts
        if each.diverged_seeds
    ]
    return " ".join(said)


def _alone(numbers: Recommendation) -> str:
    """Why one option alone is judged."""
    if numbers.left_out:
        return f"the search left no other {_noun(numbers)}"
    return f"no other {_noun(numbers)} was tried"


def _left_out(numbers: Recommendation) -> str:
    """The ranks that a search did not compare, and those that it did not even train."""
    said = ((numbers.left_out, "left out by the search"), (numbers.untried, "not trained"))
    return " ".join(
        f"{quantities.capital(_named(labels))} {'was' if len(labels) == 1 else 'were'} {what}, "
        "and not compared."
        for labels, what in said
        if labels
    )


def _assumed(numbers: Recommendation) -> str:
    """What is assumed of a table: of missing scores, and of tasks that nobody named."""
    said = [f"{missing}." for missing in numbers.missing[:1]]
    if (more := len(numbers.missing) - 1) > 0:
        said.append(f"{quantities.count(more)} more such gap{'s' * (more > 1)}: see below.")
    is_open = numbers.is_of_scores and not numbers.retention_tasks
    if is_open and numbers.num_tasks_in_domain > 1:
        said.append(
            f"All {numbers.num_tasks_in_domain} tasks are judged as trained tasks; --retention "
            "names those that were not trained on."
        )
    return " ".join(said)


def _recommended(numbers: Recommendation) -> str:
    chosen = numbers.chosen
    assert chosen is not None
    unit, rate, epochs = numbers.unit, chosen.learning_rate, chosen.epochs
    known = [  # all that a user must set besides the rank
        None if chosen.alpha is None else f"alpha {quantities.alpha(chosen)}",
        None if rate is None else f"learning rate {quantities.learning_rate(rate)}",
        quantities.modules(chosen.target_modules),
        None if epochs is None else quantities.counted(epochs, "epoch"),
    ]
    settings = [setting for setting in known if setting]
    text = f"Use {chosen.label}"
    if chosen.rank is not None:
        name = f"rank {chosen.rank}"
        if chosen.mean_rank is not None:
            name, settings = "the rank pattern", [f"mean {chosen.mean_rank:.1f}", *settings]
        text = f"Use {name}" + (f" ({', '.join(settings)})" if settings else "")
        if chosen.imported_as is not None:
            text += f", imported as {chosen.imported_as}"
    says: list[str] = []
    if numbers.has_base:
        gain = _measured(chosen.gain.estimate, unit, numbers.in_domain_metric)
        says.append(f"it gains {gain} over the base (at least {score(chosen.gain.lower, unit)})")
    if chosen.retention_loss is not None:
        says.append(f"it loses at most {_most_lost(chosen, numbers)}")
    if len(numbers.verdicts) > 1:
        ahead, which = chosen.shortfall.upper, _noun(numbers)
        rest = f"no other {which}" + " that keeps enough" * (chosen.retention_loss is not None)
        more = _against(ahead, numbers.delta, unit)
        says.append(f"{rest} gains over {more} {unit} more" if ahead > 0 else f"{rest} gains more")
    else:
        says.append(_alone(numbers))
    text += f": {', '.join(says)}"
    tied = [
        each.label
        for each in numbers.verdicts
        if each is not chosen
        and chosen.label not in each.worse_than
        and each.label not in chosen.worse_than
    ]
    return text + (
        f". It cannot be told apart from {_named(tied)}" if chosen.rank is None and tied else ""
    )


def _against(value: float, margin: float, unit: Unit) -> str:
    """A bound beside the margin that it is held against: with as many digits as tell them apart."""
    text = score(value, unit)
    for digits in range(1, 5):
        if text != score(margin, unit) or value == margin:
            break
        text = quantities.decimal(value, digits, signed=False)
        if text != quantities.decimal(margin, digits, signed=False):
            break
    return text


def _most_lost(verdict: RankVerdict, numbers: Recommendation) -> str:
    """0.7 points of p(right) on average over the 5 retention tasks (on no task more than 2.1)."""
    bound, worst = verdict.retention_loss, verdict.worst_retention_loss
    loss = _measured(max(bound.upper, 0.0) if bound else 0.0, "points", numbers.retention_metric)
    tasks = numbers.retention_tasks
    if len(tasks) == 1 or worst is None:
        return f"{loss} on {quantities.listed(tasks)}"
    most = ""
    if verdict.worst_retention_task is not None:
        most = f"most on {verdict.worst_retention_task}, {amount(worst.estimate, 'points')}; "
    return (
        f"{loss} on average over the {len(tasks)} retention tasks ({most}on no task more than "
        f"{score(max(worst.upper, 0.0), 'points')})"
    )


def _measured(value: float, unit: Unit, metric: str | None) -> str:
    """20.0 points of p(right), or 0.020 nats."""
    of = "" if unit == "nats" or metric is None else f" of {quantities.metric(metric)}"
    return f"{amount(value, unit)}{of}"


def _best_bet(numbers: Recommendation) -> str:
    """The option that is most probably right, with that probability."""
    bet = numbers.best_bet
    if bet is None:
        return ""
    if bet.choice is None:
        return f"Best bet: keep the base model ({quantities.odds(bet.none)})."
    return f"Best bet: {bet.choice} ({quantities.odds(bet.probability)})."


def _acceptable(epsilon: float, numbers: Recommendation, ceiling: float | None = None) -> str:
    """3.0 points on average and 9.0 on any task; of a single task 3.0 points."""
    text = amount(epsilon, "points")
    if len(numbers.retention_tasks) > 1:
        ceiling = ceiling or numbers.worst_task_points or 0.0
        text += f" on average and {score(ceiling, 'points')} on any task"
    return text


def _ruled_out(numbers: Recommendation) -> str:
    """The options that are shown not to be the answer, and those that are left."""
    if numbers.outcome not in ("cannot_tell", "no_evidence"):
        return ""
    by = grouped((v.ruled_out_by, v.label) for v in numbers.verdicts if v.ruled_out_by is not None)
    texts: list[str] = []
    for reason, labels in by.items():
        verb = "is" if len(labels) == 1 else "are"
        if reason == "retention":
            why = "its retention loss" if len(labels) == 1 else "their retention losses"
        else:
            why = f"{reason}, which gains over δ more"
        texts.append(f"{_named(labels)} {verb} ruled out by {why}")
    left = numbers.left
    names = {verdict.label for verdict in left}
    unsure = {verdict.label for verdict in left if verdict.keeps_enough == "undecided"}
    ahead_of = [
        (tuple(label for label in v.worse_than if label in some), v.label)
        for v in left
        for some in (names - unsure, unsure)
    ]
    behind = grouped((better, label) for better, label in ahead_of if better)
    if possible := still_possible(numbers):
        texts.append(possible)
    if len(behind) > MOST_GROUPS:
        texts.append("some of them score less than others")
        behind = {}
    for better, labels in behind.items():
        verb = "scores" if len(labels) == 1 else "score"
        but = "but perhaps by under δ"
        if unsure.issuperset(better):
            but = f"which {'is' if len(better) == 1 else 'are'} not shown to keep enough"
        texts.append(f"{_named(labels)} {verb} less than {_named(better)}, {but}")
    has_rank = any(verdict.rank is not None for verdict in numbers.verdicts)
    return " ".join(f"{quantities.capital(text) if has_rank else text}." for text in texts)


def _named(labels: Sequence[str]) -> str:
    """Options by their labels, which may have commas themselves."""
    if any("," in label for label in labels):
        return "; ".join(labels)
    return quantities.listed(labels)


def _no_gain(numbers: Recommendation) -> str:
    best = max(numbers.verdicts, key=lambda v: v.gain.estimate)
    gain = _measured(best.gain.estimate, numbers.unit, numbers.in_domain_metric)
    if numbers.outcome == "none_helps":
        return (
            f"No {_noun(numbers)} helps, at {_percent(numbers.confidence)}: the best, "
            f"{best.label}, gains {gain} ({score_range(best.gain, numbers.unit)})"
        )
    clusters = quantities.in_clusters(numbers.num_clusters_in_domain)
    return (
        f"Not shown at {_percent(numbers.confidence)} that fine-tuning helps: no {_noun(numbers)} "
        f"is shown to be better than the base on {numbers.num_items_in_domain:,} in-domain "
        f"items{clusters}; the best, {best.label}, gains "
        f"{gain} ({score_range(best.gain, numbers.unit)})"
    )


def _none_keeps_enough(numbers: Recommendation) -> str:
    losses = [(v.retention_loss, v.label) for v in numbers.verdicts if v.retention_loss is not None]
    least, label = min(losses, key=lambda pair: pair[0].estimate)
    text = (
        f"No {_noun(numbers)} keeps enough: none is likely to gain and to lose at most "
        f"{_acceptable(numbers.epsilon_points or 0.0, numbers)}; {label} loses least, "
        f"{_measured(least.estimate, 'points', numbers.retention_metric)} on average "
        f"(at least {score(least.lower, 'points')})"
    )
    price = _price(numbers)
    return f"{text}; {price}" if price else text


def _noun(numbers: Recommendation) -> str:
    """The noun for what is compared: ranks, or models whose rank nobody said."""
    has_rank = any(verdict.rank is not None for verdict in numbers.verdicts)
    return "rank" if has_rank else "model"


def _price(numbers: Recommendation) -> str:
    """The losses at which an option would qualify, where there are such."""
    if numbers.sufficient_label is None:
        return ""
    epsilon = numbers.sufficient_epsilon_points or 0.0
    ceiling = numbers.sufficient_worst_task_points or numbers.worst_task_points or 0.0
    loss = _acceptable(epsilon, numbers, ceiling)
    how = f"--epsilon {epsilon:g} --worst-task {ceiling:g}"
    if not numbers.is_of_scores:
        how = f"`rankwise verdict DIR --epsilon {epsilon:g} --worst-task {ceiling:g}`"
    return f"{numbers.sufficient_label} would qualify if you accepted a loss of {loss}: {how}"


def next_command(numbers: Recommendation) -> str:
    """What to do with the verdict: use it, try other rates, or what would probably settle it."""
    if numbers.is_of_scores:
        return "rankwise report DIR"
    if numbers.better_and_kept_by_full is not None and numbers.best_rate_at_edge is None:
        return f"rankwise extend DIR --rate-factors {OTHER_RATES}"
    if (growth := next_growth(numbers)) is not None:
        return _growing(growth)
    is_bet = numbers.outcome == "cannot_tell" and numbers.best_bet_run is not None
    if numbers.outcome == "recommended" or is_bet:
        return "rankwise export DIR --format peft"
    return "rankwise report DIR"


def next_growth(numbers: Recommendation) -> Prospect | None:
    """The growth that would settle the verdict; None where it is settled, or none is likely to."""
    growth = None if numbers.outcome == "recommended" else _likeliest(numbers)
    return growth if growth is not None and growth.probability >= HARDLY else None


def time_of_next(numbers: Recommendation, cost: StudyCost) -> str:
    """How long the next command takes: "about 12 min"; empty where it trains and scores nothing."""
    growth = next_growth(numbers)
    if growth is None or next_command(numbers) != _growing(growth):
        return ""
    seconds = cost.of_growth(growth)
    return f"about {quantities.seconds(seconds)}" if seconds else ""


def _likeliest(numbers: Recommendation) -> Prospect | None:
    """The smallest growth that decides more likely than not, or else the likeliest."""
    likely = [p for p in numbers.prospects if p.probability >= WORTH_A_TRY]
    if likely:
        return min(likely, key=lambda prospect: prospect.cost)
    return max(numbers.prospects, key=lambda prospect: prospect.probability, default=None)


def _growing(best: Prospect) -> str:
    if best.factor is None:
        return f"rankwise extend DIR --seeds {best.num_new_seeds}"
    return f"rankwise extend DIR --items {best.num_new_items}"


def _what_decides(numbers: Recommendation) -> str:
    """What would probably settle it, and at which margins it is settled."""
    if numbers.outcome not in ("cannot_tell", "no_evidence"):
        return ""
    price = quantities.capital(_price(numbers)) if numbers.outcome == "cannot_tell" else ""
    wider = _wider(numbers)
    best = _likeliest(numbers)
    if best is not None and best.probability >= HARDLY:
        how = "score them, and judge again" if numbers.is_of_scores else f"`{_growing(best)}`"
        text = (
            f"{quantities.capital(growth(best))} would settle it with probability "
            f"{best.probability:.1f}: {how}"
        )
    elif any(prospect.factor is not None for prospect in numbers.prospects):
        text = f"More items or seeds would probably not settle it{wider}"
    elif numbers.prospects:
        text = f"All items are scored, and more seeds would probably not settle it{wider}"
    else:
        text = "" if price else f"All items are scored{wider}"
    return " ".join(f"{part}." for part in (text, price) if part)


def _wider(numbers: Recommendation) -> str:
    """That larger margins may settle it; empty where no margin does: none asks less than a gain."""
    able = (v.better_than_base in ("yes", None) and not v.diverged_seeds for v in numbers.verdicts)
    if not any(able):
        return ""
    margins = "--delta" if numbers.epsilon_points is None else "--delta, --epsilon"
    return f"; larger margins may ({margins})"


_KINDS = {"in_domain": "in-domain ", "retention": "retention ", "items": ""}


def growth(prospect: Prospect) -> str:
    """A growth in words: 4 times the retention items (2,750; the tasks have 688 in all)."""
    if prospect.factor is None:
        return f"{prospect.num_new_seeds} more seeds"
    total = sum(prospect.num_items.values())
    where = f"{total:,}"
    if prospect.num_available is None:
        where += ", if available"
    elif total == prospect.num_available:
        where = f"all {where}"
    of = f" of {next(iter(prospect.num_items))}" if len(prospect.num_items) == 1 else ""
    return f"{prospect.factor:.2g} times the {_KINDS[prospect.add]}items{of} ({where})"


def with_folder(text: str, folder: str | Path | None) -> str:
    """A statement whose command names the study's folder, which a record does not know.

    None: there is no folder, and the statement stays as it is.
    """
    if folder is None:
        return text
    place = shlex.quote(str(folder))
    return _FOLDER.sub(lambda found: f"{found[1]}{place}", text)


def in_commands(value: T, folder: str | Path) -> T:
    """A record, or part of one, whose commands name the study's folder; see ``with_folder``."""

    def named(text: str | Path, _: bool) -> str | Path:
        return with_folder(text, folder) if isinstance(text, str) else text

    return each_text(value, named)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _margins_used(numbers: Recommendation) -> Iterator[str]:
    margins = f"δ = {_measured(numbers.delta, numbers.unit, numbers.in_domain_metric)}"
    if numbers.epsilon_points is not None:
        epsilon = _measured(numbers.epsilon_points, "points", numbers.retention_metric)
        margins += f", ε = {epsilon} on average"
        margins += f" and {amount(numbers.worst_task_points or 0.0, 'points')} on any task"
    yield f"Judged with {margins}, at {_percent(numbers.confidence)} confidence."
    look = numbers.looks[-1]
    wrong = quantities.formatted(100 * look.alpha, ".2g")
    over_all = quantities.formatted(100 * (1 - numbers.confidence), ".2g")
    first = "First verdict" if look.number == 1 else f"Verdict {look.number}"
    yield (
        f"{first} on this study: it recommends a wrong option in at most {wrong} % of studies "
        f"({over_all} % over all its verdicts)."
    )
    if numbers.epsilon_points is None:
        yield "Forgetting was not measured: the study has no retention task that decides."
    if not numbers.has_base:
        yield "No model is the base, so gains are over the mean of the models and decide nothing."


def _verdict(verdict: RankVerdict, numbers: Recommendation) -> str:
    unit = numbers.unit
    better = {
        "yes": ", better than the base",
        "no": ", worse than the base",
        "undecided": ", not shown to be better or worse than the base",
        None: "",
    }
    parts = [
        f"gain {amount(verdict.gain.estimate, unit)} ({score_range(verdict.gain, unit)})"
        + better[verdict.better_than_base]
    ]
    if verdict.retention_loss is not None and verdict.keeps_enough is not None:
        keeps = {"yes": "", "no": ", too much", "undecided": ", not shown to be acceptable"}
        upper = _against(verdict.retention_loss.upper, numbers.epsilon_points or 0.0, "points")
        loss = (
            f"retention loss {amount(verdict.retention_loss.estimate, 'points')} "
            f"({score(verdict.retention_loss.lower, 'points')} to {upper})"
            f"{keeps[verdict.keeps_enough]}"
        )
        worst = verdict.worst_retention_loss
        if worst is not None and len(numbers.retention_tasks) > 1:
            task = verdict.worst_retention_task
            loss += (
                f", worst {f'{task} ' if task else ''}{score(worst.estimate, 'points')} "
                f"(any task: {score_range(worst, 'points')})"
            )
        parts.append(loss)
    if len(numbers.verdicts) > 1:
        near = {"yes": "", "no": ", too much", "undecided": ", not shown to be at most δ"}
        behind = _against(max(verdict.shortfall.upper, 0.0), numbers.delta, unit)
        parts.append(f"at most {behind} {unit} below the best other" + near[verdict.near_the_best])
    if verdict.diverged_seeds:
        is_reward = verdict.diverged_seeds == verdict.reward_failed_seeds
        parts.append("a run's reward failed" if is_reward else "a run diverged")
    ends = "qualifies" if verdict.qualifies else "does not qualify"
    return f"{option_name(verdict)} {ends}: {'; '.join(parts)}."


def _alternatives(numbers: Recommendation, parameters: Sequence[int]) -> Iterator[str]:
    able = [(v, n) for v, n in zip(numbers.verdicts, parameters, strict=True) if v.qualifies]
    if len(able) < 2:
        return
    (chosen, size), *others = able
    texts: list[str] = []
    for other, number in others:
        more = other.gain.estimate - chosen.gain.estimate
        text = f"{other.label} ({quantities.change(more, numbers.unit)} {numbers.unit} in-domain"
        if other.retention_loss is not None and chosen.retention_loss is not None:
            lost = other.retention_loss.estimate - chosen.retention_loss.estimate
            text += f", {quantities.change(lost, 'points')} points of retention loss"
        times = f", {number / size:.3g} times the trainable parameters" if size else ""
        texts.append(f"{text}{times})")
    yield f"Alternatives that also qualify: {', '.join(texts)}."


def _by_format(numbers: Recommendation) -> tuple[str, ...]:
    """The tasks on which a loss is shown to be smaller in the format of the training."""
    return tuple(
        f"Partly format: {effect.run} changes by "
        f"{score(effect.standard_difference, effect.unit)} on {effect.task} and by "
        f"{amount(effect.difference.estimate, effect.unit)} in the training format "
        f"({effect.scored_as}); the difference is at least "
        f"{score(-effect.by_format.upper, effect.unit)}."
        for effect in numbers.format_effects
        if effect.by_format is not None
        and effect.by_format.sign() < 0
        and effect.standard_difference < 0
    )


def score_range(bound: Interval, unit: Unit) -> str:
    """The ends of an interval: 75.1 to 84.1."""
    return quantities.score_interval(bound.lower, bound.upper, unit)
