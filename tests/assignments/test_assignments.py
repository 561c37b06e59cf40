"""Assignments: what students get holds no solution, and grading takes points where it should."""

import builtins
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from assign import main, student_version
from gradescope import grade_submission, write_package
from grading import Sandbox, functions_of, grade_file, grade_folder, grade_task
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from tasks import BEGIN, END, HERE, REFUSED, load_assignment
from torch.nn.functional import cross_entropy

from medvlp import CoOp, TrainConfig, ZeroShot, load_card, load_clip, load_dataset
from medvlp.data.cards import DataCard
from medvlp.knowledge.symptoms.phrases import PhraseChecker
from medvlp.knowledge.symptoms.replies import ReplyError, parse_reply
from medvlp.methods.interventions import ConditionalLoReFT, LoReFT
from medvlp.methods.vip import merge
from medvlp.show import claims_of, counterfactual, counterfactual_summary, faithfulness, flip_all
from medvlp.show.explanations.controls import shuffled_claims
from medvlp.study import metrics
from medvlp.study.training.batches import make_optimizer

NAMES = sorted(path.stem for path in HERE.glob("A*.ipynb"))
POINTS = {"A1": 12, "A2": 14, "A3": 8, "A4": 18, "A5": 14, "A6": 12, "A7": 12}
CARD = {"name": "made-up", "title": "Made up", "modality": "a photo", "source": {"kind": "folder"}}
SEED = 20_26
each = pytest.mark.parametrize("name", NAMES)
students = cache(student_version)  # tests read it and leave it as it is


@pytest.fixture(scope="module")
def sandboxes(tmp_path_factory):
    """One child an assignment for all tests."""
    started = {}

    def get(name):
        if name not in started:
            started[name] = Sandbox(load_assignment(name), [HERE])
        return started[name]

    yield get
    for sandbox in started.values():
        sandbox.__exit__()


def save(path: Path, sources: list[str]) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)), encoding="utf-8")
    return path


def solved(name: str, **instead: str) -> list[str]:
    """The instructor's code cells, with these functions in place of some."""
    sources = [cell.source for cell in load_assignment(name).cells() if cell.cell_type == "code"]
    for task, source in instead.items():
        sources = [source if f"def {task}(" in old else old for old in sources]
    return sources


def with_body(name: str, task: str, body: str) -> str:
    signature = next(x for x in load_assignment(name).solution(task).splitlines() if x.startswith("def "))
    return "\n".join([signature, *(f"    {line}" for line in body.splitlines())])


def grade_body(name: str, task: str, body: str, path: Path, sandbox: Sandbox, seconds: float = 60.0) -> dict:
    """Grade one task of the instructor's version in which this task's function has another body."""
    assignment = dataclasses.replace(load_assignment(name), seconds=seconds)
    code, notes = functions_of(save(path, solved(name, **{task: with_body(name, task, body)})))
    assert notes == []
    one = next(t for t in assignment.tasks if t.name == task)
    return grade_task(assignment, one, code, sandbox, SEED)


def points(graded: dict) -> dict[str, int]:
    return {task["name"]: task["points"] for task in graded["tasks"]}


def said(graded: dict, task: str) -> str:
    return " ".join(next(t["lines"] for t in graded["tasks"] if t["name"] == task))


@each
def test_the_instructors_version_has_full_points_and_every_property(name, sandboxes):
    assignment = load_assignment(name)
    for seed in (1, 2, 3):
        graded = grade_file(assignment, assignment.master, sandboxes(name), seed)
        lines = [line for task in graded["tasks"] for line in task["lines"]]
        assert graded["points"] == graded["of"] == POINTS[name], lines
        assert all(line.startswith(("Right:", "Holds:")) for line in lines), lines


@each
def test_a_master_is_tidy_and_a_students_version_has_no_line_of_a_solution(name):
    assignment = load_assignment(name)
    for cell in assignment.cells():
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    notebook = students(name, 1)
    nbformat.validate(notebook)
    lines = {line.strip() for cell in notebook.cells for line in cell.source.splitlines()}
    secret = set()
    for task in assignment.tasks:
        solution = assignment.solution(task.name)
        secret |= {line.strip() for line in solution.split(BEGIN)[1].split(END)[0].splitlines()} - {""}
    for cell in assignment.cells():
        if "instructor" in cell.metadata.get("tags", []):
            secret |= {line.strip() for line in cell.source.splitlines()}
    assert len(secret) > 10 and not secret & lines
    assert not [line for line in lines if "SOLUTION" in line]


@each
def test_pages_and_master_agree_on_minutes_and_points(name):
    assignment = load_assignment(name)
    text = "\n".join(cell.source for cell in assignment.cells() if cell.cell_type == "markdown")
    parts = re.findall(r"^## \d\. .+ \((\d+) points, (\d+) minutes\)$", text, re.MULTILINE)
    points, minutes = zip(*(map(int, part) for part in parts), strict=True)
    assert list(points) == [task.points for task in assignment.tasks]
    hours = re.search(r"\*\*Time:\*\* (\d+) hours\. \*\*Points:\*\* (\d+)\b", text)
    assert sum(minutes) == 60 * int(hours[1]) and sum(points) == int(hours[2])
    teacher, pages = (HERE.parent / "teacher.md").read_text("utf-8"), (HERE / "README.md").read_text("utf-8")
    sums = [f"{sum(numbers)}: {' + '.join(map(str, numbers))}" for numbers in (minutes, points)]
    assert f"| {name} | {sums[0]} | {sums[1]} |" in teacher
    row = next(line for line in pages.splitlines() if line.startswith(f"| [{name}]"))
    assert row.endswith(f" | {sum(minutes)} | {sum(points)} |")
    weeks = teacher.partition("**12 weeks**")[2].partition("## Minutes")[0]
    assert re.search(rf"\| {name}\b", weeks), "the long plan uses every assignment"


@each
def test_a_students_version_checks_itself_and_another_seed_is_another_variant(name):
    one, two = students(name, 1), students(name, 2)
    tests = [[c.source for c in nb.cells if c.source.startswith("# Check ")] for nb in (one, two)]
    assert len(tests[0]) == len(load_assignment(name).tasks)
    assert not set(tests[0]) & set(tests[1])
    solution = "\n\n".join(solved(name))
    for test in tests[0] + tests[1]:
        exec(solution + "\n" + test, {"__name__": "notebook"})
    stubs = "\n\n".join(
        c.source for c in one.cells if c.cell_type == "code" and not c.source.startswith("# Check")
    )
    with pytest.raises(NotImplementedError, match="^write "):
        exec(stubs + "\n" + tests[0][0], {"__name__": "notebook"})


@each
def test_handed_in_empty_it_has_no_points_and_says_what_is_missing(name, tmp_path, sandboxes):
    path = tmp_path / "empty.ipynb"
    path.write_text(nbformat.writes(students(name, 1)), encoding="utf-8")
    graded = grade_file(load_assignment(name), path, sandboxes(name), SEED)
    assert graded["points"] == 0
    assert {line for task in graded["tasks"] for line in task["lines"]} == {"Missing: not written yet."}


@each
def test_the_visible_values_as_constants_have_no_points(name, tmp_path, sandboxes):
    instead = {}
    for cell in students(name, 1).cells:
        if cell.source.startswith("# Check "):
            task = cell.source.split()[2].rstrip(".")
            value = cell.source.partition("check(got, ")[2].rstrip(")") + ")" * cell.source.endswith("))")
            kind = "torch.tensor" if name == "A1" and task == "contrastive_loss" else ""
            instead[task] = with_body(name, task, f"return {kind}({value})")
    graded = grade_file(
        load_assignment(name), save(tmp_path / "a.ipynb", solved(name, **instead)), sandboxes(name), SEED
    )
    assert len(instead) == len(graded["tasks"]) and graded["points"] == 0


def wrong_answers(name: str) -> dict[str, dict[str, str]]:
    """Return the bodies of wrong functions by task and by what is wrong about them.

    The file has each as a body, or as changes of the instructor's: what stands there, and what instead.
    """
    wrong = yaml.safe_load((Path(__file__).parent / f"wrong_{name.lower()}.yaml").read_text(encoding="utf-8"))
    for task, bodies in wrong.items():
        solution = load_assignment(name).solution(task).split(BEGIN)[1].split(END)[0]
        for why, changes in bodies.items():
            if isinstance(changes, dict):
                bodies[why] = textwrap.dedent(solution)
                for old, new in changes.items():
                    assert old in solution, f"{task}: {why}: {old}"
                    bodies[why] = bodies[why].replace(old, new)
    return wrong


@each
def test_ten_wrong_answers_a_task_lose_its_points(name, tmp_path, sandboxes):
    wrong = wrong_answers(name)
    assert list(wrong) == [task.name for task in load_assignment(name).tasks]
    assert min(map(len, wrong.values())) >= 10
    for task, bodies in wrong.items():
        for why, body in bodies.items():
            graded = grade_body(name, task, body, tmp_path / "wrong.ipynb", sandboxes(name))
            assert graded["points"] == 0, f"{task}: {why}"
            assert "Wrong: the value" in graded["lines"][0], f"{task}: {why}: {graded['lines']}"


@pytest.mark.parametrize("wrong", ["divides by S (ddof 0)", "normal quantile", "one-sided quantile"])
def test_an_interval_that_is_too_narrow_does_not_hold_the_mean_often_enough(wrong, tmp_path, sandboxes):
    body = wrong_answers("A6")["t_interval"][wrong]
    graded = grade_body("A6", "t_interval", body, tmp_path / "s.ipynb", sandboxes("A6"))
    assert any(line.startswith("Does not hold: in simulations") for line in graded["lines"]), graded


@each
def test_a_wrong_answer_takes_no_points_from_the_other_tasks(name, tmp_path, sandboxes):
    """A task's outcome comes from its function alone, so one wrong answer a task stands for its ten."""
    assignment = load_assignment(name)
    full = {task.name: task.points for task in assignment.tasks}
    for task, bodies in wrong_answers(name).items():
        body = next(iter(bodies.values()))
        path = save(tmp_path / "wrong.ipynb", solved(name, **{task: with_body(name, task, body)}))
        assert points(grade_file(assignment, path, sandboxes(name), SEED)) == full | {task: 0}


def reference_of(name: str, task: str) -> Callable:
    return next(t.reference for t in load_assignment(name).tasks if t.name == task)


def test_the_reference_of_the_loss_is_the_library_s():
    from open_clip.loss import ClipLoss

    reference = reference_of("A1", "contrastive_loss")
    images, texts = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lengths = [x.norm(dim=-1, keepdim=True) for x in (images, texts)]
    right = ClipLoss()(images / lengths[0], texts / lengths[1], 9.0)
    assert reference(images.numpy(), texts.numpy(), 9.0)[0] == pytest.approx(right.item(), abs=1e-12)


def test_the_reference_of_the_calibration_error_is_the_package_s():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet([1, 1, 1], size=200), rng.integers(3, size=200)
    right = metrics.metric_values(labels, probabilities)["ECE"]
    reference = reference_of("A2", "calibration_error")
    assert reference(probabilities, labels, metrics.ECE_BINS) == pytest.approx(right, abs=1e-12)


def test_the_references_of_context_and_merge_are_the_package_s(clip):
    text, table = clip.model.text, clip.token_embedding.weight.detach()
    for csc in (False, True):
        coop, seen = CoOp(clip, load_card("phantom-derm"), n_ctx=3, csc=csc), []
        first = text.transformer.resblocks[0].ln_1
        hook = first.register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0]))
        coop.class_features()
        hook.remove()
        tokens = clip.tokenize([f"{name}." for name in coop.card.plain_names])
        x, eos = reference_of("A4", "with_context")(*(y.detach().numpy() for y in (tokens, coop.ctx, table)))
        x = x + text.positional_embedding[: x.shape[1]].detach().numpy()
        assert x == pytest.approx(seen[0].detach().numpy(), abs=1e-6)
        assert eos.tolist() == coop.tokens.argmax(dim=1).tolist()
    random = torch.Generator().manual_seed(0)
    args = [torch.randn(*shape, generator=random) for shape in ((3, 4, 5), (3, 5), (5, 5), (5, 5))]
    right, _ = merge(*args, torch.ones(3, 4, dtype=torch.bool))
    assert reference_of("A4", "merge")(*(x.numpy() for x in args)) == pytest.approx(right.numpy(), abs=1e-6)


def test_the_reference_of_the_loop_trains_by_the_recipe_of_the_package():
    space = {}
    exec("\n\n".join(solved("A4")), space)
    call = load_assignment("A4").tasks[3].calls(np.random.default_rng(0))[1]
    tensors = [torch.from_numpy(np.array(x)) for x in call[:-2]]
    f, labels, *_, batches, tokens, table, tower = tensors[:8]
    learned = [x.requires_grad_() for x in tensors[8:]]
    config = TrainConfig(epochs=len(batches), lr=call[-1])
    optimizer, states = make_optimizer(config, learned), []
    for epoch, rows in enumerate(batches, start=1):
        optimizer.param_groups[0]["lr"] = config.learning_rate(epoch)
        for step in rows:
            optimizer.zero_grad()
            logits = space["vip_logits"](f[step], tokens, table, tower, *learned, call[-2])
            cross_entropy(logits, labels[step]).backward()
            optimizer.step()
        states.append([x.detach().clone() for x in learned])
    _, val_losses, *kept = reference_of("A4", "train")(*call)
    for got, right in zip(kept, states[val_losses.argmin()], strict=True):
        assert got == pytest.approx(right.numpy(), abs=1e-9)


def test_the_references_of_the_edits_are_the_package_s():
    random = torch.Generator().manual_seed(0)
    h, f = (torch.randn(n, 6, generator=random, dtype=torch.float64) for n in (4, 3))
    plain, conditional = LoReFT(6, 2, generator=random), ConditionalLoReFT(6, 2, 6, generator=random)
    for edit, task, given in ((plain, "loreft", [h]), (conditional, "conditional_edit", [h, f])):
        args = [x.detach().numpy() for x in (*given, *edit.double().parameters())]
        assert reference_of("A5", task)(*args) == pytest.approx(edit(*given).detach().numpy(), abs=1e-12)


def test_the_references_of_the_shares_and_the_auroc_are_the_package_s():
    method = ZeroShot(load_clip("tiny"), load_card("phantom-derm"))
    flips = flip_all(method, load_dataset("phantom-derm", num_shots=2).test, n_images=12)
    names = [attribute.name for attribute in flips.world.attributes]
    known = claims_of(flips.world, method.symptoms)
    assert len(flips.phrases) == flips.scores.shape[2], "no two classes share a phrase"
    attributes = np.stack([flips.present(k) for k in range(len(names))], axis=1).astype(int)
    scores = [flips.scores[0], flips.scores[1:], attributes]
    shuffled = shuffled_claims(known, seed=3)
    turns = [[shuffled[p][1] != known[p][1] for p in known if known[p][0] == name][0] for name in names]
    order = [[names.index(shuffled[p][0]) for p in known if known[p][0] == name][0] for name in names]
    said = [[names.index(known[p][0]) for p in flips.phrases], [int(known[p][1]) for p in flips.phrases]]
    more, wrong = reference_of("A7", "counterfactual_shares")(*scores, *map(np.array, said))
    right = counterfactual_summary(counterfactual(flips, claims=known), n_bootstrap=10)
    assert more == pytest.approx(right["more"][:-1]) and wrong == pytest.approx(right["wrong"][:-1])
    right = counterfactual_summary(counterfactual(flips, claims=shuffled), n_bootstrap=10).loc["all"]
    got = reference_of("A7", "shuffled_net")(*scores, *said, [order], [turns])
    assert got == pytest.approx([right["more"] - right["wrong"]])
    rows = faithfulness(flips, claims=known, n_bootstrap=10).set_index("symptom")
    for j, (phrase, k, says) in enumerate(zip(flips.phrases, *said, strict=True)):
        args = (flips.scores[0, :, j], flips.scores[1 + k, :, j], attributes[:, k], says)
        assert reference_of("A7", "auroc_both_ways")(*args) == pytest.approx(rows.loc[phrase, "AUROC"])


def test_the_references_of_mcnemar_and_holm_are_the_library_s():
    rng = np.random.default_rng(0)
    for n in (5, 40, 300):
        a, b = rng.integers(2, size=(2, n))
        table = [[0, int((a > b).sum())], [int((a < b).sum()), 0]]
        assert reference_of("A6", "mcnemar_p")(a, b) == pytest.approx(mcnemar(table).pvalue, abs=1e-12)
    p = rng.random(12).round(1) / 9  # some are equal
    assert reference_of("A6", "holm_p")(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def test_what_a3_reads_and_refuses_is_what_the_package_does():
    rng = np.random.default_rng(0)
    read = reference_of("A3", "read_reply")
    more = ("- ", "<think>", "```python\n", "```JSON\n")  # what the package reads or leaves out
    for (reply,) in load_assignment("A3").tasks[0].calls(rng):
        if read(reply) is not REFUSED:
            plain = [" ".join(phrase.removesuffix(".").split()) for phrase in read(reply)]
            assert plain == parse_reply(reply)
        elif not reply.startswith(more):
            with pytest.raises(ReplyError):
                parse_reply(reply)
    for phrase, names in load_assignment("A3").tasks[1].calls(rng):
        said = reference_of("A3", "fault")(phrase, names)
        # The package lets numbers pass, counts a-b as a word, and finds plural forms.
        if said != "number" and "-" not in phrase and not re.search(r" and \w+s$", phrase):
            card = DataCard.model_validate(CARD | {"classes": [{"name": name} for name in names]})
            reason = PhraseChecker(card).check(names[0], [phrase])[0].reason or ""
            assert reason.startswith(said.replace("a class", "")) and bool(said) == bool(reason), phrase


def test_a_refusal_is_a_value_error_and_no_other(tmp_path, sandboxes):
    for error, of in (("ValueError", 3), ("json.JSONDecodeError", 3), ("TypeError", 0), ("SystemExit", 0)):
        args = '"", "", 0' if "JSON" in error else '"wrong"'
        body = f"try:\n    return right(reply)\nexcept ValueError:\n    raise {error}({args}) from None"
        right = load_assignment("A3").solution("read_reply").replace("def read_reply(", "def right(")
        sources = [*solved("A3", read_reply=with_body("A3", "read_reply", body)), right]
        path = save(tmp_path / "a.ipynb", sources)
        graded = grade_file(load_assignment("A3"), path, sandboxes("A3"), SEED)
        assert points(graded) == {"read_reply": of, "fault": 3, "keep": 2}, error
        lines = said(graded, "read_reply")
        assert (f"It raised {error}" in lines) == (of == 0) and ("Does not hold" in lines) == (of == 0), lines


def test_what_a_function_is_given_stays_as_it_was_where_the_task_says_so(tmp_path, sandboxes):
    body = wrong_answers("A4")["train"]["the start changed in place"]
    graded = grade_body("A4", "train", body, tmp_path / "a.ipynb", sandboxes("A4"))
    assert graded["points"] == 0 and graded["lines"][0].endswith("it was given: ctx, g, Wq, Wk.")


OS = "os = np.__builtins__['__import__']('os')\n"  # past the guard of imports; the audit hook is next
FORGED = """for pipe in range(3, 30):
    for printed, tried in ("0", "5"), ("Infinity", "[]"), ("[1]", "[]"):
        try:
            os.write(pipe, f'{{"whole": 1, "printed": {printed}, "tried": {tried}}}\\n'.encode())
        except OSError:
            break
return p"""
HOSTILE = {  # the body of holm_p, and what the feedback says
    "import os\nos._exit(0)": "os may not be used here",
    "().__class__.__base__.__subclasses__()\nreturn 1 / 0": "ZeroDivisionError",
    "return [0.0] * 10**12": "MemoryError",
    "return 'x' * 9_000_000": "sent more than",
    "return holm_p(p)": "RecursionError",
    "raise SystemExit(0)": "SystemExit",
    OS + "return os.listdir(os.sep)": "os.listdir",
    OS + "os.system('true')": "os.system",
    OS + "os.kill(os.getpid(), 9)": "os.kill",
    OS + "os._exit(3)": "It ended its process",
    "return np.array(['<script>alert(1)</script>'])": "Wrong",
    "raise ValueError('<script>alert(1)</script>')": "<script>",
    OS + FORGED: "Wrong",
    "return [10**400] * len(p)": "Wrong",
    "raise ValueError('\\ud800')": "\\ud800",
}
# The globals of the module os, past all guards but the audit hook; it works in every assignment.
ESCAPE = "os = next(c for c in object.__subclasses__() if c.__name__ == '_wrap_close').__init__.__globals__\n"
SOCKET = "os['sys'].modules['builtins'].__import__('socket').create_connection(('127.0.0.1', 9))"
ANYWHERE = {  # the body of any function, and what the feedback says
    f"return open({str(HERE / 'checks' / 'a1.py')!r}).read()": "open: a submission may use no files",
    ESCAPE + SOCKET: "PermissionError: socket.",
    ESCAPE + "os['_exit'](3)": "It ended its process",
    "print('x' * 1_000_000)": "printed ",
    "while True:\n    pass": "did not end within",
}


@each
def test_one_that_dies_loops_floods_reads_tests_or_the_network_is_graded(name, tmp_path, sandboxes):
    task = load_assignment(name).tasks[-1].name
    for body, says in ANYWHERE.items():
        seconds = 0.5 if body.startswith("while") else 60.0
        graded = grade_body(name, task, body, tmp_path / "hostile.ipynb", sandboxes(name), seconds)
        assert graded["points"] == 0 and says in " ".join(graded["lines"]), (body, graded["lines"])


def test_hostile_submissions_are_graded_and_the_feedback_says_what_they_did(tmp_path, sandboxes):
    sandbox, path = sandboxes("A6"), tmp_path / "hostile.ipynb"
    for body, says in HOSTILE.items():
        graded = grade_body("A6", "holm_p", body, path, sandbox)
        assert graded["points"] == 0 and says in " ".join(graded["lines"]), (body, graded["lines"])
    exits = OS + "os._exit(3)"
    path = save(path, solved("A6", holm_p=with_body("A6", "holm_p", exits)))
    graded = grade_file(load_assignment("A6"), path, sandbox, SEED)
    assert points(graded) == {"t_interval": 3, "paired_bootstrap": 3, "mcnemar_p": 3, "holm_p": 0}


def test_where_namespaces_exist_the_child_has_no_network_and_no_view_of_the_checks(sandboxes):
    apart = sandboxes("A6").apart
    if not apart:
        pytest.skip("this machine gives a user no namespaces")
    assert subprocess.run([*apart, "ls", str(HERE)], capture_output=True, check=True).stdout == b""
    links = subprocess.run(
        [*apart, "cat", "/proc/net/dev"], capture_output=True, check=True, text=True
    ).stdout
    assert [line.split(":")[0].strip() for line in links.splitlines()[2:]] == ["lo"]


def test_patching_builtins_or_numpy_earns_nothing(tmp_path, sandboxes):
    patch = "import builtins\nbuiltins.abs = lambda x: 0\nimport numpy\nnumpy.allclose = lambda *a, **k: True"
    inside = "np.allclose = np.isclose = lambda *a, **k: True\nreturn p"
    path = save(tmp_path / "p.ipynb", [patch, *solved("A6", holm_p=with_body("A6", "holm_p", inside))])
    before = builtins.abs
    graded = grade_file(load_assignment("A6"), path, sandboxes("A6"), SEED)
    assert points(graded)["holm_p"] == 0 and graded["points"] == 9
    assert builtins.abs is before


def test_deleted_cells_renamed_functions_and_damaged_files_are_said(tmp_path, sandboxes):
    assignment, sandbox = load_assignment("A6"), sandboxes("A6")
    renamed = solved("A6", holm_p=assignment.solution("holm_p").replace("def holm_p(", "def holms_p("))
    graded = grade_file(assignment, save(tmp_path / "r.ipynb", renamed), sandbox, SEED)
    assert graded["points"] == 9 and "There is holms_p: was it renamed?" in said(graded, "holm_p")
    without = [source for source in solved("A6") if "def mcnemar_p(" not in source]
    graded = grade_file(assignment, save(tmp_path / "d.ipynb", without), sandbox, SEED)
    assert graded["points"] == 9 and "Was its cell deleted?" in said(graded, "mcnemar_p")
    broken = [*solved("A6"), "def oops(:", f"def deep():\n    return {'-' * 1000}1", "x = {[]: 1}"]
    graded = grade_file(assignment, save(tmp_path / "b.ipynb", broken), sandbox, SEED)
    assert graded["points"] == 12 and "is not Python" in graded["notes"][0]
    for text in ("", "{", "[]", json.dumps({"cells": 3}), "\0" * 50, "[" * 100_000):
        path = tmp_path / "x.ipynb"
        path.write_text(text)
        graded = grade_file(assignment, path, sandbox, SEED)
        assert graded["points"] == 0 and "no notebook that can be read" in graded["notes"][0], text[:20]


def test_of_a_notebook_only_functions_imports_and_constants_are_taken(tmp_path):
    sources = [
        "%matplotlib inline\nimport math\nEPS: float = -1e-8\nSIZES = (2, 3)\nHALF = 1 - math.pi / 2",
        "def f(x):\n    return x",
        "twice = lambda x: f(x) * 2\nf(1 / 0)\nx = [f(2)]",
    ]
    code, notes = functions_of(save(tmp_path / "a.ipynb", sources))
    constants = ["EPS: float = -1e-08", "SIZES = (2, 3)", "HALF = 1 - math.pi / 2"]
    assert code == ["import math", *constants, "def f(x):\n    return x", "twice = lambda x: f(x) * 2"]
    assert notes == []


def test_feedback_says_that_the_result_of_a_call_is_not_taken(tmp_path, sandboxes):
    uses = with_body("A6", "holm_p", "return LEVEL * p")
    for level, says in (("0.5", False), ("float(0.5)", True)):
        path = save(tmp_path / "a.ipynb", [f"LEVEL = {level}", *solved("A6", holm_p=uses)])
        lines = said(grade_file(load_assignment("A6"), path, sandboxes("A6"), SEED), "holm_p")
        assert ("no result of a call" in lines) == ("'LEVEL' is not defined" in lines) == says, lines


@pytest.fixture(scope="module")
def graded_class(tmp_path_factory):
    """Thirty submissions, of which the grading was killed, one was handed in again, and it went on."""
    folder = tmp_path_factory.mktemp("class")
    bad = with_body("A6", "holm_p", "raise ValueError('<script>alert(1)</script>')")
    for number in range(30):
        sources = solved("A6") if number % 2 else solved("A6", holm_p=bad)
        save(folder / "in" / (f"={number:02}" + "\x1b[2J" * (number == 29)) / "A6.ipynb", sources)
    save(folder / "in" / "__MACOSX" / "=00" / "._A6.ipynb", [])
    paths = [str(folder / "in"), str(folder / "out")]
    command = [sys.executable, str(HERE / "assign.py"), "grade", "A6", *paths]
    results = folder / "out" / "results"
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    end = time.monotonic() + 300
    while len(list(results.glob("*.json"))) < 3 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    said = process.communicate()[1]
    first = {path: path.stat().st_mtime_ns for path in results.glob("*.json")}
    assert 3 <= len(first) <= 30, said
    save(folder / "in" / "=00" / "A6.ipynb", solved("A6"))
    return folder, first, grade_folder(load_assignment("A6"), folder / "in", folder / "out")


@pytest.mark.slow
def test_thirty_submissions_are_one_command_that_goes_on_after_a_kill(graded_class):
    folder, first, table = graded_class
    assert table["points"].tolist() == [12, 12] + [9, 12] * 14
    again = [path for path, when in first.items() if path.stat().st_mtime_ns != when]
    assert len(again) == 1, "only the one that was handed in again is graded again"
    assert json.loads(again[0].read_text())["name"] == "=00/A6"
    assert pd.read_csv(folder / "out" / "grades.csv").equals(table)
    assert len(list((folder / "out" / "feedback").rglob("*.html"))) == 30


def test_a_folder_of_grades_is_of_one_assignment(graded_class):
    folder, _, _ = graded_class
    with pytest.raises(ValueError, match="out holds the grades of A6; give A7 a folder of its own"):
        grade_folder(load_assignment("A7"), folder / "in", folder / "out")


def test_feedback_escapes_what_a_student_wrote(graded_class):
    folder, _, table = graded_class
    page = (folder / "out" / "feedback" / "=02" / "A6.html").read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert table["submission"].tolist()[2::27] == ["'=02/A6", "'=29\\x1b[2J/A6"]


def test_the_package_for_gradescope_grades_a_submission_there(tmp_path):
    root = tmp_path / "autograder"
    with zipfile.ZipFile(write_package("a6", tmp_path, seed=3)) as package:
        package.extractall(root / "source")
    names = {path.name for path in (root / "source").rglob("*.*")}
    assert {"setup.sh", "requirements.lock", "A6.ipynb", "a6.py"} <= names and "A1.ipynb" not in names
    assert [name for name in names if re.fullmatch(r"medvlp-.+\.whl", name)]
    (root / "results").mkdir()
    (root / "venv").symlink_to(sys.prefix)  # what setup.sh makes
    wrong = with_body("A6", "holm_p", "raise TypeError('<b>\\ud800')")
    path = save(root / "submission" / "my work.ipynb", solved("A6", holm_p=wrong))
    subprocess.run(["sh", root / "source" / "run_autograder", root], check=True, cwd=root)
    result = json.loads((root / "results" / "results.json").read_text())
    assert [(test["name"], test["score"], test["max_score"]) for test in result["tests"]] == [
        *(("t_interval", 3, 3), ("paired_bootstrap", 3, 3), ("mcnemar_p", 3, 3), ("holm_p", 0, 3))
    ]
    assert "It raised TypeError: <b>\\ud800" in result["tests"][3]["output"]
    assert result["output_format"] == result["tests"][3]["output_format"] == "text"
    save(path.with_name("other.ipynb"), [])
    grade_submission("A6", 3, root)
    result = json.loads((root / "results" / "results.json").read_text())
    assert result["score"] == 0 and "Hand in one notebook. Here are 2." in result["output"]


def test_unknown_assignments_and_empty_folders_are_said(tmp_path, monkeypatch):
    for name, says in (
        ("A99", "no assignment 'A99'; there are A1, A2, "),
        ("a6", f"no notebooks .* in {tmp_path}"),
    ):
        monkeypatch.setattr(sys, "argv", ["assign.py", "grade", name, str(tmp_path), str(tmp_path / "out")])
        with pytest.raises(SystemExit, match=says):
            main()
