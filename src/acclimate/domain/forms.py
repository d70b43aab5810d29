"""What rows mean: a row's form is recognised from its fields and brought to the canonical columns.

Recognised, in this order: preferences (``prompt``, ``chosen``, ``rejected``), conversations (``messages``; ShareGPT's
``conversations``; Alpaca's ``instruction``, ``input``, ``output``; ``prompt``, ``completion``), pairs (``anchor`` or ``query`` with
``positive``, ``sentence1`` with ``sentence2``), facts (``head``, ``relation``, ``tail``), labelled text, text. Text may have ``mentions``,
the entities it names: [{"start": 4, "end": 9, "entity": "valve"}, ...], characters from start up to end.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from ..errors import nearest
from ..files import digest
from .reading import Bad, Raw

COLUMNS = {
    "text": ("text",),
    "messages": ("messages",),
    "labelled": ("text", "label"),
    "preference": ("prompt", "chosen", "rejected"),
    "pairs": ("anchor", "positive"),
    "facts": ("head", "relation", "tail"),
}
TEXT = ("text", "sentence", "content")
LABEL = ("label", "labels", "class", "intent", "sentiment")
PAIRS = (("anchor", "positive"), ("query", "positive"), ("sentence1", "sentence2"))
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
FORM = {  # what a row looks like -> its canonical form
    "preference (chosen, rejected)": "preference",
    "messages (messages)": "messages",
    "sharegpt (conversations)": "messages",
    "alpaca (instruction, input, output)": "messages",
    "prompt and completion (prompt, completion)": "messages",
    "pairs (anchor, positive)": "pairs",
    "facts (head, relation, tail)": "facts",
    "labelled text (text, label)": "labelled",
    "text (text)": "text",
}
PREFERENCE, MESSAGES, SHAREGPT, ALPACA, COMPLETION, PAIR, FACT, LABELLED, PLAIN = FORM
OPTIONAL = {PAIR: "negative", LABELLED: "mentions", PLAIN: "mentions"}  # columns that all rows have, or none
LOOK_AHEAD = 100  # rows in which a file must show what it is


@dataclass(slots=True)
class Row:
    """One row in canonical columns; ``document`` holds together the passages of one file, ``split`` is set where it was given."""

    form: str
    values: dict[str, Any]
    origin: str
    document: str = ""
    split: str = ""

    @property
    def id(self) -> str:
        """The content hash."""
        return digest(self.values)


class _RowError(Exception):
    """A row that cannot be brought to its form: field, what is wrong, how to mend it."""


def look(row: dict[str, Any]) -> str:
    """What a row looks like (a key of ``FORM``), or "" where it fits nothing.

    >>> look({"instruction": "Add 1 and 2.", "input": "", "output": "3"})
    'alpaca (instruction, input, output)'
    >>> look({"sentence1": "a", "sentence2": "b", "label": 0})
    ''
    """
    keys = {key for key, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= keys:
        return PREFERENCE
    if "messages" in keys:
        return MESSAGES
    if "conversations" in keys:
        return SHAREGPT
    if {"instruction", "output"} <= keys:
        return ALPACA
    if {"prompt", "completion"} <= keys:
        return COMPLETION
    # two sentences with a label or a score may well contradict each other: they are no positive pair
    if any(set(pair) <= keys for pair in PAIRS) and not ("sentence1" in keys and keys & {*LABEL, "score"}):
        return PAIR
    if keys & set(TEXT):
        return LABELLED if keys & set(LABEL) else PLAIN
    return FACT if {"head", "relation", "tail"} <= keys else ""


def plain(form: str, row: dict[str, Any]) -> str:
    """A canonical row as plain text."""
    if form in ("text", "labelled"):
        return row["text"]
    if form == "messages":
        return "\n".join(turn["content"] for turn in row["messages"])
    if form == "preference":
        return "\n".join([*(turn["content"] for turn in row["prompt"]), row["chosen"]])
    if form == "facts":
        return " ".join([row["head"], row["relation"], row["tail"]])
    return "\n".join([row["anchor"], row["positive"]])


def stem(form: str, row: dict[str, Any]) -> str:
    """The part of a row that must not stand on both sides of a split: what comes before the answer, the anchor, the text."""
    if form == "messages":
        turns = row["messages"]
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        return "\n".join(turn["content"] for turn in turns[:last]) or turns[last]["content"]
    if form == "preference":
        return "\n".join(turn["content"] for turn in row["prompt"])
    if form == "facts":
        return plain(form, row)
    return row["anchor"] if form == "pairs" else row["text"]


def rows(raws: Iterable[Raw | Bad], fields: dict[str, str] | None = None) -> Iterator[Row | Bad]:
    """The rows of one file in canonical columns; what does not fit comes out as :class:`Bad` and the rest goes on.

    The first recognisable row says what the file holds. ``fields`` names the source's field per canonical column.
    """
    stream = iter(raws)
    head = list(islice(stream, LOOK_AHEAD))
    chosen = [raw if isinstance(raw, Bad) else _choose(raw, fields) for raw in head]
    first = next((raw for raw in chosen if isinstance(raw, Raw) and look(raw.values)), None)
    if first is None:
        yield from (raw for raw in chosen if isinstance(raw, Bad))
        unknown = next((raw for raw in chosen if isinstance(raw, Raw)), None)
        if unknown is not None:
            yield _unknown(unknown, next(raw for raw in head if isinstance(raw, Raw)), fields)
        return
    kind = look(first.values)
    extra = OPTIONAL.get(kind, "")
    for raw in chain(chosen, (raw if isinstance(raw, Bad) else _choose(raw, fields) for raw in stream)):
        if isinstance(raw, Bad):
            yield raw
            continue
        seen = look(raw.values)
        # a lone text in a labelled file lacks its label; anything else that is whole in another form is a mixture
        if seen and seen != kind and not (kind == LABELLED and seen == PLAIN):
            yield Bad(raw.origin, "", f"looks like {seen}, but {first.origin} looks like {kind}", "keep one form per file")
            continue
        try:
            values = _convert(kind, raw.values)
            if extra and (extra in first.values) != (extra in values):
                missing = extra in first.values
                raise _RowError(
                    extra, "is missing" if missing else "stands in this row but not in the first", "give every row one, or none"
                )
        except _RowError as problem:
            field, *rest = problem.args
            yield Bad(raw.origin, (fields or {}).get(field, field), *rest)
            continue
        yield Row(FORM[kind], values, raw.origin, raw.document)


def _choose(raw: Raw, fields: dict[str, str] | None) -> Raw:
    values = raw.values
    if fields and not raw.document:  # a plain file has no fields to choose from
        values = {column: values.get(field) for column, field in fields.items()}
    return Raw(raw.origin, {key: value for key, value in values.items() if value is not None}, raw.document)


def _unknown(row: Raw, raw: Raw, fields: dict[str, str] | None) -> Bad:
    there = [str(key) for key in raw.values]
    for field in (fields or {}).values():
        if field not in there:
            return Bad(raw.origin, field, "is in none of the rows" + nearest(field, there), "name a field that is there")
    return Bad(
        raw.origin,
        ", ".join(fields or there) or "(no fields)",
        "fits no known form (text; text + label; instruction + output; messages; conversations; prompt + completion; "
        "prompt + chosen + rejected; anchor + positive; head + relation + tail)",
        'rename the fields, or pass which is which: field="body" for text, else field={"prompt": "question", "completion": "answer"}',
    )


def _convert(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    if kind in (PLAIN, LABELLED):
        values: dict[str, Any] = {"text": _text(row, _first(row, TEXT))}
        values |= {"label": _label(row, _first(row, LABEL))} if kind == LABELLED else {}
        return values | ({"mentions": _mentions(row["mentions"], values["text"])} if "mentions" in row else {})
    if kind == FACT:
        return {field: _label(row, field) for field in COLUMNS["facts"]}
    if kind == PAIR:
        anchor, positive = next((pair for pair in PAIRS if set(pair) <= row.keys()), None) or next(
            (pair for pair in PAIRS if set(pair) & row.keys()), PAIRS[0]
        )
        values = {"anchor": _text(row, anchor), "positive": _text(row, positive)}
        return {**values, "negative": _text(row, "negative")} if "negative" in row else values
    if kind == PREFERENCE:
        return _preference(row)
    if kind == ALPACA:
        prompt = _text(row, "instruction")
        if str(row.get("input", "")).strip():
            prompt += "\n\n" + _text(row, "input")
        turns = [_turn("user", prompt), _turn("assistant", _text(row, "output"))]
    elif kind == COMPLETION:
        turns = _turns(row, "prompt", "user") + _turns(row, "completion", "assistant")
    else:
        turns = _turns(row, "messages" if kind == MESSAGES else "conversations")
    if all(turn["role"] != "assistant" for turn in turns):
        field = {MESSAGES: "messages", SHAREGPT: "conversations"}.get(kind, "completion")
        raise _RowError(field, "has no assistant turn", "add the answer, or leave the row out")
    return {"messages": turns}


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in row), names[0])


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _text(row: dict[str, Any], field: str) -> str:
    if field not in row:
        raise _RowError(field, "is missing", "add it, or leave the row out")
    return _string(row[field], field)


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _RowError(field, f"is {_kind(value)}, but must be text", "put it in quotes, or name another field")
    if not value.strip():
        raise _RowError(field, "is empty", "fill it in, or leave the row out")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _RowError(
                field, f"holds half a character at {error.start} (a lone surrogate)", "mend the text, or leave the row out"
            ) from None
    return value


def _label(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # whole numbers turn to floats in a table with gaps
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) or value is None:
        return _text(row, field).strip()
    raise _RowError(field, f"is {_kind(value)}, but must be one label", "give one label per row, as text or a whole number")


def _mentions(value: Any, text: str) -> list[dict[str, Any]]:
    """Where a text names entities: start and end in characters, and which it is."""
    mend = 'write [{"start": 4, "end": 9, "entity": "valve"}, ...], an empty list where there is none'
    if not isinstance(value, list):
        raise _RowError("mentions", f"is {_kind(value)}, but must be a list", mend)
    found = []
    for i, each in enumerate(value):
        place = f"mentions[{i}]"
        if not isinstance(each, dict) or not {"start", "end", "entity"} <= each.keys():
            raise _RowError(place, "lacks start, end or entity", mend)
        start, end = each["start"], each["end"]
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
            raise _RowError(place, f"spans {start!r} to {end!r}, but the text has {len(text)} characters", "count characters from 0")
        found.append({"start": start, "end": end, "entity": _string(each["entity"], f"{place}.entity")})
    return found


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _turns(row: dict[str, Any], field: str, role: str = "") -> list[dict[str, str]]:
    """A list of messages, in either naming; plain text counts as one turn where ``role`` says whose."""
    value = row.get(field)
    if value is None:
        raise _RowError(field, "is missing", "add it, or leave the row out")
    if isinstance(value, str) and role:
        return [_turn(role, _string(value, field))]
    if not isinstance(value, list):
        wanted = "text or a list of turns" if role else "a list of turns"
        raise _RowError(field, f"is {_kind(value)}, but must be {wanted}", 'write [{"role": "user", "content": "..."}, ...]')
    if not value:
        raise _RowError(field, "is empty", "fill it in, or leave the row out")
    turns = []
    for i, turn in enumerate(value):
        place = f"{field}[{i}]"
        if not isinstance(turn, dict):
            raise _RowError(place, f"is {_kind(turn)}, but must be an object", 'write {"role": "user", "content": "..."}')
        who, what = ("from", "value") if "from" in turn else ("role", "content")
        if who not in turn:
            raise _RowError(f"{place}.role", "is missing", f"give the turn one of: {', '.join(ROLES)}")
        if str(turn[who]) not in ROLES:
            raise _RowError(
                f"{place}.{who}", f"is {turn[who]!r}, an unknown role{nearest(str(turn[who]), ROLES)}", f"use one of: {', '.join(ROLES)}"
            )
        speaker = ROLES[str(turn[who])]
        if speaker == "system" and turn.get(what) == "":
            continue  # many sets write an empty system turn where there is none
        if turn.get(what) is None:
            raise _RowError(f"{place}.{what}", "is missing", "add what was said, or leave the row out")
        turns.append(_turn(speaker, _string(turn[what], f"{place}.{what}")))
    return turns


def _preference(row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = _turns(row, "chosen", "assistant"), _turns(row, "rejected", "assistant")
    if chosen == rejected:
        raise _RowError("rejected", "is the same as chosen", "give a worse answer, or leave the row out")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        if [turn["role"] for turn in turns[shared:]] != ["assistant"]:
            raise _RowError(
                field, "must end with one assistant turn after what both answers share", "cut both conversations at the first difference"
            )
    before = chosen[:shared]
    prompt = _turns(row, "prompt", "user") if "prompt" in row or not before else []
    if before and prompt and not any(before[i : i + len(prompt)] == prompt for i in range(len(before))):
        if isinstance(row["prompt"], str):
            raise _RowError(
                "prompt", "is not among the turns that chosen and rejected share", "leave the field prompt out, or make them agree"
            )
        before = prompt + before
    return {"prompt": before or prompt, "chosen": chosen[shared]["content"], "rejected": rejected[shared]["content"]}
