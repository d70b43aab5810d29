"""GSM8K: grade-school arithmetic word problems with worked answers, as conversations.

Cobbe et al. 2021, https://arxiv.org/abs/2110.14168; github.com/openai/grade-school-math, MIT. 7,473 problems to train and 1,319 to
test, as published; about 5 % of the training problems, chosen by a hash of the question, become validation. Column ``messages``:
the question (user) and the worked answer (assistant), which ends in ``#### 18``, the number asked for.

What for: teaching step-by-step answers, and a check that adaptation elsewhere does not cost arithmetic, in bits per byte.

Traps. The answers hold calculator marks ``<<16-3-4=9>>`` as published. Accuracy is the share of final numbers that are right after
free generation: small models score near zero, and there is no task here, because a task compares whole answers.
"""

import json
from typing import Any

from ..domain import Domain
from ..files import digest
from . import locate
from ._texts import table

HUB = "openai/gsm8k"
CARD: dict[str, Any] = {
    "source": "github.com/openai/grade-school-math",
    "licence": "MIT",
    "size": "7,473 + 1,319 problems, 5 MB",
    "columns": {"messages": "question (user), worked answer (assistant)"},
    "hub": HUB,
}


def domains() -> list[str]:
    """None: the dataset is one domain."""
    return []


def _read(split: str) -> list[tuple[str, dict[str, Any]]]:
    path = locate(f"gsm8k/{split}.jsonl", hub=f"{HUB}/main/{split}-00000-of-00001.parquet")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return [
        (
            f"gsm8k/{path.name}:{number}",
            {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]},
        )
        for number, row in enumerate(rows, 1)
    ]


def load() -> Domain:
    """The problems as conversations; test as published, validation cut from train."""
    train, test = _read("train"), _read("test")
    held = [int(digest(values["messages"][0]["content"]), 16) % 20 == 0 for _, values in train]
    return Domain(
        name="gsm8k",
        form="messages",
        splits={
            "train": table([row for row, out in zip(train, held, strict=True) if not out]),
            "validation": table([row for row, out in zip(train, held, strict=True) if out]),
            "test": table(test),
        },
        source=CARD["source"],
        licence="MIT",
        parent="mathematics",
    )
