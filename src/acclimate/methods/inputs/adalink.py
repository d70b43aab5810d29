"""AdaLink: learns a low-rank change of the input embeddings; the model behind them stays untouched and can serve many tasks in one batch.

Wang et al. 2023, section 3, https://arxiv.org/abs/2310.12100
Use where a model is served that must not be touched and takes embeddings; on a small model without instruction tuning LoRA reaches further.
E' = E + phi(E W_down) W_up with W_up = 0 at the start, the same for every position. It stands at the embedding of text; images have one of
their own (``target="[r].*patch_embeddings.projection"``), put in under another name: ``stack(text, image)`` lets both work. Where both come
as one sequence of embeddings, ``model.overlay.Links`` keeps them apart by a mask and gathers the factors of a batch of mixed tasks;
``table_of`` and ``with_table`` fold a task of text into an alternative table, beside which a tied output layer keeps the original.
The rank, no activation and the start of W_down (1 / sqrt(width)) are choices: the summaries at hand do not give them.

>>> from acclimate.checks.tiny import decoder
>>> from acclimate.model.injected import Injected
>>> made = Injected(decoder()).add("a", AdaLink(rank=4))
>>> sum(weight.numel() for weight in made.adapters.parameters())  # 2 x 16 x 4
128
"""

from typing import Annotated

from ...errors import AcclimateError
from ...kinds import Adapter
from ...method import Setting
from ...model.roles import Site
from ...parts.adalink import Link
from ...parts.beside import ACTIVATIONS


class AdaLink(Adapter):
    """E + phi(E W_down) W_up."""

    room = "inputs"

    rank: Annotated[int, Setting("width of the bottleneck (r)", 1)] = 64
    activation: Annotated[str, Setting("nonlinearity in the middle (phi)", choices=tuple(ACTIVATIONS))] = "none"
    dropout: Annotated[float, Setting("share of the bottleneck dropped in training", 0, 1)] = 0.0
    target: Annotated[str | list[str], Setting("where: roles, ends of names, [r] and a regular expression")] = "embedding"

    def wrap(self, layer: Site) -> Link:
        """The module behind one embedding."""
        if not layer.outputs:
            raise AcclimateError(f"the width of {layer.target} is not known, so no AdaLink can stand behind it; name an embedding")
        return Link(layer.outputs, self.rank, self.activation, self.dropout)
