"""nnsight's client of a deployment, with everything that arrives read within limits and without running code.

The key goes to the deployment's own origin, and no redirect is followed.
"""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version
from typing import Any

import httpx
import websocket
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteBackend, RemoteError
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel

from codi_tracing.traces.remote.ndif import CONNECT_TIMEOUT, UnreadableAnswer, api_key
from codi_tracing.traces.remote.responses import (
    LARGEST_RESULT,
    LARGEST_STATUS,
    REDIRECTED,
    answer_to,
    check_size,
    read_plain,
)

LARGEST_MESSAGE = 64 * 2**20  # bytes of a websocket's message; results above 8 MiB are downloaded


class CappedSocket(websocket.WebSocket):
    """A websocket whose messages have a largest size, and whose wait ends at `deadline` though bytes still arrive."""

    deadline = float("inf")

    def recv_frame(self) -> Any:
        buffer = self.frame_buffer
        if buffer.needs_header():
            buffer.recv_header()
        if buffer.needs_length():
            buffer.recv_length()
        earlier = self.cont_frame.cont_data
        check_size((buffer.length or 0) + (len(earlier[1]) if earlier else 0), LARGEST_MESSAGE, "a message")
        return super().recv_frame()

    def _recv(self, bufsize: int) -> bytes:
        if time.monotonic() > self.deadline:
            raise websocket.WebSocketTimeoutException("the message is not complete yet")
        return super()._recv(bufsize)  # type: ignore[return-value]


class GuardedBackend(RemoteBackend):
    """nnsight's client of a deployment, with everything that arrives read by this module."""

    def __init__(self, model_key: str, **options: Any) -> None:
        super().__init__(model_key, **options)
        self.api_key = api_key(self.host) or ""
        self.display.enabled = False

    @staticmethod
    def parse(message: str | bytes) -> ResponseModel:
        """A status update or a result, from a text or a binary frame."""
        try:
            if isinstance(message, (bytes, bytearray)):
                return ResponseModel(**read_plain(bytes(message)))
            return ResponseModel.model_validate_json(message)
        except (ValueError, TypeError) as error:
            if isinstance(error, UnreadableAnswer):
                raise
            raise UnreadableAnswer("sends what is no answer of an NDIF deployment") from None

    def download_result(self, url: Any) -> Any:
        """The saved values: `url` holds them, or says where they are."""
        if isinstance(url, (bytes, bytearray)):
            return self.finalize(bytes(url))
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            raise UnreadableAnswer("names no address of its result")
        if self.host.startswith("https://") and not url.startswith("https://"):
            raise UnreadableAnswer("sends its result over http, which others can change; expected https")
        answer = answer_to("GET", url, LARGEST_RESULT)
        answer.raise_for_status()
        return self.finalize(answer.content)

    def finalize(self, content: bytes) -> Any:
        """The saved values in the bytes of a result."""
        if self.compress:
            import zstandard

            try:
                reader = zstandard.ZstdDecompressor().stream_reader(content)
                content = reader.read(LARGEST_RESULT + 1)
            except zstandard.ZstdError:
                raise UnreadableAnswer("sends a result that cannot be unpacked") from None
            check_size(len(content), LARGEST_RESULT, "a result")
        saved = read_plain(content)
        if not isinstance(saved, dict) or "value" not in saved:
            raise UnreadableAnswer("sends a result without the values that were asked for")
        return saved

    def _post(self, request: Any, blob: bytes) -> ResponseModel:
        headers = {"ndif-timestamp": repr(time.time()), **self._versions(), **self._key()}
        files = {"blob": ("request", blob, "application/octet-stream")}
        try:
            answer = answer_to(
                "POST",
                f"{self.host}/request",
                LARGEST_STATUS,
                data={"data": request.metadata()},
                files=files,
                headers=headers,
            )
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            raise RemoteError(f"Failed to send request: {_detail(error)}") from error
        except httpx.HTTPError as error:
            raise RemoteError(f"Failed to send request: {error}") from error
        return self.parse(answer.text)

    def poll(self, tracer: Any = None) -> Any:
        """The saved values of a submitted job once they are there; None before."""
        url = f"{self.host}/response/{self.job_id}"
        answer = answer_to("GET", url, LARGEST_RESULT, headers=self._key())
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None  # no status is recorded yet
        answer.raise_for_status()
        response = self.parse(answer.text)
        self.status = response.status
        return self.handle(response)

    def _key(self) -> dict[str, str]:
        return {"ndif-api-key": self.api_key} if self.api_key else {}

    @staticmethod
    def _versions() -> dict[str, str]:
        return {"nnsight-version": version("nnsight"), "python-version": platform.python_version()}


class GuardedStream(GuardedBackend, AsyncRemoteBackend):
    """The same for a job that is waited for on a websocket."""

    connection: CappedSocket | None

    def __call__(self, tracer: Any = None) -> GuardedStream:
        blob = self._serialize(tracer)
        self.connection = CappedSocket()
        self.connection.settimeout(CONNECT_TIMEOUT)
        try:
            self.connection.connect(f"{self.ws_host}/subscribe", header=self._key(), redirect_limit=0)
        except websocket.WebSocketException as error:
            raise UnreadableAnswer(REDIRECTED) if "edirect" in str(error) else error from None
        request = RequestModel(model_key=self.model_key, compress=self.compress, env=self.env)
        try:
            request.session_id = json.loads(self.receive_message(CONNECT_TIMEOUT) or "")["session_id"]
        except (ValueError, TypeError, KeyError):
            raise UnreadableAnswer("opens no session; is it an NDIF deployment?") from None
        self.send(request, blob)
        return self

    def receive_message(self, seconds: float) -> str | bytes | None:
        """The next message; None if it has not arrived whole after `seconds`."""
        assert self.connection is not None
        self.connection.settimeout(seconds)
        self.connection.deadline = time.monotonic() + seconds
        try:
            message = self.connection.recv()
        except websocket.WebSocketTimeoutException:
            return None
        except (websocket.WebSocketPayloadException, websocket.WebSocketProtocolException) as error:
            raise UnreadableAnswer(f"sends a message that cannot be read ({type(error).__name__})") from None
        if not message:  # a closing frame
            raise websocket.WebSocketConnectionClosedException("closed by the host")
        return message


def _detail(error: httpx.HTTPStatusError) -> str:
    """What the server says about a refused request."""
    try:
        body = error.response.json()
    except ValueError:
        return error.response.text or str(error)
    return str(body.get("detail") if isinstance(body, dict) else body)
