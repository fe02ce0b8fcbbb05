"""Configs of other tools: what is read, what is said to differ, and what is refused."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import trl
from trl.experimental.sdft import SDFTConfig

from rankwise.errors import ConfigError
from rankwise.integrations.drafts import ConfigReading
from rankwise.integrations.sources import read_source
from rankwise.integrations.study_text import study_text
from rankwise.integrations.tools import WITHOUT_EFFECT
from rankwise.records.study_file import load_config
from tests.planted import tool_configs
from tests.planted.tool_configs import SAME
from tests.support.sentences import Sentences


def read(folder: Path, text: str, name: str = "config.yaml") -> ConfigReading:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_source(path)


def problems(folder: Path, text: str, name: str = "config.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, name)
    return str(caught.value)


@pytest.mark.parametrize("tool", ["AXOLOTL", "LLAMA_FACTORY", "TRL", "UNSLOTH"])
def test_the_same_training_in_every_tools_words(tmp_path: Path, tool: str) -> None:
    reading = read(tmp_path, getattr(tool_configs, tool))
    said = reading.setup._replace(chat_template=None, turns=None)  # of the rows, which differ
    assert said == SAME
    assert reading.not_carried == ()
    assert "hush" not in str(reading)
    assert reading.tool == {"LLAMA_FACTORY": "LLaMA-Factory", "TRL": "TRL"}.get(tool, tool.title())


def test_the_command_of_unsloth(tmp_path: Path) -> None:
    reading = read(tmp_path, tool_configs.UNSLOTH_COMMAND)
    # it has no schedule, and learns the prompts unless it is told otherwise
    expected = SAME._replace(
        schedule="linear", warmup_ratio=0.0, max_grad_norm=1.0, precision=None, loss_on="all"
    )
    assert reading.setup == expected
    assert "hush" not in str(reading)


def test_an_adapter_config_says_nothing_of_the_training(
    tmp_path: Path, sentence: Sentences
) -> None:
    reading = read(tmp_path, tool_configs.ADAPTER_CONFIG, "adapter_config.json")
    assert reading.tool == "PEFT"
    setup = reading.setup
    assert (setup.base_model, setup.rank, setup.alpha, setup.dropout) == ("org/model", 16, 32, 0.05)
    assert setup.target_modules == ("q_proj", "v_proj")
    assert (setup.learning_rate, setup.epochs, setup.batch_size, setup.data) == (None,) * 4
    sentence(reading.to_check[0])
    assert reading.not_carried == ()


def test_a_trainers_folder_is_read_from_its_card(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(tool_configs.ADAPTER_CONFIG)
    (tmp_path / "README.md").write_text(tool_configs.CARD)
    (tmp_path / "trainer_state.json").write_text(tool_configs.STATE)
    setup = read_source(tmp_path).setup
    assert setup.learning_rate == 2e-4  # the peak, not the largest that was logged
    assert (setup.batch_size, setup.gradient_accumulation_steps) == (4, 4 * 2)  # two devices
    assert (setup.schedule, setup.warmup_ratio, setup.epochs, setup.seed) == ("cosine", 0.03, 2, 7)
    assert setup.data == "rows.jsonl"


def test_what_a_card_leaves_out_is_one_device_and_one_batch(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(tool_configs.ADAPTER_CONFIG)
    left_out = ("num_devices", "gradient_accumulation_steps", "lr_scheduler_warmup_ratio")
    lines = [
        line for line in tool_configs.CARD.splitlines() if not any(k in line for k in left_out)
    ]
    (tmp_path / "README.md").write_text("\n".join(lines))
    setup = read_source(tmp_path).setup
    assert (setup.batch_size, setup.gradient_accumulation_steps, setup.warmup_ratio) == (4, 1, 0.0)


def test_a_trainers_folder_without_a_card_has_a_state(tmp_path: Path, sentence: Sentences) -> None:
    for number in (20, 100):  # by number, and not by letters
        (tmp_path / f"checkpoint-{number}").mkdir()
        state = tool_configs.STATE.replace("0.00019", f"0.00{number}")
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(state)
    (tmp_path / "adapter_config.json").write_text(tool_configs.ADAPTER_CONFIG)
    reading = read_source(tmp_path)
    assert (reading.setup.learning_rate, reading.setup.epochs) == (0.001, 2)
    sentence(" ".join(reading.to_check), names=("0.001",))


class Trap:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (Path("sprung"), "x")


def test_a_pickle_beside_it_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter_config.json").write_text(tool_configs.ADAPTER_CONFIG)
    (tmp_path / "training_args.bin").write_bytes(pickle.dumps(Trap()))
    assert read_source(tmp_path).setup.rank == 16
    assert not (tmp_path / "sprung").exists()


def test_full_fine_tuning(tmp_path: Path) -> None:
    setup = read(tmp_path, "base_model: m\nmicro_batch_size: 1\nlearning_rate: 2e-5\n").setup
    assert (setup.is_full, setup.rank, setup.learning_rate) == (True, None, 2e-5)
    setup = read(tmp_path, "model_name_or_path: m\nfinetuning_type: full\n").setup
    assert (setup.is_full, setup.rank, setup.learning_rate) == (True, None, 5e-5)
    setup = read(tmp_path, "model_name_or_path: m\nuse_peft: false\n").setup
    assert (setup.is_full, setup.rank, setup.learning_rate) == (True, None, 2e-5)


LORA = "base_model: m\nadapter: lora\nlora_r: 8\nlora_alpha: 16\n"


@pytest.mark.parametrize(
    ("more", "field", "value"),
    [
        ("lora_target_linear: true", "target_modules", ("all-linear",)),
        ("peft_use_dora: true", "variant", "dora"),
        ("loraplus_lr_ratio: 16", "variant", "lora_plus"),
        ("peft_init_lora_weights: pissa_niter_4", "variant", "pissa"),
        ("peft_use_rslora: true", "use_rslora", True),
        ("lr_scheduler: constant_with_warmup\nwarmup_ratio: 0.1", "warmup_ratio", 0.1),
        ("lr_scheduler: constant\nwarmup_ratio: 0.1", "warmup_ratio", 0.0),
        ("world_size: 4\ngradient_accumulation_steps: 3", "gradient_accumulation_steps", 12),
        ("max_steps: 50\nmicro_batch_size: 4", "max_examples", 200),
        ("max_steps: 50\nwarmup_steps: 5", "warmup_ratio", 0.1),
        ("num_epochs: 0.3", "epochs", 1),
        ("num_epochs: 2.6", "epochs", 3),
        ("train_on_inputs: true", "loss_on", "all"),
        ("load_in_8bit: true", "base_precision", "8bit"),
        ("learning_rate: '1e-3'", "learning_rate", 1e-3),
        ("datasets: [{path: d, split: 'train[:160]'}]", "max_examples", 160),
        ("lora_alpha: 4", "alpha", 4.0),
        ("datasets: [{path: d, type: chat_template}]", "turns", "all"),
        ("datasets: [{path: d, type: sharegpt, roles_to_train: [assistant]}]", "turns", "all"),
        ("datasets: [{path: d, type: alpaca}]", "turns", None),
        ("train_on_inputs: true\ndatasets: [{path: d, type: chat_template}]", "turns", None),
    ],
)
def test_one_key(tmp_path: Path, more: str, field: str, value: object) -> None:
    text = LORA.replace("lora_alpha: 16\n", "") if "lora_alpha" in more else LORA
    assert getattr(read(tmp_path, text + more).setup, field) == value


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("optimizer: lion_pytorch", "optimizer: lion_pytorch; AdamW is used"),
        ("lr_scheduler: rex", "lr_scheduler: rex; linear is used"),
        ("fp16: true", "fp16: a study computes in bfloat16 or float32"),
        ("neftune_noise_alpha: 5", "neftune_noise_alpha: 5"),
        ("lora_modules_to_save: [lm_head]", "lora_modules_to_save: ['lm_head']"),
        ("loraplus_lr_ratio: 8", "loraplus_lr_ratio: 8; LoRA+ is trained with 16"),
        ("peft_init_lora_weights: loftq", "peft_init_lora_weights: loftq"),
        ("lora_target_modules: '.*q_proj'", "lora_target_modules: .*q_proj, a pattern"),
        ("max_grad_norm: 0", "max_grad_norm: 0, no limit; 1 is used"),
        ("datasets: [{path: a}, {path: b}]", "datasets[1]: b; a study trains on one"),
        ("datasets: [{path: a, shards: 4}]", "datasets[0].shards: 4"),
        (
            "datasets: [{path: a, type: chat_template, roles_to_train: [user]}]",
            "datasets[0].roles_to_train: ['user']",
        ),
        ("datasets: [{path: a, split: 'train[:9%]'}]", "datasets[0].split: train[:9%]"),
        ("peft_use_dora: true\nloraplus_lr_ratio: 16", "lora_plus together with dora"),
    ],
)
def test_what_is_not_carried_over_is_said(tmp_path: Path, more: str, sentence: str) -> None:
    assert sentence in " | ".join(read(tmp_path, LORA + more).not_carried)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("sample_packing: true", "packing: a step saw as many rows as its sequences hold"),
        ("warmup_steps: 10", "set train.warmup_ratio to 10 over the steps"),
        ("micro_batch_size: 2", "not given, so Axolotl's defaults: dropout 0.0; epochs 1"),
        ("micro_batch_size: 2", "the number of devices is not given"),
        ("num_epochs: 1.5", "num_epochs: 1.5 is not a whole number; train.epochs is 2"),
        ("datasets: [{path: a, type: alpaca}]", "alpaca's (instruction, input and output)"),
        (
            "datasets: [{path: a, type: chat_template, field_messages: conversations}]",
            "sharegpt's (conversations, turns with from and value)",
        ),
    ],
)
def test_what_is_to_be_checked_is_said(tmp_path: Path, more: str, sentence: str) -> None:
    assert sentence in " | ".join(read(tmp_path, LORA + more).to_check)


def test_passwords_are_not_repeated(tmp_path: Path) -> None:
    text = "hf_token: hush\nwandb_api_key: hush\nhub_token: hush\nmy_secret: hush\n"
    reading = read(tmp_path, LORA + text + "push_key: told\n")
    assert "hush" not in str(reading)
    assert "push_key: told" in reading.not_carried


def test_a_data_set_of_llama_factory_is_looked_up(tmp_path: Path, sentence: Sentences) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").write_text("{}\n")
    (tmp_path / "data" / "dataset_info.json").write_text(
        '{"mine": {"file_name": "mine.jsonl", "formatting": "sharegpt"}}'
    )
    reading = read(tmp_path, "model_name_or_path: m\nlora_rank: 4\ndataset: mine, other\n")
    assert reading.setup.data == str(tmp_path / "data" / "mine.jsonl")
    assert "sharegpt's" in " ".join(reading.to_check)
    assert reading.setup.turns == "all"
    text = "model_name_or_path: m\nlora_rank: 4\ndataset: mine\nmask_history: true\n"
    assert read(tmp_path, text).setup.turns == "last"
    (tmp_path / "study.yaml").write_text(study_text(reading, tmp_path).text)
    assert load_config(tmp_path / "study.yaml").train.turns == "all"
    sentence(reading.not_carried, names=("dataset",))
    assert (reading.setup.alpha, reading.setup.target_modules) == (8.0, ("all-linear",))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the file is not a mapping of keys to values"),
        ("- 1\n", "the file is not a mapping of keys to values"),
        ("a: [1", "not valid YAML: line 2"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n" + "c: *b\n" * 60_000, "more than 100,000 values"),
        ("colour: red\n", "the keys (colour) are no known tool's; one of these is needed"),
        ("adapter: lora\nlora_r: 8\nlora_alpha: 8\n", "base_model: is missing; add it"),
        ("base_model: m\nadapter: lora\nlora_alpha: 8\n", "lora_r: is missing; add it"),
        ("base_model: m\nadapter: lora\nlora_r: 8\n", "lora_alpha: is missing; add it"),
        (LORA.replace("8", "0"), "lora_r: 0 is not a rank; use a whole number of at least 1"),
        (LORA.replace("8", "-4"), "lora_r: -4 is not a rank"),
        (LORA.replace("8", "2.5"), "lora_r: 2.5 is not a whole number"),
        (LORA.replace("8", "true"), "lora_r: True is not a number"),
        (LORA + "learning_rate: fast", "learning_rate: fast is not a number"),
        (LORA + "learning_rate: 0", "learning_rate: 0 is not above 0"),
        (LORA + "learning_rate: .nan", "learning_rate: nan is not a number"),
        (LORA + "micro_batch_size: 0", "micro_batch_size: 0 is not a batch size"),
        (LORA + "load_in_4bit: maybe", "load_in_4bit: maybe is neither true nor false"),
        (LORA + "lora_target_modules: [1]", "lora_target_modules: [1] is not a list of names"),
        (LORA + "datasets: x", "datasets: x is not a list of data sets"),
        (LORA + "datasets: [{path: 5}]", "the data 5 is no path and no name"),
        (LORA + "rl: kto", "rl: kto is not compared; give grpo, or take it out"),
        (LORA + "rl: dpo", "take it out, and write train.objective: dpo into the study file"),
        ("model_name_or_path: m\nbeta: 0.1\ndesirable_weight: 1.0\n", "one of KTO, whose loss"),
        ("model_name_or_path: m\nbeta: 0.1\nsimpo_gamma: 0.5\n", "one of CPO, whose loss"),
        (LORA.replace("lora", "llama-adapter", 1), "adapter: llama-adapter is not compared"),
        ("model_name_or_path: m\nstage: kto\n", "stage: kto is not compared; give sft or dpo"),
        ("model_name_or_path: m\nfinetuning_type: oft\n", "finetuning_type: oft is not compared"),
        ('{"peft_type": "IA3", "base_model_name_or_path": "m"}', "peft_type: IA3 is not LoRA"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in problems(tmp_path, text)


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    text = problems(tmp_path, "adapter: lora\nlora_r: 0\nlearning_rate: x\n")
    assert text.startswith(f"{tmp_path / 'config.yaml'} has 4 problems")


def test_files_that_are_none(tmp_path: Path, sentence: Sentences) -> None:
    with pytest.raises(ConfigError) as caught:
        read_source(tmp_path / "nowhere.yaml")
    sentence(caught.value, "first")
    with pytest.raises(ConfigError) as caught:
        read_source(tmp_path)
    sentence(caught.value, "adapter_config.json", names=("adapter_config.json",))
    assert "not valid JSON" in problems(tmp_path, "{", "adapter_config.json")
    assert "not valid JSON" in problems(tmp_path, "[" * 100_000, "deep.json")


def test_older_names_of_trl_are_read(tmp_path: Path) -> None:
    text = "model_name_or_path: m\nuse_peft: true\nmax_seq_length: 99\ntorch_dtype: float16\n"
    reading = read(tmp_path, text)
    assert (reading.tool, reading.setup.max_length, reading.setup.rank) == ("TRL", 99, 16)


def test_trl_learns_whole_conversations_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    text = "model_name_or_path: m\nuse_peft: true\n"
    sentence = "train.loss_on: SFTTrainer learns the answers of rows with a completion"
    assert sentence in " ".join(read(tmp_path, text).to_check)
    told = read(tmp_path, text + "assistant_only_loss: true\n")
    assert sentence not in " ".join(told.to_check)
    assert (told.setup.loss_on, told.setup.turns) == ("completion", "all")
    assert read(tmp_path, text + "completion_only_loss: false\n").setup.loss_on == "all"


def test_biases_are_not_carried_over(tmp_path: Path) -> None:
    text = tool_configs.ADAPTER_CONFIG.replace('"bias": "none"', '"bias": "all"')
    assert read(tmp_path, text, "adapter_config.json").not_carried == ("bias: all",)


def test_a_folder_name_that_is_too_long_leads_nowhere(tmp_path: Path) -> None:
    text = f"model_name_or_path: m\nlora_rank: 4\ndataset: d\ndataset_dir: {'x' * 5000}\n"
    assert read(tmp_path, text).setup.data == "d"


DPO = {"beta": 0.2, "loss": "ipo", "sft_weight": 0.5}


@pytest.mark.parametrize(
    ("tool", "lines"),
    [
        (
            "TRL",
            "beta: 0.2\nloss_type: [ipo, sft]\nloss_weights: [1, 0.5]\ndisable_dropout: false",
        ),
        ("LLAMA_FACTORY", "stage: dpo\npref_beta: 0.2\npref_loss: ipo\npref_ftx: 0.5"),
    ],
)
def test_dpo_in_the_words_of_tools_that_have_it(tmp_path: Path, tool: str, lines: str) -> None:
    own = "\n".join(
        line
        for line in getattr(tool_configs, tool).splitlines()
        if not line.startswith(("stage:", "completion_only_loss:"))
    )
    reading = read(tmp_path, f"{own}\n{lines}\n")
    found = dict(reading.setup.dpo or {})
    assert {key: found[key] for key in DPO} == DPO
    assert reading.setup._replace(objective=None, chat_template=None) == SAME
    assert reading.not_carried == ()
    text = study_text(reading, tmp_path).text
    (tmp_path / "study.yaml").write_text(text)
    config = load_config(tmp_path / "study.yaml")
    assert config.train.dpo is not None
    assert config.train.dpo.model_dump() == {**DPO, "label_smoothing": 0.0}
    assert config.train.judged_by == ("preference",)
    assert "delta_points: 5" in text


def test_what_trl_says_of_dpo_by_default(tmp_path: Path) -> None:
    reading = read(tmp_path, "model_name_or_path: m\nuse_peft: true\nlora_dropout: 0.1\nbeta: 0.3")
    setup = reading.setup
    assert setup.dpo == {"beta": 0.3, "loss": "sigmoid", "sft_weight": 0.0}
    assert (setup.learning_rate, setup.dropout, setup.max_length) == (1e-6, 0.0, 1024)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("loss_type: [hinge]", "loss_type: hinge; sigmoid is used"),
        ("label_smoothing: 0.1", "label_smoothing: 0.1; TRL 1.16's sigmoid takes none"),
        (
            "f_divergence_type: js",
            "f_divergence_type: js; reverse_kl is used",
        ),
        ("ld_alpha: 0.5", "ld_alpha: 0.5"),
    ],
)
def test_what_a_study_cannot_say_of_dpo(tmp_path: Path, line: str, sentence: str) -> None:
    reading = read(tmp_path, f"model_name_or_path: m\nbeta: 0.1\n{line}\n")
    assert reading.not_carried == (sentence,)


@pytest.mark.parametrize(
    "line", ["max_prompt_length: 256", "label_smoothing: 0.1", "ref_model_mixup_alpha: 0.6"]
)
def test_dpo_with_its_usual_beta_and_loss_is_known_by_its_other_keys(
    tmp_path: Path, line: str
) -> None:
    reading = read(tmp_path, f"model_name_or_path: m\nuse_peft: true\n{line}\n")
    assert reading.setup.objective == {"dpo": {"beta": 0.1, "loss": "sigmoid", "sft_weight": 0.0}}
    assert reading.setup.dropout == 0.0
    assert any(each.startswith(line) for each in reading.not_carried)
    assert read(tmp_path, "model_name_or_path: m\n").setup.objective is None


def test_weights_of_losses_must_be_numbers(tmp_path: Path, sentence: Sentences) -> None:
    text = "model_name_or_path: m\nbeta: 0.1\nloss_type: [sigmoid, sft]\nloss_weights: [1]\n"
    sentence(problems(tmp_path, text), names=("loss_weights",), part=True)


def without(text: str, *keys: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith(keys))


@pytest.mark.parametrize(
    ("tool", "lines"), [("TRL", tool_configs.TRL_GRPO), ("AXOLOTL", tool_configs.AXOLOTL_GRPO)]
)
def test_grpo_in_the_words_of_tools_that_have_it(tmp_path: Path, tool: str, lines: str) -> None:
    reading = read(tmp_path, f"{getattr(tool_configs, tool)}{lines}")
    setup = reading.setup
    assert setup.objective == {"grpo": tool_configs.GRPO}
    # 4 texts a batch, 8 batches: 8 rows with 4 texts each
    assert (setup.batch_size, setup.gradient_accumulation_steps) == (1, 8)
    same = SAME._replace(batch_size=1, max_length=812)
    assert setup._replace(objective=None, judged_by=None, chat_template=None) == same
    assert reading.not_carried == ()
    (tmp_path / "study.yaml").write_text(study_text(reading, tmp_path).text)
    config = load_config(tmp_path / "study.yaml")
    grpo = config.train.objective and config.train.objective.grpo
    assert grpo is not None
    assert grpo.model_dump(exclude_none=True, exclude={"rewards"}) == {
        key: value for key, value in tool_configs.GRPO.items() if key != "rewards"
    }
    assert [(each.code, each.weight) for each in grpo.rewards if not isinstance(each, str)] == [
        (f"{tmp_path / 'rewards.py'}:format", 0.5),
        (f"{tmp_path / 'rewards.py'}:right", 2.0),
    ]
    assert config.train.judged_by == ("contains",)


def test_what_trl_says_of_grpo_by_default(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    reading = read(
        tmp_path,
        "model_name_or_path: m\nuse_peft: true\nreward_funcs: [mine.score]\n"
        "per_device_train_batch_size: 12\ngradient_accumulation_steps: 4\nnum_processes: 2\n",
    )
    setup = reading.setup
    assert setup.objective == {
        "grpo": {
            "rewards": [{"code": f"{tmp_path / 'mine.py'}:score", "weight": 1.0}],
            "num_generations": 8,
            "max_completion_length": 512,
            "temperature": 1.0,
        }
    }
    assert (setup.learning_rate, setup.dropout, setup.max_length) == (1e-6, 0.05, 1024)
    # 12 texts on each of 2 devices, 4 times: 96 texts are 12 rows
    assert (setup.batch_size, setup.gradient_accumulation_steps) == (1, 12)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("loss_type: cispo", "loss_type: cispo; dapo is used"),
        ("top_p: 0.9", "top_p: 0.9; 1.0 is used"),
        ("mask_truncated_completions: true", "mask_truncated_completions: True"),
        ("multi_objective_aggregation: normalize_then_sum", "; sum_then_normalize is used"),
        ("reward_model_name_or_path: org/judge", "reward_model_name_or_path: org/judge"),
        ("steps_per_generation: 4", "steps_per_generation: 32 texts are written at once"),
        ("generation_batch_size: 16", "steps_per_generation: 16 texts are written at once"),
        ("reward_funcs: [accuracy_reward]", "reward_funcs: accuracy_reward, no function of a file"),
        ("vllm_structured_outputs_regex: '[a-z]+'", "vllm_structured_outputs_regex: [a-z]+"),
        ("shuffle_dataset: false", "shuffle_dataset: False"),
        ("temperature: 0", "temperature: 0; 1.0 is used"),
        ("delta: 4", "delta: 4"),
        ("top_entropy_quantile: 0.2", "top_entropy_quantile: 0.2; 1.0 is used"),
    ],
)
def test_what_a_study_cannot_say_of_grpo(tmp_path: Path, line: str, sentence: str) -> None:
    reading = read(tmp_path, f"model_name_or_path: m\nnum_generations: 4\n{line}\n")
    (found,) = reading.not_carried
    assert sentence in found
    grpo = (reading.setup.objective or {})["grpo"]
    assert grpo["rewards"] == [{"code": "my_rewards.py:reward"}]
    assert any("my_rewards.py:reward stands for yours" in each for each in reading.to_check)
    loaded = study_text(reading, tmp_path).text
    assert "judged_by: [contains]" in loaded


def test_a_config_of_trl_grpo_is_told_by_any_key_that_only_it_has(tmp_path: Path) -> None:
    fields: dict[Any, set[str]] = {
        config: {field.name for field in dataclasses.fields(config)}
        for config in (trl.GRPOConfig, trl.SFTConfig, trl.DPOConfig, SDFTConfig)
    }
    alone = fields.pop(trl.GRPOConfig).difference(*fields.values())
    of_results = {key for key in alone if not WITHOUT_EFFECT.fullmatch(key)}
    assert len(of_results) > 20
    for key in of_results:
        value = "[1.0]\nreward_funcs: [a.b]" if key == "reward_weights" else "0.5"
        reading = read(tmp_path, f"model_name_or_path: m\n{key}: {value}\n")
        assert reading.setup.stage == "grpo", key
    for loss in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"):
        setup = read(tmp_path, f"model_name_or_path: m\nloss_type: {loss}\nbeta: 0.1\n").setup
        assert setup.stage == "grpo", loss


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("num_generations: 0", "num_generations: 0 is not above 0"),
        ("max_completion_length: -5", "max_completion_length: -5 is not above 0"),
        ("epsilon: 0.2\nmax_prompt_length: 0", "max_prompt_length: 0 is not above 0"),
        ("delta: 4\nper_device_train_batch_size: 0", "per_device_train_batch_size: 0 is not a"),
        ("loss_type: sigmoid\nbeta: 0", "beta: 0 is not above 0"),
        ("loss_type: [ipo, sft]\nloss_weights: [0, 1]", "loss_weights: [0, 1] are not above 0"),
        ("num_train_epochs: -1", "num_train_epochs: -1 is not above 0"),
    ],
)
def test_what_no_training_can_have_is_not_taken_for_nothing(
    tmp_path: Path, lines: str, sentence: str
) -> None:
    assert sentence in problems(tmp_path, f"model_name_or_path: m\n{lines}\n")


def test_axolotl_s_texts_have_room_behind_their_prompts(tmp_path: Path) -> None:
    lines = "base_model: m\nadapter: lora\nlora_r: 8\nlora_alpha: 8\nrl: grpo\n"
    reading = read(tmp_path, f"{lines}sequence_len: 512\ntrl: {{num_generations: 4}}\n")
    assert reading.setup.max_length == 1024
    assert (reading.setup.objective or {})["grpo"]["max_completion_length"] == 512
    assert any("Axolotl writes texts of any length" in each for each in reading.to_check)


def test_steps_of_grpo_that_share_their_texts_share_their_rows(tmp_path: Path) -> None:
    """6 steps in which each batch of one row is read 3 times: two rows."""
    text = "model_name_or_path: m\nnum_generations: 4\nper_device_train_batch_size: 4\n"
    text += "max_steps: 6\nnum_iterations: 3\nnum_processes: 1\n"
    reading = read(tmp_path, text)
    assert reading.setup.max_examples == 2 * (reading.setup.gradient_accumulation_steps or 1)
    assert any("6 steps of" in each and "read in 3 steps" in each for each in reading.to_check)


def test_a_reward_that_is_named_twice_counts_with_both_weights(tmp_path: Path) -> None:
    names = "reward_funcs: [mine.good, mine.short, mine.good]\nreward_weights: [1.0, 0.1, 0.5]\n"
    reading = read(tmp_path, f"model_name_or_path: m\nnum_generations: 4\n{names}")
    rewards = (reading.setup.objective or {})["grpo"]["rewards"]
    assert rewards == [
        {"code": "mine.py:good", "weight": 1.5},
        {"code": "mine.py:short", "weight": 0.1},
    ]


@pytest.mark.parametrize(
    ("line", "precision"),
    [("bf16: false", "float32"), ("bf16: true", "bfloat16"), ("", None), ("bf16: auto", None)],
)
def test_a_precision_that_is_turned_off_is_the_other(
    tmp_path: Path, line: str, precision: str | None
) -> None:
    assert read(tmp_path, f"model_name_or_path: m\n{line}\n").setup.precision == precision


def test_trl_corrects_its_kl_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    text = "model_name_or_path: m\nnum_generations: 4\nbeta: 0.1\n"
    said = " ".join(read(tmp_path, text).to_check)
    assert "use_bias_correction_kl: TRL multiplies the KL by the ratio" in said
    told = read(tmp_path, f"{text}use_bias_correction_kl: false\n")
    assert "use_bias_correction_kl" not in " ".join(told.to_check)


def test_weights_of_rewards_must_be_numbers(tmp_path: Path, sentence: Sentences) -> None:
    text = "model_name_or_path: m\nreward_funcs: [a.b, a.c]\nreward_weights: [1]\n"
    sentence(problems(tmp_path, text), names=("reward_weights",), part=True)


def test_self_distillation_in_the_words_of_trl(tmp_path: Path) -> None:
    own = without(tool_configs.TRL, "max_length", "lora_dropout")
    template = "{prompt}\\nIn {{braces}}: {privileged_context}"
    reading = read(
        tmp_path,
        f'{own}\nteacher_prompt_template: "{template}"\ndistillation_mode: full_logits\n'
        "distillation_alpha: 1\nnum_generations: 2\nmax_prompt_length: 600\nnum_processes: 1\n",
    )
    setup = reading.setup
    assert setup.objective == {
        "sdft": {
            "num_generations": 2,
            "max_completion_length": 256,
            "temperature": 1.0,
            "direction": "reverse",
            "template": "{prompt}\nIn {braces}: {answer}",
        }
    }
    assert (setup.batch_size, setup.gradient_accumulation_steps) == (2, 8)
    assert (setup.max_length, setup.dropout) == (856, 0.0)
    assert reading.not_carried == ()
    (tmp_path / "study.yaml").write_text(study_text(reading, tmp_path).text)
    config = load_config(tmp_path / "study.yaml")
    assert config.train.objective is not None
    assert config.train.objective.sdft is not None
    assert config.train.objective.sdft.template == "{prompt}\nIn {braces}: {answer}"


def test_what_trl_says_of_self_distillation_by_default(tmp_path: Path) -> None:
    reading = read(tmp_path, "model_name_or_path: m\nuse_peft: true\nteacher_model_kind: ema\n")
    assert reading.not_carried == (
        "distillation_alpha: 0.5; 0 is used, KL(teacher || model)",
        "distillation_mode: topk_logits; full_logits is used",
        "teacher_model_kind: ema; base is used",
    )
    setup = reading.setup
    assert setup.objective is not None
    assert setup.objective["sdft"]["template"] == "{prompt}\n\n{answer}"
    assert (setup.learning_rate, setup.max_length, setup.batch_size) == (5e-5, 768, 1)


def test_llama_factory_has_no_grpo(tmp_path: Path) -> None:
    text = "model_name_or_path: m\nstage: grpo\nfinetuning_type: lora\n"
    assert "stage: grpo is not compared; give sft or dpo" in problems(tmp_path, text)
