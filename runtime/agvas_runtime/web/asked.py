"""The bodies that clients send, as pydantic sees them; they are the schemas of the OpenAPI document as well."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import models_json_schema

from agvas_core.contract.prompts import Mode

__all__ = ["ChatRequest", "ImagePart", "Message", "Options", "SegmentRequest", "TextPart", "reference", "schemas"]

Include = Literal["polygons", "rle", "png", "score"]


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Options(BaseModel):
    """How an image is to be looked at."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode | None = Field(None, description="direct, describe, describe-plus or explain.")
    normal_look: str | None = Field(None, description="How a good part looks, in a sentence; for describe-plus.")
    threshold: float | None = Field(
        None, gt=0, lt=1, description="Every pixel above it is anomalous; the operating point's where left out."
    )
    include: Annotated[list[Include], BeforeValidator(_split)] = Field(
        default=["polygons"],
        description="What comes back of the mask: polygons (per region), rle (COCO run lengths), png (base64, 0 or 255), score "
        "(base64, 16-bit PNG of the score map). In a form a comma list.",
    )


class SegmentRequest(Options):
    """Images with one question to all of them."""

    images: list[str] = Field(min_length=1, description="Image files, each as base64 or data: URL. In a form: files named image.")
    prompt: str | None = Field(None, description="What to look for; the mode's own instruction where left out.")
    recipe: str | None = Field(
        None,
        description="The product of a recipe that the server was started with, or a recipe's YAML text (in a form also a file named "
        "recipe): it says words, mode, thresholds, regions of interest and rules.",
    )

    @model_validator(mode="after")
    def _one_says_it(self) -> Self:
        if self.recipe is not None:
            for name in ("prompt", "mode", "normal_look", "threshold"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} and recipe are given, and the recipe says it: leave one out")
        return self


class TextPart(BaseModel):
    """Words in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """An image as a data: URL."""

    url: str
    detail: str | None = None


class ImagePart(BaseModel):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(BaseModel):
    """One message of a dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None


class ChatRequest(BaseModel):
    """The part of OpenAI's chat completions that has a meaning here; sampling is always greedy."""

    model_config = ConfigDict(extra="ignore")

    messages: list[Message] = Field(min_length=1, max_length=200)
    model: str | None = None
    stream: bool = False
    n: int | None = None
    tools: list[Any] | None = None
    agvas: Options = Field(
        default_factory=lambda: Options.model_validate({}),
        description="Ours: mode, normal look, threshold, and what comes back of the mask.",
    )


_PLACE = "#/components/schemas/{model}"


def reference(model: type[BaseModel]) -> dict[str, str]:
    """Where a model's schema lies in the OpenAPI document."""
    return {"$ref": _PLACE.format(model=model.__name__)}


def schemas() -> dict[str, Any]:
    """The schemas of all of these, for the OpenAPI document."""
    _, found = models_json_schema([(SegmentRequest, "validation"), (ChatRequest, "validation")], ref_template=_PLACE)
    return dict(found["$defs"])
