"""How long a user waits, as a table of this machine: `python -m tests.benchmarks.waiting_times --write`.

Each line is what someone does in a notebook, timed once, by the clock, and whether a progress bar was shown.
The folders hold small drawn JPEGs; the CLIP is the embedded one, and its cache of features starts empty.
`--write` puts the table into tests/benchmarks/README.md.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from medvlp.backbone.clip import native_bfloat16
from tests.benchmarks.timing import fill_in, options, timed

PAGE = Path(__file__).with_name("README.md")
CARD = """---
name: folder-of-{n}
title: Drawn images
modality: a drawing
classes:
  - {{name: dark, knowledge: {{symptoms: [a black surface, deep shade]}}}}
  - {{name: light, knowledge: {{symptoms: [a white surface, bright ground]}}}}
source: {{kind: folder}}
---
"""


def machine() -> str:
    """What this machine is and can do, in a line."""
    capability = torch.backends.cpu.get_cpu_capability()
    half = "with" if native_bfloat16() else "without"
    return (
        f"{os.cpu_count()} cores ({capability}, {half} bfloat16 products), "
        f"{torch.get_num_threads()} threads, "
        f"torch {torch.__version__.partition('+')[0]}, Python {sys.version.partition(' ')[0]}"
    )


def in_a_new_process(code: str) -> Callable[[], object]:
    """Running the code in a Python of its own."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def folder_of(n: int, place: Path) -> Path:
    """A folder of n drawn JPEGs in two classes, with its card: the path of the card."""
    random = np.random.default_rng(n)
    for k, name in enumerate(("dark", "light")):
        (place / name).mkdir(parents=True)
        for i in range(n // 2):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8) // 2 + 100 * k
            Image.fromarray(pixels.astype(np.uint8)).resize((64, 64)).save(place / name / f"{i:05d}.jpg")
    card = place / f"folder-of-{n}.md"
    card.write_text(CARD.format(n=n))
    return card


class Table:
    """Waits, as they are measured."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []

    def wait(self, what: str, call: Callable[[], object]) -> None:
        """Time a call, and see whether it shows a bar."""
        shown = io.StringIO()
        with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
            seconds = timed(call)
        bar = "yes" if "%|" in shown.getvalue() or "it/s" in shown.getvalue() else ""
        self.rows.append((what, f"{seconds:.2f}", bar))
        print(f"{what:60} {seconds:7.2f} s  {bar and 'progress bar'}", flush=True)


def measure(large: int) -> Table:
    """All lines; `large` is the number of files of the larger folder."""
    table = Table()
    table.wait("a Python that does nothing", in_a_new_process("pass"))
    table.wait("`import medvlp`, in a new Python", in_a_new_process("import medvlp"))
    table.wait(
        '`load_clip("tiny")`, in a new Python', in_a_new_process("import medvlp; medvlp.load_clip('tiny')")
    )
    import medvlp
    from medvlp.show import Embeddings, SymptomExplorer, class_points, failures, image_points, map_points

    clip = medvlp.load_clip("tiny")
    with tempfile.TemporaryDirectory() as place:
        os.environ["MEDVLP_CACHE"] = str(Path(place, "cache"))
        table.wait('`load_dataset("phantom-derm")`', lambda: medvlp.load_dataset("phantom-derm"))
        table.wait('`load_dataset("wbcatt")`, from shipped features', lambda: medvlp.load_dataset("wbcatt"))
        for n in (1_000, large):
            card = folder_of(n, Path(place, str(n)))
            table.wait(f"`load_dataset` of {n:,} files", lambda c=card: medvlp.load_dataset(c, root=c.parent))
        small = Path(place, "1000", "folder-of-1000.md")
        data = medvlp.load_dataset(small, root=small.parent)
        for when in ("first time", "from the cache"):
            table.wait(
                f"`image_features` of {len(data.train):,} files, {when}",
                lambda: medvlp.image_features(clip, data.train),
            )
        data = medvlp.load_dataset("phantom-derm")
        zero, vip = medvlp.ZeroShot(clip, data.card), medvlp.ViP(clip, data.card)
        table.wait("`evaluate` of 2,000 phantoms with intervals", lambda: medvlp.evaluate(zero, data.test))
        once = medvlp.TrainConfig(epochs=1, views=0)
        table.wait(
            "`fit`, one epoch of ViP, the first time", lambda: medvlp.fit(vip, data.train, data.val, once)
        )
        table.wait(
            "`fit`, one epoch of ViP on cached features",
            lambda: medvlp.fit(vip, data.train, data.val, once),
        )
        page = Path(place, "failures.html")
        table.wait("a gallery of failures", lambda: failures(zero, data.test, data.train).to_html(page))
        points = Embeddings.concat([image_points(clip, data.test.subset(range(500))), class_points(zero)])
        for when in ("first", "second"):
            table.wait(f"a map of 500 images, the {when} one", lambda: map_points(points))
        table.wait("the first widget", lambda: SymptomExplorer(zero, data.test).box)
    return table


def main() -> None:
    parser = options(__doc__, large=50_000)
    parser.add_argument("--write", action="store_true", help="put the table into README.md beside this file")
    args = parser.parse_args()
    print(machine())
    table = measure(args.large)
    frame = pd.DataFrame(table.rows, columns=["wait", "seconds", "progress bar"])
    text = f"{machine()}:\n\n{frame.to_markdown(index=False, disable_numparse=True)}"
    if args.write:
        fill_in(PAGE, {"waiting times": text})


if __name__ == "__main__":
    main()
