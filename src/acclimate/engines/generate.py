"""The generate engine: batched continuation of prompts, and text a model writes by itself."""

from collections.abc import Sequence

import torch

from ..errors import AcclimateError
from ..model import Model
from ..progress import bar
from .forward import autocast
from .rows import frame


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    rows: int = 16,
    precision: str = "auto",
    what: str = "",
) -> list[str]:
    """What the model writes after each prompt (without the prompt), at most ``tokens`` tokens; temperature 0 is greedy.

    Prompts of like length share a batch; the answer comes back in the order of the prompts. The global random state is left alone.
    """
    tokenizer = model.tokenizer
    if model.kind == "causal" and tokens >= model.context:
        raise AcclimateError(f"tokens = {tokens}, but {model.name} reads at most {model.context} tokens, its own answer among them")
    before, after = frame(tokenizer)
    head = [int(i) for i in before] if model.kind == "causal" else []
    tail = [int(i) for i in after] if model.kind == "seq2seq" else []
    room = max(1, model.context - tokens) if model.kind == "causal" else model.context
    ids = [([*head, *tokenizer(prompt, add_special_tokens=False).input_ids, *tail])[-room:] for prompt in prompts]
    if model.kind == "causal" and not all(ids):  # an empty prompt, and no begin token: an end token is what stands before a document
        ids = [each or [tokenizer.eos_token_id or 0] for each in ids]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found = [""] * len(ids)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    options = {"do_sample": temperature > 0, "max_new_tokens": tokens, "pad_token_id": pad}
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    model.net.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), bar(what=what or f"{model.name} writes", total=len(ids), unit="text") as shown:
        torch.manual_seed(seed)
        for begin in range(0, len(order), rows):
            some = order[begin : begin + rows]
            width = max(len(ids[i]) for i in some)
            left = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in some], device=model.device)
            mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in some], device=model.device)
            with autocast(model.device, precision):
                out = model.net.generate(input_ids=left, attention_mask=mask, **options)
            new = out if model.kind == "seq2seq" else out[:, width:]
            for i, text in zip(some, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                found[i] = text
            shown.update(len(some))
    return found


def recall(model: Model, documents: int = 200, *, tokens: int = 192, temperature: float = 1.0, seed: int = 0) -> list[str]:
    """Text the model writes from its begin token alone: a sample of what it knows.

    It serves where the data a model was trained on are not at hand. As a probe: the rise of bits per byte on the start model's own text
    estimates KL(start || adapted) per byte. As replay: self-synthesised rehearsal (Huang et al. 2024, https://arxiv.org/abs/2403.01244).
    """
    tokens = min(tokens, model.context - 1)
    texts = generate(model, [""] * documents, tokens=tokens, temperature=temperature, seed=seed, rows=50, what=f"{model.name} recalls")
    return [text for text in texts if len(text.strip()) > 20]
