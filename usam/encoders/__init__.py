"""Encoders turn a waveform into frames of features."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from torch import Tensor

from usam.clock import N, rescale
from usam.component import Component, ComponentConfig, build, finish
from usam.parts import saved
from usam.registry import ComponentError, Registry
from usam.spec.spec import Config
from usam.types import Frames


class Encoder(Component):
    """A waveform goes in, frames come out; the front-end is inside, batched, on the device, in float32.

    A subclass gives `dim` and `forward`, and says in its Config how long its output is. One whose output
    is simply `ceil(samples * frame_rate / sample_rate)` frames sets `sample_rate`, `frame_rate` and `dim`
    as class attributes instead. Features of a clip depend on that clip alone.
    """

    class Config(ComponentConfig):
        """Options every encoder has, and the arithmetic of its time."""

        freeze: Literal["all", "none"] | list[str] = "all"
        """What does not train: all, none, or patterns of parameter names."""

        @property
        def sample_rate(self) -> int:
            """Samples per second of the audio this encoder takes."""
            return int(_of_class(self.component, "sample_rate", "samples per second of the audio that it takes"))

        @property
        def rate(self) -> float:
            """Frames per second of its output."""
            return float(_of_class(self.component, "frame_rate", "frames per second that it gives"))

        def length(self, samples: N) -> N:
            """Frames for `samples` samples at `sample_rate`; ints or integer tensors."""
            return rescale(samples, self.sample_rate, self.rate)

    sample_rate: ClassVar[int]
    frame_rate: ClassVar[float]
    dim: int
    """Width of the frames."""

    def stored(self) -> dict[str, Tensor]:
        """`pretrained()`; where `path` is a folder that usam saved, the tensors of its encoder of this type."""
        own = saved(getattr(self.config, "path", None), self.config.type)
        if own is None:
            return self.pretrained()
        return own.tensors(key for key in self.state_dict() if not any(fnmatchcase(key, name) for name in self.random))

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Encode clips.

        Args:
            audio: (batch, samples) in [-1, 1] at `config.sample_rate`, zero where masked.
            mask: (batch, samples), True on a clip's own samples, which come first.

        Returns:
            Frames of (batch, config.length(samples), dim); the mask has config.length(n) True for n samples.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward(audio, mask)")


def _of_class(cls: type[Any], name: str, what: str) -> Any:
    found = getattr(cls, name, None)
    if not isinstance(found, (int, float)) or isinstance(found, bool) or found <= 0:
        raise ComponentError(
            f"{cls.__name__} needs '{name}', {what}: a positive number, of the class, or a property of its Config; "
            f"found {'none' if found is None else repr(found)}"
        )
    return found


registry: Registry[Encoder] = Registry(Encoder, "usam.encoders")
register = registry.register


def build_encoder(component: str | Mapping[str, Any] | Config, /, *, weights: bool = True, **options: Any) -> Encoder:
    """One encoder, outside any spec: `build_encoder("whisper", path="openai/whisper-small")`.

    Raises:
        ComponentError: unknown component, or weights that do not fit.
        SpecError: a wrong option.
    """
    cls, config = build("usam.encoders", component, options)
    encoder: Encoder = finish(cls(config), config, weights)
    return encoder
