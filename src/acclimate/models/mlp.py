"""Layers on rows of numbers: a featurizer for tables, words counted, and vectors of a frozen encoder."""

from torch import Tensor, nn


class Mlp(nn.Module):
    """Rows [batch, inputs] -> features [batch, width]: ``depth`` linear layers with ReLU after each; ``norm`` puts batch-norm between."""

    def __init__(self, inputs: int = 384, width: int = 128, depth: int = 1, activation: str = "relu", norm: bool = False):
        super().__init__()
        self.settings = {"inputs": inputs, "width": width, "depth": depth, "activation": activation, "norm": norm}
        self.inputs, self.features = (inputs,), width
        layers: list[nn.Module] = []
        for number in range(depth):
            layers.append(nn.Linear(width if number else inputs, width))
            layers += [nn.BatchNorm1d(width)] if norm else []
            layers.append(nn.Sigmoid() if activation == "sigmoid" else nn.ReLU())
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features of each row."""
        return self.layers(x)


BACKBONE = Mlp
