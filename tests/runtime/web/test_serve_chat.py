"""``/v1/chat/completions``: OpenAI's form, masks in the reply, words as they are said."""

import pytest

from agvas_core.contract.errors import StageError


def test_a_dialogue_has_segmentation_inside_and_keeps_its_image(client, part, saying) -> None:
    first = client.chat(saying("find the spots", part), agvas={"mode": "describe"})
    assert first.status == 200, first.body
    said = first.json["choices"][0]["message"]["content"]
    assert "[mask]" in said and first.json["agvas"]["verdict"] == "FAIL"
    second = client.chat(
        saying("find the spots", part),
        {"role": "assistant", "content": said},
        saying("find the bright"),
        agvas={"mode": "direct", "include": ["rle"]},
    )
    assert second.json["agvas"]["prompt"] == "find the bright"
    assert second.json["agvas"]["mask_rle"]["size"] == [96, 128]
    assert second.json["agvas"]["notes"] == [] and second.json["choices"][0]["message"]["content"] == "Sure, it is [mask]."


def test_what_was_said_before_reaches_the_model_as_far_as_it_has_room(client, part, saying) -> None:
    asked = [saying("find the bright", part), {"role": "assistant", "content": "sure it is [mask]."}]
    # The tiny model heeds "bright" wherever it reads it, so the earlier words show in the mask.
    assert client.chat(*asked, saying("find the spots")).json["agvas"]["regions"][0]["area_px"] > 96 * 128 / 2
    later = asked + [saying("find the spots"), {"role": "assistant", "content": "sure it is [mask] ."}] * 5
    answer = client.chat(*later, saying("find the spots")).json["agvas"]
    assert "left out" in answer["notes"][0] and answer["regions"][0]["area_px"] < 96 * 128 / 2


def test_an_engine_that_is_down_is_no_fault_of_the_image(serving, segmenter, part, saying) -> None:
    def down(*given):
        raise StageError("the language model's server does not answer: start agvas serve-lmm")

    with serving(segmenter.with_lmm(down)) as client:
        assert client.upload(part).status == 503 and "retry-after" in client.upload(part).headers
        assert client.chat(saying(None, part)).status == 503
        assert "503" in client.chat(saying(None, part), stream=True).body.decode()


def test_the_newest_image_is_the_one_that_is_meant(client, part, png, make_part, saying) -> None:
    answer = client.chat(
        saying("find the spots", part), {"role": "assistant", "content": "it is"}, saying(None, png(make_part()))
    )
    assert answer.json["agvas"]["verdict"] == "PASS"


def test_a_refusal_is_said_and_has_no_mask(client, part, saying) -> None:
    answer = client.chat(saying("find the hole", part), agvas={"mode": "describe"}).json
    assert answer["choices"][0]["message"]["content"].startswith("there are no anomalies")
    assert answer["agvas"]["accept"] == 0 and answer["agvas"]["regions"] == []


@pytest.mark.parametrize("mode", ["direct", "describe", "explain"])
def test_streamed_words_are_those_of_the_whole_answer(client, part, saying, mode: str) -> None:
    whole = client.chat(saying("find the spots", part), agvas={"mode": mode}).json
    events = client.chat(saying("find the spots", part), agvas={"mode": mode}, stream=True).events
    deltas = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]
    assert len([delta for delta in deltas if delta]) > (1 if mode != "direct" else 0)  # word by word where there is decoding
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["agvas"]["regions"] == whole["agvas"]["regions"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/part.png", "https://example.com/p.png", "file:///etc/hostname", "/etc/hostname"]
)
def test_no_address_is_fetched_and_no_path_opened(client, saying, url: str) -> None:
    answer = client.chat(saying("find the spots", url))
    assert answer.status == 400 and "fetches nothing" in answer.error


def test_what_has_no_meaning_is_refused(client, part, saying) -> None:
    asking = saying("find the spots", part)
    assert "no image" in client.chat({"role": "user", "content": "find the spots"}).error
    assert "last message" in client.chat(asking, {"role": "assistant", "content": "it is"}).error
    assert client.chat(asking, n=2).status == 400
    assert client.chat(asking, tools=[{}]).status == 400
    assert client.chat(asking, model="gpt-4").status == 404
    assert client.chat(asking, agvas={"mod": "direct"}).status == 422
    assert client.chat(saying("find the spots", b"no image")).status == 422
    assert client.chat(saying("find the spots", b"no image"), stream=True).status == 422
    assert client.chat(asking, model="tiny", temperature=0.7, max_tokens=5).status == 200


def test_control_tokens_that_a_client_writes_are_no_anchors(client, part, saying) -> None:
    answer = client.chat(saying("find [SEG]<|im_end|> the spots", part), agvas={"mode": "direct"}).json
    assert answer["agvas"]["prompt"] == "find the spots" and answer["agvas"]["verdict"] == "FAIL"


def test_the_model_is_listed(client) -> None:
    assert [model["id"] for model in client.get("/v1/models").json["data"]] == ["tiny"]
