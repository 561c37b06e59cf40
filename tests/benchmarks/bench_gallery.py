"""How long a gallery of 500 failures takes as a page, and how large it is.

    python -m tests.benchmarks.bench_gallery [--card pneumonia]

ZeroShot with the card's incorrect symptoms fails often; 500 of its failures, each with symptoms and three
training images, become one page. Features are computed before the clock starts, since they are cached.
"""

import tempfile
from pathlib import Path

from medvlp import ZeroShot, image_features, load_clip, load_dataset
from medvlp.show.gallery.failures import failures
from tests.benchmarks.timing import Clock, options


def main() -> None:
    args = options(__doc__, card="phantom-derm", knowledge="incorrect", failures=500).parse_args()

    clip, data = load_clip("tiny"), load_dataset(args.card)
    method = ZeroShot(clip, data.card, args.knowledge)
    for images in (data.train, data.test):
        image_features(clip, images)
    clock = Clock()
    found = failures(method, data.test, data.train)
    some = found.where(found.table.index < args.failures)
    described = clock.look()
    with tempfile.TemporaryDirectory() as folder:
        path = some.to_html(Path(folder) / "failures.html")
        seconds, size = described + clock.look(), path.stat().st_size / 1e6
    print(f"{found.title}; {len(some)} on the page, with {len(some.neighbours)} training images")
    print(f"found and described in {described:.1f} s, with the page {seconds:.1f} s (target: under 20)")
    print(f"page {size:.1f} MB (target: under 15)")


if __name__ == "__main__":
    main()
