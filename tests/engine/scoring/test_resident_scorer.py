"""The resident engine: the numbers of the plain model, one sequence and one adapter at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from rankwise.engine.models import packed_kernels
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.attention import attention_of
from rankwise.engine.scoring import resident
from rankwise.engine.scoring.decode.decoder import ScoringWork
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.engine.scoring.tree import answers as tree_answers
from rankwise.engine.scoring.tree import attention as tree_attention
from rankwise.engine.scoring.tree import layout as tree_layout
from rankwise.engine.scoring.tree import reader
from rankwise.engine.scoring.tree.attention import TREE_ATTENTION, TreeStep, attend_tree
from rankwise.engine.scoring.tree.layout import TreeLayout
from rankwise.engine.scoring.tree.prefixes import PrefixTree
from rankwise.errors import ModelError
from rankwise.tasks.questions import Continuation, LogLikelihood
from tests.support.fake_cuda import fake_cuda
from tests.support.plain_answers import ITEMS, assert_equal, plainly
from tests.support.saved_adapters import saved
from tests.support.tiny_models import OWN, tiny

SMALL = {"_BLOCK_QUERIES": 4, "_KEY_STEP": 8, "_SHARED_KEYS": 6, "_SHARED_QUERIES": 5}


def with_greedy_answers(model: Any, items: Sequence[Continuation]) -> list[Continuation]:
    """Some of which greedy decoding would write: random ones it never would."""
    made = list(items)
    for item in items[::4]:
        context = list(item.context)
        for _ in range(3):
            with torch.no_grad():
                context.append(int(model(torch.tensor([context])).logits[0, -1].argmax()))
        made.append(Continuation(item.context, tuple(context[len(item.context) :])))
    return made


@pytest.fixture(params=[{}, SMALL], ids=["default sizes", "small blocks"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Sizes of products that tiny trees do not reach."""
    for name, size in request.param.items():
        monkeypatch.setattr(tree_layout, name, size)
    return request.param


def scorer_of(model: Any, **options: Any) -> ResidentScorer:
    return ResidentScorer(model, None, **{"max_batch_tokens": 90, **options})


@pytest.mark.parametrize("family", OWN)
@pytest.mark.usefixtures("sizes")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The following:RuntimeWarning")
def test_base_and_adapters_score_what_the_plain_models_score(family: str, tmp_path: Path) -> None:
    """Two adapters of mixed rank and alpha per layer, PEFT's own model of each folder the peer."""
    projections = ["q_proj", "o_proj", "c_attn", "query_key_value", "qkv_proj"]
    kinds: list[dict[str, Any]] = [
        {"target_modules": projections, "r": 3},
        {
            "target_modules": [*projections, "down_proj", "c_proj", "dense"],
            "rank_pattern": {r"layers.0.*(q_proj|query_key_value)": 7, "h.1.attn.c_attn": 5},
            "alpha_pattern": {"o_proj": 3, "dense": 4},
        },
    ]
    model = tiny(family)
    items = with_greedy_answers(model, ITEMS)
    scorer = scorer_of(model)
    for number, kind in enumerate(kinds):
        saved(tmp_path / str(number), family, **kind)
        scorer.put_on(f"adapter {number}", AdapterFolder(tmp_path / str(number)))
    found = scorer.log_likelihoods([None, "adapter 0", "adapter 1"], items)
    peers = [
        tiny(family),
        *(peft.PeftModel.from_pretrained(tiny(family), str(tmp_path / str(n))) for n in range(2)),
    ]
    for own, peer in zip(found, peers, strict=True):
        assert_equal(own, plainly(peer.eval(), items))
    assert sum(each.is_greedy for each in found[0]) >= len(ITEMS) // 4
    for one, other in ((0, 1), (1, 2), (0, 2)):
        changes = [abs(a.nats - b.nats) for a, b in zip(found[one], found[other], strict=True)]
        assert max(changes) > 1e-2


@pytest.mark.parametrize("lanes", [2, 3])
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss"])
def test_lanes_score_the_same(
    family: str, lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side, in the order of the items, and every token is told of once."""
    monkeypatch.setattr(resident, "_LANE_TOKENS", 20)
    saved(tmp_path / "a", family, target_modules=["q_proj", "o_proj"])
    found: list[list[list[LogLikelihood]]] = []
    told: list[list[int]] = [[], []]
    for heard, most in zip(told, (1, lanes), strict=True):
        scorer = scorer_of(tiny(family), max_lanes=most)
        scorer.put_on("a", AdapterFolder(tmp_path / "a"))
        found.append(scorer.log_likelihoods([None, "a"], ITEMS, heard.append))
        assert scorer.log_likelihoods([None, "a"], ITEMS) == found[-1]
    for own, other in zip(*found, strict=True):
        assert_equal(own, other)
    assert sum(told[0]) == sum(told[1])


@pytest.mark.parametrize("max_batch_tokens", [60, 4000])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma2", "GptOss"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_scores_the_same(
    family: str, max_batch_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With shared keys, windows, softcap and sinks; of three models at once."""
    scorer = scorer_of(tiny(family), max_batch_tokens=max_batch_tokens)
    for name, rank in (("a", 2), ("b", 9)):
        saved(tmp_path / name, family, target_modules=["q_proj", "o_proj"], r=rank)
        scorer.put_on(name, AdapterFolder(tmp_path / name))
    expected = scorer.log_likelihoods([None, "a", "b"], ITEMS)
    monkeypatch.setattr(tree_attention, "_takes_flex", lambda *_: True)
    monkeypatch.setattr(packed_kernels, "flex_tiles", lambda _: {})  # which a card would try
    monkeypatch.setattr(tree_attention, "_attend_in_blocks", None)  # no other attention is used
    found = scorer.log_likelihoods([None, "a", "b"], ITEMS)
    for own, other in zip(found, expected, strict=True):
        assert_equal(own, other)


@pytest.mark.parametrize(
    ("device", "dtype", "width", "expected"),
    [
        ("cuda", torch.bfloat16, 64, True),
        ("cuda", torch.float16, 256, True),
        ("cuda", torch.float32, 64, False),
        ("cuda", torch.bfloat16, 8, False),
        ("cpu", torch.bfloat16, 64, False),
    ],
)
def test_flex_attention_is_taken_where_it_can_be(
    device: str,
    dtype: torch.dtype,
    width: int,
    expected: bool,
) -> None:
    with fake_cuda():
        x = torch.empty((1, 2, 3, width), dtype=dtype, device=device)
        assert tree_attention._takes_flex(x, x) == expected


def two_adapters(folder: Path, scorer: ResidentScorer) -> None:
    for name, rank in (("a", 2), ("b", 9)):
        saved(folder / name, r=rank)
        scorer.put_on(name, AdapterFolder(folder / name))


@pytest.mark.parametrize("max_batch_tokens", [1, 13, 60, 4000])
@pytest.mark.usefixtures("sizes")
def test_the_size_of_a_step_changes_nothing(max_batch_tokens: int, tmp_path: Path) -> None:
    scorer = scorer_of(tiny("Llama"), max_batch_tokens=max_batch_tokens)
    two_adapters(tmp_path, scorer)
    expected = scorer_of(tiny("Llama"))
    two_adapters(tmp_path, expected)
    models = ["a", None, "b"]
    for own, other in zip(
        scorer.log_likelihoods(models, ITEMS), expected.log_likelihoods(models, ITEMS), strict=True
    ):
        assert_equal(own, other)


def test_neither_the_other_models_nor_the_order_matter(tmp_path: Path) -> None:
    scorer = scorer_of(tiny("Llama"), max_batch_tokens=2000)
    two_adapters(tmp_path, scorer)
    a, b, base = scorer.log_likelihoods(["a", "b", None], ITEMS)
    assert_equal(scorer.log_likelihoods(["b"], ITEMS)[0], b, 1e-5)
    for own, other in zip(scorer.log_likelihoods([None, "a"], ITEMS), (base, a), strict=True):
        assert_equal(own, other, 1e-5)
    backwards = scorer.log_likelihoods(["a"], ITEMS[::-1])[0]
    assert_equal(backwards[::-1], a, 1e-5)
    for index in (0, 7, len(ITEMS) - 1):
        assert_equal(scorer.log_likelihoods(["a"], [ITEMS[index]])[0], [a[index]], 1e-5)


def test_a_distinct_token_is_read_once_by_every_model(tmp_path: Path) -> None:
    scorer = scorer_of(tiny("Llama"), max_batch_tokens=40)
    two_adapters(tmp_path, scorer)
    prefixes = {item.tokens_read[: n + 1] for item in ITEMS for n in range(len(item.tokens_read))}
    read = list[int]()
    embedding: nn.Module = scorer._model.get_input_embeddings()
    embedding.register_forward_hook(lambda _m, given, _out: read.append(given[0].numel()))
    scorer.log_likelihoods([None, "a", "b"], ITEMS)
    assert sum(read) == 3 * len(prefixes)
    assert scorer.reading == ScoringWork(3 * len(prefixes), 3 * len(prefixes))
    assert max(read) <= 40


def test_options_of_one_token_are_one_read() -> None:
    scorer = scorer_of(tiny("Llama"))
    items = [Continuation((5, 9, 4), (token,)) for token in range(3, 60)]
    (found,) = scorer.log_likelihoods([None], items)
    assert scorer.reading.tokens_read == 3
    assert_equal(found, plainly(tiny("Llama"), items))
    assert sum(each.is_greedy for each in found) <= 1


def test_logits_are_made_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, rows = scorer_of(tiny("Llama"), max_batch_tokens=500), list[int]()
    expected = scorer.log_likelihoods([None], ITEMS)
    head: nn.Module = scorer._model.lm_head
    head.register_forward_hook(lambda _m, given, _out: rows.append(given[0].shape[0]))
    scorer.log_likelihoods([None], ITEMS)
    monkeypatch.setitem(tree_answers.CHUNK_BYTES, "cpu", 4 * 64 * 5)
    found = scorer.log_likelihoods([None], ITEMS)
    assert (
        len({item.tokens_read for item in ITEMS})
        < rows[0]
        < len(PrefixTree([item.tokens_read for item in ITEMS]))
    )
    assert sum(rows[1:]) == rows[0]
    assert max(rows[1:]) == 5
    assert_equal(found[0], expected[0])


def test_cached_keys_and_values_stay_within_their_bytes(tmp_path: Path) -> None:
    token_bytes = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, float32
    longest = max(len(item.tokens_read) for item in ITEMS)
    expected, peaks = list[LogLikelihood](), list[int]()
    for models_at_once in (3, 1):
        budget = models_at_once * longest * token_bytes
        scorer = scorer_of(tiny("Llama"), max_batch_tokens=600, cache_bytes=budget)
        scorer._reader.max_tokens = 12  # steps so small that much is cached
        two_adapters(tmp_path, scorer)
        _, own, _ = scorer.log_likelihoods([None, "a", "b"], ITEMS)
        expected = expected or own
        assert_equal(own, expected)
        assert 0 < scorer._reader.peak_cache_bytes <= budget
        peaks.append(scorer._reader.peak_cache_bytes)
    assert peaks[1] <= longest * token_bytes


def test_no_more_models_are_read_at_once_than_fill_a_step_or_fit() -> None:
    reader = scorer_of(tiny("Llama"), max_batch_tokens=100, cache_bytes=20 * 256)._reader
    small, large = PrefixTree([range(10)]), PrefixTree([range(8), [50, *range(60)]])
    assert reader.together(small, 5) == 2  # of ten tokens each, in a cache for twenty
    assert reader.together(PrefixTree([range(4)]), 5) == 5
    reader.cache_bytes = 1 << 20
    assert reader.together(small, 50) == 10
    assert reader.together(large, 5) == 2
    reader.cache_bytes = 1
    assert reader.together(small, 5) == 1


def test_progress_adds_up_to_the_tokens_of_all_items(tmp_path: Path) -> None:
    scorer, heard = scorer_of(tiny("Llama"), max_batch_tokens=20), list[int]()
    two_adapters(tmp_path, scorer)
    scorer.log_likelihoods([None, "a"], ITEMS, heard.append)
    assert sum(heard) == 2 * sum(len(item.tokens_read) for item in ITEMS)
    assert sum(each > 0 for each in heard) > 4


def test_nothing_asked_is_nothing_answered() -> None:
    scorer = scorer_of(tiny("Llama"))
    assert scorer.log_likelihoods([None, None], []) == [[], []]
    assert scorer.log_likelihoods([], ITEMS) == []


def test_the_model_is_as_it_was_afterwards(tmp_path: Path) -> None:
    model = tiny("Llama")
    before = dict(model.named_modules())
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    scorer = scorer_of(model)
    two_adapters(tmp_path, scorer)
    expected = plainly(model)
    scorer.log_likelihoods(["a", "b"], ITEMS)
    assert dict(model.named_modules()) == before
    assert model.config._attn_implementation == "eager"
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert plainly(model) == expected


def test_an_adapter_that_was_taken_off_is_unknown(tmp_path: Path) -> None:
    scorer = scorer_of(tiny("Llama"))
    two_adapters(tmp_path, scorer)
    scorer.take_off("a")
    with pytest.raises(ModelError, match="no adapter a is attached"):
        scorer.log_likelihoods(["b", "a"], ITEMS)


def test_bfloat16_is_close_and_as_close_as_the_plain_model() -> None:
    """To float32, on average: scores are rounded like those of eager attention."""
    model = tiny("Llama", initializer_range=0.1)
    expected = [each.nats for each in plainly(model)]
    low = model.bfloat16()
    (found,) = scorer_of(low).log_likelihoods([None], ITEMS)

    def error(answers: Sequence[LogLikelihood]) -> float:
        pairs = zip(answers, expected, strict=True)
        return sum(abs(each.nats - right) for each, right in pairs) / len(expected)

    assert 0 < error(found) < 2 * error(plainly(low))


@pytest.mark.usefixtures("sizes")
def test_float32_scores_of_bfloat16_are_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA computes them; rounding a score of 20 changes its weight by percents."""
    tree = PrefixTree([[*range(30), branch, *range(9)] for branch in range(8)])
    random = torch.Generator().manual_seed(5)
    # a width of 16, whose scale of 1/4 rounds nothing
    q, k, v = (torch.randn(1, 2, len(tree), 16, generator=random).bfloat16() for _ in range(3))

    def attended(*inputs: Tensor) -> Tensor:
        layout = TreeLayout(tree, 0, len(tree), torch.device("cpu"))
        return attend_tree(Layer(), *inputs, None, tree_step=TreeStep(layout, {}))[0].float()

    expected = attended((8 * q).float(), k.float(), v.float())
    narrow = (attended(8 * q, k, v) - expected).abs().mean()
    monkeypatch.setattr(tree_attention, "score_dtype", lambda _: torch.float32)
    monkeypatch.setattr(tree_attention, "scores_of", lambda q, k: torch.bmm(q.float(), k.float()))
    wide = (attended(8 * q, k, v) - expected).abs().mean()
    assert wide < 0.5 * narrow  # what is left is the rounding of outputs


def test_keys_and_values_of_a_read_place_are_those_of_the_plain_model() -> None:
    model = tiny("Llama")
    scorer = scorer_of(model, max_batch_tokens=11)
    rows = [list(item.tokens_read) for item in ITEMS[:6]]
    tree, seen = PrefixTree(rows), set[int]()
    for read in scorer._reader.read(tree, [None]):
        for row, last in zip(rows, tree.lasts, strict=True):
            if read.start <= last < read.stop:
                seen.add(last)
                with torch.no_grad():
                    cache: Any = model(torch.tensor([row]), use_cache=True).past_key_values
                slices = read.step.layout.pool_slices(tree.path(last))
                pools = [read.step.pools[layer].at(slices) for layer in sorted(read.step.pools)]
                for own, layer in zip(pools, cache.layers, strict=True):
                    torch.testing.assert_close(own.keys.transpose(1, 2), layer.keys)
                    torch.testing.assert_close(own.values.transpose(1, 2), layer.values)
    assert seen == set(tree.lasts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss"])
def test_cuda_scores_what_a_cpu_scores(family: str, tmp_path: Path) -> None:
    found: list[list[list[LogLikelihood]]] = []
    for device in ("cuda", "cpu"):
        scorer = scorer_of(tiny(family).to(device))
        saved(tmp_path, family, target_modules=["q_proj", "o_proj"])
        scorer.put_on("a", AdapterFolder(tmp_path))
        found.append(scorer.log_likelihoods([None, "a"], ITEMS))
    for own, other in zip(*found, strict=True):
        assert_equal(own, other, 1e-3)


# refusals


def test_a_model_with_its_own_attention_is_refused() -> None:
    config = transformers.BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(ModelError, match="BloomForCausalLM brings its own attention"):
        scorer_of(transformers.BloomForCausalLM(config).eval())


def test_a_head_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Llama")
    forward = model.forward

    def other(*args: Any, **given: Any) -> Any:
        out = forward(*args, **given)
        out.logits = out.logits * 2
        return out

    monkeypatch.setattr(model, "forward", other)
    with pytest.raises(ModelError, match="are not its head's output"):
        scorer_of(model)


def step_of(tokens: int) -> TreeStep:
    return TreeStep(TreeLayout(PrefixTree([range(tokens)]), 0, tokens, torch.device("cpu")), {})


class Layer(nn.Module):
    layer_idx = 0


def given_to(layer: nn.Module, tokens: int = 3, **arguments: Any) -> Tensor:
    inputs = [torch.ones(1, 2, tokens, 4) for _ in range(3)]
    settings = {"attention_mask": None, "tree_step": step_of(3), **arguments}
    return attend_tree(layer, *inputs, **settings)[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_mask", torch.ones(1, 1, 3, 3)),
        ("dropout", 0.1),
        ("is_causal", False),
        ("position_bias", torch.zeros(1)),
        ("output_attentions", True),
    ],
)
def test_an_argument_that_is_not_honoured_is_refused(name: str, value: Any) -> None:
    assert given_to(Layer(), use_cache=False).shape == (1, 3, 2, 4)
    with pytest.raises(ModelError, match=f"cannot honour {name} of Layer"):
        given_to(Layer(), **{name: value})


def test_a_missing_step_and_tokens_of_another_number_are_refused() -> None:
    with pytest.raises(ModelError, match="Layer was given no tree_step"):
        given_to(Layer(), tree_step=None)
    with pytest.raises(ModelError, match="Identity was given no layer_idx"):
        given_to(nn.Identity())
    with pytest.raises(ModelError, match="reads 3 tokens"):
        given_to(Layer(), tokens=4)
    model = tiny("Llama")
    with attention_of(model, TREE_ATTENTION), pytest.raises(ModelError, match="no tree_step"):
        model(torch.tensor([[5, 6]]))
    assert model.config._attn_implementation != TREE_ATTENTION


def test_scores_of_shared_keys_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SMALL.items():
        monkeypatch.setattr(tree_layout, name, size)
    for family in ("Gemma2", "GptOss"):
        scorer = scorer_of(tiny(family))
        expected = scorer.log_likelihoods([None], ITEMS)[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(tree_attention._SCORE_BYTES, "cpu", 1)
            assert_equal(scorer.log_likelihoods([None], ITEMS)[0], expected)


def test_a_token_s_keys_and_values_where_layers_or_halves_differ_in_width() -> None:
    """Of Gemma 4 the wider layers count; DeepSeek keeps keys of two parts, and values, expanded."""

    def token_bytes(config: Any) -> int:
        weight = torch.nn.Linear(2, 2)
        return reader._token_bytes(  # pyright: ignore[reportPrivateUsage]
            SimpleNamespace(config=config, parameters=weight.parameters)
        )

    deepseek = transformers.DeepseekV3Config(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, qk_nope_head_dim=16,
        qk_rope_head_dim=8, v_head_dim=16,
    )  # fmt: skip
    assert token_bytes(deepseek) == 2 * 4 * (16 + 8 + 16) * 4
    llama = transformers.LlamaConfig(
        num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, hidden_size=64
    )
    assert token_bytes(llama) == 3 * 2 * 2 * 8 * 4
    if hasattr(transformers, "Gemma4TextConfig"):  # whose head_dim cannot be asked for
        gemma = transformers.Gemma4TextConfig(
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            global_head_dim=16,
        )  # fmt: skip
        assert token_bytes(gemma) == 2 * 2 * 2 * 16 * 4
