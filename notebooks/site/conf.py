"""How Sphinx makes the site; `make_site.py` starts it."""

import inspect
import sys
from pathlib import Path
from typing import get_type_hints

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import nbformat  # noqa: E402
import site_pages  # noqa: E402
from docutils import nodes  # noqa: E402
from latex2mathml.converter import convert  # noqa: E402
from sphinx.util.inspect import stringify_signature  # noqa: E402

import medvlp  # noqa: E402

ROOT = HERE.parents[1]
project = "medvlp"
author = "The medvlp authors"
version = release = medvlp.__version__
language = "en"
root_doc = "index"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.githubpages",  # writes .nojekyll, without which one host leaves out folders with a _
    "sphinx_copybutton",
]

nb_execution_mode = "off"
nb_render_image_options = {"alt": "Drawn by the code above."}
nb_ipywidgets_js = {}  # widgets need a kernel; the pages show what the notebooks keep of them
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autosummary_generate = False
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "forward, model_config, model_post_init"}
napoleon_use_ivar = True
default_role = "py:obj"  # a name in backticks leads to its page where it has one
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "medvlp"
html_static_path = ["static"]
html_favicon = "static/icon.svg"
templates_path = ["templates"]
html_css_files = ["site.css"]
html_js_files = [("figures.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_sourcelink_suffix = ""
html_use_index = html_domain_indices = False
html_show_sphinx = False
html_context = {"default_mode": "auto"}  # light or dark as the system is
html_theme_options = {
    "logo": {"text": "medvlp"},
    "show_prev_next": True,
    "navigation_with_keys": False,  # arrow keys scroll wide tables
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc", "download"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
copyright = author


def prepare(app, docname: str, source: list[str]) -> None:
    """Change what a page is made of before it is read; the file that readers can download stays as it is."""
    if docname.startswith("data_cards/"):
        source[0] = site_pages.card(medvlp.load_card(docname.removeprefix("data_cards/")))
    elif docname == "notebooks/glossary":
        source[0] = site_pages.glossary(source[0])
    elif docname in LECTURES:
        source[0] = nbformat.writes(site_pages.lecture(docname, LECTURES[docname], TERMS, FIGURES))


def public_page(app, env, node: nodes.Element, text: nodes.TextElement) -> nodes.Element | None:
    """Lead `medvlp.methods.vip.ViP`, as types in signatures are called, to the page of `medvlp.ViP`."""
    name = node.get("reftarget", "").rsplit(".", 1)[-1]
    if node.get("refdomain") != "py" or name not in site_pages.SHORT:
        return None
    page = app.builder.get_relative_uri(node["refdoc"], f"api/{site_pages.SHORT[name]}")
    return nodes.reference("", "", text, refuri=page)


def plain_types(app, what, name, public, options, signature: str | None, result: str | None) -> tuple:
    """Leave out of a class's signature what pydantic adds to its types."""
    if what == "class" and "Annotated[" in (signature or ""):
        types, given = get_type_hints(public), inspect.signature(public)
        bare = [one.replace(annotation=types[one.name]) for one in given.parameters.values()]
        given = given.replace(parameters=bare, return_annotation=given.empty)
        signature = stringify_signature(given, unqualified_typehints=True)
    return signature, result


def visit_math(translator, node: nodes.Element) -> None:
    """Write mathematics as MathML, which browsers and screen readers know without a script."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    html = convert(node.astext(), display=display).replace(' stretchy="false"', "")  # brackets grow
    translator.body.append(f'<div class="math" tabindex="0">{html}</div>' if display == "block" else html)
    raise nodes.SkipNode


def setup(app) -> None:
    """Connect the above."""
    app.connect("source-read", prepare)
    app.connect("missing-reference", public_page)
    app.connect("autodoc-process-signature", plain_types)
    app.connect("autodoc-process-docstring", site_pages.docstring, priority=400)  # before napoleon
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))


LECTURES = site_pages.lectures(ROOT)
TERMS = site_pages.terms((ROOT / "notebooks/glossary.md").read_text(encoding="utf-8"))
FIGURES = site_pages.figures((ROOT / "figures/README.md").read_text(encoding="utf-8"))
