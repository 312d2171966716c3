"""A report in a browser: no error, nothing wider than a telephone, where Chromium is installed."""

import shutil
import subprocess

import pytest
from small_runs import write_log, write_record, write_table

from usam.report.write import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_it_without_an_error(tmp_path):
    write_log(tmp_path / "a")
    write_record(tmp_path / "r", [("asr", "a b", "a b"), ("aac", "c d", "c e")])
    write_table(tmp_path / "t")
    file = write_report([tmp_path / "a", tmp_path / "r", tmp_path / "t"], tmp_path / "report.html")
    script = "<script>document.title = document.documentElement.scrollWidth - window.innerWidth</script>"
    file.write_text(file.read_text(encoding="utf-8").replace("</body>", f"{script}</body>"), encoding="utf-8")
    shown = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,800", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    over = int(shown.stdout.partition("<title>")[2].partition("<")[0])
    assert over <= 0  # nothing but tables is wider than the window, and these scroll
