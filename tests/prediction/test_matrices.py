"""Which matrices are read, in groups, and means over kinds of them."""

from __future__ import annotations

import pytest

from rankwise.engine.models.base import LinearShape
from rankwise.prediction.matrices import in_groups, means_by_kind, read_matrices


def _shapes(num_layers: int) -> dict[str, LinearShape]:
    ends = ("self_attn.q_proj", "mlp.up_proj")
    return {f"layers.{i}.{end}": LinearShape(4, 6) for i in range(num_layers) for end in ends}


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [
        (1, [0]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (30, [0, 4, 8, 12, 17, 21, 25, 29]),
    ],
)
def test_eight_layers_from_the_first_to_the_last(num_layers: int, expected: list[int]) -> None:
    names = list(read_matrices({**_shapes(num_layers), "other": LinearShape(2, 2)}))
    assert names[-1] == "other"
    found = [int(name.split(".")[1]) for name in names[:-1]]
    assert found == [number for number in expected for _ in range(2)]


def test_groups_hold_what_fits() -> None:
    sizes = {"a": 3, "b": 4, "c": 9, "d": 1, "e": 1}
    assert list(in_groups(sizes, 7)) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(in_groups({}, 7)) == []


def test_means_over_all_and_over_kinds() -> None:
    values = {"layers.0.self_attn.q_proj": 2.0, "layers.1.self_attn.q_proj": 4.0}
    assert means_by_kind("x", values) == {"x": 3.0, "x_attention": 3.0}
    more = {**values, "layers.0.mlp.up_proj": 9.0}
    assert means_by_kind("x", more) == {"x": 5.0, "x_attention": 3.0, "x_mlp": 9.0}
    assert means_by_kind("x", {}) == {}
