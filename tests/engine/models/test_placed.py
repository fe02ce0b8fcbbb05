"""Models whose layers lie on two cards: the losses, weights and scores of one that is whole."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models import packed_kernels, peft_adapters, placed
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.devices import Machine
from rankwise.engine.models.frozen_adapters import wearing
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.own_texts import write_texts
from rankwise.engine.models.placed import (
    cards_of_layers,
    cards_to_score,
    devices_of,
    load_over_cards,
    load_to_score,
    most_on_a_card,
    num_weights,
    over_cards,
)
from rankwise.engine.models.structure import adaptable_shapes, model_skeleton, target_shapes
from rankwise.engine.scoring.divergence import divergences, log_probabilities
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.engine.scoring.tree import layout as tree_layout
from rankwise.engine.training.states import StateWriter
from rankwise.engine.training.trainees import AdapterTrainee, Beside
from rankwise.errors import ModelError
from rankwise.records.config.mitigations import MitigationConfig
from rankwise.tasks.questions import GenerationSettings, Prompt, RightAnswer
from tests.support.passes import CPU, Heard, Setting, config
from tests.support.plain_answers import ITEMS
from tests.support.saved_adapters import saved
from tests.support.tiny_models import tiny
from tests.support.two_cards import FIRST, SECOND, laid_over, numbers, two_cards

TRAIN: dict[str, Any] = {"dropout": 0.1, "max_grad_norm": 0.1, "epochs": 1}
UPPER = "model.layers.1.mlp.down_proj"
# Of other ranks, seeds and layers, the second on the second card alone; held to the base, on what
# it learns or on rows of its own; variants with an optimizer or a beginning of their own; one that
# diverges.
ADAPTERS: tuple[dict[str, Any], ...] = (
    {"name": "r2", "rank": 2},
    {"name": "upper", "rank": 8, "seed": 3, "targets": [UPPER]},
    {"name": "held", "mitigation": {"kl": {"at": "prompts", "weight": 0.7}}},
    {"name": "rows", "mitigation": {"kl": {"at": "rows", "share": 0.2, "rows": {"task": "o"}}}},
    {"name": "plus", "variant": "lora_plus", "seed": 1},
    {"name": "fa", "variant": "lora_fa", "seed": 1},
    {"name": "pissa", "variant": "pissa"},
    {"name": "eva", "variant": "eva"},
    {"name": "diverges", "learning_rate": 1e30},
)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Two cards, whose attention is that of a CPU."""
    monkeypatch.setattr(packed_kernels, "_has_flash", lambda _: False)
    monkeypatch.setattr(packed_kernels, "flex_tiles", lambda _: None)
    # few tokens are split and shared as many are
    for name in ("_SHARED_KEYS", "_SHARED_QUERIES"):
        monkeypatch.setattr(tree_layout, name, 5)
    with two_cards():
        yield


# where layers lie


def test_layers_fill_the_cards_equally() -> None:
    assert cards_of_layers([1] * 6, 2, 1) == [0] * 6
    assert cards_of_layers([1] * 6, 2, 2) == [0, 0, 1, 1, 1, 1]
    assert most_on_a_card([1] * 6, 2, 2) == 4
    assert cards_of_layers([1] * 8, 0, 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cards_of_layers([4, 1, 1, 1, 1], 0, 2) == [0, 1, 1, 1, 1]
    assert cards_of_layers([1] * 4, 10, 2) == [1] * 4  # embeddings are most of the model
    assert most_on_a_card([1] * 4, 10, 2) == 10
    assert cards_of_layers([], 3, 2) == []


def test_what_is_outside_of_the_layers_is_on_the_first_card() -> None:
    where = over_cards(tiny("Llama", num_hidden_layers=4), 2)
    layers = {f"model.layers.{number}": number // 2 for number in range(4)}
    outside = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    assert where == layers | dict.fromkeys(outside, 0)


def test_a_model_that_is_scored_lies_over_cards_only_where_it_has_to_and_can() -> None:
    model = tiny("Llama", num_hidden_layers=4)
    layers = [num_weights(layer) for layer in model.model.layers]
    whole = 4 * num_weights(model)
    fullest = 4 * most_on_a_card(layers, num_weights(model) - sum(layers), 2)
    assert fullest < 0.8 * whole

    def cards_of(memory_bytes: int, num_cards: int) -> tuple[torch.device, ...]:
        machine = Machine(torch.device("cuda"), memory_bytes)._replace(num_cards=num_cards)
        return cards_to_score(model, torch.float32, machine)

    both = tuple(torch.device("cuda", number) for number in range(2))
    assert cards_of(whole * 100 // 84, 2) == ()
    assert cards_of(whole * 100 // 86, 2) == both
    assert cards_of(whole * 100 // 86, 1) == ()
    assert cards_of(fullest * 100 // 84, 2) == both
    assert cards_of(fullest * 100 // 86, 2) == ()


def test_what_is_larger_than_the_free_memory_is_not_loaded_to_be_scored(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = 4 * num_weights(model_skeleton(tiny_model_folder))
    monkeypatch.setattr(Machine, "available_bytes", lambda _: whole)
    assert num_weights(load_to_score(tiny_model_folder, "float32", CPU)) == whole // 4
    monkeypatch.setattr(Machine, "available_bytes", lambda _: whole - 1)
    with pytest.raises(ModelError, match=r"take .* in float32, and cpu has .*more memory"):
        load_to_score(tiny_model_folder, "float32", CPU)


def test_transformers_puts_each_layer_on_its_card(
    cards: None, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # other threads see no such cards
    # without a card, PyTorch knows none by its number
    by_name = {name: f"cuda:{card}" for name, card in over_cards(tiny("Llama"), 2).items()}
    monkeypatch.setattr(placed, "over_cards", lambda *_: by_name)
    model: Any = load_over_cards(tiny_model_folder, "float32", (FIRST, SECOND))
    assert devices_of(model) == [FIRST, SECOND]
    assert {weight.device for weight in model.model.layers[1].parameters()} == {SECOND}
    assert not model.training
    tokens = torch.tensor([[5, 6, 7]])
    expected: Any = load_frozen(tiny_model_folder, "float32", CPU)
    found = model(tokens.to(FIRST), use_cache=False).logits
    assert found.device == FIRST
    torch.testing.assert_close(numbers(found), expected(tokens, use_cache=False).logits)


# training


def trainees(setting: Setting) -> list[AdapterTrainee]:
    train, made = config(**TRAIN), list[AdapterTrainee]()
    held = [example._replace(num_loss_tokens=0) for example in setting.examples(train)]
    for options in ADAPTERS:
        arm = options.get("mitigation")
        mitigation = None if arm is None else MitigationConfig.model_validate(arm)
        others = {key: value for key, value in options.items() if key != "mitigation"}
        beside = Beside(held=held)
        made.append(setting.trainee(train, beside=beside, mitigation=mitigation, **others))
    return made


def assert_near(heard: Heard, expected: Heard) -> None:
    """To float32 rounding: a norm is a sum of those of two cards."""
    assert heard.lines.keys() == expected.lines.keys()
    for name, lines in expected.lines.items():
        if name == "fa":  # PEFT's optimizer rounds otherwise on a card than on a CPU
            continue
        assert [line.step for line in heard.lines[name]] == [line.step for line in lines]
        for field, rel in (("loss_nats", 1e-6), ("kl_nats", 1e-4), ("grad_norm", 1e-5)):
            wanted = [getattr(line, field) for line in lines if getattr(line, field) is not None]
            ours = [getattr(line, field) for line in heard.lines[name]]
            assert [each for each in ours if each is not None] == pytest.approx(wanted, rel=rel)


def assert_same_weights(ours: list[AdapterTrainee], whole: list[AdapterTrainee]) -> None:
    for mine, theirs in zip(ours, whole, strict=True):
        if mine.run.name == "diverges":
            continue
        assert not mine.adapter.is_zero_update
        if mine.run.name == "fa" and theirs.adapter.weights[0].device == CPU:
            continue
        for name, factors in theirs.adapter.factors.items():
            for matrix, other in zip(mine.adapter.factors[name], factors, strict=True):
                torch.testing.assert_close(numbers(matrix), numbers(other), rtol=1e-4, atol=1e-5)


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def test_adapters_are_trained_as_on_a_whole_base(
    setting: Setting, cards: None, tmp_path: Path
) -> None:
    whole = trainees(setting)
    expected = setting.train(*whole)
    assert expected.errors.keys() == {"diverges"}
    assert min(line.grad_norm for line in expected.lines["r2"]) > 2 * TRAIN["max_grad_norm"]
    setting.base = laid_over(setting.base)
    assert not peft_adapters.misloaded(
        setting.base,
        target_shapes(adaptable_shapes(setting.base), ["q_proj"]),
        ["q_proj"],
        use_rslora=False,
        tokens=[5, 6, 7],
    )
    ours, stopped = trainees(setting), trainees(setting)
    devices = {x.run.name: [block.device for block in x.adapter.weights] for x in ours}
    assert devices == {key: [FIRST, SECOND] for key in devices} | {"upper": [SECOND]}
    heard = setting.train(*ours)
    assert heard.errors == expected.errors
    assert_near(heard, expected)
    assert_same_weights(ours, whole)
    # from its state, with activations that are computed again
    with pytest.raises(KeyboardInterrupt):
        setting.train(*stopped, heard=Heard(stop_at=2))
    resumed, writer = trainees(setting), StateWriter()
    for before, after in zip(stopped, resumed, strict=True):
        if before.run.name != "diverges":
            before.save_state(tmp_path / "state.pt", writer.write)
            writer.finish()
            after.load_state(tmp_path / "state.pt")
    ends = setting.train(*resumed, gradient_checkpointing=True, max_tokens=40)
    assert ends.errors == expected.errors
    assert_same_weights(resumed, ours)


# scoring

TARGETS = {"Llama": ["q_proj", "down_proj"], "Gemma2": ["v_proj"], "GPT2": ["c_attn"]}


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GPT2"])
def test_scores_are_those_of_a_whole_model(cards: None, family: str, tmp_path: Path) -> None:
    saved(tmp_path / "adapter", family, target_modules=TARGETS[family])
    settings = [
        GenerationSettings(5, ()),
        GenerationSettings(5, (), (("do_sample", True), ("repetition_penalty", 1.05))),
    ]
    tokens = [(*range(3, 3 + number), last) for number in (40, 40, 7) for last in (9, 11)]
    prompts = [Prompt(each, way) for each in tokens for way in settings]
    answers = [RightAnswer("t", 0, (5, 6, 7), (8, 9)), RightAnswer("t", 1, (5, 6, 9), (4,))]
    found: list[Any] = []
    for base in (frozen(family), laid_over(frozen(family))):
        scorer = ResidentScorer(base, NoText(), max_batch_tokens=90)
        for name in ("a", "b"):
            scorer.put_on(name, AdapterFolder(tmp_path / "adapter"))
        names = [None, "a", "b"]
        reference = log_probabilities(base, answers, max_batch_tokens=8)
        with wearing(base, scorer._adapters["a"]):
            compared = divergences(
                base, answers, [each * 0.9 for each in reference], max_batch_tokens=8
            )
        found.append(
            [
                scorer.log_likelihoods(names, ITEMS),
                scorer.generate(names, prompts),
                compared,
                write_texts(base, 1, number=2, num_tokens=6, seed=0),
            ]
        )
    whole, ours = found
    for mine, theirs in zip(ours[0], whole[0], strict=True):
        assert [each.nats for each in mine] == pytest.approx([each.nats for each in theirs])
    assert ours[0][1] != ours[0][0]
    assert ours[1] == whole[1]
    assert [x for each in ours[2] for x in each] == pytest.approx([x for y in whole[2] for x in y])
    assert ours[3] == whole[3]


def frozen(family: str) -> Any:
    return tiny(family).eval().requires_grad_(False)


class NoText:
    """Writes token ids."""

    def decode(self, tokens: Any, **_: Any) -> str:
        return " ".join(map(str, tokens))

    def encode(self, text: str, **_: Any) -> list[int]:
        return [3]
