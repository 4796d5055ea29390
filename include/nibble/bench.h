// Measured limits of this machine, for `nibble bench`.
#ifndef NIBBLE_BENCH_H_
#define NIBBLE_BENCH_H_

#include "nibble/core.h"

namespace nibble {

/// A loop that approaches one limit; `best` read loops are tried and the fastest counts.
enum class Roof : uint8_t { kRead, kInt8, kBf16, kF32 };

/// Measures roofs with fixed threads and buffers, so that one measurement takes `seconds`.
class RoofMeter {
 public:
  /// `pool` runs the loops on all its threads; the read roof cycles through `read_bytes` (0: four
  /// times the last-level cache).
  static Result<RoofMeter> create(ThreadPool* pool, const Device& device, int64_t read_bytes = 0);
  RoofMeter(RoofMeter&&) noexcept;
  ~RoofMeter();
  /// GB/s for kRead, GFLOP/s (2 per multiply-add) otherwise; 0 where the device has no such loop.
  double measure(Roof roof, double seconds);

 private:
  struct State;
  explicit RoofMeter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble

#endif  // NIBBLE_BENCH_H_
