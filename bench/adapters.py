"""One batch, many adapters: a decode step whose rows use different LoRA adapters, against the base model and against PEFT's ways to do it.

    python bench/adapters.py [--rounds 5] [--steps 4] [--adapters 16] [--rows 32] [--hidden 1024] [--layers 12] [--threads 0]

A Llama with random weights (160 million at the defaults) and adapters of rank 8 on all its linear layers, saved by PEFT, put into a bank
and loaded from it. Each round times, in turn, decode steps with a KV cache of: the base model; ours (``Rows``); PEFT's mixed batch
(``adapter_names``); and PEFT's ``set_adapter`` adapter by adapter, each with its own rows and cache. Ratios are medians over the rounds of
seconds per step over the base's. The answers of all ways are compared; peak memory is that of a process of its own for each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import common

WAYS = ("base", "ours", "peft_mixed", "peft_set_adapter")
GOAL = 1.4  # ours over the base, with 16 adapters in 32 rows
Step = Callable[[], torch.Tensor]


def base_net(hidden: int, layers: int) -> Any:
    """The base, the same at every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=hidden * 11 // 4, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64, vocab_size=4096, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def make(folder: Path, args: argparse.Namespace) -> None:
    """Base and adapters, as transformers and PEFT save them, and the bank."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from acclimate.engines.adapters.bank import Bank
    from acclimate.model import Model

    net = base_net(args.hidden, args.layers)
    net.save_pretrained(folder / "base")
    words = {f"w{i}": i for i in range(4096)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w1", pad_token="w1")
    bank = Bank.make(folder / "bank", Model("base", net, tokenizer, "causal", str(folder / "base")))
    adapted = get_peft_model(net, LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    draw = torch.Generator().manual_seed(1)
    for i in range(args.adapters):
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if ".lora_" in name:
                    weight.copy_(0.02 * torch.randn(weight.shape, generator=draw))
        adapted.save_pretrained(folder / f"a{i}")
        bank.add(f"a{i}", folder / f"a{i}")


def loaded(way: str, folder: Path, args: argparse.Namespace, net: Any = None) -> Any:
    """The model of one way: the plain net, ours with all adapters, or PEFT's with all adapters."""
    from transformers import AutoModelForCausalLM

    from acclimate.model import Model

    net = net or AutoModelForCausalLM.from_pretrained(folder / "base").eval().requires_grad_(False)
    names = [f"a{i}" for i in range(args.adapters)]
    if way == "base":
        return net
    if way == "ours":
        from acclimate.engines.adapters.bank import Bank

        return Bank(folder / "bank").load_onto(Model("base", net, None, "causal", str(folder / "base")), names).net
    from peft import PeftModel

    with warnings.catch_warnings(action="ignore"):
        made = PeftModel.from_pretrained(net, folder / names[0], adapter_name=names[0])
        for name in names[1:]:
            made.load_adapter(folder / name, adapter_name=name)
    return made.eval()


def stepper(way: str, net: Any, args: argparse.Namespace) -> Step:
    """After a prompt for every row, a function that decodes one more token per row and gives the logits [row, vocabulary]."""
    from acclimate.model.composition import Rows

    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(4096, (args.rows, args.prompt), generator=draw)
    names = [f"a{i % args.adapters}" for i in range(args.rows)]
    following = torch.randint(4096, (args.rows, 1), generator=draw)
    if way == "peft_set_adapter":
        groups = [[i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)]
        caches: list[Any] = []
        for own in groups:
            net.set_adapter(names[own[0]])
            caches.append(net(input_ids=ids[own], use_cache=True).past_key_values)

        def one_by_one() -> torch.Tensor:
            out = torch.empty(args.rows, 4096)
            for own, cache in zip(groups, caches, strict=True):
                net.set_adapter(names[own[0]])
                out[own] = net(input_ids=following[own], past_key_values=cache, use_cache=True).logits[:, -1]
                cache.crop(-1)
            return out

        return one_by_one
    extra = {"adapter_names": names} if way == "peft_mixed" else {}
    if way == "ours":
        net.activate(Rows(names))
    cache = net(input_ids=ids, use_cache=True, **extra).past_key_values

    def together() -> torch.Tensor:
        out = net(input_ids=following, past_key_values=cache, use_cache=True, **extra).logits[:, -1]
        cache.crop(-1)  # every step sees the same cache
        return out

    return together


@torch.no_grad()
def timed(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all ways in turn, and how far their answers are apart."""
    from transformers import AutoModelForCausalLM

    from acclimate.model import Model

    plain = Model("base", AutoModelForCausalLM.from_pretrained(folder / "base").eval(), None, "causal")
    shared = {way: plain.copy(share=True).net.requires_grad_(False) for way in ("base", "ours", "peft_mixed")}
    nets = {way: loaded(way, folder, args, net) for way, net in shared.items()}
    nets["peft_set_adapter"] = nets["peft_mixed"]
    steps = {way: stepper(way, nets[way], args) for way in args.ways}
    said = {way: step() for way, step in steps.items()}
    found: dict[str, Any] = {way: {"wall": [], "cpu": []} for way in steps}
    for number in range(args.rounds):
        for way, step in list(steps.items())[:: 1 if number % 2 else -1]:
            if way == "peft_mixed":
                nets[way].set_adapter("a0")
            count = 1 if way == "peft_set_adapter" else args.steps
            wall, cpu = common._seconds(lambda step=step, count=count: [step() for _ in range(count)])
            found[way]["wall"].append(wall / count)
            found[way]["cpu"].append(cpu / count)
    for times in found.values():
        ratios = [mine / base for mine, base in zip(times["wall"], found["base"]["wall"], strict=True)]
        times["ratio_to_base"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    peers = [way for way in said if way.startswith("peft")]
    gaps = {way: float((said["ours"] - said[way]).abs().max()) for way in peers}
    scale = float(said["ours"].abs().max())
    same = float((said["ours"] - said["base"]).abs().max())
    return {"seconds_per_step": found, "largest_gap_to_ours": gaps, "largest_logit": scale, "largest_change_by_adapters": same}


@torch.no_grad()
def alone(way: str, folder: Path, args: argparse.Namespace) -> dict[str, int]:
    """Load and take one step in this process, and say the most memory it held."""
    step = stepper(way, loaded(way, folder, args), args)
    for _ in range(2):
        step()
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage counts what the parent held before exec
    return {"peak_memory_bytes": next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))}


def main() -> None:
    """Measure, check, write results/adapters.json, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"rounds": 5, "steps": 4, "adapters": 16, "rows": 32, "rank": 8, "hidden": 1024, "layers": 12, "prompt": 32, "threads": 0}
    for key, value in numbers.items():
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where models and adapters lie or go; a temporary folder if not given")
    parser.add_argument("--no-write", action="store_true", help="leave results/adapters.json as it is")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.alone:
        print(json.dumps(alone(args.alone, args.folder, args)))
        return
    args.ways = ["base", "ours", *(way for way in args.ways if way not in ("base", "ours"))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "bank").is_dir():
            make(folder, args)
        before = common.machine()["load_average"]
        result = {
            "settings": {key: getattr(args, key) for key in numbers} | {"threads": torch.get_num_threads()},
            "goal_ours_to_base": GOAL,
        }
        result |= timed(folder, args) | {"load_average_before": before, "peak_memory_bytes": {}}
        for way in args.ways:
            command = [sys.executable, __file__, "--alone", way, "--folder", str(folder)]
            command += [word for key in numbers for word in (f"--{key}", str(getattr(args, key)))]
            said = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}).stdout
            result["peak_memory_bytes"][way] = json.loads(said.splitlines()[-1])["peak_memory_bytes"]
    print(json.dumps({key: result[key] for key in ("seconds_per_step", "largest_gap_to_ours", "peak_memory_bytes")}, indent=1))
    if not all(gap < 1e-4 * max(1.0, result["largest_logit"]) for gap in result["largest_gap_to_ours"].values()):
        raise SystemExit(f"the answers differ: {result['largest_gap_to_ours']}")
    if not args.no_write:
        common.write("adapters", result)


if __name__ == "__main__":
    main()
