"""How sure a classifier is: entropies, and losses on unlabelled rows that are made of them.

Grandvalet & Bengio 2005 (entropy), https://papers.nips.cc/paper/2740; Liang et al. 2020, equations 2 to 5 (information maximisation,
prototypes), https://arxiv.org/abs/2002.08546"""

import torch
from torch import Tensor
from torch.nn import functional


def entropy(scores: Tensor) -> Tensor:
    """Entropy of softmax(scores) in nats, each row's [row].

    >>> entropy(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).round(decimals=4).tolist()
    [0.6930999755859375, 0.0]
    """
    logs = scores.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def likelihood_ratio(scores: Tensor) -> Tensor:
    """-sum p log(p / (1 - p)) of p = softmax(scores), each row's [row]: falls on without end where entropy comes to rest.

    Mummadi et al. 2021, the soft likelihood ratio, https://arxiv.org/abs/2106.14999

    >>> likelihood_ratio(torch.tensor([[0.0, 0.0, 0.0]])).round(decimals=4).tolist()  # log 2
    [0.6930999755859375]
    """
    logs = scores.log_softmax(1)
    share = logs.exp()
    return -(share * (logs - (1 - share).clamp(min=1e-6).log())).sum(1)


def spread(scores: Tensor) -> Tensor:
    """Entropy of the mean of softmax(scores) over rows: high where all classes are used. Scalar.

    >>> round(spread(torch.tensor([[9.0, -9.0], [-9.0, 9.0]])).item(), 4)
    0.6931
    """
    mean = scores.softmax(1).mean(0)
    return -(mean * (mean + 1e-12).log()).sum()


def information(scores: Tensor) -> Tensor:
    """Information maximisation as a loss: each row sure of itself, all rows together spread over the classes. Scalar.

    >>> round(information(torch.tensor([[9.0, -9.0], [-9.0, 9.0]])).item(), 4)  # 0 - log 2
    -0.6931
    """
    return entropy(scores).mean() - spread(scores)


def prototype_labels(features: Tensor, scores: Tensor, rounds: int = 1) -> Tensor:
    """Pseudo-labels by the nearest centroid (cosine): soft centroids first, then those of the labels found. [row]

    Features get a constant 1 appended before they are normalised, as in the authors' code. Classes without predictions are left out.

    >>> z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> prototype_labels(z, torch.tensor([[2.0, 0.0], [0.0, 0.1], [0.0, 2.0]])).tolist()
    [0, 0, 1]
    """
    z = functional.normalize(torch.cat([features, features.new_ones(len(features), 1)], 1), dim=1)
    share = scores.softmax(1)
    used = torch.zeros(scores.shape[1], dtype=torch.bool).index_fill_(0, share.argmax(1).unique().cpu(), True).to(z.device)
    for turn in range(rounds + 1):
        centroids = (share.T @ z) / (share.sum(0)[:, None] + 1e-8)
        cosine = z @ functional.normalize(centroids, dim=1).T
        labels = cosine.masked_fill(~used, -torch.inf).argmax(1)
        if turn < rounds:
            share = functional.one_hot(labels, scores.shape[1]).to(z.dtype)
    return labels


def sureness(scores: Tensor, by: str = "entropy") -> Tensor:
    """How sure each prediction is [row]: minus its entropy, the gap of the two largest probabilities (margin), the largest (confidence),
    or the logarithm of the sum of exp(scores) (energy, with its sign turned: Liu et al. 2020, https://arxiv.org/abs/2010.03759).

    >>> scores = torch.tensor([[0.0, 0.0, -100.0], [2.0, 0.0, 0.0]])
    >>> [round(v, 3) for v in sureness(scores, "margin").tolist()]
    [0.0, 0.68]
    """
    if by == "entropy":
        return -entropy(scores)
    if by == "energy":
        return scores.logsumexp(1)
    first, second = scores.softmax(1).topk(2, 1).values.unbind(1)
    return first - second if by == "margin" else first
