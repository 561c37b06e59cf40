"""Hidden checks of A3: reading an LLM's reply, checks of phrases. Names of classes are made up each time."""

import json
import re

from tasks import REFUSED, Assignment, Property, Task

LOOKS = ["pale", "dark", "round", "red", "fine", "wide", "wavy", "notched", "glossy", "bent", "faint", "dim"]
THINGS = ["spot", "rim", "line", "patch", "disc", "veil", "ring", "nodule", "stripe", "fleck", "arc", "dot"]
ENDS = ("oid", "ized", "aceous")  # of words that begin like a class and are none
LOOK_ALIKES = ("nodule", "notched", "painted", "moustache", "another", "feverfew", "knot")
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
    return [
        ["```json\n" + json.dumps({"symptoms": a}) + "\n```"],
        [json.dumps({"symptoms": b})],
        ["\n " + json.dumps({"symptoms": c}, indent=2) + " \n"],
        ["```\n" + json.dumps({"symptoms": padded}) + "\n```\n"],
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
    ]


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


def suspects(rng) -> list[list]:
    """Draw phrases with each fault, and some that only look as if they had one."""
    names = [word(rng), f"{word(rng)} {word(rng)}", word(rng)]
    one, two = names[0], names[1]
    first, second = two.split()
    look, thing = some(rng, LOOKS), some(rng, THINGS)
    eleven = " ".join(rng.permutation(LOOKS)[:11])
    digit = int(rng.integers(2, 10))
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


def fault_reference(phrase, names):
    """Look for each fault by a pattern in the phrase as it stands."""

    def holds(terms):
        patterns = (r"[\W_]+".join(map(re.escape, term.split())) for term in terms)
        return re.search(rf"(?<![^\W_])(?:{'|'.join(patterns)})(?![^\W_])", phrase, re.IGNORECASE)

    if not re.search(r"[^\W\d_]", phrase):
        return "empty"
    if len(re.split(r"[\W_]+", re.sub(r"^[\W_]+|[\W_]+$", "", phrase))) > 12:
        return "too long"
    if holds(names):
        return "names a class"
    if holds(["without", "no", "not", "none", "never", "absent", "lacking", "free of"]):
        return "negation"
    if re.search(r"\d", phrase):
        return "number"
    return "not visual" if holds(["ache", "cough", "fever", "pain", "virus", "tender"]) else ""


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
            suspects,
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
