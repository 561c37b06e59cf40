import subprocess
import sys

import pytest

import medvlp
import medvlp.show
from medvlp.methods import METHODS


@pytest.mark.parametrize("package", [medvlp, medvlp.show], ids=lambda package: package.__name__)
def test_every_public_name_is_there(package):
    for name in package.__all__:
        assert getattr(package, name).__name__ == name


def test_every_method_is_a_public_name():
    assert set(METHODS) <= set(medvlp.__all__)


@pytest.mark.parametrize(
    ("package", "misspelt", "right"),
    [(medvlp, "load_dataste", "load_dataset"), (medvlp.show, "show_image", "show_images")],
)
def test_an_unknown_name_suggests_the_nearest(package, misspelt, right):
    said = rf"unknown name '{misspelt}' in {package.__name__}; did you mean '{right}'"
    with pytest.raises(AttributeError, match=said):
        getattr(package, misspelt)


def test_importing_medvlp_loads_nothing_heavy():
    code = (
        "import sys, medvlp.show;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'matplotlib', 'ipywidgets')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
