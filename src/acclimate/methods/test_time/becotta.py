"""BECoTTA: small experts after each block, chosen for each row by the router of the domain that it seems to be of; only they learn online.

Lee et al. 2024, section 3, https://arxiv.org/abs/2402.08712 ; sizes, constants and the form of L_syn as in the authors' code (an early
version by its own notice). For streams whose domain keeps changing, abruptly or by and by, without resets.
Before deployment train the model with this method (40,000 steps in the paper): on images from 0 to 1 every source comes as it is and under
each corruption of ``made``, a domain each; other rows (or ``made`` = ()) take the labelled domains as they are. A discriminator on the
input learns to tell these domains, and L_syn ties experts to them. On a stream each row takes the router of its predicted domain; rows
whose label is surer than ``confidence``, and no less sure than before deployment, teach it; then some weights fall back.
Differs, where the authors' code departs from its paper: gates and L_syn carry gradients, each row has gates and experts of its own, unsure
rows (or pixels) teach nothing. Noise joins in while training only, so that predictions can be repeated; batch-norm uses running
statistics. The discriminator has no dropout and sees images in their own size. Left out: domains made by a style-transfer network.

>>> import torch
>>> from acclimate.engines.shift import Learner
>>> learner, method = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity()), Becotta(fall_back=0.0)
>>> learner.sample = torch.zeros(1, 2)
>>> learner.parts.update(method.build(learner))
>>> for weight in learner.parts["experts"].parameters():
...     _ = torch.nn.init.zeros_(weight)
>>> method.begin(learner, None, None)
>>> loss, who = next(method.adapt(learner, torch.tensor([[2.0, 0.0], [0.5, 0.0]])))  # softmax 0.88 and 0.62: the first teaches alone
>>> round(loss.item(), 4), who  # log(1 + exp(-2))
(0.1269, 'experts')
"""

import copy
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import AcclimateError
from ...kinds import TestTime
from ...method import Setting
from ...parts.corruptions import corrupt
from ...parts.domain_experts import DomainExperts, discriminator, gates_of, means_by_domain, synergy_loss
from ...parts.places import as_tokens, blocks, from_tokens, passing, widths
from ...parts.teachers import restore


class Becotta(TestTime):
    """Experts, the domains they are made ready for, and what they learn from online."""

    experts: Annotated[int, Setting("experts after each block; 4 where only each stage's last block has them", 1)] = 6
    top_k: Annotated[int, Setting("experts that a row uses (K)", 1)] = 3
    narrow: Annotated[int, Setting("features of a block per rank of its experts", 1)] = 32
    made: Annotated[tuple, Setting("corruptions of images under which each source is a domain of its own")] = (
        "darkness", "gaussian_noise", "defocus_blur",
    )  # fmt: skip
    severity: Annotated[int, Setting("severity of these corruptions", 1, 5)] = 3
    discriminate: Annotated[float, Setting("weight of the discriminator's cross-entropy", 0)] = 0.1
    synergy: Annotated[float, Setting("weight of L_syn, which ties experts to domains", 0)] = 5e-4
    routers: Annotated[str, Setting("a router per domain, or one for all", choices=("domain", "one"))] = "domain"
    scaled: Annotated[bool, Setting("whether chosen scores are scaled to 0..1 over the batch first, as in the authors' code")] = False
    confidence: Annotated[float, Setting("sureness above which a label teaches", 0, 1)] = 0.69
    fall_back: Annotated[float, Setting("chance of a weight to return to its source value", 0, 1)] = 0.01
    at: Annotated[tuple, Setting("names of the featurizer's blocks; none = all, or the ends of its stages")] = ()
    training: ClassVar[dict[str, Any]] = {"optimizer": "adamw", "lr": 6e-5}
    online: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 6e-7}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Experts and routers after each block, the same as they were before deployment, and the discriminator."""
        if learner.sample is None:
            raise AcclimateError(f"{self.name} sizes its experts by a row, but has seen none; train the model with it, or pass source=")
        domains, net = self.domains(learner), learner.featurizer
        sizes = [as_tokens(net, torch.empty(shape, device="meta")).shape[2] for shape in self._shapes(learner)]
        routers = domains if self.routers == "domain" else 1
        layers = nn.ModuleList(DomainExperts(width, max(1, width // self.narrow), self.experts, routers) for width in sizes)
        return {
            "experts": layers,
            "anchor": copy.deepcopy(layers).requires_grad_(False),
            "discriminator": discriminator(learner.sample.shape[1:], domains),
        }

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """The experts to compare with and to fall back to; how often each domain used each expert."""
        learner.parts["anchor"].load_state_dict(learner.parts["experts"].state_dict())
        learner.memory["use"] = torch.zeros(self.domains(learner), self.experts)

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Task, discriminator and L_syn on the sources and the domains made of them."""
        x, y, domain = self.all_domains(learner, domains)
        scores, routed = self.scores(learner, x, domain, learner.parts["experts"])
        matrix = means_by_domain(routed, domain, self.domains(learner))
        told = nn.functional.cross_entropy(learner.parts["discriminator"](x), domain)
        yield learner.loss(scores, y) + self.discriminate * told + self.synergy * synergy_loss(matrix)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores, each row by the router of its predicted domain."""
        return self.scores(learner, x, self.domain(learner, x), learner.parts["experts"])[0]

    def adapt(self, learner: Any, x: Tensor) -> Any:
        """Cross-entropy on labels that pass both filters; then weights fall back. Rows are predicted before the update."""
        experts, domain = learner.parts["experts"], self.domain(learner, x)
        scores, _ = self.scores(learner, x, domain, experts, learner.memory["use"])
        with torch.no_grad():
            before = self.scores(learner, x, domain, learner.parts["anchor"])[0].softmax(1).amax(1)
            sure, label = scores.softmax(1).max(1)
            kept = (sure > self.confidence) & (sure >= before)
        if kept.any():
            yield learner.loss(scores, label, each=True)[kept].mean(), "experts"
        restore(dict(experts.named_parameters()), dict(learner.parts["anchor"].named_parameters()), self.fall_back, learner.generator)
        return scores

    def scores(self, learner: Any, x: Tensor, domain: Tensor, layers: Any, use: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores, and the routers' scores as means over tokens, summed over blocks [row, expert]; ``use`` counts the gates by domain."""
        net, routed = learner.featurizer, []
        by_name = dict(zip(self._names(learner), layers, strict=True))
        router = domain if self.routers == "domain" else torch.zeros_like(domain)

        def change(name: str, output: Tensor) -> Tensor:
            tokens = as_tokens(net, output)
            scores = by_name[name].scores(tokens, router, learner.generator if learner.training else None)
            routed.append(scores / tokens.shape[1])
            gates = gates_of(scores, self.top_k, self.scaled)
            if use is not None:
                use.add_(nn.functional.one_hot(domain, len(use)).to(use).T @ gates.detach().to(use))
            return from_tokens(net, tokens + by_name[name](tokens, gates), output)

        with passing(net, list(by_name), change):
            return learner(x), torch.stack(routed).sum(0)

    def domain(self, learner: Any, x: Tensor) -> Tensor:
        """The domain that each row seems to be of [row]."""
        with torch.no_grad():
            return learner.parts["discriminator"](x).argmax(1)

    def domains(self, learner: Any) -> int:
        """How many there are: the sources, each as it is and as it was made."""
        return max(1, learner.sources) * (1 + len(self._kinds(learner.sample)))

    def all_domains(self, learner: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, labels and domains of a batch and of what is made of it."""
        kinds, image = self._kinds(batch.x), batch.x.cpu().numpy()
        draw = np.random.default_rng(int(torch.randint(2**31, (), generator=learner.generator)))
        rows = [batch.x, *(torch.from_numpy(corrupt(image, name, self.severity, draw)).to(batch.x) for name in kinds)]
        return torch.cat(rows), torch.cat([batch.y] * len(rows)), torch.cat([batch.domain * len(rows) + n for n in range(len(rows))])

    def _kinds(self, x: Tensor) -> tuple:
        return tuple(self.made) if x.ndim == 4 else ()

    def _names(self, learner: Any) -> list[str]:
        return list(self.at) or blocks(learner.featurizer)

    def _shapes(self, learner: Any) -> list[torch.Size]:
        return list(widths(learner.featurizer, self._names(learner), learner.sample).values())
