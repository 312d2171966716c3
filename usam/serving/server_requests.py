"""What requests say: each field does something, or is refused by its name; no path or address is ever opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from usam.generate import LONGEST
from usam.serving.server_limits import Limits, Refused
from usam.serving.server_sound import FORMATS, Sent, decoded

ASR = "asr"  # the task whose prompt transcriptions ask
VALUES = 1_000_000  # of a request in JSON: many small ones take a hundred times their bytes in memory


@dataclass(frozen=True)
class Asked:
    """A request that was understood."""

    chat: list[dict[str, Any]]
    clips: list[Sent]
    options: dict[str, Any] = field(default_factory=dict)  # of transformers' `generate`
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    shape: str = "json"  # of the answer
    usage: bool = False  # also at the end of a stream


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        """Clients send back what they were sent, with all that was not there as null."""
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


class _Text(_Fields):
    type: Literal["text"]
    text: str


class _Sound(_Fields):
    data: str
    format: str | None = None

    @field_validator("format")
    @classmethod
    def _known(cls, given: str) -> str:
        if given not in FORMATS:
            raise PydanticCustomError("format", f"expected one of {', '.join(FORMATS)}")
        return given


class _Audio(_Fields):
    type: Literal["input_audio"]
    input_audio: _Sound


class _Message(_Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[_Text | _Audio, Field(discriminator="type")]] = Field(min_length=1)

    @field_validator("content", mode="before")
    @classmethod
    def _blocks(cls, given: Any) -> Any:
        if isinstance(given, str):
            return [{"type": "text", "text": given}]
        if not isinstance(given, list):
            raise PydanticCustomError("content", "expected text, or a list of blocks")
        for i, block in enumerate(given):
            kind = block.get("type") if isinstance(block, dict) else None
            if kind not in ("text", "input_audio"):
                raise PydanticCustomError(
                    "block",
                    f"block {i}: expected the type 'text' or 'input_audio'; nothing is fetched from addresses or read "
                    "from paths, sound is sent in input_audio.data as base64",
                )
        return given


class _StreamOptions(_Fields):
    include_usage: bool = False


class _TextFormat(_Fields):
    type: Literal["text"]


class _Sampling(_Fields):
    model: str
    temperature: float = Field(0.0, ge=0, le=2)
    stream: bool = False

    @field_validator("temperature")
    @classmethod
    def _not_tiny(cls, given: float) -> float:
        if 0 < given < 0.01:
            raise PydanticCustomError("temperature", "expected 0, which is greedy, or 0.01 to 2")
        return given

    def sampling(self, top_p: float = 1.0) -> dict[str, Any]:
        """As `generate` takes it."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": top_p, "top_k": 0}


class _Chat(_Sampling):
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field([], max_length=4)
    stream_options: _StreamOptions | None = None
    # These do nothing but in the one way in which the model answers anyhow.
    n: Literal[1] = 1
    frequency_penalty: float = Field(0, ge=0, le=0)
    presence_penalty: float = Field(0, ge=0, le=0)
    logprobs: Literal[False] = False
    response_format: _TextFormat | None = None
    modalities: list[Literal["text"]] = ["text"]

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _consistent(self) -> _Chat:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            _wrong("max_tokens", "says the same as max_completion_tokens: send one of them")
        if self.stream_options is not None and not self.stream:
            _wrong("stream_options", 'does nothing without "stream": true')
        if self.top_p < 1 and "temperature" not in self.model_fields_set:
            _wrong("top_p", "does nothing at temperature 0, the default: send a temperature too")
        return self


class _Transcription(_Sampling):
    model_config = ConfigDict(strict=False)  # all fields of a form are text

    response_format: Literal["json", "text"] = "json"


def _wrong(param: str, message: str) -> NoReturn:
    raise PydanticCustomError("conflict", "{message}", {"param": param, "message": message})


def asked_chat(body: bytes, name: str, limits: Limits) -> Asked:
    """What a request for a completion asks.

    Args:
        body: JSON.
        name: what the model is called.
        limits: of the server.

    Raises:
        Refused: names the field.
    """
    said = _checked(_Chat, _tree(body), name)
    chat, clips = [], list[Sent]()
    for i, message in enumerate(said.messages):
        blocks = list[dict[str, Any]]()
        for j, block in enumerate(message.content):
            if isinstance(block, _Text):
                blocks.append({"type": "text", "text": block.text})
                continue
            param = f"messages.{i}.content.{j}.input_audio.data"
            if len(clips) == limits.clips:
                told = f"{param}: more than {limits.clips} clips in a request; send fewer"
                raise Refused(400, told, param, "too_many_clips")
            clips.append(Sent(param, decoded(block.input_audio.data, param), block.input_audio.format))
            blocks.append({"type": "audio", "audio": clips[-1].data})
        chat.append({"role": message.role, "content": blocks})
    _check_sizes(said, limits)
    given = said.max_completion_tokens or said.max_tokens
    longest = min(LONGEST, limits.tokens) if given is None else given
    if longest > limits.tokens:
        param = "max_tokens" if said.max_tokens else "max_completion_tokens"
        raise Refused(400, f"{param}: at most {limits.tokens:,} tokens an answer", param, "invalid_value")
    return Asked(
        chat,
        clips,
        {"max_new_tokens": longest, **said.sampling(said.top_p)},
        tuple(said.stop),
        said.seed,
        said.stream,
        usage=said.stream_options is not None and said.stream_options.include_usage,
    )


async def asked_transcript(request: Request, body: bytes, name: str, words: str, limits: Limits) -> Asked:
    """What a request for a transcript asks.

    Args:
        request: whose headers say how the form is cut.
        body: the form.
        name: what the model is called.
        words: the prompt of the task.
        limits: of the server.

    Raises:
        Refused: names the field.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "expected a form, Content-Type: multipart/form-data, with 'file' and 'model'")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(request.scope, receive).form(max_files=2, max_fields=16, max_part_size=65536)
    except (HTTPException, KeyError, ValueError) as error:
        told = f"no form that can be read: {getattr(error, 'detail', error)}"
        raise Refused(400, told, code="invalid_form") from error
    try:
        fields = form.multi_items()
        for key in {key for key, _ in fields if [k for k, _ in fields].count(key) > 1}:
            raise Refused(400, f"{key[:100]}: stands in the form twice; send one", key[:100], "invalid_value")
        file = form.get("file")
        if not isinstance(file, UploadFile):
            told = "missing" if file is None else "text, not a file: no path is read and nothing is fetched"
            raise Refused(400, f"file: {told}; send the bytes of a file of sound", "file", "invalid_audio")
        for key, value in fields:
            if key != "file" and not isinstance(value, str):
                raise Refused(400, f"{key[:100]}: one file is taken, as 'file'", key[:100], "invalid_value")
        said = _checked(_Transcription, {key: value for key, value in fields if key != "file"}, name)
        clip = Sent("file", await file.read())
    finally:
        await form.close()
    if said.stream and said.response_format != "json":
        raise Refused(400, "response_format: a stream is of events in JSON", "response_format", "invalid_value")
    content = [{"type": "audio", "audio": clip.data}, {"type": "text", "text": words}]
    options = {"max_new_tokens": min(LONGEST, limits.tokens), **said.sampling()}
    chat = [{"role": "user", "content": content}]
    return Asked(chat, [clip], options, stream=said.stream, shape=said.response_format)


def _check_sizes(said: _Chat, limits: Limits) -> None:
    if len(said.messages) > limits.messages:
        told = f"messages: {len(said.messages):,}, and at most {limits.messages:,} are taken"
        raise Refused(400, told, "messages", "too_many_messages")
    size = sum(len(block.text) for m in said.messages for block in m.content if isinstance(block, _Text))
    if size > limits.text:
        told = f"messages: {size:,} characters of text, and at most {limits.text:,} are taken"
        raise Refused(400, told, "messages", "text_too_long")


Model = TypeVar("Model", bound=_Sampling)


def _checked(kind: type[Model], given: Mapping[str, Any], name: str) -> Model:
    try:
        said = kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from error
    if said.model != name:
        told = f"model: there is no '{said.model[:100]}' here; this server has '{name}'"
        raise Refused(404, told, "model", "model_not_found")
    return said


def _refusal(error: ValidationError) -> Refused:
    """The first fault, under the name of its field."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = list(first["loc"])
    if len(place) > 4 and place[2] == "content":  # pydantic names the type of a block in between
        del place[4]
    param = ".".join(map(str, place))[:100] or first.get("ctx", {}).get("param")
    message, code = first["msg"], "invalid_value"
    if first["type"] == "extra_forbidden":
        message, code = (
            "this server knows no such field, and would not do what it asks; leave it out",
            "unknown_parameter",
        )
    elif first["type"] == "missing":
        message, code = "missing", "missing_required_parameter"
    return Refused(400, f"{param}: {message}" if param else message, param, code)


def _tree(body: bytes) -> dict[str, Any]:
    """JSON, read strictly: no key twice, no NaN, and no more values than memory has room for."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > VALUES:
        raise Refused(400, f"more than {VALUES:,} values in the JSON", code="invalid_json")
    try:
        found = json.loads(body, object_pairs_hook=_unique, parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body is no JSON that can be read: {why[:200]}", code="invalid_json") from error
    if not isinstance(found, dict):
        raise Refused(400, "the body is a JSON object with 'model' and 'messages'", code="invalid_json")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:100]!r} stands in an object twice")
            seen.add(key)
    return found


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")
