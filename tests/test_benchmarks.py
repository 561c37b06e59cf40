"""The commands that measure: what they need is there, and what they tell is whole."""

import re

import medvlp
from tests.benchmarks import on_gpu, waiting_times


def test_the_gpu_script_takes_the_same_way_without_one():
    for of_method, speed in ((on_gpu.of_vip, "images a second"), (on_gpu.of_cilmp, "share of peak")):
        facts = of_method(2, "fp32", rounds=1)
        assert facts["seconds"] > 0 and facts[speed] > 0
        assert on_gpu.CUDA or facts["launches"] is None


def test_the_folders_that_are_timed_are_data_sets(tmp_path):
    card = waiting_times.folder_of(20, tmp_path / "twenty")
    data = medvlp.load_dataset(card, root=card.parent)
    assert [len(part) for part in (data.train, data.val, data.test)] == [14, 2, 4]


def test_no_long_wait_is_without_a_progress_bar():
    table = waiting_times.PAGE.read_text("utf-8").split("waiting times -->")[1]
    rows = re.findall(r"^\| (.+?) +\| +([\d.]+) +\| (\w*) *\|$", table, re.M)
    assert len(rows) >= 12
    silent = [what for what, seconds, bar in rows if float(seconds) > 10 and not bar]
    assert not silent, silent
