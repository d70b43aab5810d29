"""Data and networks small enough to check a method in a moment, the same at every call; public for plugin authors."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ROWS, LENGTH, VOCABULARY, TOP, WIDTH = 5, 7, 11, 4, 8


def words(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every word an objective may ask for (words.py) but ``items`` and what is about the learner; some labels ask for nothing.

    >>> words()["logits"].shape, int((words()["labels"] != -100).sum())
    (torch.Size([5, 7, 11]), 23)
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
    answers = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    for row in range(ROWS):
        answers[row, 2 : 4 + row] = 1  # answers of 2 to 5 tokens
        labels[row, LENGTH - row :] = -100  # padding: as many places as the row's number ...
    labels[0, [0, 3]], labels[1, 0], labels[2, 1] = -100, -100, -100  # ... and borders inside the rows
    labels[4, 3] = 1
    labels[3, 4] = 2
    teacher = (noise(ROWS, LENGTH, VOCABULARY) + 4 * torch.nn.functional.one_hot(labels.clamp(min=0), VOCABULARY)).log_softmax(2)
    top = teacher.topk(TOP, 2)
    lengths = torch.tensor([12, 7, 9, 15, 10])
    found = {
        "logits": noise(ROWS, LENGTH, VOCABULARY),
        "labels": labels,
        "answer_mask": answers,
        "chosen_logps": -lengths * (2 + noise(ROWS).abs()),
        "rejected_logps": -lengths.flip(0) * (2 + noise(ROWS).abs()),
        "ref_chosen_logps": -lengths * (2 + noise(ROWS).abs()),
        "ref_rejected_logps": -lengths.flip(0) * (2 + noise(ROWS).abs()),
        "chosen_tokens": lengths,
        "rejected_tokens": lengths.flip(0),
        "teacher_ids": top.indices,
        "teacher_logprobs": top.values,
        "anchors": noise(ROWS, WIDTH),
        "positives": noise(ROWS, WIDTH),
        "negatives": noise(ROWS, WIDTH),
    }
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()}


def tokens() -> Tensor:
    """Ids for the networks below [2, 6]."""
    return torch.tensor([[5, 9, 3, 17, 8, 30], [7, 7, 12, 40, 2, 1]])


def decoder() -> Any:
    """A Llama with 2 layers of width 16, 4 query heads and 2 key-value heads, 32 feed-forward units, 48 ids."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _built(lambda: LlamaForCausalLM(config))


def fused_decoder() -> Any:
    """A GPT-2 of the same size: one fused layer for queries, keys and values, weights stored transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=4, n_positions=256, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return _built(lambda: GPT2LMHeadModel(config))


def encoder() -> Any:
    """A BERT with an output layer, of the same size."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256
    )
    return _built(lambda: BertForMaskedLM(config))


def encoder_decoder() -> Any:
    """A T5 of the same size."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=48, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    return _built(lambda: T5ForConditionalGeneration(config))


FAMILIES: dict[str, Callable[[], Any]] = {
    "decoder": decoder,
    "fused_decoder": fused_decoder,
    "encoder": encoder,
    "encoder_decoder": encoder_decoder,
}


def fill(parameters: Iterable[Tensor]) -> None:
    """Give every parameter the values 0.3 sin(1), 0.3 sin(2) ... row by row: weights that no random generator can change."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.3 * torch.arange(1, parameter.numel() + 1, dtype=torch.float64).sin().view(parameter.shape))


def _built(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()
