"""The train engine: one thin subclass of ``transformers.Trainer`` that feeds any objective the words its signature asks for.

It owns packing, mixtures, micro-batches, autocast, schedules, checkpoints, exact resume, the watch on forgetting, and what is
said when a loss is not finite. Methods own none of it.
"""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from ..domain import Domain
from ..errors import AcclimateError
from ..files import digest, lock, read_json, write_json
from ..kinds import Adapter, Objective
from ..model import Injected, Model, quiet
from . import words
from .forward import autocast, packs
from .optimizers import mofo_adamw, muon_adamw
from .rows import Mixture, PairRows, PreferenceRows, Seq2SeqRows, Source, TokenRows
from .settings import Training
from .watch import Watcher

COMPLETE = "complete"  # the file that marks a checkpoint as whole


@dataclass
class Trained:
    """A trained model, its curve, and what it cost."""

    model: Model
    curve: list[dict[str, float]]
    cost: dict[str, float]
    stopped: str = ""  # why it stopped early, if it did
    forgetting: dict[str, float] = field(default_factory=dict)


def train(
    model: Model,
    objective: Objective,
    domains: Domain | Mapping[str, tuple[Domain, float]],
    training: Training,
    folder: str | Path,
    *,
    adapter: Adapter | None = None,
    teacher: Model | Mapping[str, Model] | None = None,
    watch: Mapping[str, Domain] | None = None,
    outside: frozenset[str] | set[str] = frozenset(),
    stages: list[tuple[float, dict[str, float]]] | None = None,
    name: str | None = None,
    in_place: bool = False,
) -> Trained:
    """Train a copy of ``model`` and return it; the model that was handed in is left as it was (its frozen weights are shared by adapters).

    Args:
        domains: one domain, or name -> (domain, weight) for a mixture (replay).
        folder: where checkpoints and metrics.jsonl go; a second process in it is refused, a killed run in it goes on.
        adapter: trains an adapter on the frozen model. Without, a model with adapters of our own goes on with those that are set to learn.
        teacher: needed by objectives that ask for teacher words: one for all rows, or {domain: the one that teaches its rows}.
        watch: domains whose held-out bits per byte are followed during training.
        outside: the watched names to which ``max_forgetting`` applies.
        stages: (end of the stage as a share of the run, {name: weight}) instead of constant weights.
        name: what the new model is called.
        in_place: train the weights that were handed in, for models that do not fit twice in memory.

    Raises:
        AcclimateError: a need of the objective is missing, the loss is not finite, the disk is full ...
    """
    folder = Path(folder)
    if isinstance(domains, Domain):
        domains = {domains.name: (domains, 1.0)}
    asked = {*objective.needs(), *objective.wishes()}
    words.check(objective, teacher is not None)
    teachers = words.teachers(teacher, domains)
    identity = model.fingerprint
    goes_on = adapter is None and isinstance(model.net, Injected)
    learner = model.copy(name, share=adapter is not None or in_place, keep=goes_on)
    if goes_on and not learner.parameters(trainable=True):
        raise AcclimateError(f"nothing in {model.name} learns: say which of its adapters with net.learn(name), or fusions=True")
    device = learner.device
    torch.manual_seed(training.seed)
    if adapter is not None:
        learner = wrap(learner, adapter, model)
    width = training.row_tokens or min(learner.context, 512)
    if width > learner.context:
        raise AcclimateError(f"row_tokens = {width}, but {model.name} reads at most {learner.context} tokens")
    packed = training.pack == "auto" and packs(learner)
    if training.gradient_checkpointing:
        learner.net.gradient_checkpointing_enable({"use_reentrant": False})
        learner.net.enable_input_require_grads()
    sources = {key: rows_for(domain, learner, objective, width, training.seed, packed) for key, (domain, _) in domains.items()}
    first = next(iter(sources.values()))
    rows = training.batch_rows or max(1, training.batch_tokens // width)
    steps = training.steps or max(1, math.ceil(training.epochs * first.size / rows))
    mixture = Mixture(sources, stages or [(1.0, {key: weight for key, (_, weight) in domains.items()})], steps * rows, training.seed)
    supply = words.Supply(
        learner, objective, sources, asked, base=model, teachers=teachers, top_k=training.teacher_k, precision=training.precision
    )
    plan = {
        "model": identity,
        "objective": {objective.name: objective.values()},
        "adapter": adapter and {adapter.name: adapter.values()},
        "data": {key: getattr(source, "key", "") for key, source in sources.items()},
        "mixture": digest(mixture.choice.tobytes()),
        "training": {k: v for k, v in training.values().items() if k not in ("micro_rows", "checkpoint_every")},
        "steps": steps,
    }
    if supply.taught is not None:
        plan["teachers"] = {key: each.fingerprint for key, each in teachers.items()}
    with lock(folder):
        watcher = Watcher(learner, dict(watch or {}), set(outside), training, steps, folder)
        trainer = _trainer(learner, mixture, supply, training, rows, steps, folder, [watcher])
        resume = _resume_point(folder, plan)
        watcher.begin(resume, steps * rows * width, supply)
        started, seconds_before, looked = time.perf_counter(), watcher.seconds_before, watcher.looking
        if not watcher.stopped:
            _run(trainer, resume)
        seconds = seconds_before + time.perf_counter() - started - (watcher.looking - looked)
        if watcher.stopped:
            watcher.roll_back(learner)
    learner.net.eval()
    done, tokens = int(watcher.curve[-1]["step"]), supply.tokens
    if in_place:
        model._hashed = None  # fused optimizers write to weights without telling (their version stays), so the hash kept is of the past
    cost = {
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "steps": done,
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "flops": float((4 if adapter else 6) * (getattr(learner.net, "active_parameters", 0) or model.parameters()) * tokens),
        "peak_memory_bytes": peak_memory(device),
        "trained_parameters": learner.parameters(trainable=True),
        "total_parameters": learner.parameters(),
        "packed": packed,
        "looking": round(watcher.looking, 3),
    }
    made = {
        "base": model.source,
        "method": objective.name,
        **({"adapter": adapter.name} if adapter else {}),
        "data": {key: domain.fingerprint for key, (domain, _) in domains.items()},
        "steps": watcher.good if watcher.stopped else done,
        "tokens": tokens,
        "seed": training.seed,
    }
    learner.notes["made"] = made
    if adapter is not None:
        learner.notes |= {"base": model.source, "base_fingerprint": identity}
    learner.net.to(device)
    return Trained(learner, watcher.curve, cost, watcher.stopped, watcher.forgetting())


def wrap(learner: Model, adapter: Adapter, base: Model) -> Model:
    """Put an adapter on a copied model; only the adapter learns."""
    from peft import get_peft_model

    config = adapter.peft(learner.net)
    if config is None:
        learner.net = Injected(learner.net).add("default", adapter, seed=torch.initial_seed()).learn("default")
        return learner
    try:
        learner.net = get_peft_model(learner.net, config)
    except ValueError as error:
        raise AcclimateError(f"{adapter.name} does not fit {base.name}: {str(error).splitlines()[0]}") from error
    learner.net.to(learner.device)
    return learner


def rows_for(domain: Domain, model: Model, objective: Objective, width: int, seed: int, packed: bool, split: str = "train") -> Source:
    """The row source that fits what the objective asks for."""
    asked = set(objective.needs())
    if asked & {"chosen_logps", "rejected_logps"}:
        return PreferenceRows(domain, model, width=width, seed=seed, split=split)
    if "anchors" in asked:
        return PairRows(domain, model, width=width, seed=seed, split=split)
    if model.kind == "seq2seq":
        return Seq2SeqRows(domain, model, width=width, seed=seed, split=split)
    if model.kind == "encoder":
        raise AcclimateError(f"{model.name} has no output layer to predict tokens with; load it with kind='masked' and new_head=True")
    return TokenRows(domain, model, objective, width=width, seed=seed, packed=packed, split=split)


class _Trainer(Trainer):
    """The one subclass: rows in their planned order, the objective's loss over all the step's items, whole checkpoints."""

    def __init__(self, supply: words.Supply, clip: float, **options: Any):
        super().__init__(**options)
        self.supply, self.clip = supply, clip
        self.where: list[tuple[int, int]] = []  # (source, index) of each row of the step
        self.model_accepts_loss_kwargs = True  # the loss is divided by the items of the whole step, here and not by Trainer
        self.loss_is_scaled_for_ga = True

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """The step's micro-batches and how many predictions they hold together (over all processes)."""
        batches, self.where = [], []
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            batches.append(batch)
        items = torch.tensor(float(sum(self.supply.count(batch) for batch in batches)), device=device)
        if self.args.world_size > 1:
            items = self.accelerator.gather(items).sum() / self.args.world_size
        return batches, items

    def compute_loss(self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The objective's loss on the words it asked for; a loss that is not finite stops the run and names its rows."""
        where = inputs.pop("rows", [])
        self.where += where
        self.supply.tokens += inputs["input_ids"].numel() * self.args.world_size
        with autocast(self.args.device, self.supply.precision):
            loss = self.supply.loss(model, inputs, num_items_in_batch, where)
        if not torch.isfinite(loss.detach()):
            raise self._bad("loss", loss.item(), self.state.global_step + 1, where)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """A gradient that is not finite has spoilt the weights: stop before they are saved."""
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            raise self._bad("gradient", logs["grad_norm"], self.state.global_step, self.where)
        super().log(logs, *args, **options)

    def _bad(self, what: str, value: float, step: int, where: list[tuple[int, int]]) -> AcclimateError:
        return AcclimateError(
            f"the {what} is {value} at step {step}, on {self.supply.origins(where)}; "
            "the last good checkpoint is kept: lower lr, or look at those rows, and run again"
        )

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        super()._save_checkpoint(*args, **options)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        for path in folder.rglob("*"):
            if path.is_file():
                with open(path, "rb") as handle:
                    _sync(handle)
        (folder / COMPLETE).write_text("whole")


def _sync(handle: Any) -> None:
    import os

    os.fsync(handle.fileno())


def _trainer(
    learner: Model,
    mixture: Mixture,
    supply: words.Supply,
    training: Training,
    rows: int,
    steps: int,
    folder: Path,
    callbacks: list,
) -> _Trainer:
    processes = max(1, torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1)
    micro = min(training.micro_rows or rows, rows) // processes or 1
    while rows % (micro * processes):
        micro -= 1
    schedule = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[training.schedule]
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // (micro * processes),
        learning_rate=training.lr,
        warmup_steps=round(training.warmup * steps),
        lr_scheduler_type=schedule,
        weight_decay=training.weight_decay,
        adam_beta1=training.beta1,
        adam_beta2=training.beta2,
        adam_epsilon=training.eps,
        max_grad_norm=training.clip,
        optim="adamw_torch_fused" if fused(learner) else "adamw_torch",
        save_strategy="steps",
        save_steps=training.checkpoint_every or max(1, math.ceil(steps / 10)),
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        eval_strategy="no",
        use_cpu=learner.device.type == "cpu",
        seed=training.seed,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        torch_compile=training.compile,
        dataloader_pin_memory=learner.device.type == "cuda",
    )
    optimizer: Any = None  # Trainer's own AdamW
    common: dict[str, Any] = {
        "lr": training.lr, "weight_decay": training.weight_decay, "betas": (training.beta1, training.beta2), "eps": training.eps,
        "fused": fused(learner),
    }  # fmt: skip
    if training.optimizer == "muon":
        optimizer = muon_adamw(learner.net, **common)
    elif training.optimizer == "mofo":
        optimizer = mofo_adamw(learner.net, alpha=training.mofo_alpha, **common)
    trainer = _Trainer(
        supply,
        training.clip,
        model=learner.net,
        args=arguments,
        train_dataset=mixture,
        data_collator=mixture.collate,
        callbacks=callbacks,
        optimizers=(optimizer, None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def fused(learner: Model) -> bool:
    """Whether AdamW's fused kernel exists for this device."""
    return learner.device.type in ("cpu", "cuda")


def _resume_point(folder: Path, plan: dict) -> str | None:
    """The newest whole checkpoint of the same plan; checkpoints of another plan are an error, half ones are removed."""
    stored = folder / "plan.json"
    key = digest(plan)
    if stored.exists() and read_json(stored).get("key") != key:
        raise AcclimateError(f"{folder} holds an unfinished run with other settings or data; remove it, or choose another folder")
    write_json(stored, {"key": key, **plan})
    whole = []
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return str(max(whole, key=lambda path: int(path.name.partition("-")[2]))) if whole else None


def _run(trainer: _Trainer, resume: str | None) -> None:
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=resume)
    except OSError as error:
        import errno

        if error.errno == errno.ENOSPC:
            raise AcclimateError(
                f"disk full while writing {trainer.args.output_dir}; the last whole checkpoint is kept; free room and run again"
            ) from error
        raise
    except RuntimeError as error:
        text = str(error)
        if "out of memory" in text or "can't allocate memory" in text:
            raise AcclimateError(
                "out of memory; lower micro_rows or row_tokens, or set gradient_checkpointing, and run again: the run goes on"
            ) from error
        if "No space left" in text or "PytorchStreamWriter" in text or "write failed" in text:
            raise AcclimateError(
                f"disk full while writing {trainer.args.output_dir}; the last whole checkpoint is kept; free room and run again"
            ) from error
        raise


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held: of the GPU where one is used, else of main memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def tidy(folder: str | Path) -> None:
    """Remove a finished run's checkpoints; call it once the model is saved."""
    shutil.rmtree(Path(folder) / "checkpoints", ignore_errors=True)
    for name in ("within_budget.pt", "within_budget.tmp", "plan.json"):
        (Path(folder) / name).unlink(missing_ok=True)
