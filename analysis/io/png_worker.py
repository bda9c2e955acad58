"""Draw PNG files in several processes: a Vega runtime uses one core, and a run has a figure for every pair.

Each process runs this file alone, without importing the package, so that it starts in a moment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NOT_XML = re.compile("[\\0-\\x08\\x0b\\x0c\\x0e-\\x1f\\ud800-\\udfff\\ufffe\\uffff]")
# 330 pixels (style.WIDTH) are 8 cm in print at 300 dots an inch, as the file records; vl-convert draws 72 an inch.
PPI, SCALE = 300, (8 / 2.54 * 72) / 330
FIGURES_PER_WORKER = 8  # at least: fewer are drawn before another process has started
MOST_PIXELS = 10**8  # of one PNG file, 400 MB in memory while it is drawn
SIZE = re.compile(r'<svg [^>]*?width="([0-9.]+)" height="([0-9.]+)"')


class Drawing:
    """PNG files beside Vega-Lite specifications (`.json`): iteration draws them, and yields each file's path.

    `faults` tells why a figure was not drawn; it stops no other.
    """

    def __init__(self, specs: Sequence[Path]) -> None:
        self.specs = specs
        self.faults: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[Path]:
        count = min(os.cpu_count() or 1, 8, len(self.specs) // FIGURES_PER_WORKER)
        if count < 2:
            for spec in self.specs:
                yield self.done(spec, try_to_draw(spec))
            return
        shares = [self.specs[start::count] for start in range(count)]
        workers = [start_worker(share) for share in shares]
        try:
            for worker, share in zip(workers, shares, strict=True):
                for spec in share:
                    line = worker.stdout.readline() if worker.stdout else b""
                    yield self.done(spec, json.loads(line) if line else "the process that draws it has ended")
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()

    def done(self, spec: Path, fault: str | None) -> Path:
        """Keep the fault of a figure, if it has one; the PNG's path."""
        if fault is not None:
            self.faults[spec] = fault
        return spec.with_suffix(".png")


def start_worker(specs: Sequence[Path]) -> subprocess.Popen:
    """A process that draws these one after the other and prints a line after each; it imports from where this does."""
    command = [sys.executable, "-P", __file__]  # -P: the modules beside this file have names of the standard library's
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    if worker.stdin is not None:
        worker.stdin.write(b"\0".join(os.fsencode(spec.resolve()) for spec in specs))
        worker.stdin.close()
        worker.stdin = None
    return worker


def try_to_draw(spec: Path) -> str | None:
    """Draw one specification; None, or why it was not drawn."""
    try:
        path = spec.with_suffix(".png")
        temporary = path.with_suffix(".png.tmp")
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(png_of(svg_of(json.loads(spec.read_text(encoding="utf-8")))))
        temporary.replace(path)
    except (ValueError, OSError) as error:  # vl-convert raises ValueError
        return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    return None


def svg_of(spec: Any) -> str:
    """A specification drawn as SVG, without the characters that SVG forbids."""
    import vl_convert

    return vl_convert.vegalite_to_svg(drawable(spec))


def png_of(svg: str) -> bytes:
    """An SVG as PNG; ValueError for a picture of more than `MOST_PIXELS`."""
    import vl_convert

    if (size := SIZE.match(svg)) is None:
        raise ValueError("the picture has no size")
    width, height = (float(side) * SCALE * PPI / 72 for side in size.groups())
    if width * height > MOST_PIXELS:
        raise ValueError(f"the picture would have {width:.0f} × {height:.0f} pixels, more than {MOST_PIXELS:,}")
    return vl_convert.svg_to_png(svg, ppi=PPI, scale=SCALE)


def drawable(spec: Any) -> Any:
    """The specification without the characters that SVG forbids, which a question may contain."""
    if isinstance(spec, dict):
        return {name: drawable(part) for name, part in spec.items()}
    if isinstance(spec, list):
        return [drawable(part) for part in spec]
    return NOT_XML.sub("\ufffd", spec) if isinstance(spec, str) else spec


if __name__ == "__main__":
    for name in sys.stdin.buffer.read().split(b"\0"):
        print(json.dumps(try_to_draw(Path(os.fsdecode(name)))), flush=True)
