"""Sentence embeddings: fits a sentence encoder to each domain by an adapter learned by contrast, and holds all domains in one encoder.

Schopf et al. 2023, section 3, https://arxiv.org/abs/2307.03104 ; losses: Gao, Yao & Chen 2021, equations 1 and 5 (SimCSE),
https://arxiv.org/abs/2104.08821
Use where search or clustering in a domain falls short and several domains are to share one encoder; an adapter is a few per cent of its
size. Not where there are fewer than some hundred texts. What is learned from: pairs (with hard negatives where the rows have them),
labelled text (same label = belongs together), or plain text (unsupervised SimCSE: two dropout passes of one text). Missing hard negatives
are mined with the start model. No batch holds two rows that belong together; ``chunk`` lets large batches fit small memory.
Houlsby's adapters stand behind attention and feed-forward parts, Pfeiffer's behind the latter, parallel ones beside it; ``full`` tunes all
weights instead and gives a model per domain. Reduction, rate and batch are choices, not checked against the paper. Left out: K-Adapter and
denoising (TSDAE).

>>> from acclimate.checks.tiny import encoder
>>> from acclimate.model import Injected
>>> made = Injected(encoder()).add("law", SentenceEmbeddings(reduction=4).make())
>>> sum(weight.numel() for weight in made.adapters.parameters())  # 2 layers x 2 places x (16 x 4 + 4 + 4 x 16 + 16)
592
"""

from typing import Annotated, Any

from ...domain import Domain
from ...engines.embed import Contrast, together, tune
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting, load

BOTTLENECKS: dict[str, dict[str, Any]] = {
    "houlsby": {"target": ["attn.out", "ff.out"], "activation": "silu"},
    "pfeiffer": {"target": "ff.out"},
    "parallel": {"target": "ff", "parallel": True},
}
MATRICES = ["attn.q", "attn.k", "attn.v", "attn.out", "ff.in", "ff.out"]


class SentenceEmbeddings(Strategy):
    """Gives the encoder of each domain by its role, and ``all``: the one with every domain's adapter."""

    room = "adapters"
    trains = False

    adapter: Annotated[
        str, Setting("make of the adapters, or full: tune all weights", choices=("houlsby", "pfeiffer", "parallel", "lora", "full"))
    ] = "houlsby"
    reduction: Annotated[float, Setting("width of the layer over width of the bottleneck", 1)] = 16.0
    r: Annotated[int, Setting("rank of lora", 1)] = 8
    temperature: Annotated[float, Setting("what cosines are divided by (the paper's t)", 1e-3)] = 0.05
    symmetric: Annotated[bool, Setting("also find the anchor of each positive, and average both")] = False
    mine: Annotated[bool, Setting("find a hard negative for each row with the start model, where none is given")] = True
    batch: Annotated[int, Setting("rows per step, which are each other's negatives; fewer where a domain has fewer classes", 2)] = 64
    chunk: Annotated[int, Setting("texts that go through the network at once (gradient caching); 0 = all", 0)] = 0
    width: Annotated[int, Setting("longest text in tokens; 0 = the model's context, 256 at most", 0)] = 0
    lr: Annotated[float, Setting("peak learning rate", 0)] = 1e-4
    epochs: Annotated[float, Setting("passes over each domain, used when steps is 0", 0)] = 1.0
    steps: Annotated[int, Setting("optimizer steps on each domain; 0 = as many as the epochs need", 0)] = 0

    def run(self, tools: Any, *, start: Any = None, **domains: Domain) -> dict[str, Any]:
        """``start`` is the encoder; every role is a domain to fit it to, and names its adapter."""
        if start is None or not domains or "all" in domains:
            raise AcclimateError("sentence_embeddings needs an encoder and domains: give model, and on: {role: domain}, no role named all")
        objective = load("objectives.contrastive", scale=1 / self.temperature, symmetric=self.symmetric)
        made = {}
        for role, domain in domains.items():
            place = tools.place(role)
            tuned = tune(start, objective, domain, self.plan(tools.seed), adapter=self.make(), name=role, folder=place)
            made[role] = tools.keep(role, tuned)
        if self.adapter != "full":
            made["all"] = tools.keep("all", together(start, made))
        tools.note("weights", {role: model.notes["made"] for role, model in made.items()})
        return made

    def make(self) -> Any:
        """The adapter that is trained for each domain, None to tune all weights."""
        if self.adapter == "full":
            return None
        if self.adapter == "lora":
            return load("adapters.lora", r=self.r, alpha=2.0 * self.r, target=MATRICES)
        return load("adapters.bottleneck", reduction=self.reduction, **BOTTLENECKS[self.adapter])

    def plan(self, seed: int) -> Contrast:
        """How each domain is trained on."""
        names = ("batch", "chunk", "width", "epochs", "steps", "lr", "mine")
        return Contrast(seed=seed, **{name: getattr(self, name) for name in names})
