"""How fast and how exact are leading singular vectors of base + LoRA update?

    python -m benchmarks.spectra [--shapes 4096x4096 1024x4096 14336x4096] [--ranks 8 16 32 64 128]
                                 [--reference-ranks 8 32 128] [--study studies/quickstart]

Shapes are those of q and o, k and v, and an MLP layer of an 8B model; singular values of the base
fall as i^-0.5 ("decaying") or are those of a Gaussian matrix ("flat"); updates are products of
Gaussian factors with 5 % of the base's Frobenius norm. With ``--study`` every matrix that a LoRA
run of a finished study adapts comes too, with the trained updates; these have figures of their own.

Ours: one ``refined_svd`` of the base, kept; then ``in_base_basis`` and ``leading_svd`` of the top
500, whose coordinates are all cosines. Peer A: torch.linalg.svd of base and of base + update for
every adapter; peer B: the same with the base's SVD kept; both float32, with the cosines of all of
the base's vectors and the adapted top 500. All on the same cores, ours and the peer in turn for
every adapter. Reference: torch.linalg.svd in float64, of updates of ``--reference-ranks``.

Errors are of similarities (index-matched and best-matched, left and right), of vectors outside
clusters: both neighbours further than 1e-4 of the largest singular value, before and after. Inside,
the overlap of the clusters' subspaces is compared. Intruders are counted among vectors outside
clusters, for every epsilon of the grid. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.start import fetch_weights
from rankwise.engine.models.weights import weight_matrices
from rankwise.records.folder import StudyFolder
from rankwise.records.spectra import EPSILONS
from rankwise.weights.adapted_svd import in_base_basis, leading_svd
from rankwise.weights.decomposition import refined_svd
from rankwise.weights.lowrank import LowRankUpdate, read_updates
from rankwise.weights.spectra import Svd, best_matched, cosines, index_matched

TOP_K = 500
CLUSTER_GAP = 1e-4
UPDATE_SHARE = 0.05


class Case(NamedTuple):
    """A base matrix in float32 and the updates of it."""

    name: str
    base: Tensor
    updates: Sequence[LowRankUpdate]


class Sides(NamedTuple):
    """Cosines of all of the base's vectors (rows) with the adapted top k, left and right."""

    left: Tensor
    right: Tensor


class Seconds:
    """Totals over adapters."""

    def __init__(self) -> None:
        self.base = self.cached_base = self.ours = self.adapted = self.peer_base = 0.0
        self.num_adapters = 0

    def figures(self) -> dict[str, float]:
        ours = self.base + self.ours
        return {
            "ratio_vs_svd": (self.peer_base + self.adapted) / ours,
            "ratio_vs_cached_svd": (self.cached_base + self.adapted) / ours,
            "ratio_per_adapter_given_base": self.adapted / self.ours,
        }


class Errors:
    """Largest errors, ours and the peer's, and what was compared."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.ours = self.peer = self.cluster_ours = self.cluster_peer = 0.0
        self.in_clusters = self.compared = 0
        self.mismatches = self.peer_mismatches = 0

    def figures(self) -> dict[str, float]:
        return {
            "max_error_over_svd_error": self.worst,
            "max_error": self.ours,
            "max_svd_error": self.peer,
            "max_cluster_error": self.cluster_ours,
            "max_cluster_svd_error": self.cluster_peer,
            "share_in_clusters": self.in_clusters / self.compared,
            "intruder_count_mismatches": self.mismatches,
            "svd_intruder_count_mismatches": self.peer_mismatches,
        }


def synthetic(shape: tuple[int, int], ranks: Sequence[int]) -> Iterator[Case]:
    """A decaying and a flat base with an update of each rank."""
    generator = torch.Generator().manual_seed(0)
    size = min(shape)

    def gaussian(*of: int) -> Tensor:
        return torch.randn(*of, generator=generator)

    decay = torch.arange(1, size + 1).float() ** -0.5
    left, right = (torch.linalg.qr(gaussian(rows, size)).Q for rows in shape)
    for kind, base in (("decaying", left * decay @ right.T), ("flat", gaussian(*shape))):
        updates: list[LowRankUpdate] = []
        for rank in ranks:
            A, B = gaussian(rank, shape[1]), gaussian(shape[0], rank)
            raw = LowRankUpdate(A, B)
            scaling = UPDATE_SHARE * float(base.norm()) / raw.frobenius_norm
            updates.append(LowRankUpdate(A, B, scaling))
        yield Case(f"{shape[0]}x{shape[1]} {kind}", base, updates)


def of_study(folder: StudyFolder) -> Iterator[Case]:
    """Every matrix that LoRA runs of a finished study adapt."""
    study = folder.read_study()
    runs = [run for run in study.runs if run.method == "lora"]
    updates = [read_updates(AdapterFolder(folder.weights_folder(run))) for run in runs]
    layers = list(dict.fromkeys(name for each in updates for name in each))
    base = fetch_weights(find_base_model(study.config.base_model))
    for name, weight in weight_matrices(base, layers).items():
        yield Case(name, weight.float(), [each[name] for each in updates if name in each])


def measure(case: Case, seconds: Seconds, errors: Errors, referred: Sequence[int]) -> None:
    """Every update of a case: ours, the peer, and the float64 reference."""
    k = min(TOP_K, *case.base.shape)
    started = time.perf_counter()
    base = refined_svd(case.base)
    seconds.base += time.perf_counter() - started
    started = time.perf_counter()
    peer_base = Svd(*torch.linalg.svd(case.base, full_matrices=False))
    seconds.cached_base += time.perf_counter() - started
    exact_base = Svd(*torch.linalg.svd(case.base.double(), full_matrices=False))
    for number, update in enumerate(case.updates):
        started = time.perf_counter()
        found = leading_svd(in_base_basis(base, update.factorization), k)
        ours = Sides(found.left_cosines, found.right_cosines)
        seconds.ours += time.perf_counter() - started

        started = time.perf_counter()
        torch.linalg.svd(case.base, full_matrices=False)  # peer A has it again for every adapter
        seconds.peer_base += time.perf_counter() - started
        started = time.perf_counter()
        delta = update.scaling * (update.lora_B.float() @ update.lora_A.float())
        adapted = Svd(*torch.linalg.svd(case.base + delta, full_matrices=False))
        peer = _sides(peer_base, adapted, k)
        seconds.adapted += time.perf_counter() - started
        seconds.num_adapters += 1

        print(f"{case.name}, update {number + 1} of {len(case.updates)}", file=sys.stderr)
        if update.rank not in referred:
            continue
        delta = update.scaling * (update.lora_B.double() @ update.lora_A.double())
        exact = Svd(*torch.linalg.svd(case.base.double() + delta, full_matrices=False))
        _compare(errors, ours, peer, _sides(exact_base, exact, k), exact_base.S, exact.S)


def _sides(base: Svd, adapted: Svd, k: int) -> Sides:
    return Sides(cosines(base.U, adapted.U[:, :k]), cosines(base.Vh.T, adapted.Vh[:k].T))


def _compare(
    errors: Errors, ours: Sides, peer: Sides, exact: Sides, before: Tensor, after: Tensor
) -> None:
    k = ours.left.shape[1]
    joined = _near(before, k) | _near(after, k)  # i with i + 1
    alone = ~(joined | torch.cat([joined.new_zeros(1), joined[:-1]]))
    errors.compared += k
    errors.in_clusters += int((~alone).sum())
    largest = [0.0, 0.0]
    for side in ("left", "right"):
        expected = getattr(exact, side)
        for place, found in enumerate((ours, peer)):
            cosine = getattr(found, side).double()
            for measure_of in (index_matched, best_matched):
                off = (measure_of(cosine) - measure_of(expected)).abs()[alone]
                largest[place] = max([largest[place], *off.tolist()])
            errors_in = _cluster_error(cosine, expected, joined)
            if place == 0:
                errors.cluster_ours = max(errors.cluster_ours, errors_in)
            else:
                errors.cluster_peer = max(errors.cluster_peer, errors_in)
    errors.ours, errors.peer = max(errors.ours, largest[0]), max(errors.peer, largest[1])
    if largest[1]:
        errors.worst = max(errors.worst, largest[0] / largest[1])
    for epsilon in EPSILONS:
        wanted = best_matched(exact.left)[alone] < epsilon
        errors.mismatches += int(((best_matched(ours.left)[alone] < epsilon) != wanted).sum())
        errors.peer_mismatches += int(((best_matched(peer.left)[alone] < epsilon) != wanted).sum())


def _near(values: Tensor, k: int) -> Tensor:
    """Whether each of k singular values is within the gap of the next."""
    following = torch.cat([values[1:], values.new_full((1,), -1.0)])
    return (values - following)[:k] < CLUSTER_GAP * values[0]


def _cluster_error(found: Tensor, expected: Tensor, joined: Tensor) -> float:
    """The largest error of ‖U_0ᵀU_1‖_F² / size over whole clusters of indices."""
    worst, start = 0.0, 0
    for end in range(len(joined)):
        if bool(joined[end]):
            continue
        if end > start:
            block = slice(start, end + 1)
            shares = [
                float(each[block, block].square().sum()) / (end + 1 - start)
                for each in (found, expected)
            ]
            worst = max(worst, abs(shares[0] - shares[1]))
        start = end + 1
    return worst


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description="Leading singular vectors of base + update.")
    parser.add_argument("--shapes", nargs="*", default=["4096x4096", "1024x4096", "14336x4096"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 16, 32, 64, 128])
    parser.add_argument("--reference-ranks", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--study", type=Path, help="a finished study's folder")
    options = parser.parse_args()
    figures: dict[str, object] = {}
    seconds, errors = Seconds(), Errors()
    by_shape: dict[str, object] = {}
    for text in options.shapes:
        out, inside = (int(size) for size in text.split("x"))
        for case in synthetic((out, inside), options.ranks):
            own, own_errors = Seconds(), Errors()
            measure(case, own, own_errors, options.reference_ranks)
            for name, value in vars(own).items():
                setattr(seconds, name, getattr(seconds, name) + value)
            _merge(errors, own_errors)
            by_shape[case.name] = vars(own) | own.figures() | own_errors.figures()
            print(json.dumps({case.name: by_shape[case.name]}), file=sys.stderr)
    if by_shape:
        figures |= seconds.figures() | errors.figures() | {"by_shape": by_shape}
    if options.study is not None:
        own, own_errors = Seconds(), Errors()
        for case in of_study(StudyFolder(options.study)):
            measure(case, own, own_errors, [update.rank for update in case.updates])
        figures["study"] = vars(own) | own.figures() | own_errors.figures()
    figures |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(figures))


def _merge(errors: Errors, own: Errors) -> None:
    for name, value in vars(own).items():
        total = getattr(errors, name)
        counted = isinstance(value, int)
        setattr(errors, name, total + value if counted else max(total, value))


if __name__ == "__main__":
    main()
