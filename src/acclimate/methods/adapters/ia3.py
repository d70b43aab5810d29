"""IA3: learns one factor per attention key, attention value and feed-forward unit; a few thousand weights, and they fold away.

Liu et al. 2022, section 3.3, https://arxiv.org/abs/2205.05638
Use for few examples, or for very many small adapters. Not for large domains: it can only turn existing units up and down.
Left out: the paper's extra losses (unlikelihood, length normalisation) and its pretraining of the factors. Where a family
computes keys and values in one fused layer (GPT-2, BLOOM), all outputs of that layer get factors.

>>> from acclimate.checks.tiny import decoder
>>> from peft import get_peft_model
>>> get_peft_model(decoder(), Ia3().peft(decoder())).get_nb_trainable_parameters()[0]  # 2 layers x (8 keys + 8 values + 32 units)
96
"""

from typing import Annotated, Any

from ...errors import AcclimateError
from ...kinds import Adapter
from ...method import Setting
from ...parts.peft_targets import keys_values_feedforward, task_type


class Ia3(Adapter):
    """Outputs of key and value layers, and inputs of feed-forward output layers, times a factor that is 1 at the start."""

    target: Annotated[
        list[str] | None, Setting("layers whose outputs are scaled, by endings of names; nothing = the family's keys and values")
    ] = None
    feedforward: Annotated[
        list[str] | None, Setting("layers whose inputs are scaled; nothing = the family's feed-forward output layers")
    ] = None

    def peft(self, model: Any) -> Any:
        """Peft's IA3Config."""
        from peft import IA3Config

        if (self.target is None) != (self.feedforward is None):
            raise AcclimateError("Ia3.target and Ia3.feedforward belong together; give both or neither")
        if self.target is not None and self.feedforward is not None:
            outputs, inputs = self.target, self.feedforward
        else:
            outputs, inputs = keys_values_feedforward(model)
        # the ending of BERT's feed-forward output layers fits their namesakes in attention too
        namesakes = [name for name, _ in model.named_modules() if name.endswith("attention.output.dense")]
        conv1d = any(type(layer).__name__ == "Conv1D" for layer in model.modules())
        return IA3Config(
            target_modules=[*outputs, *inputs],
            feedforward_modules=inputs,
            exclude_modules=namesakes or None,
            fan_in_fan_out=conv1d,
            task_type=task_type(model),
        )
