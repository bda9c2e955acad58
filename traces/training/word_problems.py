"""English arithmetic word problems like GSM8K's, each with its annotated chain, and a tokenizer for them.

The shipped checkpoints are trained on these. A problem is a *program* (a start value and two to four dependent
operations) and a *story* (names, objects, order of the sentences). The text is rendered from both, so that one number
can be changed and all later results recomputed.

    >>> import random
    >>> problem = draw_problem(random.Random(1))
    >>> problem.chain[0]
    '19-6=13'

In more than half of the problems the chain cannot be computed while reading: the start value comes last, or the
sentences come in another order than that of the computation.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

LARGEST_NUMBER = 49  # every number in a problem lies in 1..LARGEST and is one token
LARGEST_OPERAND = 19
PEOPLE = "Ann Ben Carla Dan Eva Finn Grace Hugo Iris Jack Kim Leo Mia Noah Olga Paul".split()
ITEMS = "apples books coins cards marbles pens shells stamps stickers toys".split()
DAYS = "Sunday Monday Tuesday Wednesday Thursday".split()  # the start value, then one day for each step
EOS, BOS, PAD, UNKNOWN = "<eos>", "<bos>", "<pad>", "<unk>"

START = ("On {day} {a} had {k} {item}.", "{a} began on {day} with {k} {item}.")
EVENTS = {
    "+": ("On {day} {a} bought {k} {item}.", "{a} found {k} {item} on {day}."),
    "-": ("On {day} {a} lost {k} {item}.", "{a} sold {k} {item} on {day}."),
}
ASK = ("How many {item} does {a} have now?", "How many {item} does {a} own in the end?")


@dataclass(frozen=True)
class Story:
    """The text of a program: `order[i]` is the i-th sentence (0 = the start value), `phrasing[i]` its wording."""

    name: str
    item: str
    order: tuple[int, ...]
    phrasing: tuple[int, ...]

    @property
    def in_order(self) -> bool:
        """Whether the chain can be computed while reading."""
        return self.order == tuple(range(len(self.order)))


@dataclass(frozen=True)
class WordProblem:
    """A problem; `numbers` are the start value and the operand of each step, in the order of computation."""

    numbers: tuple[int, ...]
    operators: str
    story: Story

    @property
    def values(self) -> tuple[int, ...]:
        """The result of every step; the last one is the answer."""
        values, value = [], self.numbers[0]
        for operator, operand in zip(self.operators, self.numbers[1:], strict=True):
            value = value + operand if operator == "+" else value - operand
            values.append(value)
        return tuple(values)

    @property
    def answer(self) -> int:
        return self.values[-1]

    @property
    def chain(self) -> tuple[str, ...]:
        """The annotated steps, as `7+5=12`."""
        before = (self.numbers[0], *self.values)
        steps = zip(before, self.operators, self.numbers[1:], self.values, strict=False)
        return tuple(f"{a}{operator}{b}={c}" for a, operator, b, c in steps)

    @property
    def template(self) -> str:
        """All but name, item and numbers; problems of one template form a cluster."""
        order, phrasing = ("".join(map(str, part)) for part in (self.story.order, self.story.phrasing))
        return f"{self.operators}:{order}:{phrasing}"

    @property
    def question(self) -> str:
        story = self.story
        about = {"a": story.name, "item": story.item}
        sentences = []
        for i in story.order:
            wordings = START if i == 0 else EVENTS[self.operators[i - 1]]
            sentences.append(wordings[story.phrasing[i]].format(day=DAYS[i], k=self.numbers[i], **about))
        return " ".join([*sentences, ASK[story.phrasing[-1]].format(**about)])

    @property
    def valid(self) -> bool:
        """Whether every number is in the allowed range."""
        operands = all(2 <= operand <= LARGEST_OPERAND for operand in self.numbers[1:])
        return operands and all(1 <= value <= LARGEST_NUMBER for value in (self.numbers[0], *self.values))

    def with_number(self, index: int, value: int) -> WordProblem:
        """The same story with one number changed."""
        return replace(self, numbers=(*self.numbers[:index], value, *self.numbers[index + 1 :]))


def draw_problem(rng: random.Random, steps: int | None = None) -> WordProblem:
    """A random problem of `steps` dependent steps; by default 2, 3 or 4 (25, 35 and 40 %)."""
    steps = steps or rng.choices((2, 3, 4), (25, 35, 40))[0]
    while True:
        operators = "".join(rng.choices("+-", k=steps))
        numbers = (rng.randint(2, LARGEST_NUMBER), *(rng.randint(2, LARGEST_OPERAND) for _ in operators))
        problem = WordProblem(numbers, operators, _story(rng, steps))
        if problem.valid:
            return problem


def _story(rng: random.Random, steps: int) -> Story:
    """A random story: in 30 % in order, in 30 % with the start value last, in 40 % in another order."""
    order = list(range(steps + 1))
    kind = rng.random()
    if kind < 0.3:
        order = [*order[1:], 0]
    elif kind < 0.7:
        while order == sorted(order):
            rng.shuffle(order)
    phrasing = tuple(rng.randint(0, 1) for _ in range(steps + 2))
    return Story(rng.choice(PEOPLE), rng.choice(ITEMS), tuple(order), phrasing)


def chain_text(problem: WordProblem) -> str:
    """The explicit chain of thought, as in GSM8K's annotations: `<<7+5=12>> <<12*2=24>>`."""
    return " ".join(f"<<{step}>>" for step in problem.chain)


def results(problem: WordProblem) -> list[int]:
    """The chain as bare results, one per latent step, from the start value to the answer.

    Chains of three start one step late, so that the answers do not all appear at the same step.
    """
    late = [problem.numbers[0]] if len(problem.values) == 3 else []
    return [*late, problem.numbers[0], *problem.values]


def vocabulary() -> list[str]:
    """Every token: specials, the numbers 0 to 99, and each word of the templates."""
    sentences = [sentence for wordings in (*EVENTS.values(), START, ASK) for sentence in wordings]
    sentences += [*DAYS, "The answer is: << >> + - = ,"]
    text = " ".join(sentences)
    for placeholder in ("{a}", "{k}", "{item}", "{day}"):
        text = text.replace(placeholder, " ")
    for mark in ".,?:":
        text = text.replace(mark, f" {mark} ")
    words = sorted(set(text.split()))
    return [PAD, UNKNOWN, BOS, EOS, *map(str, range(100)), *words, *PEOPLE, *ITEMS]


def build_tokenizer():
    """A Hugging Face fast tokenizer, one token per word, number or mark; it prepends BOS, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##"), decoders.Replace(" :", ":")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
    )


def draw_problems(seed: int, count: int, avoid: Iterable[str] = ()) -> list[WordProblem]:
    """`count` different problems from a seed, none of whose questions is in `avoid`."""
    rng, seen = random.Random(seed), set(avoid)
    problems: list[WordProblem] = []
    while len(problems) < count:
        problem = draw_problem(rng)
        if problem.question not in seen:
            seen.add(problem.question)
            problems.append(problem)
    return problems
