"""Helpers of the tests of the command line."""

QUESTION = {"pair_id": 0, "question": "Ann had 7 pens. How many?"}
PAIR = [
    {**QUESTION, "variant": "clean", "answer": 7},
    {**QUESTION, "variant": "corrupted", "answer": 8, "question": "8?"},
]


def refused(result) -> str:
    """The sentence of a refusal: exit code 2, one line on stderr, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line, *rest = result.stderr.splitlines()
    assert rest == []
    assert line.startswith("codi: ")
    return line


def small_run(folder, checkpoint, pairs):
    """A config of a run that takes a moment."""
    text = f'name = "small"\ncheckpoint = "{checkpoint}"\npairs_per_batch = 2\nmetrics = ["logit_difference"]\n'
    (folder / "small.toml").write_text(f'{text}[pairs]\nfile = "{pairs}"\nlimit = 6\n', encoding="utf-8")
    return "small.toml"
