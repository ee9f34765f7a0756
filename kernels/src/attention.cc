// Attention of many queries, forward and backward, as handlers of XLA's foreign function interface: scores stay in the cache.
//
// All in float32. Queries are `(batch, heads, rows, dim)`, keys `(batch, kv, keys, dim)`, values `(batch, kv, keys, values)`. A
// query sees a key of its own segment whose slot is not negative, not after its own if `causal`, and less than `window` from
// it if that is not 0; one that sees none answers the mean of all values. Nothing is trusted: a handler compares all shapes.

#include "common.h"

namespace {

constexpr int64_t TQ = 48, TK = 48;  // a tile; both multiples of 12 rows and of 16 columns
constexpr float MASKED = -1e30f;

struct Bounds {
  int32_t low_slot, high_slot, low_segment, high_segment;

  static Bounds of(const int32_t* slots, const int32_t* segments, int64_t n) {
    Bounds b{slots[0], slots[0], segments[0], segments[0]};
    for (int64_t i = 1; i < n; ++i) {
      b.low_slot = std::min(b.low_slot, slots[i]), b.high_slot = std::max(b.high_slot, slots[i]);
      b.low_segment = std::min(b.low_segment, segments[i]), b.high_segment = std::max(b.high_segment, segments[i]);
    }
    return b;
  }
};

// Numbers of the rows of a batch, or the same for all.
struct Places {
  const int32_t *slots, *segments;
  int64_t slots_by, segments_by;

  const int32_t* slots_of(int64_t row) const { return slots + row * slots_by; }
  const int32_t* segments_of(int64_t row) const { return segments + row * segments_by; }
};

// Queries of one head, as many as a tile has or the head has left.
struct Tile {
  int64_t first, rows;  // `first` of all rows of all heads
  const int32_t *slots, *segments;
  Bounds bounds;
};

// Keys and values of one head in tiles, as the products read them: in a thread's own memory.
struct Head {
  float *turned, *keys, *values, *values_turned, *mean;
  int64_t row;  // of the batch
};

struct Keys {
  bool hidden, whole;  // no query of the tile sees any, every one sees all
  const float *turned, *keys, *values, *values_turned;
  const int32_t *slots, *segments;
};

struct Problem {
  int64_t batch, heads, kv, rows, keys, dim, values;
  const float *q, *k, *v, *less = nullptr, *d_out = nullptr;
  float *lse = nullptr, *out = nullptr, *dq = nullptr, *dk = nullptr, *dv = nullptr;
  Places queries, places;
  bool causal;
  int64_t window;
  float scale, softcap;

  int64_t group, query_tiles, key_tiles, depth, width;  // `depth`, `width`: dim and values, up to multiples of 16
  int64_t parts;  // pieces of work of a key head: where these are fewer than threads, several work at one
  std::vector<int32_t> slots, segments;
  std::vector<Bounds> bounds;

  int64_t padded_keys() const { return key_tiles * TK; }
  int64_t packed() const { return padded_keys() * (dim + width) + values; }  // floats of a head,
  int64_t packed_back() const { return padded_keys() * (depth + values); }   // and those more for the backward pass
  int64_t tiles_of_head() const { return group * query_tiles; }

  void prepare(int64_t threads) {
    group = heads / kv, query_tiles = (rows + TQ - 1) / TQ, key_tiles = (keys + TK - 1) / TK;
    depth = (dim + 15) / 16 * 16, width = (values + 15) / 16 * 16;
    parts = std::min(tiles_of_head(), (2 * threads + batch * kv - 1) / (batch * kv));
    slots.resize(batch * padded_keys()), segments.resize(batch * padded_keys()), bounds.resize(batch * key_tiles);
    for (int64_t row = 0; row < batch; ++row)
      for (int64_t t = 0; t < key_tiles; ++t) {
        const int64_t start = t * TK, real = std::min(TK, keys - start), at = row * padded_keys() + start;
        for (int64_t j = 0; j < TK; ++j) {
          slots[at + j] = j < real ? places.slots_of(row)[start + j] : -1;
          segments[at + j] = j < real ? places.segments_of(row)[start + j] : 0;
        }
        bounds[row * key_tiles + t] = Bounds::of(&slots[at], &segments[at], real);
      }
  }

  // Number `n` of the tiles that look at key head `head`, of all of the batch; the last first, which under a causal order take longest.
  Tile tile(int64_t head, int64_t n) const {
    const int64_t start = (query_tiles - 1 - n % query_tiles) * TQ, row = head / kv;
    Tile q{(head * group + n / query_tiles) * rows + start, std::min(TQ, rows - start)};
    q.slots = queries.slots_of(row) + start, q.segments = queries.segments_of(row) + start;
    q.bounds = Bounds::of(q.slots, q.segments, q.rows);
    return q;
  }

  // A tile's rows of `from`, `(batch, heads, rows, size)`, times `unit`, in TQ rows of `padded`.
  void read(const Tile& q, const float* from, int64_t size, int64_t padded, float unit, float* to) const {
    for (int64_t i = 0; i < TQ; ++i) {
      const int64_t real = i < q.rows ? size : 0;
      const float* row = from + (q.first + (i < q.rows ? i : 0)) * size;
      for (int64_t j = 0; j < real; ++j) to[i * padded + j] = row[j] * unit;
      for (int64_t j = real; j < padded; ++j) to[i * padded + j] = 0.f;
    }
  }

  Keys keys_of(const Tile& q, const Head& head, int64_t t) const {
    const Bounds &a = q.bounds, &b = bounds[head.row * key_tiles + t];
    const int64_t nearest = int64_t{a.low_slot} - b.high_slot, furthest = int64_t{a.high_slot} - b.low_slot;
    const bool apart = a.high_segment < b.low_segment || a.low_segment > b.high_segment || b.high_slot < 0;
    const bool before = causal && furthest < 0, beyond = window && (nearest >= window || (!causal && -furthest >= window));
    const bool together = a.low_segment == a.high_segment && b.low_segment == b.high_segment && b.low_slot >= 0;
    const bool after = !causal || nearest >= 0, within = !window || (furthest < window && (causal || -nearest < window));
    const int64_t at = head.row * padded_keys() + t * TK;
    return {apart || before || beyond,
            !apart && together && after && within && (t + 1) * TK <= keys,
            head.turned + t * TK * dim,
            head.keys + t * TK * depth,
            head.values + t * TK * width,
            head.values_turned + t * TK * values,
            &slots[at],
            &segments[at]};
  }

  Head pack(int64_t head, bool back, float*& scratch) const {
    auto take = [&](int64_t n) { return scratch += n, scratch - n; };
    Head h{take(padded_keys() * dim), nullptr, take(padded_keys() * width), nullptr, take(values), head / kv};
    if (back) h.keys = take(padded_keys() * depth), h.values_turned = take(padded_keys() * values);
    const float *from_k = k + head * keys * dim, *from_v = v + head * keys * values;
    turn(from_k, dim, h.turned), spread(from_v, values, width, h.values);
    if (back) spread(from_k, dim, depth, h.keys), turn(from_v, values, h.values_turned);
    for (int64_t j = 0; j < values; ++j) h.mean[j] = 0;
    for (int64_t i = 0; i < keys; ++i)
      for (int64_t j = 0; j < values; ++j) h.mean[j] += from_v[i * values + j];
    for (int64_t j = 0; j < values; ++j) h.mean[j] /= keys;
    return h;
  }

  // `(keys, size)` in tiles of `(size, TK)`, and in rows of `padded`; with zeros behind.
  void turn(const float* from, int64_t size, float* to) const {
    for (int64_t start = 0; start < padded_keys(); start += TK, to += TK * size) {
      const int64_t real = std::min(TK, keys - start);
      for (int64_t d = 0; d < size; ++d) {
        for (int64_t j = 0; j < real; ++j) to[d * TK + j] = from[(start + j) * size + d];
        for (int64_t j = real; j < TK; ++j) to[d * TK + j] = 0.f;
      }
    }
  }
  void spread(const float* from, int64_t size, int64_t padded, float* to) const {
    for (int64_t i = 0; i < padded_keys(); ++i) {
      const int64_t real = i < keys ? size : 0;
      for (int64_t j = 0; j < real; ++j) to[i * padded + j] = from[i * size + j];
      for (int64_t j = real; j < padded; ++j) to[i * padded + j] = 0.f;
    }
  }
};

#if defined(__x86_64__)
BEGIN(AVX512)
namespace avx512 {
VECTORS(16)
#include "attention.inc"
}  // namespace avx512
END

BEGIN(AVX2)
namespace avx2 {
VECTORS(8)
#include "attention.inc"
}  // namespace avx2
END
#endif

namespace plain {
VECTORS(4)
#include "attention.inc"
}  // namespace plain

struct Set {
  void (*attend)(const Problem&, int64_t, float*);
  void (*back)(const Problem&, int64_t, float*);
};

const Set sets[] = {
#if defined(__x86_64__)
    {avx512::attend, avx512::back},
    {avx2::attend, avx2::back},
#else
    {},
    {},
#endif
    {plain::attend, plain::back},
};

using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;

ffi::Error placed(Places& p, const Integers& slots, const Integers& segments, int64_t batch, int64_t n) {
  const int64_t a = slots.dimensions().size() == 2 && slots.dimensions()[0] == 1 ? 1 : batch;
  const int64_t b = segments.dimensions().size() == 2 && segments.dimensions()[0] == 1 ? 1 : batch;
  EXPECT(slots, a, n);
  EXPECT(segments, b, n);
  p = {slots.typed_data(), segments.typed_data(), a == 1 ? 0 : n, b == 1 ? 0 : n};
  return ffi::Error::Success();
}

ffi::Error begin(Problem& p, const Floats& q, const Floats& k, const Floats& v, const Integers& q_slots,
                 const Integers& q_segments, const Integers& k_slots, const Integers& k_segments, bool causal, int64_t window,
                 float scale, float softcap) {
  const auto a = q.dimensions(), b = v.dimensions();
  if (a.size() != 4) return wrong("q has the shape " + said(q) + ", expected (batch, heads, rows, dim)");
  if (b.size() != 4) return wrong("v has the shape " + said(v) + ", expected (batch, kv_heads, keys, values)");
  p.batch = a[0], p.heads = a[1], p.rows = a[2], p.dim = a[3], p.kv = b[1], p.keys = b[2], p.values = b[3];
  EXPECT(k, p.batch, p.kv, p.keys, p.dim);
  EXPECT(v, p.batch, p.kv, p.keys, p.values);
  for (int64_t n : {p.batch, p.heads, p.rows, p.dim, p.kv, p.keys, p.values})
    if (n < 1) return wrong("q " + said(q) + " or v " + said(v) + " is empty");
  if (p.heads % p.kv) return wrong(std::to_string(p.heads) + " heads are no multiple of " + std::to_string(p.kv) + " key heads");
  if (window < 0 || window > INT32_MAX) return wrong("there is no window of " + std::to_string(window));
  if (auto e = placed(p.queries, q_slots, q_segments, p.batch, p.rows); e.failure()) return e;
  if (auto e = placed(p.places, k_slots, k_segments, p.batch, p.keys); e.failure()) return e;
  p.q = q.typed_data(), p.k = k.typed_data(), p.v = v.typed_data();
  p.causal = causal, p.window = window, p.scale = scale, p.softcap = softcap;
  return ffi::Error::Success();
}

ffi::Error attend(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Integers q_slots, Integers q_segments, Integers k_slots,
                  Integers k_segments, ffi::ResultBuffer<ffi::F32> result, ffi::ResultBuffer<ffi::F32> sums, bool causal,
                  int64_t window, float scale, float softcap) {
  Problem p;
  if (auto e = begin(p, q, k, v, q_slots, q_segments, k_slots, k_segments, causal, window, scale, softcap); e.failure()) return e;
  const auto &out = *result, &lse = *sums;
  EXPECT(out, p.batch, p.heads, p.rows, p.values);
  EXPECT(lse, p.batch, p.heads, p.rows);
  p.out = out.typed_data(), p.lse = lse.typed_data();
  p.prepare(threads_of(pool));
  const Set& set = sets[chosen];
  const int64_t scratch = p.packed() + TQ * (p.depth + TK + p.width + 2);
  share(pool, p.batch * p.kv * p.parts, scratch, [&](int64_t n, float* mine) { set.attend(p, n, mine); });
  return ffi::Error::Success();
}

ffi::Error back(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Integers q_slots, Integers q_segments, Integers k_slots,
                Integers k_segments, Floats lse, Floats less, Floats d_out, ffi::ResultBuffer<ffi::F32> result_q,
                ffi::ResultBuffer<ffi::F32> result_k, ffi::ResultBuffer<ffi::F32> result_v, bool causal, int64_t window,
                float scale, float softcap) {
  Problem p;
  if (auto e = begin(p, q, k, v, q_slots, q_segments, k_slots, k_segments, causal, window, scale, softcap); e.failure()) return e;
  const auto &dq = *result_q, &dk = *result_k, &dv = *result_v;
  EXPECT(lse, p.batch, p.heads, p.rows);
  EXPECT(less, p.batch, p.heads, p.rows);
  EXPECT(d_out, p.batch, p.heads, p.rows, p.values);
  EXPECT(dq, p.batch, p.heads, p.rows, p.dim);
  EXPECT(dk, p.batch, p.kv, p.keys, p.dim);
  EXPECT(dv, p.batch, p.kv, p.keys, p.values);
  p.lse = const_cast<float*>(lse.typed_data()), p.less = less.typed_data(), p.d_out = d_out.typed_data();
  p.dq = dq.typed_data();
  p.prepare(threads_of(pool));
  const int64_t heads = p.batch * p.kv;
  std::vector<float> parts;  // each with sums of its own
  p.dk = dk.typed_data(), p.dv = dv.typed_data();
  if (p.parts > 1) {
    parts.resize(heads * p.parts * p.keys * (p.dim + p.values));
    p.dk = parts.data(), p.dv = parts.data() + heads * p.parts * p.keys * p.dim;
  }
  const Set& set = sets[chosen];
  const int64_t scratch = p.packed() + p.packed_back() + p.padded_keys() * (p.depth + p.width) +
                          TQ * (2 * p.depth + p.width + 2 * TK) + p.width;
  share(pool, heads * p.parts, scratch, [&](int64_t n, float* mine) { set.back(p, n, mine); });
  auto add = [&](const float* from, int64_t head, int64_t size, float* to) {
    for (int64_t i = 0; i < p.keys * size; ++i) {
      float sum = 0;
      for (int64_t n = 0; n < p.parts; ++n) sum += from[(head * p.parts + n) * p.keys * size + i];
      to[head * p.keys * size + i] = sum;
    }
  };
  share(pool, p.parts > 1 ? heads : 0, 0, [&](int64_t head, float*) {
    add(p.dk, head, p.dim, dk.typed_data());
    add(p.dv, head, p.values, dv.typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace

#pragma GCC visibility push(default)

#define ATTENTION                                                                                                     \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Integers>().Arg<Integers>()   \
      .Arg<Integers>().Arg<Integers>()
#define CHOICES Attr<bool>("causal").Attr<int64_t>("window").Attr<float>("scale").Attr<float>("softcap")

XLA_FFI_DEFINE_HANDLER_SYMBOL(easyfn_attend, attend, ATTENTION.Ret<Floats>().Ret<Floats>().CHOICES);
XLA_FFI_DEFINE_HANDLER_SYMBOL(easyfn_attend_back, back,
                              ATTENTION.Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>()
                                  .CHOICES);

#pragma GCC visibility pop
