"""Every method x every check of its kind, and every method against numbers that an independent source computed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from acclimate import checks
from acclimate.errors import AcclimateError
from acclimate.kinds import KINDS, Strategy
from acclimate.method import find, load, names

CASES = [(name, check) for name in names() for check, _ in checks.checks_for(find(name))]
REFERENCES = [
    case
    for path in sorted((Path(__file__).parent / "reference").glob("*.json"))
    if path.stem in KINDS
    for case in json.loads(path.read_text())
]


@pytest.mark.parametrize(("name", "check"), CASES, ids=[f"{name}-{check}" for name, check in CASES])
def test_check(name, check):
    cls = find(name)
    found = checks.outcome(cls, check, dict(checks.checks_for(cls))[check])
    if found.excused:
        pytest.skip(found.excused)
    assert found.ok, found.message


@pytest.mark.parametrize("case", REFERENCES, ids=[f"{case['method']}-{i}" for i, case in enumerate(REFERENCES)])
def test_reference(case):
    method = load(case["method"], **case["settings"])
    found = checks.room_checks(type(method)).reference_number(method, case["inputs"])
    assert case["source"].strip()
    assert found == pytest.approx(case["expected"], rel=case["tolerance"], abs=case["tolerance"]), case["source"]


@pytest.mark.parametrize(
    "room", ["objectives", "adapters", "merging", "domain_adaptation", "domain_generalization", "test_time", "active_learning", "continual"]
)
def test_every_method_has_a_reference(room):
    """A strategy has stages, not a number: its own tests check them."""
    pure = {name for name in names(room) if not issubclass(find(name), Strategy)}
    assert pure <= {case["method"] for case in REFERENCES}


def test_listing_imports_neither_methods_nor_torch():
    code = "import sys; from acclimate.method import names; print(len(names()))\n"
    code += "print([name for name in sys.modules if name == 'torch' or name.startswith('acclimate.methods.')])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [str(len(names())), "[]"]


def test_masks_are_drawn_as_in_the_paper():
    tokens, special = np.arange(1000, 41000), np.zeros(40000, np.int8)
    special[::10] = 1
    inputs, labels = load("objectives.masked_lm").corrupt(tokens, special, 50000, 3, np.random.default_rng(0))
    chosen = labels != -100
    assert chosen.sum() == round(0.15 * 36000)
    assert not chosen[special == 1].any()
    assert (labels[chosen] == tokens[chosen]).all()
    assert (inputs[~chosen] == tokens[~chosen]).all()
    masked, kept = (inputs == 3)[chosen].mean(), (inputs == tokens)[chosen].mean()
    assert masked == pytest.approx(0.8, abs=0.02)  # 5,400 draws: standard error 0.005
    assert kept == pytest.approx(0.1, abs=0.02)
    drawn = inputs[chosen & (inputs != 3) & (inputs != tokens)]
    assert drawn.min() < 3000  # over the whole vocabulary
    assert drawn.max() > 47000


def test_masked_lm_refuses_what_it_cannot_do():
    ids = np.arange(5)
    with pytest.raises(AcclimateError, match="mask token"):
        load("objectives.masked_lm").corrupt(ids, ids * 0, 9, None, np.random.default_rng(0))
    with pytest.raises(AcclimateError, match="at most 1"):
        load("objectives.masked_lm", mask_share=0.9, random_share=0.2)


def test_a_row_of_structural_tokens_alone_has_nothing_to_mask():
    ids = np.arange(5)
    inputs, labels = load("objectives.masked_lm").corrupt(ids, ids * 0 + 1, 9, 3, np.random.default_rng(0))
    assert (inputs == ids).all()
    assert (labels == -100).all()


def test_settings_that_exclude_each_other():
    with pytest.raises(AcclimateError, match="label_smoothing"):
        load("objectives.dpo", form="ipo", label_smoothing=0.1)


def test_adapters_refuse_models_they_do_not_know():
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    class Strange(PreTrainedModel):
        def __init__(self):
            super().__init__(PretrainedConfig())
            self.only = nn.Linear(2, 2)

    with pytest.raises(AcclimateError, match="name them with target"):
        load("adapters.ia3").peft(Strange())
    assert load("adapters.ia3", target=["only"], feedforward=[]).peft(Strange()).target_modules == {"only"}
    with pytest.raises(AcclimateError, match="give both"):
        load("adapters.ia3", target=["only"]).peft(Strange())
    with pytest.raises(AcclimateError, match="needs text"):
        load("adapters.prompt", start="text").peft(Strange())


def test_ia3_scales_keys_values_and_feed_forward_units_alone():
    from peft import get_peft_model

    from acclimate.checks import tiny

    count = {
        name: get_peft_model(make(), load("adapters.ia3").peft(make())).get_nb_trainable_parameters()[0]
        for name, make in tiny.FAMILIES.items()
    }
    # keys + values + units, per layer; GPT-2's queries come with its fused layer, T5's decoder attends twice
    assert count == {
        "decoder": 2 * (8 + 8 + 32), "fused_decoder": 2 * (48 + 64), "encoder": 2 * (16 + 16 + 32),
        "encoder_decoder": 2 * (16 + 16 + 32) + 2 * (4 * 16 + 32),
    }  # fmt: skip


def test_prompt_starts_from_the_words_of_a_text(tmp_path):
    import torch
    from peft import get_peft_model
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from acclimate.checks.tiny import decoder

    words = Tokenizer(WordLevel({"law": 4, "court": 9, "?": 0}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    decoder().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    net = get_peft_model(model, load("adapters.prompt", tokens=3, start="text", text="court law").peft(model))
    start = net.prompt_encoder["default"].embedding.weight
    assert torch.equal(start, model.get_input_embeddings().weight[[9, 4, 9]])


def test_token_losses_agree_with_torch_whatever_the_block_size(monkeypatch):
    import torch
    import torch.nn.functional as F

    from acclimate.parts import losses

    monkeypatch.setattr(losses, "CELLS", 10)  # blocks of two rows
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([[0, 1, -100, 3], [4, -100, 2, 2]])
    mine, theirs = losses.token_cross_entropy(logits, labels), F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert torch.allclose(*(torch.autograd.grad(loss, logits)[0] for loss in (mine, theirs)), atol=1e-14)
    assert torch.autograd.gradgradcheck(lambda x: losses.token_logps(x, labels).tanh(), (logits,))  # meta-learning differentiates twice


def test_a_batch_without_labels_has_loss_zero():
    import torch

    logits = torch.zeros(1, 2, 3, requires_grad=True)
    loss = load("objectives.causal_lm").loss(logits, torch.full((1, 2), -100))
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().sum() == 0


def test_a_student_equal_to_its_teacher_has_no_divergence():
    import torch

    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)) * 3
    top = logits.log_softmax(2).topk(8, 2)
    for temperature in (0.5, 1.0, 4.0):
        loss = load("objectives.distill", temperature=temperature, weight=1.0).loss(
            logits, torch.ones(2, 3).long(), top.indices, top.values
        )
        assert loss.item() == pytest.approx(0, abs=1e-5)


def test_orpo_is_finite_for_certain_and_for_hopeless_answers():
    import torch

    chosen = torch.tensor([0.0, -1e-9, -900.0, -4.0], requires_grad=True)
    rejected = torch.tensor([-800.0, 0.0, -1e-9, -4.0], requires_grad=True)
    loss = load("objectives.orpo").loss(chosen, rejected, torch.tensor([4, 4, 4, 0]), torch.tensor([4, 4, 4, 4]))
    loss.backward()
    assert all(torch.isfinite(value).all() for value in (loss, chosen.grad, rejected.grad))
