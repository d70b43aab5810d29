"""Made-up text, networks of a few thousand weights and domains of any form, for all tests."""

import copy
import os
import random

import pytest

needs_data = pytest.mark.skipif(not os.environ.get("ACCLIMATE_DATA"), reason="ACCLIMATE_DATA is not set")

WORDS = {
    "pipes": (
        ["valve", "pump", "flange", "gasket", "boiler", "turbine", "meter", "sensor", "pipe", "tank"],
        ["opens", "closes", "feeds", "cools", "heats", "drains", "seals", "measures", "fills", "turns"],
    ),
    "kitchen": (
        ["cook", "baker", "onion", "carrot", "kettle", "oven", "spoon", "table", "guest", "butter"],
        ["stirs", "bakes", "peels", "slices", "boils", "warms", "lifts", "sets", "greets", "melts"],
    ),
}


def sentences(topic: str, count: int, seed: int = 0) -> list[str]:
    """Made-up documents of one to four sentences; no two alike."""
    nouns, verbs = WORDS[topic]
    draw = random.Random(f"{topic} {seed}")
    found = []
    for number in range(count):
        parts = [
            f"The {draw.choice(nouns)} {draw.choice(verbs)} the {draw.choice(nouns)} near {draw.choice(nouns)} {draw.randint(2, 99)}."
            for _ in range(draw.randint(1, 4))
        ]
        found.append(f"Note {number} on {topic}. " + " ".join(parts))
    return found


def network(family: str, tokenizer, seed: int = 0, **settings):
    """A network of one family with two layers of width 32 and fresh weights, in evaluation mode."""
    import torch
    import transformers as t

    small = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    small |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    made = {
        "llama": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**small, **{**layers, "num_key_value_heads": 1, "max_position_embeddings": 256, **settings})
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(**small, **{"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, **settings})
        ),
        "bert": lambda: t.BertForMaskedLM(t.BertConfig(**small, **layers, **{"max_position_embeddings": 128, **settings})),
        "roberta": lambda: t.RobertaForMaskedLM(
            t.RobertaConfig(
                **{**small, "pad_token_id": 1}, **layers, **{"max_position_embeddings": 130, "type_vocab_size": 1, **settings}
            )
        ),
        "bert body": lambda: t.BertModel(t.BertConfig(**small, **layers, **{"max_position_embeddings": 128, **settings})),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
                decoder_start_token_id=tokenizer.pad_token_id, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
                **{"dropout_rate": 0.0, **settings},
            )
        ),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = made[family]().eval()
        for name, weight in net.named_parameters():  # livelier than fresh weights, so that what goes wrong shows
            if weight.dim() > 1 and "shared" not in name:
                weight.data.mul_(3)
    return net


def model_of(net, tokenizer, kind: str = "causal", name: str = "tiny"):
    from acclimate.model import Model

    return Model(name, net, tokenizer, kind, name)


def domain_of(name: str, form: str, rows: list[dict], split: str = "train"):
    """A domain of any form with one split."""
    import datasets

    from acclimate.domain import Domain
    from acclimate.files import digest

    rows = [{"id": digest(row), "origin": f"{name}.jsonl:{i + 1}", **row} for i, row in enumerate(rows)]
    return Domain(name, form, {split: datasets.Dataset.from_list(rows)})


def varied(net, seed, size=0.05):
    """A copy of a network whose weights are moved at random, the same way for the same seed."""
    import torch

    made = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return made


def far_domains(count=3, wide=6):
    """A stream of tasks in domains far apart; which rows belong to which class turns from one to the next."""
    import torch
    from torch.nn.functional import one_hot

    from acclimate.engines.continual import domain_stream
    from acclimate.engines.shift import Pool

    draw, pools = torch.Generator().manual_seed(0), []
    for number in range(count):
        y = torch.arange(60) % 2
        x = 0.3 * torch.randn(60, wide, generator=draw) + 4 * one_hot(torch.tensor(number), wide)
        x[:, -1] += (2.0 * y - 1) * (-1) ** number
        pools.append(Pool(f"domain {number}", x, y))
    return domain_stream([(pool, pool) for pool in pools])
