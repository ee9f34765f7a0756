// Products of a few rows of activations with a packed weight, as handlers of XLA's foreign function interface.
//
// y = x @ w.T in float32, the weight unpacked in registers. Nothing is trusted: a handler compares every shape with the others
// before it reads a byte. Plain GCC or clang, no library but the headers that come with jaxlib.

#include "common.h"

namespace {

// Numbers of 16 or 32 bits, `(out, n)`, a row of which is read as float32.
struct Numbers {
  const void* data = nullptr;
  ffi::DataType type = ffi::F32;

  const float* row(int64_t row, int64_t n, float* scratch) const {
    if (type == ffi::F32) return static_cast<const float*>(data) + row * n;
    const uint16_t* from = static_cast<const uint16_t*>(data) + row * n;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t h = from[i];
      uint32_t bits;
      if (type == ffi::BF16) {
        bits = h << 16;
      } else {
        const uint32_t exponent = h & 0x7c00;
        const float small = static_cast<float>(static_cast<int32_t>(h & 0x3ff)) * 0x1p-24f;  // subnormal
        uint32_t small_bits;
        std::memcpy(&small_bits, &small, 4);
        bits = ((h & 0x7fff) << 13) + (exponent == 0x7c00 ? 0x70000000u : 0x38000000u);
        bits = (exponent == 0 ? small_bits : bits) | ((h & 0x8000) << 16);
      }
      std::memcpy(scratch + i, &bits, 4);
    }
    return scratch;
  }
};

struct Common {
  int64_t rows, in, out;
  const float* x;
  float* y;
};

struct Nibbles : Common {
  const uint8_t* codes;
  Numbers scales, offsets;
  alignas(64) float levels[16];
  const float* sums;  // of the columns of each group: (rows, groups), where there are offsets
  int64_t group, span;
};

struct Bytes : Common {
  const int8_t* codes;
  Numbers scales;
  int64_t group;
  float unit;
};

constexpr int HIGH = 1, MINS = 2, BOTH = 4;  // BOTH: scale and minimum share a byte

struct Blocks : Common {
  const uint8_t *codes, *high, *scales, *mins;
  Numbers scale, minimum;
  const float* sums;
  int64_t kind;
};

#if defined(__x86_64__)
BEGIN(AVX512)
namespace avx512 {
VECTORS(16)
static INLINE __m128i bytes16(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }
static INLINE I codes8(const uint8_t* at) { return (I)_mm512_cvtepu8_epi32(bytes16(at)); }
static INLINE I signed8(const int8_t* at) { return (I)_mm512_cvtepi8_epi32(bytes16(at)); }
static INLINE I codes16(const uint8_t* at) {
  return (I)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
static INLINE F lookup(const float* levels, I codes) {
  return (F)_mm512_permutexvar_ps((__m512i)codes, _mm512_load_ps(levels));
}
static INLINE float sum(F v) { return _mm512_reduce_add_ps((__m512)v); }
#include "rows.inc"
}  // namespace avx512
END

BEGIN(AVX2)
namespace avx2 {
VECTORS(8)
static INLINE __m128i bytes8(const void* at) { return _mm_loadl_epi64(static_cast<const __m128i*>(at)); }
static INLINE I codes8(const uint8_t* at) { return (I)_mm256_cvtepu8_epi32(bytes8(at)); }
static INLINE I signed8(const int8_t* at) { return (I)_mm256_cvtepi8_epi32(bytes8(at)); }
static INLINE I codes16(const uint8_t* at) {
  return (I)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
static INLINE F lookup(const float* levels, I codes) {
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(levels), (__m256i)codes);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(levels + 8), (__m256i)codes);
  return (F)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)codes, 28)));
}
static INLINE float sum(F v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
#include "rows.inc"
}  // namespace avx2
END
#endif

namespace plain {
VECTORS(4)
static INLINE I codes8(const uint8_t* at) { return I{at[0], at[1], at[2], at[3]}; }
static INLINE I signed8(const int8_t* at) { return I{at[0], at[1], at[2], at[3]}; }
static INLINE I codes16(const uint8_t* at) {
  uint16_t v[4];
  std::memcpy(v, at, sizeof v);
  return I{v[0], v[1], v[2], v[3]};
}
static INLINE F lookup(const float* levels, I codes) {
  return F{levels[codes[0] & 15], levels[codes[1] & 15], levels[codes[2] & 15], levels[codes[3] & 15]};
}
static INLINE float sum(F v) { return (v[0] + v[1]) + (v[2] + v[3]); }
#include "rows.inc"
}  // namespace plain

struct Set {
  void (*nibbles)(const Nibbles&, int64_t, int64_t, float*);
  void (*bytes)(const Bytes&, int64_t, int64_t, float*);
  void (*blocks)(const Blocks&, int64_t, int64_t, float*);
};

const Set sets[] = {
#if defined(__x86_64__)
    {avx512::run_nibbles, avx512::run_bytes, avx512::run_blocks},
    {avx2::run_nibbles, avx2::run_bytes, avx2::run_blocks},
#else
    {},
    {},
#endif
    {plain::run_nibbles, plain::run_bytes, plain::run_blocks},
};

// work(first, end, scratch) over ranges of output rows, none of which takes less than some 10 microseconds
template <typename Work>
void spread(ffi::ThreadPool& pool, int64_t out, int64_t in, int64_t rows, int64_t scratch, const Work& work) {
  const int64_t least = std::max<int64_t>(8, (int64_t{1} << 17) / (in * std::min<int64_t>(rows, 4)));
  const int64_t pieces = std::max<int64_t>(1, std::min(threads_of(pool) * 4, out / least));
  share(pool, pieces, scratch, [&](int64_t n, float* mine) { work(out * n / pieces, out * (n + 1) / pieces, mine); });
}

bool number(ffi::AnyBuffer b) {
  const auto t = b.element_type();
  return t == ffi::F32 || t == ffi::F16 || t == ffi::BF16;
}

template <typename P>
ffi::Error begin(P& p, ffi::Buffer<ffi::F32>& x, ffi::ResultBuffer<ffi::F32>& y, int64_t out) {
  const auto d = x.dimensions();
  if (d.size() != 2) return wrong("x has the shape " + said(x) + ", expected (rows, in)");
  p.rows = d[0], p.in = d[1], p.out = out;
  p.x = x.typed_data(), p.y = y->typed_data();
  const auto& result = *y;
  EXPECT(result, p.rows, out);
  return ffi::Error::Success();
}

template <typename B>
int64_t first(const B& b) {
  return b.dimensions().size() == 2 ? b.dimensions()[0] : -1;
}

// The scales of groups of columns, `(out, groups)`.
template <typename P>
ffi::Error grouped(P& p, const ffi::AnyBuffer& scales) {
  const int64_t groups = scales.dimensions().size() == 2 ? scales.dimensions()[1] : 0;
  if (groups < 1 || p.in % groups || p.in / groups % 32)
    return wrong("scales have the shape " + said(scales) + ", whose groups are not multiples of 32 of " + std::to_string(p.in) +
                 " columns");
  EXPECT(scales, p.out, groups);
  if (!number(scales)) return wrong("scales are not float32, float16 or bfloat16");
  p.scales = {scales.untyped_data(), scales.element_type()};
  p.group = p.in / groups;
  return ffi::Error::Success();
}

std::vector<float> group_sums(const Common& p, int64_t group) {
  std::vector<float> sums(p.rows * p.in / group);
  for (size_t n = 0; n < sums.size(); ++n)
    for (int64_t k = 0; k < group; ++k) sums[n] += p.x[n * group + k];
  return sums;
}

// `pairs`: the columns of a byte are neighbours, the first in its high bits (nf4). Otherwise they are half a group apart, the
// first in the low bits.
ffi::Error nibbles(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U8> codes, ffi::AnyBuffer scales,
                   ffi::RemainingArgs more, ffi::ResultBuffer<ffi::F32> y, bool pairs, ffi::Span<const float> levels) {
  Nibbles p;
  if (auto e = begin(p, x, y, first(codes)); e.failure()) return e;
  EXPECT(codes, p.out, p.in / 2);
  if (auto e = grouped(p, scales); e.failure()) return e;
  const int64_t groups = scales.dimensions()[1];
  if (levels.size() != 16) return wrong("there are " + std::to_string(levels.size()) + " levels, expected 16");
  p.codes = codes.typed_data();
  std::memcpy(p.levels, levels.begin(), sizeof p.levels);
  std::vector<float> sums, turned;
  if (more.size() > 1) return wrong("more than one array of offsets");
  if (more.size() == 1) {
    auto given = more.get<ffi::AnyBuffer>(0);
    if (given.has_error() || !number(*given)) return wrong("offsets are not float32, float16 or bfloat16");
    const ffi::AnyBuffer& offsets = *given;
    EXPECT(offsets, p.out, groups);
    p.offsets = {offsets.untyped_data(), offsets.element_type()};
    sums = group_sums(p, p.group);
    p.sums = sums.data();
  }
  p.span = pairs ? 32 : p.group;
  if (pairs) {
    turned.resize(p.rows * p.in);
    for (int64_t n = 0; n < p.rows * p.in; n += 32)
      for (int k = 0; k < 16; ++k) turned[n + k] = p.x[n + 2 * k + 1], turned[n + 16 + k] = p.x[n + 2 * k];
    p.x = turned.data();
  }
  const Set* set = sets + chosen;
  spread(pool, p.out, p.in, p.rows, 2 * groups, [&](int64_t a, int64_t b, float* s) { set->nibbles(p, a, b, s); });
  return ffi::Error::Success();
}

ffi::Error bytes(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S8> codes, ffi::AnyBuffer scales,
                 ffi::ResultBuffer<ffi::F32> y, float unit) {
  Bytes p;
  if (auto e = begin(p, x, y, first(codes)); e.failure()) return e;
  EXPECT(codes, p.out, p.in);
  if (auto e = grouped(p, scales); e.failure()) return e;
  const int64_t groups = scales.dimensions()[1];
  p.codes = codes.typed_data();
  p.unit = unit;
  const Set* set = sets + chosen;
  spread(pool, p.out, p.in, p.rows, groups, [&](int64_t a, int64_t b, float* s) { set->bytes(p, a, b, s); });
  return ffi::Error::Success();
}

// The parts that a kind does not have are `(0, 0)`.
ffi::Error blocks(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U8> codes, ffi::Buffer<ffi::U8> high,
                  ffi::AnyBuffer scales, ffi::Buffer<ffi::U8> mins, ffi::Buffer<ffi::F16> scale, ffi::Buffer<ffi::F16> minimum,
                  ffi::ResultBuffer<ffi::F32> y, int64_t kind) {
  Blocks p;
  if (auto e = begin(p, x, y, first(codes)); e.failure()) return e;
  if (kind < 2 || kind > 6) return wrong("there is no kind Q" + std::to_string(kind) + "_K");
  if (p.in % 256) return wrong(std::to_string(p.in) + " columns are not whole blocks of 256");
  const int64_t count = p.in / 256, groups = kind == 4 || kind == 5 ? 8 : 16;
  const int64_t in_high = kind == 6 ? 64 : kind == 3 || kind == 5 ? 32 : 0;
  EXPECT(codes, p.out, count * (kind < 4 ? 64 : 128));
  EXPECT(high, in_high ? p.out : 0, count * in_high);
  EXPECT(scales, p.out, count * groups);
  if (scales.element_type() != ffi::U8 && scales.element_type() != ffi::S8) return wrong("scales are not bytes");
  EXPECT(mins, groups == 8 ? p.out : 0, groups == 8 ? count * 8 : 0);
  EXPECT(scale, p.out, count);
  const bool least = kind == 2 || groups == 8;
  EXPECT(minimum, least ? p.out : 0, least ? count : 0);
  p.codes = codes.typed_data(), p.high = high.typed_data(), p.mins = mins.typed_data();
  p.scales = static_cast<const uint8_t*>(scales.untyped_data());
  p.scale = {scale.untyped_data(), ffi::F16}, p.minimum = {minimum.untyped_data(), ffi::F16};
  p.kind = kind;
  std::vector<float> sums;
  if (least) sums = group_sums(p, 256 / groups);
  p.sums = sums.data();
  const Set* set = sets + chosen;
  spread(pool, p.out, p.in, p.rows, 2 * count, [&](int64_t a, int64_t b, float* s) { set->blocks(p, a, b, s); });
  return ffi::Error::Success();
}

}  // namespace

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(easyfn_nibbles, nibbles,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("pairs")
                                  .Attr<ffi::Span<const float>>("levels"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(easyfn_bytes, bytes,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("unit"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(easyfn_blocks, blocks,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Arg<ffi::Buffer<ffi::F16>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("kind"));

#pragma GCC visibility pop
