"""Does a pool of increments, picked by each text itself, learn tasks in turn as well as one LoRA per task whose number is told?

Five tasks in an order drawn by the seed: sentiment of book reviews (FDU-MTL), 20 intents of banking77, the 15 travel intents of CLINC150,
the purpose of citations (SciCite, 3 classes), the field of papers (MAG, 7); 240 rows to learn and 120 to test on of each, drawn by the
seed. Network: ``minilm``, its first four blocks run once, the last two and the mean over tokens frozen but for what an arm adds or tunes;
the same vectors are compared with the keys. Arms: fine-tuning task after task, EWC, replay of one row per class (about 1 %, where a class
has enough), a LoRA and a head per task chosen by the task's true number (oracle), SLM with rows that pick by themselves, and the same
weights picking once for each batch of 512 test rows, all of one task, as the authors' code does. Every answer is one of the task's own
classes, in all arms. Forgetting is from right after a task to the end. The details give the matrices, and how much weight each task's rows
give to each task's slots.

What differs from the paper, and why: the last two blocks of a small sentence encoder instead of BERT, other sets (its own are not at hand),
texts cut to 16 tokens, 40 steps on 16 rows a task and 24 more to fit keys instead of 5 and 3 epochs, with higher rates (1e-3; keys 1e-2,
heads 5e-3; fine-tuning 1e-4), for time; no language model that generates. RCT is not at hand; MAG stands in. About three minutes
per seed on one core, after the lower blocks ran once (a minute or two).
"""

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import datasets
from ...method import load
from ...parts.continual import backward_transfer
from ..fixture import WORDS, documents, tiny_model

if TYPE_CHECKING:
    from ...engines.continual import Task

CRITERION = """
    Accuracies in points over the own classes of each task, mean over tasks and seeds. (1) SLM with rows that pick by themselves is at most
    2.0 below the LoRA of each task's true number at the end; (2) it forgets less than 1.0; (3) at the end it is above fine-tuning, EWC
    and replay. The claim holds if all three do. It is not testable if the LoRA of each task is below 50.
"""
METRIC = "accuracy on all tasks at the end, and forgetting, in points"
SEEDS = (0, 1, 2)
BELOW, FORGOTTEN, USE = 2.0, 1.0, 50.0  # the numbers of the criterion
SETS = {"fdu_mtl/books": 2, "banking77": 20, "clinc150/travel": 15, "scibert/sci_cite": 3, "scibert/mag": 7}  # and how many classes
LEARNED, TESTED, MOST = 240, 120, 450  # rows of a task; of these many
BLOCKS, TOKENS, RANK = 4, 16, 12
STEPS, BATCH, RATE, HEAD, KEYS, WHOLE = 40, 16, 1e-3, 5e-3, 1e-2, 1e-4
OURS, TOGETHER, ORACLE = "SLM, row by row", "SLM, whole batches", "LoRA, true task"
OTHERS = {"fine-tuning": ("fine_tuning", {}), "EWC": ("ewc", {"rows": 64}), "replay": ("replay", {})}


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """All arms on one stream."""
    from ...engines.continual import Memory, learn
    from ...engines.shift import Training
    from ...parts.continual import final_success

    upper, tasks = _tasks(seed, tiny)
    classes = sum(len(task.classes) for task in tasks)
    steps = 2 if tiny else STEPS
    plan: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.01, "batch": 4 if tiny else BATCH, "choose": "last", "seed": seed}
    matrices: dict[str, list[list[float]]] = {arm: [] for arm in (*OTHERS, OURS, TOGETHER)}
    whole = Training(**plan, steps=steps, lr=WHOLE, rates={"head": HEAD / WHOLE})
    for arm, (name, settings) in OTHERS.items():
        method = load(f"continual.{name}", **settings)
        memory = Memory(per_class=1) if name == "replay" else None
        learn(method, _learner(upper, classes, seed), tasks, whole, memory, watch=_noting({arm: method}, matrices, tasks))
    given: dict[str, Any] = {"pool": 4 * len(tasks), "rank": RANK}
    ours, together = load("continual.slm", **given), load("continual.slm", **given, pooled=True)
    longer = Training(**plan, steps=round(steps / (1 - ours.keys)), lr=RATE, rates={"head": HEAD / RATE, "retriever": KEYS / RATE})
    made = _learner(upper, classes, seed)
    learn(ours, made, tasks, longer, watch=_noting({OURS: ours, TOGETHER: together}, matrices, tasks))
    alone = [_lora(upper, task, Training(**plan, steps=steps, lr=RATE, rates={"head": HEAD / RATE}), classes, seed) for task in tasks]
    arms = {f"end: {arm}": 100 * final_success(matrix) for arm, matrix in matrices.items()} | {f"end: {ORACLE}": float(np.mean(alone))}
    arms |= {f"forgotten: {arm}": -100 * backward_transfer(matrix) for arm, matrix in matrices.items()}
    picked = [ours.picked(made, ours.vectors(made, task.test.x)).mean(0).view(len(tasks), 4).sum(1).tolist() for task in tasks]
    order = [task.name for task in tasks]
    return {"arms": arms, "details": {"order": order, "matrices": matrices, "LoRA": alone, "weight [rows of, slots of]": picked}}


def right(method: Any, learner: Any, task: "Task") -> float:
    """Share of a task's test rows that are right among the task's own classes."""
    import torch

    from ...engines.shift import predict

    own = torch.tensor(task.classes)
    found = own[predict(method, learner, task.test.x)[:, own].argmax(1)]
    return float(found.eq(torch.as_tensor(task.test.y)).float().mean())


def _noting(methods: dict[str, Any], matrices: dict[str, list[list[float]]], tasks: "list[Task]") -> Any:
    def watch(_: "Task", learner: Any) -> None:
        for arm, method in methods.items():
            matrices[arm].append([right(method, learner, task) for task in tasks])

    return watch


def _lora(upper: Any, task: "Task", training: Any, classes: int, seed: int) -> float:
    """Accuracy in points of a LoRA and a head that learned one task alone."""
    from ...engines.shift import Data, fit
    from ...model.injected import Injected

    learner, plain = _learner(upper, classes, seed), load("continual.fine_tuning")
    lora = load("adapters.lora", r=RANK, alpha=RANK, target="attn.out")
    learner.featurizer = Injected(learner.featurizer).add("task", lora, seed=seed).learn("task")
    fit(plain, learner, Data([task.train]), training)
    return 100 * right(plain, learner, task)


def _learner(upper: Any, classes: int, seed: int) -> Any:
    import torch

    from ...engines.shift import Learner

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Learner(copy.deepcopy(upper), classes)


def _tasks(seed: int, tiny: bool) -> "tuple[Any, list[Task]]":
    """The upper blocks, and tasks of rows that are states of the lower ones [row, token, width]."""
    import torch

    from ...engines.continual import Task
    from ...engines.shift import Pool
    from ...model import Model
    from ...models.upper_blocks import UpperBlocks, lower_states
    from ...shifts import kept

    draw, first = np.random.default_rng([seed, 17]), 0
    names = [list(SETS)[place] for place in draw.permutation(len(SETS))]
    model = tiny_model("masked") if tiny else Model.load("minilm", kind="encoder", device="cpu")
    body, below = (model.net.base_model, 0) if tiny else (model.net, BLOCKS)
    found = []
    for number, name in enumerate(names[: 2 if tiny else None]):
        texts, labels = _made_up(number) if tiny else _texts(name)
        if tiny:
            x = lower_states(body, model.tokenizer, texts, 0, 12)
        else:
            key = [model.fingerprint, "states", BLOCKS, TOKENS, texts]
            x = kept(key, partial(_half, lower_states, body, model.tokenizer, texts, BLOCKS, TOKENS)).float()
        classes = sorted(set(labels))
        y = torch.tensor([first + classes.index(label) for label in labels])
        rows = torch.from_numpy(draw.permutation(len(texts)))
        cut = min(LEARNED, 2 * len(texts) // 3)
        train, test = (Pool(name, x[some], y[some]) for some in (rows[:cut], rows[cut : cut + TESTED]))
        found.append(Task(name, train, test, tuple(range(first, first + len(classes))), number))
        first += len(classes)
    return UpperBlocks(body, below), found


def _half(make: Any, *given: Any) -> Any:
    return make(*given).half()


def _texts(name: str) -> tuple[list[str], list[str]]:
    """The same MOST rows of a set for every seed, of its first classes alone."""
    domain = datasets.load(name)
    rows = [row for split in ("train", "validation", "test") if split in domain.splits for row in domain.rows(split)]
    wanted = set(sorted({row["label"] for row in rows})[: SETS[name]])
    rows = [row for row in rows if row["label"] in wanted]
    chosen = [rows[place] for place in np.random.default_rng(7).permutation(len(rows))[:MOST]]
    return [row["text"] for row in chosen], [row["label"] for row in chosen]


def _made_up(number: int) -> tuple[list[str], list[str]]:
    topics = list(WORDS)[2 * number : 2 * number + 2]
    pairs = [(text, topic) for topic in topics for text in documents(topic, 12)]
    return [text for text, _ in pairs], [topic for _, topic in pairs]


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """What the figures say to each clause of the criterion, and whether it is met."""
    mean = {arm: float(np.mean(values)) for arm, values in figures.items()}
    ours, lost = mean[f"end: {OURS}"], mean[f"forgotten: {OURS}"]
    rivals = {arm: mean[f"end: {arm}"] for arm in OTHERS}
    said = ", ".join(f"{arm} {value:.1f}" for arm, value in rivals.items())
    return [
        (f"SLM {ours:.1f}, LoRA of the true task {mean[f'end: {ORACLE}']:.1f}", ours >= mean[f"end: {ORACLE}"] - BELOW),
        (f"SLM forgets {lost:.2f} points", lost < FORGOTTEN),
        (f"SLM {ours:.1f}, {said}", ours > max(rivals.values())),
    ]


def testable(figures: dict[str, list[float]]) -> bool:
    """Whether the tasks can be learned at all."""
    return bool(np.mean(figures[f"end: {ORACLE}"]) >= USE)
