"""README's commands as they are written, on a stand-in for its model: the same family and tokenizer kind, a thousandth of the size.

The stand-in lies where the Hugging Face hub's copies lie, so that the name in the text finds it. Numbers of steps and of recalled texts are
made smaller, and where two commands write to one name they get names of their own.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from worlds import model_of, sentences, varied

README = Path(__file__).parent.parent / "README.md"
NAME = "Qwen/Qwen2.5-0.5B"
SCRIPT = """
import json, sys
from acclimate.cli import main
for number, words in enumerate(json.load(open("commands.json"))):
    sys.argv = words
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"command {number}, {' '.join(words)}: exit code {ended.code}")
"""


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Every command line of the text that works on a user's own files, as words."""
    lines = re.findall(r"^    (acclimate (?:validate|adapt|run|compare|merge|extract|combine) .*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with all that the commands name, and the hub's cache with the stand-in."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 8, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    base = Qwen2ForCausalLM(config).eval()
    repository = folder / "hub" / f"models--{NAME.replace('/', '--')}"
    model_of(base, tokenizer).save(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    model_of(base, tokenizer).save(folder / "BASE")
    for seed, name in enumerate(["law", "medicine", "finance", "tuned"], 1):
        model_of(varied(base, seed, 0.01), tokenizer).save(folder / name)
    (folder / "notes").mkdir()
    for i, text in enumerate(sentences("pipes", 80)):
        (folder / "notes" / f"{i}.txt").write_text(text)
    (folder / "mergekit.yaml").write_text(
        f"merge_method: linear\nmodels:\n- {{model: {folder}/law, parameters: {{weight: 0.4}}}}\n"
        f"- {{model: {folder}/medicine, parameters: {{weight: [0.2, 0.8]}}}}\ndtype: float32\n"
    )
    return folder


def run(place: Path, lines: list[list[str]]) -> subprocess.CompletedProcess:
    (place / "commands.json").write_text(json.dumps(lines))
    surroundings = {**os.environ, "HF_HUB_CACHE": str(place / "hub"), "HF_HUB_OFFLINE": "1", "ACCLIMATE_QUIET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=place, env=surroundings, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_the_commands_run_as_they_are_written(place):
    text = README.read_text(encoding="utf-8")
    (recipe,) = (block for block in blocks(text, "yaml") if "model:" in block)
    assert NAME in recipe
    (place / "notes.yaml").write_text(re.sub(r"steps: 300", "steps: 3", recipe).replace("recall: 240", "recall: 40"), encoding="utf-8")
    lines = [[word if word != "300" else "3" for word in words] for words in commands(text)]
    assert len(lines) >= 11
    assert {words[1] for words in lines} == {"validate", "adapt", "run", "compare", "merge", "extract", "combine"}
    adapters = [["acclimate", "extract", name, "--base", NAME, "--rank", "4", "--out", out] for name, out in ADAPTERS.items()]
    other = ["acclimate", "adapt", NAME, "notes/", "--name", "notes", "--steps", "2", "--out", "runs/other"]
    for number, words in enumerate(lines):  # commands that write to one name are alternatives
        if "--out" in words and not words[words.index("--out") + 1].startswith("runs/"):
            words[words.index("--out") + 1] = f"out-{number}"
    begin = next(i for i, words in enumerate(lines) if words[1] == "run")
    lines[begin][-1] = "runs/both"  # the recipe after the single command, both called runs/notes in the text
    run(place, [*adapters, *lines[:begin], other, *lines[begin:]])
    report = json.loads((place / "runs" / "both" / "report.json").read_text(encoding="utf-8"))
    assert set(report["models"]) == {NAME, "full", "lora"}
    assert (place / "runs" / "notes" / "report.html").is_file()
    assert len(list(place.glob("out-*"))) == sum("--out" in words for words in lines) - 2


ADAPTERS = {"law": "law-lora", "medicine": "medicine-lora", "finance": "adapter"}


def test_the_python_of_the_text_runs(place):
    text = README.read_text(encoding="utf-8")
    for code in blocks(text, "python"):
        if "class " in code:
            continue  # the example of a method is a file: test_methods runs such files
        code = code.replace('"steps": 20', '"steps": 2')
        surroundings = {**os.environ, "ACCLIMATE_QUIET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=place, env=surroundings, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
