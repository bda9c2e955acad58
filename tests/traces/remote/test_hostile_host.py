"""A host that lies, floods, redirects or echoes costs one sentence: no code runs, no memory or time is lost, no key."""

import io
import os
import pickle
import time
import zipfile
import zlib
from contextlib import suppress

import pytest
import torch
import zstandard

from codi_tracing.configs.schema import Remote
from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.interventions.sites import THOUGHT
from codi_tracing.patching.interventions.sources import other
from codi_tracing.patching.runs.ndif_check import compared_versions, served
from codi_tracing.traces.remote import guarded_backend, responses
from codi_tracing.traces.remote.ndif import DeploymentError, address_of, api_key
from codi_tracing.traces.remote.responses import UnreadableAnswer, ask_json, read_plain
from codi_tracing.traces.remote.session import start
from tests.support.scripted_host import BINARY, Host, endless, frame, http, redirect, status

KEY = "a-secret-key-0123456789"


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    with Host().running() as host:
        yield host


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """The limits, small enough for a test to exceed them."""
    for name in ("LARGEST_RESULT", "LARGEST_STATUS"):
        monkeypatch.setattr(responses, name, 2**20)
        monkeypatch.setattr(guarded_backend, name, 2**20)
    monkeypatch.setattr(guarded_backend, "LARGEST_MESSAGE", 2**20)


def body():
    return 1


def asked(model, host, **options):
    """The value of a session on the host."""
    return start(model, body, remote=Remote(host=host.address, retries=0, **options)).result()


def saved(value, **options):
    """The bytes of a result, as a server writes them."""
    with io.BytesIO() as file:
        torch.save(value, file, pickle_protocol=4, **options)
        return file.getvalue()


def packed(value):
    return zstandard.ZstdCompressor().compress(saved(value))


def completed(data):
    """The frame that brings a result."""
    return frame(saved({"id": "j", "status": "COMPLETED", "data": data}), BINARY)


def part(kind):
    """A frame of 64 KiB whose message goes on: the first of a text (1), or the next (0)."""
    return bytes([kind]) + b"\x7e\xff\xff" + b"x" * 65535


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, made):
        self.made = str(made)

    def __reduce__(self):
        return os.mkdir, (self.made,)


RESULT = [(torch.ones(2, 3, dtype=torch.bfloat16), [1, 2.5, None], ("text", True)), torch.tensor([False])]


def test_a_result_arrives_on_the_socket_or_from_an_address(model, host):
    host.frames = [
        status("QUEUED"),
        completed(packed({"value": RESULT})),
    ]
    inline = asked(model, host)
    host.frames = [status("COMPLETED", f"{host.address}/result")]
    host.answers["/result"] = http(packed({"value": RESULT}))
    downloaded = asked(model, host)
    for value in (inline, downloaded):
        assert value[0][0].equal(RESULT[0][0])
        assert value[0][1:] == RESULT[0][1:]
        assert value[1].equal(RESULT[1])
    keys = {path for path, headers in host.seen if headers.get("ndif-api-key") == KEY}
    assert keys == {"/subscribe", "/request"}  # the object store gets no key


def test_a_status_that_is_an_enum_arrives_as_nnsight_sends_it():
    from nnsight.schema.response import ResponseModel, Status

    sent = ResponseModel(id="j", status=Status.COMPLETED, data=b"x")
    assert guarded_backend.GuardedBackend.parse(sent.pickle()) == sent


@pytest.mark.parametrize("route", ["frame", "inside", "download", "poll"])
def test_a_pickle_that_would_run_code_runs_none(model, host, tmp_path, route):
    made = tmp_path / "made"
    pickled = {"value": Bomb(made)}
    if route == "frame":
        host.frames = [completed(Bomb(made))]
    elif route == "inside":
        host.frames = [completed(packed(pickled))]
    else:
        host.frames = [status("COMPLETED", f"{host.address}/result")]
        host.answers["/result"] = http(packed(pickled))
    if route == "poll":
        host.answers["/response/job"] = http(
            b'{"id": "job", "status": "COMPLETED", "data": "%s/result"}' % host.address.encode()
        )
        polled = guarded_backend.GuardedBackend("", host=host.address, blocking=False, job_id="job")
        with pytest.raises(UnreadableAnswer, match=r"a Python object \(posix.mkdir\), which could run code here"):
            polled.poll()
    else:
        with pytest.raises(
            DeploymentError, match=r"a Python object \(posix.mkdir\), which could run code here"
        ) as said:
            asked(model, host)
        assert str(said.value).startswith(host.address)
    assert not made.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(
    "name", ["builtins.eval", "os.system", "torch.load", "nnsight.save", "torch._utils._rebuild_parameter"]
)
def test_bare_and_wrapped_pickles_of_any_protocol_name_nothing(tmp_path, protocol, name):
    module, _, attribute = name.rpartition(".")
    bare = f"c{module}\n{attribute}\n(S'1'\ntR.".encode()
    for content in (
        bare,
        pickle.dumps(Bomb(tmp_path / "made"), protocol),
        zip_of(bare),
        zip_of(pickle.dumps(Bomb(tmp_path / "made"), protocol)),
    ):
        with pytest.raises(UnreadableAnswer):
            read_plain(content)
    assert not (tmp_path / "made").exists()


def zip_of(pickled, compression=zipfile.ZIP_STORED, **files):
    """An archive in torch's form around any pickle."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
            for name, content in files.items():
                archive.writestr(f"archive/{name}", content)
        return file.getvalue()


def test_results_that_unpack_to_more_than_is_allowed_are_not_read():
    backend = guarded_backend.GuardedBackend("", host="http://127.0.0.1:1")
    with pytest.raises(UnreadableAnswer, match="a result of more than 1 MiB"):
        backend.finalize(zstandard.ZstdCompressor().compress(b"\0" * (8 * 2**20)))
    with pytest.raises(UnreadableAnswer, match="a result of more than 1 MiB"):
        read_plain(zip_of(pickle.dumps(1), zipfile.ZIP_DEFLATED, data=b"\0" * (8 * 2**20)))
    with pytest.raises(UnreadableAnswer, match="unpacks to more than is there"):
        read_plain(saved({"value": torch.zeros(1).expand(10**9)}))
    deep = None
    for _ in range(100):
        deep = [deep]
    with pytest.raises(UnreadableAnswer):
        read_plain(saved(deep))


def test_damaged_results_are_one_sentence():
    whole = saved({"value": RESULT})
    for at in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        with suppress(UnreadableAnswer):  # any other error fails the test
            read_plain(bytes(changed))
    with pytest.raises(UnreadableAnswer, match="cannot be read"):
        read_plain(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        ([frame(b"not json")], "sends what is no answer of an NDIF deployment"),
        ([frame(b'{"id": "j"}')], "sends what is no answer of an NDIF deployment"),
        ([frame(b"[" * 100_000)], "sends what is no answer of an NDIF deployment"),
        ([frame(b"\xff\xfe")], "sends a message that cannot be read"),
        ([b"\xf7\x05hello"], "sends a message that cannot be read"),
        ([frame(b"x", length=2**62)], "sends a message of more than 1 MiB"),
        ([part(1)] + [part(0)] * 40, "sends a message of more than 1 MiB"),
        ([frame(b"junk", BINARY)], "sends a result that cannot be read"),
        ([status("COMPLETED", 7)], "names no address of its result"),
        ([status("COMPLETED", "file:///etc/passwd")], "names no address of its result"),
        ([completed(packed([1]))], "sends a result without the values that were asked for"),
        ([completed(b"junk")], "sends a result that cannot be unpacked"),
        ([status("ERROR", description="x" * 10**6)], "the job failed there: xxx"),
        ([b"\x88\x00"], "the connection was lost"),
    ],
)  # fmt: skip
def test_a_bad_message_is_one_short_sentence_that_names_the_host(model, host, frames, sentence):
    host.frames = frames
    with pytest.raises(DeploymentError) as said:
        asked(model, host)
    assert sentence in str(said.value)
    assert str(said.value).startswith(f"{host.address}: ")
    assert len(str(said.value)) < 500
    assert "\n" not in str(said.value)


def test_endless_answers_end(model, host):
    host.answers["/status"] = endless()
    with pytest.raises(DeploymentError, match="an answer of more than 1 MiB"):
        ask_json(Remote(host=host.address), "/status")
    host.frames = [status("COMPLETED", f"{host.address}/result")]
    host.answers["/result"] = endless()
    with pytest.raises(DeploymentError, match="an answer of more than 1 MiB"):
        asked(model, host)
    host.answers["/request"] = endless()
    with pytest.raises(DeploymentError, match="an answer of more than 1 MiB"):
        asked(model, host)


def test_an_answer_that_drips_ends_with_its_time(host):
    def drip(out):
        out.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            out.write(b"x")
            out.flush()
            time.sleep(0.01)

    host.answers["/drip"] = drip
    with pytest.raises(UnreadableAnswer, match="an answer for more than 0.2 seconds"):
        responses.answer_to("GET", f"{host.address}/drip", 2**20, seconds=0.2)


def test_a_message_that_drips_ends_with_the_jobs_timeout(model, host):
    sent = Host.converse

    def drip(read, write):
        sent(host, read, Dripping(write)) if host.seen else sent(host, read, write)

    class Dripping:
        def __init__(self, out):
            self.out = out

        def write(self, content):
            if content.startswith(b"\x81") and b"RUNNING" in content:
                for byte in content:
                    self.out.write(bytes([byte]))
                    time.sleep(0.05)
            else:
                self.out.write(content)

    host.frames = [status("RUNNING", description="x" * 4000)]
    host.seen.append(("", {}))
    host.converse = drip
    began = time.monotonic()
    with pytest.raises(DeploymentError, match="a job is still RECEIVED after 1 seconds"):
        asked(model, host, timeout=1.0)
    assert time.monotonic() - began < 60


def test_no_redirect_is_followed_and_the_key_goes_nowhere_else(model, host):
    with Host().running() as other:
        host.answers["/status"] = redirect(f"{other.address}/status")
        with pytest.raises(DeploymentError, match="answers with a redirect, which is not followed"):
            ask_json(Remote(host=host.address), "/status")
        host.answers["/request"] = redirect(f"{other.address}/request")
        with pytest.raises(DeploymentError, match="answers with a redirect, which is not followed"):
            asked(model, host)
        host.answers["/subscribe"] = redirect(f"{other.address}/subscribe")
        with pytest.raises(DeploymentError, match="redirect"):
            asked(model, host)
        host.answers["/response/job"] = redirect(f"{other.address}/response/job")
        with pytest.raises(UnreadableAnswer, match="redirect"):
            guarded_backend.GuardedBackend("", host=host.address, blocking=False, job_id="job").poll()
        assert other.seen == []


@pytest.mark.parametrize("echo", ["detail", "text", "handshake", "error", "status"])
def test_a_key_that_the_host_echoes_is_not_shown(model, host, echo):
    if echo == "detail":
        host.answers["/request"] = http(f'{{"detail": "no job for {KEY} here"}}'.encode(), "400 Bad Request")
    elif echo == "text":
        host.answers["/request"] = http(f"who is {KEY}".encode(), "500 Oh", f"X-Echo: {KEY}")
    elif echo == "handshake":
        host.answers["/subscribe"] = http(f"who is {KEY}".encode(), f"403 {KEY}", f"X-Echo: {KEY}")
    elif echo == "error":
        host.frames = [status("ERROR", description=f"Traceback\nValueError: \x1b[31m{KEY}\x1b]0;title\x07")]
    else:
        host.answers["/subscribe"] = redirect(f"http://127.0.0.1:9/{KEY}")
    with pytest.raises(DeploymentError) as said:
        asked(model, host)
    assert KEY not in str(said.value)
    assert str(said.value).isprintable()


def test_the_key_is_trimmed_and_one_that_no_header_can_hold_is_refused_unshown(monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", f"  {KEY}\n")
    assert api_key("https://a.host") == KEY
    for wrong in (f"{KEY}\nX-Injected: 1", f"{KEY} {KEY}", f"{KEY}é"):
        monkeypatch.setenv("NDIF_API_KEY", wrong)
        with pytest.raises(DeploymentError, match="NDIF_API_KEY: holds blanks") as said:
            api_key("https://a.host")
        assert KEY not in str(said.value)


def test_the_key_that_nnsight_keeps_for_its_own_host_goes_to_no_other(monkeypatch, host):
    import nnsight

    monkeypatch.delenv("NDIF_API_KEY")
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "kept-by-nnsight")
    assert guarded_backend.GuardedBackend("", host=host.address).api_key == ""
    assert guarded_backend.GuardedBackend("", host=nnsight.CONFIG.API.HOST).api_key == "kept-by-nnsight"


@pytest.mark.parametrize(
    "address", ["http://a.host", "http://10.0.0.5:5001", "http://localhost.evil.org", "http://127.0.0.1.nip.io"]
)
def test_an_address_without_encryption_is_this_machines_or_allowed(address):
    with pytest.raises(DeploymentError, match=r"would travel unencrypted; expected https, or remote.allow_http = true"):
        address_of(Remote(host=address))
    assert address_of(Remote(host=address, allow_http=True)) == address
    assert address_of(Remote(host="http://127.0.0.1:5001")) == "http://127.0.0.1:5001"
    assert address_of(Remote(host="http://[::1]:5001")) == "http://[::1]:5001"


def test_a_result_over_http_is_not_taken_from_a_deployment_over_https():
    backend = guarded_backend.GuardedBackend("", host="https://a.host")
    with pytest.raises(UnreadableAnswer, match="its result over http, which others can change"):
        backend.download_result("http://a.host/result")


def test_compressed_http_answers_count_unpacked(host):
    bomb = zlib.compress(b"\0" * (64 * 2**20), 9)
    host.answers["/status"] = http(bomb, "200 OK", "Content-Encoding: deflate")
    with pytest.raises(DeploymentError, match="an answer of more than 1 MiB"):
        ask_json(Remote(host=host.address), "/status")


@pytest.mark.parametrize("value", [7, [7], [(1, 2)], {"a": 1}])
def test_values_of_another_form_than_asked_for_are_one_sentence(model, pairs, host, value):
    host.frames = [completed(packed({"value": value}))]
    with pytest.raises(DeploymentError, match="returned values of another form than asked for"):
        sweep(model, pairs[:1], [THOUGHT], [other], metrics=["logit_difference"], remote=host.address)


def test_a_check_reads_whatever_status_and_versions_a_host_sends(model, host):
    host.answers["/env"] = http(b'{"packages": {"torch": 7, "nnsight": null}, "python_version": []}')
    assert "versions" in compared_versions(Remote(host=host.address)).sentence.lower()
    for answer in ({"deployments": []}, {"deployments": {"a": 1}}, {"deployments": {"a": {"model_key": []}}}, {}):
        assert served(model, answer).sentence.startswith("The base")
