"""Train the embedded models from real text: ``make seedling`` (needs $ACCLIMATE_DATA).

Writes src/acclimate/assets/seedling and seedling-xs: bf16 weights, the shared tokenizer, and a card with measured bits per byte.
The held-out tail of every corpus is never trained on; legal, biomedical, finance, software, e-commerce and cooking stay out whole,
because they are the domains to adapt to.
"""

import argparse
import time
from pathlib import Path

import torch

from acclimate import datasets
from acclimate.domain import Domain
from acclimate.engines.score import bits_per_byte
from acclimate.engines.train import Training, tidy, train
from acclimate.files import write_json
from acclimate.method import load
from acclimate.model import ASSETS, Model, default_device
from acclimate.models.seedling import blank, build_tokenizer

LEARNED = ("lm/wikipedia", "lm/fiction", "lm/religion", "lm/dialogue", "gsm8k")
UNSEEN = ("lm/legal", "lm/finance", "lm/biomedical", "lm/software", "lm/ecommerce", "lm/cooking", "lm/news", "lm/cs_abstracts")


def as_text(domain: Domain, tokenizer=None) -> Domain:
    """Conversations become text in the chat template, so that one run learns prose and dialogue."""
    if domain.form == "text":
        return domain
    import datasets as hf

    begin, end = ("", "") if tokenizer is None else (tokenizer.bos_token, tokenizer.eos_token)
    splits = {}
    for split, rows in domain.splits.items():
        texts = [
            "\n".join(m["content"] for m in row["messages"])
            if tokenizer is None
            else tokenizer.apply_chat_template(row["messages"], tokenize=False).removeprefix(begin).removesuffix(end)
            for row in rows
        ]
        splits[split] = hf.Dataset.from_dict({"id": rows["id"], "origin": rows["origin"], "text": texts})
    return Domain(domain.name, "text", splits, source=domain.source, licence=domain.licence)


def main() -> None:
    """Train one size and measure it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="seedling", choices=("seedling", "seedling-xs"))
    parser.add_argument("--steps", type=int, default=2450)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--micro-rows", type=int, default=4)
    parser.add_argument("--warmup", type=float, default=0.03)
    parser.add_argument("--optimizer", default="muon", choices=("adamw", "muon"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tokenizer", help="folder of a tokenizer to use instead of training one")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--work", type=Path, default=Path("runs/seedling"))
    options = parser.parse_args()

    domains = {name: datasets.load(name) for name in LEARNED}
    if options.tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    else:
        tokenizer = build_tokenizer(text for domain in domains.values() for text in as_text(domain).texts("train"))
    domains = {name: as_text(domain, tokenizer) for name, domain in domains.items()}
    weights = {name: float(sum(len(text) for text in domain.texts("train"))) for name, domain in domains.items()}
    start = Model(options.size, blank(options.size, tokenizer), tokenizer, "causal", "fresh weights").to(default_device())
    training = Training(
        steps=options.steps,
        batch_tokens=options.batch_tokens,
        micro_rows=options.micro_rows,
        row_tokens=512,
        lr=options.lr,
        optimizer=options.optimizer,
        weight_decay=options.weight_decay,
        beta2=0.95,
        eps=1e-8,
        warmup=options.warmup,
        schedule="cosine",
        compile=options.compile,
        watch_every=max(1, options.steps // 8),
    )
    watch = {name: domains[name] for name in LEARNED}
    begun = time.perf_counter()
    trained = train(
        start,
        load("objectives.causal_lm"),
        {name: (domain, weights[name]) for name, domain in domains.items()},
        training,
        options.work / options.size,
        watch=watch,
        name=options.size,
    )
    for row in trained.curve:
        if "lm/wikipedia" in row:
            print({k: round(v, 3) for k, v in row.items()}, flush=True)
    model = trained.model
    with torch.no_grad():  # measured as it will be loaded: weights rounded to bf16, sums in fp32; buffers keep their precision
        for weight in model.net.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    measured = {}
    for name in (*LEARNED, *UNSEEN):
        domain = domains.get(name) or datasets.load(name)
        value, low, high = bits_per_byte(model, domain.texts("test")).interval()
        measured[name] = {
            "bits_per_byte": round(value, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "seen_in_training": name in LEARNED,
            "licence": domain.licence,
        }
        print(f"{name:16} {value:.4f} [{low:.4f}, {high:.4f}]", flush=True)
    for weight in model.net.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    model.net.config.dtype = torch.bfloat16
    given = {k: v for k, v in vars(options).items() if v and k not in ("out", "work", "tokenizer", "compile")}
    command = "python scripts/seedling.py " + " ".join(f"--{key.replace('_', '-')} {value}" for key, value in given.items())
    model.source, model.notes["made"] = (
        "fresh weights",
        {
            "base": "fresh weights",
            "method": "objectives.causal_lm",
            "command": command,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "seconds": round(time.perf_counter() - begun),
            "steps": trained.cost["steps"],
            "tokens": trained.cost["tokens"],
            "total_parameters": trained.cost["total_parameters"],
        },
    )
    folder = model.save(options.out / options.size, card(options.size, measured, model.notes["made"]))
    write_json(folder / "measured.json", measured)
    tidy(options.work / options.size)
    print(folder, sum(path.stat().st_size for path in folder.iterdir()) / 1e6, "MB")


def card(name: str, measured: dict, made: dict) -> str:
    """The model card, all figures as measured."""
    rows = [
        f"| {n} | {m['bits_per_byte']:.3f} [{m['low']:.3f}, {m['high']:.3f}] | {('no', 'yes')[m['seen_in_training']]} | {m['licence']} |"
        for n, m in measured.items()
    ]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "license: apache-2.0",
            "language: en",
            "tags: [acclimate]",
            "---",
            f"# {name}",
            "",
            f"A Llama-shaped decoder of {made['total_parameters'] / 1e6:.2f} million weights (bf16), trained from scratch by acclimate's "
            f"own train engine on {made['tokens'] / 1e6:.0f} million tokens of real text. It exists so that every command works without a "
            "download, and for experiments on small hardware; it knows little and should answer nobody's questions.",
            "",
            f"Command: `{made['command']}` ({made['device']}, {made['seconds']} seconds).",
            "",
            "Held-out tails (never trained on), bits per byte with 95 % bootstrap interval over documents, fp32:",
            "",
            "| corpus | bits per byte | seen in training | licence of the text |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
