"""Phantom worlds: images whose visual attributes, and so whose best possible accuracy, are known.

A world draws a class y evenly, each attribute a_k independently with P(a_k | y), and an image from the
attributes and from nuisance that tells nothing of the class. So the posterior is naive Bayes, exactly:

    P(y | a)  is proportional to  prod_k P(a_k | y)

Attributes differ in how much they tell; some tell nothing although a textbook lists them. That is
the point: the plain mean over a list of symptoms is then not the best rule, and weights can be learned.
Nothing here is medical evidence.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from medvlp.data.drawing import Draws, draw_cxr, draw_derm, draw_fundus
from medvlp.data.names import unknown_name

CHUNK = 64  # images drawn at a time: small enough to stay in the processor's cache


@dataclass(frozen=True)
class Attribute:
    """One thing that can be seen, how often each class shows it, and how people say it.

    The first wording of each tuple is the plainest; captions draw among all of them.
    """

    name: str
    probability: tuple[float, ...]  # P(present | class), in the order of the classes
    present: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Latents:
    """What n images are made of: labels (n,), attributes (n, K) bool, seeds (n,) of the nuisance."""

    labels: Tensor
    attributes: Tensor
    seeds: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> "Latents":
        return Latents(self.labels[index], self.attributes[index], self.seeds[index])

    def with_attribute(self, k: int, value: bool | Tensor) -> "Latents":
        """The same images but for attribute k, which becomes `value` (a bool, or (n,) bool)."""
        attributes = self.attributes.clone()
        attributes[:, k] = value
        return replace(self, attributes=attributes)


@dataclass(frozen=True)
class World:
    """Classes, attributes and the pictures that they make."""

    name: str
    classnames: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    openings: tuple[str, ...]  # how a caption may begin
    draw: Callable[[dict[str, Tensor], Draws], Tensor]

    @cached_property
    def probability(self) -> Tensor:
        """P(present | class), (n_cls, K) float64."""
        return torch.tensor([a.probability for a in self.attributes], dtype=torch.float64).T.contiguous()

    def index(self, attribute: str) -> int:
        """The column of an attribute. ValueError names the choices."""
        names = [a.name for a in self.attributes]
        if attribute not in names:
            raise ValueError(unknown_name("attribute", attribute, names, f"the {self.name} world"))
        return names.index(attribute)

    def sample(self, n: int, seed: int) -> Latents:
        """Draw n images' latents; the first n of a longer draw are not the same images."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(len(self.classnames), (n,), generator=generator)
        chance = torch.rand(n, len(self.attributes), dtype=torch.float64, generator=generator)
        seeds = torch.randint(2**62, (n,), generator=generator)
        return Latents(labels, chance < self.probability[labels], seeds)

    def render(self, latents: Latents, size: int = 64) -> Tensor:
        """Draw the images: (n, 3, size, size) uint8. The same latents give the same pixels."""
        if size < 16:
            raise ValueError(f"phantoms need at least 16 pixels a side, got {size}.")
        images = torch.empty(len(latents), 3, size, size, dtype=torch.uint8)
        for start in range(0, len(latents), CHUNK):
            part = latents[start : start + CHUNK]
            present = part.attributes.float()[:, :, None, None]  # (chunk, K, 1, 1)
            on = {a.name: present[:, k] for k, a in enumerate(self.attributes)}
            images[start : start + CHUNK] = self.draw(on, Draws(part.seeds, size))
        return images

    def posterior(self, attributes: Tensor) -> Tensor:
        """P(class | attributes) by Bayes' rule: (n, K) bool -> (n, n_cls) float64."""
        present = attributes.to(torch.float64)
        log_likelihood = present @ self.probability.log().T + (1 - present) @ (1 - self.probability).log().T
        return log_likelihood.softmax(dim=1)

    def _every_pattern(self) -> tuple[Tensor, Tensor]:
        """All 2^K attribute patterns (2^K, K) and P(pattern | class) (2^K, n_cls)."""
        k = len(self.attributes)
        patterns = (torch.arange(2**k)[:, None] >> torch.arange(k)) & 1  # (2^K, K)
        p = self.probability[None]  # (1, n_cls, K)
        likelihood = torch.where(patterns[:, None].bool(), p, 1 - p).prod(dim=2)
        return patterns.bool(), likelihood

    def bayes_accuracy(self) -> float:
        """The best accuracy that any rule can reach from the attributes, summed over all patterns."""
        _, likelihood = self._every_pattern()
        return (likelihood.max(dim=1).values.sum() / len(self.classnames)).item()

    def rule_accuracy(self, weights: Tensor, bias: Tensor | float = 0.0) -> float:
        """Exact accuracy of argmax(a weights + bias); weights (K, n_cls); ties are shared."""
        patterns, likelihood = self._every_pattern()
        scores = patterns.to(torch.float64) @ weights.to(torch.float64) + bias  # (2^K, n_cls)
        best = (scores >= scores.max(dim=1, keepdim=True).values - 1e-9).to(torch.float64)
        chosen = best / best.sum(dim=1, keepdim=True)
        return ((likelihood * chosen).sum() / len(self.classnames)).item()

    def plain_accuracy(self) -> float:
        """Exact accuracy of counting agreement with each class's typical look, every attribute alike.

        This is what the plain mean over symptom scores does when each attribute is seen perfectly.
        """
        typical = torch.where(self.probability >= self.probability.mean(dim=0), 1.0, -1.0)  # (n_cls, K)
        return self.rule_accuracy(2 * typical.T, -typical.sum(dim=1))


DERM = World(
    name="derm",
    classnames=("melanoma", "nevus"),
    openings=("a dermoscopy image of a skin lesion with", "dermoscopy showing", "a skin lesion with", "close-up of a lesion,", ""),
    draw=draw_derm,
    attributes=(
        Attribute("veil", (0.88, 0.10),
            ("a blue-white veil", "a blue white haze over the lesion", "a milky blue area", "bluish veil", "a blue-gray patch"),
            ("no blue area", "brown without any blue", "no veil", "free of blue haze")),
        Attribute("colors", (0.78, 0.25),
            ("several different colors", "many colors", "patches of red, black and brown", "multicolored", "mixed red and black colors"),
            ("one uniform brown color", "a single even color", "uniform brown", "evenly colored", "only one color")),
        Attribute("border", (0.60, 0.45),
            ("an irregular notched border", "jagged edges", "ragged border", "a notched outline", "irregular edges"),
            ("a smooth regular border", "smooth edges", "a sharp even outline", "regular border", "even edges")),
        Attribute("asymmetry", (0.55, 0.42),
            ("an asymmetric shape", "lopsided shape", "one half unlike the other", "uneven shape", "asymmetric"),
            ("a symmetric round shape", "round and symmetric", "a round shape", "both halves alike", "symmetric")),
        Attribute("dots", (0.50, 0.50),
            ("black dots", "small black dots", "dark dots scattered inside", "black specks", "many dark points"),
            ("no dots", "an even surface without dots", "free of dark dots", "no black specks")),
        Attribute("streaks", (0.50, 0.50),
            ("radial streaks at the edge", "dark streaks around the rim", "spoke-like lines at the border", "radiating lines", "streaks"),
            ("a plain rim without streaks", "no streaks", "no lines at the edge", "free of radiating lines")),
        Attribute("large", (0.50, 0.50),
            ("a large diameter", "large", "a big lesion filling the view", "wide diameter", "big"),
            ("a small diameter", "small", "a little spot", "narrow diameter", "tiny lesion")),
        Attribute("scar", (0.50, 0.50),
            ("a white scar-like area", "a pale scar-like patch", "white patch", "a whitish area", "bright white area"),
            ("no white area", "fully pigmented without white", "free of pale patches", "no scar-like patch")),
    ),
)  # fmt: skip

CXR = World(
    name="cxr",
    classnames=("normal lung", "pneumonia"),
    openings=("a chest x-ray with", "a frontal chest radiograph showing", "chest film:", "x-ray of the chest,", ""),
    draw=draw_cxr,
    attributes=(
        Attribute("consolidation", (0.10, 0.88),
            ("a dense white patch in the lung", "a white opacity in one lung", "consolidation", "a cloudy white area in the lung", "airspace opacity"),
            ("clear dark lung fields", "lungs free of white patches", "no opacity", "no consolidation", "clear lungs")),
        Attribute("effusion", (0.22, 0.74),
            ("white fluid at the lung base", "a blunted costophrenic angle", "pleural effusion", "fluid level at the base", "a hidden lung base"),
            ("sharp costophrenic angles", "no fluid at the base", "no effusion", "clear lung bases", "open sharp angles")),
        Attribute("bronchogram", (0.44, 0.58),
            ("dark branching tubes inside a gray haze", "an air bronchogram", "visible air-filled bronchi", "dark branching lines in haze", "black branching airways"),
            ("no visible bronchi", "no air bronchogram", "without dark branching lines", "airways not outlined")),
        Attribute("interstitial", (0.43, 0.56),
            ("a fine net of lines in both lungs", "reticular pattern", "net-like markings", "a mesh of fine white lines", "increased lung markings"),
            ("smooth even lung texture", "no net-like lines", "no reticular pattern", "even lungs without mesh")),
        Attribute("heart", (0.50, 0.50),
            ("a wide heart shadow", "an enlarged heart", "a big heart", "broad cardiac silhouette", "cardiomegaly"),
            ("a narrow heart shadow", "a heart of normal size", "a small heart", "slim cardiac silhouette")),
        Attribute("diaphragm", (0.50, 0.50),
            ("a raised diaphragm on one side", "an elevated dome", "one high diaphragm", "elevated hemidiaphragm"),
            ("level diaphragm domes", "both domes at one height", "an even diaphragm", "low diaphragm on both sides")),
        Attribute("hila", (0.50, 0.50),
            ("bulky bright hila", "enlarged hila", "prominent hilar shadows", "thick lung roots", "large bright lung roots"),
            ("small slender hila", "normal hila", "faint hilar shadows", "thin lung roots")),
        Attribute("tube", (0.50, 0.50),
            ("a thin white tube over the chest", "a catheter line", "a bright tube in the middle", "a feeding tube", "white wire"),
            ("no tubes or lines", "no catheter", "free of tubes", "nothing over the chest")),
    ),
)  # fmt: skip

FUNDUS = World(
    name="fundus",
    classnames=("no retinopathy", "mild retinopathy", "moderate retinopathy", "severe retinopathy", "proliferative retinopathy"),
    openings=("a fundus photograph with", "a retina showing", "color photograph of the fundus with", "eye fundus,", ""),
    draw=draw_fundus,
    attributes=(
        Attribute("dots", (0.06, 0.90, 0.85, 0.88, 0.70),
            ("tiny red dots", "microaneurysms", "small round red dots", "scattered red points", "little red specks"),
            ("no red dots", "no microaneurysms", "a retina free of red dots", "without red specks")),
        Attribute("blots", (0.03, 0.08, 0.75, 0.94, 0.70),
            ("dark red blots", "blot hemorrhages", "large dark red stains", "retinal hemorrhages", "dark blood spots"),
            ("no dark blots", "no hemorrhages", "free of dark stains", "no blood spots")),
        Attribute("exudates", (0.04, 0.10, 0.72, 0.70, 0.55),
            ("bright yellow spots", "hard exudates", "yellow waxy deposits", "clusters of yellow flecks", "shiny yellow specks"),
            ("no yellow spots", "no exudates", "free of yellow deposits", "no yellow flecks")),
        Attribute("wool", (0.02, 0.05, 0.20, 0.80, 0.45),
            ("fluffy white patches", "cotton wool spots", "soft white clouds on the retina", "pale fluffy spots"),
            ("no white patches", "no cotton wool spots", "free of fluffy spots", "no pale clouds")),
        Attribute("beading", (0.04, 0.06, 0.15, 0.78, 0.55),
            ("thick beaded veins", "venous beading", "swollen wavy vessels", "sausage-like veins"),
            ("thin even vessels", "slender smooth veins", "no venous beading", "vessels of even width")),
        Attribute("fronds", (0.01, 0.02, 0.03, 0.06, 0.88),
            ("a tangle of new vessels on the disc", "neovascularization", "fine new red vessels", "a net of fragile vessels at the disc"),
            ("a clean disc without new vessels", "no new vessels", "no neovascularization", "a clear optic disc")),
        Attribute("cloud", (0.01, 0.01, 0.02, 0.04, 0.50),
            ("a dark cloud of blood", "vitreous hemorrhage", "blood hiding the lower retina", "a dark red cloud below"),
            ("a clear view of the retina", "no cloud of blood", "clear vitreous", "nothing hides the retina")),
        Attribute("cup", (0.40, 0.40, 0.40, 0.40, 0.40),
            ("a large pale cup", "a wide optic cup", "enlarged cup in the disc", "big bright cup"),
            ("a small cup", "a narrow optic cup", "tiny cup in the disc", "small bright cup")),
        Attribute("pigment", (0.50, 0.50, 0.50, 0.50, 0.50),
            ("a dark pigmented background", "dark brown retina", "a dim dark background", "heavily pigmented"),
            ("a light orange background", "bright orange retina", "a light background", "lightly pigmented")),
    ),
)  # fmt: skip

WORLDS = {world.name: world for world in (DERM, CXR, FUNDUS)}


def get_world(name: str) -> World:
    """The world of this name. ValueError names the choices."""
    if name not in WORLDS:
        raise ValueError(unknown_name("phantom world", name, WORLDS))
    return WORLDS[name]
