"""`fastdiff info`: complete, true, and JSON that a program can read."""

import json
import subprocess
import sys

import torch

import fastdiff
from fastdiff import backends
from fastdiff.cli.info import collect, print_info


def test_every_op_and_backend_is_there_with_its_reason():
    info = collect()
    assert set(info["ops"]) == set(backends.ops()) >= {"affine_step"}
    for op, places in info["ops"].items():
        assert ("cuda" in places) == torch.cuda.is_available()
        for device, place in places.items():
            key = backends.Key(device, torch.float32)
            assert set(place["backends"]) == set(backends.PREFERENCE)
            assert place["chosen"] == backends.chosen(op, key)
            for backend, reason in place["backends"].items():
                assert reason == backends.why_not(op, backend, key)


def test_the_facts_are_those_of_this_process():
    info = collect()
    assert info["fastdiff"] == fastdiff.__version__
    assert info["packages"]["torch"] == torch.__version__
    assert info["cpu"]["threads"] == torch.get_num_threads()
    if info["native"]["native"]:
        from fastdiff import _C

        assert info["native"]["isa"] == _C.isa()
        assert info["native"]["isa"] in info["native"]["isas"]
    else:
        assert "slower" in info["native"]["reason"]


def test_text_and_json(capsys):
    print_info(json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(collect()))
    print_info()
    text = capsys.readouterr().out
    for word in ("fastdiff", "torch", "native extension", "CPU", "GPU", "op affine_step on cpu"):
        assert word in text
    assert "None" not in text


def test_the_command():
    run = subprocess.run(
        [sys.executable, "-c", "from fastdiff.cli import main; main()", "info", "--json"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["schema"] == 1
