"""Reviews of goods from templates, in place of a language model that imagines kinds of goods and writes about them.

>>> scripted("Name 2 domains in which a good review may be seen.\\nEnd with a line 'Domains:'").splitlines()[1:4]
['Domains:', '- books', '- headphones']
>>> written("a bad review in the domain tents", 2, 0)[0].count(".") >= 3
True
"""

import numpy as np

CLASSES = ("a bad review", "a good review")  # as in the label's order of the real reviews: bad, good
GOODS: dict[str, tuple[str, tuple[str, ...]]] = {  # kind of goods -> one of them, and what people say something about
    "headphones": ("headset", ("sound", "cable", "ear cushion", "microphone", "bass")),
    "blenders": ("blender", ("motor", "jar", "lid", "blade", "switch")),
    "tents": ("tent", ("frame", "zipper", "floor", "rain cover", "bag")),
    "desk lamps": ("lamp", ("light", "arm", "base", "dimmer", "cord")),
    "keyboards": ("keyboard", ("space bar", "layout", "battery", "wrist rest", "finish")),
    "winter coats": ("coat", ("lining", "hood", "collar", "button row", "fit")),
    "garden hoses": ("hose", ("nozzle", "coupling", "reel", "pressure", "length")),
    "vacuum cleaners": ("vacuum", ("suction", "filter", "brush", "hose", "bin")),
    "coffee makers": ("coffee maker", ("carafe", "timer", "heater", "taste", "water tank")),
    "routers": ("router", ("signal", "setup", "range", "firmware", "antenna")),
    "frying pans": ("pan", ("coating", "handle", "rim", "base", "lid")),
    "printers": ("printer", ("paper feed", "ink", "driver", "print quality", "speed")),
}
OPENINGS = (
    "I bought this {thing} {ago}.", "This {thing} was a present for my {someone}.", "We got the {thing} {ago}.",
    "I needed a new {thing} and chose this one after long reading.", "My {someone} told me to try this {thing}.",
    "This is the second {thing} of the brand that I own.",
)  # fmt: skip
BAD = (
    "The {part} broke within a week.", "The {part} feels cheap and does not do its job.", "I am very disappointed by the {part}.",
    "The {part} stopped working and nobody answered my messages.", "What a waste of money, the {part} alone is a reason to return it.",
    "The {part} is terrible, I would not wish it on anyone.", "Nothing about the {part} is as described.",
    "The {part} was defective out of the box.", "I expected much more of the {part} at this price.",
)  # fmt: skip
GOOD = (
    "The {part} is excellent.", "I love the {part}, it does just what I hoped.", "The {part} still works perfectly.",
    "I am very happy with the {part}.", "The {part} is solid and a joy to use.", "For the price the {part} is hard to beat.",
    "The {part} is better than that of far more expensive ones.", "The {part} impressed my whole family.",
    "The {part} was easy to get used to and has never failed.",
)  # fmt: skip
ENDS = {
    CLASSES[0]: ("Do not buy it.", "I sent it back.", "Look elsewhere.", "One star is too many.", "Never again."),
    CLASSES[1]: ("Highly recommended.", "I would buy it again.", "Worth every cent.", "Five stars.", "A great purchase."),
}
AGO = ("two months ago", "last summer", "a year ago", "a few weeks ago", "in spring")
SOMEONE = ("sister", "father", "wife", "neighbour", "husband", "son")


def scripted(text: str) -> str:
    """To a question for domains all kinds of goods and one that is known, those of bad reviews turned on; else the prompt itself."""
    if "Domains:" not in text:
        return text.partition(" asks a generator for ")[2].rstrip(".")
    turn = 4 if CLASSES[0] in text else 0
    names = list(GOODS)[turn:] + list(GOODS)[:turn]
    return "Buyers care for other things with every kind of goods.\nDomains:\n" + "\n".join(f"- {name}" for name in ["books", *names])


def written(prompt: str, count: int, seed: int) -> list[str]:
    """``count`` reviews as "<class> in the domain <kind of goods>" asks for."""
    label, _, kind = prompt.partition(" in the domain ")
    thing, parts = GOODS[kind]
    draw = np.random.default_rng([seed, CLASSES.index(label)])

    def one() -> str:
        said = draw.choice(BAD if label == CLASSES[0] else GOOD, size=int(draw.integers(2, 4)), replace=False)
        lines = [draw.choice(OPENINGS), *said, draw.choice(ENDS[label])]
        about = draw.choice(parts, size=len(lines), replace=False)
        words = {"thing": thing, "ago": draw.choice(AGO), "someone": draw.choice(SOMEONE)}
        return " ".join(str(line).format(part=part, **words) for line, part in zip(lines, about, strict=True))

    return [one() for _ in range(count)]
