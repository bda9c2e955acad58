"""Question files in the forms in which public data sets come, made here."""

import json

EGGS = "Ann has {} eggs. She eats 3 and sells the rest for $5 each. How many dollars does she get?"


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def gsm_hard(bad=True):
    """As GSM-Hard: large and small numbers, floats, code in place of a solution, and two records without a number."""
    targets = [2.0107e-06, 1e16, -9867630.0, 0.1234567890123456, 7214900121.0]
    records = [
        {"input": EGGS.format(f"{16 + i:,}"), "code": f"def solution():\n    return {x}", "target": x}
        for i, x in enumerate(targets)
    ]
    return jsonl(records + [{**records[0], "target": x} for x in ("none", 10**20 + 1)] * bad)


def multiarith():
    """As MultiArith: a JSON list, with equations and solutions in lists, floats in both."""
    return json.dumps(
        [
            {
                "iIndex": i,
                "sQuestion": f" For Halloween Katie received {i} candies. She ate 6 and her sister gave her 12. "
                "How many has she now? ",
                "lEquations": [f"X=(({i}.0-6.0)+12.0)"],
                "lSolutions": [i + 6.0],
            }
            for i in (31, 42, 25)
        ],
        indent=2,
    )


def svamp_csv():
    """As SVAMP in a table: the question in two columns, an equation without a result, and a byte order mark."""
    rows = ["ID,Body,Question,Equation,Answer,Type"]
    rows += [
        f'chal-{i},"Each pack of dvds costs {i} dollars, and there is a discount of 25 dollars on each pack",'
        f"How much do you have to pay to buy each pack?,( {i}.0 - 25.0 ),{i - 25}.0,Subtraction"
        for i in (76, 64)
    ]
    return "\ufeff" + "\n".join(rows) + "\n"


def icot():
    """As iCoT's text files: question, two bars, calculations."""
    return "".join(
        f"{EGGS.format(i)}||<<{i}-3={i - 3}>> <<{i - 3}*5={(i - 3) * 5}>> #### {(i - 3) * 5}\n" for i in (16, 29)
    )


def coconut():
    """As Coconut's JSON list: calculations in a list, the answer in text."""
    steps = ["<<16-3=13>>", "<<13*5=65>>"]
    return json.dumps([{"question": EGGS.format(16), "steps": steps, "answer": "65"}])


def gsm8k_aug():
    """As GSM8k-Aug: calculations in one text."""
    return jsonl([{"question": EGGS.format(16), "cot": "<<16-3=13>> <<13*5=65>>", "answer": "65"}])


# Name of the file, its content, the number of usable questions, and whether pairs can be made of them.
FILES = {
    "gsm_hard.jsonl": (gsm_hard(), 5, False),
    "multiarith.json": (multiarith(), 3, True),
    "svamp.csv": (svamp_csv(), 2, True),
    "icot.txt": (icot(), 2, True),
    "coconut.json": (coconut(), 1, True),
    "gsm8k aug.jsonl": (gsm8k_aug(), 1, True),
}
