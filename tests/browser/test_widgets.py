"""The widgets in a real JupyterLab, by keyboard and mouse: what appears, and a console without errors."""

import re
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is missing").expect

SETUP = """
import copy
import medvlp
from medvlp.data.cards import ClassInfo
from medvlp.show import InterventionExplorer, PhantomLab, SymptomExplorer, TrainingMonitor

clip = medvlp.load_clip("tiny", device="cpu")
data = medvlp.load_dataset("phantom-derm")
zero, vip = medvlp.ZeroShot(clip, data.card), medvlp.ViP(clip, data.card)
"""
HOSTILE = """
bold = "<i onclick=alert(1)>nevus</i> $x_1$"
image = "<img src=x onerror='window.hurt=2'> dots"
phrases = ["<script>window.hurt = 1</script> spots", image, "$x^2$ rings"]
card = data.card.model_copy(update={"classes": [ClassInfo(name="melanoma"), ClassInfo(name=bold)]})
images = copy.copy(data.test)
images.card = card
method = medvlp.ZeroShot(clip, card, symptoms={"melanoma": phrases, bold: ["brown"]})
hostile = SymptomExplorer(method, images)
hostile
"""
TRAINING = """
config = medvlp.TrainConfig(epochs=3, views=0)
monitor = TrainingMonitor(every=0)
history = medvlp.fit(vip, data.train, data.val, config, callbacks=[monitor], progress=False)
"""
CELLS = [
    SETUP,
    "SymptomExplorer(zero, data.test, 1)",
    HOSTILE,
    'PhantomLab({"zero-shot": zero, "ViP": medvlp.ViP(clip, data.card)}, seed=1)',
    "InterventionExplorer(medvlp.CILMP(clip, data.card), data.test)",
    TRAINING,
    """from IPython.display import HTML
from medvlp.data.html import literal
HTML(f"<p>$x^3$, but {literal('$y^3$')}</p>")""",  # output that MathJax typesets
    "hostile.table()",
]
CONTRAST = """
element => {
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number)
    .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let back = element;
  while (back && /rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(back).backgroundColor))
    back = back.parentElement;
  const pair = [getComputedStyle(element).color, getComputedStyle(back).backgroundColor].map(light);
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}
"""


@pytest.fixture(scope="module")
def page(lab: Any) -> Any:
    """All widgets in one notebook, run from top to bottom."""
    page = lab.open(CELLS)
    page.run()
    return page


def handle(cell: Any, name: str) -> Any:
    """What of a slider takes the keyboard's focus."""
    return cell.locator(".widget-slider", has_text=re.compile(rf"^\s*{name}")).locator(".noUi-handle")


def button(cell: Any, text: str) -> Any:
    return cell.locator("button.jupyter-button", has_text=text)


def test_symptom_explorer_by_mouse_and_keyboard(page, tmp_path):
    cell = page.output(1)
    veil, status = button(cell, "a blue-white veil"), cell.locator("[role=status]")
    expect(status).to_contain_text("Decision: nevus")
    veil.click()
    expect(status).to_contain_text("Decision: melanoma")
    expect(status).to_contain_text("It has moved")
    expect(veil).to_contain_text("✗")
    page.screenshot(tmp_path / "one_left_out.png")
    page.press("Space")  # the button has kept the focus
    expect(veil).to_contain_text("✓")
    expect(status).to_contain_text("Decision: nevus")
    page.press("Tab", "Enter")
    expect(button(cell, "✗ several different colors")).to_be_focused()

    handle(cell, "image").focus()
    page.press("ArrowRight")
    expect(cell.locator("img")).to_have_attribute("alt", "image 2 of phantom-derm")

    cell.get_by_label("symptom", exact=True).fill("brown dots")
    page.press("Tab", "Enter")
    expect(button(cell, "✓ brown dots")).to_have_count(1)
    button(cell, "Reset").click()
    expect(button(cell, "brown dots")).to_have_count(0)
    expect(button(cell, "✗")).to_have_count(0)
    assert page.errors == []


def test_names_and_symptoms_of_html_script_and_mathematics_show_as_text(page, tmp_path):
    cell = page.output(2)
    expect(button(cell, "✓ <img src=x onerror='window.hurt=2'> dots")).to_have_count(1)
    expect(button(cell, "✓ $x^2$ rings")).to_have_count(1)
    button(cell, "✓ <script>window.hurt = 1</script> spots").click()
    expect(button(cell, "✗ <script>window.hurt = 1</script> spots")).to_have_count(1)
    cell.get_by_label("symptom", exact=True).fill("<b>bold</b> $y$")
    cell.get_by_label("symptom", exact=True).blur()
    button(cell, "Add").click()
    expect(button(cell, "✓ <b>bold</b> $y$")).to_have_count(1)
    button(cell, "Add").click()  # there is nothing to add
    expect(cell.locator("[role=alert]")).to_contain_text("the symptom is empty")
    expect(cell).to_contain_text("<i onclick=alert(1)>nevus</i> $x_1$: mean")
    expect(page.output(6).locator("mjx-container")).to_have_count(1)  # so it is at work
    expect(page.output(6)).to_contain_text("but $y^3$")
    expect(page.output(7)).to_contain_text("$x^2$ rings")
    expect(page.output(7).locator("mjx-container")).to_have_count(0)
    assert cell.locator("mjx-container, script, i, b, img[src=x]").count() == 0
    assert page.page.evaluate("window.hurt") is None
    cell.scroll_into_view_if_needed()
    page.screenshot(tmp_path / "hostile.png")
    assert page.errors == []


def test_phantom_lab_by_keyboard_and_in_the_dark_theme(page, tmp_path):
    cell = page.output(3)
    status, picture = cell.locator("[role=status]"), cell.locator("img")
    expect(picture).to_have_attribute("alt", re.compile("^phantom 1: .*veil 100,"))
    pixels, before = picture.get_attribute("src"), status.inner_text()
    handle(cell, "veil").focus()
    page.press(*10 * ["ArrowLeft"])
    expect(picture).to_have_attribute("alt", re.compile("^phantom 1: .*veil 0,"))
    expect(status).to_contain_text("zero-shot: nevus (at the start melanoma)")
    assert picture.get_attribute("src") != pixels
    veil = cell.locator("tr", has_text="a blue-white veil")
    expect(veil).to_contain_text("(-0.")
    cell.scroll_into_view_if_needed()
    page.screenshot(tmp_path / "light.png")
    page.dark()
    for text in (veil.locator("td").first, status.locator("span"), cell.locator("p span")):
        assert text.evaluate(CONTRAST) > 4.5
    page.screenshot(tmp_path / "dark.png")
    button(cell, "Reset").click()
    expect(status).to_have_text(before)
    cell.get_by_label("phantom", exact=True).fill("5")
    page.press("Enter")
    expect(picture).to_have_attribute("alt", re.compile("^phantom 5: "))
    assert page.errors == []


def test_intervention_explorer_by_keyboard(page, tmp_path):
    cell = page.output(4)
    caption, first = cell.locator("caption"), cell.locator("tbody tr").first.locator("td")
    expect(caption).to_contain_text("now: rank 8 of 8")
    without, now, trained, angle = (first.nth(column) for column in (1, 2, 3, 4))
    expect(now).to_have_text(trained.inner_text())
    turned = angle.inner_text()
    handle(cell, "rank kept").focus()
    page.press(*7 * ["ArrowLeft"])
    expect(caption).to_contain_text("now: rank 1 of 8")
    expect(angle).not_to_have_text(turned)
    assert now.inner_text() not in (without.inner_text(), trained.inner_text())
    cell.get_by_label("edit on").focus()
    page.press("Space")
    expect(caption).to_contain_text("now: edit off")
    expect(now).to_have_text(without.inner_text())
    expect(angle).to_have_text("0.00°")
    cell.scroll_into_view_if_needed()
    page.screenshot(tmp_path / "off.png")
    handle(cell, "image").focus()
    page.press("ArrowRight")
    expect(cell.locator("img")).to_have_attribute("alt", "image 1 of phantom-derm")
    assert page.errors == []


def unfold_the_table(page: Any, cell: Any, epochs: int) -> None:
    """By keyboard, in a training monitor: one status, one picture, and a row for each epoch."""
    expect(cell.locator("[role=status]")).to_have_count(1)
    expect(cell.locator("[role=status]")).to_contain_text(f"epoch {epochs}: lr")
    expect(cell.locator("img")).to_have_count(1)  # drawn anew in its place
    assert cell.locator("img").evaluate("one => one.naturalWidth") > 200
    expect(cell.locator("tbody tr").last).to_be_hidden()
    cell.locator("summary").focus()
    page.press("Enter")
    expect(cell.locator("tbody tr")).to_have_count(epochs)
    expect(cell.locator("tbody tr").last).to_be_visible()


def test_training_monitor_is_one_output_whose_table_unfolds(page, tmp_path):
    unfold_the_table(page, page.output(5), epochs=3)
    page.screenshot(tmp_path / "trained.png")
    assert page.errors == []
