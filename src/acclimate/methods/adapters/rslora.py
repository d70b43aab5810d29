"""rsLoRA: LoRA whose change is scaled by alpha / sqrt(r), so that large ranks learn as fast as small ones.

Kalajdzievski 2023, theorem 3.2 and section 4, https://arxiv.org/abs/2312.03732
Use instead of lora for ranks from about 32 up; below that the two differ only in what alpha means.
Nothing is left out. Layers as in lora: all linear ones.

>>> from acclimate.checks.tiny import decoder
>>> from peft import get_peft_model
>>> get_peft_model(decoder(), Rslora(r=64).peft(decoder())).base_model.model.model.layers[0].mlp.up_proj.scaling  # 16 / 8
{'default': 2.0}
"""

from typing import Annotated, Any

from ...kinds import Adapter
from ...method import Setting
from ...parts.peft_targets import lora_config


class Rslora(Adapter):
    """weight + alpha / sqrt(r) * B A, with B = 0 at the start."""

    r: Annotated[int, Setting("rank of the change (the paper's r)", 1)] = 64
    alpha: Annotated[float, Setting("size of the change; it is multiplied by alpha / sqrt(r)", 0)] = 16.0
    dropout: Annotated[float, Setting("share of the change's inputs dropped in training", 0, 1)] = 0.0
    target: Annotated[str | list[str], Setting("layers: all-linear, endings of names in a list, or a regular expression")] = "all-linear"

    def peft(self, model: Any) -> Any:
        """Peft's LoraConfig with the other scale."""
        return lora_config(model, r=self.r, alpha=self.alpha, dropout=self.dropout, target=self.target, use_rslora=True)
