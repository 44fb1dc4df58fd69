"""An .onnx file from elsewhere: every graph that asks for too much is one clean EngineError."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastdiff.engine import graphs, operators, wire
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible, Untrusted
from fastdiff.engine.manifest import Graph
from tests import tiny_bundle

INT64 = TensorProto.INT64


def check(tmp_path, model, data=None):
    content = model if isinstance(model, bytes) else model.SerializeToString()
    (tmp_path / "unet.onnx").write_bytes(content)
    return graphs.check(tmp_path / "unet.onnx", tmp_path, data)


def one_node(op, constants=(), outputs=("out_sample",), **attributes):
    """A graph whose one node takes `sample` for every operand that is None."""
    names = ["sample" if value is None else f"c{k}" for k, value in enumerate(constants)]
    initializers = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in zip(names, constants, strict=True)
        if value is not None
    ]
    return tiny_bundle.model([helper.make_node(op, names, outputs, **attributes)], initializers)


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
    """With no operands, too few and too many: onnx 1.23.2 dies of an LSTM like that."""
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
        check(tmp_path, one_node(op, [None]))


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "pkg.onnxscript", "x\n"])
def test_an_operator_of_another_domain(tmp_path, domain):
    with pytest.raises(Untrusted, match="operator of ONNX itself"):
        check(tmp_path, one_node("Gelu", [None], domain=domain))


def sub_graph():
    body = helper.make_graph([helper.make_node("LSTM", [], ["y"])], "body", [], [])
    return one_node("Identity", [None], body=body)


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
    made = one_node("Identity", [None], x=[1] * 10_000)
    with pytest.raises(Untrusted, match="at most 10000 fields"):
        check(tmp_path, made)


def tensor(name="weight", dims=(4,), kind=TensorProto.FLOAT, **values):
    return TensorProto(name=name, dims=dims, data_type=kind, **values)


@pytest.mark.parametrize(
    ("made", "error", "what"),
    [
        (tensor(dims=[1 << 40, 1 << 40], raw_data=b"1234"), Corrupt, "must have 4835703278458516"),
        (tensor(dims=[1 << 62, 4], raw_data=b""), Corrupt, "got 0"),  # 2^64 bytes: 0 in 64 bits
        (tensor(dims=[-1, -4], raw_data=b"1" * 16), Corrupt, "numbers >= 0"),
        (tensor(dims=[0, 1 << 62] * 9), Corrupt, "at most 16 numbers"),
        (tensor(raw_data=b"123"), Corrupt, "16 bytes for its dims; got 3"),
        (tensor(float_data=[1, 2, 3]), Corrupt, "16 bytes for its dims; got 12"),
        (tensor(kind=INT64, int64_data=[1, -1, 3]), Corrupt, "32 bytes for its dims; got 24"),
        (tensor(kind=INT64, int32_data=[1] * 4), Corrupt, "int64 in one field"),
        (tensor(raw_data=b"1" * 16, float_data=[1] * 4), Corrupt, "in one field"),
        (tensor(kind=TensorProto.COMPLEX128, raw_data=b"1" * 64), Untrusted, "permitted type"),
        (tensor(kind=0), Untrusted, "permitted type"),
        (tensor(kind=77), Untrusted, "permitted type"),
        (tensor(name="", raw_data=b"1" * 16), Corrupt, "names of their own"),
    ],
)
def test_a_tensor_that_is_not_what_it_says(tmp_path, made, error, what):
    model = tiny_bundle.model()
    model.graph.initializer[0].CopyFrom(made)
    with pytest.raises(error, match=what):
        check(tmp_path, model)


def external(location="w", offset="0", length="16", **changed):
    found = {"location": location, "offset": offset, "length": length, **changed}
    made = tensor(data_location=TensorProto.EXTERNAL)
    for key, value in found.items():
        if value is not None:
            made.external_data.add(key=key, value=value)
    return made


@pytest.mark.parametrize(
    ("made", "error"),
    [
        *[
            (external(location), Untrusted)
            for location in (
                *("/etc/passwd", "../w", "./w", "w/", "sub/w", "W", "", "other", "w\0", "\\w"),
                *("file:///w", "~/w", "C:w", "w:stream", "..", ".", "manifest.json", "unet.onnx"),
                None,
            )
        ],
        (external(checksum="x"), Untrusted),
        (external(offset="-1"), Corrupt),
        (external(offset="1"), Corrupt),
        (external(offset=" 0"), Corrupt),
        (external(offset="٣"), Corrupt),  # a digit, for int()
        (external(offset="9" * 5000), Corrupt),
        (external(length="17"), Corrupt),
        (external(length="0"), Corrupt),
        (external(length="0x10"), Corrupt),
    ],
)
def test_weights_that_lie_elsewhere(tmp_path, made, error):
    (tmp_path / "w").write_bytes(b"1" * 16)
    (tmp_path / "other").write_bytes(b"1" * 16)
    model = tiny_bundle.model()
    model.graph.initializer[0].CopyFrom(made)
    with pytest.raises(error):
        check(tmp_path, model, "w")
    with pytest.raises(Untrusted):
        check(tmp_path, model, None)


def test_weights_beside_the_graph_share_nothing(tmp_path):
    (tmp_path / "w").write_bytes(b"1" * 32)
    model = tiny_bundle.model()
    first, second = external(), external(offset="16")
    first.name, second.name = "one", "two"
    model.graph.initializer.extend([first, second])
    check(tmp_path, model, "w")
    for offset in ("15", "0"):
        next(
            e for e in model.graph.initializer[-1].external_data if e.key == "offset"
        ).value = offset
        with pytest.raises(Untrusted, match=r"'one' and 'two' must not|'two' and 'one'"):
            check(tmp_path, model, "w")


def test_the_file_of_weights_is_a_plain_file(tmp_path):
    model = tiny_bundle.model()
    model.graph.initializer[0].CopyFrom(external())
    with pytest.raises(Corrupt, match="must be there"):
        check(tmp_path, model, "w")
    (tmp_path / "elsewhere").write_bytes(b"1" * 16)
    (tmp_path / "w").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Untrusted, match="plain file"):
        check(tmp_path, model, "w")


def test_a_node_has_its_constants_with_it(tmp_path):
    (tmp_path / "w").write_bytes(b"1" * 16)
    made = tiny_bundle.model()
    made.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=external()))
    with pytest.raises(Untrusted, match="in the ONNX file"):
        check(tmp_path, made, "w")


HUGE = np.array([1 << 20, 1 << 20], np.int64)


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (one_node("ConstantOfShape", [HUGE]), Untrusted),
        (one_node("ConstantOfShape", [np.array([-1])]), Corrupt),
        (one_node("Expand", [None, HUGE]), Untrusted),
        (one_node("Tile", [None, np.array([1, 1, 1 << 10, 1 << 10])]), Untrusted),
        (one_node("Tile", [None, np.array([1, 1, -1, 1])]), Corrupt),
        (one_node("Pad", [None, np.array([0, 0, 1 << 40, 0] * 2)]), Untrusted),
        (one_node("Range", [np.int64(0), np.int64(1 << 40), np.int64(1)]), Untrusted),
        (one_node("Range", [np.float32(0), np.float32(1), np.float32(1e-30)]), Untrusted),
        (one_node("Range", [np.float32(np.nan), np.float32(1), np.float32(1)]), Untrusted),
        (one_node("Range", [np.int64(0), np.int64(1), np.int64(0)]), Corrupt),
        (one_node("Resize", [None, None, np.float32([1, 1, 1e6, 1])]), Untrusted),
        (one_node("Resize", [None, None, np.float32([1, 1, np.nan, 1])]), Untrusted),
        (one_node("Resize", [None, None, None, np.array([1, 4, 1 << 20, 1 << 20])]), Untrusted),
        (one_node("OneHot", [None, np.int64(1 << 40), None]), Untrusted),
        (one_node("Div", [None, np.int64(0)]), Untrusted),
        (one_node("Div", [None, np.array([2, -1])]), Untrusted),
        (one_node("Mod", [None, np.int32(0)]), Untrusted),
        (one_node("Conv", [None, None], pads=[1 << 40] * 4), Untrusted),
        (one_node("Conv", [None, None], group=0), Untrusted),
        (one_node("MaxPool", [None], kernel_shape=[2, 2], strides=[0, 1]), Untrusted),
        (one_node("GroupNormalization", [None] * 3, num_groups=0), Untrusted),
        (one_node("DepthToSpace", [None], blocksize=0), Untrusted),
        (one_node("Split", [None], num_outputs=1 << 40), Untrusted),
    ],
)
def test_constants_that_ask_for_too_much(tmp_path, made, error):
    with pytest.raises(error, match=made.graph.node[0].op_type):
        check(tmp_path, made)


@pytest.mark.parametrize(
    "constant",
    [
        {"value_ints": HUGE.tolist()},
        {"value": numpy_helper.from_array(HUGE)},
        {"value": helper.make_tensor("t", INT64, [2], HUGE.tolist())},
    ],
)
def test_a_constant_is_seen_in_each_of_its_forms(tmp_path, constant):
    nodes = [
        helper.make_node("Constant", [], ["shape"], **constant),
        helper.make_node("Expand", ["sample", "shape"], ["out_sample"]),
    ]
    with pytest.raises(Untrusted, match="Expand must make at most"):
        check(tmp_path, tiny_bundle.model(nodes, []))


def test_what_onnx_does_not_take(tmp_path):
    nodes = [helper.make_node("Add", ["sample", "nowhere"], ["out_sample"])]
    with pytest.raises(Corrupt, match=r"onnx\.checker takes: .*nowhere"):
        check(tmp_path, tiny_bundle.model(nodes, []))


def test_an_attribute_is_of_one_kind(tmp_path):
    made = one_node("Split", [None], num_outputs=2)
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
