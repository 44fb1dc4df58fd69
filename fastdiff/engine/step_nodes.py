"""The nodes of a sampler's step around the network: step.py says what they read and write.

They are written in ONNX's own notation, all of the domain "" and without sub-graphs.  A row of the
table is turned to columns [1 or batch, 1, .., 1], which multiply samples [batch, C, height, width];
P and R follow from the sizes, R slots in `history` and K = 7 + (1 + P) (4 + R) + 1 + P columns.
Products are rounded before they are summed, as in affine_step, and those of a weight 0 are 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastdiff.table import COLUMNS, GAIN, HEAD, HI, KX, LO, G

if TYPE_CHECKING:
    import onnx

SAMPLE, TIMESTEP, TEXT, RAW = "sample", "timestep", "encoder_hidden_states", "out_sample"
OUTPUTS = ("x_next", "x0", "history_next")
MADE = (*OUTPUTS, SAMPLE, TIMESTEP, RAW)  # by the step, under their own names

TEXT_OF_STEP = """step () => () {{
    zero = Constant <value_float = 0.0> ()
    none = Constant <value_int = 0> ()
    single = Constant <value_int = 1> ()
    i0 = Constant <value_ints = [0]> ()
    i1 = Constant <value_ints = [1]> ()
    head = Constant <value_ints = [{head}]> ()
    four = Constant <value_ints = [{columns}]> ()
    rest = Constant <value_ints = [-1]> ()
    ones = Constant <value_ints = [{ones}]> ()
    beside = Constant <value_ints = [{beside}]> ()
    around = Constant <value_ints = [{around}]> ()

    # with guidance there are two rows of text for a sample
    batch = Shape <start = 0, end = 1> (x)
    rows = Shape <start = 0, end = 1> (encoder_hidden_states)
    copies = Div (rows, batch)

    # the row, R, 4 + R, 1 + P, and where c_in is; then the slots
    line = Gather <axis = 0> (table, row)
    samples = Shape <start = 0, end = 1> (line)
    width = Shape <start = 1, end = 2> (line)
    slots = Shape <start = 0, end = 1> (history)
    wide = Add (four, slots)
    body = Sub (width, head)
    share = Add (wide, i1)
    results = Div (body, share)
    end = Sub (width, results)

    # c_in of this call of the network is in the row before
    previous = Sub (row, single)
    before = Max (previous, none)
    line_before = Gather <axis = 0> (table, before)
    past_end = Add (end, i1)
    scale_before = Slice (line_before, end, past_end, i1)
    scale_after = Squeeze (scale_before, i1)
    begins = Equal (row, none)
    scale = Where (begins, c_in, scale_after)
    each = Concat <axis = 0> (rest, ones)
    scales = Reshape (scale, each)
    scaled = Mul (x, scales)
    entry = Cast <to = {sample_type}> (scaled)
    tiles = Concat <axis = 0> (copies, ones)
    sample = Tile (entry, tiles)
    time = Gather <axis = 0> (timesteps, row)
    times = Expand (time, batch)
    all_times = Tile (times, copies)
    timestep = Cast <to = {time_type}> (all_times)
    out_sample = Network (sample, timestep)
    raw = Cast <to = 1> (out_sample)

    # columns, each [samples, 1, .., 1]
    turned = Transpose <perm = [1, 0]> (line)
    each_column = Concat <axis = 0> (rest, samples, ones)
    column = Reshape (turned, each_column)
    g_at = Constant <value_int = {g}> ()
    lo_at = Constant <value_int = {lo}> ()
    hi_at = Constant <value_int = {hi}> ()
    gain_at = Constant <value_int = {gain}> ()
    g = Gather <axis = 0> (column, g_at)
    lo = Gather <axis = 0> (column, lo_at)
    hi = Gather <axis = 0> (column, hi_at)
    gain = Gather <axis = 0> (column, gain_at)

    # e = u + g (c - u), where u comes first and c last, and may be the same
    first_cond = Sub (rows, batch)
    u = Slice (raw, i0, batch, i0)
    c = Slice (raw, first_cond, rows, i0)
    apart = Sub (c, u)
    pushed = Mul (g, apart)
    e = Add (u, pushed)

    # m = gain clamp(kx x + ke e + kz z, lo, hi)
    kx_at = Constant <value_ints = [{kx}]> ()
    k_end = Constant <value_ints = [{lo}]> ()
    k = Slice (column, kx_at, k_end, i0)
    x_one = Unsqueeze (x, i0)
    e_one = Unsqueeze (e, i0)
    z_one = Unsqueeze (noise, i0)
    given = Concat <axis = 0> (x_one, e_one, z_one)
    k_given = Mul (k, given)
    k_unread = Equal (k, zero)
    k_terms = Where (k_unread, zero, k_given)
    free = ReduceSum <keepdims = 0> (k_terms, i0)
    above = Max (free, lo)
    clamped = Min (above, hi)
    x0 = Mul (gain, clamped)

    # [x'; r_1 .. r_P] = C [x, m, e, z, h_1 .. h_R]
    m_one = Unsqueeze (x0, i0)
    operands = Concat <axis = 0> (x_one, m_one, e_one, z_one, history)
    flat = Slice (column, head, end, i0)
    each_weight = Concat <axis = 0> (results, wide, samples, ones)
    weights = Reshape (flat, each_weight)
    products = Mul (weights, operands)
    unread = Equal (weights, zero)
    terms = Where (unread, zero, products)
    moved = ReduceSum <keepdims = 0> (terms, i1)
    x_next = Gather <axis = 0> (moved, none)

    # a slot takes the last r_p, p = 1 .. P, that names it; x' is p = 0, whose "slot" is c_in
    to_slots = Slice (column, end, width, i0)
    to_slot = Unsqueeze (to_slots, i1)
    count = Squeeze (results, i0)
    counted = Range (none, count, single)
    counted_as_floats = Cast <to = 1> (counted)
    result = Unsqueeze (counted_as_floats, beside)
    slot_count = Squeeze (slots, i0)
    slot_numbers = Range (none, slot_count, single)
    slots_as_floats = Cast <to = 1> (slot_numbers)
    slot = Unsqueeze (slots_as_floats, around)
    written = Equal (to_slot, slot)
    writers = Where (written, result, zero)
    writer = ReduceMax <keepdims = 1> (writers, i0)
    is_writer = Equal (writer, result)
    moved_one = Unsqueeze (moved, i1)
    candidates = Where (is_writer, moved_one, zero)
    new = ReduceSum <keepdims = 0> (candidates, i0)
    last_writer = Squeeze (writer, i0)
    renewed = Greater (last_writer, zero)
    history_next = Where (renewed, new, history)
}}"""


def nodes_of_step(axes: int, sample_type: int, time_type: int) -> list[onnx.NodeProto]:
    """The nodes of TEXT_OF_STEP, for samples with so many axes; names within begin with "step."."""
    from onnx import parser

    text = TEXT_OF_STEP.format(
        head=HEAD,
        columns=COLUMNS,
        ones=", ".join("1" * (axes - 1)),
        beside=", ".join(map(str, range(1, axes + 2))),
        around=", ".join(map(str, (0, *range(2, axes + 2)))),
        sample_type=sample_type,
        time_type=time_type,
        g=G,
        kx=KX,
        lo=LO,
        hi=HI,
        gain=GAIN,
    )
    nodes = list(parser.parse_graph(text).node)
    within = {name for node in nodes for name in node.output} - set(MADE)
    renamed(nodes, {name: f"step.{name}" for name in within})
    for node in nodes:
        node.name = f"step/{node.output[0]}"
    return nodes


def renamed(nodes: Iterable[onnx.NodeProto], names: dict[str, str]) -> None:
    """Values by other names, also where a sub-graph reads them."""
    for node in nodes:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = names.get(name, name)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                renamed(graph.node, names)
                for port in graph.output:
                    port.name = names.get(port.name, port.name)
