"""One way to run a network on rows that hold several documents: each document sees itself alone.

A packed row carries ``position_ids`` that start at 0 for every document (a pad is a document of one token). From them comes the
block-diagonal attention mask, causal or not, so a packed document gets the logits it would get alone.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..model import OFFSET_POSITIONS, Model


def block_mask(positions: Tensor, causal: bool) -> Tensor:
    """Which key each query may see [row, 1, token, token], from positions [row, token].

    >>> block_mask(torch.tensor([[0, 1, 0]]), causal=True)[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    document = (positions == 0).cumsum(1)
    mask = document[:, :, None] == document[:, None, :]
    return (mask.tril() if causal else mask)[:, None]


def logits(net: Any, batch: dict[str, Tensor], kind: str) -> Tensor:
    """Scores [row, token, vocabulary] for a packed batch (input_ids, position_ids) or a padded one (input_ids, attention_mask)."""
    ids = batch["input_ids"]
    if kind == "seq2seq":
        return net(input_ids=ids, attention_mask=batch["attention_mask"], decoder_input_ids=batch["decoder_input_ids"]).logits
    extra: dict[str, Any] = {"use_cache": False} if kind == "causal" else {}
    if "position_ids" in batch:
        positions = batch["position_ids"]
        if "flash" not in str(net.config._attn_implementation):  # flash attention reads the document borders off the positions
            extra["attention_mask"] = as_wanted(net, block_mask(positions, kind == "causal"))
        shift = net.config.pad_token_id + 1 if net.config.model_type in OFFSET_POSITIONS else 0
        extra["position_ids"] = positions + shift
    else:
        extra["attention_mask"] = batch["attention_mask"]
    return net(input_ids=ids, **extra).logits[:, -ids.shape[1] :]  # a soft prompt stands before the text: its scores are not asked for


def as_wanted(net: Any, mask: Tensor) -> Tensor:
    """A mask of what may be read as the network's attention takes it: true and false, or zero and the least number."""
    if net.config._attn_implementation == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=net.dtype).masked_fill_(~mask, torch.finfo(net.dtype).min)  # eager attention adds the mask


@torch.no_grad()
def packs(model: Model) -> bool:
    """Whether this network keeps packed documents apart, found out by trying: two documents in one row against each alone."""
    if model.kind not in ("causal", "masked"):
        return False
    vocabulary = min(model.net.get_input_embeddings().weight.shape[0], len(model.tokenizer))
    first, second = torch.arange(11) * 7 % vocabulary, torch.arange(8) * 5 % vocabulary
    rows = [torch.cat([first, second])[None], torch.cat([torch.arange(11), torch.arange(8)])[None]]
    model.net.eval()
    try:
        both = logits(model.net, {"input_ids": rows[0].to(model.device), "position_ids": rows[1].to(model.device)}, model.kind)
        alone = logits(
            model.net,
            {"input_ids": second[None].to(model.device), "attention_mask": torch.ones(1, 8, device=model.device)},
            model.kind,
        )
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
    ):  # the family takes no 4-D mask or no positions: fall back to padding
        return False
    tolerance = 1e-4 if both.dtype == torch.float32 else 3e-2
    return bool(torch.allclose(both[0, 11:].float(), alone[0].float(), atol=tolerance * (1 + alone.abs().max().item())))


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """bf16 autocast where the hardware multiplies bf16 (cuda, or a CPU with avx512_bf16 or amx), else nothing."""
    if precision == "fp32" or (precision == "auto" and not has_bf16(device)):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 products are fast on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
