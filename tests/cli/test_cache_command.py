"""`usam cache` builds, tells and verifies."""

import json


def build(usam, run_file, *options):
    return usam(
        *("cache", "build", run_file, *options),
        *("--set", "model.encoders.whisper.freeze=all", "--set", "model.encoders.whisper.arch.encoder_layers=1"),
        *("--set", "data.cache=cache"),
    )


def test_a_cache_is_built_told_and_verified(usam, run_file):
    folder = run_file.parent / "cache"
    status, out, _ = build(usam, run_file)
    assert (status, out.startswith("whisper: 8 clips in")) == (0, True)
    status, out, _ = usam("cache", "stat", folder)
    assert "whisper: 8 clips, 1 shards" in out
    _, out, _ = usam("cache", "stat", folder, "--json")
    assert json.loads(out)[0]["about"]["options"]["layers"] == "last"
    status, out, _ = usam("cache", "verify", folder)
    assert (status, out) == (0, f"{folder}: 8 clips are whole\n")


def test_what_is_broken_is_named_with_status_1_and_can_be_removed(usam, run_file):
    build(usam, run_file)
    folder = run_file.parent / "cache"
    (shard,) = folder.rglob("*.safetensors")
    held = shard.read_bytes()
    shard.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    status, _, err = usam("cache", "verify", folder)
    assert (status, str(shard) in err) == (1, True)
    status, out, _ = usam("cache", "verify", folder, "--remove")
    assert (status, out) == (0, f"{folder}: 0 clips are whole; 1 broken shards were removed\n")
    assert build(usam, run_file)[1].startswith("whisper: 8 clips in")


def test_a_part_is_built(usam, run_file):
    assert build(usam, run_file, "--part", "2/4")[1].startswith("whisper: 2 clips in")
    status, _, err = build(usam, run_file, "--part", "5/4")
    assert (status, "expected I/N with I from 1 to N" in err) == (2, True)


def test_a_folder_that_is_none_is_an_error_of_one_line(usam, tmp_path):
    status, _, err = usam("cache", "stat", tmp_path / "none")
    assert (status, err) == (2, f"error: {tmp_path}/none: no such folder\n")
