"""What the benchmarks share: options with their defaults, places in pages, a clock, a plain training step."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.data.files import atomic_write


def options(doc: str, **defaults: int | str | Path) -> argparse.ArgumentParser:
    """A parser whose help is `doc`; `batch_size=8` makes an option --batch-size of that type and default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        text = f"default {value}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=text)
    return parser


def fill_in(page: Path, texts: dict[str, str]) -> None:
    """Write texts into their places in a page: each after `<!-- NAME -->`, before `<!-- end of NAME -->`."""
    written = page.read_text(encoding="utf-8")
    for name, text in texts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = written.split(begin)
        written = f"{before}{begin}{text}\n{end}{rest.split(end)[1]}"
    with atomic_write(page) as part:
        part.write_text(written, encoding="utf-8")


class Clock:
    """Seconds since the last look, once all that was launched is done."""

    now = time.perf_counter

    def __init__(self) -> None:
        self.last = 0.0
        self.look()

    def look(self) -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = Clock.now()
        past, self.last = now - self.last, now
        return past


def timed(call: Callable[[], object]) -> float:
    """Seconds that `call` takes."""
    clock = Clock()
    call()
    return clock.look()


def sgd_of(method: nn.Module, lr: float) -> torch.optim.SGD:
    """What trains the learned parameters of a method."""
    learned = [p for p in method.parameters() if p.requires_grad]
    return torch.optim.SGD(learned, lr, momentum=0.9, weight_decay=5e-4)


def n_learned(method: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in method.parameters() if p.requires_grad)


def learn(sgd: torch.optim.SGD, logits: Tensor, labels: Tensor) -> None:
    """Cross-entropy, backward and a step of SGD: logits (B, n_cls), labels (B,)."""
    loss = F.cross_entropy(logits, labels)
    sgd.zero_grad()
    loss.backward()
    sgd.step()
