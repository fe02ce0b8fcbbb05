"""Items that a model did not answer, estimated from reference runs that answered all of them.

Every model of a study answers the same items, and runs that were trained alike change alike. So
one or two reference runs answer all N items of a task, and another run a random part of n. What it
would say of the others is predicted from the references, and the answers correct the prediction:
the mean of these pseudo-items is unbiased whatever the prediction is worth. The sources and the
variance are in docs/methods/reference.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rankwise.findings.stats.items import Clusters, Floats

MIN_SCORED = 100
"""Items that a model has to answer: with fewer, too little is known of its errors."""

NUM_FOLDS = 10
"""A prediction of an answer must not have seen it: it is made from the other nine folds."""

RIDGE = 1.0
"""The penalty, in items: every slope of a standardised predictor shrinks as if one more item had
shown none. It is the same for all models, so the lead of one over another is estimated as if it
were an answer."""


class Estimated(NamedTuple):
    """(N,) pseudo-items in the unit of the answers, and how well their changes are predicted.

    ``r_squared`` is that of the cross-fitted prediction of the change from the base, on the items
    that were answered: 1 - mean squared error / variance. It is 0 where no item changed.
    """

    values: Floats
    r_squared: float


def pseudo_items(
    base: Floats, references: Floats, scored: Floats, clusters: Clusters | None = None
) -> Estimated:
    """What a model is estimated to say of all N items, of which it answered the first n.

    Item i becomes base_i + m_i, and where it was answered N/n times (answer_i - base_i - m_i) is
    added, m being the predicted change: a ridge regression on the base's value and the references'
    changes. It is cross-fitted over folds of the answered items (of clusters). Where all were
    answered these are the answers. Nothing is random.

    Args:
        base: (N,) the base's values.
        references: (k, N) those of the references, chosen before any answer was seen; k may be 0.
        scored: (n,) the answers, a random part of the N items, whatever their clusters.
        clusters: (N,) of each item; None where they are independent.

    Raises:
        ValueError: shapes that do not agree, a number that is not finite, fewer than ``MIN_SCORED``
            answers, or all of one cluster.
    """
    total, number = len(base), len(scored)
    if references.ndim != 2 or references.shape[1] != total or number > total:
        raise ValueError(
            f"base {base.shape}, references {references.shape} and scored {scored.shape} "
            "are not of the same items"
        )
    if not all(np.isfinite(values).all() for values in (base, references, scored)):
        raise ValueError("a value is not a finite number")
    labels = np.arange(total) if clusters is None else clusters
    drawn, firsts, places = np.unique(labels[:number], return_index=True, return_inverse=True)
    if number < MIN_SCORED or len(drawn) < 2:
        raise ValueError(
            f"{number} items in {len(drawn)} clusters were scored; "
            f"at least {MIN_SCORED} are needed, in two clusters"
        )
    num_folds = min(NUM_FOLDS, len(drawn))
    folds = firsts.argsort().argsort()[places] % num_folds  # in the order of their first item
    changes = scored - base[:number]
    predictors = np.vstack([references - base, base])
    predictors = predictors - predictors.mean(axis=1, keepdims=True)
    sd = predictors.std(axis=1, keepdims=True)
    predictors = predictors / np.where(sd > 0, sd, 1.0)  # constant ones are 0
    is_of = (folds == np.arange(num_folds)[:, None]).astype(np.float64)
    by_fold = _predicted_without(is_of, predictors, changes)
    predicted = by_fold[folds, np.arange(number)]
    errors = changes - predicted
    # by their sizes: what a fold is predicted to add is what its own answers correct
    unseen = is_of.mean(axis=1) @ by_fold[:, number:]
    values = base + np.concatenate([predicted + total / number * errors, unseen])
    variance = float(changes.var())
    explained = 1.0 - float((errors**2).mean()) / variance if variance > 0 else 0.0
    return Estimated(values, explained)


def _predicted_without(is_of: Floats, predictors: Floats, changes: Floats) -> Floats:
    """(folds, N): the change of every item, from the answers that are not of each fold.

    Args:
        is_of: (folds, n), 1 where an answer is of the fold.
        predictors: (p, N), standardised.
        changes: (n,) that are answered.
    """
    (num_folds, number), count = is_of.shape, len(predictors)
    known = predictors[:, :number]
    products = np.vstack([np.ones(number), known, known * changes, changes])
    squares = (known[:, None] * known).reshape(-1, number)
    # (folds, ...): sums over the answers of all other folds
    sums, of_squares = ((1.0 - is_of) @ rows.T for rows in (products, squares))
    sizes, means = sums[:, :1], sums[:, 1 : count + 1] / sums[:, :1]
    with_changes, mean = sums[:, count + 1 : -1], sums[:, -1:] / sizes
    apart = sizes[..., None] * means[..., None] * means[:, None]
    moments = of_squares.reshape(num_folds, count, count) - apart + RIDGE * np.eye(count)
    slopes = np.linalg.solve(moments, (with_changes - sizes * means * mean)[..., None])[..., 0]
    return mean - (slopes * means).sum(axis=1, keepdims=True) + slopes @ predictors
