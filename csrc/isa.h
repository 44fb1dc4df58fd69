// The instruction sets that the CPU kernels are compiled for, slowest first.
//
// setup.py compiles a file that holds a CPU kernel once per name below, with FASTDIFF_ISA set to
// that name, and the file puts its code into the namespace fastdiff::FASTDIFF_ISA. Such a file may
// use nothing that the linker could merge across namespaces (no standard library templates): what
// was compiled for a newer CPU must never be what an older one runs.
#pragma once

#ifdef FASTDIFF_HAS_V4
#define FASTDIFF_FOR_EACH_ISA(DO) DO(baseline) DO(v3) DO(v4)
#else
#define FASTDIFF_FOR_EACH_ISA(DO) DO(baseline)
#endif

namespace fastdiff {

// Whether this CPU can run code compiled for `isa`.
inline bool cpu_has(const char* isa) {
#ifdef FASTDIFF_HAS_V4
  if (isa[1] == '3') {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("fma");
  }
  if (isa[1] == '4') {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa[0] == 'b';
}

}  // namespace fastdiff
