"""An .onnx file from elsewhere: every graph that asks for too much is one clean EngineError."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fastdiff.engine import graphs, operators, wire
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible, Untrusted
from fastdiff.engine.manifest import Graph
from tests import tiny_bundle

INT64 = TensorProto.INT64


def check(tmp_path, model, data=None):
    content = model if isinstance(model, bytes) else model.SerializeToString()
    (tmp_path / "unet.onnx").write_bytes(content)
    return graphs.check(tmp_path / "unet.onnx", tmp_path, data)


@pytest.mark.parametrize("data", [None, "unet.onnx.data"])
def test_a_good_graph_is_described(tmp_path, data):
    tiny_bundle.save(tmp_path, data=data)
    seen = graphs.check(tmp_path / "unet.onnx", tmp_path, data)
    assert (seen.opset, seen.nodes) == (21, 10)
    assert [port.name for port in seen.inputs] == ["sample", "timestep", "encoder_hidden_states"]
    assert seen.outputs == (graphs.Port("out_sample", "float32", ("batch", 4, "height", "width")),)
    graphs.check_ports(seen, Graph(file="unet.onnx", opset=21, **tiny_bundle.PORTS))


def test_the_table_is_that_of_onnx():
    """Fields of the table have ONNX's numbers, names and kinds; a kind of ours cannot recur."""
    names = {
        "Model": onnx.ModelProto,
        "Opset": onnx.OperatorSetIdProto,
        "Entry": onnx.StringStringEntryProto,
        "Graph": onnx.GraphProto,
        "Node": onnx.NodeProto,
        "Attribute": onnx.AttributeProto,
        "Tensor": onnx.TensorProto,
        "Value": onnx.ValueInfoProto,
        "Type": onnx.TypeProto,
        "TensorType": onnx.TypeProto.Tensor,
        "Shape": onnx.TensorShapeProto,
        "Dim": onnx.TensorShapeProto.Dimension,
    }
    assert names.keys() == wire.MESSAGES.keys()
    order = list(wire.MESSAGES)
    for kind, proto in names.items():
        fields = {field.number: field for field in proto.DESCRIPTOR.fields}
        for number, (name, of) in wire.MESSAGES[kind].items():
            empty = getattr(proto(), name.rstrip("*"))
            assert fields[number].name == name.rstrip("*")
            assert hasattr(empty, "extend") == name.endswith("*"), (kind, name)
            if of in names:
                assert fields[number].message_type.name == names[of].DESCRIPTOR.name
                assert order.index(of) > order.index(kind) or of == "Entry"
        known = wire.MESSAGES[kind].keys() | {n for k, n in wire.REFUSED if k == kind}
        assert known >= fields.keys(), "a new field of ONNX: permit it, or say that it is refused"


def test_permitted_operators_are_operators():
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known >= operators.PERMITTED
    for op in ("Loop", "If", "Scan", "SequenceMap", "LSTM", "RNN", "GRU", "StringSplit"):
        assert op in known - operators.PERMITTED
    for op in ("RandomNormal", "ImageDecoder", "Optional", "TfIdfVectorizer", "NonZero"):
        assert op in known - operators.PERMITTED


def test_the_checker_survives_every_permitted_operator():
    """With no operands, too few and too many: native code, which could die of them."""
    program = """
import onnx
from onnx import helper
from fastdiff.engine.operators import PERMITTED
port = helper.make_tensor_value_info("x", 1, [1])
for op in sorted(PERMITTED):
    for opset in (20, 21, 23):
        for given in ([], [""], ["x"], ["x"] * 20):
            for made in ([], ["y"], [f"y{k}" for k in range(9)]):
                graph = helper.make_graph([helper.make_node(op, given, made)], "g", [port], [port])
                model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
                try:
                    onnx.checker.check_model(model.SerializeToString())
                except onnx.checker.ValidationError:
                    pass
print("alive")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "alive\n", run.stderr[-500:]


@pytest.mark.parametrize("op", ["LSTM", "Loop", "If", "Scan", "NonZero", "Nonsense", ""])
def test_an_operator_that_is_not_permitted(tmp_path, op):
    with pytest.raises(Untrusted, match="operator that a bundle may have"):
        check(tmp_path, tiny_bundle.one_node(op, [None]))


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "pkg.onnxscript", "x\n"])
def test_an_operator_of_another_domain(tmp_path, domain):
    with pytest.raises(Untrusted, match="operator of ONNX itself"):
        check(tmp_path, tiny_bundle.one_node("Gelu", [None], domain=domain))


def sub_graph():
    body = helper.make_graph([helper.make_node("LSTM", [], ["y"])], "body", [], [])
    return tiny_bundle.one_node("Identity", [None], body=body)


def functions():
    made = tiny_bundle.model()
    node = helper.make_node("LSTM", ["x"], ["y"])
    opsets = [helper.make_opsetid("", 21)]
    made.functions.append(helper.make_function("ours", "f", ["x"], ["y"], [node], opsets))
    return made


def sparse():
    made = tiny_bundle.model()
    made.graph.sparse_initializer.add().dims.append(1 << 40)
    return made


def training():
    made = tiny_bundle.model()
    made.training_info.add().initialization.name = "x"
    return made


def text():
    made = tiny_bundle.model()
    made.graph.initializer.add(name="t", data_type=TensorProto.STRING, string_data=[b"x"])
    return made


def reference():
    made = tiny_bundle.model()
    made.graph.node[0].attribute.add(name="x", ref_attr_name="y")
    return made


def sequence():
    made = tiny_bundle.model()
    kind = helper.make_tensor_type_proto(1, [1])
    made.graph.value_info.append(helper.make_value_info("s", helper.make_sequence_type_proto(kind)))
    return made


@pytest.mark.parametrize(
    "make", [sub_graph, functions, sparse, training, text, reference, sequence]
)
def test_parts_that_a_graph_must_not_have(tmp_path, make):
    with pytest.raises(Untrusted, match=r"^unet\.onnx: field \d+ of \w+ .* must not be there"):
        check(tmp_path, make())


def number(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def nested(depth):
    """Graphs in attributes of nodes of graphs .."""
    inner = b""
    for _ in range(depth):
        for tag in (6 << 3 | 2, 5 << 3 | 2, 1 << 3 | 2):  # Attribute.g, Node.attribute, Graph.node
            inner = number(tag) + number(len(inner)) + inner
    return number(7 << 3 | 2) + number(len(inner)) + inner


@pytest.mark.parametrize(
    ("content", "error", "what"),
    [
        (nested(2000), Untrusted, "a sub-graph"),
        (number(99 << 3) + b"\0", Untrusted, "field 99 of Model"),
        (b"\x08\x0a\x08\x0a", Corrupt, "ir_version of Model .* there once"),
        (b"\x3a\x02\x12\x00\x3a\x00", Corrupt, "graph of Model .* there once"),
        (b"\x08" + b"\xff" * 10 + b"\x01", Corrupt, "does not end"),
        (b"\x3a\x7f", Corrupt, "not at byte 2"),
        (b"\x3b", Corrupt, "not at byte 1"),  # a group
        (b"\x12\x01\xff", Corrupt, "producer_name of Model .* UTF-8"),
        (b"\x0a\x00", Corrupt, "ir_version of Model .* must be int"),
        (b"", Corrupt, "must have 1 .. "),
        (b"\x08\x02", Incompatible, "IR version"),
        (b"\x08\x0a", Corrupt, "import one opset"),
        (b"\x08\x0a\x42\x02\x10\x15", Corrupt, "nodes; got 0"),
    ],
)
def test_protobuf_that_is_not_a_model(tmp_path, content, error, what):
    with pytest.raises(error, match=what):
        check(tmp_path, content)


def test_very_many_fields(tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "MOST_FIELDS", 10_000)
    made = tiny_bundle.one_node("Identity", [None], x=[1] * 10_000)
    with pytest.raises(Untrusted, match="at most 10000 fields"):
        check(tmp_path, made)


def test_what_onnx_does_not_take(tmp_path):
    nodes = [helper.make_node("Add", ["sample", "nowhere"], ["out_sample"])]
    with pytest.raises(Corrupt, match=r"onnx\.checker takes: .*nowhere"):
        check(tmp_path, tiny_bundle.model(nodes, []))


def test_an_attribute_is_of_one_kind(tmp_path):
    made = tiny_bundle.one_node("Split", [None], num_outputs=2)
    made.graph.node[0].attribute[0].ints.append(1 << 40)
    with pytest.raises(Corrupt, match="one kind of value"):
        check(tmp_path, made)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("inputs", 0, "name"), "latent"),
        (("inputs", 1, "dtype"), "float16"),
        (("inputs", 2, "shape"), ["batch", "tokens", 9]),
        (("inputs", 2, "shape"), ["batch", "tokens"]),
        (("inputs", 0, "shape"), ["batch", 4, "width", "height"]),
        (("outputs", 0, "name"), "sample"),
        (("opset",), 20),
    ],
)
def test_ports_are_those_of_the_manifest(tmp_path, where, value):
    seen = check(tmp_path, tiny_bundle.model())
    wanted = {"file": "unet.onnx", "opset": 21}
    wanted.update({k: [dict(p) for p in v] for k, v in tiny_bundle.PORTS.items()})
    part = wanted
    for step in where[:-1]:
        part = part[step]
    part[where[-1]] = value
    with pytest.raises(Corrupt, match=r"unet\.onnx"):
        graphs.check_ports(seen, Graph(**wanted))


def test_a_port_too_few_or_too_many(tmp_path):
    seen = check(tmp_path, tiny_bundle.model())
    ports = tiny_bundle.PORTS
    for inputs in (ports["inputs"][:2], [*ports["inputs"], {**ports["inputs"][0], "name": "x"}]):
        with pytest.raises(Corrupt, match="inputs as in the manifest"):
            graphs.check_ports(
                seen,
                Graph(file="unet.onnx", opset=21, inputs=inputs, outputs=ports["outputs"]),
            )


def error_of(tmp_path, content):
    try:
        check(tmp_path, content)
    except EngineError as error:
        return error
    return None


def test_bits_and_ends_of_a_graph(tmp_path):
    """A cut at every 16th byte, a flip at 150: an EngineError, or a graph that is permitted."""
    content = tiny_bundle.model().SerializeToString()
    flips = np.random.default_rng(0).integers(0, len(content) * 8, 150).tolist()
    cases = [content[:end] for end in range(0, len(content), 16)]
    for at in flips:
        changed = bytearray(content)
        changed[at // 8] ^= 1 << at % 8
        cases.append(bytes(changed))
    found = [error_of(tmp_path, case) for case in cases]
    said = [str(error) for error in found if error is not None]
    assert len(said) > len(cases) // 2
    assert not [text for text in said if "\n" in text or len(text) > 600]
    assert EngineError not in {type(error) for error in found}
