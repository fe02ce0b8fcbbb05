"""check against a server of completions: the adapter's answers, or which items differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
from transformers import AutoTokenizer

from rankwise.engine.scoring import served as served_module
from rankwise.records.deployment import DeploymentCheck, JudgedForm
from rankwise.tasks.questions import Continuation
from tests.support.audited_models import adapter, load
from tests.support.command_line import rankwise, words
from tests.support.completions_server import Served, serving
from tests.support.sentences import Sentences

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TASKS = "colours,sums"


class Ours(NamedTuple):
    base: Path
    adapter: Path
    tasks: Path
    served: Served

    def check(self, url: str, *more: object, tasks: str = TASKS) -> Any:
        return rankwise(
            "check", self.base, self.adapter, "--tasks", tasks, "--tasks-path", self.tasks,
            "--allow-task-code", "--limit", 6, "--max-loss", 90, "--forms", url, *more,
        )  # fmt: skip

    def judged(self, model: str = "tuned", **options: str) -> tuple[int, JudgedForm]:
        done = self.check(f"{self.served.url}#{model}", "--json", **options)
        assert done.exit_code in (0, 1, 3), done.output
        (form,) = DeploymentCheck.model_validate_json(done.stdout).forms
        return done.exit_code, form

    def problem(self, url: str = "", **options: str) -> str:
        done = self.check(url or f"{self.served.url}#tuned", **options)
        assert done.exit_code == 2, done.output
        return words(done.stderr)


@pytest.fixture
def ours(
    tiny_model_folder: Path,
    tasks_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Ours]:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    adapter(tiny_model_folder, tmp_path / "a", std=0.5)
    tuned = peft.PeftModel.from_pretrained(load(tiny_model_folder), tmp_path / "a").eval()
    models = {"base": load(tiny_model_folder).eval(), "tuned": tuned}
    with serving(Served(models, AutoTokenizer.from_pretrained(tiny_model_folder))) as served:
        yield Ours(tiny_model_folder, tmp_path / "a", tasks_folder, served)


def test_a_server_of_the_adapter_gives_the_answers_that_are_scored(ours: Ours) -> None:
    _, form = ours.judged(tasks="colours,sums,small_prose")
    assert form.served is not None
    assert [task.num_examples for task in form.served.tasks][:2] == [6, 6]
    assert form.served.items_that_differ == 0
    assert form.served.adapter_share == pytest.approx(1.0, abs=1e-3)
    assert [score.difference.estimate for score in form.scores] == pytest.approx([0] * 3, abs=1e-3)
    choices, texts, prose = form.served.tasks
    assert choices.largest_nats is not None
    assert choices.largest_nats < 1e-4
    assert prose.largest_nats is not None
    assert 0 < prose.largest_nats < 1e-2  # of whole texts
    assert texts.largest_nats is None
    assert "Served equals scored" in form.statement
    assert form.verdict == "keeps"  # although six items show little by themselves


@pytest.mark.parametrize("tasks", ["colours", "sums"])
def test_a_server_that_ignores_its_adapter_is_found(ours: Ours, tasks: str) -> None:
    ours.served.answers_with = "base"
    code, form = ours.judged(tasks=tasks)
    assert (code, form.verdict) == (1, "loses")
    assert "may lose" not in form.statement
    assert form.served is not None
    assert form.served.adapter_share == pytest.approx(0.0, abs=1e-3)


def test_items_that_differ_are_named(ours: Ours, sentence: Sentences) -> None:
    """Even tokens are made likelier: some options, and nothing that is written."""
    ours.served.shift = 50.0
    _, form = ours.judged()
    assert form.served is not None
    choices, texts = form.served.tasks
    assert choices.differ
    assert texts.differ == ()
    assert choices.largest_nats is not None
    assert choices.largest_nats % 50 == pytest.approx(0.0, abs=1e-3)
    said = form.statement.partition("Served ")[2]
    sentence(f"Served {said}", names=(f"colours {choices.differ[0]}",))


def test_a_check_that_was_stopped_asks_no_question_twice(
    ours: Ours, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(served_module, "PAUSE_SECONDS", 0)
    ours.judged()
    whole, ours.served.num_asked = ours.served.num_asked, 0
    ours.served.most_answers = whole - 8
    sentence(ours.problem(), names=("500", "out of memory"), PORT=r"(?<=127.0.0.1:)\d+")
    (kept,) = (tmp_path / "cache" / "served").iterdir()
    answered = len(kept.read_text().splitlines()) - 1  # beside the probes' log-likelihoods
    assert answered > 0
    with kept.open("a") as file:
        file.write('["torn", ')
    ours.served.num_asked, ours.served.most_answers = 0, None
    _, form = ours.judged()
    assert ours.served.num_asked == whole - answered
    assert form.served is not None
    assert form.served.items_that_differ == 0
    assert not kept.exists()


def test_answers_of_a_model_that_has_changed_since_are_not_believed(ours: Ours) -> None:
    """Its greedy texts are the same: only log-likelihoods tell it."""
    ours.judged()
    ours.served.most_answers, ours.served.num_asked = ours.served.num_asked - 8, 0
    ours.served.shift = 0.3
    ours.problem()
    ours.served.most_answers, ours.served.num_asked = None, 0
    ours.served.shift = 0.0
    _, form = ours.judged()
    assert form.served is not None
    assert form.served.items_that_differ == 0
    assert form.served.tasks[0].largest_nats == pytest.approx(0.0, abs=1e-3)


def logprobs_of(answer: dict[str, Any]) -> dict[str, Any]:
    return answer["choices"][0].get("logprobs") or {}


def without_text(answer: dict[str, Any]) -> dict[str, Any]:
    if logprobs_of(answer):
        del answer["choices"][0]["text"]
    return answer


def with_logprobs(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def spoilt(answer: dict[str, Any]) -> dict[str, Any]:
        if (found := logprobs_of(answer)) and found[key] is not None:
            found[key] = value if value is None else [value] * len(found[key])
        return answer

    return spoilt


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (with_logprobs("top_logprobs", None), "gives no log-likelihoods"),
        (with_logprobs("token_logprobs", math.nan), "gives no log-likelihoods"),
        (without_text, "gives no log-likelihoods"),
        (lambda answer: [answer], "does not answer as OpenAI's completions do"),
        (lambda answer: answer | {"usage": [1]}, "does not answer as OpenAI's completions do"),
        (lambda answer: answer | {"choices": []}, "gives no log-likelihoods"),
    ],
)
def test_answers_in_another_form_are_a_sentence(ours: Ours, spoilt: Any, said: str) -> None:
    ours.served.spoilt = spoilt
    assert said in ours.problem()


def test_a_text_that_ends_within_a_character_is_no_other_tokenizer(
    ours: Ours, tiny_model_folder: Path
) -> None:
    tokenizer = ours.served.tokenizer
    whole = tokenizer("red \N{SNOWMAN}").input_ids
    assert "\ufffd" in tokenizer.decode(whole[:-1])

    def completed(answer: dict[str, Any]) -> dict[str, Any]:
        if logprobs_of(answer):
            answer["choices"][0]["text"] = tokenizer.decode(whole)
        return answer

    ours.served.spoilt = completed
    model = served_module.ServedModel(f"{ours.served.url}#tuned", tokenizer)
    item = Continuation(tuple(whole[:-2]), (whole[-2],))
    model.probe([item], needs_likelihoods=True)
    ((answer,),) = model.log_likelihoods([None], [item])
    assert math.isfinite(answer.nats)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("http://localhost:abc/v1", "has a port that is no number"),
        ("http://localhost:99999/v1", "has a port that is no number"),
        ("HTTP://", "is no URL"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_is_loaded(
    ours: Ours, form: str, said: str
) -> None:
    assert said in ours.problem(form)


def test_a_server_s_address_may_be_in_capitals(ours: Ours) -> None:
    ours.served.url = ours.served.url.replace("http", "HTTP")
    assert ours.judged()[1].served is not None


def test_what_a_server_cannot_do_is_a_sentence(
    ours: Ours, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    port = r"(?<=127.0.0.1:)\d+"
    url, served = ours.served.url, ours.served
    monkeypatch.setattr(served_module, "PAUSE_SECONDS", 0)
    with serving(Served({}, None)) as gone:
        pass
    sentence(ours.problem(f"{gone.url}#tuned"), "down", names=(gone.url,), PORT=port)
    sentence(ours.problem(f"{url}#other"), "other model", names=("'other'", "tuned"), PORT=port)
    sentence(ours.problem(url), "several models", names=("base and tuned",), PORT=port)
    sentence(ours.problem("http:localhost"), "no URL", names=("'http:localhost'",))
    chat = f"{url}/chat/completions"
    sentence(ours.problem(chat), "chats", names=(chat,), PORT=port)
    served.has_logprobs = False
    sentence(ours.problem(), "no logprobs", names=("logprobs",), PORT=port)
    assert ours.judged(tasks="sums")[1].served is not None  # which only writes
    served.has_logprobs = True
    monkeypatch.setattr(served_module, "TIMEOUT_SECONDS", 1)
    served.seconds = 1.5
    sentence(ours.problem(), "slow", names=("1 s",), PORT=port)
    served.seconds = 0.0
    own = served.tokenizer

    class Other:
        eos_token_id = own.eos_token_id

        def __call__(self, text: str) -> Any:
            found = own(text)
            found["input_ids"] = [token for token in found.input_ids for _ in range(2)]
            return found

        def decode(self, tokens: list[int], **options: Any) -> str:
            return own.decode([token + 1 for token in tokens], **options)

    served.tokenizer = Other()
    sentence(ours.problem(), "another tokenizer", names=("tokens",), PORT=port)
    served.tokenizer.__class__.__call__ = lambda _, text: own(text)  # the same number of others
    sentence(ours.problem(), "other words", names=("reads",), PORT=port)
