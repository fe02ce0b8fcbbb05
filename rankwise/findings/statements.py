"""The sentences of a recommendation: what a practitioner reads first, and the reasons."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rankwise.findings.stats.detectable import Detectable
from rankwise.records import quantities
from rankwise.records.grouping import grouped
from rankwise.records.judgement import Prospect
from rankwise.records.quantities import amount, score
from rankwise.records.recommendation import Bound, RankVerdict, Recommendation
from rankwise.records.study import Unit

_MLP = re.compile(r"mlp|gate|up_|down_|fc|ffn|_4h|4h_|^w\d|experts")
"""Parts of the names of adapted layers: LoRA was not left to attention alone."""

_FOLDER = re.compile(r"(rankwise [a-z-]+ (?:[^\s`]+ )?)DIR\b")
"""The study's folder in a command, whose first or second argument it is."""

TRANSFER_ALARM_SHARE = 0.10
"""A drop of more than this share of the base's score on another domain is reported."""


def statement(numbers: Recommendation) -> str:
    """The answer in a few sentences: the verdict, the best bet, and what to do next."""
    if not numbers.verdicts:
        return "The data cannot tell which rank to use: no LoRA rank was trained with every seed."
    if numbers.outcome == "recommended":
        first = _recommended(numbers)
    elif numbers.outcome == "no_evidence":
        first = _no_evidence(numbers)
    elif numbers.outcome == "none_keeps_enough":
        first = _none_keeps_enough(numbers)
    else:
        first = f"Not settled at {_percent(numbers.confidence)}"
    if numbers.epsilon_points is None:
        first += "; forgetting was not measured"
    parts = [first, _these_adapters(numbers), _best_bet(numbers), _ruled_out(numbers)]
    if (full := numbers.better_and_kept_by_full) is not None:
        has_mlp = any(_MLP.search(name) for v in numbers.verdicts for name in v.target_modules)
        layers = "all linear layers first (methods.lora.target_modules: all-linear), then "
        parts.append(
            f"{quantities.capital(full)} gains more and forgets less than every rank: try "
            f"{'' if has_mlp else layers}other LoRA learning rates (train.learning_rate.lora)"
        )
    if (rate := numbers.best_rate_at_edge) is not None:
        parts.append(
            f"The best learning rate, {quantities.learning_rate(rate)}, is at the edge of the "
            "range tried: try rates beyond it (train.learning_rate.lora)"
        )
    parts.append(_what_decides(numbers))
    return " ".join(f"{part}." for part in parts if part)


def reasons(
    numbers: Recommendation, full: Iterable[str], parameters: Sequence[int], able: Detectable | None
) -> tuple[str, ...]:
    """Short sentences with the numbers: the margins, each verdict, and what it is compared with.

    ``full`` says what full fine-tuning gains and loses; ``parameters`` are the trainable ones of
    each verdict's option; ``able`` is what a study of this size detects in-domain.
    """
    return (
        *_margins_used(numbers),
        *([] if able is None else [f"A study of this size detects {detected(able)}."]),
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


def _recommended(numbers: Recommendation) -> str:
    chosen = next(v for v in numbers.verdicts if v.qualifies)
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
        text = f"Use rank {chosen.rank}" + (f" ({', '.join(settings)})" if settings else "")
    if chosen.rank is not None and len(chosen.runs) == 1:
        # one run says nothing of the next one with another seed
        of = [f"seed {seed}" for seed in numbers.looks[-1].seeds]
        if chosen.imported_as is not None:
            of = [f"imported as {chosen.imported_as}"]
        text = f"Use this adapter ({', '.join([f'rank {chosen.rank}', *of, *settings])})"
    says: list[str] = []
    if numbers.has_base:
        gain = _measured(chosen.gain.estimate, unit, numbers.in_domain_metric)
        says.append(f"it gains {gain} over the base (at least {score(chosen.gain.lower, unit)})")
    if len(numbers.verdicts) > 1:
        ahead, rejected = chosen.shortfall.upper, " that may keep enough" * numbers.has_base
        says.append(
            f"no other{rejected} is more than {amount(ahead, unit)} better"
            if ahead > 0
            else f"it is better than every other{rejected}"
        )
    tied = [
        each.label
        for each in numbers.verdicts
        if each is not chosen
        and chosen.label not in each.worse_than
        and each.label not in chosen.worse_than
    ]
    if chosen.rank is None and tied:
        says.append(f"it cannot be told apart from {_named(tied)}")
    text += f": {', '.join(says)}" if says else ""
    if chosen.retention_loss is not None:
        text += f", and it loses at most {_most_lost(chosen, numbers)}"
    return text


def _most_lost(verdict: RankVerdict, numbers: Recommendation) -> str:
    """0.7 points of p(right) on average over the 5 retention tasks, most on capitals (2.1 ...)."""
    bound, worst = verdict.retention_loss, verdict.worst_retention_loss
    loss = _measured(max(bound.upper, 0.0) if bound else 0.0, "points", numbers.retention_metric)
    tasks = numbers.retention_tasks
    if len(tasks) == 1 or worst is None:
        return f"{loss} on {quantities.listed(tasks)}"
    return (
        f"{loss} on average over the {len(tasks)} retention tasks; most is lost on "
        f"{verdict.worst_retention_task}, {amount(worst.estimate, 'points')} (on no task more than "
        f"{score(max(worst.upper, 0.0), 'points')})"
    )


def _measured(value: float, unit: Unit, metric: str | None) -> str:
    """20.0 points of p(right), or 0.020 nats."""
    of = "" if unit == "nats" or metric is None else f" of {quantities.metric(metric)}"
    return f"{amount(value, unit)}{of}"


def _these_adapters(numbers: Recommendation) -> str:
    """The verdict about the adapters themselves, where the other one is about new seeds too."""
    these = numbers.these_adapters
    if these is None:
        return ""
    text = f"These adapters, the mean of their {numbers.num_seeds} seeds:"
    if these.gain is None:
        outcomes = {
            "no_evidence": "not shown to be better than the base",
            "none_keeps_enough": "none keeps enough",
        }
        return f"{text} {outcomes.get(these.outcome, 'not settled either')}"
    text += (
        f" use {these.label}, which gains {amount(these.gain.estimate, numbers.unit)} "
        f"(at least {score(these.gain.lower, numbers.unit)})"
    )
    if numbers.outcome != "recommended":
        text += "; other seeds may differ"
    return text


def _best_bet(numbers: Recommendation) -> str:
    """The option that is worth most by the estimates, and how probably it is right."""
    bet = numbers.best_bet
    if bet is None:
        return ""
    if numbers.outcome == "recommended":
        verdict = next(v for v in numbers.verdicts if v.qualifies)
        if len(verdict.runs) > 1 or verdict.imported_as is not None or verdict.rank is None:
            return ""
        chosen = bet.of(verdict.label)
        odds = _odds(chosen.right, numbers)
        return f"{quantities.capital(chosen.label)} with another seed ({odds})"
    if bet.choice is None:
        return "Best bet: keep the base model; no option is estimated to be worth it"
    return f"Best bet: {bet.choice} ({_odds(bet.of(bet.choice).right, numbers)})"


def _odds(probability: float, numbers: Recommendation) -> str:
    """72 %: within 3.0 points of the best, loses at most 3.0 points, 9.0 on any task."""
    delta = amount(numbers.delta, numbers.unit)
    text = f"{quantities.odds(probability)}: within {delta} of the best"
    if numbers.epsilon_points is not None:
        text += f", loses at most {_acceptable(numbers.epsilon_points, numbers)}"
    return text


def _acceptable(epsilon: float, numbers: Recommendation, ceiling: float | None = None) -> str:
    """3.0 points on average and 9.0 on any task; of a single task 3.0 points."""
    text = amount(epsilon, "points")
    if len(numbers.retention_tasks) > 1:
        ceiling = ceiling or numbers.worst_task_points or 0.0
        text += f" on average and {score(ceiling, 'points')} on any task"
    return text


def _ruled_out(numbers: Recommendation) -> str:
    """The options that are shown not to be the answer, and the group that is left."""
    if numbers.outcome in ("recommended", "none_keeps_enough"):
        return ""
    by = grouped((v.ruled_out_by, v.label) for v in numbers.verdicts if v.ruled_out_by is not None)
    texts: list[str] = []
    for reason, labels in by.items():
        higher = ", which scores more than δ higher and keeps enough" * (reason != "retention")
        verb = "is" if len(labels) == 1 else "are"
        texts.append(f"{_named(labels)} {verb} ruled out by {reason}{higher}")
    left = [verdict for verdict in numbers.verdicts if verdict.ruled_out_by is None]
    names = {verdict.label for verdict in left}
    ahead_of = {v.label: tuple(label for label in v.worse_than if label in names) for v in left}
    behind = grouped((better, label) for label, better in ahead_of.items() if better)
    if len(left) > 1 and not behind:
        which = _named([verdict.label for verdict in left])
        if len(left) > MOST_NAMED:
            which = f"the {'other ' if by else ''}{len(left)} LoRA options"
        texts.append(f"{which} cannot be told apart")
    if len(behind) > MOST_GROUPS:
        texts.append(
            "Some of the rest score less than others, but none that keeps enough is shown to lead "
            "by more than δ"
        )
        behind = {}
    for better, labels in behind.items():
        # why options that are shown to score more do not rule out the one that scores less
        why = f"which {'is' if len(better) == 1 else 'are'} not shown to keep enough"
        if any(v.keeps_enough in (None, "yes") for v in numbers.verdicts if v.label in better):
            why = "but perhaps by less than δ"
        verb = "scores" if len(labels) == 1 else "score"
        texts.append(f"{_named(labels)} {verb} less than {_named(better)}, {why}")
    return ". ".join(map(quantities.capital, texts))


def _named(labels: Sequence[str]) -> str:
    """Options by their labels, which may have commas themselves."""
    if any("," in label for label in labels):
        return "; ".join(labels)
    return quantities.listed(labels)


def _no_evidence(numbers: Recommendation) -> str:
    best = max(numbers.verdicts, key=lambda v: v.gain.estimate)
    gain = _measured(best.gain.estimate, numbers.unit, numbers.in_domain_metric)
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
        f"No {_noun(numbers)} keeps enough: every one is shown to lose more than "
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
    loss = _acceptable(
        numbers.sufficient_epsilon_points or 0.0, numbers, numbers.sufficient_worst_task_points
    )
    return f"{numbers.sufficient_label} would qualify if you accepted a loss of {loss}"


def headline(numbers: Recommendation) -> str:
    """The verdict, or the best bet, in one line."""
    at, bet = _percent(numbers.confidence), numbers.best_bet
    if numbers.outcome == "recommended":
        chosen = next(v for v in numbers.verdicts if v.qualifies)
        is_of_run = len(chosen.runs) == 1 and chosen.imported_as is None and chosen.rank is not None
        if not is_of_run or bet is None:
            return f"Use {chosen.label}. Settled at {at}."
        odds = quantities.odds(bet.of(chosen.label).right)
        return (
            f"Use {chosen.label}. Settled at {at} for this adapter; {odds} likely to hold for "
            "another seed."
        )
    first = {
        "no_evidence": f"Not shown at {at} that fine-tuning helps.",
        "none_keeps_enough": f"No {_noun(numbers)} keeps enough of what the base knew.",
    }.get(numbers.outcome, f"Not settled at {at}.")
    if bet is None:
        return first
    if bet.choice is None:
        return f"{first} Best bet: keep the base model."
    return f"{first} Best bet: {bet.choice} ({quantities.odds(bet.of(bet.choice).right)})."


def next_command(numbers: Recommendation) -> str:
    """What to do with the verdict: use it, or what would probably settle it."""
    growth = None if numbers.outcome == "recommended" else _likeliest(numbers)
    if numbers.is_of_scores:
        return "rankwise report DIR"
    if growth is not None and growth.probability >= HARDLY:
        return _growing(growth)
    if numbers.outcome == "recommended" or numbers.best_bet_run is not None:
        return "rankwise export DIR --format peft"
    return "rankwise report DIR"


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
    price = quantities.capital(_price(numbers)) if numbers.outcome == "cannot_tell" else ""
    wider = "wider margins may (recommendation.delta_points, recommendation.epsilon_points)"
    best = _likeliest(numbers)
    if best is None:
        is_open = numbers.outcome == "cannot_tell"
        return price or (f"All items are scored, and it is not settled: {wider}" * is_open)
    if best.probability < HARDLY:
        text = "More items or seeds would probably not settle it"
        if all(prospect.factor is None for prospect in numbers.prospects):
            text = "All items are scored, and more seeds would probably not settle it"
        text += f": {wider}"
    else:
        how = "score them, and judge again" if numbers.is_of_scores else f"`{_growing(best)}`"
        text = (
            f"{quantities.capital(growth(best))} would settle it with probability "
            f"{best.probability:.1f}: {how}"
        )
    return f"{text}. {price}" if price else text


WORTH_A_TRY = 0.5
"""A growth that decides with at least this probability is named first."""

MOST_NAMED = 6
"""More options than this that cannot be told apart are counted, and not named."""

MOST_GROUPS = 2
"""More comparisons than this are summed up in one sentence."""

HARDLY = 0.1
"""Below this probability no growth is named."""

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


def with_folder(text: str, folder: str | Path) -> str:
    """A statement whose command names the study's folder, which a record does not know."""
    place = shlex.quote(str(folder))
    return _FOLDER.sub(lambda found: f"{found[1]}{place}", text)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def delta_used(numbers: Recommendation) -> str:
    """δ = 3.0 points of p(right): what counts as a difference."""
    return f"δ = {_measured(numbers.delta, numbers.unit, numbers.in_domain_metric)}"


def _margins_used(numbers: Recommendation) -> Iterator[str]:
    margins = delta_used(numbers)
    if numbers.epsilon_points is not None:
        epsilon = _measured(numbers.epsilon_points, "points", numbers.retention_metric)
        margins += f", ε = {epsilon} on average"
        margins += f" and {amount(numbers.worst_task_points or 0.0, 'points')} on any task"
    yield f"Judged with {margins}, at {_percent(numbers.confidence)} confidence."
    look = numbers.looks[-1]
    yield (
        f"Look {look.number} at this study; error rate "
        f"{quantities.formatted(100 * look.alpha, '.2g')} % now, "
        f"{quantities.formatted(100 * (1 - numbers.confidence), '.2g')} % over all looks."
    )
    if numbers.epsilon_points is None:
        yield "Forgetting was not measured: the study has no retention task that decides."
    if not numbers.has_base:
        yield "No model is the base, so gains are over the mean of the models and decide nothing."


def _verdict(verdict: RankVerdict, numbers: Recommendation) -> str:
    unit = numbers.unit
    better = {
        "yes": "", "no": ", worse than the base", "undecided": ", not shown better", None: ""
    }  # fmt: skip
    parts = [
        f"gain {amount(verdict.gain.estimate, unit)} ({score_range(verdict.gain, unit)})"
        + better[verdict.better_than_base]
    ]
    if verdict.retention_loss is not None and verdict.keeps_enough is not None:
        keeps = {"yes": "", "no": ", too much", "undecided": ", not shown to be acceptable"}
        loss = (
            f"retention loss {amount(verdict.retention_loss.estimate, 'points')} "
            f"({score_range(verdict.retention_loss, 'points')}){keeps[verdict.keeps_enough]}"
        )
        if verdict.worst_retention_task is not None and verdict.worst_retention_loss is not None:
            worst = verdict.worst_retention_loss
            loss += (
                f", worst {verdict.worst_retention_task} {score(worst.estimate, 'points')} "
                f"(any task: {score_range(worst, 'points')})"
            )
        parts.append(loss)
    if len(numbers.verdicts) > 1:
        near = {"yes": "", "no": ", too much", "undecided": ", not shown below δ"}
        parts.append(
            f"at most {amount(max(verdict.shortfall.upper, 0.0), unit)} below the best"
            + near[verdict.near_the_best]
        )
    ends = "qualifies" if verdict.qualifies else "does not qualify"
    # a model's name is written as it is
    label = verdict.label if verdict.rank is None else quantities.capital(verdict.label)
    return f"{label} {ends}: {'; '.join(parts)}."


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
        f"{amount(effect.difference, effect.unit)} in the training format "
        f"({effect.scored_as}); the difference is at least "
        f"{score(-effect.by_format.upper, effect.unit)}."
        for effect in numbers.format_effects
        if effect.by_format is not None
        and effect.by_format.sign() < 0
        and effect.standard_difference < 0
    )


def score_range(bound: Bound, unit: Unit) -> str:
    """The ends of an interval: 75.1 to 84.1."""
    return quantities.score_interval(bound.lower, bound.upper, unit)
