"""What may look on while a method trains."""

from typing import Any

from torch import Tensor, nn


class Callback:
    """Something that looks on while a method trains; override what is needed.

    With several processes each has its own callbacks, which see the same weights.
    """

    def on_epoch_end(self, method: nn.Module, epoch: int, row: dict[str, Any]) -> None:
        """After each epoch (1 to E) and its validation; `row`, its line of the history, may be added to."""

    def on_fit_end(self, method: nn.Module) -> None:
        """At the end, or after Ctrl-C, when `method` holds the weights kept; it may change them."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of this callback, as named tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave; the tensors are on the CPU."""
