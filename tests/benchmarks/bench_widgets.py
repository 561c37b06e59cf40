"""How long each widget takes from a control to what is shown, without the browser.

    python -m tests.benchmarks.bench_widgets

Each line is one turn of a control, as the kernel sees it: compute, draw the HTML, set the widgets. The target
is 300 ms on the embedded CLIP. The static pictures, which a cell draws once when it is run, are timed, too.
On a machine that does other work, set OMP_NUM_THREADS=1.
"""

import statistics
from collections.abc import Callable, Iterable

from medvlp.backbone.clip import load_clip
from medvlp.data.datasets import load_dataset
from medvlp.methods.cilmp import CILMP
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot
from medvlp.show import InterventionExplorer, PhantomLab, SymptomExplorer
from tests.benchmarks.timing import options, timed

TARGET = 300  # milliseconds


def shown(name: str, turn: Callable[[int], object], rounds: Iterable[int], target: bool = True) -> None:
    """Print median and maximum of the milliseconds that turns take; the first is warm-up."""
    taken = [1000 * timed(lambda i=i: turn(i)) for i in rounds]
    median, most = statistics.median(taken[1:]), max(taken[1:])
    verdict = f"  (target: < {TARGET})" if target else ""
    print(f"{name:<44} median {median:6.1f} ms, longest {most:6.1f} ms{verdict}", flush=True)


def main() -> None:
    card = "phantom-fundus"  # the phantom card with most symptoms
    args = options(__doc__, clip="tiny", card=card, rounds=20, device="auto").parse_args()
    clip = load_clip(args.clip, device=args.device)
    data = load_dataset(args.card)
    zero, vip, cilmp = (method(clip, data.card) for method in (ZeroShot, ViP, CILMP))
    rounds = range(args.rounds + 1)
    print(f"{args.clip} on {clip.device}, {args.card}, {args.rounds} turns each")

    for name, method in (("ZeroShot", zero), ("ViP", vip)):
        explorer = SymptomExplorer(method, data.test)
        assert explorer.box
        button = next(iter(explorer._lists.values())).buttons.children[1]
        shown(f"symptom explorer, {name}: toggle", lambda _, b=button: b.click(), rounds)
        shown(f"symptom explorer, {name}: image", lambda i, e=explorer: _set(e._index, i + 1), rounds)
        shown(f"symptom explorer, {name}: static", lambda _, e=explorer: e.static(), rounds, target=False)

    lab = PhantomLab({"zero-shot": zero, "ViP": vip})
    assert lab.box
    first = next(iter(lab._sliders.values()))
    shown("phantom lab, two methods: slider", lambda i: _set(first, 40 + 10 * (i % 2)), rounds)
    shown("phantom lab, two methods: phantom", lambda i: _set(lab._seed, 100 + i), rounds)
    shown("phantom lab, two methods: static", lambda _: lab.static(), rounds, target=False)

    explorer = InterventionExplorer(cilmp, data.test)
    assert explorer.box
    shown("intervention explorer: image", lambda i: _set(explorer._index, i + 1), rounds)
    shown("intervention explorer: rank, first time", lambda i: _first_rank(explorer, i), rounds)
    shown("intervention explorer: rank, seen before", lambda i: _set(explorer._kept, 3 + i % 2), rounds)
    shown("intervention explorer: static", lambda _: explorer.static(), rounds, target=False)


def _first_rank(explorer: InterventionExplorer, i: int) -> None:
    explorer._effects.pop(1 + i % 2, None)
    _set(explorer._kept, 1 + i % 2)


def _set(control: object, value: int) -> None:
    control.value = value


if __name__ == "__main__":
    main()
