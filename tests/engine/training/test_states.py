"""States that training goes on from: every flipped byte is noticed, and a full disk is said."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.training import states
from rankwise.engine.training.states import StateWriter, read_state, write_state
from rankwise.errors import RecordError, StorageError
from tests.support.passes import Heard, Setting, config


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


@pytest.fixture
def state(setting: Setting, tmp_path: Path) -> Path:
    """A state after three steps."""
    trainee = setting.trainee(config())
    with pytest.raises(KeyboardInterrupt):
        setting.train(trainee, heard=Heard(stop_at=3))
    trainee.save_state(tmp_path / "state.pt")
    return tmp_path / "state.pt"


def refused(setting: Setting, path: Path) -> str:
    """What is said of the state; the trainee is as it was."""
    trainee = setting.trainee(config())
    with pytest.raises(RecordError) as caught:
        trainee.load_state(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a saved state of ")
    assert "weights_only" not in message
    assert "\n" not in message
    assert trainee.step == 0
    assert torch.equal(trainee.adapter.weights[0], setting.trainee(config()).adapter.weights[0])
    return message


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Another content with good checksums."""
    content = read_state(path)
    change(content)
    torch.save(content, path)
    return path


def test_every_flipped_byte_of_a_tensor_is_noticed(setting: Setting, state: Path) -> None:
    whole = state.read_bytes()
    with zipfile.ZipFile(state) as archive:
        entries = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    assert sum(entry.file_size for entry in entries) > len(whole) / 2
    numbers = random.Random(0)
    for entry in entries:
        name = len(entry.filename)
        extra = int.from_bytes(whole[entry.header_offset + 28 : entry.header_offset + 30], "little")
        start = entry.header_offset + 30 + name + extra
        for _ in range(8):
            place = start + numbers.randrange(entry.file_size)
            damaged = bytearray(whole)
            damaged[place] ^= 1 << numbers.randrange(8)
            state.write_bytes(damaged)
            with pytest.raises(RecordError, match=r"it is cut or damaged"):
                setting.trainee(config()).load_state(state)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_file(setting: Setting, state: Path, share: float) -> None:
    content = state.read_bytes()
    state.write_bytes(content[: int(share * len(content))])
    assert "it is cut or damaged" in refused(setting, state)


def test_a_pickle_that_would_run_code(setting: Setting, state: Path, tmp_path: Path) -> None:
    torch.save({"run": _Touch(tmp_path / "touched")}, state)
    assert "it is cut or damaged" in refused(setting, state)
    state.write_bytes(pickle.dumps(_Touch(tmp_path / "touched")))
    assert "it is cut or damaged" in refused(setting, state)
    assert not (tmp_path / "touched").exists()


class _Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


NONE = "its content is none of this training"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.update(run="another"), "it belongs to the run another"),
        (lambda state: state.pop("run"), "it belongs to the run None"),
        *(
            (lambda state, key=key: state.pop(key), NONE)
            for key in ("metrics", "seconds", "weights")
        ),
        (lambda state: state.pop("optimizer"), NONE),
        (lambda state: state["weights"].append(torch.zeros(1)), NONE),
        (lambda state: state.update(weights=[torch.zeros(1)]), NONE),
        (lambda state: state.update(weights=7), NONE),
        (lambda state: state.update(seconds=float("nan")), NONE),
        (lambda state: state.update(metrics=state["metrics"] * 99), NONE),
        (lambda state: state["metrics"][0].pop("loss_nats"), NONE),
        (lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)), NONE),
        (lambda state: state["optimizer"].pop("param_groups"), NONE),
        (lambda state: state["optimizer"].update(param_groups=[]), NONE),
    ],
)
def test_a_state_that_is_not_this_training_s(
    setting: Setting, state: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    assert f": {reason}." in refused(setting, changed(state, change))


def test_a_refused_state_leaves_no_trace_in_the_optimizer(setting: Setting, state: Path) -> None:
    moments = changed(
        state, lambda state: state["optimizer"]["state"][0].update(exp_avg_sq=torch.ones(1))
    )
    trainee = setting.trainee(config())
    with pytest.raises(RecordError):
        trainee.load_state(moments)
    expected = setting.train(setting.trainee(config())).losses
    assert setting.train(trainee).losses == expected


def test_another_kind_of_content(setting: Setting, state: Path) -> None:
    torch.save([1, 2], state)
    assert "it holds no state of a training" in refused(setting, state)


def test_a_full_disk_is_a_storage_error_and_leaves_the_last_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state(path, {"weights": [torch.ones(3)]})
    code = f"""
import resource
from pathlib import Path
import torch
from rankwise.engine.training.states import write_state
from rankwise.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_state(Path({str(path)!r}), {{"weights": [torch.zeros(1 << 20)]}})
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = "not everything could be written. Check the disk and its free space"
    assert f"{path} cannot be written: {said}" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    assert torch.equal(read_state(path)["weights"][0], torch.ones(3))


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> StateWriter:
    """One that takes the tensors of a state for those of a card."""
    monkeypatch.setattr(states, "_bytes_elsewhere", lambda _: 1)
    return StateWriter()


def test_a_state_is_what_it_was_when_it_was_saved(
    setting: Setting, state: Path, writer: StateWriter, tmp_path: Path
) -> None:
    trainee = setting.trainee(config())
    trainee.load_state(state)
    waiting = threading.Event()
    writer._thread.submit(waiting.wait)  # nothing is written before the training has gone on
    trainee.save_state(tmp_path / "later.pt", writer.write)
    with torch.no_grad():
        trainee.adapter.weights[0].zero_()
    assert not (tmp_path / "later.pt").exists()
    waiting.set()
    writer.finish()
    ours, theirs = read_state(tmp_path / "later.pt"), read_state(state)
    assert torch.equal(ours["weights"][0], theirs["weights"][0])
    assert ours["metrics"] == theirs["metrics"]
    again = setting.trainee(config())
    again.load_state(tmp_path / "later.pt")
    assert again.step == 3


def test_what_cannot_be_written_is_said_in_the_end(
    setting: Setting, writer: StateWriter, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    setting.trainee(config()).save_state(tmp_path / "file" / "state.pt", writer.write)
    with pytest.raises(StorageError, match="file"):
        writer.finish()
    writer.finish()  # it is said once


def test_without_room_for_a_copy_the_training_waits(
    setting: Setting, writer: StateWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "_bytes_elsewhere", lambda _: 1 << 60)
    setting.trainee(config()).save_state(tmp_path / "state.pt", writer.write)
    assert read_state(tmp_path / "state.pt")["metrics"] == []


def test_states_of_a_cpu_are_written_at_once(setting: Setting, tmp_path: Path) -> None:
    setting.trainee(config()).save_state(tmp_path / "state.pt", StateWriter().write)
    assert read_state(tmp_path / "state.pt")["metrics"] == []
