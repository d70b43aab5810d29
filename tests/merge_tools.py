"""Small checkpoints on disk, and the works of merging them."""

import json

import torch
from safetensors.torch import save_file

from acclimate.engines.merging.dtypes import DTYPES
from acclimate.engines.merging.tensors import Part, Work

SHAPES = {"model.embed_tokens.weight": (96, 48), "model.layers.0.mlp.up_proj.weight": (300, 48), "model.norm.weight": (48,)}


def checkpoint(folder, seed, base=None, dtype=torch.float32, shapes=SHAPES, shard=None):
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if base is not None:
        values = {name: base[name].float() + 0.1 * value for name, value in values.items()}
    values = {name: value.to(dtype) for name, value in values.items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 96}))
    if shard is None:
        save_file(values, folder / "model.safetensors")
    else:
        parts = {f"model-{i}-of-{len(values)}.safetensors": name for i, name in enumerate(values, 1)}
        for path, name in parts.items():
            save_file({name: values[name]}, folder / path)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: path for path, name in parts.items()}}))
    return values


def works(method, opened, dtype="F32"):
    least, most = method.takes
    base, tuned = opened[0], opened[1 : 1 + min(max(3, least), most)]
    start = base if "base" in method.asked() else None
    return [
        Work(n, s.shape, DTYPES[dtype], tuple(Part(c, c.slots[n]) for c in tuned), start and Part(start, start.slots[n]), method)
        for n, s in base.slots.items()
    ]
