"""llama.cpp's quantiser: what it is given, what is read back, and what is said where it fails.

A stand-in reads the file as llama-quantize does and writes Q8_0 by the gguf package.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor

from rankwise.errors import ModelError, StorageError
from rankwise.records import files
from rankwise.weights.forms import find_forms, has_llama_cpp, in_gguf, quantised

STAND_IN = f"""#!{sys.executable}
import sys
import gguf
source, target, kind = sys.argv[1:]
reader = gguf.GGUFReader(source)
fields = {{name: field.contents() for name, field in reader.fields.items()}}
assert fields["general.architecture"] == "llama", fields
assert (fields["llama.block_count"], fields["llama.attention.head_count"]) == (2, 4), fields
if kind != "Q4_K_M":
    sys.exit(f"no format {{kind}}")
writer = gguf.GGUFWriter(target, "llama")
for tensor in reader.tensors:
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, q8_0), raw_dtype=q8_0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


def matrices(width: int = 64) -> list[tuple[str, Tensor]]:
    """Of a llama of two layers, in which four heads share a key."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width // 4, width),
        "mlp.down_proj": (width, 2 * width),
    }
    return [
        (f"model.layers.{layer}.{name}.weight", torch.randn(*shape, generator=generator))
        for layer in range(2)
        for name, shape in shapes.items()
    ]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "llama-quantize"
    tool.parent.mkdir()
    tool.write_text(STAND_IN)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))


@pytest.mark.usefixtures("stand_in")
def test_every_matrix_comes_back_in_its_place() -> None:
    (form,) = find_forms(["gguf:q4_k_m"])
    stored = list(form.matrices(iter(matrices())))
    for (name, weight), (read, num_bytes, _) in zip(matrices(), stored, strict=True):
        expected = in_gguf("Q8_0")(weight)
        assert torch.equal(read, expected.weight), name
        assert num_bytes == expected.num_bytes


@pytest.mark.usefixtures("stand_in")
def test_its_refusal_is_passed_on() -> None:
    with pytest.raises(ModelError, match="could not make Q2_K: no format Q2_K"):
        list(quantised("Q2_K", matrices()))


@pytest.mark.usefixtures("stand_in")
def test_matrices_of_other_names_are_refused() -> None:
    with pytest.raises(ModelError, match=r"there is transformer\.h\.0\.attn\.other\.weight"):
        list(quantised("Q4_K_M", [("transformer.h.0.attn.other.weight", torch.zeros(2, 32))]))


@pytest.mark.usefixtures("stand_in")
def test_a_full_disk_is_told_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 1000)
    with pytest.raises(StorageError, match=r"merged\.gguf takes"):
        list(quantised("Q4_K_M", matrices()))


def test_without_the_tool_the_forms_that_are_there_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match=r"gguf:q4_k_m needs llama-quantize .* gguf:q4_0"):
        find_forms(["gguf:q4_k_m"])


@pytest.mark.skipif(not has_llama_cpp(), reason="llama-quantize is not on the PATH")
def test_the_real_one_gives_its_formats() -> None:
    """4.5 bits for most and 6.6 for some; its Q8_0 is the gguf package's."""
    large = matrices(512)
    sizes = {
        round(8 * stored.num_bytes / weight.numel(), 2)
        for (_, weight), stored in zip(large, quantised("Q4_K_M", large), strict=True)
    }
    assert sizes <= {4.5, 6.56}
    for (_, weight), stored in zip(large, quantised("Q8_0", large), strict=True):
        kind = gguf.GGMLQuantizationType.Q8_0
        rounded = gguf.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
        assert torch.equal(stored.weight, torch.from_numpy(rounded))
