"""VAMPIRE: a light bag-of-words variational autoencoder that turns documents into topic vectors.

Gururangan et al. 2019, "Variational Pretraining for Semi-supervised Text Classification", https://arxiv.org/abs/1906.02242
The embedder behind kNN-TAPT (Gururangan et al. 2020, section 5.2, https://arxiv.org/abs/2004.10964): it learns from a few thousand
raw documents in seconds, so that near neighbours of a task can be found in a domain without a large encoder.

Word counts x over the vocabulary; q(z | x) = N(mean, variance) from two softplus layers; theta = softmax(z);
p(word) = softmax(background + BN(B theta)); the loss is -sum_w x_w log p(w) + weight * KL(q || N(0, 1)), the weight rising to 1.

What differs from the published code, because a few thousand short documents are few. The background log-frequency stands outside
the batch norm: inside it, the norm subtracts each word's mean and with it the background. The latent mean is batch-normed (an
option there, which keeps the posterior from collapsing onto the prior). Words of a single document are left out: they bring no two
documents together. The weight of the KL term rises over the first half of the steps, not per epoch. There is no early stop by topic
coherence.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import AcclimateError

WORD = r"\b[^\d\W]{3,30}\b"  # letters only, as the authors cut words


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), summed over the latent dimensions: [document, latent] -> [document].

    >>> kl_to_standard_normal(torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2))  # half the squared length of the mean
    tensor([2.5000])
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


class VampireNet(nn.Module):
    """The network: word counts [document, word] in, reconstruction loss and KL [document] out."""

    def __init__(self, background: Tensor, latent: int, dropout: float):
        super().__init__()
        words = len(background)
        self.register_buffer("background", background)  # log frequency [word]
        self.encoder = nn.ModuleList([nn.Linear(words, latent), nn.Linear(latent, latent)])
        self.mean = nn.Sequential(nn.Linear(latent, latent), _offset_norm(latent))
        self.log_variance = nn.Linear(latent, latent)
        self.dropout = nn.Dropout(dropout)
        self.topics = nn.Sequential(nn.Linear(latent, words, bias=False), _offset_norm(words))

    def encode(self, counts: Tensor) -> list[Tensor]:
        """The activations of the encoder's layers and the latent mean, each [document, latent]."""
        layers = []
        for layer in self.encoder:
            counts = functional.softplus(layer(counts))
            layers.append(counts)
        return [*layers, self.mean(counts)]

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the words and KL, each [document], with one draw of z per document."""
        *layers, mean = self.encode(counts)
        log_variance = self.log_variance(layers[-1])
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        theta = self.dropout(z).softmax(-1)
        log_words = (self.background + self.topics(theta)).log_softmax(-1)
        return -(counts * log_words).sum(-1), kl_to_standard_normal(mean, log_variance)


def _offset_norm(width: int) -> nn.BatchNorm1d:
    """Batch norm whose scale stays 1: only the offset is learnt."""
    norm = nn.BatchNorm1d(width, eps=1e-3)
    norm.weight.requires_grad_(False)
    return norm


class Vampire:
    """A fitted embedder. ``losses`` holds the mean loss per document of every epoch (negative ELBO, nats)."""

    def __init__(self, vectorizer, net: VampireNet, device: torch.device, losses: list[float]):
        self.vectorizer, self.net, self.device, self.losses = vectorizer, net.eval(), device, losses

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], *, mix: tuple[float, float, float] = (0.0, 0.0, 1.0), batch: int = 256) -> np.ndarray:
        """Document vectors [document, latent], float32, without noise.

        ``mix`` weighs the first encoder layer, the second one and theta; the default is theta alone, the topic shares of a
        document (they sum to 1). The authors' kNN-TAPT code mixes (1, -20, 1).
        A document without a known word gets the vector of the empty document.
        """
        found = np.zeros((len(texts), self.net.log_variance.out_features), np.float32)
        for start in range(0, len(texts), batch):
            counts = _dense(self.vectorizer.transform(texts[start : start + batch]), self.device)
            first, second, mean = self.net.encode(counts)
            found[start : start + batch] = (mix[0] * first + mix[1] * second + mix[2] * mean.softmax(-1)).cpu().numpy()
        return found


def fit(
    texts: Sequence[str],
    *,
    latent: int = 81,
    vocabulary: int = 30_000,
    epochs: int = 8,
    batch: int = 64,
    lr: float = 4e-3,
    dropout: float = 0.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Vampire:
    """Learn topics from raw documents: the ``vocabulary`` most frequent words, English stop words left out.

    Memory: the sparse counts, one dense block of less than 2 ``batch`` x ``vocabulary`` numbers with its activations, and the weights.
    The caller's random state is left as it was. Raises AcclimateError if fewer than two documents share a word.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    device = torch.device(device)
    vectorizer = CountVectorizer(min_df=2, max_features=vocabulary, stop_words="english", token_pattern=WORD, dtype=np.float32)
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError as error:  # scikit-learn: no word is left
        raise AcclimateError(f"VAMPIRE finds no word that two of the {len(texts)} documents share; give it more text") from error
    counts = counts[counts.getnnz(axis=1) > 0]
    frequency = np.asarray(counts.sum(0)).ravel()
    background = torch.from_numpy(np.log(frequency / frequency.sum())).float()

    losses = []
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        net = VampireNet(background, latent, dropout).to(device)
        optimizer = torch.optim.Adam([weight for weight in net.parameters() if weight.requires_grad], lr=lr, fused=True)
        blocks = max(1, counts.shape[0] // max(2, batch))
        for epoch in range(epochs):
            total = 0.0
            for number, rows in enumerate(_batches(counts, blocks, generator)):
                nll, kl = net(_dense(rows, device))
                weight = min(1.0, 2 * (epoch * blocks + number + 1) / (epochs * blocks))
                optimizer.zero_grad()
                (nll + weight * kl).mean().backward()
                optimizer.step()
                total += (nll + kl).sum().item()
            losses.append(total / counts.shape[0])
    return Vampire(vectorizer, net, device, losses)


def _batches(counts, blocks: int, generator: np.random.Generator) -> Iterator:
    """Sparse rows in random order, cut evenly so that no batch has a single row (batch norm needs two)."""
    for rows in np.array_split(generator.permutation(counts.shape[0]), blocks):
        yield counts[rows]


def _dense(rows, device: torch.device) -> Tensor:
    return torch.from_numpy(rows.toarray()).to(device)
