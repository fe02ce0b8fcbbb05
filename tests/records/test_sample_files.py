"""The paired verdict from sample files: planted outcomes, every error, and old formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from typer.testing import CliRunner

from rankwise.cli.main import app
from rankwise.errors import ConfigError, DataError, RankwiseError, RecordError, TaskError
from rankwise.findings.stats.estimates import crossed_difference, zero_p_value
from rankwise.records.lm_eval_samples import file_names, read_compared, read_sample_file
from tests.planted.samples import (
    Compared,
    Row,
    compare_samples,
    hashed,
    line,
    outcomes,
    planted,
    scored,
    without,
    write,
)
from tests.support.sentences import Sentences

# numbers


def test_counts_scores_and_exact_p_values(tmp_path: Path) -> None:
    verdicts = planted(tmp_path, (12, 3, 17, 18), (8, 9, 11, 22), (2, 19, 1, 28))
    assert (verdicts.base, verdicts.metric, verdicts.filter) == ("base", "acc", "none")
    assert (verdicts.unit, verdicts.higher_is_better) == ("points", True)
    assert verdicts.warnings == ()
    a, b, c = verdicts.candidates
    assert [each.name for each in (a, b, c)] == ["model0", "model1", "model2"]
    assert (a.of.num_examples, a.of.base_score, a.of.adapted_score) == (50, 40.0, 58.0)
    assert (a.of.num_learned, a.of.num_forgotten, a.of.num_kept_right, a.of.num_kept_wrong) == (
        12,
        3,
        17,
        18,
    )
    assert a.of.difference.estimate == pytest.approx(18.0)
    assert b.of.difference.estimate == pytest.approx(-2.0)
    assert c.of.difference.estimate == pytest.approx(-34.0)
    for row, (learned, forgotten) in zip((a, b, c), ((12, 3), (8, 9), (2, 19)), strict=True):
        exact = stats.binomtest(learned, learned + forgotten).pvalue
        assert row.of.mcnemar_p_value == pytest.approx(exact, rel=1e-12)
        table = [
            [row.of.num_kept_right, row.of.num_forgotten],
            [row.of.num_learned, row.of.num_kept_wrong],
        ]
        assert row.of.mcnemar_p_value == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-12)
    # below 0.05 by itself, and too large among three
    assert a.of.p_value < 0.05
    assert a.of.difference.sign() == 0
    assert [row.verdict for row in (a, b, c)] == ["cannot_tell", "cannot_tell", "worse"]
    alone = planted(tmp_path, (12, 3, 17, 18)).candidates[0]
    assert alone.verdict == "better"
    assert alone.of.mcnemar_p_value == pytest.approx(0.03515625)
    assert alone.of.difference.sign() == 1


def assert_drawn(row: Row, interval: tuple[float, float]) -> None:
    """The bounds are these, as well as 4,096 draws know quantiles of 2 and of 0.4 %."""
    found = row.of.difference
    width = interval[1] - interval[0]
    assert (found.lower, found.upper) == pytest.approx(interval, abs=0.04 * width)


def test_the_interval_is_that_of_one_difference_at_the_level_that_decides(tmp_path: Path) -> None:
    base, candidate = outcomes(12, 3, 17, 18)
    row = planted(tmp_path, (12, 3, 17, 18)).candidates[0]
    difference = 100.0 * (np.array(candidate) - np.array(base))
    estimate = crossed_difference(difference, item_size=100.0)
    # one model, one base: each side errs in at most half of the first look's 4 %
    assert_drawn(row, estimate.interval(0.96))
    assert row.of.difference == row.judged.gain
    assert row.of.stderr == pytest.approx(estimate.stderr)
    files = [tmp_path / "base.jsonl", tmp_path / "model0.jsonl"]
    wide = compare_samples(files[0], files[1:], confidence=0.99).candidates[0]
    assert_drawn(wide, estimate.interval(0.992))
    assert wide.verdict == "cannot_tell"


def test_an_item_of_two_equal_differences_is_not_certain(tmp_path: Path) -> None:
    files = [
        scored(tmp_path / "base.jsonl", [0.5, 0.25], "f1"),
        scored(tmp_path / "a.jsonl", [0.75, 0.5], "f1"),
    ]
    row = compare_samples(files[0], files[1:]).candidates[0]
    assert row.verdict == "cannot_tell"
    assert row.of.p_value > 0.05


@pytest.mark.parametrize("seed", range(20))
def test_a_verdict_and_its_interval_never_contradict_each_other(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.random(100)
    files = [scored(tmp_path / "base.jsonl", base.tolist(), "f1")]
    for place in range(3):
        values = np.clip(base + rng.normal(0.015 * place, 0.05, 100), 0.0, 1.0)
        files.append(scored(tmp_path / f"{place}.jsonl", values.tolist(), "f1"))
    for row in compare_samples(files[0], files[1:]).candidates:
        sign = (
            "better"
            if row.of.difference.lower > 0
            else "worse"
            if row.of.difference.upper < 0
            else "cannot_tell"
        )
        assert row.verdict == sign


def test_the_same_outcomes_are_undecided_for_ever(tmp_path: Path, sentence: Sentences) -> None:
    same, balanced = planted(tmp_path, (0, 0, 20, 30), (8, 8, 12, 22)).candidates
    for row in (same, balanced):
        assert (row.verdict, row.of.p_value) == ("cannot_tell", 1.0)
    sentence(same.sentence, "first")
    sentence(balanced.sentence, "second")


def test_values_that_are_not_right_or_wrong_get_no_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(20.0, 5.0, 80)
    better = base + rng.normal(1.0, 2.0, 80)
    files = [
        scored(tmp_path / "base.jsonl", base.tolist(), "bleu"),
        scored(tmp_path / "a.jsonl", better.tolist(), "bleu"),
    ]
    verdicts = compare_samples(files[0], files[1:])
    row = verdicts.candidates[0]
    assert (verdicts.metric, row.of.mcnemar_p_value, row.of.num_learned) == ("bleu", None, None)
    # of 80 differences the largest is the size of an unseen one
    estimate = crossed_difference(better - base, item_size=float(np.abs(better - base).max()))
    assert row.of.p_value == pytest.approx(zero_p_value(estimate))
    assert row.of.p_value > stats.ttest_rel(better, base).pvalue
    assert row.of.base_score == pytest.approx(base.mean())
    assert row.of.difference.estimate == pytest.approx((better - base).mean())
    assert_drawn(row, estimate.interval(0.96))
    interval = stats.ttest_1samp(better - base, 0.0).confidence_interval(0.96)
    # never narrower than Student's, which is what it is but for skewness and an unseen item
    assert row.of.difference.lower <= interval.low
    assert row.of.difference.upper >= interval.high
    assert row.verdict == "better"
    assert f"{row.of.difference.estimate:.4g} units" in row.sentence
    assert verdicts.warnings[-1].startswith(f"--delta is {0.1 * base.std():.2g}, ")


def test_shares_are_points_and_get_no_counts(tmp_path: Path) -> None:
    files = [
        scored(tmp_path / "base.jsonl", [0.0, 0.25, 0.5, 1.0], "f1"),
        scored(tmp_path / "a.jsonl", [0.5, 0.25, 1.0, 1.0], "f1"),
    ]
    verdicts = compare_samples(files[0], files[1:])
    row = verdicts.candidates[0]
    assert (verdicts.unit, row.of.mcnemar_p_value, row.of.num_kept_right) == ("points", None, None)
    assert (row.of.base_score, row.of.difference.estimate) == (43.75, 25.0)


def test_true_and_false_are_numbers(tmp_path: Path) -> None:
    files = [
        scored(tmp_path / "base.jsonl", [True, False, False, True], "prompt_level_strict_acc"),
        scored(tmp_path / "a.jsonl", [1, 1.0, True, 1], "prompt_level_strict_acc"),
    ]
    row = compare_samples(files[0], files[1:]).candidates[0]
    assert (row.of.num_learned, row.of.num_kept_right, row.of.base_score) == (2, 2, 50.0)


# which is better


def test_less_of_an_error_rate_is_better(tmp_path: Path) -> None:
    files = [
        scored(tmp_path / "base.jsonl", [0.5, 0.75, 1.0, 0.5], "wer"),
        scored(tmp_path / "a.jsonl", [0.25, 0.5, 0.5, 0.25], "wer"),
    ]
    verdicts = compare_samples(files[0], files[1:])
    assert (verdicts.higher_is_better, verdicts.warnings) == (False, ())
    assert verdicts.candidates[0].of.difference.estimate == pytest.approx(31.25)


def with_results(folder: Path, name: str, values: Sequence[float], higher: Any) -> Path:
    results = {"higher_is_better": {"my_task_2": {"gap": higher}}, "results": {}}
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / f"results_{name}-01T00-00-00.5.json").write_text(json.dumps(results))
    (folder / name / "results_2020-01-01T00-00-00.json").write_text("not of this date")
    return scored(folder / name / f"samples_my_task_2_{name}-01T00-00-00.5.jsonl", values, "gap")


def test_the_results_file_beside_says_which_is_better(tmp_path: Path) -> None:
    base = with_results(tmp_path, "2026-01", [0.5, 0.5, 0.25], False)
    other = with_results(tmp_path, "2026-02", [0.0, 0.0, 0.25], None)
    verdicts = compare_samples(base, [other])
    assert verdicts.higher_is_better is False
    assert verdicts.candidates[0].of.difference.estimate > 0
    assert verdicts.warnings == ()
    assert (verdicts.base, verdicts.candidates[0].name) == ("2026-01", "2026-02")


def test_results_files_that_disagree(tmp_path: Path, sentence: Sentences) -> None:
    base = with_results(tmp_path, "2026-01", [0.5, 0.5, 0.25], False)
    other = with_results(tmp_path, "2026-02", [0.0, 0.0, 0.25], True)
    with pytest.raises(RecordError) as caught:
        compare_samples(base, [other])
    sentence(caught.value, names=("gap", "02"))


def test_a_damaged_results_file(tmp_path: Path, sentence: Sentences) -> None:
    base = with_results(tmp_path, "2026-01", [0.5, 0.5, 0.25], False)
    path = base.parent / "results_2026-01-01T00-00-00.5.json"
    path.write_text("{")
    other = scored(tmp_path / "a.jsonl", [0, 1, 1], "gap")
    with pytest.raises(DataError) as caught:
        compare_samples(base, [other])
    sentence(caught.value, names=("results_2026-01-01T00-00-00.5.json",))
    path.write_text("[]")
    (note,) = read_compared(base, [other], None, None).notes
    assert "higher is assumed" in note


def test_an_unknown_direction_is_assumed_and_said(tmp_path: Path, sentence: Sentences) -> None:
    files = [scored(tmp_path / f"{name}.jsonl", [0.1, 0.4, 0.7], "gap") for name in "ab"]
    verdicts = compare_samples(files[0], files[1:])
    assert verdicts.higher_is_better is True
    (warning,) = verdicts.warnings
    sentence(warning, names=("gap",))


def test_a_loss_of_prose_counts_every_token_the_same(tmp_path: Path, sentence: Sentences) -> None:
    def prose(path: Path, losses: Sequence[float], tokens: Sequence[int]) -> Path:
        arguments = {"gen_args_0": {"arg_0": "text"}}
        pairs = enumerate(zip(losses, tokens, strict=True))
        return write(
            path,
            [
                line(i, word_perplexity=[-loss * n, 5], arguments=arguments, loss_nats=loss,
                     num_loss_tokens=n, metrics=["word_perplexity"])
                for i, (loss, n) in pairs
            ],
        )  # fmt: skip

    base = prose(tmp_path / "base.jsonl", [2.0, 3.0, 4.0], [10, 20, 70])
    other = prose(tmp_path / "a.jsonl", [1.5, 2.0, 4.5], [10, 20, 70])
    verdicts = compare_samples(base, [other])
    assert (verdicts.metric, verdicts.unit) == ("loss_nats", "nats")
    assert verdicts.higher_is_better is False
    row = verdicts.candidates[0]
    assert row.of.base_score == pytest.approx((20 + 60 + 280) / 100)
    assert row.of.adapted_score == pytest.approx((15 + 40 + 315) / 100)
    assert row.of.difference.estimate == pytest.approx(row.of.base_score - row.of.adapted_score)
    others = prose(tmp_path / "b.jsonl", [1.5, 2.0, 4.5], [11, 20, 60])
    with pytest.raises(RecordError) as caught:
        compare_samples(base, [others])
    sentence(caught.value)


# the same items


def test_other_documents_under_the_same_number(tmp_path: Path, sentence: Sentences) -> None:
    base = scored(tmp_path / "base.jsonl", [0, 1, 1, 0])
    lines = [line(i, acc=1) for i in range(4)]
    other = write(tmp_path / "a.jsonl", [*lines[:2], *(e | {"doc_hash": "x"} for e in lines[2:])])
    with pytest.raises(RecordError) as raised:
        compare_samples(base, [other])
    sentence(raised.value, names=(base, other, "doc_id"))


def test_other_answers_are_refused_and_other_prompts_are_said(
    tmp_path: Path, sentence: Sentences
) -> None:
    base = scored(tmp_path / "base.jsonl", [0, 1, 1, 0])
    lines = [line(i, acc=1) for i in range(4)]
    other = write(tmp_path / "a.jsonl", [*lines[:3], lines[3] | {"target_hash": "y"}])
    with pytest.raises(RecordError) as caught:
        compare_samples(base, [other])
    sentence(caught.value)
    other = write(
        tmp_path / "a.jsonl", [*lines[:1], *(e | {"prompt_hash": "y"} for e in lines[1:])]
    )
    assert compare_samples(base, [other]).warnings == (
        f"{other}: prompts differ on 3 of 4 items, so model and prompt are compared together",
    )


def test_without_hashes_the_parts_themselves_are_compared(
    tmp_path: Path, sentence: Sentences
) -> None:
    hashes = ("doc_hash", "prompt_hash", "target_hash")
    base = scored(tmp_path / "base.jsonl", [0, 1, 1, 0])
    lines = without([line(i, acc=1) for i in range(4)], *hashes)

    def compared(**changes: Any) -> Compared:
        return compare_samples(
            base, [write(tmp_path / "a.jsonl", [*lines[:3], lines[3] | changes])]
        )

    assert compared().warnings == ()
    # key order is no difference; before 0.4.3 arguments were lists and targets what they were
    same = {"answer": "0", "question": "question 3"}
    assert compared(doc=same, target=0, arguments=[["question 3", {}]]).warnings == ()
    with pytest.raises(RecordError) as caught:
        compared(doc={"question": "question 3", "answer": "1"})
    sentence(caught.value, "first")
    with pytest.raises(RecordError, match="different right answers"):
        compared(target=1)
    (warning,) = compared(arguments=[["Question 3", {}]]).warnings
    sentence(warning, "second")


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    lines = [{"doc_id": i, "acc": i % 2} for i in range(4)]
    base, other = (write(tmp_path / f"{name}.jsonl", lines) for name in ("base", "a"))
    verdicts = compare_samples(base, [other])
    assert verdicts.candidates[0].of.num_kept_right == 2
    assert verdicts.warnings == (
        f"{other}: 4 of 4 items have neither a doc_hash nor a doc in both files; it is "
        "assumed that equal doc_ids mean equal documents",
    )


def test_models_are_compared_on_the_items_that_both_have(
    tmp_path: Path, sentence: Sentences
) -> None:
    base = scored(tmp_path / "base.jsonl", [0, 1, 1, 0])
    shorter = scored(tmp_path / "a.jsonl", [1, 1, 1])
    verdicts = compare_samples(base, [shorter])
    assert verdicts.warnings == (
        "task: 3 of 4 items are scored by every model, and these are compared; a lacks 1",
    )
    (row,) = verdicts.candidates
    assert (row.of.num_examples, row.of.num_learned, row.of.num_kept_right) == (3, 1, 2)
    one = scored(tmp_path / "one.jsonl", [1])
    with pytest.raises(DataError) as caught:
        compare_samples(one, [scored(tmp_path / "two.jsonl", [0])])
    sentence(caught.value, names=("task",))


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    lines = [line(i, acc=i % 3 == 0) for i in range(9)]
    base = write(tmp_path / "base.jsonl", lines)
    other = write(tmp_path / "a.jsonl", lines[::-1])
    row = compare_samples(base, [other]).candidates[0]
    assert (row.of.num_learned, row.of.num_forgotten, row.of.num_kept_right) == (0, 0, 3)


# metrics and filters


def two_filters(path: Path, strict: Sequence[int], flexible: Sequence[int]) -> Path:
    lines = [line(i, exact_match=v, filter="strict-match") for i, v in enumerate(strict)]
    lines += [line(i, exact_match=v, filter="flexible-extract") for i, v in enumerate(flexible)]
    return write(path, lines)


def test_the_first_filter_is_taken_and_the_others_are_named(
    tmp_path: Path, sentence: Sentences
) -> None:
    base = two_filters(tmp_path / "base.jsonl", [0, 0, 1], [0, 1, 1])
    other = two_filters(tmp_path / "a.jsonl", [1, 1, 1], [0, 0, 1])
    verdicts = compare_samples(base, [other])
    assert (verdicts.filter, verdicts.candidates[0].of.num_learned) == ("strict-match", 2)
    assert verdicts.warnings == (
        f"{base} has results of several filters; compared is 'strict-match', the others are "
        "flexible-extract (--filter)",
    )
    verdicts = compare_samples(base, [other], filter_name="flexible-extract")
    assert (verdicts.warnings, verdicts.candidates[0].of.num_forgotten) == ((), 1)
    with pytest.raises(TaskError) as raised:
        compare_samples(base, [other], filter_name="strict")
    sentence(raised.value, "first", names=(base, "strict", "--filter"))
    single = write(tmp_path / "b.jsonl", [line(i, exact_match=1) for i in range(3)])
    with pytest.raises(TaskError) as caught:
        compare_samples(base, [single])
    sentence(caught.value, "b.jsonl", names=("b.jsonl", "strict-match"))


def test_the_first_metric_that_is_one_number_everywhere(
    tmp_path: Path, sentence: Sentences
) -> None:
    def file(name: str, **last: Any) -> Path:
        lines = [line(i, pair=[-1.0, 3], acc=i % 2, acc_norm=1.0) for i in range(3)]
        return write(tmp_path / f"{name}.jsonl", [*lines[:2], lines[2] | last])

    base, other = file("base"), file("a")
    assert compare_samples(base, [other]).metric == "acc"
    assert compare_samples(base, [other], metric="acc_norm").metric == "acc_norm"
    for value in (None, "1.0", float("nan"), float("inf"), [1.0], 10**400):
        assert compare_samples(base, [file("b", acc=value)]).metric == "acc_norm", value
        assert compare_samples(file("b", acc=value), [other]).metric == "acc_norm", value
    with pytest.raises(TaskError) as raised:
        compare_samples(base, [other], metric="pair")
    sentence(raised.value, "pair", names=("pair", "none", base, "acc_norm"))
    with pytest.raises(TaskError) as caught:
        compare_samples(base, [other], metric="f1")
    sentence(caught.value, "f1", names=("f1",))
    third = scored(tmp_path / "c.jsonl", [1, 1, 1], "em")
    with pytest.raises(TaskError) as caught:
        compare_samples(base, [third])
    sentence(caught.value, "third")


def with_options(path: Path, ahead: Sequence[float]) -> Path:
    """Items of two options, the first right and so many nats ahead, as lm-eval writes them."""
    return write(
        path,
        [
            line(index, acc=float(nats >= 0.0))
            | {
                "target": "0",
                "target_hash": hashed("0"),
                "arguments": {
                    f"gen_args_{i}": {"arg_0": f"question {index}", "arg_1": f" {option}"}
                    for i, option in enumerate(("yes", "no"))
                },
                "resps": [[[str(nats - 5.0), "False"]], [["-5.0", "False"]]],
            }
            for index, nats in enumerate(ahead)
        ],
    )


def test_options_are_compared_by_p_right_with_accuracy_beside_it(
    tmp_path: Path, sentence: Sentences
) -> None:
    base = with_options(tmp_path / "base.jsonl", [0.5] * 20 + [-2.0] * 20)
    other = with_options(tmp_path / "a.jsonl", [3.0] * 17 + [-0.1] * 3 + [-1.0] * 20)
    verdicts = compare_samples(base, [other])
    assert (verdicts.metric, verdicts.unit, verdicts.higher_is_better) == (
        "p_right",
        "points",
        True,
    )
    assert verdicts.warnings == ()
    (row,) = verdicts.candidates

    def mean(*nats: tuple[int, float]) -> float:
        return sum(100 * count / (1 + np.exp(-ahead)) for count, ahead in nats) / 40

    assert row.of.base_score == pytest.approx(mean((20, 0.5), (20, -2.0)))
    assert row.of.adapted_score == pytest.approx(mean((17, 3.0), (3, -0.1), (20, -1.0)))
    assert row.verdict == "better"
    plain = compare_samples(base, [other], metric="acc")
    (known,) = plain.candidates
    assert (plain.metric, known.of.accuracy) == ("acc", None)
    assert row.of.mcnemar_p_value == known.of.mcnemar_p_value is not None
    assert row.of.accuracy is not None
    assert row.of.accuracy.base_score == known.of.base_score
    assert row.of.accuracy.difference.estimate == known.of.difference.estimate
    assert row.of.accuracy.adapted_score == known.of.adapted_score
    assert row.of.accuracy.is_opposite
    assert (row.of.num_learned, row.of.num_forgotten, row.of.num_kept_right) == (0, 3, 17)
    sentence(row.sentence, "first")
    assert any("By accuracy" in reason and "−7.5 points" in reason for reason in verdicts.reasons)
    assert not any("accuracy, each" in reason for reason in plain.reasons)
    # a file whose answers were not logged
    no_answers = scored(tmp_path / "b.jsonl", [1.0] * 40)
    lines = [json.loads(text) | {"target": "0"} for text in no_answers.read_text().splitlines()]
    write(no_answers, without(lines, "target_hash"))
    assert compare_samples(base, [no_answers]).metric == "acc"
    with pytest.raises(TaskError) as caught:
        compare_samples(base, [no_answers], metric="p_right")
    sentence(caught.value, "p_right", names=("p_right",))


@pytest.mark.parametrize("requests", [{"gen_args_0": []}, [[], []], [["a"], []], "none", 7])
def test_requests_that_hold_nothing_tell_no_right_option(tmp_path: Path, requests: Any) -> None:
    answers = {"resps": [[["-0.5", "False"]], [["-1.5", "False"]]], "arguments": requests}
    files = [
        write(tmp_path / f"{name}.jsonl", [line(i, acc=float(i % 2)) | answers for i in range(4)])
        for name in ("base", "a")
    ]
    assert compare_samples(files[0], files[1:]).metric == "acc"


def test_lines_that_do_not_name_their_metrics(tmp_path: Path) -> None:
    """Of lm-eval before 0.4.7, and of other programs in its layout."""
    lines = without([line(i, acc=i % 2, acc_norm=1) for i in range(4)], "metrics", "filter")
    base, other = (write(tmp_path / f"{name}.jsonl", lines) for name in ("base", "a"))
    verdicts = compare_samples(base, [other])
    assert (verdicts.metric, verdicts.filter) == ("acc", "none")
    assert compare_samples(base, [other], metric="acc_norm").metric == "acc_norm"
    newer = scored(tmp_path / "b.jsonl", [1, 1, 0, 0])
    assert compare_samples(base, [newer]).candidates[0].of.num_kept_right == 1


def test_several_filters_that_are_not_named_cannot_be_told_apart(
    tmp_path: Path, sentence: Sentences
) -> None:
    """gsm8k of lm-eval before 0.4.7."""
    path = two_filters(tmp_path / "base.jsonl", [0, 0, 1], [0, 1, 1])
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    write(path, without(lines, "filter", "metrics"))
    with pytest.raises(DataError) as caught:
        read_sample_file(path)
    sentence(caught.value, names=("doc_id", "0.4.7"))


def test_files_of_a_single_json_array(tmp_path: Path, sentence: Sentences) -> None:
    """Of lm-eval 0.4.0 to 0.4.2."""
    lines = without(
        [line(i, acc=i % 2) | {"arguments": [[f"question {i}", {}]]} for i in range(4)],
        "metrics", "filter", "doc_hash", "prompt_hash", "target_hash",
    )  # fmt: skip
    base, other = tmp_path / "m_arc.jsonl", tmp_path / "n_arc.jsonl"
    for path in (base, other):
        path.write_text(json.dumps(lines, indent=2))
    newer = scored(tmp_path / "b.jsonl", [1, 1, 0, 0])
    verdicts = compare_samples(base, [other, newer])
    assert verdicts.warnings == ()
    assert [row.of.num_learned for row in verdicts.candidates] == [0, 1]
    base.write_text(json.dumps([lines[0], 3]))
    with pytest.raises(DataError) as caught:
        read_sample_file(base)
    sentence(caught.value, names=("m_arc.jsonl",))


def test_texts_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    lines = [line(i, acc=1) | {"doc": {"text": "a\u2028b\u0085c\x0b"}} for i in range(2)]
    text = "\n\n".join(json.dumps(each, ensure_ascii=False) for each in lines)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
    assert len(read_sample_file(path).filters["none"]) == 2


# files that are no sample files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "x.jsonl is empty"),
        (b"\n \n", "x.jsonl is empty"),
        (b"[]", "x.jsonl is empty"),
        (b'{"doc_id": 0, "acc": 1}\n{"doc_id": 1, "ac', "x.jsonl, line 2: not JSON"),
        (b"doc_id,acc\n0,1\n", "x.jsonl, line 1: not JSON"),
        (b"[1, 2", "x.jsonl: not JSON"),
        (b'{"doc_id": 0, "acc": 1}\n\n7\n', "x.jsonl, line 3: '7' is not a JSON object"),
        (b'{"acc": 1}\n', "x.jsonl, line 1: doc_id is None, not a whole number"),
        (b'{"doc_id": "0"}\n', "line 1: doc_id is '0', not a whole number"),
        (b'{"doc_id": true}\n', "line 1: doc_id is True, not a whole number"),
        (b'{"doc_id": 0, "filter": "none"}\n' * 2, "line 2: doc_id 0 occurs twice: a file has"),
        (b"\xff\xfe", "x.jsonl cannot be read"),
        (b"[" * 100_000, "x.jsonl: not JSON"),
    ],
)
def test_a_file_that_is_no_sample_file(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    good = scored(tmp_path / "good.jsonl", [0, 1])
    for files in ((path, [good]), (good, [path])):
        with pytest.raises(DataError) as raised:
            compare_samples(*files)
        assert says in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path, sentence: Sentences) -> None:
    good = scored(tmp_path / "good.jsonl", [0, 1])
    with pytest.raises(DataError) as caught:
        compare_samples(good, [tmp_path / "nowhere.jsonl"])
    sentence(caught.value, names=("nowhere.jsonl",))
    with pytest.raises(DataError, match="cannot be read"):
        compare_samples(good, [tmp_path])


@pytest.mark.parametrize("confidence", [0.5, 1.0, 95.0, float("nan")])
def test_a_confidence_that_is_none(tmp_path: Path, confidence: float, sentence: Sentences) -> None:
    files = [scored(tmp_path / f"{name}.jsonl", [0, 1]) for name in "ab"]
    with pytest.raises(ConfigError) as caught:
        compare_samples(files[0], files[1:], confidence=confidence)
    sentence(caught.value, names=("0.5",))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.jsonl", "b.json"], ["a", "b"]),
        (["base/eval/c.samples.jsonl", "runs/x/eval/c.samples.jsonl"], ["base", "runs/x"]),
        (["m1/samples_a_b_2026-01.jsonl", "m2/samples_a_b_2026-02.jsonl"], ["m1", "m2"]),
        (["x/m/samples_a_2026-01.jsonl", "y/m/samples_a_2026-02.jsonl"], ["x", "y"]),
        (["m/samples_a_1.jsonl", "m/samples_a_2.jsonl"], ["samples_a_1", "samples_a_2"]),
        (["m/samples_a_1.jsonl", "other.jsonl"], ["m", "other"]),
        (["c.jsonl", "x/c.jsonl"], ["c.jsonl", "x/c.jsonl"]),
        (["c.jsonl", "c.json"], ["c.jsonl", "c.json"]),
    ],
)
def test_every_file_gets_a_name_of_its_own(paths: list[str], names: list[str]) -> None:
    assert list(file_names([Path("folder") / path for path in paths])) == names


def test_a_file_given_twice(tmp_path: Path, sentence: Sentences) -> None:
    path = scored(tmp_path / "a.jsonl", [0, 1])
    with pytest.raises(DataError) as caught:
        compare_samples(path, [tmp_path / "." / "a.jsonl"])
    sentence(caught.value, names=("a.jsonl",))


# the command


def rankwise(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["verdict", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_command_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr("rankwise.cli.application.stdout.width", 200)
    planted(tmp_path, (40, 10, 500, 450), (21, 16, 494, 469))
    names = [tmp_path / f"{name}.jsonl" for name in ("base", "model0", "model1")]
    done = rankwise(*names)
    assert (done.exit_code, done.stderr) == (0, "")
    sentence(words(done.stdout), names=("+3.0", "+0.5", "use this"))
    row = next(line for line in done.stdout.splitlines() if line.startswith("model0"))
    assert row.split() == ["model0", "54.0", "+3.0", "±1.7", "40", "10", "<-", "use", "this"]


def test_the_command_as_json_is_one_object_with_the_warnings(tmp_path: Path) -> None:
    base = two_filters(tmp_path / "base.jsonl", [0, 0, 1], [0, 1, 1])
    other = two_filters(tmp_path / "a.jsonl", [1, 1, 1], [0, 0, 1])
    done = rankwise(base, other, "--json")
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    expected = compare_samples(base, [other])
    assert done.stderr == f"warning: {expected.warnings[0]}\n"
    assert answer["schema_version"] == 1
    (found,) = answer["by_train_task"]
    (row,) = expected.candidates
    assert found["verdicts"] == [row.judged.model_dump(mode="json")]
    assert found["comparisons"] == [row.of.model_dump(mode="json")]
    assert found["verdicts"][0]["label"] == "a"


def test_the_command_takes_its_options(tmp_path: Path) -> None:
    lines = [line(i, acc=0, em=i % 2, filter=f) for f in ("none", "short") for i in range(9)]
    files = [write(tmp_path / f"{name}.jsonl", lines) for name in "ab"]
    options = ("--metric", "em", "--filter", "short", "--confidence", "0.9", "--json")
    done = rankwise(*files, *options)
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    (found,) = answer["by_train_task"]
    assert (found["in_domain_metric"], found["confidence"]) == ("em", 0.9)


def test_what_is_wrong_with_the_input_exits_with_2(tmp_path: Path) -> None:
    good = scored(tmp_path / "good.jsonl", [0, 1])
    other = scored(tmp_path / "other.jsonl", [0, 1, 1])
    bad = write(tmp_path / "bad.jsonl", [3])
    calls: list[tuple[tuple[object, ...], type[RankwiseError] | None]] = [
        ((good,), None),
        ((), None),
        ((good, tmp_path / "nowhere.jsonl"), DataError),
        ((good, bad), DataError),
        ((good, good), DataError),
        ((good, scored(tmp_path / "one.jsonl", [0])), DataError),
        ((good, other, "--metric", "f1"), TaskError),
        ((good, other, "--filter", "strict"), TaskError),
        ((good, other, "--confidence", "95"), ConfigError),
        ((good, other, "--confidence", "high"), None),
    ]
    for arguments, error in calls:
        done = rankwise(*arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments
        if error is not None:
            assert done.stderr.startswith(f"{error.__name__}: "), arguments


def test_names_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    files = [scored(tmp_path / name / "[bold]m.jsonl", [0, 1]) for name in ("[red]x", "[red]y")]
    done = rankwise(*files)
    assert done.exit_code == 0, done.output
    assert "\n[red]y " in done.stdout
