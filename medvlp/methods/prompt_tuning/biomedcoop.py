"""BiomedCoOp: CoOp, taught by an ensemble of an LLM's prompts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.slots import FIRST_CTX, symptom_text
from medvlp.data.cards import DataCard
from medvlp.methods.base import check_at_least
from medvlp.methods.prompt_tuning.coop import TRAINER, ContextPrompts
from medvlp.methods.zero_shot import checked_symptoms


class BiomedCoOp(ContextPrompts):
    r"""CoOp with semantic consistency (SCCM) and knowledge distillation from selected prompts (KDSP).

        t_c      = text([SOS] v_1 .. v_M name_c . [EOS]) / |.|                   (D,)
        logits[b, c] = exp(logit_scale) * f_b . t_c
        w_ci     = text([SOS] prompt_ci . [EOS]) / |.|, i = 1..m_c               (D,), not learned
        SCCM     = mean_c |t_c - normalise(mean_i w_ci)|^2 / D
        s_i      = mean_b max_c f_b . w_ci                     over the batch; the prompts are scored
        S        = {i: |s_i - mean(s)| <= tau std(s)}          those that stand out are left out
        q_b      = softmax_c(exp(logit_scale) * f_b . normalise(mean_{i in S} w_ci))
        KDSP_b   = KL(q_b || softmax(logits_b)) / n_cls
        loss     = cross-entropy + sccm_weight * SCCM + kdsp_weight * mean_b KDSP_b

    Koleilat et al., "BiomedCoOp: Learning to Prompt for Biomedical Vision-Language Models", CVPR 2025, arXiv
    2411.15232. Learned is v alone (`ctx`). The losses are read off the authors' code. There s is first
    centred on its median and divided by its median absolute deviation, and then standardised again, which
    undoes both; what remains is S above (the deviation is that of a sample, over the number of prompts less
    one). With both weights 0 it is `CoOp`.

    The authors' prompts are 50 sentences a class by GPT-4, the i-th of every class scored and left out
    together. Here they are by default the symptoms of the card, which are fewer: among up to four numbers
    none lies more than 1.5 deviations off, so that all are kept. Where classes have different numbers, those
    with fewer start over in s, S and q, so that every prompt counts. On several GPUs each scores its own part
    of the batch.

    Notes:
        The authors' trainer puts the frozen text tower into training mode. OpenAI's has no dropout; of
        BiomedCLIP's BERT the dropout of embeddings, attention and layers was then active in training, while
        the prompts w were encoded without. On a small BERT of three layers KDSP was so 10.9 with a deviation
        of 7.5 from draw to draw, where it is 12.4 without. Here the tower has none; `text_dropout=True` is
        as theirs.

        Their views are cropped at random but not flipped, as in the recipe here, and new in every epoch;
        `views="fresh"` in the recipe is that, and encodes every image in every epoch.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order, and their symptoms.
        sccm_weight: Of SCCM. The authors choose both weights for each data set, mostly between 0.25 and 20;
            1 is what their code starts from.
        kdsp_weight: Of KDSP.
        tau: How many standard deviations a prompt's score may lie off; at least 1, so that some remain.
        symptoms: Your own prompts, {classname: [phrase, ...]} for every class; replaces the card's.
        knowledge: The kind of knowledge of the card that is read.
        n_ctx: M, the number of context vectors. None: as many as `ctx_init` has words, and 16 without.
        ctx_init: Words that the context starts from; "" draws it as CoOp does.
        csc: Class-specific context, as in `CoOp`.
        position: Where the class name stands, as in `CoOp`.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.
        text_dropout: Whether the dropout that the text tower itself has is active in training; see Notes.
        seed: Of the context's start, where it is drawn.

    Attributes:
        ctx: v, (M, w), or (n_cls, M, w) with csc; w is the text width.
        w: (n_cls, m, D), the prompts' features, m the largest m_c; classes with fewer start over.
        w_mean: (n_cls, D), normalise(mean_i w_ci), over each class's own m_c prompts.
        prompts: {classname: [phrase, ...]}, in label order.
        config: the arguments by name, fit for JSON; `BiomedCoOp(clip, card, **config)` builds the same again.

    Raises:
        ValueError: a negative weight, tau below 1, a class without symptoms, and what `CoOp` raises.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> biomedcoop = medvlp.BiomedCoOp(clip, card)
        >>> list(biomedcoop.prompts) == card.classnames
        True
    """

    # HealthX-Lab/BiomedCoOp, configs/trainers/BiomedCoOp/few_shot (read in forks), and assets/RUN.md for
    # the batch size
    recipe: ClassVar[dict[str, Any]] = TRAINER | {"epochs": 100, "batch_size": 4, "lr": 0.0025, "flip": False}

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        sccm_weight: float = 1.0,
        kdsp_weight: float = 1.0,
        tau: float = 1.5,
        symptoms: Mapping[str, Sequence[str]] | None = None,
        knowledge: str = "symptoms",
        n_ctx: int | None = None,
        ctx_init: str = FIRST_CTX,
        csc: bool = False,
        position: str = "end",
        logit_scale: float | None = None,
        text_dropout: bool = False,
        seed: int = 1,
    ) -> None:
        """Start the context and encode the ensemble of prompts; see the class."""
        super().__init__(clip, card, locals())
        check_at_least(0, {"sccm_weight": sccm_weight, "kdsp_weight": kdsp_weight})
        if not tau >= 1:
            raise ValueError(f"tau must be at least 1, so that some prompts remain, got {tau}.")
        self.sccm_weight, self.kdsp_weight, self.tau = sccm_weight, kdsp_weight, tau
        self.text_dropout = text_dropout
        self.prompts = checked_symptoms(card, knowledge, symptoms)
        self.config["symptoms"] = None if symptoms is None else self.prompts
        counts = [len(phrases) for phrases in self.prompts.values()]  # m_c
        texts = [symptom_text(s) for phrases in self.prompts.values() for s in phrases]
        by_class = clip.encode_texts(texts).split(counts)  # (m_c, D) each
        m = torch.arange(max(counts))
        self.constant("w", torch.stack([w_c[m % len(w_c)] for w_c in by_class]))
        self.constant("w_mean", F.normalize(torch.stack([w_c.mean(dim=0) for w_c in by_class]), dim=-1))

    def training_logits(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, n_cls) of normalised image features (B, D), and the weighted penalties (B,)."""
        with _training_mode(self.clip.model.text, self.text_dropout and self.training):
            t = self.class_features()  # (n_cls, D)
        f = image_features.to(t)
        logits = self.logit_scale * f @ t.T + self.logit_bias
        sccm = F.mse_loss(t, self.w_mean)
        taught = (self.logit_scale * f @ self.selected_features(f).T).log_softmax(dim=-1)  # (B, n_cls), log q
        learned = logits.log_softmax(dim=-1)
        kdsp = F.kl_div(learned, taught, reduction="none", log_target=True).mean(dim=-1)  # (B,)
        return logits, self.sccm_weight * sccm + self.kdsp_weight * kdsp

    def selected_features(self, f: Tensor) -> Tensor:
        """The mean of the prompts that these images select, (B, D) normalised -> (n_cls, D), normalised."""
        scores = torch.einsum("bd,cmd->bcm", f, self.w).amax(dim=1).mean(dim=0)  # (m,), s
        return F.normalize(self.w[:, kept_prompts(scores, self.tau)].mean(dim=1), dim=-1)


@contextmanager
def _training_mode(tower: nn.Module, on: bool) -> Iterator[None]:
    """The frozen tower with its dropout, if `on`; as it was afterwards."""
    tower.train(on)
    try:
        yield
    finally:
        tower.eval()


def kept_prompts(scores: Tensor, tau: float) -> Tensor:
    """Which of the scores (m,) lie within tau standard deviations of their mean; (m,) True or False."""
    if len(scores) == 1:
        return torch.ones_like(scores, dtype=torch.bool)
    return (scores - scores.mean()).abs() <= tau * scores.std()
