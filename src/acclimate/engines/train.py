"""The train engine: one thin subclass of ``transformers.Trainer`` that feeds any objective the words its signature asks for.

It owns packing, mixtures, micro-batches, autocast, schedules, checkpoints, exact resume, the watch on forgetting, and what is
said when a loss is not finite. Methods own none of it.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..domain import Domain
from ..errors import AcclimateError
from ..files import digest, lock, write_json
from ..kinds import Adapter, Objective
from ..method import Setting, Settings
from ..model import Model, quiet
from ..progress import bar, say
from . import words
from .forward import autocast, packs
from .rows import Mixture, PairRows, PreferenceRows, Seq2SeqRows, Source, TokenRows
from .score import bits_per_byte

COMPLETE = "complete"  # the file that marks a checkpoint as whole


class Training(Settings):
    """How long, how fast and with what care to train."""

    steps: Annotated[int, Setting("optimizer steps; 0 = as many as the epochs need", 0)] = 0
    epochs: Annotated[float, Setting("passes over the (first) domain, used when steps is 0", 0)] = 1.0
    batch_tokens: Annotated[int, Setting("tokens per optimizer step, filled or not", 1)] = 4096
    batch_rows: Annotated[
        int, Setting("rows (pairs, conversations apart) per step where rows are not packed; 0 = from batch_tokens", 0)
    ] = 0
    row_tokens: Annotated[int, Setting("longest row in tokens; 0 = the model's context, 512 at most", 0)] = 0
    micro_rows: Annotated[int, Setting("rows that go through the network at once; 0 = the whole step; smaller needs less memory", 0)] = 0
    lr: Annotated[float, Setting("peak learning rate", 0)] = 5e-4
    warmup: Annotated[float, Setting("share of the steps in which the rate rises from 0", 0, 1)] = 0.06
    schedule: Annotated[str, Setting("course of the rate after the warm-up", choices=("cosine", "linear", "constant"))] = "cosine"
    weight_decay: Annotated[float, Setting("AdamW's decoupled weight decay", 0)] = 0.01
    beta1: Annotated[float, Setting("AdamW's decay of the first moment", 0, 1)] = 0.9
    beta2: Annotated[float, Setting("AdamW's decay of the second moment", 0, 1)] = 0.98
    eps: Annotated[float, Setting("AdamW's epsilon", 0)] = 1e-6
    clip: Annotated[float, Setting("largest gradient norm; 0 = no clipping", 0)] = 1.0
    pack: Annotated[
        str, Setting("several documents to a row: auto = where the network is seen to keep them apart", choices=("auto", "no"))
    ] = "auto"
    precision: Annotated[str, Setting("auto = bf16 autocast where the hardware has it", choices=("auto", "fp32", "bf16"))] = "auto"
    checkpoint_every: Annotated[int, Setting("steps between resumable checkpoints; 0 = ten per run", 0)] = 0
    watch_every: Annotated[int, Setting("steps between looks at the watched domains; 0 = eight per run", 0)] = 0
    watch_bytes: Annotated[int, Setting("bytes of each watched domain that a look reads", 1)] = 60_000
    max_forgetting: Annotated[
        float | None, Setting("bits per byte a watched outside domain may lose before training stops and goes back", 0)
    ] = None
    teacher_k: Annotated[int, Setting("likeliest tokens kept of a teacher per position", 1)] = 32
    gradient_checkpointing: Annotated[bool, Setting("recompute activations in the backward pass: less memory, a third more time")] = False
    compile: Annotated[bool, Setting("compile the network first: about a minute, then 1.1 to 1.3 times faster; for long runs")] = False
    seed: Annotated[int, Setting("seed of order, mixture, masks and dropout", 0)] = 0


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
    teacher: Model | None = None,
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
        adapter: trains a peft adapter on the frozen model.
        teacher: needed by objectives that ask for teacher words.
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
    identity = model.fingerprint
    learner = model.copy(name, share=adapter is not None or in_place)
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
        learner, objective, sources, asked, base=model, teacher=teacher, top_k=training.teacher_k, precision=training.precision
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
    with lock(folder):
        watcher = Watcher(learner, dict(watch or {}), set(outside), training, steps, folder)
        trainer = _trainer(learner, mixture, supply, training, rows, steps, folder, [watcher])
        resume = _resume_point(folder, plan)
        watcher.begin(resume, steps * rows * width)
        started, seconds_before, looked = time.perf_counter(), watcher.seconds_before, watcher.looking
        _run(trainer, resume)
        seconds = seconds_before + time.perf_counter() - started - (watcher.looking - looked)
        if watcher.stopped:
            watcher.roll_back(learner)
    learner.net.eval()
    done = trainer.state.global_step
    tokens = done * rows * width if packed else int(supply.tokens)
    cost = {
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "steps": done,
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "flops": float((4 if adapter else 6) * model.parameters() * tokens),
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
        "steps": done,
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
        raise AcclimateError(f"{adapter.name} gives no peft configuration; adapters of other makes come with the adapters engine")
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
        self.model_accepts_loss_kwargs = True  # the loss is divided by the items of the whole step, here and not by Trainer
        self.loss_is_scaled_for_ga = True

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """The step's micro-batches and how many predictions they hold together (over all processes)."""
        batches = []
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
        with autocast(self.args.device, self.supply.precision):
            loss = self.supply.loss(model, inputs, num_items_in_batch, where)
        if not torch.isfinite(loss.detach()):
            raise AcclimateError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, on {self.supply.origins(where)}; "
                "the last good checkpoint is kept: lower lr, or look at those rows, and run again"
            )
        return loss

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        super()._save_checkpoint(*args, **options)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        for path in folder.glob("*"):
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
    trainer = _Trainer(
        supply,
        training.clip,
        model=learner.net,
        args=arguments,
        train_dataset=mixture,
        data_collator=mixture.collate,
        callbacks=callbacks,
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
    if stored.exists() and json.loads(stored.read_text())["key"] != key:
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


class Watcher(TrainerCallback):
    """Follows the run: progress bar, metrics.jsonl, held-out bits per byte, and the budget for forgetting."""

    def __init__(self, learner: Model, domains: dict[str, Domain], outside: set[str], training: Training, steps: int, folder: Path):
        self.learner, self.outside, self.training, self.steps, self.folder = learner, outside, training, steps, folder
        self.texts = {name: _some(domain, training.watch_bytes) for name, domain in domains.items()}
        self.every = training.watch_every or max(1, math.ceil(steps / 8))
        self.curve: list[dict[str, float]] = []
        self.stopped = ""
        self.looking = self.seconds_before = 0.0
        self.good: int | None = None

    def begin(self, resume: str | None, total_tokens: int) -> None:
        """Read the curve of the part already done, look at the start, and open the bar."""
        log = self.folder / "metrics.jsonl"
        done = int(Path(resume).name.partition("-")[2]) if resume else 0
        if log.exists():
            self.curve = [row for row in map(json.loads, log.read_text().splitlines()) if row["step"] <= done] if resume else []
            log.write_text("".join(json.dumps(row) + "\n" for row in self.curve))
        self.seconds_before = self.curve[-1]["seconds"] if self.curve else 0.0
        if resume:
            say(f"going on from step {done} of {self.steps} in {self.folder}")
        self.tokens_per_step = total_tokens / self.steps
        self.started = time.perf_counter()
        if not any(row["step"] == 0 for row in self.curve):
            self._note({"step": 0, "tokens": 0, "seconds": 0.0, **self._look()})
        self.bar = bar(what=f"training {self.learner.name}", total=total_tokens, unit="tok")
        self.bar.update(done * self.tokens_per_step)

    def _note(self, row: dict[str, float]) -> None:
        self.curve.append(row)
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    def _look(self) -> dict[str, float]:
        if not self.texts or self.learner.kind not in ("causal", "masked"):
            return {}
        before = time.perf_counter()
        training = self.learner.net.training
        found = {}
        with torch.random.fork_rng(devices=[]):
            for name, texts in self.texts.items():
                found[name] = round(bits_per_byte(self.learner, texts, overlap=0.0, precision=self.training.precision).value, 5)
        self.learner.net.train(training)
        self.looking += time.perf_counter() - before
        return found

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Every step's loss goes to metrics.jsonl, with the watched domains where a look is due."""
        if not logs or "loss" not in logs:
            return
        step = state.global_step
        row = {
            "step": step,
            "tokens": int(step * self.tokens_per_step),
            "seconds": round(self.seconds_before + time.perf_counter() - self.started - self.looking, 3),
            "loss": logs["loss"],
            "lr": logs.get("learning_rate", 0.0),
            "grad_norm": logs.get("grad_norm", 0.0),
        }
        if step % self.every == 0 or step == self.steps:
            row |= self._look()
        self._note(row)
        self.bar.update(self.tokens_per_step)
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}")
        self._judge(row, control)

    def _judge(self, row: dict[str, float], control: Any) -> None:
        budget = self.training.max_forgetting
        if budget is None or not self.outside & set(row):
            return
        lost = {name: row[name] - self.curve[0][name] for name in self.outside & set(row)}
        worst = max(lost, key=lambda name: lost[name])
        if lost[worst] > budget:
            self.stopped = f"{worst} lost {lost[worst]:.4f} bits per byte at step {row['step']}, more than the budget of {budget}"
            control.should_training_stop = True
        else:
            self.good = int(row["step"])
            torch.save(
                {k: p.detach().cpu() for k, p in self.learner.net.named_parameters() if p.requires_grad},
                self.folder / "within_budget.tmp",
            )
            (self.folder / "within_budget.tmp").replace(self.folder / "within_budget.pt")

    def roll_back(self, learner: Model) -> None:
        """Return to the last weights that kept the budget (the start, if none did)."""
        kept = self.folder / "within_budget.pt"
        if self.good is None and not kept.exists():
            raise AcclimateError(f"{self.stopped}, and no earlier look kept it; look more often (watch_every) or lower lr")
        stored = torch.load(kept, weights_only=True)
        with torch.no_grad():
            for key, parameter in learner.net.named_parameters():
                if key in stored:
                    parameter.copy_(stored[key])
        say(f"{self.stopped}: went back to step {self.good}")

    def forgetting(self) -> dict[str, float]:
        """Bits per byte lost by each watched domain from the first look to the last."""
        looks = [row for row in self.curve if any(name in row for name in self.texts)]
        return {name: looks[-1][name] - looks[0][name] for name in self.texts if looks and name in looks[-1]}

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the bar."""
        self.bar.close()


def _some(domain: Domain, most: int) -> list[str]:
    """The first held-out documents up to ``most`` bytes."""
    split = next((name for name in ("validation", "test") if name in domain.splits), "train")
    found: list[str] = []
    for text in domain.texts(split):
        found.append(text)
        most -= len(text.encode())
        if most <= 0:
            break
    return found


def tidy(folder: str | Path) -> None:
    """Remove a finished run's checkpoints; call it once the model is saved."""
    shutil.rmtree(Path(folder) / "checkpoints", ignore_errors=True)
    for name in ("within_budget.pt", "within_budget.tmp", "plan.json"):
        (Path(folder) / name).unlink(missing_ok=True)
