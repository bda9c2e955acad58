"""Records of pairs, as a pairs file holds them."""


def record(pair_id=0, variant="clean", **changes):
    number = 7 if variant == "clean" else 8
    question = f"Ann had {number} pens. Ann bought 5 pens. How many?"
    return {"pair_id": pair_id, "variant": variant, "question": question, "answer": number + 5, **changes}


def both(pair_id=0, **changes):
    return [record(pair_id, variant, **changes) for variant in ("clean", "corrupted")]


def pair_record(pair_id="12-0", **changes):
    """A pair in this project's own form: one record with both sides."""
    sides = {
        variant: {name: side[name] for name in ("question", "answer")}
        for variant, side in zip(("clean", "corrupted"), both(), strict=True)
    }
    return {"pair_id": pair_id, **sides, **changes}


# What files of pairs and of problems may hold: seeds to damage.
PAIRS = [
    both(0) + both("a", chain=["7+5=12"], cluster_id="x", edit="k"),
    [pair_record(), pair_record(3, edit="k", seen=[1])],
]
PROBLEMS = [
    {"question": "Ann had 7 pens. Ann bought 5 pens. How many?", "answer": "She has 7+5=<<7+5=12>>12 pens.\n#### 12"},
    {"question": "Ann had 7 pens. How many?", "answer": "She has <<7+5=12>>12.\n#### 1,012"},
    {"question": "Bob had 9 pens?", "answer": 9},
    {"question": "Cy had 9 pens?", "answer": "-9.5"},
]
