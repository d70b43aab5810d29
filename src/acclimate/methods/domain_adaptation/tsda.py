"""TSDA: aligns domains that are leaves of a tree by their place in it, with a discriminator against a taxonomist.

Liu et al. 2023, losses of encoder, discriminator and taxonomist, https://arxiv.org/abs/2306.07874
For many domains with a taxonomy (kinds of goods, species), some of them labelled. The discriminator pulls all encodings together; the
taxonomist must tell from them how far domains lie apart in the tree (``Data.distances``, as by parts.taxonomy.hops), so that near domains
are aligned more than distant ones. With all distances alike it aligns as DANN does. The encoder sees the domain's vector, so predictions
need to know the domain. Give ``Data.others`` for more than one target, and as many rows of each domain per step: where there are more of
one, the taxonomist sees the first of them. ``together``, the variance within a domain, follows the authors' code; their
networks have dropout 0.2, which is the learner's own setting. For few domains use DANN.

>>> import torch
>>> r = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[0.0, 1.0]]])  # distances 5, 1, sqrt 18
>>> round(distance_error(r, torch.tensor([[0.0, 4.0, 2.0], [4.0, 0.0, 6.0], [2.0, 6.0, 0.0]])).item(), 4)  # 0.25^2, 0.5^2, 0.293^2 / 3
0.1328
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ...errors import AcclimateError
from ...kinds import DomainAdaptation
from ...method import Setting
from ...parts.heads import mlp


class Tsda(DomainAdaptation):
    """The weights of the encoder's four losses, and the networks beside it."""

    task: Annotated[float, Setting("weight of the loss on labelled rows (lambda_e)", 0)] = 0.779
    apart: Annotated[float, Setting("weight of the discriminator's loss, which the encoder raises (lambda_d)", 0)] = 0.249
    tree: Annotated[float, Setting("weight of the taxonomist's loss, which the encoder lowers (lambda_t)", 0)] = 0.595
    together: Annotated[float, Setting("weight of the variance of encodings within a domain", 0)] = 1.0
    hidden: Annotated[int, Setting("width of the layers of the networks beside the featurizer", 1)] = 512
    size: Annotated[int, Setting("numbers in a domain's vector", 1)] = 2
    vectors: Annotated[
        str, Setting("domains' vectors are learned from the tree, or are the facts given of each domain", choices=("learned", "given"))
    ] = "learned"
    exempt: ClassVar[dict[str, str]] = {
        "beats_source_only": "the toy's domains stand on a line with the target at its end, and TSDA keeps far domains apart; with a flat "
        "tree its encodings meet as DANN's do (tests/test_shift_tsda.py)"
    }
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "adam", "lr": 3e-5, "rates": {"domain": 1 / 3, "taxonomist": 10 / 3, "embedding": 1 / 3},
        "schedule": "exponential", "alpha": 2.08, "batch": 10, "target_batch": 10,
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Encoder of features and domain, discriminator, taxonomist, and the network that makes the domains' vectors."""
        if learner.distances is None:
            raise AcclimateError("TSDA needs how far domains lie apart; give Data.distances, for a tree parts.taxonomy.hops(paths)")
        if self.vectors == "given" and learner.about is None:
            raise AcclimateError('vectors = "given", but not every domain has facts; give Pool.about, or choose "learned"')
        count, wide = len(learner.domains), self.hidden
        size = self.size if self.vectors == "learned" else learner.about.shape[1]
        parts: dict[str, nn.Module] = {
            "placed": nn.Sequential(mlp(size, [wide], wide), nn.ReLU()),
            "encoder": mlp(learner.width + wide, [wide], learner.width),
            "domain": mlp(learner.width, [wide, wide], count),
            "taxonomist": mlp(learner.width, [wide, wide], 2),
            "embedding": mlp(count, [wide], size) if self.vectors == "learned" else nn.Identity(),
        }
        for layer in (each for part in parts.values() for each in part.modules() if isinstance(each, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.01)  # as the authors start; from larger weights the game starts too fast
            nn.init.zeros_(layer.bias)
        return parts

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[list[tuple[Tensor, Any]]]:
        """One forward pass, then everyone by a loss of their own at once."""
        vectors, parts = self._vectors(learner), learner.parts
        number = torch.cat([source.domain, target.domain])
        e = self._encode(learner, torch.cat([source.x, target.x]), vectors.detach()[number])
        by_domain = e.split([*source.sizes, *target.sizes])
        rows = min(map(len, by_domain))
        right = learner.loss(learner.head(e[: len(source)]), source.y)
        told = cross_entropy(parts["domain"](e), number)
        error = distance_error(torch.stack([parts["taxonomist"](z[:rows]) for z in by_domain]), learner.distances.to(e))
        within = torch.stack([(z - z.mean(0)).square().mean() for z in by_domain]).mean()
        encoded = self.task * right - self.apart * told + self.tree * error + self.together * within
        plays = [(told, "domain"), (error, "taxonomist"), (encoded, ("featurizer", "placed", "encoder", "head"))]
        if self.vectors == "learned":
            plays.append((vector_loss(vectors, learner.distances.to(e)), "embedding"))
        yield plays

    def end(self, learner: Any, source: Any, target: Any) -> None:
        """Keeps the domains' vectors [domain, size] and where the taxonomist puts each domain [domain, 2]."""
        with torch.no_grad():
            vectors, found = self._vectors(learner), []
            for batch in (source, target):
                for x, number in zip(batch.split(batch.x), batch.split(batch.domain), strict=True):
                    z = [self._encode(learner, rows, vectors[number[0]].expand(len(rows), -1)) for rows in x.split(512)]
                    found.append(learner.parts["taxonomist"](torch.cat(z)).mean(0))
            learner.memory |= {"vectors": vectors.clone(), "map": torch.stack(found)}

    def predict(self, learner: Any, x: Tensor, where: Any = None) -> Tensor:
        """Scores [row, class]."""
        if where is None or where.number is None:
            said = f"{where.name!r} is none of" if where else "it was not said; known are"
            raise AcclimateError(f"TSDA must know which domain rows are of, but {said}: {', '.join(learner.domains)}")
        return learner.head(self._encode(learner, x, self._vectors(learner)[where.number].expand(len(x), -1)))

    def _vectors(self, learner: Any) -> Tensor:
        weight = next(learner.parts["placed"].parameters())
        if self.vectors == "given":
            return learner.about.to(weight)
        return learner.parts["embedding"](torch.eye(len(learner.domains)).to(weight))

    def _encode(self, learner: Any, x: Tensor, vectors: Tensor) -> Tensor:
        """Rows and their domains' vectors [row, size] -> [row, width]."""
        z = learner.features(x)
        return learner.parts["encoder"](torch.cat([z, learner.parts["placed"](vectors.to(z))], 1))


def distance_error(r: Tensor, distances: Tensor) -> Tensor:
    """Mean over pairs of domains and rows of (|r_u - r_v| / distance - 1)^2, r [domain, row, 2]; where the distance is 0, |r_u - r_v|^2."""
    u, v = torch.triu_indices(len(r), len(r), 1, device=r.device)
    found = ((r[u] - r[v]).square().sum(2) + 1e-10).sqrt()  # [pair, row]
    wanted = distances[u, v, None]
    return ((found - wanted) / torch.where(wanted > 0, wanted, torch.ones_like(wanted))).square().mean()


def vector_loss(vectors: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(z_u z_v) and how near two domains are (1 - distance / largest), mean over pairs; vectors [domain, size]."""
    u, v = torch.triu_indices(len(vectors), len(vectors), 1, device=vectors.device)
    near = 1 - distances[u, v] / distances.max()
    return binary_cross_entropy_with_logits((vectors[u] * vectors[v]).sum(1), near)
