"""An NDIF deployment: its address and status, and every failure of it as a sentence.

The environment variable NDIF_API_KEY holds the key.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

import httpx
import nnsight
import websocket
from nnsight.intervention.backends.remote import RemoteError

from codi_tracing.configs.schema import Remote

CONNECT_TIMEOUT = 60.0  # seconds
API_KEY = "NDIF_API_KEY"
CONNECTION_ERRORS = (
    ConnectionError, TimeoutError, httpx.TransportError, websocket.WebSocketConnectionClosedException,
    websocket.WebSocketTimeoutException, websocket.WebSocketBadStatusException,
)  # fmt: skip
RESTART_MESSAGES = ("Replica was evicted", "Critical server error", "Error submitting request")  # ndif's, of lost jobs


class DeploymentError(ValueError):
    """A deployment cannot be reached, refuses, or fails; the message says which, and what to do."""


class UnreadableAnswer(Exception):
    """What a deployment sends is not read; the message says what it does ("sends …"), without its address."""


def address_of(deployment: Remote) -> str:
    """The deployment's address; by default nnsight's, the public one.

    `DeploymentError` where the key and the questions would travel unencrypted to another machine.
    """
    address = (deployment.host or nnsight.CONFIG.API.HOST).rstrip("/")
    if address.startswith("http://") and not (deployment.allow_http or is_loopback(urlsplit(address).hostname or "")):
        raise DeploymentError(
            f"{address}: over http the key and the questions would travel unencrypted; expected https, or "
            "remote.allow_http = true"
        )
    return address


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def api_key(address: str) -> str | None:
    """The environment's key, or nnsight's for nnsight's own host; `DeploymentError` if it cannot be one."""
    kept = nnsight.CONFIG.API.APIKEY if address == nnsight.CONFIG.API.HOST else None
    key = (os.environ.get(API_KEY) or kept or "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise DeploymentError(f"{API_KEY}: holds blanks or characters that no key has; expected one word in ASCII")
    return key or None


def is_temporary(error: Exception) -> bool:
    """Whether another try may succeed: a lost connection, a server that restarts."""
    cause = cause_of(error)
    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code in (502, 503, 504)
    return isinstance(cause, CONNECTION_ERRORS) or any(message in str(error) for message in RESTART_MESSAGES)


def cause_of(error: Exception) -> BaseException:
    """The cause of a failure to send; any other failure itself."""
    return error.__cause__ if isinstance(error, RemoteError) and error.__cause__ is not None else error


def explained(error: Exception, address: str) -> Exception:
    """A failure as an error of one sentence."""
    if isinstance(error, DeploymentError):
        return error
    cause, text = cause_of(error), without_key(str(error).removeprefix("Failed to send request: ").strip())
    last = last_line(text)
    if isinstance(error, UnreadableAnswer):
        return DeploymentError(f"{address}: {last}")
    if "out of memory" in text:
        return MemoryError(f"{address}: memory ran out there: {last}")
    if isinstance(cause, ConnectionRefusedError) or "onnection refused" in text:
        sentence = "the connection is refused; is a deployment running there?"
    elif (
        isinstance(cause, websocket.WebSocketAddressException)
        or "ame or service not known" in text
        or ("name resolution" in text)
    ):
        sentence = "this address is unknown; check remote.host"
    elif "API key" in text:
        refusal = text.partition(". ")[0].partition(":")[0].rstrip(".")  # without the key itself
        sentence = f"{refusal}; set {API_KEY} to a key of this deployment"
    elif "deploy this model" in text:
        sentence = f"{last}; name a base that it can load in remote.base"
    elif "adapter_config.json" in text:
        sentence = f"{last}; name an adapter that it can load in remote.adapter"
    elif isinstance(cause, CONNECTION_ERRORS):
        sentence = f"the connection was lost ({last or type(cause).__name__}); run it again to resume"
    elif is_temporary(error):
        sentence = f"is not available now ({last}); run it again to resume"
    else:
        sentence = f"the job failed there: {last or type(error).__name__}"
    return DeploymentError(f"{address}: {sentence}")


def without_key(text: str) -> str:
    """Text from a deployment without the key, which it may echo."""
    key = os.environ.get(API_KEY, "").strip()
    return text.replace(key, f"[{API_KEY}]") if key else text


def last_line(text: str) -> str:
    """The last line that is not blank, cut and without control characters: of a traceback, the error itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "".join(filter(str.isprintable, lines[-1][:300])).rstrip(".") if lines else ""
