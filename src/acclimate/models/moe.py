"""A decoder whose feed-forward layers are mixtures of experts, made of dense decoders of one base (Llama, Mistral, Qwen, and their like).

It holds an ordinary network of the family in which every ``layer.mlp`` is a :class:`MoEFFN` and, if asked, every ``layer.self_attn`` a
sum of the experts' own attentions; embeddings, norms and head are the merged ones. Routing is ``linear`` (a trained gate per layer and
token), ``ppl`` (training-free: by the perplexity of the prompt under each dense expert), ``given`` (weights from outside), or ``uniform``.
For ``ppl`` the dense experts stay whole: what is not an expert of the mixture already is kept as a judge's own, so memory grows by the
experts' embeddings and attentions. Judges are never trained, but share the feed-forward layers, so training those changes them too.

Weights of a sequence hold for a document: rows may be packed, and each document then has its own. ``prompt_tokens`` says which part of a
text that is scored or trained on counts as the prompt; ``generate`` takes its whole prompt. Import this module to load what it saved.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ..errors import AcclimateError
from ..files import digest
from ..model import Model
from ..parts.moe import Held, MoEFFN, per_document, perplexity_weights

ROUTINGS = ("linear", "ppl", "given", "uniform")


class MixtureConfig(PreTrainedConfig):
    """Settings that mixtures share; ``base`` is the dense network's own configuration as plain data."""

    keys_to_ignore_at_inference = ("past_key_values",)

    base: dict | None = None
    experts_per_token: int = 2
    prompt_tokens: int = 64  # 0 = the whole document
    balance: float = 0.01  # of the balance loss
    learns: str = "all"  # what training may change: all, or the router (of projected experts: bridges)
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    max_position_embeddings: int = 0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    def get_text_config(self, *_: Any, **__: Any) -> Any:
        """The dense network's configuration, which tells the KV cache its layers."""
        return dense_config(self.base) if self.base else self

    def own(self) -> dict[str, Any]:
        """All settings of the mixture, without those that every network of transformers has."""
        kinds = [kind for kind in type(self).__mro__ if issubclass(kind, MixtureConfig)]
        return {name: getattr(self, name) for kind in kinds for name in kind.__annotations__}


class MoEConfig(MixtureConfig):
    """Settings of the mixture of feed-forward layers."""

    model_type = "acclimate_moe"

    experts: int = 1
    routing: str = "linear"  # one of ROUTINGS
    separate_attention: bool = False
    z: float = 0.0  # of the z-loss


SHARED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
    "tie_word_embeddings",
)  # fmt: skip


UNTOLD = ("dtype", "torch_dtype", "transformers_version", "_name_or_path")


def plain(config: Any) -> dict[str, Any]:
    """A configuration as data, without where it came from and the type its weights happen to have."""
    return {key: value for key, value in config.to_dict().items() if key not in UNTOLD}


def dense_config(data: dict[str, Any] | None) -> Any:
    """The configuration back from data."""
    data = dict(data or {})
    return AutoConfig.for_model(data.pop("model_type"), **data)


def told(config: Any) -> Tensor:
    """A hash of the settings [8]: part of the state, so that the fingerprint tells two mixtures of the same weights apart."""
    return torch.tensor(list(bytes.fromhex(digest(config.own())[:16])), dtype=torch.uint8)


def places(ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token [row, token]: its document in the row, its place in the document, and whether it is real (not padding).

    A padded batch has one document to a row and a mask [row, token]; a packed one has positions that start at 0 for every document.
    """
    if mask is not None and mask.ndim == 2:
        real = mask[:, -ids.shape[1] :].bool()
        return torch.zeros_like(ids), (real.long().cumsum(1) - 1).clamp(min=0), real
    if positions is None:
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return torch.zeros_like(ids), place, torch.ones_like(ids, dtype=torch.bool)
    place = positions.expand_as(ids)
    document = ((place == 0).long().cumsum(1) - 1).clamp(min=0)
    alone = (place == 0) & torch.cat([place[:, 1:] == 0, torch.ones_like(place[:, :1], dtype=torch.bool)], 1)  # a pad is a document alone
    return document, place, ~alone


class SequenceRouted(PreTrainedModel, GenerationMixin):
    """What networks share that hold weights for whole sequences: ``given``, ``generate``, ``auxiliary_loss``."""

    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True
    held: Held

    @property
    def by_sequence(self) -> bool:
        """Whether the network finds the weights of a sequence itself."""
        return True

    def route(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, whole: bool = False) -> Tensor:
        """Weights of each token's document [row, token, expert]."""
        raise NotImplementedError

    @contextmanager
    def given(self, weights: Tensor) -> Iterator[None]:
        """Hold these weights, [row, expert] or [row, token, expert], for all passes inside."""
        before = self.held.weights, self.held.fixed
        self.held.weights, self.held.fixed = weights, True
        try:
            yield
        finally:
            self.held.weights, self.held.fixed = before

    def begin(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, past: Any) -> None:
        """Before a pass: weights of its sequences, and nothing left of the pass before."""
        self.held.losses = []
        self.held.real = places(ids, mask, positions)[2]
        if self.held.fixed:
            return
        self.held.weights = None
        if self.by_sequence:
            if past is not None and past.get_seq_length():
                raise AcclimateError(
                    "the weights of a sequence come from its prompt: hold them with `with net.given(net.route(prompt)[:, -1])`"
                )
            self.held.weights = self.route(ids, mask, positions)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **options: Any) -> Any:  # type: ignore[override]
        """As in transformers; the weights come once from the whole prompt and hold for all tokens."""
        parent: Any = super()
        ids = inputs if inputs is not None else options["input_ids"]
        if self.held.fixed or not self.by_sequence:
            return parent.generate(inputs, **options)
        with self.given(self.route(ids, options.get("attention_mask"), whole=True)[:, -1]):
            return parent.generate(inputs, **options)

    def auxiliary_loss(self) -> Tensor:
        """The balance and z-losses of the last pass, weighted, averaged over its gates: scalar; 0 where none was trained."""
        losses, self.held.losses = self.held.losses, []
        if not losses:
            return torch.zeros((), device=self.device)
        balance, z = (torch.stack(list(some)).mean() for some in zip(*losses, strict=True))
        return self.config.balance * balance + getattr(self.config, "z", 0.0) * z


class _Borrowed(nn.Module):
    """A module that belongs to another network: used here, but no part of this one's weights."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.lent = [module]

    def forward(self, *given: Any, **more: Any) -> Any:
        return self.lent[0](*given, **more)


class MixedAttention(nn.Module):
    """The experts' own attentions, summed with the weights of the sequence; each has its own place in the KV cache."""

    def __init__(self, experts: Sequence[nn.Module], held: Held, number: int, layers: int):
        super().__init__()
        self.experts, self.held = nn.ModuleList(experts), held
        self.number, self.layers = number, layers

    def forward(self, hidden_states: Tensor, **more: Any) -> tuple[Tensor, None]:
        """hidden_states [row, token, width] -> the same, and no attention weights."""
        weights = self.held.spread(hidden_states, len(self.experts))
        used = (weights != 0).flatten(0, 1).any(0).nonzero()[:, 0].tolist()
        total: Any = 0
        for slot, expert in enumerate(used):
            attention = self.experts[expert]
            attention.layer_idx = slot * self.layers + self.number
            total = total + attention(hidden_states=hidden_states, **more)[0] * weights[..., expert, None].to(hidden_states.dtype)
        return total, None


class MoEForCausalLM(SequenceRouted):
    """The mixture of experts as transformers knows causal models."""

    config_class = MoEConfig
    base_model_prefix = "body"

    def __init__(self, config: MoEConfig):
        super().__init__(config)
        if config.routing not in ROUTINGS:
            raise AcclimateError(f"routing = {config.routing!r}, but must be one of {', '.join(ROUTINGS)}")
        if config.separate_attention and config.routing == "linear":
            raise AcclimateError("separate attention is combined by the weights of the sequence; use routing ppl, given or uniform with it")
        base = dense_config(config.base)
        base._attn_implementation = config._attn_implementation
        self.held = Held()
        self.body = fresh(base)
        layers = layers_of(self.body)
        for number, layer in enumerate(layers):
            gate = nn.Linear(config.hidden_size, config.experts, bias=False) if config.routing == "linear" else None
            layer.mlp = MoEFFN(_copies(layer.mlp, config.experts), gate, top_k=config.experts_per_token, held=self.held)
            if config.separate_attention:
                layer.self_attn = MixedAttention(_copies(layer.self_attn, config.experts), self.held, number, len(layers))
        judges = [self._judge(base, number) for number in range(config.experts if config.routing == "ppl" else 0)]
        self.judges = nn.ModuleList(judges)
        ties = [(i, judge.all_tied_weights_keys) for i, judge in enumerate(judges)]
        cast(Any, self.judges).all_tied_weights_keys = {f"{i}.{mine}": f"{i}.{source}" for i, tied in ties for mine, source in tied.items()}
        self.register_buffer("told", told(config))
        self.post_init()

    def _judge(self, base: Any, number: int) -> Any:
        judge = fresh(base)
        for layer, own in zip(layers_of(judge), layers_of(self.body), strict=True):
            layer.mlp = _Borrowed(own.mlp.experts[number])
            if self.config.separate_attention:
                layer.self_attn = _Borrowed(own.self_attn.experts[number])
        return judge

    @classmethod
    def from_dense(cls, shared: Any, experts: Sequence[Any], *, seed: int = 0, **settings: Any) -> "MoEForCausalLM":
        """Put the feed-forward layers of dense networks into one mixture; everything else is that of ``shared`` (the merged network).

        settings: fields of :class:`MoEConfig`; seed: of the fresh gates.
        Raises AcclimateError if a network has other shapes, or a family whose layers are not found.
        """
        own: dict[str, Any] = {name: getattr(shared.config, name, None) for name in SHARED}
        config = MoEConfig(base=plain(shared.config), experts=len(experts), **own, **settings)
        net = cls(config).to(shared.dtype)
        _fill(net.body, shared)
        for number, expert in enumerate(experts):
            for layer, dense in zip(layers_of(net.body), layers_of(expert), strict=True):
                _fill(layer.mlp.experts[number], dense.mlp)
                if config.separate_attention:
                    _fill(layer.self_attn.experts[number], dense.self_attn)
            if config.routing == "ppl":
                _fill(net.judges[number], expert)
        generator = torch.Generator().manual_seed(seed)
        for layer in layers_of(net.body):
            if layer.mlp.gate is not None:
                layer.mlp.gate.weight.data.copy_(0.02 * torch.randn(layer.mlp.gate.weight.shape, generator=generator))
        net.generation_config = copy.deepcopy(shared.generation_config)
        return net.to(shared.device).eval()

    @property
    def by_sequence(self) -> bool:
        """Whether the network finds the weights of a sequence itself."""
        return self.config.routing == "ppl"

    def get_input_embeddings(self) -> nn.Module:
        """The merged embeddings."""
        return self.body.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The merged head."""
        return self.body.get_output_embeddings()

    def requires_grad_(self, requires_grad: bool = True) -> "MoEForCausalLM":
        """Judges never learn; with ``learns: router`` only the gates do."""
        super().requires_grad_(requires_grad)
        self.judges.requires_grad_(False)
        if self.config.learns == "router":
            for name, weight in self.named_parameters():
                weight.requires_grad_(requires_grad and ".mlp.gate." in name)
        return self

    @torch.no_grad()
    def perplexities(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, whole: bool = False) -> tuple:
        """Perplexity of each token's document (its prompt) under every dense expert [row, token, expert], and how many tokens it is of."""
        document, place, real = places(ids, mask, positions)
        counted = (place > 0) & real
        if self.config.prompt_tokens and not whole:
            counted &= place < self.config.prompt_tokens
        surprise = []
        for judge in self.judges:
            judge.eval()
            out = judge(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, :-1].float()
            nats = out.logsumexp(2) - out.gather(2, ids[:, 1:, None])[..., 0]
            surprise.append(nn.functional.pad(nats, (1, 0)))
        mean, count = per_document(torch.stack(surprise, 2), document, counted)
        return mean.exp(), count

    def route(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, whole: bool = False) -> Tensor:
        """Softmax over the top-k of 1 / perplexity [row, token, expert]; uniform where a prompt has no token to predict."""
        perplexity, count = self.perplexities(ids, mask, positions, whole)
        return torch.where(count[..., None] > 0, perplexity_weights(perplexity, self.config.experts_per_token), 1 / self.config.experts)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **more: Any,
    ) -> Any:
        """As the family's own forward."""
        if self.config.routing == "given" and not self.held.fixed:
            raise AcclimateError("routing is given, but no weights are: run the network inside `with net.given(weights):`")
        self.begin(input_ids, attention_mask, position_ids, past_key_values)
        if self.config.separate_attention and use_cache and not getattr(past_key_values, "layer_class_to_replicate", None):
            past_key_values = DynamicCache()  # grows by a place for every expert's attention
        return self.body(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            use_cache=bool(use_cache), **more,
        )  # fmt: skip


def fresh(config: Any) -> Any:
    """A network of a dense causal family."""
    families: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in families:
        raise AcclimateError(f"{config.model_type} is no causal language model that transformers knows")
    return families[type(config)](config)


def layers_of(net: Any) -> Any:
    """The decoder layers of a family whose layers have ``self_attn`` and ``mlp``."""
    layers = getattr(net.base_model, "layers", None)
    if layers is None or not all(hasattr(layer, "mlp") and hasattr(layer, "self_attn") for layer in layers):
        raise AcclimateError(f"{net.config.model_type}: no layers with self_attn and mlp are found, so its experts cannot be mixed")
    return layers


def _copies(module: nn.Module, count: int) -> list[nn.Module]:
    return [module, *(copy.deepcopy(module) for _ in range(count - 1))]


@torch.no_grad()
def _fill(module: Any, source: Any) -> None:
    """Copy all weights of the source that the module has under the same name."""
    have = source.state_dict()
    for name, weight in module.state_dict().items():
        if name in have:
            if have[name].shape != weight.shape:
                raise AcclimateError(
                    f"{name} is {list(have[name].shape)} in one network and {list(weight.shape)} in another; "
                    "experts of other shapes need projectors"
                )
            weight.copy_(have[name])


@torch.no_grad()
def expert_shares(model: Model, texts: Sequence[str], tokens: int = 256) -> list[float]:
    """Mean weight of every expert over the tokens of some texts, one text after the other, and over layers [expert]."""
    net, found = model.net, []
    net.eval()
    for text in texts:
        ids = model.tokenizer(text or " ", return_tensors="pt", truncation=True, max_length=tokens).input_ids.to(model.device)
        net.held.loads = []
        net(input_ids=ids, use_cache=False)
        found.append(torch.stack(net.held.loads).mean(0))
    net.held.loads = None
    return torch.stack(found).mean(0).tolist()


AutoConfig.register(MoEConfig.model_type, MoEConfig)
AutoModelForCausalLM.register(MoEConfig, MoEForCausalLM)
