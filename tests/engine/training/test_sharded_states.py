"""A sharded training in this process alone: what is saved once, and what cannot be read."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rankwise.engine.training.sharded import Processes, ShardedModel, ShardedTrainee, joined
from rankwise.engine.training.states import read_state, write_state
from rankwise.errors import RecordError
from rankwise.records.files import digest_of
from tests.support.passes import Setting, config, planned

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of PyTorch starts no processes"
)


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Processes]:
    """This one."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    begin, store = dist.init_process_group, dist.FileStore(str(tmp_path / "store"), 1)

    def alone(backend: str, **options: Any) -> None:
        begin(backend, store=store, rank=0, world_size=1, **options)

    monkeypatch.setattr(dist, "init_process_group", alone)
    with joined("cpu") as processes:
        yield processes


def trainee(folder: Path, processes: Processes) -> ShardedTrainee:
    setting, train = Setting(folder), config(epochs=1)
    sharded = ShardedModel(folder, "float32", processes)
    return ShardedTrainee(planned(4, "full", name="full"), setting.examples(train), train, sharded)


def files_of(state: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in state.parent.rglob("training*/*")}


def test_a_state_is_not_written_over_itself(
    tiny_model_folder: Path, tmp_path: Path, processes: Processes
) -> None:
    state, first = tmp_path / "training.pt", trainee(tiny_model_folder, processes)
    first.save_state(state)
    written = files_of(state)
    assert written
    first.save_state(state)
    resumed = trainee(tiny_model_folder, processes)
    resumed.load_state(state)
    resumed.save_state(state)
    assert files_of(state) == written


def test_parts_that_pytorch_cannot_read_are_no_state(
    tiny_model_folder: Path, tmp_path: Path, processes: Processes
) -> None:
    """As they may be of another version; their bytes are what was written."""
    state, first = tmp_path / "training.pt", trainee(tiny_model_folder, processes)
    first.save_state(state)
    content = read_state(state)
    metadata = tmp_path / content["shards"] / ".metadata"
    metadata.write_bytes(b"of another version")
    content["files"][".metadata"] = digest_of(metadata).model_dump()
    write_state(state, content)
    before = first.whole_weights()
    with pytest.raises(RecordError, match="its content is none of this training"):
        first.load_state(state)
    after = first.whole_weights()
    assert all(torch.equal(weights, after[name]) for name, weights in before.items())


def test_products_of_a_card_are_exact_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    exact: list[torch.device] = []
    monkeypatch.setattr("rankwise.engine.training.sharded.multiply_exactly", exact.append)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with joined("cuda"):
        assert exact == [torch.device("cuda", 1)]
