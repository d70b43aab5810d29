"""Where a merge's tensors go: safetensors files whose headers and room are made first, and a journal of what is finished."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import write_text
from .checkpoint import INDEX

if TYPE_CHECKING:
    from .tensors import Work

JOURNAL = "journal.jsonl"


class Layout:
    """The output files: where each tensor's bytes go."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[int, int, int]] = {}  # name -> handle, first byte, bytes of an entry
        self.handles: list[int] = []

    def write(self, name: str, first: int, view: memoryview) -> None:
        """Entries of a tensor as bytes, from the entry ``first`` on."""
        handle, start, each = self.places[name]
        offset, done = start + first * each, 0
        while done < len(view):
            done += os.pwrite(handle, view[done:], offset + done)

    def close(self) -> None:
        """Give the files back."""
        for handle in self.handles:
            os.close(handle)


def prepare(works: Sequence["Work"], folder: Path, shard: int, *, fresh: bool) -> Layout:
    """Files with their headers and all their room, and the index where there are several."""
    groups: list[list[Work]] = [[]]
    filled = 0
    for work in works:
        size = work.size * work.dtype.itemsize
        if filled + size > shard and groups[-1]:
            groups.append([])
            filled = 0
        groups[-1].append(work)
        filled += size
    names = (
        ["model.safetensors"]
        if len(groups) == 1
        else [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    )
    layout, weight_map, total = Layout(), {}, 0
    for name, group in zip(names, groups, strict=True):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for work in group:
            end = offset + work.size * work.dtype.itemsize
            header[work.name] = {"dtype": work.dtype.code, "shape": list(work.shape), "data_offsets": [offset, end]}
            weight_map[work.name], offset = name, end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if fresh else 0), 0o644)
        layout.handles.append(handle)
        if fresh:
            if 8 + len(text) + offset:
                os.posix_fallocate(handle, 0, 8 + len(text) + offset)
            os.pwrite(handle, len(text).to_bytes(8, "little") + text, 0)
        for work in group:
            layout.places[work.name] = (handle, 8 + len(text) + header[work.name]["data_offsets"][0], work.dtype.itemsize)
        total += offset
    if len(groups) > 1:
        write_text(folder / INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))
    return layout


def journal(folder: Path, key: str) -> dict[str, dict[str, Any]]:
    """Tensors that an earlier, killed merge of the same key has finished; a new journal where there is none, or another's."""
    path = folder / JOURNAL
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if lines and lines[0] == json.dumps({"key": key}):
        done = {}
        for line in lines[1:]:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the line that the kill cut short
            done[row["name"]] = row["facts"]
        rows = [lines[0], *(json.dumps({"name": name, "facts": facts}) for name, facts in done.items())]
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        return done
    path.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
    return {}
