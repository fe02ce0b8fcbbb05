"""Every turn of a conversation, held against what TRL learns with ``assistant_only_loss``.

It needs TRL, which the test set-up does not install: ``pip install trl``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.engine.models.loading import load_tokenizer
from rankwise.tasks.own_rows import read_own_rows
from tests.support.passes import Setting, config
from tests.support.tiny_tasks import tiny_tokenizer

trl = pytest.importorskip("trl")
TRL = Path(trl.__file__).parent / "chat_templates"

MARK, END_MARK = "{% generation %}", "{% endgeneration %}"
# With marks around what the assistant writes. Without them they are SmolLM2's, and that of later
# models of Mistral.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\n' }}{% endif %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST]' + message['content'] + '[/INST]' }}{% else %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
GEMMA, GEMMA_MARKED = ((TRL / f"gemma{kind}.jinja").read_text() for kind in ("", "_training"))
_ENDS, _LINE = "'<end_of_turn>{}' -}}}}\n        {{%- endgeneration -%}}{}", "{{- '\\n' -}}"
# TRL's marks hold the line break behind an end too, which no model has to write
GEMMA_ENDS = GEMMA_MARKED.replace(_ENDS.format("\\n", ""), _ENDS.format("", _LINE))
TEMPLATES = {
    "ChatML": (CHATML.replace(MARK, "").replace(END_MARK, ""), CHATML),
    "Llama 3": tuple((TRL / f"llama3{kind}.jinja").read_text() for kind in ("", "_training")),
    "Gemma": (GEMMA, GEMMA_ENDS),
    "Gemma, its line breaks marked": (GEMMA_MARKED, GEMMA_ENDS),
    "Mistral": (MISTRAL.replace(MARK, "").replace(END_MARK, ""), MISTRAL),
}
SPECIAL = (
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"),
)
CONVERSATIONS = [
    ["1 + 1?", "2", "And one?", "3, I think.\n\nYes: three.", "Thanks", "You are welcome"],
    ["Which colour has the sky?", "blue"],
    ["Say it.", "it", "Again!", "it, it"],
]
ROLES = ("user", "assistant")
ROWS = [
    {"messages": [{"role": ROLES[i % 2], "content": text} for i, text in enumerate(texts)]}
    for texts in CONVERSATIONS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer knows the special tokens of every template."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    root = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(settings).save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root


def by_trl(folder: Path, template: str, place: Path) -> tuple[list[list[tuple[int, int]]], float]:
    """(place, token) of what is learned of each row, and the loss of one step on all rows."""
    from datasets import Dataset

    tokenizer: Any = load_tokenizer(folder)
    tokenizer.chat_template = template
    trainer = trl.SFTTrainer(
        model=LlamaForCausalLM.from_pretrained(folder),
        args=trl.SFTConfig(
            output_dir=str(place),
            assistant_only_loss=True,
            per_device_train_batch_size=len(ROWS),
            max_length=256,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    assert len(batch["labels"]) == len(rows) == len(ROWS)
    learned = [
        [(index, token) for index, token in enumerate(labels) if token != -100]
        for labels in batch["labels"].tolist()
    ]
    return learned, float(trainer.compute_loss(trainer.model, dict(batch)))


@pytest.mark.parametrize("is_marked", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_same_tokens_are_learned_and_the_loss_of_a_step_is_the_same(
    name: str, is_marked: bool, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    setting = Setting(folder)
    setting.tokenizer.chat_template = TEMPLATES[name][is_marked]
    own = read_own_rows(file, setting.tokenizer, chat_template=True, all_turns=True)
    rows = [row.as_trained for row in own.rows]
    train = config(task=(), data=file, turns="all", batch_size=len(rows), epochs=1)
    examples = setting.examples(train, rows)
    ours = [[(place, each.tokens[place]) for place in each.places] for each in examples]
    theirs, loss = by_trl(folder, TEMPLATES[name][True], tmp_path / "trl")
    assert ours == theirs
    assert len(ours[0]) > 3
    trainee = setting.trainee(train, rows=rows)
    (found,) = setting.train(trainee).losses["run-4"]
    assert found == pytest.approx(loss, abs=1e-5)
