"""Extrapolation: asks a language model for domains that the training set lacks, has a generator draw them, and adds them as domains.

Li et al. 2024, "Beyond Finite Data: Towards Data-free Out-of-distribution Generalization via Extrapolation",
https://arxiv.org/abs/2403.05523
For classes that a language model and a generator know, where real domains are few (single source) or absent (data-free). Of no use where
the generator draws a class wrongly, or draws all domains alike. Both are callables of yours: ``ask(text) -> reply``, and ``draw(prompt,
count, seed) -> x [row, *shape]``, or texts, which ``encode(texts) -> x`` makes rows of (the language model itself may write them); a
scripted list and a procedural generator will do where they are declared. Any method of this room then
learns from the pools, each new domain being one environment; data-free learning takes the new ones alone. All rows say what they were made
of. The numbers of domains and rows were not to be found published; the training is left to the shift engine.

>>> list_of("Serif fonts differ.\\nDomains:\\n- chalk board\\n* Neon sign\\n- chalk board\\n")
['chalk board', 'neon sign']
>>> fresh(["chalk board", "photo", "photos"], ["photo"], lambda names: np.array([[len(n) == 11, len(n) < 11] for n in names], float), 0.9)
(['chalk board'], {'photo': 'known', 'photos': 'cosine 1.00 to photo'})
>>> len(Extrapolation(k_domains=3).query("seven", "digits", ["photo"]).splitlines())
5
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch

from ...engines.shift import Pool
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting

Embed = Callable[[Sequence[str]], np.ndarray]
TRIES = 3  # replies without a list before it is an error


class Extrapolation(Strategy):
    """How domains are asked for, how many, and which rows are kept."""

    room = "domain_generalization"
    trains = False

    mode: Annotated[str, Setting("new domains for each class by itself, or one list for all", choices=("class_wise", "dataset_wise"))] = (
        "class_wise"
    )
    k_domains: Annotated[int, Setting("new domains that are asked for (k)", 1)] = 16
    per_class: Annotated[int, Setting("rows of each class in each new domain (m)", 1)] = 64
    cot: Annotated[bool, Setting("ask the language model to reason before it lists")] = True
    role: Annotated[bool, Setting("tell the language model whose part it plays")] = True
    near: Annotated[float, Setting("largest cosine of a new domain's name to a known one, where names can be embedded", 0, 1)] = 0.9
    filter: Annotated[bool, Setting("keep a row only if a zero-shot scorer gives its class the top score")] = False

    def run(
        self,
        tools: Any,
        *,
        classes: Sequence[str] = (),
        task: str = "",
        domains: Sequence[Pool] = (),
        ask: Callable[[str], str] | None = None,
        draw: Callable[[str, int, int], Any] | None = None,
        encode: Callable[[list[str]], Any] | None = None,
        makers: str = "",
        embed: Embed | None = None,
        score: Callable[[Any], Any] | None = None,
        **unknown: Any,
    ) -> dict[str, Any]:
        """{all: real and new pools, synthetic: the new ones, provenance: {domain: [of each row]}, queries, dropped: {name: why}}.

        ``makers`` names language model and generator, for the provenance; ``score`` x -> [row, class] filters; the seed is ``tools.seed``.
        """
        if unknown or not classes or ask is None or draw is None:
            wrong = f"takes no {sorted(unknown)[0]}" if unknown else "needs the classes' names, ask (language model) and draw (generator)"
            raise AcclimateError(f"domain_generalization.extrapolation {wrong}")
        if self.filter and score is None:
            raise AcclimateError("filter = true needs score: a zero-shot scorer, x -> scores of the classes [row, class]")
        known = [pool.name for pool in domains]
        told: dict[str, Any] = {"queries": [], "dropped": {}}
        wanted = self._wanted(classes, task, known, ask, embed, told)
        x: dict[str, list] = {}
        y: dict[str, list] = {}
        rows: dict[str, list[dict[str, Any]]] = {}
        for number, (domain, shown) in enumerate(wanted.items()):
            seed = int(np.random.default_rng([tools.seed, 92, number]).integers(2**31))
            for label in shown:
                prompt = self._said(ask, f"Write one line that asks a generator for {classes[label]} in the domain {domain}.", told)
                drawn = draw(prompt, self.per_class, seed)
                texts = list(drawn) if len(drawn) and isinstance(drawn[0], str) else []
                if texts and encode is None:
                    raise AcclimateError("draw gives texts, so encode is needed too: texts -> rows [row, *shape]")
                made = torch.as_tensor(encode(texts) if texts and encode else drawn)
                kept = torch.as_tensor(score(made)).argmax(1) == label if self.filter and score else torch.ones(len(made), dtype=torch.bool)
                told["dropped"] |= {f"{domain}: {classes[label]}": f"{int((~kept).sum())} rows unlike it"} if not kept.all() else {}
                x.setdefault(domain, []).append(made[kept])
                y.setdefault(domain, []).append(torch.full((int(kept.sum()),), label))
                origin = {"prompt": prompt, "model": makers, "seed": seed, "class": classes[label]}
                own = [{**origin, "row": row, **({"text": texts[row]} if texts else {})} for row in kept.nonzero()[:, 0].tolist()]
                rows.setdefault(domain, []).extend(own)
        pools = [Pool(domain, torch.cat(x[domain]), torch.cat(y[domain])) for domain in x if rows[domain]]
        return {"all": [*domains, *pools], "synthetic": pools, "provenance": rows, **told}

    def query(self, subject: str, task: str, known: Sequence[str]) -> str:
        """What the language model is asked: role, known domains, reasoning, the strict list."""
        lines = [f"You plan the data from which a classifier of {task or 'such things'} learns, so that it works anywhere."] * self.role
        lines += [f"Name {self.k_domains} domains (settings, media, styles) in which {subject} may be seen."]
        lines += [f"Already known, so to be avoided: {', '.join(known) or 'none'}."]
        lines += ["Think step by step about what differs between domains before you answer."] * self.cot
        return "\n".join([*lines, f"End with a line 'Domains:' and exactly {self.k_domains} lines '- name' below it, nothing else."])

    def _wanted(
        self, classes: Sequence[str], task: str, known: Sequence[str], ask: Callable, embed: Embed | None, told: dict
    ) -> Mapping[str, list[int]]:
        """The classes that are drawn in each new domain."""
        labels = list(range(len(classes)))
        asked = [(", ".join(classes), labels)] if self.mode == "dataset_wise" else [(classes[label], [label]) for label in labels]
        wanted: dict[str, list[int]] = {}
        for subject, shown in asked:
            names: list[str] = []
            for _ in range(TRIES):
                if names := list_of(self._said(ask, self.query(subject, task, known), told)):
                    break
            if not names:
                raise AcclimateError(f"the language model gave no list of domains of {subject} in {TRIES} replies; see to its format")
            kept, dropped = fresh(names, known, embed, self.near)
            told["dropped"] |= dropped
            for name in kept[: self.k_domains]:
                wanted.setdefault(name, []).extend(shown)
        return wanted

    def _said(self, ask: Callable[[str], str], text: str, told: dict) -> str:
        told["queries"].append({"asked": text, "reply": ask(text)})
        return told["queries"][-1]["reply"].strip()


def list_of(reply: str) -> list[str]:
    """The names below the last line "Domains:", each once, in lower case."""
    found = reply.rpartition("Domains:")[2].splitlines() if "Domains:" in reply else []
    return list(dict.fromkeys(line.strip()[1:].strip().lower() for line in found if line.strip()[:1] in ("-", "*")))


def fresh(names: Sequence[str], known: Sequence[str], embed: Embed | None, near: float) -> tuple[list[str], dict[str, str]]:
    """The names that are new, and why the others are not."""
    dropped = {name: "known" for name in names if name in {each.lower() for each in known}}
    left = [name for name in names if name not in dropped]
    if embed is not None and known and left:
        new, old = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (embed(left), embed(list(known))))
        cosines = new @ old.T
        places = cosines.argmax(1)
        for name, row, place in zip(left, cosines, places, strict=True):
            dropped |= {name: f"cosine {row[place]:.2f} to {known[place]}"} if row[place] > near else {}
    return [name for name in names if name not in dropped], dropped
