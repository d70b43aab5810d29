"""Amazon reviews as bags of words: books, DVDs and electronics, good or bad, 5,000 words and pairs of words.

Blitzer, Dredze & Pereira 2007 in the form of Chen et al. 2012 (marginalised denoising autoencoders, https://arxiv.org/abs/1206.4683),
which the paper on adversarial adaptation uses too (Ganin et al. 2016, https://arxiv.org/abs/1505.07818); the copy of
github.com/Mirkes/DAPCA (GPL-3.0, taken from GRAAL-Research); terms of the reviews are not stated. Each domain loads as
``acclimate.domain.arrays.Arrays``: x [row, 5000] in fp32, how often each of the 5,000 commonest unigrams and bigrams occurs, the same
columns in every domain; y [row], classes bad and good.

Splits as published, a domain each: ``books``, ``dvd``, ``electronics`` hold the 2,000 rows to learn from (1,000 bad, 1,000 good), and
``books_test`` (4,465), ``dvd_test`` (3,586), ``electronics_test`` (5,681) those to test on.

What for: sentiment across domains on bags of words; linear models, shallow adversarial adaptation.

Traps. Kitchen, the fourth domain of the papers, is not in these files, so 6 of 12 pairs can be formed. Columns have no names. Counts
are raw (up to 84): papers use them as they are, as 0/1 or as tf-idf; a logarithm helps linear models. Some bags occur twice, also in
train and test of one kind of goods (152 of books, 142 of dvd, 85 of electronics): score across domains, or leave them out. Three rows
of electronics_test are empty. A test split takes up to 110 MB in memory. Reviews are those of ``fdu_mtl`` and ``blitzer``: never use
one to test what was trained on another.
"""

from typing import Any

import numpy as np

from ..domain.arrays import Arrays
from . import known_domain, locate

KINDS = ("books", "dvd", "electronics")
CLASSES = ("bad", "good")
CARD: dict[str, Any] = {
    "source": "github.com/Mirkes/DAPCA, datasets/Amazon_Reviews",
    "licence": "GPL-3.0 (repository); reviews not stated",
    "size": "3 x 2,000 rows to learn from, 4,465, 3,586 and 5,681 to test on; 3 MB",
    "columns": {"x": "counts of 5,000 unigrams and bigrams", "y": "bad or good"},
    "form": "arrays",
    "hub": None,
}


def domains() -> list[str]:
    """The kinds of goods: rows to learn from, then rows to test on."""
    return [*KINDS, *(f"{kind}_test" for kind in KINDS)]


def load(domain: str) -> Arrays:
    """The published train or test rows of one kind of goods."""
    known_domain("amazon_reviews", domain, domains())
    kind, split = domain.removesuffix("_test"), "test" if domain.endswith("_test") else "train"
    where = f"other/amazon_reviews_bow/{kind}_csr5000.npz"
    with np.load(locate(where), allow_pickle=False) as stored:
        values, columns, starts, y = (stored[f"{split}_{part}"] for part in ("data", "indices", "indptr", "y"))
        x = np.zeros((len(y), int(stored["ncol"])), np.float32)
    x[np.repeat(np.arange(len(y)), np.diff(starts)), columns] = values
    origins = [f"{where}:{split}:{row + 1}" for row in range(len(y))]
    return Arrays(f"amazon_reviews/{domain}", x, (y > 0).astype(np.int64), list(CLASSES), CARD["source"], CARD["licence"], origins)
