"""Zero-shot CLIP: three kinds of knowledge, nothing trained."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.slots import in_templates, symptom_text
from medvlp.data.cards import DataCard, in_label_order
from medvlp.data.errors import brief, check_choice
from medvlp.data.html import Table
from medvlp.methods.base import Method, check_symptoms

NAME_KINDS = ("classnames", "templates")


def score_table(
    scores: Mapping[str, Tensor], symptoms: Mapping[str, Sequence[str]], column: str = "score"
) -> pd.DataFrame:
    """One image's symptom scores, {classname: (1, m_c)}, as rows of classname, symptom, score."""
    rows = [
        (classname, symptom, score)
        for classname, phrases in symptoms.items()
        for symptom, score in zip(phrases, scores[classname][0].tolist(), strict=True)
    ]
    return Table(rows, columns=["classname", "symptom", column])


class ZeroShot(Method):
    r"""Score an image by its cosines with texts about each class.

        logits[b, c] = exp(logit_scale) * f_b . t_c

    with f_b the normalised image feature, t_ci the normalised features of the m_c texts of class c, and

        classnames  t_c = t_c1                    the class name in one template
        templates   t_c = normalise(mean_i t_ci)  the class name in every template
        symptoms    t_c = mean_i t_ci             the mean of the cosines, so t_c is not normalised again

    Names and template ensembles are Radford et al. 2021 (CLIP, section 3.1.4). Classification by the mean
    over descriptions is Menon & Vondrick 2023; visual symptoms as the descriptions are ViP
    (arXiv 2409.00341, 2024).

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order, templates and knowledge.
        knowledge: "classnames", "templates", or a kind of knowledge of the card, such as "symptoms".
        symptoms: Your own symptoms, {classname: [phrase, ...]} for every class; replaces the card's.
        templates: Your own templates, each with a `{}` for the class name; replaces the card's.

    Raises:
        ValueError: unknown knowledge, a class missing or unknown in `symptoms`, a template without `{}`.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> zero = medvlp.ZeroShot(clip, card, knowledge="symptoms")
        >>> tuple(zero.text_features.shape) == (len(card.classnames), clip.embed_dim)
        True
    """

    text_features: Tensor  # (n_cls, D), t_c
    encoded_texts: Tensor  # (sum of m_c, D), t_ci before they are normalised

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        knowledge: str = "symptoms",
        symptoms: Mapping[str, Sequence[str]] | None = None,
        templates: Sequence[str] | None = None,
    ) -> None:
        """Encode the texts, once; see the class."""
        super().__init__(clip, card, locals())
        self.knowledge = knowledge
        if knowledge in NAME_KINDS:
            if symptoms is not None:
                raise ValueError(f"knowledge={brief(knowledge)} reads no symptoms; give 'symptoms'.")
            by_template = in_templates(card.templates if templates is None else templates, card.classnames)
            if knowledge == "classnames":
                by_template = by_template[:1]
            texts = dict(zip(card.classnames, zip(*by_template, strict=True), strict=True))
        else:
            if templates is not None:
                raise ValueError(f"knowledge={brief(knowledge)} reads no templates; give 'templates'.")
            if symptoms is None:
                check_choice("knowledge", knowledge, [*NAME_KINDS, *card.some_kinds()], f"card {card.name!r}")
            self.symptoms = checked_symptoms(card, knowledge, symptoms)
            texts = {c: [symptom_text(s) for s in phrases] for c, phrases in self.symptoms.items()}

        self.config |= {
            "symptoms": None if symptoms is None else self.symptoms,
            "templates": templates and list(templates),
        }
        counts = [len(of_class) for of_class in texts.values()]  # m_c
        T = clip.encode_texts([text for of_class in texts.values() for text in of_class], normalize=False)
        t = torch.stack([t_c.mean(dim=0) for t_c in F.normalize(T, dim=-1).split(counts)])  # (n_cls, D)
        self.constant("text_features", F.normalize(t, dim=-1) if knowledge == "templates" else t)
        self.constant("encoded_texts", T)  # (M, D)

    def logits_from_features(self, image_features: Tensor) -> Tensor:
        """Logits of normalised image features: (B, D) -> (B, n_cls)."""
        t = self.text_features
        return self.logit_scale * image_features.to(t) @ t.T + self.logit_bias

    def class_features(self, f: Tensor | None = None) -> Tensor:
        """The directions of t, (n_cls, D); with symptoms t itself is shorter."""
        return F.normalize(self.text_features, dim=-1)

    def symptom_features(self) -> Tensor:
        """T: the features of all symptoms, class after class, (M, D), not normalised."""
        check_symptoms(self)
        return self.encoded_texts

    def extra_repr(self) -> str:
        """What distinguishes this classifier from another, for `print`."""
        return f"card={self.card.name!r}, knowledge={self.knowledge!r}, texts={len(self.encoded_texts)}"


def template_features(clip: Clip, card: DataCard, templates: Sequence[str] | None) -> Tensor:
    """The class names in templates, by default the card's first: the normalised mean, (n_cls, D)."""
    templates = card.templates[:1] if templates is None else templates
    return ZeroShot(clip, card, "templates", templates=templates).text_features


def checked_symptoms(
    card: DataCard, knowledge: str, symptoms: Mapping[str, Sequence[str]] | None
) -> dict[str, list[str]]:
    """The symptoms of every class in label order, the card's or the user's."""
    if symptoms is None:
        return card.symptoms(knowledge)
    return in_label_order(symptoms, card.classnames, card.name)
