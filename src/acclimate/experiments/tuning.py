"""Ways to train an encoder with a head that experiments compare adapters with: all weights, a prompt, any chosen weights."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from ..engines.terms import Classified, Labelled
    from ..kinds import Adapter
    from ..model import Model


def classified(
    model: "Model", sets: "dict[str, Labelled]", rates: dict[str, float], *, steps: int, seed: int, rows: int = 16, width: int = 64
) -> "Classified":
    """A fresh head and what ``rates`` names, trained on a labelled set; the head reads the mean of the tokens' vectors."""
    from ..engines.staged import Stage
    from ..engines.terms import classify

    stage = Stage(steps=steps, check_every=max(1, -(-steps // 2)), checkpoint_every=10**6, seed=seed)
    return classify(model, sets, rates, stage, rows=rows, width=width, pooling="mean", seed=seed)


def full(model: "Model", sets: "dict[str, Labelled]", *, lr: float, head_lr: float = 3e-3, **given: Any) -> "Classified":
    """All weights of a copy of the encoder; MiniLM's own pooling layer is not used and stays as it is."""
    learner = model.copy("full")
    return classified(learner, sets, {"head": head_lr, r"\.(?:pooler|cls)\.": 0.0, r"^encoder\.": lr}, **given)


def prompted(
    model: "Model", method: "Adapter", sets: "dict[str, Labelled]", *, lr: float, head_lr: float = 3e-3, **given: Any
) -> "Classified":
    """A prompt of peft's in front of every text; the head reads the text's own tokens."""
    import torch
    from peft import get_peft_model

    learner = model.copy("prompt", share=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(given["seed"])
        learner.net = _WithoutPrompt(get_peft_model(learner.net.base_model, method.peft(learner.net.base_model)))  # type: ignore[arg-type]
    return classified(learner, sets, {"head": head_lr, "prompt_encoder": lr}, **given)


def trained_share(net: Any, model: "Model") -> float:
    """The weights that learn in a classifier, its head aside, over those of the plain encoder."""
    learned = sum(weight.numel() for weight in net.encoder.parameters() if weight.requires_grad)
    return learned / sum(weight.numel() for weight in model.net.base_model.parameters())


class _WithoutPrompt(nn.Module):
    """A peft model whose outputs are those of the text's tokens alone."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.inner = net

    @property
    def config(self) -> Any:
        """The network's own."""
        return self.inner.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """The body's output without the places of the prompt."""
        found: Any = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        found.last_hidden_state = found.last_hidden_state[:, -input_ids.shape[1] :]
        return found
