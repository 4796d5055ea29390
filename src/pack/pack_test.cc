#include "nibble/pack.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstring>
#include <random>

namespace nibble {
namespace {

/// Random codes, random finite scales and zeros.
QuantizedTensor random_tensor(const Format& format, int64_t n, int64_t k, uint32_t seed) {
  std::mt19937 random(seed);
  QuantizedTensor q = *make_quantized_tensor(format, n, k);
  const auto fill = [&random](Buffer& b) {
    for (int64_t i = 0; i < b.bytes(); ++i) b.mutable_data()[i] = static_cast<uint8_t>(random());
  };
  fill(q.codes);
  if (format.bits() == 4 && k % 2 != 0) {
    for (int64_t row = 1; row <= n; ++row)
      q.codes.mutable_data()[row * format.code_row_bytes(k) - 1] &= 15;
  }
  const int64_t values = n * format.groups(k);
  for (int64_t i = 0; i < values; ++i) {
    if (format.scale == DType::kE8M0) {
      q.scales.mutable_data()[i] = static_cast<uint8_t>(random() % 255);
    } else {
      store_from_f32(q.scales.mutable_data(), format.scale, i,
                     static_cast<float>(random() % 1000) * 0.01f - 5.0f);
    }
    if (format.zero == ZeroKind::kInteger) {
      q.zeros.mutable_data()[i] = static_cast<uint8_t>(random() % (1u << format.bits()));
    } else if (format.zero != ZeroKind::kNone) {
      store_from_f32(q.zeros.mutable_data(), format.scale, i,
                     static_cast<float>(random() % 100) * 0.1f);
    }
  }
  return q;
}

std::vector<Format> all_formats() {
  std::vector<Format> formats;
  for (const char* name : named_formats()) formats.push_back(*Format::parse(name));
  for (const char* name : {"uint4-g32:f16:zfloat", "uint4-g64:f32:zadd", "uint8-g64:f16",
                           "uint8-channel", "fp4-g16:bf16", "int4-g32:e8m0", "uint4-g16:e4m3"}) {
    formats.push_back(*Format::parse(name));
  }
  return formats;
}

constexpr std::pair<int64_t, int64_t> kShapes[] = {
    {1, 1}, {1, 2}, {15, 31}, {16, 32}, {17, 33}, {48, 64}, {33, 130}, {5, 4303}, {20, 4304}};

TEST(PackTest, UnpackReturnsTheSameBitsForEveryLayoutFormatAndOddShape) {
  const auto pool = make_thread_pool(2);
  for (const Format& format : all_formats()) {
    for (const auto& [n, k] : kShapes) {
      for (const Layout layout :
           {Layout{LayoutId::kRowMajor, false}, Layout{LayoutId::kCpuPanel16, false},
            Layout{LayoutId::kCpuPanel16, true}, Layout{LayoutId::kCudaFrag16, false},
            Layout{LayoutId::kCudaFrag16, true}}) {
        if (layout.paired && n % 2 != 0) continue;
        const QuantizedTensor q = random_tensor(format, n, k, static_cast<uint32_t>(n * 10007 + k));
        const auto packed = pack(q, layout, pool.get());
        ASSERT_TRUE(packed.ok()) << packed.status().message();
        const auto again = unpack(*packed, pool.get());
        ASSERT_TRUE(again.ok()) << again.status().message();
        EXPECT_TRUE(identical(q, *again))
            << format.name() << " " << layout.name() << " [" << n << ", " << k << "]";
      }
    }
  }
}

TEST(PackTest, EveryCodeAndScaleLiesWhereTheIndexFunctionSays) {
  for (const Format& format : all_formats()) {
    for (const Layout layout :
         {Layout{LayoutId::kRowMajor, false}, Layout{LayoutId::kCpuPanel16, false},
          Layout{LayoutId::kCpuPanel16, true}, Layout{LayoutId::kCudaFrag16, false},
          Layout{LayoutId::kCudaFrag16, true}}) {
      const QuantizedTensor q = random_tensor(format, 38, 75, 5);
      const PackedWeight packed = *pack(q, layout);
      const uint8_t code_xor = layout_code_xor(layout.id, format.element);
      const uint8_t mask = format.bits() == 4 ? 15 : 255;
      const int64_t scale_bytes = dtype_bytes(format.scale);
      for (int64_t row = 0; row < q.n; ++row) {
        for (int64_t column = 0; column < q.k; ++column) {
          const int64_t bit_offset = layout.offset_bits(row, column, packed.info);
          const uint8_t byte = packed.section(SectionId::kCodes)[bit_offset / 8];
          ASSERT_EQ(((byte >> (bit_offset % 8)) & mask) ^ code_xor, q.code(row, column))
              << format.name() << " " << layout.name() << " " << row << " " << column;
        }
        for (int64_t g = 0; g < format.groups(q.k); ++g) {
          const int64_t index = layout.scale_index(row, g, packed.info);
          ASSERT_EQ(std::memcmp(packed.section(SectionId::kScales) + index * scale_bytes,
                                q.scales.data() + (row * format.groups(q.k) + g) * scale_bytes,
                                static_cast<size_t>(scale_bytes)),
                    0);
        }
      }
    }
  }
}

TEST(PackTest, PaddingDecodesToZero) {
  for (const LayoutId id : {LayoutId::kCpuPanel16, LayoutId::kCudaFrag16})
    for (const Format& format : all_formats()) {
      if (format.zero == ZeroKind::kFloatCode || format.zero == ZeroKind::kAdditive)
        continue;  // x is zero there
      const QuantizedTensor q = random_tensor(format, 19, 45, 9);
      const PackedWeight packed = *pack(q, {id, false});
      // Read the padded matrix as if it were a real one of the padded size.
      PackedWeight whole = packed;
      whole.info.n = packed.info.n_padded;
      whole.info.k = packed.info.k_padded;
      const QuantizedTensor padded = *unpack(whole);
      for (int64_t row = 0; row < padded.n; ++row) {
        for (int64_t column = 0; column < padded.k; ++column) {
          if (row < q.n && column < q.k) continue;
          ASSERT_EQ(padded.decode(row, column), 0.0f)
              << format.name() << " " << row << " " << column;
        }
      }
    }
}

TEST(PackTest, PairedPanelsHoldEightGateRowsThenTheirUpRows) {
  const QuantizedTensor q = random_tensor(*Format::parse("int4-g32"), 2 * 11, 32, 3);
  const PackedWeight packed = *pack(q, {LayoutId::kCpuPanel16, true});
  EXPECT_EQ(packed.info.n_padded, 32);
  const Layout layout = packed.info.layout;
  EXPECT_EQ(layout.packed_row(0, 22), 0);
  EXPECT_EQ(layout.packed_row(7, 22), 7);
  EXPECT_EQ(layout.packed_row(8, 22), 16);
  EXPECT_EQ(layout.packed_row(11, 22), 8);
  EXPECT_EQ(layout.packed_row(21, 22), 26);
}

TEST(PackTest, MetadataTravels) {
  QuantizedTensor q = random_tensor(*Format::parse("nvfp4"), 20, 48, 4);
  q.tensor_scales = {{0, 0.5f}, {7, 3.0f}};
  q.tensor_scale_op = TensorScaleOp::kDivide;
  for (int32_t j = 0; j < 48; ++j) {
    q.k_perm.push_back((j * 5) % 48);
    q.pre_scale.push_back(static_cast<float>(j));
  }
  for (const Layout layout :
       {Layout{LayoutId::kCpuPanel16, false}, Layout{LayoutId::kCpuPanel16, true},
        Layout{LayoutId::kCudaFrag16, false}, Layout{LayoutId::kCudaFrag16, true}}) {
    const PackedWeight packed = *pack(q, layout);
    EXPECT_TRUE(identical(q, *unpack(packed)));
    const auto* row_scale = reinterpret_cast<const float*>(packed.section(SectionId::kRowScale));
    for (int64_t row = 0; row < 20; ++row) {
      EXPECT_EQ(row_scale[packed.info.layout.packed_row(row, 20)], row < 7 ? 0.5f : 3.0f);
    }
  }
}

TEST(PackTest, PacksIntoTheCallersMemoryAndViewsIt) {
  const QuantizedTensor q = random_tensor(*Format::parse("mxfp4"), 33, 96, 6);
  const PackedWeightInfo info = *packed_info(q, {LayoutId::kCpuPanel16, false});
  Buffer memory = *Buffer::allocate(packed_bytes(info));
  ASSERT_TRUE(
      pack_into(q, info, {memory.mutable_data(), static_cast<size_t>(memory.bytes())}).ok());
  const auto viewed = view(info, memory);
  ASSERT_TRUE(viewed.ok()) << viewed.status().message();
  EXPECT_TRUE(identical(q, *unpack(*viewed)));
  EXPECT_NE(pack_into(q, info, {memory.mutable_data(), 100}).message().find("100 bytes"),
            std::string::npos);
  PackedWeightInfo wrong = info;
  wrong.k_padded += 32;
  EXPECT_FALSE(view(wrong, memory).ok());
}

TEST(PackTest, RowMajorViewsCopyNothing) {
  const QuantizedTensor q = random_tensor(*Format::parse("uint4-g32"), 6, 50, 8);
  const auto packed =
      view_row_major(q.format, 6, 50, {q.codes.data(), q.scales.data(), q.zeros.data(), 0.25f});
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  EXPECT_EQ(packed->section(SectionId::kCodes), q.codes.data());
  QuantizedTensor expected = q;
  expected.tensor_scales = {{0, 0.25f}};
  EXPECT_TRUE(identical(expected, *unpack(*packed)));
  EXPECT_NE(view_row_major(q.format, 6, 50, {q.codes.data(), q.scales.data()})
                .status()
                .message()
                .find("needs zeros"),
            std::string::npos);
}

TEST(PackTest, WhatCannotBePackedIsRefusedWithTheRule) {
  const QuantizedTensor q = random_tensor(*Format::parse("int4-g32"), 7, 32, 1);
  EXPECT_NE(pack(q, {LayoutId::kCpuPanel16, true}).status().message().find("n = 7 is odd"),
            std::string::npos);
  const QuantizedTensor even = random_tensor(*Format::parse("int4-g32"), 8, 32, 1);
  EXPECT_EQ(pack(even, {LayoutId::kRowMajor, true}).status().code(), Code::kUnsupported);
}

// Codes move straight from their source to their place: beside both, packing holds next to nothing.
TEST(PackTest, PeakMemoryIsThePackedSizeAndAtMost64MegabytesMore) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers keep memory of their own";
#endif
  const auto peak = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return int64_t{usage.ru_maxrss} * 1024;
  };
  const QuantizedTensor q = random_tensor(*Format::parse("int4-g128"), 12288, 16384, 2);
  const int64_t before = peak();
  const auto packed = pack(q, {LayoutId::kCpuPanel16, false});
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  EXPECT_LE(peak() - before, packed->info.bytes + (int64_t{64} << 20));
}

}  // namespace
}  // namespace nibble
