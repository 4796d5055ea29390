// The C face: handles around the C++ objects, Status into a thread's last error, and nothing
// thrown.
#include "nibble/c_api.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>

#include "nibble/core.h"
#include "nibble/ops.h"
#include "nibble/pack.h"
#include "nibble/quantize.h"

struct nibble_quantized {
  nibble::QuantizedTensor tensor;
};
struct nibble_packed {
  nibble::PackedWeight weight;
};
struct nibble_linear {
  nibble::Linear op;
  std::unique_ptr<nibble::ThreadPool> pool;  // null: the process's
};

namespace {

using nibble::Result;
using nibble::Status;

thread_local std::string last_error;  // NOLINT: nibble_last_error is per thread by contract

nibble_status status_of(nibble::Code code) {
  switch (code) {
    case nibble::Code::kOk:
      return NIBBLE_OK;
    case nibble::Code::kInvalidArgument:
      return NIBBLE_INVALID_ARGUMENT;
    case nibble::Code::kUnsupported:
      return NIBBLE_UNSUPPORTED;
    case nibble::Code::kCorruptFile:
      return NIBBLE_CORRUPT_FILE;
    case nibble::Code::kIo:
      return NIBBLE_IO;
    case nibble::Code::kOutOfMemory:
      return NIBBLE_OUT_OF_MEMORY;
    case nibble::Code::kCuda:
      return NIBBLE_CUDA;
    case nibble::Code::kInternal:
      return NIBBLE_INTERNAL;
  }
  return NIBBLE_INTERNAL;
}

/// Runs `body`, which returns a Status, and turns whatever happens into a nibble_status.
template <class Body>
nibble_status guarded(const Body& body) {
  nibble_status code = NIBBLE_INTERNAL;
  try {
    const Status status = body();
    if (status.ok()) return NIBBLE_OK;
    code = status_of(status.code());
    last_error = status.message();
  } catch (const std::bad_alloc&) {
    code = NIBBLE_OUT_OF_MEMORY;
    last_error.assign("out of memory");  // short enough for the string's own storage
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error.assign("unknown error");
  }
  return code;
}

Status null_argument(const char* name) {
  return nibble::invalid_argument(std::string(name) + " is NULL");
}

/// The caller's struct must at least reach the fields of this version.
template <class Struct>
Status check_struct(const Struct* value, const char* name) {
  if (value == nullptr) return null_argument(name);
  if (value->struct_size >= sizeof(Struct)) return {};
  return nibble::invalid_argument(std::string(name) +
                                  "->struct_size = " + std::to_string(value->struct_size) +
                                  ", this version needs " + std::to_string(sizeof(Struct)));
}

Result<nibble::DType> dtype_of(int32_t dtype) {
  switch (dtype) {
    case NIBBLE_F32:
      return nibble::DType::kF32;
    case NIBBLE_F16:
      return nibble::DType::kF16;
    case NIBBLE_BF16:
      return nibble::DType::kBF16;
  }
  return nibble::invalid_argument("dtype " + std::to_string(dtype) + " is not a nibble_dtype");
}

Result<nibble::Activation> activation_of(int32_t activation) {
  switch (activation) {
    case NIBBLE_NO_ACTIVATION:
      return nibble::Activation::kNone;
    case NIBBLE_RELU:
      return nibble::Activation::kRelu;
    case NIBBLE_SILU:
      return nibble::Activation::kSilu;
    case NIBBLE_GELU_TANH:
      return nibble::Activation::kGeluTanh;
    case NIBBLE_GELU_ERF:
      return nibble::Activation::kGeluErf;
  }
  return nibble::invalid_argument("activation " + std::to_string(activation) +
                                  " is not a nibble_activation");
}

Result<nibble::MutableMatrixView> view_of(const nibble_matrix* matrix, const char* name) {
  NIBBLE_RETURN_IF_ERROR(check_struct(matrix, name));
  NIBBLE_ASSIGN_OR_RETURN(const nibble::DType dtype, dtype_of(matrix->dtype));
  nibble::MutableMatrixView view =
      nibble::dense_matrix(matrix->data, dtype, matrix->rows, matrix->cols);
  if (matrix->stride_bytes != 0) view.stride_bytes = matrix->stride_bytes;
  return view;
}

nibble::MatrixView read_only(const nibble::MutableMatrixView& v) {
  return {v.data, v.dtype, v.rows, v.cols, v.stride_bytes};
}

Result<nibble::Epilogue> epilogue_of(const nibble_epilogue* given) {
  nibble::Epilogue epilogue;
  if (given == nullptr) return epilogue;
  NIBBLE_RETURN_IF_ERROR(check_struct(given, "epilogue"));
  epilogue.alpha = given->alpha;
  epilogue.beta = given->beta;
  if (given->c != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(const auto c, view_of(given->c, "epilogue->c"));
    epilogue.c = read_only(c);
  }
  if (given->residual != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(const auto residual, view_of(given->residual, "epilogue->residual"));
    epilogue.residual = read_only(residual);
  }
  epilogue.bias = given->bias;
  NIBBLE_ASSIGN_OR_RETURN(epilogue.bias_dtype, dtype_of(given->bias_dtype));
  NIBBLE_ASSIGN_OR_RETURN(epilogue.activation, activation_of(given->activation));
  return epilogue;
}

std::string doctor_text() {
  const nibble::DoctorReport report = nibble::doctor();
  std::string text = std::string("nibble ") + nibble::version() + "\ncpu: " + report.cpu.name +
                     ", " + std::to_string(report.cpu.threads) + " threads\ninstruction sets:";
  for (int i = 0; i < nibble::kNumIsas; ++i) {
    const auto isa = static_cast<nibble::Isa>(i);
    if (report.cpu.has(isa)) text += std::string(" ") + nibble::isa_name(isa);
  }
  text += "\ncuda: " + report.cuda + "\n";
  for (const nibble::Device& gpu : report.gpus) {
    text += "gpu " + std::to_string(gpu.index) + ": " + gpu.name + ", sm_" +
            std::to_string(gpu.sm) + "\n";
  }
  text += "kernels: " + std::to_string(nibble::kernels().size()) + "\n";
  return text;
}

}  // namespace

extern "C" {

const char* nibble_version(void) { return nibble::version(); }

const char* nibble_last_error(void) { return last_error.c_str(); }

size_t nibble_doctor(char* text, size_t capacity) {
  size_t needed = 0;
  static_cast<void>(guarded([&]() -> Status {
    const std::string full = doctor_text();
    needed = full.size() + 1;
    if (text != nullptr && capacity > 0) {
      const size_t copied = std::min(full.size(), capacity - 1);
      std::memcpy(text, full.data(), copied);
      text[copied] = '\0';
    }
    return {};
  }));
  return needed;
}

nibble_status nibble_quantize(const nibble_matrix* weight, const char* format, int threads,
                              nibble_quantized** out) {
  return guarded([&]() -> Status {
    if (out == nullptr) return null_argument("out");
    if (format == nullptr) return null_argument("format");
    NIBBLE_ASSIGN_OR_RETURN(const auto w, view_of(weight, "weight"));
    if (w.data == nullptr) return null_argument("weight->data");
    if (w.stride_bytes != w.cols * nibble::dtype_bytes(w.dtype)) {
      return nibble::invalid_argument("weight rows are " + std::to_string(w.stride_bytes) +
                                      " bytes apart; a dense one is needed");
    }
    NIBBLE_ASSIGN_OR_RETURN(const nibble::Format parsed, nibble::Format::parse(format));
    const auto pool = nibble::make_thread_pool(threads);
    nibble::QuantizeOptions options;
    options.pool = pool.get();
    options.name = "weight";
    NIBBLE_ASSIGN_OR_RETURN(auto tensor,
                            nibble::quantize({w.data, w.dtype, {w.rows, w.cols}}, parsed, options));
    *out = new nibble_quantized{std::move(tensor)};
    return {};
  });
}

void nibble_quantized_free(nibble_quantized* quantized) { delete quantized; }

nibble_status nibble_quantized_shape(const nibble_quantized* quantized, int64_t* n, int64_t* k) {
  return guarded([&]() -> Status {
    if (quantized == nullptr) return null_argument("quantized");
    if (n != nullptr) *n = quantized->tensor.n;
    if (k != nullptr) *k = quantized->tensor.k;
    return {};
  });
}

int64_t nibble_quantized_bytes(const nibble_quantized* quantized) {
  return quantized == nullptr ? 0 : quantized->tensor.stored_bytes();
}

nibble_status nibble_dequantize(const nibble_quantized* quantized, float* out) {
  return guarded([&]() -> Status {
    if (quantized == nullptr) return null_argument("quantized");
    if (out == nullptr) return null_argument("out");
    quantized->tensor.dequantize(0, quantized->tensor.n, out);
    return {};
  });
}

nibble_status nibble_pack(const nibble_quantized* quantized, const char* layout, int threads,
                          nibble_packed** out) {
  return guarded([&]() -> Status {
    if (quantized == nullptr) return null_argument("quantized");
    if (out == nullptr) return null_argument("out");
    const auto chosen = layout != nullptr ? nibble::Layout::parse(layout)
                                          : nibble::preferred_layout(quantized->tensor.format,
                                                                     nibble::Device::this_cpu());
    if (!chosen.ok()) return chosen.status();
    const auto pool = nibble::make_thread_pool(threads);
    NIBBLE_ASSIGN_OR_RETURN(auto weight, nibble::pack(quantized->tensor, *chosen, pool.get()));
    *out = new nibble_packed{std::move(weight)};
    return {};
  });
}

void nibble_packed_free(nibble_packed* packed) { delete packed; }

int64_t nibble_packed_bytes(const nibble_packed* packed) {
  return packed == nullptr ? 0 : packed->weight.info.bytes;
}

nibble_status nibble_linear_create(const nibble_packed* packed,
                                   const nibble_linear_options* options, nibble_linear** out) {
  return guarded([&]() -> Status {
    if (packed == nullptr) return null_argument("packed");
    if (out == nullptr) return null_argument("out");
    nibble::LinearOptions chosen;
    std::unique_ptr<nibble::ThreadPool> pool;
    if (options != nullptr) {
      NIBBLE_RETURN_IF_ERROR(check_struct(options, "options"));
      if (options->compute != NIBBLE_EXACT && options->compute != NIBBLE_INT8) {
        return nibble::invalid_argument("compute " + std::to_string(options->compute) +
                                        " is not a nibble_compute");
      }
      chosen.compute =
          options->compute == NIBBLE_INT8 ? nibble::Compute::kInt8 : nibble::Compute::kExact;
      if (options->threads > 0) pool = nibble::make_thread_pool(options->threads);
      chosen.pool = pool.get();
    }
    NIBBLE_ASSIGN_OR_RETURN(auto op, nibble::Linear::create(packed->weight, chosen));
    *out = new nibble_linear{std::move(op), std::move(pool)};
    return {};
  });
}

void nibble_linear_free(nibble_linear* linear) { delete linear; }

nibble_status nibble_linear_run(const nibble_linear* linear, const nibble_matrix* x,
                                const nibble_matrix* y, const nibble_epilogue* epilogue) {
  return guarded([&]() -> Status {
    if (linear == nullptr) return null_argument("linear");
    NIBBLE_ASSIGN_OR_RETURN(const auto from, view_of(x, "x"));
    NIBBLE_ASSIGN_OR_RETURN(const auto to, view_of(y, "y"));
    NIBBLE_ASSIGN_OR_RETURN(const nibble::Epilogue after, epilogue_of(epilogue));
    return linear->op.run(read_only(from), to, after);
  });
}

}  // extern "C"
