"""One class per kind of method: its room, its verb, and the shapes that go in and come out."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from .method import Method, arguments, load

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


class Data(Method):
    """Keeps, changes or groups documents. Engine: documents."""

    room = "data"
    verb = "keep"

    @abstractmethod
    def keep(self, doc: dict) -> bool | str:
        """True to keep the document, or the reason to drop it."""


class Inputs(Method):
    """Fits a plug-in to a model's input side: vocabulary, tags, soft prompts, knowledge maps. Engine: train."""

    room = "inputs"
    verb = "fit"

    @abstractmethod
    def fit(self, model: Any, tokenizer: Any, domain: Any) -> Any:
        """A plug-in that maps old weights and never loses them."""


class Objective(Method):
    """A training loss; the arguments of ``loss`` are words (words.py) and say what data it needs. Engine: train.

    ``loss`` returns a scalar. Where ``items`` is asked for, the sum over the batch is divided by it, so that the gradient does
    not depend on how a step is cut into micro-batches.
    """

    room = "objectives"
    verb = "loss"

    def corrupt(
        self, tokens: "np.ndarray", special: "np.ndarray", vocabulary: int, mask_id: int | None, generator: "np.random.Generator"
    ) -> tuple:
        """Inputs and labels made of clean ids [token] (``special``: 1 where an id is structural, ``mask_id``: the tokenizer's mask token).

        By default the inputs are the clean ids and each label is the id that follows; masked objectives override this.
        """
        import numpy as np

        return tokens, np.append(tokens[1:], -100)


class Adapter(Method):
    """A small trainable part inside a frozen model. Engine: train.

    A method gives a peft configuration (where peft has the method), or what stands beside a layer, or both. With the latter its settings
    ``target`` and ``layers`` say which layers (model/roles.py), and its adapters can be composed and mixed in a batch (model/injected.py).
    """

    room = "adapters"
    verb = "wrap"

    def wrap(self, layer: Any) -> Any:
        """A module beside one layer (a model.roles.Site): ``forward(x, y)`` gives what is added to the layer's output y, 0 at the start.

        Its ``delta(weight, bias)`` gives the same as a change of the layer's weights, where that can be.
        """
        raise TypeError(f"{self.name} is a peft configuration and wraps no single layer")

    def peft(self, model: Any) -> Any | None:
        """The peft configuration for this model (a transformers model), or None for an adapter of our own."""
        return None


class Merge(Method):
    """Combines checkpoints of one architecture, tensor by tensor. Engine: tensors.

    The arguments of ``merge`` are words (words.py). A tensor comes in chunks; what depends on the whole of it is gathered first by
    ``look``, whose results are added up over the chunks; a setting ``scope = "model"`` adds them up over all tensors. ``rows = True`` asks
    for chunks of whole rows; ``takes`` is how many tuned models there may be.
    """

    room = "merging"
    verb = "merge"
    rows: ClassVar[bool] = False
    takes: ClassVar[tuple[int, int]] = (1, 1000)

    @abstractmethod
    def merge(self, *args: Any, **words: Any) -> "Tensor":
        """tuned [model, *shape] and what else is asked for -> merged [*shape]."""

    @property
    def model_wide(self) -> bool:
        """Whether looks are added up over all tensors instead of over one."""
        return getattr(self, "scope", "") == "model"

    def look(self, base: "Tensor | None", tuned: "Tensor", seen: "list[Tensor]", bits: int = 32) -> "Tensor | None":
        """What the next look at a chunk finds, given the sums of the earlier looks; None when nothing more has to be seen.

        ``bits`` is the width of the entries as they are stored: what ranks them need not look finer than that.
        """
        return None

    def settle(self, seen: "list[Tensor]", models: int) -> Any:
        """What ``merge`` gets as ``seen``, made of the looks' sums once for all chunks; the sums themselves unless a method says more."""
        return seen

    def fused(self, models: int) -> Any:
        """This merge of so many models as numbers (parts/fused.py), for compiled code; None where it is more than one pass."""
        return None

    def whole(
        self, base: "Tensor | None", tuned: "Tensor", seed: "int | list[int]" = 0, seen: "list[Tensor] | None" = None, bits: int = 32
    ) -> "Tensor":
        """Merge one tensor that is in memory: base [*shape] or None, tuned [model, *shape] -> merged [*shape].

        ``seen`` gives the looks where they were taken over more than this tensor.
        """
        import numpy as np

        looks = [] if seen is None else seen
        while seen is None and (found := self.look(base, tuned, looks, bits)) is not None:
            looks.append(found)
        settled = self.settle(looks, len(tuned))
        given = {"base": base, "tuned": tuned, "seen": settled, "generator": np.random.Generator(np.random.SFC64(seed))}
        return self.merge(**{word: given[word] for word in self.asked()})


class Experts(Method):
    """Builds one system of several experts. Engines: train, generate."""

    room = "experts"
    verb = "build"

    @abstractmethod
    def build(self, base: Any, experts: Any, domains: Any) -> Any:
        """A system with ``logprobs``, ``generate``, ``add`` and ``remove``."""


class Routing(Method):
    """Chooses who answers a request. Engine: generate."""

    room = "routing"
    verb = "route"

    @abstractmethod
    def route(self, prompts: list[str], user: Any) -> list:
        """Decisions: ids, weights, cost, reason; access is enforced before weights are normalised."""


class Editing(Method):
    """Changes single facts in a model. Engine: edit."""

    room = "editing"
    verb = "edit"

    @abstractmethod
    def edit(self, model: Any, requests: list) -> Any:
        """The edited model."""


class Retrieval(Method):
    """Finds documents. Engine: index."""

    room = "retrieval"
    verb = "find"

    @abstractmethod
    def find(self, queries: list[str], k: int) -> Any:
        """Ids and scores of the k best documents per query."""


class Agents(Method):
    """Solves a task with calls to a language model and to tools. Engine: agent."""

    room = "agents"
    verb = "solve"

    @abstractmethod
    def solve(self, task: Any, llm: Any, tools: Any) -> Any:
        """A trace: every call, its cost, the answer."""


class _Shift(Method):
    """The common face of methods that train a learner (engines/shift): its step is a sequence of (loss, who learns).

    ``step`` asks for words: ``learner``, ``source`` or ``domains``, ``target``. It yields a loss, from which everyone learns; (loss,
    players), where players are names (featurizer, head, norms, a part); or a list of these, made from the same weights and played at
    once. What ``build`` gives stands in ``learner.parts``, what has to be remembered in ``learner.memory``. All else may be left out.
    """

    verb = "step"
    least: ClassVar[int] = 1  # labelled domains without which the method has no meaning
    training: ClassVar[dict[str, Any]] = {}  # the paper's training settings, where they are not the engine's (engines/shift Training)
    fresh: ClassVar[bool] = False  # source-free, but from weights of its own: only what ``adopt`` takes over is left of the source model
    open: ClassVar[bool] = False  # its scores end in one more column: "unknown", a class that no source has
    form: ClassVar[str] = ""  # "graph" where rows must be nodes of graphs or small graphs (models/graph.py), "nodes" where they are nodes

    @classmethod
    def source_free(cls) -> bool:
        """Whether no source row is seen: the method starts from a model that was trained on them."""
        return not {"source", "domains"} & set(arguments(cls, "step"))

    def vendor(self) -> Any:
        """The method that trains the source model, where no source row is seen."""
        return load("domain_generalization.erm")

    def adopt(self, learner: Any, model: Any, x: "Tensor") -> None:
        """Where ``fresh``: what a new learner takes over of the source model, given all target rows; called before training."""

    def build(self, learner: Any) -> "dict[str, nn.Module]":
        """Parts beside featurizer and head that the method trains, by name."""
        return {}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Before the first step; source and target are all rows that may be seen, or None."""

    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """Before every pass over the largest domain, the first one too. May ask for ``labelled``: all rows whose labels were asked for."""

    def end(self, learner: Any, source: Any, target: Any) -> None:
        """After the last step, with the weights that were kept. May ask for ``validation``: all held-out rows of the sources, or None."""

    def predict(self, learner: Any, x: "Tensor") -> "Tensor":
        """Scores of the classes [row, class]. A method that must know the domain asks for ``where`` as well (engines.shift.Place)."""
        return learner(x)


class DomainAdaptation(_Shift):
    """Labelled source, unlabelled target. Engine: shift."""

    room = "domain_adaptation"


class DomainGeneralization(_Shift):
    """Several labelled domains, an unseen target. Engine: shift."""

    room = "domain_generalization"


class TestTime(_Shift):
    """Adapts while it predicts. Engine: online; a ``step``, where the method has one, trains the source model (engine: shift).

    ``adapt`` sees one batch of a stream. It yields losses like ``step`` and returns the scores [row, class]. ``reset`` of the engine
    restores weights, memory and optimizer exactly.
    """

    room = "test_time"
    verb = "adapt"
    online: ClassVar[dict[str, Any]] = {}  # the paper's training settings on the stream, where they are not those of ``training``

    @abstractmethod
    def adapt(self, learner: Any, x: "Tensor") -> Any:
        """A generator that yields (loss, who learns) and returns scores; or the scores themselves."""

    def step(self, learner: Any, domains: Any) -> Any:
        """Training of the source model: plain unless the method says more."""
        yield learner.loss(learner(domains.x), domains.y)


def _on_labelled(self: Any, learner: Any, source: Any = None, labelled: Any = None) -> Any:
    """Plain training on the source and on the rows that were asked for, unless the method says more."""
    yield sum(learner.loss(learner(batch.x), batch.y) for batch in (source, labelled) if batch is not None)


def _with_replay(self: Any, learner: Any, domains: Any, replay: Any = None) -> Any:
    """Mean of the losses on the task's rows and on replayed ones where a memory is kept, unless the method says more."""
    parts = [learner.loss(learner(batch.x), batch.y) for batch in (domains, replay) if batch is not None]
    yield sum(parts) / len(parts)


class ActiveLearning(_Shift):
    """Chooses what to label next. Engine: active; ``step`` trains between the rounds (engine: shift)."""

    room = "active_learning"
    verb = "query"

    @abstractmethod
    def query(self, learner: Any, pool: Any, budget: int) -> "np.ndarray":
        """Places in the unlabelled pool (a batch), ``budget`` of them, the most wanted first.

        May ask for ``labelled`` as well: all rows of the target that were asked for before, or None.
        """

    step: ClassVar[Callable[..., Any]] = _on_labelled


class Continual(_Shift):
    """Learns one task after another. Engine: continual.

    ``step`` sees a batch of the task at hand (and ``replay``, where it asks for it); ``before`` and ``after`` a whole task.
    """

    room = "continual"

    @property
    def borders(self) -> bool:
        """Whether it must be told where a task begins and ends; if not, it can learn a stream without borders as well."""
        return type(self).before is not Continual.before or type(self).after is not Continual.after

    def before(self, learner: Any, task: Any) -> None:
        """Before a task's first step; ``task`` holds all its rows (batch), its number and its classes."""

    def after(self, learner: Any, task: Any) -> None:
        """After a task's last step."""

    step: ClassVar[Callable[..., Any]] = _with_replay


class Evaluation(Method):
    """Scores outputs against the truth. Engine: score."""

    room = "evaluation"
    verb = "score"

    @abstractmethod
    def score(self, outputs: Any, truth: Any) -> dict[str, tuple[float, int]]:
        """Each figure with the number of items behind it."""


class Interpretation(Method):
    """Explains what a model does on a domain. Engine: generate."""

    room = "interpretation"
    verb = "analyse"

    @abstractmethod
    def analyse(self, model: Any, domain: Any) -> Any:
        """Tables and graphs."""


class Planning(Method):
    """Ranks what to do next. Engine: score."""

    room = "planning"
    verb = "plan"

    @abstractmethod
    def plan(self, budget: Any, facts: Any) -> list:
        """Steps, best first, each with its reason."""


class Strategy(Method):
    """Works through others: gets the engines as ``tools`` (train, score, generate ...) and says in which order to use them.

    A strategy stands in the room of what it teaches, so each one names its ``room`` itself. One that never calls ``tools.train`` says
    ``trains = False``: a recipe's ``train:`` would reach nothing there and is refused.
    """

    verb = "run"
    trains: ClassVar[bool] = True

    @abstractmethod
    def run(self, tools: Any, **given: Any) -> Any:
        """What the strategy makes, usually a dict of models by stage."""


KINDS: dict[str, type[Method]] = {
    kind.room: kind for kind in list(vars().values()) if isinstance(kind, type) and issubclass(kind, Method) and kind.room
}
ROOMS: dict[str, str] = {room: (kind.__doc__ or "").partition("\n")[0] for room, kind in KINDS.items()}
