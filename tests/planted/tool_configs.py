"""One training, said in the words of each tool.

The keys are from the tools' documentation: https://docs.axolotl.ai/docs/config-reference.html,
https://llamafactory.readthedocs.io (arguments), https://huggingface.co/docs/trl (SFTConfig,
ModelConfig), https://unsloth.ai/docs (FastLanguageModel, and ``unsloth train --config``) and
https://huggingface.co/docs/peft (LoraConfig).
"""

from __future__ import annotations

from rankwise.integrations.drafts import TrainingSetup

SAME = TrainingSetup(
    base_model="org/model",
    data="rows.jsonl",
    rank=16,
    alpha=32.0,
    dropout=0.05,
    target_modules=("q_proj", "v_proj"),
    learning_rate=2e-4,
    epochs=2,
    batch_size=4,
    gradient_accumulation_steps=8,
    schedule="cosine",
    warmup_ratio=0.03,
    weight_decay=0.01,
    max_grad_norm=0.3,
    seed=7,
    precision="bfloat16",
    base_precision="4bit",
    max_length=512,
    loss_on="completion",
)

AXOLOTL = """
base_model: org/model
load_in_4bit: true
adapter: qlora
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
datasets:
  - path: rows.jsonl
    ds_type: json
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
sequence_len: 512
num_epochs: 2
micro_batch_size: 4
gradient_accumulation_steps: 8
learning_rate: 2e-4
lr_scheduler: cosine
warmup_ratio: 0.03
weight_decay: 0.01
max_grad_norm: 0.3
seed: 7
bf16: true
wandb_project: mine
"""

LLAMA_FACTORY = """
model_name_or_path: org/model
stage: sft
do_train: true
finetuning_type: lora
quantization_bit: 4
lora_rank: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target: q_proj,v_proj
dataset: rows.jsonl
dataset_dir: nowhere
template: empty
cutoff_len: 512
num_train_epochs: 2.0
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
learning_rate: 2.0e-4
lr_scheduler_type: cosine
warmup_ratio: 0.03
weight_decay: 0.01
max_grad_norm: 0.3
seed: 7
bf16: true
"""

TRL = """
model_name_or_path: org/model
use_peft: true
load_in_4bit: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
datasets: [{path: json, data_files: rows.jsonl}]
max_length: 512
num_train_epochs: 2
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
learning_rate: 2e-4
lr_scheduler_type: cosine
warmup_steps: 0.03
weight_decay: 0.01
max_grad_norm: 0.3
seed: 7
bf16: true
"""

GRPO = {
    "rewards": [
        {"code": "rewards.py:format", "weight": 0.5},
        {"code": "rewards.py:right", "weight": 2.0},
    ],
    "num_generations": 4,
    "max_completion_length": 300,
    "temperature": 0.9,
    "beta": 0.04,
    "epsilon": 0.1,
    "epsilon_high": 0.28,
    "loss_type": "dr_grpo",
    "importance_sampling_level": "sequence",
    "scale_rewards": "none",
    "num_iterations": 2,
}
"""The settings of GRPO that the next texts say."""

TRL_GRPO = """
reward_funcs: [rewards.format, rewards.right]
reward_weights: [0.5, 2]
num_generations: 4
max_completion_length: 300
temperature: 0.9
beta: 0.04
epsilon: 0.1
epsilon_high: 0.28
loss_type: dr_grpo
importance_sampling_level: sequence
scale_rewards: false
num_iterations: 2
use_bias_correction_kl: false
use_vllm: true
vllm_mode: colocate
"""

AXOLOTL_GRPO = f"""
rl: grpo
trl: {{{", ".join(TRL_GRPO.strip().splitlines())}}}
vllm: {{host: 0.0.0.0}}
"""

UNSLOTH = """
from_pretrained: {model_name: org/model, max_seq_length: 512, load_in_4bit: true}
get_peft_model:
  r: 16
  lora_alpha: 32
  lora_dropout: 0.05
  target_modules: [q_proj, v_proj]
  random_state: 7
SFTConfig:
  num_train_epochs: 2
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 8
  learning_rate: 2e-4
  lr_scheduler_type: cosine
  warmup_steps: 0.03
  weight_decay: 0.01
  max_grad_norm: 0.3
  seed: 7
  bf16: true
load_dataset: {path: json, data_files: rows.jsonl, split: train}
"""

UNSLOTH_COMMAND = """
model: org/model
data: {local_dataset: [rows.jsonl]}
training:
  max_seq_length: 512
  num_epochs: 2
  batch_size: 4
  gradient_accumulation_steps: 8
  learning_rate: 2e-4
  max_steps: 0
  warmup_steps: 0
  weight_decay: 0.01
  random_seed: 7
lora: {lora_r: 16, lora_alpha: 32, lora_dropout: 0.05, target_modules: "q_proj,v_proj"}
logging: {enable_wandb: false, wandb_token: hush}
"""

ADAPTER_CONFIG = """{
  "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/model",
  "r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"],
  "bias": "none", "init_lora_weights": true, "use_rslora": false, "use_dora": false,
  "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": null, "loftq_config": {}
}"""

CARD = """---
base_model: org/model
datasets: [rows.jsonl]
---

# mine

- learning_rate: 9.0

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 0.0002
- train_batch_size: 4
- eval_batch_size: 8
- seed: 7
- num_devices: 2
- gradient_accumulation_steps: 4
- optimizer: Use adamw_torch with betas=(0.9,0.999) and epsilon=1e-08
- lr_scheduler_type: cosine
- lr_scheduler_warmup_ratio: 0.03
- num_epochs: 2

### Framework versions

- PEFT 0.18.0
"""
"""Of transformers' Trainer."""

STATE = """{
  "epoch": 2.0, "global_step": 30, "max_steps": 30, "num_train_epochs": 2, "train_batch_size": 4,
  "log_history": [
    {"step": 10, "loss": 2.0, "learning_rate": 0.0001}, {"step": 20, "learning_rate": 0.00019},
    {"step": 30, "train_loss": 1.5}
  ]
}"""
