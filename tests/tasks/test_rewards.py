"""Rewards of texts: planted answers, what TRL's trainer computes, and functions that fail."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from rankwise.errors import DataError, RankwiseError, RewardError, TaskError
from rankwise.records.config.objectives import Reward
from rankwise.records.config.own_rows import ColumnsConfig
from rankwise.tasks import own_code
from rankwise.tasks.rewards import Rewards, RowReader, Scale, StepRewards, advantages
from rankwise.tasks.training_rows import AskedRow
from tests.support.sentences import Sentences

ROW = {"prompt": "What is 2 + 3?", "completion": "5", "level": 1}


def asked(row: dict[str, Any] = ROW, completion: str = "5") -> AskedRow:
    return AskedRow(json.dumps(row), completion, 2, 8)


def made(rewards: Sequence[Any], rows: Sequence[AskedRow] = (asked(),), **options: Any) -> Rewards:
    configs = [TypeAdapter(Reward).validate_python(each) for each in rewards]
    return Rewards(configs, rows, **{"allow_code": True, **options})


def function(
    folder: Path, body: str, head: str = "def score(prompts, completions, **columns)"
) -> str:
    (folder / "mine.py").write_text(f"import math\nimport numpy as np\n{head}:\n    {body}\n")
    return f"{folder / 'mine.py'}:score"


def given(folder: Path, body: str, texts: Sequence[str] = ("a", "bb"), **options: Any) -> Any:
    rows = options.pop("rows", [asked()] * len(texts))
    rewards = made([{"code": function(folder, body)}], rows, **options)
    return rewards(rows, texts, [[ord(letter) for letter in text] for text in texts])[0]


def test_checks_are_rewards_with_weights() -> None:
    right = json.dumps({"year": 1815, "name": "Ada"})
    rewards = made(
        [
            "json",
            "exact",
            "contains",
            {"check": "rouge", "weight": 0.5},
            {"regex": {"must": ["Ada"]}, "weight": -1.0},
            {"regex": {"must": ["Eve"]}},
        ],
        rows := [asked(completion=right)],
    )
    assert rewards.names == ("json", "exact", "contains", "rouge", "regex", "regex_2")
    assert rewards.weights == (1.0, 1.0, 1.0, 0.5, -1.0, 1.0)
    texts = [f" {right}\n", '{"year": 1815.0, "name": "Ada"}', "no"]
    found = rewards(rows * 3, texts, [[1]] * 3)
    assert found[0] == [1.0, 1.0, 0.0]
    assert found[1] == [1.0, 0.0, 0.0]
    assert found[2] == [1.0, 0.0, 0.0]
    assert found[3][0] == 1.0
    assert found[4:] == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_any_number_of_a_check_can_be_the_reward() -> None:
    rows = [asked(completion=json.dumps({"year": 1815, "name": "Ada"}))]
    partial = [
        {"check": "json", "metric": "fields_correct", "weight": 0.8},
        {"check": "json", "metric": "json_valid", "weight": 0.2},
    ]
    rewards = made(partial, rows)
    assert rewards.names == ("fields_correct", "json_valid")
    found = rewards(rows * 3, ['{"year": 1815}', "{}", "year: 1815"], [[1]] * 3)
    assert found == [[0.5, 0.0, 0.0], [1.0, 1.0, 0.0]]
    totals, _ = advantages(found, rewards.weights, 3, "group")
    assert totals == pytest.approx([0.6, 0.2, 0.0])
    assert rewards.content != made(["json", "json"], rows).content
    with pytest.raises(DataError, match="no number fields; name one of all_correct, fields_corr"):
        made([{"check": "json", "metric": "fields"}], rows)
    with pytest.raises(ValueError, match="gives one number"):
        made([{"code": "mine.py:score", "metric": "score"}])


def test_numbers_are_compared_with_the_row() -> None:
    rows = [asked(completion="so\n#### 5"), asked(completion="#### 1,000")]
    assert made(["number"], rows)(rows, ["#### 5", "#### 999"], [[1]] * 2) == [[1.0, 0.0]]


def test_a_function_gets_the_batch_as_trl_gives_it(tmp_path: Path) -> None:
    rows = [asked(), asked({"prompt": "And 1 + 1?", "hint": "two"})]
    body = (
        "assert prompts == ['What is 2 + 3?', 'And 1 + 1?'] and completions == ['5', '22']\n"
        "    assert columns['level'] == [1, None] and columns['hint'] == [None, 'two']\n"
        "    assert columns['completion_ids'] == [[53], [50, 50]]\n"
        "    assert not {'prompt', 'completion'} & {*columns}\n"
        "    columns['log_metric']('length', 1.0)\n"
        "    columns['log_extra']('seen', completions)\n"
        "    return [np.float32(0.5), None]"
    )
    assert given(tmp_path, body, ("5", "22"), rows=rows) == [0.5, None]


TURNS = [{"role": "system", "content": "Short."}, {"role": "user", "content": "2 + 3?"}]
ANSWER = {"role": "assistant", "content": "5"}


def test_a_function_that_asks_for_it_gets_the_right_answers(tmp_path: Path) -> None:
    head = "def score(completions, completion, **columns)"
    code = function(
        tmp_path, "return [float(x == y) for x, y in zip(completions, completion)]", head
    )
    rows = [asked(), asked(completion="7 ")]
    assert made([{"code": code}], rows)(rows, ["5", "7"], [[1], [2]]) == [[1.0, 1.0]]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS, "completion": [ANSWER]},
        {"messages": [*TURNS, ANSWER]},
        {
            "conversations": [
                {"from": "system", "value": "Short."},
                {"from": "human", "value": "2 + 3?"},
                {"from": "gpt", "value": "5"},
            ]
        },
    ],
)
def test_conversations_are_given_as_turns(tmp_path: Path, row: dict[str, Any]) -> None:
    body = (
        f"assert prompts == [{TURNS}]\n"
        "    return [float(completions == [[{'role': 'assistant', 'content': 'five'}]])]"
    )
    assert given(tmp_path, body, ("five",), rows=[asked(row)]) == [1.0]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "Q", "answer": "5"}, None),
        ({"instruction": "Q", "input": "x", "output": "5"}, None),
        (
            {"Frage": "Q", "prompt": "P", "Antwort": "5"},
            {"prompt": "Frage", "completion": "Antwort"},
        ),
    ],
)
def test_the_prompt_is_the_column_that_is_read_as_one(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str] | None
) -> None:
    wanted = None if columns is None else ColumnsConfig(**columns)
    body = "return [float(prompts == ['Q'])]"
    assert given(tmp_path, body, ("5",), rows=[asked(row)], columns=wanted) == [1.0]


def test_the_content_says_what_runs_and_not_where(tmp_path: Path) -> None:
    def content(folder: str, number: int, weight: float = 1.0) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        code = function(tmp_path / folder, f"return [{number}] * len(prompts)")
        return made([{"code": code, "weight": weight}]).content

    assert content("a", 1) == content("b", 1)
    assert (
        len({content("a", 1), content("a", 2), content("a", 1, 2.0), made(["exact"]).content}) == 4
    )


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("return [1.0]", ("mine.py:score", "'a'", "1 rewards", "2 texts")),
        ("return [1.0, math.nan]", ("mine.py:score", "'bb'", "2 + 3", "nan")),
        ("return [math.inf, 1.0]", ("mine.py:score", "'a'", "2 + 3", "inf")),
        ("return [1.0, '0.5']", ("mine.py:score", "'bb'", "2 + 3", "0.5")),
        ("return [np.ones(2), 1.0]", ("mine.py:score", "'a'", "2 + 3")),
        ("return 1.0", ("mine.py:score", "'a'", "TypeError")),
        ("return [1 / (len(c) - 2) for c in completions]", ("'bb'", "2 + 3", "ZeroDivisionError")),
        ("return [{}[len(completions)]] if len(completions) > 1 else [1.0]", ("'a'", "KeyError")),
        ("raise SystemExit(3)", ("'a'", "SystemExit: 3")),
        ("return [1e308, -1e308]", ("mine.py:score", "'a'", "1e+308", "1e+15")),
    ],
)
def test_what_is_no_reward_names_function_row_and_text(
    tmp_path: Path, body: str, names: tuple[str, ...], sentence: Sentences
) -> None:
    with pytest.raises(RewardError) as caught:
        given(tmp_path, body)
    sentence(caught.value, names=names)


def test_a_function_that_does_not_end_is_called_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(own_code, "MOST_SECONDS", 0.2)
    with pytest.raises(RewardError) as caught:
        given(tmp_path, "open(__file__ + '.calls', 'a').write('x')\n    while True: pass")
    sentence(caught.value, names=("mine.py:score", "0.2"))
    assert (tmp_path / "mine.py.calls").read_text() == "x"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("async def score(prompts, completions, **columns)", TaskError),
        ("def score(prompts, completions)", TaskError),
        ("def score(prompts, completions, schema, **columns)", TaskError),
        ("def other(prompts, completions, **columns)", TaskError),
    ],
)
def test_functions_that_trl_could_not_call_are_refused_at_once(
    tmp_path: Path, head: str, kind: type[RankwiseError], sentence: Sentences
) -> None:
    with pytest.raises(kind) as caught:
        made([{"code": function(tmp_path, "return [1.0] * len(prompts)", head)}])
    sentence(caught.value, names=("mine.py:score",))


def test_code_runs_with_a_yes_only(tmp_path: Path) -> None:
    code = function(tmp_path, "return [1.0]", "raise SystemExit\ndef score(**columns)")
    with pytest.raises(DataError, match="is code"):
        made([{"code": code}], allow_code=False)


def test_rows_that_no_reward_can_read_are_refused_at_once(
    tmp_path: Path, sentence: Sentences
) -> None:
    with pytest.raises(DataError) as no_json:
        made(["json"], [asked(completion="{}"), asked(completion="five")])
    code = function(tmp_path, "return [1.0]")
    with pytest.raises(DataError) as no_prompt:
        made([{"code": code}], [asked({"number": 5})])
    sentence(f"{no_json.value}\n{no_prompt.value}", names=("training row 1", "training row 0"))


@pytest.mark.thorough
def test_trl_calls_a_reward_with_the_same_names_and_values() -> None:
    """Its method is called by itself, on what of its trainer the method reads."""
    grpo = pytest.importorskip("trl.trainer.grpo_trainer")
    seen: list[dict[str, Any]] = []

    def reward(**columns: Any) -> list[float]:
        seen.append(columns)
        return [0.0] * len(columns["prompts"])

    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=True),
        args=SimpleNamespace(report_to=[]),
        environments=None,
        reward_func_names=["reward"],
        reward_funcs=[reward],
        reward_processing_classes=[None],
        state=SimpleNamespace(global_step=1),
        _log_completion_extra=None,
        _log_metric=None,
    )
    rows = [asked(), asked({"prompt": TURNS, "completion": [ANSWER], "level": 2})]
    for row, completion in zip(rows, ("6", [{"role": "assistant", "content": "6"}]), strict=True):
        content = json.loads(row.row)
        grpo.GRPOTrainer._calculate_rewards(
            trainer, [content], [content["prompt"]], [completion], [[54]]
        )
        ours = RowReader.of(rows, None).given([row], ["6"], [[54]])
        not_compared = dict.fromkeys(("log_extra", "log_metric", "trainer_state"))
        assert ours | not_compared == seen[-1] | not_compared


def planted(rng: random.Random) -> list[list[float | None]]:
    """Two rewards of six groups of four texts, Nones included; one group has none at all."""
    values = [0.0, 0.25, 1.0, -2.0, None, None]
    found = [[rng.choice(values) for _ in range(24)] for _ in range(2)]
    for each in found:
        each[4:8] = [None] * 4
        each[8:12] = [0.3] * 4
        each[12:16] = [None, None, 1.0, None]
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_trl(scale: Scale) -> None:
    """TRL computes them within one long method: its standard deviation is called, and the lines
    around it (GRPOTrainer._generate_and_score_completions of TRL 1.16) are written again here."""
    torch = pytest.importorskip("torch")
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    weights, size = (1.0, 0.5), 4
    for seed in range(50):
        ours = planted(random.Random(seed))
        totals, found = advantages(ours, weights, size, scale)

        of_functions = torch.tensor(
            [
                [float("nan") if each is None else each for each in pair]
                for pair in zip(*ours, strict=True)
            ],
            dtype=torch.float64,
        )
        rewards = (of_functions * torch.tensor(weights).unsqueeze(0)).nansum(dim=1)
        rewards[torch.isnan(of_functions).all(dim=1)] = torch.nan
        groups = rewards.view(-1, size)
        wanted = rewards - torch.nanmean(groups, dim=1).repeat_interleave(size)
        if scale == "batch":
            wanted = wanted / (nanstd(rewards).expand_as(rewards) + 1e-4)
        elif scale == "group":
            wanted = wanted / (nanstd(groups, dim=1).repeat_interleave(size) + 1e-4)
        wanted = torch.nan_to_num(wanted, nan=0.0)

        assert found == pytest.approx(wanted.tolist(), rel=1e-7, abs=1e-7)
        known = [0.0 if each is None else each for each in totals]
        assert known == pytest.approx(torch.nan_to_num(rewards, nan=0.0).tolist(), abs=1e-12)
        assert [each is None for each in totals] == torch.isnan(rewards).tolist()


def test_advantages_by_hand() -> None:
    rewards = [[1.0, 3.0, None, None], [2.0, None, None, None]]
    totals, found = advantages(rewards, (1.0, 2.0), 2, "none")
    assert totals == [5.0, 3.0, None, None]
    assert found == [1.0, -1.0, 0.0, 0.0]
    deviation = 2.0**0.5 + 1e-4
    for scale in ("group", "batch"):
        assert advantages(rewards, (1.0, 2.0), 2, scale)[1] == pytest.approx(
            [1 / deviation, -1 / deviation, 0.0, 0.0]
        )


def test_a_step_in_numbers() -> None:
    rewards = [[1.0, 0.0, 0.1, None, None, None], [None, 2.0, 0.2, 0.3, None, None]]
    totals, _ = advantages(rewards, (1.0, 1.0), 2, "group")
    found = StepRewards.of(totals, rewards, ("json", "style"), 2)
    assert found.reward == pytest.approx((1.0 + 2.0 + 0.3 + 0.3) / 4)
    assert found.rewards == pytest.approx({"json": 1.1 / 3, "style": 2.5 / 3})
    assert found.no_spread_share == pytest.approx(2 / 3)  # 0.1 + 0.2 is 0.3
    assert StepRewards.of([None] * 2, [[None] * 2], ("json",), 2) == (None, {"json": None}, 1.0)
