// The instruction sets that this library has code for, and the one that it uses.

#include "common.h"

bool runs_here(const std::string& name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (name == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return name == "plain";
}

static int best() {
  int n = 0;
  while (!runs_here(SETS[n])) ++n;  // the last one runs everywhere
  return n;
}

std::atomic<int> chosen{best()};

#pragma GCC visibility push(default)

extern "C" const char* easyfn_instructions() { return SETS[chosen]; }

// For tests: the named instruction set, if this processor has it. 1 where it has.
extern "C" int easyfn_use(const char* name) {
  for (int n = 0; n < 3; ++n)
    if (name == std::string(SETS[n]) && runs_here(name)) return chosen = n, 1;
  return 0;
}

#pragma GCC visibility pop
