"""Do careful merging and routing by perplexity make a better mixture of experts than Branch-Train-MiX does, before and after fine-tuning?

``seedling-xs`` and three experts of it (law, software documentation, PubMed abstracts: the models that experiments share). Untrained
mixtures of the four feed-forward stacks, top 2: all else averaged with a random gate (BTX) or with routing by perplexity; merged by TIES
or DARE with routing by perplexity; the same with every expert's own attention. Fine-tuned with a gate: BTX, TIES and DARE, equally many
steps on the three domains. Beside them the base, each domain's own expert, and the merged dense models. Whole experts behind projectors:
the base with law and software, with and without a narrow expert of PubMed abstracts (another width and depth, trained from scratch once),
both trained in two phases on all three domains with equal budgets. A seed draws the test texts, gates, DARE's masks, and the order of rows.

What differs from the paper, and why: models of one million weights instead of one billion, fine-tuning on 0.2 M tokens instead of 40 G, and
loss on held-out text instead of accuracy on tasks, which models this small cannot solve. Perplexity of the first 64 tokens chooses the
experts and only the 192 tokens after them are scored, so no score sees its own text; the experts themselves are the same for all seeds.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ... import datasets
from ...domain import Domain
from ...engines.candidates import merged
from ...files import cache_dir, digest, read_json, write_json
from ...method import load
from ..fixture import documents, fixture, tiny_model
from ..workbench import Workbench

if TYPE_CHECKING:
    from ...model import Model

CRITERION = """
    Loss is the mean over three domains, in nats per token. (1) The mean of TIES + PPL and DARE + PPL, untrained, is at least 0.02 below
    BTX + random router in every seed; (2) BTX + PPL is below BTX + random router in every seed; (3) the mean of TIES + PPL and DARE + PPL
    is below BTX + PPL on the mean over seeds; (4) after fine-tuning the mean of TIES and DARE is not above BTX on the mean over seeds;
    (5) of the whole experts behind projectors, four with the narrow one are below three without it on the mean over seeds. The claim holds
    if all five do.
"""
METRIC = "nats per token on the 192 tokens after a prompt of 64, mean over the three domains, lower is better"
DOMAINS = ("legal", "software", "biomedical")
NARROW = "biomedical"  # the domain of the expert with another width
NARROW_SHAPE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4}
MARGIN = 0.02
BTX, CAREFUL = "BTX", ("TIES", "DARE")
RANDOM = "BTX + random router"
ARMS = (
    "base", "own experts", "average dense", "TIES dense", "DARE dense", RANDOM, "BTX + PPL", "TIES + PPL", "DARE + PPL",
    "TIES + PPL, separate attention", "BTX tuned", "TIES tuned", "DARE tuned", "three whole", "four whole",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    texts: int = 32  # per domain
    prompt: int = 64
    width: int = 256
    steps: int = 100  # of fine-tuning
    bridge_steps: int = 60
    whole_steps: int = 40
    batch: int = 2048  # tokens per step
    narrow_steps: int = 300


FULL = Size()
TINY = Size(4, 8, 24, 1, 1, 1, 64, 1)


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Every arm's loss; arms whose figure lies in ``work`` already are not made again."""
    if not tiny:
        shared = fixture()
        domains = {name: datasets.load(f"lm/{name}") for name in DOMAINS}
        return _run(seed, FULL, shared["base"], [shared["experts"][name] for name in DOMAINS], domains, work)
    gc.freeze()  # the trainer collects garbage after each run, which takes longer than a tiny run itself
    try:
        domains = {name: Domain.from_texts(name, documents(name, 60)) for name in DOMAINS}
        return _run(seed, TINY, tiny_model("causal"), [tiny_model("causal", number) for number in (1, 2, 3)], domains, work)
    finally:
        gc.unfreeze()


def _run(seed: int, size: Size, base: "Model", experts: "list[Model]", domains: dict[str, Domain], work: Path) -> dict[str, Any]:
    texts = {name: _texts(base, domain, size, seed) for name, domain in domains.items()}
    tools = Workbench("merge_me", seed, work, batch_tokens=size.batch, row_tokens=size.width)

    def mixture(stage: str, **settings: Any) -> "Model":
        method = load("merging.merge_me", prompt_tokens=size.prompt, **settings)
        text = domains if stage == "tuned" else {}
        name = "-".join(map(str, ["mixture", *settings.values()]))
        return method.run(tools.named(name), start=base, tuned=experts, **text)[stage]

    def tuned(merge: str) -> "Model":
        return mixture("tuned", merge=merge, routing="linear", finetune="all", steps=size.steps, lr=5e-4)

    def whole(more: "list[Model]") -> "Model":
        method = load(
            "merging.merge_me", experts="whole", prompt_tokens=size.prompt, bridge_steps=size.bridge_steps, steps=size.whole_steps,
            bridge_lr=2e-3, lr=5e-4,
        )  # fmt: skip
        some = [model for model, name in zip(experts, DOMAINS, strict=True) if name != NARROW]
        return method.run(tools.named(f"whole-{len(more)}"), start=base, tuned=[*some, *more], **domains)["tuned"]

    def dense(merge: str) -> "Model":
        method = load("merging.merge_me", merge=merge).merger(len(experts))
        return merged(method, base if "base" in method.asked() else None, experts, seed=seed)

    make: dict[str, Callable[[], Model]] = {
        "base": lambda: base,
        "average dense": lambda: dense("mean"),
        "TIES dense": lambda: dense("ties"),
        "DARE dense": lambda: dense("dare"),
        RANDOM: lambda: mixture("moe", merge="mean", routing="linear"),
        "BTX + PPL": lambda: mixture("moe", merge="mean"),
        "TIES + PPL": lambda: mixture("moe", merge="ties"),
        "DARE + PPL": lambda: mixture("moe", merge="dare"),
        "TIES + PPL, separate attention": lambda: mixture("moe", merge="ties", attention="separate"),
        "BTX tuned": lambda: tuned("mean"),
        "TIES tuned": lambda: tuned("ties"),
        "DARE tuned": lambda: tuned("dare"),
        "three whole": lambda: whole([]),
        "four whole": lambda: whole([_narrow(domains[NARROW], base, size)]),
    }
    arms, details = {}, {}
    for arm in ARMS:
        path = work / f"{digest(arm)}.json"
        if not path.is_file():
            tools.notes.clear()
            models = dict(zip(DOMAINS, experts, strict=True)) if arm == "own experts" else dict.fromkeys(DOMAINS, make[arm]())
            loss = {name: continuation_loss(models[name], texts[name], size.prompt, size.width) for name in DOMAINS}
            parameters = models[DOMAINS[0]].parameters()
            write_json(path, {"loss": loss, "parameters": parameters, "shares": _shares(models[DOMAINS[0]], texts), "notes": tools.notes})
        details[arm] = read_json(path)
        arms[arm] = float(np.mean(list(details[arm]["loss"].values())))
    return {"arms": arms, "details": details}


def _texts(model: "Model", domain: Domain, size: Size, seed: int) -> list[str]:
    """Test texts that are long enough, drawn by the seed."""
    long = [text for text in domain.texts("test") if len(model.tokenizer(text).input_ids) >= size.width]
    return [long[i] for i in np.random.default_rng([seed, 1]).permutation(len(long))[: size.texts]]


@torch.no_grad()
def continuation_loss(model: "Model", texts: list[str], prompt: int, width: int) -> float:
    """Nats per token on tokens ``prompt`` to ``width`` of every text, given all before them."""
    from ...engines.rows import frame

    before, _ = frame(model.tokenizer)
    ids = [[*before.tolist(), *model.tokenizer(text, add_special_tokens=False).input_ids][:width] for text in texts]
    model.net.eval()
    found = []
    for begin in range(0, len(ids), 8):
        rows = torch.tensor(ids[begin : begin + 8], device=model.device)
        out = model.net(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits[:, prompt - 1 : -1].float()
        found.append(torch.nn.functional.cross_entropy(out.transpose(1, 2), rows[:, prompt:], reduction="none").mean(1))
    return float(torch.cat(found).double().mean())


def _shares(model: "Model", texts: dict[str, list[str]]) -> dict[str, list[float]]:
    """Mean weight of every expert on each domain's test texts, where there are experts."""
    from ...models.moe import SequenceRouted, expert_shares

    if not isinstance(model.net, SequenceRouted):
        return {}
    return {name: expert_shares(model, some[: len(some) // 4]) for name, some in texts.items()}


def _narrow(domain: Domain, base: "Model", size: Size) -> "Model":
    """An expert of another width and depth than the base, with its tokenizer; trained from scratch on one domain once, then read."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from ...engines.train import Training, tidy, train
    from ...model import Model

    tokenizer = base.tokenizer
    shape: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2} if size is TINY else NARROW_SHAPE
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=3, num_key_value_heads=3, max_position_embeddings=base.context,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **shape,
    )  # fmt: skip
    settings: dict[str, Any] = {"steps": size.narrow_steps, "batch_tokens": 2 * size.batch, "row_tokens": size.width, "lr": 2e-3}
    key = digest([config.to_dict(), settings, domain.fingerprint, base.fingerprint])
    folder = cache_dir("experiments", "merge_me-narrow") / key
    if not (folder / "model" / "config.json").is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            blank = Model("narrow", LlamaForCausalLM(config), tokenizer, "causal", "fresh weights").to(str(base.device))
        plan = Training(**settings, watch_every=10**6)
        made = train(blank, load("objectives.causal_lm"), domain, plan, folder / "run", name=f"narrow-{domain.name}")
        made.model.save(folder / "model")
        tidy(folder / "run")
    return Model.load(str(folder / "model"))


# the verdict


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """Each clause of the criterion: what was found, and whether that is enough."""
    loss = {arm: np.array(values) for arm, values in figures.items()}
    untuned, tuned = (np.mean([loss[f"{merge} {what}"] for merge in CAREFUL], axis=0) for what in ("+ PPL", "tuned"))
    gain, routed = loss[RANDOM] - untuned, loss[RANDOM] - loss["BTX + PPL"]
    merged, after = loss["BTX + PPL"] - untuned, loss["BTX tuned"] - tuned
    more = loss["three whole"] - loss["four whole"]
    return [
        (f"TIES and DARE + PPL {-gain.mean():+.3f} nats against {RANDOM} (worst seed {-gain.min():+.3f})", bool((gain >= MARGIN).all())),
        (f"BTX + PPL {-routed.mean():+.3f} against {RANDOM} (worst seed {-routed.min():+.3f})", bool((routed > 0).all())),
        (f"TIES and DARE + PPL {-merged.mean():+.3f} against BTX + PPL", bool(merged.mean() > 0)),
        (f"TIES and DARE {-after.mean():+.3f} against BTX after fine-tuning", bool(after.mean() >= 0)),
        (f"four whole experts {-more.mean():+.3f} against three", bool(more.mean() > 0)),
    ]


def verdict(figures: dict[str, list[float]]) -> str:
    """Whether all clauses of the criterion are met."""
    return "holds" if all(met for _, met in clauses(figures)) else "does_not_hold"


def why(figures: dict[str, list[float]]) -> str:
    """The figure behind each clause."""
    return "; ".join(f"({number}) {said}: {'met' if met else 'not met'}" for number, (said, met) in enumerate(clauses(figures), 1))
