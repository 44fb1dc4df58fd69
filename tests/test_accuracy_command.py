"""`fastdiff bench accuracy` as a command: its options, its files, and what it refuses."""

import pytest

from fastdiff.cli import UserError
from fastdiff.cli.bench import accuracy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": "5,x"}, r"--budgets must be .*got '5,x'"),
        ({"budgets": "1"}, r"--budgets must be numbers of calls in 2"),
        ({"family": "ve"}, r"--family must be one of vp, flow; got 've'"),
        ({"solver": ["nope"]}, r"--solver must be one of .*sa_solver.*got 'nope'"),
        ({"samples": 1}, r"--samples must be in 2 .*got 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        accuracy(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="--out must be a folder"):
        accuracy(tmp_path / "out")


def test_the_command_writes_three_files(tmp_path, capsys):
    options = {"budgets": "4,3", "family": "flow", "solver": ["FlowMatchEuler"], "samples": 16}
    accuracy(tmp_path / "out", **options)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"accuracy.{end}" for end in ("json", "svg", "md")
    }
    assert "flow flow_euler diffusers linspace" in capsys.readouterr().out
    with pytest.raises(UserError, match="budgets"):
        accuracy(tmp_path / "out", **{**options, "budgets": "5"})
