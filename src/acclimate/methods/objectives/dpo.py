"""DPO: prefers better answers to worse ones, measured against the start model, without a reward model.

Rafailov et al. 2023, equation 7, https://arxiv.org/abs/2305.18290 ; label smoothing is the conservative DPO of
https://ericmitchell.ai/cdpo.pdf ; form "ipo" is Azar et al. 2023, equation 17, https://arxiv.org/abs/2310.12036
Use for pairs of answers to one prompt, after sft on the same kind of prompts. Not for good answers alone (sft), nor where a
reference pass is too dear (orpo).
As in the papers, an answer's log-probability is the sum over its tokens, for "ipo" too; TRL divides it by the answer's length
there, which asks for larger margins. Left out: IPO's regression on pairs that several people have judged.

>>> import torch
>>> given = [torch.tensor([value]) for value in (-10.0, -12.0, -11.0, -11.5)]  # the margin grew from 0.5 to 2
>>> Dpo().loss(*given), Dpo(form="ipo").loss(*given)  # log(1 + e^-0.15) and (1.5 - 1 / 0.2)^2
(tensor(0.6210), tensor(12.2500))
"""

from typing import Annotated

from torch import Tensor
from torch.nn.functional import logsigmoid

from ...errors import AcclimateError
from ...kinds import Objective
from ...method import Setting
from ...parts.losses import mean_over


class Dpo(Objective):
    """Mean loss per pair."""

    beta: Annotated[float, Setting("pull towards the start model (the papers' beta and tau); larger stays closer", 1e-6)] = 0.1
    label_smoothing: Annotated[float, Setting("share of pairs taken to be judged the wrong way round (cDPO's epsilon)", 0, 0.5)] = 0.0
    form: Annotated[str, Setting("shape of the loss: logistic in the margin, or squared", choices=("sigmoid", "ipo"))] = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "ipo" and self.label_smoothing:
            raise AcclimateError('Dpo.label_smoothing belongs to form = "sigmoid"; leave it at 0 with "ipo"')

    def loss(
        self,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
        items: Tensor | float | None = None,
    ) -> Tensor:
        """Four log-probabilities [pair] -> scalar."""
        margin = (chosen_logps.float() - rejected_logps.float()) - (ref_chosen_logps.float() - ref_rejected_logps.float())
        if self.form == "ipo":
            return mean_over((margin - 1 / (2 * self.beta)) ** 2, items)
        right, wrong = logsigmoid(self.beta * margin), logsigmoid(-self.beta * margin)
        return mean_over(-(1 - self.label_smoothing) * right - self.label_smoothing * wrong, items)
