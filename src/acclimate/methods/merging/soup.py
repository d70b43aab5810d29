"""Soup: averages models, all of them or, best first, only those that do not make the average worse.

Wortsman et al. 2022, recipe 1 (greedy soup), https://arxiv.org/abs/2203.05482
Use for many tunes of one base on the same task with other rates, data orders or seeds. Models are ranked by bits per byte on the
validation split of the given domains (their mean); a model stays in when the average with it is at least as good as without.
Test splits are never looked at. A uniform soup alone needs no data: merging.linear.

>>> scores = {(0,): 1.0, (0, 1): 1.2, (0, 2): 0.8, (0, 2, 3): 0.8}
>>> Soup().choose([0, 1, 2, 3], lambda members: scores[tuple(members)])
([0, 2, 3], [1.0, 1.2, 0.8, 0.8])
"""

from collections.abc import Callable
from typing import Annotated, Any

from ...domain import Domain
from ...kinds import Strategy
from ...method import Setting, load


class Soup(Strategy):
    """The greedy or the uniform soup."""

    room = "merging"
    trains = False

    selection: Annotated[str, Setting("greedy by validation, or all of them", choices=("greedy", "uniform"))] = "greedy"

    def run(self, tools: Any, *, start: Any = None, tuned: list[Any] | None = None, **domains: Domain) -> dict[str, Any]:
        """The averaged model; which models went in and the curve are noted."""

        def bits(model: Any) -> float:
            return sum(tools.bits(model, domain) for domain in domains.values()) / len(domains)

        tuned = tuned or []
        members = list(range(len(tuned)))
        if self.selection == "greedy" and domains:
            alone = [bits(model) for model in tuned]
            order = sorted(members, key=lambda i: alone[i])

            def score(chosen: list[int]) -> float:
                return alone[chosen[0]] if len(chosen) == 1 else bits(self._mean(tools, tuned, chosen))

            members, curve = self.choose(order, score)
            tools.note("soup", {"alone": alone, "order": order, "curve": curve, "members": [tuned[i].name for i in members]})
        return {"soup": tools.merge("soup", load("merging.linear"), [tuned[i] for i in members])}

    def choose(self, order: list[int], score: Callable[[list[int]], float]) -> tuple[list[int], list[float]]:
        """Members in the order they were taken, and the score of every trial (lower is better)."""
        members = [order[0]]
        curve = [score(members)]
        best = curve[0]
        for model in order[1:]:
            curve.append(score([*members, model]))
            if curve[-1] <= best:
                best = curve[-1]
                members.append(model)
        return members, curve

    @staticmethod
    def _mean(tools: Any, tuned: list[Any], chosen: list[int]) -> Any:
        return tools.merge("trial " + " ".join(map(str, chosen)), load("merging.linear"), [tuned[i] for i in chosen])
