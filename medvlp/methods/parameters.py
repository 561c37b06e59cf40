"""What of a method is learned: its own tensors, apart from the frozen CLIP, and a table of them."""

import pandas as pd
import torch
from torch import Tensor, nn

from medvlp.data.errors import unknown_name
from medvlp.methods.base import Method


def own_tensors(method: Method) -> dict[str, Tensor]:
    """The tensors that a method has beside its CLIP, by name: what is trained, kept and saved.

    These are the entries of `state_dict` that are not the CLIP's. What follows from the configuration (token
    ids, encoded texts) is registered with `persistent=False`, and so is not among them.
    """
    frozen = {id(tensor) for tensor in (*method.clip.parameters(), *method.clip.buffers())}
    state = method.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if id(tensor) not in frozen}


def load_own_tensors(method: Method, tensors: dict[str, Tensor], where: str) -> None:
    """Copy `tensors` into the method's own, in place; `where` names their origin in errors.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape or type. Nothing is copied then.
    """
    own, kind = own_tensors(method), type(method).__name__
    missing = [name for name in own if name not in tensors]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(map(repr, missing))}, which {kind} needs.")
    for name, tensor in tensors.items():
        if name not in own:
            raise ValueError(unknown_name(f"tensor of {kind}", name, own, where))
        if (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
            raise ValueError(
                f"{name!r} in {where} is {_kind(tensor)}, but {kind} here has {_kind(own[name])}; "
                "it was made with another configuration."
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def learned_parameters(method: Method) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name.

    Those that require gradients. Where none does, but the method `fits_before_training`, as a linear probe,
    its own parameters: what it only stores, such as the features of training images, are buffers.
    """
    parameters = dict(method.named_parameters())
    by_gradient = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if by_gradient or not method.fits_before_training:
        return by_gradient
    frozen = {id(parameter) for parameter in method.clip.parameters()}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) not in frozen}


def trainable_parameters(method: Method) -> pd.DataFrame:
    """`learned_parameters` as a table: index part, columns shape and count, and their total last.

    Example:
        >>> import medvlp
        >>> coop = medvlp.CoOp(medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm"), n_ctx=4)
        >>> medvlp.trainable_parameters(coop).index.tolist()
        ['ctx', 'total']
    """
    rows = {
        name: (" x ".join(map(str, parameter.shape)), parameter.numel())
        for name, parameter in learned_parameters(method).items()
    }
    rows["total"] = ("", sum(count for _, count in rows.values()))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["shape", "count"]).rename_axis("part")


def _kind(tensor: Tensor) -> str:
    return (
        f"{' x '.join(map(str, tensor.shape)) or 'one number'} ({str(tensor.dtype).removeprefix('torch.')})"
    )
