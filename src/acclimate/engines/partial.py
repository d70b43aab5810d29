"""Models of which some weights alone learn: frozen layers that a run respects."""

from collections.abc import Iterable

from ..errors import AcclimateError
from ..files import digest
from ..model import Model
from ..model.roles import number

GROUPS = ("embeddings", "head", "first_layer", "last_layer", "all")


class Partial(Model):
    """A model of which only some weights learn: copies, which are what is trained, keep each weight's ``requires_grad``."""

    @property
    def fingerprint(self) -> str:
        """The hash of all weights and of which of them learn, so that a run with others frozen is another run."""
        return digest([super().fingerprint, sorted(name for name, value in self.net.named_parameters() if value.requires_grad)])

    def copy(self, name: str | None = None, share: bool = False, keep: bool = False) -> Model:
        """As ``Model.copy``, with the same weights frozen."""
        learns = {path: value.requires_grad for path, value in self.net.named_parameters()}
        made = super().copy(name, share, keep)
        for path, value in made.net.named_parameters():
            value.requires_grad_(learns.get(path, True))
        return made


def partial(model: Model, groups: Iterable[str]) -> Model:
    """The same model, weights shared, of which the named groups learn: embeddings, head, first_layer, last_layer, all."""
    groups = set(groups)
    if not groups or groups - {*GROUPS}:
        raise AcclimateError(f"train = {sorted(groups)}, but must name some of: {', '.join(GROUPS)}")
    if "all" in groups:
        return model
    made = model.copy(share=True)
    net = made.net
    tables = {"embeddings": net.get_input_embeddings(), "head": net.get_output_embeddings()}
    learns = {id(value) for group, part in tables.items() if group in groups and part is not None for value in part.parameters()}
    last = max(number(path) for path, _ in net.named_parameters())
    layers = {0: "first_layer", last: "last_layer"} if last else {0: "first_layer" if "first_layer" in groups else "last_layer"}
    for path, value in net.named_parameters():
        value.requires_grad_(id(value) in learns or layers.get(number(path)) in groups)
    return Partial(made.name, net, made.tokenizer, made.kind, made.source, made.notes)
