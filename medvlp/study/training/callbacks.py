"""What may look on while a method trains: `Callback`, and the average of the weights over epochs."""

from collections.abc import Sequence
from math import exp
from typing import Any

import torch
from torch import Tensor

from medvlp.data.errors import unknown_name
from medvlp.methods.base import Method, own_tensors

TOTAL = "sum of a_e"  # among the sums of tensors; no tensor's name has a space


class Callback:
    """Something that looks on while a method trains; override what is needed.

    With several processes each has its own callbacks, which see the same weights.
    """

    def on_epoch_end(self, method: Method, epoch: int, row: dict[str, Any]) -> None:
        """After each epoch (1 to E) and its validation; `row`, its line of the history, may be added to."""

    def on_fit_end(self, method: Method) -> None:
        """At the end, or after Ctrl-C, when `method` holds the weights kept; it may change them."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of this callback, as named tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave; the tensors are on the CPU."""


class EpochAverage(Callback):
    r"""At the end of training, the Gaussian average over epochs of some or all trained tensors.

        theta = sum_e a_e theta_e / sum_e a_e,    a_e = exp(-(e - mean)^2 / (2 std^2)),    e = 1..E

    With mean 100 and std 30 over E = 100 epochs it is CILMP's (Du et al., IEEE TMI 2025), whose authors
    average the prompts and take the interventions, A and B from the last epoch. `fit` does so by itself for
    the methods that were published with an average, CILMP and PromptSRC (see `TrainConfig.average`); one
    among its callbacks takes the place of theirs:

        fit(cilmp, train, val, callbacks=[EpochAverage(100, std=10, tensors=("ctx", "image_prompts"))])

    What is not averaged keeps the weights that `fit` keeps, so ask for `keep="last"`. After Ctrl-C it is the
    average of the epochs so far. A checkpoint keeps the sum: a run that goes on ends as an unbroken one.

    Args:
        epochs: E of the run.
        mean: The epoch that counts most; by default E.
        std: By default 0.3 E.
        tensors: Names of the tensors that are averaged, whole or as the first part before a dot
            ("sites" is "sites.0.A" and all others in it); None: everything that is trained.

    Raises:
        ValueError: epochs or std not above 0; at the first epoch: a name that the method does not have.

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> coop, average = medvlp.CoOp(clip, data.card), [medvlp.EpochAverage(2)]
        >>> config = medvlp.TrainConfig(epochs=2, batch_size=8, views=0, keep="last")
        >>> history = medvlp.fit(coop, data.train, data.val, config, callbacks=average, progress=False)
        >>> history["average_weight"].round(2).tolist()
        [0.25, 1.0]
    """

    def __init__(
        self,
        epochs: int,
        mean: float | None = None,
        std: float | None = None,
        tensors: Sequence[str] | None = None,
    ) -> None:
        """Nothing is averaged yet; see the class."""
        self.mean = float(epochs if mean is None else mean)
        self.std = 0.3 * epochs if std is None else std
        if epochs < 1 or not self.std > 0:
            raise ValueError(f"epochs must be at least 1 and std above 0, got {epochs} and {self.std}.")
        self.tensors = None if tensors is None else tuple(tensors)
        self.sums: dict[str, Tensor] = {}  # a_e theta_e, in float64 on the CPU
        self.weight = 0.0  # the sum of a_e

    @classmethod
    def published(cls, method: Method, epochs: int) -> "EpochAverage | None":
        """The average that the method was published with, for a run of `epochs`; None if it has none.

        It is the method's own `average`: mean and std as fractions of the number of epochs, and the tensors.
        """
        average = method.average
        if average is None:
            return None
        parts = {name.split(".")[0] for name in own_tensors(method)}
        tensors = average.get("tensors")
        averaged = tensors and tuple(name for name in tensors if name in parts)
        return cls(epochs, average["mean"] * epochs, average["std"] * epochs, averaged)

    def on_epoch_end(self, method: Method, epoch: int, row: dict) -> None:
        """Add this epoch's tensors, and its weight to the history."""
        a = exp(-((epoch - self.mean) ** 2) / (2 * self.std**2))
        for name, tensor in self._averaged(method).items():
            self.sums[name] = self.sums.get(name, 0) + a * tensor.cpu().double()  # a GPU may have no float64
        self.weight += a
        row["average_weight"] = a

    def on_fit_end(self, method: Method) -> None:
        """Put the average in place."""
        with torch.no_grad():
            for name, tensor in self._averaged(method).items():
                tensor.copy_((self.sums[name] / self.weight).to(tensor.dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far, in float64."""
        return {TOTAL: torch.tensor(self.weight, dtype=torch.float64), **self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`."""
        self.sums = {name: tensor.cpu() for name, tensor in state.items() if name != TOTAL}
        self.weight = state[TOTAL].item()

    def _averaged(self, method: Method) -> dict[str, Tensor]:
        """The tensors that are averaged, by name."""
        trained = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
        tensors = {name: tensor for name, tensor in own_tensors(method).items() if name in trained}
        if self.tensors is None:
            return tensors
        parts = {name.split(".")[0] for name in tensors}
        for name in self.tensors:
            if name not in tensors and name not in parts:
                raise ValueError(unknown_name("tensor", name, sorted(parts), type(method).__name__))
        return {n: t for n, t in tensors.items() if n in self.tensors or n.split(".")[0] in self.tensors}
