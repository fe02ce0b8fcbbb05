"""Ten model types of the zoo, and what it says of wrong numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import zoo
from benchmarks.zoo_configs import MODEL_TYPES
from rankwise.engine.scoring import resident
from rankwise.engine.training import loop
from rankwise.heads import scorer

quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

ACCEPTED = {
    "llama": True,
    "gemma3": True,  # a vision tower with as many layers
    "gemma3n_text": False,  # linear layers in lists, keys of other layers
    "gemma4_text": True,  # layers of several widths, keys that are values, experts
    "gpt_oss": True,
    "qwen2_moe": True,
    "ctrl": False,
}
REFUSED = {
    "mamba": ("plan", "MambaForCausalLM brings its own attention"),
    "diffllama": ("loading", "DiffLlamaForCausalLM calls attention 2 times in layer 0"),
    "gemma4_assistant": ("loading", "Gemma4AssistantForCausalLM cannot read tokens alone"),
    "mllama": ("loading", "MllamaForCausalLM gives no hidden states without its head"),
}


@quiet
@pytest.mark.parametrize("model_type", ACCEPTED)
def test_a_model_that_is_accepted_agrees_with_its_peers(model_type: str, tmp_path: Path) -> None:
    outcome = zoo.examined(model_type, tmp_path)
    assert (outcome.verdict, outcome.has_heads) == ("accepted", ACCEPTED[model_type]), outcome


@quiet
@pytest.mark.parametrize("model_type", REFUSED)
def test_a_model_that_is_refused_says_why(model_type: str, tmp_path: Path) -> None:
    when, why = REFUSED[model_type]
    outcome = zoo.examined(model_type, tmp_path)
    assert (outcome.verdict, outcome.when) == ("refused", when)
    assert outcome.why.startswith(why)


@quiet
def test_wrong_numbers_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (resident, loop, scorer):
        monkeypatch.setattr(module, "check_packable", lambda _: None)
    outcome = zoo.examined("diffllama", tmp_path)  # calls attention twice in a layer
    assert outcome.verdict == "wrong"
    for what in ("scores of the base", "texts of the base", "head 0.1"):
        assert what in outcome.why


def test_the_page_has_a_line_for_every_model_type() -> None:
    lines = zoo.PAGE.read_text(encoding="utf-8").splitlines()
    named = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert set(MODEL_TYPES) <= set(named)
    assert not [line for line in lines if "| wrong" in line or "| crashed" in line]
