"""The checks catch broken methods: a sound one passes, and each fault fails the check that is meant for it."""

import pytest

from acclimate import checks
from acclimate.errors import AcclimateError

SOUND = '''"""Sound: pulls the logits of the labels up and those of all other tokens down.

Somebody 2020, equation 1, https://arxiv.org/abs/2001.00001

>>> import torch
>>> Sound(weight=2.0).loss(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[1]]))  # 2 log 2
tensor(1.3863)
"""

from typing import Annotated

import torch

from acclimate.kinds import Objective
from acclimate.method import Setting


class Sound(Objective):
    """A cross-entropy."""

    weight: Annotated[float, Setting("factor on the loss", 0, 10)] = 1.0

    def loss(self, logits, labels, items=None):
        """logits [batch, token, vocabulary] -> scalar."""
        kept = labels != -100
        scores = logits[kept].float().log_softmax(1)
        total = -scores.gather(1, labels[kept][:, None]).sum()
        return self.weight * total / (kept.sum() if items is None else items)
'''

BROKEN = [  # what is wrong, the sound text, what stands in its place, the checks that fail (and no others)
    ("writes into its input", "kept = labels", "logits += 1\n        kept = labels", {"inputs_untouched", "gradient", "learns"}),
    ("unseeded noise", "self.weight * total", "self.weight * (total + torch.rand(()))", {"repeatable", "doctested", "splits"}),
    ("a word of its own", "labels, items", "labels, mood=1, items", {"words_known"}),
    ("no paper", "https://arxiv.org/abs/2001.00001", "in a journal", {"cited"}),
    ("wrong sign", "total = -scores", "total = scores", {"doctested", "learns"}),
    ("no explanation of a setting", '"factor on the loss"', '"factor"', {"settings_explained"}),
    ("a doctest that proves nothing", "tensor(1.3863)", "...", {"doctested"}),
    ("no name in the first line", '"""Sound: pulls', '"""Pulls', {"first_line"}),
    ("ignores the items of the step", "if items is None else items", "", {"splits"}),
    ("learns where nothing is asked", "labels != -100", "labels != 99\n        labels = labels.clamp(min=0)", {"gradient", "splits"}),
    ("no gradient", "logits[kept]", "logits.detach()[kept]", {"gradient", "learns"}),
    ("overflow in fp16", "logits[kept].float()", "(logits[kept] * 1e5 / 1e5).float()", {"half_precision"}),
    ("prints", "kept = labels", "print(labels)\n        kept = labels", {"no_plumbing", "doctested"}),
    ("moves to a device", "logits[kept]", "logits[kept].to('cpu')", {"no_plumbing"}),
    ("an excuse without a check", "    def loss", '    exempt = {"mood": "it is not in the mood"}\n\n    def loss', {"exemptions"}),
    ("an excuse without a reason", "    def loss", '    exempt = {"splits": "no"}\n\n    def loss', {"exemptions"}),
    ("too long", "class Sound", "# a line\n" * 150 + "\n\nclass Sound", {"short"}),
]  # fmt: skip


def failed(path):
    return {outcome.check for outcome in checks.run(path) if not outcome.ok}


def write(folder, text, name="sound.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_sound_method_passes_every_check(tmp_path):
    outcomes = checks.run(write(tmp_path, SOUND))
    assert [outcome for outcome in outcomes if not outcome.ok] == []
    assert {"cited", "doctested", "repeatable", "half_precision", "words_known", "splits", "corruption"} <= {one.check for one in outcomes}


@pytest.mark.parametrize(("old", "new", "expected"), [fault[1:] for fault in BROKEN], ids=[fault[0] for fault in BROKEN])
def test_a_fault_fails_its_check(tmp_path, old, new, expected):
    assert SOUND.count(old) == 1
    assert failed(write(tmp_path, SOUND.replace(old, new))) == expected


def test_a_slow_method_fails_its_check(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.common, "SLOWEST", 0.05)
    lines = ["import time", "end = time.process_time() + 0.06", "while time.process_time() < end:", "    pass", "kept = labels"]
    busy = ("\n" + 8 * " ").join(lines)
    cls = checks.from_file(write(tmp_path, SOUND.replace("kept = labels", busy)))
    assert "takes 0.1 s" in checks.outcome(cls, "quick", checks.common.quick).message


@pytest.mark.parametrize("declared", ["10)]", "0.5)] = 1.0"], ids=["no default", "a default out of range"])
def test_a_bad_default_fails_its_check(tmp_path, declared):
    outcomes = {outcome.check: outcome for outcome in checks.run(write(tmp_path, SOUND.replace("10)] = 1.0", declared)))}
    assert not outcomes["defaults_in_range"].ok
    assert "weight" in outcomes["defaults_in_range"].message
    assert outcomes["cited"].ok


ADAPTER = '''"""Sound: a change of rank two beside each linear layer, nothing more.

Somebody 2020, https://arxiv.org/abs/2001.00001

>>> 1 + 1
2
"""

from acclimate.kinds import Adapter


class Sound(Adapter):
    """Peft's LoRA."""

    def peft(self, model):
        """The configuration."""
        from peft import LoraConfig, PromptTuningConfig

        task = "CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION"
        return LoraConfig(r=2, target_modules="all-linear", task_type=task)
'''

BROKEN_ADAPTERS = [
    ("sound", "r=2", "r=2", set()),
    ("no identity", "r=2", "r=2, init_lora_weights=False", {"identity"}),
    ("writes into it", "task =", "next(model.parameters()).data += 1\n        task =", {"inputs_untouched", "identity", "saved"}),
    ("fits one family only", '"all-linear"', '["up_proj"]', {"families", "frozen"}),
    ("cannot be folded", 'LoraConfig(r=2, target_modules="all-linear"', "PromptTuningConfig(num_virtual_tokens=3", {"identity", "folds"}),
    ("trains the model's own biases", "r=2", 'r=2, bias="all"', {"frozen"}),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), [fault[1:] for fault in BROKEN_ADAPTERS], ids=[fault[0] for fault in BROKEN_ADAPTERS])
def test_a_faulty_adapter_fails_its_check(tmp_path, old, new, expected):
    assert ADAPTER.count(old) == 1
    assert failed(write(tmp_path, ADAPTER.replace(old, new))) == expected


def test_an_adapter_that_gives_nothing_fails_all_that_use_it(tmp_path):
    outcomes = checks.run(write(tmp_path, ADAPTER.replace("return LoraConfig", "LoraConfig")))
    said = {one.message for one in outcomes if not one.ok}
    assert len(said) == 1
    assert "gives neither a peft configuration nor" in said.pop()


def test_an_exemption_is_said_with_its_reason(tmp_path):
    doc = '"""A cross-entropy."""'
    text = SOUND.replace(doc, doc + '\n\n    exempt = {"splits": "every batch is a whole step of its own"}').replace(
        "if items is None else items", ""
    )
    outcome = {outcome.check: outcome for outcome in checks.run(write(tmp_path, text))}["splits"]
    assert outcome.ok
    assert outcome.excused == "every batch is a whole step of its own"


def test_a_strategy_gets_the_common_manners_only(tmp_path):
    text = SOUND.replace("import Objective", "import Strategy").replace("(Objective)", "(Strategy)")
    text = text.replace(
        ">>> Sound(weight=2.0).loss(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[1]]))  # 2 log 2\ntensor(1.3863)", ">>> 1 + 1\n2"
    )
    cls = checks.from_file(write(tmp_path, text.replace("def loss(self, logits, labels, items=None)", "def run(self, tools)")))
    assert cls.verb == "run"
    assert "cited" in dict(checks.checks_for(cls))
    assert not {"splits", "repeatable"} & set(dict(checks.checks_for(cls)))


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1", "must define one method class, but defines 0"), ("def", "cannot be imported: SyntaxError"), ("1 / 0", "ZeroDivisionError")],
)
def test_files_that_hold_no_method(tmp_path, text, message):
    with pytest.raises(AcclimateError, match=message):
        checks.run(write(tmp_path, text))


def test_names_that_do_not_exist(tmp_path):
    with pytest.raises(AcclimateError, match=r"nearest: objectives\.dpo"):
        checks.run("objectives.dpoo")
    with pytest.raises(AcclimateError, match="does not exist"):
        checks.run(tmp_path / "none.py")


def test_a_changed_file_is_checked_anew(tmp_path):
    assert failed(write(tmp_path, SOUND)) == set()
    assert failed(write(tmp_path, SOUND.replace("https://", ""))) == {"cited"}
