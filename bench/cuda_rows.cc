// Times the GPU row that a plan takes against the time to read the weight's bytes: `us_isolated` (a
// graph of launches that follow each other fully), `us_chain` (programmatic launches) and
// `floor_us` (the best of several kernels that only read), all with cold weights, in one process.
// Prints JSON.
//
//   bench_cuda_rows [FORMATS] [M,…] [X_DTYPE]      e.g. int4-g128,nvfp4 1,4,16 bf16
//
// `nibble bench` will have these figures; this program stands until then.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/table.h"
#include "nibble/core.h"
#include "nibble/plan.h"

namespace nibble {

// bench/read_floor.cu
int fill_pattern(void* to, int64_t bytes, uint32_t mask, uint32_t bits);
int read_once(const void* from, int64_t bytes, int blocks, int threads, void* out, void* stream);

namespace {

constexpr int64_t kXBytes = int64_t{256} << 20;  // 4096 rows of the longest shape
constexpr int64_t kCodesBytes = int64_t{1} << 30, kScalesBytes = int64_t{512} << 20;
constexpr int64_t kColdBytes = int64_t{320} << 20;  // more than three times the L2 of any GPU here

void check(int error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(static_cast<cudaError_t>(error)));
  std::exit(1);
}

/// Median microseconds of one of `launches` launches in a graph.
template <class Launch>
double graph_us(const Launch& launch, int launches, int repetitions) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t instance;
  cudaEvent_t begin, end;
  check(cudaStreamCreate(&stream), "stream");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  for (int i = 0; i < launches; ++i) launch(i, stream);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&instance, graph, 0), "graph");
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < repetitions + 2; ++i) {
    check(cudaEventRecord(begin, stream), "event");
    check(cudaGraphLaunch(instance, stream), "launch");
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "wait");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 2) times.push_back(ms);  // the first replays warm up
  }
  std::sort(times.begin(), times.end());
  check(cudaGraphExecDestroy(instance), "graph");
  check(cudaGraphDestroy(graph), "graph");
  check(cudaEventDestroy(begin), "event");
  check(cudaEventDestroy(end), "event");
  check(cudaStreamDestroy(stream), "stream");
  return static_cast<double>(times[times.size() / 2]) * 1e3 / launches;
}

struct Memory {
  uint8_t *codes, *scales;
  void *x, *y;
  uint32_t* out;
  CudaDevice device;
  Device planned;  ///< the same machine as the planner sees it
};

int copies_of(int64_t bytes) {
  const int64_t cold = kColdBytes / bytes + 1;
  return static_cast<int>(std::max<int64_t>(4, std::min(cold, kCodesBytes / (bytes + 256))));
}

double floor_us(const Memory& memory, int64_t bytes) {
  const int copies = copies_of(bytes), launches = std::max(24, copies);
  double best = 1e30;
  for (const int blocks : {1, 2, 4, 8}) {
    for (const int threads : {256, 512, 1024}) {
      const auto launch = [&](int i, cudaStream_t stream) {
        const auto* from = memory.codes + i % copies * (bytes / 256 * 256);
        check(read_once(from, bytes, blocks * memory.device.num_sms, threads, memory.out, stream),
              "read");
      };
      best = std::min(best, graph_us(launch, launches, 11));
    }
  }
  return best;
}

void run_case(const Memory& memory, const std::string& format, int64_t n, int64_t k, int64_t m,
              DType dtype, bool first) {
  const PackedWeightInfo info =
      *described_weight(*Format::parse(format), n, k, {LayoutId::kCudaFrag16, false});
  MatmulArgs a{};
  a.x = memory.x;
  a.x_dtype = a.y_dtype = dtype;
  a.x_stride_bytes = k * dtype_bytes(dtype);
  a.y = memory.y;
  a.y_stride_bytes = n * dtype_bytes(dtype);
  a.m = m;
  a.epilogue.alpha = 1;
  a.w.element = info.format.element;
  a.w.scale_dtype = info.format.scale;
  a.w.zero_kind = info.format.zero;
  a.w.group = info.format.group_columns(info.k_padded);
  a.w.num_groups = info.num_groups;
  a.w.n = n;
  a.w.k = k;
  a.w.n_padded = info.n_padded;
  a.w.k_padded = info.k_padded;
  a.w.codebook = kNf4Codebook.data();
  a.device = memory.device;
  const int64_t code_bytes = info.section(SectionId::kCodes).bytes,
                scale_bytes = info.section(SectionId::kScales).bytes,
                zero_bytes = info.section(SectionId::kZeros).bytes;
  const int64_t bytes = code_bytes + scale_bytes + zero_bytes;
  PlanOptions options;
  options.x_dtype = options.y_dtype = dtype;
  const Plan made = *plan({m, n, k}, info, memory.planned, options);
  const KernelInfo& kernel = all_kernels()[static_cast<size_t>(made.matmul().kernel)];
  const int copies = copies_of(bytes), launches = m > 256 ? 8 : std::max(24, copies);
  const auto time = [&](bool chain) {
    a.device.programmatic = chain;
    MatmulArgs args = a;
    return graph_us(
        [&](int i, cudaStream_t stream) {
          const int64_t copy = i % copies;
          args.w.codes = memory.codes + copy * round_up(code_bytes, 256);
          const uint8_t* scales =
              memory.scales + copy * round_up(round_up(scale_bytes, 256) + zero_bytes, 256);
          args.w.scales = scales;
          args.w.zeros = zero_bytes > 0 ? scales + round_up(scale_bytes, 256) : nullptr;
          check(kernel.cuda_matmul(args, stream), "launch");
        },
        launches, m > 256 ? 11 : 51);
  };
  const double floor = floor_us(memory, bytes), isolated = time(false), chain = time(true);
  std::printf(
      "%s  {\"row\": \"%s\", \"format\": \"%s\", \"m\": %lld, \"n\": %lld, \"k\": %lld, "
      "\"x_dtype\": \"%s\", "
      "\"weight_bytes\": %lld, \"us_isolated\": %.2f, \"us_chain\": %.2f, \"floor_us\": %.2f, "
      "\"share_of_floor\": %.3f, \"chain_gbps\": %.0f, \"graph\": true}",
      first ? "" : ",\n", kernel.row.name, format.c_str(), static_cast<long long>(m),
      static_cast<long long>(n), static_cast<long long>(k), dtype_name(dtype),
      static_cast<long long>(bytes), isolated, chain, floor, floor / isolated,
      static_cast<double>(bytes) / chain * 1e-3);
  std::fflush(stdout);
}

std::vector<std::string> list_of(const std::string& text) {
  std::vector<std::string> items;
  std::stringstream stream(text);
  for (std::string item; std::getline(stream, item, ',');) items.push_back(item);
  return items;
}

int run(int count, char** arguments) {
  const auto formats = list_of(count > 1 ? arguments[1] : "int4-g128,nvfp4");
  const auto rows = list_of(count > 2 ? arguments[2] : "1,4,16");
  const DType dtype = *parse_dtype(count > 3 ? arguments[3] : "bf16");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "device");
  Memory memory{};
  check(cudaMalloc(&memory.codes, kCodesBytes + 4096), "memory");
  check(cudaMalloc(&memory.scales, kScalesBytes), "memory");
  check(cudaMalloc(&memory.x, kXBytes), "memory");
  check(cudaMalloc(&memory.y, kXBytes), "memory");
  check(cudaMalloc(&memory.out, 4), "memory");
  memory.device = {10 * properties.major + properties.minor, properties.multiProcessorCount,
                   static_cast<int64_t>(properties.sharedMemPerBlockOptin), true, false};
  check(fill_pattern(memory.codes, kCodesBytes, ~0u, 0), "fill");
  // Bytes that are moderate scales in every dtype.
  check(fill_pattern(memory.scales, kScalesBytes, 0x03030303, 0x3c383c38), "fill");
  check(fill_pattern(memory.x, kXBytes, 0x83FF83FF, 0x3c003c00), "fill");
  check(cudaDeviceSynchronize(), "fill");
  memory.planned = *Device::named("h200");
  memory.planned.sm = memory.device.sm;
  memory.planned.num_sms = memory.device.num_sms;
  for (const KernelInfo& kernel : cuda_kernels()) {
    if (kernel.row.min_sm <= memory.device.sm && memory.device.sm <= kernel.row.max_sm) {
      check(kernel.cuda_load(), kernel.row.name);
    }
  }
  int driver = 0, clock_khz = 0;
  check(cudaDriverGetVersion(&driver), "driver");
  check(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0), "clock");
  std::printf(
      "{\"device\": \"%s\", \"sm\": %d, \"num_sms\": %d, \"cuda_driver\": %d, "
      "\"sm_clock_mhz\": %d, \"results\": [\n",
      properties.name, memory.device.sm, memory.device.num_sms, driver, clock_khz / 1000);
  bool first = true;
  for (const std::string& format : formats) {
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{2048, 16384},
                               {16384, 2048},
                               {4096, 4096},
                               {4096, 14336},
                               {8192, 8192},
                               {8192, 28672}}) {
      for (const std::string& m : rows) {
        run_case(memory, format, n, k, std::stoll(m), dtype, first);
        first = false;
      }
    }
  }
  std::printf("\n]}\n");
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int count, char** arguments) { return nibble::run(count, arguments); }
