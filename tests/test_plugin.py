"""A package that was installed beside usam is found by name; broken and clashing ones disturb nobody."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent.parent / "plugins"
SELF_CONTAINED = ("usam-all", "usam-clap", "usam-encodec", "usam-real", "usam-siglip-loss", "usam-soft-topk")
BROKEN = "raise ImportError('libsound.so is missing')"
CLONE = "from usam.encoders.whisper import Whisper\nclass Clone(Whisper): pass\n"


def offer(folder, package, version, name, code):
    """A distribution as pip leaves it: a module and its metadata."""
    module = package.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    target = f"{module}:Clone" if "Clone" in code else f"{module}:Broken"
    (info / "entry_points.txt").write_text(f"[usam.encoders]\n{name} = {target}\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The plugins of this repository, installed by pip, and two others that its user never asked for."""
    folder = tmp_path_factory.mktemp("site")
    command = "install --quiet --no-index --no-build-isolation --no-deps --disable-pip-version-check --target"
    plugins = map(str, sorted(file.parent for file in PLUGINS.glob("*/pyproject.toml")))
    subprocess.run([sys.executable, "-m", "pip", *command.split(), str(folder), *plugins], check=True)
    offer(folder, "usam-broken", "0.3", "broken", BROKEN)
    offer(folder, "whisper-clone", "2.0", "whisper", CLONE)
    return folder


def python(site, *arguments):
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=site, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_its_entry_point_is_discovered_and_nothing_is_imported(site):
    code = """
    import sys
    from usam.registry import discover
    print(*sorted(map(str, discover("usam.encoders"))))
    assert not {"usam_encodec", "usam_real", "usam_broken", "whisper_clone", "torch"} & set(sys.modules)
    """
    found = python(site, "-c", textwrap.dedent(code)).split()
    assert {"usam-encodec:encodec", "usam-real:crepe", "usam-broken:broken", "whisper-clone:whisper"} <= set(found)
    assert "usam:whisper" in found


def test_it_works_in_a_spec_by_name_and_only_who_names_the_others_meets_them(site):
    code = """
    import pytest
    from usam import ComponentError, load_spec

    def spec(encoder):
        return load_spec({"encoders": {"ear": encoder}, "projector": "linear", "llm": "tiny"})

    encodec = spec("encodec")
    assert encodec.sample_rate == 24000
    assert [encodec.audio_tokens(n) for n in (1, 320, 321, 24000)] == [1, 1, 2, 75]
    with pytest.raises(ComponentError, match="'broken' of usam-broken 0.3 failed to load: ImportError: libsound"):
        spec("broken")
    classes = {name: type(spec({"type": name, "arch": {}}).encoders["ear"]).__module__
               for name in ("whisper", "usam:whisper", "whisper-clone:whisper")}
    assert classes == {"whisper": "usam.encoders.whisper", "usam:whisper": "usam.encoders.whisper",
                       "whisper-clone:whisper": "whisper_clone"}
    assert load_spec("paper").encoders["whisper"].type == "whisper"  # bundled specs mean the library's own
    """
    python(site, "-c", textwrap.dedent(code))


OUTSIDE = {"usam-lhotse": "lhotse", "usam-kaldialign": "kaldialign"}  # packages that usam itself never asks for


def own_tests(site, *names):
    """Run the tests of plugins, in one process; `make test-plugins` runs them from wheels."""
    folders = [str(PLUGINS / name / "tests") for name in names]
    python(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", *folders)


@pytest.mark.slow
def test_each_passes_all_of_its_own_tests(site):
    own_tests(site, *SELF_CONTAINED)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), OUTSIDE.items())
def test_what_needs_another_package_passes_its_own_tests(name, package, site):
    pytest.importorskip(package, reason=f"pip install {package}", exc_type=ImportError)
    own_tests(site, name)


def test_a_model_whose_package_was_uninstalled_says_what_to_install(site, tmp_path):
    save = f"""
    from usam import build_model
    parts = {{"encoders": {{"ear": "power", "wide": "power"}}, "fusion": "mean", "projector": "gated", "llm": "primer"}}
    build_model({{**parts, "losses": {{"cross_entropy": {{}}, "nearness": {{}}}}}}).save_pretrained("{tmp_path}/model")
    """
    python(site, "-c", textwrap.dedent(save))
    load = f"""
    import pytest
    from usam import ComponentError, UsamForConditionalGeneration, load_spec
    with pytest.raises(ComponentError) as caught:
        UsamForConditionalGeneration.from_pretrained("{tmp_path}/model")
    for name in ("power", "mean", "gated", "primer", "nearness"):
        assert f"'{{name}}' was saved with usam-all 0.1.0: pip install usam-all" in str(caught.value)
    with pytest.raises(ComponentError, match="no package 'usam-all' .* is installed: pip install usam-all"):
        load_spec("{tmp_path}/model/usam.yaml")
    """
    python(tmp_path, "-c", textwrap.dedent(load))


def test_rows_of_lhotses_cuts_are_read_without_lhotse(site):
    code = """
    import sys
    from usam.data.manifest import Manifest
    source = {"type": "file", "channels": [0], "source": "a.wav"}
    recording = {"id": "a", "sources": [source], "sampling_rate": 16000, "num_samples": 32000, "duration": 2.0}
    said = {"id": "s1", "recording_id": "a", "start": 0.0, "duration": 1.0, "channel": 0, "text": "hello"}
    cut = {"id": "c1", "start": 0.5, "duration": 1.0, "channel": 0, "supervisions": [said], "recording": recording,
           "type": "MonoCut"}
    (sample,) = Manifest.of([cut], {"asr": "Transcribe."})
    assert sample.answer == "hello"
    assert sample.messages[0]["content"][0] == {"type": "audio", "audio": "a.wav", "start": 0.5, "duration": 1.0}
    assert "usam_lhotse" in sys.modules and "lhotse" not in sys.modules
    """
    python(site, "-c", textwrap.dedent(code))
