"""The tensors and constants of an .onnx file from elsewhere: what asks for too much is refused."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastdiff.engine import graphs
from fastdiff.engine.errors import Corrupt, Untrusted
from tests import tiny_bundle
from tests.tiny_bundle import one_node

INT64 = TensorProto.INT64


def check(tmp_path, model, data=None):
    (tmp_path / "unet.onnx").write_bytes(model.SerializeToString())
    return graphs.check(tmp_path / "unet.onnx", tmp_path, data)


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
