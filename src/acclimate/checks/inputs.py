"""Checks for plug-ins of a model's input side: vocabularies read back and keep what was there; embedded vectors do nothing when off.

A plug-in has ``apply(model) -> Model``. One with a ``tokenizer`` is a vocabulary; one that embeds vectors has ``off()``, a context manager
within which the applied model answers as it did before. Each check passes by what does not concern the plug-in's sort.
"""

import tempfile
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..domain import Domain
from ..kinds import Inputs
from ..model import Model, fingerprint, quiet
from . import tiny
from .common import expect, same

ODD = [
    "naïve café: 10 °C, 東京 \U0001f600",
    "  two  spaces\n\n\tand tabs ",
    "THE COURT'S part-time judge(s); 1,234.5",
    "",
    "\u0301e\u200d",
    "a",
]


def example(method: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The logits of a tiny decoder that the fitted plug-in is applied to, on the first texts of a made-up domain."""

    def fitted(net: Any, texts: list[str]) -> Tensor:
        model = Model("tiny", net, _tokenizer(), "causal", "tiny")
        made = method.fit(model, model.tokenizer, _domain(texts)).apply(model)
        return torch.cat([_logits(made, text).flatten() for text in texts[:3]])

    return fitted, {"net": _net().to(dtype), "texts": _texts()}


def reference_number(method: Any, inputs: dict[str, Any]) -> list[float]:
    """Entries ``at`` [table (0 embedding, 1 output layer), token, column] after a fit on ``texts`` (the made-up ones if empty).

    The tiny decoder's weights are those of ``tiny.fill``; a token is named by its text.
    """
    model = _model()
    tiny.fill(model.net.parameters())
    made = method.fit(model, model.tokenizer, _domain(inputs.get("texts") or _texts())).apply(model)
    tables = [made.net.get_input_embeddings().weight, made.net.get_output_embeddings().weight]
    found = []
    for table, text, column in inputs["at"]:
        ids = made.tokenizer(text, add_special_tokens=False).input_ids
        expect(len(ids) == 1, f"{text!r} is no token of the fitted tokenizer")
        found.append(tables[table][ids[0], column].item())
    return found


def applied(cls: type[Inputs]) -> None:
    """The plug-in is put on a copy: the model that was handed in keeps its weights, and the copy reads and writes finite numbers."""
    model, plugin = _fitted(cls)
    before = fingerprint(model.net)
    made = plugin.apply(model)
    expect(made is not model and fingerprint(model.net) == before, "apply changes the model that it was given")
    expect(torch.isfinite(_logits(made, _texts()[0])).all(), "the model that has the plug-in answers with numbers that are not finite")


def round_trip(cls: type[Inputs]) -> None:
    """What the new tokenizer encodes it decodes to the same text, of the domain and of none, in no more tokens on the domain."""
    model, plugin = _fitted(cls)
    if not hasattr(plugin, "tokenizer"):
        return
    sizes = [0, 0]
    for text in [*_texts(), *ODD]:
        ids = plugin.tokenizer(text, add_special_tokens=False).input_ids
        said = plugin.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        expect(said == text, f"{text[:40]!r} is decoded as {said[:40]!r}")
        if text not in ODD:
            sizes[0] += len(model.tokenizer(text, add_special_tokens=False).input_ids)
            sizes[1] += len(ids)
    expect(sizes[1] < sizes[0], f"the domain takes {sizes[1]} tokens with the new vocabulary and {sizes[0]} with the old one")


def ids_in_range(cls: type[Inputs]) -> None:
    """Every id of the new tokenizer has a row in the embedding and in the output layer, and no id stands for two tokens."""
    model, plugin = _fitted(cls)
    if not hasattr(plugin, "tokenizer"):
        return
    made, vocabulary = plugin.apply(model), plugin.tokenizer.get_vocab()
    rows = [len(made.net.get_input_embeddings().weight), len(made.net.get_output_embeddings().weight), made.net.config.vocab_size]
    expect(max(vocabulary.values()) < min(rows), f"ids go up to {max(vocabulary.values())}, but the tables have {min(rows)} rows")
    expect(len(set(vocabulary.values())) == len(vocabulary), "two tokens share an id")


def old_rows_kept(cls: type[Inputs]) -> None:
    """Tokens of both vocabularies keep their ids and their rows, bit for bit; special tokens are all kept."""
    model, plugin = _fitted(cls)
    if not hasattr(plugin, "tokenizer"):
        return
    made, old, new = plugin.apply(model), model.tokenizer.get_vocab(), plugin.tokenizer.get_vocab()
    moved = [token for token in old if token in new and old[token] != new[token]]
    expect(not moved, f"tokens get other ids: {', '.join(moved[:3])}")
    lost = [token for token in model.tokenizer.all_special_tokens if token not in new]
    expect(not lost, f"special tokens are lost: {', '.join(lost[:3])}")
    shared = sorted(old[token] for token in old if token in new)
    for name in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(each.net, name)().weight[shared] for each in (model, made))
        expect(torch.equal(before, after), f"rows of tokens that are kept change in {name.removeprefix('get_')}")


def saved(cls: type[Inputs]) -> None:
    """A model with the new vocabulary is an ordinary one: transformers' Auto classes read it from its folder, and it answers alike."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, plugin = _fitted(cls)
    if not hasattr(plugin, "tokenizer"):
        return
    made = plugin.apply(model)
    with tempfile.TemporaryDirectory() as folder, quiet():
        made.net.save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
        tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    for text in [*_texts()[:20], *ODD]:
        expect(tokenizer(text).input_ids == made.tokenizer(text).input_ids, f"read again the tokenizer gives other ids for {text[:40]!r}")
    again = Model("again", net, tokenizer, "causal")
    gap = (_logits(again, _texts()[0]) - _logits(made, _texts()[0])).abs().max().item()
    expect(gap < 1e-6, f"read again the model gives other logits, by {gap:.2g}")


def off(cls: type[Inputs]) -> None:
    """A plug-in that embeds vectors changes what the model says, and nothing within ``off()``."""
    model, plugin = _fitted(cls)
    if not hasattr(plugin, "off"):
        return
    made = plugin.apply(model)
    with plugin.off():
        expect(same(_logits(made, _texts()[0]), _logits(model, _texts()[0])), "switched off, the plug-in still changes the logits")


def _fitted(cls: type[Inputs]) -> tuple[Model, Any]:
    model = _model()
    return model, cls().fit(model, model.tokenizer, _domain(_texts()))


def _logits(model: Model, text: str) -> Tensor:
    """Logits in fp32 [token, id]."""
    with torch.no_grad():
        return model.net(input_ids=model.tokenizer(text, return_tensors="pt").input_ids).logits[0].float()


def _texts() -> list[str]:
    """Made-up sentences of few words, so that their n-grams are frequent."""
    nouns, verbs = ["court", "tribunal", "registrar", "minister"], ["dismisses", "hears", "adjourns"]
    return [
        f"The {nouns[i % 4]} {verbs[i % 3]} the appeal of the {nouns[(i + 1) % 4]}, in accordance with section {i % 7}. It is so ordered."
        for i in range(60)
    ]


def _domain(texts: list[str]) -> Domain:
    return Domain.from_texts("court", texts, splits=False)


@cache
def _tokenizer() -> Any:
    """A byte-level BPE of 320 tokens, trained on text that has some of the domain's words and some others."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [f"The guest in the kitchen bakes {i} onions with the butter of the baker; it is section {i} of the menu." for i in range(40)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", clean_up_tokenization_spaces=False)


def _net() -> Any:
    """A Llama of one layer of width 16 with a row per token, embedding and output layer apart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(_tokenizer()), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, eos_token_id=0, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def _model() -> Model:
    return Model("tiny", _net(), _tokenizer(), "causal", "tiny")
