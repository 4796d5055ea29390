// The decode tricks of the vector rows, exhaustively: every code in every place of a block, every
// byte of the one-byte scales, every integer zero point. Each output is one product: exact.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "kernels/table.h"
#include "nibble/pack.h"

namespace nibble {
namespace {

constexpr int64_t kTileRows = 8;
constexpr int64_t kPanelRows = 16;
// Quantizing a block whose largest value is this one gives codes 127 and 0 and scale 1.
constexpr float kUnitOfX = 127;

int64_t codes_of(Element element) {
  return element == Element::kInt8 || element == Element::kUint8 ? 256 : 16;
}

// Unsigned codes always come with a zero; it stays 0 unless a test sets it.
ZeroKind plainest_zero(Element element) {
  return element == Element::kUint4 || element == Element::kUint8 ? ZeroKind::kInteger
                                                                  : ZeroKind::kNone;
}

void set_code(QuantizedTensor& w, int64_t row, int64_t column, int64_t code) {
  uint8_t* bytes = w.codes.mutable_data() + row * w.format.code_row_bytes(w.k);
  if (w.format.bits() == 8) {
    bytes[column] = static_cast<uint8_t>(code);
  } else {
    bytes[column / 2] = static_cast<uint8_t>(bytes[column / 2] | code << (4 * (column & 1)));
  }
}

// A weight whose scales are all 1, its codes and zeros 0.
QuantizedTensor make_weight(const Format& format, int64_t n, int64_t k) {
  auto made = make_quantized_tensor(format, n, k);
  if (!made.ok()) {
    ADD_FAILURE() << made.status().message();
    std::abort();
  }
  QuantizedTensor w = std::move(made).value();
  for (int64_t i = 0; i < n * format.groups(k); ++i) {
    if (format.scale == DType::kE8M0) {
      w.scales.mutable_data()[i] = 127;
    } else {
      store_from_f32(w.scales.mutable_data(), format.scale, i, 1);
    }
  }
  return w;
}

// The last row of the instruction sets below `matmul`'s that writes its form.
const KernelInfo& prepare_for(const KernelRow& matmul) {
  const KernelInfo* found = nullptr;
  for (const KernelInfo& info : cpu_kernels()) {
    if (info.row.kind == StepKind::kPrepareX && info.row.x_form == matmul.x_form &&
        info.row.compute == matmul.compute && (isas_up_to(matmul.isa) & bit(info.row.isa)) != 0 &&
        Device::this_cpu().has(info.row.isa)) {
      found = &info;
    }
  }
  return *found;  // KernelTable.EveryPreparedFormHasAWriter
}

// y [m, n] of x [m, k], both dense FP32, straight from the row's entry points.
std::vector<float> run(const KernelInfo& matmul, const QuantizedTensor& w,
                       const std::vector<float>& x) {
  const PackedWeight packed = pack(w, {matmul.row.layout, false}).value();
  const PackedWeightInfo& info = packed.info;
  const int64_t m = static_cast<int64_t>(x.size()) / w.k, columns = round_up(w.k, 32);
  std::vector<float> y(static_cast<size_t>(m * w.n));
  // The prepared forms hold at most 4 bytes and 12/32 a value; vectors may be loaded past the end.
  Buffer workspace = Buffer::allocate(m * columns * 5 + 64).value();

  const KernelInfo& prepare_row = prepare_for(matmul.row);
  const DType dtype =
      (prepare_row.row.x_dtypes & bit(DType::kF32)) != 0 ? DType::kF32 : DType::kBF16;
  std::vector<uint8_t> given(x.size() * static_cast<size_t>(dtype_bytes(dtype)));
  for (size_t i = 0; i < x.size(); ++i) {
    store_from_f32(given.data(), dtype, static_cast<int64_t>(i), x[i]);
  }
  const PrepareArgs prepare{given.data(), w.k * dtype_bytes(dtype), dtype, nullptr, nullptr, m, w.k,
                            columns,      workspace.mutable_data()};
  prepare_row.cpu_prepare(prepare, {0, ceil_div(m, kTileRows)});

  MatmulArgs args{};
  args.x = workspace.data();
  args.w = {.codes = packed.section(SectionId::kCodes),
            .scales = packed.section(SectionId::kScales),
            .zeros = packed.section(SectionId::kZeros),
            .row_scale = nullptr,
            .codebook = info.codebook.data(),
            .element = info.format.element,
            .scale_dtype = info.format.scale,
            .zero_kind = info.format.zero,
            .row_scale_op = info.tensor_scale_op,
            .layout = info.layout.id,
            .paired = false,
            .group = info.format.group_columns(info.k_padded),
            .num_groups = info.num_groups,
            .n = info.n,
            .k = info.k,
            .n_padded = info.n_padded,
            .k_padded = info.k_padded};
  args.y = y.data();
  args.y_stride_bytes = w.n * 4;
  args.y_dtype = DType::kF32;
  args.epilogue.alpha = 1;
  args.m = m;
  args.grid = {m, 1, ceil_div(info.n_padded, kPanelRows)};
  matmul.cpu_matmul(args, {0, args.grid.items_n});
  return y;
}

class VectorRow : public ::testing::TestWithParam<const KernelInfo*> {
 protected:
  const KernelInfo& info() const { return *GetParam(); }
  bool takes(Element element) const { return (info().row.elements & bit(element)) != 0; }
  int64_t largest_m() const { return info().row.max_m == 0 ? 32 : info().row.max_m; }

  // Row r of x is kUnitOfX in column `first` + r and 0 elsewhere.
  static std::vector<float> one_column_a_row(int64_t first, int64_t rows, int64_t k) {
    std::vector<float> x(static_cast<size_t>(rows * k));
    for (int64_t r = 0; r < rows; ++r) x[static_cast<size_t>(r * k + first + r)] = kUnitOfX;
    return x;
  }
};

TEST_P(VectorRow, DecodesEveryCodeInEveryPlace) {
  constexpr int64_t kRows = 32, kColumns = 64;
  for (const Element element : {Element::kInt4, Element::kUint4, Element::kE2M1, Element::kNF4,
                                Element::kInt8, Element::kUint8}) {
    if (!takes(element)) continue;
    for (const int32_t group : {16, 32, 64}) {
      const Format format{element, group, DType::kF32, plainest_zero(element)};
      // Over the shifts every code stands in every row and column.
      for (int64_t shift = 0; shift < codes_of(element); ++shift) {
        QuantizedTensor w = make_weight(format, kRows, kColumns);
        for (int64_t n = 0; n < kRows; ++n) {
          for (int64_t k = 0; k < kColumns; ++k) {
            set_code(w, n, k, (5 * n + k + shift) % codes_of(element));
          }
        }
        for (int64_t first = 0; first < kColumns; first += largest_m()) {
          const std::vector<float> y =
              run(info(), w, one_column_a_row(first, largest_m(), kColumns));
          for (int64_t m = 0; m < largest_m(); ++m) {
            for (int64_t n = 0; n < kRows; ++n) {
              const uint8_t code = w.code(n, first + m);
              const float value = decode_element(element, code, w.codebook.data());
              ASSERT_EQ(y[static_cast<size_t>(m * kRows + n)], kUnitOfX * value)
                  << format.name() << " code " << int{code} << " in row " << n << ", column "
                  << first + m;
            }
          }
        }
      }
    }
  }
}

TEST_P(VectorRow, DecodesEveryByteOfASmallScale) {
  constexpr int64_t kBytes = 256, kColumns = 32;
  for (const DType dtype : {DType::kE4M3, DType::kE8M0}) {
    const Format format{Element::kE2M1, 32, dtype, ZeroKind::kNone};
    QuantizedTensor w = make_weight(format, kBytes, kColumns);
    std::vector<float> expected;
    for (int64_t n = 0; n < kBytes; ++n) {
      for (int64_t k = 0; k < kColumns; ++k) set_code(w, n, k, 1);  // 0.5
      auto byte = static_cast<uint8_t>(n);
      // NaN never reaches a kernel; beyond 2^120 the output itself is infinite.
      if (dtype == DType::kE4M3 && (byte & 0x7F) == 0x7F) byte = 0;
      if (dtype == DType::kE8M0 && byte >= 240) byte = 127;
      w.scales.mutable_data()[n] = byte;
      expected.push_back(kUnitOfX * 0.5f * load_as_f32(&byte, dtype, 0));
    }
    const std::vector<float> y = run(info(), w, one_column_a_row(3, 1, kColumns));
    for (int64_t n = 0; n < kBytes; ++n) {
      ASSERT_EQ(y[static_cast<size_t>(n)], expected[static_cast<size_t>(n)])
          << dtype_name(dtype) << " byte " << n;
    }
  }
}

TEST_P(VectorRow, SubtractsEveryIntegerZero) {
  constexpr int64_t kZeros = 256, kColumns = 32;
  for (const Element element : {Element::kUint4, Element::kUint8}) {
    if (!takes(element)) continue;
    const Format format{element, 16, DType::kF32, ZeroKind::kInteger};
    for (const int64_t code : {int64_t{0}, int64_t{5}, codes_of(element) - 1}) {
      QuantizedTensor w = make_weight(format, kZeros, kColumns);
      for (int64_t n = 0; n < kZeros; ++n) {
        for (int64_t k = 0; k < kColumns; ++k) set_code(w, n, k, code);
        w.zeros.mutable_data()[2 * n] = static_cast<uint8_t>(n);
        w.zeros.mutable_data()[2 * n + 1] = static_cast<uint8_t>(255 - n);
      }
      const float value = decode_element(element, static_cast<uint8_t>(code), nullptr);
      for (const int64_t column : {int64_t{15}, int64_t{16}}) {
        const std::vector<float> y = run(info(), w, one_column_a_row(column, 1, kColumns));
        for (int64_t n = 0; n < kZeros; ++n) {
          const float zero = static_cast<float>(column < 16 ? n : 255 - n);
          ASSERT_EQ(y[static_cast<size_t>(n)], kUnitOfX * (value - zero))
              << format.name() << " code " << code << ", zero " << zero;
        }
      }
    }
  }
}

// The largest sums that the 16-bit steps of int8 compute must hold: codes and x at their ends.
TEST_P(VectorRow, HoldsTheLargestSums) {
  constexpr int64_t kRows = 16, kColumns = 64;
  for (const Element element :
       {Element::kInt4, Element::kUint4, Element::kE2M1, Element::kInt8, Element::kUint8}) {
    if (!takes(element)) continue;
    for (const int32_t group : {16, 32, 64}) {
      const Format format{element, group, DType::kF32, plainest_zero(element)};
      QuantizedTensor w = make_weight(format, kRows, kColumns);
      for (int64_t n = 0; n < kRows; ++n) {
        for (int64_t k = 0; k < kColumns; ++k) set_code(w, n, k, (n * 17) % codes_of(element));
      }
      for (const float sign : {1.0f, -1.0f}) {
        const std::vector<float> x(static_cast<size_t>(kColumns), sign * kUnitOfX);
        const std::vector<float> y = run(info(), w, x);
        for (int64_t n = 0; n < kRows; ++n) {
          const float value = decode_element(element, w.code(n, 0), nullptr);
          ASSERT_EQ(y[static_cast<size_t>(n)], sign * kUnitOfX * 64 * value)
              << format.name() << " code " << int{w.code(n, 0)} << " sign " << sign;
        }
      }
    }
  }
}

// Those that this machine can run.
std::vector<const KernelInfo*> matmul_rows() {
  std::vector<const KernelInfo*> out;
  for (const KernelInfo& info : cpu_kernels()) {
    if (info.row.kind == StepKind::kMatmul && info.row.isa != Isa::kScalar &&
        Device::this_cpu().has(info.row.isa)) {
      out.push_back(&info);
    }
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Rows, VectorRow, ::testing::ValuesIn(matmul_rows()),
                         [](const auto& tested) { return std::string(tested.param->row.name); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(VectorRow);

}  // namespace
}  // namespace nibble
