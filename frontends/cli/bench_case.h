// One case of `nibble bench`: random weights, cold copies, and roof – case – roof rounds.
#ifndef NIBBLE_FRONTENDS_CLI_BENCH_CASE_H_
#define NIBBLE_FRONTENDS_CLI_BENCH_CASE_H_

#include <string>
#include <vector>

#include "nibble/bench.h"
#include "nibble/ops.h"

namespace nibble::cli {

/// A random weight and as many packed copies that together they exceed the last-level cache: a
/// product that takes the next copy each time finds its weight in memory, as a model's layer does.
struct ColdWeights {
  QuantizedTensor tensor;
  std::vector<PackedWeight> copies;
  int64_t weight_bytes = 0;  ///< of one copy: codes, scales and zeros as stored, no padding
};
/// Copies fill at least `cold_bytes`.
Result<ColdWeights> make_cold_weights(const Format& format, int64_t n, int64_t k,
                                      const Layout& layout, int64_t cold_bytes, ThreadPool* pool);

struct BenchCase {
  Device device;
  Compute compute = Compute::kExact;
  DType x_dtype = DType::kF32;  ///< y has the same
  int64_t m = 1;
  std::string kernel;  ///< only this row; empty: the planner's choice
  double seconds = 1;  ///< time spent in the case itself; the roofs take about as long
};

struct BenchResult {
  std::string kernel;
  Isa isa = Isa::kScalar;  ///< of the kernel
  Roof compute_roof = Roof::kF32;
  int64_t runs = 0;            ///< counted ones
  int64_t preempted_runs = 0;  ///< the system took a core away meanwhile; not counted
  double us_median = 0, us_p10 = 0, us_p90 = 0;
  double weight_gbps = 0, gflops = 0;  ///< at the median
  /// Medians over the kept rounds; NaN when no round was kept.
  double read_roof_gbps = 0, compute_roof_gflops = 0;
  double share_of_read_roof = 0, share_of_compute_roof = 0;
  int rounds = 0;          ///< kept
  int dropped_rounds = 0;  ///< the two roofs around the case differed by more than 10 %
};

/// Measures one case, after checking a sample of its results against dequantized weights.
/// Errors: those of Linear; kInternal when a result is wrong.
Result<BenchResult> run_bench_case(const BenchCase& bench, const ColdWeights& weights,
                                   ThreadPool* pool, RoofMeter* meter);

/// Value at `share` (0..1) of the sorted values; NaN for none.
double quantile(std::vector<double> values, double share);

}  // namespace nibble::cli

#endif  // NIBBLE_FRONTENDS_CLI_BENCH_CASE_H_
