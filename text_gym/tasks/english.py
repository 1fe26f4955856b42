"""Rules and lexicon of the built-in grammar: about two hundred English words, nested clauses and agreement."""

from __future__ import annotations

from itertools import product

NESTING = 2  # maximum depth of clauses within clauses


def _forms(regular: str, irregular: str = "") -> dict[str, list[str]]:
    """Return words without and with the ending -s; irregular pairs are given as "wolf/wolves"."""
    pairs = [tuple(pair.split("/")) for pair in irregular.split()]
    return {
        "bare": regular.split() + [pair[0] for pair in pairs],
        "with s": [word + "s" for word in regular.split()] + [pair[1] for pair in pairs],
    }


def english_lexicon() -> dict[str, list[str]]:
    """Return about two hundred words by category; categories with a grammatical number end in :one or :many."""
    nouns = {
        "person": _forms("teacher pilot farmer doctor singer baker sailor student writer nurse"),
        "animal": _forms("dog cat horse bird rabbit tiger goat", "fox/foxes wolf/wolves mouse/mice"),
        "thing": _forms("ball book letter lamp kite stone basket bottle drum", "box/boxes"),
    }
    verbs = {
        "goes.person": _forms("sing work laugh wait travel dream"),
        "goes.animal": _forms("sleep run jump hide rest play"),
        "goes.thing": _forms("fall break shine", "vanish/vanishes"),
        "takes.person": _forms("find buy paint drop open", "carry/carries"),
        "takes.animal": _forms("smell push pull chew bring lick"),
        "meets": _forms("see like follow hear help fear greet", "watch/watches"),
        "says": _forms("say think know hope claim"),
    }
    words = {
        "name": "mary peter julia robert helen david sarah thomas",
        "living-adjective": "young old tall happy quiet clever brave tired friendly gentle",
        "thing-adjective": "red blue small heavy broken new round wooden",
        "adverb": "often never quickly quietly rarely always gladly suddenly",
        "place": "park river garden market harbor forest station bridge field tower",
        "preposition": "in near behind beside",
        "determiner:any": "the",
        "determiner:one": "a every this",
        "determiner:many": "some many these two three",
        "conjunction": "and but because while",
        "does:one": "does",
        "does:many": "do",
    }
    words |= {word: word for word in ("the", "who", "that", "not")}
    lexicon = {name: text.split() for name, text in words.items()}
    for name, forms in nouns.items():
        lexicon |= {f"{name}:one": forms["bare"], f"{name}:many": forms["with s"]}
    for name, forms in verbs.items():
        lexicon |= {f"{name}:one": forms["with s"], f"{name}:many": forms["bare"]}
    return lexicon


def english_rules(nesting: int = NESTING) -> dict[str, list[tuple[float, str]]]:
    """Return the rules. A symbol "a/b/c" is a nonterminal with features; other symbols are categories of the lexicon.

    The feature `then` of a subject is the nonterminal that follows it: the predicate of a clause,
    or only the verb of a relative clause, whose object precedes it ("the dog that mary sees"). The
    last feature is the number of clauses that may still be nested.
    """
    rules: dict[str, list[tuple[float, str]]] = {
        "sentence": [(1.0, f"subject/predicate/{nesting} more")],
        "more": [(0.75, ""), (0.25, f"conjunction subject/predicate/{nesting}")],
        "where": [(0.7, ""), (0.3, "preposition the place")],
    }
    for depth in range(nesting + 1):
        for then in ("predicate", "meets", "takes"):
            rules |= _subject_rules(then, depth)
        for number, kind in product(("one", "many"), ("person", "animal", "thing")):
            rules |= _predicate_rules(number, kind, depth)
        rules |= _object_rules(depth)
    return rules


def _subject_rules(then: str, depth: int) -> dict[str, list[tuple[float, str]]]:
    """Return the rules of subjects: determiner, optional adjective, noun, optional place or relative clause."""
    rules = {
        f"subject/{then}/{depth}": [
            (0.5, f"determiner:any noun/any/{then}/{depth}"),
            (0.2, f"determiner:one noun/one/{then}/{depth}"),
            (0.2, f"determiner:many noun/many/{then}/{depth}"),
            (0.1, f"name {then}/one/person/{depth}"),
        ]
    }
    things = ["thing"] if then == "predicate" else []  # things are subjects of intransitive verbs only
    for grammatical, numbers in (("any", ("one", "many")), ("one", ("one",)), ("many", ("many",))):
        features = f"{grammatical}/{then}/{depth}"

        def nouns(*kinds: str, numbers: tuple[str, ...] = numbers) -> list[tuple[float, str]]:
            return [(1.0, f"{k}:{n} noted/{n}/{k}/{then}/{depth}") for n in numbers for k in kinds]

        rules[f"noun/{features}"] = [
            *nouns("person", "animal", *things),
            (0.8 * len(numbers), f"living-adjective living/{features}"),
            *[(0.4 * len(numbers), f"thing-adjective lifeless/{features}") for _ in things],
        ]
        rules[f"living/{features}"] = nouns("person", "animal")
        if things:
            rules[f"lifeless/{features}"] = nouns("thing")
    for number, kind in product(("one", "many"), ("person", "animal", *things)):
        features = f"{number}/{kind}"
        rest = f"{then}/{features}/{depth}"
        rules[f"noted/{features}/{then}/{depth}"] = [
            (0.7, rest),
            (0.1, f"preposition the place {rest}"),
            *_relative(features, depth, rest),
        ]
    return rules


def _relative(features: str, depth: int, rest: str = "") -> list[tuple[float, str]]:
    """Return the rule of a relative clause after a noun with these features; [] at the maximum depth."""
    pronoun = "who" if "person" in features else "that"
    return [(0.2, f"{pronoun} relative/{features}/{depth - 1} {rest}")] if depth else []


def _predicate_rules(number: str, kind: str, depth: int) -> dict[str, list[tuple[float, str]]]:
    """Return the rules of predicates for subjects of this number and kind, and of verbs that end relative clauses."""
    features = f"{number}/{kind}/{depth}"
    taken_by = "takes" if kind == "thing" else "meets"
    act = [(0.4, f"goes.{kind}:{number} where")]
    if kind != "thing":
        act += [
            (0.3, f"takes.{kind}:{number} object/thing/{depth}"),
            (0.3, f"meets:{number} object/living/{depth}"),
        ]
    if kind == "person" and depth:
        act += [(0.15, f"says:{number} that subject/predicate/{depth - 1}")]
    rules = {
        f"predicate/{features}": [
            (0.75, f"act/{features}"),
            (0.15, f"adverb act/{features}"),
            (0.1, f"does:{number} not act/many/{kind}/{depth}"),
        ],
        f"act/{features}": act,
        f"relative/{features}": [(0.6, f"predicate/{features}"), (0.4, f"subject/{taken_by}/{depth}")],
    }
    if kind != "thing":
        rules[f"meets/{features}"] = [(1.0, f"meets:{number}")]
        rules[f"takes/{features}"] = [(1.0, f"takes.{kind}:{number}")]
    return rules


def _object_rules(depth: int) -> dict[str, list[tuple[float, str]]]:
    """Return the rules of objects."""
    rules: dict[str, list[tuple[float, str]]] = {}
    for sort, kinds in (("living", ("person", "animal")), ("thing", ("thing",))):
        names = [(0.15, "name")] if sort == "living" else []
        rules[f"object/{sort}/{depth}"] = [
            *[(0.3, f"determiner:{n} goal/{n}/{sort}/{depth}") for n in ("any", "one", "many")],
            *names,
        ]
        for grammatical in ("any", "one", "many"):
            numbers = ("one", "many") if grammatical == "any" else (grammatical,)
            nouns = [(1.0, f"{k}:{n} met/{n}/{k}/{depth}") for n in numbers for k in kinds]
            features = f"{grammatical}/{sort}/{depth}"
            rules[f"goal/{features}"] = [*nouns, (0.4 * len(nouns), f"{sort}-adjective plain/{features}")]
            rules[f"plain/{features}"] = nouns
        for number, kind in product(("one", "many"), kinds):
            rules[f"met/{number}/{kind}/{depth}"] = [(0.8, ""), *_relative(f"{number}/{kind}", depth)]
    return rules
