"""What the tests share: a tiny world of made-up text, networks of a few thousand weights, and processes that may be killed.

Nothing here needs a network, the embedded models, or data outside the repository.
"""

import multiprocessing
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers in worlds.py
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads cost more than they bring on networks this small
os.environ.setdefault("ACCLIMATE_DEVICE", "cpu")

import numpy as np
import pytest
import torch

from worlds import WORDS, domain_of, network, sentences


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    torch.manual_seed(0), np.random.seed(0), random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def places(tmp_path_factory):
    """Cache and runs of the whole session lie in a temporary folder."""
    root = tmp_path_factory.mktemp("places")
    os.environ["ACCLIMATE_CACHE"], os.environ["ACCLIMATE_RUNS"] = str(root / "cache"), str(root / "runs")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of this test alone."""
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer of 384 tokens with begin, end, pad and roles, and a chat template."""
    from acclimate.models.seedling import build_tokenizer

    return build_tokenizer(sentences("pipes", 200, 1) + sentences("kitchen", 200, 1), 384)


@pytest.fixture(scope="session")
def mask_tokenizer(tokenizer):
    """The same with a mask token, and a class and a separator token around every text, as encoders have them."""
    import copy

    from tokenizers.processors import TemplateProcessing

    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"mask_token": "<|mask|>", "cls_token": "<|begin|>", "sep_token": "<|end|>"})
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A <|end|>",
        pair=None,
        special_tokens=[("<|begin|>", made.cls_token_id), ("<|end|>", made.sep_token_id)],
    )
    made.chat_template = None
    return made


@pytest.fixture(scope="session")
def tiny_folder(places, tokenizer):
    """A saved tiny Llama, as plain transformers saves it."""
    folder = places / "tiny"
    net = network("llama", tokenizer)
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _tiny(tiny_folder):
    from acclimate.model import Model

    return Model.load(str(tiny_folder))


@pytest.fixture
def tiny(_tiny):
    """A tiny Llama that no test may change."""
    from acclimate.model import fingerprint

    before = fingerprint(_tiny.net)
    yield _tiny
    assert fingerprint(_tiny.net) == before, "the test changed the shared model"


@pytest.fixture(scope="session")
def pipes():
    """A tiny domain of plain text with all three splits."""
    from acclimate.domain import Domain

    return Domain.from_texts("pipes", sentences("pipes", 80))


@pytest.fixture(scope="session")
def kitchen():
    """Another one."""
    from acclimate.domain import Domain

    return Domain.from_texts("kitchen", sentences("kitchen", 80))


@pytest.fixture(scope="session")
def chats():
    """Conversations: what a part does, with the answer in the noun's own word; two turns in every third."""
    nouns, verbs = WORDS["pipes"]
    rows = []
    for i in range(24):
        noun, verb = nouns[i % 10], verbs[i * 7 % 10]
        turns = [("user", f"What does {noun} {i} do?"), ("assistant", f"It {verb}.")]
        turns += [("user", "And then?"), ("assistant", "It rests.")] if i % 3 == 0 else []
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return domain_of("chats", "messages", rows)


@pytest.fixture(scope="session")
def preferences():
    """Pairs of answers: the right one is always a verb, the wrong one a noun."""
    nouns, verbs = WORDS["pipes"]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What does {nouns[i % 10]} {i} do?"}],
            "chosen": f"It {verbs[i % 10]}.",
            "rejected": f"The {nouns[i * 3 % 10]} is blue.",
        }
        for i in range(16)
    ]
    return domain_of("preferences", "preference", rows)


@pytest.fixture(scope="session")
def twins():
    """Pairs of texts that belong together."""
    nouns, verbs = WORDS["kitchen"]
    rows = [{"anchor": f"Who {verbs[i % 10]} at {i}?", "positive": f"The {nouns[i % 10]} {verbs[i % 10]} at {i}."} for i in range(16)]
    return domain_of("twins", "pairs", rows)


# Processes that may be killed. A server imports torch once and forks a child for each task, so that a child costs no import.

_PRELOAD = ["acclimate.engines.train", "acclimate.execute", "acclimate.report.page", "acclimate.cli.commands", "peft", "datasets"]


@pytest.fixture(scope="session")
def child(places, tmp_path_factory):
    """``child(code, **values)`` runs Python code in another process and returns (exit code, text it wrote); -9 = it was killed.

    With ``wait=False`` it returns the running process instead. Every value is plain data and becomes a variable of the code.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    logs = tmp_path_factory.mktemp("children")

    def run(code: str, wait: bool = True, timeout: float = 120, **values):
        log = logs / f"{len(list(logs.iterdir()))}.txt"
        log.touch()
        head = (
            "import os, sys, signal\n"
            f"out = os.open({str(log)!r}, os.O_WRONLY | os.O_APPEND)\n"
            "os.dup2(out, 1); os.dup2(out, 2)\n"
            f"os.environ.update({dict(os.environ)!r})\n"
        )
        process = context.Process(target=exec, args=(head + code, {"__name__": "child", **values}))
        process.start()
        process.log = log
        if not wait:
            return process
        process.join(timeout)
        assert process.exitcode is not None, f"the child hangs: {log.read_text()}"
        return process.exitcode, log.read_text()

    return run
