"""Entities with embeddings of their own, mapped into a model's input space and put before their mentions in a text."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError
from ..files import atomic_dir, digest, read_json, write_json


@dataclass
class Knowledge:
    """Entities by name with their embeddings [entity, width]."""

    names: list[str]
    vectors: Tensor

    def __post_init__(self) -> None:
        if len(self.names) != len(self.vectors) or len(set(self.names)) != len(self.names):
            raise AcclimateError(f"{len(self.names)} entities have {len(self.vectors)} embeddings; give one for each, and each name once")
        self.number = {name: i for i, name in enumerate(self.names)}

    @property
    def fingerprint(self) -> str:
        """A digest of names and vectors."""
        return digest([self.names, digest(self.vectors.contiguous().numpy().tobytes())])

    def permuted(self, seed: int) -> "Knowledge":
        """The control: every entity has the embedding of another, drawn by the seed."""
        order = torch.randperm(len(self.names), generator=torch.Generator().manual_seed(seed))
        return Knowledge(self.names, self.vectors[order])


class Mapped(nn.Module):
    """The affine map M(k) = W k + b from embeddings of knowledge to a model's: numbers of entities [n] -> vectors [n, width].

    Its weights are drawn by the seed. Raises AcclimateError for knowledge of another width than the map reads.
    """

    def __init__(self, knowledge: Knowledge, width: int, inputs: int = 0, seed: int = 0):
        super().__init__()
        found = knowledge.vectors.shape[1]
        if inputs and found != inputs:
            raise AcclimateError(f"the knowledge embeddings have width {found}, but the map reads {inputs}; set input_dim = {found}")
        self.knowledge = knowledge
        self.register_buffer("vectors", knowledge.vectors.float(), persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.map = nn.Linear(found, width)

    def forward(self, numbers: Tensor) -> Tensor:
        """M(k_e)."""
        vectors: Any = self.vectors
        return self.map(vectors[numbers])

    def over(self, knowledge: Knowledge, *, apart: bool = False) -> "Mapped":
        """The same map over other embeddings of the same width; ``apart``: a copy of it, which may learn by itself."""
        made = Mapped(knowledge, self.map.out_features, self.map.in_features).to(self.map.weight.device)
        made.map = copy.deepcopy(self.map) if apart else self.map
        return made

    def save(self, folder: str | Path) -> Path:
        """The map and what it reads, a few kilobytes; the knowledge itself is not stored. The folder appears whole or not at all."""
        from safetensors.torch import save_file

        with atomic_dir(Path(folder)) as temporary:
            about = {"inputs": self.map.in_features, "width": self.map.out_features, "knowledge": self.knowledge.fingerprint}
            write_json(temporary / "map.json", about)
            save_file({key: value.contiguous() for key, value in self.map.state_dict().items()}, temporary / "map.safetensors")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, knowledge: Knowledge) -> "Mapped":
        """A stored map over the knowledge it was trained with."""
        from safetensors.torch import load_file

        about = read_json(Path(folder) / "map.json")
        made = cls(knowledge, about["width"], about["inputs"])
        if about["knowledge"] != knowledge.fingerprint:
            raise AcclimateError(f"the map in {folder} was trained with other embeddings; load those, or train a map for these")
        made.map.load_state_dict(load_file(Path(folder) / "map.safetensors"))
        return made


@dataclass(frozen=True)
class Mention:
    """Where a text names an entity: characters [start, end)."""

    start: int
    end: int
    entity: str


@dataclass
class Spelled:
    """Ids with entities put in, and where each mention's own tokens stand, by the mention's place in the list that was given."""

    ids: list[int]
    mentions: dict[int, list[int]]


def inject(
    tokenizer: Any,
    text: str,
    mentions: Sequence[Mention],
    knowledge: Knowledge | None,
    first: int,
    *,
    separator: str = "/",
    max_len: int = 64,
) -> Spelled:
    """Ids of a text with "e / mention" for every mention whose entity is known; ``first`` is the first virtual id.

    Other mentions, and all where knowledge is None, are left alone. Positions follow the longer sequence. Cut to ``max_len`` ids; what the
    tokenizer closes a text with is kept.
    """
    if not tokenizer.is_fast:
        raise AcclimateError("entities are put into texts by character positions, which needs a fast tokenizer")
    given = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    between = tokenizer(separator, add_special_tokens=False).input_ids if separator else []
    made = Spelled([], {})
    begun: set[int] = set()
    for token, (start, end), special in zip(given.input_ids, given.offset_mapping, given.special_tokens_mask, strict=True):
        inside = [i for i, each in enumerate(mentions) if not special and start < each.end and end > each.start and end > start]
        for i in inside:
            if i not in begun and knowledge is not None and mentions[i].entity in knowledge.number:
                made.ids += [first + knowledge.number[mentions[i].entity], *between]
            begun.add(i)
        for i in inside:  # after all that is put in before this token: mentions may overlap
            made.mentions.setdefault(i, []).append(len(made.ids))
        made.ids.append(token)
    if len(made.ids) > max_len:
        closing = given.input_ids[-1:] if given.special_tokens_mask[-1] else []
        made.ids = made.ids[: max_len - len(closing)] + closing
        kept = max_len - len(closing)
        made.mentions = {i: places for i, places in made.mentions.items() if all(place < kept for place in places)}
    return made


def written(text: str, mentions: Sequence[Mention], knowledge: Knowledge, *, separator: str = "/") -> str:
    """A text for a model whose vocabulary has the entities (engines.entity_tokens): each known mention with its entity before it.

    >>> written("Open the valve.", [Mention(9, 14, "valve")], Knowledge(["valve"], torch.zeros(1, 2)))
    'Open the<entity:valve>/ valve.'
    """
    for each in sorted(mentions, key=lambda each: -each.start):
        if each.entity in knowledge.number:
            place = len(text[: each.start].rstrip())  # before the space, which many tokenizers join to the word
            text = f"{text[:place]}{token_of(each.entity)}{separator}{text[place:]}"
    return text


def token_of(entity: str) -> str:
    """How an entity is written as a token."""
    return f"<entity:{entity}>"
