"""What the benchmarks share: options with their defaults."""

import argparse


def options(doc: str, **defaults: int | str) -> argparse.ArgumentParser:
    """A parser whose help is `doc`; `batch_size=8` makes an option --batch-size of that type and default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        text = f"default {value}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=text)
    return parser
