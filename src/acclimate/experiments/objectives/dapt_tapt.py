"""Does further pretraining on text of the domain and of the task help an encoder on tasks with few labels, and a small decoder on text?

Encoder: the three lower of the six layers of all-MiniLM-L6-v2 (the upper ones were trained for whole sentences; and half the time) with
a fresh masked-LM head. The head is trained first, on equal parts of Wikipedia and the three corpora, with all else frozen, so that no
domain has a start and the arm "none" is MiniLM as it comes; then each arm trains everything. Tasks: ChemProt (domain: PubMed abstracts,
micro-F1) and SciCite (computer science abstracts, macro-F1), 300 labelled sentences drawn anew for each seed; the unrelated domain of
both is law (acts of Canada). Arms: none; DAPT; TAPT on the texts of the labelled sentences; DAPT then TAPT; DAPT on law; TRANSFER-TAPT,
on the text of the other task; TAPT on those texts and the 50 sentences of the domain nearest to each (VAMPIRE), or as many at random;
curated TAPT, on all the training texts of the task. Stages of a kind have equally many steps. Then all of the encoder is fine-tuned
with the paper's classifier. Beside it the method's other half: ``seedling-xs``, a decoder, goes on with text of law or of medicine.

What differs from the paper, and why: a small encoder, megabytes of text instead of gigabytes, 3 seeds for 5, for time. TAPT is four to
five passes over the labelled sentences (counted in the details), not 100, which would add more than an hour per seed on two cores;
masks are drawn anew in each pass. Mean pooling instead of the first token's vector, which MiniLM never learned to use. Learning rates
fit the small model and the few steps: 5e-4 throughout, for fine-tuning chosen on development data of the arm "none". Domain text that
shares 13 words in a row with a tested text is left out. SciCite quotes papers of medicine as well as of computer science, so its corpus
fits it in part. The third of the tasks at hand, MAG, has no corpus of its own and takes part in the overlap of domains only.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ... import datasets
from ...domain import Domain
from ...domain.contamination import contamination
from ...execute import Tools
from ...files import read_json, write_json
from ...kinds import Adapter
from ...method import load
from ...progress import say
from ...recipe import Recipe, Step
from ...runs import Run
from ..fixture import documents, tiny_model
from ..workbench import kept_from_collection

if TYPE_CHECKING:
    from ...model import Model

CRITERION = """
    Differences are of equal task and seed, in F1 points, over 2 tasks x 3 seeds. (1) TAPT exceeds none by 1.0 or more on the mean, and
    in at least 5 of the 6 pairs; (2) so does DAPT; (3) DAPT+TAPT is at most 0.5 below the better of the two on the mean; (4) DAPT exceeds
    DAPT on an unrelated domain by 0.5 or more on the mean; (5) kNN-TAPT is not below RAND-TAPT on the mean; (6) on the decoder, in
    every seed and for both domains, DAPT lowers bits per byte in the domain by 5 % or more, and by at least twice as much as DAPT on the
    other domain does. The claim holds if all six do.
"""
METRIC = """
    F1 in points of the test set, higher is better (micro-F1 for chemprot, macro-F1 for sci_cite); arms of the decoder: bits per byte on
    held-out text, lower is better
"""
SEEDS = (0, 1, 2)
TASKS = {"chemprot": ("biomedical", "micro_f1"), "sci_cite": ("cs_abstracts", "macro_f1")}  # domain, score
UNRELATED, GENERAL = "legal", "wikipedia"
CORPORA = ("biomedical", "cs_abstracts", UNRELATED, GENERAL)
DECODED = ("legal", "biomedical")  # each is the other's unrelated domain
ARMS = ("none", "DAPT", "TAPT", "DAPT+TAPT", "unrelated DAPT", "TRANSFER-TAPT", "kNN-TAPT", "RAND-TAPT", "curated TAPT")
MINIMUM, PAIRS, NOISE, APART, LOWER, TWICE = 1.0, 5, 0.5, 0.5, 0.05, 2.0  # the numbers of the criterion, in its order
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])")
SHORTEST = 40  # characters of a sentence that may be selected


@dataclass(frozen=True)
class Size:
    """How much of everything: rows of a task, documents of a corpus, steps, tokens."""

    labels: int = 300
    dev: int = 150
    test: int = 1000
    row_tokens: int = 128
    batch: int = 8  # rows per step
    head_steps: int = 100
    dapt_steps: int = 120
    tapt_steps: int = 80
    epochs: int = 3  # of fine-tuning
    knn_k: int = 50
    judged: int = 40  # texts that the masked loss is measured on
    decoder_steps: int = 100
    decoder_row: int = 256
    scored_bytes: int = 60_000
    overlap_bytes: int = 250_000


FULL = Size()
TINY = Size(16, 8, 8, 32, 2, 1, 1, 1, 1, 2, 4, 1, 32, 500, 2000)


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Every arm's figure; stages and scores that lie in ``work`` already are not made again."""
    with kept_from_collection(tiny):
        return _run(seed, TINY if tiny else FULL, tiny, work)


def _run(seed: int, size: Size, tiny: bool, work: Path) -> dict[str, Any]:
    # the decoder first: if it is not at hand, that shows before the long part
    decoder = tiny_model("causal") if tiny else _model("seedling-xs")
    tools = Tools(Recipe.check({"title": "dapt_tapt", "seed": seed, "contamination": "off"}), Run(work / "run", seed))
    corpora, tasks = _corpora(size, tiny), {name: _task(name, seed, size, tiny) for name in TASKS}
    removed = _clean(corpora, tasks)
    arms = _decoder(tools, decoder, corpora, size)
    _learn_on(tools, corpora, tasks)
    _head(tools, corpora, size, tiny, work / "base")
    found = {task: {arm: _score(tools, task, arm, tasks, corpora, size, work) for arm in ARMS} for task in TASKS}
    arms |= {f"{task}: {arm}": 100 * found[task][arm][TASKS[task][1]] for task in TASKS for arm in ARMS}
    details = {
        "arms": found,
        "selected": {task: len(read_json(tools.run.folder / "notes" / f"kNN-TAPT-{task}.selected.json")) for task in TASKS},
        "pool": {task: len(tools.domain(f"sentences of {TASKS[task][0]}").rows("train")) for task in TASKS},
        "passes": {task: _passes(tools, task, size) for task in TASKS},
        "seconds": {path.parent.name: read_json(path)["cost"]["seconds"] for path in sorted(tools.run.folder.glob("steps/*/step.json"))},
        "shared with a test set": removed,
        "overlap": _overlap(corpora, tasks, size, tiny),
    }
    return {"arms": arms, "details": details}


# the texts


@dataclass
class Labelled:
    """Texts and labels of one task: the labelled sentences, what chooses the epoch, what is tested on, and all training texts."""

    train: tuple[list[str], list[str]]
    dev: tuple[list[str], list[str]]
    test: tuple[list[str], list[str]]
    curated: list[str]


def _model(name: str) -> "Model":
    from ...model import Model

    return Model.load(name)


def _corpora(size: Size, tiny: bool) -> dict[str, Domain]:
    if tiny:
        topics = dict(zip(CORPORA, ("biomedical", "software", "legal", "wikipedia"), strict=True))
        return {name: Domain.from_texts(name, documents(topic, 60)) for name, topic in topics.items()}
    return {name: datasets.load(f"lm/{name}") for name in CORPORA}


def _task(name: str, seed: int, size: Size, tiny: bool) -> Labelled:
    """The labelled sentences are drawn by the seed; development and test sentences are the same for all seeds."""
    if tiny:
        texts = documents({"chemprot": "biomedical", "sci_cite": "software"}[name], 100, seed=1)
        splits = {"train": texts[:60], "validation": texts[60:80], "test": texts[80:]}
        rows = {split: (given, [str(len(text) % 2) for text in given]) for split, given in splits.items()}
    else:
        domain = datasets.load(f"scibert/{name}")
        rows = {split: (list(part["text"]), list(part["label"])) for split, part in domain.splits.items()}

    def some(split: str, count: int, key: list[int]) -> tuple[list[str], list[str]]:
        texts, labels = rows[split]
        chosen = np.random.default_rng(key).permutation(len(texts))[:count]
        return [texts[i] for i in chosen], [labels[i] for i in chosen]

    number = list(TASKS).index(name)
    return Labelled(
        some("train", size.labels, [number, 1 + seed]),
        some("validation", size.dev, [number, 0]),
        some("test", size.test, [number, 0]),
        rows["train"][0],
    )


def _clean(corpora: dict[str, Domain], tasks: dict[str, Labelled]) -> dict[str, int]:
    """Leave out documents that share a span with a tested text; how many per corpus."""
    removed = {}
    for name, domain in corpora.items():
        rows = domain.rows("train")
        found = contamination(
            zip(rows["origin"], domain.texts("train"), strict=True), {task: given.test[0] for task, given in tasks.items()}
        )
        domain.splits["train"] = rows.select(found["clean"])
        removed[name] = found["removed"]
    return removed


# the decoder


def _decoder(tools: Tools, decoder: "Model", corpora: dict[str, Domain], size: Size) -> dict[str, float]:
    """Bits per byte of the decoder before and after DAPT, in either domain and on general text."""
    from ...engines.score import bits_per_byte
    from ...measure import limited

    tools.models["decoder"] = decoder
    method = load("objectives.dapt_tapt", order="dapt", dapt_lr=1e-3, dapt_batch=2 * size.batch, row_tokens=size.decoder_row)
    for name in DECODED:
        tools.domains[name] = corpora[name]
        _make(tools, f"decoder-{name}", method, "decoder", {"corpus": name}, size.decoder_steps)
    figures = {}
    for text in (*DECODED, GENERAL):
        texts = limited(corpora[text], "test", size.scored_bytes)
        for arm, ref in {"none": "decoder", **{f"{name} DAPT": f"decoder-{name}" for name in DECODED}}.items():
            figures[f"bits per byte on {text}: {arm}"] = bits_per_byte(tools.model(ref), texts).value
    return figures


# the encoder


def _make(tools: Tools, name: str, method: Any, start: str, on: dict[str, str], steps: int) -> None:
    """One run of the strategy with a fixed number of steps; the run directory is the checkpoint, so none is written on the way."""
    if name not in tools.models:
        tools.make(Step(name, "objectives.dapt_tapt", start, on, method, train={"steps": steps, "checkpoint_every": 10**6}))


def _learn_on(tools: Tools, corpora: dict[str, Domain], tasks: dict[str, Labelled]) -> None:
    """The domains that the arms learn on."""
    tools.domains |= corpora
    for task, given in tasks.items():
        tools.domains[task] = Domain.from_texts(task, given.train[0], splits=False)
        tools.domains[f"all of {task}"] = Domain.from_texts(f"all of {task}", given.curated, splits=False)
        name = f"sentences of {TASKS[task][0]}"
        sentences = [s for text in corpora[TASKS[task][0]].texts("train") for s in SENTENCE.split(text) if len(s) >= SHORTEST]
        tools.domains[name] = Domain.from_texts(name, list(dict.fromkeys(sentences)), splits=False)


class _Head(Adapter):
    """The masked-LM head alone learns: the layers above the body, without the output layer, which is the word embeddings."""

    room = "adapters"

    def peft(self, model: Any) -> Any:
        """Peft's LN tuning trains copies of whole modules, of any kind."""
        from peft import LNTuningConfig

        outside = ((name, module) for name, module in model.named_modules() if not name.startswith(f"{model.base_model_prefix}."))
        own = [name for name, module in outside if isinstance(getattr(module, "weight", None), torch.Tensor)]
        return LNTuningConfig(target_modules=[name for name in own if model.get_submodule(name) is not model.get_output_embeddings()])


def _head(tools: Tools, corpora: dict[str, Domain], size: Size, tiny: bool, folder: Path) -> None:
    """The encoder that all arms start from: its body as it comes, its head trained."""
    if not (folder / "config.json").is_file():
        with torch.random.fork_rng():
            torch.manual_seed(tools.recipe.seed)  # the fresh head
            (tiny_model("masked") if tiny else _lower_half()).save(folder)
    settings = {"steps": size.head_steps, "batch_rows": size.batch, "row_tokens": size.row_tokens, "lr": 1e-3, "checkpoint_every": 10**6}
    mixture = {name: (domain, 1.0) for name, domain in corpora.items()}
    trained = tools.train("head", _model(str(folder)), load("objectives.masked_lm"), mixture, settings, adapter=_Head())
    tools.models["start"] = trained.copy("start")


def _lower_half() -> "Model":
    from ...model import Model

    model = Model.load("minilm", kind="masked", new_head=True)
    layers = model.net.base_model.encoder
    model.net.config.num_hidden_layers = len(layers.layer) // 2
    layers.layer = layers.layer[: model.net.config.num_hidden_layers]
    return model


def _adapted(tools: Tools, task: str, arm: str, size: Size) -> str:
    """The encoder of one arm, by name; made if it is not there yet."""
    domain = TASKS[task][0]
    other = next(name for name in TASKS if name != task)
    settings = {"row_tokens": size.row_tokens, "dapt_batch": size.batch, "tapt_batch": size.batch, "tapt_lr": 5e-4}

    def dapt(corpus: str) -> str:
        _make(tools, f"DAPT-{corpus}", load("objectives.dapt_tapt", order="dapt", **settings), "start", {"corpus": corpus}, size.dapt_steps)
        return f"DAPT-{corpus}"

    def tapt(name: str, start: str, text: str, **more: Any) -> str:
        on = {"task": text} | ({"corpus": f"sentences of {domain}"} if more else {})
        _make(tools, name, load("objectives.dapt_tapt", order="tapt", **settings, **more), start, on, size.tapt_steps)
        return name

    make = {
        "none": lambda: "start",
        "DAPT": lambda: dapt(domain),
        "TAPT": lambda: tapt(f"TAPT-{task}", "start", task),
        "DAPT+TAPT": lambda: tapt(f"DAPT+TAPT-{task}", dapt(domain), task),
        "unrelated DAPT": lambda: dapt(UNRELATED),
        "TRANSFER-TAPT": lambda: tapt(f"TAPT-{other}", "start", other),
        "kNN-TAPT": lambda: tapt(f"kNN-TAPT-{task}", "start", task, knn_k=size.knn_k),
        "RAND-TAPT": lambda: tapt(f"RAND-TAPT-{task}", "start", task, knn_k=size.knn_k, selection="random"),
        "curated TAPT": lambda: tapt(f"curated-{task}", "start", f"all of {task}"),
    }
    return make[arm]()


def _score(
    tools: Tools, task: str, arm: str, tasks: dict[str, Labelled], corpora: dict[str, Domain], size: Size, work: Path
) -> dict[str, Any]:
    """The arm's F1 after fine-tuning, and its masked loss (nats per hidden token) on the task's, its domain's and general text."""
    from ...engines.score import bits_per_byte
    from ...models.classifier import fine_tune

    path = work / "scores" / f"{task} {arm}.json"
    if path.is_file():
        return read_json(path)
    model = tools.model(_adapted(tools, task, arm, size))
    given = tasks[task]
    texts = {"task": given.test[0], "domain": corpora[TASKS[task][0]].texts("validation"), "general": corpora[GENERAL].texts("validation")}
    loss = {}
    for name, some in texts.items():
        scored = bits_per_byte(model, [text[:500] for text in some[: size.judged]], width=size.row_tokens, precision="auto")
        loss[name] = float(scored.nats.sum() / scored.tokens.sum())
    found = fine_tune(
        model.net, model.tokenizer, *given.train, *given.dev, *given.test, lr=5e-4, epochs=size.epochs, pooling="mean",
        max_tokens=96, seed=tools.recipe.seed, device=model.device,
    )  # fmt: skip
    say(f"{task}, {arm}: {100 * found[TASKS[task][1]]:.1f}")
    write_json(path, {**found, "masked_loss": loss})
    return read_json(path)


# what else is told


def _passes(tools: Tools, task: str, size: Size) -> float:
    """How often TAPT has gone through the labelled sentences, each time with new masks."""
    model = tools.model(_adapted(tools, task, "TAPT", size))
    per_pass = sum(len(ids) for ids in model.tokenizer(tools.domain(task).texts("train"))["input_ids"])
    return float(tools.costs[f"TAPT-{task}.tapt"]["tokens"] / per_pass)


def _overlap(corpora: dict[str, Domain], tasks: dict[str, Labelled], size: Size, tiny: bool) -> dict[str, Any]:
    """Shared vocabulary of the corpora and tasks, in percent, from samples of equal length."""
    from ...parts.overlap import overlap_matrix

    texts = {name: domain.texts("train") for name, domain in corpora.items()} | {name: given.curated for name, given in tasks.items()}
    if not tiny:
        texts["mag"] = datasets.load("scibert/mag").texts("train")
    names, matrix = overlap_matrix({name: _first(some, size.overlap_bytes) for name, some in texts.items()})
    return {"names": names, "percent": matrix.round(1).tolist()}


def _first(texts: list[str], most: int) -> list[str]:
    ends = np.cumsum([len(text.encode()) for text in texts])
    return texts[: 1 + int(np.searchsorted(ends, most))]


# the verdict


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """Each clause of the criterion: what was found, and whether that is enough."""

    def pairs(arm: str, against: str) -> np.ndarray:
        return np.concatenate([np.subtract(figures[f"{task}: {arm}"], figures[f"{task}: {against}"]) for task in TASKS])

    found = []
    for arm in ("TAPT", "DAPT"):
        gain = pairs(arm, "none")
        up = int((gain > 0).sum())
        enough = gain.mean() >= MINIMUM and up >= PAIRS * len(gain) / 6
        found.append((f"{arm} - none {gain.mean():+.2f} F1, up in {up} of {len(gain)}", bool(enough)))
    both = min(pairs("DAPT+TAPT", arm).mean() for arm in ("DAPT", "TAPT"))
    found.append((f"DAPT+TAPT - better of the two {both:+.2f} F1", bool(both >= -NOISE)))
    apart = pairs("DAPT", "unrelated DAPT").mean()
    found.append((f"DAPT - unrelated DAPT {apart:+.2f} F1", bool(apart >= APART)))
    chosen = pairs("kNN-TAPT", "RAND-TAPT").mean()
    found.append((f"kNN-TAPT - RAND-TAPT {chosen:+.2f} F1", bool(chosen >= 0)))
    own: list[np.ndarray] = []
    others: list[np.ndarray] = []
    for text in DECODED:
        none = np.array(figures[f"bits per byte on {text}: none"])
        for name in DECODED:
            gained = 1 - np.array(figures[f"bits per byte on {text}: {name} DAPT"]) / none
            (own if name == text else others).append(gained)
    mine, theirs = np.concatenate(own), np.concatenate(others)
    enough = (mine >= LOWER).all() and (mine >= TWICE * theirs).all()
    ends = [f"{-100 * gains.max():+.1f} to {-100 * gains.min():+.1f} %" for gains in (mine, theirs)]
    found.append((f"decoder: bits per byte after DAPT {ends[0]}, after DAPT on the other domain {ends[1]}", bool(enough)))
    return found


def verdict(figures: dict[str, list[float]]) -> str:
    """Whether all clauses of the criterion are met."""
    return "holds" if all(met for _, met in clauses(figures)) else "does_not_hold"


def why(figures: dict[str, list[float]]) -> str:
    """The figure behind each clause."""
    return "; ".join(f"({number}) {said}: {'met' if met else 'not met'}" for number, (said, met) in enumerate(clauses(figures), 1))
