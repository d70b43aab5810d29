"""Files that hold only what sets a model apart from its base: changed rows of its tables, other changed tensors, its tokenizer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import AcclimateError
from ..files import atomic_dir, read_json, write_json
from .network import fingerprint
from .tables import tables, tied, untie

if TYPE_CHECKING:
    from . import Model

FACTS = "difference.json"
WEIGHTS = "difference.safetensors"


def save_difference(model: "Model", base: "Model", folder: str | Path) -> Path:
    """Save a model as what sets it apart from its base: the rows of its tables and the other tensors that changed, and its tokenizer.

    The folder appears whole or not at all, and is read back and compared.
    """
    from safetensors.torch import save_file

    folder, old, kept, seen = Path(folder), base.net.state_dict(), {}, set()
    by_token = set(tables(model.net))
    for name, value in model.net.state_dict().items():
        if value.data_ptr() in seen:  # a tied table, stored once
            continue
        seen.add(value.data_ptr())
        before = old.get(name)
        if before is None or before.dtype != value.dtype or (before.shape != value.shape and name not in by_token):
            kept[f"whole/{name}"] = value
        elif name in by_token:
            same = min(len(before), len(value))
            rows = torch.cat([(before[:same] != value[:same]).any(1).nonzero()[:, 0].cpu(), torch.arange(same, len(value))])
            if len(rows):
                kept |= {f"rows/{name}": rows, f"values/{name}": value[rows.to(value.device)]}
        elif not torch.equal(before, value):
            kept[f"whole/{name}"] = value
    facts = {
        "base": base.source, "base_fingerprint": base.fingerprint, "fingerprint": fingerprint(model.net),
        "rows": len(model.net.get_input_embeddings().weight), "tied": tied(model.net), "made": model.notes.get("made", {}),
    }  # fmt: skip
    with atomic_dir(folder) as temporary:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in kept.items()}, temporary / WEIGHTS)
        write_json(temporary / FACTS, json.loads(json.dumps(facts, default=str)))
        model.tokenizer.save_pretrained(temporary)
        load_difference(temporary, base)
    return folder


@torch.no_grad()
def load_difference(folder: str | Path, base: "Model | None" = None) -> "Model":
    """The model that :func:`save_difference` wrote, put on its base again; AcclimateError where base or result are not what was saved."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from . import Model

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
    if tied(made.net) and not facts["tied"]:
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
