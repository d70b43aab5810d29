"""MergeME: turns dense experts into one mixture of experts, with shared layers merged by TIES or DARE and a router that needs no training.

Zhou et al. 2025, sections 3.1 to 3.3, https://arxiv.org/abs/2502.00997
Use to serve several domains from one network without mixing up their feed-forward layers. Not where memory is short: it grows with every
expert, and for ``routing="ppl"`` by their embeddings and attentions too. Tunes of one base: feed-forward layers become experts, all else is
merged (``merge="mean"`` is Branch-Train-MiX); if their attentions have drifted too far apart to be merged, ``attention="separate"`` keeps
and mixes them, and ``"auto"`` measures which is better on the domains' validation text. Tunes of other widths or depths: whole experts
behind projectors, trained in two phases. The paper's text was not at hand: keep 0.8, scale 1/3 for three tunes, top 2 and softmax over
1 / perplexity are taken from what readers quote of it. Ours: the first ``prompt_tokens`` count as the prompt of a text that is scored or
trained on; embedding and head of projected experts are the base's, not a mean. Left out: routing by gradients (worse in the paper).

>>> import torch
>>> MergeMe(top_k=2).weights(torch.tensor([[8.0, 2.0, 4.0]]))  # softmax of 1/2 and 1/4
tensor([[0.0000, 0.5622, 0.4378]])
>>> MergeMe(merge="ties").merger(3).scale, MergeMe(merge="mean").merger(3).name
(0.3333333333333333, 'merging.linear')
"""

from typing import TYPE_CHECKING, Annotated, Any

from ...domain import Domain
from ...errors import AcclimateError
from ...kinds import Merge, Strategy
from ...method import Setting, load
from ...parts.moe import perplexity_weights

if TYPE_CHECKING:
    from torch import Tensor


class MergeMe(Strategy):
    """A mixture of the tunes' feed-forward layers, or of whole tunes; gives a model per stage: moe, bridges, tuned."""

    room = "merging"

    experts: Annotated[
        str, Setting("feed-forward layers, whole networks behind projectors, or by the tunes' shapes", choices=("ffn", "whole", "auto"))
    ] = "auto"
    base_expert: Annotated[bool, Setting("the base is an expert too, the first")] = True
    merge: Annotated[str, Setting("how all but the experts is merged", choices=("ties", "dare", "mean"))] = "ties"
    keep: Annotated[float, Setting("share of each tune's changes kept in that merge (the paper's p)", 0, 1)] = 0.8
    scale: Annotated[float, Setting("length of the summed changes (the paper's lambda); 0 = one over the number of tunes", 0)] = 0.0
    attention: Annotated[
        str, Setting("merged, each expert's own, or whichever predicts the domains better", choices=("merged", "separate", "auto"))
    ] = "merged"
    routing: Annotated[str, Setting("by the prompt's perplexity, by a trained gate, or even", choices=("ppl", "linear", "uniform"))] = "ppl"
    top_k: Annotated[int, Setting("experts that a token (or a sequence) goes to", 1)] = 2
    prompt_tokens: Annotated[int, Setting("tokens at the start of a text that choose its experts; 0 = all", 0)] = 64
    finetune: Annotated[str, Setting("what learns afterwards on the domains", choices=("none", "router", "all"))] = "none"
    balance: Annotated[float, Setting("weight of the balance loss of a router that is trained (alpha)", 0)] = 0.01
    bridge_steps: Annotated[int, Setting("steps for projectors and router alone, experts frozen", 1)] = 1000
    steps: Annotated[int, Setting("steps of the fine-tuning (for projected experts: of all, after the bridges)", 1)] = 1000
    bridge_lr: Annotated[float, Setting("peak learning rate for projectors and router", 0)] = 1e-3
    lr: Annotated[float, Setting("peak learning rate of the fine-tuning", 0)] = 1e-4

    def run(self, tools: Any, *, start: Any = None, tuned: list[Any] | None = None, **domains: Domain) -> dict[str, Any]:
        """The mixture, and what training made of it.

        ``domains``, under any names, are the text to train on in equal shares. Raises AcclimateError where tunes, text or a gate lack.
        """
        if start is None or not tuned:
            raise AcclimateError("merge_me needs a base (start:) and the tunes to merge (from:)")
        experts = [start, *tuned] if self.base_expert else list(tuned)
        whole = self.experts == "whole" or (self.experts == "auto" and not all(_alike(start, tune) for tune in tuned))
        if not domains and (whole or self.finetune != "none" or self.attention == "auto"):
            what = "projectors" if whole else "what attention = auto compares" if self.finetune == "none" else "fine-tuning"
            raise AcclimateError(f"merge_me: {what} needs text; name domains with on:")
        made = self.projected(tools, start, experts, domains) if whole else self.mixed(tools, start, tuned, experts, domains)
        self.tell(tools, list(made.values())[-1], domains)
        return made

    def mixed(self, tools: Any, start: Any, tuned: list[Any], experts: list[Any], domains: dict[str, Domain]) -> dict[str, Any]:
        """Feed-forward layers as experts, everything else merged."""
        if self.finetune == "router" and self.routing != "linear":
            raise AcclimateError(f"merge_me: finetune = router, but routing = {self.routing} has nothing to learn; set routing to linear")
        shared = tools.merge("shared", self.merger(len(tuned)), experts if self.merge == "mean" else tuned, start)
        attentions = {"merged": [False], "separate": [True], "auto": [False, True]}[self.attention]
        options = [self.mixture(shared, experts, separate, tools.seed) for separate in attentions]
        if len(options) > 1:
            bits = [sum(tools.bits(model, domain) for domain in domains.values()) / len(domains) for model in options]
            tools.note("attention", dict(zip(("merged", "separate"), bits, strict=True)))
            options = [options[bits.index(min(bits))]]
        made = {"moe": options[0]}
        if self.finetune != "none":
            lr = self.bridge_lr if self.finetune == "router" else self.lr
            made["tuned"] = self.train(tools, "tuned", made["moe"], domains, self.steps, lr)
        return made

    def projected(self, tools: Any, start: Any, experts: list[Any], domains: dict[str, Domain]) -> dict[str, Any]:
        """Whole experts: projectors and router learn first, then everything."""
        from ...models.projected import ProjectedForCausalLM

        settings = {"experts_per_token": self.top_k, "prompt_tokens": self.prompt_tokens, "balance": self.balance, "learns": "bridges"}
        net = ProjectedForCausalLM.from_dense(start.net, [expert.net for expert in experts], seed=tools.seed, **settings)
        made = {"moe": _model("moe", net, start, experts)}
        made["bridges"] = self.train(tools, "bridges", made["moe"], domains, self.bridge_steps, self.bridge_lr)
        ready = made["bridges"].copy()
        ready.net.configured(learns="all")
        made["tuned"] = self.train(tools, "tuned", ready, domains, self.steps, self.lr)
        return made

    def merger(self, tunes: int) -> Merge:
        """The method that merges what is shared."""
        if self.merge == "mean":
            return load("merging.linear")
        scale = self.scale or 1 / tunes
        if self.merge == "ties":  # ranked tensor by tensor, so that changes of the experts' layers do not count
            return load("merging.ties", keep=[self.keep], scale=scale, normalize=False, scope="tensor")
        return load("merging.dare", keep=[self.keep], scale=scale, normalize=False, elect="none")

    def mixture(self, shared: Any, experts: list[Any], separate: bool, seed: int) -> Any:
        """The untrained mixture."""
        from ...models.moe import MoEForCausalLM

        net = MoEForCausalLM.from_dense(
            shared.net, [expert.net for expert in experts], seed=seed, routing=self.routing, experts_per_token=self.top_k,
            separate_attention=separate, prompt_tokens=self.prompt_tokens, balance=self.balance,
            learns="router" if self.finetune == "router" else "all",
        )  # fmt: skip
        return _model("moe", net, shared, experts)

    def weights(self, perplexity: "Tensor") -> "Tensor":
        """Perplexity of a prompt under each expert [..., expert] -> weights of the experts for all its tokens and layers."""
        return perplexity_weights(perplexity, self.top_k)

    def train(self, tools: Any, stage: str, model: Any, domains: dict[str, Domain], steps: int, lr: float) -> Any:
        """One phase of next-token training on all domains in equal shares."""
        mixture = {name: (domain, 1.0) for name, domain in domains.items()}
        return tools.train(stage, model, load("objectives.causal_lm"), mixture, steps=steps, lr=lr)

    def tell(self, tools: Any, model: Any, domains: dict[str, Domain]) -> None:
        """Note the mean weight of every expert on each domain's validation text."""
        from ...models.moe import expert_shares

        texts = {name: domain.texts("validation")[:20] for name, domain in domains.items() if "validation" in domain.splits}
        tools.note("router", {name: expert_shares(model, some) for name, some in texts.items() if some})


def _alike(start: Any, tune: Any) -> bool:
    """Whether all weights have the same names and shapes."""
    first, second = ({name: weight.shape for name, weight in model.net.state_dict().items()} for model in (start, tune))
    return first == second


def _model(name: str, net: Any, like: Any, experts: list[Any]) -> Any:
    from ...model import Model

    made = {"base": like.source, "method": "merging.merge_me", "experts": [expert.name for expert in experts]}
    return Model(name, net, like.tokenizer, "causal", like.source, {"made": made})
