"""Does every model that is accepted give transformers' and PEFT's own numbers?

    python -m benchmarks.zoo [--only llama,gpt2] [--write]

Every causal model type of the installed transformers is made tiny, with random weights
(``zoo_configs``), saved, and loaded as a study loads it. Either it is refused with a sentence, when
a study is planned or when its model is loaded; or five things are held against transformers, PEFT
and autograd in float32 (``zoo_checks``): one training step of two adapters of different ranks in
one pass, log-likelihoods from a tree that is read in several steps, greedy texts, an ablated head,
and the saved adapters as PEFT loads them. Scores in bfloat16 are held against float32. A model
whose heads are laid out in a way that is not known has no study of heads, and all else is checked.

``--write`` makes ``docs/MODELS.md`` of it. The last line of output is one JSON object; the exit
code is 1 if any model is wrong or crashed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from benchmarks import zoo_checks
from benchmarks.zoo_checks import Subject
from benchmarks.zoo_configs import MODEL_TYPES, VOCABULARY, random_model, tiny_config
from rankwise.engine.models.attention import refuse_unpackable
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.peft_adapters import misloaded
from rankwise.engine.models.structure import (
    LinearShape,
    adaptable_shapes,
    model_skeleton,
    resolved_targets,
    target_shapes,
)
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import ModelError, RankwiseError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "MODELS.md"

Verdict = Literal["accepted", "refused", "wrong", "crashed"]


class Outcome(NamedTuple):
    """What became of a model type.

    Attributes:
        model_type: transformers' name.
        verdict: accepted and right; refused; accepted and wrong; crashed.
        when: it was refused: at the plan, or when the model was loaded.
        why: the refusal's sentence, or what differs.
        has_heads: whether its heads can be studied.
        left_out: linear layers that a plan refuses as targets, since PEFT would load their adapters
            on other ones.
    """

    model_type: str
    verdict: Verdict
    when: str = ""
    why: str = ""
    has_heads: bool = False
    left_out: tuple[str, ...] = ()


def examined(model_type: str, work: Path) -> Outcome:
    """Refuse a model type, or hold it against its peers.

    Args:
        model_type: of transformers.
        work: an empty folder.
    """
    folder = work / "model"
    config = tiny_config(model_type)
    config.save_pretrained(folder)
    tokenizer = _tokenizer()
    try:
        skeleton = model_skeleton(folder)
        refuse_unpackable(skeleton)
        shapes = adaptable_shapes(skeleton)
        targets, left_out = _targets(skeleton, shapes)
    except RankwiseError as error:
        return Outcome(model_type, "refused", "plan", _sentence(error, folder))
    random_model(config).save_pretrained(folder)
    config.save_pretrained(folder)  # a model with a part for text alone writes that part's
    try:
        model: Any = load_frozen(folder, "float32", torch.device("cpu"))
        scorer = ResidentScorer(model, tokenizer, max_batch_tokens=48)
    except RankwiseError as error:
        return Outcome(model_type, "refused", "loading", _sentence(error, folder))
    outcome = _held_against_peers(
        model_type, Subject(folder, model, tokenizer, shapes, targets), scorer
    )
    return outcome._replace(left_out=left_out)


def _targets(skeleton: Any, shapes: Mapping[str, LinearShape]) -> tuple[list[str], tuple[str, ...]]:
    """All linear layers but those of which a plan says that PEFT would load others; and these.

    Raises:
        ModelError: there are no others.
    """

    def is_misloaded(targets: Sequence[str]) -> bool:
        return bool(misloaded(skeleton, target_shapes(shapes, targets), targets))

    every = resolved_targets(shapes, ("all-linear",))
    if not is_misloaded(every):
        return list(every), ()
    left_out = tuple(target for target in every if is_misloaded([target]))
    kept = [target for target in every if target not in left_out]
    if not kept or is_misloaded(kept):
        raise ModelError("PEFT would load its adapters on other layers.")
    return kept, left_out


def _held_against_peers(model_type: str, subject: Subject, scorer: ResidentScorer) -> Outcome:
    trainees, faults = zoo_checks.train(subject)
    zoo_checks.save(subject, trainees)
    peers = zoo_checks.peers_of(subject, trainees)
    faults += zoo_checks.check_peft(subject, peers)
    faults += zoo_checks.check_scores(subject, scorer, peers)
    faults += zoo_checks.check_texts(subject, scorer, peers)
    faults += zoo_checks.check_bfloat16(subject)
    try:
        faults += zoo_checks.check_heads(subject)
        no_heads = ""
    except ModelError as error:
        no_heads = _sentence(error, subject.folder)
    if faults:
        return Outcome(model_type, "wrong", "", "; ".join(faults), not no_heads)
    return Outcome(model_type, "accepted", "", no_heads, not no_heads)


def _sentence(error: RankwiseError, folder: Path) -> str:
    return str(error).replace(str(folder), "the model").partition(" Choose another base model.")[0]


def _tokenizer() -> PreTrainedTokenizerFast:
    """A word for each token; texts leave out the end token alone."""
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w2", eos_token="w2")


def all_examined(model_types: Sequence[str]) -> list[Outcome]:
    """Every type, whatever becomes of the others."""
    outcomes: list[Outcome] = []
    for model_type in model_types:
        with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcome = examined(model_type, Path(work))
            except Exception as error:  # noqa: BLE001  (a crash is counted, and the others go on)
                traceback.print_exc()
                why = " ".join(f"{type(error).__name__}: {error}".split())
                outcome = Outcome(model_type, "crashed", "", why)
        outcomes.append(outcome)
        print(model_type, outcome.verdict, outcome.when, outcome.why, *outcome.left_out, flush=True)
    return outcomes


def page(outcomes: Sequence[Outcome]) -> str:
    """docs/MODELS.md."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    rows = [f"| {each.model_type} | {_verdict(each)} | {_checked(each)} |" for each in outcomes]
    return "\n".join(
        [
            "# Models",
            "",
            "The causal language models of transformers that rankwise accepts, and how each was "
            "checked.",
            f"`python -m benchmarks.zoo --write` wrote this page with transformers "
            f"{transformers.__version__}:",
            f"{counts['accepted']} types accepted, {counts['refused']} refused. Each type is "
            "checked on a tiny random model, in float32:",
            "",
            "- **step**: one training step of two adapters of different ranks in one pass, against "
            "PEFT's layers, autograd and AdamW",
            "- **scores**: log-likelihoods of base and adapters, against each sequence alone",
            "- **texts**: greedy texts of base and adapters, against a plain argmax loop",
            "- **head**: one head ablated, against a hook in the plain model",
            "- **PEFT**: the saved adapters, as PEFT loads them on the plain base",
            "- for every accepted type: bfloat16 scores at most twice as far from float32 as the "
            "plain model's",
            "",
            "All linear layers can be adapted, except those listed as *accepted, except*: PEFT "
            "would load their adapters onto",
            "the fused experts, so the plan refuses them as targets. *Without heads* means that "
            "heads are not analysed. A model is",
            "refused if any score could be wrong: when planning, from its config, or when loading, "
            "by comparing a few tokens with",
            "a plain forward pass.",
            "",
            "| model type | verdict | checked |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _verdict(outcome: Outcome) -> str:
    if outcome.verdict == "accepted":
        layers = f", except adapters of {', '.join(outcome.left_out)}" if outcome.left_out else ""
        return f"accepted{layers}" + (f", without heads: {outcome.why}" if outcome.why else "")
    when = f" at {outcome.when}" if outcome.when else ""
    return f"{outcome.verdict}{when}: {outcome.why}"


def _checked(outcome: Outcome) -> str:
    if outcome.verdict != "accepted":
        return ""
    return "step, scores, texts, head, PEFT" if outcome.has_heads else "step, scores, texts, PEFT"


def main() -> None:
    """Examine the model types, and write their page where it is asked for."""
    parser = argparse.ArgumentParser(description="Every causal model type against its peers.")
    parser.add_argument("--only", help="model types, with commas between them")
    parser.add_argument("--write", action="store_true", help=f"make {PAGE.name} of it")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    chosen = options.only.split(",") if options.only else MODEL_TYPES
    outcomes = all_examined(chosen)
    if options.write:
        PAGE.write_text(page(outcomes), encoding="utf-8")
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    names: tuple[Verdict, ...] = ("accepted", "refused", "wrong", "crashed")
    print(json.dumps({name: verdicts[name] for name in names}))
    sys.exit(bool(verdicts["wrong"] or verdicts["crashed"]))


if __name__ == "__main__":
    main()
