"""The interactive map as a page: what it holds, what it must not hold, and that nothing in it can act."""

import base64
import hashlib
import html
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvlp.show import scatter_page
from tests.methods.small import COLOURS, make_card, make_set

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> $x$"


def make_maps(n: int = 6, classname: str = "melanoma") -> pd.DataFrame:
    """n images and one text, two seeds; images are told by their number, the text has none."""
    names = [classname if i % 2 else "nevus" for i in range(n)] + [classname]
    one = pd.DataFrame({"what": ["image"] * n + ["class"], "classname": names, "text": "", "stage": ""})
    one["method"] = "CLIP"
    one["image"] = pd.array([*range(n), pd.NA], dtype="Int64")
    one = one.assign(x=np.linspace(-3, 5, n + 1), y=np.linspace(7, 9, n + 1) ** 2)
    one = one.assign(n_neighbors=5, min_dist=0.1, metric="cosine")
    return pd.concat([one.assign(seed=s, x=one["x"] * s) for s in (1, 2)], ignore_index=True)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def images(n: int = 6):
    return make_set(make_card(), [1, 0] * (n // 2))


def test_the_page_holds_the_first_map_and_the_rows_of_its_table():
    maps = make_maps()
    data = data_of(scatter_page(maps).html)
    assert data["row"] == [0, 1, 2, 3, 4, 5, 6]  # of seed 1 only; the text, which is rare, last
    assert min(data["x"]) == 0 and max(data["x"]) == 1
    order = np.argsort(maps["y"][:7])
    assert np.all(np.diff(np.array(data["y"])[order]) < 0)  # a page's y runs downwards
    assert data["image"] == [0, 1, 2, 3, 4, 5, None]
    assert [data["colours"][c] for c in data["colour"]] == maps["classname"][:7].tolist()
    assert [data["kinds"][k] for k in data["kind"]] == maps["what"][:7].tolist()
    told = [[c["values"][c["of"][6]] for c in data["columns"]]]
    assert told == [["what: class", "classname: melanoma", "", "method: CLIP", ""]]
    assert data["sheet"] is None and data["tile"] == [-1] * 7


def test_every_image_is_on_the_sheet_where_the_page_looks_for_it():
    data = data_of(scatter_page(make_maps(), images(), thumbnail=16).html)
    sheet = Image.open(io.BytesIO(base64.b64decode(data["sheet"]["url"].split(",")[1])))
    columns, rows = data["sheet"]["columns"], data["sheet"]["rows"]
    assert sheet.size == (16 * columns, 16 * rows) and columns * rows >= 6
    for image, tile in zip(data["image"], data["tile"], strict=True):
        if image is None:
            assert tile == -1
            continue
        left, top = tile % columns * 16, tile // columns * 16
        mean = np.asarray(sheet.crop((left, top, left + 16, top + 16))).mean(axis=(0, 1))
        assert np.argmin(((COLOURS - mean) ** 2).sum(axis=1)) == [1, 0][image % 2]
    few = data_of(scatter_page(make_maps(), images(), max_thumbnails=4).html)
    assert few["tile"] == [0, 1, 2, 3, -1, -1, -1]


def test_hostile_text_stays_text():
    page = scatter_page(make_maps(classname=HOSTILE), title=HOSTILE)
    assert HOSTILE in data_of(page.html)["colours"]
    assert page.html.count("<script") == page.html.count("</script>") == 2  # the data and the page's own
    assert "<img" not in page.html and html.escape(HOSTILE) in page.html
    shown = page._repr_html_()
    assert shown.count("<script") == 0 and shown.count("<iframe") == 1 and shown.count("<img") == 1
    inside = re.search(r'srcdoc="(.*?)"', shown, re.S)[1]
    assert html.unescape(inside) == page.html


def test_the_policy_allows_this_script_and_no_request():
    page = scatter_page(make_maps(), images()).html
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';") and f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?://|<link|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(", page)
    assert "${" not in page.replace(script, "")  # every part of the template is filled in
    assert 'sandbox="allow-scripts"' in scatter_page(make_maps())._repr_html_()


def test_no_id_of_an_image_is_on_the_page_and_a_licence_is_heeded():
    own = images()
    page = scatter_page(make_maps(), own)
    assert not [name for name in own.ids if name in page.html]
    assert "do not share it" in page.html  # the card says nothing of redistribution
    own.card = own.card.model_copy(update={"redistribution": True})
    assert "do not share it" not in scatter_page(make_maps(), own).html


def test_the_same_map_is_the_same_page_and_is_saved_whole(tmp_path):
    page = scatter_page(make_maps(), images())
    assert page.save(tmp_path / "map.html").read_text(encoding="utf-8") == page.html
    assert scatter_page(make_maps(), images()).html == page.html
    assert [path.name for path in tmp_path.iterdir()] == ["map.html"]


def test_without_a_script_there_is_a_picture():
    page = scatter_page(make_maps(), title="lesions")
    assert page.static().axes[0].get_title() == "lesions"
    picture = re.search(r'src="data:image/png;base64,(.*?)"', page._repr_html_())[1]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size[0] > 300


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="a point is of image 5, but there are 4; give its images"):
        scatter_page(make_maps(), images(4))
    with pytest.raises(ValueError, match="unknown column 'kind' in the map"):
        scatter_page(make_maps(), marker="kind")
