"""A store is filled by many at once, and killed at any moment; it gives what was stored, or says what is broken."""

import multiprocessing
import os
import resource
import signal
import time

import pytest
import torch

from usam.data.store import WHOLE, Store, StoreError, left_behind, lists, size_of, unfinished
from usam.saving import SavingError


def tensor(i, rows=50):
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(i))


def fill(folder, keys, pause=0.0, **options):
    store = Store(folder, **options)
    for i in keys:
        if str(i) not in store:
            store.put(str(i), tensor(i))
            time.sleep(pause)
    store.flush()


def assert_whole(folder, keys):
    store = Store(folder)
    for i in keys:
        assert torch.equal(store.get(str(i)), tensor(i))


def shards(folder):
    return [file.with_suffix(WHOLE) for file in lists(folder)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_put_is_read_bit_for_bit(dtype, tmp_path):
    store = Store(tmp_path)
    store.put("a", tensor(0).to(dtype))
    assert torch.equal(store.get("a"), tensor(0).to(dtype))
    store.flush()
    assert torch.equal(Store(tmp_path).get("a"), tensor(0).to(dtype))


def test_what_others_wrote_is_found(tmp_path):
    one, other = Store(tmp_path), Store(tmp_path)
    one.put("a", tensor(0))
    one.flush()
    assert "a" not in other
    other.refresh()
    assert torch.equal(other.get("a"), tensor(0))


def test_what_was_gathered_is_written_shard_by_shard(tmp_path):
    fill(tmp_path, range(10), shard=5000)
    assert len(shards(tmp_path)) == 4
    assert_whole(tmp_path, range(10))


def start(*args, **options):
    process = multiprocessing.get_context("fork").Process(target=fill, args=args, kwargs=options)
    process.start()
    return process


@pytest.mark.parametrize("seconds", [0.01, 0.03, 0.06, 0.1])
def test_a_writer_is_killed(seconds, tmp_path):
    process = start(tmp_path, range(100), pause=0.001, shard=4000)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = Store(tmp_path)
    assert unfinished(tmp_path) == []  # what it left is gone
    for i in (i for i in range(100) if str(i) in store):
        assert torch.equal(store.get(str(i)), tensor(i))
    fill(tmp_path, range(100))
    assert_whole(tmp_path, range(100))


def test_two_write_at_once(tmp_path):
    for process in [start(tmp_path, keys, pause=0.001, shard=4000) for keys in (range(60), range(40, 100))]:
        process.join()
        assert process.exitcode == 0
    assert_whole(tmp_path, range(100))


def test_a_shard_without_a_list_is_nobodys_and_stays_while_its_writer_runs(tmp_path):
    fill(tmp_path, [0])
    (list_,) = lists(tmp_path)
    list_.unlink()
    assert len(Store(tmp_path)) == 0
    assert unfinished(tmp_path) == [list_.with_suffix(WHOLE)]
    assert left_behind(tmp_path) == []
    assert left_behind(tmp_path, stale=-1) == unfinished(tmp_path)


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("place", [0, 12, 30, -1, -800])
def test_a_flipped_byte_of_a_shard_is_found_and_the_shard_named(place, tmp_path):
    fill(tmp_path, [0])
    (shard,) = shards(tmp_path)
    flip(shard, place)
    with pytest.raises(StoreError, match=f"{shard.name}.*usam cache verify {tmp_path.parent} --remove"):
        Store(tmp_path).get("0")


def test_every_flipped_byte_of_a_list_is_found_and_the_list_named(tmp_path):
    fill(tmp_path, [0])
    (list_,) = lists(tmp_path)
    good = list_.read_bytes()
    for place in range(len(good)):
        flip(list_, place)
        with pytest.raises(StoreError, match=list_.name):
            Store(tmp_path)
        list_.write_bytes(good)


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_truncated_shard_is_named(left, tmp_path):
    fill(tmp_path, [0])
    (shard,) = shards(tmp_path)
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(StoreError, match=rf"{shard.name}: has [\d,]+ bytes, and [\d,]+ were stored"):
        Store(tmp_path).get("0")


def test_a_shard_that_is_truncated_while_it_is_open_is_named(tmp_path):
    fill(tmp_path, [0, 1])
    store = Store(tmp_path)
    store.get("0")
    (shard,) = shards(tmp_path)
    os.truncate(shard, 100)
    with pytest.raises(StoreError, match="has 100 bytes"):
        store.get("1")


def test_a_shard_that_is_gone_is_named(tmp_path):
    fill(tmp_path, [0])
    (shard,) = shards(tmp_path)
    shard.unlink()
    with pytest.raises(StoreError, match=f"{shard.name}: is gone"):
        Store(tmp_path).get("0")


def test_a_full_disk_leaves_what_was_there(tmp_path):
    fill(tmp_path, range(3))
    store = Store(tmp_path)
    store.put("3", tensor(3))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(SavingError, match=rf"{WHOLE}: could not be saved: .*what was there before is as it was"):
            store.flush()
        store.flush()  # nothing is left to write
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_whole(tmp_path, range(3))
    assert unfinished(tmp_path) == []
    assert len(Store(tmp_path)) == 3


def test_a_limit_is_kept_and_what_fits_is_stored(tmp_path):
    store = Store(tmp_path / "one", limit=10_000, root=tmp_path, shard=4000)
    for i in range(20):
        store.put(str(i), tensor(i))
    store.flush()
    assert store.full
    assert 2 <= len(Store(tmp_path / "one")) < 20
    assert size_of(tmp_path) <= 10_000
    assert_whole(tmp_path / "one", range(len(Store(tmp_path / "one"))))


def test_a_limit_is_kept_by_two_who_write_at_once(tmp_path):
    options = {"limit": 50_000, "root": tmp_path, "shard": 4000}
    both = [start(tmp_path / name, range(60), pause=0.001, **options) for name in ("one", "other")]
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert 25_000 < size_of(tmp_path) <= 50_000


def test_an_unfinished_list_is_no_shard(tmp_path):
    fill(tmp_path, [0])
    (list_,) = lists(tmp_path)
    part = list_.with_name(f".{list_.name}.123")
    list_.rename(part)
    assert unfinished(tmp_path) == [part, list_.with_suffix(WHOLE)]
