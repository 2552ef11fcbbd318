"""A client of the ai-runner's interface that follows go-livepeer's worker rule by rule, in Python's library alone: what that
worker sends, which replies it can read, and what it does with pictures. Where the worker would crash, this raises Crash."""
import base64
import http.client
import json
import re
import struct
import time
import urllib.parse
import uuid
import zlib

JSON_STATUSES = {200, 400, 401, 422, 500}
IMAGE_TYPES = {"image/png", "image/jpg", "image/jpeg", "image/gif"}


class Crash(Exception):
    """The Go worker would dereference nil here."""


class RunnerError(Exception):
    """The error that the Go worker hands on."""


def decode_png(data):
    """(width, height, RGB bytes) of an 8-bit RGB PNG; every chunk's checksum is checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "no PNG"
    at, packed, head = 8, b"", None
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + size]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + size:at + 12 + size])[0], "checksum of a chunk"
        head = struct.unpack(">IIBBBBB", body) if kind == b"IHDR" else head
        packed += body if kind == b"IDAT" else b""
        at += 12 + size
    width, height, depth, colour = head[:4]
    assert (depth, colour, kind) == (8, 2, b"IEND"), head
    rows = zlib.decompress(packed)
    assert len(rows) == height * (1 + 3 * width), "rows of pixels"
    return width, height, rows


def picture_of(url):
    """A data URL as the worker reads it: its type must be one that Go decodes."""
    head, _, data = url.partition(",")
    match = re.fullmatch(r"data:([\w/]+);base64", head)
    if not match:
        raise RunnerError("not a data URL: " + url[:40])
    if match.group(1) not in IMAGE_TYPES:
        raise RunnerError("unsupported type " + match.group(1))
    return decode_png(base64.b64decode(data, validate=True))


def go_text(value):
    """A form value as Go's writer prints it: floats with six decimals."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, float) else str(value)


class RunnerClient:
    def __init__(self, url, token=None):
        self.address = urllib.parse.urlparse(url)
        self.token = token

    def _ask(self, method, path, body=None, content_type=None, timeout=None):
        headers = {"User-Agent": "Go-http-client/1.1"}
        if content_type:
            headers["Content-Type"] = content_type
        if self.token is not None:
            headers["Authorization"] = "Bearer " + self.token
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, reply.getheader("Content-Type", ""), reply.read()
        finally:
            connection.close()

    def _get(self, path):
        """GET that the worker reads without looking: a 200 that is no JSON is a nil that it dereferences."""
        status, kind, body = self._ask("GET", path, timeout=5)
        if status == 200 and "json" not in kind:
            raise Crash(f"{path}: 200 without JSON")
        return status, json.loads(body)

    def wait_ready(self, seconds=180):
        """Polls /health as the worker does before it uses a runner, then reads hardware and version."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                status, body = self._get("/health")
            except OSError:
                status = 0
            if status == 200:
                if body["status"] == "ERROR":
                    raise RunnerError("the runner has failed")
                break
            time.sleep(0.5)
        else:
            raise RunnerError("not ready in time")
        hardware = self._get("/hardware/info")[1]
        version = self._get("/version")[1]
        assert isinstance(hardware["gpu_info"], dict) and hardware["pipeline"] == version["pipeline"], (hardware, version)
        return version

    def health(self):
        return self._get("/health")[1]["status"]

    def _generate(self, pipeline, body, content_type):
        status, kind, reply = self._ask("POST", "/" + pipeline, body, content_type)
        if status not in JSON_STATUSES or "json" not in kind:
            raise Crash(f"{pipeline}: {status} {kind}")
        reply = json.loads(reply)
        if status == 200:
            return reply
        if status == 422:
            assert all({"loc", "msg", "type"} <= set(entry) for entry in reply["detail"]), reply
            raise RunnerError(f"{pipeline} container returned 422: {json.dumps(reply)}")
        if not isinstance(reply["detail"], dict):
            raise RunnerError("json: cannot unmarshal string into Go struct field")
        raise RunnerError(f"{pipeline} container returned {status}: {reply['detail']['msg']}")

    def _media(self, list_of_media):
        out = []
        for media in list_of_media:
            assert set(media) >= {"url", "seed", "nsfw"} and type(media["nsfw"]) is bool, media.keys()
            assert type(media["seed"]) is int and -2 ** 63 <= media["seed"] < 2 ** 63, media["seed"]
            out.append((picture_of(media["url"]), media["seed"], media["nsfw"]))
        return out

    def text_to_image(self, model_id, prompt, **fields):
        body = json.dumps({"model_id": model_id, "prompt": prompt, **fields}).encode()
        return self._media(self._generate("text-to-image", body, "application/json")["images"])

    def _form(self, pipeline, image, fields):
        """The worker's own multipart writer: the image first, as octets, then the fields in the order of the schema."""
        boundary = uuid.uuid4().hex + uuid.uuid4().hex[:28]
        parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
                 "Content-Type: application/octet-stream\r\n\r\n".encode() + image + b"\r\n"]
        parts += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{go_text(value)}\r\n'.encode()
                  for name, value in fields.items()]
        parts.append(f"--{boundary}--\r\n".encode())
        return self._generate(pipeline, b"".join(parts), "multipart/form-data; boundary=" + boundary)

    def image_to_image(self, model_id, image, prompt, **fields):
        return self._media(self._form("image-to-image", image, {"prompt": prompt, "model_id": model_id, **fields})["images"])

    def upscale(self, model_id, image, prompt, **fields):
        return self._media(self._form("upscale", image, {"prompt": prompt, "model_id": model_id, **fields})["images"])

    def image_to_video(self, model_id, image, **fields):
        frames = self._form("image-to-video", image, {"model_id": model_id, **fields})["frames"]
        if len(frames) != 1:
            raise RunnerError("expected exactly one batch")
        return self._media(frames[0])
