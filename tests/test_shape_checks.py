"""Functions within functions are checked at every call, by checks that are written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from rankwise.weights.lowrank import LowRankUpdate
from tests.support import checked


def times(factor: float, *, is_cut: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """Multiplies two vectors and a number; one that is cut returns less than it says."""

    @jaxtyped(typechecker=checked.checked)
    def inside(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        product = factor * x * y
        return product[1:] if is_cut else product

    return inside


def test_each_has_its_own_numbers_and_all_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        written.append(function.__qualname__)
        return original(function)

    original = checked.beartype
    monkeypatch.setattr(checked, "beartype", counting)
    monkeypatch.setattr(checked, "_CHECKS", {})
    two, three, cut = times(2.0), times(3.0), times(2.0, is_cut=True)
    assert written == ["times.<locals>.inside"] * 2  # of its arguments, and of its result
    x = torch.tensor([1.0, 2.0])
    assert two(x, x).tolist() == [2.0, 8.0]
    assert three(x, x).tolist() == [3.0, 12.0]
    for function in (two, three, cut):
        with pytest.raises(TypeCheckError, match="checking the parameters"):
            function(x, torch.ones(3))
        with pytest.raises(TypeCheckError, match="checking the parameters"):
            function(x, torch.tensor([1, 2]))
    with pytest.raises(TypeCheckError, match="checking the return value"):
        cut(x, x)


def test_functions_of_one_name_are_told_apart_by_what_they_take() -> None:
    def made(annotation: Any) -> Callable[[Any], Any]:
        def inside(x: Any) -> Any:
            return x

        inside.__annotations__["x"] = annotation
        return jaxtyped(typechecker=checked.checked)(inside)

    square, row, numbers = made(Float[Tensor, "n n"]), made(Float[Tensor, " n"]), made(list[int])
    assert square(torch.ones(2, 2)).shape == (2, 2)
    assert row(torch.ones(3)).shape == (3,)
    assert numbers([1]) == [1]
    for function in (square, row, numbers):
        with pytest.raises(TypeCheckError):
            function(torch.ones(2, 3))


def test_the_packages_of_tensors_are_checked() -> None:
    with pytest.raises(TypeCheckError, match="lora_B"):
        LowRankUpdate(torch.ones(2, 5), torch.ones(7, 3), 1.0)
