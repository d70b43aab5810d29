"""Checks for adapters, of peft and of our own: equal to the model at the start, frozen weights untouched, folding, saving."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kinds import Adapter
from ..model.adapter_files import CONFIG, WEIGHTS
from ..model.injected import Injected
from . import tiny
from .common import expect

STEPS = 3


def example(method: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The logits of an adapted tiny decoder."""
    return lambda model, ids: _logits(_adapted(method, model), ids), {"model": tiny.decoder().to(dtype), "ids": tiny.tokens()}


def reference_number(method: Any, inputs: dict[str, Any]) -> list[float]:
    """Logits ``at`` some [row, token, id] of the tiny decoder, its weights and the adapter's both filled by ``tiny.fill``."""
    model = tiny.decoder()
    tiny.fill(model.parameters())
    net = _adapted(method, model)
    tiny.fill(value for value in net.parameters() if value.requires_grad)
    logits = _logits(net)
    return [logits[tuple(place)].item() for place in inputs["at"]]


def identity(cls: type[Adapter]) -> None:
    """Before any training the adapted model answers like the plain one."""
    gap = (_logits(_adapted(cls(), tiny.decoder())) - _logits(tiny.decoder())).abs().max().item()
    expect(gap < 1e-6, f"the adapter changes the model before it is trained, by {gap:.2g} in the logits")


def frozen(cls: type[Adapter]) -> None:
    """Training moves every weight of the adapter and leaves every weight of the model bit-equal."""
    for make in (tiny.decoder, tiny.encoder):  # without biases, and with
        net = _adapted(cls(), make())
        learned = {name: value.detach().clone() for name, value in net.named_parameters() if value.requires_grad}
        kept = {name: value.detach().clone() for name, value in net.named_parameters() if not value.requires_grad}
        expect(learned, "the adapter has no weights to train")
        whole = sum(value.numel() for value in make().parameters())
        expect(sum(value.numel() for value in kept.values()) >= whole, "some of the model's own weights are trained")
        now = dict(_train(net).named_parameters())
        changed = [name for name, value in kept.items() if not torch.equal(value, now[name])]
        expect(not changed, f"training changes frozen weights: {', '.join(changed[:3])}")
        still = [name for name, value in learned.items() if torch.equal(value, now[name])]
        expect(not still, f"training leaves weights of the adapter as they were: {', '.join(still[:3])}")


def folds(cls: type[Adapter]) -> None:
    """A trained adapter folded into the weights gives the same logits."""
    net = _train(_adapted(cls(), tiny.decoder()))
    apart = _logits(net)
    expect((apart - _logits(tiny.decoder())).abs().max() > 1e-3, "training does not change the logits")
    gap = (_logits(net.merge_and_unload()) - apart).abs().max().item()
    expect(gap < 1e-5, f"folded into the weights the adapter gives other logits, by {gap:.2g}")


def saved(cls: type[Adapter]) -> None:
    """A saved adapter gives the same logits when it is loaded again: by plain peft, where it has a peft configuration."""
    from peft import PeftModel

    net = _train(_adapted(cls(), tiny.decoder()))
    ours = isinstance(net, Injected)
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        names = {path.name for path in Path(folder).iterdir()}
        wanted = {CONFIG, WEIGHTS} if ours else {"adapter_config.json", "adapter_model.safetensors"}
        expect(wanted <= names, f"saved as {', '.join(sorted(names))}, not as {', '.join(sorted(wanted))}")
        again: Any = (Injected if ours else PeftModel).from_pretrained(tiny.decoder(), folder).eval()
    gap = (_logits(again) - _logits(net)).abs().max().item()
    expect(gap < 1e-6, f"loaded again the adapter gives other logits, by {gap:.2g}")


def taken_out(cls: type[Adapter]) -> None:
    """An adapter of our own leaves the network bit-equal when it is taken out, after training too."""
    net = _train(_adapted(cls(), tiny.decoder()))
    if isinstance(net, Injected):
        gap = (_logits(net.detach()) - _logits(tiny.decoder())).abs().max().item()
        expect(gap == 0, f"taken out, the adapter leaves other logits behind, by {gap:.2g}")


def families(cls: type[Adapter]) -> None:
    """It fits and trains on a decoder, one with fused attention, an encoder and an encoder-decoder."""
    for name, make in tiny.FAMILIES.items():
        net = _adapted(cls(), make())
        before = _logits(net)
        expect((_logits(_train(net)) - before).abs().max() > 0, f"training on the {name} changes nothing")


def _adapted(method: Any, model: Any) -> Any:
    """A copy of the model with the adapter on it, drawn from a fixed seed."""
    from peft import get_peft_model

    config = method.peft(model)
    if config is None:
        return Injected(copy.deepcopy(model)).add("a", method).learn("a").eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(copy.deepcopy(model), config).eval()


def _logits(net: Any, ids: Tensor | None = None) -> Tensor:
    """Logits of the real tokens in fp32; virtual ones stand before them."""
    ids = tiny.tokens() if ids is None else ids
    extra = {"decoder_input_ids": ids} if net.config.is_encoder_decoder else {}
    with torch.no_grad():
        return net(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits[:, -ids.shape[1] :].float()


def _train(net: Any) -> Any:
    ids = tiny.tokens()
    extra = {"decoder_input_ids": ids} if net.config.is_encoder_decoder else {}
    optimizer = torch.optim.Adam([value for value in net.parameters() if value.requires_grad], lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = net(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits[:, -ids.shape[1] :]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
    return net
