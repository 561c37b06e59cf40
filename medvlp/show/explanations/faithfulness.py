"""Is an explanation true? Measured on phantoms, whose attributes are known and can be turned round.

On real images that experts described nothing can be turned round; what can be measured is in `annotated`.

`faithfulness` asks whether a symptom's score tells its attribute, `counterfactual` what a changed attribute
does to every score and to the decision; both read the same `Flips`. What symptoms without meaning get from
the same tests is in `controls`.
"""

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from medvlp.backbone.clip import Clip
from medvlp.data.errors import check_columns, check_kinds, free_name
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet, PhantomSet
from medvlp.methods.base import Method
from medvlp.show.explanations.annotated import ValueClaims, truth_of_symptoms, with_interval
from medvlp.show.explanations.twins import (
    Claims,
    Flips,
    claims_of,
    encode,
    flip_all,
    phantoms,
    some,
    with_flips,
)
from medvlp.study.attributes import attribute_probe
from medvlp.study.metrics import bootstrap, class_auroc, percentiles

MOVES = ("matching", "others", "largest")  # columns of a counterfactual table


def faithfulness(
    method: Method | Flips,
    images: ImageSet | None = None,
    claims: Claims | ValueClaims | None = None,
    n_images: int | None = 500,
    n_bootstrap: int = 1000,
    seed: int = 1,
    train: ImageSet | None = None,
) -> pd.DataFrame:
    """Does a symptom's score say whether its attribute is there? One row a class and symptom.

    Args:
        method: With symptoms: `ZeroShot` or `ViP`; or what `flip_all` made, and then no images.
        images: Phantoms, or images of a card with attributes, that the method was not trained on, such as
            `data.test`.
        claims: What each phrase claims. Of phantoms by default `claims_of` the world; of a card with
            attributes {phrase: {attribute: [value, ...]}}, by default what the card says. Others are left
            out.
        n_images: How many of the images are used, drawn by `seed`; None: all.
        n_bootstrap: Resamples of the images; each is drawn together with its twin.
        seed: Of the images and the resampling.
        train: Of a card with attributes: images for a linear probe of each claim on the same features.

    Returns:
        classname, symptom, attribute, says ("present" or "absent");
        AUROC, low, high: how well the score tells images in which the claim is true from the same images in
        which it is not, each image taken both ways, with a 95 % percentile interval over images. 0.5 is
        chance; below it the score says the opposite;
        as drawn: the same on the images as they are, in which attributes of one class come together. It can
        be high for a symptom that only knows the class; NaN where all images agree.

        Of a card with attributes, a row a claim: says is the value, or those of which one is claimed; images,
        how many an expert looked at, and true, in what share of them the claim holds; AUROC, low, high as
        drawn; within, within low, within high: the same among images of one class, where knowing the class
        does not help. Whole groups are resampled. NaN where all images of every class agree. With `train`
        also probe and probe within, and where a second expert described images second and second within:
        what is reached by who was taught the sign, and by who can see it.

    Raises:
        ValueError: a method without symptoms, no symptom that claims anything, images of which nobody knows
            what they show.

    Example:
        >>> import medvlp
        >>> from medvlp.show import faithfulness
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> table = faithfulness(zero, data.test, n_images=20, n_bootstrap=10)
        >>> table[["symptom", "attribute", "says"]].iloc[0].tolist()
        ['a blue-white veil', 'veil', 'present']
    """
    check_kinds(faithfulness, locals())
    if getattr(images, "annotations", ()):
        return truth_of_symptoms(method, some(images, n_images, seed), claims, n_bootstrap, seed, train)
    flips = method if isinstance(method, Flips) else flip_all(method, phantoms(images), n_images, seed)
    known = _known(flips, claims)
    n = len(flips.latents)
    rows = []
    for j, (classname, phrase) in enumerate(flips.symptoms.itertuples(index=False, name=None)):
        if phrase not in known:
            continue
        attribute, says = known[phrase]
        true, score = _both_ways(flips, j, attribute, says)
        samples = _auroc_samples(true, score, n_bootstrap, seed)
        row = {"classname": classname, "symptom": phrase, "attribute": attribute}
        row["says"] = "present" if says else "absent"
        row |= with_interval("AUROC", _auroc(true, score), percentiles(samples))
        row["as drawn"] = _auroc(true[:n], score[:n])
        rows.append(row)
    return Table(rows)


def mean_auroc(flips: Flips, claims: Claims | None = None) -> float:
    """The mean AUROC of the rows of `faithfulness`, an attribute and wording counted once."""
    return float(np.mean([_auroc(*phrase) for phrase in _each_phrase(flips, claims)]))


def auroc_ends(
    flips: Flips, claims: Claims | None = None, n_bootstrap: int = 1000, seed: int = 1
) -> tuple[float, float]:
    """Ends of the 95 % interval of `mean_auroc`; the images are resampled for all phrases at once."""
    samples = [_auroc_samples(*phrase, n_bootstrap, seed) for phrase in _each_phrase(flips, claims)]
    return percentiles(np.mean(samples, axis=0))


def what_is_seen(
    clip: Clip, train: PhantomSet, images: PhantomSet, n_images: int | None = 500, seed: int = 1
) -> pd.DataFrame:
    """Why a symptom may say nothing: what the two towers make of each attribute. Index attribute.

    Args:
        clip: The frozen towers.
        train: Phantoms to train the probes on, such as `data.train`.
        images: Phantoms to test them on, such as `data.test`.
        n_images: How many of these are used, as by `faithfulness`.
        seed: Of the images.

    Returns:
        probe: AUROC of a linear probe (logistic regression on standardised image features) for the attribute,
        each image taken both ways as by `faithfulness`: what the image tower sees, whatever the words;
        moved: mean distance between the normalised features of an image and its twin, at most 2;
        wordings: cosine of the texts of the attribute's plainest wordings, present and absent. Near 1, the
        text tower does not tell the two apart, and no score can.

    Example:
        >>> import medvlp
        >>> from medvlp.show import what_is_seen
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=8)
        >>> table = what_is_seen(medvlp.load_clip("tiny"), data.train, data.test, n_images=20)
        >>> list(table.index) == list(data.test.attributes)
        True
    """
    check_kinds(what_is_seen, locals())
    world, (plain, *flipped) = phantoms(images).world, with_flips(some(phantoms(images), n_images, seed))
    x = encode(clip, phantoms(train)).numpy()  # (N_train, D)
    present = train.latents.attributes.numpy()  # (N_train, K)
    f = encode(clip, plain).numpy()  # (N, D)
    texts = [f"{wording[0]}." for a in world.attributes for wording in (a.present, a.absent)]
    t = clip.encode_texts(texts).detach().cpu().unflatten(0, (-1, 2))  # (K, 2, D)
    rows = {}
    for k, attribute in enumerate(world.attributes):
        probe = attribute_probe(class_weight=None).fit(x, present[:, k])
        g = encode(clip, flipped[k]).numpy()  # (N, D)
        here = plain.latents.attributes[:, k].numpy()  # (N,)
        score = probe.decision_function(np.concatenate([f, g]))  # (2 N,)
        rows[attribute.name] = {
            "probe": _auroc(np.concatenate([here, ~here]), score),
            "moved": np.linalg.norm(g - f, axis=1).mean(),
            "wordings": float(t[k, 0] @ t[k, 1]),
        }
    return Table.from_dict(rows, orient="index").rename_axis("attribute")


def counterfactual(
    method: Method | Flips,
    images: PhantomSet | None = None,
    claims: Claims | None = None,
    n_images: int | None = 500,
    seed: int = 1,
) -> pd.DataFrame:
    """What turning one attribute round does to the scores and the decision: a row an image and attribute.

    Args:
        method: Any method, or what `flip_all` made, and then no images.
        images: Phantoms, such as `data.test`.
        claims: What each phrase claims, by default `claims_of` the world.
        n_images: How many of the images are used, drawn by `seed`; None: all.
        seed: Of the images.

    Returns:
        image (its number among those used), attribute, added (True: it is there afterwards);
        matching: change of the matching symptoms' scores in the direction that their words demand, the mean
        over the phrases that name the attribute: above 0 is right;
        others, largest: mean and maximum of the other symptoms' changes, without their signs, for they
        should not change at all;
        before, after: the classes decided for; flipped: whether they differ; best flipped: whether the
        world's best rule decides otherwise now.
        matching, others and largest are NaN for a method without symptoms, and for an attribute that no
        symptom names.

    Raises:
        ValueError: images that are no phantoms, or of other classes; no symptom that claims anything.

    Example:
        >>> import medvlp
        >>> from medvlp.show import counterfactual
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> table = counterfactual(zero, data.test, n_images=5)
        >>> table.groupby("attribute").size().unique().tolist()
        [5]
    """
    check_kinds(counterfactual, locals())
    flips = method if isinstance(method, Flips) else flip_all(method, phantoms(images), n_images, seed)
    world, n = flips.world, len(flips.latents)
    known = {} if flips.scores is None else _known(flips, claims)
    names = np.array([known.get(phrase, ("", True))[0] for phrase in flips.phrases], dtype=object)
    says = np.array([known.get(phrase, ("", True))[1] for phrase in flips.phrases], dtype=bool)
    moves = None if flips.scores is None else flips.moves()  # (phrases, K, N)
    classes = np.array(flips.classnames, dtype=object)
    decided = flips.logits.argmax(axis=2)  # (1 + K, N)
    best = _best_classes(flips, flips.latents.attributes)  # (N,)
    parts = []
    for k, attribute in enumerate(world.attributes):
        added, named = ~flips.present(k), names == attribute.name  # (N,), (phrases,)
        part = {"image": np.arange(n), "attribute": attribute.name, "added": added}
        part |= dict.fromkeys(MOVES, np.nan)
        if named.any() and not named.all():
            right = np.where(says[named, None] == added, 1, -1)  # (m, N), 1 where the words become true
            others = np.abs(moves[~named, k])  # (phrases - m, N)
            part["matching"] = (moves[named, k] * right).mean(axis=0)
            part["others"], part["largest"] = others.mean(axis=0), others.max(axis=0)
        part |= {"before": classes[decided[0]], "after": classes[decided[1 + k]]}
        part["flipped"] = decided[0] != decided[1 + k]
        part["best flipped"] = best != _best_classes(flips, flips.latents.flip(k).attributes)
        parts.append(Table(part))
    return pd.concat(parts, ignore_index=True)


def counterfactual_summary(table: pd.DataFrame, n_bootstrap: int = 1000, seed: int = 1) -> pd.DataFrame:
    """In what share of images did the right symptom move most? A row an attribute, and "all" of them last.

    Args:
        table: What `counterfactual` gave, or rows of it, such as those with `added` False, removals.
        n_bootstrap: Resamples of the images, for the row "all".
        seed: Of the resampling.

    Returns:
        images; more, low, high: share in which the matching symptoms moved in the right direction, and by
        more than the others on average; wrong: share in which they moved the wrong way by as much. Symptoms
        that mean nothing have more and wrong alike;
        most, most low, most high: share in which they moved by more than every other symptom;
        flips, best flips: share in which the decision changed, the method's and the best rule's; "flips where
        best does": the method's share among the images in which the best rule's changes.
        Intervals are Wilson's, 95 %; for "all", in which an image counts once for each attribute, bootstrap
        percentiles over images.

    Example:
        >>> import medvlp
        >>> from medvlp.show import counterfactual, counterfactual_summary
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> summary = counterfactual_summary(counterfactual(zero, data.test, n_images=5), n_bootstrap=10)
        >>> summary.index[-1], int(summary.loc["all", "images"])
        ('all', 5)
    """
    check_kinds(counterfactual_summary, locals())
    check_columns(table, ["image", "attribute", *MOVES, "flipped", "best flipped"], "counterfactual")
    table = with_outcomes(table)
    rows = {}
    every = free_name("all", table["attribute"])
    for name, part in [*table.groupby("attribute", sort=False), (every, table)]:
        known = part[part["matching"].notna()]
        row = {"images": part["image"].nunique(), "more": known["more"].mean()}
        row["low"], row["high"] = share_ends(known, "more", name == every, n_bootstrap, seed)
        row |= {"wrong": known["wrong"].mean(), "most": known["most"].mean()}
        row["most low"], row["most high"] = share_ends(known, "most", name == every, n_bootstrap, seed)
        row |= {"flips": part["flipped"].mean(), "best flips": part["best flipped"].mean()}
        row["flips where best does"] = part.loc[part["best flipped"], "flipped"].mean()
        rows[name] = row
    return Table.from_dict(rows, orient="index").rename_axis("attribute")


def with_outcomes(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `counterfactual` with what each row came to: more, wrong and most, see its summary.

    net is more less wrong.
    """
    more, wrong = table["matching"] > table["others"], table["matching"] < -table["others"]
    most = table["matching"] > table["largest"]
    return table.assign(more=more, wrong=wrong, most=most, net=more.astype(float) - wrong)


def share_ends(known: pd.DataFrame, column: str, over_images: bool, n: int, seed: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a share, or of a difference of shares `over_images`."""
    if not len(known):
        return np.nan, np.nan
    if not over_images:
        return proportion_confint(int(known[column].sum()), len(known), method="wilson")
    sums = known.groupby("image")[column].agg(["sum", "size"]).to_numpy(dtype=float)  # (N, 2)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(n, len(sums)))  # (n, N)
    total = sums[drawn].sum(axis=1)  # (n, 2)
    return percentiles(total[:, 0] / total[:, 1])


def _each_phrase(flips: Flips, claims: Claims | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """`_both_ways` of each different phrase that claims something."""
    known, first = _known(flips, claims), flips.symptoms["symptom"].drop_duplicates()
    return [_both_ways(flips, j, *known[phrase]) for j, phrase in first.items() if phrase in known]


def _both_ways(flips: Flips, j: int, attribute: str, says: bool) -> tuple[np.ndarray, np.ndarray]:
    """Symptom j on all images, then on their twins: whether its claim is true, and its score, (2 N,) each."""
    k = flips.world.index(attribute)
    here = flips.present(k) == says  # (N,)
    true = np.concatenate([here, ~here]).astype(int)
    return true, np.concatenate([flips.scores[0, :, j], flips.scores[1 + k, :, j]])


def _auroc(true: np.ndarray, score: np.ndarray) -> float:
    """AUROC of a score (N,); NaN where all images agree."""
    return float(class_auroc(true, _of_two_classes(score))[1])


def _auroc_samples(true: np.ndarray, score: np.ndarray, n: int, seed: int) -> np.ndarray:
    """AUROC of n resamples; an image and its twin, half the array further, are drawn together."""
    twins = [str(i) for i in range(len(true) // 2)] * 2
    return bootstrap(true, _of_two_classes(score), twins, n, seed, ["AUROC"])["AUROC"].to_numpy()


def _of_two_classes(score: np.ndarray) -> np.ndarray:
    """A score (N,) as two classes' scores, (N, 2): absent, present."""
    return np.stack([-score, score], axis=1)


def _best_classes(flips: Flips, attributes: object) -> np.ndarray:
    """What the world's best rule decides, among the method's classes: (N, K) -> (N,)."""
    columns = [flips.world.classnames.index(name) for name in flips.classnames]
    return flips.world.posterior(attributes)[:, columns].argmax(dim=1).numpy()


def _known(flips: Flips, claims: Claims | None) -> Claims:
    """The claims of the method's own phrases; ValueError where there are none."""
    if flips.scores is None:
        raise ValueError(
            "the method has no symptom scores; use ZeroShot with knowledge='symptoms', or ViP. "
            "counterfactual tells of any method whether its decision flips."
        )
    claims = claims_of(flips.world, {"": flips.phrases}) if claims is None else claims
    known = {phrase: claims[phrase] for phrase in flips.phrases if phrase in claims}
    if not known:
        raise ValueError(
            f"no symptom of the method names an attribute of the {flips.world.name} world; use its wordings, "
            f"such as {flips.world.attributes[0].present[0]!r}, or say with claims= what each phrase names."
        )
    for attribute, _ in known.values():
        flips.world.index(attribute)
    return known
