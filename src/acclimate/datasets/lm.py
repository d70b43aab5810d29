"""Raw corpora: twelve small English domains of plain text, for adapting and measuring language models.

Files in ``$ACCLIMATE_DATA/text/lm``, 0.5 to 4 MB each: acts of Canada, minutes of the Federal Open Market Committee, PubMed
and computer science abstracts, eight novels, the King James Bible, Python's documentation, Wikipedia, ABC news, task
dialogues, products of web shops, recipes. Column ``text``: one passage, the corpus's own unit where it has one (abstract, chapter,
dialogue, product, recipe), else 2,000 to 4,000 characters cut at paragraph ends.

Splits go by order, never at random: the tail of each corpus is its test split, so that passages of one act or article do
not stand on both sides. The corpora that the seedling may be trained on (``CARD["seedling"]``) keep 3 % for test and 3 % for
validation; the domains to adapt to keep 10 % and 5 %. Novels, news and Python's documentation are divided file by file.

Traps. A passage that repeats an earlier one is dropped (two minutes files of 2007 are equal), as is one of train that nearly repeats
a tested one. Wikipedia is WikiText-2: its tokenisation is undone here, but rare words stay ``<unk>``. One novel (Lee) is badly
scanned. The test tail of cs_abstracts is web conference abstracts only. Products of two pairs of shops describe the same goods in
other words. The abstracts in biomedical are PubMedQA's, conclusions included: a model adapted to them has read the answers.
Python's language reference stands in both software and python_reference.
"""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..domain import Domain
from ..domain import splits as partition
from . import known_domain, locate
from ._texts import by_order, passages, read, text_rows

LONGEST_WRAPPED_LINE = 90  # characters; a novel whose lines are all shorter than this was wrapped by hand


def _as_it_is(passage: str, widest: int) -> str:
    return passage


def _one_space(passage: str, widest: int) -> str:
    return " ".join(passage.split())


def _unescape(passage: str, widest: int) -> str:
    return html.unescape(passage)


def _unwrap(passage: str, widest: int) -> str:
    """Join hard-wrapped lines to paragraphs; a short line that ends a sentence ends its paragraph where no blank line does."""
    passage = re.sub(" {2,}", " ", passage)
    if widest > LONGEST_WRAPPED_LINE:
        return passage
    ends = re.compile(r"""[.!?]["']?$""")
    text, previous = "", 0
    for line in passage.split("\n"):
        last = text.rpartition("\n")[2]
        wrapped = last.strip() and line.strip() and not (ends.search(last) and previous < 0.75 * widest)
        text += (" " if wrapped else "\n") + line.strip()
        previous = len(line)
    return text.strip()


def _untokenise(passage: str, widest: int) -> str:
    """Undo WikiText's tokenisation.

    >>> _untokenise(' It was " well @-@ made " ( 1 @,@ 200 ) , he said ; it \\'s fine . ', 0)
    'It was "well-made" (1,200), he said; it\\'s fine.'
    """
    passage = re.sub(r" @([-,.])@ ", r"\1", passage)
    passage = re.sub(r'" ([^"\n]*?) "', r'"\1"', passage)
    passage = re.sub(r" ([.,;:!?)\]%]|'(?:s|re|ve|ll|d|m|t)?\b|n't\b)", r"\1", passage)
    passage = re.sub(r"([(\[$£]) ", r"\1", passage)
    passage = re.sub(r"= (?==)", "=", passage)
    return "\n".join(line.strip() for line in passage.split("\n")).strip()


@dataclass(frozen=True)
class Corpus:
    """Where a corpus lies and how it is cut."""

    path: str  # file or folder under lm/
    licence: str
    source: str
    parent: str
    time: str = ""
    unit: str = ""  # what separates two units that stay whole at a split, as a regular expression; "" = a file is a unit
    tails: bool = False  # each file gives its own tail, cut between passages
    seedling: bool = False
    without: str = ""  # a unit that holds this is no document
    files: tuple[str, ...] = ()  # the order of the files where it is not that of their names
    tidy: Callable[[str, int], str] = _as_it_is


CORPORA = {
    "biomedical": Corpus(
        "biomed_pubmed_abstracts.txt", "MIT", "1,000 PubMed abstracts of github.com/pubmedqa/pubmedqa", "science", unit=r"\n"
    ),
    "cooking": Corpus(
        "cooking_recipes.txt",
        "Unlicense / public domain",
        "411 recipes of github.com/LukeSmithxyz/based.cooking and ronaldl29/public-domain-recipes",
        "everyday",
        unit=r"\n(?=# )",
        without="<script>",  # the site's front page
    ),
    "cs_abstracts": Corpus(
        "cs_abstracts.txt",
        "not stated",
        "4,085 abstracts (Inspec, KDD, WWW) of github.com/LIAAD/KeywordExtractor-Datasets",
        "science",
        unit=r"\n",
    ),
    "dialogue": Corpus(
        "dialogue_sgd.txt",
        "CC BY-SA 4.0",
        "1,843 dialogues, the test part of github.com/google-research-datasets/dstc8-schema-guided-dialogue",
        "everyday",
        unit=r"\n[ \t]*\n",
        seedling=True,
    ),
    "ecommerce": Corpus(
        "ecommerce_products.txt",
        "Apache-2.0 (repository); upstream not stated",
        "5,465 products (Abt-Buy, Amazon-Google) of github.com/megagonlabs/ditto",
        "everyday",
        unit=r"\n",
    ),
    "fiction": Corpus(
        "fiction_novels",
        "public domain (novels of 1863 to 1912)",
        "8 novels of github.com/computationalstylistics/100_english_novels",
        "literature",
        "1863/1912",
        tails=True,
        seedling=True,
        tidy=_unwrap,
    ),
    "finance": Corpus(
        "finance_fomc_minutes",
        "US government text; CC BY-NC 4.0 (repository)",
        "96 minutes of the Federal Open Market Committee of github.com/gtfintechlab/fomc-hawkish-dovish",
        "institutions",
        "1996-01/2007-12",
        tidy=_one_space,
    ),
    "legal": Corpus(
        "legal_canada_acts_en",
        "Open Government Licence - Canada",
        "61 acts of Canada of github.com/justicecanada/laws-lois-xml",
        "institutions",
    ),
    "news": Corpus(
        "news_abc",
        "not stated",
        "ABC Australia, rural and science, of github.com/nltk/nltk_data",
        "reference",
        "2006",
        tails=True,
        tidy=_unescape,
    ),
    "religion": Corpus(
        "religion_kjv.txt",
        "public domain (text); MIT (repository)",
        "1,189 chapters of the King James Bible of github.com/aruljohn/Bible-kjv",
        "literature",
        "1611",
        unit=r"\n",
        seedling=True,
    ),
    "software": Corpus(
        "software_python_docs",
        "PSF-2.0; CC0-1.0 (repository)",
        "Python's documentation, the English of github.com/python/python-docs-fr, branch 3.13",
        "technology",
        tails=True,
    ),
    "wikipedia": Corpus(
        "wikipedia_wikitext2",
        "CC BY-SA",
        "WikiText-2, validation and test part, of github.com/pytorch/examples",
        "reference",
        unit=r"\n(?= = [^=])",
        seedling=True,
        files=("valid.txt", "test.txt"),
        tidy=_untokenise,
    ),
}

CARD: dict[str, Any] = {
    "source": "12 public repositories, named per domain",
    "licence": {name: corpus.licence for name, corpus in CORPORA.items()},
    "size": "32 MB in 12 domains, 0.5 to 4 MB each",
    "columns": {"text": "one passage"},
    "hub": None,
    "seedling": tuple(name for name, corpus in CORPORA.items() if corpus.seedling),
}


def domains() -> list[str]:
    """The names of the corpora."""
    return list(CORPORA)


def _units(text: str, corpus: Corpus) -> list[list[tuple[int, str]]]:
    """The units of a file in order, each a list of (line, passage)."""
    widest = max(map(len, text.split("\n")), default=0)
    starts = [0, *(match.end() for match in re.finditer(corpus.unit, text))] if corpus.unit else [0]
    units: list[list[tuple[int, str]]] = []
    before = 0  # lines
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        unit = text[start:end]
        if not corpus.without or corpus.without not in unit:
            cut = [(before + at, corpus.tidy(passage, widest)) for at, passage in passages(unit)]
            units += [[each] for each in cut] if corpus.tails else [cut]
        before += unit.count("\n")
    return units


def load(domain: str) -> Domain:
    """One corpus as a domain of texts; rows are passages, splits go by order."""
    known_domain("lm", domain, CORPORA)
    corpus = CORPORA[domain]
    place = locate(f"lm/{corpus.path}")
    paths = ([place / name for name in corpus.files] or sorted(place.glob("*.txt"))) if place.is_dir() else [place]
    files = [(_origin(path, place), _units(read(path), corpus)) for path in paths]
    shares = (0.03, 0.03) if corpus.seedling else (0.05, 0.10)
    # one file after the other, or all as one row of units
    groups = [[(origin, unit) for unit in units] for origin, units in files]
    if not corpus.tails:
        groups = [[each for group in groups for each in group]]
    splits: dict[str, list[tuple[str, str]]] = {split: [] for split in partition.NAMES}
    seen: set[str] = set()
    passed = 0
    for group in groups:
        sizes = [sum(len(text.encode()) for _, text in unit) for _, unit in group]
        for (origin, unit), split in zip(group, by_order(sizes, *shares), strict=True):
            for line, text in unit:
                passed += 1
                if text not in seen:
                    seen.add(text)
                    splits[split].append((f"{origin}:{line}", text))
    tested = [text for split in ("validation", "test") for _, text in splits[split]]
    near = partition.near_duplicates([text for _, text in splits["train"]], tested)
    splits["train"] = [row for row, repeat in zip(splits["train"], near, strict=True) if not repeat]
    return Domain(
        name=f"lm/{domain}",
        form="text",
        splits={split: text_rows(rows) for split, rows in splits.items()},
        source=corpus.source,
        licence=corpus.licence,
        parent=corpus.parent,
        time=corpus.time,
        dropped={"exact": passed - len(seen), "near": sum(near)},
    )


def _origin(path: Path, place: Path) -> str:
    return f"lm/{place.name}/{path.name}" if place.is_dir() else f"lm/{place.name}"
