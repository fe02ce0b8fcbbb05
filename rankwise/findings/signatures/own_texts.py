"""Failures that show in what a run wrote itself and learned from: worth less, or ever longer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rankwise.findings.options import Option, OptionGains
from rankwise.findings.signatures.signature import Signature
from rankwise.records import quantities
from rankwise.records.config.objectives import GrpoConfig
from rankwise.records.study import Change, LearnedTexts

CUT_SHARE = 0.5
"""Texts that grow, and of which a larger share is cut in the end, run away."""


class _Changed(NamedTuple):
    texts: LearnedTexts
    by: Change


def text_signatures(source: OptionGains) -> Iterator[Signature]:
    """How the texts changed that the options of one trained task wrote; judged run by run."""
    for option in source.options:
        learned = [run.learned_texts for run in option.records if run.learned_texts is not None]
        rewards = [_Changed(x, x.reward_change) for x in learned if x.reward_change is not None]
        lengths = [_Changed(x, x.tokens_change) for x in learned if x.tokens_change is not None]
        if falling := [each for each in rewards if each.by.sign() < 0]:
            yield _reward_falls(source, option, falling)
        if longer := [each for each in lengths if _runs_away(each)]:
            yield _run_away(source, option, longer)


def _runs_away(tokens: _Changed) -> bool:
    texts, by = tokens
    return by.sign(at=by.first) > 0 or (by.sign() > 0 and texts.cut_last > CUT_SHARE)


def _reward_falls(source: OptionGains, option: Option, found: Sequence[_Changed]) -> Signature:
    _, by = min(found, key=lambda each: each.by.estimate)
    grpo = source.results.study.config.train.written
    is_held = isinstance(grpo, GrpoConfig) and grpo.beta > 0
    return Signature(
        name="reward_falls",
        train_task=source.results.train_task,
        label=option.label,
        task=None,
        statement=f"{_runs(option, found)} wrote texts with a mean reward of {by.first:.3g} at "
        f"first and of {by.last:.3g} in the end, at least {-by.upper:.2g} less.",
        advice="Lower its learning rate, or hold it to the base by "
        f"{'a larger ' * is_held}train.objective.grpo.beta{' (such as 0.04)' * (not is_held)}.",
        unit="units",
        **by.model_dump(include={"estimate", "lower", "upper"}),
    )


def _run_away(source: OptionGains, option: Option, found: Sequence[_Changed]) -> Signature:
    texts, by = max(found, key=lambda each: each.by.estimate)
    written, of_rewards = source.results.study.config.train.written, ""
    if isinstance(written, GrpoConfig):
        of_rewards = "give a reward that falls with length, "
        if written.loss_type == "grpo":  # in which a token of a long text counts less
            of_rewards += "set loss_type: dr_grpo, "
    return Signature(
        name="texts_run_away",
        train_task=source.results.train_task,
        label=option.label,
        task=None,
        statement=f"{_runs(option, found)} wrote texts of {by.first:.1f} tokens at first and of "
        f"{by.last:.1f} in the end, at least {by.lower:.1f} more; of the last ones "
        f"{quantities.share(texts.cut_last)} were cut at the length limit.",
        advice=f"Lower its learning rate, {of_rewards}or raise max_completion_length if right "
        "answers are that long.",
        unit="tokens",
        **by.model_dump(include={"estimate", "lower", "upper"}),
    )


def _runs(option: Option, found: Sequence[_Changed]) -> str:
    several = len(option.runs) > 1
    seeds = f" with {len(found)} of {len(option.runs)} seeds" if several else ""
    return quantities.capital(option.label) + seeds
