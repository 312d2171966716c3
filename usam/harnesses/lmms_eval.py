"""lmms-eval asks a saved model of usam's, in an environment of its own.

    lmms-eval --model usam --model_args pretrained=FOLDER --tasks mmau

Its contract (https://github.com/EvolvingLMMs-Lab/lmms-eval, lmms_eval/api/model.py and models/registry_v2.py): a
subclass of `lmms` whose `generate_until` gives one text a request, in order. This module imports it, so that only
lmms-eval itself imports this one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms

from usam.generate import LONGEST, Answerer
from usam.training.held_out import check_options

SAMPLING = ("temperature", "top_p", "top_k")


class Usam(lmms):  # type: ignore[misc, unused-ignore]
    """A saved model.

    Args:
        pretrained: its folder or hub id.
        batch_size: chats that are answered together.
        device: where it runs; by default a GPU if there is one, under accelerate launch each process its own.
        max_batch_size: of lmms-eval's, which only batches it finds by itself; not used, so that it may not be given.

    Raises:
        ValueError: an option that usam has no use for.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if max_batch_size is not None or not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size is a whole number, without max_batch_size; found {batch_size!r}")
        self.batch_size = int(batch_size)
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self._world_size > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator()  # lmms-eval waits for the others through it
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else device
        if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.answerer = Answerer.load(pretrained, device_map=device)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer a request, in order; those with the same options are answered together.

        Raises:
            SpecError: an option that is none of transformers' `generate`.
            ValueError: a request that cannot be answered: names its task and its document.
        """
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(place)
        found = [""] * len(requests)
        for places in groups.values():
            options, stops = _options(requests[places[0]].args[1])
            chats = [self._chat(requests[place].args) for place in places]
            replies = self.answerer.replies(chats, batch_size=self.batch_size, **options)
            for place, reply in zip(places, replies, strict=True):
                context, given, _, document, task, _ = requests[place].args
                if reply.fault is not None:
                    raise ValueError(f"{task}, document {document}: {reply.fault}") from reply.fault
                found[place] = _until(reply.text, stops)
                self.cache_hook.add_partial("generate_until", (context, given), found[place])
        return found

    def _chat(self, args: tuple[Any, ...]) -> list[dict[str, Any]]:
        """The messages of a request: its clips, then its words."""
        context, _, clips_of, document, task, split = args
        clips = clips_of(self.task_dict[task][split][document]) or []
        for clip in clips:
            if not (isinstance(clip, (str, Mapping)) or hasattr(clip, "get_all_samples")):
                raise ValueError(
                    f"{task}, document {document}: a clip is a path, a map of array and sampling_rate, or a decoder; "
                    f"found {type(clip).__name__}, which says no rate"
                )
        content = [{"type": "audio", "audio": clip} for clip in clips] + [{"type": "text", "text": context}]
        return [{"role": "user", "content": content}]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("usam answers with text: take tasks whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("usam answers one question at a time: take tasks whose output_type is generate_until")


def _options(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options of `generate`, and the texts that end an answer."""
    options = dict(given)
    until = options.pop("until", None) or []
    stops = [until] if isinstance(until, str) else list(until)
    sampling = bool(options.pop("do_sample", (options.get("temperature") or 0) > 0))
    options = {key: value for key, value in options.items() if value is not None}
    if not sampling:
        options = {key: value for key, value in options.items() if key not in SAMPLING}
    check_options({key: value for key, value in options.items() if key != "max_new_tokens"})
    return {"max_new_tokens": LONGEST, **options, "do_sample": sampling}, stops


def _until(text: str, stops: Sequence[str]) -> str:
    """What stands before the first of the texts that end an answer."""
    return text[: min([len(text), *(at for stop in stops if stop and (at := text.find(stop)) >= 0)])]
