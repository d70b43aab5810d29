"""The engines as a strategy of the merging room sees them, small enough for tests: it trains and merges for real, in memory."""

import copy

import torch

from acclimate.engines.score import bits_per_byte
from acclimate.engines.settings import Training
from acclimate.engines.tensors import merge_in_memory
from acclimate.engines.train import train

FEW = {"batch_tokens": 128, "row_tokens": 32, "precision": "fp32", "checkpoint_every": 10**6}


class Bench:
    """What strategies are handed: train, merge, keep, bits, note; ``trained`` and ``merges`` remember how they were asked."""

    def __init__(self, folder, seed=0, **settings):
        self.folder, self.seed, self.settings = folder, seed, {**FEW, **settings}
        self.trained, self.merges, self.notes, self.models = {}, {}, {}, {}

    def train(self, name, start, objective, domains, *, adapter=None, teacher=None, **settings):
        self.trained[name] = {"start": start, "objective": objective, "domains": domains, "adapter": adapter, **settings}
        plan = Training(**{"seed": self.seed, **settings, **self.settings})
        return self.keep(name, train(start, objective, domains, plan, self.folder / "work" / name, adapter=adapter, name=name).model)

    def merge(self, name, method, tuned, base=None, settings=None):
        self.merges[name] = {"method": method, "tuned": list(tuned), "base": base}
        weights = [dict(model.net.named_parameters()) for model in tuned]
        merged = merge_in_memory(method, None if base is None else dict(base.net.named_parameters()), weights, settings, self.seed)
        made = copy.deepcopy(tuned[0].net)
        with torch.no_grad():
            for key, weight in merged.items():
                made.get_parameter(key).copy_(weight)
        return self.keep(name, tuned[0].__class__(name, made, tuned[0].tokenizer, tuned[0].kind, name))

    def keep(self, name, model, how=""):
        model.name = name
        model.source = str(model.save(self.folder / "models" / name))
        self.models[name] = model
        return model

    def bits(self, model, domain, split="validation", most=60_000):
        return bits_per_byte(model, domain.texts(split), width=64).value

    def note(self, name, value):
        self.notes[name] = copy.deepcopy(value)
