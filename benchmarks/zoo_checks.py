"""What each model of ``benchmarks.zoo`` has to agree on with transformers, peft and autograd.

The peers load the folder themselves, with eager attention, read every sequence alone and without a
cache, and carry LoRA as PEFT's own layers; gradients are autograd's.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.peft_adapters import save_adapter
from rankwise.engine.models.structure import LinearShape, target_shapes
from rankwise.engine.models.trained_adapters import Adapter, adapted
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.engine.training.loop import train_pass
from rankwise.engine.training.trainees import AdapterTrainee
from rankwise.errors import ModelError
from rankwise.heads.interventions import Head
from rankwise.heads.scorer import Ablation, HeadScorer
from rankwise.tasks.questions import GenerationSettings, LogLikelihood, Prompt
from rankwise.tasks.training_rows import Example
from tests.support.passes import CPU, Heard, config, planned
from tests.support.plain_answers import plainly, questions

RANKS = (2, 5)
ITEMS = questions()[::3]
_RATE, _SCALING, _STEP_TOKENS, _NEW_TOKENS = 1e-2, 1.5, 48, 8
_ATTENDED = {"attn_implementation": "eager"}


class Subject(NamedTuple):
    """A tiny model as it is checked.

    Attributes:
        folder: of it.
        model: loaded by us.
        tokenizer: of it.
        shapes: of all layers that can be adapted.
        targets: as PEFT takes them.
    """

    folder: Path
    model: Any
    tokenizer: Any
    shapes: Mapping[str, LinearShape]
    targets: Sequence[str]

    def plain(self) -> Any:
        """The model as transformers loads it."""
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(self.folder), dtype=torch.float32, **_ATTENDED
        )
        return loaded.eval()

    def adapter_folder(self, rank: int) -> Path:
        """Where the adapter of a rank is saved."""
        return self.folder.parent / f"adapter-{rank}"


class _Trainee(AdapterTrainee):
    """Keeps the gradients of its last step."""

    gradient: Tensor

    def finish_gradients(self) -> Tensor:
        assert self.adapter.weights[0].grad is not None
        self.gradient = self.adapter.weights[0].grad.clone()
        return super().finish_gradients()


def train(subject: Subject) -> tuple[list[AdapterTrainee], list[str]]:
    """One step of two adapters of different ranks and rows in one pass, and what is wrong in it."""
    trainees = [_trainee(subject, rank) for rank in RANKS]
    peers = [_carrying(subject, trainee.adapter) for trainee in trainees]
    heard = Heard()
    names = list(trainees[0].adapter.factors)
    with adapted(subject.model, names) as bank:
        train_pass(
            subject.model,
            trainees,
            bank=bank,
            max_tokens=_STEP_TOKENS,
            precision="float32",
            gradient_checkpointing=False,
            observer=heard,
        )
    faults: list[str] = []
    for trainee, peer in zip(trainees, peers, strict=True):
        if problem := heard.errors.get(trainee.run.name):
            faults.append(f"training: {problem}")
            continue
        faults += _compared(trainee, peer, heard.losses[trainee.run.name][0])
    return list(trainees), faults


def _trainee(subject: Subject, rank: int) -> _Trainee:
    train = config(
        epochs=1,
        batch_size=3,
        gradient_accumulation_steps=2,
        warmup_ratio=0.0,
        schedule="constant",
    )
    rows = _rows()[: rank + 1]
    run = planned(1, rank=rank, scaling=_SCALING, name=f"rank {rank}", learning_rate=_RATE)
    adapter = Adapter(
        target_shapes(subject.shapes, subject.targets),
        rank=rank,
        scaling=_SCALING,
        dropout=0.0,
        seed=rank,
        device=CPU,
        dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(rank)
    adapter.start_from(
        {
            name: (A, 0.3 * torch.randn(B.shape, generator=generator))
            for name, (A, B) in adapter.factors.items()
        }
    )
    return _Trainee(run, rows, train, adapter)


def _rows() -> list[Example]:
    """Of ragged lengths."""
    generator = torch.Generator().manual_seed(0)
    made: list[Example] = []
    for length, learned in ((9, 3), (14, 5), (6, 1), (21, 8), (9, 2), (12, 11)):
        tokens = torch.randint(3, 64, (length,), generator=generator).tolist()
        made.append(Example(tuple(tokens), learned, False))
    return made


def peers_of(subject: Subject, trainees: Sequence[AdapterTrainee]) -> list[Any]:
    """The plain base, and the plain model with each adapter as it is now."""
    return [subject.plain(), *(_carrying(subject, trainee.adapter) for trainee in trainees)]


def _carrying(subject: Subject, adapter: Adapter) -> Any:
    """The plain model with an adapter as it is now, in layers of PEFT's."""
    model = subject.plain().requires_grad_(False)
    for name, (lora_A, lora_B) in adapter.factors.items():
        base, rank = model.get_submodule(name), len(lora_A)
        is_conv1d = isinstance(base, Conv1D)
        settings = peft.LoraConfig(
            r=rank,
            lora_alpha=adapter.scaling * rank,  # pyright: ignore[reportArgumentType] (a float is allowed)
            fan_in_fan_out=is_conv1d,
        )
        layer: Any = Linear(
            base,
            "default",
            settings,
            r=rank,
            lora_alpha=adapter.scaling * rank,  # pyright: ignore[reportArgumentType] (a float is allowed)
            is_target_conv_1d_layer=is_conv1d,
        )
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(lora_A)
            layer.lora_B["default"].weight.copy_(lora_B)
        model.set_submodule(name, layer)
    return model.eval()


def _compared(trainee: _Trainee, peer: Any, loss: float) -> list[str]:
    """What differs from a plain step on the same rows."""
    rows, faults = trainee.batches[0], list[str]()
    weights = [
        peer.get_submodule(f"{name}.{side}.default").weight
        for name in trainee.adapter.factors
        for side in ("lora_A", "lora_B")
    ]
    count, expected = sum(row.num_loss_tokens for row in rows), 0.0
    for row in rows:
        tokens, n = torch.tensor([row.tokens]), row.num_loss_tokens
        logits = peer(tokens).logits[0]
        part = cross_entropy(logits[-n - 1 : -1], tokens[0, -n:], reduction="sum") / count
        part.backward()
        expected += part.item()
    if abs(loss - expected) > 1e-4 * max(1.0, abs(expected)):
        faults.append(f"loss {loss:.5g}, plainly {expected:.5g}")
    unread = [w for w in weights if w.grad is None]  # PEFT's layer is bypassed
    gradient = torch.cat(
        [(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in weights]
    )
    if (far := _far(trainee.gradient, gradient)) > 1e-4:
        faults.append(f"gradients {far:.2g} apart, {len(unread)} not read plainly")
    before = torch.cat([w.detach().flatten() for w in weights])
    # AdamW divides a gradient by its own size, and so rounding by itself where there is none
    for weight, part in zip(
        weights, trainee.gradient.split([w.numel() for w in weights]), strict=True
    ):
        weight.grad = part.view_as(weight).clone()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    torch.optim.AdamW(weights, lr=_RATE, weight_decay=0.0).step()
    step = torch.cat([w.detach().flatten() for w in weights]) - before
    if (far := _far(trainee.adapter.weights[0].detach() - before, step)) > 1e-4:
        faults.append(f"steps {far:.2g} apart on the same gradients")
    return faults


def _far(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def save(subject: Subject, trainees: Sequence[AdapterTrainee]) -> None:
    """Save the trained adapters as a study does."""
    for trainee in trainees:
        save_adapter(
            trainee.adapter,
            subject.adapter_folder(trainee.adapter.rank),
            alpha=_SCALING * trainee.adapter.rank,
            use_rslora=False,
            target_modules=subject.targets,
            base_model_name=str(subject.folder),
        )


def check_scores(subject: Subject, scorer: ResidentScorer, peers: Sequence[Any]) -> list[str]:
    """Log-likelihoods from a tree that is read in several steps, base and adapters together."""
    found = scorer.log_likelihoods(_names(scorer, subject), ITEMS)
    names = ["the base", *(f"rank {rank}" for rank in RANKS)]
    faults: list[str] = []
    for name, ours, peer in zip(names, found, peers, strict=True):
        faults += _apart(f"scores of {name}", ours, plainly(peer, ITEMS))
    return faults


def check_bfloat16(subject: Subject) -> list[str]:
    """Scores in bfloat16 are as near to those of the same weights in float32 as the plain ones."""
    items = questions()  # of few, the medians are noise themselves
    exact = plainly(subject.plain().bfloat16().float(), items)
    model: Any = load_frozen(subject.folder, "bfloat16", CPU)
    try:
        scorer = ResidentScorer(model, subject.tokenizer, max_batch_tokens=_STEP_TOKENS)
    except ModelError as error:
        return [f"bfloat16: {error}"]
    (ours,) = scorer.log_likelihoods([None], items)
    plain: Any = AutoModelForCausalLM.from_pretrained(
        str(subject.folder), dtype=torch.bfloat16, **_ATTENDED
    )
    far, noise = (_median(each, exact) for each in (ours, plainly(plain.eval(), items)))
    if far <= 2 * noise + 1e-2:
        return []
    return [f"scores in bfloat16 are off by {far:.2g} nats, plainly by {noise:.2g}"]


def _median(found: Sequence[LogLikelihood], exact: Sequence[LogLikelihood]) -> float:
    return statistics.median(abs(a.nats - b.nats) for a, b in zip(found, exact, strict=True))


def check_peft(subject: Subject, peers: Sequence[Any]) -> list[str]:
    """The saved adapters as PEFT loads them on the plain base."""
    faults: list[str] = []
    for rank, peer in zip(RANKS, peers[1:], strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = peft.PeftModel.from_pretrained(
                subject.plain(), str(subject.adapter_folder(rank))
            )
        faults += _apart(
            f"rank {rank} in PEFT", plainly(loaded.eval(), ITEMS), plainly(peer, ITEMS)
        )
    return faults


def _names(scorer: ResidentScorer, subject: Subject) -> list[str | None]:
    for rank in RANKS:
        scorer.put_on(str(rank), AdapterFolder(subject.adapter_folder(rank)))
    return [None, *map(str, RANKS)]


def _apart(what: str, ours: Sequence[LogLikelihood], theirs: Sequence[LogLikelihood]) -> list[str]:
    far = max(abs(a.nats - b.nats) for a, b in zip(ours, theirs, strict=True))
    scale = max(abs(each.nats) for each in theirs)
    is_same = all(a.is_greedy == b.is_greedy for a, b in zip(ours, theirs, strict=True))
    if far <= 1e-4 + 1e-5 * scale and is_same:
        return []
    return [f"{what} differ by {far:.2g} of {scale:.3g} nats"]


def check_texts(subject: Subject, scorer: ResidentScorer, peers: Sequence[Any]) -> list[str]:
    """Greedy texts of prompts that begin alike, base and adapters together."""
    settings = GenerationSettings(_NEW_TOKENS)
    prompts = [Prompt(item.context, settings) for item in ITEMS[::4]]
    found = scorer.generate([None, *map(str, RANKS)], prompts)
    names = ["the base", *(f"rank {rank}" for rank in RANKS)]
    faults: list[str] = []
    for name, ours, peer in zip(names, found, peers, strict=True):
        pairs = zip(prompts, ours, strict=True)
        amiss = sum(not _is_likeliest(peer, subject.tokenizer, p.tokens, o.text) for p, o in pairs)
        if amiss:
            faults.append(f"{amiss} of {len(prompts)} texts of {name} are others")
    return faults


@torch.no_grad()
def _is_likeliest(peer: Any, tokenizer: Any, prompt: Sequence[int], text: str) -> bool:
    """Whether always taking the likeliest token writes this; of equal ones, either."""
    tokens, written = list(prompt), tokenizer.convert_tokens_to_ids(text.split())
    for place in range(_NEW_TOKENS):
        logits = peer(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        token = written[place] if place < len(written) else tokenizer.eos_token_id
        if logits.max() - logits[token] > 1e-4:
            return False
        if token == tokenizer.eos_token_id:
            return place == len(written)
        tokens.append(token)
    return len(written) == _NEW_TOKENS


def check_heads(subject: Subject) -> list[str]:
    """A head of the first layer and one of the last ablated, by hooks in the plain model.

    Raises:
        ModelError: the heads are laid out in a way that is not known.
    """
    scorer = HeadScorer(subject.model, max_batch_tokens=_STEP_TOKENS)
    heads = [Head(0, 1), Head(len(scorer.layouts) - 1, scorer.layouts[-1].num_heads - 1)]
    _, *found = scorer.log_likelihoods(ITEMS, [Ablation(head) for head in heads])
    faults: list[str] = []
    for head, ours in zip(heads, found, strict=True):
        peer, layout = subject.plain(), scorer.layouts[head.layer]
        with _without(peer, layout.output, head.head, layout.num_heads):
            faults += _apart(f"head {head.layer}.{head.head}", ours, plainly(peer, ITEMS))
    return faults


@contextmanager
def _without(model: Any, output: str, head: int, num_heads: int) -> Generator[None]:
    """A head's share of what enters the output projection is zero."""

    def change(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        hidden = inputs[0].clone()
        hidden.unflatten(-1, (num_heads, -1))[..., head, :] = 0
        return (hidden,)

    handle = model.get_submodule(output).register_forward_pre_hook(change)
    yield
    handle.remove()
