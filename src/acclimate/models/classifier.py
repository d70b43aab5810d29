"""A sentence classifier on any Hugging Face encoder, and the fine-tuning run that scores a checkpoint on a labelled task.

Gururangan et al. 2020, appendix A, https://arxiv.org/abs/2004.10964: the vector of the first token (<s>, [CLS]) -> dropout -> one
tanh layer -> linear; AdamW with linear warm-up over 6 % of the steps and linear decay, early stop on macro-F1 of the development set.
"""

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ..engines.forward import autocast as bf16
from ..errors import AcclimateError, nearest
from ..parts.pooling import pooled

POOLING = ("cls", "mean")


class SentenceClassifier(nn.Module):
    """An encoder with the paper's head. ``pooling`` is "cls" (first token) or "mean" (over the tokens that are not padding)."""

    def __init__(self, encoder: nn.Module, labels: int, *, pooling: str = "cls", dropout: float = 0.1):
        super().__init__()
        if pooling not in POOLING:
            raise AcclimateError(f"pooling = {pooling!r}{nearest(pooling, POOLING)}")
        self.encoder: Any = getattr(encoder, "base_model", encoder)  # a model with a language-model head lends its body
        self.pooling = pooling
        width = self.encoder.config.hidden_size
        self.dropout, self.dense, self.out = nn.Dropout(dropout), nn.Linear(width, width), nn.Linear(width, labels)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """One vector per text: ids and mask [batch, token] -> [batch, width]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pooled(hidden, attention_mask, self.pooling)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores per label [batch, label]."""
        return self.out(self.dense(self.dropout(self.features(input_ids, attention_mask))).tanh())


def fine_tune(
    encoder: nn.Module | Callable[[], nn.Module],
    tokenizer: Any,
    train_texts: Sequence[str],
    train_labels: Sequence[Hashable],
    dev_texts: Sequence[str],
    dev_labels: Sequence[Hashable],
    test_texts: Sequence[str],
    test_labels: Sequence[Hashable],
    *,
    lr: float = 2e-5,
    epochs: int = 10,
    batch: int = 16,
    dropout: float = 0.1,
    patience: int = 3,
    weight_decay: float = 0.01,
    warmup: float = 0.06,
    pooling: str = "cls",
    max_tokens: int = 512,
    seed: int,
    device: str | torch.device | None = None,
    autocast: bool = True,
) -> dict[str, float]:
    """Fine-tune a copy of the encoder and score the test set once, with the weights of the best epoch on the development set.

    ``encoder`` is a model (it is copied and stays as it was) or a function that returns a fresh one. Returns macro_f1 and micro_f1 of
    the test set, dev_f1 (macro, of the chosen epoch), epochs_run and best_epoch (counted from 1). F1 is between 0 and 1; macro-F1
    averages over the labels that are true or predicted somewhere. ``patience`` is how many epochs without a better dev_f1 are run
    before the end. Computed in bf16 where the hardware has it and ``autocast`` is on. The same seed gives the same result on the same
    machine, and the caller's random state is left as it was. Raises AcclimateError for a set that is empty or labelled in part.
    """
    from sklearn.metrics import f1_score
    from transformers import get_linear_schedule_with_warmup

    sets = {"train": (train_texts, train_labels), "dev": (dev_texts, dev_labels), "test": (test_texts, test_labels)}
    for name, (texts, labels) in sets.items():
        if not len(texts) or len(texts) != len(labels):
            raise AcclimateError(f"the {name} set has {len(texts)} texts and {len(labels)} labels; give one label per text, at least one")
    if epochs < 1:
        raise AcclimateError(f"epochs = {epochs}, but at least one is needed")
    number = {label: at for at, label in enumerate(sorted({label for _, labels in sets.values() for label in labels}, key=str))}
    answers = {name: np.array([number[label] for label in labels]) for name, (_, labels) in sets.items()}
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = "auto" if autocast else "fp32"

    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        body = copy.deepcopy(encoder) if isinstance(encoder, nn.Module) else encoder()
        model = SentenceClassifier(body, len(number), pooling=pooling, dropout=dropout).to(device)
        positions = getattr(model.encoder.config, "max_position_embeddings", max_tokens)
        limit = min(max_tokens, positions, tokenizer.model_max_length)
        ids = {name: tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"] for name, (texts, _) in sets.items()}

        def guesses(name: str) -> np.ndarray:
            found = np.empty(len(ids[name]), int)
            model.eval()
            with torch.inference_mode(), bf16(device, precision):
                for rows in batches(lengths(ids[name]), 4 * batch):
                    found[rows] = model(**_pad(tokenizer, ids[name], rows, device)).argmax(-1).cpu().numpy()
            return found

        def f1(name: str, found: np.ndarray, average: str) -> float:
            return float(f1_score(answers[name], found, average=average, zero_division=0))

        optimizer = torch.optim.AdamW(_groups(model, weight_decay), lr=lr, betas=(0.9, 0.98), eps=1e-6)
        steps = epochs * -(-len(train_texts) // batch)
        schedule = get_linear_schedule_with_warmup(optimizer, round(warmup * steps), steps)
        best, best_epoch = -1.0, 0
        kept: dict[str, Tensor] = {}
        for epoch in range(1, epochs + 1):
            model.train()
            for rows in batches(lengths(ids["train"]), batch, generator):
                with bf16(device, precision):
                    scores = model(**_pad(tokenizer, ids["train"], rows, device))
                loss = functional.cross_entropy(scores.float(), torch.from_numpy(answers["train"][rows]).to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            found = f1("dev", guesses("dev"), "macro")
            if found > best:
                best, best_epoch = found, epoch
                kept = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
            elif epoch - best_epoch >= patience:
                break
        model.load_state_dict(kept)
        test = guesses("test")
        return {
            "macro_f1": f1("test", test, "macro"),
            "micro_f1": f1("test", test, "micro"),
            "dev_f1": best,
            "epochs_run": epoch,
            "best_epoch": best_epoch,
        }


def lengths(ids: Sequence[Sequence[int]]) -> np.ndarray:
    """How many tokens each text has [text]."""
    return np.array([len(row) for row in ids])


def batches(lengths: np.ndarray, size: int, generator: np.random.Generator | None = None) -> Iterator[np.ndarray]:
    """Indices of texts of about equal length, so that little is padded; every text once.

    With a generator the lengths are blurred by up to 10 % and the batches come in random order.

    >>> [rows.tolist() for rows in batches(np.array([9, 2, 8, 3, 5]), 2)]
    [[1, 3], [4, 2], [0]]
    """
    if generator is not None:
        lengths = lengths * generator.uniform(0.9, 1.1, len(lengths))
    order = np.argsort(lengths, kind="stable")
    starts = np.arange(0, len(order), size)
    for start in starts if generator is None else generator.permutation(starts):
        yield order[start : start + size]


def _pad(tokenizer: Any, ids: list[list[int]], rows: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    texts = [torch.tensor(ids[row]) for row in rows]
    masks = [torch.ones_like(text) for text in texts]
    return {
        "input_ids": pad_sequence(texts, batch_first=True, padding_value=tokenizer.pad_token_id or 0).to(device),
        "attention_mask": pad_sequence(masks, batch_first=True).to(device),
    }


def _groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for matrices alone: biases and norms have one dimension."""
    weights = list(model.parameters())
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
