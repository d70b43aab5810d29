"""What methods that change the vocabulary share: the fitted tokens are put on the model, then a few of its weights are tuned."""

import dataclasses
from typing import Annotated, Any

from ...domain import Domain
from ...engines.new_tokens import compare
from ...engines.partial import GROUPS, partial
from ...errors import AcclimateError
from ...kinds import Inputs, Strategy
from ...method import Setting, load

LIGHT = ("embeddings", "head", "first_layer", "last_layer")


class VocabularyMethod(Inputs, Strategy):
    """``fit`` alone gives the plug-in; ``run`` also tunes, and a recipe can name it: stages untuned, tuned (none where epochs is 0)."""

    train: Annotated[list[str], Setting("weights that are tuned: embeddings, head, first_layer, last_layer, or all")] = dataclasses.field(
        default_factory=lambda: list(LIGHT)
    )
    lr: Annotated[float, Setting("peak learning rate of the tuning", 0)] = 1e-4
    epochs: Annotated[float, Setting("passes over the domain's text; 0 = no tuning", 0)] = 1.0

    def run(self, tools: Any, *, start: Any = None, corpus: Domain | None = None, **unknown: Any) -> dict[str, Any]:
        """``corpus`` is text of the domain. The note ``report`` holds what was swapped and both models' figures on held-out text."""
        name = self.name.partition(".")[2]
        if start is None or corpus is None or unknown:
            wrong = f"takes no {sorted(unknown)[0]}" if unknown else "needs a model and text"
            raise AcclimateError(f"{name} {wrong}: give model and on: {{corpus: text}}")
        if strange := sorted(set(self.train) - {*GROUPS}):
            raise AcclimateError(f"{name}: train = {strange[0]!r}, but must name some of: {', '.join(GROUPS)}")
        plugin = self.fit(start, start.tokenizer, corpus)
        made = {"untuned": tools.keep("untuned", plugin.apply(start))}
        if self.epochs:
            light = partial(made["untuned"], self.train)
            made["tuned"] = tools.train("tuned", light, load("objectives.causal_lm"), corpus, lr=self.lr, epochs=self.epochs)
        split = next((split for split in ("validation", "test") if split in corpus.splits), "train")
        texts = corpus.texts(split)
        prompts = [text[: len(text) // 2][:200] for text in texts[:8]]
        figures = {stage: compare(start, model, texts, prompts, most=60_000) for stage, model in made.items()}
        tools.note("report", {**plugin.report, "split": split, **figures})
        return made
