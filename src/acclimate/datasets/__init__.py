"""Named datasets: one small loader per file, whose docstring is its card; found in ``$ACCLIMATE_DATA``, then on the hub.

A dataset is a module here with ``CARD`` (source, licence, size, columns, hub), ``domains()`` and ``load(domain)``. One that
is a single domain has no sub-domains and is loaded by its own name. One of images or other numbers gives Arrays instead of a Domain,
and says so with ``"form": "arrays"`` in its card; one of graphs gives a Graph each (``"graph"``), one of recordings Speech (``"speech"``).

>>> names()["gsm8k"]
'GSM8K: grade-school arithmetic word problems with worked answers, as conversations.'
>>> load("lmm/legal")
Traceback (most recent call last):
acclimate.errors.AcclimateError: no dataset 'lmm'; nearest: lm
"""

import ast
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import AcclimateError, nearest

FOLDER = Path(__file__).parent


def names() -> dict[str, str]:
    """Each dataset's name and the first line of its card; nothing is imported."""
    found = {}
    for path in sorted(FOLDER.glob("[!_]*.py")):
        card = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        found[path.stem] = card.partition("\n")[0]
    return found


def _module(name: str) -> ModuleType:
    if not (FOLDER / f"{name}.py").is_file() or name.startswith("_"):
        raise AcclimateError(f"no dataset {name!r}{nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")


def domains(name: str) -> list[str]:
    """The sub-domains of a dataset; an empty list says that the dataset is one domain."""
    return _module(name).domains()


def card(name: str) -> dict[str, Any]:
    """What is known of a dataset: name, about (its card in prose), source, licence, size, columns, hub, domains."""
    module = _module(name)
    return {"name": name, "about": (module.__doc__ or "").strip(), **module.CARD, "domains": module.domains()}


def load(name: str) -> Any:  # a Domain, Arrays, a Graph, or Speech
    """Load ``"dataset/sub-domain"`` (``"lm/legal"``), or ``"dataset"`` where the dataset is one domain (``"gsm8k"``).

    Raises AcclimateError for unknown names, for a missing sub-domain and for data that is nowhere to be found.
    """
    dataset, _, domain = name.partition("/")
    module = _module(dataset)
    known = module.domains()
    if known and not domain:
        shown = ", ".join(f"{dataset}/{each}" for each in known[:12]) + (" ..." if len(known) > 12 else "")
        raise AcclimateError(f"dataset {dataset!r} has several domains; write one of: {shown}")
    if domain and not known:
        raise AcclimateError(f"dataset {dataset!r} is one domain; write {dataset!r} instead of {name!r}")
    return module.load(domain) if domain else module.load()


def known_domain(dataset: str, domain: str, known: Iterable[str]) -> None:
    """Raise AcclimateError, with the nearest name, unless a dataset has this domain.

    >>> known_domain("pacs", "fotos", ["photo", "cartoon"])
    Traceback (most recent call last):
    acclimate.errors.AcclimateError: no domain 'fotos' in dataset pacs; nearest: photo
    """
    known = list(known)
    if domain not in known:
        raise AcclimateError(f"no domain {domain!r} in dataset {dataset}{nearest(domain, known)}")


def data_dir() -> Path | None:
    """The folder named by ``$ACCLIMATE_DATA``, or None where it is not set."""
    given = os.environ.get("ACCLIMATE_DATA")
    if not given:
        return None
    path = Path(given).expanduser()
    if not path.is_dir():
        raise AcclimateError(f"ACCLIMATE_DATA = {given!r} is not a folder; set it to the folder that holds the data, or unset it")
    return path


def locate(relative: str, hub: str | None = None) -> Path:
    """The file or folder ``relative`` under ``$ACCLIMATE_DATA`` or its folder ``text``, else one file of a hub dataset.

    ``hub`` is ``owner/name/path/in/repository``. What the hub gives may be another format than the local file: look at the suffix.
    """
    folder = data_dir()
    if folder is not None:
        for path in (folder / relative, folder / "text" / relative):
            if path.exists():
                return path
    missing = f"not under ACCLIMATE_DATA = {folder}" if folder else "ACCLIMATE_DATA is not set"
    mend = f"set ACCLIMATE_DATA to a folder that holds {relative} or text/{relative}"
    if hub is None:
        raise AcclimateError(f"cannot find {relative}: {missing}; {mend}")
    from huggingface_hub import hf_hub_download

    owner, name, inside = hub.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", inside, repo_type="dataset"))
    except Exception as error:  # the hub's client raises a dozen kinds: offline, gated, gone, no network
        reason = str(error).strip().partition("\n")[0]
        raise AcclimateError(f"cannot find {relative}: {missing}, and {owner}/{name} could not be fetched ({reason}); {mend}") from error
