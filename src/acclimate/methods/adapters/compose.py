"""Compose: puts trained adapters of one base together: one after the other, fused by learned attention, by parts of the input, averaged.

Pfeiffer et al. 2021 (AdapterFusion), section 3, https://arxiv.org/abs/2005.00247; blocks as in Poth et al. 2023, https://arxiv.org/abs/2311.11077
Use to join what was learned apart, e.g. a domain's adapter below a task's: ``tree="stack(law, task)"``, by the names of the models. A
fusion starts as plain attention and learns when a domain is given (the adapters stay as they are); without one it is near their mean.
LoRA of peft's, or made by ``adapters.lora``, is read into our form: of linear layers, without trained biases or whole layers.
Heads of the adapters' own come along (``model.net.answers`` asks them).
Left out: the penalty that holds a fusion's value matrix near the identity (``Fusion.penalty`` gives it).

>>> made = Compose(tree="stack(law, average(a, b; 0.25, 0.75))")
>>> list(names(made.parsed)), made.parsed.parts[1].sizes[1]
(['law', 'a', 'b'], 0.75)
"""

from typing import Annotated, Any

from ...domain import Domain
from ...engines.adapters.factors import held, put_factors
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting, load
from ...model import Injected, Model
from ...model.composition import fusions, names, parse


class Compose(Strategy):
    """One model with several adapters, all active as the tree says."""

    room = "adapters"

    tree: Annotated[str, Setting("the composition, as stack(law, fuse(a, b)), average(a, b; 0.3, 0.7) or split(a, b; 16, 32)")] = ""
    objective: Annotated[str, Setting("what a fusion learns by, if a domain is given")] = "objectives.causal_lm"
    lr: Annotated[float, Setting("learning rate of a fusion", 0)] = 5e-5
    steps: Annotated[int, Setting("training steps of a fusion", 1)] = 200

    def __post_init__(self):
        super().__post_init__()
        self.parsed = parse(self.tree) if self.tree else ""

    def run(  # type: ignore[override]
        self, tools: Any, start: Model, tuned: list[Model], fusion: Domain | None = None
    ) -> dict[str, Model]:
        """start: the common base. tuned: models with one adapter each, our own or peft's LoRA. fusion: what Fuse blocks learn from.

        Raises AcclimateError for a tree that is empty or names no model, and for a model with no such adapter or one of another base.
        """
        if not self.parsed:
            raise AcclimateError("compose: say how with tree, e.g. tree: stack(law, task)")
        made = start.copy("composed", share=True)
        identity = made.fingerprint
        net = Injected(made.net)
        given = {model.name: model for model in tuned}
        for name in dict.fromkeys(names(self.parsed)):
            if name not in given:
                raise AcclimateError(f"compose: the tree names {name!r}, but the models are {', '.join(given)}")
            other, base = given[name].net, given[name].notes.get("base_fingerprint")
            if not given[name].adapted or (isinstance(other, Injected) and len(other.specs) != 1):
                raise AcclimateError(f"compose: {name} holds no single adapter; give models with one each (bottleneck, hydra, lora ...)")
            if base and base != identity:
                raise AcclimateError(
                    f"compose: {name} was trained on a base with weights {base}, but {start.name} has {identity}; start from that base"
                )
            if isinstance(other, Injected):
                net.take(name, other)
            else:
                put_factors(net, name, held(name, other))
        made.net = net.activate(self.parsed).learn().eval()
        made.notes |= {"base": start.source, "base_fingerprint": identity}
        if fusion is None or not list(fusions(self.parsed)):
            return {"composed": made}
        made.net.learn(fusions=True)
        trained = tools.train("fused", made, load(self.objective), fusion, lr=self.lr, steps=self.steps)
        return {"composed": made, "fused": trained}
