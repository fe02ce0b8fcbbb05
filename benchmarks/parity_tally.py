"""What differs between two scorings of the same items."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

TOLERANCE_NATS = 1e-3


class Scores(NamedTuple):
    """What one side says.

    Attributes:
        samples: one line per item and filter, in lm-eval's fields.
        aggregates: by "metric,filter".
        seconds: spent on answering requests.
        output_type: of the task.
        num_cut: requests that lost context, or windows that a text took beyond its first.
    """

    samples: list[dict[str, Any]]
    aggregates: dict[str, float]
    seconds: float
    output_type: str = ""
    num_cut: int = 0


class Tally(NamedTuple):
    """What differs between two sides; a request is an option, a text, or a prompt to continue."""

    num_requests: int = 0
    max_abs_log_likelihood_difference: float = 0.0
    num_greedy_mismatches: int = 0
    num_decision_mismatches: int = 0
    num_generation_mismatches: int = 0
    num_extraction_mismatches: int = 0
    num_metric_mismatches: int = 0
    num_hash_mismatches: int = 0

    @property
    def is_equal(self) -> bool:
        return self.max_abs_log_likelihood_difference <= TOLERANCE_NATS and not any(self[2:])

    def plus(self, other: Tally) -> Tally:
        largest = max(self[1], other[1])
        sums = Tally(*(a + b for a, b in zip(self, other, strict=True)))
        return sums._replace(max_abs_log_likelihood_difference=largest)


def compare(ours: Scores, theirs: Scores) -> Tally:
    """Count what differs.

    Raises:
        ValueError: the two did not score the same items.
    """
    mine = {(line["doc_id"], line["filter"]): line for line in ours.samples}
    peer = {(line["doc_id"], line["filter"]): line for line in theirs.samples}
    if mine.keys() != peer.keys() or not mine:
        raise ValueError(f"ours scored {sorted(mine)}, the peer {sorted(peer)}.")
    first_filter = ours.samples[0]["filter"]
    total = Tally()
    for key, line in mine.items():
        if key[1] == first_filter:
            total = total.plus(_compare_responses(line, peer[key]))
        total = total.plus(_compare_judgements(line, peer[key]))
    aggregates = sum(
        name not in ours.aggregates or not _same(ours.aggregates[name], value)
        for name, value in theirs.aggregates.items()
    )
    return total.plus(Tally(num_metric_mismatches=aggregates + (not theirs.aggregates)))


def _compare_responses(mine: dict[str, Any], peer: dict[str, Any]) -> Tally:
    """One item's raw answers and its prompts."""
    differences, greedy, generations = [0.0], 0, 0
    for (answer,), (expected,) in zip(mine["resps"], peer["resps"], strict=True):
        if isinstance(expected, str):
            generations += answer != expected
            continue
        if isinstance(expected, tuple):
            greedy += bool(answer[1]) != bool(expected[1])
            answer, expected = answer[0], expected[0]
        difference = abs(answer - expected)
        differences.append(difference if math.isfinite(difference) else math.inf)
    hashes = ("doc_hash", "prompt_hash", "target_hash")
    prompts = [[tuple(args) for args in line["arguments"]] for line in (mine, peer)]
    return Tally(
        num_requests=len(peer["resps"]),
        max_abs_log_likelihood_difference=max(differences),
        num_greedy_mismatches=greedy,
        num_decision_mismatches=sum(a != b for a, b in zip(_wins(mine), _wins(peer), strict=True)),
        num_generation_mismatches=generations,
        num_hash_mismatches=sum(mine[h] != peer[h] for h in hashes) + (prompts[0] != prompts[1]),
    )


def _compare_judgements(mine: dict[str, Any], peer: dict[str, Any]) -> Tally:
    """One item's answers through one filter, and its metrics."""
    pairs = zip(mine["filtered_resps"], peer["filtered_resps"], strict=True)
    extracted = sum(a != b for a, b in pairs if isinstance(b, str))
    metrics = sum(not _same(mine.get(name), peer[name]) for name in peer["metrics"])
    return Tally(num_extraction_mismatches=extracted, num_metric_mismatches=metrics)


def _wins(line: dict[str, Any]) -> tuple[int, ...]:
    """Of a choice, which option has the most nats, and the most per character; else nothing."""
    num_options = len(line["doc"].get("choices", ()))
    if not num_options or len(line["resps"]) < num_options:
        return ()
    nats = [answer[0] for (answer,) in line["resps"][:num_options]]
    lengths = [len(text.removeprefix(" ")) for _, text in line["arguments"][:num_options]]
    per_character = [nat / length for nat, length in zip(nats, lengths, strict=True)]
    return nats.index(max(nats)), per_character.index(max(per_character))


def _same(mine: Any, peer: Any) -> bool:
    """Equal; sums and means of log-likelihoods within the tolerance (0 and 1 never are)."""
    if isinstance(peer, tuple | list):
        return len(mine) == len(peer) and all(map(_same, mine, peer))
    if isinstance(peer, str) or mine is None:
        return mine == peer
    return math.isclose(mine, peer, rel_tol=TOLERANCE_NATS, abs_tol=TOLERANCE_NATS)
