"""Reads mergekit's YAML as it is: methods, per-model parameters, gradients over layers, filters by tensor, slices, vocabularies.

What mergekit calls density is our ``keep``, lambda is ``scale``, epsilon half of our ``window``. Its methods rank changes tensor by
tensor, so ``scope`` is ``tensor`` here. ``int8_mask`` is accepted and changes nothing. Random methods draw other numbers; ``rescale``
scales the survivors to the norm, as mergekit does, where the papers divide by the probability.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .engines.merging import planning
from .engines.merging.adapted import open_model
from .errors import AcclimateError, nearest
from .kinds import Merge
from .merges import checked, read_config
from .method import find

KEYS = (
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
    "chat_template", "name", "metadata",
)  # fmt: skip
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # mergekit's name -> our method, settings that differ from our defaults
    "linear": ("linear", {}),
    "slerp": ("slerp", {}),
    "multislerp": ("slerp", {}),
    "nearswap": ("nearswap", {}),
    "model_stock": ("model_stock", {}),
    "arcee_fusion": ("arcee_fusion", {}),
    "sce": ("sce", {"select": 1.0}),
    "task_arithmetic": ("task_arithmetic", {"scale": 1.0}),
    "ties": ("ties", {"keep": 1.0, "scope": "tensor"}),
    "dare_ties": ("dare", {"keep": 1.0, "normalize": False, "rescale": "norm"}),
    "dare_linear": ("dare", {"keep": 1.0, "normalize": False, "rescale": "norm", "elect": "none"}),
    "breadcrumbs": ("breadcrumbs", {"keep": 1.0, "scale": 1.0}),
    "breadcrumbs_ties": ("breadcrumbs", {"keep": 1.0, "scale": 1.0, "elect": "sum"}),
    "della": ("della", {"drop": 0.0, "window": 0.3, "scale": 1.0, "rescale": "norm"}),
    "della_linear": ("della", {"drop": 0.0, "window": 0.3, "scale": 1.0, "rescale": "norm", "elect": "none", "normalize": False}),
    "passthrough": ("linear", {"normalize": False}),
}
SHARED = {  # parameters of the whole merge -> our setting
    "normalize": "normalize", "rescale": "rescale", "lambda": "scale", "t": "t", "select_topk": "select",
}  # fmt: skip
EACH = {"weight": "weights", "density": "keep", "gamma": "outliers", "epsilon": "window", "scale": "weights"}  # of each model -> our list


def read(path: str | Path, *, dtype: str = "", tokenizer: str = "") -> tuple[planning.Plan, dict[str, Any]]:
    """Plan the merge that a mergekit YAML file describes.

    Raises AcclimateError, naming the key, for what is unknown or unsupported; nothing is ignored in silence.
    """
    data = read_config(path)
    for key in data:
        if key not in KEYS:
            raise AcclimateError(f"{path}: unknown key {key!r}{nearest(str(key), KEYS)}")
    config = _Config(data, str(path))
    source = data.get("tokenizer_source") or (data.get("tokenizer") or {}).get("source") or ""
    if source not in ("", "base", "union"):
        raise AcclimateError(f"{path}: tokenizer_source {source!r} is not supported; choose base or union")
    kind = dtype or data.get("out_dtype") or data.get("dtype") or ""
    made = planning.plan(config.slices, config.choose, dtype=kind, tokenizer=tokenizer or source, method=f"merging.{config.ours}")
    template = data.get("chat_template")
    if template not in (None, "auto"):
        raise AcclimateError(f"{path}: chat_template {template!r} is not supported; only auto, the base's own")
    return made, {"recipe": Path(path).read_text(encoding="utf-8")}


class _Config:
    """The file, resolved: slices of opened models, and the method of each tensor."""

    def __init__(self, data: dict[str, Any], where: str):
        self.data, self.where = data, where
        self.theirs = data.get("merge_method") or ""
        if self.theirs not in METHODS:
            raise AcclimateError(f"{where}: merge_method {self.theirs!r} is not known here{nearest(str(self.theirs), METHODS)}")
        self.ours, self.fixed = METHODS[self.theirs]
        self.cls: Any = find(f"merging.{self.ours}")
        self.base = str(data.get("base_model") or "")
        self.opened: dict[str, Any] = {}
        if ("models" in data) == ("slices" in data):
            raise AcclimateError(f"{where}: give either models: or slices:")
        models = [{"sources": data["models"]}] if "models" in data else data["slices"]
        known = {*SHARED, *EACH, "int8_mask", "normalize_weights", "eps"}
        for level in [
            data.get("parameters"),
            *(part.get("parameters") for part in models),
            *(s.get("parameters") for p in models for s in p.get("sources") or []),
        ]:
            for key in level or {}:
                if key not in known:
                    raise AcclimateError(f"{where}: parameter {key!r} is not known or not supported here{nearest(str(key), known)}")
        self.parts = [self._part(part, number) for number, part in enumerate(models)]
        self.slices = [self._slice(part) for part in self.parts]
        self.made: dict[str, Merge] = {}

    def _part(self, part: Any, number: int) -> dict[str, Any]:
        """One output slice: tuned sources (the base is none), with their parameters."""
        if not isinstance(part, dict) or not isinstance(part.get("sources"), list) or not part["sources"]:
            raise AcclimateError(f"{self.where}: slice {number} must hold sources: a list of models")
        sources = part["sources"]
        for source in sources:
            if not isinstance(source, dict) or not isinstance(source.get("model"), str):
                raise AcclimateError(f"{self.where}: slice {number}: every source needs model: a folder or an id")
        base = str(part.get("base_model") or self.base)
        ranges = [source.get("layer_range") for source in sources]
        lengths = {r[1] - r[0] for r in ranges if r}
        if len(lengths) > 1:
            raise AcclimateError(f"{self.where}: slice {number} joins layer ranges of {sorted(lengths)} layers; they must be equally long")
        whole = "base" in self.cls.asked() and self.ours != "slerp"  # slerp and linear take the base as a model like the others
        if self.theirs == "multislerp":
            whole = True
        tuned = [source for source in sources if not (whole and source["model"] == base)]
        if self.ours == "slerp" and self.theirs == "slerp":
            if base not in [source["model"] for source in sources]:
                tuned = [{"model": base, "layer_range": ranges[0]}, *tuned]
            tuned.sort(key=lambda source: source["model"] != base)
        start = next((source for source in sources if source["model"] == base), {"model": base, "layer_range": ranges[0]})
        return {
            "tuned": tuned,
            "base": start if whole and base else None,
            "parameters": part.get("parameters") or {},
            "length": lengths.pop() if lengths else None,
        }

    def _slice(self, part: dict[str, Any]) -> planning.Slice:
        def place(source: dict[str, Any]) -> tuple[Any, int]:
            return self._open(source["model"]), (source.get("layer_range") or [0])[0]

        return planning.Slice(tuple(map(place, part["tuned"])), place(part["base"]) if part["base"] else None, part["length"])

    def _open(self, ref: str) -> Any:
        if ref not in self.opened:
            near = Path(self.where).parent / ref
            self.opened[ref] = open_model(str(near) if not Path(ref).exists() and near.is_dir() else ref)
        return self.opened[ref]

    def choose(self, name: str, place: float, number: int) -> Merge | None:
        """The method for one tensor: every parameter looked up from the model's own to the file's."""
        part = self.parts[number]
        everywhere = [part["parameters"], self.data.get("parameters") or {}]
        given: dict[str, Any] = {}
        for theirs, ours in SHARED.items():
            value = self._first(everywhere, theirs, name, place)
            if value is not None and theirs == "rescale":
                if value and ours not in self.cls.settings():
                    raise AcclimateError(f"{self.where}: rescale is not supported for {self.theirs}; leave it out")
                value = "norm" if value else "none"
            if value is not None and ours in self.cls.settings():
                given[ours] = value
        for theirs, ours in EACH.items():
            if ours not in self.cls.settings() and theirs != "density":
                continue
            values = [self._first([source.get("parameters") or {}, *everywhere], theirs, name, place) for source in part["tuned"]]
            if any(value is not None for value in values):
                given |= self._each(theirs, ours, values)
        if self.theirs == "passthrough" and "weights" not in given:
            return None
        if self.theirs == "multislerp" and part["base"]:
            given["origin"] = "base"
        settings = {key: value for key, value in {**self.fixed, **given}.items() if key in self.cls.settings()}
        settings = {key: [value] if _is_list(self.cls, key) and not isinstance(value, list) else value for key, value in settings.items()}
        if self.ours == "della":
            settings["window"] = [0.0 if drop == 0 else window for drop, window in _pairs(settings["drop"], settings["window"])]
        key = repr(sorted(settings.items()))
        if key not in self.made:
            try:
                self.made[key] = self.cls(**settings)
            except AcclimateError as error:
                raise AcclimateError(f"{self.where}: {name}: {error}") from error
            checked(self.made[key], len(part["tuned"]), part["base"] is not None)
        return self.made[key]

    def _each(self, theirs: str, ours: str, values: list[Any]) -> dict[str, Any]:
        if theirs == "weight" and None in values:
            raise AcclimateError(f"{self.where}: {self.theirs} needs a weight for every model")
        if theirs == "density":
            filled = [1.0 if value is None else float(value) for value in values]
            return {"drop": [1 - value for value in filled]} if self.ours == "della" else {"keep": filled}
        default = {"gamma": 0.01, "epsilon": 0.15, "scale": 1.0}.get(theirs, 1.0)
        filled = [default if value is None else float(value) for value in values]
        return {ours: [2 * value for value in filled] if theirs == "epsilon" else filled}

    def _first(self, levels: Iterable[dict[str, Any]], key: str, name: str, place: float) -> Any:
        for level in levels:
            if key in level and (value := evaluate(level[key], name, place)) is not None:
                return value
        return None


def evaluate(setting: Any, name: str, place: float) -> Any:
    """A parameter's value for one tensor: a scalar, a gradient over the layers, or the first filter that is part of the tensor's name.

    >>> evaluate([0, 0.5, 1], "", 0.25), evaluate([{"filter": "mlp", "value": [1, 0]}, {"value": 0.5}], "layers.3.mlp.up.weight", 0.25)
    (0.25, 0.75)
    """
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return float(setting) if isinstance(setting, str) and setting.replace(".", "", 1).replace("e-", "", 1).isdigit() else setting
    if setting and all(isinstance(row, dict) for row in setting):
        for row in setting:
            if row.get("filter") in (None, "*") or row["filter"] in name:
                return evaluate(row.get("value"), name, place)
        return None
    if not setting:
        return None
    at = place * (len(setting) - 1)
    low = int(at)
    high = min(len(setting) - 1, low + 1)
    return (1 - (at - low)) * float(setting[low]) + (at - low) * float(setting[high])


def _is_list(cls: Any, key: str) -> bool:
    import typing

    return typing.get_origin(cls.settings()[key].type) is list


def _pairs(drops: list[float], windows: list[float]) -> list[tuple[float, float]]:
    many = max(len(drops), len(windows))
    return [(drops[i % len(drops)], windows[i % len(windows)]) for i in range(many)]
