// FP32 dense layers for the comparison, written to be a fair one: weights lie in panels of 16
// outputs that are read once per block of rows, sums stay in registers, and the bias, the
// activation and the residual are applied before a sum leaves them.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "dense_layer.h"

// The project compiles without contraction; here a fused multiply-add is what makes FP32 fast.
#if defined(__clang__)
#pragma clang fp contract(fast)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=fast")
#endif

#define SENTENCE_EMBEDDING_INLINE inline __attribute__((always_inline))

namespace sentence_embedding {
namespace {

using nibble::Activation;

constexpr int64_t kPanel = 16;  ///< outputs of one panel

/// Vectors of one instruction set: `kVectors` of them hold one panel row, and `kRows` rows of sums
/// fit in its registers.
struct Bytes64 {
  typedef float Float __attribute__((vector_size(64)));
  typedef int32_t Int __attribute__((vector_size(64)));
  static constexpr int kVectors = 1, kRows = 12;
};
struct Bytes32 {
  typedef float Float __attribute__((vector_size(32)));
  typedef int32_t Int __attribute__((vector_size(32)));
  static constexpr int kVectors = 2, kRows = 6;
};
struct Bytes16 {
  typedef float Float __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  static constexpr int kVectors = 4, kRows = 3;
};

/// e^-v for v in [0, 87]: 2^-i * 2^-f with i the nearest integer and a polynomial for 2^-f.
template <class V>
SENTENCE_EMBEDDING_INLINE void exp_of_minus(typename V::Float& v) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  const typename V::Float scaled = v * -1.44269504f;
  const typename V::Float shifted = scaled + kRound;
  const typename V::Float whole = shifted - kRound;
  // v * log2(e) rounded once would cost 1e-6 at v = 16, so the fraction is taken in two parts.
  const typename V::Float rest = (v * -1.0f - whole * 0.693359375f) + whole * 2.12194440e-4f;
  typename V::Float p = rest * 1.98412698e-4f + 1.38888889e-3f;  // Taylor: |rest| <= ln(2) / 2
  p = p * rest + 8.33333333e-3f;
  p = p * rest + 4.16666667e-2f;
  p = p * rest + 1.66666667e-1f;
  p = p * rest + 0.5f;
  p = p * rest + 1.0f;
  p = p * rest + 1.0f;
  typename V::Int bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 127) << 23;
  typename V::Float power;
  std::memcpy(&power, &bits, sizeof(power));
  v = p * power;
}

/// GELU with erfc(z) = e^-p(z), p a polynomial fitted to -log(erfc(z)) on [0, 4]: the error of
/// erf is below 1e-7 everywhere, and beyond 4 erf is 1 in FP32.
template <class V>
SENTENCE_EMBEDDING_INLINE void gelu(typename V::Float& x) {
  const typename V::Float zero = {};
  const typename V::Float half_x = x * 0.5f;
  typename V::Float z = (x < zero ? zero - x : x) * 0.707106781f;
  z = z > zero + 4.0f ? zero + 4.0f : z;
  constexpr float kLogErfc[] = {
      1.1283797025680542f,     0.6366099119186401f,     0.10282263159751892f,
      -0.0192380640655756f,    -0.0001047835175995715f, 0.0017009947914630175f,
      -0.0007107026176527143f, 0.00016865307406987995f, -2.4945476980064996e-05f,
      2.14249052987725e-06f,   -8.180913368960319e-08f};
  typename V::Float p = zero + kLogErfc[10];
  for (int i = 9; i >= 0; --i) p = p * z + kLogErfc[i];
  typename V::Float erfc = p * z;
  exp_of_minus<V>(erfc);
  // 1 + erf(x/sqrt 2) is erfc(z) for negative x and 2 - erfc(z) otherwise.
  x = half_x * (x < zero ? erfc : 2.0f - erfc);
}

struct PanelArgs {
  DenseCall call;
  const float* panel = nullptr;  ///< [k][16]
  const float* bias = nullptr;   ///< [16]
  int64_t n = 0, k = 0, column = 0;
};

/// `kRows` rows of x from `row` times one panel.
template <class V, int kRows>
SENTENCE_EMBEDDING_INLINE void multiply_rows(const PanelArgs& a, int64_t row) {
  typename V::Float sum[kRows][V::kVectors] = {};
  const float* x = a.call.x + row * a.k;
  const float* w = a.panel;
  for (int64_t k = 0; k < a.k; ++k, w += kPanel) {
    typename V::Float weights[V::kVectors];
    std::memcpy(weights, w, sizeof(weights));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const float value = x[r * a.k + k];
#pragma GCC unroll 4
      for (int v = 0; v < V::kVectors; ++v) sum[r][v] += weights[v] * value;
    }
  }
  const int64_t columns = std::min(kPanel, a.n - a.column);
  typename V::Float bias[V::kVectors];
  std::memcpy(bias, a.bias, sizeof(bias));
  for (int r = 0; r < kRows; ++r) {
    float out[kPanel];
    for (int v = 0; v < V::kVectors; ++v) {
      sum[r][v] += bias[v];
      if (a.call.activation == Activation::kGeluErf) gelu<V>(sum[r][v]);
    }
    std::memcpy(out, sum[r], sizeof(out));
    const int64_t at = (row + r) * a.n + a.column;
    if (a.call.residual != nullptr) {
      for (int64_t c = 0; c < columns; ++c) out[c] += a.call.residual[at + c];
    }
    std::memcpy(a.call.y + at, out, static_cast<size_t>(columns) * sizeof(float));
  }
}

/// `rows` <= kRows rows, with a loop made for exactly that many.
template <class V, int kRows>
SENTENCE_EMBEDDING_INLINE void multiply_block(const PanelArgs& a, int64_t row, int64_t rows) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      multiply_rows<V, kRows>(a, row);
    } else {
      multiply_block<V, kRows - 1>(a, row, rows);
    }
  }
}

/// Blocks of about the same size: 13 rows are better off as 7 + 6 than as 12 + 1, because a block
/// of one row waits for the weights.
template <class V>
SENTENCE_EMBEDDING_INLINE void multiply_panel(const PanelArgs& a) {
  const int64_t blocks = nibble::ceil_div(a.call.m, V::kRows);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = a.call.m * b / blocks, end = a.call.m * (b + 1) / blocks;
    multiply_block<V, V::kRows>(a, begin, end - begin);
  }
}

template <class V>
SENTENCE_EMBEDDING_INLINE void gelu_all(float* values, size_t count) {
  for (size_t i = 0; i < count; i += sizeof(typename V::Float) / sizeof(float)) {
    typename V::Float v = {};
    const size_t bytes = std::min((count - i) * sizeof(float), sizeof(v));
    std::memcpy(&v, values + i, bytes);
    gelu<V>(v);
    std::memcpy(values + i, &v, bytes);
  }
}

/// The functions of one instruction set.
struct Kernels {
  void (*multiply)(const PanelArgs&);
  void (*gelu)(float*, size_t);
};

#if defined(__x86_64__)
__attribute__((target("avx512f"))) void multiply_avx512(const PanelArgs& a) {
  multiply_panel<Bytes64>(a);
}
__attribute__((target("avx512f"))) void gelu_avx512(float* values, size_t count) {
  gelu_all<Bytes64>(values, count);
}
__attribute__((target("avx2,fma"))) void multiply_avx2(const PanelArgs& a) {
  multiply_panel<Bytes32>(a);
}
__attribute__((target("avx2,fma"))) void gelu_avx2(float* values, size_t count) {
  gelu_all<Bytes32>(values, count);
}
#endif
void multiply_plain(const PanelArgs& a) { multiply_panel<Bytes16>(a); }
void gelu_plain(float* values, size_t count) { gelu_all<Bytes16>(values, count); }

Kernels kernels_for(nibble::Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case nibble::Isa::kAvx512Vnni:
    case nibble::Isa::kAvx512Bf16:
      return {multiply_avx512, gelu_avx512};
    case nibble::Isa::kAvx2:
    case nibble::Isa::kAvxVnni:
      return {multiply_avx2, gelu_avx2};
    case nibble::Isa::kScalar:
    case nibble::Isa::kNeon:  // 16-byte vectors are what it has
    case nibble::Isa::kNeonDotprod:
    case nibble::Isa::kNeonI8mm:
    case nibble::Isa::kNeonBf16:
      break;
  }
#else
  static_cast<void>(isa);
#endif
  return {multiply_plain, gelu_plain};
}

}  // namespace

F32Dense::F32Dense(std::span<const float> weight, std::span<const float> bias, nibble::Isa isa)
    : isa_(isa),
      n_(static_cast<int64_t>(bias.size())),
      k_(n_ == 0 ? 0 : static_cast<int64_t>(weight.size()) / n_) {
  const int64_t num_panels = nibble::ceil_div(n_, kPanel);
  panels_.resize(static_cast<size_t>(num_panels * k_));
  for (int64_t row = 0; row < n_; ++row) {
    for (int64_t k = 0; k < k_; ++k) {
      panels_[static_cast<size_t>(row / kPanel * k_ + k)].weights[row % kPanel] =
          weight[static_cast<size_t>(row * k_ + k)];
    }
  }
  bias_.assign(bias.begin(), bias.end());
  bias_.resize(static_cast<size_t>(num_panels * kPanel), 0.0f);
}

nibble::Status F32Dense::run(const DenseCall& call, nibble::ThreadPool& pool) const {
  if (call.activation != Activation::kNone && call.activation != Activation::kGeluErf) {
    return nibble::unsupported(std::string("activation ") +
                               nibble::activation_name(call.activation) +
                               ": the FP32 layer has none and gelu_erf");
  }
  const auto multiply = kernels_for(isa_).multiply;
  const int64_t num_panels = nibble::ceil_div(n_, kPanel);
  // A few pieces a thread, so that a thread that starts late does not make the others wait.
  const int64_t pieces =
      pool.num_threads() == 1 ? 1 : std::min<int64_t>(num_panels, 4 * pool.num_threads());
  pool.for_each(pieces, [&](int64_t piece) {
    for (int64_t p = num_panels * piece / pieces; p < num_panels * (piece + 1) / pieces; ++p) {
      multiply({call, panels_[static_cast<size_t>(p * k_)].weights, bias_.data() + p * kPanel, n_,
                k_, p * kPanel});
    }
  });
  return nibble::ok_status();
}

void gelu_erf(std::span<float> values, nibble::Isa isa) {
  kernels_for(isa).gelu(values.data(), values.size());
}

}  // namespace sentence_embedding
