"""DAM: learns by gradient how much of each model goes into every column of the merged weights, each model teaching on its own text.

Gauthier-Caron et al. 2024, section 3, https://arxiv.org/abs/2410.08371 , with the defaults of https://github.com/arcee-ai/DAM
Use where a few thousand samples per model are at hand and a search over merges would be too dear. Models that are close to each other
are merged as well by their plain average. Models must share architecture, tokenizer and vocabulary size, and all must fit in memory.
For a linear layer W = sum_j W_j diag(c_j), from c = 1/k; embeddings and norms alike over their hidden dimensions. Only c learns: on the
text of model j, written in its own template, the merged network imitates model j (objectives.dam), and the models are pulled apart.
Rows of all domains are drawn with equal shares, ``batch`` of each on average, where the paper takes one batch of each per step; an epoch is
one of the first domain. The authors' code squashes a start of 1/k, so that tanh begins below the average; here the squashed value is 1/k.
Embeddings and norms learn by default (the authors' switch; their last default leaves both at the average: fix them for that).
Not done: a teacher's whole distribution (its ``teacher_k`` likeliest tokens are kept), models with vocabularies of different sizes.

>>> import torch
>>> from acclimate.models.dam import combine
>>> law, medicine = torch.tensor([[2.0, 0.0], [4.0, 1.0]]), torch.tensor([[0.0, 6.0], [2.0, 3.0]])
>>> combine([law, medicine], torch.tensor([[1.0, 0.0], [0.5, 1.0]]))  # the first column of both, the second of medicine alone
tensor([[2., 6.],
        [5., 3.]])
"""

from typing import Annotated, Any

from ...domain import Domain
from ...engines.rows import frame, render
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting, load
from ...model import Model
from ...models.dam import coefficients, collapsed, merged

LOSS = ("temperature", "similarity", "l1", "l2", "overlap", "by_angle", "mse", "entropy")  # what objectives.dam is told


class Dam(Strategy):
    """One stage; gives the merged model, an ordinary one, as ``merged``, and saves the coefficients beside it."""

    room = "merging"

    base: Annotated[bool, Setting("whether the base model is merged too; a domain more than models then teaches with it")] = False
    squash: Annotated[str, Setting("what the coefficients pass through", choices=("none", "tanh", "sigmoid", "relu"))] = "none"
    bias: Annotated[str, Setting("coefficients of a layer's bias: one for each model, or for each row", choices=("model", "row"))] = "model"
    embeddings: Annotated[bool, Setting("whether the coefficients of embeddings learn; else they stay 1/k")] = True
    norms: Annotated[bool, Setting("whether the coefficients of norms learn; else they stay 1/k")] = True
    temperature: Annotated[float, Setting("softens both distributions (the paper's T)", 1e-3)] = 2.0
    similarity: Annotated[float, Setting("weight of the cosine between coefficients of two models", 0)] = 0.01
    l1: Annotated[float, Setting("weight of the coefficients' L1 norm (the authors, where on: 1e-6)", 0)] = 0.0
    l2: Annotated[float, Setting("weight of the coefficients' L2 norm (the authors, where on: 1e-6)", 0)] = 0.0
    overlap: Annotated[float, Setting("weight of the overlap of two models' coefficients (where on: 1e-5)", 0)] = 0.0
    by_angle: Annotated[bool, Setting("whether overlap counts by sin^2(2 theta) of the models' changes")] = False
    mse: Annotated[float, Setting("weight of the squared error of log-probabilities (where on: 1)", 0)] = 0.0
    entropy: Annotated[float, Setting("weight of the merged model's entropy (where on: 0.1)", 0)] = 0.0
    lr: Annotated[float, Setting("learning rate", 0)] = 1e-3
    steps: Annotated[int, Setting("optimizer steps; 0 = as many as the epochs need", 0)] = 0
    epochs: Annotated[float, Setting("passes over the first domain, used when steps is 0", 0)] = 1.0
    batch: Annotated[int, Setting("rows per step and domain", 1)] = 1
    row_tokens: Annotated[int, Setting("longest row in tokens; 0 = the model's context, 512 at most", 0)] = 0
    teacher_k: Annotated[int, Setting("likeliest tokens kept of a teacher per position", 1)] = 50
    optimizer: Annotated[str, Setting("mofo moves the strongest entries alone, adamw all", choices=("mofo", "adamw"))] = "mofo"
    mofo_alpha: Annotated[float, Setting("share of each tensor's entries that a step of mofo moves", 0, 1)] = 0.3

    def run(self, tools: Any, *, start: Any = None, tuned: list[Any] | None = None, **domains: Domain) -> dict[str, Any]:
        """The merged model. The domains belong to the tuned models in order; one more, with ``base``, belongs to the base.

        Raises AcclimateError where their numbers differ, or the models do not fit each other.
        """
        if start is None or not tuned:
            raise AcclimateError("dam: needs the base model and the models to merge; give model: and from: [...]")
        members = [*tuned, *([start] if self.base else [])]
        if len(domains) not in (len(tuned), len(members)):
            more = f" (or {len(members)}, the last for the base)" if self.base else ""
            raise AcclimateError(
                f"dam: {len(tuned)} models are merged ({', '.join(model.name for model in tuned)}), but on: names {len(domains)} domains "
                f"({', '.join(domains) or 'none'}); give each model its own, in the same order{more}"
            )
        fixed = [kind for kind, learns in (("embedding", self.embeddings), ("norm", self.norms)) if not learns]
        network = merged(start, members, squash=self.squash, bias=self.bias, fixed=fixed)
        objective = load("objectives.dam", **{name: getattr(self, name) for name in LOSS})
        teachers = dict(zip(domains, members, strict=False))
        taught = {role: (_written(role, domain, teachers[role]), 1.0) for role, domain in domains.items()}
        model = tools.train("merged", network, objective, taught, teacher=teachers, **self.budget(len(domains)))
        tools.note("coefficients", {name: _summary(table) for name, table in coefficients(model).items()})
        return {"merged": collapsed(model)}

    def budget(self, domains: int) -> dict[str, Any]:
        """The training settings: AdamW's betas and epsilon as torch has them, a constant rate, no decay."""
        chosen = {name: getattr(self, name) for name in ("lr", "steps", "row_tokens", "teacher_k", "optimizer", "mofo_alpha")}
        rows = {"batch_rows": self.batch * domains, "epochs": self.epochs * domains}  # the engine counts passes over the first domain alone
        return {**chosen, **rows, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "beta2": 0.999, "eps": 1e-8}


def _written(role: str, domain: Domain, model: Model) -> Domain:
    """Conversations as the model's own template writes them, without what frames every row anyway; other domains as they are."""
    if domain.form != "messages":
        return domain
    before, after = (model.tokenizer.decode(ids) for ids in frame(model.tokenizer))
    texts = [render(row["messages"], model.tokenizer).rstrip("\n") for row in domain.rows("train")]
    return Domain.from_texts(role, [text.removeprefix(before).removesuffix(after) for text in texts], splits=False, source=domain.source)


def _summary(table: Any) -> dict[str, list[float]]:
    """Mean and spread over the columns, per model."""
    return {"mean": table.mean(1).tolist(), "std": table.std(1, correction=0).tolist()}
