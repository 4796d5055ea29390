// libFuzzer target: an input is an ONNX model in memory. Whatever opens must be loadable or
// refused.
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "nibble/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::Buffer;
  // Exactly as long as the file, so that the address sanitizer sees one byte too many.
  std::vector<uint8_t> file(data, data + size);
  const Buffer bytes = Buffer::view(file.data(), static_cast<int64_t>(size));
  const auto checkpoint = nibble::Checkpoint::from_memory(bytes, "", "input.onnx");
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
    if (q.ok() && (!layer.status.ok() || !layer.dense_only.empty() || q->format != layer.format ||
                   q->n != layer.n || q->k != layer.k)) {
      std::abort();  // what was listed is what is loaded
    }
    const auto rows = checkpoint->dense_rows(layer.name);
    if (!rows.ok()) continue;
    if (rows->n != layer.n || rows->k != layer.k) std::abort();
    if (rows->k > 1 << 16) continue;
    std::vector<float> row(static_cast<size_t>(rows->k));
    for (const int64_t at : {int64_t{0}, rows->n - 1}) {
      if (!rows->read(at, at + 1, row.data()).ok()) std::abort();
      sum += row[0] > 0;
    }
  }
  asm volatile("" : : "r"(sum));  // every byte is read, whatever the optimiser thinks of it
  return 0;
}
