"""What a fingerprint covers: keys that the study file is given later change none."""

from __future__ import annotations

from typing import Annotated, Any

from rankwise.records.config.study import AnalysisConfig, StudyConfig
from rankwise.records.config.training import TrainConfig
from rankwise.records.fields import ADDED, Switch
from rankwise.records.fingerprints import study_fingerprint, training_fingerprint
from rankwise.records.study import PlannedRun

SMALLEST: dict[str, Any] = {"base_model": "smollm2-135m-instruct", "train": {"task": "kinship"}}

RUN = PlannedRun(
    name="r8",
    fingerprint="",
    method="lora",
    train_task="kinship",
    rank=8,
    alpha=16.0,
    scaling=2.0,
    learning_rate=1e-3,
    epochs=3,
    target_modules=("q_proj",),
    seed=0,
    num_steps=1,
    num_examples=1,
    num_tokens=1,
    num_trainable_parameters=1,
    trainable_share=0.1,
    estimated_memory_bytes=0,
)


class LaterAnalysis(AnalysisConfig):
    probes: Annotated[Switch, ADDED] = False


class LaterTrain(TrainConfig):
    clip_values: Annotated[Switch, ADDED] = False


class LaterStudy(StudyConfig):
    analysis: LaterAnalysis = LaterAnalysis()
    train: LaterTrain


def fingerprints(config: StudyConfig) -> tuple[str, str]:
    """Of a study, and of a run of it."""
    run = training_fingerprint(config, RUN, base_model="b", precision="float32", examples="e")
    return study_fingerprint(config), run


def test_a_key_without_the_mark_of_added_ones_would_change_all_studies() -> None:
    """Where this fails, a key was added: ``Annotated[..., ADDED]`` keeps the fingerprints."""
    assert fingerprints(StudyConfig.model_validate(SMALLEST)) == (
        "89414a9484221f4afeb617cee272038e4e4a664b9f9537b96df3f634e6e9c840",
        "52be866454451064708c3fe9fe80eb34f8768222a2e7ffada095b3d21d5471cb",
    )


def test_an_added_key_counts_where_it_has_not_its_default() -> None:
    before = fingerprints(StudyConfig.model_validate(SMALLEST))
    assert fingerprints(LaterStudy.model_validate(SMALLEST)) == before
    study, run = fingerprints(
        LaterStudy.model_validate({**SMALLEST, "train": {"task": "kinship", "clip_values": True}})
    )
    assert (study != before[0], run != before[1]) == (True, True)
    study, run = fingerprints(LaterStudy.model_validate({**SMALLEST, "analysis": {"probes": True}}))
    assert (study != before[0], run) == (True, before[1])


def test_a_rank_pattern_counts_where_there_is_one() -> None:
    """Without any, nothing changes: see the digests above."""
    lora: dict[str, Any] = {"rank_pattern": {"q_proj": 4, ".*": 2}}
    config = StudyConfig.model_validate({**SMALLEST, "methods": {"lora": lora}})
    before = fingerprints(StudyConfig.model_validate(SMALLEST))
    assert (fingerprints(config)[0] != before[0], fingerprints(config)[1]) == (True, before[1])
    digests = {
        training_fingerprint(
            config,
            RUN.model_copy(update={"layer_ranks": ranks, "mean_rank": 8.0}),
            base_model="b",
            precision="float32",
            examples="e",
        )
        for ranks in [(), (("a", 4), ("b", 12)), (("a", 12), ("b", 4))]
    }
    assert before[1] in digests
    assert len(digests) == 3


def test_what_is_written_has_every_key() -> None:
    written = LaterStudy.model_validate(SMALLEST).model_dump()
    assert written["analysis"]["probes"] is False
    assert written["analysis"]["divergence"] is False
