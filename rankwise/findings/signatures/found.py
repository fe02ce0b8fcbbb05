"""The failure signatures of a study: everything that went wrong and that its data show."""

from __future__ import annotations

from collections.abc import Iterator

from rankwise.findings.options import OptionGains, ladders, option_gains
from rankwise.findings.pairs import run_record
from rankwise.findings.signatures.answers import answer_signatures
from rankwise.findings.signatures.own_texts import text_signatures
from rankwise.findings.signatures.scores import rank_signatures, score_signatures
from rankwise.findings.signatures.signature import SIGNATURES, Signature, SignatureName
from rankwise.findings.stats.items import POINTS
from rankwise.records import quantities
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import StudyResults, TrainTaskResults


def failure_signatures(
    source: OptionGains, recommendation: Recommendation
) -> tuple[Signature, ...]:
    """Every failure that one trained task shows, in the order of ``SIGNATURES``.

    Each is judged by the bounds of its own interval (docs/methods/signatures.md), with
    the margins and units of the recommendation. Without a base nothing can have failed against it.
    """
    if not source.results.study.has_base:
        return ()
    signatures = [
        *_diverged(source),
        *text_signatures(source),
        *_items_in_training(source.results),
        *score_signatures(source, recommendation),
        *answer_signatures(source),
        *rank_signatures(source, recommendation),
    ]
    return tuple(sorted(signatures, key=lambda signature: SIGNATURES.index(signature.name)))


def not_looked_for(results: StudyResults) -> dict[SignatureName, str]:
    """The signatures that the study cannot show, with what it lacks.

    One that a trained task can show is looked for.
    """
    parts = [_lacking(source) for source in option_gains(results)]
    return {
        name: parts[0][name] for name in SIGNATURES if parts and all(name in part for part in parts)
    }


def _diverged(source: OptionGains) -> Iterator[Signature]:
    results, labels = source.results, source.labels
    several = len(results.study.config.seeds) > 1
    for model in results.runs:
        run = run_record(model)
        if run.status == "diverged":
            seed = f" with seed {run.planned.seed}" if several else ""
            message = run.message or "no reason was recorded"
            yield Signature(
                name="diverged",
                train_task=results.train_task,
                label=labels[model.name],
                task=None,
                statement=quantities.capital(
                    f"{labels[model.name]}{seed} {run.ending} and "
                    f"is excluded: {message.removesuffix('.')}."
                ),
                advice="Correct the function, and run the study again: the run is trained anew."
                if run.is_reward_failure
                else "Lower its learning rate or lengthen the warm-up, and check for broken "
                "training rows.",
            )


def _items_in_training(results: TrainTaskResults) -> Iterator[Signature]:
    for task, number in results.study.overlaps.get(results.train_task, {}).items():
        if number:
            num_items = results.base.evaluations[task].num_examples
            percent = quantities.score(POINTS * number / num_items, "points")
            yield Signature(
                name="items_in_training",
                train_task=results.train_task,
                label="",
                task=task,
                statement=f"{number:,} of {num_items:,} scored items of {task} ({percent} %) are "
                f"found in the training rows of {results.train_task}.",
                advice="Set train.drop_overlapping=true, which trains without these rows; until "
                "then the gain may be memorisation.",
                estimate=POINTS * number / num_items,
                unit="points",
                num_items=num_items,
            )


def _lacking(source: OptionGains) -> dict[SignatureName, str]:
    """What a trained task cannot show, and why."""
    results = source.results
    base = results.base.evaluations.values()
    longest = max((len(ladder.rungs) for ladder in ladders(source)), default=0)
    generates = any(record.num_unfinished is not None for record in base)
    chooses = any(len(record.predicted_shares or ()) > 1 for record in base)
    seeded = any(len(option.runs) > 1 for option in source.options)
    learned = [run.learned_texts for option in source.options for run in option.records]
    of_own = [each for each in learned if each is not None]
    why = "too few steps" if of_own else "no run learned from texts of its own"
    few_rewards = bool(of_own) and all(each.reward_first is None for each in of_own)
    is_there: dict[SignatureName, tuple[bool, str]] = {
        "reward_falls": (
            any(each.reward_change is not None for each in of_own),
            "no text was rewarded" if few_rewards else why,
        ),
        "texts_run_away": (any(each.tokens_change is not None for each in of_own), why),
        "negative_transfer": (bool(source.tasks("out_of_domain")), "no out-of-domain task"),
        "metrics_disagree": (
            any(items.accuracy is not None for items in results.base.items.values()),
            "p(right) decides on no task",
        ),
        "forgetting_on_prose": (bool(source.tasks("held_out_text", "nats")), "no held-out text"),
        "does_not_stop": (
            generates or results.ending_items is not None,
            "no generation task, and no training rows are scored",
        ),
        "letters_collapsed": (chooses, "no multiple-choice task"),
        "memorised": (bool(results.trained_items), "no training rows are scored"),
        "train_test_gap": (bool(results.trained_items), "no training rows are scored"),
        "too_easy": (longest > 1, "fewer than two ranks"),
        "not_a_matter_of_rank": (longest > 1, "fewer than two ranks"),
        "erratic_over_ranks": (longest > 2, "fewer than three ranks"),
        "unstable_over_seeds": (seeded, "one seed"),
    }
    return {name: why for name, (is_so, why) in is_there.items() if not is_so}
