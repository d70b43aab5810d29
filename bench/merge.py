"""Merging against mergekit: three models of about 0.23 billion weights in bf16, both as whole commands, in turn; and a large merge.

    python bench/merge.py [--rounds 3] [--layers 14] [--methods linear slerp ties dare della] [--large] [--mergekit VENV/bin]

Wall and processor seconds and peak memory of each command (interpreter start and imports included, byte code of both compiled before: each
runs once untimed), ratios per round, and how far the two outputs are apart. DARE and DELLA draw at random, so their outputs are compared
by the mean size of the changes. ``--large`` merges 2 billion weights under a limit of 1.5 GB on the memory that the process may write to.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import common

GOALS = {"linear": 3, "slerp": 5, "ties": 10, "dare": 10, "della": 10}
THEIRS = {"linear": "linear", "slerp": "slerp", "ties": "ties", "dare": "dare_ties", "della": "della"}
SET = {
    "linear": ["weights=0.5,0.3,0.2"],
    "slerp": ["t=0.4"],
    "ties": ["keep=0.3", "scope=tensor"],
    "dare": ["keep=0.3", "normalize=false"],
    "della": ["drop=0.5", "window=0.3", "scale=1.0"],
}
LIMIT = 1_500_000_000


def shapes(hidden: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama of so many layers."""
    wide, narrow = hidden * 11 // 4, hidden // 2
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        stem = f"model.layers.{i}."
        found |= {
            f"{stem}self_attn.q_proj.weight": (hidden, hidden), f"{stem}self_attn.k_proj.weight": (narrow, hidden),
            f"{stem}self_attn.v_proj.weight": (narrow, hidden), f"{stem}self_attn.o_proj.weight": (hidden, hidden),
            f"{stem}mlp.gate_proj.weight": (wide, hidden), f"{stem}mlp.up_proj.weight": (wide, hidden),
            f"{stem}mlp.down_proj.weight": (hidden, wide),
            f"{stem}input_layernorm.weight": (hidden,), f"{stem}post_attention_layernorm.weight": (hidden,),
        }  # fmt: skip
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def make(folder: Path, hidden: int, layers: int, vocabulary: int, tunes: int) -> int:
    """A base and its tunes: changes of differing size by row, and of low rank; gives the number of weights."""
    from safetensors.torch import save_file

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers,
        "intermediate_size": hidden * 11 // 4, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 128,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "max_position_embeddings": 2048,
    }  # fmt: skip
    total = 0
    draw = torch.Generator().manual_seed(0)
    base = {name: (0.02 * torch.randn(shape, generator=draw)).bfloat16() for name, shape in shapes(hidden, layers, vocabulary).items()}
    total = sum(value.numel() for value in base.values())
    for number in range(tunes + 1):
        path = folder / (f"m{number}" if number else "base")
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        values = base
        if number:
            draw.manual_seed(number)
            values = {}
            for name, value in base.items():
                change = 0.002 * torch.randn(value.shape, generator=draw)
                if value.ndim == 2:
                    change *= 1 + 2 * torch.rand(len(value), 1, generator=draw)
                    change += 0.002 * torch.randn(len(value), 4, generator=draw) @ torch.randn(4, value.shape[1], generator=draw)
                values[name] = (value.float() + change).bfloat16()
        save_file(values, path / "model.safetensors", {"format": "pt"})
    return total


def ours(folder: Path, method: str, out: Path) -> list[str]:
    """Our command."""
    models = [str(folder / f"m{i}") for i in ((1, 2) if method == "slerp" else (1, 2, 3))]
    base = [] if method in ("linear", "slerp") else ["--base", str(folder / "base")]
    sets = [word for pair in SET[method] for word in ("--set", pair)]
    return [
        str(Path(sys.executable).parent / "acclimate"),
        "merge",
        *models,
        "--method",
        method,
        *base,
        *sets,
        "--no-check",
        "--out",
        str(out),
    ]


def theirs(folder: Path, method: str, out: Path, tools: Path) -> list[str]:
    """mergekit's command for the same merge, of the environment whose programs are in ``tools``."""
    lines = [f"merge_method: {THEIRS[method]}", "dtype: bfloat16", "models:"]
    each = {"linear": [0.5, 0.3, 0.2]}.get(method, [1.0] * 3)
    for i, weight in enumerate(each[: 2 if method == "slerp" else 3], 1):
        density = {"ties": 0.3, "dare": 0.3, "della": 0.5}.get(method)
        lines += [f"  - model: {folder}/m{i}", "    parameters:", f"      weight: {weight}"]
        lines += [f"      density: {density}"] if density else []
        lines += ["      epsilon: 0.15"] if method == "della" else []
    lines += [f"base_model: {folder}/{'m1' if method == 'slerp' else 'base'}"] if method != "linear" else []
    lines += ["parameters:", "  t: 0.4"] if method == "slerp" else []
    (folder / f"{method}.yaml").write_text("\n".join(lines) + "\n")
    return [str(tools / "mergekit-yaml"), str(folder / f"{method}.yaml"), str(out), "--no-copy-tokenizer", "--no-write-model-card"]


LAUNCH = """
import json, os, resource, subprocess, sys, time
limit, *command = sys.argv[1:]
held = (lambda: resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))) if int(limit) else None
start = time.perf_counter()
child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=held)
said = child.stdout.read()
_, status, used = os.wait4(child.pid, 0)
if status:
    sys.exit(said.decode()[-2000:])
wall = time.perf_counter() - start
print(json.dumps({"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak_memory_bytes": used.ru_maxrss * 1024}))
"""


def timed(command: list[str], out: Path, limit: int = 0) -> dict[str, float]:
    """Wall and processor seconds and peak memory of a command as a process of its own.

    A small process starts it: a child's peak counts what its parent held when it was forked.
    """
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else an installed program is compared with one that is compiled at every start
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(limit), *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def apart(a: Path, b: Path, base: Path, random: bool) -> dict[str, float]:
    """How far two merged models are apart, over all weights; random ones by the mean size and the share of their changes."""
    from safetensors import safe_open

    def read(folder: Path) -> dict:
        found = {}
        for path in folder.glob("*.safetensors"):
            stored = safe_open(path, "pt")
            found |= {name: stored for name in stored.keys()}  # noqa: SIM118
        return found

    ours, theirs, start = read(a), read(b), read(base)
    sums = {"weights": 0, "unequal": 0, "beyond_a_step": 0, "largest": 0.0, "ours": 0.0, "theirs": 0.0}
    for name, stored in ours.items():
        x, y, z = (source.get_tensor(name).float() for source in (stored, theirs[name], start[name]))
        gap = (x - y).abs()
        step = 2**-7 * torch.maximum(x.abs(), y.abs()).clamp(min=2**-10)
        sums["weights"] += x.numel()
        sums["unequal"] += int((gap > 0).sum())
        sums["beyond_a_step"] += int((gap > step).sum())
        sums["largest"] = max(sums["largest"], gap.max().item())
        sums["ours"] += (x - z).abs().double().sum().item()
        sums["theirs"] += (y - z).abs().double().sum().item()
    many = sums["weights"]
    means = {"mean_change_ours": sums["ours"] / many, "mean_change_theirs": sums["theirs"] / many}
    if random:
        return means
    return {
        "share_unequal": sums["unequal"] / many,
        "share_beyond_a_bf16_step": sums["beyond_a_step"] / many,
        "largest_gap": sums["largest"],
        **means,
    }


def rates(folder: Path) -> dict[str, float]:
    """Bytes per second of reading from the page cache, of writing a file, and of copying memory."""
    source, size = folder / "m1" / "model.safetensors", (folder / "m1" / "model.safetensors").stat().st_size
    buffer, found = bytearray(1 << 20), {}
    for key in ("warm", "read"):
        start = time.perf_counter()
        with open(source, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
        found[key] = size / (time.perf_counter() - start)
    start = time.perf_counter()
    with open(folder / "written", "wb", buffering=0) as handle:
        for _ in range(size >> 20):
            handle.write(buffer)
    found["write"] = size / (time.perf_counter() - start)
    block = torch.ones(64 << 20)
    other = torch.empty_like(block)
    other.copy_(block)
    start = time.perf_counter()
    other.copy_(block)
    found["memory_copy"] = 2 * 4 * len(block) / (time.perf_counter() - start)
    (folder / "written").unlink()
    return {key: found[key] for key in ("read", "write", "memory_copy")}


def main() -> None:
    """Run all rounds and write results/merge.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--methods", nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--large", action="store_true", help="also merge 2 billion weights under 1.5 GB")
    parser.add_argument(
        "--mergekit", type=Path, default=Path(sys.executable).parent, help="folder of mergekit-yaml; this python's own if not given"
    )
    parser.add_argument("--folder", type=Path, help="where the models go; a temporary folder if not given")
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp(prefix="merge-bench-"))
    if not (root / "base").is_dir():
        weights = make(root, 1024, options.layers, 32000, 3)
    else:
        weights = (root / "base" / "model.safetensors").stat().st_size // 2
    result: dict = {"weights": weights, "rounds": options.rounds, "rates_bytes_per_second": rates(root), "methods": {}}
    load = []
    for method in options.methods:
        rows: dict[str, list] = {"ours": [], "theirs": []}
        timed(theirs(root, method, root / "theirs", options.mergekit), root / "theirs")
        timed(ours(root, method, root / "ours"), root / "ours")
        for _ in range(options.rounds):
            load.append(round(os.getloadavg()[0], 2))
            rows["theirs"].append(timed(theirs(root, method, root / "theirs", options.mergekit), root / "theirs"))
            rows["ours"].append(timed(ours(root, method, root / "ours"), root / "ours"))
        found = {"goal_wall": GOALS[method]}
        for key in ("wall", "cpu", "peak_memory_bytes"):
            ratio = [a[key] / b[key] for a, b in zip(rows["theirs"], rows["ours"], strict=True)]
            found[f"ratio_{key}"] = {"median": statistics.median(ratio), "min": min(ratio), "max": max(ratio)}
            for who in rows:
                found[f"{who}_{key}"] = statistics.median(row[key] for row in rows[who])
        inputs = (2 if method == "slerp" else 3 if method == "linear" else 4) + 1
        found["bytes_per_second"] = inputs * 2 * weights / found["ours_wall"]
        found["share_of_read_rate"] = found["bytes_per_second"] / result["rates_bytes_per_second"]["read"]
        found["outputs"] = apart(root / "ours", root / "theirs", root / "base", method in ("dare", "della"))
        result["methods"][method] = found
        print(method, json.dumps({k: v for k, v in found.items() if "ratio" in k or k == "outputs"}), flush=True)
        common.write("merge", {**result, "load_before_rounds": load})
    if options.large:
        big = root / "large"
        if not (big / "base").is_dir():
            make(big, 2048, 36, 32000, 1)
        command = [
            str(Path(sys.executable).parent / "acclimate"),
            "merge",
            str(big / "m1"),
            "--method",
            "ties",
            "--base",
            str(big / "base"),
        ]
        found = timed([*command, "--set", "scope=tensor", "--no-check", "--out", str(big / "out")], big / "out", LIMIT)
        found["weights"] = (big / "base" / "model.safetensors").stat().st_size // 2
        result["large"] = {**found, "limit_bytes": LIMIT}
        print("large", found, flush=True)
        common.write("merge", {**result, "load_before_rounds": load})
    if options.folder is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
