"""The papers: what each claims, which methods, recipe and experiment it has here, and what its experiment found.

One YAML file per room, kept by hand; the file's name is the room. An entry has

- ``n``, ``id``, ``title``: the paper's number, its short name and its title,
- ``kind``: method, study, recipe or survey,
- ``claim``: what the paper says it found, in one sentence of at most 220 characters,
- ``methods``: names the registry has or will have for it (optional),
- ``recipe``: the path of its pipeline inside the package (optional).

The experiment is always ``experiments/<room>/<id>.py`` and the evidence ``evidence/<id>.json``; neither is listed by hand.
A verdict is read from the evidence file and from nowhere else.
"""

from functools import cache
from pathlib import Path
from typing import Any

from ..errors import AcclimateError, nearest
from ..files import read_json
from ..method import names

PACKAGE = Path(__file__).parent.parent  # recipes/, experiments/ and evidence/ are looked for in here
FOLDER = Path(__file__).parent
KINDS = ("method", "study", "recipe", "survey")
VERDICTS = {  # word in the data -> words for people
    "holds": "holds",
    "does_not_hold": "does not hold at this scale",
    "not_testable": "cannot be tested here",
    "not_run": "not run",
}
_NEEDED = {"n": int, "id": str, "title": str, "kind": str, "claim": str}
_OPTIONAL = {"methods": list, "recipe": str}


def papers() -> list[dict[str, Any]]:
    """Every paper, by number, as plain data.

    Keys: n, id, title, kind, room, methods (registry names, built or to come), recipe and experiment (paths inside the
    package, None where the file is absent), verdict (holds, does_not_hold, not_testable, not_run), evidence (path or None).
    Raises AcclimateError naming the file if catalogue or evidence is malformed.

    >>> sorted(papers()[0])
    ['evidence', 'experiment', 'id', 'kind', 'methods', 'n', 'recipe', 'room', 'title', 'verdict']
    """
    entries = _entries(FOLDER)
    for path in (PACKAGE / "evidence").glob("*.json"):
        if path.stem not in entries:
            raise AcclimateError(f"evidence/{path.name} belongs to no paper{nearest(path.stem, entries)}")
    return [_row(entry) for entry in entries.values()]


def paper(key: str | int) -> dict[str, Any]:
    """One paper by id or by number: the row of :func:`papers` and its ``claim``.

    >>> paper(96)["id"], paper("della")["room"]
    ('della', 'merging')
    """
    entries = _entries(FOLDER)
    if str(key).isdigit():
        entry = next((entry for entry in entries.values() if entry["n"] == int(key)), None)
        if entry is None:
            raise AcclimateError(f"no paper number {key}; the numbers run from 1 to {len(entries)}")
    elif key in entries:
        entry = entries[str(key)]
    else:
        raise AcclimateError(f"no paper {str(key)!r}{nearest(str(key), entries)}")
    return {**_row(entry), "claim": entry["claim"]}


def evidence(name: str) -> dict[str, Any] | None:
    """What the last recorded run of a paper's experiment measured, or None. Raises AcclimateError if the file is malformed."""
    path = PACKAGE / "evidence" / f"{name}.json"
    if not path.is_file():
        return None
    found = read_json(path)
    fault = _fault(name, found)
    if fault:
        raise AcclimateError(f"evidence/{path.name}: {fault}; record it again with: acclimate reproduce {name} --record")
    return found


def state(row: dict[str, Any]) -> str:
    """How far a paper is, for people: its verdict, or what is still missing before there can be one."""
    if row["verdict"] != "not_run":
        return VERDICTS[row["verdict"]]
    if row["experiment"]:
        return VERDICTS["not_run"]
    if row["recipe"] or built(row):
        return "no experiment yet"
    return "not built yet"


def built(row: dict[str, Any]) -> list[str]:
    """Those of a paper's methods that the registry has."""
    return [name for name in row["methods"] if name in names()]


def checkout() -> Path | None:
    """The project's folder if the package runs from a checkout, else None."""
    root = PACKAGE.parent.parent
    return root if PACKAGE.parent.name == "src" and (root / "pyproject.toml").is_file() else None


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    name, room = entry["id"], entry["room"]
    found = evidence(name)
    return {
        "n": entry["n"],
        "id": name,
        "title": entry["title"],
        "kind": entry["kind"],
        "room": room,
        "methods": list(entry.get("methods", [])),
        "recipe": _present(entry.get("recipe")),
        "experiment": _present(f"experiments/{room}/{name}.py"),
        "verdict": found["verdict"] if found else "not_run",
        "evidence": f"evidence/{name}.json" if found else None,
    }


def _present(path: str | None) -> str | None:
    return path if path and (PACKAGE / path).is_file() else None


@cache
def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C reader is ten times faster
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            listed = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        except yaml.YAMLError as error:
            raise AcclimateError(f"catalogue/{path.name} is not valid YAML: {' '.join(str(error).split())}") from error
        for entry in listed or []:
            where = f"catalogue/{path.name}: paper {entry.get('id')!r}"
            for field, kind in {**_NEEDED, **_OPTIONAL}.items():
                if (field in _NEEDED or field in entry) and not isinstance(entry.get(field), kind):
                    raise AcclimateError(f"{where} needs {field} as {kind.__name__}, but has {entry.get(field)!r}")
            unknown = sorted(set(entry) - set(_NEEDED) - set(_OPTIONAL))
            if unknown:
                raise AcclimateError(f"{where} has an unknown field {unknown[0]!r}{nearest(unknown[0], _NEEDED | _OPTIONAL)}")
            if entry["kind"] not in KINDS:
                raise AcclimateError(f"{where} has kind {entry['kind']!r}, but must be one of {', '.join(KINDS)}")
            if entry["id"] in found:
                raise AcclimateError(f"{where} stands in catalogue/{found[entry['id']]['room']}.yaml too")
            found[entry["id"]] = {**entry, "room": path.stem}
    return dict(sorted(found.items(), key=lambda item: item[1]["n"]))


def _fault(name: str, found: Any) -> str:
    """What is wrong with an evidence file's content, or nothing."""
    if not isinstance(found, dict):
        return "is not an object"
    for field, kind in {"id": str, "verdict": str, "criterion": str, "metric": str, "rows": list, "seeds": list}.items():
        if not isinstance(found.get(field), kind):
            return f"needs {field} as {kind.__name__}, but has {found.get(field)!r}"
    if found["id"] != name:
        return f"is of {found['id']!r}"
    if found["verdict"] not in VERDICTS or found["verdict"] == "not_run":
        return f"has verdict {found['verdict']!r}, but a recorded run holds, does_not_hold or is not_testable"
    if found.get("tiny") is not False or len(found["seeds"]) < 3:
        return "is not of a full run of at least 3 seeds"
    for row in found["rows"]:
        if not isinstance(row, dict) or len(row.get("seeds", ())) != len(found["seeds"]):
            return f"has a row without one figure per seed: {row!r}"
    return ""
