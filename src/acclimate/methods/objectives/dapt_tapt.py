"""DAPT and TAPT: goes on with pretraining, first on text of the domain, then on the task's own text.

Gururangan et al. 2020, sections 3 to 5 and tables 13 and 14, https://arxiv.org/abs/2004.10964
Use before fine-tuning on few labels, where the text of the domain or of the task is unlike what the model was pretrained on. Not with
text of an unrelated domain: in the paper that is worse than no further training. DAPT needs much text and time; TAPT needs only the
texts of the task, and with ``knn_k`` also those of the domain that are nearest to them.
The model's own pretraining loss is used: masked_lm for encoders, causal_lm for decoders. Defaults are the paper's; its batches are meant
for accelerators. Left out: the human-curated pool of section 5.1 is a choice of data, so give its text as the task's; fine-tuning
(see acclimate.models.classifier). ``joint`` and ``tapt_dapt`` are controls that the paper does not have.

>>> domain = np.array([[9.0, 1.0], [1.0, 9.0], [2.0, 9.0], [8.0, 2.0], [5.0, 5.0]])
>>> task = np.array([[1.0, 0.0], [2.0, 0.1]])
>>> generator = np.random.default_rng(0)
>>> DaptTapt(knn_k=2).select(task, domain, generator), len(DaptTapt(knn_k=2, selection="random").select(task, domain, generator))
(array([0, 3]), 2)
>>> DaptTapt(order="tapt_dapt").stages(), DaptTapt(dapt_batch=256).budget("dapt")["steps"]
(['tapt', 'dapt'], 12500)
"""

from typing import Annotated, Any

import numpy as np

from ...domain import Domain
from ...errors import AcclimateError
from ...kinds import Objective, Strategy
from ...method import Setting, load
from ...parts.knn_select import knn_select, random_select


class DaptTapt(Strategy):
    """Stages of continued pretraining; gives a model per stage by its name: dapt, tapt or joint."""

    room = "objectives"

    order: Annotated[
        str,
        Setting(
            "stages: the domain, the task, one after the other, or both at once",
            choices=("dapt_tapt", "tapt_dapt", "dapt", "tapt", "joint"),
        ),
    ] = "dapt_tapt"
    dapt_steps: Annotated[int, Setting("optimizer steps on the domain (also of the joint stage)", 1)] = 12500
    dapt_batch: Annotated[int, Setting("rows per step on the domain", 1)] = 2048
    dapt_lr: Annotated[float, Setting("peak learning rate on the domain", 0)] = 5e-4
    tapt_epochs: Annotated[float, Setting("passes over the task's texts (and those selected for it), each with new masks", 0)] = 100.0
    tapt_batch: Annotated[int, Setting("rows per step on the task", 1)] = 256
    tapt_lr: Annotated[float, Setting("peak learning rate on the task", 0)] = 1e-4
    row_tokens: Annotated[int, Setting("longest row in tokens; 0 = the model's context, 512 at most", 0)] = 512
    micro_rows: Annotated[int, Setting("rows that go through the network at once; 0 = the whole step", 0)] = 16
    mask_probability: Annotated[float, Setting("share of the tokens an encoder has to predict", 0, 1)] = 0.15
    beta1: Annotated[float, Setting("AdamW's decay of the first moment", 0, 1)] = 0.9
    beta2: Annotated[float, Setting("AdamW's decay of the second moment", 0, 1)] = 0.98
    eps: Annotated[float, Setting("AdamW's epsilon", 0)] = 1e-6
    weight_decay: Annotated[float, Setting("AdamW's decoupled weight decay", 0)] = 0.01
    warmup: Annotated[float, Setting("share of the steps in which the rate rises from 0", 0, 1)] = 0.06
    knn_k: Annotated[
        int, Setting("texts of the domain taken for each task text (the paper: 50, 150, 500); 0 = the task's texts alone", 0)
    ] = 0
    selection: Annotated[str, Setting("how they are taken: the nearest by topic, or as many at random", choices=("knn", "random"))] = "knn"
    joint_share: Annotated[float, Setting("share of the rows that are the task's where both are learnt at once", 0, 1)] = 0.5

    def run(
        self, tools: Any, *, start: Any = None, corpus: Domain | None = None, task: Domain | None = None, **unknown: Any
    ) -> dict[str, Any]:
        """The model of each stage, in order.

        ``corpus`` is text of the domain, ``task`` the task's texts (labels are not looked at). Raises AcclimateError where a stage lacks
        its text, or the model is neither masked nor causal.
        """
        stages = self.stages()
        given = {"start": start, "corpus": corpus, "task": task}
        needed = {"start"} | ({"corpus"} if stages != ["tapt"] or self.knn_k else set()) | ({"task"} if stages != ["dapt"] else set())
        missing = sorted(role for role in needed if given[role] is None)
        if missing or unknown:
            wrong = f"needs {missing[0]}" if missing else f"takes no {sorted(unknown)[0]}"
            raise AcclimateError(
                f"dapt_tapt, order {self.order}, {wrong}: give on: {{corpus: text of the domain, task: texts of the task}}"
            )
        objective = self.objective(start)
        task_text = self.widened(tools, corpus, task) if self.knn_k and task is not None and corpus is not None else task
        made: dict[str, Any] = {}
        for stage in stages:
            text: Any = corpus if stage == "dapt" else task_text
            if stage == "joint" and corpus is not None and task_text is not None:
                text = {corpus.name: (corpus, 1 - self.joint_share), task_text.name: (task_text, self.joint_share)}
            start = made[stage] = tools.train(stage, start, objective, text, **self.budget(stage))
        return made

    def stages(self) -> list[str]:
        """The names of the stages, in order."""
        return self.order.split("_")

    def objective(self, model: Any) -> Objective:
        """The model's own pretraining loss."""
        if model.kind == "masked":
            return load("objectives.masked_lm", probability=self.mask_probability)
        if model.kind == "causal":
            return load("objectives.causal_lm")
        raise AcclimateError(f"dapt_tapt goes on with masked or causal language modelling, but {model.name} is {model.kind}")

    def budget(self, stage: str) -> dict[str, Any]:
        """The training settings of one stage."""
        shared = {name: getattr(self, name) for name in ("row_tokens", "micro_rows", "beta1", "beta2", "eps", "weight_decay", "warmup")}
        if stage == "tapt":
            own: dict[str, Any] = {"epochs": self.tapt_epochs, "batch_rows": self.tapt_batch, "lr": self.tapt_lr}
        else:
            own = {"steps": self.dapt_steps, "batch_rows": self.dapt_batch, "lr": self.dapt_lr}
        return {**own, **shared, "schedule": "linear"}

    def widened(self, tools: Any, corpus: Domain, task: Domain) -> Domain:
        """The task's texts with those of the domain that are taken for them; every text once, no copy of a task text."""
        own = list(dict.fromkeys(task.texts("train")))
        pool = list(dict.fromkeys(corpus.texts("train")))
        vectors = tools.topics([*own, *pool])
        generator = np.random.default_rng(tools.seed)
        copies = np.isin(pool, own)
        taken = self.select(vectors[: len(own)], vectors[len(own) :], generator, exclude=copies)
        texts = [pool[i] for i in taken]
        tools.note("selected", texts)
        return Domain.from_texts(f"{task.name}+{self.selection}{self.knn_k}", [*own, *texts], splits=False, source=corpus.source)

    def select(self, task: np.ndarray, pool: np.ndarray, generator: np.random.Generator, exclude: np.ndarray | None = None) -> np.ndarray:
        """Indices into the pool: task [text, topic] and pool [document, topic] -> [taken]; at random, as many as neighbours there are."""
        nearest = knn_select(task, pool, self.knn_k, exclude=exclude)
        if self.selection == "knn":
            return nearest
        return random_select(len(pool), len(nearest), generator, exclude=exclude)
