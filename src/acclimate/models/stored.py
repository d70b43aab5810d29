"""Networks of our own that are built from settings: saved as those and their weights, and read back."""

from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn

from ..errors import AcclimateError
from ..files import atomic_dir, read_json, write_json

WEIGHTS = "model.safetensors"


class Stored(nn.Module):
    """``settings`` are the arguments that build the network again; ``title`` says what it is, and names the file of the settings."""

    title: ClassVar[str]
    settings: dict[str, Any]

    def save_pretrained(self, folder: str | Path) -> None:
        """Settings and weights, whole or not at all."""
        from safetensors.torch import save_file

        with atomic_dir(folder) as place:
            write_json(place / f"{self.title}.json", self.settings)
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, place / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """What :meth:`save_pretrained` wrote, in evaluation mode. Raises AcclimateError where the weights are damaged or others."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        made = cls(**read_json(Path(folder) / f"{cls.title}.json"))
        try:
            made.load_state_dict(load_file(Path(folder) / WEIGHTS))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise AcclimateError(f"{folder} holds no whole {cls.title}: {str(error).splitlines()[-1].strip()}; save it again") from error
        return made.eval()
