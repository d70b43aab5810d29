"""The settings of a training run: how long, how fast and with what care."""

from typing import Annotated, Any

from ..method import Setting, Settings


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
    optimizer: Annotated[
        str,
        Setting(
            "adamw; muon for matrices (adamw for the rest): fewer steps to learn much; or mofo: adamw on the strongest entries alone",
            choices=("adamw", "muon", "mofo"),
        ),
    ] = "adamw"
    mofo_alpha: Annotated[float, Setting("share of each tensor's entries that a step of mofo moves", 0, 1)] = 0.3
    weight_decay: Annotated[float, Setting("decoupled weight decay", 0)] = 0.01
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

    def values(self) -> dict[str, Any]:
        """The settings as plain data; ``mofo_alpha`` only where it has a say, so that it is no part of other runs' identity."""
        found = super().values()
        if self.optimizer != "mofo":
            del found["mofo_alpha"]
        return found
