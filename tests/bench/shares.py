"""What a sweep spends its time on: stacks sampled while it runs, and on a GPU its kernels."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Any

import torch

from tests.bench.job import Job
from tests.bench.ours import swept

PRODUCTS, ATTENTION, METRICS = "matrix products", "attention", "metrics and table"
NNSIGHT, MODEL, ENGINE = "nnsight", "other layers of the model", "engine: masks, edits, tokens"
WAITING = ("threading.py", "queue.py", "selectors.py")
MEASURING = (
    "patching/metrics.py",
    "patching/engine/readout.py",
    "patching/engine/table_rows.py",
    "analysis/",
    "/pandas/",
)
INNERMOST = (  # the first that stands in a stack, from the innermost frame outwards
    ("torch/nn/modules/linear.py", PRODUCTS),
    ("peft/", PRODUCTS),  # unmerged LoRA: more products, and their sums
    ("transformers/integrations/sdpa_attention.py", ATTENTION),
    ("/transformers/", MODEL),
    ("torch/nn/", MODEL),
    ("/nnsight/", NNSIGHT),
    ("traces/", ENGINE),
    ("patching/", ENGINE),
)
KERNELS = ((ATTENTION, ("fmha", "flash", "attention")), (PRODUCTS, ("gemm", "cutlass", "nvjet", "xmma", "gemv")))


def share_of(frame: FrameType) -> str | None:
    """What a thread is at; `None` where it waits."""
    if frame.f_code.co_filename.endswith(WAITING):
        return None
    files: list[str] = []
    inner: FrameType | None = frame
    while inner is not None:
        files.append(inner.f_code.co_filename)
        inner = inner.f_back
    if any(part in file for file in files for part in MEASURING):
        return METRICS
    named = (share for file in files for part, share in INNERMOST if part in file)
    return next(named, None)


def host_shares(job: Job, **options: Any) -> dict[str, float]:
    """Shares of the time of one sweep, by where its threads stand every millisecond."""
    counted: Counter[str] = Counter()
    over = threading.Event()

    def look() -> None:
        own = threading.get_ident()
        while not over.is_set():
            recorded = [share_of(frame) for thread, frame in sys._current_frames().items() if thread != own]
            counted.update([next((share for share in recorded if share), "other")])
            time.sleep(0.001)

    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        swept(job, **options)
    finally:
        over.set()
        watcher.join()
        sys.setswitchinterval(before)
    return {share: count / counted.total() for share, count in counted.most_common()}


def kernel_shares(job: Job, **options: Any) -> dict[str, float]:
    """On a GPU, shares of one sweep's time by kernels; what is left over is the GPU waiting for Python."""
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    swept(job, **options)
    torch.cuda.synchronize(job.device)
    taken = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        swept(job, **options)
        torch.cuda.synchronize(job.device)
    spent: Counter[str] = Counter()
    for event in recorded.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, parts in KERNELS if any(part in name for part in parts)), "other kernels, copies")
        spent[kind] += event.self_device_time_total / 1e6
    shares = {kind: seconds / taken for kind, seconds in spent.most_common()}
    return shares | {"GPU idle": max(0.0, 1 - sum(shares.values()))}
