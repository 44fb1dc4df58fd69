"""Bugs of the CPU kernels: name -> (tests, file in csrc/, what stands there, what is planted)."""

QUANTILE = (
    "test_abs_quantile.py",
    "not cuda and not triton and (bits or nan or rows or beside or whichever)",
)
STEP = (
    "test_affine_step.py test_affine_step_cpu.py test_affine_step_seeds.py",
    "cpu and not test_inside and not gradcheck and not errors",
)
GEGLU = ("test_geglu_cpu.py", "test")
NORM = ("test_group_norm.py test_group_norm_cpu.py", "not million and not reference")
PHILOX = ("test_philox_normal.py", "not cuda and not triton and (cpu or bits or beside)")

BUGS = {
    "abs_quantile: a bit of a digit is masked out": (
        QUANTILE, "abs_quantile.cpp", "(1u << width) - 1", "(1u << (width - 1)) - 1",
    ),
    "abs_quantile: the elements that do not divide among threads are left out": (
        QUANTILE, "abs_quantile.cpp", "a.numel * (part + 1) / parts",
        "a.numel / parts * (part + 1)",
    ),
    "abs_quantile: the last quantile is not written": (
        QUANTILE, "abs_quantile.cpp", "a.out[sample] = q;",
        "if (sample + 1 < a.samples) a.out[sample] = q;",
    ),
    "abs_quantile: the gain of a row is not written": (
        QUANTILE, "abs_quantile.cpp", ", row[2] = 1.0f / bound;", ";",
    ),
    "abs_quantile: the rank before": (
        QUANTILE, "abs_quantile.cpp", "while (rank >= counts", "while (rank > counts",
    ),
    "abs_quantile: the last of its value is taken for the one before": (
        QUANTILE, "abs_quantile.cpp", "rank + 1 == counts", "rank + 2 == counts",
    ),
    "abs_quantile: the next value has the same higher digits": (
        QUANTILE, "abs_quantile.cpp", ": counts.above;", ": found;",
    ),
    "abs_quantile: the least above is that of the last thread": (
        QUANTILE, "abs_quantile.cpp", "if (above < counts->above) counts", "counts",
    ),
    "abs_quantile: the weight of the other": (
        QUANTILE, "abs_quantile.cpp", "if (a.weight < 0.5f) return", "if (a.weight < 2) return",
    ),
    "abs_quantile: infinity is a NaN": (
        QUANTILE, "abs_quantile.cpp", "counts.largest > kInfinity", "counts.largest >= kInfinity",
    ),
    "affine_step: 0 * inf": (
        STEP, "affine_step.cpp", "if (weights[column] != 0) result", "result",
    ),
    "affine_step: the elements after the last whole block are left out": (
        STEP, "affine_step.cpp", "per_sample = (a.numel + kBlock - 1) / kBlock,",
        "per_sample = a.numel < kBlock ? 1 : a.numel / kBlock,",
    ),
    "affine_step: the last element of a block is not computed": (
        STEP, "affine_step.cpp", "i < n; ++i) input[i]", "i + 1 < n; ++i) input[i]",
    ),
    "affine_step: blocks that do not divide among threads are left out": (
        STEP, "affine_step.cpp", "blocks * (part + 1) / parts, per",
        "blocks / parts * (part + 1), per",
    ),
    "affine_step: kept is not written where there is a slot": (
        STEP, "affine_step.cpp", "    write(a.kept[p], begin",
        "    if (row.slots[p] == nullptr) write(a.kept[p], begin",
    ),
    "affine_step: the slot is not written where there is kept": (
        STEP, "affine_step.cpp", "if (row.slots[p] != nullptr) write",
        "if (row.slots[p] != nullptr && a.kept[p].data == nullptr) write",
    ),
    "affine_step: model_input without its scale": (
        STEP, "affine_step.cpp", "row.c_in * next[i]", "next[i]",
    ),
    "affine_step: m without its gain": (
        STEP, "affine_step.cpp", "m[i] = gain * value", "m[i] = value",
    ),
    "affine_step: a gain without bounds does not count": (
        STEP, "affine_step.cpp", " || row->gain != 1;", ";",
    ),
    "affine_step: the row of the first sample for all": (
        STEP, "affine_step.cpp", "if (at != row.at)", "if (row.at == nullptr)",
    ),
    "affine_step: the last of the terms after the fourth is left out": (
        STEP, "affine_step.cpp", "done < result.count; done", "done + 1 < result.count; done",
    ),
    "affine_step: a slot is overwritten before it is read": (
        STEP, "affine_step.cpp", "is_operand = is_operand || out.data == a.history[r].data;", ";",
    ),
    "affine_step: the noise of another block": (
        STEP, "affine_step.cpp", "draw_normals(*scratch, offset,", "draw_normals(*scratch, 0,",
    ),
    "affine_step: the noise of another sample": (
        STEP, "affine_step.cpp", "a.seeds[sample]", "a.seeds[0]",
    ),
    "geglu: the value is its own gate": (
        GEGLU, "geglu.cpp", "read(x + width + at, n, gates)", "read(x + at, n, gates)",
    ),
    "geglu: the row before": (GEGLU, "geglu.cpp", "+ 2 * row * a.width", "+ row * a.width"),
    "geglu: the elements after the last whole block are left out": (
        GEGLU, "geglu.cpp", "at < end; at += kBlock",
        "at == begin || at + kBlock <= end; at += kBlock",
    ),
    "geglu: the elements that do not divide among threads are left out": (
        GEGLU, "geglu.cpp", "end = count * (t + 1) / threads", "end = count / threads * (t + 1)",
    ),
    "geglu: the last element of a block is not written": (
        GEGLU, "geglu.cpp", "i < n; ++i) y[i]", "i + 1 < n; ++i) y[i]",
    ),
    "geglu: a digit of the polynomial, float32": (
        GEGLU, "geglu.cpp", "1.1511048079e+00f", "1.1511148079e+00f",
    ),
    "geglu: a digit of the polynomial, 16 bits": (
        GEGLU, "geglu.cpp", "1.1502447128e+00f", "1.1512447128e+00f",
    ),
    "geglu: a digit of the power of two": (
        GEGLU, "geglu.cpp", "6.9314700365e-01f", "6.9314100365e-01f",
    ),
    "geglu: a NaN is bounded": (
        GEGLU, "geglu.cpp", "z > 10.0f ? 10.0f : z", "z < 10.0f ? z : 10.0f",
    ),
    "16 bits: the numbers after the last whole vector are not read": (
        GEGLU, "isa.inl", "k < n; ++k) scratch[k]", "k < n / 8 * 8; ++k) scratch[k]",
    ),
    "16 bits: the last number is not written": (
        GEGLU, "isa.inl", "k < n; ++k) to[k]", "k + 1 < n; ++k) to[k]",
    ),
    "16 bits: rounded toward zero": (
        GEGLU, "isa.inl", "(bits + (0x7fffu + (bits >> 16 & 1u))) >> 16", "bits >> 16",
    ),
    "group_norm: the first channel of the second source is that behind the first": (
        NORM, "group_norm.cpp", "second = c >= g.first", "second = c > g.first",
    ),
    "group_norm: the second source begins anew in each row": (
        NORM, "group_norm.cpp", "second ? g.x2 : g.x) + top * stride + begin",
        "second ? g.x2 : g.x) + part * rows * stride + begin",
    ),
    "group_norm: the elements after the last whole vector do not count": (
        NORM, "group_norm.inl", "if (n > 0) add_row(v, static_cast<int>(n));", "",
    ),
    "group_norm: the last row of a part does not count": (
        NORM, "group_norm.inl", "for (; rows > 0; --rows", "for (; rows > 1; --rows",
    ),
    "group_norm: the rows held at the end do not count": (
        NORM, "group_norm.cpp", "    columns.flush(n);\n", "",
    ),
    "group_norm: the rows after the last whole part are left out": (
        NORM, "group_norm.cpp", "parts = (g.length + rows - 1) / rows",
        "parts = g.length < rows ? 1 : g.length / rows",
    ),
    "group_norm: the channels after the last whole tile are left out": (
        NORM, "group_norm.cpp", "(all + kColumns - 1) / kColumns",
        "(all < kColumns ? 1 : all / kColumns)",
    ),
    "group_norm: the channels after the last whole block are left out": (
        NORM, "group_norm.cpp", "begin < end; begin += kBlock, v",
        "begin + least(n, kBlock) <= end; begin += kBlock, v",
    ),
    "group_norm: parts that do not divide among threads are left out": (
        NORM, "group_norm.cpp", "p < parts * (t + 1) / threads; ++p",
        "p < parts / threads * (t + 1); ++p",
    ),
    "group_norm: samples that do not divide among threads are left out": (
        NORM, "group_norm.cpp", "g.samples * (t + 1) / threads, 1)",
        "g.samples / threads * (t + 1), 1)",
    ),
    "group_norm: the last token of a block is not written": (
        NORM, "group_norm.cpp", "k < n; ++k) column", "k + 1 < n; ++k) column",
    ),
    "group_norm: the last element of total is not written": (
        NORM, "group_norm.inl", "write(sum, n, total);", "write(sum, n - 1, total);",
    ),
    "group_norm: rstd without eps": (
        NORM, "group_norm.inl", "squares / count) + g.eps", "squares / count)",
    ),
    "group_norm: the variance of a sample, not of a population": (
        NORM, "group_norm.inl", "0 : squares / count)", "0 : squares / (count - 1))",
    ),
    "group_norm: what the means of parts differ does not count, contiguous": (
        NORM, "group_norm.inl", " + delta * delta * (count * n / all)", "",
    ),
    "group_norm: what the means of parts differ does not count, channels last": (
        NORM, "group_norm.cpp", "from[wide + c] + count * delta * delta", "from[wide + c]",
    ),
    "group_norm: what the means of channels differ does not count": (
        NORM, "group_norm.cpp",
        " + static_cast<double>(g.length) * (mean[c] - all) * (mean[c] - all)", "",
    ),
    "group_norm: parts count alike, however many rows they have": (
        NORM, "group_norm.cpp",
        "static_cast<double>(rows_of(part)) / static_cast<double>(g.length)",
        "1 / static_cast<double>(parts)",
    ),
    "group_norm: what the mean loses in float32 is lost": (
        NORM, "group_norm.inl", " - (mean - a.centre) * scale",
        " - (g.dtype == kFloat32 ? 0 : mean) * scale",
    ),
    "group_norm: the addend of the first sample for all": (
        NORM, "group_norm.cpp", "mean[c] += g.addend[sample * wide + c]", "mean[c] += g.addend[c]",
    ),
    "group_norm: the bias is brought to float32 where the weight is": (
        NORM, "group_norm.cpp", "channels, wide + channels)", "channels, wide)",
    ),
    "group_norm: a digit of SiLU": (
        NORM, "group_norm.inl", "1.4426951f - f", "1.4426961f - f",
    ),
    "philox_normal: what lies behind the last element is written": (
        PHILOX, "philox_normal.cpp", "left < kLot ? rest : out + done", "out + done",
    ),
    "philox_normal: the elements after the last whole piece are left out": (
        PHILOX, "philox_normal.cpp", "(a.numel + kPiece - 1) / kPiece",
        "(a.numel < kPiece ? 1 : a.numel / kPiece)",
    ),
    "philox_normal: the elements after the last whole lot are left out": (
        PHILOX, "philox_normal.cpp", "if (left < kLot) std", "if (count < kLot) std",
    ),
    "philox_normal: pieces that do not divide among threads are left out": (
        PHILOX, "philox_normal.cpp", "p < pieces * (part + 1) / parts",
        "p < pieces / parts * (part + 1)",
    ),
    "philox_normal: the last element is not written": (
        PHILOX, "philox_normal.cpp", "static_cast<size_t>(left) * sizeof(float)",
        "static_cast<size_t>(left - 1) * sizeof(float)",
    ),
    "philox_normal: the counter begins anew in each piece": (
        PHILOX, "philox_normal.cpp", "(first + done) / 4", "done / 4",
    ),
    "philox_normal: half of the seed": (
        PHILOX, "philox_normal.cpp", "static_cast<uint32_t>(seed >> 32)", "0",
    ),
    "philox_normal: a round too few": (
        PHILOX, "philox_normal.inl", "round < 10", "round < 9",
    ),
    "philox_normal: the last digit of ln 2": (
        PHILOX, "philox_normal.inl", "0.6931472f", "0.6931471f",
    ),
    "philox_normal: half the variance": (
        PHILOX, "philox_normal.inl", "root(minus_log + minus_log)", "root(minus_log)",
    ),
}  # fmt: skip
