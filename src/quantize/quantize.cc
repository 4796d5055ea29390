#include "nibble/quantize.h"

#include <algorithm>

#include "quantize/bands.h"
#include "quantize/quantize_with.h"
#include "quantize/rules.h"

namespace nibble {
namespace {

/// Weights of a band: enough that handing it out costs nothing beside the work.
constexpr int64_t kBandWeights = 64 << 10;

std::string shape_text(const TensorView& w) {
  std::string text = "[";
  for (size_t i = 0; i < w.shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(w.shape[i]);
  }
  return text + "]";
}

std::string prefix(const QuantizeOptions& options) {
  return options.name.empty() ? "" : options.name + ": ";
}

Status check(const TensorView& w, const Format& format, const QuantizeOptions& options) {
  const auto wrong = [&](const std::string& why) {
    return invalid_argument(prefix(options) + why);
  };
  if (Status status = format.validate(); !status.ok()) return wrong(status.message());
  if (w.shape.size() != 2) return wrong("a weight is [n, k], not " + shape_text(w));
  if (w.shape[0] < 1 || w.shape[1] < 1) {
    return wrong("n and k must be at least 1, not " + shape_text(w));
  }
  if (!is_activation_dtype(w.dtype)) {
    return wrong(std::string("a weight to quantize is f32, f16 or bf16, not ") +
                 dtype_name(w.dtype));
  }
  const auto elements = checked_product(w.shape[0], w.shape[1]);
  if (!elements || !checked_product(*elements, dtype_bytes(w.dtype))) {
    return wrong("the size of " + shape_text(w) + " overflows");
  }
  if (w.data == nullptr) return wrong("the weight's data is null");
  return {};
}

Status trouble_status(const BandResult& result, const TensorView& w, const Format& format,
                      const QuantizeOptions& options) {
  const int64_t index = result.row * w.shape[1] + result.column;
  std::string place = "[";
  place += std::to_string(result.row) + ", " + std::to_string(result.column) + "]";
  const auto group_text = [&](const char* what) {
    return invalid_argument(prefix(options) + "the " + what + " of the group at " + place +
                            " is above " + dtype_name(format.scale) +
                            "'s largest value 65504; bf16 and f32 scales have the range");
  };
  switch (result.trouble) {
    case Trouble::kNone:
      return {};
    case Trouble::kNotFinite: {
      const std::string value =
          std::to_string(load_as_f32(w.data, w.dtype, index));  // "inf", "-nan"
      return invalid_argument(prefix(options) + "weight " + place + " (index " +
                              std::to_string(index) + ") is " + value +
                              "; only finite weights can be quantized");
    }
    case Trouble::kScaleOverflow:
      return group_text("scale");
    case Trouble::kZeroOverflow:
      return group_text("zero");
  }
  return {};
}

/// Columns converted to f32 at a time: small enough for the first-level cache, a multiple of every
/// group but the whole row.
constexpr int64_t kPieceColumns = 2048;

Band whole_tensor(const TensorView& w, QuantizedTensor& q, const TensorRules& rules) {
  Band band;
  band.rules = &rules;
  band.w = static_cast<const uint8_t*>(w.data);
  band.dtype = w.dtype;
  band.k = q.k;
  band.row_end = q.n;
  band.group_columns = q.format.group_columns(q.k);
  band.num_groups = q.format.groups(q.k);
  band.code_row_bytes = q.format.code_row_bytes(q.k);
  band.piece_columns = q.format.group == 0 ? q.k : kPieceColumns;
  band.codes = q.codes.mutable_data();
  band.scales = q.scales.mutable_data();
  band.zeros = q.zeros.mutable_data();
  return band;
}

/// Runs `function` over bands of rows, on the pool's threads where there is a pool. Bands depend
/// on the shape alone, and the first band in trouble decides the message.
std::vector<BandResult> run_bands(const Band& whole, BandResult (*function)(const Band&),
                                  ThreadPool* pool) {
  const int64_t rows = std::max<int64_t>(1, kBandWeights / whole.k);
  const int64_t bands = ceil_div(whole.row_end, rows);
  std::vector<BandResult> results(static_cast<size_t>(bands));
  const auto run = [&](int64_t i) {
    std::vector<float> scratch(
        static_cast<size_t>(std::min(whole.k, whole.piece_columns) + kScratchSlack));
    Band band = whole;
    band.row_begin = i * rows;
    band.row_end = std::min(whole.row_end, (i + 1) * rows);
    band.scratch = scratch.data();
    results[static_cast<size_t>(i)] = function(band);
  };
  if (pool != nullptr) {
    pool->for_each(bands, run);
  } else {
    for (int64_t i = 0; i < bands; ++i) run(i);
  }
  return results;
}

BandResult first_trouble(const std::vector<BandResult>& results) {
  for (const BandResult& result : results) {
    if (result.trouble != Trouble::kNone) return result;
  }
  return {};
}

}  // namespace

std::span<const BandFunctions* const> usable_band_functions() {
  static const std::vector<const BandFunctions*> usable = [] {
    std::vector<const BandFunctions*> found = {&kBandsScalar};
#if NIBBLE_HAVE_X86_ISA
    for (const BandFunctions* each : {&kBandsAvx2, &kBandsAvx512}) {
      if (Device::this_cpu().has(each->isa)) found.push_back(each);
    }
#endif
    return found;
  }();
  return usable;
}

Result<QuantizedTensor> quantize_with(const BandFunctions& functions, const TensorView& w,
                                      const Format& format, const QuantizeOptions& options) {
  NIBBLE_RETURN_IF_ERROR(check(w, format, options));
  const int64_t n = w.shape[0], k = w.shape[1];
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor q, make_quantized_tensor(format, n, k));

  TensorRules rules = make_tensor_rules(format, options, {});
  const Band whole = whole_tensor(w, q, rules);
  if (has_tensor_scale(format)) {
    const auto parts = run_bands(whole, functions.scan, options.pool);
    NIBBLE_RETURN_IF_ERROR(trouble_status(first_trouble(parts), w, format, options));
    TensorRange range;
    for (const BandResult& part : parts) {
      range.amax = std::max(range.amax, part.range.amax);
      range.min = std::min(range.min, part.range.min);
      range.max = std::max(range.max, part.range.max);
    }
    rules = make_tensor_rules(format, options, range);
    q.tensor_scales = {{0, rules.tensor_scale}};
    q.tensor_scale_op = rules.tensor_scale_op;
  }
  const auto run = functions.quantize[static_cast<size_t>(code_kind(format.element))];
  const auto parts = run_bands(whole, run, options.pool);
  NIBBLE_RETURN_IF_ERROR(trouble_status(first_trouble(parts), w, format, options));
  return q;
}

Result<QuantizedTensor> quantize(const TensorView& w, const Format& format,
                                 const QuantizeOptions& options) {
  return quantize_with(*usable_band_functions().back(), w, format, options);
}

}  // namespace nibble
