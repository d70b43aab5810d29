"""Models of which some weights alone learn or differ: frozen layers that a run respects, and files that hold only what changed."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import AcclimateError
from ..files import atomic_dir, digest, read_json, write_json
from ..model import Model
from ..model.roles import number
from .vocabulary import table

FACTS = "difference.json"
WEIGHTS = "difference.safetensors"
GROUPS = ("embeddings", "head", "first_layer", "last_layer", "all")


class Partial(Model):
    """A model of which only some weights learn: copies, which are what is trained, keep each weight's ``requires_grad``."""

    @property
    def fingerprint(self) -> str:
        """The hash of all weights and of which of them learn, so that a run with others frozen is another run."""
        return digest([super().fingerprint, sorted(name for name, value in self.net.named_parameters() if value.requires_grad)])

    def copy(self, name: str | None = None, share: bool = False, keep: bool = False) -> Model:
        """As ``Model.copy``, with the same weights frozen."""
        learns = {path: value.requires_grad for path, value in self.net.named_parameters()}
        made = super().copy(name, share, keep)
        for path, value in made.net.named_parameters():
            value.requires_grad_(learns.get(path, True))
        return made


def partial(model: Model, groups: Iterable[str]) -> Model:
    """The same model, weights shared, of which the named groups learn: embeddings, head, first_layer, last_layer, all."""
    groups = set(groups)
    if not groups or groups - {*GROUPS}:
        raise AcclimateError(f"train = {sorted(groups)}, but must name some of: {', '.join(GROUPS)}")
    if "all" in groups:
        return model
    made = model.copy(share=True)
    net = made.net
    tables = {"embeddings": net.get_input_embeddings(), "head": net.get_output_embeddings()}
    learns = {id(value) for group, part in tables.items() if group in groups and part is not None for value in part.parameters()}
    last = max(number(path) for path, _ in net.named_parameters())
    layers = {0: "first_layer", last: "last_layer"} if last else {0: "first_layer" if "first_layer" in groups else "last_layer"}
    for path, value in net.named_parameters():
        value.requires_grad_(id(value) in learns or layers.get(number(path)) in groups)
    return Partial(made.name, net, made.tokenizer, made.kind, made.source, made.notes)


def save_difference(model: Model, base: Model, folder: str | Path) -> Path:
    """Save a model as what sets it apart from its base: the rows of its tables and the other tensors that changed, and its tokenizer.

    The folder appears whole or not at all, and is read back and compared.
    """
    from safetensors.torch import save_file

    folder, old, kept, seen = Path(folder), base.net.state_dict(), {}, set()
    for name, value in model.net.state_dict().items():
        if value.data_ptr() in seen:  # a tied table, stored once
            continue
        seen.add(value.data_ptr())
        before = old.get(name)
        if before is None or before.dtype != value.dtype or (before.shape != value.shape and not table(name)):
            kept[f"whole/{name}"] = value
        elif table(name):
            same = min(len(before), len(value))
            rows = torch.cat([(before[:same] != value[:same]).any(1).nonzero()[:, 0].cpu(), torch.arange(same, len(value))])
            if len(rows):
                kept |= {f"rows/{name}": rows, f"values/{name}": value[rows.to(value.device)]}
        elif not torch.equal(before, value):
            kept[f"whole/{name}"] = value
    facts = {
        "base": base.source, "base_fingerprint": base.fingerprint, "fingerprint": Model.fingerprint.fget(model),  # type: ignore[attr-defined]
        "rows": len(model.net.get_input_embeddings().weight), "tied": _tied(model), "made": model.notes.get("made", {}),
    }  # fmt: skip
    with atomic_dir(folder) as temporary:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in kept.items()}, temporary / WEIGHTS)
        write_json(temporary / FACTS, json.loads(json.dumps(facts, default=str)))
        model.tokenizer.save_pretrained(temporary)
        load_difference(temporary, base)
    return folder


@torch.no_grad()
def load_difference(folder: str | Path, base: Model | None = None) -> Model:
    """The model that :func:`save_difference` wrote, put on its base again; AcclimateError where base or result are not what was saved."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from .new_tokens import untie

    folder = Path(folder)
    if not (folder / FACTS).is_file():
        raise AcclimateError(f"{folder} holds no {FACTS}; give a folder that save_difference wrote")
    facts, kept = read_json(folder / FACTS), load_file(folder / WEIGHTS)
    base = base or Model.load(facts["base"])
    if base.fingerprint != facts["base_fingerprint"]:
        raise AcclimateError(
            f"{folder} was made on {facts['base']} with weights {facts['base_fingerprint']}, but these are {base.fingerprint}"
        )
    made = base.copy(folder.name)
    if facts["rows"] != len(made.net.get_input_embeddings().weight):
        made.net.resize_token_embeddings(facts["rows"], mean_resizing=False)
    if _tied(made) and not facts["tied"]:
        untie(made.net)
    state = made.net.state_dict()
    for name, value in kept.items():
        way, _, path = name.partition("/")
        if way == "whole":
            state[path].copy_(value)
        elif way == "rows":
            state[path][value.to(state[path].device)] = kept[f"values/{path}"].to(state[path].device)
    made.tokenizer = AutoTokenizer.from_pretrained(folder)
    made.notes["made"] = facts["made"]
    if made.fingerprint != facts["fingerprint"]:
        raise AcclimateError(f"{folder}: put on {base.name} again it gives other weights than were saved; save it again")
    return made


def _tied(model: Any) -> bool:
    head = model.net.get_output_embeddings()
    return head is not None and head.weight is model.net.get_input_embeddings().weight
