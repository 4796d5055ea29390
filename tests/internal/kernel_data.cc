#include "tests/internal/kernel_data.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace nibble::harness {
namespace {

[[noreturn]] void die(const char* why) {
  std::fprintf(stderr, "kernel_data: %s\n", why);
  std::abort();
}

constexpr int64_t kQuantBlock = 32;
constexpr int kMostSpread = 5;  // octaves between the scales of exact data

// One element as exact data uses it.
struct ElementRange {
  double unit;       // codes stand for multiples of this
  double magnitude;  // largest |value|, in units
};

ElementRange range_of(Element element) {
  switch (element) {
    case Element::kInt4:
      return {1, 8};
    case Element::kUint4:
      return {1, 15};
    case Element::kE2M1:
      return {0.5, 12};
    case Element::kNF4:
      return {0.125, 8};
    case Element::kInt8:
      return {1, 128};
    case Element::kUint8:
      return {1, 255};
  }
  die("unknown element");
}

// What a zero of this kind may add to a column, in units; zfloat zeros are halves.
double zero_magnitude(ZeroKind kind, double code_magnitude) {
  switch (kind) {
    case ZeroKind::kNone:
      return 0;
    case ZeroKind::kInteger:
    case ZeroKind::kFloatCode:
      return code_magnitude;
    case ZeroKind::kAdditive:
      return 8;
  }
  die("unknown zero kind");
}

// Powers of two that `dtype` holds with room for `spread` octaves above.
int lowest_exponent(DType dtype, int spread, Rng& rng) {
  if (dtype == DType::kE4M3) return static_cast<int>(rng.between(-9, 8 - spread));
  return static_cast<int>(rng.between(-6, 0));
}

void set_code(QuantizedTensor& w, int64_t row, int64_t column, uint8_t code) {
  uint8_t* bytes = w.codes.mutable_data() + row * w.format.code_row_bytes(w.k);
  if (w.format.bits() == 8) {
    bytes[column] = code;
    return;
  }
  uint8_t& byte = bytes[column / 2];
  const int shift = static_cast<int>(4 * (column & 1));
  byte = static_cast<uint8_t>((byte & (0xF0 >> shift)) | (code << shift));
}

void store_scale(QuantizedTensor& w, int64_t index, float value) {
  if (w.format.scale == DType::kE8M0) {
    w.scales.mutable_data()[index] = static_cast<uint8_t>(127 + std::ilogb(value));
    return;
  }
  store_from_f32(w.scales.mutable_data(), w.format.scale, index, value);
}

// Row segments of about equal length; powers of two where `exact`.
void add_tensor_scales(QuantizedTensor& w, const WeightExtras& extras, bool exact, Rng& rng) {
  w.tensor_scale_op = extras.op;
  if (w.format.zero == ZeroKind::kAdditive) return;  // refused by validate
  const int64_t count = std::min<int64_t>(extras.tensor_scales, w.n);
  for (int64_t i = 0; i < count; ++i) {
    const double value =
        exact ? std::ldexp(1.0, static_cast<int>(rng.between(-1, 1))) : std::exp(rng.gaussian());
    w.tensor_scales.push_back({w.n * i / count, static_cast<float>(value)});
  }
}

void add_permutation(QuantizedTensor& w, Rng& rng) {
  w.k_perm.resize(static_cast<size_t>(w.k));
  std::iota(w.k_perm.begin(), w.k_perm.end(), 0);
  for (int64_t j = w.k - 1; j > 0; --j) {
    std::swap(w.k_perm[static_cast<size_t>(j)], w.k_perm[static_cast<size_t>(rng.between(0, j))]);
  }
}

QuantizedTensor empty_weight(const Format& format, const ProblemShape& shape) {
  auto made = make_quantized_tensor(format, shape.n, shape.k);
  if (!made.ok()) die(made.status().message().c_str());
  return std::move(made).value();
}

// Largest sum of |x| over a row: x in -2..2, and for int8 one +-127 in each block.
double x_bound(int64_t k, Compute compute) {
  const double small = 2 * static_cast<double>(k);
  if (compute != Compute::kInt8) return small;
  return small + 127 * static_cast<double>(ceil_div(k, kQuantBlock));
}

void make_exact_x(ExactProblem& problem, int64_t m, Compute compute, Rng& rng) {
  const QuantizedTensor& w = problem.w;
  problem.x.resize(static_cast<size_t>(m * w.k));
  for (int64_t row = 0; row < m; ++row) {
    float* x = problem.x.data() + row * w.k;
    for (int64_t begin = 0; begin < w.k; begin += kQuantBlock) {
      const int64_t end = std::min(begin + kQuantBlock, w.k);
      const int64_t largest = rng.between(begin, end - 1);
      for (int64_t j = begin; j < end; ++j) {
        auto value = static_cast<double>(rng.between(-2, 2));
        if (compute == Compute::kInt8 && j == largest) value = rng.one_in(2) ? 127 : -127;
        const auto p = static_cast<size_t>(w.k_perm.empty() ? j : w.k_perm[static_cast<size_t>(j)]);
        if (!w.pre_scale.empty()) value /= static_cast<double>(w.pre_scale[p]);
        x[p] = static_cast<float>(value);
      }
    }
  }
}

}  // namespace

uint64_t Rng::next() {
  uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

int64_t Rng::between(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
}

double Rng::real() { return static_cast<double>(next() >> 11) * 0x1p-53; }

double Rng::gaussian() {
  const double radius = std::sqrt(-2 * std::log(1 - real()));
  return radius * std::cos(6.283185307179586 * real());
}

GuardedMemory::GuardedMemory(int64_t bytes, uint8_t fill) : bytes_(bytes), fill_(fill) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t used = round_up(std::max<int64_t>(bytes, 1), page);
  mapped_bytes_ = used + page;
  void* mapping = mmap(nullptr, static_cast<size_t>(mapped_bytes_), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) die("mmap failed");
  mapping_ = static_cast<uint8_t*>(mapping);
  std::memset(mapping_, fill, static_cast<size_t>(used));
  if (mprotect(mapping_ + used, static_cast<size_t>(page), PROT_NONE) != 0) die("mprotect failed");
  data_ = mapping_ + used - bytes;
}

GuardedMemory::GuardedMemory(GuardedMemory&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)),
      mapped_bytes_(other.mapped_bytes_),
      data_(other.data_),
      bytes_(other.bytes_),
      fill_(other.fill_) {}

GuardedMemory::~GuardedMemory() {
  if (mapping_ != nullptr) munmap(mapping_, static_cast<size_t>(mapped_bytes_));
}

bool GuardedMemory::front_is_untouched() const {
  return std::all_of(mapping_, data_, [this](uint8_t byte) { return byte == fill_; });
}

Matrix::Matrix(DType dtype, int64_t rows, int64_t cols, int64_t gap, uint8_t fill)
    : dtype_(dtype),
      rows_(rows),
      cols_(cols),
      stride_bytes_((cols + gap) * dtype_bytes(dtype)),
      fill_(fill),
      memory_((rows - 1) * stride_bytes_ + cols * dtype_bytes(dtype), fill) {}

uint8_t* Matrix::value(int64_t row, int64_t col) const {
  return memory_.data() + row * stride_bytes_ + col * dtype_bytes(dtype_);
}

float Matrix::at(int64_t row, int64_t col) const { return load_as_f32(value(row, col), dtype_, 0); }

void Matrix::set(int64_t row, int64_t col, float v) {
  store_from_f32(value(row, col), dtype_, 0, v);
}

uint32_t Matrix::bits(int64_t row, int64_t col) const {
  uint32_t out = 0;
  std::memcpy(&out, value(row, col), static_cast<size_t>(dtype_bytes(dtype_)));
  return out;
}

MatrixView Matrix::view() const { return {memory_.data(), dtype_, rows_, cols_, stride_bytes_}; }

MutableMatrixView Matrix::mutable_view() const {
  return {memory_.data(), dtype_, rows_, cols_, stride_bytes_};
}

bool Matrix::gaps_are_untouched() const {
  if (!memory_.front_is_untouched()) return false;
  for (int64_t row = 0; row + 1 < rows_; ++row) {
    uint8_t* begin = value(row, cols_);
    if (!std::all_of(begin, value(row + 1, 0), [this](uint8_t b) { return b == fill_; })) {
      return false;
    }
  }
  return true;
}

ExactProblem make_exact(const Format& format, const ProblemShape& shape, Compute compute,
                        const WeightExtras& extras, int free_octaves, Rng& rng) {
  ExactProblem problem;
  problem.w = empty_weight(format, shape);
  QuantizedTensor& w = problem.w;
  const ElementRange range = range_of(format.element);
  const double half = format.zero == ZeroKind::kFloatCode ? 0.5 : 1;

  // The sum of |x| * (|code| + |zero|), in units, with `spread` octaves of scales above the unit.
  // Wide codes at large K leave no room: keep their low bits only.
  const double limit = std::ldexp(1.0, 24 - free_octaves);
  int kept_bits = format.bits();
  double magnitude = range.magnitude;
  const auto bound = [&] {
    return x_bound(shape.k, compute) * (magnitude + zero_magnitude(format.zero, magnitude)) / half;
  };
  while (bound() > limit && kept_bits > 4) {
    --kept_bits;
    magnitude /= 2;
  }
  const int spread =
      std::min(kMostSpread, static_cast<int>(std::floor(std::log2(limit / bound()))));
  if (spread < 0) die("K is too large for exact data of this Format");

  const int lowest = lowest_exponent(format.scale, spread, rng);
  problem.unit = static_cast<float>(std::ldexp(range.unit * half, lowest));
  const int64_t groups = format.groups(shape.k);
  for (int64_t i = 0; i < shape.n * groups; ++i) {
    double scale = std::ldexp(1.0, lowest + static_cast<int>(rng.between(0, spread)));
    if (format.scale != DType::kE8M0) {
      if (rng.one_in(4)) scale = -scale;
      if (rng.one_in(16)) scale = 0;
    }
    store_scale(w, i, static_cast<float>(scale));
    const auto most = static_cast<int64_t>(magnitude);
    switch (format.zero) {
      case ZeroKind::kNone:
        break;
      case ZeroKind::kInteger:
        w.zeros.mutable_data()[i] = static_cast<uint8_t>(rng.between(0, most));
        break;
      case ZeroKind::kFloatCode: {
        const double zero = static_cast<double>(rng.between(0, 2 * most)) / 2;
        store_from_f32(w.zeros.mutable_data(), format.scale, i, static_cast<float>(zero));
        // BF16 holds halves up to 127.5: what is stored must be what was meant.
        const auto stored = static_cast<double>(load_as_f32(w.zeros.data(), format.scale, i));
        if (std::fmod(stored, 0.5) != 0) die("a zero is not a multiple of the unit");
        break;
      }
      case ZeroKind::kAdditive: {
        const double added = std::ldexp(static_cast<double>(rng.between(-8, 8)), lowest);
        store_from_f32(w.zeros.mutable_data(), format.scale, i, static_cast<float>(added));
        break;
      }
    }
  }
  const int64_t codes = (int64_t{1} << kept_bits) - 1;
  for (int64_t row = 0; row < shape.n; ++row) {
    for (int64_t j = 0; j < shape.k; ++j) {
      auto code = static_cast<uint8_t>(rng.between(0, codes));
      if (format.element == Element::kInt8 && kept_bits < 8) {
        code = static_cast<uint8_t>(code - (1 << (kept_bits - 1)));  // both signs
      }
      set_code(w, row, j, code);
    }
  }
  if (format.element == Element::kNF4) {
    for (int i = 0; i < 16; ++i) w.codebook[static_cast<size_t>(i)] = static_cast<float>(i - 7) / 8;
  }
  add_tensor_scales(w, extras, true, rng);
  if (extras.k_perm) add_permutation(w, rng);
  if (extras.pre_scale) {
    for (int64_t j = 0; j < shape.k; ++j) {
      const double factor =
          std::ldexp(rng.one_in(2) ? 1.0 : -1.0, static_cast<int>(rng.between(-1, 1)));
      w.pre_scale.push_back(static_cast<float>(factor));
    }
  }
  make_exact_x(problem, shape.m, compute, rng);
  if (Status status = w.validate(); !status.ok()) die(status.message().c_str());
  return problem;
}

QuantizedTensor make_random_weight(const Format& format, const ProblemShape& shape,
                                   const WeightExtras& extras, bool one_sided, Rng& rng) {
  QuantizedTensor w = empty_weight(format, shape);
  if (format.element == Element::kNF4) w.codebook = kNf4Codebook;
  const double most = range_of(format.element).magnitude;
  const int64_t groups = format.groups(shape.k);
  for (int64_t i = 0; i < shape.n * groups; ++i) {
    double scale = 0.05 * std::exp(rng.gaussian());
    if (format.scale == DType::kE8M0) scale = std::ldexp(1.0, static_cast<int>(rng.between(-9, 3)));
    if (format.scale == DType::kE4M3) scale *= 20;
    if (format.scale != DType::kE8M0 && !one_sided && rng.one_in(8)) scale = -scale;
    store_scale(w, i, static_cast<float>(scale));
    if (one_sided) continue;  // zero bytes are a zero of 0 in every kind
    switch (format.zero) {
      case ZeroKind::kNone:
        break;
      case ZeroKind::kInteger:
        w.zeros.mutable_data()[i] =
            static_cast<uint8_t>(rng.between(0, static_cast<int64_t>(most)));
        break;
      case ZeroKind::kFloatCode:
        store_from_f32(w.zeros.mutable_data(), format.scale, i,
                       static_cast<float>(most * rng.real()));
        break;
      case ZeroKind::kAdditive:
        store_from_f32(w.zeros.mutable_data(), format.scale, i,
                       static_cast<float>(-scale * most * rng.real()));
        break;
    }
  }
  const int64_t codes = (int64_t{1} << format.bits()) - 1;
  for (int64_t row = 0; row < shape.n; ++row) {
    for (int64_t j = 0; j < shape.k; ++j) {
      auto code = static_cast<uint8_t>(rng.between(0, codes));
      while (one_sided && decode_element(format.element, code, w.codebook.data()) < 0) {
        code = static_cast<uint8_t>(rng.between(0, codes));
      }
      set_code(w, row, j, code);
    }
  }
  add_tensor_scales(w, extras, false, rng);
  if (extras.k_perm) add_permutation(w, rng);
  if (extras.pre_scale) {
    for (int64_t j = 0; j < shape.k; ++j) {
      w.pre_scale.push_back(static_cast<float>(std::exp(0.5 * rng.gaussian())));
    }
  }
  if (Status status = w.validate(); !status.ok()) die(status.message().c_str());
  return w;
}

Matrix make_random_x(DType dtype, const ProblemShape& shape, int64_t gap, bool one_sided,
                     Rng& rng) {
  Matrix x(dtype, shape.m, shape.k, gap, kNanByte);
  for (int64_t row = 0; row < shape.m; ++row) {
    for (int64_t j = 0; j < shape.k; ++j) {
      x.set(row, j, static_cast<float>(one_sided ? rng.real() : rng.gaussian()));
    }
  }
  return x;
}

Matrix make_matrix(DType dtype, const std::vector<float>& values, int64_t rows, int64_t cols,
                   int64_t gap) {
  Matrix out(dtype, rows, cols, gap, kNanByte);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const float value = values[static_cast<size_t>(row * cols + col)];
      out.set(row, col, value);
      if (out.at(row, col) != value) die("exact data does not fit the dtype of x");
    }
  }
  return out;
}

std::vector<Format> formats_of(const KernelRow& row) {
  std::vector<Format> out;
  for (const Element element : {Element::kInt4, Element::kUint4, Element::kE2M1, Element::kNF4,
                                Element::kInt8, Element::kUint8}) {
    for (const int32_t group : {16, 32, 64, 128, 0}) {
      for (const DType scale :
           {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0}) {
        for (const ZeroKind zero :
             {ZeroKind::kNone, ZeroKind::kInteger, ZeroKind::kFloatCode, ZeroKind::kAdditive}) {
          const Format format{element, group, scale, zero};
          if ((row.elements & bit(element)) != 0 && (row.scale_dtypes & bit(scale)) != 0 &&
              (row.zero_kinds & bit(zero)) != 0 && (group == 0 || group >= row.min_group) &&
              format.validate().ok()) {
            out.push_back(format);
          }
        }
      }
    }
  }
  return out;
}

std::vector<Format> some_formats(const KernelRow& row, int count) {
  const std::vector<Format> all = formats_of(row);
  std::vector<Format> out;
  const size_t step = std::max<size_t>(1, all.size() / static_cast<size_t>(count));
  for (size_t i = 0; i < all.size(); i += step) out.push_back(all[i]);
  return out;
}

}  // namespace nibble::harness
