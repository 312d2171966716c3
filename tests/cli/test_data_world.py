"""`usam data world` makes the miniature world."""

from usam.data.manifest import Manifest
from usam.data.world import PROMPTS


def test_a_world_is_made_and_its_manifests_are_named(usam, tmp_path):
    sizes = ("--train", 3, "--dev", 2, "--test", 0)
    status, out, _ = usam("data", "world", tmp_path / "w", *sizes, "--domain", "music", "--domain", "sounds")
    assert status == 0
    assert out.split() == [
        str(tmp_path / "w" / split / f"{task}.jsonl") for split in ("train", "dev") for task in ("mc", "aac")
    ]
    assert [len(Manifest(file, PROMPTS)) for file in out.split()] == [3, 3, 2, 2]


def test_what_is_made_is_sound(usam, tmp_path):
    usam("data", "world", tmp_path / "w", "--train", 4, "--dev", 0, "--test", 2, "--domain", "sounds")
    files = (tmp_path / "w" / "train" / "aac.jsonl", "--eval", tmp_path / "w" / "test" / "aac.jsonl")
    status, out, _ = usam("data", "check", *files)
    assert (status, "sound: no fault was found" in out) == (0, True), out


def test_an_unknown_domain_is_an_error(usam, tmp_path):
    status, _, err = usam("data", "world", tmp_path / "w", "--domain", "musik")
    assert (status, "no domain 'musik'; did you mean 'music'?" in err) == (2, True)
