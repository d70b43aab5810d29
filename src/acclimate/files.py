"""Files that are whole or absent: atomic writes, content hashes, the cache folder, and a lock for one writer."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import AcclimateError


def cache_dir(*parts: str) -> Path:
    """A folder under the user's cache (``$ACCLIMATE_CACHE``, else ``~/.cache/acclimate``), made if it is absent."""
    root = os.environ.get("ACCLIMATE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "acclimate"
    path = Path(root).expanduser().joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(value: Any, length: int = 16) -> str:
    """Hex SHA-256 of bytes, text, or anything JSON can hold (keys sorted).

    >>> digest("a") == digest(b"a"), digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    (True, True)
    """
    if isinstance(value, str):
        value = value.encode()
    elif not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.sha256(value).hexdigest()[:length]


def file_digest(path: Path, length: int = 16) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:length]


@contextmanager
def _mend_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AcclimateError(f"disk full while writing {path}; nothing half-written was kept; free room and run again") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise AcclimateError(f"cannot write {path}: {error.strerror}; choose another place with --out") from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise AcclimateError(f"{path} cannot be a folder: there is a file of that name; choose another place with --out") from error
        raise


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it is renamed to ``path``, else removed."""
    path = Path(path)
    with _mend_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; when the block ends well it takes the place of ``path``, else it goes."""
    path = Path(path)
    with _mend_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent)) / path.name
                path.replace(old)
                temporary.replace(path)
                shutil.rmtree(old.parent, ignore_errors=True)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented, with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; a broken file is one clear line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AcclimateError(f"{path} does not exist") from error
    except ValueError as error:
        raise AcclimateError(f"{path} is not valid JSON: {error}") from error


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder for one process; a second one is refused. A lock left by a killed process is free again."""
    import fcntl

    folder = Path(folder)
    with _mend_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "a+")  # noqa: SIM115
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            raise AcclimateError(f"{folder} is in use by {owner}; wait for it, or choose another folder with --out") from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield
    finally:
        handle.close()


def _plain_yaml(kind: type) -> type:
    """A YAML reader or writer in which only true and false are booleans, so that ``on:`` and ``off`` stay words (as in YAML 1.2)."""
    import re

    made = type("Plain" + kind.__name__, (kind,), {})
    tag = "tag:yaml.org,2002:bool"
    made.yaml_implicit_resolvers = {  # type: ignore[attr-defined]
        letter: [(name, pattern) for name, pattern in pairs if name != tag]
        for letter, pairs in kind.yaml_implicit_resolvers.items()  # type: ignore[attr-defined]
    }
    made.add_implicit_resolver(tag, re.compile("^(?:true|True|false|False)$"), list("tTfF"))  # type: ignore[attr-defined]
    return made


def read_yaml(path: str | Path) -> Any:
    """Read YAML (booleans are true and false alone); a broken file is one clear line."""
    import yaml

    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _plain_yaml(yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AcclimateError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def yaml_text(value: Any) -> str:
    """Plain data as YAML that :func:`read_yaml` reads back, keys in their own order."""
    import yaml

    return yaml.dump(value, Dumper=_plain_yaml(yaml.SafeDumper), sort_keys=False, allow_unicode=True, width=120)
