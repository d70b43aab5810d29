"""LoRA: learns a low-rank change beside each frozen weight matrix; it can be folded into the weights afterwards.

Hu et al. 2021, equation 3, https://arxiv.org/abs/2106.09685
Use as the first choice for adapting a model whose full training is too dear or would forget too much. Not where new knowledge
is large: a change of low rank holds little of it.
The paper adapts the query and value projections alone; here all linear layers but the output layer get a change, which QLoRA
(section 4, https://arxiv.org/abs/2305.14314) found necessary to match full training; ``target=["q_proj", "v_proj"]`` gives the
paper's choice.

>>> from acclimate.checks.tiny import decoder
>>> from peft import get_peft_model
>>> get_peft_model(decoder(), Lora(r=2, target=["q_proj"]).peft(decoder())).get_nb_trainable_parameters()[0]  # 2 layers x 2 x (16 + 16)
128
"""

from typing import Annotated, Any

from ...kinds import Adapter
from ...method import Setting
from ...parts.beside import LowRank
from ...parts.peft_targets import lora_config


class Lora(Adapter):
    """weight + alpha / r * B A, with B = 0 at the start."""

    r: Annotated[int, Setting("rank of the change (the paper's r)", 1)] = 8
    alpha: Annotated[float, Setting("size of the change; it is multiplied by alpha / r", 0)] = 16.0
    dropout: Annotated[float, Setting("share of the change's inputs dropped in training", 0, 1)] = 0.0
    target: Annotated[str | list[str], Setting("layers: all-linear, endings of names in a list, or a regular expression")] = "all-linear"

    def peft(self, model: Any) -> Any:
        """Peft's LoraConfig."""
        return lora_config(model, r=self.r, alpha=self.alpha, dropout=self.dropout, target=self.target)

    def wrap(self, layer: Any) -> LowRank:
        """The same change as a module of ours, for adapters that are composed or mixed in a batch."""
        return LowRank(layer.inputs, layer.outputs, self.r, self.alpha / self.r, self.dropout)
