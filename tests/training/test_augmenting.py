"""A run that augments: who hears what, when, and how long it may become."""

import shutil

import numpy as np
import pytest
import torch
from conftest import noise
from short_runs import SMALL, logged
from transformers import TrainingArguments

from usam import SpecError, UsamProcessor, build_model, losses
from usam.data.augment import Augment
from usam.data.collate import Collator
from usam.data.manifest import Manifest
from usam.data.sampling import Budget
from usam.training import rows
from usam.training.run import read_run
from usam.training.start import train
from usam.training.trainer import UsamTrainer
from usam.types import LossOutput

RATE = 16000
AUGMENT = "data.augment=[{type: speed, factors: [0.5, 1.25]}, {type: noise, color: white, p: 0.5}, gain, spec_augment]"
HEARD = []


@losses.register("listening")
class Listening(losses.Loss):
    def forward(self, inputs):
        HEARD.append((tuple(inputs.batch["ids"]), inputs.audio.lengths.tolist(), inputs.audio.x.detach().sum((1, 2))))
        return LossOutput(inputs.hidden.square().mean())


def chain(seed=0):
    return Augment.of([{"type": "speed", "factors": [0.5, 1.25]}, {"type": "gain", "p": 0.5}], seed)


def asked(run_file, folder, *overrides):
    return read_run(run_file, *SMALL, f"train.output_dir={run_file.parent / folder}", *overrides)


def test_a_clip_depends_on_seed_epoch_row_and_place():
    clip = noise(0.5)
    usual = chain()(clip, RATE, "a:1", 0)
    np.testing.assert_array_equal(chain()(clip, RATE, "a:1", 0), usual)
    later = chain()
    later.set_epoch(1)
    others = [later(clip, RATE, "a:1", 0), chain(1)(clip, RATE, "a:1", 0)]
    others += [chain()(clip, RATE, f"a:{line}", 0) for line in range(2, 8)]
    others += [chain()(clip, RATE, "a:1", place) for place in range(1, 6)]
    assert len({x.tobytes() for x in [usual, *others]}) > 2


def test_a_clip_does_not_depend_on_its_batch(run_file):
    run = asked(run_file, "out")
    data = Manifest(run.data["train"], run.spec.prompts)
    collate = Collator(UsamProcessor.from_spec(run.spec)).augmented(chain())
    alone, both = collate([data[1]]), collate([data[0], data[1]])
    own = alone["input_values"].shape[1]
    assert torch.equal(both["input_values"][1, :own], alone["input_values"][0])
    assert int(both["input_values_mask"][1].sum()) == own


def test_a_run_hears_the_same_whatever_its_workers_and_where_it_was_resumed(run_file):
    more = [AUGMENT, "data.eval=null", "train.logging_steps=1", "train.per_device_train_batch_size=2"]
    more += ["train.max_steps=6", "train.save_steps=3"]  # of four steps in an epoch
    whole = train(asked(run_file, "whole", *more))
    workers = train(asked(run_file, "workers", *more, "train.dataloader_num_workers=2"))
    assert [line.get("loss") for line in logged(workers)] == [line.get("loss") for line in logged(whole)]
    shutil.rmtree(whole / "checkpoint-6")
    before = logged(whole)
    assert logged(train(asked(run_file, "whole", *more), resume=True)) == before
    plain = train(asked(run_file, "plain", *more, "data.augment=null"))
    assert logged(plain)[0]["loss"] != before[0]["loss"]


def test_epochs_differ_and_an_evaluation_is_of_the_clips_as_they_are(run_file):
    more = ["model.losses={own: {type: listening}}", "train.per_device_train_batch_size=8", "train.max_steps=2"]
    more += ["train.train_sampling_strategy=sequential", "train.save_strategy=no", "train.learning_rate=1e-30"]
    more += ["eval.canary=false"]
    HEARD.clear()
    train(asked(run_file, "out", *more, AUGMENT))
    (_, first, _), (_, second, _), (_, held_out, _) = HEARD
    HEARD.clear()
    train(asked(run_file, "plain", *more))
    assert first != second
    assert sorted(held_out) == sorted(HEARD[0][1])


def test_rows_are_measured_as_long_as_they_may_become(run_file):
    run = asked(run_file, "out")
    data, processor = Manifest(run.data["train"], run.spec.prompts), UsamProcessor.from_spec(run.spec)
    plain, longest = rows.measured(data, processor), rows.measured(data, processor, most=chain().most)
    assert longest["seconds"] == pytest.approx(2 * plain["seconds"], abs=1e-4)
    collate = Collator(processor).augmented(chain())
    assert all(collate([s])["input_ids"].shape[1] <= n for s, n in zip(data, longest["tokens"], strict=True))


def test_a_budget_has_room_for_what_augmentation_makes(run_file):
    run = asked(run_file, "out")
    processor = UsamProcessor.from_spec(run.spec)
    arguments = {"use_cpu": True, "report_to": "none", "remove_unused_columns": False, "disable_tqdm": True}
    trainer = UsamTrainer(
        model=build_model(run.spec),
        args=TrainingArguments(str(run_file.parent / "out"), **arguments),
        train_dataset=Manifest(run.data["train"], run.spec.prompts),
        data_collator=Collator(processor, tasks=True),
        processing_class=processor,
        budget=Budget(seconds=4.0),
        augment=chain(),
    )
    batches = [batch["input_values"] for batch in trainer.get_train_dataloader()]
    assert all(values.numel() <= 4.0 * RATE + len(values) for values in batches)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("speed", r"augment: expected a list of augmentations, such as \[speed, \{type: gain\}\]; found 'speed'"),
        ("[sped]", "augment.0.*: .*sped.*did you mean 'speed'"),
        ("[{type: speed, factor: 2}]", "augment.0.factor"),
        ("[{type: speed, factors: [0.1]}]", "0.1 is no speed of speech; expected 0.25 to 4"),
        ("[gain, {type: gain, db: [3, -3]}]", "augment.1.db.*3 lies above -3; write the lower one first"),
        ("[noise]", "write 'files', where noise is recorded, or 'color'"),
        ("[{type: gain, p: 0}]", "augment.0.p"),
    ],
)
def test_what_cannot_be_done_is_said_when_the_run_is_read(run_file, augment, message):
    from usam import ComponentError

    with pytest.raises((SpecError, ComponentError), match=message):
        read_run(run_file, *SMALL, f"data.augment={augment}")


def test_a_cache_is_refused(run_file):
    with pytest.raises(SpecError, match=r"data.augment: does not go with data.cache, which keeps what encoders give"):
        read_run(run_file, *SMALL, "model.encoders.whisper.freeze=all", "data.cache=frames", "data.augment=[gain]")


def test_noise_files_are_beside_the_run_file_and_a_broken_one_is_named(run_file):
    (run_file.parent / "noises").mkdir()
    (run_file.parent / "noises" / "a.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"train.jsonl:\d: data.augment.0: .*a.wav: not audio"):
        train(asked(run_file, "out", "data.augment=[{type: noise, files: noises}]", "data.bad_audio=skip"))


def test_another_augmentation_does_not_go_on_from_a_checkpoint(run_file):
    train(asked(run_file, "out", "data.augment=[gain]", "data.eval=null"))
    with pytest.raises(SpecError, match=r"data.augment: "):
        train(asked(run_file, "out", "data.augment=[speed]", "data.eval=null"), resume=True)


def test_an_augmentation_of_ones_own_is_a_file(run_file):
    (run_file.parent / "own.py").write_text(
        "from usam.augmentations import Augmentation, register\n\n\n"
        '@register("reversed_clip")\n'
        "class Reversed(Augmentation):\n"
        "    def __call__(self, clip, rate, generator):\n"
        "        return clip[::-1].copy()\n"
    )
    run_file.write_text(run_file.read_text() + "plugins: [own.py]\n")
    train(asked(run_file, "out", "data.augment=[reversed_clip]", "data.eval=null", "train.max_steps=1"))


def test_one_that_makes_a_clip_longer_than_it_says_is_named(run_file):
    (run_file.parent / "doubled.py").write_text(
        "import numpy as np\nfrom usam.augmentations import Augmentation, register\n\n\n"
        '@register("doubled_clip")\n'
        "class Doubled(Augmentation):\n"
        "    def __call__(self, clip, rate, generator):\n"
        "        return np.tile(clip, 2)\n"
    )
    run_file.write_text(run_file.read_text() + "plugins: [doubled.py]\n")
    with pytest.raises(ValueError, match=r"train.jsonl:\d: data.augment.0: Doubled made [\d,]+ samples, and 'stretch'"):
        train(asked(run_file, "out", "data.augment=[doubled_clip]", "data.eval=null"))
