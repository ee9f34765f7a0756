// What the handlers share: instruction sets, threads, and words for what is wrong.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#if defined(__clang__)
#define BEGIN(isa) _Pragma(isa)
#define END _Pragma("clang attribute pop")
#define AVX512 "clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512vl,avx512dq,fma\"))), apply_to = function)"
#define AVX2 "clang attribute push(__attribute__((target(\"avx2,fma\"))), apply_to = function)"
#else
#define BEGIN(isa) _Pragma("GCC push_options") _Pragma(isa)
#define END _Pragma("GCC pop_options")
#define AVX512 "GCC target(\"avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512\")"
#define AVX2 "GCC target(\"avx2,fma\")"
#endif

#define INLINE inline __attribute__((always_inline))
#define VECTORS(width)                                        \
  constexpr int W = width;                                    \
  typedef float F __attribute__((vector_size(4 * width)));    \
  typedef int32_t I __attribute__((vector_size(4 * width)));

// The copies of the code, best first.
constexpr const char* SETS[] = {"avx512", "avx2", "plain"};

bool runs_here(const std::string& name);  // whether this processor has the instructions
extern std::atomic<int> chosen;           // the copy that is used, of `SETS`

// What threads share of a piece of work. The caller works, too, and waits only for pieces that a thread has begun: a pool whose
// threads are all busy delays nothing. A task that comes late finds nothing left and touches nothing of the caller's.
struct Shared {
  std::atomic<int64_t> next{0}, done{0};
  int64_t pieces;
};

inline int64_t threads_of(ffi::ThreadPool& pool) { return std::max<int64_t>(1, pool.num_threads()); }

template <typename Work>  // work(piece, scratch), scratch of `scratch` floats
void share(ffi::ThreadPool& pool, int64_t pieces, int64_t scratch, const Work& work) {
  const int64_t threads = threads_of(pool);
  if (threads == 1 || pieces < 2) {
    std::vector<float> mine(scratch);
    for (int64_t n = 0; n < pieces; ++n) work(n, mine.data());
    return;
  }
  auto shared = std::make_shared<Shared>();
  shared->pieces = pieces;
  auto run = [shared, scratch, &work] {
    std::vector<float> mine;
    for (int64_t n; (n = shared->next.fetch_add(1)) < shared->pieces;) {
      mine.resize(scratch);
      work(n, mine.data());
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t n = 1; n < std::min(threads, pieces); ++n) pool.Schedule(decltype(run)(run));
  run();
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < pieces; ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

inline ffi::Error wrong(const std::string& what) { return ffi::Error::InvalidArgument("easyfn-kernels: " + what); }

template <typename B>
std::string said(const B& buffer) {
  std::string s = "(";
  for (int64_t d : buffer.dimensions()) s += (s.size() > 1 ? ", " : "") + std::to_string(d);
  return s + ")";
}

template <typename B>
bool is(const B& buffer, std::initializer_list<int64_t> shape) {
  const auto d = buffer.dimensions();
  return std::equal(d.begin(), d.end(), shape.begin(), shape.end());
}

#define EXPECT(buffer, ...)                                                                              \
  if (!is(buffer, {__VA_ARGS__})) {                                                                      \
    std::string s;                                                                                       \
    for (int64_t n : {__VA_ARGS__}) s += (s.empty() ? "" : ", ") + std::to_string(n);                    \
    return wrong(std::string(#buffer) + " has the shape " + said(buffer) + ", expected (" + s + ")");    \
  }
