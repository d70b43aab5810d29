"""Whole experts of any width behind one embedding and one head: projectors lead in and out, a router chooses by the sequence.

z = head(sum_i g_i P_out_i(body_i(P_in_i(E(x))))), g = softmax over the top-k of MLP(mean over the prompt of E(x)). Embedding and head are
the base's, bodies are decoders without theirs, projectors and router are fresh two-layer MLPs. Training has two phases: ``learns: bridges``
(projectors and router; bodies, embedding and head frozen), then ``learns: all``. Left out: families that scale their embeddings (Gemma).
Import this module to load what it saved.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from ..parts.moe import Held, balance_loss, gate_weights, per_document, z_loss
from .moe import SHARED, MixtureConfig, SequenceRouted, dense_config, places, plain, told


class ProjectedConfig(MixtureConfig):
    """Settings; ``base`` and ``bodies`` are the dense networks' own configurations as plain data."""

    model_type = "acclimate_projected"

    bodies: list | None = None


class Caches(Cache):
    """A KV cache for every body."""

    def __init__(self, bodies: int):
        super().__init__(layers=[])
        self.parts = [DynamicCache() for _ in range(bodies)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen by the bodies that were chosen."""
        return max(part.get_seq_length(layer_idx) for part in self.parts)

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep the rows of the best beams."""
        for part in self.parts:
            part.reorder_cache(beam_idx)


def mlp(inner: int, outer: int) -> nn.Sequential:
    """A projector or router: two layers with GELU between."""
    return nn.Sequential(nn.Linear(inner, outer), nn.GELU(), nn.Linear(outer, outer))


class ProjectedForCausalLM(SequenceRouted):
    """Whole experts behind projectors as transformers knows causal models."""

    config_class = ProjectedConfig
    _tied_weights_keys = {"head.weight": "embed.weight"}

    def __init__(self, config: ProjectedConfig):
        super().__init__(config)
        width = config.hidden_size
        self.held, families = Held(), cast(Any, MODEL_MAPPING)
        self.embed = nn.Embedding(config.vocab_size, width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.bodies = nn.ModuleList()
        self.into, self.out = nn.ModuleList(), nn.ModuleList()
        for data in config.bodies or []:
            own = dense_config(data)
            own._attn_implementation = config._attn_implementation
            body = families[type(own)](own)
            body.set_input_embeddings(nn.Identity())
            self.bodies.append(body)
            self.into.append(mlp(width, own.hidden_size))
            self.out.append(mlp(own.hidden_size, width))
        self.router = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, len(self.bodies)))
        self.register_buffer("told", told(config))
        self.post_init()

    @classmethod
    def from_dense(cls, base: Any, experts: Sequence[Any], *, seed: int = 0, **settings: Any) -> "ProjectedForCausalLM":
        """Take embedding and head of ``base`` and the bodies of the experts; settings: fields of :class:`ProjectedConfig`."""
        own: dict[str, Any] = {name: getattr(base.config, name, None) for name in SHARED}
        own["max_position_embeddings"] = min(expert.config.max_position_embeddings for expert in (base, *experts))
        config = ProjectedConfig(base=plain(base.config), bodies=[plain(expert.config) for expert in experts], **own, **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = cls(config).to(base.dtype)
        with torch.no_grad():
            net.embed.weight.copy_(base.get_input_embeddings().weight)
            net.head.weight.copy_(base.get_output_embeddings().weight)
            for body, expert in zip(net.bodies, experts, strict=True):
                have = expert.base_model.state_dict()
                for name, weight in body.state_dict().items():
                    weight.copy_(have[name])
        net.generation_config = copy.deepcopy(base.generation_config)
        return net.to(base.device).eval()

    def _init_weights(self, module: nn.Module) -> None:
        own = (part for group in (self.into, self.out, self.router) for part in group.modules())
        if any(module is part for part in own):
            if isinstance(module, nn.Linear):
                module.reset_parameters()  # torch's own spread, which suits layers that stand alone
            return
        super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The base's embedding."""
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        """The base's head."""
        return self.head

    def configured(self, **settings: Any) -> "ProjectedForCausalLM":
        """This network itself with other settings, e.g. ``learns``."""
        for name, value in settings.items():
            setattr(self.config, name, value)
        cast(Tensor, self.told).copy_(told(self.config))
        self.requires_grad_(True)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "ProjectedForCausalLM":
        """With ``learns: bridges`` only projectors and router learn."""
        super().requires_grad_(requires_grad)
        if self.config.learns == "bridges":
            for part in (self.embed, self.head, self.bodies):
                part.requires_grad_(False)
        return self

    def route(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, whole: bool = False) -> Tensor:
        """Softmax over the top-k of the router's scores of each document's mean embedding [row, token, expert]."""
        document, place, real = places(ids, mask, positions)
        counted = real & (place < self.config.prompt_tokens) if self.config.prompt_tokens and not whole else real
        mean, _ = per_document(self.embed(ids), document, counted)
        scores = self.router(mean).float()
        weights = gate_weights(scores, self.config.experts_per_token)
        if self.training and torch.is_grad_enabled():
            first = real & (place == 0)  # a document counts once
            self.held.losses.append((balance_loss(scores[first], weights[first]), z_loss(scores[first])))
        return weights

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [row, token, vocabulary]; a body sees only the rows that chose it."""
        if use_cache and not isinstance(past_key_values, Caches):
            past_key_values = Caches(len(self.bodies))
        self.begin(input_ids, attention_mask, position_ids, past_key_values)
        inner = self.embed(input_ids)
        weights = self.held.spread(inner, len(self.bodies))
        if self.held.loads is not None:
            self.held.loads.append(weights.detach().flatten(0, 1).mean(0))
        total = torch.zeros_like(inner)
        for number, body in enumerate(self.bodies):
            rows = (weights[..., number] != 0).any(1)
            if use_cache:
                rows = rows.any().expand_as(rows)  # the cache keeps all rows together
            if not rows.any():
                continue
            at = rows.nonzero()[:, 0]
            some = {"attention_mask": attention_mask, "position_ids": position_ids}
            some = {name: value[at] if value is not None and len(value) == len(rows) else value for name, value in some.items()}
            hidden = body(
                inputs_embeds=self.into[number](inner[at]), past_key_values=past_key_values.parts[number] if use_cache else None,
                use_cache=bool(use_cache), **some,
            ).last_hidden_state  # fmt: skip
            part = self.out[number](hidden) * weights[at, :, number, None].to(hidden.dtype)
            total = total.index_add(0, at, part.to(total.dtype))
        logits = self.head(total[:, -logits_to_keep:] if logits_to_keep else total)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values if use_cache else None)


AutoConfig.register(ProjectedConfig.model_type, ProjectedConfig)
AutoModelForCausalLM.register(ProjectedConfig, ProjectedForCausalLM)
