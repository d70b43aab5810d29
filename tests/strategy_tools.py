"""The engines as a strategy of the merging room sees them, small enough for tests: they train, merge and search for real, in memory."""

import copy

from acclimate.engines.candidates import merged
from acclimate.engines.pareto import pareto
from acclimate.engines.score import bits_per_byte
from acclimate.engines.search import search
from acclimate.engines.settings import Training
from acclimate.engines.train import train
from acclimate.measure import limited

FEW = {"batch_tokens": 128, "row_tokens": 32, "precision": "fp32", "checkpoint_every": 10**6}


class Notes:
    """What a strategy is handed that trains by itself: a seed, and a place for what it notes."""

    seed = 0

    def __init__(self):
        self.notes = {}

    def note(self, name, value):
        self.notes[name] = value


class Bench:
    """What strategies are handed; ``trained`` and ``merges`` remember how they were asked. ``settings`` of training win over theirs."""

    def __init__(self, folder, seed=0, **settings):
        self.folder, self.seed, self.settings = folder, seed, {**FEW, **settings}
        self.trained, self.merges, self.notes, self.models = {}, {}, {}, {}

    def train(self, name, start, objective, domains, *, adapter=None, teacher=None, **settings):
        given = {"start": start, "objective": objective, "domains": domains, "adapter": adapter, "teacher": teacher}
        self.trained[name] = {**given, **settings}
        plan = Training(**{"seed": self.seed, **settings, **self.settings})
        made = train(start, objective, domains, plan, self.folder / "work" / name, adapter=adapter, teacher=teacher, name=name)
        return self.keep(name, made.model)

    def merge(self, name, method, tuned, base=None, settings=None):
        self.merges[name] = {"method": method, "tuned": list(tuned), "base": base}
        return self.keep(name, merged(method, base, tuned, settings, seed=self.seed))

    def place(self, name):
        return self.folder / "staged" / name

    def keep(self, name, model, how=""):
        model.name = name
        model.source = str(model.save(self.folder / "models" / name))
        self.models[name] = model
        return model

    def bits(self, model, domain, split="validation", most=60_000):
        return bits_per_byte(model, limited(domain, split, most), width=64).value

    def surprise(self, model, domain, split="test", most=60_000, width=0):
        return bits_per_byte(model, limited(domain, split, most), overlap=0.0, width=width, ranks=True)

    def search(self, name, fitness, start, **given):
        return search(fitness, start, seed=self.seed, log=self.folder / f"{name}.jsonl", **given)

    def pareto(self, name, fitness, start, **given):
        return pareto(fitness, start, seed=self.seed, log=self.folder / f"{name}.jsonl", **given)

    def note(self, name, value):
        self.notes[name] = copy.deepcopy(value)
