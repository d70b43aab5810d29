"""Heads of adapters' own: each branch and each row answers through its own, and they are saved with the adapter."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from acclimate.checks import tiny as small
from acclimate.engines.adapters.bank import Bank
from acclimate.engines.staged import Stage, fit
from acclimate.engines.terms import Term
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import Injected, Model
from acclimate.model.composition import Rows
from acclimate.parts.spans import best_spans, span_loss
from worlds import model_of, network

IDS = small.tokens()
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
TOPICS, TAGS = ["law", "art", "food"], ["O", "B-part", "I-part"]


def headed(net=None, seed=0):
    """Three adapters: a with a classifier, b with tags, m with the language model's own layer; d has none."""
    made = Injected(net or small.encoder()).eval()
    for name in "abmd":
        made.add(name, load("adapters.bottleneck", reduction=4))
    made.put_head("a", "classification", TOPICS, pooling="mean")
    made.put_head("b", "tagging", TAGS)
    made.put_head("m", "language_model")
    draw = torch.Generator().manual_seed(seed)
    for held in (made.adapters, made.heads):
        for weight in held.parameters():
            weight.data.add_(0.3 * torch.randn(weight.shape, generator=draw))
    return made


def states(made, name, rows=slice(None)):
    """The last states with one adapter alone."""
    with torch.no_grad(), made.using(name):
        return made.net.base_model(input_ids=IDS[rows], attention_mask=MASK[rows]).last_hidden_state


def by_hand(made, name, hidden, mask):
    """The head written out, in float64."""
    weights = {key: value.double() for key, value in made.heads[name].state_dict().items()}
    hidden = hidden.double()
    if name == "a":
        pooled = torch.stack([row[keep.bool()].mean(0) for row, keep in zip(hidden, mask, strict=True)])
        hidden = (pooled @ weights["dense.weight"].T + weights["dense.bias"]).tanh()
    if name == "m":
        return copy.deepcopy(made.heads[name].out).double()(hidden)
    return hidden @ weights["out.weight"].T + weights["out.bias"]


def answers(made, tree, rows=slice(None)):
    with torch.no_grad(), made.using(tree):
        return made.answers(input_ids=IDS[rows], attention_mask=MASK[rows])


def test_every_branch_answers_through_its_own_head():
    made = headed()
    found = answers(made, "parallel(b, m, a)")
    assert [list(part.shape) for part in found] == [[2, 6, 3], [2, 6, 48], [2, 3]]
    for name, part in zip("bma", found, strict=True):
        assert torch.allclose(part.double(), by_hand(made, name, states(made, name), MASK), atol=1e-5)
        (alone,) = answers(made, name)
        assert torch.allclose(part, alone, atol=1e-5)
    first, second = answers(made, "batchsplit(a, b; 1, 1)")
    assert torch.allclose(first, found[2][:1], atol=1e-5)
    assert torch.allclose(second, found[0][1:], atol=1e-5)


def test_the_topmost_head_of_a_branch_answers():
    made = headed()
    for tree in ("stack(d, a)", "stack(b, a)", "stack(a, d)"):
        (found,) = answers(made, tree)
        hidden = states(made, tree)
        assert torch.allclose(found.double(), by_hand(made, "a", hidden, MASK), atol=1e-5)
    first, second = answers(made, "stack(d, parallel(a, b))")
    assert torch.allclose(first, answers(made, "stack(d, a)")[0], atol=1e-5)
    assert torch.allclose(second, answers(made, "stack(d, b)")[0], atol=1e-5)
    (found,) = answers(made, "average(a, d)")
    assert found.shape == (2, 3)


def test_rows_answer_each_through_the_head_of_its_adapter():
    made = headed()
    for order in (("a", "b"), ("m", "a"), ("b", "b")):
        found = answers(made, Rows(order))
        for i, name in enumerate(order):
            (alone,) = answers(made, name, slice(i, i + 1))
            assert torch.allclose(found[i], alone[0], atol=1e-5), name


def test_questions_are_answered_by_a_span():
    """A head learns where the answer starts and ends; the span is the best pair of them, never one that ends before it starts."""
    torch.manual_seed(0)
    made = headed().put_head("d", "question_answering", seed=2).learn("d")
    assert made.specs["d"]["head"] == {"kind": "question_answering", "labels": [], "pooling": "mean"}
    (found,) = answers(made, "d")
    assert found.shape == (2, 6, 2)
    assert torch.allclose(found.double(), by_hand(made, "d", states(made, "d"), MASK), atol=1e-5)
    start, end = torch.tensor([1, 2]), torch.tensor([3, 4])
    optimizer = torch.optim.Adam([weight for weight in made.parameters() if weight.requires_grad], 0.02)
    made.activate("d")
    for _ in range(40):
        optimizer.zero_grad()
        span_loss(made.answers(input_ids=IDS, attention_mask=MASK)[0], start, end, MASK).backward()
        optimizer.step()
    made.eval()
    first, last, best = best_spans(answers(made, "d")[0], MASK)
    assert torch.equal(first, start)
    assert torch.equal(last, end)
    (scores,) = answers(made, "d")
    spans = {(a, b): float(scores[0, a, 0] + scores[0, b, 1]) for a in range(4) for b in range(a, 4)}  # row 0 has 4 tokens
    assert best[0].item() == pytest.approx(max(spans.values()), abs=1e-6)
    assert float(best_spans(scores, torch.zeros_like(MASK))[2][0]) == -float("inf")
    with pytest.raises(AcclimateError, match="has no labels"):
        made.put_head("d", "question_answering", ["start", "end"])


def test_a_language_models_head_begins_as_the_networks():
    for make in (small.decoder, small.fused_decoder, small.encoder):
        net = make()
        with torch.no_grad():
            want = net(input_ids=IDS, attention_mask=MASK).logits
            made = Injected(net).eval().add("a", load("adapters.bottleneck", reduction=4)).put_head("a", "language_model")
            (found,) = made.answers(input_ids=IDS, attention_mask=MASK)
        assert torch.allclose(found, want, atol=1e-6)
        assert not {weight.data_ptr() for weight in made.heads.parameters()} & {weight.data_ptr() for weight in net.parameters()}


def test_what_is_pooled():
    made = headed()
    for pooling, places in (("cls", [0, 0]), ("last", [3, 5])):
        made.put_head("a", "classification", TOPICS, pooling=pooling, seed=3)
        hidden, head = states(made, "a")[torch.arange(2), places], made.heads["a"]
        with torch.no_grad():
            assert torch.allclose(answers(made, "a")[0], head.out(head.dense(hidden).tanh()), atol=1e-6)


def test_a_head_learns_with_its_adapter_alone():
    """The class is the first token's parity; the other adapter, its head and the network stay bit-equal."""
    made = headed().learn("a")
    ids = torch.randint(3, 48, (32, 5), generator=torch.Generator().manual_seed(1))
    labels = ids[:, 0] % 2
    kept = {key: value.clone() for key, value in made.state_dict().items()} | {
        f"net.{k}": v.clone() for k, v in made.net.named_parameters()
    }

    def loss(step):
        with made.using("a"):
            return functional.cross_entropy(made.answers(input_ids=ids)[0], labels)

    fitted = fit(made, {"labels": Term(loss)}, {r"^(adapters|heads)\.a\.": 1e-2}, Stage(steps=40, precision="fp32"))
    assert fitted.curve[-1]["loss"] < 0.6 * fitted.curve[0]["loss"]
    now = {**made.state_dict(), **{f"net.{k}": v for k, v in made.net.named_parameters()}}
    changed = {key for key in kept if not torch.equal(kept[key], now[key])}
    assert changed
    assert all(key.split(".")[1] == "a" for key in changed)
    assert {key.split(".")[0] for key in changed} == {"adapters", "heads"}


def test_heads_are_saved_with_their_adapters_and_read_strictly(mask_tokenizer, tmp_path):
    base = model_of(network("bert", mask_tokenizer), mask_tokenizer, "masked", "bert")
    base.save(tmp_path / "base")
    base = Model.load(str(tmp_path / "base"))
    model = base.copy("headed", share=True)
    model.net = headed(model.net).activate("parallel(a, b, m)")
    model.notes |= {"base": base.source, "base_fingerprint": base.fingerprint}
    model.save(tmp_path / "headed")
    again = Model.load(str(tmp_path / "headed"))
    mine, theirs = (made.net.eval().answers(input_ids=IDS, attention_mask=MASK) for made in (model, again))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert again.net.heads["b"].labels == TAGS
    config, weights = tmp_path / "headed" / "adapters.json", tmp_path / "headed" / "adapters.safetensors"
    about, stored = json.loads(config.read_text()), load_file(weights)

    def refused(said, change_about=None, change_stored=None):
        other, tensors = copy.deepcopy(about), dict(stored)
        (change_about or (lambda _: None))(other["adapters"])
        (change_stored or (lambda _: None))(tensors)
        config.write_text(json.dumps(other))
        save_file(tensors, weights)
        with pytest.raises(AcclimateError, match=said) as caught:
            Model.load(str(tmp_path / "headed"))
        assert "\n" not in str(caught.value)

    refused("headed: adapters do not fit: missing", change_stored=lambda held: held.pop("heads.b.out.weight"))
    refused("headed: adapters do not fit: .* unexpected .*heads", change_about=lambda held: held["a"].pop("head"))
    refused("size mismatch for heads", change_about=lambda held: held["b"]["head"]["labels"].append("B-other"))
    refused("head's kind cannot be 'tags'", change_about=lambda held: held["b"]["head"].update(kind="tags"))
    refused("head of adapter 'b' is not as it should be", change_about=lambda held: held["b"]["head"].update(shape=3))


def test_heads_are_taken_over_go_with_the_adapter_and_into_banks(mask_tokenizer, tmp_path):
    base = model_of(network("bert", mask_tokenizer), mask_tokenizer, "masked", "bert")
    one = base.copy("one", share=True)
    one.net = Injected(one.net).eval().add("a", load("adapters.bottleneck", reduction=4)).put_head("a", "classification", TOPICS)
    for weight in one.net.adapters.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))
    one.notes |= {"base": base.source, "base_fingerprint": base.fingerprint}
    one.save(tmp_path / "one")
    (want,) = one.net.answers(input_ids=IDS, attention_mask=MASK)
    bank = Bank.make(tmp_path / "bank", base)
    bank.add("law", tmp_path / "one", base=base)
    held = bank.load_onto(base, ["law"]).net.activate(Rows(["law", "law"]))
    assert torch.allclose(torch.stack(held.answers(input_ids=IDS, attention_mask=MASK)), want, atol=1e-5)
    other = Injected(base.copy(share=True).net).eval().take("copy", one.net)
    assert torch.equal(other.answers(input_ids=IDS, attention_mask=MASK)[0], want)
    made = load("adapters.compose", tree="parallel(one, one)").run(None, start=base, tuned=[one])["composed"]
    assert all(torch.allclose(part, want, atol=1e-5) for part in made.net.answers(input_ids=IDS, attention_mask=MASK))
    other.delete("copy")
    assert not other.heads
    assert not other.state_dict()


def test_what_has_no_answer_is_one_line():
    made = headed()

    def refused(said, call):
        with pytest.raises(AcclimateError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)

    refused("d: no head; give one with put_head", lambda: answers(made, "d"))
    refused("a and b each have a head and stand side by side", lambda: answers(made, "average(a, b)"))
    refused("row 2 has no adapter", lambda: answers(made, Rows(["a", ""])))
    refused("no adapter is active", lambda: answers(made, None))
    refused("no adapter is named 'x'", lambda: made.put_head("x", "tagging", TAGS))
    refused("needs a list of labels", lambda: made.put_head("a", "tagging"))
    refused("needs a list of labels", lambda: made.put_head("a", "tagging", "law"))
    refused("has no labels", lambda: made.put_head("a", "language_model", TAGS))
    refused("pooling cannot be 'max'", lambda: made.put_head("a", "classification", TAGS, pooling="max"))
    refused(
        "not exactly one", lambda: Injected(small.encoder().base_model).add("a", load("adapters.hydra")).put_head("a", "language_model")
    )
    refused("encoder-decoder", lambda: Injected(small.encoder_decoder()).add("a", load("adapters.hydra")).put_head("a", "tagging", TAGS))
    two = made.activate("stack(parallel(a, b), batchsplit(a, b; 1, 3))")
    refused("divides the rows in two ways", lambda: two.answers(input_ids=IDS, attention_mask=MASK))
