"""A tiny random model with a real tokenizer, and a tiny task, for tests without a download."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny matrices: threads would only wait on each other
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# shapes and types of these are checked at every call in the tests
SHAPED = [
    "rankwise.engine.scoring.batching",
    "rankwise.engine.models.adapter_folders",
    "rankwise.engine.training.loop",
    "rankwise.engine.scoring.divergence",
]
install_import_hook(SHAPED, "beartype.beartype")

SHARED_TASKS = Path(__file__).resolve().parents[2] / "shared" / "tasks"

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


def _tokenizer():
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
    text = (
        COLOURS_PY + CHAT_TEMPLATE + "Question: which colour has the sky?\nAnswer: blue green" * 9
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


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 2 layers with a byte-level tokenizer, pad = eos, and a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tasks_folder(tmp_path: Path) -> Path:
    """lm-eval YAML files of three tiny tasks: colours (choice), small_prose, sums (generation)."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "colours.py").write_text(COLOURS_PY)
    (folder / "colours.yaml").write_text(COLOURS_YAML)
    (folder / "small_prose.yaml").write_text(PROSE_YAML)
    (folder / "sums.yaml").write_text(SUMS_YAML)
    return folder


@pytest.fixture
def study_file(tmp_path: Path, tiny_model_folder: Path, tasks_folder: Path) -> Path:
    """A study that runs in seconds: ranks 2 and 4 and full, on the tiny model and tasks."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
base_model: {tiny_model_folder}
tasks_path: {tasks_folder.name}
train:
  task: colours
  epochs: 2
  learning_rate: {{lora: 1e-2, full: 1e-3}}
  precision: float32
methods:
  lora: {{ranks: [2, 4]}}
evaluation:
  out_of_domain: [sums]
  held_out_text: [small_prose]
"""
    )
    return path


@pytest.fixture(scope="session")
def shared_tasks() -> Path:
    """Real benchmark items beside the checkout, where there are any."""
    if not SHARED_TASKS.is_dir():
        pytest.skip("no shared benchmark items beside this checkout")
    return SHARED_TASKS
