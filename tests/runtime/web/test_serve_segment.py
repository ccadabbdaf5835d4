"""``/v1/segment``: the same verdict as the segmenter's own, whatever way the image came; and what is refused, with its reason."""

import base64
import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from agvas_runtime.masks.run_lengths import coco_run_lengths

# pycocotools 2 speaks to NumPy 2 in NumPy 1's words.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def claiming(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG whose header says that size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def unpacked(text: str, flags: int = cv2.IMREAD_UNCHANGED):
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), flags)


def test_an_upload_gets_the_segmenters_own_verdict_and_mask(client, segmenter, image, part) -> None:
    (own,) = segmenter.predict(image)
    answer = client.upload(part, include="polygons,rle,png,score")
    assert answer.status == 200, answer.body
    (entry,) = answer.json["results"]
    assert entry["verdict"] == "FAIL" and answer.json["bundle"] == segmenter.bundle.identity
    assert entry["regions"] == own.to_dict()["regions"]
    assert entry["name"] == "0.png"  # the last part of the client's path, for show
    assert np.array_equal(unpacked(entry["mask_png"]) > 0, own.mask)
    assert np.array_equal(coco.decode(entry["mask_rle"]).astype(bool), own.mask)
    assert np.abs(unpacked(entry["score_png"]) / 65535 - own.score_map).max() < 1e-4


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:;base64,"])
def test_base64_is_the_same_image(client, part, prefix: str) -> None:
    answer = client.post("/v1/segment", {"images": [prefix + base64.b64encode(part).decode()], "include": ["rle"]})
    (entry,), (uploaded,) = answer.json["results"], client.upload(part, include="rle").json["results"]
    assert entry["mask_rle"] == uploaded["mask_rle"] and entry["score"] == uploaded["score"]
    assert "polygon" not in entry["regions"][0]


def test_words_mode_and_threshold_reach_the_model(client, part) -> None:
    bright = client.upload(part, prompt="find the bright").json["results"][0]
    assert bright["regions"][0]["area_px"] > 96 * 128 / 2
    (described,) = client.upload(part, mode="describe").json["results"]
    assert described["answer"] == "sure it is [mask] ." or "[mask]" in described["answer"]
    told = client.upload(part, mode="describe-plus", normal_look="the image is bright", threshold="0.25")
    assert told.json["results"][0]["threshold"] == 0.25 and told.json["results"][0]["mode"] == "describe-plus"


def test_a_batch_keeps_its_order_and_an_image_that_is_broken_has_no_verdict(client, part, png, make_part) -> None:
    answer = client.upload(part, b"no image", png(make_part()))
    assert answer.status == 200
    assert [entry["verdict"] for entry in answer.json["results"]] == ["FAIL", "NO_VERDICT", "PASS"]
    assert [entry["index"] for entry in answer.json["results"]] == [0, 1, 2]
    assert "convert it" in answer.json["results"][1]["error"]


def test_bombs_are_refused_by_their_header(client, part) -> None:
    huge = client.upload(claiming(60_000, 60_000))
    assert huge.status == 413 and "60000x60000" in huge.error and "--max-pixels" in huge.error
    bomb = claiming(30_000, 30_000, bytes(30_001 * 30_000 // 100))
    assert len(bomb) < 1 << 20 and client.upload(bomb).status == 413
    entries = client.upload(part, bomb).json["results"]
    assert [entry["verdict"] for entry in entries] == ["FAIL", "NO_VERDICT"]
    lying = client.upload(claiming(100, 100, bytes(101 * 20)))  # fewer rows than it says
    assert lying.status == 422


@pytest.mark.parametrize(
    ("status", "words", "fields"),
    [
        (400, "none is fetched", {"images": ["http://127.0.0.1:1/part.png"]}),
        (400, "none is fetched", {"images": ["file:///etc/hostname"]}),
        (400, "base64", {"images": ["/etc/hostname.png"]}),
        (400, "base64", {"images": ["data:image/png,abc"]}),
        (422, "images", {"images": []}),
        (422, "images", {}),
        (422, "promt", {"images": ["AAAA"], "promt": "find the spots"}),
        (422, "mode", {"images": ["AAAA"], "mode": "direkt"}),
        (422, "threshold", {"images": ["AAAA"], "threshold": 1.5}),
        (422, "include", {"images": ["AAAA"], "include": ["polygon"]}),
        (422, "1 to 8", {"images": ["AAAA"] * 9}),
        (400, "normal_look", {"images": ["AAAA"], "mode": "describe-plus"}),
        (400, "shorten", {"images": ["AAAA"], "prompt": "a" * 3000}),
        (422, "no image", {"images": ["AAAA"]}),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(client, status: int, words: str, fields) -> None:
    answer = client.post("/v1/segment", fields)
    assert answer.status == status, answer.body
    if words != "no image":
        assert words in answer.error


def test_other_bodies_are_refused(client, part) -> None:
    assert client.post("/v1/segment", b"{").status == 400
    assert client.post("/v1/segment", b"[" * 100_000).status == 400
    assert client.post("/v1/segment", b"[]").status == 400
    assert client.call("POST", "/v1/segment", part, {"Content-Type": "image/png"}).status == 415
    assert client.upload(part, name="file").status == 422
    assert client.upload(image="/etc/hostname").status == 422
    assert client.call("POST", "/v1/segment", b"--x", {"Content-Type": "multipart/form-data"}).status == 400
    assert client.get("/v1/segment").status == 405
    assert set(client.get("/nothing").json["error"]) == {"type", "message", "code"}


def test_the_openapi_document_is_whole(client) -> None:
    document = client.get("/openapi.json").json
    assert {"/v1/segment", "/v1/chat/completions", "/healthz", "/readyz", "/metrics"} <= document["paths"].keys()
    for reference in {part.split('"')[0] for part in json.dumps(document).split('"$ref": "')[1:]}:
        place = document
        for key in reference.removeprefix("#/").split("/"):
            place = place[key]
    assert document["components"]["schemas"]["SegmentRequest"]["properties"].keys() >= {"images", "prompt", "mode"}


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths_are_those_of_coco(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for shape in [(1, 1), (3, 5), (200, 17), (64, 300)]:
        mask = rng.random(shape) < rng.choice([0.0, 0.02, 0.5, 1.0])
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert coco_run_lengths(mask) == {"size": list(shape), "counts": theirs["counts"].decode()}
