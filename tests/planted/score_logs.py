"""Logs of Inspect and HELM in the layouts that these tools write, without what is not read."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow


def sample(number: int, value: Any, epoch: int = 1, scorer: str = "match") -> dict[str, Any]:
    """A sample of Inspect, version 2 of its log, without what is not read."""
    return {
        "id": f"item-{number}",
        "epoch": epoch,
        "input": [{"role": "user", "content": f"question {number}", "source": "input"}],
        "target": str(number),
        "messages": [],
        "output": {"model": "mockllm/model", "completion": f"answer {number}", "choices": []},
        "scores": {scorer: {"value": value, "answer": str(number), "metadata": {}}},
        "metadata": {"subject": ["biology", "physics"][number % 2]},
        "store": {},
    }


def inspect_log(model: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "task": "inspect_evals/trivia", "task_version": 0, "model": model,
            "created": "2026-11-01T10:00:00+00:00", "config": {"epochs": 1},
        },
        "plan": {"name": "plan", "steps": []},
        "results": {"total_samples": len(samples), "scores": []},
        "samples": list(samples),
    }  # fmt: skip


def write_eval(path: Path, log: Mapping[str, Any]) -> Path:
    """An .eval file: a zip archive of a header, summaries, and a file for each sample."""
    head = {name: part for name, part in log.items() if name != "samples"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        start = {name: head[name] for name in ("version", "eval", "plan")}
        archive.writestr("_journal/start.json", json.dumps(start))
        for each in log["samples"]:
            name = f"samples/{each['id']}_epoch_{each['epoch']}.json"
            archive.writestr(name, json.dumps(each))
        archive.writestr("summaries.json", json.dumps([]))
        archive.writestr("header.json", json.dumps(head))
    return path


def packed_by_zstandard(path: Path) -> Path:
    """The same archive as Inspect writes it since 2026, which Python's zipfile cannot write."""
    with zipfile.ZipFile(path) as archive:
        texts = {info.filename: archive.read(info) for info in archive.infolist()}
    codec, body, index = pyarrow.Codec("zstd"), b"", b""
    for name, text in texts.items():
        packed, place = codec.compress(text, asbytes=True), len(body)
        sizes = (zlib.crc32(text), len(packed), len(text), len(name))
        # an extra field, which a reader has to skip
        extra = struct.pack("<HHI", 0xCAFE, 4, 0) if name.startswith("samples") else b""
        common = struct.pack("<HHHHHIIIHH", 63, 0, 93, 0, 0x21, *sizes, len(extra))
        body += b"PK\x03\x04" + common + name.encode() + extra + packed
        central = struct.pack("<HHHHHHIIIHHHHHII", 63, 63, 0, 93, 0, 0x21, *sizes, *[0] * 5, place)
        index += b"PK\x01\x02" + central + name.encode()
    counts = (0, 0, len(texts), len(texts), len(index), len(body), 0)
    path.write_bytes(body + index + b"PK\x05\x06" + struct.pack("<HHHHIIH", *counts))
    return path


def helm_run(root: Path, model: str, values: Sequence[float], *, display: bool = False) -> Path:
    """The folder of a run of HELM with its per-instance statistics, or its slim predictions."""
    folder = root / f"mmlu:subject=anatomy,method=multiple_choice_joint,model={model}"
    folder.mkdir(parents=True)
    if display:
        content: list[Any] = [
            {"instance_id": f"id{n}", "train_trial_index": 0, "predicted_text": "A",
             "mapped_output": "x", "stats": {"exact_match": value, "quasi_exact_match": value}}
            for n, value in enumerate(values)
        ]  # fmt: skip
        (folder / "display_predictions.json").write_text(json.dumps(content))
        return folder / "display_predictions.json"
    spec = {"name": folder.name, "adapter_spec": {"model": model.replace("_", "/", 1)}}
    (folder / "run_spec.json").write_text(json.dumps(spec))

    def stat(name: str, value: float) -> dict[str, Any]:
        named = {"name": name, "split": "test"}
        return {"name": named, "count": 1, "sum": value, "mean": value, "variance": 0}

    content = [
        {"instance_id": f"id{n}", "train_trial_index": 0,
         "stats": [stat("num_references", 4), stat("exact_match", value)]}
        for n, value in enumerate(values)
    ]  # fmt: skip
    robust = {"name": "typos", "robustness": True}
    content.append({**content[0], "perturbation": robust, "stats": [stat("exact_match", 0.0)]})
    (folder / "per_instance_stats.json").write_text(json.dumps(content))
    return folder
