"""Full fine-tuning by two processes: the losses and weights of one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rankwise.engine.models import base as models
from rankwise.engine.training import loop as training
from rankwise.engine.training.micro_batches import NOBODY, Placed
from rankwise.engine.training.sharded import dealt
from rankwise.tasks.training_rows import Example
from tests.support.passes import CPU, Heard, Setting, config
from tests.support.sharded_trainings import Job, adapter, state_of, train_together
from tests.support.tiny_models import tiny

# 20 rows: steps of 3, which two processes do not share evenly, and one of 2 at the end
TRAIN: dict[str, Any] = {
    "batch_size": 3,
    "gradient_accumulation_steps": 1,
    "max_grad_norm": 0.5,
    "epochs": 1,
}


def alone(folder: Path) -> tuple[Heard, Any]:
    """The same training by one process."""
    heard, model = Heard(), models.load_frozen(folder, "float32", CPU)
    training.train_pass(
        model,
        [Setting(folder).full(config(**TRAIN), model, name="full")],
        bank=None,
        max_tokens=128,
        precision="float32",
        gradient_checkpointing=False,
        compile_layers=False,
        observer=heard,
    )
    return heard, model


def found(job: Job, name: str) -> Any:
    return json.loads((Path(job.out) / f"{name}.json").read_text())


def assert_same_lines(job: Job, name: str, heard: Heard) -> None:
    """To float32 rounding: sums over rows are taken in another order."""
    lines, expected = found(job, name)["lines"], heard.lines[name]
    assert [line["step"] for line in lines] == [line.step for line in expected]
    for field, rel in (("loss_nats", 1e-6), ("kl_nats", 1e-4), ("grad_norm", 1e-5)):
        of_each = [getattr(line, field) for line in expected if getattr(line, field) is not None]
        ours = [line[field] for line in lines if line[field] is not None]
        assert ours == pytest.approx(of_each, rel=rel), (name, field)


def assert_equal(job: Job, heard: Heard, peer: Any) -> None:
    """To float32 rounding, over 7 steps of AdamW."""
    assert_same_lines(job, "full", heard)
    # every step is clipped
    assert min(line.grad_norm for line in heard.lines["full"]) > 2 * TRAIN["max_grad_norm"]
    assert found(job, "full")["moved"]
    weights = load_file(Path(job.out) / "full.safetensors")
    expected = dict(peer.named_parameters())
    assert weights.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(weights[name], values.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of PyTorch starts no processes"
)
def test_equals_one_process(tiny_model_folder: Path, tmp_path: Path) -> None:
    untied = tmp_path / "untied"
    tokenizer = Setting(tiny_model_folder).tokenizer
    # an odd number of rows in every matrix: parts of unequal size
    sizes = {"vocab_size": len(tokenizer) | 1, "hidden_size": 33, "intermediate_size": 47}
    sizes |= {"num_attention_heads": 3, "num_key_value_heads": 3}
    tiny("Llama", **sizes, max_position_embeddings=256, initializer_range=0.1).save_pretrained(
        untied
    )
    tokenizer.save_pretrained(untied)
    tied, state = str(tiny_model_folder), str(tmp_path / "training.pt")

    def job(model: str | Path, name: str, **options: Any) -> Job:
        return Job(str(model), str(tmp_path / name), TRAIN, **options)

    of_tied = [
        # micro-batches of one row, so that a process reads a row again on behalf of nobody
        job(tied, "checkpointing", checkpointing=True, max_tokens=40),
        job(tied, "stopped", stop_at=3, state=state),
        job(tied, "resumed", state=state, is_hidden=True),
        job(tied, "damaged", state=state, damages=True),
    ]
    of_untied = job(untied, "untied")
    process = train_together([*of_tied, of_untied], tmp_path)
    assert process.wait() == 0, (tmp_path / "output").read_text()
    heard, peer = alone(tiny_model_folder)
    checkpointing, stopped, resumed, damaged = of_tied
    assert len(found(stopped, "full")["lines"]) == 3
    for each in (checkpointing, resumed, damaged):
        assert_equal(each, heard, peer)
    assert_equal(of_untied, *alone(untied))


# Of other ranks, layers and seeds; held to the base, on what it learns or on rows of its own; and
# one that cannot but diverge. That with dropout draws the same masks wherever a row is read.
ADAPTERS: tuple[dict[str, Any], ...] = (
    {"name": "r2", "rank": 2},
    {"name": "upper", "rank": 8, "seed": 3, "targets": ["model.layers.1.mlp.down_proj"]},
    {"name": "held", "mitigation": {"kl": {"at": "prompts", "weight": 0.7}}},
    {"name": "rows", "mitigation": {"kl": {"at": "rows", "share": 0.2, "rows": {"task": "o"}}}},
    {"name": "diverges", "learning_rate": 1e30},
    {"name": "plus", "variant": "lora_plus", "seed": 1},
)


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of PyTorch starts no processes"
)
def test_adapters_on_a_base_that_is_dealt_out_equal_those_of_one_process(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    train, state = TRAIN | {"dropout": 0.1}, str(tmp_path / "training.pt")
    for options in ADAPTERS:
        (tmp_path / f"{options['name']}-damaged.pt").write_bytes(b"no state")

    def job(name: str, **options: Any) -> Job:
        out = str(tmp_path / name)
        return Job(str(tiny_model_folder), out, train, adapters=ADAPTERS, **options)

    stopped = job("stopped", stop_at=3, state=state)
    whole = [
        job("checkpointing", checkpointing=True, max_tokens=40),
        job("resumed", state=state),
        job("damaged", state=str(tmp_path / "damaged.pt")),
    ]
    process = train_together([stopped, *whole], tmp_path)
    assert process.wait() == 0, (tmp_path / "output").read_text()
    setting = Setting(tiny_model_folder)
    trainees = [adapter(setting, config(**train), **options) for options in ADAPTERS]
    heard = setting.train(*trainees)
    assert heard.errors.keys() == {"diverges"}
    assert len(found(stopped, "r2")["lines"]) == 3
    for each in whole:
        for trainee in trainees:
            name = trainee.run.name
            if name == "diverges":
                assert found(each, name)["error"].startswith("the loss was")
                continue
            assert_same_lines(each, name, heard)
            assert found(each, name)["moved"]
            weights = load_file(Path(each.out) / f"{name}.safetensors")["adapter"]
            torch.testing.assert_close(
                weights, trainee.adapter.weights.detach(), rtol=1e-4, atol=1e-5
            )
    # one process goes on from what several have saved
    (resumed, other) = (adapter(setting, config(**train), **ADAPTERS[0]) for _ in range(2))
    resumed.load_state(state_of(stopped, resumed))
    assert resumed.step == 3
    setting.train(resumed, other)
    torch.testing.assert_close(resumed.adapter.weights, other.adapter.weights, rtol=1e-4, atol=1e-5)


def test_every_example_is_dealt_once() -> None:
    def placed(lengths: list[int]) -> list[Placed]:
        examples = (Example(tuple(range(n + 1)), 1, False) for n in lengths)
        return [Placed(0, place, example) for place, example in enumerate(examples)]

    step = placed([5, 9, 7, 4, 8])
    first, second = dealt(step, 2, 10, "cpu")
    places = [[[item.place for item in group] for group in part] for part in (first, second)]
    assert places == [[[1], [2], [3]], [[4], [0], [0]]]  # 9, 7, 4 and 8, 5, and then 4 again
    *_, ((filler,),) = ([group] for group in second)
    assert filler == Placed(NOBODY, 0, step[3].example)
    for count in (2, 3, 8):
        parts = dealt(step, count, 10, "cpu")
        assert len({len(part) for part in parts}) == 1
        read = [item for part in parts for group in part for item in group]
        owned = Counter(item.place for item in read if item.trainee != NOBODY)
        assert owned == Counter(range(5))


def test_the_base_reads_beside_a_held_row_in_every_process() -> None:
    examples = [Example(tuple(range(n + 1)), 1, False) for n in (9, 7, 5, 4)]
    held = [range(3), range(0), range(0), range(0)]  # of the longest, which the first one reads
    step = [Placed(0, n, *pair) for n, pair in enumerate(zip(examples, held, strict=True))]
    first, second = dealt(step, 2, 10, "cpu")
    assert first == [[step[0]], [step[2]]]
    assert second == [[step[1], Placed(NOBODY, 0, examples[3], range(1))], [step[3]]]
