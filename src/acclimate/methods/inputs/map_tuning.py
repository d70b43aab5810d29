"""Map-tuning: learns one affine map from knowledge-graph embeddings to a model's inputs, and plugs entities into tuned, frozen models.

Zhang et al. 2023, section 3, https://arxiv.org/abs/2305.17691
Use where texts name entities that a graph knows better than the model, and models tuned earlier must not be trained again. Not without an
entity linker, and not where knowledge and text hardly share entities.
Before each linked mention stand M(k_e) = W k_e + b and "/"; entities without an embedding are left alone. General map-tuning: the
masked language model is frozen, and one or both of a sentence's mentions are hidden (three variants), so that the map must say what
they are. The frozen model drops out more than usual (0.25) meanwhile, so that the map does not fit one state of it and still fits
models tuned from it; these are plugged as they are, also those tuned before there was a map. With ``task`` the map is trained on for
that task, the model frozen too. Controls: ``permuted``, and dropout 0. Rate, epochs and batch are those of the authors' code as
summarised; ``steps`` overrules epochs.
In a recipe ``on: {knowledge: facts, corpus: texts}`` names a domain of facts (head, relation, tail), whose embeddings TransE learns, and
text whose rows have ``mentions``; ``general`` is then an ordinary model with a token for each entity, and the map lies in ``kept/``. A task
is plugged from Python.

>>> from acclimate.engines.overlay import masked_mentions
>>> from acclimate.model.knowledge import Spelled
>>> [ids for ids, _ in masked_mentions(Spelled([48, 5, 7, 49, 5, 8], {0: [2], 1: [5]}), 3)]
[[48, 5, 3, 49, 5, 8], [48, 5, 7, 49, 5, 3], [48, 5, 3, 49, 5, 3]]
"""

from collections.abc import Sequence
from typing import Annotated, Any

from ...domain import Domain
from ...engines import transe
from ...engines.entity_tokens import with_entities
from ...engines.overlay import Headed, dropping, label_term, masked_mentions, mention_term, plug
from ...engines.staged import Stage, fit
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting
from ...model.knowledge import Knowledge, Mapped, Mention, Spelled, inject
from ...model.overlay import Overlay


class MapTuning(Strategy):
    """Stages: general (the masked model with its map), and task (a downstream model with the map trained on) where one is given."""

    room = "inputs"
    trains = False

    input_dim: Annotated[int, Setting("width of the knowledge embeddings (m)", 1)] = 128
    lr: Annotated[float, Setting("peak learning rate of the map", 0)] = 3e-5
    epochs: Annotated[float, Setting("passes over the sentences, each in all its variants", 0)] = 5.0
    steps: Annotated[int, Setting("optimizer steps; 0 = as many as epochs ask for", 0)] = 0
    batch: Annotated[int, Setting("rows a step", 1)] = 64
    dropout: Annotated[float, Setting("dropout in the frozen model while the map is trained", 0, 1)] = 0.25
    max_len: Annotated[int, Setting("ids kept of a text, entities and separators among them", 4)] = 64
    separator: Annotated[str, Setting("what stands between an entity and its mention; nothing if empty")] = "/"
    graph_epochs: Annotated[int, Setting("passes over facts that embeddings are learned from (TransE)", 1)] = 50
    permuted: Annotated[bool, Setting("give every entity the embedding of another (a control)")] = False

    def run(
        self,
        tools: Any,
        *,
        start: Any = None,
        knowledge: Knowledge | Domain | None = None,
        corpus: Domain | None = None,
        task: tuple[Headed, Sequence[Sequence[int]], Sequence[int]] | None = None,
        **unknown: Any,
    ) -> dict[str, Any]:
        """``start``: a masked language model; ``corpus``: texts with a column ``mentions`` (start, end, entity; head first, tail last).

        ``knowledge``: embeddings, and overlays come back; or a domain of facts, and ``general`` is an ordinary model with entities.
        ``task``: a tuned downstream model, its texts as :meth:`spell` gives their ids, and their classes.
        """
        if (
            unknown
            or start is None
            or knowledge is None
            or corpus is None
            or start.kind != "masked"
            or start.tokenizer.mask_token_id is None
        ):
            raise AcclimateError(
                "map_tuning needs a masked language model, knowledge and texts with mentions: give start, knowledge, corpus; in a recipe "
                "model: a masked one, on: {knowledge: a domain of facts (head, relation, tail), corpus: texts with mentions}"
            )
        graph = isinstance(knowledge, Domain)
        if isinstance(knowledge, Domain):
            if task is not None:
                raise AcclimateError("map_tuning: a task is plugged from Python, with knowledge as embeddings; leave it out of the recipe")
            knowledge = transe.embedded(knowledge, width=self.input_dim, epochs=self.graph_epochs, seed=tools.seed)
        knowledge = knowledge.permuted(tools.seed) if self.permuted else knowledge
        mapped = Mapped(knowledge, start.net.get_input_embeddings().weight.shape[1], self.input_dim, tools.seed)
        overlay = Overlay(start.copy(share=True).net, mapped)
        rows = []
        for row in corpus.rows("train"):
            if "mentions" not in row:
                raise AcclimateError(f"{corpus.name}: rows have no column mentions; link the texts first (start, end, entity)")
            mentions = [Mention(each["start"], each["end"], each["entity"]) for each in row["mentions"]]
            known = [each for each in mentions if each.entity in knowledge.number]
            if known:
                rows += masked_mentions(self.spell(start, row["text"], known, knowledge), start.tokenizer.mask_token_id)
        if not rows:
            raise AcclimateError(
                f"{corpus.name}: no mention is of an entity with an embedding; check the linker's names against the graph's"
            )
        fill = start.tokenizer.pad_token_id or 0
        with dropping(overlay.net, self.dropout):
            term = mention_term(overlay, rows, size=self.batch, seed=tools.seed, fill=fill)
            fit(overlay, {"mentions": term}, {r"^source\.map\.": self.lr}, self.stage(len(rows), tools.seed))
        if graph:
            tools.shelve("map", mapped)
            return {"general": with_entities(start, mapped, "general")}
        made: dict[str, Any] = {"general": overlay}
        if task is not None:
            headed, ids, labels = task
            made["task"] = plugged = plug(headed, mapped.over(knowledge, apart=True))
            with dropping(plugged.body, self.dropout):
                term = label_term(plugged, ids, labels, size=self.batch, seed=tools.seed, fill=fill)
                fit(plugged, {"labels": term}, {r"^body\.source\.map\.": self.lr}, self.stage(len(ids), tools.seed))
        return made

    def spell(self, model: Any, text: str, mentions: Sequence[Mention], knowledge: Knowledge | None) -> Spelled:
        """A text's ids with its entities put in, or without any where knowledge is None."""
        first = len(model.net.get_input_embeddings().weight)
        return inject(model.tokenizer, text, mentions, knowledge, first, separator=self.separator, max_len=self.max_len)

    def stage(self, rows: int, seed: int) -> Stage:
        """How long the map is trained."""
        steps = self.steps or max(1, round(self.epochs * rows / self.batch))
        return Stage(steps=steps, weight_decay=0.0, seed=seed)
