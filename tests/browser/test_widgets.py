"""The widgets in a real JupyterLab, by keyboard and mouse: what appears, and a console without errors."""

import re

SETUP = """
import medvlp
from medvlp.show.widgets import InterventionExplorer, PhantomLab, SymptomExplorer, TrainingMonitor
clip = medvlp.load_clip("tiny", device="cpu")
data = medvlp.load_dataset("phantom-derm")
zero = medvlp.ZeroShot(clip, data.card)
"""
HOSTILE = """
import copy
from medvlp.data.cards import ClassInfo
bold = "<i onclick=alert(1)>nevus</i> $x_1$"
phrases = ["<script>window.hurt = 1</script> spots", "<img src=x onerror='window.hurt = 2'> dots", "$x^2$ rings"]
card = data.card.model_copy(update={"classes": [ClassInfo(name="melanoma"), ClassInfo(name=bold)]})
images = copy.copy(data.test)
images.card = card
method = medvlp.ZeroShot(clip, card, symptoms={"melanoma": phrases, bold: ["brown"]})
explorer = SymptomExplorer(method, images)
explorer
"""
LUMINANCE = """
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


def status(page) -> str:
    """What a screen reader is told."""
    return page.page.locator("[role=status]").last.inner_text()


def press(page, key: str, times: int = 1) -> None:
    for _ in range(times):
        page.page.keyboard.press(key)
    page.settled()


def focus_slider(page, name: str) -> None:
    page.page.locator(".widget-slider", has_text=re.compile(rf"^\s*{name}")).locator(".noUi-handle").focus()


def contrast(page, selector: str) -> float:
    return min(page.page.locator(selector).nth(i).evaluate(LUMINANCE) for i in range(3))


def test_symptom_explorer_by_mouse_and_keyboard(lab, tmp_path):
    page = lab.open([SETUP, "explorer = SymptomExplorer(zero, data.test, 3)\nexplorer"])
    page.run()
    veil = page.page.locator("button", has_text="a blue-white veil")
    veil.wait_for()
    before = status(page)
    veil.click()
    page.settled()
    assert "Decision: melanoma" in status(page) and "Decision: nevus" in before
    assert veil.inner_text().startswith("✗")
    page.screenshot(tmp_path / "one_left_out.png")

    press(page, "Space")  # the button has kept the focus
    assert veil.inner_text().startswith("✓") and status(page) == before
    press(page, "Tab")
    press(page, "Enter")
    assert page.page.evaluate("document.activeElement.innerText") == "✗ several different colors"

    focus_slider(page, "image")
    press(page, "ArrowRight")
    assert page.page.locator("img[alt='image 4 of phantom-derm']").count() == 1

    page.page.get_by_label("symptom", exact=True).fill("brown dots")
    press(page, "Tab")
    press(page, "Enter")
    assert page.page.locator("button", has_text="✓ brown dots").count() == 1
    page.page.locator("button", has_text="Reset").click()
    page.settled()
    assert page.page.locator("button", has_text="brown dots").count() == 0
    for name in ("a large diameter", "a small diameter"):
        assert page.page.locator("button", has_text=name).inner_text().startswith("✓")
    assert page.errors == []


def test_names_and_symptoms_of_html_script_and_mathematics_show_as_text(lab, tmp_path):
    page = lab.open([SETUP, HOSTILE])
    page.run()
    page.page.locator("button", has_text="$x^2$ rings").wait_for()
    for text in ("<script>window.hurt = 1</script> spots", "<img src=x onerror='window.hurt = 2'> dots"):
        assert page.page.locator("button", has_text=text).count() == 1
    page.page.locator("button", has_text="spots").click()
    page.settled()
    page.page.get_by_label("symptom", exact=True).fill("<b>bold</b> $y$")
    page.page.locator("button", has_text="Add").click()
    page.settled()
    page.page.locator("button", has_text="Add").click()  # nothing to add: an error message
    page.settled()
    shown = page.page.locator(".jupyter-widgets.widget-container").first
    assert "<i onclick=alert(1)>nevus</i> $x_1$" in shown.inner_text()
    page.page.wait_for_timeout(1000)  # MathJax is loaded when it is first needed
    assert shown.locator("mjx-container, script, i, b, img[src=x]").count() == 0
    assert page.page.evaluate("window.hurt") is None
    page.screenshot(tmp_path / "hostile.png")
    assert page.errors == []


def test_phantom_lab_by_keyboard_and_in_the_dark_theme(lab, tmp_path):
    methods = "{'zero-shot': zero, 'ViP': medvlp.ViP(clip, data.card)}"
    page = lab.open([SETUP, f"lab = PhantomLab({methods}, seed=1)\nlab"])
    page.run()
    page.page.locator("img[alt^='phantom 1']").wait_for()
    picture, before = page.page.locator("img[alt^='phantom 1']").get_attribute("src"), status(page)
    focus_slider(page, "large")
    press(page, "ArrowLeft", 10)
    assert page.page.locator("img[alt*='large 0,']").count() == 1
    assert page.page.locator("img[alt^='phantom 1']").get_attribute("src") != picture
    assert status(page) != before and "(at the start" in status(page)
    assert "Symptom scores" in page.page.locator("table").last.inner_text()
    page.screenshot(tmp_path / "light.png")
    page.dark()
    page.screenshot(tmp_path / "dark.png")
    assert contrast(page, ".widget-html td .tex2jax_ignore") > 4.5
    page.page.locator("button", has_text="Reset").click()
    page.settled()
    assert status(page) == before
    number = page.page.get_by_label("phantom", exact=True)
    number.fill("5")
    press(page, "Enter")
    assert page.page.locator("img[alt^='phantom 5']").count() == 1
    assert page.errors == []


def test_intervention_explorer_by_keyboard(lab, tmp_path):
    page = lab.open(
        [SETUP, "explorer = InterventionExplorer(medvlp.CILMP(clip, data.card), data.test)\nexplorer"]
    )
    page.run()
    table = page.page.locator(".widget-html table")
    table.wait_for()
    assert "now: rank 8 of 8" in table.inner_text()
    now = table.locator("tbody tr").first.locator("td")
    assert now.nth(2).inner_text() == now.nth(3).inner_text() != now.nth(1).inner_text()
    focus_slider(page, "rank kept")
    press(page, "ArrowLeft", 7)
    assert "now: rank 1 of 8" in table.inner_text()
    assert now.nth(2).inner_text() not in (now.nth(1).inner_text(), now.nth(3).inner_text())
    page.page.get_by_label("edit on").focus()
    press(page, "Space")
    assert "now: edit off" in table.inner_text() and now.nth(2).inner_text() == now.nth(1).inner_text()
    page.screenshot(tmp_path / "off.png")
    focus_slider(page, "image")
    press(page, "ArrowRight", 2)
    assert page.page.locator("img[alt='image 2 of phantom-derm']").count() == 1
    assert page.errors == []


def test_training_monitor_fills_and_its_table_unfolds(lab, tmp_path):
    train = """
    vip = medvlp.ViP(clip, data.card)
    config = medvlp.TrainConfig(epochs=3, views=1)
    monitor = TrainingMonitor(every=0)
    history = medvlp.fit(vip, data.train, data.val, config, callbacks=[monitor], progress=False)
    """
    page = lab.open([SETUP, "\n".join(line.strip() for line in train.splitlines())])
    page.run()
    page.page.locator("summary").wait_for()
    assert status(page).startswith("epoch 3: lr")
    assert page.page.locator("img[alt^='curves of training']").count() == 1  # one output, drawn anew
    page.page.locator("summary").focus()
    page.page.keyboard.press("Enter")
    assert page.page.locator("details tbody tr").count() == 3
    assert page.page.locator("details tbody tr").last.is_visible()
    page.screenshot(tmp_path / "trained.png")
    assert page.errors == []
