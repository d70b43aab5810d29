"""What a peft configuration must know about a transformers model: its task and its layers by role."""

import re
from typing import Any

from torch import nn

from ..errors import AcclimateError


def task_type(model: Any) -> str | None:
    """Peft's name for what the model does: SEQ_2_SEQ_LM, CAUSAL_LM, or None for encoders.

    >>> from transformers import BertConfig, BertForMaskedLM
    >>> print(task_type(BertForMaskedLM(BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, vocab_size=9))))
    None
    """
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.can_generate() else None


def lora_scale(settings: dict[str, Any], path: str) -> tuple[int, float]:
    """Rank and scale of one layer's factors by a stored configuration, whose patterns match the end of a layer's path, as peft's do.

    >>> lora_scale({"r": 8, "lora_alpha": 16, "rank_pattern": {"mlp.up": 4, "q": 2}, "use_rslora": True}, "layers.0.mlp.up")
    (4, 8.0)
    """
    rank, alpha = (
        next((value for key, value in (settings.get(pattern) or {}).items() if re.fullmatch(rf"(.*\.)?({key})", path)), settings[default])
        for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    return rank, float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def lora_config(model: Any, *, r: int, alpha: Any, dropout: float, target: str | list[str], **variant: Any) -> Any:
    """A peft LoraConfig for the model; ``variant`` names what sets a relative of LoRA apart from it."""
    from peft import LoraConfig

    conv1d = any(type(layer).__name__ == "Conv1D" for layer in model.modules())  # GPT-2 stores its weights transposed
    return LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=target, task_type=task_type(model), fan_in_fan_out=conv1d, **variant
    )


def keys_values_feedforward(model: Any) -> tuple[list[str], list[str]]:
    """Names of the layers that make attention keys and values, and of those that read the inner feed-forward activations.

    Layers named as in Llama (k_proj, v_proj, down_proj) are taken as they are; for other families peft's table answers.
    Raises AcclimateError for a family that neither knows.
    """
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD,
    )
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as ALL,
    )

    names = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    if {"k_proj", "v_proj", "down_proj"} <= names:
        return ["k_proj", "v_proj"], ["down_proj"]
    family = model.config.model_type
    if family not in ALL:
        raise AcclimateError(
            f"the key, value and feed-forward layers of {family} models are not known; name them with target and feedforward"
        )
    return [name for name in ALL[family] if name not in FEEDFORWARD[family]], list(FEEDFORWARD[family])
