"""Files that lie in the working directory are no modules of children."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import octavo

HOME = Path(octavo.__file__).parents[1]
PROGRAM = """
import sys
from octavo.child_python import isolated_python
import subprocess
command = [*isolated_python(), "-c", "import http; print(http.__file__)"]
print(subprocess.run(command, capture_output=True, text=True).stdout)
"""


def test_a_file_in_the_working_directory_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "http.py").write_text("raise SystemExit('this should not run')\n")
    environ = os.environ | {"PYTHONPATH": str(HOME)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip().endswith(os.path.join("http", "__init__.py")), done


def test_a_checkout_that_is_not_installed_starts_its_children(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", "from octavo.child_python import isolated_python as p; print(len(p()))"],
        cwd=HOME, env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "1", done
