"""Hidden checks of A3: reading an LLM's reply, checks of phrases. Names of classes are made up each time."""

import json
import re

from tasks import REFUSED, Assignment, Property, Task

LOOKS = ["pale", "dark", "round", "red", "fine", "wide", "wavy", "notched", "glossy", "bent", "faint", "dim"]
THINGS = ["spot", "rim", "line", "patch", "disc", "veil", "ring", "nodule", "stripe", "fleck", "arc", "dot"]
ENDS = ("oid", "ized", "aceous")  # of words that begin like a class and are none
LOOK_ALIKES = ("nodule", "notched", "painted", "moustache", "another", "feverfew", "knot")
DENIALS = ("without", "no", "not", "none", "never", "absent", "lacking", "free of")
NOT_SEEN = ("ache", "cough", "fever", "pain", "virus", "tender")
APOLOGIES = ("I'm sorry, but I cannot help with that.", "As an AI language model, I cannot see images.")


def some(rng, words) -> str:
    return str(rng.choice(words))


def phrases_of(rng, n: int) -> list[str]:
    """Draw phrases that nothing is wrong with, all different."""
    looks, things = rng.permutation(LOOKS)[:n], rng.permutation(THINGS)[:n]
    return [f"a {look} {thing}" for look, thing in zip(looks, things, strict=True)]


def word(rng) -> str:
    """Make up a word that no list holds."""
    return "".join(some(rng, list("bdgklmrvz")) + some(rng, list("aeiou")) for _ in range(3)) + "x"


def good_replies(rng) -> list[list]:
    """Draw replies in the shape that was asked for."""
    a, b, c = (phrases_of(rng, n) for n in (3, 4, 2))
    c += [f'a "{some(rng, LOOKS)}" floor', f"{some(rng, THINGS)}s [small] {{round}}"]
    padded = [f"  {phrase}\n" for phrase in phrases_of(rng, 3)]
    (one,) = phrases_of(rng, 1)
    verbatim = [f"A  {some(rng, LOOKS).title()} Rim.", one, f"{int(rng.integers(2, 9))} µm dots; {one}", one]
    return [
        ["```json\n" + json.dumps({"symptoms": a}) + "\n```"],
        [json.dumps({"symptoms": b})],
        ["\n " + json.dumps({"symptoms": c}, indent=2) + " \n"],
        ["```\n" + json.dumps({"symptoms": padded}) + "\n```\n"],
        ["\n ```json\n" + json.dumps({"symptoms": [one]}, indent=2) + "\n```"],
        [json.dumps({"symptoms": verbatim})],
    ]


def talk(rng) -> list[list]:
    """Draw replies with something beside the JSON, or without any."""
    a, b = phrases_of(rng, 3), phrases_of(rng, 2)
    shape, fenced = json.dumps({"symptoms": a}), f"```json\n{json.dumps({'symptoms': b})}\n```"
    return [
        [""],
        [some(rng, APOLOGIES)],
        [f"Sure! Here are some:\n{shape}"],
        [f"{shape}\nI hope this helps."],
        [f"Here they are:\n{fenced}"],
        [f"{shape}\n{json.dumps({'symptoms': b})}"],
        [f"<think>{json.dumps({'symptoms': b})}</think>\n{shape}"],
        ["\n".join(f"- {phrase}" for phrase in a)],
        [f'The symptoms are "{a[0]}" and "{a[1]}".'],
        [shape[: -int(rng.integers(1, 12))]],
        [shape.replace('"', "'")],
        [shape.replace("]", ",]")],
        *([shape[:-n]] for n in (1, 2, 3)),
        *([fence] for fence in half_fences(shape)),
        *([f"```{language}\n{shape}\n```"] for language in ("python", "JSON", "`")),
    ]


def half_fences(shape: str) -> list[str]:
    """Return JSON in what is no whole fence, or not the end of the reply."""
    remark = "I hope this helps."
    starts = [f"```json\n{shape}", f"```json\n{shape}\n{remark}", f"```json\n{shape}\n```\n{remark}"]
    return [*starts, f"{shape}\n```", f"```{shape}```", f"```json {shape}\n```"]


def other_json(rng) -> list[list]:
    """Draw JSON of another shape."""
    a = phrases_of(rng, 3)
    others = [
        a,
        a[0],
        None,
        int(rng.integers(9)),
        {"symptoms": a, "note": "none"},
        {"Symptoms": a},
        {"answer": {"symptoms": a}},
        {"symptoms": a[0]},
        {"symptoms": {"1": a[0]}},
        {"symptoms": [*a, int(rng.integers(9))]},
        {"symptoms": [*a, None]},
        {"symptoms": [a]},
        {"symptoms": []},
        {"symptoms": [*a, " "]},
        {"symptoms": ["", *a]},
        {"symptoms": [True, *a]},
        {" symptoms": a},
        ["symptoms"],
    ]
    return [[json.dumps(other)] for other in others]


def reply_reference(reply):
    lines = reply.strip().splitlines()
    if len(lines) > 2 and lines[0] in ("```", "```json") and lines[-1] == "```":
        lines = lines[1:-1]
    try:
        answer = json.loads("\n".join(lines))
    except json.JSONDecodeError:
        return REFUSED
    match answer:
        case {"symptoms": [_, *_] as phrases, **rest} if not rest:
            stripped = [phrase.strip() if isinstance(phrase, str) else "" for phrase in phrases]
            return stripped if all(stripped) else REFUSED
    return REFUSED


def parts_of_phrases(rng) -> tuple[str, str, str, int]:
    """Draw a look, a thing, eleven looks and a digit."""
    look, thing = some(rng, LOOKS), some(rng, THINGS)
    return look, thing, " ".join(rng.permutation(LOOKS)[:11]), int(rng.integers(2, 10))


def suspects(rng) -> list[list]:
    """Draw phrases with each fault, and some that only look as if they had one."""
    names = [word(rng), f"{word(rng)} {word(rng)}", word(rng)]
    one, two = names[0], names[1]
    first, second = two.split()
    look, thing, eleven, digit = parts_of_phrases(rng)
    return [
        [phrase, names]
        for phrase in (
            f"typical {one} {thing}",
            f"{thing}s of {two.upper()}",
            f"{look}, {names[2].title()}.",
            f"a {first}-{second} {thing}",
            f"the {second} {first} {thing}",  # the words of a name, turned round
            f"{first} {thing} {second}",
            f"a {first} {thing}",
            f"{one}{some(rng, ENDS)} {thing}",
            f"un{one} {thing}",
            "",
            "?!",
            f"{digit}",
            f"{eleven} {thing}",  # twelve words
            f"{eleven} {look} {thing}",
            f"{eleven.replace(' ', '-')} {look} {thing}",
            f"{look} {thing} without {one}",  # two faults, of which the first counts
            f"a {look} {thing} without a {some(rng, THINGS)}",
            f"No {thing}",
            f"{thing}, not {look}",
            f"a rim free of {thing}s",
            f"a {look} free edge",
            f"a {thing} of {digit} mm",
            f"{digit}0% of the {thing}",
            f"no {thing} over {digit} mm",
            f"{look} {thing} and Pain",
            f"fever, {thing}",
            f"pain in {digit} {thing}s",
            *(f"a {alike} {thing}" for alike in LOOK_ALIKES),
            f"a {look} {thing}",
        )
    ]


def near_misses(rng) -> list[list]:
    """Draw phrases for the order of the faults, every term, marks, endings, and names as cards have them."""
    one, first, second = (word(rng) for _ in range(3))
    names = [one, f"{first.title()}-{second.upper()}"]
    look, thing, eleven, digit = parts_of_phrases(rng)
    return [
        [phrase, names]
        for phrase in (
            " ".join(map(str, range(1, 14))),  # no letter in thirteen words
            f"{eleven} {look} {one}",
            f"a {eleven} {thing}",
            f"a {first} {second} {thing}",
            f"a {first} {thing} on a {first} {second}",  # in the second place
            f"{first}, {second} {thing}",
            f"{look}_{one}_{thing}",
            f"{one}s and {thing}s",
            f"a {digit}mm {thing}",
            f"two {thing}s",
            *(f"{look} {thing} {term} {look} {thing}" for term in [*DENIALS, *NOT_SEEN]),
            *(f"{look} {thing} and {term}s" for term in NOT_SEEN),
        )
    ]


def fault_reference(phrase, names):
    """Look for each fault by a pattern in the phrase as it stands."""

    def holds(terms):
        patterns = (r"[\W_]+".join(re.findall(r"[^\W_]+", term)) for term in terms)
        return re.search(rf"(?<![^\W_])(?:{'|'.join(patterns)})(?![^\W_])", phrase, re.IGNORECASE)

    if not re.search(r"[^\W\d_]", phrase):
        return "empty"
    if len(re.split(r"[\W_]+", re.sub(r"^[\W_]+|[\W_]+$", "", phrase))) > 12:
        return "too long"
    if holds(names):
        return "names a class"
    if holds(DENIALS):
        return "negation"
    if re.search(r"\d", phrase):
        return "number"
    return "not visual" if holds(NOT_SEEN) else ""


def chosen(rows: slice):
    """Take these of the drawn phrases."""
    return lambda rng: suspects(rng)[rows]


def lists(rng) -> list[list]:
    """Draw lists of phrases in which some are the same and some have a fault."""
    out = []
    for n in (5, 3, 7):
        names = [word(rng), word(rng)]
        good = phrases_of(rng, n)
        look, thing = good[0].split()[1:]
        more = [
            f"The {look.title()} {thing}s.",  # the same as good[0]
            f"{look}, {thing}",
            f"a {thing}",  # a part of good[0] only
            f"a {look} {thing} in a ring",  # more than good[0]
            f"a {thing} {look}",  # other order
            f"a {names[0]} {thing}",
            f"no {thing}",
            f"{look} {thing} of {int(rng.integers(2, 9))} mm",
            good[1],
        ]
        out.append([[*good, *rng.permutation(more).tolist()], names])
    names = [word(rng), word(rng)]
    out.append([[f"The wide {names[1]}", "Wide Lines!", "a wide line", "no streak", "wide lines"], names])
    out.append([[f"a {names[0]} spot", "fever", f"a {names[0]}s spot"], names])
    x, look, thing = word(rng), some(rng, LOOKS), some(rng, THINGS)
    same = [  # all but the first of each row are the same as it
        [f" A  {look}-{thing} \n", f"{look} {thing}s", f"an {look} {thing}"],
        [f"{x} dots in a ring", f"{x}s dot in the ring", f"a {x} dot in an ring"],
    ]
    others = [f"{x}ss dot in ring", f"{x} dot a ring", f"{x} dotin ring", f"{look} {look} {thing}"]
    out.append([[*same[0], *same[1], *others], names])
    return out


def keep_reference(phrases, names):
    kept, known = [], []
    for phrase in phrases:
        plain = re.sub(r"[\W_]+", " ", phrase.lower())
        plain = re.sub(r"\b(?:a|an|the)\b", " ", plain)
        plain = re.sub(r"s\b", "", plain).split()
        if fault_reference(phrase, names) == "" and plain not in known:
            kept.append(phrase)
            known.append(plain)
    return kept


def repeated(rng) -> list[list]:
    good = phrases_of(rng, 4)
    return [[good, [word(rng)]], [[*good, *(phrase.upper() + "S." for phrase in good)], [word(rng)]]]


ASSIGNMENT = Assignment(
    name="A3",
    kind="json",
    allowed=["json", "re", "string", "itertools", "collections"],
    tasks=[
        Task(
            "read_reply",
            3,
            lambda rng: good_replies(rng) + talk(rng) + other_json(rng),
            reply_reference,
            properties=[
                Property(
                    "a reply in the demanded shape is read.",
                    lambda rng: good_replies(rng)[:2],
                    lambda r: [len(phrases) for phrases in r] == [3, 4],
                ),
                Property("an apology, remarks, half a reply or a list with dashes raise a ValueError.", talk),
                Property("JSON of another shape raises a ValueError.", other_json),
            ],
        ),
        Task(
            "fault",
            3,
            lambda rng: suspects(rng) + near_misses(rng),
            fault_reference,
            properties=[
                Property(
                    "a class is found whatever its capitals and the marks beside it.",
                    chosen(slice(0, 4)),
                    lambda r: r == ["names a class"] * 4,
                ),
                Property(
                    "words that only hold a name, or the words of a name apart, name no class.",
                    chosen(slice(4, 9)),
                    lambda r: r == [""] * 5,
                ),
                Property(
                    "nodule is no negation, and painted no pain.",
                    chosen(slice(-8, None)),
                    lambda r: r == [""] * 8,
                ),
            ],
        ),
        Task(
            "keep",
            2,
            lists,
            keep_reference,
            properties=[
                Property(
                    "of the same phrase in capitals and in the plural the first is kept.",
                    repeated,
                    lambda r: r[0] == r[1],
                ),
                Property(
                    "a phrase that is a part of another one is another phrase.",
                    lambda rng: [
                        [[f"a {x}", f"a pale {x}"], [word(rng)]] for x in rng.permutation(THINGS)[:3]
                    ],
                    lambda r: [len(kept) for kept in r] == [2, 2, 2],
                ),
            ],
        ),
    ],
)
