"""What a unit asks of a Ray cluster, and what is refused; needs no Ray."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from rankwise.engine.models.devices import Machine
from rankwise.errors import ConfigError, WorkerLostError
from rankwise.study.executors.ray import Cluster, Places
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

GB = 1e9
CARDS = [
    {"CPU": 2.0, "memory": 8 * GB},  # where it is started
    {"CPU": 64.0, "GPU": 8.0, "memory": 500 * GB},
    {"CPU": 9.0, "GPU": 2.0, "memory": 100 * GB},
]


class Unit:
    memory_bytes = round(3 * GB)


@pytest.mark.parametrize(
    ("cores", "num_workers", "cpus", "count"),
    [
        ([8.0], None, 8.0, 1),
        ([8.0], 3, 2.0, 4),  # 2.67, of which whole ones; so there is a place more
        ([8.0, 4.0], None, 4.0, 3),  # as many as the smallest node has
        ([1.0], 2, 0.5, 2),
        ([0.0, 4.0], None, 4.0, 1),  # the first runs no tasks
    ],
)
def test_units_share_the_processors(
    cores: list[float], num_workers: int | None, cpus: float, count: int
) -> None:
    nodes = [{"CPU": each, "memory": 2 * GB} for each in cores]
    places = Places.of(nodes, num_workers)
    assert (places.num_cpus, places.count(nodes)) == (cpus, count)
    assert places.count([*nodes, {"CPU": 2 * cpus}]) == count + 2  # a node that came late
    unit: Any = Unit
    # a node never has more memory than the largest: the task would wait for ever
    assert places.options(places.held_by(unit)) == {"num_cpus": cpus, "memory": round(2 * GB)}


def test_units_have_a_card_each_or_all_of_a_node() -> None:
    unit: Any = Unit()
    places = Places.of(CARDS, None)
    assert places == Places(True, 4.0, 1, round(500 * GB))
    assert places.count(CARDS) == 10
    assert places.options(places.held_by(unit)) == {"num_cpus": 4.0, "num_gpus": 1}
    together = Places.of(CARDS, 1)
    assert together.count(CARDS) == 1
    assert together.options(together.held_by(unit)) == {"num_cpus": 32.0, "num_gpus": 8}


class OneCard:
    """What ``Cluster`` asks of Ray to learn of a card: it is free only after the first look."""

    def remote(self, *_: Any, **__: Any) -> Any:
        return self

    options = remote

    def wait(self, refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return [], refs

    def get(self, _: Any) -> int:
        return round(80 * GB)


def test_the_machine_of_a_cluster_has_memory_that_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    """Each task plans again, beside others that take what is free."""
    notes: list[str] = []

    def cluster_of(ray: Any) -> Cluster:
        monkeypatch.setitem(sys.modules, "ray", ray)
        return Cluster(None, notes.append)

    cpu = cluster_of(OneCard()).machine(Places.of([{"CPU": 4.0, "memory": 2 * GB}], None))
    assert cpu == Machine(torch.device("cpu"), round(2 * GB))
    card = cluster_of(OneCard()).machine(Places.of(CARDS, None))
    assert card == Machine(torch.device("cuda"), round(80 * GB), 1)
    sentence(notes)


class Slow:
    """A Ray whose start takes longer than it waits."""

    is_shut_down = False

    def init(self, *_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.")  # the class that Ray raises

    def shutdown(self) -> None:
        self.is_shut_down = True


def test_a_ray_that_does_not_start_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    ray = Slow()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(WorkerLostError) as caught:
        Cluster(None).__enter__()
    sentence(caught.value, names=("timed out", "--workers"))
    assert ray.is_shut_down


def test_a_cluster_without_processors_is_refused(sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        Places.of([{"memory": GB}], None)
    sentence(caught.value)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--gpus all --workers 2", ("--gpus", "--workers", "--address")),
        ("--gpus all", ("--gpus", "--workers")),
        ("--workers 2 --quiet --json", ("--quiet", "--json")),
    ],
)
def test_options_that_do_not_go_together(
    options: str, names: tuple[str, ...], sentence: Sentences
) -> None:
    refused = rankwise("run", *options.split())
    assert refused.exit_code == 2
    sentence(words(refused.stderr), names=names)


def test_without_ray_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = rankwise("run", "--workers", "2")
    assert refused.exit_code == 2
    sentence(words(refused.stderr), names=("'.[ray]'",))
