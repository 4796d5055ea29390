// Nibble's vocabulary: Status, tensors, Formats, QuantizedTensor, Layout, PackedWeight, Device and
// ThreadPool. Every other header builds on this one.
#ifndef NIBBLE_CORE_H_
#define NIBBLE_CORE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "nibble/types.h"

namespace nibble {

// ---------------------------------------------------------------------------------- Status

/// Why a call failed; docs/adr says when which code is used.
enum class Code : uint8_t {
  kOk,
  kInvalidArgument,  ///< the caller's values break a stated rule
  kUnsupported,      ///< legal values that this build or device has no row for
  kCorruptFile,      ///< a file's content contradicts its format
  kIo,               ///< the operating system refused: missing file, permission, full disk
  kOutOfMemory,
  kCuda,
  kInternal,  ///< a bug of the library
};
const char* code_name(Code code);

/// Outcome of a call. The message holds the values and the rule: "k = 4100 is not a multiple of 8".
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  /// The same status with "context: " before its message; unchanged when ok.
  Status with_context(std::string_view context) &&;

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

inline Status ok_status() { return {}; }
inline Status invalid_argument(std::string m) { return {Code::kInvalidArgument, std::move(m)}; }
inline Status unsupported(std::string m) { return {Code::kUnsupported, std::move(m)}; }
inline Status corrupt_file(std::string m) { return {Code::kCorruptFile, std::move(m)}; }
inline Status io_error(std::string m) { return {Code::kIo, std::move(m)}; }
inline Status out_of_memory(std::string m) { return {Code::kOutOfMemory, std::move(m)}; }
inline Status internal_error(std::string m) { return {Code::kInternal, std::move(m)}; }

/// A value or the Status that says why there is none. `value()` may be called only when `ok()`.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT: implicit by design
  Result(Status status) : status_(std::move(status)) {  // NOLINT: implicit by design
    if (status_.ok()) status_ = internal_error("a Result was made from an ok Status");
  }
  bool ok() const { return status_.ok(); }
  const Status& status() const& { return status_; }
  Status status() && { return std::move(status_); }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return *std::move(value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

#define NIBBLE_CONCAT_(a, b) a##b
#define NIBBLE_CONCAT(a, b) NIBBLE_CONCAT_(a, b)
/// Returns the Status of `expr` from the enclosing function unless it is ok.
#define NIBBLE_RETURN_IF_ERROR(expr)                                                           \
  do {                                                                                         \
    if (::nibble::Status nibble_status_ = (expr); !nibble_status_.ok()) return nibble_status_; \
  } while (false)
/// `NIBBLE_ASSIGN_OR_RETURN(auto x, make_x())`.
#define NIBBLE_ASSIGN_OR_RETURN(lhs, expr) \
  NIBBLE_ASSIGN_OR_RETURN_(NIBBLE_CONCAT(nibble_result_, __LINE__), lhs, expr)
#define NIBBLE_ASSIGN_OR_RETURN_(result, lhs, expr)    \
  auto result = (expr);                                \
  if (!result.ok()) return std::move(result).status(); \
  lhs = std::move(result).value()

// ---------------------------------------------------------------------------------- numbers

/// Bytes of one value.
int64_t dtype_bytes(DType dtype);
/// Lower-case name: "f32", "bf16", "e4m3", "u8", …
const char* dtype_name(DType dtype);
Result<DType> parse_dtype(std::string_view name);
constexpr bool is_activation_dtype(DType d) {
  return d == DType::kF32 || d == DType::kF16 || d == DType::kBF16;
}

/// Conversions. To f32 they are exact; from f32 they round to nearest, ties to even.
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);  ///< overflow gives infinity, as IEEE 754 says
float e4m3_to_f32(uint8_t bits);
uint8_t f32_to_e4m3(float value);  ///< saturates at 448; NaN stays NaN (0x7F with the sign)
float e8m0_to_f32(uint8_t bits);
float e2m1_to_f32(uint8_t code);   ///< code 0..15; bit 3 is the sign; -0 gives -0
uint8_t f32_to_e2m1(float value);  ///< ties to the even code, saturates at 6; NaN gives 0
/// Value `index` of an array of f32, f16, bf16, e4m3, e8m0 or f64 values, exact but for f64.
float load_as_f32(const void* data, DType dtype, int64_t index);
/// Rounds `value` into element `index` of an array of f32, f16, bf16 or e4m3 values.
void store_from_f32(void* data, DType dtype, int64_t index, float value);

/// The 16 NF4 quantiles as QLoRA checkpoints store them.
extern const std::array<float, 16> kNf4Codebook;

// ---------------------------------------------------------------------------------- memory

/// Bytes with shared ownership: allocated here (256-byte aligned), or a view of somebody's memory
/// (a mapped file, the caller's array). Copies share the bytes.
class Buffer {
 public:
  Buffer() = default;
  /// Uninitialised memory, 256-byte aligned, with at least 64 readable bytes after its end.
  static Result<Buffer> allocate(int64_t bytes);
  /// A view; `owner` (may be null) keeps the memory alive as long as a copy exists.
  static Buffer view(const void* data, int64_t bytes, std::shared_ptr<const void> owner = nullptr);
  static Buffer mutable_view(void* data, int64_t bytes, std::shared_ptr<void> owner = nullptr);
  /// Memory of a GPU: `data` must not be read by the host.
  static Buffer device_view(const void* data, int64_t bytes, std::shared_ptr<const void> owner);

  const uint8_t* data() const { return data_; }
  /// Null for read-only views.
  uint8_t* mutable_data() { return writable_ ? const_cast<uint8_t*>(data_) : nullptr; }
  int64_t bytes() const { return bytes_; }
  bool empty() const { return bytes_ == 0; }
  Backend memory() const { return memory_; }  ///< where the bytes lie
  std::span<const uint8_t> span() const { return {data_, static_cast<size_t>(bytes_)}; }
  /// The part [offset, offset + bytes), sharing ownership.
  Buffer slice(int64_t offset, int64_t bytes) const;

 private:
  const uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
  bool writable_ = false;
  Backend memory_ = Backend::kCpu;
  std::shared_ptr<const void> owner_;
};

/// A dense tensor in row-major order, not owned.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t elements() const;
  int64_t bytes() const { return elements() * dtype_bytes(dtype); }
};

/// A matrix whose rows lie `stride_bytes` apart; columns are dense. Not owned.
template <class Pointer>
struct BasicMatrixView {
  Pointer data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  int64_t stride_bytes = 0;
};
using MatrixView = BasicMatrixView<const void*>;
using MutableMatrixView = BasicMatrixView<void*>;
template <class T>
BasicMatrixView<T*> dense_matrix(T* data, DType dtype, int64_t rows, int64_t cols) {
  return {data, dtype, rows, cols, cols * dtype_bytes(dtype)};
}

/// a * b, or nullopt when it does not fit in 63 bits or an operand is negative.
std::optional<int64_t> checked_product(int64_t a, int64_t b);
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---------------------------------------------------------------------------------- Format

/// What the bits of a weight mean. Grammar of a name (docs/formats.md):
///   element "-" group [":" scale] [":" zero]     or     "nvfp4" | "mxfp4"
///   element: int4 uint4 int8 uint8 fp4 nf4;  group: g16 g32 g64 g128 channel;
///   scale: f32 f16 bf16 e4m3 e8m0 (default bf16 for integers, f32 for fp4 and nf4);
///   zero: zint zfloat zadd (default zint for uint4 and uint8, none otherwise).
/// nvfp4 = fp4-g16:e4m3 with an f32 tensor scale; mxfp4 = fp4-g32:e8m0.
struct Format {
  Element element = Element::kInt4;
  int32_t group = 128;  ///< columns per scale; 0: the whole row
  DType scale = DType::kBF16;
  ZeroKind zero = ZeroKind::kNone;

  static Result<Format> parse(std::string_view name);
  std::string name() const;         ///< shortest name that parses to this Format
  int bits() const;                 ///< 4 or 8
  DType zero_dtype() const;         ///< u8 for kInteger, else the scale's dtype
  int64_t groups(int64_t k) const;  ///< scales per row: ceil(k / group), 1 for the whole row
  int64_t group_columns(int64_t k) const { return group == 0 ? k : group; }
  int64_t code_row_bytes(int64_t k) const { return ceil_div(k * bits(), 8); }
  /// Stored bits per weight of an [n, k] matrix, scales and zeros included.
  double bits_per_weight(int64_t k) const;
  Status validate() const;
  bool operator==(const Format&) const = default;
};
/// The Formats that documents and tests walk: every named one.
std::span<const char* const> named_formats();

/// Value of one code without scale: the element's number (integers as themselves).
/// `codebook`: 16 floats, used by kNF4 only.
float decode_element(Element element, uint8_t code, const float* codebook);

/// A tensor scale for rows [row_begin, next segment's row_begin).
struct TensorScale {
  int64_t row_begin = 0;
  float value = 1;
  bool operator==(const TensorScale&) const = default;
};
inline constexpr int kMaxTensorScales = 8;

/// A weight in one plain canonical order; nothing is padded. docs/formats.md has the rules.
struct QuantizedTensor {
  Format format;
  int64_t n = 0, k = 0;  ///< true sizes: n outputs, k inputs
  Buffer codes;          ///< [n, ceil(k*bits/8)], low bits first along K
  Buffer scales;         ///< [n, groups] in format.scale
  Buffer zeros;          ///< [n, groups] in format.zero_dtype(); empty for kNone
  /// Empty (no tensor scale) or up to kMaxTensorScales segments, the first at row 0.
  std::vector<TensorScale> tensor_scales;
  TensorScaleOp tensor_scale_op = TensorScaleOp::kMultiply;
  /// Stored column j meets x[k_perm[j]]; groups count stored columns. Empty: identity.
  std::vector<int32_t> k_perm;
  /// [k] in original order: y = W (x * pre_scale), before the permutation. Empty: none.
  std::vector<float> pre_scale;
  std::array<float, 16> codebook{};  ///< kNF4 only

  /// Sizes of all parts, ranges of k_perm, no NaN scale: everything a consumer relies on.
  Status validate() const;
  uint8_t code(int64_t row, int64_t stored_column) const;
  /// RN32(value * RN32(scale op tensor_scale)) of one stored column; see docs/numerics.md.
  float decode(int64_t row, int64_t stored_column) const;
  /// The specification: rows [row_begin, row_end) in original column order, without pre_scale.
  /// `out` holds (row_end - row_begin) * k floats.
  void dequantize(int64_t row_begin, int64_t row_end, float* out) const;
  int64_t stored_bytes() const { return codes.bytes() + scales.bytes() + zeros.bytes(); }
};
/// Bit-for-bit equality of every part.
bool identical(const QuantizedTensor& a, const QuantizedTensor& b);
/// A tensor of `format` with allocated, zero-filled parts (scales are zero bytes).
Result<QuantizedTensor> make_quantized_tensor(const Format& format, int64_t n, int64_t k);

// ---------------------------------------------------------------------------------- Layout

/// Where the codes lie for one family of kernels.
struct Layout {
  LayoutId id = LayoutId::kRowMajor;
  bool paired = false;  ///< gate and up rows interleaved in each panel of 16

  static Result<Layout> parse(std::string_view name);  ///< "row_major", "cuda_frag16[-paired]", …
  std::string name() const;
  int64_t tile_n() const;  ///< n_padded is a multiple of this
  int64_t tile_k() const;  ///< k_padded is a multiple of this
  /// Position of the first bit of code (row, column) in the codes section, counted from its start;
  /// row and column are those of the QuantizedTensor (paired rows are mapped inside).
  int64_t offset_bits(int64_t row, int64_t column, const struct PackedWeightInfo& info) const;
  /// Position of scale and zero (row, group) in their sections, in values.
  int64_t scale_index(int64_t row, int64_t group, const struct PackedWeightInfo& info) const;
  /// Row of the padded order in which row `row` of the tensor lies.
  int64_t packed_row(int64_t row, int64_t n) const;
  bool operator==(const Layout&) const = default;
};
inline constexpr int kLayoutVersion = 1;
/// A stored code is the element's code XOR this: panel16 keeps int4 as q+8 and int8
/// as q+128; frag16 keeps int4 as q+8 and uint8 as q-128.
uint8_t layout_code_xor(LayoutId layout, Element element);
/// Groups in a block of 64 columns of cuda_frag16; 1 where a group is as long or longer.
int64_t groups_per_fragment_block(const Format& format);

/// Parts of a packed weight, each at an offset that is a multiple of 256 bytes.
enum class SectionId : uint8_t { kCodes, kScales, kZeros, kRowScale, kRowShift, kKPerm, kPreScale };
inline constexpr int kNumSections = 7;
struct Section {
  int64_t offset = 0;
  int64_t bytes = 0;  ///< 0: absent
};

/// Everything about a packed weight except its bytes; plain data.
struct PackedWeightInfo {
  Format format;
  Layout layout;
  int32_t layout_version = kLayoutVersion;
  int64_t n = 0, k = 0;  ///< true sizes
  int64_t n_padded = 0, k_padded = 0;
  int64_t num_groups = 0;  ///< groups per row as laid out
  TensorScaleOp tensor_scale_op = TensorScaleOp::kMultiply;
  int32_t num_tensor_scales = 0;
  std::array<TensorScale, kMaxTensorScales> tensor_scales{};
  std::array<float, 16> codebook{};
  std::array<Section, kNumSections> sections{};
  int64_t bytes = 0;  ///< of the whole buffer

  const Section& section(SectionId id) const { return sections[static_cast<size_t>(id)]; }
  Section& section(SectionId id) { return sections[static_cast<size_t>(id)]; }
  bool has(SectionId id) const { return section(id).bytes > 0; }
  bool paired() const { return layout.paired; }
  int64_t output_columns() const { return paired() ? n / 2 : n; }
};

/// Fills the padded sizes, the section table and `bytes` of an info whose format, layout, n, k and
/// num_tensor_scales are set. Errors: a paired layout with odd n, sizes that overflow.
Status lay_out(PackedWeightInfo& info, bool has_k_perm, bool has_pre_scale);

/// Codes, scales and metadata in a Layout: the only thing that crosses from preparation to
/// execution. Owned, or a view of the caller's memory (`view` in pack.h).
struct PackedWeight {
  PackedWeightInfo info;
  Buffer buffer;  ///< one allocation with all sections; empty for views of separate arrays
  std::array<Buffer, kNumSections> parts;  ///< slices of `buffer`, or the caller's arrays
  const uint8_t* section(SectionId id) const { return parts[static_cast<size_t>(id)].data(); }
};

// ---------------------------------------------------------------------------------- Device

/// What a plan needs to know of a machine: a struct of numbers, so that plans for machines that are
/// not here can be made and tested.
struct Device {
  Backend backend = Backend::kCpu;
  std::string name;
  // CPU
  uint32_t isas = bit(Isa::kScalar);  ///< bits(Isa...)
  int32_t threads = 1;                ///< cores this process may run on
  int64_t l1_bytes = 32 << 10, l2_bytes = 1 << 20, l3_bytes = 16 << 20;
  // CUDA
  int32_t sm = 0;  ///< compute capability * 10, e.g. 90
  int32_t num_sms = 0;
  int64_t shared_bytes = 0;  ///< largest dynamic shared memory of a block
  double read_gb_per_s = 0;  ///< memory bandwidth, for cost and reports
  int32_t index = 0;         ///< CUDA ordinal

  /// This machine's CPU, detected once.
  static const Device& this_cpu();
  /// A machine by name: "cpu" (this one), "h200", "thor", "orin", "rtx4090",
  /// "avx2-laptop", and the CPUs beside some GPUs: "orin-cpu", "thor-cpu", "grace".
  static Result<Device> named(std::string_view name);
  static std::span<const char* const> names();
  /// The same CPU limited to instruction sets up to `isa`; an error when it lacks `isa`.
  Result<Device> with_isa(Isa isa) const;
  bool has(Isa isa) const { return (isas & bit(isa)) != 0; }
  Isa best_isa() const;
};
/// "scalar", "avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "neon", "neon_dotprod", "neon_i8mm",
/// "neon_bf16".
const char* isa_name(Isa isa);
Result<Isa> parse_isa(std::string_view name);
const char* layout_name(LayoutId id);
const char* compute_name(Compute compute);
Result<Compute> parse_compute(std::string_view name);
const char* activation_name(Activation activation);
const char* element_name(Element element);
const char* x_form_name(XForm form);

/// The activation in double precision: the specification of every fused activation.
double activate(Activation activation, double value);

// ---------------------------------------------------------------------------------- threads

/// Runs fn(ctx, i) for i in [0, n) and returns when all are done. Ours is `make_thread_pool`;
/// a caller's own pool is another implementation.
class ThreadPool {
 public:
  using Fn = void (*)(void* ctx, int64_t index);
  virtual ~ThreadPool() = default;
  virtual int num_threads() const = 0;
  /// Calls from several threads at once are allowed and run one after the other; fn must not call
  /// parallel_for of the same pool.
  virtual void parallel_for(int64_t n, Fn fn, void* ctx) = 0;
  /// The same for a callable.
  template <class F>
  void for_each(int64_t n, F&& f) {
    using Callable = std::remove_reference_t<F>;
    void* ctx = const_cast<void*>(static_cast<const void*>(&f));
    parallel_for(n, [](void* each, int64_t i) { (*static_cast<Callable*>(each))(i); }, ctx);
  }
};
/// A pool of `threads` threads including the caller's (0: all this process may use). Workers spin
/// briefly, then park; after a fork the child starts its own workers at its first call.
std::unique_ptr<ThreadPool> make_thread_pool(int threads = 0);

/// "0.1.0"
const char* version();

}  // namespace nibble

#endif  // NIBBLE_CORE_H_
