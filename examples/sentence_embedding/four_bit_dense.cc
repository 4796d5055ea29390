// A dense layer whose work is nibble's: a quantized weight, packed for this CPU and multiplied by
// nibble::Linear, with bias, activation and residual in its epilogue.
#include <string>

#include "dense_layer.h"
#include "nibble/pack.h"
#include "nibble/plan.h"

namespace sentence_embedding {

using nibble::DType;
using nibble::Result;
using nibble::Status;

Result<std::unique_ptr<DenseLayer>> FourBitDense::create(const nibble::QuantizedTensor& weight,
                                                         std::span<const float> bias,
                                                         const nibble::LinearOptions& options) {
  if (static_cast<int64_t>(bias.size()) != weight.n) {
    return nibble::invalid_argument("the bias has " + std::to_string(bias.size()) +
                                    " values, the weight n = " + std::to_string(weight.n));
  }
  NIBBLE_ASSIGN_OR_RETURN(const nibble::Layout layout,
                          nibble::preferred_layout(weight.format, options.device));
  NIBBLE_ASSIGN_OR_RETURN(nibble::PackedWeight packed, nibble::pack(weight, layout, options.pool));
  NIBBLE_ASSIGN_OR_RETURN(nibble::Linear linear,
                          nibble::Linear::create(std::move(packed), options));
  return std::unique_ptr<DenseLayer>(new FourBitDense(std::move(linear), bias));
}

Status FourBitDense::run(const DenseCall& call, nibble::ThreadPool& pool) const {
  const nibble::PackedWeightInfo& info = linear_.info();
  nibble::Epilogue epilogue;
  epilogue.bias = bias_.data();
  epilogue.activation = call.activation;
  if (call.residual != nullptr) {
    epilogue.residual =
        nibble::dense_matrix<const void>(call.residual, DType::kF32, call.m, info.n);
  }
  nibble::RunContext context;
  context.pool = &pool;
  return linear_.run(nibble::dense_matrix<const void>(call.x, DType::kF32, call.m, info.k),
                     nibble::dense_matrix<void>(call.y, DType::kF32, call.m, info.n), epilogue,
                     context);
}

}  // namespace sentence_embedding
