"""ChEBI-20: molecules as SMILES strings, each with a caption in words.

Edwards et al. 2021, https://aclanthology.org/2021.emnlp-main.47; the validation file of github.com/blender-nlp/MolT5, BSD-3-Clause.
3,301 molecules, divided here by a hash of the string: 80 % train, 10 % validation, 10 % test. Two domains of plain text:

- smiles: the string alone,
- captions: the caption alone.

What for: a domain whose text no general model can read, regression from strings (counts of atoms), entities with descriptions.

Traps. The published training file is not at hand. Some captions name the molecule, most speak of "the molecule".
"""

from typing import Any

from ..domain import Domain
from ..files import digest
from . import known_domain, locate
from ._texts import table

DOMAINS = {"smiles": 1, "captions": 2}  # column of the file
FILE = "other/chebi20_captions/validation.txt"
CARD: dict[str, Any] = {
    "source": "github.com/blender-nlp/MolT5, ChEBI-20_data",
    "licence": "BSD-3-Clause",
    "size": "3,301 molecules, 1.3 MB",
    "columns": {"text": "a SMILES string, or a caption"},
    "hub": None,
}


def domains() -> list[str]:
    """Strings and captions."""
    return list(DOMAINS)


def load(domain: str) -> Domain:
    """One column as text; a molecule stands in the same split in both."""
    known_domain("chebi20", domain, DOMAINS)
    splits: dict[str, list[tuple[str, dict[str, Any]]]] = {"train": [], "validation": [], "test": []}
    for number, line in enumerate(locate(FILE).read_text(encoding="utf-8").split("\n")[1:], 2):
        cells = line.split("\t")
        if len(cells) == 3 and all(cells):
            place = int(digest(cells[1]), 16) % 10
            split = "test" if place == 0 else "validation" if place == 1 else "train"
            splits[split].append((f"{FILE}:{number}", {"text": cells[DOMAINS[domain]]}))
    made = {split: table(rows) for split, rows in splits.items()}
    return Domain(f"chebi20/{domain}", "text", made, source=CARD["source"], licence=CARD["licence"], parent="chemistry")
