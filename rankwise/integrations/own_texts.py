"""GRPO and self-distillation in TRL's words, which other tools pass on.

Their names are a study file's too, but for the batches: TRL counts texts, a study rows, each of
which is answered ``num_generations`` times.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rankwise.integrations.drafts import Draft, TrainingSetup, shown
from rankwise.records.config.own_rows import CODE

_WHOLE = ("num_generations", "max_completion_length")
LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo")
_ONE_OF: Mapping[str, tuple[str, ...]] = {
    "loss_type": LOSS_TYPES,
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
}
"""Settings of GRPO that are one of some words; the first is the default."""
_OF_GRPO = ("beta", "epsilon", "epsilon_high", "num_iterations", *_ONE_OF)
GRPO_SIGNS = (
    *("reward_funcs", "reward_weights", "reward_model_name_or_path", "num_generations"),
    *("max_completion_length", "steps_per_generation", "generation_batch_size", "num_iterations"),
    *("importance_sampling_level", "scale_rewards", "epsilon", "epsilon_high", "delta"),
    *("mask_truncated_completions", "multi_objective_aggregation", "off_policy_mask_threshold"),
    *("top_entropy_quantile", "use_bias_correction_kl", "cast_lm_head_to_fp32"),
    *("entropy_coef", "entropy_coef_delta", "entropy_coef_max", "entropy_coef_min"),
    *("entropy_target", "use_adaptive_entropy", "max_tool_calling_iterations"),
    *("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_neg", "vespo_k_pos"),
    *("vespo_lambda_neg", "vespo_lambda_pos", "vllm_structured_outputs_regex"),
)
"""Keys that a config has for ``trl grpo``, and not for ``sft`` and ``dpo``."""
GRPO_LOSSES = (*LOSS_TYPES, "cispo", "sapo", "luspo", "vespo")
SDFT_SIGNS = (
    *("distillation_alpha", "distillation_mode", "distillation_topk", "teacher_prompt_template"),
    *("teacher_model_kind", "teacher_update_rate", "generate_from_teacher"),
)
"""Keys that ``SDFTConfig`` alone has."""
_SAMPLED = {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
_PLAIN_GRPO = {"top_entropy_quantile": 1.0, "multi_objective_aggregation": "sum_then_normalize"}
_PLAIN_SDFT = {"teacher_model_kind": "base", "num_iterations": 1}
_NO_REWARD = "my_rewards.py:reward"
"""Stands where a config names no function that is there."""


def read_grpo(draft: Draft, section: str = "", *, texts: int) -> dict[str, Any]:
    """The settings of GRPO; the draft's batches become rows.

    Args:
        draft: with ``batch_size`` and ``gradient_accumulation_steps`` as they are given.
        section: before the keys, with a dot.
        texts: of a batch, where the config says none.
    """
    entries = draft.entries
    grpo = _read_writing(draft, section, 512)
    for key in ("beta", "epsilon", "epsilon_high"):
        grpo[key] = entries.number(f"{section}{key}")
    grpo["num_iterations"] = entries.whole(f"{section}num_iterations")
    for key, known in _ONE_OF.items():
        value = entries.take(f"{section}{key}")
        word = {"True": "group", "False": "none"}.get(str(value), value)
        grpo[key] = word if word in known else None
        if value is not None and word not in known:
            draft.not_carried.append(f"{section}{key}: {shown(value)}; {known[0]} is used")
    _take_plain(draft, section, {**_SAMPLED, **_PLAIN_GRPO})
    is_corrected = entries.take(f"{section}use_bias_correction_kl") in (None, True)
    if grpo["beta"] and is_corrected:
        draft.to_check.append(
            f"{section}use_bias_correction_kl: TRL multiplies the KL by the ratio; a study does not"
        )
    _give_room(draft, grpo)
    if model := entries.take(f"{section}reward_model_name_or_path"):
        draft.not_carried.append(f"{section}reward_model_name_or_path: {shown(model)}")
    grpo["rewards"] = _read_rewards(draft, section)
    draft.to_check.append(
        "train.data: rows have a prompt, what the rewards read, and a right answer (completion)"
    )
    draft.to_check.append(
        "train.judged_by: contains stands for how held-out rows are scored; write your own check"
    )
    draft.fields["judged_by"] = ["contains"]
    _count_rows(draft, section, texts, grpo["num_generations"])
    return {key: value for key, value in grpo.items() if value is not None}


def read_sdft(draft: Draft) -> dict[str, Any]:
    """The settings of self-distillation, from those of TRL's ``SDFTConfig``."""
    entries = draft.entries
    sdft = _read_writing(draft, "", 256)
    alpha, mode = entries.number("distillation_alpha"), entries.text("distillation_mode")
    sdft["direction"] = "reverse" if alpha == 1 else "forward"
    if alpha not in (0, 1):
        draft.not_carried.append(
            f"distillation_alpha: {0.5 if alpha is None else alpha:g}; 0 is used, KL(teacher || "
            "model)"
        )
    if mode != "full_logits":
        draft.not_carried.append(
            f"distillation_mode: {shown(mode or 'topk_logits')}; full_logits is used"
        )
    for key in ("distillation_topk", "distillation_add_tail", "distillation_is_clip"):
        entries.take(key)  # of the other modes, and of texts that are learned more than once
    template = entries.text("teacher_prompt_template") or "{prompt}\n\n{privileged_context}"
    template = template.replace("{privileged_context}", "{answer}")
    sdft["template"] = template.replace("{{", "{").replace("}}", "}")
    _take_plain(draft, "", {**_SAMPLED, **_PLAIN_SDFT})
    if entries.take("disable_dropout") in (None, True):
        draft.fields["dropout"] = 0.0
    _give_room(draft, sdft)
    draft.to_check.append("train.data: rows have a prompt and its answer (completion)")
    _count_rows(draft, "", 8, sdft["num_generations"])
    return sdft


def _read_writing(draft: Draft, section: str, length: int) -> dict[str, Any]:
    """How texts are written; of at most ``length`` tokens where nothing is said."""
    entries = draft.entries
    read: dict[str, Any] = {"num_generations": 8, "max_completion_length": length}
    for key in _WHOLE:
        if (given := entries.whole(f"{section}{key}")) is not None:
            read[key] = given
            if given < 1:
                entries.problems.append(f"{section}{key}: {given} is not above 0; correct it")
    temperature = entries.number(f"{section}temperature")
    if temperature is not None and temperature <= 0.0:
        draft.not_carried.append(f"{section}temperature: {temperature:g}; 1.0 is used")
        temperature = None
    return read | {"temperature": 1.0 if temperature is None else temperature}


def _give_room(draft: Draft, written: Mapping[str, Any]) -> None:
    """A row's tokens: those of its prompt, 512 where nothing is said, and of a text."""
    prompt = draft.entries.whole("max_prompt_length")
    if prompt is not None and prompt < 1:
        draft.entries.problems.append(f"max_prompt_length: {prompt} is not above 0; correct it")
    room = 512 if prompt is None else prompt
    draft.fields["max_length"] = room + written["max_completion_length"]


def _take_plain(draft: Draft, section: str, plain: Mapping[str, Any]) -> None:
    """What can be said of TRL in one way only; another is not carried over."""
    for key, value in plain.items():
        given = draft.entries.take(f"{section}{key}")
        if given is not None and given != value:
            draft.not_carried.append(f"{section}{key}: {shown(given)}; {value} is used")


def _read_rewards(draft: Draft, section: str) -> list[dict[str, Any]]:
    """Functions of modules beside the config, with their weights; one that stands for none."""
    entries = draft.entries
    names, weights = (
        entries.names(f"{section}reward_funcs"),
        entries.take(f"{section}reward_weights"),
    )
    try:
        by_name = dict.fromkeys(names, 0.0)
        for name, weight in zip(names, weights or [1.0] * len(names), strict=True):
            by_name[name] += float(weight)
    except (TypeError, ValueError, OverflowError):
        entries.problems.append(
            f"{section}reward_weights: {shown(weights)} are not a number for each reward; correct "
            "them"
        )
        by_name = {}
    rewards: list[dict[str, Any]] = []
    for name, weight in by_name.items():
        module, _, function = name.rpartition(".")
        file = f"{module.replace('.', '/')}.py"
        if not module or CODE.fullmatch(f"{file}:{function}") is None:
            draft.not_carried.append(f"{section}reward_funcs: {shown(name)}, no function of a file")
            continue
        found = next((place for place in draft.places(file) if os.path.isfile(place)), None)
        place = file if found is None else os.path.abspath(found)
        rewards.append({"code": f"{place}:{function}", "weight": weight})
    if rewards:
        draft.to_check.append("train.objective: rewards are code, which --allow-task-code lets run")
        return rewards
    draft.to_check.append(
        f"train.objective: no reward is named that a study has; {_NO_REWARD} stands for yours, a "
        "function in TRL's signature, or name a check such as json"
    )
    return [{"code": _NO_REWARD}]


def _count_rows(draft: Draft, section: str, default: int, num_generations: int) -> None:
    """Turn a step's texts into rows; those of all devices count as accumulated already."""
    fields, entries = draft.fields, draft.entries
    batch, steps = (
        fallback if fields[key] is None else fields[key]
        for key, fallback in (("batch_size", default), ("gradient_accumulation_steps", 1))
    )
    if min(batch, steps) < 1:
        return  # which is refused in the config's own words
    texts, at_once = batch * steps, max(num_generations, 1)
    own = entries.whole("gradient_accumulation_steps") or 1  # of one device
    later = entries.whole(f"{section}steps_per_generation")
    written = entries.whole(f"{section}generation_batch_size") or (later or own) * texts // own
    if written != texts:
        draft.not_carried.append(
            f"{section}steps_per_generation: {written} texts are written at once for steps of "
            f"{texts}; a study writes those of each step"
        )
    if batch % at_once == 0:
        fields |= {"batch_size": batch // at_once, "gradient_accumulation_steps": steps}
    else:
        fields |= {
            "batch_size": 1,
            "gradient_accumulation_steps": max(round(texts / at_once), 1),
        }
    rows = fields["batch_size"] * fields["gradient_accumulation_steps"]
    draft.to_check.append(
        f"train.batch_size: TRL's step has {texts} texts; a study's has {rows} rows, with "
        f"{at_once} texts each"
    )


def grpo_entries(grpo: Mapping[str, Any]) -> dict[str, Any]:
    """What ``GRPOConfig`` and the arguments of ``trl grpo`` take beside the trainer's settings."""
    entries = {key: grpo[key] for key in (*_WHOLE, "temperature", *_OF_GRPO) if key in grpo}
    if grpo["beta"]:
        entries["use_bias_correction_kl"] = False
    code = [each for each in grpo["rewards"] if isinstance(each, dict) and "code" in each]
    if code:
        names = (CODE.fullmatch(each["code"]) for each in code)
        entries["reward_funcs"] = [
            f"{Path(name['file']).stem}.{name['function']}" for name in names if name is not None
        ]
        entries["reward_weights"] = [each["weight"] for each in code]
    return entries


def sdft_entries(setup: TrainingSetup, sdft: Mapping[str, Any]) -> dict[str, Any]:
    """What ``SDFTConfig`` takes beside the trainer's settings."""
    template = sdft["template"].replace("{", "{{").replace("}", "}}")
    for ours, theirs in (("prompt", "prompt"), ("answer", "privileged_context")):
        template = template.replace(f"{{{{{ours}}}}}", f"{{{theirs}}}")
    entries: dict[str, Any] = {
        **{key: sdft[key] for key in (*_WHOLE, "temperature")},
        "distillation_mode": "full_logits",
        "distillation_alpha": 1.0 if sdft["direction"] == "reverse" else 0.0,
        "teacher_model_kind": "base",
        "teacher_prompt_template": template,
    }
    if setup.max_length is not None:
        entries["max_prompt_length"] = max(setup.max_length - sdft["max_completion_length"], 1)
    return entries | ({"disable_dropout": False} if setup.dropout else {})


def remarks_on_own_texts(setup: TrainingSetup, title: str) -> Iterator[str]:
    """What another tool's config does not say of GRPO or of self-distillation.

    Args:
        setup: whose objective is one of them.
        title: of the tool.
    """
    objective = setup.objective or {}
    if title == "Axolotl" and objective.get("grpo", {}).get("scale_rewards") == "batch":
        yield "scale_rewards: batch cannot be said for Axolotl; true is the deviation of a group"
    if (sdft := objective.get("sdft")) is not None and sdft.get("teacher") is not None:
        yield f"the teacher is the base in it, not {sdft['teacher']}: {title} takes no other"
    for each in objective.get("grpo", {}).get("rewards", ()):
        found = CODE.fullmatch(each["code"]) if isinstance(each, dict) and "code" in each else None
        if found is None:
            name = each if isinstance(each, str) else each.get("check") or next(iter(each))
            yield f"the reward {name} is a check of rankwise: write it as a function for {title}"
        else:
            file = Path(found["file"])
            yield (
                f"{file.name} is imported from the current folder: start {title} in {file.parent}; "
                "it gives rewards the columns of the rows without `completion`, so one that reads "
                "it needs that column under another name"
            )
