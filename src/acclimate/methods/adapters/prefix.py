"""Prefix tuning: learns keys and values that every layer attends to as if they stood before the input.

Li & Liang 2021, section 4, equation 3, https://arxiv.org/abs/2101.00190
Use for generation tasks with little data; stronger than prompt, since it reaches every layer. Not together with gradient
checkpointing, which the key-value cache rules out.
As in the paper a small network makes the prefix while it is trained (the paper's tables-to-text settings: 10 positions, width
512) and only what it makes is saved, so a saved prefix can be used but not trained further; ``hidden=0`` trains the prefix
itself and can. Left out: the start from the activations of real words.

>>> from acclimate.checks.tiny import decoder
>>> from peft import get_peft_model
>>> get_peft_model(decoder(), Prefix(tokens=5, hidden=0).peft(decoder())).get_nb_trainable_parameters()[0]  # 5 x 2 layers x (8 + 8)
160
"""

from typing import Annotated, Any, ClassVar

from ...kinds import Adapter
from ...method import Setting
from ...parts.peft_targets import task_type


class Prefix(Adapter):
    """Learned keys and values in front of each layer's own."""

    exempt: ClassVar = {
        "identity": "extra keys take part of the attention from the first step on",
        "folds": "a prefix has no weight matrix to be folded into",
    }
    tokens: Annotated[int, Setting("number of positions in the prefix", 1)] = 10
    hidden: Annotated[int, Setting("width of the network that makes the prefix (the paper's k); 0 = none", 0)] = 512

    def peft(self, model: Any) -> Any:
        """Peft's PrefixTuningConfig."""
        from peft import PrefixTuningConfig

        network: dict[str, Any] = {"prefix_projection": True, "encoder_hidden_size": self.hidden} if self.hidden else {}
        return PrefixTuningConfig(num_virtual_tokens=self.tokens, task_type=task_type(model) or "FEATURE_EXTRACTION", **network)
