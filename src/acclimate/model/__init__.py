"""A model with its tokenizer: loaded strictly, saved whole or not at all, and known by the hash of its weights.

``Model`` holds text models, ``ArrayModel`` (arrays.py) networks for images and other arrays; ``open_model`` takes a reference to either.
"""

import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError, nearest
from ..files import digest, read_json
from .adapter_files import CONFIG
from .arrays import ArrayModel, FeatureModel, is_array_model
from .difference import FACTS, load_difference
from .injected import Injected
from .loading import KINDS, _folder, _line, _load_whole, _not_found, embedded, kind_of, quiet
from .network import MANIFEST, Network, default_device, fingerprint

__all__ = [
    "CONFIG", "KINDS", "MANIFEST", "OFFSET_POSITIONS", "PROBE", "ArrayModel", "FeatureModel", "Injected", "Model", "Network", "_folder",
    "_not_found",     "default_device", "embedded", "fingerprint", "is_array_model", "kind_of",
    "open_model", "quiet", "tokenizer_fingerprint",
]  # fmt: skip

PROBE = "The model reads a short line of plain text, so that two copies of it can be compared: 1, 2, 3."


@dataclass
class Model(Network):
    """A transformers model (or a peft model around one), its tokenizer, and where both came from.

    ``kind`` is one of causal, masked, seq2seq, encoder. ``net`` is the torch module itself.
    """

    name: str
    net: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    kind: str
    source: str = ""
    notes: dict[str, Any] = field(default_factory=dict)  # how it was made: goes into the manifest and the model card
    _hashed: tuple[int, str] | None = field(default=None, repr=False)

    @classmethod
    def load(
        cls,
        ref: str,
        *,
        kind: str | None = None,
        new_head: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
    ) -> "Model":
        """Load ``seedling``, ``seedling-xs``, ``minilm``, a folder, a Hugging Face id, a folder with an adapter or a difference.

        Missing or unexpected weights are an error; ``new_head=True`` allows a fresh output layer on an encoder (trained from scratch).
        """
        if kind is not None and kind not in KINDS:
            raise AcclimateError(f"model kind {kind!r} is unknown{nearest(kind, KINDS)}")
        folder = _folder(ref)
        if folder is not None and ((folder / "adapter_config.json").exists() or (folder / CONFIG).exists()):
            return cls._load_adapter(ref, folder, dtype, device)
        if folder is not None and (folder / FACTS).exists():
            made = load_difference(folder).to(device or default_device())
            made.net.to(dtype)
            return made
        where = str(folder or ref)
        if Path(ref).expanduser().is_file():
            raise AcclimateError(f"{ref} is a file, but a model is a folder: give the one that save_pretrained wrote")
        if folder is None and Path(ref).is_absolute():
            raise AcclimateError(f"no model at {ref}: the folder does not exist")
        if folder is not None and not (folder / "config.json").exists():
            raise AcclimateError(f"{folder} holds no config.json, so it is not a model folder; give the folder that save_pretrained wrote")
        net, tokenizer, kind = _load_whole(where, kind, new_head, dtype)
        notes = read_json(folder / MANIFEST) if folder is not None and (folder / MANIFEST).exists() else {}
        model = cls(Path(ref).name if folder is not None else ref, net, tokenizer, kind, ref, {"made": notes.get("made", {})})
        return model.to(device or default_device())

    @classmethod
    def _load_adapter(cls, ref: str, folder: Path, dtype: torch.dtype, device: str | None) -> "Model":
        from peft import PeftModel, get_peft_model_state_dict
        from safetensors import SafetensorError, safe_open

        ours = (folder / CONFIG).exists()
        config = {} if ours else read_json(folder / "adapter_config.json")
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
        base = cls.load(manifest.get("base") or config.get("base_model_name_or_path") or "", dtype=dtype, device=device)
        identity = base.fingerprint  # of the base alone: the adapter is about to be put into its modules
        if manifest.get("base_fingerprint") and manifest["base_fingerprint"] != identity:
            raise AcclimateError(
                f"{folder} was trained on {manifest['base']} with weights {manifest['base_fingerprint']}, but that model now has "
                f"{identity}; load the base it was trained on"
            )
        if ours:
            whole = base.copy().net if base.adapted else base.net
            net: Any = Injected.from_pretrained(whole, folder).eval()
            return cls(
                Path(ref).name, net, base.tokenizer, base.kind, ref, {**base.notes, "base": base.source, "base_fingerprint": identity}
            )
        if not (folder / "adapter_model.safetensors").is_file():
            raise AcclimateError(f"{folder} holds no adapter_model.safetensors; save the adapter again")
        try:
            with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
                have = set(stored.keys())
            with quiet(), warnings.catch_warnings(action="ignore"):
                whole = base.copy().net if base.adapted else base.net  # a base with an adapter of its own is folded
                net = PeftModel.from_pretrained(whole, str(folder))
        except (SafetensorError, RuntimeError, ValueError, TypeError, OSError) as error:
            raise AcclimateError(f"the adapter in {folder} cannot be put on {base.name}: {_line(error)}") from error
        want = set(get_peft_model_state_dict(net))
        if have != want:
            raise AcclimateError(
                f"{folder}/adapter_model.safetensors does not fit {base.name}: missing {sorted(want - have)[:3]}, "
                f"unexpected {sorted(have - want)[:3]}"
            )
        return cls(
            Path(ref).name,
            net.to(device or default_device()),
            base.tokenizer,
            base.kind,
            ref,
            {**base.notes, "base": base.source, "base_fingerprint": identity},
        )

    @property
    def adapted(self) -> bool:
        """Whether ``net`` is a peft model around a frozen base."""
        return hasattr(self.net, "peft_config")

    @property
    def context(self) -> int:
        """The longest input in tokens."""
        config = self.net.config
        longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1024
        virtual = sum(getattr(part, "num_virtual_tokens", None) or 0 for part in self.net.peft_config.values()) if self.adapted else 0
        return int(longest) - (2 if config.model_type in OFFSET_POSITIONS else 0) - virtual

    def copy(self, name: str | None = None, share: bool = False, keep: bool = False) -> "Model":
        """A copy that can be trained; with ``share`` its modules are new but its weights lie in the same memory.

        An adapter in the model is folded into the copy's weights, so that whatever comes next starts from plain weights; with ``keep``
        adapters of our own stay what they are, on the same frozen weights, and learn what they were set to.
        """
        if keep and isinstance(self.net, Injected):
            frozen = (*self.net.net.parameters(), *self.net.net.buffers())
            return Model(
                name or self.name,
                copy.deepcopy(self.net, {id(t): t for t in frozen}),
                self.tokenizer,
                self.kind,
                self.source,
                {**self.notes},
            )
        tensors = (*self.net.parameters(), *self.net.buffers()) if share and not self.adapted else ()
        memo: dict[int, Any] = {id(t): nn.Parameter(t.detach()) if isinstance(t, nn.Parameter) else t for t in tensors}
        net = copy.deepcopy(self.net, memo)
        if self.adapted:
            try:
                net = net.merge_and_unload()
            except (AttributeError, NotImplementedError, ValueError) as error:
                kind = next(iter(self.net.peft_config.values())).peft_type
                raise AcclimateError(f"{self.name} holds a {kind} adapter, which cannot be folded into the weights to train on") from error
        net.requires_grad_(True)
        return Model(name or self.name, net, self.tokenizer, self.kind, self.source, {"made": self.notes.get("made", {})})

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Logits (or hidden states) of one fixed line in fp32 [token, width], to compare two copies of a model."""
        self.net.eval()
        inputs = self.tokenizer(PROBE, return_tensors="pt").to(self.device)
        inputs.pop("token_type_ids", None)
        if self.kind == "seq2seq":
            inputs["decoder_input_ids"] = inputs["input_ids"][:, :1]
        out = self.net(**inputs)
        return (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0].float().cpu()

    def _write(self, folder: Path) -> None:
        """``save_pretrained`` layout, peft's own for adapters."""
        for child in self.net.modules():
            if hasattr(child, "_hf_hook"):
                raise AcclimateError(f"{self.name} is spread over devices; gather it before saving")
        with quiet():
            self.net.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def _manifest(self) -> dict[str, Any]:
        base = {key: self.notes[key] for key in ("base", "base_fingerprint") if self.adapted and key in self.notes}
        return super()._manifest() | base

    def _card(self, library: str = "", relation: str = "") -> str:
        return super()._card("peft", "adapter") if self.adapted else super()._card("transformers", "finetune")

    def _compare(self, folder: Path) -> None:
        import psutil

        if self.adapted or self.bytes * 2 > psutil.virtual_memory().available:
            return _compare_tensors(self, folder)
        again = _load_whole(str(folder), self.kind, False, next(self.net.parameters()).dtype)
        self._same_answers(Model(self.name, again[0].to(self.device), self.tokenizer, self.kind), folder)


def open_model(ref: str, seed: int = 0) -> "Model | ArrayModel":
    """A model of text or of arrays, whichever the reference names; ``seed`` is that of a backbone with fresh weights."""
    return ArrayModel.load(ref, seed=seed) if is_array_model(ref) else Model.load(ref)


# Families whose position ids start behind the padding id.
OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "longformer",
    "data2vec-text",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
}


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary and added tokens."""
    return digest({"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map})


def _compare_tensors(model: Model, folder: Path) -> None:
    """Every stored tensor against the one in memory, one at a time: for adapters and for models that do not fit twice."""
    from safetensors import safe_open

    if isinstance(model.net, Injected):
        memory = model.net.state_dict()
    elif model.adapted:
        from peft import get_peft_model_state_dict

        memory = get_peft_model_state_dict(model.net)
    else:
        memory = model.net.state_dict()
    stored_names = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                stored_names.add(name)
                if name not in memory or not torch.equal(stored.get_tensor(name), memory[name].cpu()):
                    raise AcclimateError(f"{path.name}: {name} was not stored as it is in memory; not kept")
    shared = {memory[name].data_ptr() for name in stored_names}  # a tied weight is stored once, under one of its names
    lost = [name for name in memory if name not in stored_names and memory[name].data_ptr() not in shared]
    if lost or not stored_names:
        raise AcclimateError(f"{folder}: {model.name} was saved without {', '.join(sorted(lost)[:3]) or 'any weights'}; not kept")
