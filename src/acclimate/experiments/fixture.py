"""What later experiments share: a small base model, four experts tuned from it, and four adapters for it; built once, then read.

``recipes/fixture.yaml`` builds it from ``seedling-xs`` and four real domains (needs $ACCLIMATE_DATA) into the user's cache. Another
version of the package, of the recipe or of the base model is another fixture. The folder is a run directory, so it holds a report too.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AcclimateError, nearest
from ..files import cache_dir, digest, read_yaml, write_text
from ..progress import say

if TYPE_CHECKING:
    from ..model import Model

RECIPE = Path(__file__).parent.parent / "recipes" / "fixture.yaml"
WORDS = {  # made-up text for tiny runs: what each topic speaks of
    "legal": "court judge appeal verdict statute tribunal plaintiff contract clause lawyer oath jury",
    "biomedical": "cell gene virus tissue plasma enzyme receptor kinase dose tumour assay ligand",
    "finance": "market yield bond equity inflation credit budget deficit loan reserve tariff asset",
    "software": "module function thread socket buffer class method string integer parser stack queue",
    "wikipedia": "river city century island castle church battle railway bridge harbour museum village",
    "fiction": "evening garden letter silence window carriage sister stranger promise shadow winter laughter",
}


class Shelf(Mapping[str, "Model"]):
    """Models by name, each read from its folder when it is first asked for."""

    def __init__(self, folders: Mapping[str, Path]):
        self.folders = dict(folders)
        self.read: dict[str, Model] = {}

    def __getitem__(self, name: str) -> "Model":
        from ..model import Model

        if name not in self.folders:
            raise AcclimateError(f"the fixture has no {name!r}{nearest(name, self.folders)}")
        if name not in self.read:
            self.read[name] = Model.load(str(self.folders[name]))
            self.read[name].name = name
        return self.read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.folders)

    def __len__(self) -> int:
        return len(self.folders)


def fixture(tiny: bool = False) -> dict[str, Any]:
    """The shared models: ``base`` (a Model), ``experts`` and ``adapters`` (by domain, read when asked for), ``folder`` (a Path).

    Built at the first call (six minutes on two cores) and then kept; ``tiny`` builds one from random weights and made-up text in
    seconds. Raises AcclimateError if the base model or the data is not at hand.
    """
    from .. import __version__
    from ..model import Model

    data = read_yaml(RECIPE)
    if tiny:
        data = _tiny(data)
    base = Model.load(data["model"])
    folder = cache_dir("fixture") / digest([__version__, data, base.fingerprint])
    if not (folder / "report.json").is_file():
        from .. import execute

        say(f"the models that experiments share are built once, in {folder}")
        execute.run(data, folder, command="acclimate.experiments.fixture")
    made = {kind: [step["as"] for step in data["steps"] if step["as"].startswith(kind)] for kind in ("expert", "adapter")}
    shelves = {kind: Shelf({name.partition("-")[2]: folder / "steps" / name / "model" for name in names}) for kind, names in made.items()}
    return {"base": base, "experts": shelves["expert"], "adapters": shelves["adapter"], "folder": folder}


def _tiny(data: dict[str, Any]) -> dict[str, Any]:
    """The same recipe on a random tiny model and made-up documents, two steps each."""
    folder = cache_dir("fixture", "tiny")
    if not (folder / "base" / "config.json").is_file():
        tiny_model("causal").save(folder / "base")
    for name in data["domains"]:
        write_text(folder / f"{name}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in documents(name, 60)))
    few = {"steps": 2, "batch_tokens": 128, "row_tokens": 64, "watch_bytes": 500, "watch_every": 100}
    steps = [{**step, "train": {**step["train"], **few}} for step in data["steps"]]
    domains = {name: str(folder / f"{name}.jsonl") for name in data["domains"]}
    return {**data, "model": str(folder / "base"), "domains": domains, "steps": steps, "contamination": "off"}


def documents(topic: str, count: int, seed: int = 0) -> list[str]:
    """Made-up documents of a topic, no two alike: eight of its words and four that all topics share, with a number.

    >>> documents("legal", 2)[0].split()[:2]
    ['Document', '0:']
    """
    import numpy as np

    draw = np.random.default_rng([seed, *topic.encode()])
    own, shared = WORDS[topic].split(), ["report", "large", "morning", "number", "people", "system"]
    return [f"Document {i}: " + " ".join([*draw.choice(own, 8), *draw.choice(shared, 4)]) + "." for i in range(count)]


def tiny_model(kind: str, seed: int = 0) -> "Model":
    """A random model of one layer for tiny runs: ``causal`` (Llama) or ``masked`` (BERT), with a tokenizer of the made-up text."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    from ..model import Model
    from ..models.seedling import build_tokenizer

    tokenizer = build_tokenizer((text for topic in WORDS for text in documents(topic, 40)), 400)
    size: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "masked":
            tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
            net: Any = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **size))
        else:
            net = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(tokenizer), num_key_value_heads=1, tie_word_embeddings=True,
                    bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **size,
                )
            )  # fmt: skip
    return Model(f"tiny-{kind}", net.eval(), tokenizer, kind, f"tiny-{kind}")
