"""DoRA: LoRA on the direction of each weight matrix, with its length learned apart.

Liu et al. 2024, equation 5, https://arxiv.org/abs/2402.09353
Use where LoRA of a small rank stays behind full training. Not where training time counts: normalising makes each step slower.
As in the paper the column norms count as constants in the gradient (section 4.3). Layers as in lora: all linear ones.

>>> from acclimate.checks.tiny import decoder
>>> from peft import get_peft_model
>>> get_peft_model(decoder(), Dora(r=2, target=["q_proj"]).peft(decoder())).get_nb_trainable_parameters()[0]  # LoRA's 128 + 2 x 16
160
"""

from typing import Annotated, Any

from ...kinds import Adapter
from ...method import Setting
from ...parts.peft_targets import lora_config


class Dora(Adapter):
    """m * (weight + alpha / r * B A) / norm, with m the norm of the weight and B = 0 at the start."""

    r: Annotated[int, Setting("rank of the change (r)", 1)] = 8
    alpha: Annotated[float, Setting("size of the change; it is multiplied by alpha / r", 0)] = 16.0
    dropout: Annotated[float, Setting("share of the change's inputs dropped in training", 0, 1)] = 0.0
    target: Annotated[str | list[str], Setting("layers: all-linear, endings of names in a list, or a regular expression")] = "all-linear"

    def peft(self, model: Any) -> Any:
        """Peft's LoraConfig with weights taken apart into length and direction."""
        return lora_config(model, r=self.r, alpha=self.alpha, dropout=self.dropout, target=self.target, use_dora=True)
