"""A tiny config of every causal model type of the installed transformers, and random weights.

A type's own default config is made small field by field: widths, heads, experts and vocabulary by
their names, and layers so that each kind of layer that the defaults have is there once. What needs
more is in ``OWN``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 64
MODEL_TYPES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""In transformers' order."""

_HIDDEN, _HEADS, _GROUPS, _WIDTH = 32, 4, 2, 8

# By the whole name of a field, the first that fits; integers above the value become it.
_SIZES: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*|.*_vocab|audio_vocab_size", VOCABULARY),
    (r"(swa_)?num_key_value_heads|num_kv_heads|num_query_groups", _GROUPS),
    (r".*num_heads|.*_heads|n_heads?|.*num_attention_heads", _HEADS),
    (r"qk_head_dim", 2 * _WIDTH),
    (r"(swa_|v_|index_)?head_dim|d_head|d_kv|qk_nope_head_dim|qk_rope_head_dim", _WIDTH),
    (r"dim_head|kv_channels|rotary_dim|attention_head_(dim|size)|.*_head_dim", _WIDTH),
    (r".*intermediate_size.*|.*ffn_dim|.*ffn_hidden_size|d?_?ff|dim_ff|d_inner", 48),
    (r".*feed_forward_size|.*_mid_dim|mlp_dim", 48),
    (r".*hidden_size.*|d_model|n_embd|emb(edding)?_(dim|size)|.*_embed(_proj)?_dim", _HIDDEN),
    (r"(input|output)_embedding_size|lru_width|out_hidden_size|.*output_dim", _HIDDEN),
    (r"(kv|q|o)_lora_rank|.*_rank|query_pre_attn_scalar|router_hidden_size", 16),
    (r"(moe_)?num_experts|n_routed_experts|num_local_experts|moe_num_experts", 4),
    (r"zero_expert_num", 2),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|n_group|num_expert_group|num_shared_experts", 2),
    (r"n_shared_experts|moe_num_shared_experts|topk_group", 1),
    (r"first_k_dense_replace|num_dense_layers|num_nextn_predict_layers", 1),
    (r"sliding_window|sliding_window_size|local_attention|window_size|index_topk", 4),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|.*max_length", 64),
    (r"rel_extent|attention_chunk_size|keep_window_size", 64),
    (r"num_hidden_layers|.*_layers|n_layer|depth|num_blocks", 2),
    (r"mamba_.*|state_size|.*chunk_size|block_size|num_filters|.*_channels?|codebook_.*", 16),
)
# What a default leaves open and no checkpoint does.
_UNSET = {
    "head_dim": _WIDTH,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Their length is no number of layers.
_NO_LAYERS = {"architectures", "id2label", "label2id", "eos_token_id"}
_MOST_LAYERS = 4
_SMALL = {"hidden_size": 32, "num_attention_heads": 4}
_LATENT = {"head_dim": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "per_layer_config": {}}
_INDEXER = {
    "head_dim": 8,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 4,
    "linear_num_value_heads": 4,
}
OWN: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "dots3_note": {
        "text_config": {**_LATENT, "hidden_size": 32},
        "vision_config": {**_SMALL, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {**_SMALL, "adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _LATENT,
    "doge": {"num_experts": 4},
    "dory": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        **dict.fromkeys(("n_input_layers", "n_recurrent_layers", "n_output_layers"), 1),
        "num_hidden_layers": 3,
    },
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    # as its small checkpoints, whose last layers read the keys of earlier ones
    "gemma4": {
        "text_config": {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}},
        }
    },
    # as its large ones, of experts, whose keys are their values in the layers without a window
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "kolibri1_1": {
        "layer_types": ["sliding_attention", "indexed_attention"],
        **{"num_hidden_layers": 2, "index_layers": [1], "mlp_only_layers": [0], "head_dim": 16},
        "index_num_heads": 1,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "mamba2": {"hidden_size": 32, "num_heads": 8, "head_dim": 8},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"is_decoder": True, "hidden_size": 32, "axial_pos_embds_dim": [16, 16]},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
}
"""What a type's fields are beside the rules above; of a config inside, as a dictionary."""


def tiny_config(model_type: str) -> Any:
    """The small config of a type, with weights in float32."""
    kind: Any = CONFIG_MAPPING[model_type]
    own = OWN.get(model_type, {})
    config = kind(**_shrunk(kind(**own).to_dict(), own))
    for part in _parts(config):
        part.dtype = "float32"
    return config


def random_model(config: Any, seed: int = 0) -> Any:
    """A model whose weights are drawn so that its attention matters and no two logits are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config)

    def drawn(size: Sequence[int]) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        for parameter in model.parameters():
            if parameter is embeddings:
                parameter.copy_(drawn(parameter.shape))
            elif parameter.dim() > 1:
                parameter.copy_(1.5 * drawn(parameter.shape) / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.1 * drawn(parameter.shape))
    return model.eval()


def num_parameters(model: nn.Module) -> int:
    """All weights of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    inside = [value for value in vars(config).values() if isinstance(value, PretrainedConfig)]
    return [config, *(part for each in inside for part in _parts(each))]


def _shrunk(fields: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config made small; those inside too."""
    small = {name: _small(name, value) for name, value in fields.items()}
    small.pop("transformers_version", None)
    if kept := _kept_layers(fields):
        small["num_hidden_layers"] = len(kept)
        for name in _by_layer(fields):
            small[name] = [_small(name, fields[name][layer]) for layer in kept]
    small |= {name: _TOKENS[name] for name in fields.keys() & _TOKENS.keys()}
    small |= {n: v for n, v in _UNSET.items() if fields.get(n, 0) is None}
    if fields.get("num_key_value_heads", 0) in (None, fields.get("num_attention_heads")):
        small["num_key_value_heads"] = _HEADS
    for name, value in fields.items():
        is_by_layer = name == "per_layer_config"
        if isinstance(value, dict) and name.endswith(("_config", "coder")) and not is_by_layer:
            small[name] = _shrunk(value, own.get(name, {}))
        elif name in own:
            small[name] = own[name]
        elif is_by_layer:  # the number of a layer, as text -> its fields
            changed = {str(kept.index(int(n))): v for n, v in value.items() if int(n) in kept}
            small[name] = {n: _shrunk(v, {}) for n, v in changed.items()}
            for other in small[name].values():  # another width stays another one
                other |= {n: 2 * _WIDTH for n in other if n == "head_dim"}
    return {**{name: value for name, value in own.items() if name not in fields}, **small}


def _small(name: str, value: Any) -> Any:
    if name.endswith("token_id") and isinstance(value, int):
        return 3 + len(name)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value


def _by_layer(fields: dict[str, Any]) -> list[str]:
    """The fields that have an entry for every layer."""
    count = fields.get("num_hidden_layers")
    return [
        name
        for name, value in fields.items()
        if isinstance(value, list) and name not in _NO_LAYERS and len(value) == count
    ]


def _kept_layers(fields: dict[str, Any]) -> list[int]:
    """One layer of each kind, and two at least."""
    names = _by_layer(fields)
    first: dict[str, int] = {}
    for layer in range(fields["num_hidden_layers"] if names else 0):
        first.setdefault(repr([fields[name][layer] for name in names]), layer)
    kept = list(first.values())[:_MOST_LAYERS]
    return [*kept, *(kept * (len(kept) == 1))]
