"""What a run found is written between the marks of a page."""

import json
import re
from pathlib import Path

import pytest
from usam_real.__main__ import main
from usam_real.page import PARTS, write_page

PAGE = Path(__file__).parents[3] / "docs" / "real.md"


def score(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "samples": 100}


def results(**changed):
    """What `show` writes; the numbers are nobody's."""
    heard = {"human": 0.25, "neural": 0.5, "espeak": 0.75, "sounds": 2.0, "music": 1.0}
    tests = {name: {"heard": score(value)} for name, value in heard.items()}
    for name, value in {"human": 1.1, "sounds": 0.5, "music": 0.5}.items():
        tests[name]["shuffled"] = score(value)
    for name, worse in {"human": (1.0, 0.3, 0.2), "sounds": (1.9, 0.5, 2.0), "music": (0.4, 0.9, 0.6)}.items():
        tests[name] |= {f"without {one}": score(v) for one, v in zip(("whisper", "aisfx", "crepe"), worse, strict=True)}
    plain = {"tests": tests, "seconds": {"fetch": 60.0, "test": 120.0}, "seed": 3, "size": 1.0, "steps": 1.0}
    plain["machine"] = {"cpus": 2, "system": "Linux-1-x86_64"}
    said = [{"heard": "press | *one*", "whisper": "press one"}]
    return {**plain, "delta_bytes": 32_000_000, "transcripts": said, **changed}


@pytest.fixture
def write(tmp_path):
    """The page that results give, and its file."""

    def written(found, marks=PARTS):
        (tmp_path / "results.json").write_text(json.dumps(found))
        page = tmp_path / "page.md"
        page.write_text(
            "# A title\n" + "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in marks) + "end\n"
        )
        write_page(tmp_path / "results.json", page)
        return page.read_text()

    return written


def test_all_between_the_marks_is_new_and_the_rest_as_it_was(write):
    text = write(results())
    assert text.startswith("# A title\n")
    assert text.endswith("end\n")
    assert "old" not in text


def test_a_test_stands_with_its_intervals(write):
    text = write(results())
    assert "| human | 100 | word error rate ↓ | 25.0% [20.0%, 30.0%] | 110.0% [105.0%, 115.0%] | 100.0% [" in text
    assert "| neural | 100 | word error rate ↓ | 50.0% [45.0%, 55.0%] |  |  |  |  |" in text
    assert "| sounds | 100 | CIDEr-D ↑ | 2.00 [1.95, 2.05] | 0.50 [" in text


def test_a_bound_is_met_or_said_not_to_be(write):
    text = write(results())
    assert "- human speech: 25.0% of words wrong; asked for: at most 30%, met." in text
    assert (
        "- music: CIDEr-D 1.00, and 0.50 with another clip's sound; asked for: at least 2 times as much, met." in text
    )
    worse = results()
    worse["tests"]["human"]["heard"] = score(0.31)
    assert "31.0% of words wrong; asked for: at most 30%, **not met**." in write(worse)


def test_a_direction_agrees_or_not_and_the_change_is_shown(write):
    text = write(results())
    changes = "whisper +75.0 points, aisfx +5.0 points, crepe -5.0 points"
    assert f"| human | worst without whisper | without whisper | {changes} | yes |" in text
    assert "| sounds | worst without aisfx | without aisfx | whisper -0.10, aisfx -1.50, crepe +0.00 | yes |" in text
    assert (
        "| music | worst without crepe | without whisper | whisper -0.60, aisfx -0.10, crepe -0.40 | **no** |" in text
    )


def test_that_nothing_became_worse_agrees_with_nothing(write):
    same = results()
    for one in ("whisper", "aisfx", "crepe"):
        same["tests"]["human"][f"without {one}"] = same["tests"]["human"]["heard"]
    assert re.search(r"\| human \| .* \| \*\*no\*\* \|", write(same))


def test_twice_nothing_is_not_enough(write):
    silent = results()
    silent["tests"]["sounds"] |= {"heard": score(0.0), "shuffled": score(0.0)}
    said = "- sounds: CIDEr-D 0.00, and 0.00 with another clip's sound; asked for: at least 2 times as much"
    assert f"{said}, **not met**." in write(silent)


def test_it_says_how_the_run_was_made(write):
    text = write(results())
    assert "One run, seed 3, of 3 minutes on 2 processors (Linux-1-x86_64). " in text
    assert "What is saved beside the frozen models is 32.0 MB." in text
    assert "seed 3, with 0.5 of the clips, of" in write(results(size=0.5))


def test_what_was_heard_is_not_read_as_markdown(write):
    assert r"| press \| \*one\* | press one |" in write(results())


def test_written_twice_it_is_the_same(write, tmp_path):
    text = write(results())
    assert main(["page", str(tmp_path / "results.json"), str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == text


def test_a_mark_that_is_missing_is_named_and_nothing_is_written(write, tmp_path):
    with pytest.raises(ValueError, match=r"page\.md: write <!-- times --> and <!-- /times --> once each"):
        write(results(), [name for name in PARTS if name != "times"])
    assert "old" in (tmp_path / "page.md").read_text()


def test_results_of_something_else_are_refused(write, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"results\.json: has no 'delta_bytes'"):
        write({key: value for key, value in results().items() if key != "delta_bytes"})
    assert main(["page", str(tmp_path / "nothing.json"), str(tmp_path / "page.md")]) == 2
    assert "nothing.json" in capsys.readouterr().err


@pytest.mark.skipif(not PAGE.is_file(), reason="the repository is not around it")
def test_the_page_of_this_repository_can_be_filled(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results()))
    page = tmp_path / "real.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_page(tmp_path / "results.json", page)
    assert "| human | 100 |" in page.read_text(encoding="utf-8")
