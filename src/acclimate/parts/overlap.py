"""How near two domains are: the share of their most frequent words that they have in common.

Gururangan et al. 2020, section 3.1 and figure 2, https://arxiv.org/abs/2004.10964: the 10,000 most frequent unigrams of comparably
large samples, stop words left out (scikit-learn's English list here).
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from ..errors import AcclimateError


def vocabulary(texts: Iterable[str], size: int = 10_000) -> list[str]:
    """The ``size`` most frequent words, most frequent first, equals in alphabetical order; lower-cased, stop words left out.

    >>> vocabulary(["The cell and the Gene", "a cell", "gene, cell; virus acid"], size=3)
    ['cell', 'gene', 'acid']
    """
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(stop_words="english").build_analyzer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words(text))
    return sorted(counts, key=lambda word: (-counts[word], word))[:size]


def overlap_matrix(domains: Mapping[str, Iterable[str]], size: int = 10_000) -> tuple[list[str], np.ndarray]:
    """Names and the symmetric matrix [domain, domain] of shared words in percent; the diagonal is 100.

    Give samples of comparable size. Where a domain has fewer than ``size`` words, every list is cut to the shortest one, so that
    all shares have one denominator. Raises AcclimateError for a domain without words.

    >>> names, share = overlap_matrix({"a": ["cell gene gene"], "b": ["cell virus cell"], "c": ["court law law judge"]})
    >>> names, share.tolist()  # lists of two: gene cell, cell virus, law court
    (['a', 'b', 'c'], [[100.0, 50.0, 0.0], [50.0, 100.0, 0.0], [0.0, 0.0, 100.0]])
    """
    lists = {name: vocabulary(texts, size) for name, texts in domains.items()}
    empty = [name for name, words in lists.items() if not words]
    if empty:
        raise AcclimateError(f"domain {empty[0]!r} has no word beside stop words; give it text")
    size = min(map(len, lists.values()), default=0)
    sets = [set(words[:size]) for words in lists.values()]
    return list(lists), np.array([[100.0 * len(one & other) / size for other in sets] for one in sets])
