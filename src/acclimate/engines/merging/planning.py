"""Plans a merge, runs it into a folder that appears whole, and proves the result: from checkpoints and a method to a model on disk.

What differs from tensor to tensor (settings, or the layers that are stacked) comes in as a :class:`Slice`; the rest is one straight line.
"""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import AcclimateError
from ...files import digest, lock, read_json, write_json, write_text
from ...kinds import Merge
from ...parts.layer_groups import LAYER
from ...progress import say
from .checkpoint import HEADS, Checkpoint, Slot
from .dtypes import NAMED, Dtype
from .layout import JOURNAL
from .tensors import SHARD, Part, Work, forecast, merge
from .vocabulary import Vocabulary, align, copy_files, copy_template, table

TYPES = ("float32", "float16", "bfloat16")  # that a merged model may be stored in
REPORT, PAGE = "merge.json", "merge.html"


@dataclass(frozen=True)
class Slice:
    """A run of output layers: where each input's layers begin, and how many there are (None: all, as they are numbered)."""

    tuned: tuple[tuple[Checkpoint, int], ...]
    base: tuple[Checkpoint, int] | None = None
    length: int | None = None


# method_for(tensor's output name, place of its layer in the slice from 0 to 1, number of the slice) -> method, or None to copy
Chooser = Callable[[str, float, int], Merge | None]


@dataclass
class Plan:
    """All that a merge will do, checked before anything is written."""

    works: list[Work]
    vocabulary: Vocabulary
    config: dict[str, Any]
    models: list[Checkpoint]
    method: str

    def memory(self, workers: int = 0) -> int:
        """Bytes that the chunks take at most, beside the program; or quantising again, which follows where a parent is quantised."""
        workers = workers or os.cpu_count() or 1
        most = forecast(self.works, workers)
        if _all_as_stored(self.works):
            return most
        from .requantised import memory

        return max(most, memory(self.works, workers))

    @property
    def bytes(self) -> int:
        """Size of the output."""
        return sum(work.size * work.dtype.itemsize for work in self.works)


def plan(slices: Sequence[Slice], choose: Chooser, *, dtype: str = "", tokenizer: str = "", method: str = "") -> Plan:
    """Match the tensors of all inputs and choose a method for each.

    Raises AcclimateError for another architecture, a missing tensor, another shape (named), tokenizers that differ.
    """
    first = slices[0]
    owner = first.base[0] if first.base else first.tuned[0][0]
    models = list({id(c): c for s in slices for c, _ in (*s.tuned, *([s.base] if s.base else []))}.values())
    for model in models:
        _same_family(owner, model)
    if dtype and dtype not in TYPES:
        raise AcclimateError(f"dtype = {dtype!r}, but must be one of {', '.join(TYPES)}")
    out = NAMED[dtype] if dtype else owner.dtype
    vocabulary = align(
        [c for c in models if first.base is None or c is not first.base[0]] or models, first.base and first.base[0], tokenizer
    )
    tied = all(model.tied for model in models)
    works: list[Work] = []
    layers = 0
    for number, part in enumerate(slices):
        names = _names(part, tied)
        own = sorted({int(match[2]) for name in names if (match := LAYER.match(name))})
        begin = part.tuned[0][1]
        count = len(own) if part.length is None else part.length
        for name in names:
            match = LAYER.match(name)
            layer = int(match[2]) - begin if match else -1
            if match and not 0 <= layer < count:
                continue
            if not match and ((number > 0) if not _at_end(name) else number < len(slices) - 1):
                continue  # what stands before the layers comes from the first slice, what stands behind them from the last
            place = 0.0 if not match else 1.0 if count == 1 else layer / (count - 1)
            title = name if not match or (len(slices) == 1 and begin == 0) else f"{match[1]}{layers + layer}{match[3]}"
            works.append(_work(title, name, layer, part, out, vocabulary, choose(title, place, number)))
        layers += count
    if not works:
        raise AcclimateError("nothing to merge: no tensor is left after the slices")
    config = dict(owner.config)
    _fit_config(config, vocabulary, out, layers, tied)
    order = {name: i for i, name in enumerate(owner.slots)}
    works.sort(key=lambda work: (order.get(work.name, len(order)), work.name))
    return Plan(works, vocabulary, config, models, method)


def run(
    made: Plan,
    folder: str | Path,
    *,
    seed: int = 0,
    workers: int = 0,
    shard: int = SHARD,
    check: bool = True,
    resume: bool = True,
    notes: dict[str, Any] | None = None,
    page: Callable[[dict[str, Any], str], str] | None = None,
) -> dict[str, Any]:
    """Merge into ``folder``, which appears whole or not at all; a killed merge goes on when it is called again.

    check: hash the parents, load the result, and see that a probe's logits are finite.
    page: draws the report under the folder's name as HTML, which is written beside it.

    Gives the report: per tensor norm, cosine to each parent and share of changed weights; parents with hashes; vocabulary.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / REPORT).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise AcclimateError(f"{folder} exists and is no merged model; choose another place, or empty it")
    work = folder.parent / f".{folder.name}.merging"
    key = digest([[_identity(w) for w in made.works], seed, shard])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(work):
        if not resume or (not _goes_on(work, key) and (work / JOURNAL).exists()):
            for path in work.iterdir():
                if path.name != ".lock":
                    path.unlink()
        try:
            facts = merge(made.works, work, seed=seed, workers=workers, shard=shard, key=key, what=made.method or "merge")
            made.vocabulary.write(work) if table_rows(made) else copy_files(made.vocabulary.owner, work)
            copy_template(made.models, work)
        except OSError as error:
            import errno

            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise AcclimateError(
                    f"disk full: the merge needs {made.bytes / 1e9:.2f} GB in {folder.parent}; free room, run again: what is done is kept"
                ) from error
            raise
        write_json(work / "config.json", made.config)
        report = _report(made, facts, seed, check, notes or {})
        if not _all_as_stored(made.works):
            from .requantised import requantised

            report |= {"requantised": again} if (again := requantised(made.works, work, workers or os.cpu_count() or 1)) else {}
        write_json(work / REPORT, report)
        write_json(work / "acclimate.json", {"name": folder.name, "made": report["made"]})
        drawn = f"\nDrawn over the layers in `{PAGE}`.\n" if page is not None else ""
        (work / "README.md").write_text(_card(folder.name, report) + drawn, encoding="utf-8")
        if check:
            report["probe"] = prove(work, made.bytes)
            write_json(work / REPORT, report)
        if page is not None:
            write_text(work / PAGE, page(report, folder.name))
        (work / JOURNAL).unlink()  # last: what is killed while it is proved goes on from the finished tensors
        if folder.exists():
            shutil.rmtree(folder)
        (work / ".lock").unlink(missing_ok=True)
        work.replace(folder)
    for model in made.models:
        model.close()
    say(f"merged model: {folder}")
    return {**report, "folder": str(folder)}


def _all_as_stored(works: Sequence[Work]) -> bool:
    """Whether all inputs are what their files hold, so that none is quantised (and the module for these, with torch, is not needed)."""
    return all(part.checkpoint.as_stored(part.slot) for work in works for part in work.parts)


def prove(folder: Path, size: int) -> dict[str, Any]:
    """Load a merged model of ``size`` bytes and run a probe through it, in the type it is stored in.

    Raises AcclimateError if a weight does not fit or a logit is not finite; says why where it cannot be done.
    """
    import psutil

    from ...model import Model, kind_of

    if size * 1.5 > psutil.virtual_memory().available:
        return {"finite": None, "why": "the model does not fit in memory"}
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return {"finite": None, "why": "the models come without a tokenizer"}
    model = Model.load(str(folder), device="cpu", dtype=NAMED[read_json(folder / "config.json")["dtype"]].torch)
    logits = model.probe()
    if not logits.isfinite().all():
        raise AcclimateError(f"{folder}: the merged model gives logits that are not finite; lower scale, or look at its merge.json")
    return {"finite": True, "kind": kind_of(model.net.config), "largest": round(logits.abs().max().item(), 4)}


def table_rows(made: Plan) -> bool:
    """Whether the output has a table of tokens at all (and so a tokenizer to write)."""
    return any(table(work.name) for work in made.works)


def _goes_on(work: Path, key: str) -> bool:
    path = work / JOURNAL
    return path.exists() and path.read_text(encoding="utf-8").startswith('{"key": "' + key)


def _identity(work: Work) -> list[Any]:
    method = work.method and [work.method.name, work.method.values()]
    parts = [[p.checkpoint.stamp(p.slot), p.rows is None or digest(p.rows.tobytes())] for p in work.parts]
    return [work.name, work.shape, work.dtype.name, method, parts]


def _same_family(owner: Checkpoint, model: Checkpoint) -> None:
    mine, theirs = owner.config.get("architectures"), model.config.get("architectures")
    if owner.config.get("model_type") != model.config.get("model_type"):
        raise AcclimateError(
            f"{model.ref} is a {model.config.get('model_type')} model, but {owner.ref} is a {owner.config.get('model_type')} one; "
            "tensors can be merged within one architecture only (for two: merging.unconstrained or merging.merge_me)"
        )
    if mine and theirs and mine != theirs:
        raise AcclimateError(f"{model.ref} is a {theirs[0]}, but {owner.ref} is a {mine[0]}; give models with the same head")


def _names(part: Slice, tied: bool) -> list[str]:
    """Tensor names of the slice's first model, the output layer added where others store their own."""
    names = list(part.tuned[0][0].slots)
    if not tied:
        everyone = [c for c, _ in (*part.tuned, *([part.base] if part.base else []))]
        heads = {name for c in everyone for name in c.slots if name.endswith(HEADS)}
        names += sorted(heads - set(names))
    return names


def _at_end(name: str) -> bool:
    """Whether a tensor outside the layers stands behind them: the last norm and the output layer."""
    return name.endswith(HEADS) or re.search(r"(^|\.)(norm|final_layernorm|ln_f|final_norm|norm_f)\.", name) is not None


def _work(title: str, name: str, layer: int, part: Slice, out: Dtype, vocabulary: Vocabulary, method: Merge | None) -> Work:
    inputs = [_part(name, layer, begin, model, vocabulary) for model, begin in part.tuned]
    base = _part(name, layer, part.base[1], part.base[0], vocabulary) if part.base and method is not None else None
    first = base or inputs[0]
    rows = vocabulary.size if table(name) and vocabulary.size else None
    shape = (rows, *first.slot.shape[1:]) if rows else first.slot.shape
    for other in inputs:
        theirs = (rows, *other.slot.shape[1:]) if rows else other.slot.shape
        if theirs != shape:
            raise AcclimateError(
                f"tensor {other.slot.name} is {list(other.slot.shape)} in {other.checkpoint.ref}, but {list(first.slot.shape)} in "
                f"{first.checkpoint.ref}; only models of one size can be merged tensor by tensor"
            )
    floating = first.slot.dtype.is_floating_point
    if not floating:
        method = None
    return Work(title, shape, out if floating else first.slot.dtype, tuple(inputs), base if floating else None, method)


def _part(name: str, layer: int, begin: int, model: Checkpoint, vocabulary: Vocabulary) -> Part:
    match = LAYER.match(name)
    own = f"{match[1]}{begin + layer}{match[3]}" if match else name
    slot: Slot | None = model.slot(own)
    if slot is None:
        raise AcclimateError(f"{model.ref} lacks tensor {own}, which the other models have; they are not of one architecture")
    return Part(model, slot, vocabulary.of(model, slot) if table(name) else None)


def _fit_config(config: dict[str, Any], vocabulary: Vocabulary, out: Dtype, layers: int, tied: bool) -> None:
    inner = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    inner["vocab_size"] = vocabulary.size or inner.get("vocab_size")
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        if key in inner and layers:
            inner[key] = layers
    config["tie_word_embeddings"] = tied
    config.pop("torch_dtype", None)
    config.pop("quantization_config", None)  # what is written is plain
    config["dtype"] = out.name


def _report(made: Plan, facts: dict[str, Any], seed: int, check: bool, notes: dict[str, Any]) -> dict[str, Any]:
    parents = [{"ref": model.ref, **({"sha256": model.hash} if check else {})} for model in made.models]
    made_by = {"method": made.method, "parents": parents, "seed": seed, **notes}
    weights = sum(work.size for work in made.works)
    changed = sum(facts[work.name]["changed"] * work.size for work in made.works) / max(1, weights)
    return {"made": made_by, "weights": weights, "changed": changed, "vocabulary": made.vocabulary.report, "tensors": facts}


def _card(name: str, report: dict[str, Any]) -> str:
    parents = report["made"]["parents"]
    lines = [
        "---",
        "library_name: transformers",
        "base_model:",
        *(f"  - {p['ref']}" for p in parents),
        "base_model_relation: merge",
        "tags: [merge, acclimate]",
        "---",
    ]
    lines += [f"# {name}", "", f"Merged with acclimate by `{report['made']['method']}`.", "", "| parent | sha256 |", "|---|---|"]
    lines += [f"| `{p['ref']}` | {p.get('sha256', 'not reckoned')} |" for p in parents]
    lines += [
        "",
        f"{report['weights']:,} weights, {report['changed']:.1%} of them differ from the first parent or base; per tensor in `{REPORT}`.",
        "",
    ]
    if again := report.get("requantised"):
        kept = "nothing changed" if again["kept"] is None else f"{again['kept']:.1%} of the merge's change would be kept"
        lines += [
            f"Quantised again as {again['format']}: {kept}, {again['unchanged_codes']:.1%} of the codes would stay as they are, "
            f"and weights would be off by {again['relative_error']:.2%} of their norm.",
            "",
        ]
    for key in ("settings", "recipe"):
        if key in report["made"]:
            lines += [f"## {key.title()}", "", "```yaml", str(report["made"][key]).rstrip(), "```", ""]
    return "\n".join(lines)
