"""Bugs of the Triton kernels: name -> (tests, file in kernels/, what stands there, what is planted)

The tests run in Triton's interpreter.  It has no threads, so no bug of a missing barrier is here;
and a number that is read and then not used does not show.
"""

QUANTILE = ("test_abs_quantile.py", "triton_bits")
LAYER_NORM = ("test_add_layer_norm.py", "test_kernel and not widest")
STEP = ("test_affine_step_triton.py", "not this_file and not without_a_gpu")
ATTENTION = ("test_attention.py", "test_kernel_numbers and not real_shape")
EXTREME = ("test_attention.py", "test_kernel_rows_of_the_least_number")
MASKED = ("test_attention.py", "test_kernel_masks or test_kernel_rows_without")
BIAS = ("test_bias_residual.py", "test_kernel")
CROSS = ("test_cross_attention.py", "test_kernel_numbers and not real_shape")
STEPS = ("test_cross_attention.py", "test_kernel_steps")
GEGLU = ("test_geglu.py", "test_kernel")
NORM = ("test_group_norm_triton.py", "as_good_as or finish")
PHILOX = ("test_philox_normal.py", "triton_bits")
UPSAMPLE = ("test_upsample_conv.py", "test_kernel_bits")

BUGS = {
    "abs_quantile: the samples after the first launch are left out": (
        QUANTILE, "abs_quantile.py", "tl.program_id(1).to(tl.int64) + first",
        "tl.program_id(1).to(tl.int64)",
    ),
    "abs_quantile: an element past the end counts": (
        QUANTILE, "abs_quantile.py", "inside = at < end", "inside = at <= end",
    ),
    "abs_quantile: the elements after the last whole block are left out": (
        QUANTILE, "abs_quantile.py", "* BLOCK, end, step):",
        "* BLOCK, end - end % BLOCK * (end > BLOCK), step):",
    ),
    "abs_quantile: the last quantile is not written": (
        QUANTILE, "abs_quantile.py", "tl.store(out_ptr + sample, q)",
        "tl.store(out_ptr + sample, q, mask=sample + 1 < tl.num_programs(0))",
    ),
    "abs_quantile: the gain of a row is not written": (
        QUANTILE, "abs_quantile.py", "tl.store(row + 6, tl.div_rn(1.0, bound))", "pass",
    ),
    "abs_quantile: the rank before": (
        QUANTILE, "abs_quantile.py", "(before <= rank) & (rank < before + counts)",
        "(before < rank) & (rank <= before + counts)",
    ),
    "abs_quantile: the last of its value is taken for the one before": (
        QUANTILE, "abs_quantile.py", "alone = left + 1 ==", "alone = left + 2 ==",
    ),
    "abs_quantile: the next value has the same higher digits": (
        QUANTILE, "abs_quantile.py",
        "tl.minimum(tl.min(following, axis=0), 0x7FFFFFFF - tl.load(state + 2))",
        "tl.min(following, axis=0)",
    ),
    "abs_quantile: no weight": (
        QUANTILE, "abs_quantile.py", "tl.fma(weight, d, low)", "low",
    ),
    "abs_quantile: each block is copied over the one before": (
        QUANTILE, "abs_quantile.py", "numel + place + upto - 1", "numel + upto - 1",
    ),
    "abs_quantile: of 16 bits the next value is of the last digit": (
        QUANTILE, "abs_quantile.py", "+ index) << SHIFT", "+ index)",
    ),
    "abs_quantile: a NaN is a large number": (
        QUANTILE, "abs_quantile.py", "tl.load(state + 3) > 0x7F800000", "tl.load(state + 3) < 0",
    ),
    "add_layer_norm: a column past the end is written": (
        LAYER_NORM, "add_layer_norm.py", "(column < D)\n        tl.store(y_ptr",
        "(column <= D)\n        tl.store(y_ptr",
    ),
    "add_layer_norm: a row past the end is written": (
        LAYER_NORM, "add_layer_norm.py", "inside = (row < rows) & (column < D)\n        tl.store(y",
        "inside = (row <= rows) & (column < D)\n        tl.store(y",
    ),
    "add_layer_norm: what lies behind a row counts": (
        LAYER_NORM, "add_layer_norm.py", "tl.where(column < D, values[k] - mean, 0.0)",
        "values[k] - mean",
    ),
    "add_layer_norm: the rows after the last whole tile are left out": (
        LAYER_NORM, "add_layer_norm.py", 'triton.cdiv(rows, tile["ROWS"])',
        'max(1, rows // tile["ROWS"])',
    ),
    "add_layer_norm: the first element of total is not written": (
        LAYER_NORM, "add_layer_norm.py", "column, total, mask=inside)",
        "column, total, mask=inside & (column > 0))",
    ),
    "add_layer_norm: the last element of y is not written": (
        LAYER_NORM, "add_layer_norm.py", "y.to(y_ptr.dtype.element_ty), mask=inside)",
        "y.to(y_ptr.dtype.element_ty), mask=inside & (column != D - 1))",
    ),
    "add_layer_norm: the variance of a sample, not of a population": (
        LAYER_NORM, "add_layer_norm.py", "tl.sum(squares, 1)[:, None] / D",
        "tl.sum(squares, 1)[:, None] / (D - 1)",
    ),
    "add_layer_norm: eps is the default": (
        LAYER_NORM, "add_layer_norm.py", "variance + eps", "variance + 1e-5",
    ),
    "add_layer_norm: the rounding of the mean is not made good": (
        LAYER_NORM, "add_layer_norm.py", "shift = rest * rstd", "shift = 0.0 * rstd",
    ),
    "add_layer_norm: y is that of the sum before its rounding": (
        LAYER_NORM, "add_layer_norm.py", "            v = total.to(tl.float32)\n", "",
    ),
    "affine_step: the samples after the first launch are left out": (
        STEP, "affine_step.py", "tl.program_id(1).to(tl.int64) + first",
        "tl.program_id(1).to(tl.int64)",
    ),
    "affine_step: an element past the end is written": (
        STEP, "affine_step.py", "inside = offset < numel", "inside = offset <= numel",
    ),
    "affine_step: the elements after the last whole block are left out": (
        STEP, "affine_step.py", "triton.cdiv(per_sample, block)", "max(1, per_sample // block)",
    ),
    "affine_step: the first element of model_input is not written": (
        STEP, "affine_step.py", "tl.load(tail) * results[0], inside)",
        "tl.load(tail) * results[0], inside & (offset > 0))",
    ),
    "affine_step: kept is not written where there is a slot": (
        STEP, "affine_step.py", "if kept[p] is not None:", "if kept[p] is not None and not RING:",
    ),
    "affine_step: model_input without its scale": (
        STEP, "affine_step.py", "tl.load(tail) * results[0]", "results[0]",
    ),
    "affine_step: m without its gain": (
        STEP, "affine_step.py", "m = tl.load(row + 6) * m", "m = 1.0 * m",
    ),
    "affine_step: the row of another sample": (
        STEP, "affine_step.py", "row = rows_ptr + sample * K * (samples > 1)", "row = rows_ptr",
    ),
    "affine_step: the wrong slot of a ring": (
        STEP, "affine_step.py", "tl.where(slot == r, 1, 0)", "tl.where(slot + 1 == r, 1, 0)",
    ),
    "affine_step: a NaN is clamped": (
        STEP, "affine_step.py", "m = tl.where(m > hi, hi, m)", "m = tl.where(m <= hi, m, hi)",
    ),
    "affine_step: 0 * inf": (
        STEP, "affine_step.py", "tl.where(weight != 0, weight * value, 0.0)", "weight * value",
    ),
    "affine_step: a column that only m needs is not read": (
        STEP, "affine_step.py", "by_x = _reads(row, 0, 1 + P, R) + tl.where(kx != 0, by_m, 0)",
        "by_x = _reads(row, 0, 1 + P, R)",
    ),
    "affine_step: the noise of another block": (
        STEP, "affine_step.py", "start = tl.program_id(0).to(tl.int64) * BLOCK\n        one",
        "start = tl.program_id(0).to(tl.int64) * 0\n        one",
    ),
    "affine_step: the noise of another sample": (
        STEP, "affine_step.py", "tl.load(seeds_ptr + sample)", "tl.load(seeds_ptr)",
    ),
    "attention: a key past the last counts": (
        ATTENTION, "attention.py", "inside = (key < left)[None, :]",
        "inside = (key <= left)[None, :]",
    ),
    "attention: the keys after the last whole tile are left out": (
        ATTENTION, "attention.py", "range(0, M, KEYS)",
        "range(0, tl.maximum(M - KEYS + 1, 1), KEYS)",
    ),
    "attention: the rows after the last whole tile are left out": (
        ATTENTION, "attention.py", "triton.cdiv(length, plan.rows)", "max(1, length // plan.rows)",
    ),
    "attention: the second piece of a head is not written in the last row": (
        ATTENTION, "attention.py", "put(out_ptr, o2 / total[:, None], row, rows,",
        "put(out_ptr, o2 / total[:, None], row, rows - 1,",
    ),
    "attention: the second half of the columns is not written": (
        ATTENTION, "attention.py", "part = tl.program_id(0) % parts",
        "part = tl.program_id(0) % parts * 0",
    ),
    "attention: 2 for e": (ATTENTION, "attention.py", "scale *= LOG2E", "pass"),
    "attention: a mask that is added has 2 for e": (
        MASKED, "attention.py", "p * 1.4426950408889634, keep * 1.4426950408889634", "p, keep",
    ),
    "attention: a mask is added after its product with log2(e), which may be -inf": (
        EXTREME, "attention.py", "s += m.to(tl.float32)",
        "s += m.to(tl.float32) * 1.4426950408889634 / 1.4426950408889634",
    ),
    "attention: the sum is not scaled to the new maximum": (
        ATTENTION, "attention.py", "total * keep + tl.sum(p, 1)", "total + tl.sum(p, 1)",
    ),
    "attention: the second piece is not scaled to the new maximum": (
        ATTENTION, "attention.py", "o2 * keep[:, None]", "o2",
    ),
    "attention: the mask of the first keys for all": (
        MASKED, "attention.py", "mask_ptr += KEYS * mask_m", "mask_ptr += 0",
    ),
    "attention: the mask of the first head for all": (
        MASKED, "attention.py", "b * mask_b + h * mask_h +", "b * mask_b +",
    ),
    "attention: the mask of the first rows for all": (
        MASKED, "attention.py", " + first.to(tl.int64) * mask_n", "",
    ),
    "attention: a row without a key so far is NaN": (
        MASKED, "attention.py", "near = tl.where(higher == -float(\"inf\"), 0.0, higher)",
        "near = higher",
    ),
    "attention: a row without a key is NaN": (
        MASKED, "attention.py", "tl.where(total == 0.0, 1.0, total)", "total",
    ),
    "bias_residual: an element past the end is written, channels last": (
        BIAS, "bias_residual.py", "inside = start + offset < size",
        "inside = start + offset <= size",
    ),
    "bias_residual: a column past the end is written, contiguous": (
        BIAS, "bias_residual.py", "(row < rows) & (column < L)", "(row < rows) & (column <= L)",
    ),
    "bias_residual: a row past the end is written, contiguous": (
        BIAS, "bias_residual.py", "(row < rows) & (column < L)", "(row <= rows) & (column < L)",
    ),
    "bias_residual: what is left of a sample is left out, channels last": (
        BIAS, "bias_residual.py", "triton.cdiv(size, tile) *", "max(1, size // tile) *",
    ),
    "bias_residual: the rows after the last whole tile are left out, contiguous": (
        BIAS, "bias_residual.py", "grid = triton.cdiv(rows, tile // width)",
        "grid = max(1, rows // (tile // width))",
    ),
    "bias_residual: the first element is not written": (
        BIAS, "bias_residual.py", "y_ptr.dtype.element_ty), mask=inside)",
        "y_ptr.dtype.element_ty), mask=inside & (at > 0))",
    ),
    "bias_residual: no scale": (BIAS, "bias_residual.py", "(x * scale)", "x"),
    "bias_residual: the bias of the first sample for all, channels last": (
        BIAS, "bias_residual.py", "bias_ptr + sample * C + channel", "bias_ptr + channel",
    ),
    "bias_residual: the bias of the last channel for all other samples, contiguous": (
        BIAS, "bias_residual.py", "row % biases", "tl.minimum(row, biases - 1)",
    ),
    "cross_attention: a key past the last counts": (
        CROSS, "cross_attention.py", "(i * KEYS + tl.arange(0, KEYS) < M)",
        "(i * KEYS + tl.arange(0, KEYS) <= M)",
    ),
    "cross_attention: a column past the end of a head is read": (
        CROSS, "cross_attention.py", "(column < D)[None, :]\n    return",
        "(column <= D)[None, :]\n    return",
    ),
    "cross_attention: a column past the end of a head is written": (
        CROSS, "cross_attention.py", "(column < D)[None, :]\n    at = pointer",
        "(column <= D)[None, :]\n    at = pointer",
    ),
    "cross_attention: the rows after the last whole tile are left out": (
        STEPS, "cross_attention.py", "(rows + ROWS - 1) // ROWS)", "tl.maximum(rows // ROWS, 1))",
    ),
    "cross_attention: the tiles after the last whole group are left out": (
        STEPS, "cross_attention.py", "groups = triton.cdiv(tiles, steps)",
        "groups = max(1, tiles // steps)",
    ),
    "cross_attention: the second piece of a head is not written in the last row": (
        CROSS, "cross_attention.py", "put(out_ptr, o2 / total[:, None], place, rows,",
        "put(out_ptr, o2 / total[:, None], place, rows - 1,",
    ),
    "cross_attention: 2 for e": (CROSS, "cross_attention.py", "scale * LOG2E", "scale"),
    "cross_attention: the sum is not scaled to the new maximum": (
        CROSS, "cross_attention.py", "total * keep + tl.sum(p, 1)", "total + tl.sum(p, 1)",
    ),
    "cross_attention: the second piece is not scaled to the new maximum": (
        CROSS, "cross_attention.py", "o2 * keep[:, None]", "o2",
    ),
    "geglu: an element past the end is written": (
        GEGLU, "geglu.py", "inside = start + at < numel", "inside = start + at <= numel",
    ),
    "geglu: the elements after the last whole block are left out": (
        GEGLU, "geglu.py", "triton.cdiv(out.numel(), block)", "max(1, out.numel() // block)",
    ),
    "geglu: the last element is not written": (
        GEGLU, "geglu.py", "y_ptr.dtype.element_ty), mask=inside)",
        "y_ptr.dtype.element_ty), mask=inside & (start + at != numel - 1))",
    ),
    "geglu: the rows that a tile runs on into": (
        GEGLU, "geglu.py", " + column // D * D + at", " + at",
    ),
    "geglu: half the result": (GEGLU, "geglu.py", "y = v * gelu(g)", "y = 0.5 * v * gelu(g)"),
    "geglu: a digit of the polynomial": (
        GEGLU, "geglu.py", "1.1511048078536987e00", "1.1511148078536987e00",
    ),
    "group_norm: a row past the end counts": (
        NORM, "group_norm.py", "(rows < length - row) & owned\n            v = values",
        "(rows <= length - row) & owned\n            v = values",
    ),
    "group_norm: a channel past the end is written": (
        NORM, "group_norm.py", "owned = columns < end - channel\n    out_ptr",
        "owned = columns <= end - channel\n    out_ptr",
    ),
    "group_norm: a row past the end is written": (
        NORM, "group_norm.py", "(rows < length - row) & owned\n        v = _read",
        "(rows <= length - row) & owned\n        v = _read",
    ),
    "group_norm: the first channel of the second source is that behind the first": (
        NORM, "group_norm.py", "first = columns < C1 - channel", "first = columns <= C1 - channel",
    ),
    "group_norm: one launch, the rows after the last whole step are left out": (
        NORM, "group_norm.py", "steps = (length + BR * UNROLL - 1) // (BR * UNROLL)",
        "steps = tl.maximum(length // (BR * UNROLL), 1)",
    ),
    "group_norm: three launches, the last part does not count": (
        NORM, "_group_norm_plan.py", "triton.cdiv(length, steps * step), steps",
        "max(1, length // (steps * step)), steps",
    ),
    "group_norm: three launches, the rows after the last whole step are not written": (
        NORM, "group_norm.py",
        "shift -= centre * scale\n    step: tl.constexpr = BR * UNROLL\n"
        "    for i in range(tl.minimum(steps, (length - row + step - 1) // step)):",
        "shift -= centre * scale\n    step: tl.constexpr = BR * UNROLL\n"
        "    for i in range(tl.minimum(steps, tl.maximum((length - row) // step, 1))):",
    ),
    "group_norm: three launches, the channels after the last whole block do not count": (
        NORM, "group_norm.py", "p.splits * triton.cdiv(channels, p.tile.channels)",
        "p.splits * max(1, channels // p.tile.channels)",
    ),
    "group_norm: one launch, the channels after the last whole block are left out": (
        NORM, "group_norm.py", "n * triton.cdiv(channels, p.width)",
        "n * max(1, channels // p.width)",
    ),
    "group_norm: three launches, the parts after the first 2048 do not count": (
        NORM, "group_norm.py", "range(0, splits * width, BLOCK)", "range(0, 1)",
    ),
    "group_norm: three launches, the channels of a group after the first 128 are not written": (
        NORM, "group_norm.py", "range(0, width, 128)", "range(0, 1)",
    ),
    "group_norm: the first channel of total is not written": (
        NORM, "group_norm.py", "rounded, mask=inside)", "rounded, mask=inside & (columns > 0))",
    ),
    "group_norm: the last row is not written": (
        NORM, "group_norm.py", "v.to(out_ptr.dtype.element_ty), mask=inside)",
        "v.to(out_ptr.dtype.element_ty), mask=inside & (rows != length - row - 1))",
    ),
    "group_norm: rstd without eps": (NORM, "group_norm.py", "/ count + eps", "/ count"),
    "group_norm: eps is the default": (NORM, "group_norm.py", "/ count + eps", "/ count + 1e-5"),
    "group_norm: the variance of a sample, not of a population": (
        NORM, "group_norm.py", "_rstd(tl.sum(two, 0) - count * moved * moved, count, eps)",
        "_rstd(tl.sum(two, 0) - count * moved * moved, count - 1.0, eps)",
    ),
    "group_norm: what the means of lanes differ does not count": (
        NORM, "group_norm.py", " + count * away * away, 0)", ", 0)",
    ),
    "group_norm: parts count alike, however many rows they have": (
        NORM, "group_norm.py", "count = tl.minimum(length - part * rows, rows).to(tl.float32)",
        "count = (length // splits + 0 * part).to(tl.float32)",
    ),
    "group_norm: one launch, what the means of channels differ does not count": (
        NORM, "group_norm.py", "variance + (away - moved) * (away - moved)", "variance",
    ),
    "group_norm: one launch, the addend is left in the centre": (
        NORM, "group_norm.py", "scale, centre - added, shift", "scale, centre, shift",
    ),
    "group_norm: three launches, the addend is left in the centre": (
        NORM, "group_norm.py", "near + moved - _vector(addend_ptr, addend + column, inside, 0.0)",
        "near + moved",
    ),
    "philox_normal: the samples after the first launch are left out": (
        PHILOX, "philox_normal.py", "tl.program_id(1).to(tl.int64) + first",
        "tl.program_id(1).to(tl.int64)",
    ),
    "philox_normal: an element past the end is written": (
        PHILOX, "philox_normal.py", "mask=offset < numel", "mask=offset <= numel",
    ),
    "philox_normal: the elements after the last whole block are left out": (
        PHILOX, "philox_normal.py", "triton.cdiv(numel, BLOCK)", "max(1, numel // BLOCK)",
    ),
    "philox_normal: the first element of a block is not written": (
        PHILOX, "philox_normal.py", "mask=offset < numel",
        "mask=(offset < numel) & (offset > start)",
    ),
    "philox_normal: the counter begins anew in each block": (
        PHILOX, "philox_normal.py", "(start // 4 + tl.arange", "(start // 4 * 0 + tl.arange",
    ),
    "philox_normal: half of the seed": (
        PHILOX, "philox_normal.py", "((seed >> 32) & 0xFFFFFFFF)", "(seed & 0)",
    ),
    "philox_normal: a round too few": (
        PHILOX, "philox_normal.py", "static_range(10)", "static_range(9)",
    ),
    "philox_normal: the last digit of ln 2": (
        PHILOX, "philox_normal.py", "0.6931472 -", "0.6931471 -",
    ),
    "philox_normal: half the variance": (
        PHILOX, "philox_normal.py", "sqrt_rn(minus_log + minus_log)", "sqrt_rn(minus_log)",
    ),
    "upsample_conv: an element past the end of a row is written, channels last": (
        UPSAMPLE, "upsample_conv.py", "inside = offset < size", "inside = offset <= size",
    ),
    "upsample_conv: a column past the end is written, contiguous": (
        UPSAMPLE, "upsample_conv.py", "& (k < 2 * W)", "& (k <= 2 * W)",
    ),
    "upsample_conv: a row past the end is written, contiguous": (
        UPSAMPLE, "upsample_conv.py", "mask=(row < rows) & (k", "mask=(row <= rows) & (k",
    ),
    "upsample_conv: the last piece of a row is left out, channels last": (
        UPSAMPLE, "upsample_conv.py", "triton.cdiv(width * outputs, tile)",
        "max(1, width * outputs // tile)",
    ),
    "upsample_conv: the rows after the last whole tile are left out, contiguous": (
        UPSAMPLE, "upsample_conv.py", "grid = triton.cdiv(rows, tile // across)",
        "grid = max(1, rows // (tile // across))",
    ),
    "upsample_conv: the first column is not written, contiguous": (
        UPSAMPLE, "upsample_conv.py", "& (k < 2 * W)", "& (k < 2 * W) & (k > 0)",
    ),
    "upsample_conv: the parities the wrong way round, channels last": (
        UPSAMPLE, "upsample_conv.py", "(2 * a + b) * CO", "(2 * b + a) * CO",
    ),
    "upsample_conv: odd columns are those of one place before, contiguous": (
        UPSAMPLE, "upsample_conv.py", "(even + CO) * area + at + 1", "(even + CO) * area + at",
    ),
}  # fmt: skip
