"""VeRA: LoRA whose two matrices are random, frozen and shared by all layers; each layer learns two vectors that scale them.

Kopiczko et al. 2024, equation 2, https://arxiv.org/abs/2310.11454
Use where thousands of adapters must be stored: a tenth of LoRA's weights. Not where quality comes first: LoRA of the same size of change
learns faster. The random matrices are drawn from ``key`` and stored too, unless ``save_projection`` is off. Layers as in lora: all linear
ones; the paper's are the attention's queries and values. Rates about ten times LoRA's (section 4.1) suit the vectors.

>>> from acclimate.checks.tiny import decoder
>>> from peft import get_peft_model
>>> get_peft_model(decoder(), Vera(r=5, target=["q_proj"]).peft(decoder())).get_nb_trainable_parameters()[0]  # 2 layers x (5 + 16)
42
"""

from typing import Annotated, Any

from ...kinds import Adapter
from ...method import Setting
from ...parts.peft_targets import task_type


class Vera(Adapter):
    """weight + diag(b) B diag(d) A, with b = 0 at the start and A, B frozen."""

    r: Annotated[int, Setting("rank of the random matrices", 1)] = 256
    d_initial: Annotated[float, Setting("value of d at the start")] = 0.1
    dropout: Annotated[float, Setting("share of the change's inputs dropped in training", 0, 1)] = 0.0
    key: Annotated[int, Setting("seed of the random matrices", 0)] = 0
    save_projection: Annotated[bool, Setting("store the random matrices, so that other versions of torch give the same")] = True
    target: Annotated[str | list[str], Setting("layers: all-linear, endings of names in a list, or a regular expression")] = "all-linear"

    def peft(self, model: Any) -> Any:
        """Peft's VeraConfig."""
        from peft import VeraConfig

        conv1d = any(type(layer).__name__ == "Conv1D" for layer in model.modules())  # GPT-2 stores its weights transposed
        return VeraConfig(
            r=self.r,
            d_initial=self.d_initial,
            vera_dropout=self.dropout,
            projection_prng_key=self.key,
            save_projection=self.save_projection,
            target_modules=self.target,
            fan_in_fan_out=conv1d,
            task_type=task_type(model),
        )
