"""The messages of a chat and their parts.

Keys of a message or part that are not listed here do not reach the engine: clients send back whole answers of
other servers, whose further keys mean nothing, and an engine would take an image from a text part that has a
key for one.
"""

import re
from typing import Annotated, Literal, Required

from pydantic import AfterValidator, Field, ValidationInfo, with_config
from typing_extensions import TypedDict

from serve.gateway.bodies.fields import Label, rules_of
from serve.gateway.sampling import STRICT

MAX_MESSAGES = 2048
MAX_PARTS = 256
MAX_CALLS = 128
MEDIA_TYPES = {
    "image": re.compile(r"data:image/(?:png|jpeg|webp);base64,"),
    "audio": re.compile(r"data:audio/(?:wav|x-wav|mpeg|mp3|ogg|flac|webm);base64,"),
    "video": re.compile(r"data:video/(?:mp4|webm);base64,"),
}
"""How a ``data:`` URL of each kind begins. A list of frames (video/jpeg) or an animation is none of them."""


def _check_kind(kind: str, info: ValidationInfo) -> None:
    if kind not in rules_of(info).media:
        raise ValueError(f"{kind} content is not allowed on this server (TENON_MEDIA)")


def check_media(kind: str, url: str, info: ValidationInfo) -> str:
    """A ``data:`` URL of a kind that the operator allows; nothing is ever fetched for a client."""
    _check_kind(kind, info)
    head = MEDIA_TYPES[kind].match(url)
    if head is None or not url.isascii() or "," in url[head.end() :]:
        raise ValueError(f"must be one data: URL with base64 {kind} content; addresses are not fetched")
    return url


def _check_image(url: str, info: ValidationInfo) -> str:
    return check_media("image", url, info)


def _check_audio_url(url: str, info: ValidationInfo) -> str:
    return check_media("audio", url, info)


def _check_video(url: str, info: ValidationInfo) -> str:
    return check_media("video", url, info)


def _check_audio(data: str, info: ValidationInfo) -> str:
    _check_kind("audio", info)
    return data


ImageUrl = Annotated[str, AfterValidator(_check_image)]


@with_config(STRICT)
class TextPart(TypedDict):
    """``{"type": "text", "text": …}``."""

    type: Literal["text"]
    text: str


@with_config(STRICT)
class RefusalPart(TypedDict):
    """What an answer of OpenAI says instead of one."""

    type: Literal["refusal"]
    refusal: str


@with_config(STRICT)
class ImageAddress(TypedDict, total=False):
    """Where an image is."""

    url: Required[ImageUrl]
    detail: Literal["auto", "low", "high"] | None


@with_config(STRICT)
class ImagePart(TypedDict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageAddress


@with_config(STRICT)
class AudioAddress(TypedDict):
    """Where audio is."""

    url: Annotated[str, AfterValidator(_check_audio_url)]


@with_config(STRICT)
class AudioUrlPart(TypedDict):
    """Audio, by URL."""

    type: Literal["audio_url"]
    audio_url: AudioAddress


@with_config(STRICT)
class AudioData(TypedDict):
    """Audio as OpenAI takes it."""

    data: Annotated[str, Field(pattern="^[A-Za-z0-9+/]+={0,2}$"), AfterValidator(_check_audio)]
    format: Literal["wav", "mp3", "flac", "ogg"]


@with_config(STRICT)
class AudioPart(TypedDict):
    """Audio."""

    type: Literal["input_audio"]
    input_audio: AudioData


@with_config(STRICT)
class VideoAddress(TypedDict):
    """Where a video is."""

    url: Annotated[str, AfterValidator(_check_video)]


@with_config(STRICT)
class VideoPart(TypedDict):
    """A video."""

    type: Literal["video_url"]
    video_url: VideoAddress


Part = Annotated[
    TextPart | RefusalPart | ImagePart | AudioUrlPart | AudioPart | VideoPart, Field(discriminator="type")
]
Content = Annotated[
    str | Annotated[list[Part], Field(max_length=MAX_PARTS)] | None, Field(union_mode="left_to_right")
]


@with_config(STRICT)
class CalledFunction(TypedDict):
    """Which function an assistant called, and with what."""

    name: Label
    arguments: str


@with_config(STRICT)
class ToolCall(TypedDict, total=False):
    """A call in an assistant's message."""

    id: Label
    type: Literal["function"]
    function: Required[CalledFunction]


@with_config(STRICT)
class Turn(TypedDict, total=False):
    """One message of a chat."""

    role: Required[Literal["system", "developer", "user", "assistant", "tool", "function"]]
    content: Content
    name: Label | None
    refusal: str | None
    reasoning: str | None
    reasoning_content: str | None
    tool_call_id: Label | None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_CALLS)] | None


Messages = Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
