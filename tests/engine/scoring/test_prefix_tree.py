"""Prefix trees of hand-made sequences: shared tokens are in it once; what a reader keeps."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from rankwise.engine.models import packed_kernels
from rankwise.engine.scoring.tree import layout as tree_layout
from rankwise.engine.scoring.tree.layout import TreeLayout
from rankwise.engine.scoring.tree.prefixes import Branch, PrefixTree
from rankwise.errors import DataError

CPU = torch.device("cpu")


def written(tree: PrefixTree) -> list[list[int]]:
    """The tokens of every sequence, read off the tree."""
    return [tree.tokens[tree.path(last)].tolist() for last in tree.lasts]


CASES: dict[str, tuple[list[list[int]], int]] = {
    "one": ([[5, 6, 7]], 3),
    "single token": ([[5]], 1),
    "nothing shared": ([[1, 2], [3, 4]], 4),
    "shared prefix": ([[1, 2, 3], [1, 2, 4]], 4),
    "nested": ([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6], [1, 7]], 7),
    "duplicates": ([[1, 2], [3], [1, 2], [3]], 3),
    "a prefix of another": ([[1, 2, 3], [1], [1, 2]], 3),
    "the same token elsewhere": ([[1, 1, 1], [2, 1, 1]], 6),
    "none": ([], 0),
}


@pytest.mark.parametrize(("sequences", "distinct"), CASES.values(), ids=CASES)
def test_every_distinct_token_is_there_once(sequences: list[list[int]], distinct: int) -> None:
    tree = PrefixTree(sequences)
    assert len(tree) == distinct
    assert written(tree) == sequences
    assert tree.longest == max(map(len, sequences), default=0)


def test_the_nested_tree_by_hand() -> None:
    tree = PrefixTree([[1, 7], [1, 2, 3, 5], [1, 2, 6], [1, 2, 3, 4]])
    assert tree.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert tree.depths.tolist() == [0, 1, 2, 3, 3, 2, 1]
    assert tree.ends.tolist() == [7, 6, 5, 4, 5, 6, 7]
    assert tree.branches == [Branch(0, 4, -1), Branch(4, 5, 2), Branch(5, 6, 1), Branch(6, 7, 0)]
    assert tree.lasts == [6, 4, 5, 3]
    assert tree.ancestors(4).tolist() == [0, 1, 2]
    assert tree.ancestors(0).tolist() == []


def test_a_sequence_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="a sequence of no tokens"):
        PrefixTree([[1], []])


def random_sequences(seed: int) -> list[list[int]]:
    """Of few distinct tokens, so that much is shared at many depths."""
    draw = random.Random(seed)
    prefix = [draw.randrange(3) for _ in range(12)]
    made = [
        prefix[: draw.randrange(13)] + [draw.randrange(3) for _ in range(draw.randrange(1, 9))]
        for _ in range(25)
    ]
    return [*made, made[0], made[1][:1]]


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_has_all_distinct_prefixes_in_any_order(seed: int) -> None:
    sequences = random_sequences(seed)
    tree = PrefixTree(sequences)
    prefixes = {tuple(row[: n + 1]) for row in sequences for n in range(len(row))}
    assert len(tree) == len(prefixes)
    assert written(tree) == sequences
    backwards = PrefixTree(sequences[::-1])
    assert backwards.tokens.tolist() == tree.tokens.tolist()
    assert backwards.lasts == tree.lasts[::-1]
    for place in range(len(tree)):
        path = tree.path(place)
        assert path.tolist() == sorted(path.tolist())
        assert tree.depths[path].tolist() == list(range(len(path)))
        inside = [other for other in range(len(tree)) if place in tree.path(other)]
        assert inside == list(range(place, tree.ends[place]))


# the layout of a step: which query sees which keys


def seen_by_layout(layout: TreeLayout) -> list[list[int]]:
    """The places that every query sees, by way of blocks and shared keys; each at most once."""
    tree = layout.tree
    pool = [*(tree.ancestors(layout.start).tolist()), *range(layout.start, layout.stop)]
    seen: list[list[int]] = [[] for _ in range(layout.num_queries)]
    filled = set[int]()
    for group in layout.groups:
        for block in range(len(group.queries)):
            for row, query in enumerate(group.queries[block].tolist()):
                keys = group.keys[block][group.seen[block, row]].tolist()
                if query not in filled:  # a block is filled up with copies of its last query
                    filled.add(query)
                    seen[query] += [pool[key] for key in keys]
    assert filled == set(range(layout.num_queries))
    for shared in layout.shared:
        keys = [pool[key] for piece in shared.slices for key in range(piece.start, piece.stop)]
        assert len(keys) == shared.num_keys
        for query in range(shared.start, shared.stop):
            seen[query] += keys
    return seen


SIZES: list[dict[str, int]] = [
    {},
    {"_BLOCK_QUERIES": 4, "_KEY_STEP": 8, "_SHARED_KEYS": 5, "_SHARED_QUERIES": 3},
    {"_BLOCK_QUERIES": 3, "_KEY_STEP": 1, "_SHARED_KEYS": 1, "_SHARED_QUERIES": 1},
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("step", [1, 7, 30, 1000])
def test_a_query_sees_its_ancestors_and_itself_once_each(
    step: int, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in sizes.items():
        monkeypatch.setattr(tree_layout, name, size)
    tree, num_shared = PrefixTree(random_sequences(0)), 0
    for start in range(0, len(tree), step):
        layout = TreeLayout(tree, start, min(start + step, len(tree)), CPU)
        num_shared += len(layout.shared)
        for query, found in enumerate(seen_by_layout(layout)):
            assert sorted(found) == tree.path(start + query).tolist()
    assert (num_shared > 0) == (step >= sizes.get("_SHARED_QUERIES", 10_000))


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("block", [1, 4, 128])
@pytest.mark.parametrize("step", [1, 7, 30, 1000])
def test_a_mask_shows_the_same(
    step: int, block: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tree_layout, packed_kernels):
        monkeypatch.setattr(module, "MASK_BLOCK", block)
    tree, num_full = PrefixTree(random_sequences(0)), 0
    for start in range(0, len(tree), step):
        layout = TreeLayout(tree, start, min(start + step, len(tree)), CPU)
        pool = [*tree.ancestors(start).tolist(), *range(start, layout.stop)]
        sees = np.zeros((layout.num_queries, len(pool)), dtype=bool)
        for query in range(layout.num_queries):
            path = tree.path(start + query)
            near = path if window is None else path[-window:]
            sees[query] = np.isin(pool, near)
        mask: Any = layout.mask(window)
        queries, keys = torch.arange(len(sees))[:, None], torch.arange(len(pool))
        assert np.array_equal(mask.mask_mod(None, None, queries, keys).numpy(), sees)
        listed = np.zeros_like(sees)
        for is_full in (False, True):
            counts, indices = (
                (mask.full_kv_num_blocks, mask.full_kv_indices)
                if is_full
                else (mask.kv_num_blocks, mask.kv_indices)
            )
            for row, count in enumerate(counts[0, 0].tolist()):
                for column in indices[0, 0, row, :count].tolist():
                    part = np.s_[
                        row * block : (row + 1) * block, column * block : (column + 1) * block
                    ]
                    assert not listed[part].any()
                    assert sees[part].all() if is_full else window or sees[part].any()
                    listed[part] = True
                    num_full += is_full
        assert not (sees & ~listed).any()
    assert (num_full > 0) == (window is None and step >= block and block < 128)


def test_a_long_prefix_becomes_shared_keys_and_its_children_small_blocks() -> None:
    prefix = list(range(200))
    tree = PrefixTree([[*prefix, 1000 + n, *range(30)] for n in range(20)])
    layout = TreeLayout(tree, 200, len(tree), CPU)
    assert layout.num_cached == 200
    (shared,) = layout.shared
    assert (shared.start, shared.stop, shared.num_keys) == (0, 20 * 31, 200)
    assert shared.slices == (slice(0, 200),)
    assert max(group.keys.shape[1] for group in layout.groups) <= 128


def test_the_pool_has_cached_ancestors_at_their_depth() -> None:
    tree = PrefixTree([[1, 2, 3], [1, 2, 4], [1, 5]])
    layout = TreeLayout(tree, 3, 5, CPU)  # of the token 4 on
    assert layout.num_cached == 2
    assert layout.pool_slices(tree.path(3)) == (slice(0, 3),)
    assert layout.pool_slices(tree.path(4)) == (slice(0, 1), slice(3, 4))
    assert layout.pool_slices(np.empty(0, dtype=np.int64)) == ()


def test_positions_are_depths() -> None:
    tree: Any = PrefixTree([[1, 2, 3], [1, 9]])
    layout = TreeLayout(tree, 1, 4, CPU)
    assert layout.tokens.tolist() == [2, 3, 9]
    assert layout.positions.tolist() == [1, 2, 1]
