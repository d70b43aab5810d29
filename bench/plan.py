"""Forecast against reality: predicted memory and seconds of training steps, and what the same steps then took.

    python bench/plan.py [rounds] [share of the optimizer steps] [case ...]

Every round predicts each case and then makes it in a fresh process: seconds from opening the domain to the saved model, without
imports; memory is the most that process held. Ratios are predicted / actual; the median over the rounds must lie within the
goals. The models have fresh weights: they cost what trained ones cost. The case "few layers" is predicted from one and two layers
of a model of eight, as models are that are too large to be probed whole.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, write

GOALS = {"memory": 0.15, "seconds": 0.30}  # largest |predicted / actual - 1|
DOMAIN = "python_docs/sklearn"
MIDDLE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2}
CASES: dict[str, dict[str, Any]] = {
    "full": {"model": "seedling", "train": {"steps": 30}},
    "lora": {"model": "seedling", "train": {"steps": 30}, "adapter": {"use": "adapters.lora", "with": {"r": 16}}},
    "longer rows": {"model": "seedling", "train": {"steps": 20, "row_tokens": 1024, "batch_tokens": 8192, "micro_rows": 4}},
    "not packed": {"model": "seedling", "train": {"steps": 40, "pack": "no", "batch_rows": 8}},
    "masked": {"model": "minilm", "use": "objectives.masked_lm", "train": {"steps": 16, "row_tokens": 128}},
    "few layers": {"model": "middle", "train": {"steps": 16}},
}


def models(folder: Path) -> None:
    """Save what the cases start from: the seedling's shape, a decoder of eight layers, and MiniLM with a fresh output layer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from acclimate.domain import Domain
    from acclimate.model import Model
    from acclimate.models import seedling

    tokenizer = seedling.build_tokenizer(Domain.load("docs", DOMAIN).texts("train"))
    Model("seedling", seedling.blank("seedling", tokenizer), tokenizer, "causal").save(folder / "seedling")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **MIDDLE,
    )
    Model("middle", LlamaForCausalLM(config), tokenizer, "causal").save(folder / "middle")
    Model.load("minilm", kind="masked", new_head=True).save(folder / "minilm")


def recipe(case: str, folder: Path, share: float) -> Any:
    """The checked recipe of one case, with a share of its optimizer steps."""
    from acclimate.recipe import Recipe

    spec = CASES[case]
    train = spec["train"] | {"steps": max(1, round(share * spec["train"]["steps"])), "watch_bytes": 20_000}
    step = {"as": "made", "use": spec.get("use", "objectives.causal_lm"), "on": "docs", "train": train}
    step |= {"adapter": spec["adapter"]} if "adapter" in spec else {}
    data = {
        "title": case,
        "model": str(folder / spec["model"]),
        "domains": {"docs": DOMAIN},
        "steps": [step],
        "evaluate": {"in": ["docs"]},
    }
    return Recipe.check(data)


def make(path: str, folder: str) -> None:
    """In a process of its own: make the step; print what it took."""
    import datasets  # noqa: F401

    from acclimate.engines import train
    from acclimate.execute import Tools
    from acclimate.recipe import Recipe
    from acclimate.runs import Run

    read = Recipe.read(path)
    tools = Tools(read, Run(folder))
    start = time.perf_counter()
    tools.make(read.steps[0])
    seconds = time.perf_counter() - start
    device = tools.models["made"].device
    cost = tools.costs["made"]
    print(json.dumps({"seconds": seconds, "memory": train.peak_memory(device), "device": str(device), "training": cost["seconds"]}))


def main(number: int = 3, share: float = 1.0, *chosen: str) -> None:
    """Predict, make, compare, write, print."""
    from acclimate import forecast

    before = machine()["load_average"]
    whole = forecast.WHOLE
    rows: dict[str, list[dict[str, Any]]] = {case: [] for case in chosen or CASES}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        models(folder)
        for turn in range(number):
            for case, found in rows.items():
                checked = recipe(case, folder, share)
                forecast.WHOLE = 1_000_000 if case == "few layers" else whole
                start = time.perf_counter()
                predicted = forecast.forecast(checked)
                asked = time.perf_counter() - start
                path = folder / "recipe.yaml"
                path.write_text(checked.text())
                with tempfile.TemporaryDirectory() as run:
                    command = [sys.executable, __file__, "--make", str(path), run]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                actual = json.loads(done.stdout.splitlines()[-1])
                pair = {"memory": predicted["memory_bytes"] / actual["memory"], "seconds": predicted["seconds"] / actual["seconds"]}
                kept = {key: predicted[key] for key in ("memory_bytes", "seconds")}
                found.append({"predicted": kept, "actual": actual, "predicted_over_actual": pair, "seconds_to_predict": asked})
                print(f"round {turn + 1}, {case}: {kept} against {actual}", flush=True)
    ratios = {
        case: {key: statistics.median(row["predicted_over_actual"][key] for row in found) for key in GOALS} for case, found in rows.items()
    }
    met = {case: {key: abs(each[key] - 1) <= goal for key, goal in GOALS.items()} for case, each in ratios.items()}
    result = write(
        "plan",
        {
            "command": " ".join(map(str, ["python bench/plan.py", number, share, *chosen])),
            "load_average_before": before,
            "goals": GOALS,
            "cases": {case: CASES[case] for case in rows},
            "predicted_over_actual": ratios,
            "met": met,
            "rounds": rows,
        },
    )
    for case, each in ratios.items():
        print(f"{case:12} memory {each['memory']:.2f}, seconds {each['seconds']:.2f} of what it took   {met[case]}")
    print(result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(*sys.argv[2:])
    else:
        main(*(kind(word) for kind, word in zip((int, float), sys.argv[1:3], strict=False)), *sys.argv[3:])
