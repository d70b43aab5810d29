"""Adapters as peft trains and saves them, on tiny bases, for the tests of merging and combining them."""

import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from worlds import model_of, network

IDS = torch.tensor([[5, 9, 30, 17, 8, 21]])
NETS = {"llama": {"tie_word_embeddings": False}, "gpt2": {"tie_word_embeddings": False}, "tied": {"tie_word_embeddings": True}}


def close(a, b, tolerance=1e-6):
    """Entries of size above 1 are compared relatively."""
    gap = (a - b).abs() / b.abs().clamp(min=1)
    assert float(gap.max()) < tolerance, float(gap.max())


def logits(net):
    """What a network says of one line."""
    with torch.no_grad():
        return net.eval()(IDS).logits


def save_bases(root, tokenizer):
    """A Llama, a GPT-2 whose weights are transposed, and a Llama whose output layer is its embedding, all saved."""
    for name, settings in NETS.items():
        net = network("gpt2" if name == "gpt2" else "llama", tokenizer, **settings)
        model_of(net, tokenizer, name=name).save(root / name)
    return root


def train(base, folder, seed=1, size=0.1, **config):
    """An adapter with all that it trains moved at random, saved by peft; the net with the adapter."""
    warnings.simplefilter("ignore")
    net = AutoModelForCausalLM.from_pretrained(base)
    net = get_peft_model(net, LoraConfig(**{"r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM", **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(size * noise if "lora_A" in name or "lora_B" in name or "lora_emb" in name else weight + 0.2 * noise)
    net.save_pretrained(folder)
    return net.eval()


LLAMA, GPT2 = ["q_proj", "o_proj", "down_proj"], ["c_attn", "c_proj", "c_fc"]  # o_proj and attn.c_proj are square
