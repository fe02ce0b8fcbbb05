"""An adapter on disk is read once, whoever asks for its parts, and in whatever order."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rankwise.engine.models import files
from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE, AdapterFolder
from rankwise.engine.models.structure import adaptable_shapes
from rankwise.errors import ModelError
from tests.support.audited_models import adapter, edited
from tests.support.command_line import audited, rankwise
from tests.support.saved_adapters import rewritten, saved
from tests.support.tiny_models import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened, by its name."""
    counts = Counter[str]()

    def counted(function: Any) -> Any:
        def call(path: Any, *more: Any, **options: Any) -> Any:
            counts[Path(path).name if isinstance(path, str | Path) else ""] += 1
            return function(path, *more, **options)

        return call

    monkeypatch.setattr(io, "open", counted(io.open))
    monkeypatch.setattr(files, "safe_open", counted(files.safe_open))
    return counts


def read(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in (CONFIG_FILE, WEIGHTS_FILE)}


def test_every_part_is_read_once(tmp_path: Path, opened: Counter[str]) -> None:
    saved(tmp_path, "Llama")
    model, own = tiny("Llama"), AdapterFolder(tmp_path)
    assert read(opened) == {CONFIG_FILE: 0, WEIGHTS_FILE: 0}
    for _ in range(2):
        own.check_fit(model)
        own.refuse_beyond_lora()
        assert own.layers_without_factors(adaptable_shapes(model)) == []
    assert read(opened) == {CONFIG_FILE: 1, WEIGHTS_FILE: 1}  # its header
    for _ in range(2):
        assert own.factors.keys() == own.shapes.keys()
        pairs = [each for factors in own.factors.values() for each in factors[:2]]
        assert sum(each.numel() for each in pairs) == own.num_weights
        assert own.has_update
    assert read(opened) == {CONFIG_FILE: 1, WEIGHTS_FILE: 3}


def test_a_digest_is_that_of_both_files(tiny_model_folder: Path, tmp_path: Path) -> None:
    digests: list[str] = []
    for name, std, alpha in (("a", 0.1, 8), ("b", 0.1, 8), ("c", 0.1, 9), ("d", 0.2, 8)):
        adapter(tiny_model_folder, tmp_path / name, std=std, lora_alpha=alpha)
        digests.append(AdapterFolder(tmp_path / name).digest)
    assert digests[0] == digests[1]
    assert len({*digests}) == 3


def test_what_is_wrong_is_said_each_time_and_a_change_is_seen_by_another_object(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, edited_later := tmp_path / "a")
    edited(edited_later, peft_type="IA3")
    own = AdapterFolder(edited_later)
    for _ in range(2):
        with pytest.raises(ModelError, match="IA3"):
            _ = own.files
    edited(edited_later, peft_type="LORA")
    assert [path.name for path in own.files] == [CONFIG_FILE, WEIGHTS_FILE]
    edited(edited_later, r=2)
    assert (own.config["r"], AdapterFolder(edited_later).config["r"]) == (4, 2)
    (edited_later / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelError, match=WEIGHTS_FILE):
        AdapterFolder(edited_later).check_fit(tiny("Llama"))


@pytest.mark.parametrize("verb", ["audit", "check", "check --forms"])
def test_a_verb_reads_config_header_and_factors_once(
    verb: str, tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, opened: Counter[str]
) -> None:
    adapter(tiny_model_folder, tmp_path / "a", std=0.5)
    opened.clear()
    asked = ("--tasks", "colours", "--tasks-path", tasks_folder, "--allow-task-code")
    if verb == "audit":
        done = audited(tiny_model_folder, tmp_path / "a", tmp_path / "out", *asked)
    else:
        forms = ("--forms", "merged-bf16") if "--forms" in verb else ()
        done = rankwise("check", tiny_model_folder, tmp_path / "a", *asked, *forms, "--json")
    assert done.stdout
    assert read(opened) == {CONFIG_FILE: 1, WEIGHTS_FILE: 2}, done.stderr


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module."])
def test_names_of_wrapped_modules_are_those_of_the_base(wrapper: str, tmp_path: Path) -> None:
    saved(tmp_path)
    expected = AdapterFolder(tmp_path).factors

    def wrapped(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            inner = name.replace("layers.0.", f"layers.0.{wrapper}")
            tensors[f"{wrapper}{inner}"] = tensors.pop(name)

    rewritten(tmp_path, wrapped)
    found = AdapterFolder(tmp_path).factors
    assert found.keys() == expected.keys()
    for name, factors in expected.items():
        assert torch.equal(found[name].lora_A, factors.lora_A)
        assert torch.equal(found[name].lora_B, factors.lora_B)
