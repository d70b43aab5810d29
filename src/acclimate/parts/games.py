"""When steps of a solver settle in a game of two players, and when they leave a point that the continuous game would settle in.

Acuna et al. 2022, bounds of the learning rate, https://arxiv.org/abs/2202.05352; stability functions of Runge-Kutta
methods as in Hairer & Wanner, Solving Ordinary Differential Equations II, chapter IV."""

import math

import numpy as np


def quadratic_game(x: np.ndarray, coupling: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Jacobian of minus the players' gradients in min over a, max over b of a'Xa / 2 + a'Cb - b'Yb / 2: [a + b, a + b].

    >>> quadratic_game(np.eye(1) / 10, np.eye(1), np.eye(1) / 10).tolist()
    [[-0.1, -1.0], [1.0, -0.1]]
    """
    return np.block([[-x, -coupling], [coupling.T, -y]])


def growth(jacobian: np.ndarray, rate: float, order: int) -> float:
    """By what a step multiplies the distance from the equilibrium, in its slowest direction; the game is settled if it is under 1.

    Order 1 is plain gradient descent, 2 and 4 are the Runge-Kutta steps: 1 + z + z^2 / 2! ... at z = rate x eigenvalue.

    >>> turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    >>> [round(growth(turn, 1.0, order), 3) for order in (1, 2, 4)]  # |1 + i|, |1/2 + i|, |13/24 + 5i/6|
    [1.414, 1.118, 0.994]
    """
    z = rate * np.linalg.eigvals(jacobian)
    return float(np.abs(sum(z**power / math.factorial(power) for power in range(order + 1))).max())


def largest_rate(jacobian: np.ndarray, order: int) -> float:
    """The rate from which on a solver leaves a stable equilibrium; 0 where the equilibrium is not stable even at the smallest rate.

    >>> game = np.array([[-0.1, -1.0], [1.0, -0.1]])  # eigenvalues -0.1 +- i: 2 x 0.1 / 1.01 for gradient descent
    >>> [round(largest_rate(game, order), 3) for order in (1, 2, 4)]
    [0.198, 1.042, 2.936]
    """
    largest = float(np.abs(np.linalg.eigvals(jacobian)).max())
    if not largest or growth(jacobian, 1e-4 / largest, order) >= 1:
        return 0.0
    low, high = 1e-4 / largest, 1e-4 / largest
    while growth(jacobian, high, order) < 1:
        low, high = high, 1.05 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if growth(jacobian, middle, order) < 1 else (low, middle)
    return low
