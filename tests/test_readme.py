"""What the README and the pages beside it claim is generated, exists, or is said honestly."""

import importlib.util
import re
from pathlib import Path

from benchmarks import results, table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_committed_results():
    for path in table.TABLES:
        assert (ROOT / path).read_text() == table.generated(path), "python -m benchmarks.table"


def test_api_page_is_what_the_docstrings_say():
    spec = importlib.util.spec_from_file_location("docs_api", ROOT / "docs" / "api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    assert (ROOT / "docs" / "api.md").read_text() == api.page(), "python docs/api.py"


def test_where_there_is_no_gpu_number_the_readme_says_so():
    measured = results.newest_campaign() is not None
    assert ("no GPU number" in README) == (not measured)
    assert ("not yet measured" in README) == (not measured)


def test_both_names_are_explained():
    assert "fastdiff-engine" in README
    assert 'name = "fastdiff-engine"' in (ROOT / "pyproject.toml").read_text()


def test_schedulers_named_are_those_that_exist():
    from fastdiff.schedulers import CLASSES

    line = README[README.index("Schedulers with a fused step:") :].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", line)) == {cls.__name__ for cls in CLASSES}


def test_pictures_are_small():
    for path in (ROOT / "docs" / "images").glob("*"):
        assert path.stat().st_size <= 200_000, path.name


def test_change_log_has_this_version():
    import fastdiff

    assert f"## [{fastdiff.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
