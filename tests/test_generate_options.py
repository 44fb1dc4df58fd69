"""`fastdiff generate`: seeds, records to repeat, warnings, and where a message is printed."""

import json
import sys

import pytest

from fastdiff.cli import UserError, main, record
from fastdiff.cli.generate import Request
from tests.test_generate import PROMPT, generate


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """The record of a run, as text."""
    out = tmp_path_factory.mktemp("done")
    generate(PROMPT, "--model", tiny, "--steps", 1, "--out", out)
    return (out / "generate.json").read_text()


@pytest.mark.parametrize(
    ("seed", "count"), [(99999999999999999999, 1), (2**64 - 1, 2), (2**63, 1), (2**63 - 1, 2)]
)
def test_a_seed_that_no_generator_takes(tmp_path, seed, count):
    with pytest.raises(UserError, match=rf"--seed \+ --count .*; got {seed} \+ {count}"):
        generate(PROMPT, "--seed", seed, "--count", count, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_largest_seeds(tiny, tmp_path):
    options = ["--model", tiny, "--steps", 1, "--count", 2, "--out", tmp_path]
    generate(PROMPT, "--seed", 2**63 - 2, *options)
    assert (tmp_path / f"1-{2**63 - 1}.png").exists()


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("request.count", "2", "request.count must be of kind int; got '2'"),
        ("request.steps", True, "request.steps must be of kind int; got True"),
        ("request.seed", 1.0, "request.seed must be of kind int; got 1.0"),
        ("request.prompts", [3], "each of request.prompts must be of kind str; got 3"),
        ("request.prompts", PROMPT, "request.prompts must be of kind list"),
        ("request.guidance", "3", "request.guidance must be of kind int or float or null"),
        ("request.sheet", 1, "request.sheet must be of kind bool; got 1"),
        ("request.model", 0, "request.model must be of kind str or null; got 0"),
        ("request.made", None, "request must have prompts, "),
        ("request", {}, "request must have prompts, .*; got none"),
        ("request", [], "request must be of kind dict"),
        ("model", "x", "model must be of kind dict; got 'x'"),
        ("model.sha256", None, "model.sha256 must be of kind str; got None"),
        ("plan", None, "plan must be of kind dict; got None"),
        ("plan.rows", "x", "field 'rows' of a plan"),
        ("schema", 2, "schema must be 1; got 2"),
    ],
)
def test_a_record_with_a_wrong_entry(done, tmp_path, place, value, words):
    body = inner = json.loads(done)
    *above, name = place.split(".")
    for step in above:
        inner = inner[step]
    inner[name] = value
    path = tmp_path / "generate.json"
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=rf"--repeat must be a generate.json.*{words}"):
        generate("--repeat", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [b"[]", b"3", b"{", b"", b"\xff", b"{}"])
def test_a_record_that_is_none(tmp_path, text):
    path = tmp_path / "some.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"--repeat must be a generate.json.*some.json"):
        generate("--repeat", path, "--out", tmp_path / "out")


def test_a_record_with_a_row_for_each_sample(done, tmp_path):
    body = json.loads(done)
    body["plan"]["rows"] = [row * 2 for row in body["plan"]["rows"]]
    path = tmp_path / "generate.json"
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match="plan must be one for all pictures; got 2"):
        generate("--repeat", path, "--out", tmp_path / "out")


def test_a_record_has_every_option_of_a_request(done):
    options = set(Request.__dataclass_fields__) - {
        "out",
        "made",
        "weights",
        "made_with",
        "trust_engine",
    }
    assert options == record.OPTIONS.keys() == json.loads(done)["request"].keys()


@pytest.mark.parametrize(
    ("prompt", "signs"),
    [("!!!", ["'!!!'"]), ("a red circle, above: a blue_square", ["','", "':'", "'_'"])],
)
def test_signs_are_words_that_were_never_taught(tmp_path, prompt, signs):
    message = generate(prompt, "--steps", 1, "--out", tmp_path).stderr
    assert f"never taught {', '.join(signs)};" in message


def test_the_end_of_a_prompt_that_is_not_read_is_named(tiny, tmp_path):
    kept, rest = f"{PROMPT} {PROMPT}", "and a green cross"
    words = f"reads 16 tokens; of '{kept} {rest}' it does not see '{rest}'\n"
    options = ["--model", tiny, "--steps", 1, "--out", tmp_path]
    assert words in generate(f"{kept} {rest}", *options).stderr
    assert words in generate(PROMPT, "--negative-prompt", f"{kept} {rest}", *options).stderr
    assert "warning" not in generate(PROMPT, *options).stderr


@pytest.mark.parametrize("words", [14, 15, 20])
def test_what_is_not_read_changes_no_picture(tiny, tmp_path, words):
    """Of 16 tokens 14 are words of the prompt."""
    kept, rest = ["red"] * 14, ["blue"] * (words - 14)
    options = ["--model", tiny, "--steps", 1, "--out"]
    generate(" ".join(kept), *options, tmp_path / "a")
    message = generate(" ".join(kept + rest), *options, tmp_path / "b").stderr
    if rest:
        assert f"it does not see '{' '.join(rest)}'\n" in message
    else:
        assert "warning" not in message
    assert (tmp_path / "a" / "0-0.png").read_bytes() == (tmp_path / "b" / "0-0.png").read_bytes()


def test_a_negative_prompt_without_guidance_is_a_warning(tiny, tmp_path):
    options = [PROMPT, "--model", tiny, "--steps", 1, "--out", tmp_path]
    message = generate(*options, "--guidance", 1, "--negative-prompt", "a green cross").stderr
    assert "warning: --negative-prompt is not used" in message
    assert "warning" not in generate(*options, "--guidance", 1).stderr
    assert "warning" not in generate(*options, "--negative-prompt", "a green cross").stderr


def test_an_error_while_sampling_has_a_line_of_its_own(tiny, tmp_path, monkeypatch, capsys):
    arguments = ["--model", tiny, "--steps", 3, "--guidance", 1e38, "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["fastdiff", "generate", PROMPT, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the latent is not finite")
