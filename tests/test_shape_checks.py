"""The first calls of a function are checked, in each test, by checks that are written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from rankwise.weights.lowrank import LowRankUpdate
from tests.support import checked


def times(factor: float, *, is_cut: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """Multiplies two vectors and a number; one that is cut returns less than it says."""

    @jaxtyping.jaxtyped(typechecker=checked.checked)
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
    x = torch.tensor([1.0, 2.0])
    assert two(x, x).tolist() == [2.0, 8.0]
    assert three(x, x).tolist() == [3.0, 12.0]
    assert written == ["times.<locals>.inside"] * 2  # of its arguments, and of its result
    for function in (two, three, cut):
        with pytest.raises(TypeCheckError, match="checking the parameters"):
            function(x, torch.ones(3))
        with pytest.raises(TypeCheckError, match="checking the parameters"):
            function(x, torch.tensor([1, 2]))
    with pytest.raises(TypeCheckError, match="checking the return value"):
        cut(x, x)


def test_after_its_first_calls_a_function_is_not_checked_until_the_next_test() -> None:
    x, wrong = torch.ones(2), torch.ones(3)
    for _ in range(checked.CALLS):
        with pytest.raises(TypeCheckError):
            times(2.0, is_cut=True)(x, x)  # made anew each time, and counted together
    assert times(2.0, is_cut=True)(x, x).shape == (1,)
    assert times(2.0)(wrong, wrong).shape == (3,)
    checked.forget_calls()  # what is done before every test
    with pytest.raises(TypeCheckError):
        times(2.0)(x, wrong)


@pytest.fixture(scope="module", params=[0, 1])
def all_checks_are_used_up(request: pytest.FixtureRequest) -> int:
    used_up()
    return request.param


def used_up() -> None:
    for _ in range(checked.CALLS):
        with pytest.raises(TypeCheckError):
            times(2.0)(torch.ones(2), torch.ones(3))


@pytest.mark.usefixtures("all_checks_are_used_up")
@pytest.mark.parametrize("repeated", [0, 1])
def test_tests_and_wider_fixtures_are_checked_anew(repeated: int) -> None:
    used_up()


def test_what_is_no_plain_function_is_left_to_jaxtyping() -> None:
    class Row:
        @jaxtyping.jaxtyped(typechecker=checked.checked)
        @staticmethod
        def of(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
            return x

    assert Row.of(torch.ones(3)).shape == (3,)
    with pytest.raises(TypeCheckError):
        Row.of(torch.ones(3, 3))
    with jaxtyping.jaxtyped("context"):
        assert isinstance(torch.ones(3), Float[Tensor, " n"])


def test_functions_of_one_name_are_told_apart_by_what_they_take() -> None:
    def made(annotation: Any) -> Callable[[Any], Any]:
        def inside(x: Any) -> Any:
            return x

        inside.__annotations__["x"] = annotation
        return jaxtyping.jaxtyped(typechecker=checked.checked)(inside)

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
