// What every fuzz target of a container does with a checkpoint that opened.
#ifndef NIBBLE_CHECKPOINT_TEST_WALK_H_
#define NIBBLE_CHECKPOINT_TEST_WALK_H_

#include <cstdlib>
#include <vector>

#include "nibble/checkpoint.h"

namespace nibble::checkpoint {

/// Reads every byte of every tensor and the first and last row of every layer. Aborts when a layer
/// is not what the listing says of it.
inline void walk(const Checkpoint& checkpoint) {
  unsigned sum = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    const auto stored = checkpoint.tensor_bytes(tensor.name);
    if (!stored.ok()) std::abort();
    for (const uint8_t byte : stored->span()) sum += byte;
    const auto typed = checkpoint.tensor(tensor.name);
    if (typed.ok() && typed->view.bytes() != stored->bytes()) std::abort();
  }
  for (const LayerInfo& layer : checkpoint.layers()) {
    const auto q = checkpoint.load(layer.name);
    if (q.ok() && (!layer.status.ok() || !layer.dense_only.empty() || q->format != layer.format ||
                   q->n != layer.n || q->k != layer.k)) {
      std::abort();  // what was listed is what is loaded
    }
    const auto rows = checkpoint.dense_rows(layer.name);
    if (q.ok() && !rows.ok()) std::abort();
    if (!rows.ok()) continue;
    if (rows->n != layer.n || rows->k != layer.k) std::abort();
    if (rows->k > 1 << 16) continue;
    std::vector<float> row(static_cast<size_t>(rows->k));
    for (const int64_t at : {int64_t{0}, rows->n - 1}) {
      sum += rows->read(at, at + 1, row.data()).ok() && row[0] > 0;
    }
  }
  asm volatile("" : : "r"(sum));  // every byte is read, whatever the optimiser thinks of it
}

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_TEST_WALK_H_
