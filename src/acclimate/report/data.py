"""What a report is made of: plain JSON, checked before anything is drawn."""

import math
import re
from typing import Any

from ..errors import AcclimateError

ROLES = ("in", "out")
NEEDED = ("model", "domain", "metric", "value")


def plain(value: Any) -> Any:
    """The value as JSON can hold it: numpy numbers become Python's, nan and infinity become null, broken text is mended.

    >>> plain({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be written to a file
        return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", value)  # no page or terminal should obey control characters
    return value if value is None or isinstance(value, (bool, int)) else str(value)


def check(data: Any, where: str = "report") -> dict[str, Any]:
    """The data as plain JSON with every top-level part present; AcclimateError names the first entry that makes no sense."""
    if not isinstance(data, dict):
        raise AcclimateError(f"{where} is a {type(data).__name__}, but must be an object with 'results'")
    data = plain(data)
    for name, empty in PARTS.items():
        if data.get(name) is None:
            data[name] = type(empty)()
        elif not isinstance(data[name], type(empty)):
            raise AcclimateError(f"{where}: {name!r} is a {type(data[name]).__name__}, but must be a {type(empty).__name__}")
    for name, domain in data["domains"].items():
        if not isinstance(domain, dict) or domain.get("role") not in ROLES:
            raise AcclimateError(f"{where}: domain {name!r} needs a role, 'in' (trained for) or 'out' (watched for losses)")
    seen = set()
    for number, result in enumerate(data["results"]):
        missing = [key for key in NEEDED if key not in result] if isinstance(result, dict) else NEEDED
        if missing:
            raise AcclimateError(f"{where}: results[{number}] lacks {missing[0]!r}; each result names {', '.join(NEEDED)}")
        parent = data["domains"].get(parent_of(result["domain"]))
        if parent:  # "law: questions", a task of the domain law, has its role
            data["domains"].setdefault(result["domain"], {"role": parent["role"]})
        else:
            raise AcclimateError(
                f"{where}: results[{number}] is of domain {result['domain']!r}, which 'domains' lacks; add it with its role"
            )
        if result.get("better", "lower") not in ("lower", "higher"):
            raise AcclimateError(f"{where}: results[{number}] has better={result['better']!r}, but must be 'lower' or 'higher'")
        key = result["model"], result["domain"], result["metric"]
        if key in seen:
            raise AcclimateError(
                f"{where}: results[{number}] repeats model {key[0]!r}, domain {key[1]!r}, metric {key[2]!r}; keep one of them"
            )
        seen.add(key)
    return data


def parent_of(name: str) -> str:
    """The domain that a set belongs to: its tasks are called "domain: task".

    >>> parent_of("law: questions"), parent_of("law")
    ('law', 'law')
    """
    return name.partition(": ")[0]


PARTS: dict[str, Any] = {
    "title": "",
    "created": "",
    "base": "",
    "command": "",
    "recipe": "",
    "models": {},
    "domains": {},
    "results": [],
    "curves": {},
    "merges": {},
    "searches": {},
    "samples": [],
    "contamination": {},
    "provenance": {},
    "notes": [],
}
