"""Adapters of a bank in memory, on one model, as the batches of many users ask for them."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import AcclimateError
from ...model import Injected, Model
from ...model.composition import Rows
from .banked import hash_of, put, size

if TYPE_CHECKING:
    from .bank import Bank, Found


class Resident:
    """Adapters of a bank on one model: read when a batch first asks for them, the longest unused dropped over ``budget`` bytes.

    A newer version that was added to the bank takes the place of the older one at the next call, and an adapter that was taken out is gone.
    """

    def __init__(self, bank: "Bank", model: Model, *, labels: Collection[str] = (), budget: int = 0):
        bank.same_base(model)
        self.bank, self.labels, self.budget = bank, labels, budget
        self.model = model.copy(share=True)
        self.model.net = self.net = Injected(self.model.net).eval()
        self.model.notes |= {"base": model.source, "base_fingerprint": model.fingerprint}
        self._held: dict[str, tuple[str, int]] = {}  # name -> hash and bytes, the longest unused first

    @property
    def bytes(self) -> int:
        """Memory of the adapters that are in."""
        return sum(size for _, size in self._held.values())

    def rows(self, names: Sequence[str], labels: Sequence[Collection[str]] | None = None) -> Model:
        """The model with one adapter for each row of the next batch, "" for none.

        labels: those of each row's user; the ones given at the start, for all rows, if not given.
        """
        rows = Rows(names)
        if labels is not None and len(labels) != len(rows.names):
            raise AcclimateError(f"labels were given for {len(labels)} rows, but adapters for {len(rows.names)}")
        found: dict[str, Found] = {}
        for name, own in zip(rows.names, labels or [self.labels] * len(rows.names), strict=True):
            if name:
                found[name] = self.bank.get(name, labels=own)
        self._have(found)
        if not isinstance(self.net.active, Rows) or self.net.active.names != rows.names:
            self.net.activate(rows)
        return self.model

    def need(self, names: Sequence[str]) -> None:
        """Have these adapters in memory. Raises AcclimateError if the budget does not hold them together."""
        self._have({name: self.bank.get(name, labels=self.labels) for name in dict.fromkeys(names)})

    def _have(self, found: "Mapping[str, Found]") -> None:
        for name in [name for name, at in found.items() if name in self._held and self._held[name][0] != at.version.hash]:
            self._drop(name)
        wanted = {name: self._held[name][1] if name in self._held else size(at.folder, at.version.kind) for name, at in found.items()}
        total = sum(wanted.values())
        if self.budget and total > self.budget:
            raise AcclimateError(
                f"{len(found)} adapters of {total:,} bytes do not fit the budget of {self.budget:,}; ask for fewer at once"
            )
        new = [name for name in found if name not in self._held]
        for name in found:
            if name in self._held:
                self._held[name] = self._held.pop(name)
        while self.budget and self.bytes + sum(wanted[name] for name in new) > self.budget:
            self._drop(next(iter(self._held)))
        try:
            for name in new:
                at = found[name]
                if hash_of(at.folder, at.version.kind) != at.version.hash:
                    raise AcclimateError(f"the files of adapter {name!r} in {at.folder} were changed or removed; add the adapter again")
                put(self.net, name, at.folder, at.version.kind)
                self._held[name] = (at.version.hash, wanted[name])
        finally:
            if new:
                self.net.activate(None).requires_grad_(False).eval()

    def _drop(self, name: str) -> None:
        self._held.pop(name, None)
        if name in self.net.adapters:
            self.net.delete(name)
