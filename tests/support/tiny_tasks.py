"""Tiny lm-eval tasks, as files."""

from __future__ import annotations

from pathlib import Path

LETTERS_YAML = """
include: colours.yaml
task: colours_letters
doc_to_text: "Question: {{question}}\\n{% for c in choices %}{{'ABC'[loop.index0]}}. {{c}}\\n\
{% endfor %}Answer:"
doc_to_choice: "{{'ABC'[:choices|length]|list}}"
"""


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


COLOURS_YAML = """
task: colours
custom_dataset: !function colours.load
dataset_path: ""
output_type: multiple_choice
training_split: train
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0, domain: knowledge}
"""


PROSE_YAML = """
task: small_prose
custom_dataset: !function colours.load_prose
dataset_path: ""
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
metadata: {version: 1.0, domain: prose}
"""


SUMS_YAML = """
task: sums
custom_dataset: !function colours.load_sums
dataset_path: ""
output_type: generate_until
training_split: train
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


COLOURS_PY = """
from datasets import Dataset, DatasetDict

THINGS = ["sky", "grass", "snow", "coal", "blood", "sun", "sea", "leaf", "milk", "night"]
COLOURS = ["blue", "green", "white", "black", "red", "yellow"]
ANSWERS = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]


def _row(index):
    thing = index % len(THINGS)
    adjective = ["old", "new", "small", "great", "real"][index // len(THINGS) % 5]
    right = ANSWERS[thing]
    wrong = [(right + 1 + index) % 6, (right + 2 + index) % 6]
    wrong = [w for w in dict.fromkeys(wrong) if w != right][:2]
    options = [right, *wrong]
    shift = index % len(options)
    options = options[shift:] + options[:shift]
    return {
        "question": f"which colour has the {adjective} {THINGS[thing]}?",
        "choices": [COLOURS[o] for o in options],
        "label": options.index(right),
    }


def load(**_):
    return DatasetDict(
        train=Dataset.from_list([_row(i) for i in range(24)]),
        test=Dataset.from_list([_row(i) for i in range(24, 50)]),
    )


def load_prose(**_):
    texts = [f"The {t} is a thing that everybody has seen once or twice." for t in THINGS]
    return DatasetDict(test=Dataset.from_list([{"text": t} for t in texts]))


def load_sums(**_):
    pairs = [(a, b) for a in range(6) for b in range(4)]
    rows = [{"question": f"{a} plus {b}?", "answer": str(a + b)} for a, b in pairs]
    return DatasetDict(train=Dataset.from_list(rows[:16]), test=Dataset.from_list(rows[16:]))
"""


HUES_YAML = """
include: colours.yaml
task: hues
doc_to_text: "{{question}} It is"
metadata: {version: 1.0, domain: hues}
"""


def write_tiny_tasks(folder: Path) -> None:
    """Write lm-eval files: colours and hues (choice), small_prose, sums (generation)."""
    folder.mkdir()
    (folder / "colours.py").write_text(COLOURS_PY)
    for name, text in (
        ("colours", COLOURS_YAML),
        ("hues", HUES_YAML),
        ("small_prose", PROSE_YAML),
        ("sums", SUMS_YAML),
    ):
        (folder / f"{name}.yaml").write_text(text)


TEXT = COLOURS_PY + CHAT_TEMPLATE + "Question: which colour has the sky?\nAnswer: blue green" * 9


def tiny_tokenizer(text: str = TEXT):
    """Byte-level BPE with 400 tokens, learnt from a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
    )
