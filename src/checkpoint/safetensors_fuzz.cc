// libFuzzer target: a checkpoint in memory. An input is two bytes of length (little-endian), that
// many bytes of config.json, and a safetensors file. Whatever opens must be loadable or refused.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "nibble/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::Buffer;
  if (size < 2) return 0;
  const size_t config_size = std::min<size_t>(data[0] + 256u * data[1], size - 2);
  const std::string config(reinterpret_cast<const char*>(data) + 2, config_size);
  const size_t file_size = size - 2 - config_size;
  // Exactly as long as the file, so that the address sanitizer sees one byte too many.
  std::vector<uint8_t> file(data + 2 + config_size, data + size);
  const Buffer bytes = Buffer::view(file.data(), static_cast<int64_t>(file_size));

  const auto checkpoint = nibble::Checkpoint::from_memory(bytes, config, "input");
  if (!checkpoint.ok()) return 0;
  unsigned sum = 0;
  for (const nibble::TensorInfo& tensor : checkpoint->tensors()) {
    const auto stored = checkpoint->tensor_bytes(tensor.name);
    if (!stored.ok()) std::abort();
    for (const uint8_t byte : stored->span()) sum += byte;
    const auto typed = checkpoint->tensor(tensor.name);
    if (typed.ok() && typed->view.bytes() != stored->bytes()) std::abort();
  }
  for (const nibble::LayerInfo& layer : checkpoint->layers()) {
    const auto q = checkpoint->load(layer.name);
    if (layer.status.ok() && !layer.dense_only.empty()) {
      if (q.ok()) std::abort();
      const auto rows = checkpoint->dense_rows(layer.name);
      if (!rows.ok() || rows->k > 1 << 16) continue;
      if (rows->n != layer.n || rows->k != layer.k) std::abort();
      std::vector<float> row(static_cast<size_t>(rows->k));
      sum += rows->read(rows->n - 1, rows->n, row.data()).ok() && row[0] > 0;
      continue;
    }
    if (!q.ok()) continue;
    if (!layer.status.ok() || q->format != layer.format || q->n != layer.n || q->k != layer.k) {
      std::abort();  // what was listed is what is loaded
    }
    if (q->k > 1 << 16) continue;
    std::vector<float> row(static_cast<size_t>(q->k));
    q->dequantize(q->n - 1, q->n, row.data());
    sum += row[0] > 0;
  }
  asm volatile("" : : "r"(sum));  // every byte is read, whatever the optimiser thinks of it
  return 0;
}
