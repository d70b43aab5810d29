"""Vectors laid over the input embeddings of a frozen network: virtual ids, changes per modality and task, tables of one's own.

The network is called through ``inputs_embeds``; positions, masks and the output layer are its own, so a tied output layer keeps the
original table.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError, nearest
from ..parts.adalink import Link, gathered


class Overlay(nn.Module):
    """A frozen network that reads ids of its own and, from its vocabulary's size on, virtual ids, whose embeddings come from ``source``.

    ``source`` maps numbers of virtual ids [n] (0 is the first) to vectors [n, width]; a module among them is trained with the overlay.
    """

    def __init__(self, net: Any, source: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net = net.requires_grad_(False)
        self.source = source.to(net.get_input_embeddings().weight.device) if isinstance(source, nn.Module) else source

    @property
    def first(self) -> int:
        """The first virtual id: rows of the network's own table."""
        return len(self.net.get_input_embeddings().weight)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings [row, token, width]."""
        table = self.net.get_input_embeddings()
        virtual = input_ids >= self.first
        own = table(input_ids.masked_fill(virtual, 0))
        if not virtual.any():
            return own
        vectors = self.source(input_ids[virtual] - self.first)
        if vectors.shape[-1] != own.shape[-1]:
            raise AcclimateError(f"vectors of width {vectors.shape[-1]} cannot stand in a model of width {own.shape[-1]}; map them to it")
        return own.masked_scatter(virtual[..., None], vectors.to(own.dtype))

    def forward(self, input_ids: Tensor, **given: Any) -> Any:
        """The network's own call."""
        return self.net(inputs_embeds=self.embed(input_ids), **given)


class Links(nn.Module):
    """A served network with AdaLinks by modality and task: one batch may hold rows of many tasks, and positions of many modalities.

    >>> from acclimate.checks.tiny import decoder
    >>> links = Links(decoder()).add("text", "law", Link(16, 4)).add("image", "law", Link(16, 2))
    >>> links(input_ids=torch.tensor([[1, 2]]), tasks=["law"]).logits.shape
    torch.Size([1, 2, 48])
    """

    def __init__(self, net: Any):
        super().__init__()
        self.net = net.requires_grad_(False)
        self.links = nn.ModuleDict()  # modality -> task -> Link

    @property
    def modalities(self) -> list[str]:
        """By number, as they stand in the mask."""
        return list(self.links)

    def add(self, modality: str, task: str, link: Link) -> "Links":
        """Put in one task's module for one modality; all of a modality have one activation. The mask numbers modalities as they came."""
        width = self.net.get_input_embeddings().weight.shape[1]
        if link.down.shape[0] != width:
            raise AcclimateError(f"an AdaLink of width {link.down.shape[0]} does not fit a model of width {width}")
        if modality not in self.links:
            self.links[modality] = nn.ModuleDict()
        held: Any = self.links[modality]
        others = {part.activation for part in held.values()} - {link.activation}
        if others:
            raise AcclimateError(f"AdaLinks of {modality!r} have the activation {others.pop()!r}; {task!r} has {link.activation!r}")
        held[task] = link
        return self

    def adapt(self, embeddings: Tensor, tasks: Sequence[str] | str, modality: Tensor | None = None) -> Tensor:
        """Embeddings [row, token, width] as the tasks of the rows ("" for none) change them; what a client sends to an endpoint.

        modality [row, token]: the number of each position's modality, -1 for positions that are left alone; all are of the first if None.
        """
        names = [tasks] * len(embeddings) if isinstance(tasks, str) else list(tasks)
        if len(names) != len(embeddings):
            raise AcclimateError(f"tasks were named for {len(names)} rows, but the batch has {len(embeddings)}")
        every: Any = self.links
        known = {task for held in every.values() for task in held}
        if lost := [name for name in names if name and name not in known]:
            raise AcclimateError(f"no AdaLink is of the task {lost[0]!r}{nearest(lost[0], known)}")
        changed = embeddings
        for number, held in enumerate(every.values()):
            parts: Any = dict(held.items())
            place = {task: i for i, task in enumerate(parts)}
            own = torch.tensor([place.get(name, -1) for name in names], device=embeddings.device)
            if modality is None and number:
                break
            if (own < 0).all():
                continue
            change = gathered(list(parts.values()), own, embeddings)
            changed = changed + (change if modality is None else change * (modality == number)[..., None])
        return changed

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        tasks: Sequence[str] | str,
        modality: Tensor | None = None,
        **given: Any,
    ) -> Any:
        """The network's own call on ids, or on embeddings of any modality."""
        if inputs_embeds is None:
            inputs_embeds = self.net.get_input_embeddings()(input_ids)
        return self.net(inputs_embeds=self.adapt(inputs_embeds, tasks, modality), **given)


@torch.no_grad()
def table_of(net: Any, link: Link) -> Tensor:
    """The alternative embedding table of a task: V' = V + change(V) [vocabulary, width]."""
    table = net.get_input_embeddings().weight
    training = link.training
    change = link.eval()(table, table)
    link.train(training)
    return table + change


def with_table(net: Any, table: Tensor) -> Any:
    """A copy of the network that reads with another embedding table; all other weights share its memory, a tied output layer too.

    The output layer keeps the original table, so the copy's two are no longer tied.
    """
    old = net.get_input_embeddings()
    if table.shape != old.weight.shape:
        raise AcclimateError(f"a table of {tuple(table.shape)} cannot stand for one of {tuple(old.weight.shape)}")
    made = copy.deepcopy(net, {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())})
    own = copy.deepcopy(old)
    own.weight = nn.Parameter(table.to(old.weight.dtype).clone(), requires_grad=False)
    made.config.tie_word_embeddings = False
    made.set_input_embeddings(own)
    return made
