"""Energies of pairs of a row and a label, where the label enters the network as a gate.

Li et al. 2022, section 4.2, https://arxiv.org/abs/2011.12216"""

from torch import Tensor, nn
from torch.nn import functional


class Energy(nn.Module):
    """E of features z [row, width] and labels [row, label] -> [row, label]; small where they belong together.

    The label's vector gates ``layers`` layers (``where`` = "middle"), or the rows before the featurizer has seen them ("early": z is [row,
    label, width] then, made of rows of ``inputs`` entries), or the energy is minus its product with the features ("late").

    >>> import torch
    >>> energy = Energy(2, 2)
    >>> with torch.no_grad():
    ...     for weight, values in zip(energy.parameters(), ([[3.0, 4.0], [0.0, -1.0]], [[1.0, 1.0]], [0.0]), strict=True):
    ...         _ = weight.copy_(torch.tensor(values))
    >>> energy(torch.tensor([[1.0, 2.0]]), torch.tensor([[0, 1]])).tolist()  # 1 x 1.6 + 2 x 1.8; 1 x 1 + 2 x 0
    [[5.199999809265137, 1.0]]
    """

    def __init__(self, classes: int, width: int, gate: str = "norm", where: str = "middle", layers: int = 1, inputs: int = 0):
        super().__init__()
        self.gate, self.where = gate, where
        self.label = nn.Embedding(classes, inputs or width)
        if where == "late":  # rows of a linear layer
            nn.init.uniform_(self.label.weight, -(width**-0.5), width**-0.5)
        self.deeper = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.out = nn.Linear(width, 1)

    def gated(self, h: Tensor, labels: Tensor) -> Tensor:
        """h (1 + e / |e|), or h times softmax(e), whose mean is 1: h [row, 1 or label, width], labels [row, label]."""
        e = self.label(labels)
        return h + h * functional.normalize(e, dim=-1) if self.gate == "norm" else h * e.softmax(-1) * e.shape[-1]

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """A linear map of the gated layers; in late fusion minus the product of features and label."""
        if self.where == "late":
            return -(functional.relu(z)[:, None] * self.label(labels)).sum(-1)
        h = z[:, None] if z.ndim == 2 else z
        for layer in (nn.Identity(), *self.deeper):
            h = layer(h) if self.where == "early" else self.gated(layer(h), labels)
            h = functional.relu(h) if self.gate == "norm" or self.where == "early" else h
        return self.out(h).squeeze(-1)
