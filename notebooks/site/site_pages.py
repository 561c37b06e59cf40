"""The text of pages that are no files: cards, the glossary, public names, and what is added to lectures."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

import nbformat

import medvlp
import medvlp.show
from medvlp.data.cards import DataCard

SHORT = {name: f"medvlp.show.{name}" for name in medvlp.show.__all__}
SHORT |= {name: f"medvlp.{name}" for name in medvlp.__all__}  # two names are in both packages
PUBLIC = {
    full: getattr(medvlp if name in medvlp.__all__ else medvlp.show, name) for name, full in SHORT.items()
}
ROOMS = {  # where public names live, and the headings that they stand under
    "data": "Images and cards",
    "backbone": "CLIPs",
    "knowledge": "Symptoms and language models",
    "methods": "Methods",
    "study": "Training, evaluation and studies",
    "show.figures": "Show: figures",
    "show.explanations": "Show: explanations and counterfactuals",
    "show.gallery": "Show: failures",
    "show.maps": "Show: maps",
    "show.widgets": "Show: widgets",
}


def escaped(text: str) -> str:
    """Text as Markdown that shows it letter by letter; only a plain name in backticks becomes code.

    In Markdown every sign of ASCII may have a backslash before it, and then means nothing but itself.
    """
    signs = r"`([\w.]+)`|([!-/:-@\[-`{-~])"
    return re.sub(signs, _escape, " ".join(text.split()))


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table whose cells are shown letter by letter."""
    cells = [head, ["---"] * len(head), *([escaped(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells] + [""]


def card(card: DataCard) -> str:
    """A data card's page: its prose, then what the code reads, as text."""
    prose = card.prose if card.prose.startswith("# ") else f"# {escaped(card.title)}\n\n{card.prose}"
    lines = [prose, "", "## What the code reads", "", f'`medvlp.load_dataset("{card.name}")`', ""]
    facts = {
        "title": card.title,
        "an image is": card.modality,
        "classes, in label order": ", ".join(card.classnames),
        "licence": card.licence,
        "images may be passed on": "yes" if card.redistribution else "no, or unknown",
        "citation": card.citation,
        "intended use": card.intended_use,
        "out of scope": card.out_of_scope,
        "how to get it": getattr(card.source, "how_to_get", ""),
    }
    lines += table(["field", "value"], [[name, fact] for name, fact in facts.items() if fact])
    if card.pitfalls:
        lines += ["### Pitfalls", "", *(f"- {escaped(pitfall)}" for pitfall in card.pitfalls), ""]
    lines += ["### Templates", "", *(f"- {escaped(template)}" for template in card.templates), ""]
    for kind in card.some_kinds():
        lines += [f"### Knowledge: {escaped(kind)}", ""]
        phrases = [(info.name, phrase) for info in card.classes for phrase in info.knowledge.get(kind, [])]
        if any(phrase.criterion for _, phrase in phrases):
            lines += table(
                ["class", "phrase", "criterion"],
                [[name, phrase.text, phrase.criterion or ""] for name, phrase in phrases],
            )
        else:
            of = {
                info.name: [phrase.text for name, phrase in phrases if name == info.name]
                for info in card.classes
            }
            lines += table(["class", "phrases"], [[name, "; ".join(texts)] for name, texts in of.items()])
    if card.attributes:
        lines += ["### Attributes", ""]
        rows = [
            [attribute.name, attribute.criterion or "", value, "; ".join(wordings)]
            for attribute in card.attributes
            for value, wordings in attribute.values.items()
        ]
        lines += table(["attribute", "criterion", "value", "in words"], rows)
    return "\n".join(lines)


def terms(glossary: str) -> list[tuple[list[str], str, str, str]]:
    """The glossary's rows: the terms that share a meaning, their symbols, the meaning, the lecture."""
    rows = glossary.split("## Terms")[1].splitlines()[4:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row]
    return [(names.split(", "), symbols, meaning, where) for names, symbols, meaning, where in cells]


def glossary(text: str) -> str:
    """The glossary's page: each term with an anchor of its own, which search and lectures lead to."""
    lines = [text.split("## Terms")[0] + "## Terms", "", "```{glossary}"]
    for names, symbols, meaning, where in terms(text):
        symbols = f"In code or symbols: {symbols}." if symbols else ""
        lines += [*names, f"  {meaning} {symbols} First in {where}.", ""]
    return "\n".join([*lines, "```", ""])


def figures(listed: str) -> dict[str, str]:
    """What each figure shows, by its name, from the list of figures."""
    return dict(re.findall(r"^\| \[(\w+)\]\(\w+\.png\) \| (.+?) \|", listed, re.MULTILINE))


def lectures(root: Path) -> dict[str, nbformat.NotebookNode]:
    """The lectures by the name of their page."""
    paths = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    return {f"notebooks/{path.stem}": nbformat.read(path, as_version=4) for path in paths}


def used(notebook: nbformat.NotebookNode) -> list[str]:
    """The public names in a notebook's code, such as `medvlp.fit` or `medvlp.show.map_figure`."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    words = set(re.findall(r"\w+", code))
    return [full for name, full in sorted(SHORT.items()) if name in words]


def lecture(
    name: str, notebook: nbformat.NotebookNode, words: list, shown: Mapping[str, str]
) -> nbformat.NotebookNode:
    """A lecture with descriptions of its figures, and the words and functions that it brings."""
    file = f"({Path(name).name}.ipynb)"
    for cell in notebook.cells:
        saved = re.findall(r'save_figure\(.*?"(\w+)",\s*HERE\)', cell.source, re.DOTALL)
        if saved:
            cell.metadata["mystnb"] = {"image": {"alt": "; ".join(shown[name] for name in saved)}}
    new = ", ".join(f"{{term}}`{term}`" for terms, *_, where in words if file in where for term in terms)
    names = ", ".join(f"{{py:obj}}`{name}`" for name in used(notebook))
    text = f"## Words and functions\n\nFirst used here: {new or 'none'}.\n\nOf the library: {names}."
    notebook.cells.append(nbformat.v4.new_markdown_cell(text))
    return notebook


def api(lectures: Mapping[str, nbformat.NotebookNode]) -> dict[str, str]:
    """Pages of the public names, and one that lists them, by name, as reStructuredText."""
    users = {lecture: used(notebook) for lecture, notebook in lectures.items()}
    pages, rooms = {}, {heading: [] for heading in ROOMS.values()}
    for full, public in PUBLIC.items():
        name, kind = full.rsplit(".", 1)[1], "class" if inspect.isclass(public) else "function"
        seen = ", ".join(f":doc:`/{lecture}`" for lecture, names in users.items() if full in names)
        lines = [
            name,
            "=" * len(name),
            "",
            f".. auto{kind}:: {full}",
            "",
            f"Seen in {seen}." if seen else "",
            "",
        ]
        pages[f"api/{full}"] = "\n".join(lines)
        module = public.__module__ + "."
        rooms[next(text for room, text in ROOMS.items() if module.startswith(f"medvlp.{room}."))].append(full)
    lines = ["Public names", "============", ""]
    for heading, names in rooms.items():
        names.sort(key=str.lower)
        lines += [heading, "-" * len(heading), "", ".. autosummary::", "", *(f"   {name}" for name in names)]
        lines += ["", ".. toctree::", "   :hidden:", f"   :caption: {heading}", ""]
        lines += [*(f"   api/{name}" for name in names), ""]
    return pages | {"api": "\n".join(lines)}


def docstring(app, what: str, name: str, public: object, options: object, lines: list[str]) -> None:
    """Make a docstring reStructuredText: indented paragraphs are formulas, signs outside code are signs."""
    new: list[str] = []
    formula = example = False
    for line in lines:
        before = next((line for line in reversed(new) if line.strip()), " ")
        formula = formula and not line[:1].strip()
        if not formula and line.startswith("    ") and not new[-1] and not before.startswith(" "):
            new += [".. code-block:: none", ""]
            formula = True
        example = example or line == "Example:"
        plain = line if formula or example else re.sub(r"(`[^`]*`)|(?<=\w)_(?!\w)|[*|]", _escape, line)
        new.append(plain)
    nothing = ["\\ "] if what == "property" else []  # else napoleon takes what is before a colon for a type
    lines[:] = nothing + new


def _escape(found: re.Match) -> str:
    return found[0] if found[1] else "\\" + found[0]
