"""YAML front matter between two lines of three dashes, and the text below it."""

import re
from pathlib import Path

import yaml


def read_front_matter(path: str | Path) -> tuple[dict, str]:
    """Fields and text of a file; ValueError, naming the file, where the front matter is missing or bad."""
    text = Path(path).read_text(encoding="utf-8-sig")
    parts = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n(.*))?\Z", text, re.DOTALL)
    if parts is None:
        raise ValueError(f"{path}: it must start with YAML between two lines of three dashes (---).")
    try:
        above = "\n" * text.count("\n", 0, parts.start(1))  # so that errors count the file's lines
        front = yaml.load(above + parts[1], Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        said = str(error).replace('in "<unicode string>", ', "at ")
        raise ValueError(f"{path}: the front matter is not valid YAML: {said}") from error
    if not isinstance(front, dict) or not all(isinstance(key, str) for key in front):
        raise ValueError(f"{path}: the front matter must be fields, each written 'name: value'.")
    return front, (parts[2] or "").strip()


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = []
        for key, _ in node.value:
            value = self.construct_object(key, deep=True)
            if value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {value!r} is given twice", problem_mark=key.start_mark
                )
            seen.append(value)
        return super().construct_mapping(node, deep)
