"""A text encoder that learns with the rest: any Hugging Face encoder, its vector of a text pooled as it was trained to."""

from typing import Any

from torch import Tensor, nn

from ..engines.embed import pooling
from ..errors import AcclimateError
from ..model import Model
from ..parts.pooling import pooled


class TextNet(nn.Module):
    """Token ids [text, token], padded to one length -> features [text, width]; what is padding is read off the ids.

    ``inputs`` is the shape of a usual row, ``vocabulary`` how many ids there are. Methods that mix or perturb rows cannot take ids: they
    work on vectors of the frozen encoder.
    """

    def __init__(self, encoder: str = "minilm", train_layers: int = -1):
        """``train_layers``: how many of the last layers learn (the others and the embeddings stay as they are); -1 = everything."""
        super().__init__()
        model = Model.load(encoder, kind="encoder")
        self.settings = {"encoder": encoder, "train_layers": train_layers}
        self.body: Any = getattr(model.net, "base_model", model.net)
        self.padding = int(model.tokenizer.pad_token_id or 0)
        self.pooling = pooling(model)
        self.features, self.vocabulary, self.inputs = self.body.config.hidden_size, self.body.config.vocab_size, (16,)
        if train_layers >= 0:
            layers = self.body.encoder.layer
            self.body.requires_grad_(False)
            for layer in layers[len(layers) - train_layers :]:
                layer.requires_grad_(True)

    def forward(self, ids: Tensor) -> Tensor:
        """A vector of each text."""
        if ids.is_floating_point():
            raise AcclimateError(
                "the text encoder takes token ids, but this method mixes or perturbs its rows; use vectors of the frozen encoder "
                "(leave out backbone = 'text')"
            )
        mask = ids.ne(self.padding).long()
        used = int(mask.sum(1).max().clamp(min=1))  # padding at the end of all rows costs nothing
        ids, mask = ids[:, :used], mask[:, :used]
        hidden = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        return pooled(hidden, mask, self.pooling)


BACKBONE = TextNet
