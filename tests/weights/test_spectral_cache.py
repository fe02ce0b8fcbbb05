"""Decompositions that are kept: made once, by content, and done without where they cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankwise.weights import decomposition
from rankwise.weights.decomposition import SpectralCache, kept_bytes, refined_svd
from rankwise.weights.spectra import Svd

ENOUGH_FREE = 10**12


def weight(seed: int = 0, size: int = 130) -> torch.Tensor:
    return torch.randn(size, size + 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def disk_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is free on the disk of the machine that runs the tests."""
    monkeypatch.setattr(decomposition, "free_bytes", lambda _: ENOUGH_FREE)


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every matrix that is decomposed, in turn."""
    calls: list[torch.Tensor] = []

    def counted(matrix: torch.Tensor) -> Svd:
        calls.append(matrix)
        return refined_svd(matrix)

    monkeypatch.setattr(decomposition, "refined_svd", counted)
    return calls


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def same(one: Svd, other: Svd) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_a_matrix_is_decomposed_once(tmp_path: Path, decomposed: list[torch.Tensor]) -> None:
    cache, matrix = SpectralCache(tmp_path / "svd"), weight()
    first = cache.svd(matrix)
    second = SpectralCache(tmp_path / "svd").svd(matrix.clone())
    assert len(decomposed) == 1
    assert same(first, second)
    assert torch.allclose(second.U * second.S @ second.Vh, matrix, atol=1e-4)
    (path,) = files(tmp_path)
    assert path.suffix == ".safetensors"


def test_the_file_of_another_matrix_is_not_taken(
    tmp_path: Path, decomposed: list[torch.Tensor]
) -> None:
    cache = SpectralCache(tmp_path)
    cache.svd(weight())
    theirs = cache.svd(weight(1))
    first, second = files(tmp_path)
    second.write_bytes(first.read_bytes())
    cache.svd(weight())
    assert same(cache.svd(weight(1)), theirs)
    assert len(decomposed) == 3


def test_every_flipped_byte_of_a_number_is_noticed(
    tmp_path: Path, decomposed: list[torch.Tensor]
) -> None:
    cache = SpectralCache(tmp_path)
    good = cache.svd(weight())
    (path,) = files(tmp_path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in (start, start + 70_001, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert same(cache.svd(weight()), good)
        assert path.read_bytes() == content
    assert len(decomposed) == 4


def test_numbers_that_were_not_written_here_are_not_taken(
    tmp_path: Path, decomposed: list[torch.Tensor]
) -> None:
    cache = SpectralCache(tmp_path)
    good = cache.svd(weight())
    (path,) = files(tmp_path)
    for change in (
        {"U": good.U[:9]},
        {"S": good.S * torch.nan},
        {"S": good.S.double()},
        {"Vh": good.Vh.T.contiguous()},
        {"S": good.S + 1.0},
    ):
        save_file(good._asdict() | change, path)
        assert same(cache.svd(weight()), good)
    assert len(decomposed) == 6


def test_other_contents_have_other_files(tmp_path: Path, decomposed: list[torch.Tensor]) -> None:
    cache, matrix = SpectralCache(tmp_path), weight()
    changed = matrix.clone()
    changed[-1, -1] += 1e-3
    square = torch.randn(136, 136, generator=torch.Generator().manual_seed(3))
    others = [changed, matrix.T, matrix.bfloat16(), square, square.T]
    for matrix_ in (matrix, *others):
        cache.svd(matrix_)
    assert len(decomposed) == len(files(tmp_path)) == 6
    for matrix_ in (matrix, *others):
        found = cache.svd(matrix_)
        assert torch.allclose(found.U * found.S @ found.Vh, matrix_.float(), atol=1e-4)
    assert len(decomposed) == 6


def test_a_transposed_matrix_is_the_same_in_either_layout(
    tmp_path: Path, decomposed: list[torch.Tensor]
) -> None:
    cache, matrix = SpectralCache(tmp_path), weight()
    first = cache.svd(matrix.T)
    assert same(cache.svd(matrix.T.contiguous()), first)
    assert len(decomposed) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "other tensors", "a folder"])
def test_a_damaged_file_is_replaced(
    tmp_path: Path, decomposed: list[torch.Tensor], damage: str
) -> None:
    cache = SpectralCache(tmp_path)
    good = cache.svd(weight())
    (path,) = files(tmp_path)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other tensors":
        save_file({"U": torch.zeros(2), "other": torch.zeros(2)}, path)
    else:
        path.unlink()
        path.mkdir()
    assert same(cache.svd(weight()), good)
    assert len(decomposed) == 2
    if damage != "a folder":  # which is somebody's, and stays
        assert path.read_bytes() == content
        assert same(cache.svd(weight()), good)
        assert len(decomposed) == 2


def test_a_nearly_full_disk_keeps_nothing(
    tmp_path: Path, decomposed: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * (130 * 130 + 130 + 130 * 136)
    cache = SpectralCache(tmp_path)
    for free, kept in ((10 * 10**9 + size, 0), (10 * 10**9 + size + 1, 1)):
        monkeypatch.setattr(decomposition, "free_bytes", lambda _, free=free: free)
        found = cache.svd(weight())
        assert torch.allclose(found.U * found.S @ found.Vh, weight(), atol=1e-4)
        assert len(files(tmp_path)) == kept
    assert len(decomposed) == 2


@pytest.mark.parametrize("moment", ["making the folder", "writing"])
def test_where_nothing_can_be_written_there_is_still_an_answer(
    tmp_path: Path,
    decomposed: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    folder = tmp_path / "svd"
    if moment == "making the folder":
        folder.write_text("a file in its place")
    else:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(decomposition, "save_file", full)
    before = files(tmp_path)
    for _ in range(2):
        found = SpectralCache(folder).svd(weight())
        assert torch.allclose(found.U * found.S @ found.Vh, weight(), atol=1e-4)
    assert len(decomposed) == 2
    assert files(tmp_path) == before


def test_small_matrices_are_not_kept(tmp_path: Path, decomposed: list[torch.Tensor]) -> None:
    cache = SpectralCache(tmp_path / "svd")
    for _ in range(2):
        cache.svd(torch.randn(127, 400))
    assert len(decomposed) == 2
    assert files(tmp_path) == []


def test_weights_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path) -> None:
    matrix = weight()
    matrix[3, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        SpectralCache(tmp_path).svd(matrix)
    assert files(tmp_path) == []


def test_the_default_is_in_the_user_s_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decomposition, "cache_folder", lambda: Path("/somewhere"))
    assert SpectralCache().folder == Path("/somewhere/svd")


def test_what_was_not_used_for_the_longest_time_goes_first(
    tmp_path: Path, decomposed: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    SpectralCache(tmp_path).svd(weight(0))
    (first,) = files(tmp_path)
    size = first.stat().st_size
    SpectralCache(tmp_path).svd(weight(1))
    (second,) = [path for path in files(tmp_path) if path != first]
    for path, seconds in ((first, 1e9), (second, 1.1e9)):
        os.utime(path, (seconds, seconds))
    monkeypatch.setattr(decomposition, "MOST_BYTES", 5 * size // 2)
    SpectralCache(tmp_path).svd(weight(0))  # it is read, and so used
    cache = SpectralCache(tmp_path)
    cache.svd(weight(2))
    assert first in files(tmp_path)
    assert second not in files(tmp_path)
    os.utime(first)
    cache.svd(weight(3))  # what this study has used or made does not go
    assert len(files(tmp_path)) == 2
    assert first in files(tmp_path)
    assert len(decomposed) == 4


def test_the_bytes_of_a_file_are_known_beforehand(tmp_path: Path) -> None:
    SpectralCache(tmp_path).svd(weight())
    (path,) = files(tmp_path)
    assert 0 <= path.stat().st_size - kept_bytes(130, 136) < 1000  # the header
    assert kept_bytes(127, 400) == 0
