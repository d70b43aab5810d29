"""Named entities as tags of words: O outside, B-type at the first word, I-type inside; their spans, and how many are found whole.

Tjong Kim Sang & De Meulder 2003, section 2.4, https://aclanthology.org/W03-0419: an entity is right if its words and its type are.
"""

from collections.abc import Sequence

Span = tuple[str, int, int]  # type, first word, word after the last


def begun(tags: Sequence[str]) -> list[str]:
    """Tags in which every entity begins with B: an I that does not go on with an entity of its type begins one.

    >>> begun(["I-law", "I-law", "O", "I-law", "I-court", "B-court"])
    ['B-law', 'I-law', 'O', 'B-law', 'B-court', 'B-court']
    """
    made: list[str] = []
    for before, tag in zip(["O", *tags], tags, strict=False):
        made.append(f"B{tag[1:]}" if tag[:1] == "I" and before[1:] != tag[1:] else tag)
    return made


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence, in order.

    >>> spans(["B-law", "I-law", "O", "I-court", "B-court"])
    [('law', 0, 2), ('court', 3, 4), ('court', 4, 5)]
    """
    found: list[Span] = []
    for place, tag in enumerate(begun(tags)):
        if tag[:1] == "B":
            found.append((tag[2:], place, place + 1))
        elif tag[:1] == "I":
            kind, first, _ = found[-1]
            found[-1] = (kind, first, place + 1)
    return found


def entity_f1(truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 (0 to 1) of whole entities over all sentences [sentence][word]; 0 where nothing is guessed or there.

    >>> entity_f1([["B-law", "I-law", "O", "B-law"]], [["B-law", "I-law", "O", "O"]])
    {'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666}
    """
    right = there = said = 0
    for wanted, guessed in zip(truth, guesses, strict=True):
        if len(wanted) != len(guessed):
            raise ValueError(f"a sentence has {len(wanted)} tags, but {len(guessed)} are guessed")
        mine, theirs = set(spans(guessed)), set(spans(wanted))
        right, there, said = right + len(mine & theirs), there + len(theirs), said + len(mine)
    precision, recall = right / said if said else 0.0, right / there if there else 0.0
    return {"precision": precision, "recall": recall, "f1": 2 * right / (there + said) if there + said else 0.0}
