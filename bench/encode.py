"""Token ids of real documents: the token cache against a Python loop over the tokenizer, and against its batch call.

    python bench/encode.py [megabytes] [rounds]

Documents are docstrings of installed packages (read with ast, nothing is imported); the tokenizer is a byte-level BPE of 4,096
tokens trained on them here. Every round of ours starts with an empty cache, and its time includes the conversion with its proof,
the check against the tokenizer, hashing, and writing the shards; the peers only fill lists. The ids of all documents are
asserted equal in the same run.
"""

import ast
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from common import machine, rounds, write


def docstrings(megabytes: float) -> tuple[list[str], list[str]]:
    """Distinct docstrings of 80 characters or more, and the packages they came from, until there is enough text."""
    found: dict[str, None] = {}
    packages, room = [], megabytes * 1e6
    for package in ("scipy", "sklearn", "numpy", "matplotlib", "datasets", "transformers", "torch"):
        packages.append(package)
        for path in sorted(Path(sysconfig.get_path("purelib"), package).rglob("*.py")):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # templates and test inputs
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    text = ast.get_docstring(node)
                    if text and len(text) >= 80 and text not in found:
                        found[text] = None
                        room -= len(text.encode(errors="ignore"))
            if room <= 0:
                return list(found), packages
    return list(found), packages


def tokenizer_of(texts: list[str], size: int):
    """A byte-level BPE tokenizer trained on these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False)
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")


def main(megabytes: float = 8, number: int = 5) -> None:
    """Measure, assert, write, print."""
    from acclimate.engines.tokens import encode

    before = machine()["load_average"]
    texts, packages = docstrings(megabytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = tokenizer_of(texts, 4096)
    last: dict[str, list] = {}

    def loop() -> None:
        last["loop"] = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]

    def batch() -> None:
        coded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        last["batch"] = [one.ids for one in coded]

    folder = Path(tempfile.mkdtemp())

    def ours() -> None:
        shutil.rmtree(folder)
        last["ours"] = encode(texts, tokenizer, cache=folder)

    def cached() -> None:
        last["cached"] = encode(texts, tokenizer, cache=folder)

    try:
        against_loop = rounds(loop, ours, number)
        against_batch = rounds(batch, ours, number)
        reading = rounds(ours, cached, number)
        for name in ("batch", "ours", "cached"):
            assert len(last[name]) == len(texts)
            assert all(list(a) == list(b) for a, b in zip(last["loop"], last[name], strict=True)), f"{name} gives other ids"
        total = last["ours"].total
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    def speed(seconds: dict) -> dict[str, float]:
        return {f"{clock}_MB_per_s": size / sorted(seconds[clock])[number // 2] for clock in ("wall", "cpu")}

    path = write(
        "encode",
        {
            "command": "python bench/encode.py " + " ".join(map(str, (megabytes, number))),
            "load_average_before": before,
            "documents": len(texts),
            "megabytes": size,
            "packages": packages,
            "tokens": total,
            "vocabulary": len(tokenizer),
            "ids_equal": "all documents, asserted",
            "python_loop": speed(against_loop["a"]),
            "tokenizers_batch": speed(against_batch["a"]),
            "ours": speed(against_loop["b"]),
            "ours_from_cache": speed(reading["b"]),
            "ours_against_python_loop": against_loop,
            "ours_against_tokenizers_batch": against_batch,
            "cache_against_encoding": reading,
        },
    )
    for name, found in (("Python loop", against_loop), ("tokenizers batch", against_batch)):
        ratio, cpu = found["ratio"], found["ratio_cpu"]
        print(f"{name}: {ratio['median']:.1f}x (wall {ratio['min']:.1f} to {ratio['max']:.1f}), {cpu['median']:.1f}x in CPU seconds")
    print(path)


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((float, int), sys.argv[1:], strict=False)))
