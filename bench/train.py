"""Useful tokens per second of training: our engine (packed rows) against plain transformers.Trainer with padding.

    python bench/train.py [steps] [rounds] [megabytes of documents]

Same documents (docstrings of installed packages, so lengths are as they come), same network (the seedling's shape, fresh
weights), same tokenizer (trained here), context, optimizer, schedule, clipping and bf16 autocast; one checkpoint at the end each.
Plain Trainer is used as its examples do: truncation at the context, DataCollatorForLanguageModeling, rows in random order,
padded to the longest of the batch. It runs twice, for "the same batch in tokens" has two readings: as many rows of context
length as we have (it then holds fewer real tokens per step), and as many real tokens per step as we have (it then needs more
rows). The headline is the ratio to the faster of the two. Useful tokens are those that are not padding, counted; seconds are
those of the training loop, the checkpoint included (CPU seconds of ours also have the setup: packing, the packing probe). All
three take turns, round by round. As a check that nothing is bought with quality, each network of the first round is scored on
the same held-out documents.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, write
from encode import docstrings

CONTEXT, BATCH_TOKENS, LR = 512, 4096, 1e-3
HELD_OUT = 100  # documents


class Peer:
    """Plain Trainer with padding, ``rows`` documents to a step."""

    def __init__(self, texts: list[str], tokenizer: Any, rows: int, steps: int):
        import datasets

        whole = [tokenizer.bos_token + text + tokenizer.eos_token for text in texts]
        coded = tokenizer(whole, truncation=True, max_length=CONTEXT, add_special_tokens=False)
        self.data = datasets.Dataset.from_dict({"input_ids": coded["input_ids"]})
        self.tokenizer, self.rows, self.steps = tokenizer, rows, steps

    def train(self, net: Any, folder: Path) -> dict[str, float]:
        """Train ``net``; what it cost."""
        from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments

        from acclimate.engines.forward import has_bf16
        from acclimate.engines.train import Training
        from acclimate.model import quiet

        inner = DataCollatorForLanguageModeling(self.tokenizer, mlm=False)
        counts: list[tuple[int, int]] = []

        def collate(rows: list[dict]) -> dict:
            batch = inner(rows)
            counts.append((int(batch["attention_mask"].sum()), batch["attention_mask"].numel()))
            return batch

        same = Training()
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=self.steps,
            per_device_train_batch_size=self.rows,
            learning_rate=LR,
            warmup_steps=round(same.warmup * self.steps),
            lr_scheduler_type="cosine",
            weight_decay=same.weight_decay,
            adam_beta1=same.beta1,
            adam_beta2=same.beta2,
            adam_epsilon=same.eps,
            max_grad_norm=same.clip,
            optim="adamw_torch_fused",
            save_strategy="steps",
            save_steps=self.steps,
            bf16=has_bf16(net.device),
            use_cpu=net.device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            log_level="error",
            seed=0,
        )
        trainer = Trainer(model=net, args=arguments, train_dataset=self.data, data_collator=collate)
        trainer.remove_callback(PrinterCallback)
        with quiet():
            start, cpu = time.perf_counter(), time.process_time()
            trainer.train()
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        useful, slots = (sum(column) for column in zip(*counts[: self.steps], strict=True))  # one batch more may be prefetched
        return {"seconds": seconds, "cpu": cpu, "useful": useful, "slots": slots}


class Ours:
    """The train engine with packed rows."""

    def __init__(self, texts: list[str], tokenizer: Any, steps: int):
        from acclimate.domain import Domain
        from acclimate.engines.rows import TokenRows
        from acclimate.engines.train import Training
        from acclimate.method import load
        from acclimate.model import Model
        from acclimate.models import seedling

        self.domain, self.objective, self.tokenizer = (
            Domain.from_texts("docstrings", texts, splits=False),
            load("objectives.causal_lm"),
            tokenizer,
        )
        self.settings = Training(
            steps=steps, batch_tokens=BATCH_TOKENS, row_tokens=CONTEXT, lr=LR, checkpoint_every=steps, precision="auto", pack="auto"
        )
        model = Model("seedling", seedling.blank("seedling", tokenizer), tokenizer, "causal")
        source = TokenRows(self.domain, model, self.objective, width=CONTEXT, seed=0, packed=True)
        rows = steps * BATCH_TOKENS // CONTEXT
        self.useful, self.slots = sum(len(source[k]["input_ids"]) for k in range(rows)), rows * CONTEXT

    def train(self, net: Any, folder: Path) -> dict[str, float]:
        """Train ``net`` itself; what it cost."""
        from acclimate.engines.train import train
        from acclimate.model import Model

        model = Model("seedling", net, self.tokenizer, "causal")
        start, cpu = time.perf_counter(), time.process_time()
        done = train(model, self.objective, self.domain, self.settings, folder, in_place=True)
        cpu, whole = time.process_time() - cpu, time.perf_counter() - start
        assert done.cost["packed"]
        net.load_state_dict(done.model.net.state_dict())
        return {
            "seconds": done.cost["seconds"],
            "cpu": cpu,
            "useful": self.useful,
            "slots": self.slots,
            "seconds_with_setup": whole,
        }


def spread(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Ours / theirs, round by round: median, least, most."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def main(steps: int = 30, number: int = 3, megabytes: float = 4) -> None:
    """Measure, check, write, print."""
    from acclimate.engines.forward import has_bf16
    from acclimate.engines.score import bits_per_byte
    from acclimate.model import Model
    from acclimate.models import seedling

    before = machine()["load_average"]
    texts, packages = docstrings(megabytes)
    texts, held = texts[HELD_OUT:], texts[:HELD_OUT]
    tokenizer = seedling.build_tokenizer(texts)
    ours = Ours(texts, tokenizer, steps)
    mean = statistics.mean(len(ids) for ids in Peer(texts, tokenizer, 1, 1).data["input_ids"])
    runs: dict[str, Any] = {
        "plain, as many rows": Peer(texts, tokenizer, BATCH_TOKENS // CONTEXT, steps),
        "plain, as many real tokens": Peer(texts, tokenizer, round(ours.useful / steps / mean), steps),
        "ours": ours,
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    quality: dict[str, float] = {}
    device = ""
    for turn in range(number):
        for name, run in runs.items():
            net = seedling.blank("seedling", tokenizer)
            device = device or str(net.device)
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(run.train(net, Path(folder)))
            if not turn:
                quality[name] = bits_per_byte(Model(name, net, tokenizer, "causal"), held).value
            print(f"round {turn + 1}, {name}: {found[name][-1]['useful'] / found[name][-1]['seconds']:.0f} useful tokens/s", flush=True)
    speed, speed_cpu = (
        {name: [row["useful"] / row[clock] for row in rows] for name, rows in found.items()} for clock in ("seconds", "cpu")
    )
    ratios = {name: spread(speed["ours"], each) for name, each in speed.items() if name != "ours"}
    ratios_cpu = {name: spread(speed_cpu["ours"], each) for name, each in speed_cpu.items() if name != "ours"}
    hardest = min(ratios, key=lambda name: ratios[name]["median"])
    path = write(
        "train",
        {
            "command": f"python bench/train.py {steps} {number} {megabytes:g}",
            "load_average_before": before,
            "device": device,
            "bf16_autocast": has_bf16(net.device),
            "model": "the seedling's shape, fresh weights",
            "weights": sum(p.numel() for p in net.parameters()),
            "documents": len(texts),
            "packages": packages,
            "mean_tokens_per_document_after_truncation": mean,
            "context": CONTEXT,
            "steps": steps,
            "rounds": number,
            "rows_per_step": {name: run.rows for name, run in runs.items() if name != "ours"} | {"ours": BATCH_TOKENS // CONTEXT},
            "useful_share_of_slots": {name: rows[0]["useful"] / rows[0]["slots"] for name, rows in found.items()},
            "useful_tokens_per_step": {name: rows[0]["useful"] / steps for name, rows in found.items()},
            "useful_tokens_per_second": {name: statistics.median(each) for name, each in speed.items()},
            "held_out_bits_per_byte": quality,
            "ratios": ratios,
            "ratios_of_cpu_seconds": ratios_cpu,
            "ratio": ratios[hardest]["median"],
            "ratio_against": hardest,
            "goal": 1.5,
            "rounds_in_full": found,
        },
    )
    for name, each in ratios.items():
        spoken = f"{each['median']:.2f}x ({each['min']:.2f} to {each['max']:.2f})"
        print(f"ours against {name}: {spoken}, {ratios_cpu[name]['median']:.2f}x in CPU seconds")
    print(path)


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((int, int, float), sys.argv[1:], strict=False)))
