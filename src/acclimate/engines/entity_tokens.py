"""Entities as tokens of an ordinary model: what a map makes of their embeddings stands in its embedding table.

Any library then reads the model; texts name an entity as ``model.knowledge.written`` does. The output layer never says an entity, so texts
without entities are answered as before.
"""

import copy

import torch

from ..errors import AcclimateError
from ..model import Model
from ..model.knowledge import Mapped, token_of

NEVER = -1e4  # an entity's bias in the output layer, whose probability is then 0


@torch.no_grad()
def with_entities(start: Model, mapped: Mapped, name: str = "") -> Model:
    """A copy of a masked language model with a token for each entity of the map's knowledge.

    Raises AcclimateError where the vocabulary has such a token already, and for an output layer without a bias.
    """
    from tokenizers import AddedToken

    made = start.copy(name or f"{start.name}+entities")
    net, tokenizer = made.net, copy.deepcopy(start.tokenizer)
    tokens = [token_of(entity) for entity in mapped.knowledge.names]
    taken = [token for token in tokens if token in tokenizer.get_vocab()]
    if taken:
        raise AcclimateError(f"{start.name} has a token {taken[0]!r} already; start from the model without entities")
    if getattr(net.get_output_embeddings(), "bias", None) is None:
        raise AcclimateError(f"the output layer of {start.name} has no bias, so it cannot be kept from saying entities; plug from Python")
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(tokens), device=made.device)
    if int(ids.max()) >= len(net.get_input_embeddings().weight):
        net.resize_token_embeddings(int(ids.max()) + 1, mean_resizing=False)
    table = net.get_input_embeddings().weight
    table[ids] = mapped(torch.arange(len(tokens), device=made.device)).to(table.dtype)
    net.get_output_embeddings().bias[ids] = NEVER
    made.tokenizer = tokenizer
    made.notes["made"] = {"base": start.source, "method": "entities as tokens", "entities": len(tokens)}
    return made
