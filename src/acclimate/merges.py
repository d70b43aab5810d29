"""Merging as a verb: models and a method, or a mergekit YAML as it is, to a model folder.

>>> import acclimate
>>> acclimate.merge("linear", ["seedling"], out="/tmp/never", dry_run=True)["method"]
'merging.linear'
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .engines.merging import planning
from .engines.merging.adapted import open_model
from .engines.merging.tensors import SHARD
from .errors import AcclimateError
from .files import read_yaml, yaml_text
from .kinds import Merge
from .lazy import torch
from .method import find
from .progress import say


def merge(
    method: str | Merge,
    models: Sequence[str] = (),
    *,
    base: str = "",
    out: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    per_tensor: Callable[[str], dict[str, Any]] | None = None,
    dtype: str = "",
    tokenizer: str = "",
    seed: int = 0,
    workers: int = 0,
    shard: int = SHARD,
    check: bool = True,
    resume: bool = True,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Merge models into the folder ``out`` and return the report; with ``dry_run`` only say what would be done, in how much memory.

    Args:
        method: a method of the merging room (``ties``, ``merging.ties`` or an object), or the path of a mergekit YAML file.
        models: folders, Hugging Face ids, embedded models, or peft adapters (each is added to its own base as it is read).
        base: what the models were tuned from, for methods that work on changes.
        per_tensor: settings that differ from ``settings``, by the tensor's name.
        dtype: float32, float16 or bfloat16 of the output; the base's (or first model's) if empty. Arithmetic is in fp32.
        tokenizer: ``base`` or ``union`` where the models' tokenizers differ.
        check: hash the parents, load the merged model and run a probe through it, and draw the report in its merge.html.
        resume: go on with a merge of the same inputs that was killed.

    Raises AcclimateError for bad input: one line that names the model and the tensor.
    """
    if isinstance(method, str) and method.endswith((".yaml", ".yml")):
        from .mergekit import read

        made, notes = read(method, dtype=dtype, tokenizer=tokenizer)
    else:
        made, notes = _plan(_method(method, settings or {}), list(models), base, per_tensor, dtype, tokenizer)
    facts = {
        "method": made.method,
        "models": [model.ref for model in made.models],
        "tensors": len(made.works),
        "output_bytes": made.bytes,
        "chunk_memory_bytes": made.memory(workers),
        "vocabulary": made.vocabulary.report,
    }
    if dry_run:
        return facts
    if out is None:
        raise AcclimateError("say where the merged model goes: out")
    say(f"merging {len(made.works)} tensors ({made.bytes / 1e9:.2f} GB) with {made.memory(workers) / 1e6:.0f} MB of chunks")
    return planning.run(
        made, out, seed=seed, workers=workers, shard=shard, check=check, resume=resume, notes=notes, page=_page if check else None
    )


def _page(report: dict[str, Any], name: str) -> str:
    from .report.merge_page import merge_page

    return merge_page(report, name)


def extract(tuned: str, base: str, out: str | Path, *, rank: int = 0, energy: float = 0.0) -> dict[str, Any]:
    """What ``tuned`` changed of ``base`` as a LoRA adapter in peft's own format, by SVD of each linear layer; loadable by plain peft.

    Args:
        rank: ranks kept of each layer; 0 = as many as ``energy`` asks for.
        energy: share of each layer's squared singular values that is kept, from above 0 to 1.

    Norms and embeddings that changed are kept whole. Gives the folder, the ranks, and the share of the change that the adapter holds.
    """
    from .engines.merging.patches import Patch, differences
    from .model import Model

    if not rank and not 0 < energy <= 1:
        raise AcclimateError("say how much of the change is kept: rank (a whole number), or energy (above 0, at most 1)")
    start = Model.load(base)
    patch = Patch.of_changes(start, differences(start, Model.load(tuned)), rank=rank, energy=energy or 1.0)
    model = patch.attach(start, Path(out).name)
    model.notes |= {"base": start.source, "base_fingerprint": start.fingerprint, "made": {"base": base, "method": "extract", "from": tuned}}
    folder = model.save(out)
    return {"folder": str(folder), "ranks": {path: low.b.shape[1] for path, low in patch.low.items()}, **patch.facts}


def combine(
    adapters: Sequence[str],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    rank: int = 0,
    energy: float = 0.0,
    method: str | Merge = "sum",
    settings: dict[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Combine LoRA adapters of one base into one adapter in peft's own format; the base is not loaded.

    Args:
        adapters: folders or Hugging Face ids of LoRA adapters; DoRA too, where rank or energy is given.
        weights: weight of each adapter's change (1 each if not given).
        rank: most ranks kept of each layer. With neither rank nor energy the sum is exact: ranks are laid side by side.
        energy: share of each layer's squared singular values that is kept, from above 0 to 1.
        method: ``sum``, or a method of the merging room that works on changes (ties, dare, della, breadcrumbs, task_arithmetic ...): it
            merges the adapters' dense changes on a base of zeros, layer by layer, and its result is split again to rank or energy.
        settings: settings of the method; its ``weights`` are ``weights``.

    Gives the folder, the ranks, the share of the energy kept, and the cosine of each adapter's change with the combined one.

    Raises AcclimateError for adapters of several bases, or of another make.
    """
    from .engines.merging import combining
    from .engines.merging.adapted import Adapted

    refs, given = list(adapters), dict(settings or {})
    if not refs:
        raise AcclimateError("name the adapters to combine")
    each = [float(weight) for weight in weights] if weights is not None else [1.0] * len(refs)
    if len(each) != len(refs):
        raise AcclimateError(f"weights holds {len(each)} values for {len(refs)} adapters; give one for each")
    if rank < 0 or not 0 <= energy <= 1:
        raise AcclimateError(f"rank = {rank}, energy = {energy}, but rank must be 0 or more and energy from 0 to 1")
    chosen = None if method == "sum" else _of_changes(method, given, each if weights is not None else None)
    if chosen is None and given:
        raise AcclimateError(f"a plain sum has no setting {next(iter(given))!r}; choose a method")
    if chosen is not None and not (rank or energy):
        raise AcclimateError(f"what {chosen.name} makes of changes is not of low rank; say how much of it is kept: rank or energy")
    if chosen is not None:
        checked(chosen, len(refs), has_base=True)
    combining.free(out)
    opened = [open_model(ref) for ref in refs]
    read = [model for model in opened if isinstance(model, Adapted)]
    if len(read) < len(opened):
        whole = next(model for model in opened if not isinstance(model, Adapted))
        raise AcclimateError(f"{whole.ref} is a whole model, not an adapter; merge it, or extract its adapter first")
    combining.one_base(read)
    dora = next((model for model in read if model.settings.get("use_dora")), None)
    if dora and not (rank or energy):
        raise AcclimateError(f"the change of {dora.ref} (DoRA) is not of low rank; say how much of it is kept: rank or energy")
    made = combining.combine(read, each, method=chosen, rank=rank, energy=energy, seed=seed)
    about = {"method": chosen.name if chosen else "sum", "adapters": refs, "weights": each, "rank": rank, "energy": energy, "seed": seed}
    about |= {"settings": chosen.values()} if chosen else {}
    folder = combining.save(made, out, about)
    for model in read:
        model.close()
    ranks = {made.kinds[name][0]: b.shape[1] for name, (b, _) in made.low.items()}
    return {"folder": str(folder), "ranks": ranks, **made.facts, "made": about}


def _of_changes(method: str | Merge, settings: dict[str, Any], weights: list[float] | None) -> Merge:
    """A method that sees nothing but changes: moving base and tunes alike moves what it gives alike. Raises AcclimateError for others."""
    if weights is not None and isinstance(method, str):
        settings = {"weights": weights, **settings}
    chosen = _method(method, settings)
    if "base" not in chosen.needs():
        raise AcclimateError(f"{chosen.name} does not work on changes; choose ties, dare, della, breadcrumbs or task_arithmetic")
    made = torch.Generator().manual_seed(0)
    count = max(chosen.takes[0], *(len(value) for value in chosen.values().values() if isinstance(value, list)), 1)
    tuned, move = torch.randn(count, 4, 8, generator=made), torch.randn(4, 8, generator=made)
    apart = chosen.whole(move, tuned + move) - chosen.whole(torch.zeros(4, 8), tuned) - move
    if apart.abs().max() > 1e-4:
        raise AcclimateError(f"{chosen.name} does not work on changes alone; choose ties, dare, della, breadcrumbs or task_arithmetic")
    return chosen


def checked(method: Merge, models: int, has_base: bool) -> None:
    """Whether a method can work with so many models and this base. Raises AcclimateError."""
    least, most = method.takes
    name = method.name.partition(".")[2]
    if not least <= models <= most:
        wanted = f"{least}" if least == most else f"{least} or more" if most >= 1000 else f"{least} to {most}"
        raise AcclimateError(f"{name} takes {wanted} tuned models, but was given {models}")
    if "base" in method.needs() and not has_base:
        raise AcclimateError(f"{name} works on the changes from a base; name the model that the others were tuned from with base")
    for setting in ("weights", "keep", "drop", "window", "outliers"):
        values = method.values().get(setting)
        if isinstance(values, list) and len(values) not in (1, models):
            raise AcclimateError(f"{name}: {setting} holds {len(values)} values for {models} models; give one for all, or one for each")


def _plan(
    method: Merge, refs: list[str], base: str, per_tensor: Callable[[str], dict[str, Any]] | None, dtype: str, tokenizer: str
) -> tuple[planning.Plan, dict[str, Any]]:
    checked(method, len(refs), bool(base))
    opened = [open_model(ref) for ref in refs]
    start = open_model(base) if base and "base" in method.asked() else None
    made: dict[str, Merge] = {}

    def choose(name: str, place: float, number: int) -> Merge:
        own = per_tensor(name) if per_tensor else {}
        key = repr(sorted(own.items()))
        if key not in made:
            made[key] = type(method)(**{**method.values(), **own}) if own else method
        return made[key]

    part = planning.Slice(tuple((model, 0) for model in opened), (start, 0) if start else None)
    notes = {"settings": yaml_text({"method": method.name, "models": refs, **({"base": base} if base else {}), "with": method.values()})}
    return planning.plan([part], choose, dtype=dtype, tokenizer=tokenizer, method=method.name), notes


def _method(method: str | Merge, settings: dict[str, Any]) -> Merge:
    if isinstance(method, Merge):
        return method
    name = method if "." in method else f"merging.{method}"
    cls = find(name)
    if not issubclass(cls, Merge):
        raise AcclimateError(f"{name} works through other engines; run it in a recipe: acclimate run RECIPE.yaml")
    return cls(**{key: _list(cls, key, value) for key, value in settings.items()})


def _list(cls: type[Merge], key: str, value: Any) -> Any:
    """One number, or numbers with commas between them, where a method has a value for each model."""
    import typing

    field = cls.settings().get(key)
    if field is None or typing.get_origin(field.type) is not list or isinstance(value, list):
        return value
    parts = value.split(",") if isinstance(value, str) else [value]
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise AcclimateError(f"{key} = {value!r}, but must be numbers with commas between them") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """A mergekit YAML as plain data."""
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise AcclimateError(f"{path} must be a mapping of keys, but is {type(data).__name__}")
    return data
