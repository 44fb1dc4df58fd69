"""Bugs of the CPU kernels: name -> (tests, file in csrc/, what stands there, what is planted)."""

QUANTILE = (
    "test_abs_quantile.py",
    "not cuda and not triton and (bits or nan or rows or beside or whichever)",
)
STEP = (
    "test_affine_step.py test_affine_step_cpu.py test_affine_step_seeds.py",
    "cpu and not test_inside and not gradcheck and not errors",
)
LAYER = ("test_add_layer_norm_cpu.py", "not networks and not extension")
BIAS = ("test_bias_residual_cpu.py", "not networks and not extension")
GEGLU = ("test_geglu_cpu.py", "test")
NORM = ("test_group_norm.py test_group_norm_cpu.py", "not million and not reference")
PHILOX = ("test_philox_normal.py", "not cuda and not triton and (cpu or bits or beside)")

BUGS = {
    "abs_quantile: a bit of a digit is masked out": (
        QUANTILE, "abs_quantile.cpp", "(1u << range_.width) - 1",
        "(1u << (range_.width - 1)) - 1",
    ),
    "abs_quantile: the elements that do not divide among threads are left out": (
        QUANTILE, "abs_quantile.cpp", "n * (part + 1) / parts", "n / parts * (part + 1)",
    ),
    "abs_quantile: the last quantile is not written": (
        QUANTILE, "abs_quantile.cpp", "a.out[sample] = q;",
        "if (sample + 1 < a.samples) a.out[sample] = q;",
    ),
    "abs_quantile: the gain of a row is not written": (
        QUANTILE, "abs_quantile.cpp", ", row[2] = 1.0f / bound;", ";",
    ),
    "abs_quantile: the rank before": (
        QUANTILE, "abs_quantile.cpp",
        "while (rank >= counts.bins[bin]) rank -= counts.bins[bin++];\n    const bool last",
        "while (rank > counts.bins[bin]) rank -= counts.bins[bin++];\n    const bool last",
    ),
    "abs_quantile: the last of its value is taken for the one before": (
        QUANTILE, "abs_quantile.cpp", "rank + 1 == counts", "rank + 2 == counts",
    ),
    "abs_quantile: the next value has the same higher digits": (
        QUANTILE, "abs_quantile.cpp", ": next;", ": range.found;",
    ),
    "abs_quantile: the least above is that of the last thread": (
        QUANTILE, "abs_quantile.cpp", "if (beyond < counts->beyond) counts", "counts",
    ),
    "abs_quantile: the weight of the other": (
        QUANTILE, "abs_quantile.cpp", "a.weight < 0.5f ?", "a.weight < 2 ?",
    ),
    "abs_quantile: infinity is a NaN": (
        QUANTILE, "abs_quantile.cpp", "largest > infinity", "largest >= infinity",
    ),
    "abs_quantile: the elements after the last whole block are left out": (
        QUANTILE, "abs_quantile.cpp", "i < n; i += kBlock", "i + kBlock <= n; i += kBlock",
    ),
    "abs_quantile: the last elements that were kept do not count": (
        QUANTILE, "abs_quantile.cpp", "    flush(count);\n#pragma", "#pragma",
    ),
    "abs_quantile: every thread copies to the beginning": (
        QUANTILE, "abs_quantile.cpp", "copy_ + at, kept_", "copy_, kept_",
    ),
    "abs_quantile: the block without an element of the range is copied, and one with is not": (
        QUANTILE, "abs_quantile.cpp", "if (furthest < inside) continue;",
        "if (furthest >= inside) continue;",
    ),
    "abs_quantile: elements that begin like the first one count as it": (
        QUANTILE, "abs_quantile.cpp", "if (differ == 0)", "if (differ < 4)",
    ),
    "abs_quantile: a large bfloat16 is a NaN": (
        QUANTILE, "abs_quantile.cpp", ": 0x7f80u", ": 0x7c00u",
    ),
    "add_layer_norm: what lies behind a row counts": (
        LAYER, "add_layer_norm.cpp", "values[i] = i < n ? from[i] : rest", "values[i] = from[i]",
    ),
    "add_layer_norm: what fills up the last vector counts": (
        LAYER, "add_layer_norm.cpp", "Tail(v + i, n - i, mean)", "Tail(v + i, n - i, 0)",
    ),
    "add_layer_norm: the elements after the last whole vector do not count": (
        LAYER, "add_layer_norm.cpp", "    b += t, d += t * t;\n", "",
    ),
    "add_layer_norm: the vector after the last pair does not count": (
        LAYER, "add_layer_norm.cpp", "a += s, c += s * s, i += kLanes;", "i += kLanes;",
    ),
    "add_layer_norm: the elements after the last whole block are not written": (
        LAYER, "add_layer_norm.cpp", "at < a.width; at += kBlock",
        "at == 0 || at + kBlock <= a.width; at += kBlock",
    ),
    "add_layer_norm: the rows that do not divide among threads are left out": (
        LAYER, "add_layer_norm.cpp", "end = a.rows * (t + 1) / threads",
        "end = a.rows / threads * (t + 1)",
    ),
    "add_layer_norm: the last element of a block is not written": (
        LAYER, "add_layer_norm.cpp", "i < n; ++i) y[i]", "i < n - 1; ++i) y[i]",
    ),
    "add_layer_norm: the last element of total is not written, float32": (
        LAYER, "add_layer_norm.cpp", "i < n; ++i) total[i] = x", "i < n - 1; ++i) total[i] = x",
    ),
    "add_layer_norm: the last element of total is not written, bfloat16": (
        LAYER, "add_layer_norm.cpp", "i < n; ++i) {\n    const uint16_t bits = to_bfloat",
        "i < n - 1; ++i) {\n    const uint16_t bits = to_bfloat",
    ),
    "add_layer_norm: the last element of total is not written, float16": (
        LAYER, "add_layer_norm.cpp", "k = i; k < n; ++k", "k = i; k < n - 1; ++k",
    ),
    "add_layer_norm: the residual of the first row for all": (
        LAYER, "add_layer_norm.cpp", "residual + begin", "residual",
    ),
    "add_layer_norm: y is that of the sum before its rounding": (
        LAYER, "add_layer_norm.cpp", "float_of(static_cast<uint32_t>(bits) << 16)",
        "load(x[i]) + load(residual[i])",
    ),
    "add_layer_norm: rstd without eps": (LAYER, "add_layer_norm.cpp", "variance + eps", "variance"),
    "add_layer_norm: eps is the default": (
        LAYER, "add_layer_norm.cpp", "variance + eps", "variance + 1e-5f",
    ),
    "add_layer_norm: the variance of a sample, not of a population": (
        LAYER, "add_layer_norm.cpp", "sum(c + d) / count", "sum(c + d) / (count - 1)",
    ),
    "add_layer_norm: the rounding of the mean is not made good": (
        LAYER, "add_layer_norm.cpp", " - m.more)", ")",
    ),
    "add_layer_norm: y without its weight": (
        LAYER, "add_layer_norm.cpp", "* w[i] + b[i]", "+ b[i]",
    ),
    "add_layer_norm: the weights of the first block for all": (
        LAYER, "add_layer_norm.cpp", "*w = weight + at", "*w = weight",
    ),
    "add_layer_norm: the bias is read as the weight is": (
        LAYER, "add_layer_norm.cpp", "a.bias, a.bias_dtype", "a.bias, a.weight_dtype",
    ),
    "affine_step: 0 * inf": (
        STEP, "affine_step.cpp", "if (weights[column] != 0) result", "result",
    ),
    "affine_step: the elements after the last whole block are left out": (
        STEP, "affine_step.cpp", "per_sample = (a.numel + kBlock - 1) / kBlock,",
        "per_sample = a.numel < kBlock ? 1 : a.numel / kBlock,",
    ),
    "affine_step: the last element of a block is not computed": (
        STEP, "affine_step.cpp", "i < n; ++i) input[i]", "i < n - 1; ++i) input[i]",
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
    "bias_residual: what lies behind a channel is written, contiguous": (
        BIAS, "bias_residual.cpp", "least(a.length - begin, kPiece)", "kPiece",
    ),
    "bias_residual: what lies behind a sample is written, channels last": (
        BIAS, "bias_residual.cpp", "least(size - begin, together * a.channels)",
        "together * a.channels",
    ),
    "bias_residual: the elements after the last whole piece are left out, contiguous": (
        BIAS, "bias_residual.cpp", "a.channels * ((a.length + kPiece - 1) / kPiece)",
        "a.channels * (a.length < kPiece ? 1 : a.length / kPiece)",
    ),
    "bias_residual: the places after the last whole piece are left out, channels last": (
        BIAS, "bias_residual.cpp", "a.samples * ((a.length + together - 1) / together)",
        "a.samples * (a.length < together ? 1 : a.length / together)",
    ),
    "bias_residual: the elements after the last whole block are left out, float16": (
        BIAS, "bias_residual.cpp", "at < n; at += kBlock",
        "at == 0 || at + kBlock <= n; at += kBlock",
    ),
    "bias_residual: pieces that do not divide among threads are left out": (
        BIAS, "bias_residual.cpp", "to = pieces * (t + 1) / threads",
        "to = pieces / threads * (t + 1)",
    ),
    "bias_residual: the last element of a piece is not written, float32": (
        BIAS, "bias_residual.cpp", "i < n; ++i) {\n    const float v = sum<kBias>(x",
        "i < n - 1; ++i) {\n    const float v = sum<kBias>(x",
    ),
    "bias_residual: the last element of a piece is not written, bfloat16": (
        BIAS, "bias_residual.cpp", "i < n; ++i) {\n    const float v = sum<kBias>(load",
        "i < n - 1; ++i) {\n    const float v = sum<kBias>(load",
    ),
    "bias_residual: the last element of a block is not written, float16": (
        BIAS, "bias_residual.cpp", "write(values, m, out + at)", "write(values, m - 1, out + at)",
    ),
    "bias_residual: no scale, float32": (
        BIAS, "bias_residual.cpp", "v + residual[i] : v) * scale", "v + residual[i] : v)",
    ),
    "bias_residual: no scale, bfloat16": (
        BIAS, "bias_residual.cpp", "v + load(residual[i]) : v) * scale",
        "v + load(residual[i]) : v)",
    ),
    "bias_residual: no bias is one of +0": (
        BIAS, "bias_residual.cpp", "(kBias == 0) return x;", "(kBias == 0) return x + 0.0f;",
    ),
    "bias_residual: the residual of the first piece for all": (
        BIAS, "bias_residual.cpp", "bias, residual + begin,", "bias, residual,",
    ),
    "bias_residual: the bias of the first block for all, float16": (
        BIAS, "bias_residual.cpp", "kBias == 2 ? bias + at : bias", "bias",
    ),
    "bias_residual: the bias of the first sample for all, contiguous": (
        BIAS, "bias_residual.cpp", "a.each_sample ? row : row % a.channels", "row % a.channels",
    ),
    "bias_residual: the bias of the first channel for all, contiguous": (
        BIAS, "bias_residual.cpp", ": row % a.channels", ": 0",
    ),
    "bias_residual: the bias of the first sample for all, channels last": (
        BIAS, "bias_residual.cpp", "if (a.each_sample) bias += sample * a.channels;", "",
    ),
    "bias_residual: the bias of the sample before, few channels": (
        BIAS, "bias_residual.cpp", "i == from || begin == 0", "i == from",
    ),
    "bias_residual: no bias where a thread begins, few channels": (
        BIAS, "bias_residual.cpp", "i == from || begin == 0", "begin == 0",
    ),
    "bias_residual: the last place of a piece has no bias, few channels": (
        BIAS, "bias_residual.cpp", "k < together; ++k", "k + 1 < together; ++k",
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
        GEGLU, "geglu.cpp", "i < n; ++i) y[i]", "i < n - 1; ++i) y[i]",
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
    "16 bits: what lies behind the last number is written": (
        GEGLU, "isa.inl", "i + 8 <= n; i += 8) {\n    const __m128i eight = _mm256_cvtps_ph",
        "i < n; i += 8) {\n    const __m128i eight = _mm256_cvtps_ph",
    ),
    "16 bits: the last number is not written, bfloat16": (
        GEGLU, "isa.inl", "i < n; ++i) to[i]", "i < n - 1; ++i) to[i]",
    ),
    "16 bits: the last number is not written": (
        GEGLU, "isa.inl", "k < n; ++k) to[k]", "k < n - 1; ++k) to[k]",
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
        NORM, "group_norm.cpp", "k < n; ++k) column", "k < n - 1; ++k) column",
    ),
    "group_norm: the last element of total is not written": (
        NORM, "group_norm.inl", "write(sum, n, total);", "write(sum, n - 1, total);",
    ),
    "group_norm: eps is the default": (
        NORM, "group_norm.inl", "squares / count) + g.eps", "squares / count) + 1e-5f",
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
