"""Tiny random models of many architectures."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

BASE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LAYER_TYPES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}


ONE_WIDTH = {"head_dim": None, "num_key_value_heads": None}


OWN: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {**LAYER_TYPES, "use_sliding_window": True, "max_window_layers": 0},
    "Qwen3": {},
    "Gemma2": {
        **LAYER_TYPES,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 8,
    },
    "Gemma3": {**LAYER_TYPES, "query_pre_attn_scalar": 8},
    # as its large kind, whose keys are its values in the layers without a window
    "Gemma4": {
        "layer_types": ["full_attention"] * 2,
        "attention_k_eq_v": True,
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 64,
    },
    "GPT2": {**ONE_WIDTH, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "GPTNeoX": {**ONE_WIDTH, "rotary_pct": 0.5},
    "Phi3": {"head_dim": None, "sliding_window": 4},
    "GptOss": {**LAYER_TYPES, "num_local_experts": 4, "num_experts_per_tok": 2},
}


LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "head_dim": 4, "num_key_value_heads": 4,
}  # fmt: skip


EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_shared_experts": 1,
    "moe_num_shared_experts": 1, "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1, "moe_layer_start_index": 1, "num_dense_layers": 1,
}  # fmt: skip
"""Four experts, two of them for a token, and what is beside them, as each family calls it."""


MIXTURES: dict[str, dict[str, Any]] = {
    "Dots1": {}, "Ernie4_5_Moe": {}, "DeepseekV2": LATENT, "DeepseekV3": LATENT, "Glm4Moe": {},
    "Glm4MoeLite": LATENT, "ExaoneMoe": {}, "SolarOpen": {}, "Afmoe": {}, "Laguna": {},
    "HunYuanMoEV1": {}, "Qwen2Moe": {}, "Mixtral": {}, "Qwen3Moe": {}, "Olmoe": {}, "MiniMaxM2": {},
    "GraniteMoe": {}, "FlexOlmo": {}, "Phimoe": {},
    "LongcatFlash": {
        **LATENT, "num_layers": 2, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 48,
        "zero_expert_num": 1,
    },
}  # fmt: skip


CLASSES = {
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "Gemma4": ("Gemma4TextConfig", "Gemma4ForCausalLM"),
    "GPT2": ("", "GPT2LMHeadModel"),
}


def tiny(family: str, **changes: Any) -> Any:
    """A random model in float32 whose attention matters."""
    config_name, model_name = CLASSES.get(family, ("", ""))
    settings = {**BASE, **OWN.get(family, {}), **changes}
    settings = {name: value for name, value in settings.items() if value is not None}
    config = getattr(transformers, config_name or f"{family}Config")(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config._attn_implementation = "eager"
        model = getattr(transformers, model_name or f"{family}ForCausalLM")(config)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                nn.init.normal_(parameter)
    return model.eval()


def tiny_mixture(family: str, **changes: Any) -> Any:
    """A random mixture of experts, frozen."""
    return tiny(family, **EXPERTS, **{**MIXTURES[family], **changes}).requires_grad_(False)
