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


class Drawing:
    """PNG files beside Vega-Lite specifications (`.json`): iteration draws them and yields each file's path."""

    def __init__(self, specs: Sequence[Path]) -> None:
        self.specs = specs

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[Path]:
        count = min(os.cpu_count() or 1, 8, len(self.specs) // FIGURES_PER_WORKER)
        if count < 2:
            for spec in self.specs:
                yield draw(spec)
            return
        shares = [self.specs[start::count] for start in range(count)]
        workers = [start_worker(share) for share in shares]
        try:
            for worker, share in zip(workers, shares, strict=True):
                assert worker.stdout is not None
                for spec in share:
                    if not worker.stdout.readline():
                        raise RuntimeError(f"{spec}: could not be drawn; see its process's error above")
                    yield spec.with_suffix(".png")
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()


def start_worker(specs: Sequence[Path]) -> subprocess.Popen:
    """A process that draws these one after the other, and prints a line after each."""
    command = [sys.executable, "-I", __file__]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin is not None
    worker.stdin.write(b"\0".join(os.fsencode(spec.resolve()) for spec in specs))
    worker.stdin.close()
    worker.stdin = None
    return worker


def draw(spec: Path) -> Path:
    """Draw one specification; the PNG's path."""
    import vl_convert

    path = spec.with_suffix(".png")
    picture = drawable(json.loads(spec.read_text(encoding="utf-8")))
    path.write_bytes(vl_convert.vegalite_to_png(picture, ppi=PPI, scale=SCALE))
    return path


def drawable(spec: Any) -> Any:
    """The specification without the characters that SVG forbids, which a question may contain."""
    if isinstance(spec, dict):
        return {name: drawable(part) for name, part in spec.items()}
    if isinstance(spec, list):
        return [drawable(part) for part in spec]
    return NOT_XML.sub("\ufffd", spec) if isinstance(spec, str) else spec


if __name__ == "__main__":
    for name in sys.stdin.buffer.read().split(b"\0"):
        draw(Path(os.fsdecode(name)))
        print("drawn", flush=True)
