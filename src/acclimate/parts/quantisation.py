"""Weights as codes of few bits and scales: nearest codes, the values that codes stand for, and how codes are packed into bytes.

*Blockwise*: neighbouring entries of the flattened tensor share a scale, and a code is the place of a level in a table (bitsandbytes' nf4
and fp4: Dettmers et al. 2023, section 3 and appendix E, https://arxiv.org/abs/2305.14314 ; its scales may be codes themselves).
*Grid*: tiles of a matrix share a scale, and a code is a number of 8 bits (int8 by rows: Dettmers et al. 2022, section 2,
https://arxiv.org/abs/2208.07339 ; fp8 by tiles: DeepSeek-AI 2024, section 3.3, https://arxiv.org/abs/2412.19437 ).
*Grouped*: a code is a number of 4 bits above a zero, and groups of inputs share a scale and a zero (GPTQ: Frantar et al. 2022,
https://arxiv.org/abs/2210.17323 ; AWQ: Lin et al. 2023, https://arxiv.org/abs/2306.00978 ). Values and scales are fp32.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
    0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)  # by the three bits below the sign; divided by 12
IN_ORDER = tuple(range(8))
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the place in its word of each of eight neighbours


def levels(kind: str) -> Tensor:
    """The values [16] of the codes of ``nf4`` or ``fp4``, from -1 to 1.

    >>> [round(value, 4) for value in levels("fp4").tolist()[:4]]
    [0.0, 0.0052, 0.6667, 1.0]
    """
    if kind == "nf4":
        return torch.tensor(NF4)
    half = torch.tensor(FP4) / 12
    return torch.cat([half, -half])


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """The code (uint8) of the level next to each value; of two at one distance the lower level.

    >>> nearest(torch.tensor([0.1, 0.9, -0.3]), torch.tensor([0.0, 1.0, -1.0])).tolist()
    [0, 1, 0]
    """
    ordered, code = table.sort(stable=True)
    return code.to(torch.uint8)[torch.bucketize(values, (ordered[1:] + ordered[:-1]) / 2, out_int32=True)]


def block_peaks(values: Tensor, block: int) -> Tensor:
    """The largest magnitude [block] of each run of ``block`` entries [entry]; the last run may be shorter.

    >>> block_peaks(torch.tensor([1.0, -3.0, 2.0]), 2)
    tensor([3., 2.])
    """
    return pad(values, (0, -len(values) % block)).view(-1, block).abs().amax(1)


def block_encode(values: Tensor, peaks: Tensor, block: int, table: Tensor) -> Tensor:
    """The code of each entry [entry], in units of its block's peak [block]."""
    return nearest(pad(values, (0, -len(values) % block)).view(-1, block) / _safe(peaks)[:, None], table).flatten()[: len(values)]


def block_decode(codes: Tensor, scales: Tensor, block: int, table: Tensor) -> Tensor:
    """The value of each code [entry], in units of its block's scale [block]."""
    found = table.index_select(0, pad(codes, (0, -len(codes) % block)).int())
    return found.view(-1, block).mul_(scales[:, None]).flatten()[: len(codes)]


def nested(peaks: Tensor, block: int, table: Tensor) -> Tensor:
    """What is left of scales [block] that are stored as codes themselves, about their mean: double quantisation.

    >>> nested(torch.tensor([1.0, 2.0, 3.0]), 2, torch.tensor([-1.0, 0.0, 1.0]))
    tensor([1., 2., 3.])
    """
    middle = peaks.mean()
    own = block_peaks(peaks - middle, block)
    return block_decode(block_encode(peaks - middle, own, block, table), own, block, table) + middle


def grid_peaks(matrix: Tensor, tile: tuple[int, int]) -> Tensor:
    """The largest magnitude of each tile of a matrix [row, column] -> [tiles down, tiles across]; tiles at the edges may be smaller.

    >>> grid_peaks(torch.tensor([[1.0, 2.0, -5.0], [3.0, 0.0, 4.0]]), (1, 2))
    tensor([[2., 5.],
            [3., 4.]])
    """
    high, wide = tile
    rows, columns = matrix.shape
    whole = pad(matrix, (0, -columns % wide, 0, -rows % high))
    return whole.view(whole.shape[0] // high, high, whole.shape[1] // wide, wide).abs().amax((1, 3))


def grid_encode(matrix: Tensor, scales: Tensor, tile: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The 8-bit number (int8 or an fp8 ``dtype``) next to each entry [row, column], in units of its tile's scale; ends are clipped to.

    >>> grid_encode(torch.tensor([[1.0, -2.6]]), torch.tensor([[1.0]]), (1, 2), torch.int8)
    tensor([[ 1, -3]], dtype=torch.int8)
    """
    units = matrix / _spread(_safe(scales), tile, matrix.shape)
    largest = top(dtype)
    return (units if dtype.is_floating_point else units.round()).clamp(-largest, largest).to(dtype)


def grid_decode(codes: Tensor, scales: Tensor, tile: tuple[int, int]) -> Tensor:
    """The value of each 8-bit number [row, column], in units of its tile's scale."""
    return codes.float().mul_(_spread(scales, tile, codes.shape))


def top(dtype: torch.dtype) -> float:
    """The largest number of an 8-bit type that is used: 127 of int8, 448 of fp8 E4M3."""
    return torch.finfo(dtype).max if dtype.is_floating_point else 127.0


def _spread(scales: Tensor, tile: tuple[int, int], shape: torch.Size) -> Tensor:
    """Scales [tiles down, tiles across] so that they broadcast over a matrix."""
    for side in (0, 1):
        if scales.shape[side] > 1:
            scales = scales.repeat_interleave(tile[side], side).narrow(side, 0, shape[side])
    return scales


def _safe(scales: Tensor) -> Tensor:
    """Scales to divide by: blocks of zeros stay zeros."""
    return torch.where(scales == 0, 1.0, scales)


def unpack_pairs(data: Tensor) -> Tensor:
    """Two codes of a byte [byte] -> [entry]: the upper four bits are the first.

    >>> unpack_pairs(torch.tensor([0x1F], dtype=torch.uint8)).tolist()
    [1, 15]
    """
    return torch.stack([data >> 4, data & 15], 1).flatten()


def pack_pairs(codes: Tensor) -> Tensor:
    """The reverse of :func:`unpack_pairs`; an odd one out is followed by 0."""
    codes = pad(codes, (0, len(codes) % 2))
    return codes[::2] << 4 | codes[1::2]


def unpack_words(words: Tensor, side: int, order: tuple[int, ...] = IN_ORDER) -> Tensor:
    """Eight four-bit numbers of each int32, laid along ``side``; ``order`` says which four bits hold each of the eight, lowest first.

    >>> unpack_words(torch.tensor([[0x76543210]], dtype=torch.int32), 1, AWQ_ORDER).tolist()
    [[0, 4, 1, 5, 2, 6, 3, 7]]
    """
    parts = torch.stack([words >> 4 * place & 15 for place in order], side + 1)
    return parts.flatten(side, side + 1)


def zeroed_encode(values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The four-bit number (uint8) next to each value, where ``(number - zero) * scale`` is what a number stands for; all of one shape.

    >>> zeroed_encode(torch.tensor([0.9, -9.0]), torch.tensor([0.5, 0.5]), torch.tensor([8.0, 8.0])).tolist()
    [10, 0]
    """
    return (values / _safe(scales) + zeros).round_().clamp_(0, 15).to(torch.uint8)
