"""What a deployment sends, read without running code of its choice and within limits of size, time and type.

nnsight reads results with `torch.load(weights_only=False)`, which lets whoever answers under the host's address run
code here. A result is tensors, numbers, texts and containers of them: `read_plain` rebuilds these and refuses all else.
"""

from __future__ import annotations

import io
import pickle
import time
import zipfile
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import httpx
import torch
from nnsight.schema.response import Status

from codi_tracing.configs.schema import Remote
from codi_tracing.traces.remote.ndif import (
    CONNECT_TIMEOUT,
    DeploymentError,
    UnreadableAnswer,
    address_of,
    explained,
)

LARGEST_RESULT = 2**30  # bytes of a result, unpacked
LARGEST_STATUS = 16 * 2**20  # bytes of an answer in JSON
REDIRECTED = "answers with a redirect, which is not followed; give the address that it stands for"
MOST_NESTED = 50  # containers within containers
READ_TIMEOUT = 600.0  # seconds without a byte
REBUILD_TENSOR = ("torch._utils", "_rebuild_tensor_v2")


class PlainUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain values; any other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            REBUILD_TENSOR: torch._utils._rebuild_tensor_v2,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): torch.Size,
            (Status.__module__, Status.__qualname__): lambda name: Status(name),
        }
        if (module, name) not in allowed:
            raise UnreadableAnswer(
                f"sends a Python object ({module}.{name}), which could run code here: it is not read"
            )
        return allowed[module, name]


PLAIN = SimpleNamespace(Unpickler=PlainUnpickler, __name__="plain")


def read_plain(content: bytes) -> Any:
    """The value in bytes of `torch.save`, if it is plain and unpacks to at most `LARGEST_RESULT` bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = max(len(content), sum(entry.file_size for entry in archive.infolist()))
        check_size(unpacked, LARGEST_RESULT, "a result")
        value = torch.load(io.BytesIO(content), map_location="cpu", pickle_module=PLAIN, weights_only=False)
        if _bytes_of(value) > 4 * LARGEST_RESULT:  # expanded or shared storage
            raise UnreadableAnswer("sends a result that unpacks to more than is there: it is not read")
        return value
    except UnreadableAnswer:
        raise
    except Exception as error:  # damaged bytes make pickle and torch raise anything
        raise UnreadableAnswer(f"sends a result that cannot be read ({type(error).__name__})") from None


def _bytes_of(value: Any, depth: int = 0) -> int:
    """The size of a plain value; an error if it is not plain."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (dict, list, tuple)) and depth < MOST_NESTED:
        inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return sum(_bytes_of(one, depth + 1) for one in inside)
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return len(value) if isinstance(value, (str, bytes)) else 8
    raise UnreadableAnswer(f"sends a value of type {type(value).__name__}: it is not read")


def check_size(size: int, most: int, what: str) -> None:
    """`UnreadableAnswer` above the largest size, both in bytes."""
    if size > most:
        raise UnreadableAnswer(f"sends {what} of more than {most / 2**20:.0f} MiB: it is not read")


def answer_to(
    method: str, url: str, most: int, *, seconds: float = READ_TIMEOUT, read: float = READ_TIMEOUT, **request: Any
) -> httpx.Response:
    """An HTTP answer with its whole content: no redirect followed, at most `most` bytes and `seconds`."""
    ends, parts, size = time.monotonic() + seconds, [], 0
    timeout = httpx.Timeout(CONNECT_TIMEOUT, read=min(read, seconds))
    with (
        httpx.Client(timeout=timeout, follow_redirects=False) as client,
        client.stream(method, url, **request) as answer,
    ):
        for part in answer.iter_bytes():
            size += len(part)
            check_size(size, most, "an answer")
            if time.monotonic() > ends:
                raise UnreadableAnswer(f"sends an answer for more than {seconds:g} seconds: it is not read")
            parts.append(part)
    if answer.is_redirect:
        raise UnreadableAnswer(REDIRECTED)
    return httpx.Response(answer.status_code, content=b"".join(parts), request=answer.request)


def ask_json(deployment: Remote, path: str) -> dict[str, Any]:
    """A deployment's JSON object under a path, asked for without the key; `DeploymentError` at once if none answers."""
    address = address_of(deployment)
    try:
        answer = answer_to("GET", f"{address}{path}", LARGEST_STATUS, seconds=60.0)
        answer.raise_for_status()
        read = answer.json()
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise DeploymentError(f"{address}: answers {status} to {path}; is it an NDIF deployment?") from None
    except (ValueError, RecursionError):
        raise DeploymentError(f"{address}: {path} is no JSON; is it an NDIF deployment?") from None
    except Exception as error:
        raise explained(error, address) from error
    if not isinstance(read, dict):
        raise DeploymentError(f"{address}: {path} is no JSON object; is it an NDIF deployment?")
    return read
