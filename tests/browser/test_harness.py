"""The harness itself: it would see a cell that fails and a console that complains."""

import pytest


def test_failing_cells_and_console_errors_are_seen(lab):
    page = lab.open(["1 + 1", "1 / 0"])
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        page.run()
    assert page.output(0).inner_text().split() == ["[1]:", "2"]
    assert page.errors == []
    page.page.evaluate("() => { console.error('first'); alert('second'); }")
    assert page.errors == ["first", "dialog: second"]
