"""How far two sets of features lie apart: covariances, kernel means, moments, and how well a classifier tells them apart.

Sun & Saenko 2016, equation 1 (CORAL), https://arxiv.org/abs/1607.01719; Gretton et al. 2012, equation 5 (MMD),
https://jmlr.org/papers/v13/gretton12a.html; Peng et al. 2019, equation 1 (moments), https://arxiv.org/abs/1812.01754;
Saito et al. 2018, equation 2 (two heads), https://arxiv.org/abs/1712.02560;
Ben-David et al. 2007 (proxy A-distance), https://papers.nips.cc/paper/2983"""

from collections.abc import Sequence

import torch
from torch import Tensor

WIDTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def covariance(z: Tensor) -> Tensor:
    """Unbiased covariance of rows [row, width] -> [width, width].

    >>> covariance(torch.tensor([[0.0, 0.0], [2.0, 4.0]])).tolist()
    [[2.0, 4.0], [4.0, 8.0]]
    """
    centred = z - z.mean(0, keepdim=True)
    return centred.T @ centred / max(1, len(z) - 1)


def mean_and_covariance_gap(parts: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the means plus that of the covariances of parts [row, width], a mean over all pairs: scalar.

    Over n parts with moments m, the sum over pairs of |m_i - m_j|^2 is n times that of |m_i - mean|^2: no pair is looked at.

    >>> mean_and_covariance_gap([torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])]).item()  # means 1, 1; variances 2, 0
    4.0
    >>> round(mean_and_covariance_gap([torch.tensor([[x]]) for x in (0.0, 1.0, 3.0)]).item(), 4)  # (1 + 9 + 4) / 3
    4.6667
    """
    count = len(parts)
    if count < 2:
        return parts[0].new_zeros(())
    means, widths = torch.stack([part.mean(0) for part in parts]), torch.stack([covariance(part) for part in parts])
    apart = [(each - each.mean(0)).square().flatten(1).mean(1).sum() for each in (means, widths)]
    return 2 / (count - 1) * (apart[0] + apart[1])


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[row a, row b], never below 0."""
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def gaussian_kernel(a: Tensor, b: Tensor, widths: Sequence[float] = WIDTHS) -> Tensor:
    """Sum over widths g of exp(-g |a - b|^2) [row a, row b]."""
    distances = squared_distances(a, b)
    return torch.stack([torch.exp(-width * distances) for width in widths]).sum(0)


def mmd_gap(parts: Sequence[Tensor], widths: Sequence[float] = WIDTHS) -> Tensor:
    """:func:`mmd` of parts [row, width], a mean over all pairs, from one kernel over all rows: scalar.

    >>> a, b, c = torch.tensor([[0.0]]), torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0]])
    >>> each = (mmd(a, b) + mmd(a, c) + mmd(b, c)) / 3
    >>> abs((mmd_gap([a, b, c]) - each).item()) < 1e-5
    True
    """
    count = len(parts)
    if count < 2:
        return parts[0].new_zeros(())
    rows = torch.cat(list(parts))
    share = torch.block_diag(*[part.new_full((1, len(part)), 1 / len(part)) for part in parts])  # [part, row]
    means = share @ gaussian_kernel(rows, rows, widths) @ share.T
    return 2 / (count * (count - 1)) * (count * means.trace() - means.sum())


def mmd(a: Tensor, b: Tensor, widths: Sequence[float] = WIDTHS) -> Tensor:
    """Squared distance of kernel means, pairs of a row with itself included: scalar.

    >>> round(mmd(torch.tensor([[0.0]]), torch.tensor([[1.0]]), [1.0]).item(), 4)  # 1 + 1 - 2 / e
    1.2642
    """
    return gaussian_kernel(a, a, widths).mean() + gaussian_kernel(b, b, widths).mean() - 2 * gaussian_kernel(a, b, widths).mean()


def scaled_mmd(a: Tensor, b: Tensor, kernels: int = 5) -> Tensor:
    """The same with Gaussians exp(-|a - b|^2 / w), w the mean squared distance of all pairs, halved and doubled around it: scalar.

    Long et al. 2015, section 4.2 (several kernels at once), https://arxiv.org/abs/1502.02791

    >>> round(scaled_mmd(torch.tensor([[0.0]]), torch.tensor([[1.0]]), 1).item(), 4)  # 1 + 1 - 2 / e
    1.2642
    """
    both = torch.cat([a, b])
    distances, count = squared_distances(both, both), len(a)
    mean = distances.detach().sum() / (len(both) * (len(both) - 1)) + 1e-12
    each = torch.exp(distances / -(mean * 2.0 ** (kernels - 1 - kernels // 2)))  # the widest; half the width is its square
    kernel = each
    for _ in range(kernels - 1):
        each = each * each
        kernel = kernel + each
    return kernel[:count, :count].mean() + kernel[count:, count:].mean() - 2 * kernel[:count, count:].mean()


def drawn_mmd(a: Tensor, b: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """:func:`scaled_mmd` of at most so many rows of each, drawn anew: scalar."""
    return scaled_mmd(some(a, most, generator), some(b, most, generator))


def some(z: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """At most so many rows, drawn."""
    return z if len(z) <= most else z[torch.randperm(len(z), generator=generator)[:most]]


def moment_gap(a: Tensor, b: Tensor, order: int) -> Tensor:
    """Length of the difference of the raw moments of an order, power by element: scalar.

    >>> moment_gap(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]]), 2).item()  # squares 5, 0 and 0, 8
    9.433980941772461
    """
    return (a.pow(order).mean(0) - b.pow(order).mean(0)).norm()


def disagreement(one: Tensor, two: Tensor) -> Tensor:
    """Mean absolute difference of two heads' class probabilities, of scores [row, class]: scalar.

    >>> disagreement(torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])).item()  # mean of |1 - 0.5| and |0 - 0.5|
    0.5
    """
    return (one.softmax(1) - two.softmax(1)).abs().mean()


def proxy_a_distance(a: Tensor, b: Tensor, *, c: float = 1.0, seed: int = 0) -> float:
    """2 (1 - 2 error) of a linear support vector machine that tells two sets apart, on held-out halves; 0 where they look the same.

    >>> a = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    >>> proxy_a_distance(a, a + 50)
    2.0
    """
    from sklearn.model_selection import train_test_split
    from sklearn.svm import LinearSVC

    x = torch.cat([a, b]).detach().cpu().double().numpy()
    y = [0] * len(a) + [1] * len(b)
    one, other, y_one, y_other = train_test_split(x, y, test_size=0.5, random_state=seed, stratify=y)
    error = 1 - LinearSVC(C=c, random_state=seed, max_iter=5000).fit(one, y_one).score(other, y_other)
    return float(2 * (1 - 2 * min(error, 1 - error)))
