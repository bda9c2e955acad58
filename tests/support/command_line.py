"""The command line, called in this process, and inputs for it."""

from functools import cache

import typer.testing

from codi_tracing.cli.main import app

# Typer builds the tree of commands anew for each call, which takes longer than most commands.
typer.testing._get_command = cache(typer.testing._get_command)

QUESTION = {"pair_id": 0, "question": "Ann had 7 pens. How many?"}
PAIR = [
    {**QUESTION, "variant": "clean", "answer": 7},
    {**QUESTION, "variant": "corrupted", "answer": 8, "question": "8?"},
]


def codi(*words: object) -> typer.testing.Result:
    """Call `codi` with these words: its exit code, output, stdout, stderr and exception."""
    return typer.testing.CliRunner().invoke(app, [str(word) for word in words])


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
