#include "checkpoint/spelling.h"

#include "checkpoint/safetensors.h"

namespace nibble::checkpoint {

extern const ReadSpelling kReadGguf, kReadOnnx, kReadCompressedTensors, kReadBitsandbytes,
    kReadNibble;
extern const ReadSpelling kReadGptq, kReadAwq, kReadModelOpt, kReadHqq;
extern const WriteSpelling kWriteCompressedTensors, kWriteBitsandbytes, kWriteNibble;
extern const WriteSpelling kWriteModelOpt, kWriteGguf;

std::span<const ReadSpelling> read_spellings() {
  static const ReadSpelling rows[] = {kReadGguf,         kReadOnnx,     kReadCompressedTensors,
                                      kReadBitsandbytes, kReadNibble,   kReadGptq,
                                      kReadAwq,          kReadModelOpt, kReadHqq};
  return rows;
}

std::span<const WriteSpelling* const> write_spellings() {
  static const WriteSpelling* const rows[] = {&kWriteCompressedTensors, &kWriteBitsandbytes,
                                              &kWriteNibble, &kWriteModelOpt, &kWriteGguf};
  return rows;
}

Result<const WriteSpelling*> find_write_spelling(std::string_view name) {
  std::string names;
  for (const WriteSpelling* spelling : write_spellings()) {
    if (name == spelling->name) return spelling;
    names += (names.empty() ? "" : ", ") + std::string(spelling->name);
  }
  return invalid_argument("Nibble does not write the spelling " + shown(name) +
                          "; it writes: " + names);
}

Result<const WriteSpelling*> spelling_for(const LayerSpec& layer, std::string_view name) {
  NIBBLE_RETURN_IF_ERROR(layer.format.validate());
  if (layer.n < 1 || layer.k < 1) {
    return invalid_argument("a weight needs n and k of at least 1, not [" +
                            std::to_string(layer.n) + ", " + std::to_string(layer.k) + "]");
  }
  if (!name.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const WriteSpelling* named, find_write_spelling(name));
    if (!named->takes(layer.format)) {
      return unsupported(std::string(named->name) + " has no form for " + layer.format.name());
    }
    NIBBLE_RETURN_IF_ERROR(named->check(layer));
    return named;
  }
  for (const WriteSpelling* spelling : write_spellings()) {
    if (!spelling->takes(layer.format)) continue;
    NIBBLE_RETURN_IF_ERROR(spelling->check(layer));
    return spelling;
  }
  return unsupported("no checkpoint spelling that Nibble writes can hold " + layer.format.name() +
                     ": compressed-tensors takes integers with f32, f16 or bf16 scales and integer "
                     "zeros, nvfp4 and mxfp4; bitsandbytes takes nf4");
}

Result<const TensorInfo*> require_part(const Source& source, std::string_view layer,
                                       std::string_view suffix, uint32_t dtypes,
                                       std::span<const int64_t> shape) {
  const TensorInfo* tensor = find_part(source, layer, suffix);
  if (tensor == nullptr) {
    return corrupt_file("tensor " + shown(part_name(layer, suffix)) + " is missing");
  }
  const bool right_dtype = tensor->dtype && (dtypes & bit(*tensor->dtype)) != 0;
  if (right_dtype &&
      std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end())) {
    return tensor;
  }
  std::string wanted;
  for (uint32_t i = 0; i < 32; ++i) {
    if ((dtypes >> i & 1) == 0) continue;
    wanted += (wanted.empty() ? "" : " or ") + std::string(safetensors_name(static_cast<DType>(i)));
  }
  return corrupt_file("tensor " + shown(tensor->name) + " is " + tensor->dtype_name + " " +
                      shape_text(tensor->shape) + ", the layer needs " + wanted + " " +
                      shape_text(shape));
}

void add_part(const Source& source, LayerInfo& layer, std::string_view suffix) {
  const TensorInfo* tensor = find_part(source, layer.name, suffix);
  if (tensor == nullptr) return;
  layer.tensors.push_back(tensor->name);
  layer.stored_bytes += tensor->bytes;
}

TensorInfo output_tensor(std::string_view layer, std::string_view suffix, DType dtype,
                         std::vector<int64_t> shape) {
  TensorInfo tensor;
  tensor.name = part_name(layer, suffix);
  tensor.dtype = dtype;
  tensor.dtype_name = safetensors_name(dtype);
  tensor.bytes = dtype_bytes(dtype);
  for (const int64_t extent : shape) tensor.bytes *= extent;
  tensor.shape = std::move(shape);
  return tensor;
}

}  // namespace nibble::checkpoint
