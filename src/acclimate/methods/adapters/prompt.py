"""Prompt tuning: learns a few virtual words put before every input; the model itself stays as it is.

Lester et al. 2021, section 2, https://arxiv.org/abs/2104.08691
Use for large models and narrow tasks; prompts for many tasks can share one model in one batch. Not for small models: the paper
finds it level with full training from about 10 billion weights only.
The paper's default is 100 words that start as words drawn from the vocabulary. Left out: prompt ensembles, and the start from
class names (give ``text`` instead).

>>> from acclimate.checks.tiny import decoder
>>> from peft import get_peft_model
>>> get_peft_model(decoder(), Prompt(tokens=5).peft(decoder())).get_nb_trainable_parameters()[0]  # 5 words x width 16
80
"""

from typing import Annotated, Any, ClassVar

from ...errors import AcclimateError
from ...kinds import Adapter
from ...method import Setting
from ...parts.peft_targets import task_type


class Prompt(Adapter):
    """Embeddings in front of the input's own."""

    exempt: ClassVar = {
        "identity": "virtual words change what the model reads from the first step on",
        "folds": "virtual words have no weight matrix to be folded into",
    }
    tokens: Annotated[int, Setting("number of virtual words", 1)] = 100
    start: Annotated[
        str, Setting("what they start as: words of the vocabulary, noise, or the words of text", choices=("vocabulary", "random", "text"))
    ] = "vocabulary"
    text: Annotated[str, Setting('the words to start from where start = "text"; repeated or cut to length')] = ""

    def peft(self, model: Any) -> Any:
        """Peft's PromptTuningConfig; start = "text" reads the tokenizer from where the model was loaded."""
        from peft import PromptTuningConfig

        words = {}
        if self.start == "text":
            if not self.text or not model.name_or_path:
                raise AcclimateError(
                    'Prompt.start = "text" needs text, and a model that was loaded from a folder or the hub (for its tokenizer)'
                )
            words = {"prompt_tuning_init_text": self.text, "tokenizer_name_or_path": model.name_or_path}
        kind = {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM", "text": "TEXT"}[self.start]
        return PromptTuningConfig(
            num_virtual_tokens=self.tokens, prompt_tuning_init=kind, task_type=task_type(model) or "FEATURE_EXTRACTION", **words
        )
