"""Vocabularies of models that are to be merged: their rows are put side by side by token, never by number alone.

Models of one tokenizer need nothing. Where tokenizers differ, the output has the base's vocabulary or the union of all; each model's rows
of the embedding and of the output layer are found by the token's string. A row that a model lacks is taken from the base, or from
the mean of the models that have it. Rows beyond the tokenizer (padding) are kept. Nothing is cut off without a word.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import AcclimateError
from ...files import read_json
from .checkpoint import EMBEDDINGS, HEADS, Checkpoint, Slot

CHOICES = ("", "base", "union")
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "spiece.model",
    "vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
PROBES = ("The quick brown fox jumps over the lazy dog.", "def f(x): return x**2  # 1,234.5", "naïve café: 10 °C, 東京")


@dataclass
class Vocabulary:
    """The output's vocabulary and where each model has its rows."""

    owner: Checkpoint  # whose tokenizer files the output gets
    size: int  # rows of the output's embedding
    tokens: int  # tokens of the output's tokenizer
    rows: dict[int, np.ndarray]  # id() of a checkpoint -> its row, or -1, for every row of the output
    added: list[str] = field(default_factory=list)  # tokens that the union adds to the owner's
    report: dict[str, Any] = field(default_factory=dict)

    def of(self, checkpoint: Checkpoint, slot: Slot) -> np.ndarray | None:
        """The rows of a checkpoint's table; None where they are all there, in order."""
        rows = self.rows[id(checkpoint)]
        rows = np.where(rows < slot.shape[0], rows, -1)
        return None if len(rows) == slot.shape[0] and np.array_equal(rows, np.arange(len(rows))) else rows

    def write(self, folder: Path) -> None:
        """The tokenizer's files, with the tokens that the union adds; checks that probes are still decoded as they are encoded."""
        copy_files(self.owner, folder)
        if self.added:
            data = read_json(folder / "tokenizer.json")
            known = {row["content"] for row in data.get("added_tokens", [])}
            start = self.tokens - len(self.added)
            vocabulary = data["model"].get("vocab")
            for i, token in enumerate(self.added, start):
                if isinstance(vocabulary, dict) and token not in self.report["special"]:
                    vocabulary[token] = i
                elif token not in known:
                    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
                    data.setdefault("added_tokens", []).append(
                        {"id": i, "content": token, **flags, "special": token in self.report["special"]}
                    )
            (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        self._check(folder)

    def _check(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").is_file():
            return
        from tokenizers import Tokenizer

        merged, own = Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer.from_file(str(self.owner.folder / "tokenizer.json"))
        for probe in PROBES:
            before, after = own.decode(own.encode(probe).ids), merged.decode(merged.encode(probe).ids)
            if before != after:
                raise AcclimateError(f"the merged tokenizer decodes {probe!r} as {after!r}, not {before!r}; merge with tokenizer: base")
        for token in self.added:
            if merged.token_to_id(token) is None:
                raise AcclimateError(f"the merged tokenizer does not know the added token {token!r}; merge with tokenizer: base")


def copy_files(owner: Checkpoint, folder: Path) -> None:
    """The files of a checkpoint's tokenizer and generation settings, as they are."""
    for name in FILES:
        if (owner.folder / name).is_file():
            shutil.copyfile(owner.folder / name, folder / name)


def copy_template(models: list[Checkpoint], folder: Path) -> None:
    """A chat template, where the tokenizer's owner (often a plain base) has none: that of the first model that has one."""

    def own(place: Path) -> str | None:
        if (place / "chat_template.jinja").is_file():
            return (place / "chat_template.jinja").read_text(encoding="utf-8")
        path = place / "tokenizer_config.json"
        return read_json(path).get("chat_template") if path.is_file() else None

    found = next((template for model in models if isinstance(template := own(model.folder), str)), None)
    if found is not None and own(folder) is None:
        (folder / "chat_template.jinja").write_text(found, encoding="utf-8")


def table(name: str) -> bool:
    """Whether a tensor has a row per token."""
    return name.endswith((*EMBEDDINGS, *HEADS))


def align(models: list[Checkpoint], base: Checkpoint | None, choice: str) -> Vocabulary:
    """Put the vocabularies of the models side by side.

    choice: ``base`` (the base's, else the first model's), ``union``, or "" where all tokenizers must be the same.

    Raises AcclimateError, naming tokens, where tokenizers differ and nothing was chosen.
    """
    if choice not in CHOICES:
        raise AcclimateError(f"tokenizer = {choice!r}, but must be base or union (or nothing, where all models share one)")
    everyone = [*models, *([base] if base is not None and all(base is not model for model in models) else [])]
    owner = base or models[0]
    vocabularies = {id(model): _tokens(model) for model in everyone}
    mine = vocabularies[id(owner)]
    sizes = {id(model): _rows(model) for model in everyone}
    same = all(vocabularies[id(model)] in (mine, {}) for model in everyone)
    if not same and not choice:
        other = next(model for model in everyone if vocabularies[id(model)] not in (mine, {}))
        theirs = vocabularies[id(other)]
        apart = [token for token in theirs if mine.get(token) != theirs[token]] or [token for token in mine if token not in theirs]
        raise AcclimateError(
            f"{other.ref} has another tokenizer than {owner.ref} ({len(theirs)} and {len(mine)} tokens; e.g. {apart[0]!r}); their rows "
            "mean other tokens, so choose the merged vocabulary with tokenizer: union or tokenizer: base"
        )
    if same:
        size = max(sizes.values())
        rows = {key: np.where(np.arange(size) < own, np.arange(size), -1) for key, own in sizes.items()}
        found = Vocabulary(owner, size, len(mine), rows)
    else:
        found = _by_token(everyone, owner, vocabularies, sizes, choice)
    found.report |= {
        "choice": choice or "shared",
        "rows": found.size,
        "tokens": found.tokens,
        "models": {
            f"{i}:{model.ref}": {"rows": sizes[id(model)], "rows_lacking": int((found.rows[id(model)] < 0).sum())}
            for i, model in enumerate(everyone)
        },
    }
    return found


def _by_token(everyone: list[Checkpoint], owner: Checkpoint, vocabularies: dict, sizes: dict, choice: str) -> Vocabulary:
    mine = vocabularies[id(owner)]
    added: list[str] = []
    if choice == "union":
        for model in everyone:
            theirs = sorted(vocabularies[id(model)].items(), key=lambda pair: pair[1])
            added += [token for token, _ in theirs if token not in mine and token not in added]
    tokens = max(mine.values()) + 1 + len(added)
    size = max(tokens, sizes[id(owner)])
    places = {**mine, **{token: tokens - len(added) + i for i, token in enumerate(added)}}
    rows = {}
    for model in everyone:
        found = np.full(size, -1)
        theirs = vocabularies[id(model)]
        for token, place in places.items():
            found[place] = theirs.get(token, -1)
        if model is owner:  # its padding rows stay where they are
            padding = np.arange(max(mine.values()) + 1, min(sizes[id(owner)], size))
            found[padding] = np.where(found[padding] < 0, padding, found[padding])
        rows[id(model)] = found
    special = {token for model in everyone for token in _special(model) if token in added}
    return Vocabulary(owner, size, tokens, rows, added, {"added": len(added), "special": sorted(special)})


def _tokens(model: Checkpoint) -> dict[str, int]:
    """Token -> id of a model's tokenizer; empty where it has none."""
    path = model.folder / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
        except Exception as error:
            raise AcclimateError(f"{path} cannot be read: {error}; save the tokenizer again") from error
    if any((model.folder / name).is_file() for name in ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")):
        from transformers import AutoTokenizer

        return dict(AutoTokenizer.from_pretrained(model.folder).get_vocab())
    return {}


def _special(model: Checkpoint) -> list[str]:
    path = model.folder / "tokenizer.json"
    return [row["content"] for row in read_json(path).get("added_tokens", []) if row.get("special")] if path.is_file() else []


def _rows(model: Checkpoint) -> int:
    """Rows of a model's embedding."""
    found = [slot.shape[0] for name, slot in model.slots.items() if name.endswith(EMBEDDINGS)]
    return max(found, default=0)
